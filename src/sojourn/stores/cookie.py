"""The whole record, sealed, in the browser's cookie: nothing is kept on the server.

What that can do and what it cannot, plainly:

* A copied cookie works until its own deadline, also after logout, after "end all my sessions", and
  after a renewal. Nobody can end it but the keys' owner, for everybody, by taking the key away.
* Two requests at once do not see each other: the browser keeps the cookie of the last answer.
* Sessions cannot be listed, counted or swept, so no handler runs for one that expires.
* Browsers take 4,096 bytes of name and value; a session that needs more is refused.

Use it where the session is small and where losing a change or a late logout does no harm.
"""

from __future__ import annotations

import builtins
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import NoReturn

import msgspec

from sojourn.core.record import Ended, Record
from sojourn.core.sealing import Sealer
from sojourn.core.token import Entropy, Token
from sojourn.errors import ConfigurationError, DamagedRecord, InvalidValue
from sojourn.stores.base import Promises
from sojourn.stores.memory import MemoryStore

__all__ = ["CookieJar", "CookieStore", "from_url"]

MAX_COOKIE = 4096
"""Name and value together (RFC 6265bis, section 5.6)."""
_SECRET = 43


class CookieStore:
    """Where the record of a request comes from and goes to: its cookie."""

    promises = Promises(
        survives="power",
        shared="hosts",
        revokes=False,
        merges=False,
        lists=False,
        inline=True,
        note="The record is in the browser. A copied cookie works until its deadline.",
    )

    def __init__(self, keys: Sequence[bytes | str], *, entropy: Entropy = os.urandom) -> None:
        """Seal with the first of these keys, open with any.

        Raises:
            ConfigurationError: no key, a short or guessable one, or no `cryptography` package.
        """
        self._sealer = Sealer(keys)
        self._entropy = entropy

    def jar(self, values: Sequence[str], name: str) -> CookieJar:
        """Return the store of one request, with what its cookies hold.

        Args:
            values: of all cookies of that name.
            name: of the cookie; a value moved to another name does not open.
        """
        return CookieJar(self._sealer, self._entropy, values, name)

    def load(self, sid: str) -> NoReturn:
        """Refuse: there is nothing on the server."""
        raise _nothing_here("found by its sid")

    def create(self, record: Record) -> NoReturn:
        """Refuse: there is nothing on the server."""
        raise _nothing_here("made without a request")

    def replace(self, record: Record, expected_version: int) -> NoReturn:
        """Refuse: there is nothing on the server."""
        raise _nothing_here("changed without a request")

    def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> NoReturn:
        """Refuse: there is nothing on the server."""
        raise _nothing_here("extended without a request")

    def delete(self, sid: str, ended: Ended | None = None) -> NoReturn:
        """Refuse: there is nothing on the server."""
        raise _nothing_here("ended from elsewhere")

    def due(self, now: float, lease: float, limit: int = 100) -> builtins.list[Record]:
        """Return nothing: a sealed record is over by its own deadline."""
        return []

    def list(
        self, user: str | None = None, status: int | None = 0, after: str = "", limit: int = 100
    ) -> NoReturn:
        """Refuse: there is nothing on the server."""
        raise _nothing_here("listed")

    def count(self, user: str | None = None, status: int | None = 0) -> NoReturn:
        """Refuse: there is nothing on the server."""
        raise _nothing_here("counted")

    def close(self) -> None:
        """Nothing to close."""


class CookieJar(MemoryStore):
    """A store for one request: the records that its cookies hold, in memory.

    Within its request it keeps the whole contract; that others' requests are not here is what the
    cookie store cannot do.
    """

    promises = CookieStore.promises

    def __init__(self, sealer: Sealer, entropy: Entropy, values: Sequence[str], name: str) -> None:
        """Open what can be opened; anything else is as if no cookie had come."""
        super().__init__()
        self._sealer = sealer
        self._entropy = entropy
        self._name = name
        self._bound_to = b"sojourn cookie\0" + name.encode()
        self._came: dict[str, Record] = {}
        self.tokens: list[Token] = []
        for value in values[:4]:
            opened = self._open(value)
            if opened is not None:
                token, record = opened
                self.tokens.append(token)
                self._came[record.sid] = record
                self.create(record)

    def sealed(self, token: Token | None) -> str | None:
        """Return the new value of the cookie, if the record was written.

        Args:
            token: what opens the session from now on.

        Raises:
            InvalidValue: browsers would drop a cookie of that size.
        """
        record = None if token is None else self.load(token.sid)
        if token is None or record is None or record == self._came.get(token.sid):
            return None
        value = self._seal(record, token.secret)
        size = len(self._name) + len(value)
        if size > MAX_COOKIE:
            raise InvalidValue(
                f"the session does not fit into a cookie: its values take {len(record.data):,} "
                f"bytes, sealed and spelt as text {len(value):,}, with the name {self._name!r} "
                f"{size:,}; browsers take {MAX_COOKIE:,} and drop a longer one. Keep less in the "
                "session, or use a store on the server"
            )
        self._came[token.sid] = record
        return value

    def _open(self, value: str) -> tuple[Token, Record] | None:
        try:
            raw = urlsafe_b64decode(value.encode("ascii") + b"=" * (-len(value) % 4))
            # Only the spelling that we write: no two values mean the same.
            if urlsafe_b64encode(raw).rstrip(b"=").decode() != value:
                return None
            plain = self._sealer.open(raw, self._bound_to)
            record = _decode(plain[_SECRET:])
        except (ValueError, DamagedRecord, msgspec.DecodeError):
            return None
        return Token(record.sid, plain[:_SECRET].decode()), record

    def _seal(self, record: Record, secret: str) -> str:
        plain = secret.encode() + _encode(record)
        sealed = self._sealer.seal(plain, self._bound_to, self._entropy)
        return urlsafe_b64encode(sealed).rstrip(b"=").decode()


def from_url(url: str) -> CookieStore:
    """Open the store with keys from a file: one key a line, the newest first.

    `cookie:///relative/keys.txt` or `cookie:////absolute/keys.txt`.

    Raises:
        ConfigurationError: no such file, or no good key in it.
    """
    # As with sqlite: three slashes before a relative path, four before an absolute one.
    path = url.partition(":///")[2]
    try:
        with open(path, encoding="utf-8") as file:
            keys = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"the keys of the cookie store cannot be read from {path!r} ({error}); it must be a "
            "text file with one key a line, the newest first"
        ) from error
    return CookieStore(keys)


def _nothing_here(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"with the cookie store a session cannot be {what}: nothing is kept on the server. Use a "
        "store on the server, for example sqlite:///sessions.db"
    )


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode
