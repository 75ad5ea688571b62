"""The answers where the session stands in the way of the application's own answer."""

from __future__ import annotations

from sojourn.errors import Conflict, SojournError

__all__ = ["Failure", "failure_of"]

Failure = tuple[int, str, list[tuple[str, str]], bytes]


def failure_of(error: SojournError) -> Failure:
    """Return status, reason, headers and body for an error that reached the middleware."""
    if isinstance(error, Conflict):
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
        ("Retry-After", "5"),
    ]
    return status, reason, headers, body
