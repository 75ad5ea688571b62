"""Sealed data opens only as it was sealed, where it was sealed, with a key that is listed."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest

from sojourn.core.sealing import SEAL, Sealer
from sojourn.errors import ConfigurationError, DamagedRecord

OLD, NEW, OTHER = (os.urandom(32) for _ in range(3))
TEXT = b"the data of a session"


def test_comes_back() -> None:
    """What was sealed opens to what it was, of any length."""
    sealer = Sealer([NEW])

    for size in (0, 1, 15, 16, 17, 65536):
        text = os.urandom(size)
        assert sealer.open(sealer.seal(text, b"sid", os.urandom), b"sid") == text


def test_k1_every_flipped_bit() -> None:
    """K1: each bit flipped, each truncation and each byte added breaks the seal."""
    sealer = Sealer([NEW])
    sealed = sealer.seal(TEXT, b"sid", os.urandom)

    for place in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(DamagedRecord):
            sealer.open(bytes(changed), b"sid")
    for size in range(len(sealed)):
        with pytest.raises(DamagedRecord):
            sealer.open(sealed[:size], b"sid")
    with pytest.raises(DamagedRecord):
        sealer.open(sealed + b"\0", b"sid")


@pytest.mark.parametrize("version", [v for v in range(256) if v != SEAL])
def test_k2_no_other_version(version: int) -> None:
    """K2: the first byte names one suite; any other is refused."""
    sealer = Sealer([NEW])
    sealed = sealer.seal(TEXT, b"sid", os.urandom)

    with pytest.raises(DamagedRecord):
        sealer.open(bytes([version]) + sealed[1:], b"sid")


def test_k3_not_elsewhere() -> None:
    """K3: moved to another sid it does not open."""
    sealer = Sealer([NEW])
    sealed = sealer.seal(TEXT, b"one", os.urandom)

    for elsewhere in (b"two", b"", b"one\0", b"on"):
        with pytest.raises(DamagedRecord, match="broken"):
            sealer.open(sealed, elsewhere)


def test_k4_rotation() -> None:
    """K4: the first key seals, every listed one opens, one that is not listed does not."""
    before, both, after, wrong = Sealer([OLD]), Sealer([NEW, OLD]), Sealer([NEW]), Sealer([OTHER])
    by_old = before.seal(TEXT, b"sid", os.urandom)
    by_both = both.seal(TEXT, b"sid", os.urandom)

    assert both.open(by_old, b"sid") == TEXT
    assert after.open(by_both, b"sid") == TEXT
    for sealer, sealed in ((before, by_both), (after, by_old), (wrong, by_old)):
        with pytest.raises(DamagedRecord, match="not in seal_keys"):
            sealer.open(sealed, b"sid")


def test_k6_salts_never_repeat() -> None:
    """K6: of 100,000 seals no two have the same salt, nor does equal text look alike (A5)."""
    sealer = Sealer([NEW])

    sealed = [sealer.seal(b"x", b"sid", os.urandom) for _ in range(100_000)]

    assert len({one[9:33] for one in sealed}) == 100_000
    assert len({one[33:] for one in sealed}) == 100_000


def test_k6_a_salt_too_short() -> None:
    """K6: a random source that gives too little is an error, not a weaker seal."""
    with pytest.raises(ValueError, match="gave 23 bytes"):
        Sealer([NEW]).seal(TEXT, b"sid", lambda size: bytes(size - 1))


@pytest.mark.parametrize(
    "keys",
    [
        [],
        (),
        NEW,
        "a string of more than thirty-two characters",
        [b""],
        [""],
        [b"short"],
        [os.urandom(31)],
        [bytes(32)],
        [b"a" * 64],
        ["ab" * 32],
        ["changeme" * 8],
        ["password" * 8],
        ["0" * 64],
        [None],
        [12345678901234567890123456789012],
        [NEW, b"short"],
    ],
)
def test_k7_weak_keys(keys: Any) -> None:
    """K7: no key, a short one, one of few different characters: refused, with what to do."""
    with pytest.raises(ConfigurationError, match="seal_keys"):
        Sealer(keys)


def test_k7_the_message_does_not_show_the_key() -> None:
    """A refused key may still be in use elsewhere: the message names its place, not the key."""
    with pytest.raises(ConfigurationError) as caught:
        Sealer([NEW, "hunter2hunter2"])

    assert "seal_keys[1]" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "token_hex(32)" in str(caught.value)


def test_text_and_bytes_are_the_same_key() -> None:
    """A key may be given as text, as `secrets.token_hex(32)` prints it."""
    key = os.urandom(32).hex()

    sealed = Sealer([key]).seal(TEXT, b"sid", os.urandom)

    assert Sealer([key.encode()]).open(sealed, b"sid") == TEXT


def test_at_rest(make_world: Any) -> None:
    """With keys the store holds no plain value; without the right key it is a damaged record."""
    world = make_world(sealer=Sealer([NEW]))
    token = world.visit(secret="a text to be found")
    plain = make_world()
    plain.store = world.store

    assert b"to be found" not in world.record(token).data
    assert world.values(token) == {"secret": "a text to be found"}
    session = plain.open(token)
    assert dict(session) == {}
    assert ("damaged", token.sid) in [event[:2] for event in plain.commit(session).events]


def test_a2_unsealed_data_is_refused(make_world: Any) -> None:
    """A2: where keys are set there is one decoder: plain data planted in the store is damaged."""
    plain = make_world()
    token = plain.visit(user="planted")
    world = make_world(sealer=Sealer([NEW]))
    world.store = plain.store

    session = world.open(token)

    assert dict(session) == {}
    assert [event[0] for event in world.commit(session).events] == ["damaged"]


def test_another_records_data(make_world: Any) -> None:
    """Sealed data that was moved to another session's record does not open there."""
    world = make_world(sealer=Sealer([NEW]))
    rich, poor = world.visit(balance=1000), world.visit(balance=1)
    record = world.record(poor)
    stolen = msgspec.structs.replace(
        record, version=record.version + 1, data=world.record(rich).data
    )
    world.store.replace(stolen, record.version)

    assert world.values(poor) == {}
