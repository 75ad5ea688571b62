"""What both middlewares promise, in the words of DESIGN sections 4 to 7, each test on each."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sojourn.core.session import Session
from sojourn.core.token import Token, new_secret, new_sid
from sojourn.errors import CsrfError, InvalidValue, StoreUnavailable
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Fault, FlakyStore, at

from .kit import SITES, Answer, Site

MakeSite = Callable[..., Site]


def quiet(session: Session) -> str:
    return "quiet"


def read(session: Session) -> str:
    return repr(session.get("a"))


def write(session: Session) -> str:
    session["a"] = 1
    return "written"


def no_sign(answer: Answer) -> None:
    """Nothing of the answer tells that there are sessions."""
    for name in ("Vary", "Cache-Control", "Set-Cookie", "Clear-Site-Data"):
        assert answer.all(name) == []


# One load, one write, or nothing.


def test_nothing_is_asked_without_a_cookie(site: Site) -> None:
    """No cookie and the session not used: no call on the store and no header."""
    no_sign(site.visit(quiet))
    assert site.verbs == []


def test_nothing_is_asked_where_the_session_is_not_used(site: Site) -> None:
    """A cookie alone costs nothing either, with a store whose reads never wait."""
    site.visit(write)
    site.verbs  # noqa: B018 - forgets the calls so far

    no_sign(site.visit(quiet))
    assert site.verbs == []


def test_reading_without_a_cookie(site: Site) -> None:
    """Looking at a session that is not there makes none; but a cache must know of the cookie."""
    answer = site.visit(read)

    assert site.verbs == []
    assert answer.all("Set-Cookie") == []
    assert answer.one("Vary") == "Cookie"
    assert answer.one("Cache-Control") == "private"


def test_reading_is_one_load(site: Site) -> None:
    """One load and no write, however often it is read; and no new cookie."""
    site.visit(write)
    site.verbs  # noqa: B018

    answer = site.visit(lambda session: [read(session), len(session), "a" in session])

    assert site.verbs == ["load"]
    assert answer.all("Set-Cookie") == []


def test_making_one_is_one_create(site: Site) -> None:
    """The first write makes the session; the answer brings the cookie and is not stored."""
    answer = site.visit(write)

    assert site.verbs == ["create"]
    assert answer.one("Cache-Control") == "no-store, private"
    assert answer.one("Set-Cookie") == f"id={answer.token}; Path=/; HttpOnly; SameSite=Lax"


def test_writing_is_one_load_and_one_replace(site: Site) -> None:
    """A change costs one load and one write, and no new cookie."""
    site.visit(write)
    site.verbs  # noqa: B018

    answer = site.visit(lambda session: session.add("n"))

    assert site.verbs == ["load", "replace"]
    assert answer.all("Set-Cookie") == []
    assert answer.one("Cache-Control") == "private"


def test_a_touch_is_due_once_an_interval(site: Site) -> None:
    """A session that is only read is touched when a twentieth of the idle timeout has passed."""
    site.visit(write)
    site.visit(read)
    site.clock.advance(181)
    site.verbs  # noqa: B018

    site.visit(read)
    site.visit(read)

    assert site.verbs == ["load", "touch", "load"]


def test_a_touch_is_due_sooner_where_the_session_ends_sooner(site: Site) -> None:
    """One with a shorter idle timeout of its own is touched as often as that needs."""

    def shorten(session: Session) -> str:
        session.idle_timeout = timedelta(seconds=10)
        return write(session)

    site.visit(shorten)
    for _ in range(5):
        site.clock.advance(6)
        assert site.visit(read).body == b"1"


def test_peeking_does_not_touch(site: Site) -> None:
    """Looking through `peek` extends nothing; the answer depends on the cookie all the same."""
    site.visit(write)
    site.clock.advance(181)
    site.verbs  # noqa: B018

    answer = site.visit(lambda session: session.peek.get("a"))

    assert (answer.body, site.verbs, answer.one("Vary")) == (b"1", ["load"], "Cookie")


def test_a_handler_that_comes_to_nothing(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A key that is set and taken back makes no session, and there is nothing to log."""

    def handler(session: Session) -> str:
        session["a"] = 1
        del session["a"]
        return ""

    answer = site.visit(handler)

    assert site.verbs == []
    assert answer.token == ""
    assert caplog.records == []


# Commit before the head.


def test_committed_before_the_head(site: Site) -> None:
    """At the moment when the head leaves, the store has it: the next request sees it."""
    seen: list[tuple[str, list[str]]] = []

    def look(what: str) -> None:
        seen.append((what, site.store.verbs))

    site.visit(write, on_event=look)
    site.visit(lambda session: session.add("a"), on_event=look)

    first, second = ["create"], ["create", "load", "replace"]
    assert seen[:1] + seen[1:2] == [("head", first), ("body", first)]
    assert [verbs for what, verbs in seen if what == "head"] == [first, second]


def test_an_unhandled_exception_commits_nothing(site: Site) -> None:
    """What a handler did that raises is not kept, and the exception reaches the server."""
    site.visit(write)

    def fails(session: Session) -> str:
        session["a"] = 2
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        site.visit(fails)
    assert site.visit(read).body == b"1"


def test_commit_on_error(make_site: MakeSite) -> None:
    """Unless the operator wants it kept; then too no session is made that nobody could open."""
    site = make_site(commit_on_error=True)

    def fails(session: Session) -> str:
        session["a"] = session.get("a", 0) + 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        site.visit(fails)
    assert site.store.count() == 0
    site.visit(write)
    with pytest.raises(ZeroDivisionError):
        site.visit(fails)
    assert site.visit(read).body == b"2"


def test_a_value_that_cannot_be_stored(site: Site) -> None:
    """It is raised before anything is sent, so that the server answers with an error."""
    events: list[str] = []

    with pytest.raises(InvalidValue, match="session\\['a'\\]"):
        site.visit(lambda session: session.update(a=[object()]), on_event=events.append)
    assert events == []
    assert site.store.count() == 0


# The cookie.


def test_https(site: Site) -> None:
    """On https the cookie is Secure and has the __Host- name; one of http is not looked at."""
    answer = site.visit(write, https=True)

    assert answer.one("Set-Cookie") == (
        f"__Host-id={answer.token}; Path=/; HttpOnly; SameSite=Lax; Secure"
    )
    assert site.visit(read, https=True).body == b"1"
    assert site.visit(read, cookie=f"id={answer.token}", https=True).body == b"None"
    assert site.visit(read, https=False).body == b"None"


def test_behind_a_proxy(make_site: MakeSite) -> None:
    """`cookie_secure=True` has the secure cookie where the proxy ends https."""
    site = make_site(cookie_secure=True)

    answer = site.visit(write)

    assert answer.all("Set-Cookie")[0].startswith("__Host-id=")
    assert answer.all("Set-Cookie")[0].endswith("; Secure")
    assert site.visit(read).body == b"1"


def test_no_cookie_where_nothing_of_it_changes(site: Site) -> None:
    """Set-Cookie comes only when the token or its lifetime changes."""
    site.visit(write)
    assert site.visit(write).token == ""
    first = site.visit(lambda session: session.remember(timedelta(days=30)))
    again = site.visit(lambda session: session.remember(timedelta(days=30)))

    assert "Max-Age=2592000" in first.all("Set-Cookie")[0]
    assert again.all("Set-Cookie") == []


def test_renewed(site: Site) -> None:
    """A renewal sends a new cookie for the same session; the old one dies after the grace."""
    old = site.visit(write).token
    answer = site.visit(lambda session: session.renew() or session.sid)

    assert answer.token not in ("", old)
    assert answer.token.startswith(old[:22])
    assert site.request(read, cookie=f"id={old}").body == b"1"
    site.clock.advance(11)
    assert site.request(read, cookie=f"id={old}").body == b"None"
    assert site.visit(read).body == b"1"


def test_logout(site: Site) -> None:
    """The end clears the cookie, no copy works, and over https the storage is cleared too."""
    old = site.visit(lambda session: session.login("alice"), https=True).token
    answer = site.visit(lambda session: session.logout(), https=True)

    assert answer.one("Clear-Site-Data") == '"cookies", "storage"'
    assert answer.all("Set-Cookie")[0].startswith("__Host-id=; Max-Age=0;")
    assert answer.one("Cache-Control") == "no-store, private"
    ended = site.request(
        lambda session: session.ended_before, cookie=f"__Host-id={old}", https=True
    )
    assert b"reason='user'" in ended.body


def test_logout_over_http(site: Site) -> None:
    """Browsers take Clear-Site-Data over https alone, so over http there is none."""
    site.visit(lambda session: session.login("alice"))

    assert site.visit(lambda session: session.logout()).all("Clear-Site-Data") == []


def test_the_applications_own_headers(site: Site) -> None:
    """They stay, its cookies and its Vary too; what would make the answer public goes."""
    own = [
        ("Set-Cookie", "a=1"),
        ("Vary", "Accept"),
        ("Set-Cookie", "b=2"),
        ("Cache-Control", "public"),
        ("Cache-Control", "S-MaxAge=60, max-age=5"),
    ]
    answer = site.visit(read, headers=own)

    assert answer.all("Set-Cookie") == ["a=1", "b=2"]
    assert answer.all("Vary") == ["Accept", "Cookie"]
    assert answer.one("Cache-Control") == "private, max-age=5"
    no_touch = site.visit(quiet, headers=own)
    assert no_touch.all("Cache-Control") == ["public", "S-MaxAge=60, max-age=5"]


# P2: any use at all.

USES: dict[str, Callable[[Session], Any]] = {
    "__contains__": lambda s: "a" in s,
    "__delitem__": lambda s: s.__delitem__("a"),
    "__eq__": lambda s: s == {},
    "__getitem__": lambda s: s["a"],
    "__ior__": lambda s: s.__ior__({"b": 1}),
    "__iter__": lambda s: list(s),
    "__len__": lambda s: len(s),
    "__ne__": lambda s: s != {"a": 1},
    "__or__": lambda s: s | {"b": 1},
    "__reversed__": lambda s: list(reversed(s)),
    "__setitem__": lambda s: s.__setitem__("b", 2),
    "add": lambda s: s.add("n"),
    "append": lambda s: s.append("l", 1),
    "authenticated": lambda s: s.authenticated,
    "bool": lambda s: bool(s),
    "check_csrf": lambda s: _refused(s),
    "claims": lambda s: s.claims,
    "clear": lambda s: s.clear(),
    "client": lambda s: s.client,
    "created": lambda s: s.created,
    "csrf_token": lambda s: s.csrf_token,
    "deadline": lambda s: s.deadline,
    "dict": lambda s: dict(s),
    "end": lambda s: s.end(),
    "ended_before": lambda s: s.ended_before,
    "flash": lambda s: s.flash("x"),
    "fresh": lambda s: s.fresh(60),
    "get": lambda s: s.get("a"),
    "idle_timeout": lambda s: s.idle_timeout,
    "is_new": lambda s: s.is_new,
    "items": lambda s: list(s.items()),
    "keys": lambda s: list(s.keys()),
    "lifetime": lambda s: s.lifetime,
    "login": lambda s: s.login("bob"),
    "logout": lambda s: s.logout(),
    "match": lambda s: _matched(s),
    "max": lambda s: s.max("m", 1),
    "peek": lambda s: "a" in s.peek,
    "peek.user": lambda s: s.peek.user,
    "peek_flash": lambda s: s.peek_flash(),
    "persistent": lambda s: s.persistent,
    "pop": lambda s: s.pop("a", None),
    "pop_flash": lambda s: s.pop_flash(),
    "popitem": lambda s: s.popitem(),
    "remaining": lambda s: s.remaining,
    "remember": lambda s: s.remember(60),
    "renew": lambda s: s.renew(),
    "seen": lambda s: s.seen,
    "setdefault": lambda s: s.setdefault("a", 1),
    "sid": lambda s: s.sid,
    "status": lambda s: s.status,
    "touch": lambda s: s.touch(),
    "union": lambda s: s.union("u", [1]),
    "unpack": lambda s: {**s},
    "update": lambda s: s.update(b=1),
    "user": lambda s: s.user,
    "values": lambda s: list(s.values()),
}
# These say how the answer came about, and nothing of the visitor.
NO_USE = {"failure", "loaded"}


def _refused(session: Session) -> None:
    with pytest.raises(CsrfError):
        session.check_csrf("")


def _matched(session: Session) -> bool:
    match session:
        case {"a": 1}:
            return True
    return False


def test_every_name_of_a_session_is_tried() -> None:
    """The table above has every public name of a session and every operator of a mapping."""
    operators = {name for name in vars(Session) if name.startswith("__")} - {
        *("__module__", "__doc__", "__slots__", "__init__", "__reduce__"),
        "__init_subclass__",
        *("__repr__", "__weakref__", "__abstractmethods__", "__parameters__", "__annotations__"),
        *("__static_attributes__", "__firstlineno__", "__orig_bases__", "__hash__"),
        # What zope.interface notes of a class.
        *("__implemented__", "__provides__", "__providedBy__"),
    }
    public = {name for name in dir(Session) if not name.startswith("_")}

    assert (operators | public) - set(USES) == NO_USE


@pytest.mark.parametrize("use", USES)
def test_p2_any_use_marks_the_answer(site: Site, use: str) -> None:
    """P2: whatever is done to a session, the answer is private and depends on the cookie."""
    cookie = f"id={site.request(write).token}"

    def handler(session: Session) -> str:
        try:
            USES[use](session)
        except KeyError:
            pass
        return "done"

    for sent in ("", cookie, "id=x", cookie.replace(".", "A.")):
        answer = site.request(handler, cookie=sent, headers=[("Cache-Control", "public")])
        assert "Cookie" in answer.all("Vary"), sent
        assert "private" in (answer.one("Cache-Control") or ""), sent


@pytest.mark.parametrize("colour", SITES)
@settings(max_examples=50)
@given(uses=st.lists(st.sampled_from(sorted(USES)), max_size=5))
def test_p2_any_uses_in_any_order(colour: str, uses: list[str]) -> None:
    """P2: any sequence of uses; only an empty one leaves the headers alone."""
    site = SITES[colour]()
    site.visit(write)

    def handler(session: Session) -> str:
        for use in uses:
            try:
                USES[use](session)
            except KeyError:
                pass
        return "done"

    answer = site.visit(handler)

    assert answer.all("Vary") == (["Cookie"] if uses else [])
    assert len(answer.all("Cache-Control")) == bool(uses)


def test_showing_it_to_a_debugger_is_no_use(site: Site) -> None:
    """`repr` of a session that was not used loads nothing and changes nothing."""
    site.visit(write)
    site.verbs  # noqa: B018

    answer = site.visit(repr)

    assert answer.body == b"<Session not loaded>"
    assert site.verbs == []
    no_sign(answer)


# The store down.


def down(verb: str) -> FlakyStore:
    """Return a store of which that verb never answers."""
    return FlakyStore(MemoryStore(), lambda asked, _: Fault.UNAVAILABLE if asked == verb else None)


def a_cookie() -> str:
    return f"id={Token(new_sid(os.urandom), new_secret(os.urandom))}"


def unavailable(answer: Answer) -> None:
    """It is the clear answer that DESIGN section 7 promises."""
    assert answer.status == 503
    assert answer.one("Retry-After") == "5"
    assert answer.one("Cache-Control") == "no-store, private"
    assert answer.all("Set-Cookie") == []
    assert b"try again" in answer.body
    assert answer.one("Content-Length") == str(len(answer.body))


def test_store_down(make_site: MakeSite) -> None:
    """A page without the session works; one with it answers 503, its cookie untouched."""
    site = make_site(down("load"))

    assert site.request(quiet, cookie=a_cookie()).body == b"quiet"
    unavailable(site.request(read, cookie=a_cookie()))
    assert site.request(read, cookie="").status == 200


def test_store_down_is_found_out_once(make_site: MakeSite) -> None:
    """A store that has waited as long as it may is not asked again by the same look."""

    class Hung(MemoryStore):
        def load(self, sid: str) -> Any:
            raise StoreUnavailable("no answer in 2 s")

    site = make_site(Hung())

    unavailable(site.request(read, cookie=a_cookie()))
    assert site.verbs == ["load"]
    assert site.sessions.counters["store errors"] == 1


def test_store_down_and_caught(make_site: MakeSite) -> None:
    """An application that catches `StoreUnavailable` keeps its own answer; caches keep off it."""
    site = make_site(down("load"))

    def handler(session: Session) -> str:
        try:
            return read(session)
        except StoreUnavailable:
            return "a page without"

    answer = site.request(handler, cookie=a_cookie(), headers=[("Cache-Control", "public")])

    assert (answer.status, answer.body) == (200, b"a page without")
    assert answer.all("Vary") == ["Cookie"]
    assert answer.one("Cache-Control") == "private"


@pytest.mark.parametrize("status", [500, 502, 503])
def test_store_down_under_a_framework(make_site: MakeSite, status: int) -> None:
    """Where a framework made an error page out of it, the client gets the clear 503 instead."""
    site = make_site(down("load"))

    def handler(session: Session) -> str:
        try:
            return read(session)
        except Exception:
            return "<h1>Internal Server Error</h1>"

    unavailable(site.request(handler, cookie=a_cookie(), status=status))


def test_store_down_and_another_error(make_site: MakeSite) -> None:
    """A `StoreUnavailable` that is not of this session is the application's own affair."""
    site = make_site()

    def handler(session: Session) -> str:
        raise StoreUnavailable("another store")

    with pytest.raises(StoreUnavailable, match="another store"):
        site.request(handler)


@pytest.mark.parametrize("verb", ["create", "replace", "delete"])
def test_a_commit_that_fails(make_site: MakeSite, verb: str) -> None:
    """It is never told as a success, and no cookie is sent for what is not there."""
    site = make_site(down(verb))
    deeds: dict[str, Callable[[Session], Any]] = {
        "create": write,
        "replace": write,
        "delete": lambda session: session.logout(),
    }
    if verb != "create":
        site.visit(write)

    unavailable(site.request(deeds[verb], headers=[("Set-Cookie", "own=1")]))
    if verb == "delete":
        assert site.visit(read).body == b"1"


def test_a_commit_that_fails_is_logged_once(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says which page and why; nothing more is said at the end of the request."""
    site = make_site(down("create"))

    site.request(write)

    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "planned fault" in caplog.text


@pytest.mark.parametrize("verb", ["load", "create", "replace"])
def test_continue(make_site: MakeSite, verb: str, caplog: pytest.LogCaptureFixture) -> None:
    """With `on_store_error="continue"` the page works, and no cookie promises what is not kept."""
    site = make_site(down(verb), on_store_error="continue")
    cookie = a_cookie()
    if verb == "replace":
        site.visit(write)
        cookie = site.cookie

    answer = site.request(write, cookie=cookie)

    assert (answer.status, answer.body) == (200, b"written")
    assert answer.all("Set-Cookie") == []
    assert answer.all("Vary") == ["Cookie"]
    assert len(caplog.records) == 1
    assert site.sessions.counters["store errors"] == 1


def test_a_lost_reply(make_site: MakeSite) -> None:
    """A write whose answer got lost is tried again and applied once."""
    site = make_site(FlakyStore(MemoryStore(), at("replace", Fault.LOST_REPLY)))
    site.visit(write)

    site.visit(lambda session: session.add("a"))

    assert site.visit(read).body == b"2"


def test_conflict(make_site: MakeSite) -> None:
    """With `on_conflict="raise"` the later of two requests gets a 409, and nothing is lost."""
    site = make_site(on_conflict="raise")
    site.visit(write)

    def slow(session: Session) -> str:
        session["a"] = 2
        site.sessions.commit(other)
        return "never seen"

    other = site.sessions.session(site.cookie)
    other["a"] = 3
    answer = site.request(slow)

    assert answer.status == 409
    assert answer.all("Set-Cookie") == []
    assert site.visit(read).body == b"3"


def test_too_many_sessions(make_site: MakeSite) -> None:
    """A login that the rules refuse is a clear 403 and no cookie, not an error of the server."""
    site = make_site(max_sessions=1, on_too_many="deny")
    site.visit(lambda session: session.login("alice"))

    answer = site.request(lambda session: session.login("alice"), cookie="")

    assert answer.status == 403
    assert answer.all("Set-Cookie") == []
    assert site.sessions.count("alice") == 1


# Commits in between.


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_a_commit_in_the_middle(site: Site, known: bool, again: bool) -> None:
    """An application may commit by itself: the answer brings the cookie that is due to that."""
    if known:
        site.visit(write)

    def handler(session: Session) -> str:
        session.login("alice")
        commit(site, session)
        session["b"] = 2
        if again:
            commit(site, session)
        return ""

    answer = site.visit(handler)

    assert answer.token
    assert site.visit(lambda session: [session.user, session["b"]]).body == b"['alice', 2]"


def test_an_end_in_the_middle(site: Site) -> None:
    """Of a session that was made and ended within a request the browser keeps no cookie."""
    site.visit(write)

    def handler(session: Session) -> str:
        session.renew()
        commit(site, session)
        session.end()
        commit(site, session)
        return ""

    answer = site.visit(handler, https=False)

    assert len(answer.all("Set-Cookie")) == 1
    assert "Max-Age=0" in answer.all("Set-Cookie")[0]


def test_a_login_under_a_lock(make_site: MakeSite) -> None:
    """`exclusive` commits first what was done so far; its cookie is not forgotten."""
    site = make_site()
    site.visit(write)

    def handler(session: Session) -> str:
        session.login("alice")
        with site.sessions.exclusive(session):
            session["a"] += 1
        return ""

    site.visit(handler)

    assert site.visit(lambda session: [session.user, session["a"]]).body == b"['alice', 2]"


@pytest.mark.parametrize("how", ["an error page", "the store is gone"])
@pytest.mark.parametrize("what", ["login", "logout"])
def test_what_a_request_has_committed_before_it_failed(
    make_site: MakeSite, how: str, what: str
) -> None:
    """It stands, so the browser is told of it: or a login would log its visitor out."""
    down: list[str] = []
    plan = lambda verb, _: Fault.UNAVAILABLE if verb in down else None  # noqa: E731
    site = make_site(FlakyStore(MemoryStore(), plan))
    site.visit(lambda session: session.update(a=1))

    def handler(session: Session) -> str:
        session.login("alice") if what == "login" else session.logout()
        commit(site, session)
        session["a"] = 2
        if how == "the store is gone":
            down.extend(["create", "replace"])
        return ""

    answer = site.visit(handler, status=500 if how == "an error page" else 200)
    down.clear()

    assert answer.status == (500 if how == "an error page" else 503)
    assert len(answer.all("Set-Cookie")) == 1
    if what == "login":
        assert site.visit(lambda session: [session.user, session["a"]]).body == b"['alice', 1]"
    else:
        assert "Max-Age=0" in answer.all("Set-Cookie")[0]


def commit(site: Site, session: Session) -> None:
    """Commit as a blocking application does."""
    site.sessions.commit(session)


# Late uses: the head has left.


def test_the_session_of_a_request_that_ended_it(site: Site) -> None:
    """After the end the object stands for a new session; what is written to it is kept."""
    first = site.visit(lambda session: session.login("alice")).token

    def handler(session: Session) -> str:
        session.logout()
        session.flash("Bye")
        return str(session.user)

    answer = site.visit(handler, https=False)

    assert answer.body == b"None"
    assert answer.token not in ("", first)
    assert len(answer.all("Set-Cookie")) == 1
    assert site.visit(lambda session: session.pop_flash()).body == b"['Bye']"


# Other ways into it.


@pytest.mark.parametrize(
    "cookie",
    [
        "id={}; id={}",
        "a=1; id={}",
        "id={};b=2",
        " id={}\t;",
    ],
)
def test_other_ways_to_send_it(site: Site, cookie: str) -> None:
    """The same cookie twice, or beside others, is that cookie."""
    token = site.visit(write).token

    assert site.request(read, cookie=cookie.replace("{}", token)).body == b"1"


def test_two_live_cookies_count_as_none(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """One of them was planted, and nobody knows which; the log says so."""
    one, two = site.request(write).token, site.request(write).token

    for cookie in (f"id={one}; id={two}", f"id={two}; id={one}"):
        assert site.request(read, cookie=cookie).body == b"None"
    assert "two live sessions" in caplog.text


def test_one_live_cookie_of_two(site: Site) -> None:
    """A dead cookie beside a live one takes nothing away."""
    live = site.request(write).token
    dead = a_cookie()

    for cookie in (f"id={live}; {dead}", f"{dead}; id={live}", f"id=x; id={live}; id="):
        assert site.request(read, cookie=cookie).body == b"1"
