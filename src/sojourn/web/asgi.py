"""ASGI: `SessionMiddleware(app, sessions)`; the application finds `scope["session"]`.

Pure ASGI, for http and websocket. The session is loaded when a cookie came; with a store that
reads in a few microseconds (SQLite, memory) only when it is first used. It is committed before the
head of the answer leaves (of a websocket: before it is accepted), and again at the end, if
something changed after that. A long connection that wants to save in between awaits
`scope["sojourn.commit"]()`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from sojourn.core.record import Client
from sojourn.core.session import Session, Status
from sojourn.errors import Conflict, SojournError, StoreUnavailable
from sojourn.manager import SessionManager
from sojourn.web.failure import failure_of
from sojourn.web.headers import Headers, with_session

__all__ = ["COMMIT", "KEY", "SessionMiddleware"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

KEY = "session"
"""The key of the session in the scope; where Starlette's `request.session` looks."""
COMMIT = "sojourn.commit"
"""The key of a function that commits now: for long connections."""

log = logging.getLogger("sojourn")


class SessionMiddleware:
    """An ASGI application around another, with a session."""

    def __init__(self, app: App, sessions: SessionManager, *, exclude: Sequence[str] = ()) -> None:
        """Serve `app`, with sessions of `sessions`.

        Args:
            app: an ASGI 3 application.
            sessions: the manager.
            exclude: paths, and all below them, that get no session: "/static".
        """
        self.app = app
        self.sessions = sessions
        self.exclude = tuple(path.rstrip("/") for path in exclude)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or serve one websocket."""
        if scope["type"] not in ("http", "websocket") or self._excluded(scope):
            await self.app(scope, receive, send)
            return
        request = _Request(self.sessions, scope, send)
        cookie = ""
        for name, value in scope["headers"]:
            if name == b"cookie":
                # HTTP/2 may split the header; RFC 9113 section 8.2.3 says how it is put together.
                text = value.decode("latin-1")
                cookie = f"{cookie}; {text}" if cookie else text
        session = await self.sessions.asession(cookie, https=request.https, client=_client(scope))
        request.session = scope[KEY] = session
        scope[COMMIT] = request.commit_now
        try:
            await self.app(scope, receive, request.send)
        except StoreUnavailable as error:
            if request.sent or error is not session.failure:
                raise
            await request.fail(error)
        except (Exception, asyncio.CancelledError):
            if self.sessions.commit_on_error or request.sent:
                await request.finish()
            raise
        else:
            await request.finish()

    def _excluded(self, scope: Scope) -> bool:
        if not self.exclude:
            return False
        path = scope["path"]
        return any(path == prefix or path.startswith(prefix + "/") for prefix in self.exclude)


def _raw(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def _client(scope: Scope) -> Client:
    client = scope.get("client")
    agent = ""
    for name, value in scope["headers"]:
        if name == b"user-agent":
            agent = value.decode("latin-1")
            break
    return Client(client[0] if client else "", agent)


class _Request:
    """One connection: holds the head back until the session is committed."""

    __slots__ = ("_head", "_scope", "_send", "https", "sent", "session", "sessions")

    session: Session

    def __init__(self, sessions: SessionManager, scope: Scope, send: Send) -> None:
        self.sessions = sessions
        self.https = scope.get("scheme") in ("https", "wss")
        self.sent = False
        self._scope = scope
        self._send = send
        self._head: Message | None = None

    async def send(self, message: Message) -> None:
        """Pass a message of the application on; the head goes with what follows it."""
        kind = message["type"]
        if self.sent:
            await self._send(message)
        elif kind == "http.response.start":
            self._head = message
        elif kind == "websocket.accept":
            await self._send_head(message)
        elif self._head is not None:
            # Empty bytes with more to come are not the beginning of a body yet.
            if (
                kind == "http.response.body"
                and message.get("more_body")
                and not message.get("body")
            ):
                return
            if await self._send_head(self._head):
                await self._send(message)
        elif kind in ("websocket.close", "websocket.http.response.start"):
            if await self._send_head(message):
                return
        else:
            await self._send(message)

    async def _send_head(self, head: Message) -> bool:
        """Commit, then send the head; False: an answer of ours was sent in its place."""
        session, sessions = self.session, self.sessions
        if session.failure is not None and head.get("status", 200) >= 500:
            # The application made an error page of its own out of the store's failure.
            await self.fail(session.failure)
            return False
        if session.loaded:
            try:
                done = await sessions.acommit(session)
            except (StoreUnavailable, Conflict) as error:
                await self.fail(error)
                return False
            if head["type"] != "websocket.close":
                plain = [
                    (name.decode("latin-1"), value.decode("latin-1"))
                    for name, value in head.get("headers", ())
                ]
                plain = with_session(plain, done, sessions.cookie, self.https)
                head = {**head, "headers": _raw(plain)}
        self.sent = True
        await self._send(head)
        return True

    async def fail(self, error: SojournError) -> None:
        """Answer with an error of ours."""
        log.error("%r: %s", self._scope["path"], error)
        status, _, headers, body = failure_of(error)
        self.sent = True
        if self._scope["type"] == "websocket":
            await self._send({"type": "websocket.close", "code": 1013, "reason": "Try again later"})
            return
        start = {"type": "http.response.start", "status": status, "headers": _raw(headers)}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})

    async def commit_now(self) -> None:
        """Commit what was done so far; for long connections.

        Raises:
            StoreUnavailable, Conflict, InvalidValue: as any commit.
        """
        if self.sent and self._lost():
            return
        if self.sent:
            await self.sessions.acommit(self.session)

    def _lost(self) -> bool:
        session = self.session
        if session.loaded and session.is_new and session.status == Status.STARTED:
            log.error(
                "%r: the session was first written to after the head of the answer had left; no "
                "cookie can be set any more, so it is not kept",
                self._scope["path"],
            )
            return True
        return False

    async def finish(self) -> None:
        """Commit what was changed after the head; a failure can only be logged."""
        if not self.session.loaded or self._lost():
            return
        try:
            await self.sessions.acommit(self.session)
        except SojournError as error:
            log.error("%r: what was changed is lost: %s", self._scope["path"], error)
