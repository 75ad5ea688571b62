"""The checks of whole requests can fail: each catches a store, and a core, broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace as changed

from sojourn.core import ending, flows
from sojourn.core.calls import GONE, SAVED
from sojourn.core.record import ENDED, ENDING
from sojourn.errors import SojournError, StoreUnavailable
from sojourn.stores.memory import MemoryStore
from sojourn.stores.threaded import ThreadedStore
from sojourn.testing import (
    CHECKS,
    AsyncFlakyStore,
    ContractBroken,
    Fault,
    ModelStore,
    acheck_store,
    check_store,
    run_check,
    sometimes,
    whole,
)

WHOLE = [check for check in CHECKS if check.__module__ == "sojourn.testing.whole"]
Patch = Callable[[pytest.MonkeyPatch], None]
BROKEN_STORES: list[tuple[type[ModelStore], str]] = []
BROKEN_CORES: list[tuple[Patch, str]] = []


def caught_by(*checks: str) -> Callable[[Any], Any]:
    """Say which checks have to catch it."""

    def enter(broken: Any) -> Any:
        table: Any = BROKEN_STORES if isinstance(broken, type) else BROKEN_CORES
        table += [(broken, check) for check in checks]
        return broken

    return enter


# Stores.


@caught_by("a_lost_reply_adds_once")
class ForgetsCommits(ModelStore):
    """Whose column for them is too short."""

    def replace(self, record, expected_version):
        return super().replace(changed(record, commits=b""), expected_version)


@caught_by("a_lost_reply_makes_one_session")
class TakenIsAnError(ModelStore):
    """Which lets out what its engine says of a key that is there."""

    def create(self, record):
        if record.sid in self.kept:
            raise StoreUnavailable("duplicate key")
        return super().create(record)


@caught_by("a_lost_reply_ends_for_good")
class EndingTwiceForgets(ModelStore):
    """Whose second end takes the data that handlers are owed."""

    def delete(self, sid, ended=None):
        record = self.load(sid)
        if record is not None and record.status == ENDING and ended and ended.status == ENDING:
            self._put(record, ended.due, data=b"")
            return False
        return super().delete(sid, ended)


@caught_by(
    "a_late_duplicate_does_nothing",
    "requests_merge_in_every_order",
    "three_requests_merge_in_every_order",
    "merges_of_many_are_all_kept",
)
class LastWriteWins(ModelStore):
    def replace(self, record, expected_version):
        current = self.load(record.sid)
        if current is None or current.status in (ENDING, ENDED):
            return GONE
        return super().replace(record, current.version)


@caught_by("a_crash_leaves_nothing_half_written")
class KeepsTheVersion(ModelStore):
    def replace(self, record, expected_version):
        return super().replace(changed(record, version=expected_version), expected_version)


@caught_by("a_crash_in_an_end_is_made_good", "a_crash_in_ending_all_is_made_good")
class ForgetsWhatIsEnding(ModelStore):
    """Whose sweep looks for live sessions only."""

    def due(self, now, lease, limit=100):
        return [record for record in super().due(now, lease, limit) if record.attempts < 1]


@caught_by("a_crash_in_a_sweep_is_made_good")
class PopsWhatIsDue(ModelStore):
    """Whose claim is a removal: it is lost with whoever claimed."""

    def due(self, now, lease, limit=100):
        claimed = super().due(now, lease, limit)
        for record in claimed:
            del self.kept[record.sid]
        return claimed


@caught_by("no_request_outlives_a_logout_in_any_order", "skewed_clocks_raise_nothing")
class Revives(ModelStore):
    """Which writes a record that has ended, as an upsert does."""

    def replace(self, record, expected_version):
        current = self.load(record.sid)
        if current is not None and current.status in (ENDING, ENDED):
            self.kept[record.sid] = (record, record.deadline)
            return SAVED
        return super().replace(record, expected_version)


@caught_by("sweeps_of_any_page_size")
class EmptyPageOfMoved(ModelStore):
    """Which answers with an empty page where all in it was only moved."""

    def due(self, now, lease, limit=100):
        found = sorted(self.kept.values(), key=lambda item: item[1])
        for record, due in found[:limit]:
            if due <= now and record.status not in (ENDING, ENDED) and record.deadline > now:
                self.kept[record.sid] = (record, record.deadline)
                return []
        return super().due(now, lease, limit)


@caught_by("listed_in_pages")
class ListsFromTheStart(ModelStore):
    """Which takes what came after for what is not before."""

    def list(self, user=None, status=0, after="", limit=100):
        found = super().list(user, status, "", len(self.kept))
        return [record for record in found if record.sid >= after][:limit]


@caught_by("listed_in_pages")
class MissesOne(ModelStore):
    """Whose pages leave a gap between them."""

    def list(self, user=None, status=0, after="", limit=100):
        return super().list(user, status, after, limit + bool(after))[bool(after) :]


@caught_by("skewed_clocks_end_none_early")
class JudgesByItsOwn(ModelStore):
    """Whose sweep takes sessions that will soon be over as well."""

    def due(self, now, lease, limit=100):
        return super().due(now + 200.0, lease, limit)


# Cores.


@caught_by("a_lost_reply_adds_once")
def finds_no_commit_of_its_own(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(flows, "_ids", lambda record: [])


@caught_by("no_answer_counts_at_most_once")
def swallows_errors(patch: pytest.MonkeyPatch) -> None:
    right = flows.commit

    def commit(session, env, late=False):
        try:
            return (yield from right(session, env, late))
        except StoreUnavailable:
            return flows.Committed(wrote=True, events=[])

    patch.setattr(flows, "commit", commit)


@caught_by("a_crash_leaves_nothing_half_written", "no_answer_counts_at_most_once")
def has_no_grace(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(whole, "_site", partial(whole._site, grace=0.0))


@caught_by("a_crash_leaves_nothing_half_written", "no_answer_counts_at_most_once")
def writes_one_key_at_a_time(patch: pytest.MonkeyPatch) -> None:
    right = flows.apply

    def apply(segments, changes, depth):
        if changes.steps and segments and not changes.cleared:
            changes = changed(changes, steps=dict([*changes.steps.items()][:1]))
        return right(segments, changes, depth)

    patch.setattr(flows, "apply", apply)


@caught_by("a_crash_in_a_login_gives_its_place_back")
def reserves_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ending, "_RESERVED", 1e9)


@caught_by(
    "a_lost_reply_ends_for_good",
    "a_crash_in_an_end_is_made_good",
    "a_crash_in_ending_all_is_made_good",
    "a_crash_in_a_sweep_is_made_good",
    "sweeps_of_any_page_size",
)
def owes_handlers_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ending, "_awaited", lambda env: False)


@caught_by("a_login_and_ending_all_in_every_order")
def asks_for_no_mark(patch: pytest.MonkeyPatch) -> None:
    def stands(user, sid, epoch, env):
        return True
        yield

    patch.setattr(ending, "stands", stands)


@caught_by("a_login_and_ending_all_in_every_order")
def lets_old_logins_in(patch: pytest.MonkeyPatch) -> None:
    right = ending.may_log_in
    patch.setattr(ending, "may_log_in", lambda user, sid, at: right(user, sid, float("inf")))


@caught_by("skewed_clocks_end_none_early")
def allows_for_no_skew(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ending, "SKEW", 0.0)


@caught_by("skewed_clocks_never_move_back")
def takes_its_own_time(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(flows, "max", lambda *values: values[-1], raising=False)


def named(name: str) -> Any:
    return next(check for check in WHOLE if check.__name__ == name)


@pytest.mark.parametrize(
    ("store", "name"), BROKEN_STORES, ids=[f"{s.__name__}-{name}" for s, name in BROKEN_STORES]
)
def test_broken_store_is_caught(store: type[ModelStore], name: str) -> None:
    """The check that states what is broken fails, and says so in a sentence."""
    with pytest.raises(ContractBroken, match=f"1 of the checks.*\n- {name}: [A-Z`]"):
        check_store(store, [named(name)])


@pytest.mark.parametrize(
    ("patch", "name"), BROKEN_CORES, ids=[f"{p.__name__}-{name}" for p, name in BROKEN_CORES]
)
def test_broken_core_is_caught(patch: Patch, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where the store is right, and what is built upon it is not."""
    run_check(named(name), MemoryStore())
    patch(monkeypatch)

    with pytest.raises((AssertionError, SojournError)):
        run_check(named(name), MemoryStore())


def test_every_check_catches_something() -> None:
    """No check is in the table that nothing can fail."""
    assert {check.__name__ for check in WHOLE} == {name for _, name in BROKEN_STORES + BROKEN_CORES}


@pytest.mark.anyio
async def test_asynchronous_stores_are_caught() -> None:
    """The same checks, on a store of the other colour."""
    with pytest.raises(ContractBroken, match="three_requests_merge_in_every_order"):
        await acheck_store(
            lambda: ThreadedStore(LastWriteWins()), [named("three_requests_merge_in_every_order")]
        )


def test_a_store_that_fails_now_and_then_passes_none() -> None:
    """What a driver would hide is not hidden from a check."""
    with pytest.raises(ContractBroken, match="StoreUnavailable"):
        check_store(Flaky, WHOLE)


@pytest.mark.anyio
async def test_the_same_in_tasks() -> None:
    """Nor in the other colour."""

    def make() -> Any:
        return AsyncFlakyStore(
            ThreadedStore(MemoryStore()), sometimes(0.2, Fault.UNAVAILABLE, seed=1)
        )

    with pytest.raises(ContractBroken, match="StoreUnavailable"):
        await acheck_store(make, WHOLE)


class Flaky(ModelStore):
    """Fails at its third read."""

    def load(self, sid):
        self.loads = getattr(self, "loads", 0) + 1
        if self.loads == 3:
            raise StoreUnavailable("now and then")
        return super().load(sid)
