"""Two callers of one store, every order of their calls, compared with the model.

No timing is involved: each check takes two short scripts and makes their calls in each of the
possible orders, one after another, on the store and on `ModelStore`. A store that remembers
something between two calls of one caller, or that judges by what it read before, gives itself
away.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from sojourn.core.calls import Call, Count, Create, Delete, Due, Flow, List, Load, Replace, Touch
from sojourn.core.record import ENDED, ENDING, LIVE, MARK, Ended, Record
from sojourn.testing.checking import check
from sojourn.testing.model import ModelStore
from sojourn.testing.records import expect_same, new_record, new_sid, next_version

__all__ = ["all_orders"]

Script = Callable[[Record, float], Flow[None]]
"""What one caller does with a session: a flow over the record as it was made, and the time."""


def all_orders(first: Script, second: Script, made: bool = True) -> Flow[None]:
    """Run two scripts in every order of their calls; each answer must be the model's.

    Args:
        first: what one caller does.
        second: what the other does.
        made: whether the session is there at the start.
    """
    now = time.time()
    for order in _orders(_length(first, now), _length(second, now)):
        model = ModelStore()
        record = new_record(now - 7200.0, deadline=now - 3600.0, user="alice")
        if made:
            yield from _on_both(Create(record), model, "before the scripts")
        scripts = (first(record, now), second(record, now))
        answers: list[Any] = [None, None]
        for position, caller in enumerate(order):
            try:
                call = scripts[caller].send(answers[caller])
            except StopIteration:
                continue
            when = f"call {position + 1} in the order {''.join('AB'[c] for c in order)}"
            answers[caller] = yield from _on_both(call, model, when)
        for call in (Load(record.sid), List(status=None), Count("alice"), Delete(record.sid)):
            yield from _on_both(call, model, f"after the order {''.join('AB'[c] for c in order)}")


def _on_both(call: Call, model: ModelStore, when: str) -> Flow[Any]:
    answer = yield call
    expect_same(answer, call.on(model), f"{type(call).__name__}, {when}")
    return answer


def _length(script: Script, now: float) -> int:
    """Count the calls of a script that runs alone."""
    model = ModelStore()
    record = new_record(now - 7200.0, deadline=now - 3600.0)
    model.create(record)
    flow, answer = script(record, now), None
    for count in itertools.count():
        try:
            answer = flow.send(answer).on(model)
        except StopIteration:
            return count
    raise AssertionError("unreachable")


def _orders(first: int, second: int) -> Iterator[tuple[int, ...]]:
    """Yield every way to lay two sequences of that many calls into one."""
    for places in itertools.combinations(range(first + second), first):
        yield tuple(0 if place in places else 1 for place in range(first + second))


# The scripts.


def _replaces(record: Record, now: float) -> Flow[None]:
    current = yield Load(record.sid)
    for _ in range(2):
        if not isinstance(current, Record):
            return
        newer = next_version(current, data=current.data + b"+", seen=now, deadline=now + 60.0)
        answer = yield Replace(newer, current.version)
        current = answer if isinstance(answer, Record) else newer


def _touches(record: Record, now: float) -> Flow[None]:
    current = yield Load(record.sid)
    if current is not None:
        yield Touch(record.sid, current.version, now, now + 3600.0)
        yield Load(record.sid)


def _creates(record: Record, now: float) -> Flow[None]:
    yield Create(record)
    yield Load(record.sid)


def _ends(record: Record, now: float) -> Flow[None]:
    yield Load(record.sid)
    yield Delete(record.sid, Ended(ENDED, "user", now, now + 86400.0))
    yield Load(record.sid)


def _begins_to_end(record: Record, now: float) -> Flow[None]:
    yield Delete(record.sid, Ended(ENDING, "user", now, now + 60.0))
    yield Delete(record.sid, Ended(ENDED, "operator", now + 1.0, now + 86400.0))


def _removes(record: Record, now: float) -> Flow[None]:
    yield Load(record.sid)
    yield Delete(record.sid)


def _sweeps(record: Record, now: float) -> Flow[None]:
    yield Due(now, 60.0)
    yield Due(now, 60.0)


def _sweeps_and_ends(record: Record, now: float) -> Flow[None]:
    for claimed in (yield Due(now, 60.0)):
        yield Delete(claimed.sid, Ended(ENDED, "idle", now, now + 86400.0))


# The pairs.


@check
def replace_and_replace_in_every_order() -> Flow[None]:
    """Two writers: the second of two replaces of one version gets the current record."""
    yield from all_orders(_replaces, _replaces)


@check
def replace_and_touch_in_every_order() -> Flow[None]:
    """A write and a touch: of one version only one is done, and neither undoes the other."""
    yield from all_orders(_replaces, _touches)


@check
def touch_and_touch_in_every_order() -> Flow[None]:
    """Two touches of one version: one is done."""
    yield from all_orders(_touches, _touches)


@check
def replace_and_delete_in_every_order() -> Flow[None]:
    """A write and an end of each kind: what comes after the end is gone."""
    for end in (_ends, _begins_to_end, _removes):
        yield from all_orders(_replaces, end)


@check
def touch_and_delete_in_every_order() -> Flow[None]:
    """A touch and an end of each kind: what comes after the end does nothing."""
    for end in (_ends, _begins_to_end, _removes):
        yield from all_orders(_touches, end)


@check
def delete_and_delete_in_every_order() -> Flow[None]:
    """Two ends of each kind: the one that went further stays."""
    for one, other in itertools.combinations_with_replacement((_ends, _begins_to_end, _removes), 2):
        yield from all_orders(one, other)


@check
def create_and_create_in_every_order() -> Flow[None]:
    """Two creates of one sid: one is done; a create after an end is refused."""
    yield from all_orders(_creates, _creates, made=False)
    yield from all_orders(_creates, _ends, made=False)
    yield from all_orders(_creates, _removes)


@check
def due_and_replace_in_every_order() -> Flow[None]:
    """A sweep and a write: either the write moved the deadline first, or it is gone."""
    yield from all_orders(_sweeps, _replaces)


@check
def due_and_touch_in_every_order() -> Flow[None]:
    """A sweep and a touch: either the touch moved the deadline first, or it does nothing."""
    yield from all_orders(_sweeps, _touches)


@check
def due_and_delete_in_every_order() -> Flow[None]:
    """A sweep and an end of each kind: what was ended is claimed no more."""
    for end in (_ends, _begins_to_end, _removes):
        yield from all_orders(_sweeps, end)


@check
def due_and_due_in_every_order() -> Flow[None]:
    """Two sweeps: each session goes to one of them."""
    yield from all_orders(_sweeps, _sweeps_and_ends)
    yield from all_orders(_sweeps_and_ends, _sweeps_and_ends)


@check
def any_calls_agree_with_the_model(steps: int = 400, seed: int | None = None) -> Flow[None]:
    """Any sequence of calls gets the answers that the model gives.

    Args:
        steps: how many calls.
        seed: of the sequence; a failure names the one to give here. Another each time by default.
    """
    seed = random.randrange(1 << 32) if seed is None else seed
    choose = random.Random(seed)
    model = ModelStore()
    now = time.time()
    sids = [new_sid() for _ in range(6)]
    for step in range(steps):
        now += choose.choice((0.0, 0.25, 1.0, 40.0))
        call = _any_call(choose, model, sids, now)
        when = f"step {step} of seed {seed}: {call}"
        answer = yield call
        right = call.on(model)
        if isinstance(call, Due):
            # How a store cuts pages is its own affair; what all pages give together is not.
            got, wanted = list(answer), list(right)
            while right:
                right = call.on(model)
                wanted += right
            while answer and len(got) <= len(wanted):
                answer = yield call
                got += answer
            answer = sorted(got, key=lambda record: record.sid)
            right = sorted(wanted, key=lambda record: record.sid)
        expect_same(answer, right, when)
    expect_same((yield List(status=None)), model.list(status=None), f"at the end of seed {seed}")


def _any_call(choose: random.Random, model: ModelStore, sids: list[str], now: float) -> Call:
    """Choose a call that is likely to meet something."""
    sid = choose.choice(sids)
    current = model.load(sid)
    version = current.version if current else 1
    expected = version + choose.choice((0, 0, 0, 0, -1, 1))
    deadline = now + choose.choice((-1.0, 0.0, 10.0, 100.0, 1000.0))
    user = choose.choice(("alice", "bob", None))
    verb = choose.choice((Load, Create, Create, Replace, Replace, Touch, Delete, Due, List, Count))
    if verb is Load:
        return Load(sid)
    if verb is Create:
        status = choose.choice((LIVE, LIVE, LIVE, LIVE, MARK, ENDING, ENDED))
        record = new_record(now, sid=sid, status=status, deadline=deadline, user=user)
        return Create(record)
    if verb is Replace:
        base = current if current is not None else new_record(now, sid=sid)
        data = choose.randbytes(choose.randrange(60))
        newer = next_version(base, data=data, deadline=deadline, user=user)
        return Replace(newer, expected)
    if verb is Touch:
        # A touch extends; what one that shortens would mean for `due`, the contract leaves open.
        return Touch(sid, expected, now, max(deadline, current.deadline if current else 0.0))
    if verb is Delete:
        # What ENDING means for a mark, the contract leaves open.
        kinds = (ENDED,) if current and current.status == MARK else (ENDING, ENDED)
        ended = Ended(choose.choice(kinds), choose.choice(("user", "idle")), now, deadline)
        return Delete(sid, choose.choice((ended, ended, ended, None)))
    if verb is Due:
        return Due(now, choose.choice((1.0, 50.0)), choose.choice((1, 2, 100)))
    status_asked = choose.choice((LIVE, LIVE, ENDING, ENDED, MARK, None))
    if verb is List:
        return List(user, status_asked, choose.choice(("", sid)), choose.choice((1, 3, 100)))
    return Count(user, status_asked)
