"""Form tokens: by Pyramid's default policy, and by ours."""

from __future__ import annotations

from typing import Any

import pytest
from pyramid.csrf import get_csrf_token, new_csrf_token
from pyramid.testing import DummyRequest
from webtest import TestApp

from sojourn import SessionManager
from sojourn.testing import Clock
from sojourn.web.pyramid import CSRFStoragePolicy, SessionFactory

from .apps import make_app


def site(ours: bool) -> tuple[TestApp, SessionManager]:
    """A site whose forms are checked by Pyramid itself."""
    sessions = SessionManager(clock=Clock())

    def view(request: Any) -> Any:
        if request.path == "/new":
            return new_csrf_token(request)
        if request.path == "/login":
            request.session.login("alice")
        if request.path == "/core":
            return request.session.csrf_token
        if request.path == "/logout":
            request.session.invalidate()
            return ""
        return get_csrf_token(request) if request.method == "GET" else "taken"

    def configure(config: Any) -> None:
        config.set_default_csrf_options(require_csrf=True)
        if ours:
            config.set_csrf_storage_policy(CSRFStoragePolicy())

    return TestApp(make_app(SessionFactory(sessions), view, configure=configure)), sessions


def status(browser: TestApp, token: str) -> int:
    answer = browser.post("/", {"csrf_token": token}, expect_errors=True)
    return int(answer.status_int)


@pytest.fixture(params=["ours", "pyramid's"])
def browser(request: pytest.FixtureRequest) -> TestApp:
    return site(request.param == "ours")[0]


def test_a_form(browser: TestApp) -> None:
    """A token of this session is taken, in the form or in the header; others are not."""
    token = browser.get("/").text
    assert status(browser, token) == 200
    assert browser.post("/", headers={"X-CSRF-Token": token}).text == "taken"
    assert status(browser, browser.get("/").text) == 200
    for bad in ("", "x", "é" * 86, token[:-4] + "AAAA", token.lower()):
        assert status(browser, bad) == 400


@pytest.mark.parametrize("after", ["/new", "/login", "/logout"])
def test_tokens_from_before(browser: TestApp, after: str) -> None:
    """A new token, a login, a logout: those from before are refused, those after are taken."""
    before = browser.get("/").text
    made = browser.get(after).text

    assert status(browser, before) == 400
    token = browser.get("/").text
    assert status(browser, token) == 200
    if after == "/new":
        assert status(browser, made) == 200


def test_of_another_session(browser: TestApp) -> None:
    """A token of one visitor is nothing to another."""
    token = browser.get("/").text
    other = TestApp(browser.app)
    other.get("/")

    assert status(other, token) == 400


def test_a_token_is_made_once_in_a_session() -> None:
    """Two pages that ask for the first one at once get the same, so both forms are taken."""
    sessions = SessionManager(clock=Clock())
    first = sessions.session()
    first["a"] = 1
    cookie = {"HTTP_COOKIE": f"id={sessions.commit(first).token}"}
    made = []
    for _ in range(2):
        session = SessionFactory(sessions)(DummyRequest(environ=cookie))
        made.append((session, session.get_csrf_token()))
    for session, _ in made:
        sessions.commit(session)

    assert made[0][1] == made[1][1]
    made[0][0].check_csrf(made[0][1])


def test_ours_is_masked_and_needs_no_write() -> None:
    """Another text on each page; nothing is written for a session that is there."""
    browser, sessions = site(ours=True)
    browser.get("/")
    written = sessions.counters["written"]

    texts = {browser.get("/").text for _ in range(4)}

    assert len(texts) == 4
    assert sessions.counters["written"] == written


def test_ours_is_that_of_the_core() -> None:
    """`session.csrf_token` is taken, as in a page of another framework, or by `TimeLeft`."""
    browser, _ = site(ours=True)

    assert status(browser, browser.get("/core").text) == 200


def test_a_form_from_before_the_policy_was_changed() -> None:
    """What Pyramid's policy put into a form is taken by ours, until a new token is made."""
    policy = CSRFStoragePolicy()
    sessions = SessionManager(clock=Clock())
    request = DummyRequest()
    request.session = session = SessionFactory(sessions)(DummyRequest())
    session["_csrft_"] = "0123456789abcdef0123456789abcdef01234567"

    assert policy.check_csrf_token(request, "0123456789abcdef0123456789abcdef01234567")
    for bad in ("", "0", "é", None):
        assert not policy.check_csrf_token(request, bad)  # type: ignore[arg-type]
    policy.new_csrf_token(request)
    assert not policy.check_csrf_token(request, "0123456789abcdef0123456789abcdef01234567")
