"""Many callers of one store at the same time: threads, or tasks on an event loop.

The numbers are arguments with small defaults; more trials are a `functools.partial` away.
"""

from __future__ import annotations

import time

from sojourn.core.calls import GONE, SAVED, Create, Delete, Due, Flow, Load, Replace, Touch
from sojourn.core.record import ENDED, ENDING, Ended, Record
from sojourn.testing.checking import Together, check
from sojourn.testing.records import expect, expect_same, new_record, next_version

__all__ = [
    "claimed_or_extended",
    "nothing_rises_after_logout",
    "one_create_wins",
    "one_sweep_claims_each",
    "one_touch_wins",
    "racing_increments_are_all_kept",
]


@check
def racing_increments_are_all_kept(callers: int = 8, rounds: int = 20) -> Flow[None]:
    """Callers that add one by `replace`, retrying on the current record, lose no increment."""
    record = new_record(time.time(), data=b"0")
    yield Create(record)

    def add() -> Flow[None]:
        current = yield Load(record.sid)
        for _ in range(rounds):
            while True:
                number = str(int(current.data) + 1).encode()
                newer = next_version(current, data=number)
                answer = yield Replace(newer, current.version)
                if answer is SAVED:
                    current = newer
                    break
                expect(answer is not GONE, "replace of a live record answered GONE")
                current = answer

    yield Together([add() for _ in range(callers)])
    last = yield Load(record.sid)
    total = callers * rounds
    lost = total - int(last.data)
    expect(lost == 0, f"{lost} of {total} increments were lost")
    expect_same(last.version, total + 1, "version after the increments")


@check
def one_create_wins(callers: int = 6, trials: int = 10) -> Flow[None]:
    """Of callers that create one sid at the same time, one gets True, and its record is kept."""
    now = time.time()
    for _ in range(trials):
        sid = new_record(now).sid
        records = [new_record(now, sid=sid, data=b"%d" % i) for i in range(callers)]
        answers = yield Together([_ask_create(record) for record in records])
        winners = [record for record, won in zip(records, answers, strict=True) if won]
        expect(len(winners) == 1, f"{len(winners)} of {callers} creates of one sid answered True")
        expect_same((yield Load(sid)), winners[0], "load after racing creates")


@check
def one_touch_wins(callers: int = 6, trials: int = 10) -> Flow[None]:
    """Of callers that touch one version at the same time, one gets True."""
    now = time.time()
    for _ in range(trials):
        record = new_record(now)
        yield Create(record)
        touches = [_ask_touch(record.sid, 1, now + i, now + 3600.0 + i) for i in range(callers)]
        answers = yield Together(touches)
        expect_same(answers.count(True), 1, "how many touches of one version answered True")
        winner = answers.index(True)
        wanted = next_version(record, seen=now + winner, deadline=now + 3600.0 + winner)
        expect_same((yield Load(record.sid)), wanted, "load after racing touches")


@check
def nothing_rises_after_logout(trials: int = 20) -> Flow[None]:
    """A logout against late writes and touches: in the end the session has ended."""
    now = time.time()
    kinds = [
        Ended(ENDED, "user", now, now + 3600.0),
        Ended(ENDING, "user", now, now + 3600.0),
        None,
    ]
    for trial in range(trials):
        record = new_record(now, user="alice")
        yield Create(record)
        ended = kinds[trial % len(kinds)]
        answers = yield Together(
            [
                _writes(record),
                _touches(record, now),
                _ends(record, ended),
                _writes(record),
            ]
        )
        expect_same(answers[2], True, "delete of a live session")
        last = yield Load(record.sid)
        if ended is None:
            expect_same(last, None, "load after racing writes and a removal")
        else:
            expect(
                last is not None and last.status == ended.status,
                f"a session that was ended rose again: {last}",
            )
            expect_same(last.reason, "user", "reason of a session that was ended")
        if ended is not None and ended.status == ENDED:
            expect_same((last.data, last.user), (b"", None), "data and user of a tombstone")


@check
def one_sweep_claims_each(callers: int = 4, sessions: int = 40) -> Flow[None]:
    """Sweeps that run at the same time claim each session once between them."""
    now = time.time()
    records = [new_record(now - 7200.0, deadline=now - i) for i in range(sessions)]
    for record in records:
        yield Create(record)
    pages = yield Together([_sweep(now) for _ in range(callers)])
    claimed = sorted(sid for page in pages for sid in page)
    expect_same(claimed, sorted(r.sid for r in records), "the sids that all sweeps claimed")


@check
def claimed_or_extended(trials: int = 20) -> Flow[None]:
    """A sweep against a touch, and against a write: one of the two has it, never both."""
    now = time.time()
    for trial in range(trials):
        record = new_record(now - 3600.0, deadline=now)
        yield Create(record)
        if trial % 2:
            extend = _ask_touch(record.sid, 1, now, now + 3600.0)
        else:
            extend = _ask_replace(next_version(record, deadline=now + 3600.0), 1)
        claimed, extended = yield Together([_sweep(now), extend])
        last = yield Load(record.sid)
        if extended:
            expect_same(claimed, [], "what a sweep claimed of a session that was extended")
            expect_same(last.deadline, now + 3600.0, "deadline of a session that was extended")
        else:
            expect_same(claimed, [record.sid], "what a sweep claimed")
            expect_same(last.status, ENDING, "status of a session that was claimed")
        yield Delete(record.sid)


def _ask_create(record: Record) -> Flow[bool]:
    won: bool = yield Create(record)
    return won


def _ask_touch(sid: str, version: int, seen: float, deadline: float) -> Flow[bool]:
    won: bool = yield Touch(sid, version, seen, deadline)
    return won


def _ask_replace(record: Record, expected_version: int) -> Flow[bool]:
    return (yield Replace(record, expected_version)) is SAVED


def _writes(record: Record, times: int = 25) -> Flow[None]:
    """Write again and again; a store's lock need not be fair, so not until the end comes."""
    current = record
    for _ in range(times):
        newer = next_version(current, data=b"late", user="alice")
        answer = yield Replace(newer, current.version)
        if answer is GONE:
            return
        current = newer if answer is SAVED else answer


def _touches(record: Record, now: float, times: int = 25) -> Flow[None]:
    for _ in range(times):
        current = yield Load(record.sid)
        if current is None or current.status != record.status:
            return
        yield Touch(record.sid, current.version, now + 1.0, now + 3600.0)


def _ends(record: Record, ended: Ended | None) -> Flow[bool]:
    """End it in the midst of the others' writes."""
    for _ in range(5):
        yield Load(record.sid)
    done: bool = yield Delete(record.sid, ended)
    return done


def _sweep(now: float) -> Flow[list[str]]:
    sids: list[str] = []
    for _ in range(1000):
        page = yield Due(now, 600.0, 7)
        if not page:
            return sids
        sids += [record.sid for record in page]
    raise AssertionError("due never answered with an empty list; the same sessions come again")
