"""What applications do to a request and its answer, and what comes of their sessions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pyramid.authentication import SessionAuthenticationHelper
from pyramid.config import Configurator
from pyramid.events import NewRequest, NewResponse
from pyramid.response import Response
from webtest import TestApp

from sojourn import Conflict, SessionManager
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Clock, Fault, FlakyStore
from sojourn.web.pyramid import SessionCreated, SessionFactory

from .apps import make_app

View = Callable[[Any], Any]
Make = Callable[..., TestApp]


@pytest.fixture
def sessions() -> SessionManager:
    return SessionManager(clock=Clock())


@pytest.fixture(params=["include", "factory"])
def make(request: pytest.FixtureRequest, sessions: SessionManager) -> Make:
    """Make a browser at an application of one view, by `include` and by the factory alone."""

    def made(view: View, **more: Any) -> TestApp:
        include = request.param == "include"
        return TestApp(make_app(SessionFactory(sessions), view, include=include, **more))

    return made


def count(request: Any) -> str:
    return str(request.session.add("n"))


def cookies(answer: Any) -> list[str]:
    found: list[str] = answer.headers.getall("Set-Cookie")
    return found


def test_the_scheme_is_corrected_by_a_subscriber(make: Make) -> None:
    """As applications behind a proxy do it: the cookie is read by the name that it is set by."""

    def correct(event: Any) -> None:
        event.request.scheme = "https"

    app = make(count, configure=lambda config: config.add_subscriber(correct, NewRequest))

    (line,) = cookies(app.get("/"))

    assert line.startswith("__Host-id=")
    assert app.get("/", headers={"Cookie": line.partition(";")[0]}).text == "2"


def test_two_factories_in_one_request(make: Make, sessions: SessionManager) -> None:
    """Each has its own session, cookie and store; `request.sessions` is that of the application."""
    others = SessionManager(cookie_name="admin")
    other = SessionFactory(others)

    def view(request: Any) -> str:
        counts = request.session.add("n"), other(request).add("n", 10)
        assert other(request) is other(request) is not request.session
        assert request.sessions is sessions
        return str(counts)

    app = make(view)

    assert [app.get("/").text for _ in range(2)] == ["(1, 10)", "(2, 20)"]
    assert (sessions.count(), others.count()) == (1, 1)


def test_two_factories_of_one_manager(make: Make, sessions: SessionManager) -> None:
    """They have one session: it is the manager's."""
    app = make(lambda request: str(SessionFactory(sessions)(request) is request.session))

    assert app.get("/").text == "True"


def test_a_response_callback_that_raises(make: Make) -> None:
    """The request has failed, so nothing of it is kept."""

    def breaks(request: Any, response: Any) -> None:
        raise ZeroDivisionError

    def view(request: Any) -> str:
        n = count(request)
        if request.path == "/breaks":
            request.add_response_callback(breaks)
        return n

    app = make(view)
    app.get("/")

    with pytest.raises(ZeroDivisionError):
        app.get("/breaks")
    assert app.get("/").text == "2"


def test_a_subscriber_may_rewrite_the_cookie(make: Make) -> None:
    """What it makes of it is not said again."""

    def rewrite(event: Any) -> None:
        lines = event.response.headers.getall("Set-Cookie")
        if lines:
            event.response.headers["Set-Cookie"] = f"{lines[0]}; Priority=High"

    app = make(count, configure=lambda config: config.add_subscriber(rewrite, NewResponse))

    (line,) = cookies(app.get("/"))

    assert line.endswith("; Priority=High")


def test_a_response_that_a_view_keeps(sessions: SessionManager) -> None:
    """It is answered to many; the cookie of one of them does not stay in it."""
    kept = Response("the same for all", content_type="text/plain")

    def view(request: Any) -> Response:
        if request.path == "/login":
            request.session.login("alice")
        return kept

    app = make_app(SessionFactory(sessions), view)

    alice = TestApp(app).get("/login")

    assert (alice.text, len(cookies(alice))) == ("the same for all", 1)
    assert cookies(TestApp(app).get("/")) == []


def test_headers_that_are_changed_after_the_view(sessions: SessionManager) -> None:
    """Each kind of them, in an answer that is one request's own."""
    kept = Response("the same for all", content_type="text/plain")
    kept.cache_control.max_age = 60

    def late(request: Any, response: Any) -> None:
        response.cache_control.no_transform = True
        response.content_type = "text/css"
        response.set_cookie("theme", "dark")
        response.vary = ("Accept",)

    def view(request: Any) -> Response:
        count(request)
        request.add_response_callback(late)
        return kept

    browser = TestApp(make_app(SessionFactory(sessions), view))
    first, second = browser.get("/"), browser.get("/")

    assert len(cookies(first)) == 2
    assert cookies(second) == ["theme=dark; Path=/"]
    assert second.headers["Cache-Control"] == "private, max-age=60, no-transform"
    assert second.headers.getall("Vary") == ["Accept", "Cookie"]
    assert (second.content_type, kept.content_type) == ("text/css", "text/plain")
    assert kept.headers["Cache-Control"] == "max-age=60"


def test_a_kept_response_after_a_failure() -> None:
    """The failure of one commit is not what all others are answered from then on."""
    down = [True]
    store = FlakyStore(MemoryStore(), lambda verb, _: Fault.UNAVAILABLE if down else None)
    kept = Response("the same for all", content_type="text/plain")
    factory = SessionFactory(SessionManager(store, clock=Clock()))
    browser = TestApp(make_app(factory, lambda request: count(request) and kept))

    assert browser.get("/", expect_errors=True).status_int == 503
    down.clear()

    assert browser.get("/").text == "the same for all"


def test_what_is_set_on_the_response_of_the_request(make: Make) -> None:
    """It is the one that is answered, until the head leaves."""

    def view(request: Any) -> Response:
        count(request)
        response = request.response
        request.add_response_callback(lambda *_: response.headers.update({"X-Late": "yes"}))
        return response

    assert make(view).get("/").headers["X-Late"] == "yes"


def test_whoever_keeps_transactions_sees_an_error_that_was_answered(
    sessions: SessionManager,
) -> None:
    """By `request.exc_info`, as where an exception view answered: a transaction is to be aborted.

    That is where packages such as pyramid_tm look for it.
    """
    seen: list[Any] = []

    def listen(event: Any) -> None:
        seen.append((event.request.exception, event.request.exc_info[1]))

    def view(request: Any) -> str:
        raise error

    error = Conflict("twice")
    app = make_app(
        SessionFactory(sessions),
        view,
        configure=lambda config: config.add_subscriber(listen, NewResponse),
    )

    assert TestApp(app).get("/", expect_errors=True).status_int == 409
    assert seen == [(error, error)]


@pytest.mark.parametrize("commit", [lambda config: None, lambda config: config.commit()])
@pytest.mark.parametrize("autocommit", [True, False])
def test_subscribers_that_come_late(
    sessions: SessionManager, autocommit: bool, commit: Callable[[Any], object]
) -> None:
    """After the configurator has committed what it had; they are told, and once."""
    told: list[Any] = []
    config = Configurator(autocommit=autocommit)
    config.include(SessionFactory(sessions).includeme)
    commit(config)
    config.add_subscriber(told.append, SessionCreated)
    config.add_route("home", "/")
    config.add_view(lambda request: Response(count(request)), route_name="home")

    TestApp(config.make_wsgi_app()).get("/")

    assert len(told) == 1


@pytest.mark.parametrize("prefix", ["auth.", "site.", ""])
def test_the_cookie_from_before_pyramids_remember(prefix: str) -> None:
    """Pyramid's helper keeps the user in the session: whoever knew the cookie is not logged in."""
    helper = SessionAuthenticationHelper(prefix=prefix)

    def view(request: Any) -> str:
        if request.path == "/login":
            helper.remember(request, "alice")
        request.session.setdefault("visited", True)
        return str(helper.authenticated_userid(request))

    sessions = SessionManager(grace=0, clock=Clock())
    app = make_app(SessionFactory(sessions), view)
    victim = TestApp(app)
    planted = {"Cookie": cookies(victim.get("/"))[0].partition(";")[0]}

    assert len(cookies(victim.get("/login"))) == 1
    assert cookies(victim.get("/login")) == []

    assert victim.get("/").text == "alice"
    assert TestApp(app).get("/", headers=planted).text == "None"


def test_other_keys_renew_nothing(make: Make) -> None:
    """A key that only sounds like that of Pyramid's helper is the application's own."""
    app = make(lambda request: request.session.update(chosen_userid=count(request)) or "")

    assert [len(cookies(app.get("/"))) for _ in range(2)] == [1, 0]


def test_messages_changed_in_place(make: Make) -> None:
    """Under the name of Pyramid's own queue as any other value."""
    steps: dict[str, View] = {
        "/first": lambda r: r.session.setdefault("_f_", []).append("one"),
        "/again": lambda r: r.session.setdefault("_f_", []).append("two"),
        "/item": lambda r: r.session["_f_"].append("three"),
        "/show": lambda r: r.session.peek_flash(),
    }
    app = make(lambda request: steps[request.path](request))

    for path in ("/first", "/again", "/item"):
        app.get(path)

    assert app.get("/show").text == "['one', 'two', 'three']"
