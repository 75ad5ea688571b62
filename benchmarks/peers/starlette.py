"""Starlette's SessionMiddleware: all values as JSON in a signed cookie, read on every request.

It wraps the same bare ASGI application as Sojourn does, not a Starlette application: only the
middleware is measured.
"""

from __future__ import annotations

from benchmarks.calling import asgi_app, call_asgi
from benchmarks.subjects import Missing, Subject

__all__ = ["subject"]


def subject() -> Subject:
    """Return it, as its documentation sets it up."""
    try:
        from starlette.middleware.sessions import SessionMiddleware
    except ImportError as error:
        raise Missing(f"Starlette is not installed ({error})") from None
    return Subject(
        "Starlette cookie",
        ("bare ASGI", lambda: asgi_app("", None)),
        lambda action: SessionMiddleware(asgi_app("session", action), secret_key="k" * 32),
        call_asgi,
    )
