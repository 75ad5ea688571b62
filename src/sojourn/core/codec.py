"""How the values of a session become bytes, and back, each on its own.

The data of a record is::

    1 byte    0x01, the version of this codec
    4 bytes   CRC-32 of the index, big-endian
    4 bytes   length of the index
    index     MessagePack map: key -> offset << 32 | length, of the value's segment in the body
    body      the segments: MessagePack of the value, then its CRC-32, little-endian

So one small value of a large session is read without looking at the others, and what did not
change is copied, not encoded again. The checks find flipped bits, which MessagePack alone would
take for other values; they are no defence against an attacker (`core.sealing` is).

MessagePack holds what JSON holds and bytes; the other types travel as its extension types, so that
each value comes back equal and of the same type. Nothing here can run code.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from struct import Struct as Layout
from struct import error as LayoutError
from typing import Any
from zlib import crc32
from zoneinfo import ZoneInfo

import msgspec

from sojourn.errors import DamagedRecord, InvalidValue

__all__ = [
    "ALLOWED",
    "CRC_RESIDUE",
    "EMPTY",
    "IMMUTABLE",
    "STORABLE",
    "checked",
    "decode_index",
    "decode_value",
    "encode_value",
    "is_text",
    "join",
    "segment",
    "split",
    "unchecked",
]

VERSION = 1
ALLOWED = (
    "str, int, float, bool, None, list, dict with str keys, tuple, set, frozenset, bytes, "
    "datetime, date, time, timedelta, Decimal, UUID; for other classes use typed state, "
    "session[YourClass]"
)

IMMUTABLE = frozenset(
    {
        str,
        int,
        float,
        bool,
        type(None),
        bytes,
        dt.datetime,
        dt.date,
        dt.time,
        dt.timedelta,
        Decimal,
        uuid.UUID,
    }
)
"""Types whose values cannot change under our hands."""
STORABLE = IMMUTABLE | {list, dict, tuple, set, frozenset}

_ATOMS: frozenset[type] = frozenset({str, int, float, bool, type(None), bytes})
_ATOMS_BUT_INT = _ATOMS - {int}
_HEADER = Layout(">BII")
_read_header = _HEADER.unpack_from
_CRC = Layout("<I")
CRC_RESIDUE = 0x2144DF1C
"""The CRC-32 of anything followed by its own CRC-32 in little-endian order."""

_Decode = Callable[[bytes | memoryview], Any]
_encode = msgspec.msgpack.Encoder().encode
# The session puts None into the index it gets, for keys whose value is not in the data; the data
# itself never holds one.
_index_decode: Callable[[bytes], dict[str, int | None]]
_index_decode = msgspec.msgpack.Decoder(dict[str, int]).decode  # type: ignore[assignment]


def encode_value(value: Any, *, key: str, depth: int = 64) -> bytes:
    """Return the segment of one value.

    Args:
        value: anything of the types in `ALLOWED`, at any depth.
        key: the value's key, for the message.
        depth: how many containers may lie inside each other.

    Raises:
        InvalidValue: with the key, the type that was found, and what is allowed.
    """
    try:
        try:
            raw = _encode(value if _is_plain(value, depth) else _plain(value, depth, _ATOMS))
        except OverflowError:
            # An integer of more than 64 bits somewhere: look at each. They are rare.
            raw = _encode(_plain(value, depth, _ATOMS_BUT_INT))
    except _Refused as refused:
        raise InvalidValue(f"session[{key!r}] {refused}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidValue(
            f"session[{key!r}], a {_type_name(type(value))}, cannot be stored: {error}; allowed "
            f"are {ALLOWED}"
        ) from None
    return checked(raw)


def checked(raw: bytes) -> bytes:
    """Return a segment out of encoded bytes: with their checksum."""
    return raw + _CRC.pack(crc32(raw))


def unchecked(segment: bytes) -> bytes:
    """Return the encoded bytes of a segment.

    Raises:
        DamagedRecord: they do not match the checksum.
    """
    if crc32(segment) != CRC_RESIDUE or len(segment) < 5:
        raise DamagedRecord("a value does not match its checksum")
    return segment[:-4]


def decode_value(segment: bytes) -> Any:
    """Return the value of a segment.

    Raises:
        DamagedRecord: flipped bits, cut short, or a type that this version does not know.
    """
    # `unchecked`, written out: this is done for every value that is read.
    if crc32(segment) != CRC_RESIDUE or len(segment) < 5:
        raise DamagedRecord("a value does not match its checksum")
    try:
        return _value_decode(segment[:-4])
    except (msgspec.DecodeError, ValueError, RecursionError, ArithmeticError, TypeError) as error:
        raise DamagedRecord(f"a value cannot be read: {error}") from None


def is_text(text: str) -> bool:
    """Tell whether a text can be stored: it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def join(segments: Mapping[str, bytes]) -> bytes:
    """Return the data of a record out of its segments, in their order."""
    offset = 0
    index = {}
    for key, piece in segments.items():
        length = len(piece)
        index[key] = offset << 32 | length
        offset += length
    raw = _encode(index)
    header = _HEADER.pack(VERSION, crc32(raw), len(raw))
    return b"".join([header, raw, *segments.values()])


def decode_index(data: bytes) -> tuple[dict[str, int | None], int]:
    """Return the index (key -> offset << 32 | length) and where the body starts.

    Raises:
        DamagedRecord: not of this codec, or flipped bits in the index, or cut short.
    """
    try:
        version, check, length = _read_header(data)
        start = 9 + length
        raw = data[9:start]
        if crc32(raw) == check and version == VERSION:
            return _index_decode(raw), start
    except (LayoutError, msgspec.DecodeError) as error:
        raise DamagedRecord(f"the index of the data cannot be read: {error}") from None
    if version != VERSION:
        raise DamagedRecord(
            f"data of codec version {version}; this release reads version {VERSION}"
        )
    raise DamagedRecord("the index of the data does not match its checksum")


def segment(data: bytes, body: int, packed: int) -> bytes:
    """Return one segment of the data, by its entry in the index."""
    start = body + (packed >> 32)
    return data[start : start + (packed & 0xFFFFFFFF)]


def split(data: bytes) -> dict[str, bytes]:
    """Return all segments of the data in their order; the inverse of `join`."""
    index, body = decode_index(data)
    segments = {}
    for key, packed in index.items():
        assert packed is not None
        start = body + (packed >> 32)
        segments[key] = data[start : start + (packed & 0xFFFFFFFF)]
    return segments


class _Refused(Exception):
    """A value that cannot be stored; its text goes on after the key."""


def _is_plain(value: Any, depth: int) -> bool:
    """Tell whether MessagePack holds the value as it is: most are, and then nothing is built."""
    kind = type(value)
    if kind in _ATOMS:
        return True
    if depth <= 0:
        return False
    if kind is dict:
        for key in value:
            if type(key) is not str:
                return False
        value = value.values()
    elif kind is not list:
        return False
    for item in value:  # noqa: SIM110 - a generator for all() costs more than the look
        if type(item) not in _ATOMS and not _is_plain(item, depth - 1):
            return False
    return True


def _plain(value: Any, depth: int, atoms: frozenset[type]) -> Any:
    """Return the value with each type that MessagePack lacks put into an extension."""
    kind = type(value)
    if kind in atoms:
        return value
    if kind is int:
        return _tag_int(value)
    if depth <= 0 and kind not in IMMUTABLE:
        raise _Refused("is nested deeper than the limit allows (max_depth), or contains itself")
    depth -= 1
    if kind is dict:
        for key in value:
            if type(key) is not str:
                raise _Refused(
                    f"holds a dict with a key of type {type(key).__name__}; dict keys must be str"
                )
        return {
            key: item if type(item) in atoms else _plain(item, depth, atoms)
            for key, item in value.items()
        }
    if kind is list:
        return [item if type(item) in atoms else _plain(item, depth, atoms) for item in value]
    tag = _TAGS.get(kind)
    if tag is None:
        raise _Refused(f"is or holds a {_type_name(kind)}; allowed are {ALLOWED}")
    code, pack = tag
    return msgspec.msgpack.Ext(code, pack(value, depth, atoms))


def _type_name(kind: type) -> str:
    name = kind.__qualname__
    return name if kind.__module__ == "builtins" else f"{kind.__module__}.{name}"


def _tag_int(value: int) -> Any:
    if -0x8000000000000000 <= value <= 0xFFFFFFFFFFFFFFFF:
        return value
    size = value.bit_length() // 8 + 1
    return msgspec.msgpack.Ext(_BIG_INT, value.to_bytes(size, "big", signed=True))


def _pack_sequence(value: Any, depth: int, atoms: frozenset[type]) -> bytes:
    return _encode([_plain(item, depth, atoms) for item in value])


def _pack_set(value: Any, depth: int, atoms: frozenset[type]) -> bytes:
    # In the order of their bytes: the same set is the same bytes, however it was built.
    pieces = sorted(_encode(_plain(item, depth, atoms)) for item in value)
    return _encode([msgspec.Raw(piece) for piece in pieces])


def _pack_zoned(value: dt.datetime | dt.time, *_: Any) -> bytes:
    # The offset is kept beside the zone's name, for a reader that does not know the zone.
    zone = value.tzinfo.key if isinstance(value.tzinfo, ZoneInfo) else None
    return _encode([value.isoformat(), value.fold, zone])


def _unpack_zoned(kind: Any, data: memoryview, decode: _Decode) -> Any:
    text, fold, zone = decode(data)
    value = kind.fromisoformat(text)
    if zone is not None:
        try:
            value = value.replace(tzinfo=ZoneInfo(zone))
        except (OSError, ValueError, LookupError):
            pass
    return value.replace(fold=fold)


_BIG_INT = 10
_TAGS: dict[type, tuple[int, Callable[[Any, int, frozenset[type]], bytes]]] = {
    tuple: (1, _pack_sequence),
    set: (2, _pack_set),
    frozenset: (3, _pack_set),
    dt.datetime: (4, _pack_zoned),
    dt.date: (5, lambda value, *_: value.isoformat().encode()),
    dt.time: (6, _pack_zoned),
    dt.timedelta: (7, lambda value, *_: _encode([value.days, value.seconds, value.microseconds])),
    Decimal: (8, lambda value, *_: str(value).encode()),
    uuid.UUID: (9, lambda value, *_: value.bytes),
}
_UNTAGS: dict[int, Callable[[memoryview, _Decode], Any]] = {
    1: lambda data, decode: tuple(decode(data)),
    2: lambda data, decode: set(decode(data)),
    3: lambda data, decode: frozenset(decode(data)),
    4: lambda data, decode: _unpack_zoned(dt.datetime, data, decode),
    5: lambda data, _: dt.date.fromisoformat(str(data, "ascii")),
    6: lambda data, decode: _unpack_zoned(dt.time, data, decode),
    7: lambda data, decode: dt.timedelta(*decode(data)),
    8: lambda data, _: Decimal(str(data, "ascii")),
    9: lambda data, _: uuid.UUID(bytes=bytes(data)),
    _BIG_INT: lambda data, _: int.from_bytes(data, "big", signed=True),
}


def _untag(decode: _Decode, code: int, data: memoryview) -> Any:
    """Return the value of an extension, whose inside is decoded with `decode`."""
    unpack = _UNTAGS.get(code)
    if unpack is None:
        raise ValueError(f"extension type {code} is not of this version")
    return unpack(data, decode)


def _too_deep(_: bytes | memoryview) -> Any:
    raise ValueError("extensions are nested deeper than any session may be")


def _decoders(levels: int) -> _Decode:
    """Return a decoder of values in which so many extensions may lie inside each other.

    One decoder for each level, so that the nesting has an end of its own: the interpreter's may
    have been raised so far that the process dies before it.
    """
    decode: _Decode = _too_deep
    for _ in range(levels):
        decode = msgspec.msgpack.Decoder(ext_hook=partial(_untag, decode)).decode
    return decode


# Values are 200 containers deep at most (max_depth), and one more inside a datetime.
_value_decode = _decoders(202)

EMPTY = join({})
"""The data of a session without values."""
