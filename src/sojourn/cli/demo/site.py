"""The demo as one WSGI application: routes, error pages, and the headers of every answer."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from http import HTTPStatus
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sojourn.cli.demo import api, pages, words
from sojourn.cli.demo.http import HttpError, Request, Response
from sojourn.errors import Conflict, CsrfError, InvalidValue, StoreUnavailable
from sojourn.manager import SessionManager
from sojourn.web.time_left import SCRIPT, TimeLeft
from sojourn.web.wsgi import SessionMiddleware

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

__all__ = ["Demo", "make_app"]

ROUTES: Mapping[tuple[str, str], Callable[[Request], Response]] = {**pages.ROUTES, **api.ROUTES}

SECURITY = [
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]

TIME_LEFT = "/time/left"
"""What `TimeLeft` is mounted under: how long a session has, and the script that warns."""

_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


def make_app(
    sessions: SessionManager, store: str, clock: Callable[[], float] = time.time
) -> SessionMiddleware:
    """Return the demo with its sessions.

    Args:
        sessions: the manager.
        store: the store's name, to be shown.
        clock: the manager's.
    """
    return SessionMiddleware(Demo(sessions, store, clock), sessions)


class Demo:
    """The application; the middleware around it brings the sessions."""

    def __init__(
        self, sessions: SessionManager, store: str, clock: Callable[[], float] = time.time
    ) -> None:
        """Read templates and files once."""
        self.sessions = sessions
        self.clock = clock
        self.time_left = TimeLeft(warn_before=60)
        self.templates = Environment(
            loader=PackageLoader("sojourn.cli.demo"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.globals.update(store=store, time_left=TIME_LEFT, script=SCRIPT)
        self.templates.filters.update(words.FILTERS)
        self.static = {
            f"/static/{file.name}": (file.read_bytes(), _TYPES[file.name.rpartition(".")[2]])
            for file in files("sojourn.cli.demo").joinpath("static").iterdir()
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        request = Request(self, environ)
        failed: Any = None
        try:
            if (request.method, request.path) == api.STREAM:
                _refuse_foreign(request)
                return api.stream(request, start_response)
            response = self.answer(request)
        except HttpError as error:
            # Given with the answer, it tells the middleware to keep nothing of this request.
            failed = sys.exc_info()
            response = self.error_page(error)
        status, own, body = response
        # By name, as `TimeLeft` brings some of them itself.
        headers = {**dict(own), **dict(SECURITY)}
        if status not in (204, 304):
            headers.setdefault("Content-Length", str(len(body)))
        start_response(f"{status} {HTTPStatus(status).phrase}", list(headers.items()), failed)
        return [b"" if request.method == "HEAD" else body]

    def answer(self, request: Request) -> Response:
        """Find the page and let it answer.

        Raises:
            HttpError: for every answer that is an error page.
        """
        method = "GET" if request.method == "HEAD" else request.method
        mounted = request.path in (TIME_LEFT, f"{TIME_LEFT}/{SCRIPT}")
        page = self.left if mounted else ROUTES.get((method, request.path))
        if page is None:
            if method == "GET" and request.path in self.static:
                return self.file(request)
            allowed = [verb for verb, path in ROUTES if path == request.path]
            if allowed:
                text = "This address does not take that method."
                raise HttpError(405, text, ("Allow", ", ".join(allowed)))
            raise HttpError(404, "There is no page under this address.")
        _refuse_foreign(request)
        try:
            return page(request)
        except CsrfError:
            raise HttpError(
                403,
                "The form was not sent from a page of your present session. That happens after "
                "signing in or out in another tab, after a long pause, or when another site "
                "sends a form in your name. Nothing was changed. Load the page with the form "
                "again and send it from there.",
            ) from None
        except InvalidValue:
            raise HttpError(400, "A session cannot keep that.") from None
        except Conflict:
            raise HttpError(
                409, "Another request changed your session at this moment. Please send it again."
            ) from None
        except StoreUnavailable:
            raise HttpError(
                503, "The sessions cannot be reached at the moment. Please try again shortly."
            ) from None

    def left(self, request: Request) -> Response:
        """Let the endpoint that `sojourn.web` brings answer."""
        head: list[Any] = []
        body = self.time_left.wsgi(request.environ, lambda *given: head.extend(given))  # type: ignore[arg-type]
        return Response(int(head[0][:3]), head[1], b"".join(body))

    def file(self, request: Request) -> Response:
        """Return a file of the site; browsers ask whether it has changed."""
        body, kind = self.static[request.path]
        tag = f'"{sha256(body).hexdigest()[:16]}"'
        headers = [("ETag", tag), ("Cache-Control", "no-cache")]
        if request.environ.get("HTTP_IF_NONE_MATCH") == tag:
            return Response(304, headers, b"")
        return Response(200, [("Content-Type", kind), *headers], body)

    def error_page(self, error: HttpError) -> Response:
        """Return the page of an error; it neither reads nor changes the session."""
        template = self.templates.get_template("error.html")
        body = template.render(title=error.status.phrase, number=error.status, text=str(error))
        headers = [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Cache-Control", "no-store"),
            *error.headers,
        ]
        return Response(error.status, headers, body.encode())


def _refuse_foreign(request: Request) -> None:
    """Refuse what a page of another site has a browser send to change something.

    The pages' forms have a token of the session besides; the JSON routes rest on this and on the
    cookie's SameSite. Browsers from before 2023 may not say `Sec-Fetch-Site`; they say `Origin`.
    """
    if request.method in ("GET", "HEAD"):
        return
    environ = request.environ
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        own = site in ("same-origin", "none")
    else:
        origin = environ.get("HTTP_ORIGIN")
        # Hosts only: behind a proxy the scheme here may be another than the browser's.
        own = origin is None or origin.partition("://")[2].lower() == _host(environ)
    if not own:
        raise HttpError(403, "Another site sent this; only pages of this site may.")


def _host(environ: Mapping[str, Any]) -> str:
    return str(environ.get("HTTP_HOST", "")).lower()
