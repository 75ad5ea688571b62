"""The session factory, by hand or from settings, and what `config.include` adds to it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyramid.request
from pyramid.interfaces import PHASE3_CONFIG, ISessionFactory
from pyramid.response import Response
from pyramid.tweens import EXCVIEW
from zope.interface import implementer

from sojourn.errors import ConfigurationError
from sojourn.manager import SessionManager
from sojourn.web.failure import ANSWERED
from sojourn.web.pyramid import events
from sojourn.web.pyramid.old_cookie import OldCookie
from sojourn.web.pyramid.session import Session, SessionUnavailable
from sojourn.web.pyramid.settings import arguments_of
from sojourn.web.pyramid.visit import Visit

__all__ = ["Request", "SessionFactory", "includeme", "tween_factory"]

_LAST = PHASE3_CONFIG + 1000
"""When all that an application configures has been done."""

if TYPE_CHECKING:

    class Request(pyramid.request.Request):  # type: ignore[misc]
        """A request whose session and session manager type checkers know."""

        session: Session
        sessions: SessionManager

else:
    Request = pyramid.request.Request


@implementer(ISessionFactory)
class SessionFactory:
    """Makes `request.session`: `config.set_session_factory(SessionFactory(sessions))`.

    `config.include(SessionFactory(sessions).includeme)` adds what a factory alone cannot: sessions
    that are first looked at by a streaming body or a subscriber of `NewResponse`, answers to errors
    that no view answers, events, `request.sessions` in every view, and the panel of the debug
    toolbar.

    Attributes:
        sessions: the manager.
    """

    def __init__(
        self,
        sessions: SessionManager,
        *,
        set_on_exception: bool | None = None,
        old_cookie: OldCookie | None = None,
    ) -> None:
        """Make sessions of that manager.

        Args:
            sessions: the manager, which has all other settings.
            set_on_exception: whether a request is committed whose answer an exception view made
                (`raise HTTPFound(...)` is one such). None: as for any answer, if its status is
                below 500. What ends in an exception that no view answers is never committed,
                unless the manager's `commit_on_error` says so.
            old_cookie: what Pyramid's `SignedCookieSessionFactory` left with the visitors; each is
                read once, and its data carried over.

        Raises:
            ConfigurationError: not such a manager.
        """
        if not isinstance(sessions, SessionManager):
            raise ConfigurationError(
                f"SessionFactory(sessions) was given {sessions!r}; it must be a SessionManager"
            )
        if old_cookie is not None and sessions._carried:
            raise ConfigurationError(
                "old_cookie needs a store on the server, or a copy of the old cookie would work "
                "for ever; the cookie store keeps nothing there"
            )
        self.sessions = sessions
        self.set_on_exception = set_on_exception
        self.old_cookie = old_cookie
        # The attribute of a request that holds its visit: another manager's is another one.
        self._here = f"_sojourn_{id(sessions):x}"

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> SessionFactory:
        """Make one, and its manager, from the settings of an application (`development.ini`).

        Raises:
            ConfigurationError: with every setting that is wrong.
        """
        manager, factory = arguments_of(settings)
        return cls(SessionManager(**manager), **factory)

    def __repr__(self) -> str:
        return f"<SessionFactory {self.sessions.describe()['store']}>"

    def __call__(self, request: Any) -> Session:
        """Return the session of a request; it is loaded when it is first used."""
        visit: Visit | None = request.__dict__.get(self._here)
        if visit is None:
            visit = self._prepare(request)
        session = visit.session
        return visit.begin(getattr(request, "registry", None)) if session is None else session

    def _prepare(self, request: Any) -> Visit:
        """See to it that the session of a request is committed, if there comes to be one."""
        sessions = self.sessions
        visit = Visit(sessions, request.environ, self.set_on_exception, self.old_cookie)
        request.__dict__[self._here] = visit
        # No request method: a property of one request costs more than all the rest here.
        request.__dict__.setdefault("sessions", sessions)
        request.add_response_callback(visit.respond)
        if sessions.commit_on_error:
            request.add_finished_callback(visit.fail)
        return visit

    def includeme(self, config: Any) -> None:
        """Do what `config.include("sojourn.web.pyramid")` does, with this factory."""
        sessions, registry = self.sessions, config.registry
        config.set_session_factory(self)
        config.add_tween("sojourn.web.pyramid.tween_factory", over=EXCVIEW)
        config.action("sojourn.web.pyramid", _tell, args=(registry, sessions), order=_LAST)


def includeme(config: Any) -> None:
    """Let `config.include("sojourn.web.pyramid")` make sessions as the settings say."""
    SessionFactory.from_settings(config.registry.settings).includeme(config)


def tween_factory(handler: Callable[[Any], Any], registry: Any) -> Callable[[Any], Any]:
    """Make the tween that prepares the session and answers errors that nobody else answers."""
    factory = registry.queryUtility(ISessionFactory)
    if not isinstance(factory, SessionFactory):
        # The application has set another one over ours.
        return handler

    # Once more, with what was added since `include`: a configurator may commit early.
    _tell(registry, factory.sessions)

    def tween(request: Any) -> Any:
        visit = factory._prepare(request)
        try:
            response = handler(request)
        except (SessionUnavailable, *ANSWERED) as error:
            # As for an answer of an exception view: whoever keeps transactions looks for it.
            request.exception = error
            request.exc_info = (type(error), error, None)
            response = Response()
            visit.refuse(response, error)
            return response
        if visit.session is not None and type(response) is Response:
            return _own(request, response)
        return response

    return tween


def _own(request: Any, response: Response) -> Response:
    """Return a response that only this request has: views also return one that they keep.

    The cookie of a visitor must not stay in it for the next one.
    """
    if response is request.__dict__.get("response"):
        return response
    own = Response.__new__(Response)
    own.__dict__.update(response.__dict__)
    own.headerlist = list(response.headerlist)
    # It writes to the response that it was asked of.
    own._cache_control_obj = None
    return own


def _tell(registry: Any, sessions: SessionManager) -> None:
    events.notify(registry, sessions)
    _add_panel(registry)


def _add_panel(registry: Any) -> None:
    """Show sessions in the debug toolbar, where the application has included that."""
    # To import it would change the application.
    if "pyramid_debugtoolbar" in sys.modules:
        from sojourn.web.pyramid.debugtoolbar import add_panel

        add_panel(registry)
