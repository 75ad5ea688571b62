"""Handlers of events, and callbacks of single sessions: run one after the other, each for itself.

Handlers are for all sessions, and durable where an end is concerned. A callback is for one session
and lives in this process only.
"""

from __future__ import annotations

import asyncio
import heapq
import inspect
import logging
import threading
from collections.abc import Callable
from typing import Any

from sojourn.core.calls import Flow, Load, Tell
from sojourn.core.expiry import expired_reason
from sojourn.core.record import LIVE, Ended, Record
from sojourn.errors import ConfigurationError, DamagedRecord

__all__ = ["ADesk", "Desk", "Handler", "Handlers", "Watches"]

Handler = Callable[..., Any]
log = logging.getLogger("sojourn")


class Handlers:
    """The handlers of a manager, by event and by name.

    Attributes:
        watches: the callbacks of single sessions.
    """

    def __init__(self) -> None:
        """Start with none."""
        self._by_event: dict[str, dict[str, Handler]] = {}
        self.watches = Watches()

    def add(self, event: str, handler: Handler) -> None:
        """Register a handler under its qualified name; the same one counts once.

        Another one of that name (two lambdas, one method of two objects) gets a number after it.
        """
        if not callable(handler):
            raise ConfigurationError(f"a handler must be a function; {handler!r} is none")
        handlers = self._by_event.setdefault(event, {})
        if handler in handlers.values():
            return
        plain = name = _name_of(handler)
        number = 1
        while name in handlers:
            number += 1
            name = f"{plain} ({number})"
        handlers[name] = handler

    def tell(self, event: str, *arguments: Any) -> list[str]:
        """Run the handlers of an event in this thread; returns the names of those that failed."""
        failed = []
        for name, handler in list(self._by_event.get(event, {}).items()):
            try:
                _call(handler, arguments)
            except Exception:
                _log(name, event, arguments[0].sid)
                failed.append(name)
        return failed

    async def atell(self, event: str, *arguments: Any) -> list[str]:
        """Run the handlers of an event from an event loop; blocking ones in a thread."""
        failed = []
        for name, handler in list(self._by_event.get(event, {}).items()):
            try:
                await _acall(handler, arguments)
            except Exception:
                _log(name, event, arguments[0].sid)
                failed.append(name)
        return failed


class Watches:
    """Callbacks that wait for the end of single sessions: one heap of deadlines for all of them.

    It knows no store and no clock: `check` is a flow, and is told the time. A callback is called
    once; nothing is kept of a session that ended, nor of one that nobody watches any more.
    """

    def __init__(self) -> None:
        """Watch nothing."""
        self._lock = threading.Lock()
        # For each sid when it is to be looked at, and who waits; the heap may hold more than that
        # for a while, of sids that are watched no more.
        self._watched: dict[str, tuple[float, list[Handler]]] = {}
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        """Return how many sessions are watched."""
        return len(self._watched)

    def add(self, sid: str, deadline: float, callback: Handler) -> None:
        """Call `callback(sid, reason)` when that session ends; look for it at `deadline`."""
        if not callable(callback):
            raise ConfigurationError(f"a callback must be a function; {callback!r} is none")
        with self._lock:
            known = self._watched.get(sid)
            if known is None:
                self._put(deadline, sid, [callback])
            else:
                # What is known already is earlier, and the look at that time tells the rest.
                known[1].append(callback)

    def remove(self, sid: str, callback: Handler) -> bool:
        """Take one registration back; False where there is none (any more)."""
        with self._lock:
            _, callbacks = self._watched.get(sid, (0.0, []))
            if callback not in callbacks:
                return False
            callbacks.remove(callback)
            if not callbacks:
                self._forget(sid)
            return True

    def take(self, sid: str) -> list[Handler]:
        """Return who waits for the end of that session, and forget them."""
        if sid not in self._watched:
            return []
        with self._lock:
            _, callbacks = self._watched.get(sid, (0.0, []))
            self._forget(sid)
            return callbacks

    def check(self, now: float) -> Flow[None]:
        """Look at the sessions whose known deadline has passed: they ended, or they were used.

        Raises:
            StoreUnavailable: the next check looks at what this one could not.
        """
        for sid in self._due(now):
            try:
                record: Record | None = yield Load(sid)
            except DamagedRecord:
                yield Tell("over", sid, "damaged")
                continue
            if record is None:
                yield Tell("over", sid, "")
            elif record.status == LIVE and now < record.deadline:
                self._put_off(sid, record.deadline)
            else:
                yield Tell("over", sid, expired_reason(record))

    def next_deadline(self) -> float | None:
        """Return when a check finds something to look at, at the earliest; None: never."""
        with self._lock:
            while self._heap:
                deadline, sid = self._heap[0]
                known = self._watched.get(sid)
                if known is not None and known[0] == deadline:
                    return deadline
                heapq.heappop(self._heap)
            return None

    def _due(self, now: float) -> list[str]:
        """Return the sids to be looked at; each stays due until it is put off or taken."""
        with self._lock:
            found = []
            while self._heap and self._heap[0][0] <= now:
                deadline, sid = heapq.heappop(self._heap)
                known = self._watched.get(sid)
                if known is not None and known[0] == deadline:
                    found.append((deadline, sid))
            for entry in found:
                # Back again at once: whatever stops the check, the next one finds them.
                heapq.heappush(self._heap, entry)
            return [sid for _, sid in found]

    def _put_off(self, sid: str, deadline: float) -> None:
        with self._lock:
            known = self._watched.get(sid)
            if known is not None and known[0] != deadline:
                self._put(deadline, sid, known[1])
                self._tidy()

    def _put(self, deadline: float, sid: str, callbacks: list[Handler]) -> None:
        self._watched[sid] = (deadline, callbacks)
        heapq.heappush(self._heap, (deadline, sid))

    def _forget(self, sid: str) -> None:
        self._watched.pop(sid, None)
        self._tidy()

    def _tidy(self) -> None:
        """Make the heap anew when most of it is of sids that are watched no more."""
        if not self._watched or len(self._heap) > 2 * len(self._watched) + 8:
            self._heap = [(deadline, sid) for sid, (deadline, _) in self._watched.items()]
            heapq.heapify(self._heap)


class Desk:
    """A store together with the handlers: what a flow is run on where there are any."""

    def __init__(self, store: Any, handlers: Handlers) -> None:
        """Put them together."""
        self._store = store
        self._handlers = handlers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def delete(self, sid: str, ended: Ended | None = None) -> bool:
        """As `Store.delete`; then call back who watches that session."""
        done: bool = self._store.delete(sid, ended)
        self._over(sid, ended.reason if ended else "")
        return done

    def due(self, now: float, lease: float, limit: int = 100) -> list[Record]:
        """As `Store.due`; then call back who watches what was claimed: it is over."""
        records: list[Record] = self._store.due(now, lease, limit)
        if self._handlers.watches:
            for record in records:
                self._over(record.sid, expired_reason(record))
        return records

    def tell(self, event: str, session: Any, reason: str) -> list[str]:
        """Run handlers; the names of those that failed."""
        if event == "over":
            return self._over(session, reason)
        return self._handlers.tell(event, *_arguments(event, session, reason))

    def _over(self, sid: str, reason: str) -> list[str]:
        for callback in self._handlers.watches.take(sid):
            try:
                _call(callback, (sid, reason))
            except Exception:
                _log(_name_of(callback), "watched", sid)
        return []

    def bury(self, ended: Ended, session: Any, reason: str) -> list[str]:
        """Bury a session in one transaction with the handlers that asked for it."""
        handlers, event = self._handlers, "ended in transaction"
        failed: list[str] = []

        def work(connection: Any) -> None:
            failed.extend(handlers.tell(event, session, reason, connection))
            if failed:
                raise _RollBack

        try:
            _bury_of(self._store)(session.sid, ended, work)
        except _RollBack:
            pass
        return failed


class ADesk(Desk):
    """The same for an asynchronous store."""

    async def delete(self, sid: str, ended: Ended | None = None) -> bool:  # type: ignore[override]
        """As `Desk.delete`."""
        done: bool = await self._store.delete(sid, ended)
        await self._over(sid, ended.reason if ended else "")
        return done

    async def due(self, now: float, lease: float, limit: int = 100) -> list[Record]:  # type: ignore[override]
        """As `Desk.due`."""
        records: list[Record] = await self._store.due(now, lease, limit)
        if self._handlers.watches:
            for record in records:
                await self._over(record.sid, expired_reason(record))
        return records

    async def tell(self, event: str, session: Any, reason: str) -> list[str]:  # type: ignore[override]
        """As `Desk.tell`."""
        if event == "over":
            return await self._over(session, reason)
        return await self._handlers.atell(event, *_arguments(event, session, reason))

    async def _over(self, sid: str, reason: str) -> list[str]:  # type: ignore[override]
        for callback in self._handlers.watches.take(sid):
            try:
                await _acall(callback, (sid, reason))
            except Exception:
                _log(_name_of(callback), "watched", sid)
        return []

    async def bury(self, ended: Ended, session: Any, reason: str) -> list[str]:  # type: ignore[override]
        """As `Desk.bury`; the handlers are coroutine functions where the connection is awaited."""
        blocking = getattr(self._store, "store", None)
        if blocking is not None:
            # A blocking store in threads: its connection is a blocking one, and so is this.
            return await asyncio.to_thread(
                Desk(blocking, self._handlers).bury, ended, session, reason
            )
        handlers, event = self._handlers, "ended in transaction"
        failed: list[str] = []

        async def work(connection: Any) -> None:
            failed.extend(await handlers.atell(event, session, reason, connection))
            if failed:
                raise _RollBack

        try:
            await _bury_of(self._store)(session.sid, ended, work)
        except _RollBack:
            pass
        return failed


class _RollBack(Exception):
    """A handler failed: what it and the others wrote must not become true."""


def _bury_of(store: Any) -> Any:
    bury = getattr(store, "bury", None)
    if bury is None:
        raise ConfigurationError(
            f"{type(store).__name__} has no transactions; on_ended_in_transaction needs a SQL "
            "store (sqlite, postgresql, mariadb). Use on_ended, which runs at least once"
        )
    return bury


def _arguments(event: str, session: Any, reason: str) -> tuple[Any, ...]:
    return (session, reason) if event == "ended" else (session,)


def _name_of(handler: Handler) -> str:
    module = getattr(handler, "__module__", "")
    return f"{module}.{getattr(handler, '__qualname__', type(handler).__name__)}"


def _call(handler: Handler, arguments: tuple[Any, ...]) -> None:
    """Run one in this thread; a coroutine on a loop of its own."""
    result = handler(*arguments)
    if inspect.isawaitable(result):
        asyncio.run(_await(result))


async def _acall(handler: Handler, arguments: tuple[Any, ...]) -> None:
    """Run one from an event loop; a blocking one in a thread."""
    if inspect.iscoroutinefunction(handler):
        await handler(*arguments)
        return
    result = await asyncio.to_thread(handler, *arguments)
    if inspect.isawaitable(result):
        await result


async def _await(awaitable: Any) -> Any:
    return await awaitable


def _log(name: str, event: str, sid: str) -> None:
    log.exception("handler %s of session %s (%s) failed", name, sid, event)
