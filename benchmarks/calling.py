"""Applications called in this process, as a server would call them, without a socket.

One function for each protocol calls an application once for each visitor and times that. What the
harness itself needs (a fresh environment for each request) is made before the clock starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any, NamedTuple

from benchmarks.scenarios import Action

__all__ = [
    "VALUE",
    "Called",
    "asgi_app",
    "call_asgi",
    "call_wsgi",
    "cookie_header",
    "runner",
    "wsgi_app",
]

VALUE = "bench.value"
"""The key in environment or scope of what the application is to store."""
_AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
_ENVIRON = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/",
    "QUERY_STRING": "",
    "SERVER_NAME": "www.example",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "192.0.2.7",
    "HTTP_HOST": "www.example",
    "HTTP_USER_AGENT": _AGENT,
    "HTTP_ACCEPT": "text/html,*/*;q=0.8",
    "HTTP_ACCEPT_LANGUAGE": "en",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.input": None,
    "wsgi.errors": None,
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
}
_SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/",
    "raw_path": b"/",
    "query_string": b"",
    "root_path": "",
    "client": ("192.0.2.7", 40000),
    "server": ("www.example", 80),
}
_HEADERS = [
    (b"host", b"www.example"),
    (b"user-agent", _AGENT.encode()),
    (b"accept", b"text/html,*/*;q=0.8"),
    (b"accept-language", b"en"),
]

runner = asyncio.Runner()
"""The one event loop of all."""


class Called(NamedTuple):
    """What came of calling an application once for each visitor."""

    seconds: float
    bodies: list[bytes]
    cookies: list[str]
    """Of each answer `name=value` of the first cookie that it set; empty: none."""


def cookie_header(cookie: str) -> str:
    """Return a Cookie header as browsers send it: other cookies come along."""
    others = "consent=yes; _ga=GA1.1.1234567890.1700000000"
    return f"{others}; {cookie}" if cookie else others


def _first_cookie(head: Any) -> str:
    for name, value in head:
        if isinstance(name, bytes):
            name, value = name.decode("latin-1"), value.decode("latin-1")
        if name.lower() == "set-cookie":
            return str(value).partition(";")[0]
    return ""


def call_wsgi(app: Any, cookies: Sequence[str], values: Sequence[Any]) -> Called:
    """Call a WSGI application once for each visitor."""
    environs = [
        {**_ENVIRON, "HTTP_COOKIE": cookie_header(cookie), VALUE: value}
        for cookie, value in zip(cookies, values, strict=True)
    ]
    heads: list[list[tuple[str, str]]] = []
    bodies: list[bytes] = []
    write = bodies.append

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        heads.append(headers)
        return write

    start = perf_counter()
    for environ in environs:
        result = app(environ, start_response)
        for chunk in result:
            write(chunk)
        close = getattr(result, "close", None)
        if close is not None:
            close()
    seconds = perf_counter() - start
    return Called(seconds, bodies, [_first_cookie(head) for head in heads])


def call_asgi(app: Any, cookies: Sequence[str], values: Sequence[Any]) -> Called:
    """Call an ASGI application once for each visitor."""
    return runner.run(_call_asgi(app, cookies, values))


async def _call_asgi(app: Any, cookies: Sequence[str], values: Sequence[Any]) -> Called:
    scopes = [
        {
            **_SCOPE,
            "headers": [*_HEADERS, (b"cookie", cookie_header(cookie).encode())],
            VALUE: value,
        }
        for cookie, value in zip(cookies, values, strict=True)
    ]
    heads: list[Any] = []
    bodies: list[bytes] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            heads.append(message["headers"])
        else:
            bodies.append(message["body"])

    start = perf_counter()
    for scope in scopes:
        await app(scope, receive, send)
    seconds = perf_counter() - start
    return Called(seconds, bodies, [_first_cookie(head) for head in heads])


# The application, the same for every layer that wraps one; without an action it is the bare one.


def wsgi_app(key: str, action: Action | None) -> Any:
    """Return a WSGI application that does the action with the session under that key."""

    def bare(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "16")])
        return [b"untouched"]

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        body = action(environ[key], environ[VALUE])  # type: ignore[misc]
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "16")])
        return [body.encode()]

    return bare if action is None else app


def asgi_app(key: str, action: Action | None) -> Any:
    """Return an ASGI application that does the action with the session under that key."""
    start_message = "http.response.start"
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"16")]

    async def bare(
        scope: dict[str, Any], receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        await send({"type": start_message, "status": 200, "headers": [*headers]})
        await send({"type": "http.response.body", "body": b"untouched"})

    async def app(
        scope: dict[str, Any], receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        body = action(scope[key], scope[VALUE])  # type: ignore[misc]
        await send({"type": start_message, "status": 200, "headers": [*headers]})
        await send({"type": "http.response.body", "body": body.encode()})

    return bare if action is None else app
