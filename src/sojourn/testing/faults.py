"""Stores that fail as they are told: for tests of what is built upon a store."""

from __future__ import annotations

import enum
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from sojourn.core.calls import Call
from sojourn.errors import StoreUnavailable
from sojourn.stores.base import AsyncStore, Store
from sojourn.testing.wrapping import AsyncWrappedStore, WrappedStore, verb_of

__all__ = ["AsyncFlakyStore", "Crash", "Fault", "FlakyStore", "Plan", "at", "sometimes"]


class Crash(BaseException):
    """The process ended here. No `except Exception` sees it, as none would see `kill -9`."""


class Fault(enum.Enum):
    """What happens to one call."""

    UNAVAILABLE = enum.auto()
    """`StoreUnavailable`, transient; the call never reaches the store."""
    LOST_REPLY = enum.auto()
    """The store does it, and then `StoreUnavailable`, transient: the answer got lost."""
    TWICE = enum.auto()
    """The store gets the call twice; the answer is that to the second."""
    CRASH_BEFORE = enum.auto()
    """`Crash`; the call never reaches the store."""
    CRASH_AFTER = enum.auto()
    """The store does it, and then `Crash`."""
    DELAY = enum.auto()
    """The hook that the store was given runs first, for as long as it likes."""


Plan: TypeAlias = Callable[[str, int], Fault | None]
"""Told the verb and which call of that verb this is, counted from 1; None: no fault."""

_BEFORE = {Fault.UNAVAILABLE, Fault.CRASH_BEFORE}
_AFTER = {Fault.LOST_REPLY, Fault.CRASH_AFTER}


def at(verb: str, fault: Fault, number: int = 1) -> Plan:
    """Plan one fault: at that call of the verb, counted from 1."""
    return lambda asked, count: fault if (asked, count) == (verb, number) else None


def sometimes(rate: float, *faults: Fault, seed: int) -> Plan:
    """Plan one of the faults for that share of all calls, the same ones for the same seed."""
    choose = random.Random(seed)
    return lambda _verb, _count: choose.choice(faults) if choose.random() < rate else None


class _Planned:
    """Which fault is next."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def next(self, call: Call) -> Fault | None:
        verb = verb_of(call)
        with self._lock:
            self._counts[verb] += 1
            return self._plan(verb, self._counts[verb])


def _raise(fault: Fault, call: Call) -> None:
    if fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER):
        raise Crash(f"{fault.name} at {verb_of(call)}")
    raise StoreUnavailable(f"planned fault: {fault.name} at {verb_of(call)}", transient=True)


class FlakyStore(WrappedStore):
    """A blocking store whose calls meet the faults of a plan.

    Example:
        >>> from sojourn.testing import Fault, FlakyStore, ModelStore, at
        >>> store = FlakyStore(ModelStore(), at("load", Fault.UNAVAILABLE))
        >>> store.load("A" * 22)
        Traceback (most recent call last):
            ...
        sojourn.errors.StoreUnavailable: planned fault: UNAVAILABLE at load
        >>> store.load("A" * 22)
    """

    def __init__(
        self, store: Store, plan: Plan, delay: Callable[[Call], object] | None = None
    ) -> None:
        """Wrap a store.

        Args:
            store: what answers when nothing fails.
            plan: asked at every call.
            delay: called with the call where the plan says `DELAY`; it may wait for an event.
        """
        super().__init__(store)
        self._planned = _Planned(plan)
        self._delay = delay

    def pass_on(self, call: Call) -> Any:
        """Make the call, with the fault that is planned for it."""
        fault = self._planned.next(call)
        if fault in _BEFORE:
            _raise(fault, call)
        if fault is Fault.DELAY and self._delay is not None:
            self._delay(call)
        answer = super().pass_on(call)
        if fault is Fault.TWICE:
            answer = super().pass_on(call)
        if fault in _AFTER:
            _raise(fault, call)
        return answer


class AsyncFlakyStore(AsyncWrappedStore):
    """`FlakyStore` around an asynchronous one; its `delay` is awaited."""

    def __init__(
        self,
        store: AsyncStore,
        plan: Plan,
        delay: Callable[[Call], Awaitable[object]] | None = None,
    ) -> None:
        """Wrap a store; as `FlakyStore`."""
        super().__init__(store)
        self._planned = _Planned(plan)
        self._delay = delay

    async def pass_on(self, call: Call) -> Any:
        """Make the call, with the fault that is planned for it."""
        fault = self._planned.next(call)
        if fault in _BEFORE:
            _raise(fault, call)
        if fault is Fault.DELAY and self._delay is not None:
            await self._delay(call)
        answer = await super().pass_on(call)
        if fault is Fault.TWICE:
            answer = await super().pass_on(call)
        if fault in _AFTER:
            _raise(fault, call)
        return answer
