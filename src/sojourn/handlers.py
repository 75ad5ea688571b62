"""Handlers of events: kept by name, run one after the other, each for itself."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any

from sojourn.core.record import Ended
from sojourn.errors import ConfigurationError

__all__ = ["ADesk", "Desk", "Handler", "Handlers"]

Handler = Callable[..., Any]
log = logging.getLogger("sojourn")


class Handlers:
    """The handlers of a manager, by event and by name."""

    def __init__(self) -> None:
        """Start with none."""
        self._by_event: dict[str, dict[str, Handler]] = {}

    def add(self, event: str, handler: Handler) -> None:
        """Register a handler under its qualified name; registered again it takes its own place."""
        if not callable(handler):
            raise ConfigurationError(f"a handler must be a function; {handler!r} is none")
        name = f"{handler.__module__}.{getattr(handler, '__qualname__', type(handler).__name__)}"
        self._by_event.setdefault(event, {})[name] = handler

    def tell(self, event: str, *arguments: Any) -> list[str]:
        """Run the handlers of an event in this thread; returns the names of those that failed."""
        failed = []
        for name, handler in list(self._by_event.get(event, {}).items()):
            try:
                result = handler(*arguments)
                if inspect.isawaitable(result):
                    asyncio.run(_await(result))
            except Exception:
                _log(name, event, arguments)
                failed.append(name)
        return failed

    async def atell(self, event: str, *arguments: Any) -> list[str]:
        """Run the handlers of an event from an event loop; blocking ones in a thread."""
        failed = []
        for name, handler in list(self._by_event.get(event, {}).items()):
            try:
                if inspect.iscoroutinefunction(handler):
                    await handler(*arguments)
                else:
                    result = await asyncio.to_thread(handler, *arguments)
                    if inspect.isawaitable(result):
                        await result
            except Exception:
                _log(name, event, arguments)
                failed.append(name)
        return failed


class Desk:
    """A store together with the handlers: what a flow is run on where there are any."""

    def __init__(self, store: Any, handlers: Handlers) -> None:
        """Put them together."""
        self._store = store
        self._handlers = handlers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def tell(self, event: str, session: Any, reason: str) -> list[str]:
        """Run handlers; the names of those that failed."""
        return self._handlers.tell(event, *_arguments(event, session, reason))

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

    async def tell(self, event: str, session: Any, reason: str) -> list[str]:  # type: ignore[override]
        """As `Desk.tell`."""
        return await self._handlers.atell(event, *_arguments(event, session, reason))

    async def bury(self, ended: Ended, session: Any, reason: str) -> list[str]:  # type: ignore[override]
        """As `Desk.bury`; the handlers are coroutine functions where the connection is awaited."""
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


async def _await(awaitable: Any) -> Any:
    return await awaitable


def _log(name: str, event: str, arguments: tuple[Any, ...]) -> None:
    log.exception("handler %s of session %s (%s) failed", name, arguments[0].sid, event)
