"""The answers where the session stands in the way of the application's own answer."""

from __future__ import annotations

from sojourn.errors import ConfigurationError, Conflict, CsrfError, TooManySessions
from sojourn.manager import Committed, SessionManager

__all__ = ["ANSWERED", "NOT_COMMITTED", "Failure", "checked", "failure_of", "too_late"]

Failure = tuple[int, str, list[tuple[str, str]], bytes]

NOT_COMMITTED = Committed()
"""What is known of a request that failed, so that nothing of it is kept."""
ANSWERED = (Conflict, CsrfError, TooManySessions)
"""Errors that an application may leave to the middleware to answer."""


def failure_of(error: BaseException) -> Failure:
    """Return status, reason, headers and body for an error that reached the middleware."""
    if isinstance(error, TooManySessions):
        status, reason = 403, "Forbidden"
        text = (
            "You are signed in on as many devices as you may be. Sign out on one of them first.\n"
        )
    elif isinstance(error, CsrfError):
        status, reason = 403, "Forbidden"
        text = (
            "This form is too old, or was not made for you. Load the page again and send the form "
            "from there.\n"
        )
    elif isinstance(error, Conflict):
        status, reason = 409, "Conflict"
        text = "Another request changed your session at the same time. Please try again.\n"
    else:
        status, reason = 503, "Service Unavailable"
        text = "Your session cannot be reached at the moment. Please try again shortly.\n"
    body = text.encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store, private"),
    ]
    if status == 503:
        headers.append(("Retry-After", "5"))
    return status, reason, headers, body


def checked(sessions: SessionManager) -> SessionManager:
    """Return what a middleware was given, if it is a session manager.

    Raises:
        ConfigurationError: it is something else.
    """
    if not isinstance(sessions, SessionManager):
        raise ConfigurationError(
            f"SessionMiddleware(app, sessions) was given {sessions!r} for sessions; it must be a "
            "SessionManager"
        )
    return sessions


def too_late(done: Committed) -> str:
    """Return what a commit after the head could not do, in words for the log; empty: nothing."""
    if done.dropped == "late":
        return (
            "the session was first written to after the head of the answer had left; no cookie "
            "can be set any more, so it is not kept"
        )
    if done.dropped == "late renewal":
        return (
            "the session was renewed or logged in after the head of the answer had left; no cookie "
            "can be set any more, so that did not happen. Do it before the first bytes of the body"
        )
    if done.sealed is not None:
        return (
            "the session was changed after the head of the answer had left; the cookie that holds "
            "it cannot be set any more, so the change is lost"
        )
    if done.token is not None:
        return (
            "the lifetime of the session was changed after the head of the answer had left; its "
            "cookie cannot be set any more and keeps the old one. Do that before the first bytes "
            "of the body"
        )
    return ""
