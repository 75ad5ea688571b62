"""The sweeper as a service of Twisted's, by a clock that is moved by hand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock as Reactor
from twisted.internet.threads import blockingCallFromThread
from twisted.logger import LogLevel, globalLogPublisher
from zope.interface.verify import verifyObject

from sojourn.errors import ConfigurationError, StoreUnavailable
from sojourn.manager import SessionManager
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Clock
from sojourn.web.twisted.service import SweeperService, sweep


def made(sessions: SessionManager, number: int = 1) -> None:
    """Make sessions that nobody uses."""
    for count in range(number):
        session = sessions.session()
        session["n"] = count
        sessions.commit(session)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def events() -> Iterator[list[Any]]:
    """What was logged as an error by Twisted's logger."""
    seen: list[Any] = []

    def observe(event: Any) -> None:
        if event["log_level"] >= LogLevel.error:
            seen.append(event)

    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)


def test_it_sweeps_while_it_runs(clock: Clock) -> None:
    """Started with its application it sweeps every minute or so; stopped, it leaves no timer."""
    sessions = SessionManager(idle_timeout=600, clock=clock)
    ended: list[str] = []
    sessions.on_ended(lambda session, reason: ended.append(reason))
    made(sessions)
    reactor, application = Reactor(), MultiService()
    service = SweeperService(sessions, every=60, reactor=reactor)
    service.setServiceParent(application)
    assert reactor.getDelayedCalls() == []

    application.startService()
    reactor.pump([1.0] * 70)
    assert ended == []
    clock.advance(700)
    reactor.pump([1.0] * 70)
    assert (ended, sessions.count()) == (["idle"], 0)

    assert application.stopService().called
    assert reactor.getDelayedCalls() == []
    made(sessions)
    clock.advance(700)
    reactor.pump([1.0] * 200)
    assert (len(ended), sessions.count()) == (1, 1)


def test_it_is_a_service(clock: Clock) -> None:
    """It has what Twisted asks of a service, and the interval is one a tenth more or less."""
    sessions = SessionManager(clock=clock)
    service = SweeperService(sessions, every=100, reactor=Reactor())

    assert verifyObject(IService, service)
    times = []
    for _ in range(100):
        reactor = Reactor()
        service = SweeperService(sessions, every=100, reactor=reactor)
        service.startService()
        times.append(reactor.getDelayedCalls()[0].getTime())
    assert 90 <= min(times) < max(times) <= 110


@pytest.mark.parametrize("every", [None, 0, -1])
def test_wrong_intervals(every: Any, clock: Clock) -> None:
    """What is no duration is told when the service is made."""
    with pytest.raises(ConfigurationError, match="every is"):
        SweeperService(SessionManager(clock=clock), every=every)
    with pytest.raises(ConfigurationError, match="must be a SessionManager"):
        SweeperService(every)


def test_a_store_that_does_not_answer(
    clock: Clock, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged with the failure, and the next sweep comes all the same."""

    def down(sid: str) -> None:
        raise StoreUnavailable("the disk is gone")

    store = MemoryStore()
    sessions = SessionManager(store, idle_timeout=600, clock=clock)
    made(sessions)
    clock.advance(700)
    reactor = Reactor()
    service = SweeperService(sessions, every=60, reactor=reactor)
    service.startService()

    with monkeypatch.context() as patched:
        patched.setattr(store, "load", down)
        reactor.pump([1.0] * 70)
    assert [type(event["log_failure"].value) for event in events] == [StoreUnavailable]
    assert "tried again later" in events[0]["log_format"]
    reactor.pump([1.0] * 70)
    assert sessions.count() == 0


def test_stopping_waits_for_the_page_under_way(clock: Clock) -> None:
    """What a sweep has begun it brings to an end; it begins no other page."""
    sessions = SessionManager(idle_timeout=600, clock=clock)
    running: list[Deferred[None]] = []

    async def handler(session: Any, reason: str) -> None:
        running.append(Deferred())
        await running[-1]

    sessions.on_ended(handler)
    made(sessions, 3)
    clock.advance(700)
    reactor = Reactor()
    service = SweeperService(sessions, every=60, reactor=reactor)
    service.startService()
    reactor.pump([1.0] * 70)
    assert len(running) == 1

    stopping = service.stopService()
    assert stopping is not None
    assert not stopping.called
    running[0].callback(None)
    reactor.pump([1.0] * 10)
    assert stopping.called
    assert (len(running), sessions.count()) == (1, 2)
    assert reactor.getDelayedCalls() == []


def test_started_again_before_it_has_stopped(clock: Clock) -> None:
    """There is one timer, not two, however it was stopped and started."""
    sessions = SessionManager(idle_timeout=600, clock=clock)
    running: list[Deferred[None]] = []

    async def handler(session: Any, reason: str) -> None:
        running.append(Deferred())
        await running[-1]

    sessions.on_ended(handler)
    made(sessions)
    clock.advance(700)
    reactor = Reactor()
    service = SweeperService(sessions, every=60, reactor=reactor)
    service.startService()
    reactor.pump([1.0] * 70)
    service.stopService()
    service.startService()
    running[0].callback(None)
    reactor.pump([0.1] * 10)

    assert len(reactor.getDelayedCalls()) == 1


def test_watches_are_called(clock: Clock) -> None:
    """A sweep also looks at the sessions that this process watches."""
    sessions = SessionManager(idle_timeout=600, clock=clock)
    told: list[str] = []
    session = sessions.session()
    session["a"] = 1
    sessions.commit(session)
    sessions.watch(session, lambda sid, reason: told.append(reason))
    other = SessionManager(sessions.store, clock=clock)
    other.end(session.sid, "operator")
    clock.advance(700)

    done: list[Any] = []
    sweep(sessions, Reactor()).addCallback(done.append)
    assert (done[0].ended, told) == (0, ["operator"])


def test_a_store_in_a_file(tmp_path: Path, clock: Clock) -> None:
    """With a store that has to wait, the sweep is made outside the reactor's thread."""
    sessions = SessionManager(f"sqlite:///{tmp_path}/sessions.db", idle_timeout=600, clock=clock)
    made(sessions, 3)
    clock.advance(700)
    reactor = SelectReactor()
    thread = threading.Thread(target=reactor.run, kwargs={"installSignalHandlers": False})
    thread.start()
    try:
        assert blockingCallFromThread(reactor, sweep, sessions, reactor).ended == 3
        assert sessions.count() == 0
    finally:
        reactor.callFromThread(reactor.stop)
        thread.join(10)
        sessions.close()
