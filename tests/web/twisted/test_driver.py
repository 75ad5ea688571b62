"""Twisted's driver: at once where nothing waits, by Deferreds where something does."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock as ReactorClock

from sojourn.core.calls import Flow, Load, Pause
from sojourn.errors import ConfigurationError, StoreUnavailable
from sojourn.manager import SessionManager
from sojourn.stores.base import Promises
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Clock, new_record
from sojourn.web.twisted import driver
from sojourn.web.twisted.deferred import DeferredSessions
from sojourn.web.twisted.driver import LIMIT, DeferredPort, Port, ThreadPort, drive, port_of
from sojourn.web.twisted.realm import realm_of

from .kit import DeferredStore, Web

NOW = 1_750_000_000.0


class Reactor(ReactorClock):
    """A reactor that threads may call: `serve` does what they asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Callable[[], object]] = []
        self.woken = threading.Condition()

    def callFromThread(self, function: Any, *args: Any, **kwargs: Any) -> None:
        with self.woken:
            self.asked.append(lambda: function(*args, **kwargs))
            self.woken.notify()

    def serve(self, until: Deferred[Any], seconds: float = 20.0) -> Any:
        with self.woken:
            while not until.called:
                assert self.woken.wait_for(lambda: self.asked, seconds), "nobody answered"
                self.asked.pop(0)()
        return until.result

    def addSystemEventTrigger(self, phase: str, event: str, function: Any) -> None:
        self.at_shutdown = function


def loads(*sids: str) -> Flow[list[Any]]:
    found = []
    for sid in sids:
        found.append((yield Load(sid)))
    return found


def guarded(sid: str) -> Flow[Any]:
    try:
        return (yield Load(sid))
    except StoreUnavailable as error:
        return str(error)


def test_at_once() -> None:
    """On a store in memory the result is there when `drive` returns."""
    store = MemoryStore()
    record = new_record(NOW)
    store.create(record)

    assert drive(loads(record.sid, "x"), Port(store, None)) == [record, None]


def test_waiting() -> None:
    """It goes on as the answers come; those that are there already are not waited for."""
    store = DeferredStore()
    record = new_record(NOW)
    store.store.create(record)
    store.hold = True
    port = DeferredPort(store, ReactorClock())
    waited = drive(loads(record.sid, "x"), port)
    assert isinstance(waited, Deferred)
    store.release()
    assert not waited.called
    store.release()

    assert waited.result == [record, None]
    store.hold = False
    assert drive(loads(record.sid), port) == [record]


def test_many_steps() -> None:
    """A flow of thousands of calls, each waited for, is no deeper than one of two."""
    store = DeferredStore()
    store.hold = True
    waited = drive(loads(*["x"] * 5000), DeferredPort(store, ReactorClock()))
    assert isinstance(waited, Deferred)
    store.release_all()

    assert waited.result == [None] * 5000


@pytest.mark.parametrize("hold", [False, True])
def test_errors_reach_the_flow(hold: bool) -> None:
    """What a store raises is thrown into the flow, which may go on; else it is the failure."""
    store = DeferredStore()
    store.failing, store.hold = StoreUnavailable("down"), hold
    port = DeferredPort(store, ReactorClock())

    def run(flow: Flow[Any]) -> Any:
        try:
            done = drive(flow, port)
        except StoreUnavailable as error:
            return error
        store.release_all()
        return done.result if isinstance(done, Deferred) else done

    assert run(guarded("x")) == "down"
    result = run(loads("x"))
    if hold:
        assert result.value is store.failing
    else:
        assert result is store.failing


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("failures", [1, 2, 3])
def test_lost_answers(hold: bool, failures: int) -> None:
    """A transient failure is tried again twice."""
    store = DeferredStore()
    left = [StoreUnavailable("cut", transient=True)] * failures

    class Cut(MemoryStore):
        def load(self, sid: str) -> Any:
            if left:
                raise left.pop()
            return None

    store.store, store.hold = Cut(), hold
    done = drive(guarded("x"), DeferredPort(store, ReactorClock()))
    store.release_all()

    result = done.result if isinstance(done, Deferred) else done
    assert result == (None if failures < 3 else "cut")


def test_pauses() -> None:
    """They are the reactor's."""
    reactor = ReactorClock()

    def flow() -> Flow[str]:
        yield Pause(5)
        return "done"

    waited = drive(flow(), Port(MemoryStore(), reactor))
    assert isinstance(waited, Deferred)
    reactor.advance(4.9)
    assert not waited.called
    reactor.advance(0.1)
    assert waited.result == "done"


def test_faults_of_a_store() -> None:
    """What is no error of a store's contract is not taken for one."""

    class Broken(MemoryStore):
        def load(self, sid: str) -> Any:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        drive(guarded("x"), Port(Broken(), None))


# Threads.


def test_in_threads() -> None:
    """A blocking store is asked in threads, which end with the reactor."""
    asked: list[int] = []

    class Blocking(MemoryStore):
        promises = Promises(survives="power", shared="hosts")
        attempt = None  # type: ignore[assignment]

        def load(self, sid: str) -> Any:
            asked.append(threading.get_ident())
            return super().load(sid)

    others = set(threading.enumerate())
    reactor = Reactor()
    port = port_of(SessionManager(Blocking()), reactor)
    waited = drive(loads("x", "y"), port)
    assert isinstance(waited, Deferred)

    assert reactor.serve(waited) == [None, None]
    assert threading.get_ident() not in asked
    reactor.at_shutdown()
    left = set(threading.enumerate()) - others
    assert not [one for one in left if "sojourn-store" in one.name]


def test_a_script_without_a_reactor_ends(tmp_path: Path) -> None:
    """No thread keeps the interpreter, though no reactor ever stops them."""
    code = """
        from sojourn import SessionManager
        from sojourn.web.twisted import DeferredSessions

        sessions = SessionManager("sqlite:///sessions.db")
        session = sessions.session()
        session.login("alice")
        sessions.commit(session)
        DeferredSessions(sessions).end_all("alice")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=60)

    assert (done.returncode, done.stderr) == (0, b"")


def test_sqlite_waits_for_a_lock_in_a_thread(tmp_path: Path) -> None:
    """While another process writes, the reactor goes on; without that there is no thread at all."""
    import apsw

    path = tmp_path / "sessions.db"
    web = Web(SessionManager(f"sqlite:///{path}").store, reactor=Reactor())
    port = realm_of(web.sessions).port
    assert isinstance(port, ThreadPort)
    assert port.inline
    first = web.begin(lambda request: request.getSession().uid)
    while not first.received:
        web.reactor.asked.pop(0)() if web.reactor.asked else None
    web.keep(first.take())
    # Its connection is open now: nothing waits, and nothing is done in a thread.
    add = lambda request: str(request.getSession().add("n"))  # noqa: E731
    assert web.visit(add).body == b"1"
    somebody = web.request(add, cookie="")

    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    wire = web.begin(add)
    assert wire.received == b""
    answer = web.request(
        lambda request: repr(request.getSession()["n"]), cookie=f"id={somebody.token}"
    )
    assert answer.body == b"1"
    other.execute("COMMIT")
    other.close()
    while not wire.received:
        with web.reactor.woken:
            assert web.reactor.woken.wait_for(lambda: web.reactor.asked, 20)
            web.reactor.asked.pop(0)()

    assert wire.take().body == b"2"
    web.reactor.at_shutdown()
    web.sessions.close()


class Hanging:
    """A blocking store that answers when the test lets it."""

    promises = msgspec.structs.replace(MemoryStore.promises, inline=False)

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers = threading.Semaphore(0)

    def load(self, sid: str) -> None:
        self.asked.append(sid)
        self.answers.acquire()


@pytest.mark.parametrize("ends", [False, True])
def test_what_waits_too_long_for_a_thread(ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is not asked any more: nobody waits for that, or the process is about to end."""
    now = 1000.0
    monkeypatch.setattr(driver, "time", SimpleNamespace(monotonic=lambda: now))
    reactor, store = Reactor(), Hanging()
    port = ThreadPort(store, reactor)
    answers: list[Any] = []

    def ask(sid: str) -> None:
        port.make(Load(sid)).addBoth(answers.append)

    def answered(number: int) -> None:
        while len(answers) < number:
            with reactor.woken:
                assert reactor.woken.wait_for(lambda: reactor.asked, 20)
                reactor.asked.pop(0)()

    for number in range(20):
        ask(f"early {number}")
    store.answers.release()
    answered(1)
    if ends:
        stopping = threading.Thread(target=reactor.at_shutdown)
        stopping.start()
        while math.isinf(port._threads.ends):
            stopping.join(0.01)
        now += driver._ENDING + 1
    else:
        now += LIMIT + 1
        ask("late")
    for _ in range(30):
        store.answers.release()
    answered(20 if ends else 21)
    if ends:
        stopping.join()
    else:
        reactor.at_shutdown()

    refused = [one.value for one in answers if one is not None]
    # Those that were under way by then are brought to their end.
    assert 20 - len(refused) == sum(one.startswith("early") for one in store.asked) <= 9
    assert all(type(one) is StoreUnavailable for one in refused)
    assert ("late" in store.asked) is not ends


def test_an_asyncio_store_without_its_reactor() -> None:
    """It says what is wrong, and what to do."""

    class Awaited:
        promises = MemoryStore.promises

        async def load(self, sid: str) -> None: ...

    with pytest.raises(ConfigurationError, match="asynchronous store"):
        port_of(SessionManager(Awaited()), ReactorClock())  # type: ignore[arg-type]


# Handlers.


def test_handlers() -> None:
    """Coroutine functions run in the reactor's thread, and the commit waits for them."""
    web = Web(DeferredStore())
    told: list[Any] = []
    pause: Deferred[None] = Deferred()

    @web.sessions.on_created
    async def created(session: Any) -> None:
        await pause
        told.append(("created", session["n"]))

    @web.sessions.on_ended
    async def ended(session: Any, reason: str) -> None:
        told.append(("ended", session["n"], reason))

    @web.sessions.on_ended
    async def broken(session: Any, reason: str) -> None:
        if len(told) < 4:
            raise RuntimeError("the first time")
        told.append("again")

    wire = web.begin(lambda request: str(request.getSession().add("n")))
    assert wire.received == b""
    pause.callback(None)
    web.keep(wire.take())
    assert told == [("created", 1)]
    assert web.visit(lambda request: request.getSession().expire() or "").status == 200
    assert told == [("created", 1), ("ended", 1, "user")]
    assert web.visit(lambda request: repr(request.getSession().get("n"))).body == b"None"


def test_a_blocking_handler() -> None:
    """It is given to a thread, as it may block; also while all of the reactor's are at work."""

    class AllBusy(Reactor):
        def getThreadPool(self) -> Any:
            raise AssertionError("what is given to these may wait for this very request")

    reactor = AllBusy()
    web = Web(reactor=reactor)
    told: list[int] = []
    web.sessions.on_created(lambda session: told.append(threading.get_ident()))
    wire = web.begin(lambda request: str(request.getSession().add("n")))
    assert wire.received == b""
    while not wire.received:
        with reactor.woken:
            assert reactor.woken.wait_for(lambda: reactor.asked, 20)
            reactor.asked.pop(0)()
    reactor.at_shutdown()

    assert wire.take().body == b"1"
    assert told != []
    assert threading.get_ident() not in told


# What operators ask.


def test_deferred_sessions() -> None:
    """`end`, `end_all`, `of_user` and `count`, on a store that answers by Deferreds."""
    web = Web(DeferredStore())
    cookies = []
    for user in ("alice", "alice", "bob"):
        web.cookie = ""
        web.visit(lambda request, user=user: request.getSession().login(user) or "")
        cookies.append(web.cookie)
    ask = DeferredSessions(web.sessions)

    def answer(waiting: Deferred[Any]) -> Any:
        found: list[Any] = []
        waiting.addCallback(found.append)
        return found[0]

    assert answer(ask.count("alice")) == 2
    devices = answer(ask.of_user("alice", current=cookies[0][3:25]))
    assert sorted(device.current for device in devices) == [False, True]
    assert answer(ask.end_all("alice", keep=cookies[0][3:25])) == [cookies[1][3:25]]
    assert answer(ask.end(cookies[2][3:25], user="alice")) is False
    assert answer(ask.end("no sid")) is False
    assert answer(ask.end(cookies[2][3:25])) is True
    assert answer(ask.count()) == 1
    who = lambda request: repr(request.getSession().user)  # noqa: E731
    assert [web.request(who, cookie=cookie).body for cookie in cookies] == [
        b"'alice'",
        b"None",
        b"None",
    ]
    assert web.sessions.counters["ended"] == 2


def test_ended_by_a_blocking_call_in_a_thread() -> None:
    """Callbacks of sessions run in the reactor's thread, whoever ends them."""
    reactor = Reactor()
    web = Web(reactor=reactor)
    called: list[int] = []
    web.visit(
        lambda request: (
            request.getSession().notifyOnExpire(lambda: called.append(threading.get_ident())) or ""
        )
    )
    thread = threading.Thread(target=web.sessions.end, args=(web.cookie[3:25],))
    thread.start()
    thread.join()
    assert called == []
    reactor.asked.pop(0)()

    assert called == [threading.get_ident()]
    assert web.timers == []


def test_next_deadline() -> None:
    """The watches of a manager say when there is something to look at."""
    clock = Clock()
    sessions = SessionManager(clock=clock)

    def note(sid: str, reason: str) -> None: ...

    made = []
    for idle in (50.0, 20.0):
        session = sessions.session()
        session.idle_timeout = idle
        sessions.commit(session)
        sessions.watch(session, note)
        made.append(session)
    assert sessions._handlers is not None
    watches = sessions._handlers.watches

    assert watches.next_deadline() == clock() + 20.0
    sessions.unwatch(made[1].sid, note)
    assert watches.next_deadline() == clock() + 50.0
    sessions.unwatch(made[0].sid, note)
    assert watches.next_deadline() is None
