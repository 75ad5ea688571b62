"""Where a record lies in Redis, and its bytes.

**Keys.** The first character of the sid names the shard, one of 64, and the hash tag of every key
of that shard, so that one slot holds a record and all that is kept about it::

    {sojourn:N}:s:<sid>     string   the record
    {sojourn:N}:due         zset     sid -> due time
    {sojourn:N}:0 ... :3    zset     the sids of one status, all with score 0: sorted by sid
    {sojourn:u:<hash>}:u    zset     the sids of one user -> when they were entered (a hint)

Shards in the order of their characters are shards in the order of the sids, which gives `list`
its pages.

**A record** is one string, so that a load is a plain GET::

    head    72 bytes of fixed layout: all that a script reads or changes
    kept    MessagePack: what a tombstone keeps
    live    MessagePack: what a tombstone loses: user, salt, commits; absent from it
    data    as they came; absent from a tombstone
    reason  UTF-8: why it ended

A touch overwrites the head and nothing else. The head carries the lengths of these and the CRC-32
of `kept` and of `live` with `data`, and ends with a checksum of itself and the reason: eight
hexadecimal digits of SHA-1, since that is what a script on every server can compute. They are
against accidents, not against forgers.
"""

from __future__ import annotations

import hashlib
import math
import operator
import struct
import zlib
from typing import Any

import msgspec

from sojourn.core.record import Record
from sojourn.errors import DamagedRecord

__all__ = [
    "HEAD_SIZE",
    "MAGIC",
    "SHARDS",
    "Keys",
    "decode",
    "encode",
    "head_user",
    "milliseconds",
    "user_hash",
]

SHARDS = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
"""The first characters of sids, by code point."""

MAGIC = b"SJ\x01"
"""How every record begins; the last byte is the version of this layout."""

# magic, status, version, seen, deadline, attempts, lengths of kept, live, data and reason, CRC-32
# of kept and of live with data, hash of the user.
_HEAD = struct.Struct(">3sBQddIIIIIII8s")
HEAD_SIZE = _HEAD.size + 8
"""Bytes of the head with its checksum."""

_IN_HEAD = ("status", "version", "seen", "deadline", "attempts", "reason")
_IN_LIVE = ("user", "salt", "commits")
_IN_KEPT = tuple(n for n in Record.__struct_fields__ if n not in (*_IN_HEAD, *_IN_LIVE, "data"))

_NO_USER = bytes(8)
_LONGEST_TTL = 100 * 365 * 86400.0


def _part(name: str, fields: tuple[str, ...]) -> Any:
    """Return a struct of some of a record's fields, so that a new field of `Record` is kept too."""
    known = {field.name: field for field in msgspec.structs.fields(Record)}
    return msgspec.defstruct(
        name,
        [
            (name, known[name].type)
            if known[name].required
            else (name, known[name].type, known[name].default)
            for name in fields
        ],
        array_like=True,
        frozen=True,
        gc=False,
        module=__name__,
    )


_decode_kept = msgspec.msgpack.Decoder(_part("Kept", _IN_KEPT)).decode
_decode_live = msgspec.msgpack.Decoder(
    tuple[str | None, bytes, bytes],
).decode
_encode = msgspec.msgpack.Encoder().encode
_kept_of = operator.attrgetter(*_IN_KEPT)
_live_of = operator.attrgetter(*_IN_LIVE)
_astuple = msgspec.structs.astuple
_in_order = operator.itemgetter(
    *((*_IN_KEPT, *_IN_LIVE, "data", *_IN_HEAD).index(name) for name in Record.__struct_fields__)
)
_NOTHING_LIVE: tuple[str | None, bytes, bytes] = (None, b"", b"")


class Keys:
    """The names of all keys under one prefix."""

    __slots__ = ("_bases", "_user")

    def __init__(self, prefix: str) -> None:
        """Prepare the 64 shards of a prefix."""
        self._bases = {shard: f"{{{prefix}:{shard}}}:" for shard in SHARDS}
        self._user = f"{{{prefix}:u:"

    def record(self, sid: str) -> str:
        """Return the key of a record."""
        return f"{self._bases[sid[0]]}s:{sid}"

    def due(self, shard: str) -> str:
        """Return the key of the due times of a shard (or of the shard of a sid)."""
        return self._bases[shard[0]] + "due"

    def status(self, shard: str, status: int) -> str:
        """Return the key of the sids with that status in a shard (or in the shard of a sid)."""
        return f"{self._bases[shard[0]]}{status}"

    def all_of(self, sid: str) -> tuple[str, ...]:
        """Return the keys of a record, of its due set and of the four sets of sids."""
        base = self._bases[sid[0]]
        return (f"{base}s:{sid}", base + "due", base + "0", base + "1", base + "2", base + "3")

    def waited(self, sid: str) -> str:
        """Return the key that is written so that there is something to wait for."""
        return self._bases[sid[0]] + "w"

    def records(self, shard: str) -> str:
        """Return what the keys of all records of a shard begin with."""
        return self._bases[shard] + "s:"

    def user(self, hashed: bytes) -> str:
        """Return the key of a user's index."""
        return f"{self._user}{hashed.hex()}}}:u"


def user_hash(user: str | None) -> bytes:
    """Return eight bytes that stand for a user in heads and keys; zeros for nobody."""
    if user is None:
        return _NO_USER
    return hashlib.blake2b(user.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def head_user(head: bytes | None) -> bytes:
    """Return the hash of the user in a head; zeros where it has none or is no head."""
    return head[56:64] if head and len(head) == HEAD_SIZE else _NO_USER


def milliseconds(seconds: float) -> int:
    """Return a time to live for the server; 0, which means none, for a hundred years and more."""
    return 0 if not seconds < _LONGEST_TTL else math.ceil(max(seconds, 0.001) * 1000)


def _checksum(head: bytes, reason: bytes) -> bytes:
    return hashlib.sha1(head + reason, usedforsecurity=False).hexdigest()[:8].encode()


def encode(record: Record) -> bytes:
    """Return the bytes of a record."""
    kept = _encode(_kept_of(record))
    live = _encode(_live_of(record))
    data = record.data
    reason = record.reason.encode()
    head = _HEAD.pack(
        MAGIC,
        record.status,
        record.version,
        record.seen,
        record.deadline,
        record.attempts,
        len(kept),
        len(live),
        len(data),
        len(reason),
        zlib.crc32(kept),
        zlib.crc32(data, zlib.crc32(live)),
        user_hash(record.user),
    )
    return b"".join((head, _checksum(head, reason), kept, live, data, reason))


def decode(raw: bytes, sid: str) -> Record:
    """Return the record that `encode` or a script wrote under `sid`.

    Raises:
        DamagedRecord: it is not one, or not whole, or another's.
    """
    if len(raw) < HEAD_SIZE or raw[:3] != MAGIC:
        raise damaged(sid, f"{len(raw)} bytes that begin with {raw[:3]!r}")
    (
        _, status, version, seen, deadline, attempts,
        kept_size, live_size, data_size, reason_size, kept_crc, live_crc, _,
    ) = _HEAD.unpack_from(raw)  # fmt: skip
    at_live = HEAD_SIZE + kept_size
    at_data = at_live + live_size
    at_reason = at_data + data_size
    if len(raw) != at_reason + reason_size:
        raise damaged(sid, f"{len(raw)} bytes where its head says {at_reason + reason_size}")
    reason = raw[at_reason:]
    if _checksum(raw[: _HEAD.size], reason) != raw[_HEAD.size : HEAD_SIZE]:
        raise damaged(sid, "a head with a wrong checksum")
    kept = raw[HEAD_SIZE:at_live]
    live = raw[at_live:at_data]
    data = raw[at_data:at_reason]
    if zlib.crc32(kept) != kept_crc or zlib.crc32(data, zlib.crc32(live)) != live_crc:
        raise damaged(sid, "a body with a wrong checksum")
    try:
        values = (
            *_astuple(_decode_kept(kept)),
            *(_decode_live(live) if live else _NOTHING_LIVE),
            data,
            status,
            version,
            seen,
            deadline,
            attempts,
            reason.decode(),
        )
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise damaged(sid, "a body that is not a record") from error
    if values[0] != sid:
        raise damaged(sid, f"the record of {values[0]}")
    return Record(*_in_order(values))


def damaged(sid: str, found: str) -> DamagedRecord:
    """Return the error for what lies under a sid."""
    return DamagedRecord(
        f"under the session {sid} lies {found}, not a record of this version; "
        "the visitor gets a new session, a sweep sets it aside"
    )
