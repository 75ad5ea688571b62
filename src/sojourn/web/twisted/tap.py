"""The options and the service of `twistd sojourn`: those of `twistd web`, and `--store`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from twisted.application.service import MultiService
from twisted.python import usage
from twisted.web import tap

from sojourn.errors import ConfigurationError
from sojourn.manager import SessionManager
from sojourn.web.twisted import install
from sojourn.web.twisted.cgi import CGIScript
from sojourn.web.twisted.service import SweeperService
from sojourn.web.twisted.wsgi import WSGIResource

__all__ = ["Options", "makeService"]

_STORE = "sqlite:///sessions.db"


class Options(tap.Options):
    """As of `twistd web`, with a store for the sessions."""

    synopsis = "[sojourn options]"
    longdesc = (
        "Serves what `twistd web` serves, with sessions that are kept in a store: they outlive "
        "the server, and several servers share them. Code that uses request.getSession() stays "
        "as it is."
    )
    optParameters = [  # noqa: RUF012 (as usage.Options has it)
        *tap.Options.optParameters,
        ["store", None, _STORE, "Where sessions are kept, as a URL."],
    ]

    def opt_path(self, path: str) -> None:
        """A file or a directory to serve: HTML, .rpy, .epy, .cgi and any other files."""
        super().opt_path(path)
        self["root"].processors[".cgi"] = CGIScript

    def opt_wsgi(self, name: str) -> None:
        """The full name of a WSGI application, with the session in its environment."""
        super().opt_wsgi(name)
        stock = self["root"]
        self["root"] = WSGIResource(stock._reactor, stock._threadpool, stock._application)

    def postOptions(self) -> None:
        super().postOptions()
        if self["personal"]:
            raise usage.UsageError(
                "--personal publishes a site to another server; use `twistd web`"
            )
        try:
            self["sessions"] = SessionManager(self["store"])
        except ConfigurationError as error:
            raise usage.UsageError(f"--store: {error}") from error
        url, served = urlsplit(self["store"]), getattr(self["root"], "path", None)
        if url.scheme in ("sqlite", "directory") and served is not None:
            kept = Path(unquote(url.path).removeprefix("/")).resolve()
            if kept.is_relative_to(Path(served).resolve()):
                raise usage.UsageError(
                    f"--store: {kept} lies in what --path gives to everybody; keep the sessions "
                    "elsewhere, as --store sqlite:////var/lib/shop/sessions.db does"
                )


def makeService(config: Options) -> MultiService:  # noqa: N802, RUF100 (the plugin's contract)
    """Return the service: ports, and a sweeper."""
    service: MultiService = tap.makeService(config)
    sessions = config["sessions"]
    for port in service:
        install(port.factory, sessions)
    SweeperService(sessions).setServiceParent(service)
    return service
