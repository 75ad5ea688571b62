"""Form tokens: a value that only pages of this session can know.

The token is derived from the record's salt, so that it needs no write, survives a renewal and
changes at a login. On each page it stands under a new mask, so that compression gives nothing away
of it (BREACH).
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode

from sojourn.core.token import Entropy, drawn

__all__ = ["check", "form_token"]

_SIZE = 32


def form_token(salt: bytes, entropy: Entropy) -> str:
    """Return the token of a record's salt, masked anew: 86 characters of URL-safe base64."""
    mask = drawn(entropy, _SIZE)
    return urlsafe_b64encode(mask + _xor(mask, _plain(salt))).rstrip(b"=").decode()


def check(salt: bytes, token: object) -> bool:
    """Tell whether a token that came in is one of this salt; anything at all may come in.

    Forms are text in most frameworks, and bytes in Twisted.
    """
    if not salt or not isinstance(token, (str, bytes)) or len(token) != 86:
        return False
    try:
        plain = token.encode("ascii") if isinstance(token, str) else token
        raw = urlsafe_b64decode(plain + b"==")
    except ValueError:
        return False
    if len(raw) != 2 * _SIZE:
        return False
    return hmac.compare_digest(_xor(raw[:_SIZE], raw[_SIZE:]), _plain(salt))


def _plain(salt: bytes) -> bytes:
    return hmac.digest(salt, b"sojourn form token", "sha256")


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one) ^ int.from_bytes(other)).to_bytes(_SIZE)
