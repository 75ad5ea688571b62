"""Handlers of events: when, how often and with what they are called, and what failing ones do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from sojourn import SessionManager
from sojourn.core.ending import SKEW
from sojourn.core.record import ENDED, ENDING
from sojourn.core.session import Session
from sojourn.errors import ConfigurationError
from sojourn.stores.cookie import CookieStore

from .conftest import Life, sid_of


@dataclass
class Cart:
    items: list[str] = field(default_factory=list)


class Seen:
    """A handler that notes what it was called with, and fails as often as it is told."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.calls: list[tuple[str, str]] = []

    def __call__(self, session: Session, reason: str = "") -> None:
        self.calls.append((session.sid, reason))
        if len(self.calls) <= self.failures:
            raise OSError("the mail server is down")

    @property
    def reasons(self) -> list[str]:
        return [reason for _, reason in self.calls]


class AsyncSeen(Seen):
    async def __call__(self, session: Session, reason: str = "") -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().__call__(session, reason)


def over(life: Life, seconds: float = 100) -> None:
    """Let sessions be over, by all clocks."""
    life.clock.advance(seconds + SKEW)


@pytest.fixture(params=[Seen, AsyncSeen])
def kind_of_handler(request: pytest.FixtureRequest) -> type[Seen]:
    """A blocking or an asynchronous one; each works in both colours."""
    kind: type[Seen] = request.param
    return kind


# Once per event.


def test_created_renewed_ended_are_told_once(life: Life, kind_of_handler: type[Seen]) -> None:
    """Each handler is called once for its event, and for no other; reads and writes tell nobody."""
    created, renewed, ended = kind_of_handler(), kind_of_handler(), kind_of_handler()
    life.sessions.on_created(created)
    life.sessions.on_renewed(renewed)
    life.sessions.on_ended(ended)
    cookie = life.login(None)
    sid = sid_of(cookie)
    assert (created.calls, renewed.calls, ended.calls) == ([(sid, "")], [], [])

    session = life.open(cookie)
    assert session["made"]
    session["more"] = 1
    life.commit(session)
    session = life.open(cookie)
    session.renew()
    cookie = life.cookie(life.commit(session))
    session = life.open(cookie)
    session.login("alice")
    cookie = life.cookie(life.commit(session))
    assert (created.calls, renewed.calls, ended.calls) == ([(sid, "")], [(sid, "")] * 2, [])

    session = life.open(cookie)
    session.logout()
    life.commit(session)
    over(life)
    life.do("sweep")

    assert created.calls == [(sid, "")]
    assert renewed.calls == [(sid, "")] * 2
    assert ended.calls == [(sid, "user")]


@pytest.mark.parametrize("kind", ["memory", "sqlite"], indirect=True)
def test_a_handler_ends_in_the_task_that_it_began_in(
    make_store: Callable[[bool], Any], clock: Any
) -> None:
    """Time limits and cancel scopes of others' code work in a coroutine function."""
    life = Life(make_store, "async", clock, idle_timeout=100)
    same: list[bool] = []

    async def handler(*arguments: Any) -> None:
        task = asyncio.current_task()
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
        same.append(task is asyncio.current_task())

    for register in ("on_created", "on_renewed", "on_ended"):
        getattr(life.sessions, register)(handler)
    cookie = life.login(None)
    session = life.open(cookie)
    life.sessions.watch(session, handler)
    session.login("alice")
    cookie = life.cookie(life.commit(session))
    session = life.open(cookie)
    session.logout()
    life.commit(session)
    life.close()

    assert same == [True] * 4


def test_a_registration_is_kept_by_name(memory_life: Callable[..., Life]) -> None:
    """One handler registered twice is called once; two that share a name are both called."""
    life = memory_life()
    calls: list[str] = []

    def make(name: str) -> Callable[..., None]:
        return lambda session: calls.append(name)

    first, second = make("first"), make("second")
    for handler in (first, second, first):
        assert life.sessions.on_created(handler) is handler
    life.login()

    assert calls == ["first", "second"]
    with pytest.raises(ConfigurationError, match="must be a function"):
        life.sessions.on_created("mail me")  # type: ignore[type-var]


# What they are given.


def test_final_data_with_typed_state(life: Life) -> None:
    """A handler reads the session as it was at its end: values, typed state, user, claims."""
    found: list[Any] = []

    def read(session: Session, reason: str) -> None:
        found.append((session["n"], session[Cart].items, session.user, session.claims, reason))

    life.sessions.on_ended(read)
    session = life.open()
    session["n"] = 1
    session[Cart].items.append("tea")
    session.login("alice", role="admin")
    cookie = life.cookie(life.commit(session))
    session = life.open(cookie)
    session["n"] = 2
    session[Cart].items.append("milk")
    life.commit(session)
    over(life)
    life.do("sweep")

    assert found == [(2, ["tea", "milk"], "alice", {"role": "admin"}, "idle")]


def test_it_is_over_before_its_handlers_run(life: Life) -> None:
    """While a handler runs no request gets in any more, nor does a write that had begun."""
    cookie = life.login()
    late = life.open(cookie)
    late["late"] = True
    alive: list[bool] = []
    other = life.manager()

    def ended(session: Session, reason: str) -> None:
        # A thread of its own has no loop, in either colour.
        alive.append(not Life(lambda _: blocking, "blocking", life.clock).open(cookie).is_new)

    blocking = life.make(False)
    life.sessions.on_ended(ended)
    life.do("end", sid_of(cookie))

    assert alive == [False]
    assert life.commit(late, on=other).dropped == "gone"
    assert not life.alive(cookie)
    if blocking is not life.store:
        blocking.close()


# Reasons.


def test_each_reason(make_life: Callable[..., Life]) -> None:
    """Idle, lifetime, user, operator, replaced, password, theft: told, and on the tombstone."""
    life = make_life(idle_timeout=100, lifetime=250, on_theft="end", max_sessions=2, grace=10)
    ended = Seen()
    life.sessions.on_ended(ended)

    def told(cookie: str) -> str:
        (call,) = ended.calls
        ended.calls.clear()
        assert call[0] == sid_of(cookie)
        before = life.open(cookie).ended_before
        assert before is not None
        assert before.reason == call[1]
        return call[1]

    idle = life.login("idle")
    over(life)
    life.do("sweep")
    assert told(idle) == "idle"

    lifetime = life.login("lifetime")
    for _ in range(4):
        life.clock.advance(60)
        session = life.open(lifetime)
        session.touch()
        life.commit(session)
    over(life, 10)
    life.do("sweep")
    assert told(lifetime) == "lifetime"

    user = life.login("user")
    session = life.open(user)
    session.logout()
    life.commit(session)
    assert told(user) == "user"

    operator = life.login("operator")
    life.do("end", sid_of(operator))
    assert told(operator) == "operator"

    switched = life.login("one")
    session = life.open(switched)
    session.login("another")
    life.commit(session)
    assert told(switched) == "replaced"

    oldest = life.login("many")
    life.clock.advance(1)
    life.login("many")
    life.clock.advance(1)
    life.login("many")
    assert told(oldest) == "replaced"

    password = life.login("reset")
    life.do("end_all", "reset", reason="password")
    assert told(password) == "password"

    stolen = life.login("victim")
    session = life.open(stolen)
    session.renew()
    life.commit(session)
    life.clock.advance(11)
    session = life.open(stolen)
    assert session.is_new
    life.commit(session)
    assert told(stolen) == "theft"


def test_damaged_values_do_not_hide_an_end(make_life: Callable[..., Life]) -> None:
    """Where the values cannot be read any more, handlers still learn of the end: sid and user."""
    life = make_life(idle_timeout=100, seal_keys=[secrets.token_hex(32)])
    cookie = life.login(n=1)
    found: list[Any] = []
    other = life.manager(seal_keys=[secrets.token_hex(32)])

    @other.on_ended
    def ended(session: Session, reason: str) -> None:
        found.append((session.sid, session.user, dict(session), reason))

    over(life)
    assert life.do("sweep", on=other).ended == 1

    assert found == [(sid_of(cookie), "alice", {}, "damaged")]
    assert life.open(cookie).ended_before == ("damaged", life.clock() - SKEW)


# Failing.


def test_a_failing_handler_runs_again(life: Life, kind_of_handler: type[Seen]) -> None:
    """One that raises is called again later, with growing pauses, and the session waits for it."""
    handler = kind_of_handler(failures=3)
    life.sessions.on_ended(handler)
    cookie = life.login()
    over(life)
    times = []
    for _ in range(100):
        before = len(handler.calls)
        life.do("sweep")
        if len(handler.calls) > before:
            times.append(life.clock())
        record = life.record(cookie)
        assert record is not None
        if record.status == ENDED:
            break
        assert record.status == ENDING
        assert record.data
        life.clock.advance(20)

    assert handler.calls == [(sid_of(cookie), "idle")] * 4
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses == sorted(pauses)
    assert pauses[0] >= 60 < pauses[-1] / 2


def test_one_that_always_fails_is_set_aside(life: Life, kind_of_handler: type[Seen]) -> None:
    """After ten attempts it waits for an operator, who sees it and tries again."""
    handler = kind_of_handler(failures=11)
    life.sessions.on_ended(handler)
    cookie = life.login(n=1)
    over(life)
    for _ in range(40):
        life.do("sweep")
        life.clock.advance(86400)

    assert len(handler.calls) == 10
    (record,) = life.do("set_aside")
    assert (record.sid, record.attempts) == (sid_of(cookie), 10)
    assert not life.alive(cookie)
    assert life.do("retry", record.sid) is False
    assert life.do("set_aside")
    assert life.do("retry", record.sid) is True
    assert life.do("set_aside") == []
    assert life.do("retry", record.sid) is False
    assert len(handler.calls) == 12
    assert handler.reasons == ["idle"] * 12


def test_one_that_kills_its_process_is_set_aside(life: Life) -> None:
    """A handler that nobody comes back from is tried later and later, and then set aside.

    It takes no sweeper with it for ever, and no other session: they are handled in between.
    """

    class Killed(BaseException):
        pass

    runs: list[tuple[str, float]] = []
    poison, others = life.login(), [life.login(), life.login()]

    @life.sessions.on_ended
    def ended(session: Session, reason: str) -> None:
        runs.append((session.sid, life.clock()))
        if session.sid == sid_of(poison):
            raise Killed

    over(life)
    for _ in range(200):
        with contextlib.suppress(Killed):
            life.do("sweep")
        life.clock.advance(3600)

    times = [at for sid, at in runs if sid == sid_of(poison)]
    assert len(times) == 10
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses == sorted(pauses)
    assert pauses[-1] > 4 * 3600
    assert [record.sid for record in life.do("set_aside")] == [sid_of(poison)]
    assert sorted(sid for sid, _ in runs if sid != sid_of(poison)) == sorted(map(sid_of, others))


def test_others_run_beside_one_that_fails(life: Life) -> None:
    """A handler that fails keeps neither the others of that session nor other sessions waiting."""
    bad, good = Seen(failures=1), Seen()
    life.sessions.on_ended(bad)
    life.sessions.on_ended(good)
    cookies = [life.login(), life.login()]
    over(life)
    done = life.do("sweep")

    assert {sid for sid, _ in good.calls} == {sid_of(cookie) for cookie in cookies}
    assert (done.ended, done.failed) == (1, 1)
    life.clock.advance(300)
    life.do("sweep")
    assert len(bad.calls) == 3


def test_a_failure_in_a_request_harms_no_request(life: Life) -> None:
    """What handlers raise in a request is logged; the request is answered as if they had not."""
    fails = [Seen(failures=9) for _ in range(3)]
    life.sessions.on_created(fails[0])
    life.sessions.on_renewed(fails[1])
    life.sessions.on_ended(fails[2])
    cookie = life.login(None)
    session = life.open(cookie)
    session.login("alice")
    cookie = life.cookie(life.commit(session))
    session = life.open(cookie)
    session.logout()
    done = life.commit(session)

    assert done.cleared
    assert not life.alive(cookie)
    assert [len(handler.calls) for handler in fails] == [1, 1, 1]


@pytest.mark.parametrize("kind", ["memory", "sqlite"], indirect=True)
def test_a_handler_that_hangs_leaves_it_dead(make_store: Any, clock: Any) -> None:
    """A9: while one hangs the session is dead; others sweep on when the lease is over."""
    life = Life(make_store, "blocking", clock, idle_timeout=100)
    cookie, other = life.login(), life.manager()
    hangs, go_on = threading.Event(), threading.Event()

    @life.sessions.on_ended
    def ended(session: Session, reason: str) -> None:
        hangs.set()
        assert go_on.wait(60)

    again = Seen()
    other.on_ended(again)
    over(life)
    thread = threading.Thread(target=life.sessions.sweep)
    thread.start()
    try:
        assert hangs.wait(60)
        assert not life.alive(cookie)
        assert life.do("sweep", on=other).busy
        life.clock.advance(61 + SKEW)
        assert life.do("sweep", on=other).ended == 1
        assert again.calls == [(sid_of(cookie), "idle")]
    finally:
        go_on.set()
        thread.join()
    assert not life.alive(cookie)
    life.close()


# Suspicious.


@pytest.mark.parametrize(
    ("policy", "same", "others"),
    [("log", True, True), ("end", False, True), ("end-user", False, False)],
)
def test_on_suspicious_and_its_policies(
    make_life: Callable[..., Life], policy: str, same: bool, others: bool
) -> None:
    """A renewed cookie used after its grace: told once per use; then nothing, it or all end."""
    life = make_life(idle_timeout=1000, grace=10, on_theft=policy)
    suspicious, ended = Seen(), Seen()
    life.sessions.on_suspicious(suspicious)
    life.sessions.on_ended(ended)
    elsewhere = life.login()
    old = life.login()
    session = life.open(old)
    session.renew()
    new = life.cookie(life.commit(session))
    life.clock.advance(9.9)
    assert life.alive(old)
    assert suspicious.calls == []
    life.clock.advance(0.2)
    session = life.open(old)
    assert session.is_new
    life.commit(session)

    assert suspicious.calls == [(sid_of(old), "")]
    assert life.alive(new) is same
    assert life.alive(elsewhere) is others
    assert len(ended.calls) == 2 - same - others
    assert set(ended.reasons) <= {"theft"}
    assert life.sessions.counters["suspicious"] == 1


def test_with_sessions_in_cookies(clock: Any) -> None:
    """Handlers of what happens in requests also work where the cookie holds the session itself."""
    sessions = SessionManager(CookieStore([secrets.token_hex(32)]), clock=clock)
    created, renewed = Seen(), Seen()
    sessions.on_created(created)
    sessions.on_renewed(renewed)
    session = sessions.session()
    session["n"] = 1
    cookie = f"{sessions.cookie.name_for[False]}={sessions.commit(session).sealed}"
    session = sessions.session(cookie)
    session.login("alice")

    assert sessions.commit(session).sealed
    assert [len(seen.calls) for seen in (created, renewed)] == [1, 1]
