"""The step on sessions of Pyramid's quick tutorial: `PYTHONPATH=. pserve development.ini`."""

from __future__ import annotations

from typing import Any

from pyramid.config import Configurator


def main(global_config: Any, **settings: Any) -> Any:
    """Return the WSGI application."""
    config = Configurator(settings=settings)
    config.include("sojourn.web.pyramid")
    config.add_route("home", "/")
    config.add_route("hello", "/howdy")
    config.add_route("add", "/add")
    config.scan(".views")
    return config.make_wsgi_app()
