"""Sweeps: what they end and leave behind, who does them, and what is in their way."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sojourn import SessionManager
from sojourn.core.calls import Due, Pause
from sojourn.core.ending import SKEW, Swept, acquire, sweep
from sojourn.core.opening import EndedBefore
from sojourn.core.record import ENDED, ENDING, LIVE, MARK
from sojourn.errors import ConfigurationError, StoreUnavailable
from sojourn.stores.memory import MemoryStore
from sojourn.sweeper import Sweeper
from sojourn.testing import Clock

from .conftest import Life, sid_of
from .test_handlers import Seen, over

# What is left of a session.


def test_tombstone_tells_why_and_when(make_life: Callable[..., Life]) -> None:
    """The next request with that cookie learns the reason and the time, as long as it is kept."""
    life = make_life(idle_timeout=100, lifetime=None, tombstone=500)
    expired, ended = life.login(), life.login()
    begun = life.clock()
    life.do("end", sid_of(ended), "operator")
    assert life.open(ended).ended_before == EndedBefore("operator", begun)
    assert life.open(expired).ended_before is None
    life.clock.advance(100)
    assert life.open(expired).ended_before == EndedBefore("idle", begun + 100)
    life.clock.advance(SKEW)
    swept = life.clock()
    assert life.do("sweep") == Swept(ended=1)

    assert life.open(expired).ended_before == EndedBefore("idle", begun + 100)
    record = life.record(expired)
    assert record is not None
    assert (record.status, record.data, record.user) == (ENDED, b"", None)
    life.clock.now = begun + 500 + SKEW - 0.1
    life.do("sweep")
    assert life.open(ended).ended_before is not None
    life.clock.now = begun + 500 + SKEW
    life.do("sweep")
    assert life.open(ended).ended_before is None
    assert life.record(ended) is None
    assert life.open(expired).ended_before is not None
    life.clock.now = swept + 500 + SKEW
    life.do("sweep")
    assert life.record(expired) is None


def test_no_tombstone_where_none_is_wanted(make_life: Callable[..., Life]) -> None:
    """With `tombstone=None` nothing is left, whether a request or a sweep ended it."""
    life = make_life(idle_timeout=100, tombstone=None)
    expired, ended = life.login(), life.login()
    life.do("end", sid_of(ended))
    over(life)
    life.do("sweep")

    assert life.record(expired) is None
    assert life.record(ended) is None
    assert life.open(ended).ended_before is None


def test_tombstone_is_told_to_its_owner_only(life: Life) -> None:
    """Unknown tokens, and right sids with a wrong secret, learn nothing."""
    cookie = life.login()
    life.do("end", sid_of(cookie))
    other = life.login()
    name, _, token = cookie.partition("=")
    secret = other.partition(".")[2]

    assert life.open(cookie).ended_before is not None
    assert life.open(f"{name}={sid_of(cookie)}.{secret}").ended_before is None
    assert life.open(f"{name}={'A' * 22}.{token.partition('.')[2]}").ended_before is None


def test_a_renewed_cookie_learns_of_the_end_too(life: Life) -> None:
    """The cookie before the last renewal was its owner's as well."""
    old = life.login()
    session = life.open(old)
    session.renew()
    life.commit(session)
    life.do("end", sid_of(old))

    assert life.open(old).ended_before == EndedBefore("operator", life.clock())


# What is over, and what is not.


def test_used_sessions_are_left_alone(life: Life) -> None:
    """A session that was touched since is met by the sweep, and not ended."""
    used, idle = life.login(), life.login()
    life.clock.advance(90)
    session = life.open(used)
    session.touch()
    life.commit(session)
    life.clock.advance(10 + SKEW)
    assert life.do("sweep") == Swept(ended=1)

    assert not life.alive(idle)
    record = life.record(used)
    assert record is not None
    assert record.status == LIVE


def test_a_clock_that_is_ahead_ends_none_early(life: Life) -> None:
    """R17: workers whose clocks are up to 60 s apart: no session that lives by one is ended."""
    ahead = Clock(life.clock() + 60)
    worker = life.manager(clock=ahead)
    cookie = life.login()
    for _ in range(100):
        life.clock.advance(1)
        ahead.advance(1)
        if not life.alive(cookie):
            break
        life.do("sweep", on=worker)
        record = life.record(cookie)
        assert record is not None
        assert record.status == LIVE
    assert life.clock() - ahead() == -60
    assert not life.alive(cookie)
    assert life.do("sweep", on=worker).ended == 1


def test_a_clock_that_is_behind_extends_none(life: Life) -> None:
    """R17: a touch by a slow clock never shortens what a fast one wrote, nor extends a lifetime."""
    behind = Clock(life.clock() - 60)
    worker = life.manager(clock=behind)
    cookie = life.login()
    before = life.record(cookie)
    session = life.open(cookie, worker)
    session.touch()
    life.commit(session, worker)
    after = life.record(cookie)
    assert before is not None
    assert after is not None

    assert after.deadline == before.deadline
    assert after.seen == before.seen


# Who sweeps.


def test_one_sweeper_at_a_time_among_eight(make_life: Callable[..., Life]) -> None:
    """Of eight workers one is at work; when it dies another goes on after its lease."""
    life = make_life(idle_timeout=100)
    cookie = life.login()
    over(life)
    workers = [life.manager() for _ in range(8)]
    # The first of them takes the lock, and dies.
    assert life.do_flow(acquire("sweep", "of one that died", 60.0, workers[0]._env))

    assert [life.do("sweep", on=worker).busy for worker in workers[1:]] == [True] * 7
    life.clock.advance(59)
    assert life.do("sweep", on=workers[1]).busy
    life.clock.advance(1)
    assert life.do("sweep", on=workers[1]) == Swept(ended=1)
    assert not life.alive(cookie)
    # One that has come to its end holds nobody up.
    assert not any(life.do("sweep", on=worker).busy for worker in workers)


@pytest.mark.parametrize("kind", ["memory", "sqlite"], indirect=True)
def test_eight_sweep_at_once_and_none_twice(
    make_store: Callable[[bool], Any], clock: Clock
) -> None:
    """Eight threads that sweep together: each handler runs once per session."""
    life = Life(make_store, "blocking", clock, idle_timeout=100)
    cookies = [life.login() for _ in range(60)]
    over(life)
    seen = Seen()
    workers = [life.manager() for _ in range(8)]
    for worker in workers:
        worker.on_ended(seen)
    barrier = threading.Barrier(8)

    def work(worker: SessionManager) -> None:
        barrier.wait()
        worker.sweep()

    threads = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(seen.calls) == sorted((sid_of(cookie), "idle") for cookie in cookies)
    life.close()


# The sweeper.


@pytest.fixture
def sessions(clock: Clock) -> SessionManager:
    return SessionManager(MemoryStore(), idle_timeout=100, clock=clock)


def made(sessions: SessionManager) -> str:
    session = sessions.session()
    session["n"] = 1
    token = sessions.commit(session).token
    assert token is not None
    return token.sid


def test_sweeper_as_a_thread(sessions: SessionManager, clock: Clock) -> None:
    """Started as a thread it ends what is over, again and again, until it is stopped."""
    told = threading.Event()
    sessions.on_ended(lambda session, reason: told.set())
    with sessions.sweeper(every=0.001) as sweeper:
        for _ in range(3):
            sid = made(sessions)
            clock.advance(100 + SKEW)
            assert told.wait(60)
            told.clear()
            assert sweeper.start() is sweeper
    assert sessions.store.load(sid) is not None
    made(sessions)
    clock.advance(100 + SKEW)

    assert not told.wait(0.05)


def test_sweeper_as_a_task(sessions: SessionManager, clock: Clock) -> None:
    """As a task it sweeps on the loop until it is cancelled."""

    async def main() -> None:
        told = asyncio.Event()

        @sessions.on_ended
        async def ended(session: Any, reason: str) -> None:
            told.set()

        task = asyncio.create_task(sessions.sweeper(every=0.001).run())
        made(sessions)
        clock.advance(100 + SKEW)
        await asyncio.wait_for(told.wait(), 60)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(main())


@pytest.mark.parametrize("kind_of_error", [SystemExit, ValueError, StoreUnavailable])
def test_a_sweeper_outlives_what_a_sweep_raises(
    sessions: SessionManager, clock: Clock, kind_of_error: type[BaseException]
) -> None:
    """A9: neither a handler that ends its thread nor a store that is down ends all sweeps."""
    told: list[str] = []
    twice = threading.Event()

    @sessions.on_ended
    def ended(session: Any, reason: str) -> None:
        told.append(session.sid)
        if len(told) == 1:
            raise kind_of_error("out")
        twice.set()

    with sessions.sweeper(every=0.001):
        sid = made(sessions)
        clock.advance(100 + SKEW)
        for _ in range(600):
            if twice.wait(0.01):
                break
            clock.advance(10)

    assert told == [sid, sid]


def test_stopping_does_not_wait_for_all(sessions: SessionManager, clock: Clock) -> None:
    """`stop` ends a long sweep after the page at hand; the rest is found by the next."""
    for _ in range(50):
        made(sessions)
    clock.advance(100 + SKEW)
    begun = threading.Event()
    sweeper = sessions.sweeper(every=0.001)
    go_on = threading.Event()

    @sessions.on_ended
    def ended(session: Any, reason: str) -> None:
        begun.set()
        assert go_on.wait(60)

    sweeper.start()
    assert begun.wait(60)
    stopping = threading.Thread(target=sweeper.stop)
    stopping.start()
    while not sweeper._stop.is_set():
        pass
    go_on.set()
    stopping.join()

    assert sessions.counters["swept"] == 1
    assert sessions.sweep().ended == 49


@pytest.mark.parametrize("every", [0, -1, None, "often"])
def test_an_interval_that_cannot_be(sessions: SessionManager, every: Any) -> None:
    """It must be a number of seconds, or a timedelta, above 0."""
    with pytest.raises(ConfigurationError, match="every is"):
        sessions.sweeper(every=every)


def test_intervals_are_not_in_step(sessions: SessionManager) -> None:
    """The pauses vary by a tenth each way."""
    sweeper = Sweeper(sessions, 60)
    pauses = [sweeper.pause() for _ in range(1000)]

    assert 54 <= min(pauses) < 56
    assert 64 < max(pauses) <= 66


# Faults.


class Down:
    """A store that can be taken away."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.left: int | None = None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in ("load", "create", "replace", "touch", "delete", "due", "list", "count"):
            return method

        def call(*arguments: Any) -> Any:
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise StoreUnavailable("taken away")
            return method(*arguments)

        return call


@pytest.mark.parametrize("after", range(12))
def test_a_store_that_goes_down_during_a_sweep(
    memory_life: Callable[..., Life], after: int
) -> None:
    """Wherever it went away: when it is back every session ends, its handler run once or more."""
    life = memory_life()
    cookies = [life.login() for _ in range(3)]
    store = Down(life.store)
    worker = SessionManager(store, idle_timeout=100, clock=life.clock)
    seen = Seen()
    worker.on_ended(seen)
    over(life)
    store.left = after
    with contextlib.suppress(StoreUnavailable):
        worker.sweep()
    store.left = None
    for _ in range(10):
        life.clock.advance(61)
        worker.sweep()

    assert {sid for sid, _ in seen.calls} == {sid_of(cookie) for cookie in cookies}
    assert len(seen.calls) <= len(cookies) + 1
    assert life.store.count(None, ENDED) == 3


def test_a_real_store_that_goes_down_during_a_sweep(tmp_path: Path, clock: Clock) -> None:
    """The same with a SQLite file that another process has locked."""
    import apsw

    from sojourn.stores.sqlite import SqliteStore

    path = tmp_path / "sessions.db"
    store = SqliteStore(path, busy_timeout=0.01)
    sessions = SessionManager(store, idle_timeout=100, clock=clock)
    seen = Seen()
    sessions.on_ended(seen)
    sid = made(sessions)
    clock.advance(100 + SKEW)
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable):
        sessions.sweep()
    assert seen.calls == []
    other.execute("ROLLBACK")
    other.close()
    sessions.sweep()

    assert seen.calls == [(sid, "idle")]
    sessions.close()


def test_marks_are_swept_when_nobody_needs_them(memory_life: Callable[..., Life]) -> None:
    """The locks and users' marks that flows keep do not pile up."""
    life = memory_life(max_sessions=2)
    for number in range(20):
        life.login(f"user {number}")
    assert life.store.count(None, MARK) == 20
    over(life, 8 * 86400)
    life.do("sweep")
    life.clock.advance(SKEW + 1)
    life.do("sweep")

    # Its own lock is in use.
    assert life.store.count(None, MARK) <= 1


@pytest.mark.parametrize("page", [10, 100])
def test_pages_are_bounded(memory_life: Callable[..., Life], page: int) -> None:
    """However many are due, a sweep claims few at once, and lets others write after each."""
    life = memory_life()
    for _ in range(150):
        life.login()
    over(life)
    flow = sweep(life.sessions._env, "me", page)
    claimed: list[int] = []
    pauses = 0
    answer: Any = None
    with contextlib.suppress(StopIteration):
        while True:
            call = flow.send(answer)
            pauses += isinstance(call, Pause)
            answer = None if isinstance(call, Pause) else call.on(life.store)
            if isinstance(call, Due):
                claimed.append(len(answer))

    assert claimed == [*[page] * (150 // page), *([150 % page] if 150 % page else []), 0]
    assert pauses == 150


def test_one_at_a_time_where_handlers_run(memory_life: Callable[..., Life]) -> None:
    """While a handler of one session runs no other is claimed, whose attempts would be counted."""
    life = memory_life()
    cookies = [life.login() for _ in range(3)]
    ending: list[int] = []
    life.sessions.on_ended(lambda session, reason: ending.append(life.store.count(None, ENDING)))
    over(life)
    life.do("sweep")

    assert ending == [1] * len(cookies)
