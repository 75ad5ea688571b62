"""`MemoryStore`: the contract in both colours, and what it promises beyond."""

from __future__ import annotations

import functools
import gc
import random
import time
import tracemalloc

import msgspec
import pytest

from sojourn.core.record import ENDED, ENDING, LIVE, Ended
from sojourn.stores.base import AsyncStore, Store
from sojourn.stores.memory import MemoryStore
from sojourn.stores.threaded import ThreadedStore
from sojourn.testing import CHECKS, Check, arun_check, new_record, next_version, run_check
from sojourn.testing.interleave import any_calls_agree_with_the_model
from sojourn.testing.races import nothing_rises_after_logout, racing_increments_are_all_kept

NOW = 1_750_000_000.0


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Check) -> None:
    """The store keeps the contract, with threads."""
    run_check(check, MemoryStore())


@pytest.mark.anyio
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_contract_async(check: Check) -> None:
    """The asynchronous one keeps the contract, with tasks."""
    await arun_check(check, ThreadedStore(MemoryStore()))


def test_protocols() -> None:
    """Each is a store of its colour."""
    assert isinstance(MemoryStore(), Store)
    assert isinstance(ThreadedStore(MemoryStore()), AsyncStore)


@pytest.mark.parametrize("seed", range(50))
def test_any_calls(seed: int) -> None:
    """Fifty fixed sequences of 300 calls get the answers of the model."""
    run_check(functools.partial(any_calls_agree_with_the_model, 300, seed), MemoryStore())


@pytest.mark.slow
def test_many_increments() -> None:
    """8 threads add 10,000 times to one session: 0 lost."""
    run_check(functools.partial(racing_increments_are_all_kept, 8, 1250), MemoryStore())


@pytest.mark.slow
def test_many_logouts() -> None:
    """1,000 trials of logout against late writes and touches: 0 risen."""
    run_check(functools.partial(nothing_rises_after_logout, 1000), MemoryStore())


def test_a_small_session_takes_less_than_1200_bytes() -> None:
    """A session of 200 bytes with a user, an address and an agent: at most 1.2 KB, all told."""
    sessions = 20_000
    store = MemoryStore()
    choose = random.Random(1)
    pattern = new_record(NOW, data=bytes(200))
    encode = msgspec.msgpack.Encoder().encode
    decode = msgspec.msgpack.Decoder(type(pattern)).decode
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(sessions):
            now = NOW + number * 0.01
            record = new_record(
                now,
                data=choose.randbytes(200),
                commits=choose.randbytes(8),
                address=f"192.0.2.{number % 256}",
                agent="Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
                user=f"user{number}",
            )
            # As from a decoder, so that no two records share a value.
            store.create(decode(encode(record)))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert used / sessions < 1200


def test_nothing_of_a_removed_session_stays() -> None:
    """What was removed, or swept as a tombstone, leaves nothing behind in any index."""
    store = MemoryStore()
    for number in range(300):
        record = new_record(NOW + number, user="alice")
        store.create(record)
        store.replace(next_version(record, user=f"user{number}", deadline=NOW), 1)
        if number % 3 == 0:
            store.delete(record.sid)
        elif number % 3 == 1:
            store.delete(record.sid, Ended(ENDED, "user", NOW, NOW + 60.0))
        else:
            store.delete(record.sid, Ended(ENDING, "user", NOW, NOW + 90.0))
            store.delete(record.sid, Ended(ENDED, "user", NOW, NOW + 60.0))

    assert store.due(NOW + 120.0, 60.0) == []

    assert store.count(status=None) == 0
    assert not store._records
    assert not store._users
    assert not any(store._due.values())
    assert not any(store._buckets.values())


def test_touches_leave_the_buckets_alone() -> None:
    """A touch moves nothing in an index; the sweep moves it once, to its latest deadline."""
    store = MemoryStore()
    record = new_record(NOW, deadline=NOW + 1800.0)
    store.create(record)
    buckets = {number: dict(bucket) for number, bucket in store._buckets.items()}

    for version in range(1, 100):
        assert store.touch(record.sid, version, NOW + version, NOW + 1800.0 + 60 * version)

    assert store._buckets == buckets
    assert store.due(NOW + 1800.0, 60.0) == []
    assert [n for n, bucket in store._buckets.items() if bucket] == [(NOW + 1800 + 60 * 99) // 8]


def test_a_sweep_with_nothing_over_looks_at_no_session() -> None:
    """Of many sessions, `due` meets only those whose time has come."""
    store = MemoryStore()
    for number in range(5000):
        store.create(new_record(NOW, deadline=NOW + 100.0 + number))

    class Watched(dict):  # type: ignore[type-arg]
        looked_at = 0

        def __getitem__(self, sid: str) -> object:
            Watched.looked_at += 1
            return super().__getitem__(sid)

    store._records = Watched(store._records)

    assert store.due(NOW + 99.0, 60.0) == []
    assert Watched.looked_at == 0
    assert len(store.due(NOW + 109.0, 60.0)) == 10
    assert Watched.looked_at < 20


def test_the_lock_is_given_up_between_pages() -> None:
    """A sweep over very many touched sessions lets others write in between."""
    store = MemoryStore()
    for number in range(5000):
        record = new_record(NOW - 3600.0, deadline=NOW - 1800.0 + number * 0.1)
        store.create(record)
        store.touch(record.sid, 1, NOW, NOW + 1800.0)
    lock = store._lock
    taken = []

    class Lock:
        def __enter__(self) -> None:
            lock.acquire()
            taken.append(time.perf_counter())

        def __exit__(self, *error: object) -> None:
            lock.release()

    store._lock = Lock()  # type: ignore[assignment]

    assert store.due(NOW, 60.0) == []
    assert len(taken) >= 5


def test_pages_out_of_one_bucket() -> None:
    """Of very many sessions that end in the same moment each is claimed once."""
    store = MemoryStore()
    sids = set()
    for _ in range(5000):
        record = new_record(NOW - 3600.0, deadline=NOW - 60.0)
        store.create(record)
        sids.add(record.sid)
    claimed: list[str] = []
    while page := store.due(NOW, 60.0, 100):
        claimed += [record.sid for record in page]

    assert sorted(claimed) == sorted(sids)
    assert store.count(status=LIVE) == 0
    assert store.count(status=ENDING) == 5000


def test_close_keeps_the_sessions() -> None:
    """`close` has nothing to let go of: the store goes on."""
    store = MemoryStore()
    record = new_record(NOW)
    store.create(record)
    store.close()

    assert store.load(record.sid) == record
