"""A clock that jumps back an hour: sessions neither die of it, nor get more than their limits."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from sojourn.core.session import Session

from ..web.kit import SITES, Site

HOUR = 3600.0
DAY = 86400.0
MakeSite = Callable[..., Site]


def show(session: Session) -> str:
    return str(session.get("a"))


@pytest.fixture(params=SITES)
def make_site(request: pytest.FixtureRequest) -> MakeSite:
    """Sites of each colour; by default an hour of idle timeout, a day of lifetime."""
    return SITES[request.param]


def deadline(site: Site) -> float:
    record = site.store.store.load(site.cookie[3:25])
    assert record is not None
    return record.deadline


def test_it_lives(make_site: MakeSite) -> None:
    """After the jump the session works: it can be read, written, renewed and ended."""
    site = make_site()
    site.visit(lambda session: session.update(a=1))
    site.clock.advance(-HOUR)

    assert site.visit(show).body == b"1"
    assert site.visit(lambda session: session.add("a")).body == b"2"
    old = site.cookie
    assert site.visit(lambda session: session.renew()).token
    assert site.request(show, cookie=old).body == b"2"
    site.clock.advance(11)
    assert site.request(show, cookie=old).body == b"None"
    assert site.visit(show).body == b"2"
    site.visit(lambda session: session.end())
    assert site.request(show, cookie=old).body == b"None"


def test_use_does_not_extend_it(make_site: MakeSite) -> None:
    """Used every minute of the hour that comes again, its deadline stays; then it moves on."""
    site = make_site()
    begun = site.clock()
    site.visit(lambda session: session.update(a=1))
    before = deadline(site)
    site.clock.advance(-HOUR)
    site.verbs  # noqa: B018
    for _ in range(59):
        site.clock.advance(60)
        assert site.visit(show).body == b"1"
    assert deadline(site) == before
    assert set(site.verbs) == {"load"}

    for _ in range(10):
        site.clock.advance(60)
        site.visit(show)
    assert before < deadline(site) <= site.clock() + HOUR
    assert site.clock() > begun


def test_writes_do_not_extend_it(make_site: MakeSite) -> None:
    """Nor do writes, nor an explicit touch: the last use is neither set back nor moved on."""
    site = make_site()
    site.visit(lambda session: session.update(a=1))
    before = deadline(site)
    site.clock.advance(-HOUR)
    for use in (
        lambda session: session.update(a=2),
        lambda session: session.touch(),
        lambda session: session.renew(),
        lambda session: session.add("n"),
    ):
        site.visit(use)
        assert deadline(site) == before


def test_it_dies_at_its_deadline(make_site: MakeSite) -> None:
    """Unused it is over at the time that was its deadline, by the clock as it is then."""
    site = make_site()
    site.visit(lambda session: session.update(a=1))
    site.clock.advance(-HOUR)

    site.clock.advance(2 * HOUR - 1)
    assert site.request(lambda session: session.peek.get("a")).body == b"1"
    site.clock.advance(1)
    assert site.visit(show).body == b"None"


def test_the_lifetime_stays(make_site: MakeSite) -> None:
    """A session in use all day ends where its lifetime ended before the jump."""
    site = make_site()
    begun = site.clock()
    site.visit(lambda session: session.update(a=1))
    site.clock.advance(HOUR / 2)
    site.clock.advance(-HOUR)
    while site.visit(show).body == b"1":
        site.clock.advance(600)
        assert site.clock() < begun + 2 * DAY

    assert begun + DAY <= site.clock() < begun + DAY + 600


def test_a_login_after_the_jump(make_site: MakeSite) -> None:
    """A login starts the lifetime anew, at the time that the clock shows then."""
    site = make_site(idle_timeout=None, lifetime=timedelta(hours=12))
    site.visit(lambda session: session.update(a=1))
    site.clock.advance(-HOUR)
    site.visit(lambda session: session.login("alice"))

    assert deadline(site) == site.clock() + 12 * HOUR
    site.clock.advance(12 * HOUR)
    assert site.visit(lambda session: session.user).body == b"None"


def test_sweeping_after_the_jump(make_site: MakeSite) -> None:
    """A sweep takes nothing that lives, and takes it when its time has come."""
    site = make_site(SITES["wsgi"]().store.store)
    site.visit(lambda session: session.update(a=1))
    site.clock.advance(-HOUR)

    assert site.sessions.sweep().ended == 0
    assert site.visit(show).body == b"1"
    site.clock.advance(2 * HOUR + 300)
    assert site.sessions.sweep().ended == 1
