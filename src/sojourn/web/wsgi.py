"""WSGI: `SessionMiddleware(app, sessions)`; the application finds `environ["sojourn.session"]`.

The session is loaded when it is first used. It is committed when the application has produced the
first bytes of its answer, or returned, before the head of the answer leaves; and again when the
body ends or the client is gone, if the body changed something.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from sojourn.core.record import Client
from sojourn.errors import Conflict, SojournError, StoreUnavailable, TooManySessions
from sojourn.manager import SessionManager
from sojourn.web.failure import ANSWERED, checked, failure_of, too_late
from sojourn.web.headers import with_owed, with_session

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["KEY", "Body", "Request", "SessionMiddleware"]

KEY = "sojourn.session"
"""The key of the session in the WSGI environment."""

log = logging.getLogger("sojourn")


class SessionMiddleware:
    """A WSGI application around another, with a session."""

    def __init__(self, app: WSGIApplication, sessions: SessionManager) -> None:
        """Serve `app`, with sessions of `sessions`."""
        self.app = app
        self.sessions = checked(sessions)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        sessions = self.sessions
        request = Request(sessions, environ, start_response)
        session = environ[KEY] = request.session
        try:
            result = self.app(environ, request.start)
        except Exception as error:
            if request.answer is not None and error is request.refused:
                return request.answer
            if not request.sent and (error is session.failure or isinstance(error, ANSWERED)):
                return request.fail(error)
            request.broke()
            raise
        if request.answer is not None:
            # It went on after a refused write().
            close = getattr(result, "close", None)
            if close is not None:
                close()
            return request.answer
        if type(result) is list or type(result) is tuple:
            # The whole body is there, and nothing of the application runs after this.
            if request.sent:
                # By write(), and something may have changed since.
                request.finish()
            failed = request.send_head()
            return result if failed is None else failed
        return Body(request, result)


class Request:
    """One request: holds the head back until the session is committed."""

    __slots__ = (
        "answer",
        "broken",
        "environ",
        "head",
        "refused",
        "sent",
        "session",
        "sessions",
        "start_response",
        "write",
    )

    def __init__(
        self, sessions: SessionManager, environ: WSGIEnvironment, start_response: StartResponse
    ) -> None:
        self.sessions = sessions
        self.environ = environ
        self.start_response = start_response
        self.head: tuple[str, list[tuple[str, str]], Any] | None = None
        self.sent = False
        # What the application did is not to be kept: it failed, or its answer was replaced.
        self.broken = False
        # The body of an answer of ours, in place of the application's.
        self.answer: list[bytes] | None = None
        # What write() raised, because of that answer.
        self.refused: StoreUnavailable | None = None
        self.write: Callable[[bytes], object] | None = None
        # Nothing of the session leads back to the environment or to here: a cycle would leave
        # every request to the garbage collector.
        get = environ.get
        self.session = sessions.session(
            get("HTTP_COOKIE", ""),
            https=environ["wsgi.url_scheme"] == "https",
            client=Client(get("REMOTE_ADDR", ""), get("HTTP_USER_AGENT", "")),
        )

    def start(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        """Take the application's head (PEP 3333's start_response)."""
        if exc_info is not None or status[:1] == "5":
            # Frameworks make an error page of an exception before it gets here.
            self.broken = self.answer is not None or not self.sessions.commit_on_error
            if self.sent and exc_info is not None:
                # Too late to change anything: the server raises it.
                return self.start_response(status, headers, exc_info)
        if exc_info is None and self.head is not None:
            raise AssertionError("start_response was called a second time without exc_info")
        self.head = (status, headers, exc_info)
        return self.write_body

    def write_body(self, data: bytes) -> None:
        """Send a part of the body, the head first (what start_response returns)."""
        if not self.sent:
            self.send_head()
        if self.answer is not None:
            self.refused = StoreUnavailable(
                "the session could not be written, and the client was told so; nothing that "
                "follows is sent"
            )
            raise self.refused
        assert self.write is not None
        self.write(data)

    def send_head(self) -> list[bytes] | None:
        """Commit, then send the head; returns the body of an answer of ours where that fails."""
        if self.sent or self.head is None:
            return None
        status, headers, exc_info = self.head
        session, sessions = self.session, self.sessions
        if status[:1] == "5" and session.failure is not None:
            # The application made an error page of its own out of the store's failure.
            return self.fail(session.failure)
        if session._load is None or session._failure is not None:
            # Also where it could not be loaded: the page would be another if it could.
            try:
                done = sessions.owed(session) if self.broken else sessions.commit(session)
            except (StoreUnavailable, Conflict, TooManySessions) as error:
                return self.fail(error)
            if done.dropped == "store":
                # It goes on without; to try again at the end would only wait again.
                self.broken = True
            headers = with_session(
                headers, done, sessions.cookie, self.environ["wsgi.url_scheme"] == "https"
            )
        self.sent = True
        if exc_info is None:
            self.write = self.start_response(status, headers)
        else:
            self.write = self.start_response(status, headers, exc_info)
        return None

    def fail(self, error: BaseException) -> list[bytes]:
        """Answer with an error of ours."""
        log.error("%s %s: %s", self.environ.get("REQUEST_METHOD"), self._path(), error)
        number, reason, headers, body = failure_of(error)
        sessions, https = self.sessions, self.environ["wsgi.url_scheme"] == "https"
        headers = with_owed(headers, sessions.owed(self.session), sessions.cookie, https)
        # Or it would hold the frames that hold the session that holds it.
        error.__traceback__ = None
        if self.environ.get("REQUEST_METHOD") == "HEAD":
            body = b""
        self.sent = self.broken = True
        self.write = self.start_response(f"{number} {reason}", headers)
        self.answer = [body]
        return self.answer

    def _path(self) -> str:
        return repr(self.environ.get("PATH_INFO", ""))

    def broke(self) -> None:
        """Keep what was done nevertheless where the operator wants that; and no more later."""
        if not self.broken and self.sessions.commit_on_error:
            self.finish()
        self.broken = True

    def finish(self) -> None:
        """Commit what was changed without a new head; a failure can only be logged."""
        session = self.session
        if self.broken or not session.loaded:
            return
        try:
            done = self.sessions.commit(session, late=True)
        except SojournError as error:
            log.error("%s: what the body changed is lost: %s", self._path(), error)
            return
        lost = too_late(done)
        if lost:
            log.error("%s: %s", self._path(), lost)


class Body:
    """A body that is produced bit by bit: the head goes with its first bytes."""

    __slots__ = ("_chunks", "_close", "_request")

    def __init__(self, request: Any, result: Iterable[bytes]) -> None:
        """Watch a body.

        Args:
            request: a `Request`; or another one with `broke` and `finish`, whose head is `sent`.
            result: the body.
        """
        self._request = request
        self._chunks = iter(result)
        self._close = getattr(result, "close", None)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self._request.sent:
            return self._first()
        try:
            return next(self._chunks)
        except StopIteration:
            raise
        except BaseException:
            self._request.broke()
            raise

    def _first(self) -> bytes:
        """Let the application come to its first bytes, or to its end, then send the head."""
        request: Request = self._request
        chunk = b""
        try:
            chunk = next((chunk for chunk in self._chunks if chunk), b"")
            failed = request.send_head()
        except BaseException as error:
            if error is not request.session.failure or request.sent:
                request.broke()
                raise
            failed = request.fail(request.session.failure)
        if failed is not None:
            self._chunks = iter(())
            return failed[0]
        if not chunk:
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Called by the server at the end, also when the client has gone."""
        try:
            if self._close is not None:
                self._close()
        finally:
            self._request.finish()
