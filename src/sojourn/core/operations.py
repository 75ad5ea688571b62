"""What a request did to the values, and how it is applied: to what it read, or to newer data.

Applying the operations of a request to data that another request wrote meanwhile gives what would
have been had this request run after that one. So nothing of either is lost, and the result is that
of the two in some order.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from copy import copy
from decimal import Decimal
from typing import Any

import msgspec

from sojourn.core import codec
from sojourn.errors import InvalidValue

__all__ = [
    "NO_CHANGES",
    "Changes",
    "Kind",
    "Operation",
    "Segments",
    "apply",
    "merge",
    "overwritten",
    "patch",
]

Segments = dict[str, bytes]
"""The encoded values by key (`codec.split`), in the order of the mapping."""


class Kind:
    """The names of the operations."""

    SET = "set"
    DELETE = "delete"
    ADD = "add"
    APPEND = "append"
    UNION = "union"
    MAX = "max"
    REMOVE = "remove"
    """Drop the first match of each item from a list: what popping flash messages does."""
    DEFAULT = "default"
    """Set a key that is not there: what later operations of the same request begin with."""
    STATE = "state"
    """Set typed state, merged field by field."""


class Operation(msgspec.Struct, frozen=True):
    """One thing that a request did to one key.

    Attributes:
        kind: one of `Kind`.
        value: SET: the encoded segment; DELETE: None; STATE: (segment at load or None, new
            segment, merge function); the others: the plain operand.
    """

    kind: str
    value: Any = None


class Changes(msgspec.Struct):
    """All that a request did to the values.

    Attributes:
        cleared: the mapping was emptied first.
        steps: for each key its operations, in their order; keys in the order they were first
            touched.
    """

    cleared: bool = False
    steps: dict[str, list[Operation]] = {}

    def __bool__(self) -> bool:
        return self.cleared or bool(self.steps)


NO_CHANGES = Changes()
"""Of a request that did nothing."""


def apply(base: Segments, changes: Changes, depth: int = 64) -> Segments:
    """Return the segments after the changes; `base` stays as it is.

    A merging operation whose operand does not fit what is there now (another request put a value
    of another type under that key) replaces it: the later request wins, as with a plain set.

    Raises:
        DamagedRecord: a value that an operation must look at cannot be read.
        Conflict: from merging typed state (see `core.state`).
    """
    out = {} if changes.cleared else dict(base)
    for key, steps in changes.steps.items():
        for step in steps:
            kind = step.kind
            if kind == Kind.SET:
                out[key] = step.value
            elif kind == Kind.DELETE:
                out.pop(key, None)
            elif kind == Kind.STATE:
                loaded, mine, merge_state = step.value
                theirs = out.get(key)
                same = theirs == loaded
                out[key] = mine if same else merge_state(loaded, theirs, mine)
            else:
                there = out.get(key)
                old = None if there is None else codec.decode_value(there)
                try:
                    new = merge(kind, old, step.value)
                except (TypeError, ArithmeticError):
                    new = merge(kind, None, step.value)
                if kind == Kind.REMOVE and not new:
                    # Nothing is left to be told: no key without messages stays behind.
                    out.pop(key, None)
                    continue
                out[key] = codec.encode_value(new, key=key, depth=depth)
    return out


def patch(data: bytes, changes: Changes) -> bytes | None:
    """Return the data of a record after changes that put values in place of as long ones.

    Most writes do that: a number goes up, a flag is turned over. The bytes are those that
    `codec.join(apply(codec.split(data), changes))` comes to.

    Returns:
        The data; None: the changes do more than that.

    Raises:
        DamagedRecord: the index of the data cannot be read.
    """
    index, body = codec.decode_index(data)
    if changes.cleared:
        return None
    out = bytearray(data)
    for key, steps in changes.steps.items():
        packed = index.get(key)
        if packed is None or len(steps) != 1:
            return None
        kind, value = steps[0].kind, steps[0].value
        start = body + (packed >> 32)
        end = start + (packed & 0xFFFFFFFF)
        if kind == Kind.STATE:
            loaded, value, _ = value
            if data[start:end] != loaded:
                return None
        elif kind != Kind.SET:
            return None
        if len(value) != end - start:
            return None
        out[start:end] = value
    return bytes(out)


def overwritten(
    loaded: Mapping[str, bytes], current: Mapping[str, bytes], changes: Changes
) -> list[str]:
    """Return the keys that another request changed since the load and these changes set anew."""
    anew = {
        key: None
        for key, steps in changes.steps.items()
        if changes.cleared or steps[-1].kind in (Kind.SET, Kind.DELETE)
    }
    if changes.cleared:
        anew.update(dict.fromkeys([*loaded, *current]))
    return [key for key in anew if loaded.get(key) != current.get(key)]


_NUMBERS = (int, float, Decimal, dt.timedelta)
_NUMERIC = "an int, float, Decimal or timedelta"


def merge(kind: str, old: Any, operand: Any, key: str = "") -> Any:
    """Return the value after a merging operation; `old` is None where there was none.

    Raises:
        TypeError: the operand does not fit the value: names the key and says what both are.
    """
    if kind == Kind.ADD:
        if isinstance(operand, bool) or not isinstance(operand, _NUMBERS):
            raise _misfit(kind, key, "what to add", operand, _NUMERIC)
        if old is None:
            return operand
        if isinstance(old, bool) or not isinstance(old, _NUMBERS):
            raise _misfit(kind, key, "the value there", old, _NUMERIC)
        try:
            return old + operand  # type: ignore[operator]
        except TypeError:
            fits = f"one that can be added to the {type(old).__name__} there"
            raise _misfit(kind, key, "what to add", operand, fits) from None
    if kind == Kind.MAX:
        if old is None:
            return operand
        try:
            return operand if operand > old else old
        except TypeError as error:
            fits = f"one that can be compared with the {type(old).__name__} there ({error})"
            raise _misfit(kind, key, "the value", operand, fits) from None
    if kind == Kind.UNION:
        if old is None:
            return set(operand)
        if not isinstance(old, (set, frozenset)):
            raise _misfit(kind, key, "the value there", old, "a set or frozenset")
        return old | operand
    if kind == Kind.APPEND:
        if old is None:
            return list(operand)
        if not isinstance(old, list):
            raise _misfit(kind, key, "the value there", old, "a list")
        return old + operand
    if kind == Kind.REMOVE:
        if not isinstance(old, list):
            return []
        rest = list(old)
        for item in operand:
            if item in rest:
                rest.remove(item)
        return rest
    if kind == Kind.DEFAULT:
        # A copy, since what is returned may be changed in place.
        return copy(operand) if old is None else old
    raise InvalidValue(f"there is no operation {kind!r}")


def _misfit(kind: str, key: str, what: str, value: Any, allowed: str) -> TypeError:
    return TypeError(
        f"session.{kind}({key!r}, ...): {what} is of the type {type(value).__name__}; "
        f"it must be {allowed}"
    )
