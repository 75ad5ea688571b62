"""Time left: the endpoint, in WSGI and ASGI, and the script."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import httpx
import pytest

from sojourn import SessionManager
from sojourn.errors import ConfigurationError
from sojourn.testing import Clock
from sojourn.web import asgi, wsgi
from sojourn.web.time_left import TimeLeft

from .conftest import Life, sid_of

SCRIPT = Path(__file__).parents[2] / "src" / "sojourn" / "web" / "time_left.js"


class Site:
    """The endpoint behind a middleware, and a browser."""

    def __init__(self, life: Life, colour: str, warn_before: float = 20) -> None:
        self.life = life
        time_left = TimeLeft(warn_before=warn_before)
        self.transport: Any
        if colour == "wsgi":
            app = wsgi.SessionMiddleware(time_left.wsgi, life.sessions)
            self.transport = httpx.WSGITransport(app=app)  # type: ignore[arg-type]
        else:
            self.transport = httpx.ASGITransport(
                asgi.SessionMiddleware(time_left.asgi, life.sessions)
            )

    def ask(self, method: str, path: str = "/session", **headers: str) -> httpx.Response:
        url = f"http://test{path}"
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(self.transport, httpx.WSGITransport):
            with httpx.Client(transport=self.transport) as client:
                return client.request(method, url, headers=names)

        async def main() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.transport) as client:
                return await client.request(method, url, headers=names)

        return asyncio.run(main())


@pytest.fixture(params=["wsgi", "asgi"])
def site(request: pytest.FixtureRequest, memory_life: Callable[..., Life]) -> Site:
    return Site(memory_life(lifetime=250), request.param)


def test_asking_extends_nothing(site: Site) -> None:
    """It tells what remains, when to warn, whether a user is logged in; and writes nothing."""
    life = site.life
    cookie = life.login()
    before = life.record(cookie)
    life.clock.advance(70.5)
    answer = site.ask("GET", cookie=cookie)

    assert answer.status_code == 200
    assert answer.json() == {"remaining": 29, "warn": 20, "user": True, "stay": True}
    assert answer.headers["content-type"] == "application/json"
    assert "no-store" in answer.headers["cache-control"]
    assert "set-cookie" not in answer.headers
    assert life.record(cookie) == before
    assert site.ask("GET", cookie=life.login(None)).json()["user"] is False
    assert site.ask("HEAD", cookie=cookie).content == b""
    life.clock.advance(29.5)
    assert not life.alive(cookie)


def test_without_a_session(site: Site) -> None:
    """Whoever has none, or had one, gets 0, and none is made."""
    nothing = {"remaining": 0, "warn": 20, "user": False, "stay": False}
    cookie = site.life.login()
    site.life.do("end", sid_of(cookie))
    for headers in ({}, {"cookie": cookie}, {"cookie": "id=nonsense"}):
        answer = site.ask("GET", **headers)
        assert answer.json() == nothing
        assert "set-cookie" not in answer.headers


def test_staying(site: Site) -> None:
    """A POST with the form token of the session extends it, at once; no other request does."""
    life = site.life
    cookie = life.login()
    token = life.open(cookie).csrf_token
    life.clock.advance(90)
    for given in ("", "x" * 86, life.open(life.login()).csrf_token):
        assert site.ask("POST", cookie=cookie, x_csrf_token=given).status_code == 403
    assert site.ask("POST", x_csrf_token=token).status_code == 403
    answer = site.ask("PUT", cookie=cookie, x_csrf_token=token)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")
    answer = site.ask("POST", cookie=cookie, x_csrf_token=token)
    assert (answer.status_code, answer.content) == (204, b"")

    assert site.ask("GET", cookie=cookie).json()["remaining"] == 100
    # Sooner than a mere use would be written.
    life.clock.advance(3)
    site.ask("POST", cookie=cookie, x_csrf_token=token)
    assert site.ask("GET", cookie=cookie).json()["remaining"] == 100


def test_staying_that_would_not_help(site: Site) -> None:
    """Where the lifetime is what ends it, nobody is asked whether to stay."""
    life = site.life
    cookie = life.login()
    for _ in range(2):
        life.clock.advance(80)
        assert site.ask("GET", cookie=cookie).json()["stay"] is True
        site.ask("POST", cookie=cookie, x_csrf_token=life.open(cookie).csrf_token)
    life.clock.advance(80)
    answer = site.ask("GET", cookie=cookie)

    assert answer.json() == {"remaining": 10, "warn": 20, "user": True, "stay": False}


def test_sessions_shorter_than_the_warning(site: Site) -> None:
    """A session with a limit of its own is warned of when half of it is over, not all the time."""
    life = site.life
    cookie = life.login()
    session = life.open(cookie)
    session.idle_timeout = 30
    life.commit(session)

    assert site.ask("GET", cookie=cookie).json()["warn"] == 15


def test_limits_of_one_kind_only(memory_life: Callable[..., Life]) -> None:
    """Without an idle timeout use extends nothing; without a lifetime it always does."""
    for limits, stay in (
        ({"idle_timeout": None, "lifetime": 50}, False),
        ({"idle_timeout": 50, "lifetime": None}, True),
    ):
        site = Site(memory_life(**limits), "wsgi")
        assert site.ask("GET", cookie=site.life.login()).json()["stay"] is stay


def test_the_script(site: Site) -> None:
    """It is served below the mount, for caches, without looking at the session; at most 1 KB."""
    answer = site.ask("GET", "/session/time_left.js", cookie=site.life.login())

    assert answer.content == SCRIPT.read_bytes()
    assert len(answer.content) <= 1024
    assert answer.headers["content-type"].startswith("text/javascript")
    assert answer.headers["cache-control"] == "max-age=86400"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "vary" not in answer.headers
    # Nothing that a strict Content-Security-Policy refuses.
    text = answer.text
    assert not any(word in text for word in ("eval", "innerHTML", "style", "Function(", "<"))


def test_what_cannot_be() -> None:
    """A warning at no time, and a mount outside of the middleware."""
    with pytest.raises(ConfigurationError, match="warn_before"):
        TimeLeft(warn_before=0)
    with pytest.raises(ConfigurationError, match="inside of SessionMiddleware"):
        TimeLeft().wsgi({"REQUEST_METHOD": "GET"}, lambda *_: None)  # type: ignore[arg-type, return-value]


# In a browser.

PAGE = """<!doctype html><html lang="en"><title>Time</title><button id="page">page</button>
<script defer src="/session/time_left.js" data-url="/session" data-csrf="{token}"
 data-warn="You will be signed out in {{}} min." data-over="You were signed out."
 data-stay="Stay signed in" data-close="Close"></script></html>"""
POLICY = "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self'"


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, clock: Clock) -> Iterator[tuple[str, SessionManager]]:
    sessions = SessionManager(f"sqlite:///{tmp_path}/s.db", idle_timeout=100, clock=clock)
    time_left = TimeLeft(warn_before=60)

    def app(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"].startswith("/session"):
            return time_left.wsgi(environ, start_response)
        session = environ["sojourn.session"]
        if session.user is None and environ["PATH_INFO"] == "/login":
            session.login("alice")
        headers = [("Content-Type", "text/html"), ("Content-Security-Policy", POLICY)]
        body = PAGE.format(token=session.csrf_token).encode()
        start_response("200 OK", headers)
        return [body]

    server = make_server(
        "127.0.0.1", 0, wsgi.SessionMiddleware(app, sessions), handler_class=_Quiet
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sessions
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        sessions.close()


@pytest.mark.browser
def test_in_a_browser(
    served: tuple[str, SessionManager],
    clock: Clock,
    server_or_skip: Callable[[str, str], str],
    tmp_path: Path,
) -> None:
    """It warns before the end, by keyboard one stays or goes on; and it says when it is over."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    options = ChromeOptions()
    options.binary_location = server_or_skip("browser", "chromium")
    for option in "--no-sandbox --headless=new --disable-gpu --no-first-run".split():
        options.add_argument(option)
    options.add_argument(f"--user-data-dir={tmp_path}/profile")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    url, sessions = served
    chrome = Chrome(options=options, service=Service(server_or_skip("browser", "chromedriver")))
    try:

        def until(condition: Callable[[], Any]) -> None:
            WebDriverWait(chrome, 20, poll_frequency=0.05).until(lambda _: condition())

        def dialog() -> Any:
            return chrome.find_element(By.CSS_SELECTOR, "dialog")

        def look() -> None:
            # What a browser fires when the page is seen again; else the script waits for minutes.
            chrome.execute_script("document.dispatchEvent(new Event('visibilitychange'))")

        chrome.get(f"{url}/login")
        until(lambda: chrome.find_elements(By.CSS_SELECTOR, "dialog"))
        assert not dialog().is_displayed()
        clock.advance(50)
        look()
        until(lambda: dialog().is_displayed())
        assert dialog().get_attribute("role") == "alertdialog"
        assert dialog().accessible_name == "You will be signed out in 1 min."
        assert chrome.switch_to.active_element.text == "Stay signed in"
        chrome.switch_to.active_element.send_keys(Keys.ENTER)
        until(lambda: not dialog().is_displayed())
        (device,) = sessions.of_user("alice")
        assert device.seen == clock()
        clock.advance(50)
        look()
        until(lambda: dialog().is_displayed())
        chrome.switch_to.active_element.send_keys(Keys.ESCAPE)
        until(lambda: not dialog().is_displayed())
        # It was heard, and does not insist.
        look()
        clock.advance(50)
        look()
        until(lambda: dialog().is_displayed())
        assert dialog().accessible_name == "You were signed out."
        assert [
            button.text
            for button in dialog().find_elements(By.TAG_NAME, "button")
            if button.is_displayed()
        ] == ["Close"]
        chrome.switch_to.active_element.send_keys(Keys.ENTER)
        until(lambda: not dialog().is_displayed())
        complaints = [one["message"] for one in chrome.get_log("browser")]  # type: ignore[no-untyped-call]
        assert [one for one in complaints if "favicon" not in one] == []
    finally:
        chrome.quit()
