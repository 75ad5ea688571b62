"""The site: `SessionSite(resource, sessions)`, or `install(site, sessions)` on one that exists."""

# Twisted has few types; and a Deferred with a callback need not be awaited.
# mypy: disable-error-code="no-untyped-call,unused-awaitable"

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from twisted.web import server

from sojourn.manager import SessionManager
from sojourn.web.twisted.realm import Realm, manager_of, realm_of
from sojourn.web.twisted.request import Request, durable_factory
from sojourn.web.twisted.session import Session

__all__ = ["LiveSessions", "SessionSite", "install"]

if TYPE_CHECKING:
    _Base = server.Site
else:
    # It is put before the class, whichever it is.
    _Base = object


class LiveSessions(MutableMapping[bytes, Any]):
    """`site.sessions`: those in use in this process, by uid; not all that are in the store.

    What an application puts into it itself is found by its stock cookie and is of this process
    only, as ever.

    Attributes:
        by_hand: these.
    """

    def __init__(self, realm: Realm, by_hand: dict[bytes, Any]) -> None:
        """Show the live sessions of a realm."""
        self._realm = realm
        self.by_hand = by_hand

    def __getitem__(self, uid: bytes) -> Any:
        if uid in self.by_hand:
            return self.by_hand[uid]
        live = self._realm.live.get(uid.decode("latin-1"))
        face = None if live is None else live.face
        if face is None:
            raise KeyError(uid)
        return face

    def __setitem__(self, uid: bytes, session: Any) -> None:
        self.by_hand[uid] = session

    def __delitem__(self, uid: bytes) -> None:
        if uid in self.by_hand:
            del self.by_hand[uid]
        else:
            # The stock session's way to end: ours has done it already, or does it now.
            live = self._realm.live.get(uid.decode("latin-1"))
            face = None if live is None else live.face
            if face is not None:
                face.end("user")

    def __iter__(self) -> Iterator[bytes]:
        yield from list(self.by_hand)
        yield from [sid.encode() for sid, live in list(self._realm.live.items()) if live.face]

    def __len__(self) -> int:
        return sum(1 for _ in self)


class DurableSite(server.Site):
    """What makes a Site one with durable sessions; put before the class.

    It is a Site itself, or no other one could become one in place.
    """

    _realm: Realm

    def _adopt(self, sessions: SessionManager | str | None) -> None:
        by_hand = dict(self.sessions)
        self._realm = realm_of(manager_of(sessions), getattr(self, "reactor", None))
        self.sessions = LiveSessions(self._realm, by_hand)  # type: ignore[assignment]

    def buildProtocol(self, addr: Any) -> Any:
        """Make a channel, whose requests have durable sessions."""
        channel = super().buildProtocol(addr)
        channel.requestFactory = durable_factory(self.requestFactory)
        return channel

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state.pop("_realm", None)
        return state


class SessionSite(DurableSite, server.Site):
    """A Site whose sessions outlive the process."""

    requestFactory = Request
    sessionFactory = Session

    def __init__(
        self,
        resource: Any,
        sessions: SessionManager | str | None = None,
        requestFactory: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Serve a resource.

        Args:
            resource: the root.
            sessions: the manager, or the URL of a store; None: in memory.
            requestFactory: as of `twisted.web.server.Site`, like all that follows.
            args, kwargs: as of `twisted.web.server.Site`.
        """
        if sessions is not None and not isinstance(sessions, (SessionManager, str)):
            # The stock arguments: the second one is a request factory.
            if requestFactory is not None:
                args = (requestFactory, *args)
            sessions, requestFactory = None, sessions
        super().__init__(resource, requestFactory, *args, **kwargs)
        self._adopt(sessions)


_sites: dict[type, type] = {}


def install(site: Any, sessions: SessionManager | str) -> Any:
    """Give an existing Site durable sessions, in place; returns it.

    Args:
        site: a `twisted.web.server.Site`, or of a subclass.
        sessions: the manager, or the URL of a store.
    """
    kind = type(site)
    if not issubclass(kind, DurableSite):
        made = _sites.get(kind)
        if made is None:
            made = type(kind.__name__, (DurableSite, kind), {"__module__": kind.__module__})
            _sites[kind] = made
        site.__class__ = made
    site._adopt(sessions)
    return site
