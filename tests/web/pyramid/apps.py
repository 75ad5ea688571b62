"""Pyramid applications for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from wsgiref.validate import validator

from pyramid.config import Configurator
from pyramid.response import Response

from sojourn.web.pyramid import SessionFactory

from ..kit import Answer, Handler, Headers, Site, call_wsgi, environ


def make_app(
    factory: SessionFactory,
    view: Callable[[Any], Any],
    *,
    include: bool = True,
    configure: Callable[[Configurator], object] = lambda config: None,
    settings: dict[str, Any] | None = None,
) -> Any:
    """Return a WSGI application of one view, for every path.

    Args:
        factory: of the sessions.
        view: gets the request, returns a text, bytes, or a response.
        include: by `config.include`; else by the factory alone.
        configure: does more with the configurator.
        settings: of the application.
    """
    config = Configurator(settings=settings)
    if include:
        config.include(factory.includeme)
    else:
        config.set_session_factory(factory)

    def any_path(request: Any) -> Any:
        made = view(request)
        return (
            made if hasattr(made, "app_iter") else Response(_bytes(made), content_type="text/plain")
        )

    config.add_route("any", "/*path")
    config.add_view(any_path, route_name="any")
    configure(config)
    return config.make_wsgi_app()


def _bytes(made: Any) -> bytes:
    return made if isinstance(made, bytes) else str(made).encode()


class PyramidSite(Site):
    """Behind `config.include`."""

    colour = "pyramid"
    include = True

    def _request(
        self,
        handler: Handler,
        cookie: str,
        headers: Headers,
        status: int,
        https: bool,
        on_event: Callable[[str], object],
        path: str,
    ) -> Answer:
        def view(request: Any) -> Any:
            body = _bytes(handler(request.session))
            return Response(
                app_iter=[body],
                status=status,
                headerlist=[("Content-Type", "text/plain"), *headers],
            )

        app = make_app(SessionFactory(self.sessions), view, include=self.include)
        env = environ(cookie=cookie, https=https, path=path)
        return call_wsgi(validator(app), env, on_event=on_event)


class FactorySite(PyramidSite):
    """Behind `config.set_session_factory`."""

    colour = "pyramid, factory alone"
    include = False


KINDS: dict[str, type[Site]] = {"include": PyramidSite, "factory": FactorySite}
