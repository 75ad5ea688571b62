"""A store in the memory of one process: for tests, for development, for one worker.

Nothing is kept on disk and no other process sees it. Memory for a session of 200 bytes is about
a kilobyte.

**How it is laid out.** Four kinds of dictionaries, none of which holds an object that the garbage
collector has to follow: a million sessions lengthen its pauses by milliseconds only.

* `_records`: the record of each sid.
* `_due`: the due time of each sid, in one dictionary for each first two characters of a sid, so
  that a page of `list` sorts some hundreds of sids instead of all.
* `_buckets`: the sids whose due times fall into the same 8 seconds; a heap of their numbers says
  which comes first. A touch changes no bucket. "Earliest first" holds to within these 8 seconds.
* `_users`: the sids of each user; the sid itself where there is only one, as mostly there is.

**Threads.** Writes take turns with one lock. `load` takes none: it is a single look-up in a
dictionary whose values are immutable and are only ever exchanged as a whole, which the
interpreter makes atomic, also the one without a global lock. A record is in `_records` as soon as
a write is done and not before, so a reader sees the old one or the new one.
"""

from __future__ import annotations

import builtins
import heapq
import string
import threading
from bisect import bisect_left
from typing import Any

from msgspec.structs import replace as changed

from sojourn.core.calls import GONE, SAVED, Outcome
from sojourn.core.record import ENDED, ENDING, LIVE, MARK, Ended, Record, ended_as
from sojourn.stores.base import Promises

__all__ = ["MemoryStore", "from_url"]


_BUCKET = 8.0
"""Seconds. Of a million sessions with half an hour each, some 4,000 fall into one."""

_LOOKED_AT = 1000
"""How many entries of the buckets are looked at before others get their turn; about 1 ms."""

_ALPHABET = sorted("-_" + string.digits + string.ascii_letters)
_PREFIXES = [first + second for first in _ALPHABET for second in _ALPHABET]


class MemoryStore:
    """Keeps sessions in dictionaries of this process; for any number of threads."""

    promises = Promises(
        survives="nothing",
        shared="process",
        inline=True,
        note="For tests, development and a single worker that may forget.",
    )

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        self._due: dict[str, dict[str, float]] = {}
        self._buckets: dict[int, dict[str, None]] = {}
        self._order: list[int] = []
        self._users: dict[str, str | dict[str, None]] = {}
        self._counts = {LIVE: 0, ENDING: 0, ENDED: 0, MARK: 0}

    def load(self, sid: str) -> Record | None:
        """As `Store.load`."""
        return self._records.get(sid)

    def create(self, record: Record) -> bool:
        """As `Store.create`."""
        with self._lock:
            if record.sid in self._records:
                return False
            self._put(None, record, record.deadline)
            return True

    def replace(self, record: Record, expected_version: int) -> Record | Outcome:
        """As `Store.replace`."""
        with self._lock:
            current = self._records.get(record.sid)
            if current is None or current.status == ENDING or current.status == ENDED:
                return GONE
            if current.version != expected_version:
                return current
            due = self._due[record.sid[:2]][record.sid]
            self._put(current, record, min(due, record.deadline))
            return SAVED

    def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> bool:
        """As `Store.touch`."""
        with self._lock:
            current = self._records.get(sid)
            if (
                current is None
                or current.version != expected_version
                or current.status == ENDING
                or current.status == ENDED
            ):
                return False
            self._records[sid] = changed(
                current, version=expected_version + 1, seen=seen, deadline=deadline
            )
            return True

    def delete(self, sid: str, ended: Ended | None = None) -> bool:
        """As `Store.delete`."""
        with self._lock:
            current = self._records.get(sid)
            if current is None:
                return False
            if ended is None:
                self._remove(current)
                return True
            if current.status == ENDED:
                return False
            if current.status == ended.status == ENDING:
                self._put(current, current, ended.due)
                return False
            self._put(current, ended_as(current, ended), ended.due)
            return True

    def attempt(self, verb: str, *arguments: Any) -> Any:
        """Make a call on an event loop: none of them waits for anything (see `WouldBlock`)."""
        return getattr(self, verb)(*arguments)

    def due(self, now: float, lease: float, limit: int = 100) -> list[Record]:
        """As `Store.due`; the lock is given up after each page of entries looked at."""
        while True:
            with self._lock:
                claimed, more = self._claim(now, lease, limit)
            if claimed or not more:
                return claimed

    def list(
        self, user: str | None = None, status: int | None = LIVE, after: str = "", limit: int = 100
    ) -> builtins.list[Record]:
        """As `Store.list`; of all users, the lock is taken for some hundred sids at a time."""
        page: list[Record] = []
        if user is not None:
            with self._lock:
                sids = self._of_user(user)
            self._fill(page, sids, status, after, limit)
            return page
        for prefix in _PREFIXES[bisect_left(_PREFIXES, after[:2]) :]:
            if len(page) == limit:
                break
            with self._lock:
                sids = builtins.list(self._due.get(prefix, ()))
            self._fill(page, sids, status, after, limit)
        return page

    def count(self, user: str | None = None, status: int | None = LIVE) -> int:
        """As `Store.count`."""
        with self._lock:
            if user is None:
                return len(self._records) if status is None else self._counts[status]
            records = [self._records[sid] for sid in self._of_user(user)]
        return sum(status is None or record.status == status for record in records)

    def close(self) -> None:
        """Do nothing: there is nothing to let go of, and the records stay."""

    # With the lock held.

    def _put(self, current: Record | None, record: Record, due: float) -> None:
        """Exchange the current record, if there is one, for another with that due time."""
        sid = record.sid
        self._records[sid] = record
        self._counts[record.status] += 1
        if current is not None:
            self._counts[current.status] -= 1
        if current is None or current.user != record.user:
            if current is not None and current.user is not None:
                self._forget_user(current.user, sid)
            if record.user is not None:
                self._learn_user(record.user, sid)
        self._move(sid, due)

    def _remove(self, record: Record) -> None:
        sid = record.sid
        del self._records[sid]
        self._counts[record.status] -= 1
        if record.user is not None:
            self._forget_user(record.user, sid)
        due = self._due[sid[:2]].pop(sid)
        self._buckets[int(due // _BUCKET)].pop(sid, None)

    def _move(self, sid: str, due: float) -> None:
        """Keep another due time, in another bucket where it falls into one."""
        shelf = self._due.setdefault(sid[:2], {})
        before = shelf.get(sid)
        if before == due:
            return
        shelf[sid] = due
        number = int(due // _BUCKET)
        if before is not None:
            old = int(before // _BUCKET)
            if old == number:
                return
            self._buckets[old].pop(sid, None)
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = {}
            heapq.heappush(self._order, number)
        bucket[sid] = None

    def _claim(self, now: float, lease: float, limit: int) -> tuple[builtins.list[Record], bool]:
        """Go through what is due; return what was claimed, and whether more may be over."""
        claimed: list[Record] = []
        present = int(now // _BUCKET)
        looked_at = 0
        while self._order and self._order[0] < present:
            bucket = self._buckets[self._order[0]]
            while bucket:
                if len(claimed) == limit or looked_at == _LOOKED_AT:
                    return claimed, True
                looked_at += 1
                sid = bucket.popitem()[0]
                self._judge(sid, now, lease, claimed)
            del self._buckets[heapq.heappop(self._order)]
        # Of the bucket of this moment only some are due.
        shelves = self._due
        for sid in builtins.list(self._buckets.get(present, ())):
            if len(claimed) == limit:
                return claimed, True
            if shelves[sid[:2]][sid] <= now:
                self._judge(sid, now, lease, claimed)
        return claimed, False

    def _judge(self, sid: str, now: float, lease: float, claimed: builtins.list[Record]) -> None:
        """Claim, remove or move one whose due time has come."""
        record = self._records[sid]
        if record.status == ENDING or (record.status == LIVE and record.deadline <= now):
            ending = changed(
                record,
                version=record.version + 1,
                status=ENDING,
                attempts=record.attempts + 1,
            )
            self._put(record, ending, now + lease)
            claimed.append(ending)
        elif record.deadline <= now:
            self._remove(record)
        else:
            self._move(sid, record.deadline)

    def _learn_user(self, user: str, sid: str) -> None:
        sids = self._users.setdefault(user, sid)
        if isinstance(sids, dict):
            sids[sid] = None
        elif sids != sid:
            self._users[user] = {sids: None, sid: None}

    def _forget_user(self, user: str, sid: str) -> None:
        sids = self._users[user]
        if isinstance(sids, dict):
            del sids[sid]
            if sids:
                return
        del self._users[user]

    def _of_user(self, user: str) -> builtins.list[str]:
        sids = self._users.get(user, ())
        return [sids] if isinstance(sids, str) else [*sids]

    # Without the lock.

    def _fill(
        self,
        page: builtins.list[Record],
        sids: builtins.list[str],
        status: int | None,
        after: str,
        limit: int,
    ) -> None:
        """Add those of the sids that `list` is to show to the page, in order."""
        for sid in sorted(sids):
            if len(page) == limit:
                return
            record = self._records.get(sid)
            if sid > after and record is not None and status in (None, record.status):
                page.append(record)


def from_url(url: str) -> MemoryStore:
    """Return a new, empty store; `memory://` says all there is to say."""
    return MemoryStore()
