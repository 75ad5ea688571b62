"""An asynchronous store out of a blocking one."""

from __future__ import annotations

import asyncio
import builtins
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from sojourn.core.calls import Outcome
from sojourn.core.record import LIVE, Ended, Record
from sojourn.stores.base import Store, WouldBlock

__all__ = ["ThreadedStore"]

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 8
"""Enough for disks; a store with a network behind it has an asynchronous client of its own."""


class ThreadedStore:
    """Makes the calls of a blocking store in threads, so that an event loop can await them.

    * `load` is made on the loop itself where the store promises that it never waits
      (`promises.inline`): a thread costs ten times as much as such a read. A write is, where the
      store can tell beforehand that it need not wait (`stores.base.WouldBlock`).
    * The threads are the store's own. Those of `asyncio.to_thread` are shared with all of the
      application and the loop's name look-ups: when slow work fills them, every request would
      wait for it, and for ever where that work waits for a request.
    * A call that was begun goes on to its end, also when whoever awaits it is cancelled: nothing
      is half written, and what was asked for happens.
    * It may be used from several event loops at once.

    Attributes:
        store: the blocking store.
        promises: as that store's.
    """

    def __init__(self, store: Store) -> None:
        """Wrap a blocking store; threads are started when needed."""
        self.store = store
        self.promises = store.promises
        self._attempt: Callable[..., Any] | None = getattr(store, "attempt", None)
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    async def load(self, sid: str) -> Record | None:
        """As `Store.load`."""
        if self._attempt is None and self.promises.inline:
            return self.store.load(sid)
        return await self._try("load", self.store.load, sid)

    async def create(self, record: Record) -> bool:
        """As `Store.create`."""
        return await self._try("create", self.store.create, record)

    async def replace(self, record: Record, expected_version: int) -> Record | Outcome:
        """As `Store.replace`."""
        return await self._try("replace", self.store.replace, record, expected_version)

    async def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> bool:
        """As `Store.touch`."""
        return await self._try("touch", self.store.touch, sid, expected_version, seen, deadline)

    async def delete(self, sid: str, ended: Ended | None = None) -> bool:
        """As `Store.delete`."""
        return await self._call(self.store.delete, sid, ended)

    async def due(self, now: float, lease: float, limit: int = 100) -> list[Record]:
        """As `Store.due`."""
        return await self._call(self.store.due, now, lease, limit)

    async def list(
        self, user: str | None = None, status: int | None = LIVE, after: str = "", limit: int = 100
    ) -> builtins.list[Record]:
        """As `Store.list`."""
        return await self._call(self.store.list, user, status, after, limit)

    async def count(self, user: str | None = None, status: int | None = LIVE) -> int:
        """As `Store.count`."""
        return await self._call(self.store.count, user, status)

    async def close(self) -> None:
        """Close the store, then let the threads end; a later call starts new ones."""
        try:
            await self._call(self.store.close)
        finally:
            pool, self._pool = self._pool, None
            if pool is not None:
                pool[1].shutdown(wait=False)

    async def _try(self, verb: str, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call on the loop if the store can do it without waiting, else in a thread."""
        if self._attempt is not None:
            try:
                answer: T = self._attempt(verb, *args)
            except WouldBlock:
                pass
            else:
                return answer
        return await self._call(method, *args, **kwargs)

    async def _call(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make one call in a thread and wait for it; a cancelled wait leaves it running."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is None:
                answer.set_result(result)  # type: ignore[arg-type]
            else:
                answer.set_exception(error)

        def work() -> None:
            result, raised = None, None
            try:
                result = method(*args, **kwargs)
            except BaseException as error:
                raised = error
            # Raises where the loop was closed meanwhile: then nobody waits, and nobody is told.
            loop.call_soon_threadsafe(settle, result, raised)

        # Not loop.run_in_executor: cancelling its future takes back a call that still queues.
        self._executor().submit(work)
        return await answer

    def _executor(self) -> ThreadPoolExecutor:
        """Return the threads of this process; a fork has none of its parent's."""
        pool = self._pool
        if pool is None or pool[0] != os.getpid():
            made = ThreadPoolExecutor(_THREADS, thread_name_prefix="sojourn-store")
            pool = self._pool = (os.getpid(), made)
        return pool[1]
