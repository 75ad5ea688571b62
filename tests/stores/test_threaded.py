"""`ThreadedStore`: the contract on a blocking store, cancellation, several loops, forks."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from msgspec.structs import replace as changed

from sojourn.core.calls import SAVED, Call
from sojourn.errors import StoreUnavailable
from sojourn.stores.base import AsyncStore
from sojourn.stores.memory import MemoryStore
from sojourn.stores.threaded import ThreadedStore
from sojourn.testing import (
    CHECKS,
    Check,
    Crash,
    Fault,
    FlakyStore,
    WrappedStore,
    arun_check,
    at,
    new_record,
    next_version,
)

NOW = 1_750_000_000.0


class WhichThread(WrappedStore):
    """Notes in which thread each call is made."""

    def __init__(self, inline: bool = True) -> None:
        super().__init__(MemoryStore())
        self.promises = changed(self.store.promises, inline=inline)
        self.threads: list[tuple[str, str]] = []

    def pass_on(self, call: Call) -> Any:
        self.threads.append((type(call).__name__, threading.current_thread().name))
        return super().pass_on(call)


class Gate:
    """Holds calls until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, call: Call) -> None:
        self.reached.set()
        assert self.open.wait(10)


@pytest.mark.anyio
@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_contract(check: Check, inline: bool) -> None:
    """A blocking store in threads keeps the contract, whether it reads on the loop or not."""
    store = ThreadedStore(WhichThread(inline))
    await arun_check(check, store)
    await store.close()


def test_protocol() -> None:
    """It is an asynchronous store and promises what the store inside does."""
    store = MemoryStore()

    assert isinstance(ThreadedStore(store), AsyncStore)
    assert ThreadedStore(store).promises == store.promises
    assert ThreadedStore(store).store is store


@pytest.mark.anyio
async def test_only_inline_reads_are_made_on_the_loop() -> None:
    """`load` runs on the loop where the store promises that it never waits; nothing else does."""
    for inline in (True, False):
        inside = WhichThread(inline)
        store = ThreadedStore(inside)
        record = new_record(NOW)
        await store.create(record)
        await store.load(record.sid)
        await store.replace(next_version(record), 1)
        await store.touch(record.sid, 2, NOW, NOW + 60.0)
        await store.due(NOW, 60.0)
        await store.list()
        await store.count()
        await store.delete(record.sid)
        await store.close()
        here = threading.current_thread().name
        on_the_loop = [verb for verb, thread in inside.threads if thread == here]

        assert on_the_loop == (["Load"] if inline else [])
        assert all(t.startswith("sojourn-store") for _, t in inside.threads if t != here)


@pytest.mark.anyio
async def test_errors_reach_the_caller() -> None:
    """What the store raises is raised where the call is awaited, a crash too."""
    store = ThreadedStore(FlakyStore(MemoryStore(), at("touch", Fault.UNAVAILABLE)))
    with pytest.raises(StoreUnavailable, match="UNAVAILABLE at touch"):
        await store.touch("A" * 22, 1, NOW, NOW)
    assert await store.touch("A" * 22, 1, NOW, NOW) is False
    await store.close()

    store = ThreadedStore(FlakyStore(MemoryStore(), at("touch", Fault.CRASH_AFTER)))
    with pytest.raises(Crash):
        await store.touch("A" * 22, 1, NOW, NOW)
    await store.close()


@pytest.mark.anyio
async def test_a_cancelled_call_goes_on_to_its_end() -> None:
    """A write whose waiter is cancelled in the middle is made, and nothing is left half done."""
    gate = Gate()
    inside = MemoryStore()
    store = ThreadedStore(FlakyStore(inside, at("replace", Fault.DELAY), gate))
    record = new_record(NOW)
    await store.create(record)

    task = asyncio.create_task(store.replace(next_version(record, data=b"late"), 1))
    await asyncio.to_thread(gate.reached.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert inside.load(record.sid) == record
    gate.open.set()
    # Any number of calls may be ahead of it in other threads, but its own version decides.
    while await store.replace(next_version(record, data=b"other"), 0) == record:
        await asyncio.sleep(0)

    assert inside.load(record.sid) == next_version(record, data=b"late")
    await store.close()


@pytest.mark.anyio
async def test_a_cancelled_call_that_queues_is_made() -> None:
    """What was asked for happens, even if no thread was free when its waiter was cancelled."""
    gate = Gate()
    inside = MemoryStore()
    record = new_record(NOW)
    inside.create(record)
    store = ThreadedStore(FlakyStore(inside, lambda verb, _: _delay_counts(verb), gate))

    waiting = [asyncio.create_task(store.count()) for _ in range(8)]
    logout = asyncio.create_task(store.delete(record.sid))
    await asyncio.sleep(0)
    logout.cancel()
    with pytest.raises(asyncio.CancelledError):
        await logout
    assert inside.load(record.sid) == record
    gate.open.set()
    await asyncio.gather(*waiting)
    while await store.load(record.sid):
        await asyncio.sleep(0)

    assert inside.load(record.sid) is None
    await store.close()


def _delay_counts(verb: str) -> Fault | None:
    return Fault.DELAY if verb == "count" else None


def test_several_loops_share_a_store() -> None:
    """Event loops in several threads use one store; none loses an answer."""
    store = ThreadedStore(MemoryStore())
    record = new_record(NOW, data=b"0")
    store.store.create(record)

    async def add(times: int) -> None:
        for _ in range(times):
            current = await store.load(record.sid)
            while True:
                assert current is not None
                newer = next_version(current, data=b"%d" % (int(current.data) + 1))
                answer = await store.replace(newer, current.version)
                if answer is SAVED:
                    break
                assert not isinstance(answer, type(SAVED))
                current = answer

    threads = [threading.Thread(target=lambda: asyncio.run(add(50))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    last = store.store.load(record.sid)
    assert last is not None
    assert last.data == b"200"
    asyncio.run(store.close())


def test_a_loop_that_was_closed_harms_nobody() -> None:
    """A call whose loop is gone when it ends is made; its thread goes on serving others."""
    gate = Gate()
    inside = MemoryStore()
    record = new_record(NOW)
    inside.create(record)
    store = ThreadedStore(FlakyStore(inside, at("delete", Fault.DELAY), gate))
    loop = asyncio.new_event_loop()
    task = loop.create_task(store.delete(record.sid))
    loop.run_until_complete(asyncio.sleep(0))
    assert gate.reached.wait(10)
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    gate.open.set()

    async def rest() -> int:
        while await store.load(record.sid):
            await asyncio.sleep(0)
        answer = await store.count()
        await store.close()
        return answer

    assert asyncio.run(rest()) == 0


@pytest.mark.anyio
async def test_its_threads_are_its_own() -> None:
    """With every thread of the loop's default executor taken, calls are made all the same."""
    loop = asyncio.get_running_loop()
    release = threading.Event()
    executor = ThreadPoolExecutor(1)
    loop.set_default_executor(executor)
    taken = loop.run_in_executor(None, release.wait, 10)
    store = ThreadedStore(MemoryStore())

    assert await asyncio.wait_for(store.count(), 5) == 0

    release.set()
    await taken
    await store.close()


@pytest.mark.anyio
async def test_close_ends_the_threads_and_a_later_call_starts_others() -> None:
    """After `close` no thread is left; the store can be used again."""
    others = set(threading.enumerate())
    store = ThreadedStore(MemoryStore())
    await store.count()
    held = store._pool  # or its threads would end for want of anybody who knows it
    mine = [one for one in set(threading.enumerate()) - others if "sojourn-store" in one.name]
    await store.close()
    await store.close()
    for thread in mine:
        thread.join(10)

    assert mine
    assert not any(thread.is_alive() for thread in mine), held
    assert await store.count() == 0
    await store.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_gets_threads_of_its_own() -> None:
    """A process that was forked after the first call makes calls too."""
    store = ThreadedStore(MemoryStore())
    asyncio.run(store.count())
    child = os.fork()
    if child == 0:  # pragma: no cover - in the other process
        status = 1
        try:
            status = asyncio.run(asyncio.wait_for(store.count(), 10))
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)

    assert status == 0
    asyncio.run(store.close())
