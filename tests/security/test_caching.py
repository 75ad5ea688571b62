"""P1 to P6 and X1: what caches, browsers, logs and forms get to see."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from zlib import crc32

import pytest

from sojourn.core.session import Session
from sojourn.errors import CsrfError
from sojourn.manager import SessionManager
from sojourn.testing import Clock
from sojourn.web.asgi import SessionMiddleware as AsgiMiddleware
from sojourn.web.wsgi import KEY, SessionMiddleware

from ..web.kit import Site
from ..web.serving import uvicorn, waitress
from ..web.test_both import USES

SOAK = bool(os.environ.get("SOJOURN_SOAK"))
MakeSite = Callable[..., Site]
Stored = tuple[list[tuple[str, str]], int, list[tuple[str, str]], bytes]


class CachingProxy(ThreadingHTTPServer):
    """A shared cache in front of a site: keeps what RFC 9111 lets it keep, for as long as it likes.

    It takes an answer without Cache-Control for fresh, as heuristics may.
    """

    daemon_threads = True

    def __init__(self, origin: int) -> None:
        super().__init__(("127.0.0.1", 0), Relay)
        self.origin = origin
        self.kept: dict[str, list[Stored]] = {}
        self.hits = 0


class Relay(BaseHTTPRequestHandler):
    """One request to the proxy."""

    server: CachingProxy

    def do_GET(self) -> None:
        """Answer from the cache, or ask the origin."""
        for asked, status, headers, body in self.server.kept.get(self.path, ()):
            if all(self.headers.get(name, "") == value for name, value in asked):
                self.server.hits += 1
                self.answer(status, headers, body)
                return
        origin = HTTPConnection("127.0.0.1", self.server.origin, timeout=10)
        origin.request("GET", self.path, headers=dict(self.headers))
        found = origin.getresponse()
        body, headers = found.read(), found.getheaders()
        origin.close()
        control = ",".join(value for name, value in headers if name.lower() == "cache-control")
        vary = ",".join(value for name, value in headers if name.lower() == "vary")
        directives = {part.strip().partition("=")[0].lower() for part in control.split(",")}
        if not directives & {"private", "no-store", "no-cache"} and "*" not in vary:
            asked = [(one.strip(), self.headers.get(one.strip(), "")) for one in vary.split(",")]
            asked = [(name, value) for name, value in asked if name]
            self.server.kept.setdefault(self.path, []).append((asked, found.status, headers, body))
        self.answer(found.status, headers, body)

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Send an answer to the client."""
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


HEADERS = [
    [],
    [("Cache-Control", "public, max-age=600")],
    [("Cache-Control", "s-maxage=600"), ("CDN-Cache-Control", "max-age=600")],
    [("Vary", "X-Cookie-Consent"), ("Cache-Control", "max-age=60")],
    [("Vary", "Accept")],
]


def page(session: Session, path: str) -> str:
    """Return a page; its path names what it does with the session."""
    kind = path.split("/")[1]
    if kind == "plain":
        return "the same for all"
    if kind == "login":
        session.login(path.rpartition("/")[2])
    elif kind == "new":
        session["x"] = 1
        return f"made for {session.user}"
    elif kind == "in":
        return f"hello {session.user}" if "x" in session else f"hello {session.user}, no x"
    return f"hello {session.user}"


def serve_wsgi(sessions: SessionManager) -> Any:
    def app(env: Any, start: Any) -> list[bytes]:
        path = env["PATH_INFO"]
        body = page(env[KEY], path).encode()
        start(
            "200 OK",
            [("Content-Type", "text/plain"), *HEADERS[crc32(path.encode()) % len(HEADERS)]],
        )
        return [body]

    return waitress(SessionMiddleware(app, sessions), threads=2)


def serve_asgi(sessions: SessionManager) -> Any:
    async def app(connection: Any, receive: Any, send: Any) -> None:
        path = connection["path"]
        body = page(connection["session"], path).encode()
        extra = HEADERS[crc32(path.encode()) % len(HEADERS)]
        raw = [(name.lower().encode(), value.encode()) for name, value in extra]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        await send({"type": "http.response.body", "body": body})

    return uvicorn(AsgiMiddleware(app, sessions))


@pytest.fixture
def proxy_before() -> Iterator[Callable[[int], CachingProxy]]:
    """Start caching proxies."""
    running: list[tuple[CachingProxy, threading.Thread]] = []

    def start(origin: int) -> CachingProxy:
        proxy = CachingProxy(origin)
        thread = threading.Thread(target=proxy.serve_forever, args=(0.02,))
        thread.start()
        running.append((proxy, thread))
        return proxy

    yield start
    for proxy, thread in running:
        proxy.shutdown()
        thread.join(10)
        proxy.server_close()


@pytest.mark.parametrize("serve", [serve_wsgi, serve_asgi], ids=["wsgi", "asgi"])
def test_P1_behind_a_caching_proxy(serve: Any, proxy_before: Any) -> None:
    """Two users and a stranger, 600 requests (with SOJOURN_SOAK 10,000): 0 foreign bodies.

    The application marks its pages as public in various ways; the proxy keeps what it may.
    """
    with serve(SessionManager()) as origin:
        proxy = proxy_before(origin)
        client = HTTPConnection("127.0.0.1", proxy.server_port, timeout=10)
        cookies = {"alice": "", "bob": "", "None": ""}

        def get(user: str, path: str) -> str:
            client.request("GET", path, headers={"Cookie": cookies[user]} if cookies[user] else {})
            answer = client.getresponse()
            body = answer.read().decode()
            line = answer.getheader("Set-Cookie")
            if user == "None":
                return body
            if line:
                cookies[user] = line.partition(";")[0]
            return body

        for user in ("alice", "bob"):
            get(user, f"/login/{user}")
        assert cookies["alice"] != cookies["bob"]
        for number in range(10_000 if SOAK else 600):
            user = ("alice", "bob", "None")[number * 7 % 3]
            kind = ("page", "in", "plain", "new", "peek")[number // 3 % 5]
            body = get(user, f"/{kind}/{number // 15 % 10}")
            if kind == "plain":
                assert body == "the same for all"
            else:
                assert body.partition(",")[0].split()[-1] == user, (number, kind)
        client.close()
    # The proxy did keep what it may: otherwise this would show nothing.
    assert proxy.hits > 50


@pytest.mark.parametrize("use", sorted(USES))
def test_P2_every_use_is_marked(site: Site, use: str) -> None:
    """Also over https, and for a visitor without a cookie (with one: tests/web/test_both.py)."""

    def handler(session: Session) -> str:
        try:
            USES[use](session)
        except KeyError:
            pass
        return ""

    answer = site.request(handler, https=True, headers=[("Cache-Control", "public")])

    assert "Cookie" in answer.all("Vary")
    assert "private" in (answer.one("Cache-Control") or "")


def test_P3_clear_site_data(site: Site) -> None:
    """At a logout over https: cookies and storage; not the cache, which takes browsers seconds."""
    site.visit(lambda session: session.login("alice"), https=True)
    answer = site.visit(lambda session: session.logout(), https=True)

    assert answer.one("Clear-Site-Data") == '"cookies", "storage"'


def test_P4_logs_hold_no_secret(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture, no_secret_is_logged: list[str]
) -> None:
    """A visit with everything that is ever logged, at the finest level: sids only.

    The same is looked for at the end of every test in tests/web, tests/security, tests/bad_input.
    """
    caplog.set_level(logging.DEBUG)
    site = make_site(on_theft="end")
    site.sessions.on_created(lambda session: None)
    site.sessions.on_ended(lambda session, reason: 1 / 0)
    for use in USES.values():
        for cookie in ("", site.cookie, site.cookie + "A"):
            try:
                site.visit(use, cookie=cookie)
            except KeyError:
                pass
    site.visit(lambda session: session.login("alice"))
    old = site.cookie
    site.visit(lambda session: session.renew())
    site.clock.advance(11)
    site.visit(lambda session: session.user, cookie=old)
    site.visit(lambda session: session.user, cookie=f"{old}; {site.cookie}")

    assert len(no_secret_is_logged) > 20
    assert old[3:25] in caplog.text
    for secret in no_secret_is_logged:
        assert secret not in caplog.text


def test_P5_events(make_site: MakeSite) -> None:
    """Each of them is told once: made, renewed, used after a renewal, ended, refused."""
    site = make_site()
    told: list[str] = []
    site.sessions.on_created(lambda session: told.append("created"))
    site.sessions.on_renewed(lambda session: told.append("renewed"))
    site.sessions.on_suspicious(lambda session: told.append("suspicious"))
    site.sessions.on_ended(lambda session, reason: told.append(reason))
    site.visit(lambda session: session.update(a=1))
    old = site.cookie
    site.visit(lambda session: session.renew())
    site.clock.advance(11)
    site.request(lambda session: session.get("a"), cookie=old)
    site.visit(lambda session: session.logout())
    site.request(lambda session: session.get("a"), cookie=f"id={old[3:25]}.{'A' * 43}")

    assert told == ["created", "renewed", "suspicious", "user"]
    counters = site.sessions.counters
    assert [counters[one] for one in ("created", "renewed", "suspicious", "ended")] == [1] * 4


def test_P6_fails_closed(make_site: MakeSite) -> None:
    """Without a store nobody is logged in: 503, or by choice a page for strangers."""
    from sojourn.stores.memory import MemoryStore
    from sojourn.testing import Fault, FlakyStore

    memory = MemoryStore()
    down = FlakyStore(memory, lambda verb, _: Fault.UNAVAILABLE if verb == "load" else None)
    for policy, expected in (("raise", (503, False)), ("continue", (200, False))):
        up = make_site(memory)
        up.visit(lambda session: session.login("alice"))
        site = make_site(down, on_store_error=policy)
        answer = site.request(lambda session: session.user, cookie=up.cookie)
        assert (answer.status, b"alice" in answer.body) == expected


def test_X1_form_tokens() -> None:
    """A form token of another session is refused; it survives a renewal, and not a login."""
    sessions = SessionManager(clock=Clock())
    one, two = sessions.session(), sessions.session()
    token, other = one.csrf_token, two.csrf_token
    cookie = f"id={sessions.commit(one).token}"
    sessions.commit(two)

    one = sessions.session(cookie)
    one.check_csrf(token)
    one.check_csrf(one.csrf_token)
    for wrong in (other, "", None, token[:-1], token.upper(), 5, b"x", "x" * 86, token + "A"):
        with pytest.raises(CsrfError):
            one.check_csrf(wrong)
    one.renew()
    cookie = f"id={sessions.commit(one).token}"
    one = sessions.session(cookie)
    one.check_csrf(token)
    one.login("alice")
    with pytest.raises(CsrfError):
        one.check_csrf(token)
    one.check_csrf(one.csrf_token)
