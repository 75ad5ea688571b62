"""A request and an answer, as small as this site needs them."""

from __future__ import annotations

from functools import cached_property
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from sojourn.core.session import Session
from sojourn.web.wsgi import KEY

if TYPE_CHECKING:
    from sojourn.cli.demo.site import Demo

__all__ = ["HttpError", "Request", "Response", "json", "redirect"]

MAX_BODY = 16 * 1024
MAX_FIELDS = 20
FORM = "application/x-www-form-urlencoded"


class HttpError(Exception):
    """An answer that is an error page; nothing that the request did is kept."""

    def __init__(self, status: int, text: str, *headers: tuple[str, str]) -> None:
        """Say what came, and what to do."""
        super().__init__(text)
        self.status = HTTPStatus(status)
        self.headers = list(headers)


class Response(NamedTuple):
    """An answer: the body is all there."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def redirect(path: str) -> Response:
    """Return an answer that leads to a page of this site, by GET."""
    # A path only: the Host header is the client's word, and nothing is built from it.
    return Response(303, [("Location", path)], b"")


def json(value: Any, status: int = 200) -> Response:
    """Return an answer in JSON."""
    return Response(status, [("Content-Type", "application/json")], msgspec.json.encode(value))


class Fields(dict[str, str]):
    """Parameters of a request; a missing one is an empty text."""

    def __missing__(self, key: str) -> str:
        return ""


class Request:
    """One request."""

    def __init__(self, demo: Demo, environ: dict[str, Any]) -> None:
        """Take what is needed from the WSGI environment."""
        self.demo = demo
        self.environ = environ
        self.method: str = environ["REQUEST_METHOD"]
        self.path: str = environ.get("PATH_INFO", "")

    @property
    def session(self) -> Session:
        """The visitor's session."""
        return self.environ[KEY]  # type: ignore[no-any-return]

    @cached_property
    def query(self) -> Fields:
        """The parameters in the address."""
        return _fields(self.environ.get("QUERY_STRING", ""))

    @cached_property
    def form(self) -> Fields:
        """The fields of a form that was sent.

        Raises:
            HttpError: not a form, or too large.
        """
        environ = self.environ
        if environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != FORM:
            raise HttpError(415, "Only forms of this site's pages are taken here.")
        try:
            length = int(environ.get("CONTENT_LENGTH") or 0)
        except ValueError:
            length = 0
        if length > MAX_BODY:
            raise HttpError(413, f"The form is too large: at most {MAX_BODY:,} bytes are taken.")
        return _fields(environ["wsgi.input"].read(length).decode("latin-1"))

    def accepts_json(self) -> bool:
        """Tell whether a script asks, and not a form."""
        return bool(self.environ.get("HTTP_ACCEPT") == "application/json")


def _fields(text: str) -> Fields:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise HttpError(400, f"At most {MAX_FIELDS} fields are taken.") from None
    return Fields(pairs)
