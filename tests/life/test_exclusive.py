"""One at a time: `exclusive` and `aexclusive`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from sojourn import SessionManager
from sojourn.core.ending import acquire
from sojourn.core.session import Session
from sojourn.errors import Conflict, SessionEnded
from sojourn.testing import Clock

from .conftest import Life, sid_of


class Lock:
    """`with` in one colour: enter and leave by hand."""

    def __init__(self, life: Life, session: Session, on: SessionManager | None = None, **how: Any):
        sessions = on or life.sessions
        self.life = life
        self.context: Any = (
            sessions.aexclusive(session, **how)
            if life.colour == "async"
            else sessions.exclusive(session, **how)
        )

    def __enter__(self) -> Session:
        if self.life.colour == "async":
            session: Session = self.life.wait(self.context.__aenter__())
        else:
            session = self.context.__enter__()
        return session

    def __exit__(self, *error: Any) -> Any:
        if self.life.colour == "async":
            return self.life.wait(self.context.__aexit__(*error))
        return self.context.__exit__(*error)


def test_read_modify_write(life: Life) -> None:
    """What was done before is committed, the session is read anew, and committed at the end."""
    cookie = life.login(n=1)
    session = life.open(cookie)
    assert session["n"] == 1
    session["before"] = True
    other = life.open(cookie)
    other["n"] = 2
    life.commit(other)
    with Lock(life, session):
        assert dict(life.open(cookie)) == {"n": 2, "before": True}
        assert session["n"] == 2
        session["n"] = session["n"] + 1

    assert life.open(cookie)["n"] == 3
    assert not life.commit(session).wrote


def test_no_two_at_once(life: Life) -> None:
    """While one has it another waits, and gives up after its wait; then it is free."""
    cookie = life.login()
    with Lock(life, life.open(cookie)):
        with pytest.raises(Conflict, match="for 0 s"), Lock(life, life.open(cookie), wait=0):
            raise AssertionError
        other = life.login("bob")
        with Lock(life, life.open(other), wait=0):
            pass
    with Lock(life, life.open(cookie), wait=0):
        pass


def test_the_wait_is_bounded(life: Life) -> None:
    """One that waits does so for as long as it said, on the clock."""
    cookie = life.login()
    env = life.sessions._env
    life.do_flow(acquire(sid_of(cookie), "another", 3600, env))
    begun = life.clock()
    flow = acquire(sid_of(cookie), "me", 30, env, wait=10)
    answer: Any = None
    while True:
        try:
            call = flow.send(answer)
        except StopIteration as stop:
            got = stop.value
            break
        if hasattr(call, "seconds"):
            assert 0 < call.seconds <= 0.075
            life.clock.advance(call.seconds)
            answer = None
        else:
            answer = life.do_flow(one(call))

    assert got is False
    assert 10 <= life.clock() - begun < 10.1


def one(call: Any) -> Any:
    return (yield call)


def test_given_back_after_an_error(life: Life) -> None:
    """An exception inside gives the lock back, and what was done under it is not committed."""
    cookie = life.login(n=1)
    session = life.open(cookie)
    with pytest.raises(ZeroDivisionError), Lock(life, session):
        session["n"] = 1 / 0
    with pytest.raises(ZeroDivisionError), Lock(life, life.open(cookie)) as session:
        session["n"], session["m"] = 2, 1 / 0

    assert life.open(cookie)["n"] == 1
    with Lock(life, life.open(cookie), wait=0):
        pass


def test_an_error_undoes_what_was_done(life: Life) -> None:
    """What was done under the lock is not written by the request's own commit after an error."""
    cookie = life.login(n=1, items=["a"])
    session = life.open(cookie)

    def fail() -> None:
        with Lock(life, session):
            session["n"] = 99
            session["items"].append("b")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    session["after"] = True
    life.commit(session)

    assert dict(life.open(cookie)) == {"n": 1, "items": ["a"], "after": True}


def test_a_holder_that_dies(life: Life) -> None:
    """Its lease is the longest that others wait."""
    cookie = life.login()
    # What entering does; and nobody ever leaves.
    life.do_flow(acquire(sid_of(cookie), "one that dies", 30, life.sessions._env))
    life.clock.advance(29.9)
    with pytest.raises(Conflict), Lock(life, life.open(cookie), wait=0):
        raise AssertionError
    life.clock.advance(0.1)
    with Lock(life, life.open(cookie), wait=0):
        pass


@pytest.mark.parametrize("there", ["still", "done", "swept"])
def test_a_holder_that_outstays_its_lease(life: Life, there: str) -> None:
    """R26: its writes are refused, also when the other has come and gone in the meantime."""
    cookie = life.login(n=1)
    other = Lock(life, life.open(cookie), wait=0)
    lock = Lock(life, life.open(cookie), lease=30)
    mine = lock.__enter__()
    mine["n"] += 10
    life.clock.advance(31)
    theirs = other.__enter__()
    theirs["n"] += 1
    if there != "still":
        other.__exit__(None, None, None)
    if there == "swept":
        life.clock.advance(61)
        life.do("sweep")
    with pytest.raises(Conflict, match="lease"):
        lock.__exit__(None, None, None)
    if there == "still":
        other.__exit__(None, None, None)

    assert life.open(cookie)["n"] == 2


def test_a_holder_that_is_late_but_alone(life: Life) -> None:
    """Where nobody came meanwhile, a lease that ran out does no harm."""
    cookie = life.login(n=1)
    with Lock(life, life.open(cookie), lease=30) as session:
        session["n"] = 2
        life.clock.advance(31)

    assert life.open(cookie)["n"] == 2


def test_ended_while_waiting(life: Life) -> None:
    """A session that ended meanwhile is no session to work on."""
    cookie = life.login()
    session = life.open(cookie)
    assert session["made"]
    life.do("end", sid_of(cookie))
    with pytest.raises(SessionEnded), Lock(life, session):
        raise AssertionError


def test_a_new_session(life: Life) -> None:
    """Nobody else can have it: it is worked on at once, and kept by the request's own commit."""
    session = life.open("")
    with Lock(life, session):
        session["n"] = 1
    assert session.is_new
    with pytest.raises(ZeroDivisionError), Lock(life, session):
        session["n"] = 1 // 0
    assert dict(session) == {}
    with Lock(life, session):
        session["n"] = 2
    life.commit(session)

    assert session.get("n") == 2
    assert not session.is_new


def test_eight_threads_lose_nothing(make_store: Callable[[bool], Any], clock: Clock) -> None:
    """8 threads x 100 times reading, adding one and writing: 800."""
    life = Life(make_store, "blocking", clock, idle_timeout=1000)
    cookie = life.login(n=0)
    inside = [0]
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(100):
                with life.sessions.exclusive(life.sessions.session(cookie), wait=60) as session:
                    inside[0] += 1
                    assert inside[0] == 1
                    session["n"] = session["n"] + 1
                    inside[0] -= 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert life.open(cookie)["n"] == 800
    life.close()


def test_eight_tasks_lose_nothing(make_store: Callable[[bool], Any], clock: Clock) -> None:
    """The same with tasks of one loop."""
    life = Life(make_store, "async", clock, idle_timeout=1000)
    cookie = life.login(n=0)

    async def work() -> None:
        for _ in range(20):
            session = await life.sessions.asession(cookie)
            async with life.sessions.aexclusive(session, wait=60):
                session["n"] = session["n"] + 1

    async def main() -> None:
        await asyncio.gather(*[work() for _ in range(8)])

    life.wait(main())

    assert life.open(cookie)["n"] == 160
    life.close()
