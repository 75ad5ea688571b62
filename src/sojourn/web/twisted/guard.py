"""HTTP authentication that happens once: `SessionGuard(portal, factories, sessions)`.

The stock guard (`twisted.web.guard`) authenticates each request, and calls the avatar's `logout`
after each answer. Here Basic or Digest opens a session; from then on its cookie tells who it is,
and `logout` is called once, when the session ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from twisted.cred.checkers import ANONYMOUS
from twisted.cred.error import LoginFailed, Unauthorized
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure
from twisted.web.guard import HTTPAuthSessionWrapper
from twisted.web.resource import IResource, Resource
from twisted.web.util import DeferredResource
from zope.interface import implementer

from sojourn.web.twisted.resource import SessionResource

if TYPE_CHECKING:
    from sojourn.manager import SessionManager

__all__ = ["SessionGuard"]

_CLAIM = "guard"
_HOMES = "_sojourn_homes"
"""The attribute of a session, of this process only, with the avatars that serve it."""


class SessionGuard(SessionResource):
    """A resource that asks who it is, once for each session, and serves that user's avatar.

    A login renews the session's secret, and `session.user` is the user's id. Who is logged in by
    another guard, of another `authenticationRealm`, still has to log in here. Requests without
    credentials are let in where the portal knows `IAnonymous`; they have no session.

    Args:
        portal: its realm is asked for an avatar (`IResource`) once for each session in each
            process.
        factories: as of `twisted.web.guard.HTTPAuthSessionWrapper`.
        sessions: the manager, or the URL of a store.
    """

    def __init__(
        self, portal: Any, factories: Sequence[Any], sessions: SessionManager | str
    ) -> None:
        """Guard what the portal's realm gives."""
        super().__init__(_Guard(portal, factories), sessions)


@implementer(IResource)
class _Guard(Resource):
    isLeaf = False

    def __init__(self, portal: Any, factories: Sequence[Any]) -> None:
        super().__init__()
        self.portal = portal
        self.factories = factories
        self.name = _name_of(factories)

    def getChildWithDefault(self, path: bytes, request: Any) -> Any:
        home = self._home(request)
        if home is None:
            return self._challenge(request).getChildWithDefault(path, request)
        request.postpath.insert(0, request.prepath.pop())
        return home

    def render(self, request: Any) -> Any:
        return (self._home(request) or self._challenge(request)).render(request)

    def _challenge(self, request: Any) -> Any:
        """Return the stock guard, for one request that is not logged in."""
        return HTTPAuthSessionWrapper(_Login(self, request), self.factories)

    def _home(self, request: Any) -> Any:
        """Return the avatar of a request that is logged in."""
        if request.getHeader(b"cookie") is None:
            return None
        session = request.getSession()
        members = session.claims.get(_CLAIM, {}) if session.user is not None else {}
        if self.name not in members:
            return None
        home = _homes(session).get(self.name)
        if home is None:
            avatar = members[self.name]
            home = _homes(session)[self.name] = Deferred()
            asked = maybeDeferred(self.portal.realm.requestAvatar, avatar, None, IResource)
            asked.addCallback(self._entered, session).addErrback(self._lost, session)
            asked.addBoth(home.callback)
        if isinstance(home, Deferred):
            return DeferredResource(_copy(home).addErrback(self._refused, request))
        return home

    def _entered(self, found: Any, session: Any) -> Any:
        """Keep an avatar for as long as its session lives."""
        _, avatar, logout = found
        _homes(session)[self.name] = avatar
        session.notifyOnExpire(logout)
        return avatar

    def _lost(self, failure: Failure, session: Any) -> Failure:
        del _homes(session)[self.name]
        return failure

    def _refused(self, failure: Failure, request: Any) -> Any:
        """Ask anew who it is, where the realm does not know its user any more."""
        failure.trap(LoginFailed, Unauthorized)
        return self._challenge(request)

    def enter(self, request: Any, avatar: bytes | str, found: Any) -> Any:
        """Log a user in who has just proved to be one."""
        user = avatar.decode("utf-8", "surrogateescape") if isinstance(avatar, bytes) else avatar
        session = request.getSession()
        claims = dict(session.claims) if session.user == user else {}
        claims[_CLAIM] = {**claims.get(_CLAIM, {}), self.name: avatar}
        # The session of another user ends by that.
        session.login(user, request=request, **claims)
        self._entered(found, request.getSession())
        return found[0], found[1], _nothing


@implementer(IRealm)
class _Login:
    """The portal of one request: the real one's checkers, and a realm that logs in."""

    def __init__(self, guard: _Guard, request: Any) -> None:
        self._guard = guard
        self._request = request

    def login(self, credentials: Any, mind: Any, *interfaces: Any) -> Any:
        portal = Portal(cast(Any, self))
        portal.checkers = self._guard.portal.checkers
        return portal.login(credentials, mind, *interfaces)

    def requestAvatar(self, avatarId: Any, mind: Any, *interfaces: Any) -> Any:
        asked = maybeDeferred(self._guard.portal.realm.requestAvatar, avatarId, mind, *interfaces)
        if avatarId is ANONYMOUS:
            return asked
        return asked.addCallback(lambda found: self._guard.enter(self._request, avatarId, found))


def _homes(session: Any) -> dict[str, Any]:
    homes: dict[str, Any] = vars(session).setdefault(_HOMES, {})
    return homes


def _copy(home: Deferred[Any]) -> Deferred[Any]:
    """Return a Deferred of one's own that fires as another does."""
    copy: Deferred[Any] = Deferred()

    def pass_on(result: Any) -> Any:
        copy.callback(result)
        return None if isinstance(result, Failure) else result

    home.addBoth(pass_on)
    return copy


def _name_of(factories: Sequence[Any]) -> str:
    """Return what the challenges call the place that is guarded."""
    for factory in factories:
        of = getattr(factory, "digest", factory)
        name = getattr(of, "authenticationRealm", None)
        if name is not None:
            return name.decode("latin-1") if isinstance(name, bytes) else str(name)
    return ""


def _nothing() -> None:
    """What the stock guard calls after the answer: the logout comes with the end."""
