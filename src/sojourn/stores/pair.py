"""Two stores at once: calls on one of them, both read side by side, a record put into one.

What is done with a pair is a flow, as in `core.flows`: it yields calls, each `At` one of the two.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar

import msgspec

from sojourn.core.calls import SAVED, Call, Create, Delete, Flow, List, Pause, Replace
from sojourn.core.record import ENDED, ENDING, LIVE, MARK, Ended, Record
from sojourn.core.token import name_to_sid
from sojourn.errors import SojournError

__all__ = [
    "MOVING",
    "NEW",
    "OLD",
    "PAGE",
    "At",
    "Joined",
    "Report",
    "Row",
    "add_digests",
    "arun",
    "can_change",
    "digest_of",
    "put",
    "put_off",
    "run",
    "same",
]

T = TypeVar("T")

OLD, NEW = 0, 1
"""The places of the two stores in a pair."""

MOVING = name_to_sid("moving")
"""The sid of the mark in which a move keeps its phase. It belongs to its store: none copies it."""

PAGE = 100
"""Records that are read at once; each may be a megabyte."""

_PUT_OFF = 60.0
"""When a session that is ending, and that was put elsewhere, is due there. No store tells its due
time; at once would run its handlers while the sweep that claimed it runs them too."""


class At(Call, frozen=True, gc=False):
    """A call on one store of a pair."""

    place: int
    call: Call

    def on(self, store: Any) -> Any:
        """Make the call; `store` is the pair."""
        return self.call.on(store[self.place])


# Drivers for use inside a store. They repeat nothing: who calls the store repeats the whole verb.


def run(flow: Flow[T], stores: Any) -> T:
    """Run a flow on a pair of blocking stores."""
    try:
        call = next(flow)
        while True:
            try:
                answer = _wait(call.seconds) if type(call) is Pause else call.on(stores)
            except SojournError as error:
                call = flow.throw(error)
            else:
                call = flow.send(answer)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def _wait(seconds: float) -> Any:
    time.sleep(seconds)


async def arun(flow: Flow[T], stores: Any) -> T:
    """Run a flow on a pair of asynchronous stores."""
    try:
        call = next(flow)
        while True:
            try:
                waited = asyncio.sleep(call.seconds) if type(call) is Pause else call.on(stores)
                answer = await waited
            except SojournError as error:
                call = flow.throw(error)
            else:
                call = flow.send(answer)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


# What two stores have to agree on.


def same(one: Record | None, other: Record | None) -> bool:
    """Tell whether two stores say the same of a sid; see `_essence`."""
    if one is None or other is None:
        return one is other
    return one.status == other.status and _essence(one) == _essence(other)


def digest_of(record: Record) -> int:
    """Return a number for a record. The sum of all is the same in whatever order they are read."""
    return int.from_bytes(blake2b(_encode(_essence(record)), digest_size=16).digest())


def add_digests(one: int, other: int) -> int:
    """Return the sum. Not an exclusive or, in which two faults of one kind would cancel out."""
    return (one + other) % (1 << 128)


def _essence(record: Record) -> tuple[Any, ...]:
    """Return what must be equal in two stores.

    Of a live session and of a mark: every field. Of a session that is ending: all but how often it
    was claimed, and so its version, and which of two ends at once came first. Of a tombstone: that
    it is there; stores empty more or fewer of its other fields.
    """
    if record.status == ENDED:
        return (record.sid, ENDED)
    if record.status == ENDING:
        record = msgspec.structs.replace(record, version=0, attempts=0, reason="")
    return msgspec.structs.astuple(record)


_encode = msgspec.msgpack.Encoder().encode


def put(place: int, record: Record, there: Record | None, now: float) -> Flow[bool]:
    """Put a record in the place of what is there; False, with nothing done, if that has changed.

    `there` must not have ended: nothing takes the place of a fence. The record is due at its
    deadline, or where its own due time cannot be known, a minute after `now`.
    """
    if there is None:
        done = yield At(place, Create(record))
    else:
        done = (yield At(place, Replace(record, there.version))) is SAVED
    if done and record.status == ENDING:
        yield At(place, put_off(record, now + _PUT_OFF))
    return bool(done)


def put_off(record: Record, due: float) -> Delete:
    """Return the call that sets when a session that is `ENDING` is due, and nothing else."""
    return Delete(record.sid, Ended(ENDING, record.reason, record.seen, due))


def can_change(record: Record | None) -> bool:
    """Tell whether something may be put in the place of it."""
    return record is None or record.status in (LIVE, MARK)


# Both side by side.


class Row(NamedTuple):
    """What the two stores hold under one sid; at least one of them something."""

    sid: str
    old: Record | None
    new: Record | None


class Joined:
    """Reads all records of both stores in the order of their sids, each once, page by page.

    Both lists come in the same order, so that one pass over each is enough, and nothing has to be
    asked for by its sid. What is written meanwhile may be seen in one and not in the other.

    Example of use in a flow:
        rows = Joined()
        while (page := (yield from rows.next())):
            for row in page: ...
    """

    def __init__(self, after: str = "") -> None:
        """Begin with the first sid after that one."""
        self._after = [after, after]
        self._waiting: list[list[Record]] = [[], []]
        self._over = [False, False]

    def next(self) -> Flow[list[Row]]:
        """Return some rows; none when both are at their end."""
        for place in (OLD, NEW):
            if not self._waiting[place] and not self._over[place]:
                page: list[Record] = yield At(place, List(None, None, self._after[place], PAGE))
                self._over[place] = len(page) < PAGE
                if page:
                    self._after[place] = page[-1].sid
                self._waiting[place] = [one for one in page if one.sid != MOVING][::-1]
        rows = list(self._merged())
        if not rows and not all(self._over):
            return (yield from self.next())
        return rows

    def _merged(self) -> Iterator[Row]:
        """Take rows as long as it is known what comes next in both."""
        old, new = self._waiting
        while (old or self._over[OLD]) and (new or self._over[NEW]) and (old or new):
            sid = min(side[-1].sid for side in (old, new) if side)
            yield Row(sid, _taken(old, sid), _taken(new, sid))


def _taken(side: list[Record], sid: str) -> Record | None:
    return side.pop() if side and side[-1].sid == sid else None


Report = Callable[[int], None]
"""Told, after each page, how many rows were gone through so far."""
