"""CGI: `with cgi_session(sessions) as session:` around what a script prints.

For a Python script under any web server. What the block prints is held back until it ends, or
flushes, or has printed 64 KiB; then the session is committed, and the head leaves with the
session's headers. A script prints as it always did:

    with cgi_session(SessionManager("sqlite:////srv/site/sessions.db")) as session:
        visits = session.add("visits")
        print("Content-Type: text/plain")
        print()
        print(f"visit {visits}")
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any, cast
from wsgiref.handlers import read_environ
from wsgiref.util import guess_scheme

from sojourn.core.session import Session
from sojourn.errors import ConfigurationError
from sojourn.manager import SessionManager
from sojourn.web.failure import ANSWERED, checked
from sojourn.web.wsgi import Request

__all__ = ["cgi_session"]

_HELD = 64 * 1024
_OK = "200 OK"
_HEADER = re.compile(r"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*:([^\x00-\x08\n-\x1f\x7f]*)\r?")
"""A line of a head: RFC 9110, section 5.5, and no more of it than a server may be handed on."""


@contextlib.contextmanager
def cgi_session(
    sessions: SessionManager, environ: dict[str, str] | None = None, stdout: Any = None
) -> Iterator[Session]:
    """Give the session of the request that this process was started for.

    An exception that leaves the block keeps nothing, like a status of 500 and above (unless
    `commit_on_error`). A store that does not answer becomes a 503, if no head has left yet.

    Args:
        sessions: the manager.
        environ: what the server tells; None: from `os.environ`, as RFC 3875 has it.
        stdout: a binary file to answer to; None: the process's own output.

    Raises:
        ConfigurationError: the script printed something else where its head belongs.
    """
    environ = dict(read_environ() if environ is None else environ)
    environ.setdefault("wsgi.url_scheme", guess_scheme(environ))
    answer = _Answer(sys.stdout.buffer if stdout is None else stdout)
    request = answer.request = Request(checked(sessions), environ, answer.start_response)
    printed = io.TextIOWrapper(
        cast("IO[bytes]", answer), encoding="utf-8", newline="\n", write_through=True
    )
    try:
        try:
            with contextlib.redirect_stdout(printed):
                yield request.session
        except SystemExit as leaving:
            if leaving.code:
                raise
        answer.end()
    except BaseException as error:
        answer.drop()
        known = error is request.session.failure or isinstance(error, ANSWERED)
        if known and not request.sent:
            request.fail(error)
        if request.answer is None:
            request.broke()
            raise
        answer.send(request.answer)
    finally:
        printed.detach()
        request.finish()
        answer.file.flush()


class _Answer(io.RawIOBase):
    """What the script prints: the head is held back, taken apart and sent with the session's."""

    request: Request

    def __init__(self, file: Any) -> None:
        self.file = file
        self._head: bytes | None = b""
        """What was printed of the head; None once that was whole."""
        self._body = b""
        """What was printed of the body and is held back."""
        self._plain = False
        """The script gave no status, so that a Location in its head says which."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        data = bytes(data)
        if self._head is None:
            self._body += data
        else:
            head, self._body = _split(self._head + data)
            if head is None:
                self._head += data
            else:
                self._take(head)
        if len(self._body) > _HELD:
            self.flush()
        return len(data)

    def flush(self) -> None:
        if self._head is None and self._body:
            body, self._body = self._body, b""
            self.request.write_body(body)
            self.file.flush()

    def end(self) -> None:
        """Send what is held back."""
        if self._head is not None:
            if not self._head.strip():
                raise ConfigurationError(
                    "the script printed nothing; it must print a header and an empty line at least"
                )
            self._take(self._head)
        self.flush()
        self.send(self.request.send_head() or [])

    def drop(self) -> None:
        """Forget what is held back."""
        self._head, self._body = b"", b""

    def send(self, body: list[bytes]) -> None:
        """Send the body of an answer in place of the script's."""
        for part in body:
            self.file.write(part)

    def _take(self, raw: bytes) -> None:
        self._head = None
        status, headers = "", []
        # Not `splitlines`: it takes characters for ends of lines that are some of a value.
        lines = raw.decode("latin-1").rstrip("\r\n")
        for line in lines.split("\n") if lines else ():
            header = _HEADER.fullmatch(line)
            if header is None:
                raise ConfigurationError(
                    f"the script printed {line[:80]!r} where its head belongs; a header is "
                    "'Name: value' without control characters, and an empty line ends the head"
                )
            name, value = header[1], header[2].strip(" \t")
            if name.lower() == "status":
                status = value
            else:
                headers.append((name, value))
        self._plain = not status
        self.request.start(status or _OK, headers)

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        """Send a head to the server, as RFC 3875 has it."""
        lines = [] if self._plain and status == _OK else [f"Status: {status}"]
        lines += [f"{name}: {value}" for name, value in headers]
        self.file.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        return self.file.write  # type: ignore[no-any-return]


def _split(raw: bytes) -> tuple[bytes | None, bytes]:
    """Return the head and what follows it; None while the head is not whole."""
    ends = [(raw.find(end), len(end)) for end in (b"\n\n", b"\r\n\r\n", b"\n\r\n")]
    found = min((one for one in ends if one[0] >= 0), default=None)
    if found is None:
        return None, b""
    return raw[: found[0]], raw[sum(found) :]
