"""Twisted Web: `request.getSession()` that survives.

    from twisted.web.server import Site           from sojourn.web.twisted import SessionSite
    site = Site(root)                        ->   site = SessionSite(root, sessions)

`install(site, sessions)` does it to a Site that exists, `SessionResource(inner, sessions)` to one
subtree of any.
"""

from __future__ import annotations

from sojourn.web.twisted.deferred import DeferredSessions
from sojourn.web.twisted.request import Request
from sojourn.web.twisted.resource import SessionResource
from sojourn.web.twisted.session import Session
from sojourn.web.twisted.site import SessionSite, install

__all__ = ["DeferredSessions", "Request", "Session", "SessionResource", "SessionSite", "install"]
