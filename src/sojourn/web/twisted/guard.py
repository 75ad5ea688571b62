"""HTTP authentication that happens once: `SessionGuard(portal, factories, sessions)`.

The stock guard (`twisted.web.guard`) authenticates each request, and calls the avatar's `logout`
after each answer. Here Basic or Digest opens a session; from then on its cookie tells who it is,
and `logout` is called once, when the session ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from twisted.cred.checkers import ANONYMOUS
from twisted.cred.credentials import DigestCredentialFactory
from twisted.cred.error import LoginFailed, Unauthorized
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure
from twisted.web.guard import HTTPAuthSessionWrapper
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET
from twisted.web.util import DeferredResource
from zope.interface import implementer

from sojourn.errors import Conflict, StoreUnavailable
from sojourn.web.twisted._log import log
from sojourn.web.twisted.realm import manager_of
from sojourn.web.twisted.resource import SessionResource

if TYPE_CHECKING:
    from sojourn.manager import SessionManager

__all__ = ["SessionGuard"]

_CLAIM = "guard"
_HOMES = "_sojourn_homes"
"""The attribute of a session, of this process only, with the avatars that serve it."""
_WELL_FORMED = re.compile(
    rb' *+(?:[^=", \t]{1,32}+=(?:"[^"]*+"|[^", \t]++)[ \t]{0,8}+(?:,[ \t]{0,8}+|\Z))*+'
)
"""What follows "Digest" in a header. Anything else may cost the stock parser seconds."""
_ALGORITHMS = (b"md5", b"sha")


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
        sessions = manager_of(sessions)
        super().__init__(_Guard(portal, factories, sessions._env.clock), sessions)


@implementer(IResource)
class _Guard(Resource):
    isLeaf = False

    def __init__(self, portal: Any, factories: Sequence[Any], clock: Callable[[], float]) -> None:
        super().__init__()
        self.clock = clock
        self.portal = portal
        self.factories = factories
        self.name = _name_of(factories)
        self.answered: dict[bytes, tuple[float, _Login]] = {}
        """Challenges that were answered, by their nonces: when, and by whom."""

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
        login = _Login(self, request)
        factories = [
            _Digest(factory, login) if factory.scheme == b"digest" else factory
            for factory in self.factories
        ]
        return HTTPAuthSessionWrapper(login, factories)

    def _member(self, session: Any) -> Any:
        """Return the avatar id of a session that is logged in here; None: it is not."""
        return None if session.user is None else session.claims.get(_CLAIM, {}).get(self.name)

    def _home(self, request: Any) -> Any:
        """Return the avatar of a request that is logged in."""
        if request.getHeader(b"cookie") is None:
            return None
        session = request.getSession()
        avatar = self._member(session)
        if avatar is None:
            return None
        home = _homes(session).get(self.name)
        if home is None:
            home = _homes(session)[self.name] = Deferred()
            asked = maybeDeferred(self.portal.realm.requestAvatar, avatar, None, IResource)
            asked.addCallback(self._entered, session).addErrback(self._lost, session, home)
            asked.addBoth(home.callback)
        if isinstance(home, Deferred):
            return DeferredResource(
                _copy(home).addErrback(self._refused, request).addCallback(_if_there, request)
            )
        return home.avatar

    def _entered(self, found: Any, session: Any) -> Any:
        """Keep an avatar for as long as its session lives."""
        home = _Home(found)
        home.settled = True
        session.notifyOnExpire(home.leave)
        if home.over:
            raise Unauthorized("the session ended while its avatar was waited for")
        self._replace(session, home)
        return home.avatar

    def _replace(self, session: Any, home: _Home) -> None:
        before = _homes(session).get(self.name)
        _homes(session)[self.name] = home
        if isinstance(before, _Home) and before.settled:
            before.leave()

    def _lost(self, failure: Failure, session: Any, home: Any) -> Failure:
        if _homes(session).get(self.name) is home:
            del _homes(session)[self.name]
        return failure

    def _refused(self, failure: Failure, request: Any) -> Any:
        """Ask anew who it is, where the realm does not know its user any more."""
        failure.trap(LoginFailed, Unauthorized)
        return self._challenge(request)

    def answer(self, login: _Login, nonce: bytes | None) -> None:
        """Take the answer to a challenge, which opens one session and no other.

        Raises:
            LoginFailed: it was taken already. The client is to answer a new challenge by itself;
                but where the session that it opened has ended, its user is to be asked.
        """
        if nonce is None:
            return
        now = self.clock()
        while self.answered:
            first = next(iter(self.answered))
            if now - self.answered[first][0] <= DigestCredentialFactory.CHALLENGE_LIFETIME_SECS:
                break
            del self.answered[first]
        if nonce in self.answered:
            login.stale = not self.answered[nonce][1].over
            raise LoginFailed("this challenge has been answered before")
        self.answered[nonce] = now, login

    def enter(self, login: _Login, avatar: bytes | str, found: Any) -> Any:
        """Log a user in who has just proved to be one."""
        request = login.request
        home = login.home = _Home(found)
        if request._disconnected:
            home.leave()
            return found[0], _Nobody(), _nothing
        try:
            session = request.getSession()
            user = avatar
            if isinstance(user, bytes):
                user = user.decode("utf-8", "surrogateescape")
            claims = dict(session.claims) if session.user == user else {}
            claims[_CLAIM] = {**claims.get(_CLAIM, {}), self.name: avatar}
            # The session of another user ends by that.
            session.login(user, request=request, **claims)
        except (Conflict, StoreUnavailable) as error:
            # They have answers of their own; the stock guard would make a 500 of them.
            home.leave()
            return found[0], _Raises(error), _nothing
        except BaseException:
            home.leave()
            raise
        session = request.getSession()
        self._replace(session, home)
        session.notifyOnExpire(home.leave)
        request.notifyFinish().addBoth(self._settle, login, session)
        return found[0], home.avatar, _nothing

    def _settle(self, finished: Any, login: _Login, session: Any) -> None:
        """Let an avatar go whose login was not kept, or that another one has replaced."""
        home = login.home
        assert home is not None
        home.settled = True
        request, login.request = login.request, None
        current = _homes(session).get(self.name) is home
        if home.over:
            # Unless its page has ended it already, it never was one.
            login.kept = request.code < 400
        elif request.startedWriting and current and self._member(session) is not None:
            login.kept = True
        else:
            # Without a head nobody has the new cookie, whatever comes of the commit.
            if current:
                del _homes(session)[self.name]
            home.leave()


class _Home:
    """An avatar and its logout.

    Attributes:
        over: the logout was called.
        settled: the request that logged in is over.
    """

    def __init__(self, found: Any) -> None:
        _, self.avatar, self._logout = found
        self.over = self.settled = False

    def leave(self) -> None:
        """Log out, once; what it raises is logged."""
        if not self.over:
            self.over = True
            maybeDeferred(self._logout).addErrback(
                lambda failure: log.failure("the logout of an avatar failed", failure)
            )


class _Digest:
    """A digest factory that takes no answer but a well-formed one."""

    scheme = b"digest"

    def __init__(self, factory: Any, login: _Login) -> None:
        self._factory = factory
        self._login = login

    def getChallenge(self, request: Any) -> dict[str, Any]:
        challenge: dict[str, Any] = self._factory.getChallenge(request)
        return {**challenge, "stale": b"true"} if self._login.stale else challenge

    def decode(self, response: bytes, request: Any) -> Any:
        """Return the credentials.

        Raises:
            LoginFailed: they are none. The stock factory and checkers answer with a 500 to much
                that is no digest.
        """
        if not _WELL_FORMED.fullmatch(response):
            raise LoginFailed("it is no list of names and values")
        try:
            credentials = self._factory.decode(response, request)
        except ValueError as error:
            raise LoginFailed(str(error)) from error
        fields = getattr(credentials, "fields", None)
        if fields is not None and not (
            fields.get("uri")
            and fields.get("qop", b"auth") == b"auth"
            and fields.get("algorithm", b"md5").lower() in _ALGORITHMS
        ):
            raise LoginFailed("it is no answer to this challenge")
        return credentials


@implementer(IRealm)
class _Login:
    """The portal of one request: the real one's checkers, and a realm that logs in.

    Attributes:
        request: which; None: it is over.
        home: the avatar that it got.
        kept: the login was kept.
        stale: the client may answer another challenge without asking its user.
    """

    def __init__(self, guard: _Guard, request: Any) -> None:
        self._guard = guard
        self.request: Any = request
        self.home: _Home | None = None
        self.kept = self.stale = False
        self._nonce: bytes | None = None

    @property
    def over(self) -> bool:
        """Whether it has opened a session, which has ended."""
        return self.kept and self.home is not None and self.home.over

    def login(self, credentials: Any, mind: Any, *interfaces: Any) -> Any:
        self._nonce = getattr(credentials, "fields", {}).get("nonce")
        portal = Portal(cast(Any, self))
        portal.checkers = self._guard.portal.checkers
        return portal.login(credentials, mind, *interfaces)

    def requestAvatar(self, avatarId: Any, mind: Any, *interfaces: Any) -> Any:
        guard = self._guard
        asked: Callable[..., Any] = guard.portal.realm.requestAvatar
        if avatarId is ANONYMOUS:
            return asked(avatarId, mind, *interfaces)
        guard.answer(self, self._nonce)
        return maybeDeferred(asked, avatarId, mind, *interfaces).addCallback(
            lambda found: guard.enter(self, avatarId, found)
        )


class _Raises(Resource):
    """Whatever is looked for below it, the answer is that of an error."""

    isLeaf = True

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def render(self, request: Any) -> Any:
        raise self._error


class _Nobody(Resource):
    """For a client that has gone."""

    isLeaf = True

    def render(self, request: Any) -> Any:
        return NOT_DONE_YET


def _if_there(home: Any, request: Any) -> Any:
    return _Nobody() if request._disconnected else home


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
