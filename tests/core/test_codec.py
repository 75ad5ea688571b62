"""Every value comes back equal and of the same type, or is refused; damage is always seen."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import math
import os
import resource
import subprocess
import sys
import time
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sojourn.core import codec
from sojourn.errors import DamagedRecord, InvalidValue

BERLIN = ZoneInfo("Europe/Berlin")
OFFSETS = st.integers(-86399, 86399).map(lambda s: dt.timezone(dt.timedelta(seconds=s)))
ZONES = st.sampled_from(
    [None, dt.UTC, BERLIN, ZoneInfo("America/St_Johns"), ZoneInfo("UTC"), ZoneInfo("Asia/Kolkata")]
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**300), 2**300),
    st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1]),
    st.floats(),
    TEXT,
    st.binary(),
    st.datetimes(timezones=ZONES | OFFSETS),
    st.datetimes(timezones=st.just(BERLIN)).map(lambda value: value.replace(fold=1)),
    st.dates(),
    st.times(timezones=st.none() | OFFSETS | st.just(BERLIN)),
    st.timedeltas(),
    st.decimals(allow_nan=True, allow_infinity=True),
    st.uuids(),
)
# Deferred, so that the strategies' own description stays short.
HASHABLE: st.SearchStrategy[Any] = st.deferred(
    lambda: (
        # A signalling NaN has no hash.
        ATOMS.filter(lambda value: not (isinstance(value, Decimal) and value.is_snan()))
        | st.lists(HASHABLE, max_size=2).map(tuple)
        | st.frozensets(HASHABLE, max_size=2)
    )
)
VALUES: st.SearchStrategy[Any] = st.deferred(
    lambda: (
        ATOMS
        | st.lists(VALUES, max_size=3)
        | st.lists(VALUES, max_size=3).map(tuple)
        | st.dictionaries(TEXT, VALUES, max_size=3)
        | st.sets(HASHABLE, max_size=3)
        | st.frozensets(HASHABLE, max_size=3)
    )
)


def same(one: Any, other: Any) -> bool:
    """Tell whether two values are equal and of the same type at every level."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (set, frozenset)):
        rest = list(other)
        for item in one:
            match = next((place for place, it in enumerate(rest) if same(item, it)), None)
            if match is None:
                return False
            del rest[match]
        return not rest
    if isinstance(one, float):
        return (one == other and math.copysign(1, one) == math.copysign(1, other)) or (
            math.isnan(one) and math.isnan(other)
        )
    if isinstance(one, Decimal):
        return one.as_tuple() == other.as_tuple()
    if isinstance(one, (dt.datetime, dt.time)):
        zone = type(one.tzinfo) is type(other.tzinfo)
        return (
            zone
            and one.replace(tzinfo=None) == other.replace(tzinfo=None)
            and (one.fold, one.utcoffset()) == (other.fold, other.utcoffset())
            and (not isinstance(one.tzinfo, ZoneInfo) or one.tzinfo is other.tzinfo)
        )
    return bool(one == other)


def round_trip(value: Any) -> Any:
    return codec.decode_value(codec.encode_value(value, key="key"))


@settings(max_examples=1500)
@given(VALUES)
@example([True, 1, 1.0, False, 0, 0.0, -0.0])
@example([2**64, -(2**63) - 1, {"a": (2**100, {2**200})}])
@example({(), frozenset(), (frozenset({(1, "a")}),)})
@example([[], (), {}, set(), frozenset(), "", b"", {"": []}])
@example(
    [
        float("nan"),
        float("inf"),
        float("-inf"),
        Decimal("sNaN12"),
        Decimal("-NaN"),
        Decimal("-0E+5"),
    ]
)
@example(dt.datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1))
@example(dt.datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN))
@example(
    [dt.datetime.min, dt.datetime.max, dt.timedelta.min, dt.timedelta.max, dt.time.max, dt.date.min]
)
@example(dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=23, minutes=59, seconds=59))))
@example(dt.datetime(1890, 1, 1, tzinfo=BERLIN))
def test_round_trip(value: Any) -> None:
    """Any value of the allowed types, nested in any way, comes back equal and of the same type."""
    assert same(value, round_trip(value))


@settings(max_examples=300)
@given(st.dictionaries(TEXT, VALUES, max_size=6))
def test_round_trip_of_all_data(values: dict[str, Any]) -> None:
    """So does a whole mapping, in its order; each value can be read without the others."""
    segments = {key: codec.encode_value(value, key=key) for key, value in values.items()}

    data = codec.join(segments)

    assert list(codec.split(data).items()) == list(segments.items())
    index, body = codec.decode_index(data)
    for key, packed in index.items():
        assert packed is not None
        assert same(codec.decode_value(codec.segment(data, body, packed)), values[key])


def test_zone_unknown_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that does not know the zone gets the same moment with a fixed offset."""
    value = dt.datetime(2026, 7, 1, 12, tzinfo=BERLIN)
    raw = codec.encode_value(value, key="key")

    def unknown(name: str) -> ZoneInfo:
        raise LookupError(name)

    monkeypatch.setattr(codec, "ZoneInfo", unknown)
    back = codec.decode_value(raw)

    assert back == value
    assert back.utcoffset() == dt.timedelta(hours=2)


class Text(str):
    """A subclass."""


class Number(int):
    """A subclass."""


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 1


class Word(enum.StrEnum):
    YES = "yes"


class Point(NamedTuple):
    x: int = 0


CYCLE: list[Any] = []
CYCLE.append(CYCLE)

REFUSED: dict[str, tuple[Any, str]] = {
    "object": (object(), "object"),
    "class": (int, "type"),
    "function": (len, "builtin_function_or_method"),
    "str subclass": (Text("a"), r"test_codec.*\.Text"),
    "int subclass": (Number(1), r"\.Number"),
    "enum": (Colour.RED, r"\.Colour"),
    "int enum": (Level.HIGH, r"\.Level"),
    "str enum": (Word.YES, r"\.Word"),
    "OrderedDict": (collections.OrderedDict(a=1), r"collections\.OrderedDict"),
    "defaultdict": (collections.defaultdict(list), r"collections\.defaultdict"),
    "Counter": (collections.Counter("a"), r"collections\.Counter"),
    "deque": (collections.deque([1]), r"collections\.deque"),
    "namedtuple": (Point(), r"\.Point"),
    "bytearray": (bytearray(b"a"), "bytearray"),
    "memoryview": (memoryview(b"a"), "memoryview"),
    "complex": (1j, "complex"),
    "range": (range(3), "range"),
    "generator": ((x for x in ()), "generator"),
    "path": (Path("a"), "Path"),
    "exception": (ValueError("a"), "ValueError"),
    "int key": ({1: 2}, "key of type int"),
    "tuple key": ({(1,): 2}, "key of type tuple"),
    "None key": ({None: 2}, "key of type NoneType"),
    "str subclass key": ({Text("a"): 2}, "key of type Text"),
    "Ext": (msgspec.msgpack.Ext(1, b""), "Ext"),
    "Raw": (msgspec.Raw(b"\xc0"), "Raw"),
    "lone surrogate": ("\ud800", "cannot be stored"),
    "lone surrogate as key": ({"\udfff": 1}, "cannot be stored"),
    "cycle": (CYCLE, "contains itself"),
}
WRAP: list[Any] = [
    lambda value: value,
    lambda value: [value],
    lambda value: (value,),
    lambda value: {"inner": [1, value]},
    lambda value: [2**70, {"big": (value,)}],
]


@pytest.mark.parametrize("wrap", range(len(WRAP)))
@pytest.mark.parametrize(("value", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(value: Any, words: str, wrap: int) -> None:
    """Anything else is refused at any depth: the message has the key, the type, what is allowed."""
    with pytest.raises(InvalidValue, match=words) as caught:
        codec.encode_value(WRAP[wrap](value), key="basket")

    assert "session['basket']" in str(caught.value)


def test_refused_says_what_is_allowed() -> None:
    """The message lists what may be stored, and where other classes go."""
    with pytest.raises(InvalidValue) as caught:
        codec.encode_value([Colour.RED], key="a")

    for word in ("str", "datetime", "Decimal", "UUID", "frozenset", "session[YourClass]"):
        assert word in str(caught.value)


CONTAINERS: list[Any] = [
    lambda inner: [inner],
    lambda inner: (inner,),
    lambda inner: {"a": inner},
    lambda inner: frozenset([inner]) if isinstance(inner, (int, frozenset)) else (inner,),
]
LEAVES: list[Any] = [1, "a", 2**80, None, dt.date(2026, 1, 1), Decimal(1), uuid.UUID(int=1), b""]


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: type(leaf).__name__)
@pytest.mark.parametrize("container", range(len(CONTAINERS)))
@pytest.mark.parametrize("limit", [1, 2, 64, 200])
def test_depth(leaf: Any, container: int, limit: int) -> None:
    """As many containers inside each other as the limit says, whatever is inmost; not one more."""
    value = leaf
    for _ in range(limit):
        value = CONTAINERS[container](value)

    assert same(codec.decode_value(codec.encode_value(value, key="a", depth=limit)), value)
    with pytest.raises(InvalidValue, match=r"nested deeper .*max_depth"):
        codec.encode_value(CONTAINERS[container](value), key="a", depth=limit)


def test_too_deep_for_the_interpreter() -> None:
    """Nesting that the interpreter cannot follow is an InvalidValue as well."""
    value: Any = ()
    for _ in range(100_000):
        value = (value,)
    try:
        with pytest.raises(InvalidValue):
            codec.encode_value(value, key="a", depth=1_000_000)
    finally:
        while value:
            value = value[0]


def test_equal_sets_are_equal_bytes() -> None:
    """A set is stored in one order, however it was built, in every process."""
    words = ["pear", "apple", "fig", "quince", "medlar"]
    script = (
        "from sojourn.core import codec\n"
        f"value = {{'s': set({words!r}), 'f': frozenset({words!r})}}\n"
        "print(codec.encode_value(value, key='').hex())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={
                **os.environ,
                "PYTHONHASHSEED": str(seed),
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            capture_output=True,
            check=True,
        ).stdout
        for seed in (1, 2, 3)
    }

    assert len(found) == 1
    forwards, backwards = set(words), set(reversed(words))
    assert codec.encode_value(forwards, key="") == codec.encode_value(backwards, key="")


# Damage.

VALUE = {"a": [1, 2.5, "text", None, True, b"raw"], "b": (1, {2, 3}, Decimal("1.50")), "c": 2**70}
DATA = codec.join(
    {
        "first": codec.encode_value(VALUE, key="first"),
        "second": codec.encode_value("a short text", key="second"),
        "when": codec.encode_value(dt.datetime(2026, 1, 1, tzinfo=BERLIN), key="when"),
    }
)


def read(data: bytes) -> dict[str, Any]:
    return {key: codec.decode_value(raw) for key, raw in codec.split(data).items()}


def test_every_flipped_bit() -> None:
    """Any one bit flipped is seen when the value it lies in is read; never another value."""
    before = read(DATA)
    for place in range(8 * len(DATA)):
        changed = bytearray(DATA)
        changed[place // 8] ^= 1 << place % 8
        try:
            segments = codec.split(bytes(changed))
        except DamagedRecord:
            continue
        assert list(segments) == list(before)
        damaged = 0
        for key, raw in segments.items():
            try:
                value = codec.decode_value(raw)
            except DamagedRecord:
                damaged += 1
            else:
                assert same(value, before[key])
        assert damaged == 1


def test_every_truncation() -> None:
    """Cut at any place, the data is seen to be damaged; so it is when bytes are missing in it."""
    for size in range(len(DATA)):
        with pytest.raises(DamagedRecord):
            read(DATA[:size])
        with pytest.raises(DamagedRecord):
            read(DATA[size + 1 :])


@given(st.binary(max_size=300))
@example(b"")
@example(codec.EMPTY[:9])
def test_any_bytes(data: bytes) -> None:
    """Bytes from anywhere are damaged data, and no other exception comes of them."""
    for attempt in (read, codec.decode_value):
        with pytest.raises(DamagedRecord):
            attempt(data)


@settings(max_examples=1000)
@given(st.binary(max_size=60))
@example(b"\xc7\x02\x01\x91\x91")
@example(msgspec.msgpack.encode({"a": msgspec.msgpack.Ext(99, b"")}))
@example(msgspec.msgpack.encode(msgspec.msgpack.Ext(2, msgspec.msgpack.encode([[1]]))))
@example(msgspec.msgpack.encode(msgspec.msgpack.Ext(4, msgspec.msgpack.encode(["x", 0, 1]))))
@example(msgspec.msgpack.encode(msgspec.msgpack.Ext(4, msgspec.msgpack.encode([1, 0, None]))))
@example(
    msgspec.msgpack.encode(msgspec.msgpack.Ext(6, msgspec.msgpack.encode(["01:00", 9, "../x"])))
)
@example(msgspec.msgpack.encode(msgspec.msgpack.Ext(7, msgspec.msgpack.encode([10**18, 0, 0]))))
@example(msgspec.msgpack.encode(msgspec.msgpack.Ext(8, b"one")))
@example(msgspec.msgpack.encode(msgspec.msgpack.Ext(9, b"short")))
def test_any_bytes_with_a_right_checksum(raw: bytes) -> None:
    """Bytes that carry a right checksum are a value or damaged data: no other exception."""
    try:
        codec.decode_value(codec.checked(raw))
    except DamagedRecord:
        pass


@given(st.dictionaries(TEXT, st.integers() | st.none(), max_size=4), st.binary(max_size=20))
def test_any_index_with_a_right_checksum(index: dict[str, Any], body: bytes) -> None:
    """An index that points anywhere at all leads to damaged data, and to nothing else."""
    try:
        raw = msgspec.msgpack.encode(index)
    except OverflowError:
        return
    data = codec._HEADER.pack(1, crc32(raw), len(raw)) + raw + body

    if index:
        with pytest.raises(DamagedRecord):
            read(data)
    else:
        assert read(data) == {}


@pytest.mark.parametrize("version", [0, 2, 3, 127, 0x81, 255])
def test_another_version(version: int) -> None:
    """Data of another codec version, such as a future one, is refused by its first byte."""
    with pytest.raises(DamagedRecord, match=r"codec version|too few"):
        codec.decode_index(bytes([version]) + DATA[1:])


@pytest.mark.parametrize(
    "planted",
    [
        b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtins\x94.",
        b"cos\nsystem\n(S'true'\ntR.",
        b'{"user": "admin"}',
        b"!!python/object/apply:os.system ['true']",
        b"\x01" * 64,
    ],
)
def test_s1_no_other_format(planted: bytes) -> None:
    """S1: pickles, YAML and JSON are nothing but damaged data: there is one decoder."""
    with pytest.raises(DamagedRecord):
        read(planted)


def nested_ext(depth: int) -> bytes:
    raw = b"\xc0"
    for _ in range(depth):
        raw = b"\xc9" + len(raw).to_bytes(4) + b"\x01" + raw
    return raw


BOMBS = {
    "arrays 100,000 deep": b"\x91" * 100_000 + b"\xc0",
    "maps 100,000 deep": b"\x81\xa1a" * 100_000 + b"\xc0",
    "extensions 20,000 deep": nested_ext(20_000),
    "array of 4 G": b"\xdd\xff\xff\xff\xff",
    "array of 4 G, some there": b"\xdd\xff\xff\xff\xff" + b"\xc0" * 1000,
    "map of 4 G": b"\xdf\xff\xff\xff\xff",
    "text of 4 G": b"\xdb\xff\xff\xff\xffabc",
    "bytes of 4 G": b"\xc6\xff\xff\xff\xffabc",
    "extension of 4 G": b"\xc9\xff\xff\xff\xff\x02abc",
    "set of an array of 4 G": b"\xc7\x05\x02\xdd\xff\xff\xff\xff",
    "decimal of a great exponent": b"\xc7\x0c\x08" + b"1E+999999999",
    "text of digits": b"\xc8\xff\xff\x08" + b"9" * 65535,
}


@pytest.mark.parametrize("limit", [1000, 16_000])
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a27_decode_bombs(bomb: bytes, limit: int) -> None:
    """A27: nesting without end and lengths that are claimed cost neither time nor memory.

    Nor does the process die where the limit of recursion has been raised.
    """
    before_limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit)
    raw = codec.checked(bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()

    try:
        for _ in range(5):
            try:
                codec.decode_value(raw)
            except DamagedRecord:
                pass
    finally:
        sys.setrecursionlimit(before_limit)

    assert time.process_time() - start < 0.25
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10 * 1024
