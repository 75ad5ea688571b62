"""The contract of `stores.base` as a dictionary: what every store is compared with.

As short as it can be; it knows no threads and forgets everything. For a store to use there is
`sojourn.stores.memory`.
"""

from __future__ import annotations

import builtins

from msgspec.structs import replace as changed

from sojourn.core.calls import GONE, SAVED, Outcome
from sojourn.core.record import ENDED, ENDING, LIVE, MARK, Ended, Record
from sojourn.stores.base import Promises

__all__ = ["ModelStore"]


class ModelStore:
    """A store for one thread: for each sid the record and its due time."""

    promises = Promises(survives="nothing", shared="process", inline=True)

    def __init__(self) -> None:
        """Start empty."""
        self.kept: dict[str, tuple[Record, float]] = {}

    def load(self, sid: str) -> Record | None:
        """As `Store.load`."""
        return self.kept[sid][0] if sid in self.kept else None

    def create(self, record: Record) -> bool:
        """As `Store.create`."""
        if record.sid in self.kept:
            return False
        self.kept[record.sid] = (record, record.deadline)
        return True

    def replace(self, record: Record, expected_version: int) -> Record | Outcome:
        """As `Store.replace`."""
        current = self.load(record.sid)
        if current is None or current.status in (ENDING, ENDED):
            return GONE
        if current.version != expected_version:
            return current
        self.kept[record.sid] = (record, min(self.kept[record.sid][1], record.deadline))
        return SAVED

    def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> bool:
        """As `Store.touch`."""
        current = self.load(sid)
        if current is None or current.status in (ENDING, ENDED):
            return False
        if current.version != expected_version:
            return False
        self._put(current, self.kept[sid][1], seen=seen, deadline=deadline)
        return True

    def delete(self, sid: str, ended: Ended | None = None) -> bool:
        """As `Store.delete`."""
        current = self.load(sid)
        if current is None:
            return False
        if ended is None:
            del self.kept[sid]
            return True
        if current.status == ENDED:
            return False
        if ended.status == ENDED:
            self._put(
                current,
                ended.due,
                status=ENDED,
                reason=current.reason or ended.reason,
                seen=ended.at,
                deadline=ended.due,
                data=b"",
                commits=b"",
                salt=b"",
                user=None,
            )
        elif current.status == ENDING:
            self.kept[sid] = (current, ended.due)
            return False
        else:
            self._put(current, ended.due, status=ENDING, reason=ended.reason)
        return True

    def due(self, now: float, lease: float, limit: int = 100) -> list[Record]:
        """As `Store.due`."""
        claimed: list[Record] = []
        for sid, (record, due) in sorted(self.kept.items(), key=lambda item: item[1][1]):
            if due > now or len(claimed) == limit:
                break
            if record.status != ENDING and record.deadline > now:
                self.kept[sid] = (record, record.deadline)
            elif record.status in (ENDED, MARK):
                del self.kept[sid]
            else:
                self._put(record, now + lease, status=ENDING, attempts=record.attempts + 1)
                claimed.append(self.kept[sid][0])
        return claimed

    def list(
        self, user: str | None = None, status: int | None = LIVE, after: str = "", limit: int = 100
    ) -> builtins.list[Record]:
        """As `Store.list`."""
        return [
            record
            for sid, (record, _) in sorted(self.kept.items())
            if sid > after and user in (None, record.user) and status in (None, record.status)
        ][:limit]

    def count(self, user: str | None = None, status: int | None = LIVE) -> int:
        """As `Store.count`."""
        return len(self.list(user, status, limit=len(self.kept)))

    def close(self) -> None:
        """As `Store.close`."""

    def _put(self, current: Record, due: float, **fields: object) -> None:
        record = changed(current, version=current.version + 1, **fields)
        self.kept[record.sid] = (record, due)
