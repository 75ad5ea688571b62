"""`request.session`: the interface, and what Pyramid's own sessions cannot do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pyramid.interfaces import ICSRFStoragePolicy, ISession, ISessionFactory
from pyramid.testing import DummyRequest
from zope.interface.verify import verifyClass, verifyObject

from sojourn import ConfigurationError, SessionManager
from sojourn.core.session import Session as CoreSession
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Clock, Fault, FlakyStore
from sojourn.web.pyramid import CSRFStoragePolicy, Session, SessionFactory, SessionUnavailable

from ..kit import Site

MakeSite = Callable[..., Site]


def session_of(sessions: SessionManager, cookie: str = "") -> Session:
    """Return the session of a request with that cookie."""
    return SessionFactory(sessions)(DummyRequest(environ={"HTTP_COOKIE": cookie}))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> SessionManager:
    return SessionManager(clock=clock)


def kept(sessions: SessionManager, session: Session) -> str:
    """Commit, and return the cookie of the session."""
    token = sessions.commit(session).token
    assert token is not None
    return f"id={token}"


# The interface.


def test_interfaces(sessions: SessionManager) -> None:
    """Classes and objects are what zope.interface asks for, loaded or not."""
    verifyClass(ISession, Session)
    verifyClass(ISessionFactory, SessionFactory)
    verifyClass(ICSRFStoragePolicy, CSRFStoragePolicy)
    verifyObject(ISessionFactory, SessionFactory(sessions))
    verifyObject(ICSRFStoragePolicy, CSRFStoragePolicy())
    session = session_of(sessions)
    verifyObject(ISession, session)
    session["a"] = 1
    verifyObject(ISession, session_of(sessions, kept(sessions, session)))


def test_the_factory_makes_one_session_for_a_request(sessions: SessionManager) -> None:
    """However often it is called: two would each write the cookie."""
    factory, request = SessionFactory(sessions), DummyRequest()

    assert factory(request) is factory(request)
    assert factory(request) is not factory(DummyRequest())


def test_only_a_manager_makes_a_factory() -> None:
    """A store or a URL in its place is told at once."""
    with pytest.raises(ConfigurationError, match="must be a SessionManager"):
        SessionFactory("sqlite:///sessions.db")  # type: ignore[arg-type]


def test_created(sessions: SessionManager, clock: Clock) -> None:
    """An int, and the time when the session was made; limits are counted from the very moment."""
    clock.now = 1_800_000_000.75
    session = session_of(sessions)
    assert (session.created, type(session.created)) == (1_800_000_000, int)
    session["a"] = 1
    session.idle_timeout = None
    cookie = kept(sessions, session)
    clock.advance(50)

    again = session_of(sessions, cookie)

    assert (again.created, type(again.created)) == (1_800_000_000, int)
    assert again.deadline == 1_800_000_000.75 + 86400


def test_new(sessions: SessionManager, clock: Clock) -> None:
    """True until it is in the store, after `invalidate`, and when it has expired."""
    session = session_of(sessions)
    assert session.new is True
    session["a"] = 1
    assert session.new is True
    cookie = kept(sessions, session)

    again = session_of(sessions, cookie)
    assert again.new is False
    again.invalidate()
    assert again.new is True
    assert session_of(sessions, "id=forged").new is True

    clock.advance(3601)
    expired = session_of(sessions, cookie)
    assert (expired.new, dict(expired)) == (True, {})


def test_invalidate(sessions: SessionManager) -> None:
    """Copies of the cookie are dead, and what is written next goes into another session."""
    session = session_of(sessions)
    session["a"] = 1
    cookie = kept(sessions, session)

    session = session_of(sessions, cookie)
    first = session.sid
    assert session.invalidate() is None
    assert "a" not in session
    session["b"] = 2
    second = kept(sessions, session)

    assert session.sid != first
    assert dict(session_of(sessions, second)) == {"b": 2}
    late = session_of(sessions, cookie)
    assert (late.new, dict(late)) == (True, {})
    assert late.ended_before is not None
    assert late.ended_before.reason == "user"


def test_a_mapping(sessions: SessionManager) -> None:
    """A missing key raises, also from `pop`; all of IDict, and what a dict can do besides."""
    session = session_of(sessions)
    for ask in (
        lambda: session["a"],
        lambda: session.pop("a"),
        lambda: session.popitem(),
        lambda: session.__delitem__("a"),
    ):
        with pytest.raises(KeyError):
            ask()
    assert session.get("a") is None
    assert session.pop("a", 5) == 5
    assert session.setdefault("a", 1) == 1
    session.update({"b": 2}, c=3)
    session |= {"d": 4}
    assert list(session.items()) == [("a", 1), ("b", 2), ("c", 3), ("d", 4)]
    assert (len(session), bool(session), session == dict(session)) == (4, True, True)
    assert (session.popitem(), list(session.values())) == (("d", 4), [1, 2, 3])
    session.clear()
    assert list(session.keys()) == []


def test_changed_is_not_needed(sessions: SessionManager) -> None:
    """A change deep inside a value is kept with or without it."""
    session = session_of(sessions)
    session["cart"] = {"items": []}
    cookie = kept(sessions, session)
    session = session_of(sessions, cookie)
    session["cart"]["items"].append("tea")
    sessions.commit(session)
    session = session_of(sessions, cookie)
    session["cart"]["items"].append("map")
    assert session.changed() is None
    sessions.commit(session)

    assert session_of(sessions, cookie)["cart"] == {"items": ["tea", "map"]}


# Messages.


def test_flash(sessions: SessionManager) -> None:
    """Queues in order, each for itself; a duplicate where it is allowed; popped once."""
    session = session_of(sessions)
    session.flash("one")
    session.flash("two")
    session.flash("two", allow_duplicate=False)
    session.flash("two")
    session.flash(msg="bad", queue="error")
    cookie = kept(sessions, session)

    session = session_of(sessions, cookie)
    assert session.peek_flash() == ["one", "two", "two"]
    assert session.pop_flash() == ["one", "two", "two"]
    assert (session.pop_flash(), session.peek_flash("error")) == ([], ["bad"])
    sessions.commit(session)
    assert session_of(sessions, cookie).pop_flash("error") == ["bad"]


def test_messages_are_those_of_other_frameworks_too(sessions: SessionManager) -> None:
    """What Pyramid's code looks for under `_f_` is the queue that all frameworks have."""
    session = session_of(sessions)
    session.flash("saved")
    cookie = kept(sessions, session)
    assert sessions.session(cookie).peek_flash() == ["saved"]

    session = session_of(sessions, cookie)
    assert ("_f_" in session, session["_f_"], "_f_error" in session) == (True, ["saved"], False)
    assert list(session) == []
    session["_f_"] = ["other"]
    assert session.pop_flash() == ["other"]
    session["_f_"] = ["third"]
    del session["_f_"]
    with pytest.raises(KeyError):
        del session["_f_"]
    assert session.get("_f_") is None


# Any use marks the answer.

USES: dict[str, Callable[[Any], Any]] = {
    "changed": lambda s: s.changed(),
    "get_csrf_token": lambda s: s.get_csrf_token(),
    "invalidate": lambda s: s.invalidate(),
    "new": lambda s: s.new,
    "new_csrf_token": lambda s: s.new_csrf_token(),
    "created": lambda s: s.created,
    "_f_ in": lambda s: "_f_" in s,
    "in": lambda s: "a" in s,
    "iteration": lambda s: list(s),
    "len": lambda s: len(s),
    "login": lambda s: s.login("alice"),
    "peek_flash": lambda s: s.peek_flash(),
}
# It does nothing at all.
NO_USE = {"changed"}


def test_every_name_of_pyramids_is_tried() -> None:
    """The table has what this class adds to the session of the core."""
    added = {name for name in dir(Session) if name[0] != "_"} - set(dir(CoreSession))

    assert added - set(USES) == set()


@pytest.mark.parametrize("use", USES)
def test_vary_on_any_use(site: Site, use: str) -> None:
    """`Vary: Cookie` and private, with and without a cookie."""
    cookie = f"id={site.request(lambda s: s.update(a=1)).token}"
    for sent in ("", cookie):
        answer = site.request(lambda s: USES[use](s), cookie=sent)
        assert answer.all("Vary") == ([] if use in NO_USE else ["Cookie"])
        assert bool(answer.all("Cache-Control")) == (use not in NO_USE)


# What gets lost elsewhere.


def test_two_writers(site: Site) -> None:
    """Two requests at once that write different keys leave both."""
    site.visit(lambda session: session.update(first=1))

    def slow(session: Any) -> str:
        assert "a" not in session
        site.request(lambda other: other.update(b=2))
        session["a"] = 1
        return ""

    site.visit(slow)

    assert site.visit(lambda s: sorted(s)).body == b"['a', 'b', 'first']"


def test_a_late_reader(site: Site) -> None:
    """A request that only reads, and ends after one that wrote, undoes nothing."""
    site.visit(lambda session: session.update(a=1))
    site.clock.advance(400)

    def slow(session: Any) -> str:
        before = session["a"]
        site.request(lambda other: other.update(a=2))
        return f"{before}"

    assert site.visit(slow).body == b"1"
    assert site.visit(lambda s: s["a"]).body == b"2"


@pytest.mark.parametrize("late", ["read", "write", "renew", "flash", "csrf"])
def test_nothing_rises_after_a_logout(site: Site, late: str) -> None:
    """A request that ends after the logout does not bring the session back."""
    site.visit(lambda session: session.login("alice"))
    deeds: dict[str, Callable[[Any], Any]] = {
        "read": lambda s: s.user,
        "write": lambda s: s.update(a=1),
        "renew": lambda s: s.renew(),
        "flash": lambda s: s.flash("hello"),
        "csrf": lambda s: s.new_csrf_token(),
    }

    def slow(session: Any) -> str:
        assert session.user == "alice"
        site.request(lambda other: other.invalidate())
        deeds[late](session)
        return ""

    answer = site.request(slow)

    assert answer.status == 200
    assert answer.token == ""
    assert site.request(lambda s: [s.new, s.user, dict(s)]).body == b"[True, None, {}]"
    assert site.sessions.of_user("alice") == []


def test_100_kilobytes(site: Site) -> None:
    """A value that no cookie could hold."""
    answer = site.visit(lambda session: session.update(a="x" * 100_000))

    assert len(answer.all("Set-Cookie")[0]) < 200
    assert site.visit(lambda session: len(session["a"])).body == b"100000"


def test_no_cookie_on_a_read(site: Site) -> None:
    """Neither the first time, nor later, nor when a touch is due."""
    assert site.visit(lambda s: s.get("a")).all("Set-Cookie") == []
    site.visit(lambda s: s.update(a=1))
    for _ in range(3):
        site.clock.advance(1000)
        assert site.visit(lambda s: s["a"]).all("Set-Cookie") == []


def test_an_unknown_id_is_not_adopted(site: Site) -> None:
    """Of an id that this site never gave nothing goes into the session that is made."""
    sid = "A" * 22
    answer = site.request(lambda s: s.update(a=1), cookie=f"id={sid}.{'A' * 43}")

    assert answer.token
    assert not answer.token.startswith(sid)


# The store down.


def test_store_down_is_pyramids_503_too(make_site: MakeSite) -> None:
    """What a view meets can be caught as `StoreUnavailable`, and is a 503 to Pyramid's views."""
    site = make_site(FlakyStore(MemoryStore(), lambda verb, _: Fault.UNAVAILABLE))
    cookie = f"id={'A' * 22}.{'A' * 43}"
    seen: list[Any] = []

    def view(session: Any) -> str:
        try:
            return str(session.get("a"))
        except SessionUnavailable as error:
            seen.append((error.status_int, "planned fault" in str(error), error.detail))
            raise

    answer = site.request(view, cookie=cookie)

    assert seen == [(503, True, None)]
    assert (answer.status, answer.one("Retry-After")) == (503, "5")
    assert b"planned fault" not in answer.body
