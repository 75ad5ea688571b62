"""Drivers: what runs a flow, blocking and on an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from blockbuster import BlockBuster

from sojourn.core.calls import Count, Flow, Load, Pause
from sojourn.drivers import TRIES, arun, run
from sojourn.errors import ConfigurationError, Conflict, DamagedRecord, StoreUnavailable

SID = "A" * 22


class Scripted:
    """A store whose `load` raises what it is told, one after another, then answers.

    Attributes:
        loads: how often it was asked.
    """

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.loads = 0

    def load(self, sid: str) -> str:
        self.loads += 1
        if self.errors:
            raise self.errors.pop(0)
        return f"record {sid}"


class AsyncScripted(Scripted):
    """The same for event loops."""

    async def load(self, sid: str) -> str:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().load(sid)


def blocking(flow: Flow[Any], store: Any) -> Any:
    return run(flow, store)


def on_a_loop(flow: Flow[Any], store: Any) -> Any:
    return asyncio.run(arun(flow, store))


BOTH = pytest.mark.parametrize(
    ("drive", "make"),
    [(blocking, Scripted), (on_a_loop, AsyncScripted)],
    ids=["run", "arun"],
)
Drive = Callable[[Flow[Any], Any], Any]


def loads(times: int) -> Flow[list[Any]]:
    answers = []
    for _ in range(times):
        answers.append((yield Load(SID)))
    return answers


@BOTH
def test_answers(drive: Drive, make: Callable[..., Scripted]) -> None:
    """Each call gets its answer, and the flow's result is returned."""
    store = make()

    assert drive(loads(3), store) == [f"record {SID}"] * 3
    assert drive(loads(0), store) == []


@BOTH
def test_transient_errors_are_tried_again(drive: Drive, make: Callable[..., Scripted]) -> None:
    """A call that failed for a moment is made again, as often as `TRIES` says and not oftener."""
    for failures in range(TRIES):
        store = make(*[StoreUnavailable("cut", transient=True) for _ in range(failures)])
        assert drive(loads(1), store) == [f"record {SID}"]
        assert store.loads == failures + 1

    store = make(*[StoreUnavailable(f"cut {n}", transient=True) for n in range(9)])
    with pytest.raises(StoreUnavailable, match=f"cut {TRIES - 1}"):
        drive(loads(1), store)
    assert store.loads == TRIES


@BOTH
@pytest.mark.parametrize(
    "error", [StoreUnavailable("down"), DamagedRecord("flipped"), ValueError("a fault of ours")]
)
def test_other_errors_are_not(
    drive: Drive, make: Callable[..., Scripted], error: Exception
) -> None:
    """Any other error comes out at the first try."""
    store = make(error)

    with pytest.raises(type(error), match=str(error)):
        drive(loads(1), store)
    assert store.loads == 1


@BOTH
def test_a_flow_may_catch(drive: Drive, make: Callable[..., Scripted]) -> None:
    """Errors of this package are raised where the flow made the call, which may go on."""

    def flow() -> Flow[str]:
        try:
            yield Load(SID)
        except DamagedRecord as error:
            again = yield Load(SID)
            return f"{error}, then {again}"
        return "no error"

    assert drive(flow(), make(DamagedRecord("damaged"))) == f"damaged, then record {SID}"


@BOTH
def test_errors_of_the_flow(drive: Drive, make: Callable[..., Scripted]) -> None:
    """What a flow raises comes out as it is."""

    def flow() -> Flow[None]:
        yield Load(SID)
        raise Conflict("two logins")

    with pytest.raises(Conflict, match="two logins"):
        drive(flow(), make())


@BOTH
def test_pauses(
    drive: Drive, make: Callable[..., Scripted], no_blocking_on_the_loop: BlockBuster
) -> None:
    """A pause is waited for: blocking by a sleep, on a loop while others go on."""
    no_blocking_on_the_loop.deactivate()

    def flow() -> Flow[Any]:
        nothing = yield Pause(0.02)
        assert nothing is None
        return (yield Load(SID))

    store = make()
    start = time.monotonic()

    assert drive(flow(), store) == f"record {SID}"
    assert time.monotonic() - start >= 0.02
    assert store.loads == 1


def test_a_pause_holds_up_nobody_else() -> None:
    """While one flow pauses on a loop, others run."""

    def flow(seconds: float) -> Flow[float]:
        yield Pause(seconds)
        return seconds

    async def race() -> float:
        flows = [asyncio.create_task(arun(flow(s), None)) for s in (0.2, 0.01)]
        done, rest = await asyncio.wait(flows, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        return done.pop().result()

    assert asyncio.run(race()) == 0.01


class Awaitable:
    """An answer that is awaitable and no coroutine, such as a Deferred."""

    def __await__(self) -> Any:
        yield


class Deferring:
    """A store whose answers are such."""

    def load(self, sid: str) -> Awaitable:
        return Awaitable()


@pytest.mark.parametrize("store", [AsyncScripted(), Deferring()])
def test_blocking_refuses_an_asynchronous_store(store: Any) -> None:
    """An answer that is still to be awaited is never taken for one; the error says what to do."""
    with pytest.raises(ConfigurationError, match=r"is an asynchronous store; .*open_store"):
        run(loads(1), store)


def test_a_loop_refuses_a_blocking_store() -> None:
    """A store that would block the loop is refused, with what to do."""
    with pytest.raises(ConfigurationError, match=r"Scripted is a blocking store; .*ThreadedStore"):
        on_a_loop(loads(1), Scripted())


def test_cancelled_in_a_call() -> None:
    """A flow whose task is cancelled is closed: its `finally` runs, and it makes no more calls."""
    seen = []

    class Hanging:
        async def count(self, user: str | None, status: int | None) -> int:
            await asyncio.sleep(60)
            return 0

    def flow() -> Flow[None]:
        try:
            yield Count()
            seen.append("went on")
        finally:
            seen.append("closed")

    async def cancel() -> None:
        task = asyncio.create_task(arun(flow(), Hanging()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert seen == ["closed"]
