"""A panel of `pyramid_debugtoolbar` that shows the session, without what is secret in it.

It takes the place of the toolbar's own panel of that name, which shows every value, and which
makes each page look at the session.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import Any

from pyramid_debugtoolbar.panels import DebugPanel  # type: ignore[import-untyped]
from pyramid_debugtoolbar.toolbar import (  # type: ignore[import-untyped]
    IPanelMap,
    IToolbarWSGIApp,
)

from sojourn.errors import SojournError
from sojourn.web.pyramid.session import Session

__all__ = ["REDACT", "SessionPanel", "add_panel"]

REDACT = (
    "(?i)pass|pwd|secret|token|jwt|bearer|csrf|key|auth|credential|cookie|session|private|"
    "signature|recovery|otp|card|cv[cv]|iban|ssn|(^|_)pin|pin$"
)
"""Values whose keys match this are not shown, unless `sojourn.redact` is another pattern."""
_LONGEST = 500
_HIDDEN = "(not shown)"


class SessionPanel(DebugPanel):  # type: ignore[misc]
    """Shows what the request found in its session and did to it."""

    name = "session"
    title = nav_title = "Session"
    has_content = True

    def __init__(self, request: Any) -> None:
        """Watch the session of a request."""
        self._request = request
        pattern = request.registry.settings.get("sojourn.redact") or REDACT
        self._secret = re.compile(pattern).search

    def process_response(self, response: Any) -> None:
        """Note what there is to show, before the session is committed."""
        session = self._request.__dict__.get("session")
        self._request = None
        if not isinstance(session, Session):
            self.data["rows"] = [("Session", "not used by this request")]
        elif session.failure is not None:
            self.data["rows"] = [("Session", f"the store did not answer: {session.failure}")]
        else:
            self.data["rows"] = list(self._rows(session))

    def _rows(self, session: Session) -> Iterator[tuple[str, str]]:
        if not session.loaded:
            yield "Session", "not used by this request"
            return
        peek = session.peek
        yield "sid", session.sid
        yield "status", session.status.name.lower()
        yield "user", str(peek.user)
        yield "seconds left", f"{session.remaining:.0f}"
        ended = session.ended_before
        if ended is not None:
            yield "the one before ended", ended.reason
        for key in peek:
            try:
                value = self._shown(key, peek[key])
            except (SojournError, KeyError) as error:
                value = f"cannot be read: {type(error).__name__}"
            yield f"[{key!r}]", value

    def _shown(self, key: str, value: Any) -> str:
        shown = repr(self._redacted(key, value))
        return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."

    def _redacted(self, key: object, value: Any) -> Any:
        if isinstance(key, str) and self._secret(key):
            return _HIDDEN
        if isinstance(value, dict):
            return {name: self._redacted(name, one) for name, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._redacted(None, one) for one in value]
        return value

    def render_content(self, request: Any) -> str:
        """Return the panel's page."""
        rows = "".join(
            f"<tr><th>{escape(name)}</th><td><code>{escape(value)}</code></td></tr>"
            for name, value in self.data.get("rows", ())
        )
        return f'<table class="table table-striped table-condensed"><tbody>{rows}</tbody></table>'


def add_panel(registry: Any) -> None:
    """Add the panel, if the application of that registry has included the toolbar."""
    toolbar = registry.queryUtility(IToolbarWSGIApp)
    if toolbar is not None:
        panels = toolbar.registry.getUtility(IPanelMap)
        panels[(SessionPanel.name, False)] = SessionPanel
