"""Flask's own sessions: all values as JSON, compressed where that helps, in a signed cookie.

The bare application is Flask without a secret key, for which it makes no session.
"""

from __future__ import annotations

import warnings
from typing import Any

from benchmarks.calling import VALUE, call_wsgi
from benchmarks.scenarios import Action
from benchmarks.subjects import Missing, Subject

__all__ = ["subject"]


def subject() -> Subject:
    """Return it, as its documentation sets it up."""
    try:
        import flask
    except ImportError as error:
        raise Missing(f"Flask is not installed ({error})") from None

    # Of cookies that browsers drop; the benchmark says so itself.
    warnings.filterwarnings("ignore", "The 'session' cookie is too large")

    def make(action: Action | None, secret: str | None = "k" * 32) -> Any:
        app = flask.Flask("bench")
        app.secret_key = secret
        if action is None:
            app.add_url_rule("/", "view", lambda: "untouched")
        else:
            todo = action
            app.add_url_rule("/", "view", lambda: todo(flask.session, flask.request.environ[VALUE]))
        return app

    return Subject("Flask cookie", ("bare Flask", lambda: make(None, None)), make, call_wsgi)
