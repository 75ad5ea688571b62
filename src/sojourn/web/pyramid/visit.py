"""One request: what is done with its session, and when.

Pyramid runs, in this order: views and tweens, response callbacks, subscribers of `NewResponse`,
finished callbacks; then the server asks for head and body. So the session is committed in a
response callback, the last of them, and again in a finished callback, if something was changed in
between. That is before the head leaves. What the body changes while it is produced is committed at
its end.
"""

from __future__ import annotations

import logging
from typing import Any

from pyramid.response import FileIter

from sojourn.core.cookie import tokens_in
from sojourn.core.record import Client
from sojourn.errors import Conflict, SojournError, StoreUnavailable, TooManySessions
from sojourn.manager import SessionManager
from sojourn.web.failure import failure_of, too_late
from sojourn.web.headers import with_owed, with_session
from sojourn.web.pyramid.old_cookie import OldCookie, Taken
from sojourn.web.pyramid.session import Session
from sojourn.web.wsgi import Body

__all__ = ["Visit"]

log = logging.getLogger("sojourn")


class Visit:
    """Commits the session of one request."""

    # No slots: most requests never set what has a default here.
    session: Session | None = None
    """None: nobody asked for it."""
    response: Any = None
    """The answer, once there is one and until the server has it."""
    refused = False
    """The answer is one of ours, and nothing of what the request did is kept."""
    broken = False
    """What the request did is not to be kept, or there is nothing more to keep."""
    sent = True
    """What `Body` asks: the head is final before a body is watched."""
    _https = False
    _taken: Taken | None = None
    _last = False
    _said = False
    """The head says what the session adds to it."""
    _added: tuple[tuple[str, str], ...] = ()
    """What the first commit has added to the head, and a second one may say anew."""

    def __init__(
        self,
        sessions: SessionManager,
        environ: dict[str, Any],
        set_on_exception: bool | None,
        old_cookie: OldCookie | None,
    ) -> None:
        """Take charge of a request.

        Args:
            sessions: the manager.
            environ: of the request.
            set_on_exception, old_cookie: see `SessionFactory`.
        """
        self.sessions = sessions
        self.environ = environ
        self.set_on_exception = set_on_exception
        self.old_cookie = old_cookie

    def begin(self, registry: Any) -> Session:
        """Make the session, which is loaded when it is first used.

        Not before it is asked for: the application may correct the scheme of the request first.
        """
        sessions, environ, old = self.sessions, self.environ, self.old_cookie
        header = environ.get("HTTP_COOKIE", "")
        https = self._https = environ.get("wsgi.url_scheme") == "https"
        client = Client(environ.get("REMOTE_ADDR", ""), environ.get("HTTP_USER_AGENT", ""))
        # Whoever has a cookie of ours has been taken over already, or came later.
        if old is not None and not tokens_in(header, sessions.cookie.name_for[https]):
            self._taken = Taken(old, sessions, header, https, client)
        session = self.session = sessions.session(
            header,
            https=https,
            client=client,
            kind=Session,
            load=None if self._taken is None else self._taken.open,
        )
        session._registry = registry
        return session

    def respond(self, request: Any, response: Any) -> None:
        """Commit, and set the cookie: a response callback."""
        respond = self.respond
        if not self._last and any(one != respond for one in request.response_callbacks):
            # After those of the application: one that raises makes the request one that failed.
            self._last = True
            request.add_response_callback(respond)
            return
        self.response = response
        # Now, so that it runs after those of the application.
        request.add_finished_callback(self.finished)
        session, status = self.session, response.status_int
        failure = None if session is None else session.failure
        if failure is not None and status >= 500 and not self.refused:
            # An error page was made out of the store's failure.
            self.refuse(response, failure)
        if self.refused:
            return
        self.broken = not self._keeps(getattr(request, "exception", None), status)
        self._commit()

    def _keeps(self, exception: object, status: int) -> bool:
        if exception is not None and self.set_on_exception is not None:
            return self.set_on_exception
        return status < 500 or self.sessions.commit_on_error

    def fail(self, request: Any) -> None:
        """Commit nevertheless what ended in an unhandled exception: a finished callback."""
        if self.response is None:
            self.finish()

    def finished(self, request: Any) -> None:
        """Commit what was changed since, and watch the body: a finished callback."""
        response = self.response
        if not self.broken:
            session = self.session
            if not self._said or (session is not None and not session._settled()):
                self._commit()
            if not self.broken and not _is_whole(response.app_iter, self.environ):
                # To set a body takes the length away.
                headers = list(response.headerlist)
                response.app_iter = Body(self, response.app_iter)
                response.headerlist = headers
        self.response = None

    def _commit(self) -> None:
        session, sessions, response = self.session, self.sessions, self.response
        if session is None or (not session.loaded and session.failure is None):
            return
        taken = None if self.broken else self._taken
        try:
            if taken is not None:
                taken.renew(session)
            done = sessions.owed(session) if self.broken else sessions.commit(session)
        except (StoreUnavailable, Conflict, TooManySessions) as error:
            self.refuse(response, error)
            return
        if done.dropped == "store":
            # It goes on without; to try again at the end would only wait again.
            self.broken = True
        plain = [header for header in response.headerlist if header not in self._added]
        headers = with_session(plain, done, sessions.cookie, self._https)
        if taken is not None and taken.removal:
            headers.append(("Set-Cookie", taken.removal))
        self._added = tuple(
            header
            for header in headers
            if header[0] in ("Set-Cookie", "Clear-Site-Data") and header not in plain
        )
        self._said = True
        response.headerlist = headers

    def refuse(self, response: Any, error: BaseException) -> None:
        """Make an answer of ours out of a response.

        In its place: whoever holds a response when its callbacks run cannot be given another one.
        """
        log.error("%s: %s", self._where(), error)
        number, reason, headers, body = failure_of(error)
        sessions, session = self.sessions, self.session
        if session is not None:
            headers = with_owed(headers, sessions.owed(session), sessions.cookie, self._https)
        # Or it would hold the frames that hold the session that holds it.
        error.__traceback__ = None
        close = getattr(response.app_iter, "close", None)
        if close is not None:
            close()
        response.status = f"{number} {reason}"
        response.app_iter = [body]
        response.headerlist = headers
        self.refused = self.broken = True

    def _where(self) -> str:
        get = self.environ.get
        return f"{get('REQUEST_METHOD')} {get('PATH_INFO', '')!r}"

    # After the head.

    def broke(self) -> None:
        """Keep what was done nevertheless where the operator wants that; and no more later."""
        if not self.broken and self.sessions.commit_on_error:
            self.finish()
        self.broken = True

    def finish(self) -> None:
        """Commit what was changed without a new head; a failure can only be logged."""
        session = self.session
        if self.broken or session is None or not session.loaded:
            return
        try:
            done = self.sessions.commit(session, late=True)
        except SojournError as error:
            log.error("%s: what the body changed is lost: %s", self._where(), error)
            return
        lost = too_late(done)
        if lost:
            log.error("%s: %s", self._where(), lost)


def _is_whole(body: Any, environ: dict[str, Any]) -> bool:
    """Tell whether nothing of the application runs while the server reads a body."""
    if type(body) in (list, tuple, FileIter):
        return True
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)
