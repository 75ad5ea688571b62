"""The token that a browser holds: `<sid>.<secret>`.

The sid is 16 random bytes (22 characters of URL-safe base64 without padding), the secret 32 (43
characters). Only the spelling that an encoder would write is taken (the spare bits of the last
character are zero), so no two tokens mean the same. Lengths: OWASP ASVS 5.0, 7.2.3 asks for at
least 128 bits from a CSPRNG.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest

import msgspec

__all__ = [
    "SID_LENGTH",
    "TOKEN_LENGTH",
    "TOKEN_PATTERN",
    "Entropy",
    "Token",
    "base64_of",
    "drawn",
    "hash_secret",
    "is_sid",
    "name_to_sid",
    "new_secret",
    "new_sid",
    "parse_token",
    "same_hash",
]

SID_LENGTH = 22
SECRET_LENGTH = 43
TOKEN_LENGTH = SID_LENGTH + 1 + SECRET_LENGTH

Entropy = Callable[[int], bytes]
"""`os.urandom` or a test's own: n -> n random bytes."""

_SID = r"[A-Za-z0-9_-]{21}[AQgw]"
TOKEN_PATTERN = rf"({_SID})\.([A-Za-z0-9_-]{{42}}[AEIMQUYcgkosw048])"
"""A token as a regular expression, its halves in groups."""
_is_sid = re.compile(_SID).fullmatch
_match_token = re.compile(TOKEN_PATTERN).fullmatch


class Token(msgspec.Struct, frozen=True, gc=False):
    """A well-formed token in its two halves."""

    sid: str
    secret: str

    def __str__(self) -> str:
        return f"{self.sid}.{self.secret}"

    def __repr__(self) -> str:
        # The secret logs people in: it never reaches a log or a traceback.
        return f"Token(sid={self.sid!r}, secret=...)"


def parse_token(text: str) -> Token | None:
    """Return the two halves, or None for anything that is not exactly a token."""
    # The length is checked first, so that a megabyte costs no more than a byte.
    if len(text) != TOKEN_LENGTH:
        return None
    found = _match_token(text)
    return None if found is None else Token(*found.groups())


def is_sid(text: str) -> bool:
    """Tell whether the text is spelt like a sid."""
    return _is_sid(text) is not None


def new_sid(entropy: Entropy) -> str:
    """Return a sid never used before."""
    return base64_of(drawn(entropy, 16))


def new_secret(entropy: Entropy) -> str:
    """Return a secret never used before."""
    return base64_of(drawn(entropy, 32))


def drawn(entropy: Entropy, size: int) -> bytes:
    """Return that many random bytes; there is no weaker source to fall back to.

    Raises:
        ValueError: the source gave fewer or more.
    """
    raw = entropy(size)
    if len(raw) != size:
        raise ValueError(f"the random source gave {len(raw)} bytes; {size} were asked for")
    return raw


def name_to_sid(name: str) -> str:
    """Return the sid under which a flow keeps a record of its own (a `MARK`)."""
    return base64_of(sha256(name.encode("utf-8", "surrogatepass")).digest()[:16])


def hash_secret(secret: str) -> bytes:
    """Return what a store may know of a secret: the SHA-256 of its 43 characters."""
    return sha256(secret.encode()).digest()


same_hash = compare_digest


def base64_of(raw: bytes) -> str:
    """Return bytes as a token spells them: URL-safe base64 without padding."""
    return urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
