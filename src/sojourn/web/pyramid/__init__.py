"""Pyramid: `config.include("sojourn.web.pyramid")`; views find `request.session`.

Or `config.set_session_factory(SessionFactory(sessions))`, in place of any other session factory.

    session.py      the session, with the whole of `ISession`
    factory.py      the factory, what `include` adds to it, the tween
    visit.py        what is done with the session of one request, and when
    settings.py     settings of an .ini file
    old_cookie.py   carries over what Pyramid's own signed cookies hold
    csrf.py, events.py, debugtoolbar.py
"""

from __future__ import annotations

from sojourn.web.pyramid.csrf import CSRFStoragePolicy
from sojourn.web.pyramid.events import SessionCreated, SessionEnded, SessionRenewed
from sojourn.web.pyramid.factory import Request, SessionFactory, includeme, tween_factory
from sojourn.web.pyramid.old_cookie import OldCookie
from sojourn.web.pyramid.session import Session, SessionUnavailable
from sojourn.web.pyramid.settings import SettingsError

__all__ = [
    "CSRFStoragePolicy",
    "OldCookie",
    "Request",
    "Session",
    "SessionCreated",
    "SessionEnded",
    "SessionFactory",
    "SessionRenewed",
    "SessionUnavailable",
    "SettingsError",
    "includeme",
    "tween_factory",
]
