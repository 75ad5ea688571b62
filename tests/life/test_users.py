"""Users and devices: lists, ending one, others and all, limits, and what races do to them."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from sojourn import SessionManager
from sojourn.core import flows
from sojourn.core.calls import Pause
from sojourn.core.ending import end_all_of
from sojourn.core.record import LIVE, Client
from sojourn.core.session import Session
from sojourn.errors import ConfigurationError, Conflict, SojournError, TooManySessions
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Clock

from .conftest import Life, sid_of

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"


# Devices.


def test_devices_of_a_user(make_life: Callable[..., Life]) -> None:
    """The live sessions of a user, last seen first, with address, agent in words, current."""
    life = make_life(idle_timeout=100, lifetime=1000)
    session = life.open(client=Client("192.0.2.7", FIREFOX))
    session.login("alice")
    first = life.cookie(life.commit(session))
    begun = life.clock()
    life.clock.advance(5)
    second, other, gone = life.login(), life.login("bob"), life.login()
    life.do("end", sid_of(gone))
    devices = life.do("of_user", "alice", current=sid_of(first))

    assert [device.sid for device in devices] == [sid_of(second), sid_of(first)]
    assert [device.current for device in devices] == [False, True]
    device = devices[1]
    assert device.agent == "Firefox on Linux"
    assert device.client == Client("192.0.2.7", FIREFOX)
    assert (device.created, device.seen, device.authenticated) == (begun, begun, begun)
    assert (device.user, device.deadline) == ("alice", begun + 100)
    assert "Firefox on Linux" in repr(device)
    assert [device.sid for device in life.do("of_user", "bob")] == [sid_of(other)]
    assert life.do("of_user", "carol") == []
    life.clock.advance(95)
    # Over, though no sweep has met it.
    assert [device.sid for device in life.do("of_user", "alice")] == [sid_of(second)]


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        (FIREFOX, "Firefox on Linux"),
        ("", "Unknown browser"),
        ("nonsense", "Unknown browser"),
        ("Mozilla/5.0 (\x00\x1b[31m<script>", "Unknown browser"),
        ("a" * 10000, "Unknown browser"),
    ],
)
def test_agent_in_words(make_agent: Callable[[str], str], agent: str, words: str) -> None:
    """Whatever a client says of itself, the list has a few plain words."""
    assert make_agent(agent) == words


@pytest.fixture
def make_agent(memory_life: Callable[..., Life]) -> Callable[[str], str]:
    life = memory_life()

    def words(agent: str) -> str:
        session = life.open(client=Client("192.0.2.7", agent))
        session.login("someone")
        life.commit(session)
        (device,) = life.do("of_user", "someone")
        text: str = device.agent
        return text

    return words


def test_end_one_others_all(life: Life) -> None:
    """End one, all but one, and all; nobody else's, and nobody's twice."""
    mine = [life.login() for _ in range(5)]
    bobs, guest = life.login("bob"), life.login(None)
    assert life.do("end", sid_of(mine[0])) is True
    assert life.do("end", sid_of(mine[0])) is False
    assert [life.alive(cookie) for cookie in mine] == [False, True, True, True, True]
    ended = life.do("end_all", "alice", keep=sid_of(mine[1]))
    assert sorted(ended) == sorted(map(sid_of, mine[2:]))
    assert [life.alive(cookie) for cookie in mine] == [False, True, False, False, False]
    assert life.do("end_all", "alice") == [sid_of(mine[1])]
    assert life.do("end_all", "alice") == []
    assert life.alive(bobs)
    assert life.alive(guest)
    assert life.do("count", "alice") == 0
    assert life.do("end", "../../etc/passwd") is False


def test_end_all_of_more_than_a_page(life: Life) -> None:
    """Also of a user with more sessions than a page of the store holds."""
    cookies = [life.login() for _ in range(230)]

    assert len(life.do("end_all", "alice", keep=sid_of(cookies[100]))) == 229
    assert [device.sid for device in life.do("of_user", "alice")] == [sid_of(cookies[100])]


# Freshness, and both clocks.


def test_fresh(life: Life) -> None:
    """`fresh(within)` tells whether the login is recent enough, up to the second."""
    session = life.open()
    assert not session.fresh(1000)
    session.login("alice")
    assert session.fresh(1)
    cookie = life.cookie(life.commit(session))
    life.clock.advance(60)
    assert life.open(cookie).fresh(60)
    assert not life.open(cookie).fresh(59.9)
    session = life.open(cookie)
    session.login("alice")
    cookie = life.cookie(life.commit(session))
    assert life.open(cookie).fresh(0.1)
    with pytest.raises(ConfigurationError, match="within"):
        session.fresh(-1)


# A maximum of sessions.


def test_end_oldest(make_life: Callable[..., Life]) -> None:
    """Above the maximum the session seen longest ago makes way, and learns why."""
    life = make_life(idle_timeout=100, max_sessions=3)
    cookies = []
    for _ in range(3):
        cookies.append(life.login())
        life.clock.advance(10)
    session = life.open(cookies[0])
    session.touch()
    life.commit(session)
    cookies.append(life.login())

    assert [life.alive(cookie) for cookie in cookies] == [True, False, True, True]
    before = life.open(cookies[1]).ended_before
    assert before is not None
    assert before.reason == "replaced"
    # To log in again with a session that is there takes no further place.
    session = life.open(cookies[0])
    session.login("alice")
    life.commit(session)
    assert len(life.do("of_user", "alice")) == 3


def test_deny(make_life: Callable[..., Life]) -> None:
    """With "deny" a login above the maximum fails, until one of the others has ended."""
    life = make_life(idle_timeout=100, max_sessions=2, on_too_many="deny")
    cookies = [life.login(), life.login()]
    session = life.open()
    session.login("alice")
    with pytest.raises(TooManySessions, match="allowed are 2"):
        life.commit(session)
    assert [life.alive(cookie) for cookie in cookies] == [True, True]
    life.login("bob")
    life.do("end", sid_of(cookies[0]))
    life.login()
    assert len(life.do("of_user", "alice")) == 2
    life.clock.advance(100)
    # Those that are over, swept or not, take no place.
    life.login()


def log_in_at_once(life: Life, logins: int) -> list[str]:
    """Log in many times at the same time; return the cookies that were handed out."""

    def cookies_of(done: flows.Committed) -> list[str]:
        return [] if done.token is None else [life.cookie(done)]

    if life.colour == "async":

        async def main() -> list[str]:
            async def one() -> list[str]:
                session = await life.sessions.asession()
                session.login("alice")
                try:
                    return cookies_of(await life.sessions.acommit(session))
                except TooManySessions:
                    return []

            found = await asyncio.gather(*[one() for _ in range(logins)])
            return [cookie for cookies in found for cookie in cookies]

        cookies: list[str] = life.wait(main())
        return cookies
    found: list[str] = []
    errors: list[BaseException] = []
    barrier = threading.Barrier(logins)

    def work() -> None:
        session = life.sessions.session()
        session.login("alice")
        barrier.wait()
        try:
            found.extend(cookies_of(life.sessions.commit(session)))
        except TooManySessions:
            pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(logins)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    return found


@pytest.mark.parametrize("on_too_many", ["end-oldest", "deny"])
def test_fifty_logins_at_once_leave_three(make_life: Callable[..., Life], on_too_many: str) -> None:
    """L8: 50 parallel logins under a cap of 3 leave exactly 3, whose cookies work."""
    life = make_life(idle_timeout=100, max_sessions=3, on_too_many=on_too_many)
    cookies = log_in_at_once(life, 50)
    alive = {sid_of(cookie) for cookie in cookies if life.alive(cookie)}

    assert len(alive) == 3
    assert {device.sid for device in life.do("of_user", "alice")} == alive


# End-all against what is in flight, in every order of the calls.


def steps(
    flow: Generator[Any, Any, Any], store: Any, errors: tuple[type[Exception], ...] = (Conflict,)
) -> Iterator[Any]:
    """Run a flow, one call on the store at a time."""
    answer: Any = None
    raised: SojournError | None = None
    while True:
        try:
            call = flow.send(answer) if raised is None else flow.throw(raised)
        except (StopIteration, *errors):
            return
        answer, raised = None, None
        if isinstance(call, Pause):
            continue
        try:
            answer = call.on(store)
        except SojournError as error:
            raised = error
        yield call


KINDS = ("login", "upgrade", "renewal", "write", "touch", "again")


def in_flight(kind: str, sessions: SessionManager, cookie: str, guest: str) -> Session:
    """A request that has opened its session and is about to be committed."""
    session = sessions.session("" if kind == "login" else guest if kind == "upgrade" else cookie)
    assert session.is_new is (kind == "login")
    if kind in ("login", "upgrade", "again"):
        session.login("alice")
    elif kind == "renewal":
        session.renew()
    elif kind == "write":
        session["late"] = 1
    else:
        session.touch()
    return session


class Race:
    """Two actors on one store, of which each call is made when it is told."""

    def __init__(self, store: MemoryStore, first: Any, second: Any) -> None:
        errors = (Conflict, TooManySessions)
        self.store = store
        self.actors = [steps(first, store, errors), steps(second, store, errors)]

    def run(self, plan: tuple[int, ...]) -> tuple[int, ...]:
        """Make calls in the order of the plan, then those of the first, then of the second."""
        took: list[int] = []
        alive = [True, True]
        while any(alive):
            turn = plan[len(took)] if len(took) < len(plan) else 0
            turn = turn if alive[turn] else 1 - turn
            if next(self.actors[turn], None) is None:
                alive[turn] = False
            else:
                took.append(turn)
        return tuple(took)


def every_order(make: Callable[[], Race], turns: int = 99) -> Iterator[Race]:
    """Run a race in each order that its calls can come in, whatever the answers lead to.

    Args:
        make: begins one.
        turns: how often an order may go from one actor to the other, before it goes on with the
            first to its end and then with the other.
    """
    seen: set[tuple[int, ...]] = set()
    plans: list[tuple[int, ...]] = [()]
    while plans:
        plan = plans.pop()
        race = make()
        took = race.run(plan)
        if took in seen:
            continue
        seen.add(took)
        yield race
        plans += [
            (*took[:at], 1)
            for at in range(len(plan), len(took))
            if took[at] == 0 and changes_in((*took[:at], 1)) <= turns
        ]


def changes_in(plan: tuple[int, ...]) -> int:
    return sum(one != other for one, other in itertools.pairwise(plan))


@pytest.mark.parametrize("max_sessions", [None, 2])
@pytest.mark.parametrize("kind_of_request", KINDS)
def test_end_all_in_every_order(kind_of_request: str, max_sessions: int | None) -> None:
    """End-all and one request, each call of either before and after each of the other's.

    A request that was on its way when all sessions were ended leaves none alive. A login that
    began after that does.
    """

    def make() -> Race:
        clock, store = Clock(), MemoryStore()
        life = Life(lambda _: store, "blocking", clock, max_sessions=max_sessions)
        cookie, guest = life.login(), life.login(None)
        session = in_flight(kind_of_request, life.sessions, cookie, guest)
        clock.advance(0.001)
        env = life.sessions._env
        return Race(store, flows.commit(session, env), end_all_of("alice", None, "user", env))

    survivors = [len(race.store.list("alice", LIVE)) for race in every_order(make)]

    assert len(survivors) >= 5
    assert not any(survivors)


@pytest.mark.parametrize(("limit", "before"), [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)])
@pytest.mark.parametrize("deny", [False, True])
def test_two_logins_under_a_cap_in_many_orders(limit: int, before: int, deny: bool) -> None:
    """Two logins at once, each call of either before and after each of the other's: the cap holds.

    It is used up as well: neither too many sessions are left nor too few. (All orders, without the
    limit on turns, take some minutes.)
    """

    def make() -> Race:
        clock, store = Clock(), MemoryStore()
        sessions = SessionManager(
            store,
            idle_timeout=1000,
            clock=clock,
            max_sessions=limit,
            on_too_many="deny" if deny else "end-oldest",
        )
        requests = []
        for number in range(before + 2):
            session = sessions.session()
            session.login("alice")
            clock.advance(1)
            if number < before:
                sessions.commit(session)
            else:
                requests.append(flows.commit(session, sessions._env))
        return Race(store, *requests)

    left = [len(race.store.list("alice", LIVE)) for race in every_order(make, turns=4)]

    assert len(left) > 10
    assert set(left) == {limit}


def test_end_all_against_fifty_in_flight(make_life: Callable[..., Life]) -> None:
    """50 requests of each kind at once, in threads or tasks, and an end-all among them: 0 left."""
    life = make_life(idle_timeout=1000)
    for kind_of_request in ("login", "upgrade", "renewal", "write", "touch"):
        cookie, guests = life.login(), [life.login(None) for _ in range(50)]
        pending = [in_flight_of(life, kind_of_request, cookie, guest) for guest in guests]
        life.clock.advance(0.001)
        race(life, pending)
        assert life.do("of_user", "alice") == [], kind_of_request


def in_flight_of(life: Life, kind: str, cookie: str, guest: str) -> Session:
    session = life.open("" if kind == "login" else guest if kind == "upgrade" else cookie)
    assert session.is_new is (kind == "login")
    if kind in ("login", "upgrade"):
        session.login("alice")
    elif kind == "renewal":
        session.renew()
    elif kind == "write":
        session.add("late")
    else:
        session.touch()
    return session


def race(life: Life, pending: list[Session]) -> None:
    """Commit all of them, and end all sessions of the user, at the same time."""
    middle = len(pending) // 2
    if life.colour == "async":

        async def main() -> None:
            commits = [life.sessions.acommit(session) for session in pending]
            await asyncio.gather(
                *commits[:middle], life.sessions.aend_all("alice"), *commits[middle:]
            )

        life.wait(main())
        return
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(pending) + 1)

    def work(job: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            job()
        except BaseException as error:
            errors.append(error)

    jobs: list[Callable[[], Any]] = [
        lambda session=session: life.sessions.commit(session)  # type: ignore[misc]
        for session in pending
    ]
    jobs.insert(middle, lambda: life.sessions.end_all("alice"))
    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


# The grace after a renewal.


def test_grace(make_life: Callable[..., Life]) -> None:
    """For 10 s the old cookie reads and merges; it gains no new one and takes nobody's."""
    life = make_life(idle_timeout=1000)
    old = life.login(n=1)
    session = life.open(old)
    session.renew()
    new = life.cookie(life.commit(session))
    life.clock.advance(9.9)
    late = life.open(old)
    assert late["n"] == 1
    late.add("n")
    late.renew()
    done = life.commit(late)
    assert done.token is None
    assert not done.cleared
    assert life.open(new)["n"] == 2
    late = life.open(old)
    with pytest.raises(Conflict, match="just renewed"):
        late.login("mallory")
    seen = life.open(new).seen
    late = life.open(old)
    late.touch()
    life.commit(late)
    assert life.open(new).seen == seen
    life.clock.advance(0.2)
    assert not life.alive(old)
    assert life.alive(new)


def test_no_grace_after_a_login(life: Life) -> None:
    """The cookie from before a login reads nothing from then on, and what it writes is dropped."""
    old = life.login(None, secret="mine")
    begun = life.open(old)
    begun["planted"] = True
    session = life.open(old)
    session.login("alice")
    new = life.cookie(life.commit(session))
    late = life.open(old)

    assert life.commit(begun).dropped == "login"
    assert late.is_new
    assert dict(late) == {}
    late["x"] = 1
    assert life.commit(late).dropped == "shadow"
    assert dict(life.open(new)) == {"secret": "mine"}
