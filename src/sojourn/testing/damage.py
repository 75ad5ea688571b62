"""What the contract says of a record that cannot be read."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sojourn.core.calls import (
    GONE,
    SAVED,
    Call,
    Count,
    Create,
    Delete,
    Due,
    Flow,
    List,
    Load,
    Replace,
    Touch,
)
from sojourn.core.record import ENDED, ENDING, Ended, Record
from sojourn.errors import DamagedRecord
from sojourn.testing.checking import Check, acheck_store, check_store
from sojourn.testing.records import expect, expect_same, new_record, next_version

__all__ = ["DAMAGED_CHECKS", "acheck_damaged", "check_damaged"]

DamagedCheck = Callable[[Callable[[Any, str], Any]], Flow[None]]

DAMAGED_CHECKS: list[DamagedCheck] = []
"""Each takes the function that damages a record, and returns a flow."""


class Damage(Call, frozen=True):
    """Ruin what lies under a sid."""

    damage: Callable[[Any, str], Any]
    sid: str

    def on(self, store: Any) -> Any:
        """Ruin it."""
        return self.damage(store, self.sid)


def check_damaged(make_store: Callable[[], Any], damage: Callable[[Any, str], Any]) -> None:
    """Run the checks of damaged records on a blocking store; as `check_store`.

    Args:
        make_store: returns a new, empty store, or a context manager that gives one.
        damage: called with the store and the sid of a record that is there; it ruins what the
            store keeps of it, by whatever means.
    """
    check_store(make_store, [_bound(one, damage) for one in DAMAGED_CHECKS])


async def acheck_damaged(make_store: Callable[[], Any], damage: Callable[[Any, str], Any]) -> None:
    """Run the checks of damaged records on an asynchronous store; `damage` is a coroutine."""
    await acheck_store(make_store, [_bound(one, damage) for one in DAMAGED_CHECKS])


def _bound(one: DamagedCheck, damage: Callable[[Any, str], Any]) -> Check:
    def check() -> Flow[None]:
        return one(damage)

    check.__name__ = one.__name__
    check.__doc__ = one.__doc__
    return check


def _check(function: DamagedCheck) -> DamagedCheck:
    DAMAGED_CHECKS.append(function)
    return function


def _ruined(damage: Callable[[Any, str], Any], record: Record) -> Flow[Record]:
    expect_same((yield Create(record)), True, "create under a new sid")
    yield Damage(damage, record.sid)
    return record


def _raises_damaged(call: Call) -> Flow[None]:
    try:
        answer = yield call
    except DamagedRecord:
        return
    name = type(call).__name__.lower()
    raise AssertionError(f"{name} of a damaged record raised no DamagedRecord, it gave {answer!r}")


@_check
def load_of_a_damaged_record_raises(damage: Callable[[Any, str], Any]) -> Flow[None]:
    """`load` raises `DamagedRecord`, again and again, and no other record suffers."""
    now = time.time()
    beside = new_record(now)
    yield Create(beside)
    record = yield from _ruined(damage, new_record(now))
    for _ in range(2):
        yield from _raises_damaged(Load(record.sid))
    expect_same((yield Load(beside.sid)), beside, "load of the record beside")


@_check
def writes_to_a_damaged_record_do_nothing(damage: Callable[[Any, str], Any]) -> Flow[None]:
    """`replace` raises `DamagedRecord`; `touch` does, or answers as if it had not read it."""
    now = time.time()
    record = yield from _ruined(damage, new_record(now))
    yield from _raises_damaged(Replace(next_version(record), 1))
    try:
        # An engine that sets two columns need not have read the others.
        yield Touch(record.sid, 7, now, now + 60.0)
    except DamagedRecord:
        pass
    yield from _raises_damaged(Load(record.sid))


@_check
def create_over_a_damaged_record_is_refused(damage: Callable[[Any, str], Any]) -> Flow[None]:
    """`create` answers False if the sid is taken, by a damaged record too."""
    record = yield from _ruined(damage, new_record(time.time()))
    expect_same((yield Create(record)), False, "create over a damaged record")
    yield from _raises_damaged(Load(record.sid))


@_check
def delete_ends_a_damaged_record(damage: Callable[[Any, str], Any]) -> Flow[None]:
    """`delete` with ENDED makes a damaged record a tombstone, or removes it; True."""
    now = time.time()
    record = yield from _ruined(damage, new_record(now, user="alice"))
    ended = Ended(ENDED, "damaged", now, now + 3600.0)
    expect_same((yield Delete(record.sid, ended)), True, "delete, ENDED, of a damaged record")
    last = yield Load(record.sid)
    if last is not None:
        got = (last.status, last.reason, last.data, last.user)
        expect_same(got, (ENDED, "damaged", b"", None), "the tombstone of a damaged record")
    answer = yield Replace(next_version(record), 1)
    expect(answer is GONE, f"replace after a damaged record was ended answered {answer!r}")


@_check
def delete_removes_a_damaged_record(damage: Callable[[Any, str], Any]) -> Flow[None]:
    """`delete` without `Ended` removes what lies under the sid, damaged or not; True."""
    record = yield from _ruined(damage, new_record(time.time()))
    expect_same((yield Delete(record.sid)), True, "delete of a damaged record")
    expect_same((yield Load(record.sid)), None, "load after that delete")
    expect_same((yield Create(record)), True, "create after that delete")


@_check
def list_passes_over_damaged_records(damage: Callable[[Any, str], Any]) -> Flow[None]:
    """`list` never raises for a damaged record: it shows all the others."""
    now = time.time()
    records = sorted((new_record(now, user="alice") for _ in range(5)), key=lambda r: r.sid)
    for record in records:
        yield Create(record)
    yield Damage(damage, records[2].sid)
    rest = records[:2] + records[3:]
    expect_same((yield List()), rest, "list around a damaged record")
    expect_same((yield List("alice")), rest, "list of a user around a damaged record")
    expect((yield Count()) in (4, 5), "count around a damaged record is neither with nor without")


@_check
def due_sets_a_damaged_record_aside(damage: Callable[[Any, str], Any]) -> Flow[None]:
    """`due` never raises for a damaged record: it claims the others and does not stop there."""
    now = time.time()
    records = [new_record(now - 7200.0, deadline=now - 60.0 * i) for i in range(1, 6)]
    for record in records:
        yield Create(record)
    yield Damage(damage, records[4].sid)
    yield Damage(damage, records[2].sid)
    claimed: list[str] = []
    for _ in range(10):
        page = yield Due(now, 600.0, 1)
        if not page:
            break
        expect_same([r.status for r in page], [ENDING], "status of what was claimed")
        claimed += [record.sid for record in page]
    wanted = [records[i].sid for i in (0, 1, 3)]
    expect_same(sorted(claimed), sorted(wanted), "what due claimed around damaged records")
    expect_same((yield Due(now, 600.0)), [], "due after that")


@_check
def others_go_on_beside_a_damaged_record(damage: Callable[[Any, str], Any]) -> Flow[None]:
    """A damaged record harms nobody else: writes beside it go on."""
    now = time.time()
    yield from _ruined(damage, new_record(now))
    record = new_record(now)
    expect_same((yield Create(record)), True, "create beside a damaged record")
    expect((yield Replace(next_version(record), 1)) is SAVED, "replace beside a damaged record")
    expect_same((yield Delete(record.sid)), True, "delete beside a damaged record")
