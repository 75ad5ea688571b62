"""Durable sessions for one subtree of any Site: `SessionResource(inner, sessions)`.

Also the way in where there is no Site of one's own: an `.rpy` script under `twistd web --path`.
"""

# Twisted has few types; and a Deferred with a callback need not be awaited.
# mypy: disable-error-code="no-untyped-call,unused-awaitable"

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET
from twisted.web.util import DeferredResource
from zope.interface import implementer

from sojourn.manager import SessionManager
from sojourn.web.twisted.realm import manager_of, realm_of
from sojourn.web.twisted.request import adopt

__all__ = ["SessionResource"]


@implementer(IResource)
class SessionResource(Resource):
    """A resource around another, with sessions for it and all below it."""

    def __init__(self, inner: Any, sessions: SessionManager | str) -> None:
        """Serve `inner`.

        Args:
            inner: a resource.
            sessions: the manager; or the URL of a store, for one manager in this process. That is
                what a script wants which is run at each request.
        """
        super().__init__()
        self.inner = inner
        self._realm = realm_of(manager_of(sessions))

    @property
    def isLeaf(self) -> Any:  # type: ignore[override]
        """As of the resource inside."""
        return self.inner.isLeaf

    def _load(self, request: Any) -> Deferred[Any] | None:
        if not adopt(request, self._realm) or request._opened is not None:
            return None
        waiting: Deferred[Any] | None = request._load()
        return waiting

    def getChildWithDefault(self, path: bytes, request: Any) -> Any:
        """Load the session, then look further."""
        waiting = self._load(request)
        if waiting is None:
            return self.inner.getChildWithDefault(path, request)
        request.prepath.pop()
        request.postpath.insert(0, path)
        found: Deferred[Any] = Deferred()
        waiting.addCallback(lambda _: request._go_on(lambda: found.callback(self.inner)))
        return DeferredResource(found)

    def render(self, request: Any) -> Any:
        """Load the session, then render."""
        waiting = self._load(request)
        if waiting is None:
            return self.inner.render(request)
        waiting.addCallback(lambda _: request._go_on(lambda: request.render(self.inner)))
        # What the resource raises is the request's failure, as it is without waiting.
        waiting.addErrback(request.processingFailed)
        return NOT_DONE_YET

    def putChild(self, path: bytes, child: Any) -> None:
        """Add a child to the resource inside."""
        self.inner.putChild(path, child)
