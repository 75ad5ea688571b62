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

from sojourn.core.cookie import tokens_in
from sojourn.core.record import Client
from sojourn.errors import ConfigurationError
from sojourn.manager import SessionManager
from sojourn.web.failure import ANSWERED
from sojourn.web.pyramid import events
from sojourn.web.pyramid.old_cookie import OldCookie, Taken
from sojourn.web.pyramid.session import Session, SessionUnavailable
from sojourn.web.pyramid.settings import arguments_of
from sojourn.web.pyramid.visit import Visit, refuse

__all__ = ["Request", "SessionFactory", "includeme", "tween_factory"]

_HERE = "_sojourn_session"
"""The attribute of a request that holds its session, before anybody asked for it."""
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
        here: Session | None = request.__dict__.get(_HERE)
        return self._prepare(request) if here is None else here

    def _prepare(self, request: Any) -> Session:
        """Make the session of a request, and see to it that it is committed."""
        sessions, environ = self.sessions, request.environ
        header = environ.get("HTTP_COOKIE", "")
        https = environ.get("wsgi.url_scheme") == "https"
        client = Client(environ.get("REMOTE_ADDR", ""), environ.get("HTTP_USER_AGENT", ""))
        taken = None
        old = self.old_cookie
        # Whoever has a cookie of ours has been taken over already, or came later.
        if old is not None and not tokens_in(header, sessions.cookie.name_for[https]):
            taken = Taken(old, sessions, header, https, client)
        session = sessions.session(
            header,
            https=https,
            client=client,
            kind=Session,
            load=None if taken is None else taken.open,
        )
        session._registry = getattr(request, "registry", None)
        visit = Visit(sessions, session, environ, self.set_on_exception, taken)
        request.__dict__[_HERE] = session
        # No request method: a property of one request costs more than all the rest here.
        request.__dict__["sessions"] = sessions
        request.add_response_callback(visit.respond)
        if sessions.commit_on_error:
            request.add_finished_callback(visit.fail)
        return session

    def includeme(self, config: Any) -> None:
        """Do what `config.include("sojourn.web.pyramid")` does, with this factory."""
        sessions, registry = self.sessions, config.registry
        config.set_session_factory(self)
        config.add_tween("sojourn.web.pyramid.tween_factory", over=EXCVIEW)

        def last() -> None:
            events.notify(registry, sessions)
            _add_panel(registry)

        config.action("sojourn.web.pyramid", last, order=_LAST)


def includeme(config: Any) -> None:
    """Let `config.include("sojourn.web.pyramid")` make sessions as the settings say."""
    SessionFactory.from_settings(config.registry.settings).includeme(config)


def tween_factory(handler: Callable[[Any], Any], registry: Any) -> Callable[[Any], Any]:
    """Make the tween that prepares the session and answers errors that nobody else answers."""
    factory = registry.queryUtility(ISessionFactory)
    if not isinstance(factory, SessionFactory):
        # The application has set another one over ours.
        return handler

    def tween(request: Any) -> Any:
        session = factory._prepare(request)
        try:
            return handler(request)
        except (SessionUnavailable, *ANSWERED) as error:
            response = Response()
            where = f"{request.environ.get('REQUEST_METHOD')} {request.environ.get('PATH_INFO')!r}"
            refuse(session, response, error, where)
            return response

    return tween


def _add_panel(registry: Any) -> None:
    """Show sessions in the debug toolbar, where the application has included that."""
    # To import it would change the application.
    if "pyramid_debugtoolbar" in sys.modules:
        from sojourn.web.pyramid.debugtoolbar import add_panel

        add_panel(registry)
