"""Merging: requests at once are as good as one after another, in the order of their commits."""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sojourn.core import codec, flows
from sojourn.core.calls import Call
from sojourn.core.operations import Changes, Kind, Operation, apply, merge, patch
from sojourn.core.state import Add, Append, Max, Union
from sojourn.errors import Conflict, InvalidValue


@dataclass
class Shared:
    count: Annotated[int, Add] = 0
    best: Annotated[int, Max] = 0
    log: Annotated[list[int], Append] = field(default_factory=list)
    tags: Annotated[set[str], Union] = field(default_factory=set)
    notes: Annotated[dict[str, int], Union] = field(default_factory=dict)
    plain: str = ""


# Each operation as a pair: done to a session, and to a plain model of one. A model is a dict of
# values, with flash messages and the state under keys of their own. None of them looks at what is
# there, so that running the requests one after another is the one right answer.

KEYS = st.sampled_from(["a", "b", "c"])
NUMBERS = st.integers(-5, 5)
NUMERIC, LISTS, SETS = "number", "list", "set"


def step_set(key: str, value: Any) -> Any:
    def on_session(session: Any) -> None:
        session[key] = copy.deepcopy(value)

    def on_model(model: dict[str, Any]) -> None:
        model[key] = copy.deepcopy(value)

    return (f"set {key}={value!r}", on_session, on_model)


def step_delete(key: str) -> Any:
    return (
        f"delete {key}",
        # Where the request does not see the key, it has nothing to delete.
        lambda session: session.pop(key, None) if key in session else None,
        lambda model: model.pop(key, None),
    )


def step_add(amount: int) -> Any:
    def on_model(model: dict[str, Any]) -> None:
        model[NUMERIC] = model.get(NUMERIC, 0) + amount

    return (f"add {amount}", lambda session: session.add(NUMERIC, amount), on_model)


def step_append(items: list[int]) -> Any:
    def on_model(model: dict[str, Any]) -> None:
        model[LISTS] = [*model.get(LISTS, []), *items]

    return (f"append {items}", lambda session: session.append(LISTS, *items), on_model)


def step_union(items: set[int]) -> Any:
    def on_model(model: dict[str, Any]) -> None:
        model[SETS] = model.get(SETS, set()) | items

    return (f"union {items}", lambda session: session.union(SETS, items), on_model)


def step_max(value: int) -> Any:
    def on_model(model: dict[str, Any]) -> None:
        model["max"] = max(model.get("max", value), value)

    return (f"max {value}", lambda session: session.max("max", value), on_model)


def step_reset(key: str, value: Any) -> Any:
    """Set a key that others merge into: what they do counts on top of it, or before it."""
    return (
        f"reset {key}",
        lambda session: session.__setitem__(key, copy.deepcopy(value)),
        lambda model: model.__setitem__(key, copy.deepcopy(value)),
    )


def step_clear() -> Any:
    return ("clear", lambda session: session.clear(), lambda model: model.clear())


def step_flash(message: str) -> Any:
    def on_model(model: dict[str, Any]) -> None:
        model["\0flash"] = [*model.get("\0flash", []), message]

    return (f"flash {message}", lambda session: session.flash(message), on_model)


STEPS = st.one_of(
    st.builds(step_set, KEYS, st.none() | NUMBERS | st.lists(NUMBERS, max_size=2)),
    st.builds(step_delete, KEYS),
    st.builds(step_add, NUMBERS),
    st.builds(step_append, st.lists(NUMBERS, max_size=2)),
    st.builds(step_union, st.sets(NUMBERS, max_size=2)),
    st.builds(step_max, NUMBERS),
    st.builds(step_reset, st.just(NUMERIC), NUMBERS),
    st.builds(step_reset, st.just(LISTS), st.lists(NUMBERS, max_size=2)),
    st.builds(step_clear),
    st.builds(step_flash, st.sampled_from(["one", "two"])),
)
REQUESTS = st.lists(STEPS, max_size=6)
# All of these keys are there, so that no request deletes what it does not see.
START = {"a": 1, "b": [1], "c": None, NUMERIC: 1, LISTS: [0], SETS: {0}, "max": 0}


class Running:
    """A request whose commit is made call by call."""

    def __init__(self, world: Any, session: Any) -> None:
        self.world = world
        self.flow = flows.commit(session, world.env)
        self.call: Call | None = None
        self.result: Any = None
        self._go(None)

    def _go(self, answer: Any) -> None:
        try:
            self.call = self.flow.send(answer)
        except StopIteration as stop:
            self.call, self.result = None, stop.value

    def step(self) -> bool:
        """Make the next call; returns whether it was a write that was kept."""
        assert self.call is not None
        before = self.world.store.count(status=None), self.version()
        answer = None if type(self.call).__name__ == "Pause" else self.call.on(self.world.store)
        self._go(answer)
        return before != (self.world.store.count(status=None), self.version())

    def version(self) -> int:
        record = self.world.store.load(self.world.sid)
        return -1 if record is None else record.version


def run_at_once(world: Any, token: Any, requests: list[Any], schedule: list[int]) -> list[int]:
    """Load all sessions first, do what the requests do, then make their calls in that order.

    Returns the order in which the commits were kept; requests that wrote nothing come last.
    """
    world.sid = token.sid
    sessions = [world.open(token) for _ in requests]
    for session in sessions:
        session.get("a")
    for session, request in zip(sessions, requests, strict=True):
        for _, on_session, _ in request:
            on_session(session)
    running = [Running(world, session) for session in sessions]
    order: list[int] = []
    turns = iter(schedule)
    while any(one.call for one in running):
        alive = [number for number, one in enumerate(running) if one.call]
        number = alive[next(turns, 0) % len(alive)]
        if running[number].step() and number not in order:
            order.append(number)
    return order + [number for number in range(len(requests)) if number not in order]


def seen(world: Any, token: Any) -> tuple[list[tuple[str, Any]], list[str]]:
    session = world.open(token)
    return list(session.items()), session.peek_flash()


@settings(max_examples=600)
@given(st.lists(REQUESTS, min_size=2, max_size=3), st.lists(st.integers(0, 5), max_size=12))
def test_as_good_as_one_after_another(
    make_world: Any, requests: list[Any], schedule: list[int]
) -> None:
    """Two or three requests at once: the values and their order are those of a serial run.

    Their calls on the store are interleaved in any way; the serial order is that of the commits.
    """
    world = make_world()
    token = world.visit(**copy.deepcopy(START))
    order = run_at_once(world, token, requests, schedule)
    model = copy.deepcopy(START)
    for number in order:
        for _, _, on_model in requests[number]:
            on_model(model)

    messages = model.pop("\0flash", [])

    assert seen(world, token) == (list(model.items()), messages)


@settings(max_examples=300)
@given(st.lists(REQUESTS, min_size=2, max_size=2), st.lists(st.integers(0, 5), max_size=12))
def test_one_after_another_really(
    make_world: Any, requests: list[Any], schedule: list[int]
) -> None:
    """The same with real requests as the model: one world at once, one world in turn."""
    at_once, in_turn = make_world(), make_world()
    first = at_once.visit(**copy.deepcopy(START))
    second = in_turn.visit(**copy.deepcopy(START))
    for number in run_at_once(at_once, first, requests, schedule):
        session = in_turn.open(second)
        for _, on_session, _ in requests[number]:
            on_session(session)
        in_turn.commit(session)

    assert seen(at_once, first) == seen(in_turn, second)


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("count"), NUMBERS),
        st.tuples(st.just("best"), NUMBERS),
        st.tuples(st.just("log"), NUMBERS),
        st.tuples(st.sampled_from(["tag", "untag"]), st.sampled_from("xyz")),
        st.tuples(st.sampled_from(["note", "unnote"]), st.sampled_from("xyz")),
    ),
    max_size=6,
)


def change(shared: Shared, changes: list[tuple[str, Any]]) -> None:
    for what, value in changes:
        if what == "count":
            shared.count += value
        elif what == "best":
            shared.best = max(shared.best, value)
        elif what == "log":
            shared.log.append(value)
        elif what == "tag":
            shared.tags.add(value)
        elif what == "untag":
            shared.tags.discard(value)
        elif what == "note":
            shared.notes[value] = 7
        else:
            shared.notes.pop(value, None)


@settings(max_examples=300)
@given(st.lists(CHANGES, min_size=2, max_size=3), st.booleans())
def test_typed_state_merges_by_its_rules(
    make_world: Any, requests: list[Any], exists: bool
) -> None:
    """Counts add up, the greatest stays, what all appended, added or removed is kept."""
    world = make_world()
    token = world.visit(a=1)
    base = Shared(3, 1, [1], {"x"}, {"x": 1})
    if exists:
        session = world.open(token)
        session[Shared] = copy.deepcopy(base)
        world.commit(session)
    else:
        base = Shared()
    sessions = [world.open(token) for _ in requests]
    mine = []
    for session, changes in zip(sessions, requests, strict=True):
        change(session[Shared], changes)
        mine.append(copy.deepcopy(session[Shared]))
    for session in sessions:
        world.commit(session)

    now = world.open(token)[Shared]

    assert now.count == base.count + sum(one.count - base.count for one in mine)
    assert now.best == max([base.best, *(one.best for one in mine)])
    assert now.log == base.log + [item for one in mine for item in one.log[len(base.log) :]]
    for tag in "xyz":
        added = any(tag in one.tags for one in mine)
        removed = any(tag not in one.tags for one in mine)
        assert (tag in now.tags) is (not removed if tag in base.tags else added)
        noted = [tag in one.notes for one in mine]
        if tag not in base.notes:
            assert (tag in now.notes) is any(noted)


def test_a_field_that_one_changed(world: Any) -> None:
    """Of fields without a rule, each keeps the change of the one request that made one."""
    token = world.visit(a=1)
    first, second = world.open(token), world.open(token)
    first[Shared].plain = "first"
    second[Shared].count += 1
    world.commit(first)
    done = world.commit(second)

    now = world.open(token)[Shared]

    assert (now.plain, now.count, done.retries) == ("first", 1, 1)


def test_a_rebuilt_list_is_a_plain_set(world: Any) -> None:
    """`Append` merges what was appended; a list that was built anew replaces the other's."""
    token = world.visit(a=1)
    session = world.open(token)
    session[Shared].log = [1, 2]
    world.commit(session)
    first, second = world.open(token), world.open(token)
    first[Shared].log.append(3)
    second[Shared].log = [9]
    world.commit(first)
    world.commit(second)

    assert world.open(token)[Shared].log == [9]


def test_conflicts_are_counted(world: Any) -> None:
    """Where two requests set one key the later commit wins, and says so; merging is no conflict."""
    token = world.visit(a=1, n=1, b=1)
    first, second = world.open(token), world.open(token)
    for session, value in ((first, "first"), (second, "second")):
        session["a"] = value
        session[value] = value
        session.add("n")
    world.commit(first)

    done = world.commit(second)

    assert (done.retries, done.overwritten) == (1, ("a",))
    assert world.values(token) == {
        "a": "second", "n": 3, "b": 1, "first": "first", "second": "second"
    }  # fmt: skip


@pytest.mark.parametrize("what", ["set", "delete", "clear", "in place"])
def test_conflicts_are_refused(make_world: Any, what: str) -> None:
    """With on_conflict="raise" the later one fails, names the key, and nothing of it is kept."""
    world = make_world(keep_conflicts=False)
    token = world.visit(a=[1], b=1)
    first, second = world.open(token), world.open(token)
    first["a"] = [2]
    {
        "set": lambda: second.__setitem__("a", [3]),
        "delete": lambda: second.__delitem__("a"),
        "clear": second.clear,
        "in place": lambda: second["a"].append(3),
    }[what]()
    world.commit(first)

    with pytest.raises(Conflict, match="'a'"):
        world.commit(second)
    assert world.values(token) == {"a": [2], "b": 1}


def test_no_conflict_no_refusal(make_world: Any) -> None:
    """With on_conflict="raise" other keys and merging operations go on as ever."""
    world = make_world(keep_conflicts=False)
    token = world.visit(n=1)
    first, second = world.open(token), world.open(token)
    first.add("n")
    first["a"] = 1
    second.add("n")
    second["b"] = 2
    world.commit(first)
    world.commit(second)

    assert world.values(token) == {"n": 3, "a": 1, "b": 2}


# Messages.


def test_flash_messages_that_come_meanwhile_stay(world: Any) -> None:
    """Popping removes what was shown; what another request added meanwhile is shown later."""
    token = world.visit(a=1)
    session = world.open(token)
    session.flash("one")
    world.commit(session)
    reader, writer = world.open(token), world.open(token)

    assert reader.pop_flash() == ["one"]
    writer.flash("two")
    world.commit(writer)
    world.commit(reader)

    assert world.open(token).pop_flash() == ["two"]


def test_two_pop_the_same_messages(world: Any) -> None:
    """Two requests that pop at once leave nothing, and no message of a third one is lost."""
    token = world.visit(a=1)
    session = world.open(token)
    session.flash("one")
    session.flash("one")
    world.commit(session)
    requests = [world.open(token), world.open(token)]
    for request in requests:
        assert request.pop_flash() == ["one", "one"]
    third = world.open(token)
    third.flash("two")
    for request in (*requests, third):
        world.commit(request)

    assert world.open(token).peek_flash() == ["two"]


# One operation.


def segment(value: Any) -> bytes:
    return codec.encode_value(value, key="key")


@pytest.mark.parametrize(
    ("kind", "old", "operand", "expected"),
    [
        (Kind.ADD, None, 2, 2),
        (Kind.ADD, 1, 2, 3),
        (Kind.ADD, 1, 2.5, 3.5),
        (Kind.ADD, Decimal("0.1"), Decimal("0.2"), Decimal("0.3")),
        (Kind.ADD, 1, Decimal("0.5"), Decimal("1.5")),
        (Kind.ADD, dt.timedelta(1), dt.timedelta(2), dt.timedelta(3)),
        (Kind.ADD, 2**64, 1, 2**64 + 1),
        (Kind.MAX, None, 1, 1),
        (Kind.MAX, 1, 2, 2),
        (Kind.MAX, 2, 1, 2),
        (Kind.MAX, "a", "b", "b"),
        (Kind.UNION, None, {1}, {1}),
        (Kind.UNION, {1}, {2}, {1, 2}),
        (Kind.UNION, frozenset({1}), {2}, frozenset({1, 2})),
        (Kind.APPEND, None, [1], [1]),
        (Kind.APPEND, [1], [1], [1, 1]),
        (Kind.REMOVE, [1, 2, 1], [1], [2, 1]),
        (Kind.REMOVE, [1], [1, 1, 3], []),
    ],
)
def test_merge(kind: str, old: Any, operand: Any, expected: Any) -> None:
    """Each operation on what is there, and where nothing is."""
    result = merge(kind, old, operand)

    assert (type(result), result) == (type(expected), expected)


@pytest.mark.parametrize(
    ("kind", "old", "operand"),
    [
        (Kind.ADD, "text", 1),
        (Kind.ADD, 1, "text"),
        (Kind.ADD, True, 1),
        (Kind.ADD, 1, True),
        (Kind.ADD, [1], 1),
        (Kind.ADD, 1, None),
        (Kind.ADD, 1, dt.timedelta(1)),
        (Kind.ADD, 1.5, Decimal(1)),
        (Kind.MAX, "a", 1),
        (Kind.UNION, [1], {1}),
        (Kind.APPEND, {1}, [1]),
        (Kind.APPEND, "a", ["b"]),
        (Kind.APPEND, (1,), [1]),
    ],
)
def test_misfits_in_one_request(world: Any, kind: str, old: Any, operand: Any) -> None:
    """In the request itself an operand that does not fit is a TypeError, and changes nothing."""
    session = world.open(world.visit(key=old))
    do = {
        Kind.ADD: lambda: session.add("key", operand),
        Kind.MAX: lambda: session.max("key", operand),
        Kind.UNION: lambda: session.union("key", operand),
        Kind.APPEND: lambda: session.append("key", *operand),
    }[kind]

    with pytest.raises(TypeError, match=rf"session\.{kind}\('key', \.\.\.\): .* it must be "):
        do()
    assert session["key"] == old
    assert not world.commit(session).wrote


@pytest.mark.parametrize(
    ("old", "act", "text"),
    [
        (
            "abc",
            lambda session: session.add("key"),
            "the value there is of the type str; it must be an int, float, Decimal or timedelta",
        ),
        (
            1,
            lambda session: session.add("key", "2"),
            "what to add is of the type str; it must be an int, float, Decimal or timedelta",
        ),
        (
            Decimal(1),
            lambda session: session.add("key", 0.5),
            "what to add is of the type float; it must be one that can be added to the Decimal",
        ),
        (
            1,
            lambda session: session.max("key", "2"),
            "the value is of the type str; it must be one that can be compared with the int there",
        ),
        (
            [1],
            lambda session: session.union("key", {1}),
            "the value there is of the type list; it must be a set or frozenset",
        ),
        (
            {1},
            lambda session: session.append("key", 1),
            "the value there is of the type set; it must be a list",
        ),
    ],
)
def test_misfits_say_what_fits(world: Any, old: Any, act: Callable[[Any], Any], text: str) -> None:
    """The error names the key, what came, and what is allowed."""
    session = world.open(world.visit(key=old))

    with pytest.raises(TypeError) as raised:
        act(session)
    assert "('key', ...)" in str(raised.value)
    assert text in str(raised.value)
    assert session["key"] == old


@pytest.mark.parametrize(
    ("there", "kind", "operand", "expected"),
    [
        ("text", Kind.ADD, 1, 1),
        (1.5, Kind.ADD, 10**400, 10**400),
        (1.5, Kind.ADD, Decimal(1), Decimal(1)),
        (Decimal("sNaN"), Kind.ADD, Decimal(1), Decimal(1)),
        (Decimal("NaN"), Kind.MAX, Decimal(1), Decimal(1)),
        (dt.timedelta.max, Kind.ADD, dt.timedelta.max, dt.timedelta.max),
        ([1], Kind.UNION, {1}, {1}),
        ({1}, Kind.APPEND, [1], [1]),
        ("a", Kind.MAX, 1, 1),
    ],
)
def test_misfits_between_requests(there: Any, kind: str, operand: Any, expected: Any) -> None:
    """Where another request put a value of another type, the later one wins."""
    after = apply({"key": segment(there)}, Changes(False, {"key": [Operation(kind, operand)]}))

    assert codec.decode_value(after["key"]) == expected


def test_apply_leaves_the_base_alone() -> None:
    """What was there is not touched, so that it can be compared with."""
    base = {"a": segment(1), "b": segment([1])}
    before = dict(base)
    changes = Changes(
        True, {"b": [Operation(Kind.APPEND, [2])], "a": [Operation(Kind.SET, segment(5))]}
    )

    after = apply(base, changes)

    assert base == before
    assert {key: codec.decode_value(raw) for key, raw in after.items()} == {"b": [2], "a": 5}


PIECES = st.sampled_from([1, 2, 300, "x", "y", "long", [1], None, True]).map(segment)
STEPS = st.one_of(
    st.builds(Operation, st.just(Kind.SET), PIECES),
    st.just(Operation(Kind.DELETE)),
    st.just(Operation(Kind.ADD, 1)),
    st.tuples(PIECES, PIECES).map(
        lambda both: Operation(Kind.STATE, (*both, lambda loaded, theirs, mine: mine + b"m"))
    ),
)


@given(
    st.dictionaries(KEYS, PIECES),
    st.builds(Changes, st.booleans(), st.dictionaries(KEYS, st.lists(STEPS, min_size=1))),
)
def test_a_patch_is_what_applying_comes_to(base: dict[str, bytes], changes: Changes) -> None:
    """Values put in place of as long ones give the same bytes as all values put together anew."""
    data = codec.join(base)

    patched = patch(data, changes)

    assert patched is None or patched == codec.join(apply(base, changes))


@pytest.mark.parametrize(
    ("changes", "patched"),
    [
        (Changes(), True),
        (Changes(False, {"n": [Operation(Kind.SET, segment(2))]}), True),
        (Changes(False, {"n": [Operation(Kind.STATE, (segment(1), segment(2), None))]}), True),
        (Changes(False, {"n": [Operation(Kind.STATE, (segment(7), segment(2), None))]}), False),
        (Changes(False, {"n": [Operation(Kind.SET, segment("longer"))]}), False),
        (Changes(False, {"new": [Operation(Kind.SET, segment(2))]}), False),
        (Changes(False, {"n": [Operation(Kind.SET, segment(2))] * 2}), False),
        (Changes(True, {"n": [Operation(Kind.SET, segment(2))]}), False),
    ],
)
def test_what_is_patched(changes: Changes, patched: bool) -> None:
    """The ordinary write, of a value as long as the one before, copies the rest as it is."""
    assert (patch(codec.join({"a": segment("x"), "n": segment(1)}), changes) is not None) is patched


@pytest.mark.parametrize("value", [object(), [object()], {1: 2}])
def test_operands_are_checked_at_once(world: Any, value: Any) -> None:
    """A merging operation says right away that its operand cannot be stored."""
    session = world.open()

    for act in (
        lambda: session.append("key", value),
        lambda: session.max("key", value),
        lambda: session.add("key", value),
        lambda: session.flash(value),
    ):
        with pytest.raises(InvalidValue):
            act()
    assert not world.commit(session).wrote


def test_what_the_request_saw_is_what_is_stored(world: Any) -> None:
    """`add` returns what the next request will see, also of floats, whose sums have an order."""
    token = world.visit(n=0.1)
    session = world.open(token)
    session.add("n", 0.2)

    last = session.add("n", 0.3)
    world.commit(session)

    assert world.values(token)["n"] == last == 0.1 + 0.2 + 0.3
