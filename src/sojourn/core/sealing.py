"""Sealing at rest: AES-256-GCM under a list of keys, newest first.

A sealed text is::

    1 byte    0x81, the version of the seal: one fixed suite, nothing to negotiate
    8 bytes   the id of the key: the start of the SHA-256 of a derivation of it
    24 bytes  a random salt
    rest      AES-256-GCM of the text under HMAC-SHA-256(key, salt), nonce zero, 16 bytes of tag

A key for each seal, derived from 192 random bits, so that no nonce can meet again under one key
however many seals are made, also after a fork. What the seal belongs to (the sid, the cookie's
name) is bound in as associated data: a sealed text moved elsewhere does not open.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256

from sojourn.core.token import Entropy, drawn
from sojourn.errors import ConfigurationError, DamagedRecord

__all__ = ["SEAL", "Sealer"]

SEAL = 0x81
_HEAD = 33
_ZERO_NONCE = bytes(12)


class Sealer:
    """Seals with the first key, opens with any."""

    def __init__(self, keys: Sequence[bytes | str]) -> None:
        """Take the keys, newest first.

        Raises:
            ConfigurationError: no key, one shorter than 32 bytes, a guessable one, or no
                `cryptography` package.
        """
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise ConfigurationError(
                "sealing needs the package cryptography: pip install 'sojourn[seal]'"
            ) from None
        self._aead = AESGCM
        if isinstance(keys, (bytes, str)) or not keys:
            raise ConfigurationError(
                "seal_keys must be a list of keys, newest first, with at least one key"
            )
        self._keys: dict[bytes, bytes] = {}
        for place, key in enumerate(keys):
            raw = _checked(key, place)
            self._keys[_key_id(raw)] = raw
        self._newest = next(iter(self._keys))

    def seal(self, text: bytes, bound_to: bytes, entropy: Entropy) -> bytes:
        """Return the text sealed with the newest key and bound to something."""
        salt = drawn(entropy, 24)
        key = hmac.digest(self._keys[self._newest], salt, "sha256")
        head = bytes((SEAL,)) + self._newest + salt
        return head + self._aead(key).encrypt(_ZERO_NONCE, text, head + bound_to)

    def open(self, sealed: bytes, bound_to: bytes) -> bytes:
        """Return what was sealed.

        Raises:
            DamagedRecord: changed, cut, moved from elsewhere, or under a key not listed.
        """
        head = sealed[:_HEAD]
        if len(sealed) < _HEAD + 16 or head[0] != SEAL:
            raise DamagedRecord("the data is not sealed, and seal_keys are set")
        key = self._keys.get(head[1:9])
        if key is None:
            raise DamagedRecord("the data is sealed with a key that is not in seal_keys")
        key = hmac.digest(key, head[9:], "sha256")
        from cryptography.exceptions import InvalidTag

        try:
            return self._aead(key).decrypt(_ZERO_NONCE, sealed[_HEAD:], head + bound_to)
        except InvalidTag:
            raise DamagedRecord("the seal of the data is broken") from None


def _key_id(key: bytes) -> bytes:
    return sha256(hmac.digest(key, b"sojourn key id", "sha256")).digest()[:8]


def _guessable(key: bytes) -> bool:
    """Tell a key that somebody made up: few different bytes, a repetition, a word of samples."""
    lower = key.lower()
    return (
        len(set(key)) < 10
        or (key + key).find(key, 1) < len(key)
        or any(word in lower for word in _SAMPLE_WORDS)
    )


_SAMPLE_WORDS = (
    b"secret",
    b"changeme",
    b"change_me",
    b"change-me",
    b"password",
    b"example",
    b"insecure",
    b"your-",
    b"your_",
    b"0123456789",
    b"abcdefghij",
    b"qwerty",
)


def _checked(key: bytes | str, place: int) -> bytes:
    if isinstance(key, str):
        key = key.encode()
    if not isinstance(key, bytes) or len(key) < 32 or _guessable(key):
        what = "is not random: a repetition, a word of samples, or few different characters"
        if not isinstance(key, bytes) or len(key) < 32:
            what = "is too short, or no bytes or str"
        raise ConfigurationError(
            f"seal_keys[{place}] {what}; it must be at least 32 random bytes. Make one with: "
            "python -c 'import secrets; print(secrets.token_hex(32))'"
        )
    # One length for HMAC, whatever was given; a longer key loses nothing.
    return sha256(key).digest()
