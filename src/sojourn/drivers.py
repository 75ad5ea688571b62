"""Drivers: what runs a flow. Blocking here, and on an event loop; Twisted's is with Twisted."""

from __future__ import annotations

import asyncio
import time
from types import CoroutineType
from typing import Any, TypeVar

from sojourn.core.calls import Call, Flow, Pause
from sojourn.errors import ConfigurationError, SojournError, StoreUnavailable

__all__ = ["arun", "run"]

T = TypeVar("T")

TRIES = 3
"""How often a call is made whose answer got lost. Calls are idempotent, so none is done twice."""


def run(flow: Flow[T], store: Any) -> T:
    """Run a flow to its end on a blocking store."""
    try:
        call = next(flow)
        while True:
            try:
                answer = _make(call, store)
            except SojournError as error:
                call = flow.throw(error)
            else:
                call = flow.send(answer)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def _make(call: Call, store: Any) -> Any:
    if type(call) is Pause:
        time.sleep(call.seconds)
        return None
    for left in range(TRIES - 1, -1, -1):
        try:
            answer = call.on(store)
            if type(answer) is CoroutineType or hasattr(answer, "__await__"):
                if type(answer) is CoroutineType:
                    answer.close()
                raise ConfigurationError(
                    f"{type(store).__name__} is an asynchronous store; a blocking caller needs a "
                    "blocking one (open_store)"
                )
            return answer
        except StoreUnavailable as error:
            if not (left and error.transient):
                raise
    raise AssertionError


async def arun(flow: Flow[T], store: Any) -> T:
    """Run a flow to its end on an asynchronous store."""
    try:
        call = next(flow)
        while True:
            try:
                answer = await _amake(call, store)
            except SojournError as error:
                call = flow.throw(error)
            else:
                call = flow.send(answer)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


async def _amake(call: Call, store: Any) -> Any:
    if type(call) is Pause:
        await asyncio.sleep(call.seconds)
        return None
    for left in range(TRIES - 1, -1, -1):
        try:
            answer = call.on(store)
            if not hasattr(answer, "__await__"):
                raise ConfigurationError(
                    f"{type(store).__name__} is a blocking store; an event loop needs an "
                    "asynchronous one (open_async_store, or ThreadedStore around it)"
                )
            return await answer
        except StoreUnavailable as error:
            if not (left and error.transient):
                raise
    raise AssertionError
