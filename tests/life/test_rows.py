"""Rows of the security checklist on the life of sessions, each with a test named after its id."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

from sojourn import SessionManager
from sojourn.core import expiry
from sojourn.core.ending import SKEW
from sojourn.core.session import Session
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Clock
from sojourn.web.wsgi import SessionMiddleware

from .conftest import Life, sid_of
from .test_handlers import Seen


def use(life: Life, cookie: str) -> None:
    session = life.open(cookie)
    session.touch()
    life.commit(session)


def test_l1_idle_timeout(life: Life) -> None:
    """L1: unused for the idle timeout it is dead, though no sweep has met it; use resets it."""
    cookie = life.login()
    life.clock.advance(99)
    use(life, cookie)
    life.clock.advance(99)
    assert life.alive(cookie)
    life.clock.advance(1)
    assert not life.alive(cookie)
    record = life.record(cookie)
    # The store has no say in it.
    assert record is not None
    assert record.status == 0


def test_l1_mere_reading_counts_as_use(life: Life) -> None:
    """L1: a request that only reads resets the idle timeout too, but a peek does not."""
    read, peeked = life.login(), life.login()
    life.clock.advance(50)
    session = life.open(read)
    assert session["made"]
    life.commit(session)
    session = life.open(peeked)
    assert session.peek["made"]
    life.commit(session)
    life.clock.advance(50)

    assert life.alive(read)
    assert not life.alive(peeked)


def test_l2_absolute_lifetime(life: Life) -> None:
    """L2: used all the time, it is still dead at the end of its lifetime."""
    cookie = life.login()
    for _ in range(19):
        life.clock.advance(50)
        use(life, cookie)
    life.clock.advance(49)
    assert life.alive(cookie)
    life.clock.advance(1)
    assert not life.alive(cookie)


@pytest.mark.parametrize(
    ("preset", "lifetime", "idle"),
    [
        ("NIST_800_63B_4_AAL1", 30 * 86400, math.inf),
        ("NIST_800_63B_4_AAL2", 24 * 3600, 3600),
        ("NIST_800_63B_4_AAL3", 12 * 3600, 15 * 60),
    ],
)
def test_l3_presets(preset: str, lifetime: float, idle: float) -> None:
    """L3: the limits of the standard; `test_presets.py` tries both sides of each."""
    clock = Clock()
    sessions = SessionManager(expiry=getattr(expiry, preset), clock=clock)
    session = sessions.session()
    session.login("alice")

    assert session.remaining == min(lifetime, idle)
    settings = sessions.describe()
    assert settings["lifetime"] == lifetime
    assert (settings["idle_timeout"] or math.inf) == idle


def test_l4_login_resets_both_clocks(life: Life) -> None:
    """L4: to log in again starts the idle timeout and the lifetime anew."""
    cookie = life.login()
    for _ in range(19):
        life.clock.advance(50)
        use(life, cookie)
    session = life.open(cookie)
    session.login("alice")
    cookie = life.cookie(life.commit(session))
    again = life.clock()
    life.clock.advance(99)
    assert life.alive(cookie)
    while life.clock() + 50 < again + 1000:
        use(life, cookie)
        life.clock.advance(50)
    use(life, cookie)
    life.clock.now = again + 999
    assert life.alive(cookie)
    life.clock.now = again + 1000
    assert not life.alive(cookie)


def test_l5_renewal_with_a_short_overlap(life: Life) -> None:
    """L5: both cookies work for the grace, then the new one; the old one renews nothing."""
    old = life.login()
    session = life.open(old)
    session.renew()
    new = life.cookie(life.commit(session))
    life.clock.advance(9)
    late = life.open(old)
    late.renew()
    assert life.commit(late).token is None
    assert life.alive(old)
    assert life.alive(new)
    life.clock.advance(1)
    assert not life.alive(old)
    assert life.alive(new)


def test_l5_one_hop_only(life: Life) -> None:
    """L5: of two renewals within the grace, the cookie before the first works no more."""
    first = life.login()
    cookie = first
    for _ in range(2):
        session = life.open(cookie)
        session.renew()
        cookie = life.cookie(life.commit(session))

    assert not life.alive(first)
    assert life.alive(cookie)


def test_l6_after_a_logout_no_further_use(life: Life) -> None:
    """L6: at once and in every process; what began before it writes and revives nothing."""
    cookie = life.login()
    other = life.manager()
    pending = []
    for begin in (
        lambda session: session.__setitem__("late", 1),
        Session.touch,
        Session.renew,
        lambda session: session.login("alice"),
    ):
        late = life.open(cookie, other)
        begin(late)
        pending.append(late)
    session = life.open(cookie)
    session.logout()
    life.commit(session)
    assert not life.alive(cookie, other)
    for late in pending:
        done = life.commit(late, other)
        assert done.token is None
    assert not life.alive(cookie)
    assert not life.alive(cookie, other)
    assert life.do("of_user", "alice") == []


def test_l7_list_and_end(memory_life: Callable[..., Life]) -> None:
    """L7: of 1,000 sessions of 10 users exactly the named ones die; no list shows a cookie."""
    life = memory_life()
    cookies = {user: [life.login(user) for _ in range(100)] for user in "abcdefghij"}
    life.do("end_all", "a")
    life.do("end_all", "b", keep=sid_of(cookies["b"][7]))
    life.do("end", sid_of(cookies["c"][3]))
    dead = {*cookies["a"], *cookies["b"], cookies["c"][3]} - {cookies["b"][7]}

    for user, own in cookies.items():
        for cookie in own:
            assert life.alive(cookie) is (cookie not in dead)
        for device in life.do("of_user", user):
            shown = f"{device!r} {device.sid}"
            assert not any(cookie.partition(".")[2] in shown for cookie in own)


def test_l8_cap(memory_life: Callable[..., Life]) -> None:
    """L8: 50 parallel logins under a cap of 3 leave 3; in both colours: `test_users.py`."""
    life = memory_life(max_sessions=3)
    barrier = threading.Barrier(50)

    def work() -> None:
        session = life.sessions.session()
        session.login("alice")
        barrier.wait()
        life.sessions.commit(session)

    threads = [threading.Thread(target=work) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(life.do("of_user", "alice")) == 3


def test_l9_step_up(life: Life) -> None:
    """L9: a sensitive page can ask for a login that is recent enough."""
    cookie = life.login()
    guest = life.login(None)
    assert life.open(cookie).fresh(within=30)
    assert not life.open(guest).fresh(within=30)
    life.clock.advance(31)
    use(life, cookie)
    assert not life.open(cookie).fresh(within=30)


def test_l10_no_session_without_an_explicit_act() -> None:
    """L10: 10,000 reads without a cookie make no cookie and no entry."""
    store = MemoryStore()
    sessions = SessionManager(store)

    def app(environ: Any, start_response: Any) -> list[bytes]:
        session = environ["sojourn.session"]
        seen = (session.get("n"), "n" in session, len(session), list(session), session.user)
        start_response("200 OK", [])
        return [repr(seen).encode()]

    site = SessionMiddleware(app, sessions)
    cookies = []

    def start_response(status: str, headers: list[tuple[str, str]]) -> Any:
        cookies.extend(name for name, _ in headers if name.lower() == "set-cookie")

    for _ in range(10_000):
        environ = {"wsgi.url_scheme": "https", "REQUEST_METHOD": "GET", "PATH_INFO": "/"}
        b"".join(site(environ, start_response))  # type: ignore[arg-type]

    assert cookies == []
    assert store.count(None, None) == 0


def test_p5_each_event_is_seen_once(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    """P5: made, renewed, ended, expired, refused, suspicious: once for each act, and logged."""
    handlers = {event: Seen() for event in ("created", "renewed", "ended", "suspicious")}
    for event, handler in handlers.items():
        getattr(life.sessions, f"on_{event}")(handler)
    counters = life.sessions.counters

    def happened(*events: str) -> None:
        told = [event for event, handler in handlers.items() for _ in handler.calls]
        assert sorted(told) == sorted(events)
        for handler in handlers.values():
            handler.calls.clear()

    cookie = life.login(None)
    happened("created")
    session = life.open(cookie)
    session.renew()
    renewed = life.cookie(life.commit(session))
    happened("renewed")
    life.clock.advance(11)
    life.commit(life_looks(life, cookie))
    happened("suspicious")
    name, _, token = renewed.partition("=")
    forged = f"{name}={token.partition('.')[0]}.{'A' * 43}"
    life.commit(life_looks(life, forged))
    happened()
    session = life.open(renewed)
    session.logout()
    life.commit(session)
    happened("ended")
    expired = life.login()
    happened("created")
    life.clock.advance(100 + SKEW)
    life.do("sweep")
    assert handlers["ended"].calls == [(sid_of(expired), "idle")]

    expected = {"created": 2, "renewed": 1, "suspicious": 1, "refused": 1, "ended": 1, "swept": 1}
    assert {event: counters[event] for event in expected} == expected
    assert any("suspicious" in record.message for record in caplog.records)
    secrets = [cookie.partition(".")[2] for cookie in (cookie, renewed, expired)]
    assert not any(secret in caplog.text for secret in secrets)


def life_looks(life: Life, cookie: str) -> Session:
    session = life.open(cookie)
    assert session.is_new
    return session
