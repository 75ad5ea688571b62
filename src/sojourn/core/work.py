"""What a request did to its session and has not committed yet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sojourn.core import codec
from sojourn.core.codec import decode_index, decode_value
from sojourn.core.operations import Kind, Operation
from sojourn.core.state import StateInfo

__all__ = ["DELETED", "PENDING", "Held", "Work", "bring_up_to_date"]

PENDING: Any = Operation(Kind.SET)
"""Stands for a plain set, whose value is in the session's cache and encoded at the commit."""
DELETED = Operation(Kind.DELETE)


class Work:
    """What a request did to its session.

    Attributes:
        handed: segments of values that can be changed in place, as they were handed out.
        states: typed state that was handed out or set.
        steps: operations on values; `PENDING` stands for a plain set, whose value is in the cache
            and encoded at the commit.
        head: fields of the record that were set.
        cleared: all values were removed first.
        login: a user was logged in.
        salt, sid: those of a new session, or after a login; empty until they are needed.
        ends: sessions that were ended: (sid, reason).
        notes: what is to be reported: (event, sid, detail).
        kept: after a commit, what was handed out before it, for the cache of the next use.
    """

    __slots__ = (
        "cleared",
        "ends",
        "handed",
        "head",
        "kept",
        "login",
        "notes",
        "salt",
        "sid",
        "states",
        "steps",
    )

    def __init__(self) -> None:
        self.handed: dict[str, bytes] = {}
        self.states: dict[str, Held] = {}
        self.steps: dict[str, list[Operation]] = {}
        self.head: dict[str, Any] = {}
        self.cleared = False
        self.login = False
        self.salt = b""
        self.sid = ""
        self.ends: list[tuple[str, str]] = []
        self.notes: list[tuple[str, str, str]] = []
        self.kept: dict[Any, Any] | None = None

    def pending(self) -> bool:
        """Tell whether there is anything that a commit has to look at."""
        return bool(
            self.handed or self.states or self.steps or self.cleared or self.ends or self.notes
        )


class Held:
    """Typed state that was handed out.

    Attributes:
        loaded: its segment in the store when it was handed out; None: there was none.
        before: how it was encoded when it was handed out; empty: it was set anew.
    """

    __slots__ = ("before", "info", "loaded", "value")

    def __init__(self, info: StateInfo, value: Any, loaded: bytes | None, before: bytes) -> None:
        self.info = info
        self.value = value
        self.loaded = loaded
        self.before = before

    def operation(self) -> Operation | None:
        """Return what was done to it, if anything.

        Raises:
            InvalidValue: it cannot be stored.
        """
        info, before = self.info, self.before
        mine = info.encode(self.value)
        if mine == before or (before and not info.changed(before, mine)):
            return None
        info.check(self.value, mine)
        if self.loaded is not None:
            unknown = info.unknown(self.loaded)
            if unknown:
                mine = info.encode(self.value, unknown)
        merge = info.merge if before else partial(_assign, info.merge)
        return Operation(Kind.STATE, (self.loaded, mine, merge))


def _assign(
    merge: Callable[..., bytes], loaded: bytes | None, theirs: bytes | None, mine: bytes
) -> bytes:
    """Merge state that a request set: where another one deleted it, it is set all the same."""
    return mine if theirs is None else merge(loaded, theirs, mine)


def bring_up_to_date(values: dict[str, bytes], cache: dict[Any, Any], data: bytes) -> None:
    """Let values that were handed out show what other requests' changes made of them.

    In place, for whoever holds them: else a later change here would quietly undo the others'.
    """
    index, body = decode_index(data)
    for key in list(values):
        packed = index.get(key)
        now = None if packed is None else codec.segment(data, body, packed)
        if now == values[key]:
            continue
        old: Any = cache[key]
        new: Any = None if now is None else decode_value(now)
        if type(old) is not type(new) or now is None or isinstance(old, (tuple, frozenset)):
            del values[key]
            continue
        old.clear()
        old.extend(new) if isinstance(old, list) else old.update(new)
        values[key] = now
