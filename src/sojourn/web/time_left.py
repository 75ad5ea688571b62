"""Time left: an endpoint that tells how long a session lasts without extending it, and a script.

`TimeLeft` is two tiny applications, to be mounted under a path of a site that has the session
middleware, and one script of a kilobyte, which asks the endpoint, warns before the session ends,
and offers to stay. See `docs/life.md` for the page's side.

    GET  /session               {"remaining": 840, "warn": 120, "user": true, "stay": true}
    POST /session               with X-CSRF-Token: the session is extended; 204
    GET  /session/time_left.js  the script
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from datetime import timedelta
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec

from sojourn.core.expiry import seconds
from sojourn.core.session import Session
from sojourn.errors import ConfigurationError, CsrfError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

__all__ = ["SCRIPT", "TimeLeft", "Times"]

SCRIPT = "time_left.js"
"""The last part of the script's path, below the mount."""

Answer = tuple[int, str, list[tuple[str, str]], bytes]


class Times(msgspec.Struct, frozen=True):
    """What the endpoint tells.

    Attributes:
        remaining: whole seconds until the session ends if it is not used; 0: there is none.
        warn: how many seconds before that the visitor is to be warned.
        user: whether somebody is logged in.
        stay: whether using the session would extend it; not where its lifetime is what ends it.
    """

    remaining: int
    warn: int
    user: bool
    stay: bool


class TimeLeft:
    """Tells visitors how long their session lasts; `wsgi` and `asgi` are the applications.

    Example:
        >>> time_left = TimeLeft(warn_before=120)
    """

    def __init__(self, warn_before: timedelta | float = 120.0) -> None:
        """Warn that long before the end, and not before half of the idle timeout is over.

        Raises:
            ConfigurationError: that is not a duration above 0.
        """
        warn = seconds(warn_before, "warn_before")
        if warn is None:
            raise ConfigurationError("warn_before is None; it must be a number of seconds above 0")
        self._warn = round(warn)
        self._script = files("sojourn.web").joinpath(SCRIPT).read_bytes()

    def times(self, session: Session) -> Times:
        """Return what there is to tell; looking does not extend the session."""
        if session.is_new:
            return Times(0, self._warn, False, False)
        # A session may have limits of its own, so short that it would be warned of all the time.
        whole = session.idle_timeout or session.lifetime
        warn = self._warn if whole is None else min(self._warn, int(whole.total_seconds() / 2))
        user = session.peek.user is not None
        return Times(int(session.remaining), warn, user, _would_extend(session))

    def wsgi(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a WSGI request (`environ["sojourn.session"]`)."""
        number, reason, headers, body = self._answer(
            environ["REQUEST_METHOD"],
            environ.get("PATH_INFO", ""),
            environ.get("sojourn.session"),
            environ.get("HTTP_X_CSRF_TOKEN", ""),
        )
        start_response(f"{number} {reason}", headers)
        return [body]

    async def asgi(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        """Answer an ASGI request (`scope["session"]`)."""
        token = b""
        for name, value in scope["headers"]:
            if name == b"x-csrf-token":
                token = value
        number, _, headers, body = self._answer(
            scope["method"], scope["path"], scope.get("session"), token.decode("latin-1")
        )
        raw = [(name.lower().encode(), value.encode()) for name, value in headers]
        await send({"type": "http.response.start", "status": number, "headers": raw})
        await send({"type": "http.response.body", "body": body})

    def _answer(self, method: str, path: str, session: Session | None, token: str) -> Answer:
        asks = method in ("GET", "HEAD")
        if path.rpartition("/")[2] == SCRIPT and asks:
            return _found("text/javascript; charset=utf-8", "max-age=86400", self._script, method)
        if session is None:
            raise ConfigurationError(
                "the request has no session; mount TimeLeft inside of SessionMiddleware"
            )
        if asks:
            body = msgspec.json.encode(self.times(session))
            return _found("application/json", "no-store", body, method)
        if method != "POST":
            return 405, "Method Not Allowed", [("Allow", "GET, HEAD, POST"), *_NOTHING], b""
        try:
            session.check_csrf(token)
        except CsrfError:
            return 403, "Forbidden", _NOTHING, b""
        session.touch()
        return 204, "No Content", [("Cache-Control", "no-store")], b""


_NOTHING = [("Content-Length", "0"), ("Cache-Control", "no-store")]


def _found(kind: str, caching: str, body: bytes, method: str) -> Answer:
    headers = [
        ("Content-Type", kind),
        ("Content-Length", str(len(body))),
        ("Cache-Control", caching),
        ("X-Content-Type-Options", "nosniff"),
    ]
    return 200, "OK", headers, b"" if method == "HEAD" else body


def _would_extend(session: Session) -> bool:
    idle, lifetime = session.idle_timeout, session.lifetime
    if idle is None:
        return False
    if lifetime is None:
        return True
    start = session.created if session.authenticated is None else session.authenticated
    # Less than a second more is not worth a question.
    return session.deadline + 1 < start + lifetime.total_seconds()
