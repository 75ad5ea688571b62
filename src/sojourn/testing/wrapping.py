"""Stores around a store: every call goes through one method, as the object it is in a flow."""

from __future__ import annotations

import builtins
from typing import Any

from sojourn.core.calls import (
    Call,
    Count,
    Create,
    Delete,
    Due,
    List,
    Load,
    Outcome,
    Replace,
    Touch,
)
from sojourn.core.record import LIVE, Ended, Record
from sojourn.stores.base import AsyncStore, Store

__all__ = ["AsyncRecordingStore", "AsyncWrappedStore", "RecordingStore", "WrappedStore"]


class WrappedStore:
    """A blocking store around another; a subclass overrides `pass_on`.

    Attributes:
        store: the one inside.
    """

    def __init__(self, store: Store) -> None:
        """Wrap a store."""
        self.store = store
        self.promises = store.promises

    def pass_on(self, call: Call) -> Any:
        """Make the call on the store inside."""
        return call.on(self.store)

    def load(self, sid: str) -> Record | None:
        """As `Store.load`."""
        answer: Record | None = self.pass_on(Load(sid))
        return answer

    def create(self, record: Record) -> bool:
        """As `Store.create`."""
        answer: bool = self.pass_on(Create(record))
        return answer

    def replace(self, record: Record, expected_version: int) -> Record | Outcome:
        """As `Store.replace`."""
        answer: Record | Outcome = self.pass_on(Replace(record, expected_version))
        return answer

    def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> bool:
        """As `Store.touch`."""
        answer: bool = self.pass_on(Touch(sid, expected_version, seen, deadline))
        return answer

    def delete(self, sid: str, ended: Ended | None = None) -> bool:
        """As `Store.delete`."""
        answer: bool = self.pass_on(Delete(sid, ended))
        return answer

    def due(self, now: float, lease: float, limit: int = 100) -> list[Record]:
        """As `Store.due`."""
        answer: list[Record] = self.pass_on(Due(now, lease, limit))
        return answer

    def list(
        self, user: str | None = None, status: int | None = LIVE, after: str = "", limit: int = 100
    ) -> builtins.list[Record]:
        """As `Store.list`."""
        answer: builtins.list[Record] = self.pass_on(List(user, status, after, limit))
        return answer

    def count(self, user: str | None = None, status: int | None = LIVE) -> int:
        """As `Store.count`."""
        answer: int = self.pass_on(Count(user, status))
        return answer

    def close(self) -> None:
        """Close the store inside."""
        self.store.close()


class AsyncWrappedStore:
    """An asynchronous store around another; a subclass overrides `pass_on`.

    Attributes:
        store: the one inside.
    """

    def __init__(self, store: AsyncStore) -> None:
        """Wrap a store."""
        self.store = store
        self.promises = store.promises

    async def pass_on(self, call: Call) -> Any:
        """Make the call on the store inside."""
        return await call.on(self.store)

    async def load(self, sid: str) -> Record | None:
        """As `Store.load`."""
        answer: Record | None = await self.pass_on(Load(sid))
        return answer

    async def create(self, record: Record) -> bool:
        """As `Store.create`."""
        answer: bool = await self.pass_on(Create(record))
        return answer

    async def replace(self, record: Record, expected_version: int) -> Record | Outcome:
        """As `Store.replace`."""
        answer: Record | Outcome = await self.pass_on(Replace(record, expected_version))
        return answer

    async def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> bool:
        """As `Store.touch`."""
        answer: bool = await self.pass_on(Touch(sid, expected_version, seen, deadline))
        return answer

    async def delete(self, sid: str, ended: Ended | None = None) -> bool:
        """As `Store.delete`."""
        answer: bool = await self.pass_on(Delete(sid, ended))
        return answer

    async def due(self, now: float, lease: float, limit: int = 100) -> list[Record]:
        """As `Store.due`."""
        answer: list[Record] = await self.pass_on(Due(now, lease, limit))
        return answer

    async def list(
        self, user: str | None = None, status: int | None = LIVE, after: str = "", limit: int = 100
    ) -> builtins.list[Record]:
        """As `Store.list`."""
        answer: builtins.list[Record] = await self.pass_on(List(user, status, after, limit))
        return answer

    async def count(self, user: str | None = None, status: int | None = LIVE) -> int:
        """As `Store.count`."""
        answer: int = await self.pass_on(Count(user, status))
        return answer

    async def close(self) -> None:
        """Close the store inside."""
        await self.store.close()


class RecordingStore(WrappedStore):
    """Remembers the calls that were made, so that a test can say "one load, no write".

    Example:
        >>> from sojourn.testing import ModelStore, RecordingStore
        >>> store = RecordingStore(ModelStore())
        >>> store.load("A" * 22)
        >>> store.verbs
        ['load']

    Attributes:
        calls: the calls in their order, as `sojourn.core.calls` objects; clear it at will.
    """

    def __init__(self, store: Store) -> None:
        """Wrap a store."""
        super().__init__(store)
        self.calls: builtins.list[Call] = []

    @property
    def verbs(self) -> builtins.list[str]:
        """The names of the calls in their order."""
        return [verb_of(call) for call in self.calls]

    def pass_on(self, call: Call) -> Any:
        """Remember the call, then make it."""
        self.calls.append(call)
        return super().pass_on(call)


class AsyncRecordingStore(AsyncWrappedStore):
    """`RecordingStore` around an asynchronous one."""

    def __init__(self, store: AsyncStore) -> None:
        """Wrap a store."""
        super().__init__(store)
        self.calls: builtins.list[Call] = []

    @property
    def verbs(self) -> builtins.list[str]:
        """The names of the calls in their order."""
        return [verb_of(call) for call in self.calls]

    async def pass_on(self, call: Call) -> Any:
        """Remember the call, then make it."""
        self.calls.append(call)
        return await super().pass_on(call)


def verb_of(call: Call) -> str:
    """Return the name of the method that a call stands for."""
    return type(call).__name__.lower()
