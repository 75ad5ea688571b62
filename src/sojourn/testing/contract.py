"""The contract of a store, one check for each of its sentences (`sojourn.stores.base`).

Each check is a flow on a store that is empty. Times are near the wall clock, because some engines
drop what is long over by a clock of their own.
"""

from __future__ import annotations

import time
from typing import Any

from msgspec.structs import replace as changed

from sojourn.core.calls import (
    GONE,
    SAVED,
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
from sojourn.core.record import ENDED, ENDING, LIVE, MARK, Ended, Record
from sojourn.errors import SojournError
from sojourn.testing.checking import Close, check
from sojourn.testing.records import expect, expect_same, new_record, new_sid, next_version

__all__: list[str] = []

HOUR = 3600.0
DAY = 86400.0

USERS = (
    "alice",
    "Alice",
    "ALICE",
    "alice ",
    " alice",
    "al\u00edce",
    "ali\u0301ce",
    "al\u0131ce",
    "alice\t",
    "\U0001f600\U00020000",
    "\U0001f601\U00020000",
    "stra\u00dfe",
    "strasse",
    "o'brien",
    'a"b`c\\d',
    "%",
    "_",
    "*",
    "a:b{c}",
    "../x",
    "a\nb",
    "u" * 255,
)
"""Names that an engine may take for one another, or for a pattern, a quote or a path."""


# Steps that many checks share.


def _given(record: Record) -> Flow[Record]:
    """Create the record and return it."""
    expect_same((yield Create(record)), True, "create under a new sid")
    return record


def _stored(sid: str, wanted: Record | None, when: str) -> Flow[None]:
    expect_same((yield Load(sid)), wanted, f"load {when}")


def _ended(now: float, reason: str = "user", keep: float = DAY) -> Ended:
    return Ended(ENDED, reason, now, now + keep)


def _ending(now: float, reason: str = "user", lease: float = 60.0) -> Ended:
    return Ended(ENDING, reason, now, now + lease)


def _over(now: float, **fields: Any) -> Record:
    """Return a record whose deadline was an hour ago."""
    return new_record(now - 2 * HOUR, **({"deadline": now - HOUR} | fields))


def _tombstone(record: Record, ended: Ended) -> Record:
    return changed(
        record,
        version=record.version + 1,
        status=ENDED,
        reason=record.reason or ended.reason,
        seen=ended.at,
        deadline=ended.due,
        data=b"",
        commits=b"",
        salt=b"",
        user=None,
    )


def _claimed(record: Record) -> Record:
    return next_version(record, status=ENDING, attempts=record.attempts + 1)


def _all_due(now: float, lease: float = 60.0, limit: int = 100) -> Flow[list[Record]]:
    """Claim pages until one is empty; return all that came, in the order of their sids."""
    records: list[Record] = []
    for _ in range(1000):
        page = yield Due(now, lease, limit)
        if not page:
            return sorted(records, key=lambda record: record.sid)
        records += page
    raise AssertionError("due never answered with an empty list; the same sessions come again")


def _none_due(now: float, when: str) -> Flow[None]:
    expect_same((yield Due(now, 60.0)), [], f"due {when}")


# load


@check
def load_of_an_unknown_sid_is_none() -> Flow[None]:
    """`load` answers None where there is no record."""
    yield from _stored(new_sid(), None, "of a sid that was never made")
    yield from _given(new_record(time.time()))
    yield from _stored(new_sid(), None, "of a sid that was never made, beside another")


@check
def every_field_comes_back() -> Flow[None]:
    """A record is kept exactly as given: every field equal, and of the same type."""
    now = time.time()
    full = yield from _given(
        Record(
            sid=new_sid(),
            secret_hash=bytes(range(32)),
            version=3_000_000_000,
            created=now - 1 / 3,
            seen=now - 0.1,
            deadline=now + 1e6 + 1 / 7,
            idle_timeout=0.1,
            lifetime=1e9,
            data=b"\x00data\xff",
            user="alice",
            authenticated=now - 1 / 9,
            generation=70_000,
            previous_hash=bytes(range(32, 64)),
            previous_generation=69_999,
            grace_until=now + 1 / 11,
            salt=bytes(range(240, 256)),
            persistent=True,
            address="2001:db8::1%eth0",
            agent="Mozilla/5.0 (" + "x" * 1000 + ")",
            commits=bytes(range(8)) * 8,
            status=LIVE,
            reason="",
            attempts=0,
        )
    )
    yield from _stored(full.sid, full, "of a record with every field set")
    bare = yield from _given(
        Record(
            sid=new_sid(),
            secret_hash=b"",
            version=1,
            created=now,
            seen=now,
            deadline=now + HOUR,
            idle_timeout=None,
            lifetime=None,
            data=b"",
        )
    )
    yield from _stored(bare.sid, bare, "of a record with no optional field set")


@check
def none_is_not_zero() -> Flow[None]:
    """Where a field may be None, 0.0 is another value."""
    now = time.time()
    for value in (None, 0.0):
        record = new_record(now, idle_timeout=value, lifetime=value, authenticated=value)
        yield from _given(record)
        yield from _stored(record.sid, record, f"with {value} where None is allowed")


@check
def any_bytes_come_back() -> Flow[None]:
    """Data is bytes: empty ones, all 256 values, text that is no UTF-8, 1 MiB."""
    now = time.time()
    for data in (b"", b"\x00", bytes(range(256)), b"\xff\xfe\xed\xa0\x80", b"'\"\\%s\r\n"):
        record = yield from _given(new_record(now, data=data, commits=data[:8]))
        yield from _stored(record.sid, record, f"of data {data[:8]!r}")
    block = bytes((i * 7 + (i >> 8)) & 255 for i in range(1 << 16))
    large = yield from _given(new_record(now, data=block * 16))
    yield from _stored(large.sid, large, "of 1 MiB of data")
    larger = next_version(large, data=b"\x01" + block * 16)
    expect_same((yield Replace(larger, 1)), SAVED, "replace by 1 MiB of data")
    yield from _stored(large.sid, larger, "of 1 MiB of data after replace")


@check
def any_text_comes_back() -> Flow[None]:
    """User, address, agent and reason are Unicode text: quotes, controls, 4-byte characters."""
    now = time.time()
    for text in USERS:
        record = new_record(now, user=text, agent=text, address=text[:45])
        yield from _given(record)
        yield from _stored(record.sid, record, f"of the text {text[:20]!r}")


@check
def load_judges_no_deadline() -> Flow[None]:
    """`load` returns a record whatever its deadline: expiry is judged by the core."""
    record = yield from _given(_over(time.time()))
    yield from _stored(record.sid, record, "an hour after its deadline")


@check
def load_returns_ended_ones() -> Flow[None]:
    """`load` returns a record whatever its status: ended ones, tombstones and marks too."""
    now = time.time()
    for status in (ENDING, ENDED, MARK):
        record = yield from _given(new_record(now, status=status))
        yield from _stored(record.sid, record, f"with status {status}")


@check
def load_writes_nothing() -> Flow[None]:
    """`load` writes nothing: neither version nor due time move."""
    now = time.time()
    record = yield from _given(_over(now))
    for _ in range(3):
        yield from _stored(record.sid, record, "again")
    expect_same((yield Due(now, 60.0)), [_claimed(record)], "due after loads")


# sids


@check
def sids_that_differ_in_case_are_different() -> Flow[None]:
    """A sid is compared byte by byte: one that differs in case only is another session."""
    now = time.time()
    sids = ["abcdefghijklmnopqrstuv", "ABCDEFGHIJKLMNOPQRSTUV", "abcdefghijklmnopqrstuV"]
    records = [new_record(now, sid=sid, data=sid.encode()) for sid in sids]
    yield from _given(records[0])
    yield from _stored(sids[1], None, "of a sid that differs from a known one in case only")
    for record in records[1:]:
        yield from _given(record)
    expect_same((yield Delete(sids[0])), True, "delete")
    yield from _stored(sids[0], None, "after delete")
    for record in records[1:]:
        yield from _stored(record.sid, record, "after another that differs in case was deleted")


@check
def any_sid_of_the_alphabet_is_a_name() -> Flow[None]:
    """A sid is any 22 characters of `A-Z a-z 0-9 _ -`, also dashes alone."""
    now = time.time()
    for character in "-_0Aaz9Z":
        record = yield from _given(new_record(now, sid=character * 22))
        yield from _stored(record.sid, record, f"of {record.sid!r}")
    expect_same((yield Count()), 8, "count")


# create


@check
def create_refuses_a_sid_that_is_taken() -> Flow[None]:
    """`create` answers False, and changes nothing, if the sid is taken, ended or not."""
    now = time.time()
    for status in (LIVE, ENDING, ENDED, MARK):
        record = yield from _given(new_record(now, status=status, user="alice"))
        again = new_record(now, sid=record.sid, data=b"other", user="bob", deadline=now - 1)
        expect_same((yield Create(again)), False, f"create over a record of status {status}")
        expect_same((yield Create(record)), False, f"the same create twice, status {status}")
        yield from _stored(record.sid, record, "after a create that was refused")
    expect_same((yield List(user="bob", status=None)), [], "list of the user who was refused")
    yield from _none_due(now, "after a create with an earlier deadline was refused")


@check
def create_refuses_what_ended_by_delete() -> Flow[None]:
    """`create` never revives: False for a sid that `delete` has ended."""
    now = time.time()
    for ended in (_ending(now), _ended(now)):
        record = yield from _given(new_record(now))
        yield Delete(record.sid, ended)
        before = yield Load(record.sid)
        expect_same((yield Create(record)), False, "create under a sid that was ended")
        yield from _stored(record.sid, before, "after that create")


@check
def create_takes_a_sid_that_was_removed() -> Flow[None]:
    """What was removed altogether leaves no trace: its sid is free."""
    now = time.time()
    record = yield from _given(new_record(now, user="alice"))
    yield Delete(record.sid)
    again = yield from _given(new_record(now, sid=record.sid, data=b"second", user="bob"))
    yield from _stored(record.sid, again, "of a sid that was removed and made again")
    expect_same((yield List(user="alice")), [], "list of the first user")
    expect_same((yield List(user="bob")), [again], "list of the second user")


@check
def create_is_due_at_its_deadline() -> Flow[None]:
    """A record's due time starts as its deadline, at that very moment."""
    now = time.time()
    record = yield from _given(new_record(now, deadline=now + 100.0))
    yield from _none_due(now + 99.0, "a second before the deadline")
    expect_same((yield Due(now + 100.0, 60.0)), [_claimed(record)], "due at the deadline")


# replace


@check
def replace_saves_every_field() -> Flow[None]:
    """`replace` answers SAVED, and the new record is there in every field."""
    now = time.time()
    record = yield from _given(new_record(now))
    newer = Record(
        sid=record.sid,
        secret_hash=bytes(32),
        version=2,
        created=now - 5.5,
        seen=now + 1.25,
        deadline=now + 77.125,
        idle_timeout=None,
        lifetime=None,
        data=b"newer",
        user="bob",
        authenticated=now,
        generation=1,
        previous_hash=record.secret_hash,
        previous_generation=0,
        grace_until=now + 10.0,
        salt=b"s" * 16,
        persistent=True,
        address="192.0.2.1",
        agent="agent",
        commits=b"c" * 16,
    )
    expect_same((yield Replace(newer, 1)), SAVED, "replace with the right version")
    yield from _stored(record.sid, newer, "after replace")
    bare = changed(record, version=3, idle_timeout=60.0, data=b"")
    expect_same((yield Replace(bare, 2)), SAVED, "replace that empties fields")
    yield from _stored(record.sid, bare, "after a replace that empties fields")


@check
def replace_judges_no_deadline() -> Flow[None]:
    """`replace` saves over a record past its deadline that no sweep has met."""
    record = yield from _given(_over(time.time()))
    newer = next_version(record, data=b"newer")
    expect_same((yield Replace(newer, 1)), SAVED, "replace an hour after the deadline")
    yield from _stored(record.sid, newer, "after that replace")


@check
def replace_never_creates() -> Flow[None]:
    """`replace` answers GONE where there is none, and makes none."""
    now = time.time()
    record = new_record(now)
    for version in (0, 1):
        expect_same((yield Replace(record, version)), GONE, "replace of a sid never made")
        yield from _stored(record.sid, None, "after that replace")
    yield from _given(record)
    yield Delete(record.sid)
    expect_same((yield Replace(next_version(record), 1)), GONE, "replace of a removed one")
    yield from _stored(record.sid, None, "after that replace")
    expect_same((yield Count(status=None)), 0, "count")


@check
def replace_never_revives() -> Flow[None]:
    """`replace` answers GONE where the record has ended, even with the right version."""
    now = time.time()
    for ended in (_ending(now), _ended(now)):
        record = yield from _given(new_record(now, user="alice"))
        yield Delete(record.sid, ended)
        before = yield Load(record.sid)
        for version in (1, 2, 3):
            late = changed(record, version=version + 1, data=b"late")
            answer = yield Replace(late, version)
            expect_same(answer, GONE, f"replace of version {version} of an ended record")
            yield from _stored(record.sid, before, "after that replace")
    for status in (ENDING, ENDED):
        record = yield from _given(new_record(now, status=status))
        late = changed(record, version=2, status=LIVE)
        expect_same((yield Replace(late, 1)), GONE, f"replace of a record of status {status}")
        yield from _stored(record.sid, record, "after that replace")


@check
def replace_answers_with_the_current_record() -> Flow[None]:
    """`replace` with another version answers with the current record, and writes nothing."""
    now = time.time()
    record = yield from _given(new_record(now, version=5, user="alice"))
    for version in (0, 4, 6):
        late = changed(record, version=version + 1, data=b"late", user="bob", deadline=now)
        answer = yield Replace(late, version)
        expect_same(answer, record, f"replace of version {version} where 5 is current")
    yield from _stored(record.sid, record, "after those replaces")
    expect_same((yield Count(user="bob")), 0, "count of the user who was refused")
    yield from _none_due(now, "after a replace with an earlier deadline was refused")


@check
def replace_twice_answers_with_itself() -> Flow[None]:
    """A `replace` made twice, because a reply got lost, finds its own commit."""
    record = yield from _given(new_record(time.time()))
    newer = next_version(record, data=b"mine", commits=b"12345678")
    expect_same((yield Replace(newer, 1)), SAVED, "replace")
    expect_same((yield Replace(newer, 1)), newer, "the same replace again")
    yield from _stored(record.sid, newer, "after both")


@check
def replace_moves_the_user() -> Flow[None]:
    """A record is listed under the user that it has now, and no other."""
    record = yield from _given(new_record(time.time()))
    expect_same((yield List(user="alice")), [], "list of a user before the login")
    for user in ("alice", "bob", None):
        newer = next_version(record, user=user)
        expect_same((yield Replace(newer, record.version)), SAVED, "replace")
        record = newer
        for name in ("alice", "bob"):
            wanted = [record] if name == user else []
            expect_same((yield List(user=name)), wanted, f"list of {name}, the user is {user}")
            expect_same((yield Count(user=name)), len(wanted), f"count of {name}")
    expect_same((yield List()), [record], "list of all")


@check
def replace_with_an_earlier_deadline_is_due_earlier() -> Flow[None]:
    """`replace` moves the due time to the new deadline where that is earlier."""
    now = time.time()
    record = yield from _given(new_record(now, deadline=now + DAY))
    newer = next_version(record, deadline=now + 60.0)
    yield Replace(newer, 1)
    yield from _none_due(now + 59.0, "before the earlier deadline")
    expect_same((yield Due(now + 60.0, 60.0)), [_claimed(newer)], "due at the earlier deadline")


@check
def replace_with_a_later_deadline_is_due_later() -> Flow[None]:
    """A record whose deadline was moved away is not over at its first one, but at the new."""
    now = time.time()
    record = yield from _given(new_record(now, deadline=now + 60.0))
    newer = next_version(record, deadline=now + DAY)
    yield Replace(newer, 1)
    yield from _none_due(now + HOUR, "at the deadline it had before")
    yield from _stored(record.sid, newer, "after due passed it by")
    expect_same((yield Due(now + DAY, 60.0)), [_claimed(newer)], "due at the later deadline")


@check
def replace_back_and_forth_is_due_once() -> Flow[None]:
    """However often the deadline moved, a session is claimed once, and at its last deadline."""
    now = time.time()
    record = yield from _given(new_record(now, deadline=now + 100.0))
    for deadline in (now + 50.0, now + 500.0, now + 50.0, now + 200.0):
        newer = next_version(record, deadline=deadline)
        expect_same((yield Replace(newer, record.version)), SAVED, "replace")
        record = newer
        yield from _none_due(now + 40.0, "before any deadline it had")
    yield from _none_due(now + 150.0, "before the deadline it has")
    records = yield from _all_due(now + 200.0)
    expect_same(records, [_claimed(record)], "due at the deadline it has")


# touch


@check
def touch_sets_seen_and_deadline_alone() -> Flow[None]:
    """`touch` sets `seen` and `deadline`, adds one to `version`, and nothing else."""
    now = time.time()
    record = yield from _given(
        new_record(now, user="alice", commits=b"12345678", reason="", authenticated=now)
    )
    answer = yield Touch(record.sid, 1, now + 1 / 3, now + HOUR + 1 / 7)
    expect_same(answer, True, "touch with the right version")
    touched = next_version(record, seen=now + 1 / 3, deadline=now + HOUR + 1 / 7)
    yield from _stored(record.sid, touched, "after touch")
    expect_same((yield List(user="alice")), [touched], "list after touch")


@check
def touch_judges_no_deadline() -> Flow[None]:
    """`touch` extends a live record past its deadline that no sweep has met."""
    now = time.time()
    record = yield from _given(_over(now))
    expect_same((yield Touch(record.sid, 1, now, now + HOUR)), True, "touch of an expired one")
    touched = next_version(record, seen=now, deadline=now + HOUR)
    yield from _stored(record.sid, touched, "after that touch")


@check
def touch_of_another_version_does_nothing() -> Flow[None]:
    """`touch` answers False, and changes nothing, where the version is another."""
    now = time.time()
    record = yield from _given(new_record(now, version=5))
    for version in (0, 4, 6):
        answer = yield Touch(record.sid, version, now + 1.0, now + DAY)
        expect_same(answer, False, f"touch of version {version} where 5 is current")
    yield from _stored(record.sid, record, "after those touches")


@check
def touch_twice_is_once() -> Flow[None]:
    """A `touch` made twice, because a reply got lost, does no more: the second answers False."""
    now = time.time()
    record = yield from _given(new_record(now))
    for wanted in (True, False):
        answer = yield Touch(record.sid, 1, now + 1.0, now + HOUR)
        expect_same(answer, wanted, "touch, made twice")
    touched = next_version(record, seen=now + 1.0, deadline=now + HOUR)
    yield from _stored(record.sid, touched, "after both")


@check
def touch_never_creates_or_revives() -> Flow[None]:
    """`touch` answers False, and changes nothing, where there is none or it has ended."""
    now = time.time()
    sid = new_sid()
    expect_same((yield Touch(sid, 1, now, now + HOUR)), False, "touch of a sid never made")
    yield from _stored(sid, None, "after that touch")
    for ended in (None, _ending(now), _ended(now)):
        record = yield from _given(new_record(now))
        yield Delete(record.sid, ended)
        before = yield Load(record.sid)
        for version in (1, 2, 3):
            answer = yield Touch(record.sid, version, now, now + HOUR)
            expect_same(answer, False, f"touch of version {version} after {ended}")
        yield from _stored(record.sid, before, "after those touches")
    for status in (ENDING, ENDED):
        record = yield from _given(new_record(now, status=status))
        answer = yield Touch(record.sid, 1, now, now + HOUR)
        expect_same(answer, False, f"touch of a record of status {status}")
        yield from _stored(record.sid, record, "after that touch")


@check
def touch_postpones_the_end() -> Flow[None]:
    """A touched record is not over at its first deadline, but is at the one it was given."""
    now = time.time()
    record = yield from _given(new_record(now, deadline=now + 60.0))
    yield Touch(record.sid, 1, now + 30.0, now + HOUR)
    touched = next_version(record, seen=now + 30.0, deadline=now + HOUR)
    for moment in (now + 60.0, now + 61.0, now + HOUR - 1.0):
        yield from _none_due(moment, "before the deadline that touch set")
        yield from _stored(record.sid, touched, "after due passed it by")
    expect_same((yield Due(now + HOUR, 60.0)), [_claimed(touched)], "due at the touched deadline")


# delete


@check
def delete_of_nothing_is_false() -> Flow[None]:
    """`delete` in every form answers False where there was nothing, and makes nothing."""
    now = time.time()
    sid = new_sid()
    for ended in (None, _ending(now), _ended(now)):
        expect_same((yield Delete(sid, ended)), False, f"delete of nothing, {ended}")
        yield from _stored(sid, None, "after that delete")


@check
def delete_removes_altogether() -> Flow[None]:
    """`delete` with no `Ended` removes what is there, of any status; the second answers False."""
    now = time.time()
    for status in (LIVE, ENDING, ENDED, MARK):
        record = yield from _given(new_record(now, status=status, user="alice"))
        expect_same((yield Delete(record.sid)), True, f"delete of status {status}")
        yield from _stored(record.sid, None, "after delete")
        expect_same((yield Delete(record.sid)), False, "the same delete again")
    expect_same((yield List("alice", None)), [], "list of the user")
    expect_same((yield Count("alice", None)), 0, "count of the user")
    expect_same((yield Count(status=None)), 0, "count of all")
    yield from _none_due(now + DAY, "after all was deleted")


@check
def delete_ending_keeps_data_and_user() -> Flow[None]:
    """A live record becomes ENDING: reason, one more version, all else kept."""
    now = time.time()
    record = yield from _given(new_record(now, user="alice", commits=b"12345678"))
    yield Touch(record.sid, 1, now + 1.0, now + HOUR)
    expect_same((yield Delete(record.sid, _ending(now, "operator"))), True, "delete, ENDING")
    ending = changed(
        record,
        version=3,
        seen=now + 1.0,
        deadline=now + HOUR,
        status=ENDING,
        reason="operator",
    )
    yield from _stored(record.sid, ending, "after delete, ENDING")
    expect_same((yield List("alice")), [], "list of live ones of the user")
    expect_same((yield List("alice", ENDING)), [ending], "list of ending ones of the user")


@check
def delete_ending_is_due_at_its_time() -> Flow[None]:
    """What `delete` made ENDING is due at `ended.due`, with its reason and its data."""
    now = time.time()
    record = yield from _given(new_record(now, user="alice", deadline=now + DAY))
    yield Delete(record.sid, _ending(now, "user", 60.0))
    yield from _none_due(now + 59.0, "before the time given to delete")
    wanted = changed(record, version=3, status=ENDING, reason="user", attempts=1)
    expect_same((yield Due(now + 60.0, 60.0)), [wanted], "due at the time given to delete")


@check
def delete_ending_later_than_the_deadline() -> Flow[None]:
    """What `delete` made ENDING waits for `ended.due`, also past the deadline it had."""
    now = time.time()
    record = yield from _given(new_record(now, deadline=now + 10.0))
    yield Delete(record.sid, _ending(now, "user", 100.0))
    yield from _none_due(now + 99.0, "after the deadline, before the time given to delete")
    records = yield Due(now + 100.0, 60.0)
    expect_same([r.sid for r in records], [record.sid], "due at the time given to delete")


@check
def delete_ending_again_only_moves_its_time() -> Flow[None]:
    """One that is ENDING keeps its reason and gets the new due time; False: it had ended."""
    now = time.time()
    record = yield from _given(new_record(now))
    yield Delete(record.sid, _ending(now, "user", 60.0))
    before = yield Load(record.sid)
    again = _ending(now, "operator", 600.0)
    expect_same((yield Delete(record.sid, again)), False, "delete, ENDING, of an ending one")
    yield from _stored(record.sid, before, "after that delete")
    yield from _none_due(now + 599.0, "before the later time")
    expect_same((yield Due(now + 600.0, 60.0)), [_claimed(before)], "due at the later time")
    yield Delete(record.sid, _ending(now + 600.0, "operator", 5.0))
    records = yield Due(now + 605.0, 60.0)
    expect_same([r.sid for r in records], [record.sid], "due at a time before the lease ended")


@check
def delete_ending_of_an_expired_one_keeps_no_reason() -> Flow[None]:
    """One that `due` claimed has no reason, and putting it off gives it none."""
    now = time.time()
    record = yield from _given(_over(now))
    yield Due(now, 60.0)
    yield Delete(record.sid, _ending(now, "operator", 600.0))
    yield from _stored(record.sid, _claimed(record), "after putting off an expired one")


@check
def delete_ended_leaves_a_tombstone() -> Flow[None]:
    """A live record becomes ENDED: no data, commits, salt or user; sid, hashes, created stay."""
    now = time.time()
    record = yield from _given(
        new_record(now, user="alice", commits=b"12345678", previous_hash=b"p" * 32)
    )
    ended = _ended(now + 1 / 3, "password")
    expect_same((yield Delete(record.sid, ended)), True, "delete, ENDED")
    tombstone = _tombstone(record, ended)
    yield from _stored(record.sid, tombstone, "after delete, ENDED")
    expect_same((yield List("alice", None)), [], "list of the user that it had")
    expect_same((yield Count("alice", None)), 0, "count of the user that it had")
    expect_same((yield List(status=ENDED)), [tombstone], "list of ended ones")


@check
def delete_ended_is_unconditional() -> Flow[None]:
    """`delete` asks for no version: it ends whatever is there after any number of writes."""
    now = time.time()
    record = yield from _given(new_record(now))
    for _ in range(3):
        newer = next_version(record, data=b"newer")
        yield Replace(newer, record.version)
        record = newer
    yield Touch(record.sid, record.version, now + 1.0, now + HOUR)
    yield Delete(record.sid, _ended(now))
    wanted = _tombstone(next_version(record), _ended(now))
    yield from _stored(record.sid, wanted, "after delete of version 5")


@check
def delete_ended_after_ending_keeps_the_reason() -> Flow[None]:
    """The reason of one that was ENDING stays in its tombstone."""
    now = time.time()
    record = yield from _given(new_record(now, user="alice"))
    yield Delete(record.sid, _ending(now, "user"))
    before = yield Load(record.sid)
    ended = _ended(now + 1.0, "operator")
    expect_same((yield Delete(record.sid, ended)), True, "delete, ENDED, of an ending one")
    yield from _stored(record.sid, _tombstone(before, ended), "after that delete")
    yield from _none_due(now + HOUR, "of a tombstone whose time has not come")


@check
def delete_ended_of_an_expired_one_takes_the_reason() -> Flow[None]:
    """One that `due` claimed has no reason; its tombstone gets the one given."""
    now = time.time()
    record = yield from _given(_over(now))
    yield Due(now, 60.0)
    expect_same((yield Delete(record.sid, _ended(now, "idle"))), True, "delete of a claimed one")
    wanted = _tombstone(_claimed(record), _ended(now, "idle"))
    yield from _stored(record.sid, wanted, "after that delete")
    yield from _none_due(now + HOUR, "after its lease, when it is a tombstone")


@check
def delete_of_a_tombstone_is_false() -> Flow[None]:
    """`delete` answers False, and changes nothing, where the record has already come as far."""
    now = time.time()
    record = yield from _given(new_record(now))
    yield Delete(record.sid, _ended(now, "user"))
    before = yield Load(record.sid)
    for ended in (
        _ended(now, "user"),
        _ended(now + 5.0, "operator", 2 * DAY),
        _ending(now + 5.0, "operator"),
    ):
        expect_same((yield Delete(record.sid, ended)), False, f"delete of a tombstone, {ended}")
        yield from _stored(record.sid, before, "after that delete")


@check
def delete_judges_no_deadline() -> Flow[None]:
    """`delete` ends a record past its deadline like any other."""
    now = time.time()
    record = yield from _given(_over(now))
    expect_same((yield Delete(record.sid, _ended(now, "idle"))), True, "delete of an expired one")
    yield from _stored(record.sid, _tombstone(record, _ended(now, "idle")), "after that delete")


# marks


@check
def marks_are_kept_like_live_records() -> Flow[None]:
    """A MARK is created, replaced and touched like a live record."""
    now = time.time()
    mark = yield from _given(new_record(now, status=MARK, secret_hash=b""))
    newer = next_version(mark, data=b"newer")
    expect_same((yield Replace(newer, 1)), SAVED, "replace of a mark")
    expect_same((yield Replace(newer, 1)), newer, "replace of a mark's old version")
    expect_same((yield Touch(mark.sid, 2, now + 1.0, now + DAY)), True, "touch of a mark")
    touched = next_version(newer, seen=now + 1.0, deadline=now + DAY)
    yield from _stored(mark.sid, touched, "of a mark")
    expect_same((yield Delete(mark.sid)), True, "delete of a mark")
    yield from _stored(mark.sid, None, "of a mark that was deleted")


@check
def marks_are_no_sessions() -> Flow[None]:
    """`list` and `count` show a MARK only when asked for that status or for all."""
    now = time.time()
    mark = yield from _given(new_record(now, status=MARK, user="alice"))
    expect_same((yield List()), [], "list")
    expect_same((yield List("alice")), [], "list of the user")
    expect_same((yield List(status=MARK)), [mark], "list of marks")
    expect_same((yield List(status=None)), [mark], "list of every status")
    for status, wanted in ((LIVE, 0), (ENDING, 0), (ENDED, 0), (MARK, 1), (None, 1)):
        expect_same((yield Count(status=status)), wanted, f"count of status {status}")


@check
def marks_are_removed_when_over() -> Flow[None]:
    """`due` never returns a MARK: it removes one that is over, and moves one that is not."""
    now = time.time()
    over = yield from _given(_over(now, status=MARK))
    touched = yield from _given(_over(now, status=MARK))
    yield Touch(touched.sid, 1, now, now + HOUR)
    session = yield from _given(_over(now))
    records = yield from _all_due(now)
    expect_same(records, [_claimed(session)], "due with a session and two marks")
    yield from _stored(over.sid, None, "of a mark that was over")
    kept = next_version(touched, seen=now, deadline=now + HOUR)
    yield from _stored(touched.sid, kept, "of a mark that was touched")
    yield from _all_due(now + HOUR)
    yield from _stored(touched.sid, None, "of that mark when it was over")


# due


@check
def due_of_an_empty_store_is_empty() -> Flow[None]:
    """An empty list means that nothing was over."""
    yield from _none_due(time.time(), "of an empty store")
    yield from _given(new_record(time.time()))
    yield from _none_due(time.time(), "of a store in which nothing is over")


@check
def due_claims_what_is_over() -> Flow[None]:
    """LIVE past its deadline becomes ENDING with no reason, one more version and attempt."""
    now = time.time()
    over = yield from _given(_over(now, user="alice", data=b"last words"))
    exact = yield from _given(new_record(now - HOUR, deadline=now))
    live = yield from _given(new_record(now, deadline=now + 0.5))
    wanted = sorted([_claimed(over), _claimed(exact)], key=lambda record: record.sid)
    expect_same((yield from _all_due(now)), wanted, "due")
    yield from _stored(over.sid, _claimed(over), "of a claimed session")
    yield from _stored(live.sid, live, "of a session that is not over")
    expect_same((yield List("alice", ENDING)), [_claimed(over)], "list of ending ones")
    expect_same((yield Count()), 1, "count of live ones")


@check
def due_leases_what_it_returns() -> Flow[None]:
    """What is returned is due again at `now + lease`, and no other caller gets it before."""
    now = time.time()
    record = yield from _given(_over(now))
    moment = now
    for lease in (60.0, 5.0, 600.0):
        record = _claimed(record)
        expect_same((yield Due(moment, lease)), [record], "due when the lease before is over")
        for early in (moment - 100.0, moment, moment + lease - 1.0):
            yield from _none_due(early, "while the lease runs")
        yield from _stored(record.sid, record, "while the lease runs")
        moment += lease
    expect_same((yield Due(moment, 1.0)), [_claimed(record)], "due at the end of the lease")


@check
def due_makes_the_data_final() -> Flow[None]:
    """After `due` returned a session, `replace` and `touch` answer that it is gone."""
    now = time.time()
    record = yield from _given(_over(now))
    yield Due(now, 60.0)
    claimed = _claimed(record)
    for version in (1, 2):
        late = changed(record, version=version + 1, data=b"late", deadline=now + HOUR)
        expect_same((yield Replace(late, version)), GONE, "replace of a claimed session")
        answer = yield Touch(record.sid, version, now, now + HOUR)
        expect_same(answer, False, "touch of a claimed session")
    yield from _stored(record.sid, claimed, "of a claimed session")


@check
def due_returns_pages() -> Flow[None]:
    """`due` claims up to `limit`; all that is over comes, each once, then an empty list."""
    now = time.time()
    wanted = []
    for index in range(11):
        wanted.append((yield from _given(_over(now, deadline=now - 10.0 * index))))
    sids: list[str] = []
    for _ in range(12):
        page = yield Due(now, 60.0, 3)
        expect(len(page) <= 3, f"due with limit 3 returned {len(page)} records")
        sids += [record.sid for record in page]
        if not page:
            break
    expect_same(sorted(sids), sorted(record.sid for record in wanted), "the sids of all pages")


@check
def due_begins_with_the_earliest() -> Flow[None]:
    """`due` looks at what is due earliest first."""
    now = time.time()
    hours = [5, 2, 9, 1, 7, 3]
    records = {}
    for hour in hours:
        records[hour] = yield from _given(_over(now, deadline=now - hour * HOUR))
    for hour in sorted(hours, reverse=True):
        page = yield Due(now, 60.0, 1)
        expect_same(page, [_claimed(records[hour])], "due, one at a time")


@check
def due_goes_on_behind_a_moved_page() -> Flow[None]:
    """When a full page was only moved or removed, `due` goes on to the next."""
    now = time.time()
    for index in range(7):
        touched = yield from _given(_over(now, deadline=now - DAY - index))
        yield Touch(touched.sid, 1, now, now + HOUR)
        yield from _given(_over(now, status=ENDED, deadline=now - DAY - index))
        yield from _given(_over(now, status=MARK, deadline=now - DAY - index))
    last = yield from _given(_over(now, deadline=now - 1.0))
    expect_same((yield Due(now, 60.0, 2)), [_claimed(last)], "due behind 21 moved or removed ones")
    yield from _none_due(now, "after that")
    expect_same((yield Count(status=None)), 8, "count of what is left")


@check
def due_removes_tombstones() -> Flow[None]:
    """ENDED past its deadline is removed and never returned; before, it is kept."""
    now = time.time()
    record = yield from _given(new_record(now))
    yield Delete(record.sid, _ended(now, "user", DAY))
    yield from _none_due(now + DAY - 1.0, "before the tombstone may go")
    expect(bool((yield Load(record.sid))), "due removed a tombstone before its time")
    yield from _none_due(now + DAY, "when the tombstone may go")
    yield from _stored(record.sid, None, "of a tombstone whose time was over")
    expect_same((yield Count(status=None)), 0, "count after the tombstone went")


@check
def due_passes_by_what_was_removed() -> Flow[None]:
    """`due` does not return what was removed, and what was made again under its sid only once."""
    now = time.time()
    gone = yield from _given(_over(now))
    yield Delete(gone.sid)
    again = yield from _given(_over(now))
    yield Delete(again.sid)
    again = yield from _given(new_record(now, sid=again.sid, deadline=now + 60.0))
    yield from _none_due(now, "after all that was over was removed")
    records = yield from _all_due(now + 60.0)
    expect_same(records, [_claimed(again)], "due of one that was made again")


@check
def due_survives_a_clock_that_runs_behind() -> Flow[None]:
    """Two sweeps whose clocks differ: the one behind claims nothing that is not over for it."""
    now = time.time()
    record = yield from _given(new_record(now - HOUR, deadline=now))
    yield from _none_due(now - 30.0, "by a clock half a minute behind")
    expect_same((yield Due(now + 30.0, 60.0)), [_claimed(record)], "due by a clock ahead")
    yield from _none_due(now, "by the clock behind, while the lease of the other runs")


# list and count


def _some_sids() -> list[str]:
    """Sids whose order tells code points from any alphabet's: - 0 9 A Z _ a z."""
    heads = ["-", "--", "-_", "0", "9", "A", "AA", "Aa", "Z", "_", "_-", "a", "aA", "aa", "z"]
    return [head + new_sid()[len(head) :] for head in heads]


@check
def list_is_in_the_order_of_sids() -> Flow[None]:
    """`list` is ordered by code point of the sid, whatever the order of creation."""
    now = time.time()
    records = [new_record(now, sid=sid) for sid in _some_sids()]
    for record in records[::2] + records[1::2]:
        yield from _given(record)
    wanted = sorted(records, key=lambda record: record.sid)
    expect_same((yield List()), wanted, "list")


@check
def list_goes_in_pages() -> Flow[None]:
    """A page begins behind `after`; one that is shorter than `limit` is the last."""
    now = time.time()
    records = [new_record(now, sid=sid, user="alice") for sid in _some_sids()]
    for record in records:
        yield from _given(record)
        yield from _given(new_record(now, user="bob"))
        yield from _given(new_record(now, user="alice", status=MARK))
    wanted = sorted(records, key=lambda record: record.sid)
    for limit in (1, 4, 5, 15, 16):
        got: list[Record] = []
        for _ in range(len(wanted) + 2):
            after = got[-1].sid if got else ""
            page = yield List("alice", LIVE, after, limit)
            expect(len(page) <= limit, f"list with limit {limit} returned {len(page)} records")
            got += page
            if len(page) < limit:
                break
        expect_same(got, wanted, f"list in pages of {limit}")
    middle = wanted[6].sid
    expect_same((yield List("alice", LIVE, middle)), wanted[7:], "list after a sid that is there")
    yield Delete(middle)
    expect_same((yield List("alice", LIVE, middle)), wanted[7:], "list after a sid that is gone")
    expect_same((yield List("alice", LIVE, "z" * 22)), [], "list after the last sid")


@check
def list_tells_users_apart() -> Flow[None]:
    """Users that differ in case, spaces or accents only are different."""
    now = time.time()
    records = {}
    for user in USERS:
        records[user] = yield from _given(new_record(now, user=user))
    yield from _given(new_record(now))
    for user in USERS:
        expect_same((yield List(user)), [records[user]], f"list of {user[:20]!r}")
        expect_same((yield Count(user)), 1, f"count of {user[:20]!r}")
    expect_same((yield List("nobody")), [], "list of a user who has none")
    expect_same((yield Count("nobody")), 0, "count of a user who has none")
    expect_same((yield Count()), len(USERS) + 1, "count of all")


@check
def list_filters_by_status() -> Flow[None]:
    """`list` and `count` show one status, LIVE by default, or every one where it is None."""
    now = time.time()
    records = []
    statuses: list[int | None] = [LIVE, ENDING, ENDED, MARK, None]
    for kept in (LIVE, ENDING, ENDED, MARK):
        for user in ("alice", None):
            record = new_record(now, status=kept, user=user)
            records.append((yield from _given(record)))
    records.sort(key=lambda record: record.sid)
    for user in ("alice", None):
        for status in statuses:
            wanted = [
                record
                for record in records
                if status in (None, record.status) and user in (None, record.user)
            ]
            what = f"of user {user} and status {status}"
            expect_same((yield List(user, status)), wanted, f"list {what}")
            expect_same((yield Count(user, status)), len(wanted), f"count {what}")
    live = [record for record in records if record.status == LIVE]
    expect_same((yield List()), live, "list with no argument")
    expect_same((yield Count()), len(live), "count with no argument")


@check
def list_judges_no_deadline() -> Flow[None]:
    """`list` and `count` show also those past their deadline that no sweep has met."""
    record = yield from _given(_over(time.time(), user="alice"))
    expect_same((yield List()), [record], "list")
    expect_same((yield List("alice")), [record], "list of the user")
    expect_same((yield Count("alice")), 1, "count of the user")


# close


@check
def close_twice_is_once() -> Flow[None]:
    """`close` is idempotent; a later call opens the store again or raises an error of ours."""
    record = yield from _given(new_record(time.time()))
    yield Close()
    yield Close()
    try:
        answer = yield Load(record.sid)
    except SojournError:
        return
    expect(answer is None or answer == record, "load after close gave another record")
