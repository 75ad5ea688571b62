"""What a flow may ask of a store: one class per verb of `stores.base`, and two for the driver.

A call knows which method it stands for; a driver calls `on(store)` and, where the store is an
asynchronous one, awaits what that returns.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

import msgspec

from sojourn.core.record import Ended, Record

__all__ = [
    "GONE",
    "SAVED",
    "Bury",
    "Call",
    "Count",
    "Create",
    "Delete",
    "Due",
    "Flow",
    "List",
    "Load",
    "Outcome",
    "Pause",
    "Replace",
    "Tell",
    "Touch",
]

T = TypeVar("T")


class Outcome:
    """An answer of `replace` that is not a record; there are two, `SAVED` and `GONE`."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        """Name it for people."""
        self.name = name

    def __repr__(self) -> str:
        return self.name


SAVED = Outcome("SAVED")
"""The write happened."""
GONE = Outcome("GONE")
"""There is no such live record: ended, swept or never made. Final."""


class Call(msgspec.Struct, frozen=True, gc=False):
    """One call on a store."""

    def on(self, store: Any) -> Any:
        """Make the call."""
        raise NotImplementedError


Flow = Generator[Call, Any, T]
"""A generator that yields calls, receives their answers, and returns a T."""


class Load(Call, frozen=True, gc=False):
    """`Store.load`: the record or None.

    With `opens`, a store may recall a record that `opens` accepts (`stores.base`, "Recalling").
    """

    sid: str
    opens: Callable[[Record], bool] | None = None

    def on(self, store: Any) -> Any:
        """Make the call."""
        if self.opens is not None:
            recall = getattr(store, "recall", None)
            if recall is not None:
                return recall(self.sid, self.opens)
        return store.load(self.sid)


class Create(Call, frozen=True, gc=False):
    """`Store.create`: whether it was made."""

    record: Record

    def on(self, store: Any) -> Any:
        """Make the call."""
        return store.create(self.record)


class Replace(Call, frozen=True, gc=False):
    """`Store.replace`: `SAVED`, `GONE`, or the current record."""

    record: Record
    expected_version: int

    def on(self, store: Any) -> Any:
        """Make the call."""
        return store.replace(self.record, self.expected_version)


class Touch(Call, frozen=True, gc=False):
    """`Store.touch`: whether it was extended."""

    sid: str
    expected_version: int
    seen: float
    deadline: float

    def on(self, store: Any) -> Any:
        """Make the call."""
        return store.touch(self.sid, self.expected_version, self.seen, self.deadline)


class Delete(Call, frozen=True, gc=False):
    """`Store.delete`: whether this call ended it."""

    sid: str
    ended: Ended | None = None

    def on(self, store: Any) -> Any:
        """Make the call."""
        return store.delete(self.sid, self.ended)


class Due(Call, frozen=True, gc=False):
    """`Store.due`: the records claimed."""

    now: float
    lease: float
    limit: int = 100

    def on(self, store: Any) -> Any:
        """Make the call."""
        return store.due(self.now, self.lease, self.limit)


class List(Call, frozen=True, gc=False):
    """`Store.list`: one page."""

    user: str | None = None
    status: int | None = 0
    after: str = ""
    limit: int = 100

    def on(self, store: Any) -> Any:
        """Make the call."""
        return store.list(self.user, self.status, self.after, self.limit)


class Count(Call, frozen=True, gc=False):
    """`Store.count`: how many."""

    user: str | None = None
    status: int | None = 0

    def on(self, store: Any) -> Any:
        """Make the call."""
        return store.count(self.user, self.status)


class Tell(Call, frozen=True):
    """Not a store's verb: run the handlers of an event; the names of those that failed."""

    event: str
    session: Any
    reason: str

    def on(self, store: Any) -> Any:
        """Run them; what a manager hands to its driver as the store knows them."""
        return store.tell(self.event, self.session, self.reason)


class Bury(Call, frozen=True):
    """`delete` with `ENDED`, in one transaction with the handlers that asked for that."""

    ended: Ended
    session: Any
    reason: str

    def on(self, store: Any) -> Any:
        """Do both or neither; whether this call did it."""
        return store.bury(self.ended, self.session, self.reason)


class Pause(Call, frozen=True, gc=False):
    """Not a store's verb: the driver waits that many seconds (jitter between two tries)."""

    seconds: float
