"""Copies all records of one store into another one, and compares the two; `sojourn copy`.

A copy that was broken off is simply made again: it reads both stores side by side, and puts only
what is not there yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from sojourn.core.calls import Count, Delete, Flow, Load
from sojourn.core.record import ENDED, ENDING, Ended, Record
from sojourn.errors import DamagedRecord, InvalidValue
from sojourn.stores.pair import (
    MOVING,
    NEW,
    At,
    Joined,
    Report,
    Row,
    add_digests,
    can_change,
    digest_of,
    put,
    same,
)

__all__ = ["Compared", "Copied", "compare", "copy", "count", "end_like"]

_TRIES = 20


class Copied(msgspec.Struct):
    """What a copy did.

    Attributes:
        copied: records put into the target.
        ended: sessions of the target that ended because they have ended in the source.
        equal: records that were there already.
        newer: records left alone, because the target's own is newer or has ended.
        refused: records that the target cannot keep: (sid, why).
        damaged: sids of the target under which there is something that is no record.
    """

    copied: int = 0
    ended: int = 0
    equal: int = 0
    newer: int = 0
    refused: list[tuple[str, str]] = []
    damaged: list[str] = []


class Compared(msgspec.Struct):
    """What two stores hold, in count and digest.

    The digest is a sum over all records, so it does not depend on their order; that of the target
    is over the sids of the source alone.

    Attributes:
        records: in the source.
        found: of these sids, how many are in the target.
        digest: over the records of the source.
        target_digest: over what the target holds under the same sids.
        newer: where the target's own is newer or has ended.
        different: sids that are missing in the target, or older there.
        others: records that only the target has.
    """

    records: int = 0
    found: int = 0
    digest: int = 0
    target_digest: int = 0
    newer: int = 0
    different: list[str] = []
    others: int = 0


def count(place: int) -> Flow[int]:
    """Return how many records of every status a store holds, without a move's own mark."""
    number: int = yield At(place, Count(None, None))
    try:
        mark = yield At(place, Load(MOVING))
    except DamagedRecord:
        mark = None
    return number - (mark is not None)


def copy(told: Report, clock: Callable[[], float] = time.time) -> Flow[Copied]:
    """Put what the source (the first store) holds into the target (the second).

    Records of every status go over: tombstones and marks are fences. Nothing newer is overwritten:
    a record with the same or a higher version stays. An end counts for more than any version: what
    has ended on either side has ended in the target afterwards.
    """
    done = Copied(refused=[], damaged=[])
    rows, seen = Joined(), 0
    while page := (yield from rows.next()):
        for row in page:
            if row.old is not None:
                seen += 1
                try:
                    yield from _copy_one(row.old, row.new, done, clock())
                except DamagedRecord:
                    done.damaged.append(row.sid)
                except InvalidValue as error:
                    done.refused.append((row.sid, str(error)))
        told(seen)
    return done


def _copy_one(record: Record, there: Record | None, done: Copied, now: float) -> Flow[None]:
    for _ in range(_TRIES):
        if same(record, there):
            done.equal += 1
            return
        if _stays(record, there):
            done.newer += 1
            return
        if there is not None and record.status in (ENDING, ENDED):
            yield At(NEW, end_like(record, now))
            done.ended += 1
            return
        if (yield from put(NEW, record, there, now)):
            done.copied += 1
            return
        # The target is in use, or holds something that is no record, which `list` passes over.
        there = yield At(NEW, Load(record.sid))


def _stays(record: Record, there: Record | None) -> bool:
    """Tell whether what the target holds is to stay as it is."""
    if there is None:
        return False
    if record.status == ENDED:
        return there.status == ENDED
    if record.status == ENDING:
        return there.status in (ENDING, ENDED)
    return not can_change(there) or there.version >= record.version


def end_like(record: Record, now: float) -> Delete:
    """Return the call that ends a session as this record of it has ended."""
    if record.status == ENDED:
        ended = Ended(ENDED, record.reason, record.seen, record.deadline)
    else:
        ended = Ended(ENDING, record.reason, now, now + 60.0)
    return Delete(record.sid, ended)


def compare(told: Report) -> Flow[Compared]:
    """Read both stores again, and compare record by record."""
    done = Compared(different=[])
    rows = Joined()
    while page := (yield from rows.next()):
        for row in page:
            _compare_one(row, done)
        told(done.records)
    return done


def _compare_one(row: Row, done: Compared) -> None:
    if row.old is None:
        done.others += 1
        return
    done.records += 1
    done.digest = add_digests(done.digest, digest_of(row.old))
    if row.new is not None:
        done.found += 1
        done.target_digest = add_digests(done.target_digest, digest_of(row.new))
    if not same(row.old, row.new):
        if _stays(row.old, row.new):
            done.newer += 1
        else:
            done.different.append(row.sid)
