"""Records to test with, and what it means for two to be the same."""

from __future__ import annotations

import os
import secrets
from typing import Any

import msgspec

from sojourn.core.record import ENDED, Record

__all__ = ["expect", "expect_same", "known", "new_record", "new_sid", "next_version"]

# What the contract says of a tombstone; a store may keep or empty the other fields.
_TOMBSTONE = (
    "sid",
    "secret_hash",
    "version",
    "created",
    "seen",
    "deadline",
    "data",
    "user",
    "previous_hash",
    "salt",
    "commits",
    "status",
    "reason",
)


def new_sid() -> str:
    """Return a sid that nobody has."""
    return secrets.token_urlsafe(16)


def new_record(now: float, **fields: Any) -> Record:
    """Return a live record made at `now` that ends in half an hour, with a sid of its own."""
    values: dict[str, Any] = {
        "sid": new_sid(),
        "secret_hash": os.urandom(32),
        "version": 1,
        "created": now,
        "seen": now,
        "deadline": now + 1800.0,
        "idle_timeout": 1800.0,
        "lifetime": 43200.0,
        "data": b"as created",
        "salt": os.urandom(16),
    }
    return Record(**(values | fields))


def next_version(record: Record, **fields: Any) -> Record:
    """Return the record with those fields changed and one more version, ready for `replace`."""
    return msgspec.structs.replace(record, version=record.version + 1, **fields)


def known(record: Record) -> dict[str, Any]:
    """Return the fields on which all stores agree: all, or of a tombstone those that it keeps."""
    names = _TOMBSTONE if record.status == ENDED else record.__struct_fields__
    return {name: getattr(record, name) for name in names}


def expect(holds: bool, message: str) -> None:
    """Raise `AssertionError` unless it holds (a bare `assert` would be gone under -O)."""
    if not holds:
        raise AssertionError(message)


def expect_same(got: Any, wanted: Any, what: str) -> None:
    """Compare two answers of a store, records field by field with their types, lists in order."""
    if isinstance(got, Record) and isinstance(wanted, Record):
        for name, value in known(wanted).items():
            expect_same(getattr(got, name), value, f"{name} of {what}")
        return
    if isinstance(got, list) and isinstance(wanted, list):
        names, right = [*map(_name, got)], [*map(_name, wanted)]
        expect(names == right, f"{what}: the store gave {_short(names)}, right is {_short(right)}")
        for one, other in zip(got, wanted, strict=True):
            expect_same(one, other, f"{_name(other)} in {what}")
        return
    expect(
        type(got) is type(wanted) and got == wanted,
        f"{what}: the store gave {_short(got)}, right is {_short(wanted)}",
    )


def _name(value: Any) -> Any:
    return value.sid if isinstance(value, Record) else value


def _short(value: Any) -> str:
    text = repr(value)
    if len(text) > 200:
        text = f"{text[:120]}... ({len(text)} characters)"
    return f"{text} ({type(value).__name__})"
