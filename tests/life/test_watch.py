"""Callbacks of single sessions in one process: once, each for itself, and nothing left behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from sojourn.core.ending import SKEW
from sojourn.errors import ConfigurationError, StoreUnavailable
from sojourn.handlers import Watches

from .conftest import Life, sid_of
from .test_sweeps import Down


class Calls(list[tuple[str, str]]):
    def __call__(self, sid: str, reason: str) -> None:
        self.append((sid, reason))

    __hash__ = object.__hash__  # type: ignore[assignment]


def watched(life: Life, cookie: str, *callbacks: Any) -> None:
    session = life.open(cookie)
    for callback in callbacks:
        life.sessions.watch(session, callback)


def watches(life: Life) -> Watches:
    assert life.sessions._handlers is not None
    return life.sessions._handlers.watches


def test_ended_here_at_once(life: Life) -> None:
    """Whatever ends it in this process: called once, when the end is written."""
    for end in ("logout", "end", "end_all"):
        cookie, calls = life.login(), Calls()
        watched(life, cookie, calls)
        if end == "logout":
            session = life.open(cookie)
            session.logout()
            assert calls == []
            life.commit(session)
        elif end == "end":
            life.do("end", sid_of(cookie), "user")
        else:
            life.do("end_all", "alice", reason="user")
        assert calls == [(sid_of(cookie), "user")]
        life.clock.advance(100 + SKEW)
        life.do("sweep")
        assert calls == [(sid_of(cookie), "user")]
    assert len(watches(life)) == 0


def test_expired(life: Life) -> None:
    """One whose time runs out: by the next sweep after its deadline, before it is swept even."""
    cookie, calls = life.login(), Calls()
    watched(life, cookie, calls)
    life.clock.advance(99.9)
    life.do("sweep")
    assert calls == []
    life.clock.advance(0.1)
    life.do("sweep")

    assert calls == [(sid_of(cookie), "idle")]
    life.clock.advance(SKEW)
    assert life.do("sweep").ended == 1
    assert len(calls) == 1


def test_expired_and_claimed_by_our_own_sweep(life: Life) -> None:
    """One that our sweep ends is told with it, handlers of all sessions or not."""
    cookies, calls = [life.login(), life.login()], Calls()
    for cookie in cookies:
        watched(life, cookie, calls)
    life.clock.advance(100 + SKEW)
    life.do("sweep")

    assert sorted(calls) == sorted((sid_of(cookie), "idle") for cookie in cookies)


def test_used_meanwhile(life: Life) -> None:
    """One that another process has touched is looked at again at its new deadline."""
    cookie, calls = life.login(), Calls()
    other = life.manager()
    watched(life, cookie, calls)
    for _ in range(5):
        life.clock.advance(90)
        session = life.open(cookie, other)
        session.touch()
        life.commit(session, other)
        life.do("sweep")
        assert calls == []
    life.clock.advance(100)
    life.do("sweep")

    assert calls == [(sid_of(cookie), "idle")]
    assert len(watches(life)) == 0
    assert watches(life)._heap == []


@pytest.mark.parametrize("tombstone", [3600, None])
def test_ended_in_another_process(make_life: Callable[..., Life], tombstone: float | None) -> None:
    """One that ended elsewhere is found at the deadline known here; also where nothing is left."""
    life = make_life(idle_timeout=100, tombstone=tombstone)
    cookie, calls = life.login(), Calls()
    other = life.manager()
    watched(life, cookie, calls)
    life.do("end", sid_of(cookie), "operator", on=other)
    life.do("sweep")
    assert calls == []
    life.clock.advance(100)
    life.do("sweep")

    assert calls == [(sid_of(cookie), "operator" if tombstone else "")]


def test_one_sweeper_is_enough_and_none_is_too_few(life: Life) -> None:
    """Also where another process is the one that sweeps, each looks after its own callbacks."""
    cookie, calls = life.login(), Calls()
    watched(life, cookie, calls)
    life.clock.advance(100 + SKEW)
    life.do("sweep", on=life.manager())
    assert calls == []
    life.do("sweep")

    assert calls == [(sid_of(cookie), "idle")]


def test_a_session_that_is_not_in_the_store_yet(life: Life) -> None:
    """A new session can be watched before its first commit."""
    session, calls = life.open(), Calls()
    session["n"] = 1
    life.sessions.watch(session, calls)
    life.do("sweep")
    cookie = life.cookie(life.commit(session))
    assert calls == []
    life.do("end", sid_of(cookie))

    assert calls == [(sid_of(cookie), "operator")]


def test_each_for_itself(life: Life) -> None:
    """One that fails keeps none of the others from being called, in the order they came."""
    cookie, order = life.login(), list[str]()

    def first(sid: str, reason: str) -> None:
        order.append("first")

    def fails(sid: str, reason: str) -> None:
        order.append("fails")
        raise OSError("gone")

    async def last(sid: str, reason: str) -> None:
        order.append("last")

    watched(life, cookie, first, fails, last, first)
    life.do("end", sid_of(cookie))

    assert order == ["first", "fails", "last", "first"]


def test_unwatch(life: Life) -> None:
    """One registration is taken back at a time; then it is not called."""
    cookie, called = life.login(), list[str]()

    def one(sid: str, reason: str) -> None:
        called.append("one")

    def other(sid: str, reason: str) -> None:
        called.append("other")

    assert life.sessions.unwatch(sid_of(cookie), one) is False
    watched(life, cookie, one, other, one)
    assert life.sessions.unwatch(sid_of(cookie), one) is True
    assert life.sessions.unwatch(sid_of(cookie), other) is True
    assert life.sessions.unwatch(sid_of(cookie), other) is False
    life.do("end", sid_of(cookie))

    assert called == ["one"]
    assert life.sessions.unwatch(sid_of(cookie), one) is False


def test_nothing_is_left_behind(memory_life: Callable[..., Life]) -> None:
    """Of sessions that ended or are watched no more nothing is kept, nor of their callbacks."""
    life = memory_life()
    gc.collect()
    gc.disable()
    try:
        kept = []
        for number in range(300):
            cookie, calls = life.login(), Calls()
            session = life.open(cookie)
            life.sessions.watch(session, calls)
            kept += [weakref.ref(calls), weakref.ref(session)]
            if number % 3 == 0:
                life.do("end", sid_of(cookie))
            elif number % 3 == 1:
                life.sessions.unwatch(sid_of(cookie), calls)
        del calls, session
        assert len(watches(life)) == 100
        assert len(watches(life)._heap) <= 2 * 100 + 8
        # Only those that are waited for live, and no session: no cycle leads to them.
        assert len([ref for ref in kept if ref() is not None]) == 100
        life.clock.advance(100)
        life.do("sweep")
        assert not [ref for ref in kept if ref() is not None]
        assert len(watches(life)) == 0
        assert watches(life)._heap == []
    finally:
        gc.enable()


def test_a_store_that_is_down(memory_life: Callable[..., Life]) -> None:
    """What could not be looked at is looked at when the store is back."""
    life = memory_life()
    store = Down(life.store)
    life.store = store
    life.sessions = life.manager()
    calls = Calls()
    cookies = [life.login() for _ in range(3)]
    for cookie in cookies:
        watched(life, cookie, calls)
    life.clock.advance(100)
    flow = watches(life).check(life.clock())
    store.left = 1
    with pytest.raises(StoreUnavailable):
        life.sessions.run(flow)
    assert len(calls) == 1
    store.left = None
    life.sessions.run(watches(life).check(life.clock()))

    assert sorted(calls) == sorted((sid_of(cookie), "idle") for cookie in cookies)


def test_what_is_no_callback(memory_life: Callable[..., Life]) -> None:
    """It is refused at once."""
    life = memory_life()
    with pytest.raises(ConfigurationError, match="must be a function"):
        watched(life, life.login(), None)
