"""Faults and recording: each does to a store what it says, in both colours."""

from __future__ import annotations

import threading

import pytest

from sojourn.core.calls import SAVED, Call, Delete, Load
from sojourn.errors import StoreUnavailable
from sojourn.stores.base import AsyncStore, Store
from sojourn.stores.memory import MemoryStore
from sojourn.stores.threaded import ThreadedStore
from sojourn.testing import (
    CHECKS,
    AsyncFlakyStore,
    AsyncRecordingStore,
    Crash,
    Fault,
    FlakyStore,
    ModelStore,
    RecordingStore,
    at,
    check_store,
    new_record,
    next_version,
    sometimes,
)

NOW = 1_750_000_000.0


def test_protocols() -> None:
    """The wrappers are stores themselves."""
    inside = ModelStore()

    assert isinstance(FlakyStore(inside, at("load", Fault.TWICE)), Store)
    assert isinstance(RecordingStore(inside), Store)
    assert isinstance(AsyncRecordingStore(ThreadedStore(inside)), AsyncStore)
    assert FlakyStore(inside, at("load", Fault.TWICE)).promises is inside.promises


def test_a_recording_store_keeps_the_contract() -> None:
    """The wrapper passes everything on as it came."""
    checks = [check for check in CHECKS if check.__module__ != "sojourn.testing.races"]
    check_store(lambda: RecordingStore(ModelStore()), checks)


def test_unavailable_never_reaches_the_store() -> None:
    """The call is not made, and the error says that a new try makes sense."""
    inside = RecordingStore(ModelStore())
    store = FlakyStore(inside, at("create", Fault.UNAVAILABLE))
    with pytest.raises(StoreUnavailable) as caught:
        store.create(new_record(NOW))

    assert caught.value.transient
    assert inside.verbs == []
    assert store.create(new_record(NOW))


def test_lost_reply_comes_after_the_store_did_it() -> None:
    """The write is there, the answer is not; the same write again finds itself."""
    store = FlakyStore(ModelStore(), at("replace", Fault.LOST_REPLY))
    record = new_record(NOW)
    newer = next_version(record)
    store.create(record)
    with pytest.raises(StoreUnavailable) as caught:
        store.replace(newer, 1)

    assert caught.value.transient
    assert store.load(record.sid) == newer
    assert store.replace(newer, 1) == newer


def test_twice_delivers_the_call_twice() -> None:
    """The store gets it two times; the caller sees the second answer."""
    inside = RecordingStore(ModelStore())
    store = FlakyStore(inside, at("create", Fault.TWICE))

    assert store.create(new_record(NOW)) is False
    assert inside.verbs == ["create", "create"]


@pytest.mark.parametrize(("fault", "made"), [(Fault.CRASH_BEFORE, 0), (Fault.CRASH_AFTER, 1)])
def test_crash_passes_every_handler(fault: Fault, made: int) -> None:
    """A crash before or after the call is no `Exception`."""
    inside = ModelStore()
    store = FlakyStore(inside, at("create", fault))

    def careful() -> None:
        try:
            store.create(new_record(NOW))
        except Exception:
            pytest.fail("a handler of exceptions saw the crash")

    with pytest.raises(Crash, match="at create"):
        careful()

    assert inside.count() == made


def test_delay_runs_the_hook_first() -> None:
    """The hook gets the call, and the store nothing before it returns."""
    inside = RecordingStore(ModelStore())
    seen: list[tuple[Call, int]] = []
    store = FlakyStore(
        inside, at("load", Fault.DELAY), lambda call: seen.append((call, len(inside.calls)))
    )
    store.load("A" * 22)

    assert seen == [(Load("A" * 22), 0)]
    assert inside.verbs == ["load"]


def test_at_counts_the_calls_of_its_verb() -> None:
    """The second load fails, whatever else is called."""
    store = FlakyStore(ModelStore(), at("load", Fault.UNAVAILABLE, 2))
    store.count()
    store.load("A" * 22)
    with pytest.raises(StoreUnavailable):
        store.load("A" * 22)
    assert store.load("A" * 22) is None


def test_sometimes_is_the_same_for_the_same_seed() -> None:
    """A rate of all calls, one of the faults, repeatable."""

    def faults(seed: int) -> list[Fault | None]:
        plan = sometimes(0.3, Fault.TWICE, Fault.LOST_REPLY, seed=seed)
        return [plan("load", number) for number in range(1000)]

    assert faults(1) == faults(1)
    assert faults(1) != faults(2)
    assert 200 < sum(fault is not None for fault in faults(1)) < 400
    assert set(faults(1)) == {None, Fault.TWICE, Fault.LOST_REPLY}


def test_plans_count_rightly_in_threads() -> None:
    """Of many calls at the same time exactly one is the third."""
    store = FlakyStore(MemoryStore(), at("count", Fault.UNAVAILABLE, 3))
    failed: list[StoreUnavailable] = []

    def work() -> None:
        for _ in range(50):
            try:
                store.count()
            except StoreUnavailable as error:
                failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(failed) == 1


def test_recording_tells_the_calls() -> None:
    """Calls are kept as a flow would yield them, so that a test can compare."""
    store = RecordingStore(ModelStore())
    store.load("A" * 22)
    store.delete("B" * 22)

    assert store.calls == [Load("A" * 22), Delete("B" * 22)]
    assert store.verbs == ["load", "delete"]


@pytest.mark.anyio
@pytest.mark.parametrize("fault", Fault)
async def test_async_faults(fault: Fault) -> None:
    """The asynchronous one does the same for every fault."""
    model = ModelStore()
    inside = AsyncRecordingStore(ThreadedStore(model))
    delayed: list[Call] = []

    async def delay(call: Call) -> None:
        delayed.append(call)

    store = AsyncFlakyStore(inside, at("replace", fault), delay)
    record = new_record(NOW)
    newer = next_version(record)
    await store.create(record)
    answer: object = None
    raised: BaseException | None = None
    try:
        answer = await store.replace(newer, 1)
    except (StoreUnavailable, Crash) as error:
        raised = error
    await inside.store.close()

    made = inside.verbs.count("replace")
    assert made == {Fault.UNAVAILABLE: 0, Fault.CRASH_BEFORE: 0, Fault.TWICE: 2}.get(fault, 1)
    assert isinstance(raised, StoreUnavailable) == (fault in (Fault.UNAVAILABLE, Fault.LOST_REPLY))
    assert isinstance(raised, Crash) == (fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER))
    assert answer == {Fault.TWICE: newer, Fault.DELAY: SAVED}.get(fault)
    assert bool(delayed) == (fault is Fault.DELAY)
    assert model.load(record.sid) == (newer if made else record)
