"""A live move: the contract in every phase, both stores equal, and every way to break off."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from msgspec.structs import replace as changed

from sojourn import SessionManager
from sojourn.core.calls import GONE, SAVED, Flow, Pause
from sojourn.core.record import ENDED, ENDING, LIVE, MARK, Ended, Record
from sojourn.drivers import run
from sojourn.errors import ConfigurationError, Conflict, SojournError, StoreUnavailable
from sojourn.stores import open_async_store, open_store, phases
from sojourn.stores.copying import compare
from sojourn.stores.memory import MemoryStore
from sojourn.stores.moving import AsyncMovingStore, MovingStore, from_url
from sojourn.stores.pair import MOVING, Joined, Row, same
from sojourn.stores.threaded import ThreadedStore
from sojourn.testing import (
    CHECKS,
    Check,
    Clock,
    Crash,
    Fault,
    FlakyStore,
    arun_check,
    at,
    new_record,
    next_version,
    run_check,
)

NOW = time.time()
DUAL = ("old leads", "new leads")
STEADY = ("old", "old leads", "new leads", "new")


def silent(what: str) -> Callable[[int], None]:
    return lambda done: None


def quick(flow: Flow[Any], stores: Any) -> None:
    """Run a step that need not wait for workers: there are none, or they know of it."""
    answer: Any = None
    with contextlib.suppress(StopIteration):
        call = next(flow)
        while True:
            try:
                answer = None if type(call) is Pause else call.on(stores)
            except SojournError as error:
                call = flow.throw(error)
            else:
                call = flow.send(answer)


def phase_of(old: Any, new: Any) -> str:
    return str(run(phases.state(), (old, new)).phase)


def lead_to(phase: str, old: Any, new: Any) -> None:
    while phase_of(old, new) != phase:
        quick(phases.advance(silent), (old, new))


def rows(old: Any, new: Any) -> list[Row]:
    joined, found = Joined(), []
    while page := run(joined.next(), (old, new)):
        found += page
    return found


def differences(old: Any, new: Any, leader: str) -> list[Row]:
    """What the stores do not agree on, but for fences and marks that the leader let go of."""
    found = []
    for row in rows(old, new):
        ahead, behind = (row.old, row.new) if leader.startswith("old") else (row.new, row.old)
        let_go = ahead is None and behind is not None and behind.status in (ENDED, MARK)
        if not same(ahead, behind) and not let_go:
            found.append(row)
    return found


def ended(status: int = ENDED, reason: str = "user") -> Ended:
    return Ended(status, reason, NOW, NOW + 3600.0)


# The contract, and that both are equal after it.


@pytest.mark.parametrize("phase", STEADY)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_on_memory(check: Check, phase: str) -> None:
    """In each phase it is a store like any other; where both are written, both are equal."""
    old, new = MemoryStore(), MemoryStore()
    lead_to(phase, old, new)
    run_check(check, MovingStore(old, new))

    if phase in DUAL:
        assert differences(old, new, phase) == []


@pytest.fixture
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the checks from waiting for the disk at each end of a session."""
    from sojourn.stores.sqlite import _Connection

    monkeypatch.setattr(_Connection, "_durably", lambda self: contextlib.nullcontext())


@pytest.mark.parametrize("phase", STEADY)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_on_sqlite(check: Check, phase: str, tmp_path: Path, no_disk: None) -> None:
    """The same on two files."""
    old, new = (open_store(f"sqlite:///{tmp_path}/{name}.db") for name in ("old", "new"))
    lead_to(phase, old, new)
    with contextlib.closing(MovingStore(old, new)) as store:
        run_check(check, store)

        if phase in DUAL:
            assert differences(old, new, phase) == []


@pytest.mark.anyio
@pytest.mark.parametrize("phase", DUAL)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_contract_of_the_asynchronous_one(check: Check, phase: str) -> None:
    """The same for event loops."""
    old, new = MemoryStore(), MemoryStore()
    lead_to(phase, old, new)
    await arun_check(check, AsyncMovingStore(ThreadedStore(old), ThreadedStore(new)))

    assert differences(old, new, phase) == []


# Broken off between two writes.

VERBS: dict[str, Callable[[Any, Record], Any]] = {
    "create": lambda store, record: store.create(changed(record, sid=record.sid[::-1], user="bob")),
    "replace": lambda store, record: store.replace(next_version(record, data=b"newer"), 1),
    "touch": lambda store, record: store.touch(record.sid, 1, NOW + 1.0, NOW + 7200.0),
    "delete": lambda store, record: store.delete(record.sid, ended()),
    "make ending": lambda store, record: store.delete(record.sid, ended(ENDING)),
    "remove": lambda store, record: store.delete(record.sid),
    "due": lambda store, record: store.due(record.deadline + 1.0, 60.0),
}


class Crashing:
    """A plan: the process ends before that call, counted over both stores and all verbs."""

    def __init__(self, call: int) -> None:
        self.left = call
        self.ready = False

    def __call__(self, verb: str, number: int) -> Fault | None:
        self.left -= self.ready
        return Fault.CRASH_BEFORE if self.left == 0 else None


@pytest.mark.parametrize("phase", DUAL)
@pytest.mark.parametrize("verb", VERBS)
def test_broken_off_anywhere(verb: str, phase: str) -> None:
    """A crash before each of its calls; then the other store takes the lead, or the next comes.

    Nothing that had ended lives, nothing that lived is gone, what others wrote before is there.
    """
    for call in range(1, 30):
        old, new = MemoryStore(), MemoryStore()
        lead_to(phase, old, new)
        record, other = new_record(NOW, user="alice"), new_record(NOW + 9000.0)
        store = MovingStore(old, new)
        store.create(record)
        store.create(other)
        plan = Crashing(call)
        broken = MovingStore(FlakyStore(old, plan), FlakyStore(new, plan))
        broken.count()
        plan.ready = True
        try:
            VERBS[verb](broken, record)
        except Crash:
            pass
        else:
            break
        leads, follows = (old, new) if phase == "old leads" else (new, old)
        here, there = leads.load(record.sid), follows.load(record.sid)
        # No end is in the leader that the follower has not (what a sweep ends is over anyway).
        if verb != "due" and (here is None or here.status != LIVE):
            assert there is None or there.status != LIVE
        unreported = verb != "create" and there is not None and there.status != LIVE
        # The next access finishes it.
        if verb == "create":
            VERBS[verb](store, record)
        elif here is not None and here.status == LIVE:
            late = store._verbs.replace(next_version(here, data=b"next"), here.version)
            quick(late, (old, new))
        else:
            store.delete(record.sid, ended())
        assert differences(old, new, phase) == [], f"{verb}, call {call}"
        if unreported:
            # It is carried to the other side, and not taken back on this one.
            last = store.load(record.sid)
            assert last is None or last.status != LIVE
        assert store.load(other.sid) == other
    else:
        raise AssertionError("it never came to its end")
    assert call > 2


@pytest.mark.parametrize("phase", DUAL)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.LOST_REPLY])
def test_one_store_fails(verb: str, phase: str, fault: Fault) -> None:
    """Nothing is reported that only one store has: it raises, and done again it is in both."""
    for failing in (0, 1):
        old, new = MemoryStore(), MemoryStore()
        lead_to(phase, old, new)
        record = new_record(NOW, user="alice")
        MovingStore(old, new).create(record)
        word = {"make ending": "delete", "remove": "delete"}.get(verb, verb)
        stores: list[Any] = [old, new]
        stores[failing] = FlakyStore(stores[failing], at(word, fault))
        store = MovingStore(*stores)
        if verb == "due" and (fault is Fault.LOST_REPLY or failing == (phase == "old leads")):
            continue  # The follower is not asked; what was claimed comes again after the lease.
        with pytest.raises(StoreUnavailable):
            VERBS[verb](store, record)
        VERBS[verb](store, record)

        assert differences(old, new, phase) == []


class Held:
    """A store that stops before a verb, as a process does that is suspended there."""

    def __init__(self, store: Any, verb: str) -> None:
        self._store, self._verb = store, verb
        self.promises = store.promises
        self.meanwhile: Callable[[], object] | None = None

    def __getattr__(self, name: str) -> Any:
        if name == self._verb and self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        return getattr(self._store, name)


def test_a_removal_while_the_session_is_made() -> None:
    """Where nobody keeps tombstones, who ends all sessions of a user may be that quick."""
    old, new = MemoryStore(), MemoryStore()
    lead_to("old leads", old, new)
    record = new_record(NOW)
    held = Held(new, "create")
    held.meanwhile = lambda: MovingStore(old, new).delete(record.sid)
    MovingStore(old, held).create(record)

    assert old.load(record.sid) is None
    assert new.load(record.sid) is None


def test_a_removal_while_the_session_is_brought_over() -> None:
    """It is removed in the new store, put there again by a back-fill, and removed in the old."""
    old, new = MemoryStore(), MemoryStore()
    lead_to("old leads", old, new)
    record = new_record(NOW)
    MovingStore(old, new).create(record)
    held = Held(old, "delete")
    held.meanwhile = lambda: quick(phases.fill(lambda done: None), (old, new))
    MovingStore(held, new).delete(record.sid)

    assert old.load(record.sid) is None
    assert new.load(record.sid) is None


# Old knowledge.


def hold_on(clock: Clock, phase: str, old: Any, new: Any) -> Callable[[], None]:
    """What others do while a worker hangs: so much time passes, and the move goes on."""

    def meanwhile() -> None:
        lead_to(phase, old, new)
        clock.advance(60.0)

    return meanwhile


@pytest.mark.parametrize(
    ("before", "after"), [("old", "old leads"), ("old", "new leads"), ("old leads", "new leads")]
)
def test_a_worker_with_old_knowledge_reports_nothing(before: str, after: str) -> None:
    """It hangs in a write while the move goes on; the write is done again where it counts now."""
    for verb in ("create", "replace", "touch", "delete"):
        old, new, clock = MemoryStore(), MemoryStore(), Clock()
        lead_to(before, old, new)
        held = Held(old, verb)
        store = MovingStore(held, new, clock)
        record = new_record(NOW)
        MovingStore(old, new).create(record)
        store.count()
        held.meanwhile = hold_on(clock, after, old, new)
        VERBS[verb](store, record)

        assert phase_of(old, new) == after
        sid = record.sid[::-1] if verb == "create" else record.sid
        here, there = old.load(sid), new.load(sid)
        assert here is not None
        assert same(here, there)
        assert here.version == (1 if verb == "create" else 2)
        assert here.status == (ENDED if verb == "delete" else LIVE)


def test_two_phases_side_by_side() -> None:
    """A worker that still knows the phase before and one that knows the next agree."""
    for before, after in (("old", "old leads"), ("old leads", "old")):
        clock = Clock()
        old, new = MemoryStore(), MemoryStore()
        lead_to("old leads" if before == "old leads" else "old", old, new)
        late = MovingStore(old, new, clock)
        late.count()
        quick(phases.advance(silent) if after == "old leads" else phases.back(), (old, new))
        early = MovingStore(old, new, clock)
        record = new_record(NOW)
        assert late.create(record)
        assert early.load(record.sid) == record
        second = next_version(record, data=b"second")
        assert early.replace(second, 1) is SAVED
        assert late.load(record.sid) == second
        assert late.replace(next_version(record), 1) == second
        assert late.delete(record.sid, ended())
        assert early.replace(next_version(second), 2) is GONE


def test_knowledge_is_fresh() -> None:
    """A worker asks for the phase again after half a second, and never once the move is over."""
    clock = Clock()
    old, new = MemoryStore(), MemoryStore()
    asked: list[str] = []
    store = MovingStore(FlakyStore(old, lambda verb, number: asked.append(verb)), new, clock)
    sid = new_record(NOW).sid
    for _ in range(3):
        store.load(sid)
    assert asked == ["load"] * 4
    clock.advance(phases.REFRESH)
    store.load(sid)
    assert asked == ["load"] * 6
    lead_to("new", old, new)
    clock.advance(phases.REFRESH)
    store.load(sid)
    asked.clear()
    clock.advance(1e6)
    store.load(sid)
    assert asked == []


def test_calls_wait_while_the_stores_switch() -> None:
    """They answer under the next phase; also when the process that began the switch is dead."""
    old, new = MemoryStore(), MemoryStore()
    lead_to("old leads", old, new)
    record = new_record(NOW)
    store = MovingStore(old, new)
    store.create(record)
    broken = phases.advance(silent)
    call = next(broken)
    answer: Any = None
    while phase_of(old, new) != "switching":
        answer = None if type(call) is Pause else call.on((old, new))
        call = broken.send(answer)
    broken.close()
    begun = time.monotonic()
    other = MovingStore(old, new)

    assert other.replace(next_version(record), 1) is SAVED
    assert time.monotonic() - begun >= phases.PATIENCE
    assert phase_of(old, new) == "new leads"
    assert differences(old, new, "new leads") == []


# Steps.


def filled(number: int = 300) -> MemoryStore:
    store = MemoryStore()
    for index in range(number):
        record = new_record(NOW, user=f"user{index % 9}")
        store.create(record)
        if index % 5 == 0:
            store.delete(record.sid, ended((ENDING, ENDED)[index % 2]))
    store.create(new_record(NOW, status=MARK, secret_hash=b""))
    return store


def test_all_is_brought_over_before_the_new_one_decides() -> None:
    """Of every status; and the digests of both stores are the same number."""
    old, new = filled(), MemoryStore()
    lead_to("old leads", old, new)
    first, last = quick_answer(phases.advance(silent), (old, new))

    assert (first.records, first.brought) == (301, 301)
    assert (last.records, last.brought) == (301, 0)
    assert last.digest == last.new_digest != 0
    assert run(compare(lambda done: None), (old, new)).different == []
    assert phase_of(old, new) == "new leads"


def quick_answer(flow: Flow[Any], stores: Any) -> Any:
    def kept() -> Flow[None]:
        answers.append((yield from flow))

    answers: list[Any] = []
    quick(kept(), stores)
    return answers[0]


def test_nothing_is_removed_that_is_just_being_made() -> None:
    """The verification meets a session that one store has and the other does not have yet."""
    old, new = MemoryStore(), MemoryStore()
    lead_to("old leads", old, new)
    record = new_record(NOW)
    held = Held(new, "create")
    held.meanwhile = lambda: quick(phases.fill(lambda done: None), (old, new))
    store = MovingStore(old, held)

    assert store.create(record)
    assert new.load(record.sid) == record


def test_back_from_each_phase_but_the_last() -> None:
    """All that was written meanwhile is in the store that one goes back to."""
    old, new = filled(), MemoryStore()
    store = MovingStore(old, new, lambda: next(ticks))
    ticks = iter(range(0, 10**9, 60))
    records = [new_record(NOW) for _ in range(5)]
    for phase in ("old", "old leads", "new leads"):
        lead_to(phase, old, new)
        assert store.create(records[0])
        gone = store.list()[3]
        store.delete(gone.sid, ended())
        for _ in range(("old", "old leads", "new leads").index(phase)):
            quick(phases.back(), (old, new))
        assert phase_of(old, new) == "old"
        assert old.load(records.pop(0).sid)
        assert getattr(old.load(gone.sid), "status", None) == ENDED


def test_what_ended_after_going_back_does_not_rise_in_a_second_attempt() -> None:
    """Sessions end in the old store, their tombstones go, and the new one still has them."""
    old, new = MemoryStore(), MemoryStore()
    record = new_record(NOW)
    old.create(record)
    lead_to("new leads", old, new)
    quick(phases.back(), (old, new))
    quick(phases.back(), (old, new))
    old.delete(record.sid, ended())
    assert old.due(NOW + 7200.0, 60.0) == []
    assert old.load(record.sid) is None
    assert new.load(record.sid) is not None
    lead_to("new leads", old, new)

    assert MovingStore(old, new).load(record.sid) is None


def test_no_way_back_from_the_last() -> None:
    """It says why, and what else can be done."""
    old, new = filled(), MemoryStore()
    lead_to("new", old, new)
    with pytest.raises(ConfigurationError, match="missed"):
        quick(phases.back(), (old, new))
    with pytest.raises(ConfigurationError, match="over"):
        quick(phases.advance(silent), (old, new))
    with pytest.raises(ConfigurationError, match="nothing to go back"):
        quick(phases.back(), (MemoryStore(), MemoryStore()))


def test_the_old_store_may_go_when_it_is_over() -> None:
    """A worker that starts afterwards asks the new store alone; before, it refuses to guess."""
    gone = FlakyStore(MemoryStore(), lambda verb, number: Fault.UNAVAILABLE)
    for phase in STEADY:
        old, new = filled(), MemoryStore()
        lead_to(phase, old, new)
        store = MovingStore(gone, new)
        if phase == "new":
            assert store.count() == new.count()
        else:
            with pytest.raises(StoreUnavailable):
                store.count()


def test_back_while_the_new_store_is_down() -> None:
    """That is what going back is for."""
    gone = FlakyStore(MemoryStore(), lambda verb, number: Fault.UNAVAILABLE)
    for phase in DUAL:
        old, new = filled(), MemoryStore()
        lead_to(phase, old, new)
        for _ in range(DUAL.index(phase) + 1):
            quick(phases.back(), (old, gone))
        assert phase_of(old, new) == "old"
        # What it holds is of before; that it is to be emptied must be said when it is up.
        with pytest.raises(ConfigurationError, match="sojourn move back"):
            quick(phases.advance(silent), (old, new))
        with pytest.raises(ConfigurationError, match="nothing to go back"):
            quick(phases.back(), (old, new))
        lead_to("new leads", old, new)
        assert differences(old, new, "new leads") == []


def test_a_move_begins_with_an_empty_store() -> None:
    """What another store holds might come to life again."""
    with pytest.raises(ConfigurationError, match="301 records"):
        quick(phases.advance(silent), (filled(), filled()))


def test_the_wrong_way_round() -> None:
    """Both for a worker and for the command."""
    old, new = filled(), MemoryStore()
    lead_to("old leads", old, new)
    with pytest.raises(ConfigurationError, match="wrong way round"):
        MovingStore(new, old).count()
    with pytest.raises(ConfigurationError, match="wrong way round"):
        quick(phases.advance(silent), (new, old))
    with pytest.raises(ConfigurationError, match="takes part"):
        MovingStore(MemoryStore(), new).count()
    with pytest.raises(ConfigurationError, match="takes part"):
        quick(phases.advance(silent), (MemoryStore(), old))


def test_move_on_from_where_a_move_ended() -> None:
    """The target of a move that is over is the source of the next."""
    first, second, third = filled(), MemoryStore(), MemoryStore()
    lead_to("new", first, second)
    wanted = second.list(None, None, "", 1000)
    lead_to("new", second, third)

    assert MovingStore(second, third).list(None, None, "", 1000) == [
        record for record in wanted if record.sid != MOVING
    ]


def test_two_operators_at_once() -> None:
    """The second is told, and has done nothing."""
    old, new = filled(), MemoryStore()
    lead_to("old leads", old, new)
    first = phases.advance(silent)
    call, answer = next(first), None
    for _ in range(8):
        answer = None if type(call) is Pause else call.on((old, new))
        call = first.send(answer)
    quick(phases.back(), (old, new))

    def go_on() -> None:
        nonlocal call
        while True:
            answer = None if type(call) is Pause else call.on((old, new))
            call = first.send(answer)

    with pytest.raises(Conflict, match="somebody else"):
        go_on()
    assert phase_of(old, new) == "old"


# By URL.


def moving_url(old: str, new: str) -> str:
    return f"moving:?old={quote(old, safe='')}&new={quote(new, safe='')}"


def test_a_manager_uses_it_by_url(tmp_path: Path) -> None:
    """A session lives through the move, in blocking and in asynchronous code."""
    urls = f"sqlite:///{tmp_path}/a.db?synchronous=full", f"directory:///{tmp_path}/b"
    sessions = SessionManager(moving_url(*urls))
    assert isinstance(sessions.store, MovingStore)
    assert isinstance(open_async_store(moving_url(*urls)), AsyncMovingStore)
    assert (sessions.store.promises.survives, sessions.store.promises.shared) == ("kill", "host")
    session = sessions.session()
    session["n"] = 1
    token = sessions.commit(session).token
    sessions.close()
    lead_to("new", open_store(urls[0]), open_store(urls[1]))

    assert SessionManager(urls[1]).session(f"id={token}")["n"] == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("moving:", "has nothing"),
        ("moving:?old=memory:", "has old"),
        ("moving:?old=memory:&new=memory:", "same store twice"),
        ("moving:?old=memory:&new=", "has old, new"),
        ("moving:?old=memory:&new=sqlite:x&more=1", "more"),
        ("moving://host?old=memory:&new=sqlite:x", "host"),
        ("moving:?old=memory:&new=nothing:x", "no store is known"),
    ],
)
def test_urls_that_cannot_be(url: str, words: str) -> None:
    """What came and what is allowed; never the URL, which may hold a password."""
    with pytest.raises(ConfigurationError, match=words):
        from_url(url)


def test_the_cookie_store_cannot_be_moved(tmp_path: Path) -> None:
    """The browsers hold its sessions."""
    cookie = pytest.importorskip("sojourn.stores.cookie")
    (tmp_path / "keys").write_text("MDEyMzQ1Njc4OWFiY2RlZmdoaWprbG1ub3BxcnN0dXY")
    store = cookie.from_url(f"cookie:///{tmp_path}/keys")
    with pytest.raises(ConfigurationError, match="neither from nor to"):
        MovingStore(MemoryStore(), store)
