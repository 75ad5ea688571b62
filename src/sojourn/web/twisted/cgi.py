"""CGI under Twisted: a child process gets the cookie of the session, also of a brand-new one.

`CGIScript` and `FilteredScript` in place of those of `twisted.web.twcgi`. What the request did to
its session so far is written before the child starts, so that a child that opens the same store
(`sojourn.web.cgi`) finds it there. The child's own Set-Cookie headers stay.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.python.failure import Failure
from twisted.web import twcgi

from sojourn.web.twisted._log import log
from sojourn.web.twisted.driver import as_deferred
from sojourn.web.twisted.request import DurableRequest

if TYPE_CHECKING:
    from sojourn.manager import Committed

__all__ = ["CGIScript", "FilteredScript"]


class _Script:
    """What makes a script resource one with sessions; put before the class."""

    def render(self, request: Any) -> Any:
        """Start the child."""
        # The stock one takes str and bytes for the same, and fails on /script.cgi/path.
        path = request.postpath
        request.postpath = [os.fsdecode(part) for part in path]
        try:
            return super().render(request)  # type: ignore[misc]
        finally:
            request.postpath = path

    def runProcess(self, env: Any, request: Any, qargs: Any = ()) -> None:
        """Write the session, then run the child with its cookie."""
        run = super().runProcess  # type: ignore[misc]
        qargs = list(qargs)
        if request.isSecure():
            # The stock one does not tell; the child would look for the cookie of http.
            env["HTTPS"] = "on"
        else:
            env.pop("HTTPS", None)
        if not isinstance(request, DurableRequest) or not request._entries:
            run(env, request, qargs)
            return
        _child_of(request, env, lambda: run(env, request, qargs))


def _child_of(request: Any, env: dict[Any, Any], run: Callable[[], object]) -> None:
    def committed(told: dict[bool, Committed]) -> None:
        if not request._disconnected:
            _give_cookies(request, env, told)
            run()

    def failed(failure: Failure) -> None:
        if not request._disconnected:
            request._refuse(failure)

    try:
        committing = as_deferred(request._commit())
    except Exception:
        failed(Failure())
        return
    # A program that cannot be started is an error of the page, as it is without a session.
    committing.addCallbacks(committed, failed).addErrback(_failed, request)


def _failed(failure: Failure, request: Any) -> None:
    if request._disconnected:
        log.failure("{uri}: the script could not be started", failure, uri=request.uri)
    else:
        request.processingFailed(failure)


def _give_cookies(request: Any, env: dict[Any, Any], told: dict[bool, Committed]) -> None:
    """Put the cookies that the browser is about to get among those that it sent."""
    cookie = request._realm.sessions.cookie
    pairs = [pair.strip() for pair in request._cookie_header().split(";")]
    for https, done in told.items():
        value = done.sealed or done.token
        if value is not None or done.cleared:
            name = cookie.name_for[https]
            pairs = [pair for pair in pairs if not pair.startswith(f"{name}=")]
            pairs += [f"{name}={value}"] if value is not None else []
    header = "; ".join(filter(None, pairs))
    if header:
        env[b"HTTP_COOKIE"] = header.encode("latin-1")
    else:
        env.pop(b"HTTP_COOKIE", None)


class CGIScript(_Script, twcgi.CGIScript):
    """Runs a program for each request; arguments as of `twisted.web.twcgi.CGIScript`."""


class FilteredScript(_Script, twcgi.FilteredScript):
    """Hands a script to the program `filter`; as `twisted.web.twcgi.FilteredScript`."""
