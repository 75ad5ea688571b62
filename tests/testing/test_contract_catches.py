"""The checks of the contract can fail: each catches a store that is broken on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace as changed

from sojourn.core.calls import GONE, SAVED
from sojourn.core.record import ENDED, ENDING, LIVE, MARK
from sojourn.stores.memory import MemoryStore
from sojourn.testing import (
    CHECKS,
    ContractBroken,
    ModelStore,
    acheck_store,
    check_store,
    run_check,
)

BROKEN: list[tuple[type[ModelStore], str]] = []


def caught_by(check: str) -> Callable[[type[ModelStore]], type[ModelStore]]:
    """Say which check has to catch the store."""

    def enter(store: type[ModelStore]) -> type[ModelStore]:
        BROKEN.append((store, check))
        return store

    return enter


# load


@caught_by("load_of_an_unknown_sid_is_none")
class LoadRaises(ModelStore):
    def load(self, sid):
        return self.kept[sid][0]


@caught_by("load_judges_no_deadline")
class LoadHidesExpired(ModelStore):
    def load(self, sid):
        record = super().load(sid)
        return None if record and record.deadline < time.time() else record


@caught_by("load_returns_ended_ones")
class LoadHidesEnded(ModelStore):
    def load(self, sid):
        record = super().load(sid)
        return None if record and record.status in (ENDING, ENDED) else record


@caught_by("load_writes_nothing")
class LoadCounts(ModelStore):
    def load(self, sid):
        if sid in self.kept:
            record, due = self.kept[sid]
            self.kept[sid] = (changed(record, seen=record.seen + 1.0), due)
        return super().load(sid)


class Changing(ModelStore):
    """Keeps something else than it was given."""

    def kept_as(self, record):
        raise NotImplementedError

    def create(self, record):
        return super().create(self.kept_as(record))

    def replace(self, record, expected_version):
        return super().replace(self.kept_as(record), expected_version)


@caught_by("every_field_comes_back")
class RoundsTimes(Changing):
    def kept_as(self, record):
        return changed(record, created=round(record.created, 3))


@caught_by("every_field_comes_back")
class BooleansAsNumbers(Changing):
    def kept_as(self, record):
        return changed(record, persistent=int(record.persistent))


@caught_by("every_field_comes_back")
class ShortAgents(Changing):
    def kept_as(self, record):
        return changed(record, agent=record.agent[:255])


@caught_by("none_is_not_zero")
class NoneIsZero(Changing):
    def kept_as(self, record):
        return changed(record, idle_timeout=record.idle_timeout or None)


@caught_by("every_field_comes_back")
class WholeSeconds(Changing):
    def kept_as(self, record):
        return changed(record, authenticated=record.authenticated and int(record.authenticated))


@caught_by("any_bytes_come_back")
class SmallColumn(Changing):
    def kept_as(self, record):
        return changed(record, data=record.data[:65535])


@caught_by("any_bytes_come_back")
class BytesAsText(Changing):
    def kept_as(self, record):
        return changed(record, data=record.data.decode("utf-8", "replace").encode())


@caught_by("any_text_comes_back")
class ThreeByteText(Changing):
    def kept_as(self, record):
        user = record.user and "".join(c for c in record.user if ord(c) < 0x10000)
        return changed(record, user=user)


@caught_by("any_text_comes_back")
class TrimsText(Changing):
    def kept_as(self, record):
        return changed(record, agent=record.agent.rstrip())


# sids and create


@caught_by("sids_that_differ_in_case_are_different")
class CaseInsensitiveSids(ModelStore):
    def load(self, sid):
        return next((r for s, (r, _) in self.kept.items() if s.lower() == sid.lower()), None)

    def create(self, record):
        return self.load(record.sid) is None and super().create(record)


@caught_by("any_sid_of_the_alphabet_is_a_name")
class SidsWithADashAreOptions(ModelStore):
    def create(self, record):
        return not record.sid.startswith("-") and super().create(record)


@caught_by("create_refuses_a_sid_that_is_taken")
class CreateOverwrites(ModelStore):
    def create(self, record):
        self.kept.pop(record.sid, None)
        return super().create(record)


@caught_by("create_refuses_what_ended_by_delete")
class CreateRevives(ModelStore):
    def create(self, record):
        if record.sid in self.kept and self.kept[record.sid][0].status == ENDED:
            del self.kept[record.sid]
        return super().create(record)


@caught_by("create_takes_a_sid_that_was_removed")
class RemovedIsTaken(ModelStore):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def create(self, record):
        if record.sid in self.seen:
            return False
        self.seen.add(record.sid)
        return super().create(record)


@caught_by("create_is_due_at_its_deadline")
class DueAMomentLater(ModelStore):
    def due(self, now, lease, limit=100):
        return super().due(now - 1e-6, lease, limit)


# replace


@caught_by("replace_saves_every_field")
class ReplaceKeepsTheUser(ModelStore):
    def replace(self, record, expected_version):
        current = self.load(record.sid)
        record = changed(record, user=current.user) if current else record
        return super().replace(record, expected_version)


@caught_by("replace_judges_no_deadline")
class ReplaceRefusesExpired(ModelStore):
    def replace(self, record, expected_version):
        current = self.load(record.sid)
        if current and current.deadline < time.time():
            return GONE
        return super().replace(record, expected_version)


@caught_by("replace_never_creates")
class ReplaceUpserts(ModelStore):
    def replace(self, record, expected_version):
        if self.load(record.sid) is None:
            self.create(record)
            return SAVED
        return super().replace(record, expected_version)


@caught_by("replace_never_revives")
class ReplaceRevives(ModelStore):
    def replace(self, record, expected_version):
        current = self.load(record.sid)
        if current and current.version == expected_version:
            self.kept[record.sid] = (record, record.deadline)
            return SAVED
        return super().replace(record, expected_version)


@caught_by("replace_never_revives")
class ReplaceShowsTheEnded(ModelStore):
    def replace(self, record, expected_version):
        current = self.load(record.sid)
        if current and current.version != expected_version:
            return current
        return super().replace(record, expected_version)


@caught_by("replace_answers_with_the_current_record")
class LastWriteWins(ModelStore):
    def replace(self, record, expected_version):
        current = self.load(record.sid)
        return super().replace(record, current.version if current else 0)


@caught_by("replace_answers_with_the_current_record")
class OlderVersionsOnly(ModelStore):
    def replace(self, record, expected_version):
        current = self.load(record.sid)
        if current and current.version < expected_version:
            expected_version = current.version
        return super().replace(record, expected_version)


@caught_by("replace_twice_answers_with_itself")
class ReplaceSavesTwice(ModelStore):
    def replace(self, record, expected_version):
        return (
            SAVED if self.load(record.sid) == record else super().replace(record, expected_version)
        )


@caught_by("replace_moves_the_user")
class UsersOfTheBeginning(ModelStore):
    def __init__(self):
        super().__init__()
        self.users = {}

    def create(self, record):
        self.users.setdefault(record.sid, record.user)
        return super().create(record)

    def list(self, user=None, status=LIVE, after="", limit=100):
        records = super().list(None, status, after, limit)
        return [r for r in records if user in (None, self.users[r.sid])]


@caught_by("replace_with_an_earlier_deadline_is_due_earlier")
class DueTimeStays(ModelStore):
    def replace(self, record, expected_version):
        due = self.kept.get(record.sid, (None, 0.0))[1]
        answer = super().replace(record, expected_version)
        if answer is SAVED:
            self.kept[record.sid] = (record, due)
        return answer


class ClaimsByDueTime(ModelStore):
    """Believes its index: what is due in it is over."""

    def due(self, now, lease, limit=100):
        for sid, (record, due) in self.kept.items():
            if due <= now and record.status == LIVE:
                self.kept[sid] = (changed(record, deadline=due), due)
        return super().due(now, lease, limit)


caught_by("replace_with_a_later_deadline_is_due_later")(ClaimsByDueTime)
caught_by("touch_postpones_the_end")(ClaimsByDueTime)


@caught_by("replace_back_and_forth_is_due_once")
class OneEntryForEachDeadline(ModelStore):
    def __init__(self):
        super().__init__()
        self.entries: list[tuple[float, str]] = []

    def replace(self, record, expected_version):
        self.entries.append((record.deadline, record.sid))
        return super().replace(record, expected_version)

    def due(self, now, lease, limit=100):
        claimed = super().due(now, lease, limit)
        entries, self.entries = self.entries, [e for e in self.entries if e[0] > now]
        again = {sid for due, sid in entries if due <= now}
        return claimed + [self.load(sid) for sid in again if claimed]


# touch


@caught_by("touch_sets_seen_and_deadline_alone")
class TouchSetsTheDeadlineOnly(ModelStore):
    def touch(self, sid, expected_version, seen, deadline):
        current = self.load(sid)
        return super().touch(sid, expected_version, current.seen if current else 0.0, deadline)


@caught_by("touch_judges_no_deadline")
class TouchRefusesExpired(ModelStore):
    def touch(self, sid, expected_version, seen, deadline):
        current = self.load(sid)
        if current and current.deadline < seen:
            return False
        return super().touch(sid, expected_version, seen, deadline)


class TouchAnyVersion(ModelStore):
    def touch(self, sid, expected_version, seen, deadline):
        current = self.load(sid)
        return super().touch(sid, current.version if current else 0, seen, deadline)


caught_by("touch_of_another_version_does_nothing")(TouchAnyVersion)
caught_by("touch_twice_is_once")(TouchAnyVersion)


@caught_by("touch_never_creates_or_revives")
class TouchRevives(ModelStore):
    def touch(self, sid, expected_version, seen, deadline):
        current = self.load(sid)
        if current and current.version == expected_version:
            self._put(current, deadline, seen=seen, deadline=deadline, status=LIVE)
            return True
        return False


# delete


@caught_by("delete_of_nothing_is_false")
class DeleteIsAlwaysTrue(ModelStore):
    def delete(self, sid, ended=None):
        super().delete(sid, ended)
        return True


@caught_by("delete_removes_altogether")
class DeleteKeepsTombstones(ModelStore):
    def delete(self, sid, ended=None):
        current = self.load(sid)
        if ended is None and current and current.status == ENDED:
            return False
        return super().delete(sid, ended)


@caught_by("delete_ending_keeps_data_and_user")
class EndingForgetsTheUser(ModelStore):
    def delete(self, sid, ended=None):
        answer = super().delete(sid, ended)
        if answer and ended and ended.status == ENDING:
            record, due = self.kept[sid]
            self.kept[sid] = (changed(record, user=None), due)
        return answer


@caught_by("delete_ending_is_due_at_its_time")
class EndingIsDueAtItsDeadline(ModelStore):
    def delete(self, sid, ended=None):
        if ended and ended.status == ENDING and self.load(sid):
            ended = changed(ended, due=self.load(sid).deadline)
        return super().delete(sid, ended)


@caught_by("delete_ending_later_than_the_deadline")
class EndingIsNeverDueLater(ModelStore):
    def delete(self, sid, ended=None):
        if ended and ended.status == ENDING and self.load(sid):
            ended = changed(ended, due=min(ended.due, self.load(sid).deadline))
        return super().delete(sid, ended)


class EndingTakesTheNewReason(ModelStore):
    def delete(self, sid, ended=None):
        answer = super().delete(sid, ended)
        if ended and ended.status == ENDING and sid in self.kept:
            record, due = self.kept[sid]
            self.kept[sid] = (changed(record, reason=ended.reason), due)
        return answer


caught_by("delete_ending_again_only_moves_its_time")(EndingTakesTheNewReason)
caught_by("delete_ending_of_an_expired_one_keeps_no_reason")(EndingTakesTheNewReason)


class Tombstones(ModelStore):
    """Writes another tombstone."""

    def tombstone(self, before, ended):
        raise NotImplementedError

    def delete(self, sid, ended=None):
        before = self.load(sid)
        answer = super().delete(sid, ended)
        if answer and ended and ended.status == ENDED:
            record, due = self.kept[sid]
            self.kept[sid] = (changed(record, **self.tombstone(before, ended)), due)
        return answer


@caught_by("delete_ended_leaves_a_tombstone")
class TombstoneKeepsTheUser(Tombstones):
    def tombstone(self, before, ended):
        return {"user": before.user}


@caught_by("delete_ended_leaves_a_tombstone")
class TombstoneKeepsTheSalt(Tombstones):
    def tombstone(self, before, ended):
        return {"salt": before.salt}


@caught_by("delete_ended_leaves_a_tombstone")
class TombstoneForgetsTheSecrets(Tombstones):
    def tombstone(self, before, ended):
        return {"secret_hash": b"", "previous_hash": b""}


@caught_by("delete_ended_after_ending_keeps_the_reason")
class TombstoneTakesTheNewReason(Tombstones):
    def tombstone(self, before, ended):
        return {"reason": ended.reason}


@caught_by("delete_ended_of_an_expired_one_takes_the_reason")
class TombstoneKeepsNoReason(Tombstones):
    def tombstone(self, before, ended):
        return {"reason": before.reason if before.status == ENDING else ended.reason}


@caught_by("delete_ended_is_unconditional")
class DeletesTheFirstVersions(ModelStore):
    def delete(self, sid, ended=None):
        current = self.load(sid)
        return bool(current) and current.version < 4 and super().delete(sid, ended)


@caught_by("delete_of_a_tombstone_is_false")
class TombstonesAreRenewed(ModelStore):
    def delete(self, sid, ended=None):
        current = self.load(sid)
        if ended and current and current.status == ENDED and ended.status == ENDED:
            self._put(current, ended.due, deadline=ended.due)
            return True
        return super().delete(sid, ended)


@caught_by("delete_judges_no_deadline")
class DeleteRefusesExpired(ModelStore):
    def delete(self, sid, ended=None):
        current = self.load(sid)
        if current and current.deadline < time.time():
            return False
        return super().delete(sid, ended)


# marks


@caught_by("marks_are_kept_like_live_records")
class MarksAreFinal(ModelStore):
    def replace(self, record, expected_version):
        current = self.load(record.sid)
        return (
            GONE
            if current and current.status == MARK
            else super().replace(record, expected_version)
        )


@caught_by("marks_are_no_sessions")
class MarksAreListed(ModelStore):
    def list(self, user=None, status=LIVE, after="", limit=100):
        statuses = (LIVE, MARK) if status == LIVE else (status,)
        records = super().list(user, None, after, limit)
        return [r for r in records if status is None or r.status in statuses]


@caught_by("marks_are_removed_when_over")
class MarksAreClaimed(ModelStore):
    def due(self, now, lease, limit=100):
        marks = [r for r, due in self.kept.values() if r.status == MARK and r.deadline <= now]
        return super().due(now, lease, limit) + marks


# due


@caught_by("due_of_an_empty_store_is_empty")
class DueOfNothingRaises(ModelStore):
    def due(self, now, lease, limit=100):
        min(due for _, due in self.kept.values())
        return super().due(now, lease, limit)


@caught_by("due_claims_what_is_over")
class DueGivesAReason(ModelStore):
    def due(self, now, lease, limit=100):
        claimed = super().due(now, lease, limit)
        for record in claimed:
            self.kept[record.sid] = (changed(record, reason="idle"), now + lease)
        return [self.load(record.sid) for record in claimed]


@caught_by("due_leases_what_it_returns")
class DueWithoutLease(ModelStore):
    def due(self, now, lease, limit=100):
        return super().due(now, 0.0, limit)


@caught_by("due_leases_what_it_returns")
class DueClaimsOnce(ModelStore):
    def due(self, now, lease, limit=100):
        return super().due(now, 1e9, limit)


@caught_by("due_makes_the_data_final")
class DueOnlyLooks(ModelStore):
    def due(self, now, lease, limit=100):
        claimed = super().due(now, lease, limit)
        for record in claimed:
            self.kept[record.sid] = (changed(record, status=LIVE), now + lease)
        return claimed


@caught_by("due_returns_pages")
class DueHasNoLimit(ModelStore):
    def due(self, now, lease, limit=100):
        return super().due(now, lease, 1000)


@caught_by("due_begins_with_the_earliest")
class DueByDictionary(ModelStore):
    def due(self, now, lease, limit=100):
        for sid in list(self.kept):
            others = dict(self.kept)
            self.kept = {sid: others.pop(sid)}
            claimed = super().due(now, lease, limit)
            self.kept |= others
            if claimed:
                return claimed
        return []


@caught_by("due_goes_on_behind_a_moved_page")
class DueStopsAfterOnePage(ModelStore):
    def due(self, now, lease, limit=100):
        page = sorted(self.kept, key=lambda sid: self.kept[sid][1])[:limit]
        rest = {sid: kept for sid, kept in self.kept.items() if sid not in page}
        self.kept = {sid: self.kept[sid] for sid in page}
        claimed = super().due(now, lease, limit)
        self.kept |= rest
        return claimed


@caught_by("due_removes_tombstones")
class TombstonesStay(ModelStore):
    def due(self, now, lease, limit=100):
        ended = {sid: kept for sid, kept in self.kept.items() if kept[0].status == ENDED}
        self.kept = {sid: kept for sid, kept in self.kept.items() if sid not in ended}
        claimed = super().due(now, lease, limit)
        self.kept |= ended
        return claimed


@caught_by("due_passes_by_what_was_removed")
class DueRemembersTheRemoved(ModelStore):
    def __init__(self):
        super().__init__()
        self.removed = []

    def delete(self, sid, ended=None):
        if ended is None and sid in self.kept:
            self.removed.append(self.kept[sid][0])
        return super().delete(sid, ended)

    def due(self, now, lease, limit=100):
        removed, self.removed = self.removed, []
        return super().due(now, lease, limit) + [r for r in removed if r.deadline <= now]


@caught_by("due_survives_a_clock_that_runs_behind")
class DueHasItsOwnClock(ModelStore):
    def due(self, now, lease, limit=100):
        return super().due(max(now, time.time()), lease, limit)


# list, count, close


@caught_by("list_is_in_the_order_of_sids")
class ListsWithoutOrder(ModelStore):
    def list(self, user=None, status=LIVE, after="", limit=100):
        records = {r.sid: r for r in super().list(user, status, after, 1000)}
        return [records[sid] for sid in self.kept if sid in records][:limit]


@caught_by("list_is_in_the_order_of_sids")
class ListsLikeADictionary(ModelStore):
    def list(self, user=None, status=LIVE, after="", limit=100):
        records = super().list(user, status, after, 1000)
        return sorted(records, key=lambda r: r.sid.lower())[:limit]


@caught_by("list_goes_in_pages")
class ListsFromAfterOn(ModelStore):
    def list(self, user=None, status=LIVE, after="", limit=100):
        return super().list(user, status, after[:-1], limit)


@caught_by("list_goes_in_pages")
class ListFiltersThePage(ModelStore):
    def list(self, user=None, status=LIVE, after="", limit=100):
        page = super().list(None, None, after, limit)
        return [r for r in page if user in (None, r.user) and status in (None, r.status)]


@caught_by("list_tells_users_apart")
class UsersOfAnyCase(ModelStore):
    def list(self, user=None, status=LIVE, after="", limit=100):
        records = super().list(None, status, after, limit)
        return [r for r in records if not user or (r.user or "").lower() == user.lower()]


@caught_by("list_filters_by_status")
class ListsEveryStatus(ModelStore):
    def list(self, user=None, status=LIVE, after="", limit=100):
        return super().list(user, None, after, limit)


@caught_by("list_judges_no_deadline")
class ListHidesExpired(ModelStore):
    def list(self, user=None, status=LIVE, after="", limit=100):
        records = super().list(user, status, after, limit)
        return [r for r in records if r.deadline > time.time()]


@caught_by("close_twice_is_once")
class ClosesOnce(ModelStore):
    closed = False

    def close(self):
        if self.closed:
            raise ValueError("closed")
        self.closed = True


# Orders and races.


class RemembersWhatItLoaded(ModelStore):
    """Compares the version with a copy from its last load: a cache that nobody tells."""

    def __init__(self):
        super().__init__()
        self.cache = {}

    def load(self, sid):
        return self.cache.setdefault(sid, super().load(sid))

    def replace(self, record, expected_version):
        answer = super().replace(record, expected_version)
        if answer is SAVED:
            self.cache[record.sid] = record
        return answer


caught_by("touch_and_touch_in_every_order")(RemembersWhatItLoaded)
caught_by("touch_and_delete_in_every_order")(RemembersWhatItLoaded)
caught_by("replace_and_touch_in_every_order")(RemembersWhatItLoaded)
caught_by("replace_and_delete_in_every_order")(RemembersWhatItLoaded)
caught_by("delete_and_delete_in_every_order")(RemembersWhatItLoaded)
caught_by("create_and_create_in_every_order")(RemembersWhatItLoaded)
caught_by("due_and_replace_in_every_order")(RemembersWhatItLoaded)
caught_by("due_and_touch_in_every_order")(RemembersWhatItLoaded)
caught_by("due_and_delete_in_every_order")(RemembersWhatItLoaded)
caught_by("due_and_due_in_every_order")(DueWithoutLease)
caught_by("replace_and_replace_in_every_order")(LastWriteWins)
caught_by("any_calls_agree_with_the_model")(RemembersWhatItLoaded)


class WithoutALock(ModelStore):
    """Others get their turn between looking and writing."""

    class Slow(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            time.sleep(0.0002)
            super().__setitem__(key, value)

    def __init__(self):
        super().__init__()
        self.kept = self.Slow()


class AwaitsInBetween:
    """Reads all that it has, awaits, and only then writes: what others wrote meanwhile is lost."""

    promises = ModelStore.promises

    def __init__(self):
        self.kept = {}

    def __getattr__(self, verb):
        async def call(*arguments):
            copy = ModelStore()
            copy.kept = dict(self.kept)
            answer = getattr(copy, verb)(*arguments)
            await asyncio.sleep(0)
            if copy.kept != self.kept and verb not in ("load", "list", "count"):
                self.kept = copy.kept
            return answer

        return call


RACES = (
    "racing_increments_are_all_kept",
    "one_create_wins",
    "one_touch_wins",
    "nothing_rises_after_logout",
    "one_sweep_claims_each",
    "claimed_or_extended",
)
for _race in RACES:
    caught_by(_race)(WithoutALock)


class TestCatches:
    """What the table above says."""

    # Those of whole requests have a table of their own, in test_whole_catches.py.
    by_name: ClassVar = {
        check.__name__: check for check in CHECKS if check.__module__ != "sojourn.testing.whole"
    }

    @pytest.mark.parametrize(
        ("broken", "name"), BROKEN, ids=[f"{store.__name__}-{name}" for store, name in BROKEN]
    )
    def test_broken_store_is_caught(self, broken: type[ModelStore], name: str) -> None:
        """The check that states what is broken fails, and says so in a sentence."""
        with pytest.raises(ContractBroken, match=f"1 of the checks.*\n- {name}: [A-Z`]"):
            check_store(broken, [self.by_name[name]])

    @pytest.mark.parametrize("name", RACES)
    def test_races_need_no_luck(self, name: str) -> None:
        """A store that is right but for its lock is caught, though it waits nowhere."""
        # Its trials are short; with as few as the table has it would be seen 99 times of 100.
        more = {"trials": 200} if name == "claimed_or_extended" else {}
        for _ in range(5):
            store = MemoryStore()
            store._lock = contextlib.nullcontext()  # type: ignore[assignment]
            with pytest.raises((AssertionError, KeyError)):
                run_check(partial(self.by_name[name], **more), store)

    @pytest.mark.anyio
    @pytest.mark.parametrize("name", RACES)
    async def test_races_of_tasks(self, name: str) -> None:
        """An asynchronous store that awaits between looking and writing is caught."""
        with pytest.raises(ContractBroken, match=name):
            await acheck_store(lambda: AwaitsInBetween(), [self.by_name[name]])

    def test_every_check_catches_something(self) -> None:
        """No check is in the table that no store can fail."""
        assert set(self.by_name) - {name for _, name in BROKEN} == set()

    def test_the_model_passes(self) -> None:
        """The model that all of these are made of keeps the contract, but for threads."""
        alone = [c for c in self.by_name.values() if c.__module__ != "sojourn.testing.races"]
        check_store(ModelStore, alone)

    def test_run_check_raises_an_assertion(self) -> None:
        """In a test of its own, a check fails as any assertion does."""
        with pytest.raises(AssertionError, match="the store gave"):
            run_check(self.by_name["replace_never_creates"], ReplaceUpserts())
