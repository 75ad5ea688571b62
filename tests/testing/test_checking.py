"""The kit's own tools: how checks run, what a failure says, the clock, damaged records."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from sojourn.core.calls import GONE, Call, Count, Flow, Load
from sojourn.errors import DamagedRecord, StoreUnavailable
from sojourn.stores.memory import MemoryStore
from sojourn.stores.threaded import ThreadedStore
from sojourn.testing import (
    AsyncFlakyStore,
    Clock,
    ContractBroken,
    Fault,
    FlakyStore,
    ModelStore,
    Together,
    acheck_damaged,
    acheck_store,
    arun_check,
    at,
    check_damaged,
    check_store,
    expect_same,
    new_record,
    new_sid,
    run_check,
)
from sojourn.testing.damage import DAMAGED_CHECKS


def empty() -> Flow[None]:
    """The store is empty."""
    expect_same((yield Count()), 0, "count")


def wrong() -> Flow[None]:
    """Something that no store does."""
    expect_same((yield Count()), 7, "count")


def together() -> Flow[None]:
    """Several callers."""

    def one(sid: str) -> Flow[str]:
        expect_same((yield Load(sid)), None, "load")
        return sid

    sids = [new_sid() for _ in range(5)]
    expect_same((yield Together([one(sid) for sid in sids])), sids, "what they returned")


def together_wrong() -> Flow[None]:
    """One of several callers fails."""

    def one() -> Flow[None]:
        yield from empty()

    yield Together([one(), wrong(), one()])


def catches() -> Flow[None]:
    """What the store raises is raised at the flow's yield."""
    try:
        yield Count()
    except StoreUnavailable:
        return
    raise AssertionError("nothing was raised")


class Closing(MemoryStore):
    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_plain_store_is_closed_after_each_check() -> None:
    """Every check gets a store of its own, which is closed after it, failed or not."""
    made: list[Closing] = []

    def make() -> Closing:
        made.append(Closing())
        return made[-1]

    with pytest.raises(ContractBroken):
        check_store(make, [empty, wrong, empty])

    assert [store.closed for store in made] == [1, 1, 1]


def test_a_context_manager_gives_the_store() -> None:
    """A factory of context managers may prepare and clean up."""
    steps: list[str] = []

    @contextlib.contextmanager
    def make() -> Iterator[MemoryStore]:
        steps.append("made")
        yield MemoryStore()
        steps.append("cleaned")

    check_store(make, [empty, together])

    assert steps == ["made", "cleaned"] * 2


@pytest.mark.anyio
async def test_async_factories() -> None:
    """A store, a coroutine that makes one, and context managers of both kinds will do."""

    async def later() -> ThreadedStore:
        return ThreadedStore(MemoryStore())

    @contextlib.asynccontextmanager
    async def managed() -> AsyncIterator[ThreadedStore]:
        yield ThreadedStore(MemoryStore())

    @contextlib.contextmanager
    def plainly_managed() -> Iterator[ThreadedStore]:
        yield ThreadedStore(MemoryStore())

    for make in (lambda: ThreadedStore(MemoryStore()), later, managed, plainly_managed):
        await acheck_store(make, [empty, together])
        with pytest.raises(ContractBroken, match="wrong"):
            await acheck_store(make, [empty, wrong])


def test_the_error_has_every_failed_check() -> None:
    """Name, sentence and fault of each, and how many."""
    with pytest.raises(ContractBroken) as caught:
        check_store(MemoryStore, [wrong, empty, together_wrong])

    assert str(caught.value) == (
        "2 of the checks of a store failed:\n"
        "- wrong: Something that no store does.\n"
        "    count: the store gave 0 (int), right is 7 (int)\n"
        "- together_wrong: One of several callers fails.\n"
        "    count: the store gave 0 (int), right is 7 (int)"
    )


def test_an_error_that_is_no_assertion_is_named() -> None:
    """A store that breaks down is told from one that answers wrongly."""
    with pytest.raises(ContractBroken, match="StoreUnavailable: planned fault"):
        check_store(lambda: FlakyStore(ModelStore(), at("count", Fault.UNAVAILABLE)), [empty])


def test_errors_are_thrown_into_the_flow() -> None:
    """A check can catch what the store raises."""
    run_check(catches, FlakyStore(ModelStore(), at("count", Fault.UNAVAILABLE)))
    with pytest.raises(AssertionError, match="nothing was raised"):
        run_check(catches, ModelStore())


@pytest.mark.anyio
async def test_errors_are_thrown_into_the_flow_async() -> None:
    """The same on an event loop."""
    store = AsyncFlakyStore(ThreadedStore(MemoryStore()), at("count", Fault.UNAVAILABLE))
    await arun_check(catches, store)
    with pytest.raises(AssertionError, match="nothing was raised"):
        await arun_check(catches, store)
    with pytest.raises(AssertionError, match="the store gave 0"):
        await arun_check(together_wrong, store)


@pytest.mark.anyio
async def test_the_wrong_colour_is_refused() -> None:
    """Each runner says which other one to use."""
    with pytest.raises(TypeError, match=r"ThreadedStore is asynchronous.*acheck_store"):
        run_check(empty, ThreadedStore(MemoryStore()))
    with pytest.raises(TypeError, match=r"MemoryStore is blocking.*check_store"):
        await arun_check(empty, MemoryStore())


def test_values_of_other_types_are_not_the_same() -> None:
    """1, 1.0 and True are equal in Python and not in a record."""
    for value in (1.0, True, None):
        with pytest.raises(AssertionError):
            expect_same(value, 1, "a number")
    expect_same(GONE, GONE, "an outcome")


def test_clock() -> None:
    """It tells what it was told and goes when it is told, back too."""
    clock = Clock(1000)
    clock.advance(30.5)
    assert clock() == 1030.5
    clock.advance(-3600)
    assert clock() == -2569.5
    assert isinstance(Clock()(), float)


class Damageable(ModelStore):
    """A model in which a record can be ruined."""

    def __init__(self) -> None:
        super().__init__()
        self.damaged: set[str] = set()

    def load(self, sid):  # type: ignore[no-untyped-def]
        if sid in self.damaged:
            raise DamagedRecord(f"the record {sid} is damaged")
        return super().load(sid)

    def delete(self, sid, ended=None):  # type: ignore[no-untyped-def]
        if sid not in self.damaged:
            return super().delete(sid, ended)
        self.damaged.remove(sid)
        del self.kept[sid]
        return True

    def due(self, now, lease, limit=100):  # type: ignore[no-untyped-def]
        whole = {sid: kept for sid, kept in self.kept.items() if sid not in self.damaged}
        aside = {sid: kept for sid, kept in self.kept.items() if sid in self.damaged}
        self.kept = whole
        claimed = super().due(now, lease, limit)
        self.kept = whole | aside
        return claimed

    def list(self, user=None, status=0, after="", limit=100):  # type: ignore[no-untyped-def]
        records = super().list(user, status, after, 1000)
        return [record for record in records if record.sid not in self.damaged][:limit]


def damage(store: Damageable, sid: str) -> None:
    store.damaged.add(sid)


def test_damaged_records() -> None:
    """A store that keeps the sentences on damaged records passes."""
    check_damaged(Damageable, damage)


@pytest.mark.anyio
async def test_damaged_records_async() -> None:
    """The same on an event loop."""

    async def adamage(store: ThreadedStore, sid: str) -> None:
        store.store.damaged.add(sid)  # type: ignore[attr-defined]

    await acheck_damaged(lambda: ThreadedStore(Damageable()), adamage)


def _create_over_damage(self: Damageable, record):  # type: ignore[no-untyped-def]
    self.damaged.discard(record.sid)
    self.kept.pop(record.sid, None)
    return ModelStore.create(self, record)


def _write_over_damage(self: Damageable, record, expected_version):  # type: ignore[no-untyped-def]
    self.damaged.discard(record.sid)
    return ModelStore.replace(self, record, expected_version)


def _fail_beside_damage(self: Damageable, record):  # type: ignore[no-untyped-def]
    return not self.damaged and ModelStore.create(self, record)


@pytest.mark.parametrize(
    ("verb", "method", "check"),
    [
        ("load", ModelStore.load, "load_of_a_damaged_record_raises"),
        ("replace", _write_over_damage, "writes_to_a_damaged_record_do_nothing"),
        ("create", _create_over_damage, "create_over_a_damaged_record_is_refused"),
        ("delete", ModelStore.delete, "delete_ends_a_damaged_record"),
        ("delete", ModelStore.delete, "delete_removes_a_damaged_record"),
        ("list", ModelStore.list, "list_passes_over_damaged_records"),
        ("due", ModelStore.due, "due_sets_a_damaged_record_aside"),
        ("create", _fail_beside_damage, "others_go_on_beside_a_damaged_record"),
    ],
)
def test_damaged_checks_catch(verb: str, method: object, check: str) -> None:
    """Each check of damaged records fails for a store that is broken on purpose."""
    broken = type("Broken", (Damageable,), {verb: method})
    with pytest.raises(ContractBroken, match=f"- {check}: "):
        check_damaged(broken, damage)


def test_every_damaged_check_is_shown_to_fail() -> None:
    """The table above has them all."""
    (mark,) = test_damaged_checks_catch.pytestmark  # type: ignore[attr-defined]

    assert {row[2] for row in mark.args[1]} == {check.__name__ for check in DAMAGED_CHECKS}


def test_new_records() -> None:
    """A new record has a sid of its own and is live for half an hour."""
    first, second = new_record(1000.0), new_record(1000.0)

    assert first.sid != second.sid
    assert len(first.sid) == 22
    assert first.deadline == 2800.0
    assert isinstance(Load(first.sid), Call)
