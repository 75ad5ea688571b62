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
from sojourn.core.session import Session
from sojourn.errors import Conflict, SojournError, StoreUnavailable, TooManySessions
from sojourn.manager import Committed, SessionManager
from sojourn.web.failure import ANSWERED, NOT_COMMITTED, checked, failure_of, too_late
from sojourn.web.headers import Headers, with_owed, with_session

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
        self.sessions = checked(sessions)
        self.exclude = tuple(path.rstrip("/") for path in exclude)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or serve one websocket."""
        if scope["type"] not in ("http", "websocket") or (self.exclude and self._excluded(scope)):
            await self.app(scope, receive, send)
            return
        sessions = self.sessions
        cookie = agent = ""
        for name, value in scope["headers"]:
            if name == b"cookie":
                # HTTP/2 may split the header; RFC 9113 section 8.2.3 says how it is put together.
                text = value.decode("latin-1")
                cookie = f"{cookie}; {text}" if cookie else text
            elif name == b"user-agent":
                agent = value.decode("latin-1")
        address = scope.get("client")
        client = Client(address[0] if address else "", agent)
        https = scope.get("scheme") in ("https", "wss")
        session = sessions.session_at_once(cookie, https, client)
        if session is None:
            session = await sessions.asession(cookie, https=https, client=client)
        request = _Request(sessions, session, https, scope, receive, send)
        scope[KEY] = session
        scope[COMMIT] = request.commit_now
        try:
            await self.app(scope, request.receive, request.send)
        except (Exception, asyncio.CancelledError) as error:
            if not request.sent and (error is session.failure or isinstance(error, ANSWERED)):
                await request.fail(error)
                return
            # Where the client has gone it is not the application that failed.
            gone = request.gone or isinstance(error, asyncio.CancelledError)
            if sessions.commit_on_error or (gone and request.sent):
                await request.finish()
            raise
        else:
            if session._load is None:
                await request.finish()
        finally:
            # It leads to the server's `send`, and that perhaps back to the scope.
            scope.pop(COMMIT, None)

    def _excluded(self, scope: Scope) -> bool:
        path = scope["path"]
        return any(path == prefix or path.startswith(prefix + "/") for prefix in self.exclude)


def _raw(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


class _Request:
    """One connection: holds the head back until the session is committed."""

    # Nothing here leads back to the scope, which leads here: a cycle would leave every request to
    # the garbage collector.
    __slots__ = (
        "_bodiless",
        "_broken",
        "_head",
        "_lock",
        "_path",
        "_receive",
        "_replaced",
        "_send",
        "_websocket",
        "gone",
        "https",
        "sent",
        "session",
        "sessions",
    )

    def __init__(
        self,
        sessions: SessionManager,
        session: Session,
        https: bool,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self.sessions = sessions
        self.session = session
        self.https = https
        self._websocket = scope["type"] == "websocket"
        self._path = scope["path"]
        self._bodiless = scope.get("method") == "HEAD"
        self._receive = receive
        self._send = send
        # The client has gone.
        self.gone = False
        self.sent = False
        # Nothing more is committed; and nothing more of the application's is sent.
        self._broken = self._replaced = False
        self._head: Message | None = None
        self._lock: asyncio.Lock | None = None

    async def receive(self) -> Message:
        """Pass a message of the server on, and note when the client goes."""
        message = await self._receive()
        if message["type"] in ("http.disconnect", "websocket.disconnect"):
            self.gone = True
        return message

    async def send(self, message: Message) -> None:
        """Pass a message of the application on; the head goes with what follows it."""
        kind = message["type"]
        if self.sent:
            # After an answer of ours nothing of the application's is sent.
            if not self._replaced:
                try:
                    await self._send(message)
                except OSError:
                    # So a server says that the client has gone (ASGI 2.4).
                    self.gone = True
                    raise
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
            session, head = self.session, self._head
            if (
                session._load is None
                or session._failure is not None
                or head.get("status", 200) >= 500
            ):
                if not await self._send_head(head):
                    return
            else:
                # The session was not looked at, and the head goes as it is.
                self.sent = True
                await self._send(head)
            await self._send(message)
        elif kind in ("websocket.close", "websocket.http.response.start"):
            if await self._send_head(message):
                return
        else:
            await self._send(message)

    async def _send_head(self, head: Message) -> bool:
        """Commit, then send the head; False: an answer of ours was sent in its place."""
        session, sessions = self.session, self.sessions
        status = head.get("status", 200)
        if status >= 500 and session.failure is not None:
            # The application made an error page of its own out of the store's failure.
            await self.fail(session.failure)
            return False
        if status >= 500 and not sessions.commit_on_error:
            # Frameworks make an error page of an exception before it gets here.
            self._broken = True
        closing = head["type"] == "websocket.close"
        if session._load is None or session._failure is not None:
            # Also where it could not be loaded: the page would be another if it could.
            try:
                if self._broken:
                    done = sessions.owed(session)
                else:
                    done = await sessions.acommit(session, late=closing)
            except (StoreUnavailable, Conflict, TooManySessions) as error:
                await self.fail(error)
                return False
            if done.dropped == "store":
                # It goes on without; to try again at the end would only wait again.
                self._broken = True
            if closing:
                self._log_too_late(done)
            else:
                plain = [
                    (name.decode("latin-1"), value.decode("latin-1"))
                    for name, value in head.get("headers", ())
                ]
                plain = with_session(plain, done, sessions.cookie, self.https)
                head = {**head, "headers": _raw(plain)}
        self.sent = True
        await self._send(head)
        return True

    async def fail(self, error: BaseException) -> None:
        """Answer with an error of ours."""
        log.error("%r: %s", self._path, error)
        status, _, headers, body = failure_of(error)
        sessions = self.sessions
        headers = with_owed(headers, sessions.owed(self.session), sessions.cookie, self.https)
        # Or it would hold the frames that hold the session that holds it.
        error.__traceback__ = None
        if self._bodiless:
            body = b""
        self.sent = self._broken = self._replaced = True
        if self._websocket:
            await self._send({"type": "websocket.close", "code": 1013, "reason": "Try again later"})
            return
        start = {"type": "http.response.start", "status": status, "headers": _raw(headers)}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})

    async def commit_now(self) -> Committed:
        """Commit what was done so far; for long connections.

        Returns:
            What it did. Where the session has ended meanwhile `dropped` is "gone", and the
            session in the scope stands for a new visitor.

        Raises:
            StoreUnavailable, Conflict, InvalidValue: as any commit.
        """
        if not self.sent or self._broken:
            return NOT_COMMITTED
        async with self._one_at_a_time():
            done = await self.sessions.acommit(self.session, late=True)
        self._log_too_late(done)
        return done

    def _one_at_a_time(self) -> asyncio.Lock:
        """Return the lock of commits: a websocket may be served by several tasks."""
        lock = self._lock
        if lock is None:
            lock = self._lock = asyncio.Lock()
        return lock

    async def finish(self) -> None:
        """Commit what was changed after the head; a failure can only be logged."""
        if self._broken or self.session._load is not None:
            return
        try:
            async with self._one_at_a_time():
                done = await self.sessions.acommit(self.session, late=True)
            self._log_too_late(done)
        except SojournError as error:
            log.error("%r: what was changed is lost: %s", self._path, error)

    def _log_too_late(self, done: Committed) -> None:
        lost = too_late(done)
        if lost:
            log.error("%r: %s", self._path, lost)
