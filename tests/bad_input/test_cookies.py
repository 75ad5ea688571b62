"""Anything at all in the Cookie header, over sockets and in process: at worst a new visitor."""

from __future__ import annotations

import logging
import os
import random
import socket
from collections.abc import Callable
from typing import Any

import pytest

from sojourn.core.session import Session
from sojourn.core.token import Token, new_secret, new_sid
from sojourn.manager import SessionManager
from sojourn.stores.memory import MemoryStore
from sojourn.testing import RecordingStore
from sojourn.web import asgi, wsgi

from ..web.kit import SITES, Site
from ..web.serving import uvicorn, waitress

MANY = 2000 * (10 if os.environ.get("SOJOURN_SOAK") else 1)
MAX_LINE = 7000


@pytest.fixture(params=SITES)
def site(request: pytest.FixtureRequest) -> Site:
    """One site of each colour."""
    return SITES[request.param]()


def show(session: Session) -> str:
    return str(session.get("a"))


def a_token() -> str:
    return str(Token(new_sid(os.urandom), new_secret(os.urandom)))


def serve_wsgi(sessions: SessionManager) -> Any:
    def app(env: Any, start: Any) -> list[bytes]:
        value = show(env[wsgi.KEY])
        start("200 OK", [("Content-Type", "text/plain")])
        return [value.encode()]

    return waitress(wsgi.SessionMiddleware(app, sessions))


def serve_asgi(sessions: SessionManager) -> Any:
    async def app(connection: Any, receive: Any, send: Any) -> None:
        value = show(connection[asgi.KEY])
        headers = [(b"content-length", str(len(value)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": value.encode()})

    return uvicorn(asgi.SessionMiddleware(app, sessions))


SERVERS: dict[str, Callable[[SessionManager], Any]] = {
    "waitress": serve_wsgi,
    "uvicorn": serve_asgi,
}


class Wire:
    """A connection on which any bytes can be sent; opened anew where the server closed it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.socket: socket.socket | None = None

    def ask(self, *cookies: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer to a request with those Cookie headers."""
        lines = b"".join(b"Cookie: " + cookie + b"\r\n" for cookie in cookies)
        request = b"GET / HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n"
        for _ in range(3):
            if self.socket is None:
                self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=10)
            try:
                self.socket.sendall(request)
                answer = self._read(self.socket)
            except OSError:
                answer = b""
            head, _, body = answer.partition(b"\r\n\r\n")
            if b"connection: close" in head.lower() or not answer:
                self.close()
            if answer:
                return int(head[9:12]), body
        raise AssertionError(f"no answer to {cookies!r}")

    def _read(self, connection: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            part = connection.recv(65536)
            if not part:
                return data
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        while len(body) < length:
            part = connection.recv(65536)
            if not part:
                break
            body += part
        return head + b"\r\n\r\n" + body

    def close(self) -> None:
        """Close it."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def junk(chance: random.Random, token: str) -> bytes:
    """Return the value of a Cookie header: something between noise and nearly a token."""
    kind = chance.randrange(8)
    raw = bytearray(token.encode())
    if kind == 0:
        return bytes(chance.randrange(256) for _ in range(chance.randrange(200)))
    if kind == 1:
        raw[chance.randrange(len(raw))] = chance.randrange(256)
        return b"id=" + raw
    if kind == 2:
        return b"id=" + raw[: chance.randrange(len(raw))]
    if kind == 3:
        return b"; ".join(b"id=" + os.urandom(chance.randrange(80)) for _ in range(5))
    if kind == 4:
        return bytes(
            chance.choice(b'id=;, "\\\t\x80\xff.-_AQ') for _ in range(chance.randrange(400))
        )
    if kind == 5:
        return b"id=" + bytes(chance.choice(b"AQgw-_.") for _ in range(66))
    if kind == 6:
        return b"id=" + b"x" * chance.randrange(MAX_LINE)
    return b"id=" + raw + bytes([chance.randrange(256)])


@pytest.mark.parametrize("server", SERVERS)
def test_any_bytes_over_a_socket(server: str, caplog: pytest.LogCaptureFixture) -> None:
    """2,000 requests with any bytes in the Cookie header: no 5xx, no session, no log line.

    A server may refuse bytes that HTTP forbids with a 4xx of its own. With SOJOURN_SOAK set: ten
    times as many.
    """
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    store = RecordingStore(MemoryStore())
    sessions = SessionManager(store)
    new = sessions.session()
    new["a"] = "kept"
    token = str(sessions.commit(new).token)
    seen = set()
    with SERVERS[server](sessions) as port:
        wire = Wire(port)
        for _ in range(MANY):
            line = junk(chance, token)
            line = line.replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"")
            twice = chance.random() < 0.1
            status, body = wire.ask(*([line, line[::-1]] if twice else [line]))
            seen.add(status)
            assert status < 500, (seed, line)
            if status == 200:
                pairs = [pair.strip(b" \t") for pair in line.split(b";")]
                expected = b"kept" if b"id=" + token.encode() in pairs else b"None"
                # Two headers are joined by some servers with a comma, which parts no cookies.
                assert body == expected or (twice and body == b"None"), (seed, line)
        # It still serves.
        assert wire.ask(b"id=" + token.encode()) == (200, b"kept")
        wire.close()
    assert 200 in seen
    assert store.count(status=None) == 1
    assert [one for one in caplog.records if one.levelno >= logging.ERROR] == []


def test_random_tokens(site: Site) -> None:
    """10,000 well-formed tokens that nobody made: one look-up each, nothing is kept or set."""
    handler = show
    sessions = site.sessions
    for number in range(10_000):
        if number % 100 == 0:
            answer = site.request(handler, cookie=f"id={a_token()}")
            assert answer.body == b"None"
            assert answer.all("Set-Cookie") == []
            continue
        session = sessions.session(f"id={a_token()}")
        assert session.get("a") is None
        assert sessions.commit(session).token is None
    verbs = site.verbs

    assert verbs == ["load"] * 10_000
    assert site.store.count(status=None) == 0


def test_malformed_tokens(site: Site) -> None:
    """What is not spelt as we spell tokens costs no look-up at all."""
    chance = random.Random(1)
    token = a_token()
    for _ in range(10_000):
        wrong = list(token)
        wrong[chance.randrange(len(wrong))] = chance.choice("!/+=%~ \x80é\0,")
        session = site.sessions.session("id=" + "".join(wrong))
        assert len(session) == 0
    for other in (token[:-1], token + "A", token.replace(".", ""), "", ".", f'"{token}"'):
        assert site.request(show, cookie=f"id={other}").body == b"None"

    assert site.verbs == []


def test_right_sid_wrong_secret(site: Site) -> None:
    """Knowing the public half helps nobody, and harms nobody."""
    token = site.visit(lambda session: session.update(a=1)).token
    for _ in range(50):
        wrong = f"id={token[:23]}{new_secret(os.urandom)}"
        answer = site.request(lambda session: [session.get("a"), session.is_new], cookie=wrong)
        assert answer.body == b"[None, True]"
        answer = site.request(lambda session: session.end(), cookie=wrong)
        assert answer.status == 200

    assert site.sessions.counters["refused"] == 100
    assert site.visit(show).body == b"1"


def test_writing_with_a_wrong_secret(site: Site) -> None:
    """A visitor with such a cookie gets a session of his own, under another sid."""
    token = site.visit(lambda session: session.update(a=1)).token
    answer = site.request(
        lambda session: session.update(a=2), cookie=f"id={token[:23]}{new_secret(os.urandom)}"
    )

    assert answer.token[:22] != token[:22]
    assert site.visit(show).body == b"1"


@pytest.mark.parametrize("size", [4096, 8192, 65_000, 200_000])
def test_large_cookies(site: Site, size: int) -> None:
    """A cookie of any size is no session; beside one of ours it takes nothing away."""
    site.visit(lambda session: session.update(a=1))

    assert site.request(show, cookie="id=" + "A" * size).body == b"None"
    beside = site.request(show, cookie=f"big={'A' * size}; {site.cookie}")
    # Above 64 KiB the header is not looked at; no server passes on as much.
    assert beside.body == (b"1" if size < 64 * 1024 else b"None")


def test_two_session_cookies(site: Site) -> None:
    """Two live ones count as none; of a live and a dead one the live one counts."""
    one = site.request(lambda session: session.update(a=1)).token
    two = site.request(lambda session: session.update(a=2)).token
    site.sessions.end(two[:22])

    assert site.request(show, cookie=f"id={one}; id={two}").body == b"1"
    three = site.request(lambda session: session.update(a=3)).token
    for cookie in (f"id={one}; id={three}", f"id={three}; id={one}"):
        assert site.request(show, cookie=cookie).body == b"None"
