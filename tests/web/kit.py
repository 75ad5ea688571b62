"""A server's side of WSGI and ASGI, small and strict, that tells what happened in which order."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.validate import validator

import msgspec

from sojourn.core.session import Session
from sojourn.manager import SessionManager
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Clock, RecordingStore
from sojourn.web import asgi, wsgi

Headers = list[tuple[str, str]]
Handler = Callable[[Session], Any]


class Answer(msgspec.Struct):
    """What a client got."""

    status: int
    headers: Headers
    body: bytes = b""

    def all(self, name: str) -> list[str]:
        """Return the values of all header lines of that name."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def one(self, name: str) -> str | None:
        """Return the value of the only such line; None where there is none."""
        values = self.all(name)
        assert len(values) < 2, values
        return values[0] if values else None

    @property
    def token(self) -> str:
        """The value of the session cookie that it sets; empty where it sets none."""
        for line in self.all("Set-Cookie"):
            name, _, rest = line.partition("=")
            if name in ("id", "__Host-id", "__Secure-id"):
                return rest.partition(";")[0]
        return ""


def environ(
    *, cookie: str = "", path: str = "/", https: bool = False, method: str = "GET", **more: Any
) -> dict[str, Any]:
    """Return the environment of a WSGI request."""
    made: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "443" if https else "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.7",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https" if https else "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    if cookie:
        made["HTTP_COOKIE"] = cookie
    return made | more


def call_wsgi(
    app: Any,
    env: dict[str, Any],
    *,
    on_event: Callable[[str], object] = lambda what: None,
    read: int | None = None,
) -> Answer:
    """Serve one request as a WSGI server does.

    Args:
        app: the application.
        env: of the request.
        on_event: called with "head" and "body" at the moment when a server would send them.
        read: after so many chunks the client is gone, and the body is closed; None: never.
    """
    answer: Answer | None = None
    sent = [False]

    def start_response(status: str, headers: Headers, exc_info: Any = None) -> Any:
        nonlocal answer
        if exc_info is not None and sent[0]:
            raise exc_info[1].with_traceback(exc_info[2])
        assert answer is None or exc_info is not None
        on_event("head")
        answer = Answer(int(status[:3]), list(headers))
        return write

    def write(data: bytes) -> None:
        assert answer is not None
        sent[0] = True
        on_event("body")
        answer.body += data

    result = app(env, start_response)
    try:
        for number, chunk in enumerate(result):
            if read is not None and number >= read:
                break
            assert answer is not None, "a body before its head"
            if chunk:
                write(chunk)
    finally:
        close = getattr(result, "close", None)
        if close is not None:
            close()
    assert answer is not None, "no head at all"
    return answer


def scope(
    *,
    cookie: str | list[str] = "",
    path: str = "/",
    https: bool = False,
    kind: str = "http",
    headers: Iterable[tuple[bytes, bytes]] = (),
    method: str = "GET",
) -> dict[str, Any]:
    """Return the scope of an ASGI connection."""
    cookies = [cookie] if isinstance(cookie, str) else cookie
    scheme = {"http": "https" if https else "http", "websocket": "wss" if https else "ws"}
    made: dict[str, Any] = {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": scheme.get(kind),
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            *((b"cookie", one.encode("latin-1")) for one in cookies if one),
            *headers,
        ],
        "client": ("192.0.2.7", 50000),
        "server": ("localhost", 80),
    }
    if kind == "http":
        made["method"] = method
    return made


async def call_asgi(
    app: Any,
    connection: dict[str, Any],
    *,
    on_event: Callable[[str], object] = lambda what: None,
    receive: Iterable[dict[str, Any]] = (
        {"type": "http.request", "body": b"", "more_body": False},
    ),
) -> Answer:
    """Serve one request as an ASGI server does; after the messages given the client is gone."""
    sent: list[dict[str, Any]] = []
    await talk_asgi(app, connection, sent, on_event=on_event, receive=receive)
    return answer_of(sent)


async def talk_asgi(
    app: Any,
    connection: dict[str, Any],
    sent: list[dict[str, Any]],
    *,
    on_event: Callable[[str], object] = lambda what: None,
    receive: Iterable[dict[str, Any]] = (),
) -> None:
    """Serve one connection; the messages of the application go to `sent`."""
    coming = list(receive)
    kind = connection["type"]

    async def get() -> dict[str, Any]:
        return coming.pop(0) if coming else {"type": f"{kind}.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if sent and kind == "http":
            # As uvicorn does.
            assert message["type"] == "http.response.body", message
            assert sent[-1]["type"] == "http.response.start" or sent[-1].get("more_body")
        on_event("body" if message["type"].endswith(".body") else "head")
        sent.append(dict(message))

    await app(connection, get, send)


def answer_of(sent: list[dict[str, Any]]) -> Answer:
    """Return the answer that messages make."""
    start, *rest = sent
    assert start["type"] == "http.response.start"
    headers = [
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]
    ]
    return Answer(start["status"], headers, b"".join(one.get("body", b"") for one in rest))


class Site:
    """One manager behind one of the two middlewares, with handlers given per request.

    Attributes:
        calls: the calls that were made on the store, as `RecordingStore.verbs`.
    """

    colour = ""

    def __init__(self, store: Any = None, **settings: Any) -> None:
        self.clock = settings.pop("clock", None) or Clock()
        self.store = RecordingStore(MemoryStore() if store is None else store)
        self.sessions = SessionManager(self.given(self.store), clock=self.clock, **settings)
        self.cookie = ""

    def given(self, store: Any) -> Any:
        """Return the store in the colour of the middleware."""
        return store

    @property
    def verbs(self) -> list[str]:
        """The calls since the last look, by name."""
        verbs = self.store.verbs
        self.store.calls.clear()
        return verbs

    def request(
        self,
        handler: Handler,
        *,
        cookie: str | None = None,
        headers: Headers | None = None,
        status: int = 200,
        https: bool = False,
        on_event: Callable[[str], object] = lambda what: None,
        path: str = "/",
    ) -> Answer:
        """Make one request; `handler(session)` returns a text or bytes.

        Args:
            handler: the application.
            cookie: the Cookie header; None: that of `self.cookie`.
            headers, status: the application's.
            https: whether by https.
            on_event: see `call_wsgi`.
            path: of the request.
        """
        cookie = self.cookie if cookie is None else cookie
        answer = self._request(handler, cookie, headers or [], status, https, on_event, path)
        return answer

    def visit(self, handler: Handler, **kwargs: Any) -> Answer:
        """As `request`, and keep the cookie as a browser does."""
        answer = self.request(handler, **kwargs)
        for line in answer.all("Set-Cookie"):
            pair = line.partition(";")[0]
            self.cookie = "" if "Max-Age=0" in line else pair
        return answer

    def _request(self, *args: Any) -> Answer:
        raise NotImplementedError


def _bytes(made: Any) -> bytes:
    return made if isinstance(made, bytes) else str(made).encode()


class WsgiSite(Site):
    """Behind `sojourn.web.wsgi`."""

    colour = "wsgi"

    def _request(
        self,
        handler: Handler,
        cookie: str,
        headers: Headers,
        status: int,
        https: bool,
        on_event: Callable[[str], object],
        path: str,
    ) -> Answer:
        def app(env: Any, start_response: Any) -> list[bytes]:
            body = _bytes(handler(env[wsgi.KEY]))
            start_response(f"{status} Whatever", [("Content-Type", "text/plain"), *headers])
            return [body]

        served = validator(wsgi.SessionMiddleware(app, self.sessions))
        return call_wsgi(served, environ(cookie=cookie, https=https, path=path), on_event=on_event)


class AsgiSite(Site):
    """Behind `sojourn.web.asgi`."""

    colour = "asgi"

    def _request(
        self,
        handler: Handler,
        cookie: str,
        headers: Headers,
        status: int,
        https: bool,
        on_event: Callable[[str], object],
        path: str,
    ) -> Answer:
        async def app(connection: Any, receive: Any, send: Any) -> None:
            body = _bytes(handler(connection[asgi.KEY]))
            raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
            start = {"type": "http.response.start", "status": status, "headers": raw}
            await send(start)
            await send({"type": "http.response.body", "body": body})

        served = asgi.SessionMiddleware(app, self.sessions)
        return asyncio.run(
            call_asgi(served, scope(cookie=cookie, https=https, path=path), on_event=on_event)
        )


SITES: dict[str, type[Site]] = {"wsgi": WsgiSite, "asgi": AsgiSite}

__all__ = [
    "SITES",
    "Answer",
    "AsgiSite",
    "Site",
    "WsgiSite",
    "answer_of",
    "call_asgi",
    "call_wsgi",
    "environ",
    "scope",
    "talk_asgi",
]
