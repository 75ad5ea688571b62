"""Nobody is logged out who has a cookie of Pyramid's own signed sessions."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.response import Response
from pyramid.session import SignedCookieSessionFactory
from webob.cookies import SignedSerializer
from webtest import TestApp

from sojourn import ConfigurationError, SessionManager
from sojourn.stores.cookie import CookieStore
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Clock, Fault, FlakyStore, RecordingStore
from sojourn.web.pyramid import OldCookie, SessionFactory

from ..kit import Answer, call_wsgi, environ
from .apps import make_app

SECRET = "itsaseekreet" * 6
View = Callable[[Any], Any]


def old_cookie(view: View, secret: str = SECRET, **options: Any) -> str:
    """Return the cookie pair that Pyramid's own factory gives after a visit."""
    config = Configurator(session_factory=SignedCookieSessionFactory(secret, **options))
    config.add_route("home", "/")
    config.add_view(lambda request: Response(str(view(request))), route_name="home")
    browser = TestApp(config.make_wsgi_app())
    line: str = browser.get("/").headers["Set-Cookie"]
    return line.partition(";")[0]


def login(request: Any) -> None:
    request.session["auth.userid"] = "alice"
    request.session["cart"] = {"items": ["tea", 2.5, None, True]}
    request.session.flash("Welcome.")
    request.session.flash("Oh.", "error")


class New:
    """The application after the change."""

    def __init__(self, store: Any = None, include: bool = True, **options: Any) -> None:
        self.clock = Clock()
        self.store = RecordingStore(MemoryStore() if store is None else store)
        settings = options.pop("settings", {})
        self.sessions = SessionManager(self.store, clock=self.clock, **settings)
        # Old cookies are of this time.
        self.clock.now = time.time()
        self.view: View = dict
        factory = SessionFactory(self.sessions, old_cookie=OldCookie(SECRET, **options))
        self.app = make_app(factory, lambda request: str(self.view(request)), include=include)

    def visit(self, view: View, cookie: str = "", **more: Any) -> Answer:
        self.view = view
        return call_wsgi(self.app, environ(cookie=cookie, **more))


def everything(request: Any) -> str:
    return repr(dict(request.session))


def test_the_data_is_carried_over() -> None:
    """All of it, messages too, with the first page that looks; the old cookie goes."""
    new = New()
    old = old_cookie(login)

    answer = new.visit(
        lambda request: [
            request.session["auth.userid"],
            request.session["cart"],
            request.session.pop_flash(),
            request.session.pop_flash("error"),
            request.session.new,
        ],
        f"lang=de; {old}",
    )

    assert answer.body == (
        b"['alice', {'items': ['tea', 2.5, None, True]}, ['Welcome.'], ['Oh.'], False]"
    )
    removal, cookie = sorted(answer.all("Set-Cookie"), key=lambda line: line.startswith("id="))
    assert removal == "session=; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/"
    again = new.visit(everything, cookie.partition(";")[0])
    assert again.body == b"{'auth.userid': 'alice', 'cart': {'items': ['tea', 2.5, None, True]}}"
    assert again.all("Set-Cookie") == []


def test_a_form_that_was_open_then() -> None:
    """Its token is taken, by Pyramid's policies too, as those ask `get_csrf_token`."""
    tokens: list[str] = []
    old = old_cookie(lambda request: tokens.append(request.session.get_csrf_token()))

    assert New().visit(lambda request: request.session.get_csrf_token(), old).body == (
        tokens[0].encode()
    )


def test_a_page_without_the_session() -> None:
    """Nothing happens: no call on the store, no cookie."""
    new = New()

    answer = new.visit(lambda request: "quiet", old_cookie(login))

    assert (new.store.verbs, answer.all("Set-Cookie"), answer.all("Vary")) == ([], [], [])


def test_it_is_read_once() -> None:
    """A copy of the old cookie opens nothing after the grace, whether or not we are in use."""
    new = New()
    old = old_cookie(login)
    cookie = new.visit(everything, old).token
    new.clock.advance(11)

    assert new.visit(everything, old).body == b"{}"
    assert b"alice" in new.visit(everything, f"id={cookie}").body


def test_an_old_copy_after_the_logout() -> None:
    """Nor does it bring back what was logged out."""
    new = New()
    old = old_cookie(login)
    cookie = new.visit(everything, old).token
    new.visit(lambda request: request.session.invalidate(), f"id={cookie}")

    for _ in range(2):
        assert new.visit(everything, old).body == b"{}"
        new.clock.advance(600)
    assert new.sessions.count() == 0


def spellings(old: str) -> list[str]:
    """Return other texts of an old cookie that Pyramid's own reader takes too."""
    name, _, value = old.partition("=")
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    others = [
        *(value[:-1] + char for char in last if char != value[-1]),
        *(value[:20] + junk + value[20:] for junk in ("!", "!!!!", "\xe9\xe9\xe9\xe9")),
        f'"{value}"',
        f"{value}====",
        value.replace("-", "+").replace("_", "/"),
    ]
    reader = SignedSerializer(SECRET, "pyramid.session.", "sha512")
    taken = []
    for other in others:
        try:
            reader.loads(other.encode("latin-1"))
        except ValueError:
            continue
        taken.append(f"{name}={other}")
    return taken


@pytest.mark.parametrize("first", [True, False])
def test_another_spelling_of_an_old_cookie(first: bool) -> None:
    """It is the same cookie: no copy of it, however spelt, opens a session that is over."""
    for length in range(4):
        old = old_cookie(lambda request, length=length: request.session.update(a="x" * length))
        others = spellings(old)
        assert len(others) >= 2
        new = New()
        cookie = new.visit(everything, old if first else others[0]).token
        assert new.visit(everything, f"id={cookie}").body == repr({"a": "x" * length}).encode()
        new.visit(lambda request: request.session.invalidate(), f"id={cookie}")

        for other in [old, *others]:
            assert new.visit(everything, other).body == b"{}"
        assert new.sessions.count() == 0


def test_an_old_cookie_in_quotes() -> None:
    """Pyramid took it, so it is carried over."""
    for length in range(4):
        old = old_cookie(lambda request, length=length: request.session.update(a="x" * length))
        name, _, value = old.partition("=")

        answer = New().visit(everything, f'{name}="{value}"')

        assert answer.body == repr({"a": "x" * length}).encode()


@pytest.mark.parametrize("view", [everything, lambda request: request.session.add("n")])
def test_requests_at_once(view: View) -> None:
    """A browser asks for several things at once: all meet in one session, and none is lost."""
    new = New()
    old = old_cookie(login)
    new.view = view
    answers: list[Answer] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        answers.append(call_wsgi(new.app, environ(cookie=old)))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [answer.status for answer in answers] == [200] * 8
    assert new.sessions.count() == 1
    (cookie,) = {answer.token for answer in answers} - {""}
    found = new.visit(lambda request: request.session.get("n"), f"id={cookie}").body
    assert found == (b"None" if view is everything else b"8")


def test_whoever_has_a_cookie_of_ours() -> None:
    """The old one is not looked at any more, whatever it holds."""
    new = New()
    first = new.visit(lambda request: request.session.update(a=1)).token
    new.clock.advance(4000)

    for ours in (first, new.visit(lambda request: request.session.update(a=1)).token):
        found = new.visit(everything, f"id={ours}; {old_cookie(login)}").body
        assert b"alice" not in found


def test_too_old() -> None:
    """A cookie that has outlived the old timeout is a new visitor, as it was before."""
    new = New(timeout=60)
    old = old_cookie(login)
    new.clock.advance(61)

    answer = new.visit(everything, old)

    assert (answer.body, answer.all("Set-Cookie"), new.store.verbs) == (b"{}", [], [])
    never = New(timeout=None)
    never.clock.advance(10**8)
    assert b"alice" in never.visit(everything, old).body


@pytest.mark.parametrize("how", ["forged", "cut", "text", "other secret", "other salt", "empty"])
def test_bad_cookies(how: str) -> None:
    """Whatever does not verify is a new visitor; never an error."""
    good = old_cookie(login)
    bad = {
        "forged": good[:-3] + ("AAA" if good[-3:] != "AAA" else "BBB"),
        "cut": good[:40],
        "text": "session=\xff\xfe not base64",
        "other secret": old_cookie(login, "another" * 10),
        "other salt": old_cookie(login, salt="x"),
        "empty": "session=",
    }[how]
    new = New()

    answer = new.visit(everything, bad)

    assert (answer.status, answer.body, new.store.verbs) == (200, b"{}", [])


def test_what_cannot_be_kept(caplog: pytest.LogCaptureFixture) -> None:
    """A value that our sessions do not take: a new visitor and a line in the log."""
    new = New(settings={"max_bytes": 1000})
    old = old_cookie(lambda request: request.session.update(a="x" * 1200))

    assert new.visit(everything, old).body == b"{}"
    assert "an old cookie holds what cannot be kept" in caplog.text


@pytest.mark.parametrize(
    "value",
    [
        [10**11, 0, {5: "x"}],
        [10**11, 0, {"\0claims": {}}],
        [10**11, 0, {"a": object}],
        [10**11, 0, ["a"]],
        [10**400, 0, {"a": 1}],
        ["now", 0, {"a": 1}],
        [None, 0, {"a": 1}],
        [1, 2],
        "text",
    ],
)
def test_what_an_own_serializer_may_give(value: Any) -> None:
    """Whatever it is, at worst it is a new visitor."""

    class Fixed:
        def loads(self, text: bytes) -> Any:
            return value

        def dumps(self, value: Any) -> bytes:
            return b"text"

    old = old_cookie(login, serializer=Fixed())

    answer = New(serializer=Fixed()).visit(everything, old)

    assert (answer.status, answer.body) == (200, b"{}")


@pytest.mark.parametrize("error", [AttributeError, EOFError, KeyError, ImportError])
def test_what_an_own_serializer_may_raise(error: type[Exception]) -> None:
    """Such as that of a class which is no longer there: a new visitor."""

    class Raising:
        def loads(self, text: bytes) -> Any:
            raise error("gone")

        def dumps(self, value: Any) -> bytes:
            return b"text"

    old = old_cookie(login, serializer=Raising())

    answer = New(serializer=Raising()).visit(everything, old)

    assert (answer.status, answer.body) == (200, b"{}")


def test_the_names_of_both_cookies_may_be_the_same() -> None:
    """Then ours takes the place of the old one; nothing removes it after that."""
    new = New(settings={"cookie_name": "session"})
    old = old_cookie(login)

    (line,) = new.visit(everything, old).all("Set-Cookie")

    assert line.startswith("session=")
    assert "Max-Age=0" not in line
    assert b"alice" in new.visit(everything, line.partition(";")[0]).body


def test_a_request_that_fails() -> None:
    """Neither cookie is touched, and the next request begins again."""
    new = New()
    old = old_cookie(login)

    def fails(request: Any) -> None:
        request.session["a"] = 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        new.visit(fails, old)
    answer = new.visit(everything, old)

    assert b"alice" in answer.body
    assert b"'a'" not in answer.body
    assert answer.token


@pytest.mark.parametrize("policy", ["raise", "continue"])
def test_store_down(policy: str) -> None:
    """A 503, or a page without the session; the old cookie stays for later."""
    new = New(
        FlakyStore(MemoryStore(), lambda verb, _: Fault.UNAVAILABLE),
        settings={"on_store_error": policy},
    )

    answer = new.visit(everything, old_cookie(login))

    assert answer.status == (503 if policy == "raise" else 200)
    assert answer.all("Set-Cookie") == []


def test_ending_it_at_once() -> None:
    """The page that carries it over may also be the logout."""
    new = New()
    old = old_cookie(login)

    answer = new.visit(lambda request: request.session.invalidate(), old, https=True)

    assert sorted(line.partition(";")[0] for line in answer.all("Set-Cookie")) == [
        "__Host-id=",
        "session=",
    ]
    assert new.visit(everything, old, https=True).body == b"{}"


def test_a_login_in_the_same_request() -> None:
    """Its cookie is the one that counts, and there is one."""
    new = New()

    answer = new.visit(lambda request: request.session.login("bob"), old_cookie(login))

    seen = new.visit(
        lambda request: [request.session.user, request.session["auth.userid"]], f"id={answer.token}"
    )
    assert seen.body == b"['bob', 'alice']"


def test_from_settings() -> None:
    """All options of the old factory have a setting."""
    cookie = {"cookie_name": "old", "path": "/", "domain": None, "hashalg": "sha256", "salt": "s"}
    old = old_cookie(login, timeout=300, **cookie)
    factory = SessionFactory.from_settings(
        {
            "sojourn.old_cookie.secret": SECRET,
            "sojourn.old_cookie.cookie_name": "old",
            "sojourn.old_cookie.timeout": "300",
            "sojourn.old_cookie.hashalg": "sha256",
            "sojourn.old_cookie.salt": "s",
            "sojourn.old_cookie.path": "/",
            "sojourn.old_cookie.domain": "example.com",
        }
    )

    answer = call_wsgi(make_app(factory, everything), environ(cookie=old))

    assert b"alice" in answer.body
    assert any(line.endswith("Path=/; Domain=example.com") for line in answer.all("Set-Cookie"))


def test_an_own_serializer() -> None:
    """One that the old factory was given is given here too; none unpickles unless it does."""

    class Upper:
        def loads(self, value: bytes) -> Any:
            return [10**11, 0, {"upper": value.decode().upper()}]

        def dumps(self, value: Any) -> bytes:
            return b"text"

    old = old_cookie(login, serializer=Upper())

    assert New(serializer=Upper()).visit(everything, old).body == b"{'upper': 'TEXT'}"
    assert New().visit(everything, old).body == b"{}"


def test_wrong_options() -> None:
    """They are told when the factory is made."""
    with pytest.raises(ConfigurationError, match="secret"):
        OldCookie("")
    with pytest.raises(ConfigurationError, match="hashalg"):
        OldCookie("x", hashalg="sha0")
    with pytest.raises(ConfigurationError, match="cookie_path"):
        OldCookie("x", path="shop")
    with pytest.raises(ConfigurationError, match="timeout"):
        OldCookie("x", timeout=-1)
    with pytest.raises(ConfigurationError, match="serializer of the old cookie is 'json'"):
        OldCookie("x", serializer="json")
    sealed = SessionManager(CookieStore([os.urandom(32)]))
    with pytest.raises(ConfigurationError, match="needs a store on the server"):
        SessionFactory(sealed, old_cookie=OldCookie("x"))
