"""How a check runs: on a blocking store with threads, on an asynchronous one with tasks.

A check is a function without arguments that returns a flow: a generator that yields calls
(`sojourn.core.calls`) and receives what the store answered. It is written once and runs on stores
of both colours. Two more things can be yielded, `Together` and `Close`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, TypeAlias, TypeVar

from sojourn.core.calls import Call, Flow

__all__ = [
    "CHECKS",
    "Check",
    "Close",
    "ContractBroken",
    "Together",
    "acheck_store",
    "arun_check",
    "check",
    "check_store",
    "run_check",
]

Check: TypeAlias = Callable[[], Flow[None]]

C = TypeVar("C", bound=Check)

CHECKS: list[Check] = []
"""Every check, in the order of the contract. `import sojourn.testing` fills it."""


class ContractBroken(AssertionError):
    """A store does not keep the contract; the message has every check that failed."""


class Together(Call, frozen=True):
    """Run flows at the same time on one store; answers with what they returned, in their order.

    Threads on a blocking store, tasks on an asynchronous one. The first error of any of them is
    raised when all have come to their end. The threads are traced, to let them give way at any
    line of the store; a debugger or a measure of coverage sees nothing of them.
    """

    flows: list[Any]


class Close(Call, frozen=True, gc=False):
    """`Store.close`."""

    def on(self, store: Any) -> Any:
        """Make the call."""
        return store.close()


def check(function: C) -> C:
    """Enter a check into `CHECKS`."""
    CHECKS.append(function)
    return function


def run_check(check: Check, store: Any) -> None:
    """Run one check on a blocking store that is empty. Raises `AssertionError` where it fails."""
    _drive(check(), store)


async def arun_check(check: Check, store: Any) -> None:
    """Run one check on an asynchronous store that is empty. Raises as `run_check`."""
    await _adrive(check(), store)


def check_store(make_store: Callable[[], Any], checks: Iterable[Check] | None = None) -> None:
    """Run every check on a blocking store, each on a new one.

    Args:
        make_store: returns a store that is empty, or a context manager that gives one. Called
            once for each check; a store that is no context manager is closed after it.
        checks: others than `CHECKS`.

    Raises:
        ContractBroken: with the name, the sentence and the fault of each check that failed.
    """
    faults = []
    for one in CHECKS if checks is None else checks:
        try:
            made = make_store()
            with made if hasattr(made, "__enter__") else contextlib.closing(made) as store:
                run_check(one, store)
        except Exception as error:
            faults.append((one, error))
    _report(faults)


async def acheck_store(
    make_store: Callable[[], Any], checks: Iterable[Check] | None = None
) -> None:
    """Run every check on an asynchronous store, each on a new one; as `check_store`.

    `make_store` returns the store, an asynchronous or plain context manager that gives it, or
    something to await that returns one of these.
    """
    faults = []
    for one in CHECKS if checks is None else checks:
        try:
            async with contextlib.AsyncExitStack() as stack:
                store = make_store()
                if inspect.isawaitable(store):
                    store = await store
                if hasattr(store, "__aenter__"):
                    store = await stack.enter_async_context(store)
                elif hasattr(store, "__enter__"):
                    store = stack.enter_context(store)
                else:
                    stack.push_async_callback(store.close)
                await arun_check(one, store)
        except Exception as error:
            faults.append((one, error))
    _report(faults)


def _report(faults: list[tuple[Check, Exception]]) -> None:
    """Raise `ContractBroken` for all faults at once, the first of them as the cause."""
    if not faults:
        return
    lines = [f"{len(faults)} of the checks of a store failed:"]
    for one, error in faults:
        name = getattr(one, "__name__", repr(one))
        sentence = (inspect.getdoc(one) or "").partition("\n\n")[0].replace("\n", " ")
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        lines.append(f"- {name}: {sentence}\n    {kind}{error}")
    raise ContractBroken("\n".join(lines)) from faults[0][1]


def _drive(flow: Flow[Any], store: Any) -> Any:
    """Run a flow on a blocking store; what the store raises is raised at the flow's `yield`."""
    answer: Any = None
    error: Exception | None = None
    while True:
        try:
            call = flow.send(answer) if error is None else flow.throw(error)
        except StopIteration as stop:
            return stop.value
        answer = error = None
        try:
            if isinstance(call, Together):
                answer = _in_threads(call.flows, store)
            else:
                answer = call.on(store)
        except Exception as raised:
            error = raised
        if inspect.iscoroutine(answer):
            answer.close()
            raise TypeError(
                f"{type(store).__name__} is asynchronous: {type(call).__name__} returned a "
                "coroutine. Use acheck_store or arun_check."
            )


async def _adrive(flow: Flow[Any], store: Any, others: bool = False) -> Any:
    """Run a flow on an asynchronous store, letting `others` run between two calls."""
    answer: Any = None
    error: Exception | None = None
    while True:
        try:
            call = flow.send(answer) if error is None else flow.throw(error)
        except StopIteration as stop:
            return stop.value
        answer = error = None
        if others:
            await asyncio.sleep(0)
        try:
            if isinstance(call, Together):
                answer = await _in_tasks(call.flows, store)
            else:
                pending = call.on(store)
                if not inspect.isawaitable(pending):
                    raise TypeError(
                        f"{type(store).__name__} is blocking: {type(call).__name__} returned no "
                        "awaitable. Use check_store or run_check."
                    )
                answer = await pending
        except Exception as raised:
            error = raised


def _in_threads(flows: list[Flow[Any]], store: Any) -> list[Any]:
    """Run each flow in a thread of its own, all released at once."""
    answers: list[Any] = [None] * len(flows)
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(flows))

    def work(index: int) -> None:
        try:
            barrier.wait()
            sys.settrace(_give_way)
            answers[index] = _drive(flows[index], store)
        except BaseException as raised:
            errors.append(raised)
        finally:
            sys.settrace(None)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(flows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return answers


def _give_way(frame: FrameType, event: str, argument: object) -> Any:
    """Let another thread run, at a line of the store now and then (a trace function).

    A store written in Python makes a whole call before the interpreter changes threads by itself;
    what lies between its lines would hardly ever be seen.
    """
    if event == "call" and frame.f_globals.get("__name__", "").startswith("sojourn.testing"):
        return None
    if event == "line" and random.random() < 0.2:
        time.sleep(0)
    return _give_way


async def _in_tasks(flows: list[Flow[Any]], store: Any) -> list[Any]:
    """Run each flow in a task of its own."""
    tasks = (_adrive(flow, store, others=True) for flow in flows)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return list(answers)
