"""The head of a record in a SQL database: what no statement changes, as one checked column.

A driver spends most of its time on columns, so what SQL neither changes nor asks for travels as
one::

    1 byte    how long the first part is, with this byte and its CRC-32
    part 1    MessagePack array of what a tombstone keeps, then its CRC-32, little-endian
    part 2    MessagePack array of what a tombstone loses, then its CRC-32; absent from it

So a statement makes the head of a tombstone out of any head, by its first byte.
"""

from __future__ import annotations

from zlib import crc32

import msgspec

from sojourn.core.codec import CRC_RESIDUE, checked
from sojourn.core.record import ENDED, Record
from sojourn.errors import DamagedRecord, InvalidValue

__all__ = ["head_of", "record_of"]


class _Kept(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a tombstone keeps. Fields are only ever added at the end, with a default."""

    secret_hash: bytes
    created: float
    idle_timeout: float | None
    lifetime: float | None
    authenticated: float | None
    generation: int
    previous_hash: bytes
    previous_generation: int
    grace_until: float
    persistent: bool


class _Lost(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a tombstone loses. As `_Kept`."""

    user: str | None = None
    salt: bytes = b""
    address: str = ""
    agent: str = ""
    commits: bytes = b""


_encode = msgspec.msgpack.Encoder().encode
_decode_kept = msgspec.msgpack.Decoder(_Kept).decode
_decode_lost = msgspec.msgpack.Decoder(_Lost).decode
_NOTHING = _Lost()


def head_of(record: Record) -> bytes:
    """Return the head of a record.

    Raises:
        InvalidValue: a time is no number, a number or a hash is longer than any can be.
    """
    times = record.created + record.seen + record.deadline + record.grace_until
    if times != times:
        raise InvalidValue(f"the record {record.sid!r} cannot be stored: one of its times is NaN")
    try:
        kept = _encode(
            (
                record.secret_hash,
                record.created,
                record.idle_timeout,
                record.lifetime,
                record.authenticated,
                record.generation,
                record.previous_hash,
                record.previous_generation,
                record.grace_until,
                record.persistent,
            )
        )
        size = len(kept) + 5
        lost = (record.user, record.salt, record.address, record.agent, record.commits)
        return bytes((size,)) + checked(kept) + checked(_encode(lost))
    except (OverflowError, ValueError):
        raise InvalidValue(
            f"the record {record.sid!r} cannot be stored: a whole number of it has more than 64 "
            "bits, or its hashes are longer than hashes are"
        ) from None


def record_of(
    sid: str,
    version: int,
    status: int,
    seen: float,
    deadline: float,
    reason: str,
    attempts: int,
    head: bytes,
    data: bytes,
) -> Record:
    """Return the record of a row.

    Of a tombstone whose head is damaged it returns what the columns say: that is the tombstone of
    a record that was damaged before. No cookie opens it.

    Raises:
        DamagedRecord: the head is not as it was written.
    """
    try:
        # `codec.unchecked`, written out: this is done for every request.
        size = head[0]
        if crc32(head[1:size]) != CRC_RESIDUE:
            raise ValueError("its head does not match its checksum")
        kept = _decode_kept(head[1 : size - 4])
        if crc32(head[size:]) == CRC_RESIDUE:
            lost = _decode_lost(head[size:-4])
        elif status == ENDED and len(head) == size:
            lost = _NOTHING
        else:
            raise ValueError("its head does not match its second checksum")
    except (IndexError, TypeError, ValueError) as error:
        if status == ENDED:
            return Record(
                sid,
                b"",
                version,
                seen,
                seen,
                deadline,
                None,
                None,
                b"",
                status=ENDED,
                reason=reason,
            )
        raise DamagedRecord(f"the record {sid!r} is damaged: {error}") from error
    return Record(
        sid,
        kept.secret_hash,
        version,
        kept.created,
        seen,
        deadline,
        kept.idle_timeout,
        kept.lifetime,
        data,
        lost.user,
        kept.authenticated,
        kept.generation,
        kept.previous_hash,
        kept.previous_generation,
        kept.grace_until,
        lost.salt,
        kept.persistent,
        lost.address,
        lost.agent,
        lost.commits,
        status,
        reason,
        attempts,
    )
