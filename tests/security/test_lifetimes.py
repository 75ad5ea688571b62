"""L1 to L11: how long a session lives, and that it ends when it is told to."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from sojourn.core.expiry import (
    NIST_800_63B_4_AAL1,
    NIST_800_63B_4_AAL2,
    NIST_800_63B_4_AAL3,
    Expiry,
)
from sojourn.core.session import Session
from sojourn.manager import SessionManager
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Clock

from ..web.kit import Site

SOAK = bool(os.environ.get("SOJOURN_SOAK"))
MakeSite = Callable[..., Site]


def who(session: Session) -> str:
    return str(session.user)


def login(session: Session) -> str:
    session.login("alice")
    return ""


def test_L1_idle_timeout(site: Site) -> None:
    """It is over an idle timeout after its last use, whether the store still has it or not."""
    site.visit(login)
    for _ in range(5):
        site.clock.advance(3500)
        assert site.visit(who).body == b"alice"
    site.clock.advance(3600)

    assert site.store.count() == 1
    answer = site.visit(lambda session: [session.user, session.ended_before.reason])
    assert answer.body == b"[None, 'idle']"


def test_L2_lifetime(site: Site) -> None:
    """Used every minute, it is over a lifetime after the login all the same."""
    site.visit(login)
    begun = site.clock()
    while site.visit(who).body == b"alice":
        site.clock.advance(60)
        assert site.clock() <= begun + 86400

    assert site.clock() == begun + 86400


@pytest.mark.parametrize(
    ("expiry", "idle", "lifetime"),
    [
        (NIST_800_63B_4_AAL1, None, 30 * 86400),
        (NIST_800_63B_4_AAL2, 3600, 24 * 3600),
        (NIST_800_63B_4_AAL3, 900, 12 * 3600),
    ],
)
def test_L3_presets(
    make_site: MakeSite, expiry: Expiry, idle: float | None, lifetime: float
) -> None:
    """The named limits of NIST SP 800-63B-4, on both sides of each."""
    for limit in (idle, lifetime):
        for late in (False, True):
            site = make_site(expiry=expiry)
            site.visit(login)
            end = site.clock() + (limit or lifetime) - (0 if late else 1)
            step = (limit or lifetime) if limit == idle else min(idle or lifetime, 3600) - 1
            while site.clock() + step < end:
                site.clock.advance(step)
                assert site.visit(who).body == b"alice"
            site.clock.now = end
            assert site.visit(who).body == (b"None" if late else b"alice")


def test_L4_a_new_login_resets_both(make_site: MakeSite) -> None:
    """Logging in again starts the idle timeout and the lifetime anew."""
    site = make_site(idle_timeout=3600, lifetime=7200)
    site.visit(login)
    site.clock.advance(3599)
    site.visit(who)
    site.clock.advance(3500)
    site.visit(login)
    for _ in range(3):
        site.clock.advance(2300)
        assert site.visit(who).body == b"alice"
    site.clock.advance(300)
    assert site.visit(who).body == b"None"


def test_L5_renewal_overlaps_shortly(site: Site) -> None:
    """Both cookies within the grace, only the new one after it; the old one renews nothing."""
    old = f"id={site.visit(lambda session: session.update(a=1)).token}"
    site.visit(lambda session: session.renew())
    site.clock.advance(9.9)

    answer = site.request(lambda session: session.renew() or session["a"], cookie=old)
    assert (answer.body, answer.all("Set-Cookie")) == (b"1", [])
    site.clock.advance(0.2)
    assert site.request(lambda session: session.get("a"), cookie=old).body == b"None"
    assert site.sessions.counters["suspicious"] == 1
    assert site.visit(lambda session: session["a"]).body == b"1"


LATE: dict[str, Callable[[Session], Any]] = {
    "read": lambda session: session.get("a"),
    "write": lambda session: session.update(a=2),
    "add": lambda session: session.add("a"),
    "touch": lambda session: session.touch(),
    "renew": lambda session: session.renew(),
    "login": lambda session: session.login("alice"),
    "flash": lambda session: session.flash("x"),
    "end": lambda session: session.end(),
    "remember": lambda session: session.remember(timedelta(days=30)),
}


@pytest.mark.parametrize("late", LATE)
def test_L6_ended_stays_ended(late: str) -> None:
    """A late request never brings it back: 200 trials each (with SOJOURN_SOAK 12,000)."""
    clock = Clock()
    store = MemoryStore()
    sessions = SessionManager(store, clock=clock)
    for trial in range(12_000 if SOAK else 200):
        first = sessions.session()
        first.login("alice")
        cookie = f"id={sessions.commit(first).token}"
        slow, out = sessions.session(cookie), sessions.session(cookie)
        LATE[late](slow)
        clock.advance(200)
        out.logout()
        sessions.commit(out)
        if trial % 2:
            # The late one is slower than the tombstone lives.
            store.delete(cookie[3:25])
        try:
            done = sessions.commit(slow)
        except Exception as error:
            pytest.fail(f"{late}: {error!r}")
        assert done.token is None
        assert sessions.session(cookie).user is None
        assert store.count() == 0


def test_L6_nothing_alive_by_http(site: Site) -> None:
    """A logout is seen by the next request, and a request under way sets no cookie again."""
    cookie = f"id={site.visit(login).token}"

    def slow(session: Session) -> str:
        session["a"] = 1
        site.sessions.end(session.sid)
        return "late"

    answer = site.request(slow, cookie=cookie)

    assert answer.all("Set-Cookie") == []
    assert site.request(who, cookie=cookie).body == b"None"


def test_L7_ending_all_of_a_user(make_site: MakeSite) -> None:
    """Of 1,000 sessions of 10 users exactly those named end, all at once; one may be kept."""
    site = make_site()
    cookies: dict[str, list[str]] = {}
    for number in range(1000):
        session = site.sessions.session()
        session.login(f"user{number % 10}")
        token = site.sessions.commit(session).token
        cookies.setdefault(f"user{number % 10}", []).append(f"id={token}")
    kept = cookies["user3"][5]
    ended = site.sessions.end_all("user3", keep=kept[3:25])

    assert len(ended) == 99
    for user, all_of in cookies.items():
        for cookie in all_of:
            alive = site.sessions.session(cookie).user
            assert alive == (None if user == "user3" and cookie != kept else user)
    shown = repr(site.sessions.of_user("user4"))
    assert all(cookie[26:] not in shown for cookie in cookies["user4"])


def test_L8_a_cap_under_parallel_logins() -> None:
    """50 logins at once with a cap of 3: 3 are alive afterwards."""
    for policy in ("end-oldest", "deny"):
        sessions = SessionManager(max_sessions=3, on_too_many=policy)
        start = threading.Barrier(50)

        refused: list[str] = []

        def one(
            sessions: SessionManager = sessions,
            start: threading.Barrier = start,
            refused: list[str] = refused,
        ) -> None:
            session = sessions.session()
            session.login("alice")
            start.wait(20)
            try:
                sessions.commit(session)
            except Exception as error:
                refused.append(type(error).__name__)

        threads = [threading.Thread(target=one) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

        assert len(sessions.of_user("alice")) == 3
        assert set(refused) <= {"TooManySessions"}
        assert len(refused) == (47 if policy == "deny" else 0)


def test_L9_recent_proof(site: Site) -> None:
    """`fresh` tells whether the login is recent enough for what a page guards."""
    ask: Callable[[Session], Any] = lambda session: session.fresh(timedelta(minutes=5))  # noqa: E731

    assert site.visit(ask).body == b"False"
    site.visit(login)
    assert site.visit(ask).body == b"True"
    site.clock.advance(301)
    assert site.visit(ask).body == b"False"
    site.visit(login)
    assert site.visit(ask).body == b"True"


def test_L10_no_session_without_an_act(site: Site) -> None:
    """10,000 reads without a cookie: no cookie, no record, no call on the store."""
    for number in range(10_000):
        if number % 100:
            session = site.sessions.session("")
            session.get("a")
            assert site.sessions.commit(session).token is None
        else:
            assert site.request(who, cookie="").all("Set-Cookie") == []

    assert site.verbs == []
    assert site.store.count(status=None) == 0
