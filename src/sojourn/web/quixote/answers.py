"""Responses of Quixote that carry what a session has to tell the browser."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from quixote.errors import INTERNAL_ERROR_MESSAGE
from quixote.http_response import HTTPResponse, Stream

from sojourn.core.cookie import CookieSettings
from sojourn.manager import Committed
from sojourn.web.failure import failure_of
from sojourn.web.headers import with_session

__all__ = ["Failed", "Refusal", "tell"]


class _Told:
    """What a response becomes; mixed into its class, whichever that is.

    A class and no wrapper, since Quixote, its servers and the application all hold the response
    and call it; and no header is set on it, since Quixote makes some of them up at the very end.
    """

    sojourn: tuple[Committed | None, CookieSettings, bool]
    sojourn_end: Callable[[], object]
    sojourn_wsgi: bool

    def enable_transfer_chunked(self) -> None:
        """Leave it to a WSGI server how the body is sent (PEP 3333)."""
        if not self.sojourn_wsgi:
            super().enable_transfer_chunked()  # type: ignore[misc]

    def generate_headers(self) -> list[tuple[str, str]]:
        """Return all headers, those of the session too."""
        headers = list(super().generate_headers())  # type: ignore[misc]
        if self.sojourn_wsgi:
            # Of a stream Quixote says that the connection is closed; servers refuse to be told.
            headers = [header for header in headers if header[0].lower() != "connection"]
        done, cookie, https = self.sojourn
        return headers if done is None else with_session(headers, done, cookie, https)

    def generate_body_chunks(self) -> Any:
        """Return the body; at the end of a stream its changes are committed."""
        chunks = super().generate_body_chunks()  # type: ignore[misc]
        if isinstance(self.body, Stream):  # type: ignore[attr-defined]
            return _to_the_end(chunks, self.sojourn_end)
        return chunks


def _to_the_end(chunks: Iterator[bytes], end: Callable[[], object]) -> Iterator[bytes]:
    try:
        yield from chunks
    except GeneratorExit:
        # The client has gone: what was done until then was done.
        end()
        raise
    end()


@functools.cache
def _told(kind: type) -> type:
    return type(kind.__name__, (_Told, kind), {"__module__": kind.__module__})


def tell(
    response: Any,
    done: Committed | None,
    cookie: CookieSettings,
    https: bool,
    end: Callable[[], object],
    wsgi: bool,
) -> None:
    """Let a response tell the browser of a commit.

    Args:
        response: of Quixote.
        done: what the commit did; None: the session was not looked at, so there is nothing.
        cookie: name and attributes of the cookie.
        https: whether the request came by https.
        end: called when a streamed body has ended.
        wsgi: whether a WSGI server sends it.
    """
    if not isinstance(response, _Told):
        kind: type = type(response)
        response.__class__ = _told(kind)
    response.sojourn = (done, cookie, https)
    response.sojourn_end = end
    response.sojourn_wsgi = wsgi


class _Final(HTTPResponse):  # type: ignore[misc]
    """A response whose body Quixote can no longer change."""

    def set_body(self, body: object, compress: bool = False) -> None:
        """Keep the body; what Quixote would say comes too late."""


class Refusal(_Final):
    """The answer where the session stands in the way of the page."""

    def __init__(self, error: BaseException) -> None:
        """Answer that error; see `sojourn.web.failure`."""
        status, reason, headers, body = failure_of(error)
        super().__init__(status)
        self.reason_phrase = reason
        self.body = body
        for name, value in headers:
            self.set_header(name, value)


class Failed(_Final):
    """Quixote's own page of an error inside."""

    def __init__(self) -> None:
        """Answer 500."""
        super().__init__(500)
        HTTPResponse.set_body(self, INTERNAL_ERROR_MESSAGE)
