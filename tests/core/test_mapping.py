"""The mapping: in every respect a dict, over any number of requests."""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sojourn.core import codec
from sojourn.core.session import Session
from sojourn.errors import InvalidValue

KEYS = st.sampled_from(["a", "b", "c", "ä", ""])
VALUES = st.one_of(
    st.none(),
    st.integers(),
    st.text("ab", max_size=2),
    st.lists(st.integers(0, 3), max_size=2),
    st.dictionaries(st.sampled_from("xy"), st.lists(st.integers(0, 3), max_size=2), max_size=2),
    st.sets(st.integers(0, 3)),
    st.tuples(st.lists(st.integers(0, 3), max_size=1)),
)
MISSING = object()


def both(one: Callable[[], Any], other: Callable[[], Any]) -> None:
    """Do the same to the session and to the model: same answer, or the same kind of error."""
    answers = []
    for act in (one, other):
        try:
            answers.append(("gave", act()))
        except (KeyError, TypeError) as error:
            answers.append(("raised", type(error)))
    assert answers[0] == answers[1]


def poke(value: Any) -> None:
    """Change a value in place, as deep inside as it can be changed."""
    if isinstance(value, list):
        value.append(len(value))
    elif isinstance(value, set):
        value.add(len(value))
    elif isinstance(value, dict):
        for inner in value.values():
            poke(inner)
        value["z"] = [0]
    elif isinstance(value, tuple):
        for inner in value:
            poke(inner)


class DictMachine(RuleBasedStateMachine):
    """A session and a dict, and the same done to both."""

    make_world: Any = None

    @initialize()
    def begin(self) -> None:
        self.world = self.make_world()
        self.token: Any = None
        self.session = self.world.open()
        self.model: dict[str, Any] = {}

    @rule(key=KEYS, value=VALUES)
    def set(self, key: str, value: Any) -> None:
        self.session[key] = copy.deepcopy(value)
        self.model[key] = value

    @rule(key=KEYS, value=VALUES)
    def set_then_change(self, key: str, value: Any) -> None:
        mine = copy.deepcopy(value)
        self.session[key] = mine
        self.model[key] = value
        poke(mine)
        poke(value)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        both(lambda: self.session.__delitem__(key), lambda: self.model.__delitem__(key))

    @rule(key=KEYS, default=st.just(MISSING) | VALUES)
    def pop(self, key: str, default: Any) -> None:
        more = () if default is MISSING else (default,)
        both(lambda: self.session.pop(key, *more), lambda: self.model.pop(key, *more))

    @rule(key=KEYS)
    def pop_then_change(self, key: str) -> None:
        poke(self.session.pop(key, None))
        poke(self.model.pop(key, None))

    @rule()
    def popitem(self) -> None:
        both(self.session.popitem, self.model.popitem)

    @rule(key=KEYS, value=VALUES)
    def setdefault(self, key: str, value: Any) -> None:
        mine = self.session.setdefault(key, copy.deepcopy(value))
        theirs = self.model.setdefault(key, value)
        assert mine == theirs
        poke(mine)
        poke(theirs)

    @rule(items=st.lists(st.tuples(KEYS, VALUES), max_size=3), how=st.integers(0, 3))
    def update(self, items: list[tuple[str, Any]], how: int) -> None:
        mine = copy.deepcopy(items)
        if how == 0:
            self.session.update(mine)
        elif how == 1:
            self.session.update(dict(mine))
        elif how == 2:
            self.session |= dict(mine)
        else:
            self.session |= mine
        self.model.update(items)

    @rule()
    def clear(self) -> None:
        self.session.clear()
        self.model.clear()

    @rule(key=KEYS)
    def change_in_place(self, key: str) -> None:
        mine, theirs = self.session.get(key), self.model.get(key)
        assert mine == theirs
        poke(mine)
        poke(theirs)

    @rule()
    def change_all_in_place(self) -> None:
        for value in self.session.values():
            poke(value)
        for value in self.model.values():
            poke(value)

    @rule(key=KEYS)
    def change_then_delete(self, key: str) -> None:
        for mapping in (self.session, self.model):
            if key in mapping:
                poke(mapping[key])
                del mapping[key]

    @rule(key=KEYS)
    def move_to_the_end(self, key: str) -> None:
        for mapping in (self.session, self.model):
            if key in mapping:
                mapping[key] = mapping.pop(key)

    @rule(key=KEYS, amount=st.integers())
    def add(self, key: str, amount: int) -> None:
        if type(self.model.get(key, 0)) is int:
            self.model[key] = self.model.get(key, 0) + amount
            assert self.session.add(key, amount) == self.model[key]

    @rule(key=KEYS, item=st.integers(0, 3))
    def append(self, key: str, item: int) -> None:
        if isinstance(self.model.get(key, []), list):
            held = self.session.get(key)
            self.session.append(key, item)
            self.model.setdefault(key, []).append(item)
            assert held is None or held is self.session[key]

    @rule(key=KEYS, item=st.integers(0, 3))
    def union(self, key: str, item: int) -> None:
        if isinstance(self.model.get(key, set()), set):
            self.session.union(key, {item})
            self.model.setdefault(key, set()).add(item)

    @rule()
    def commit_and_go_on(self) -> None:
        done = self.world.commit(self.session)
        self.token = done.token or self.token

    @rule()
    def next_request(self) -> None:
        self.commit_and_go_on()
        self.session = self.world.open(self.token)

    @rule()
    def look_at_the_next_request(self) -> None:
        self.commit_and_go_on()
        assert list(self.world.open(self.token).items()) == list(self.model.items())

    @invariant()
    def equal(self) -> None:
        if not hasattr(self, "session"):
            return
        session, model = self.session, self.model
        assert list(session) == list(model)
        assert list(reversed(session)) == list(reversed(model))
        assert len(session) == len(model)
        assert bool(session) == bool(model)
        for key in ("a", "b", "nothing"):
            assert (key in session) == (key in model)


def test_a_dict_in_every_respect(make_world: Any) -> None:
    """Whatever is done in any order over any requests, the session is what a dict would be."""

    class Machine(DictMachine):
        pass

    Machine.make_world = make_world
    machine: Any = Machine.TestCase
    machine.settings = settings(max_examples=400, stateful_step_count=30)
    machine("runTest").runTest()


def test_protocols(world: Any) -> None:
    """It is a MutableMapping, not hashable, and equal to any mapping of the same items."""
    session = world.open()
    session["a"] = [1]

    assert isinstance(session, MutableMapping)
    assert session == {"a": [1]}
    assert session != {"a": [2]}
    assert session != [("a", [1])]
    assert session == world.open(world.visit(a=[1]))
    assert session | {"b": 2} == {"a": [1], "b": 2}
    with pytest.raises(TypeError):
        hash(session)


@pytest.mark.parametrize("key", [None, 0, 1.5, (), ("a",), b"a", frozenset(), object()])
def test_keys_of_other_types(world: Any, key: Any) -> None:
    """Keys that are not str are never there: as in a dict, asking is no error, unless to set."""
    session = world.open(world.visit(a=1))

    assert key not in session
    assert session.get(key, "default") == "default"
    assert session.pop(key, "default") == "default"
    for act in (session.__getitem__, session.__delitem__, session.pop):
        with pytest.raises(KeyError):
            act(key)
    with pytest.raises(InvalidValue, match="a key must be a str"):
        session[key] = 1


@pytest.mark.parametrize("key", [[], {}, set()])
def test_unhashable_keys(world: Any, key: Any) -> None:
    """Unhashable keys are a TypeError, as in a dict, and an InvalidValue when set."""
    session = world.open(world.visit(a=1))

    for act in (session.__contains__, session.__getitem__, session.get):
        with pytest.raises(TypeError):
            act(key)
    with pytest.raises(InvalidValue):
        session[key] = 1


@pytest.mark.parametrize("key", ["\0", "\0claims", "\0f:", "\0s:cart", "\ud800", "a\udfff"])
def test_keys_refused(world: Any, key: str) -> None:
    """A key that begins with NUL is ours, one with a lone surrogate has no bytes."""
    session = world.open()

    for act in (
        lambda: session.__setitem__(key, 1),
        lambda: session.setdefault(key, 1),
        lambda: session.update({key: 1}),
        lambda: session.add("\ud800" if key.startswith("\0f") else key),
    ):
        with pytest.raises(InvalidValue, match="a key must be a str"):
            act()
    assert not world.commit(session).wrote


@pytest.mark.parametrize("key", ["a\0b", "ключ", "🛒", " ", "a" * 1000, "__class__"])
def test_keys_taken(world: Any, key: str) -> None:
    """Any other text is a key."""
    assert world.values(world.visit(**{key: 1})) == {key: 1}


def test_what_is_ours_does_not_show(world: Any) -> None:
    """Claims, flash messages and typed state are not among the keys, and cannot be deleted."""
    session = world.open()
    session.login("alice", role="admin")
    session.flash("hello")
    session["a"] = 1
    session = world.open(world.commit(session).token)

    assert list(session) == ["a"]
    assert len(session) == 1
    assert dict(session.items()) == {"a": 1}
    for key in ("\0claims", "\0f:"):
        assert key not in session
        with pytest.raises(KeyError):
            del session[key]
    assert session.popitem() == ("a", 1)
    with pytest.raises(KeyError, match="empty"):
        session.popitem()
    assert session.claims == {"role": "admin"}


# Changes in place.


CHANGES: dict[str, tuple[Any, Callable[[Any], Any], Any]] = {
    "list": ([1], lambda value: value.append(2), [1, 2]),
    "dict": ({}, lambda value: value.update(a=1), {"a": 1}),
    "set": ({1}, lambda value: value.add(2), {1, 2}),
    "list in dict": ({"a": [[1]]}, lambda value: value["a"][0].clear(), {"a": [[]]}),
    "list in tuple": (([1], 2), lambda value: value[0].append(3), ([1, 3], 2)),
    "dict in tuple in list": ([({},)], lambda value: value[0][0].update(a=1), [({"a": 1},)]),
    "set in dict of list": ({"a": [{1}]}, lambda value: value["a"][0].discard(1), {"a": [set()]}),
    "order of a dict": (
        {"a": 1, "b": 2},
        lambda value: value.update(a=value.pop("a")),
        {"b": 2, "a": 1},
    ),
    "type alone": ([1], lambda value: value.__setitem__(0, True), [True]),
    "int to float": ([1], lambda value: value.__setitem__(0, 1.0), [1.0]),
    "sign of zero": ([0.0], lambda value: value.__setitem__(0, -0.0), [-0.0]),
}


@pytest.mark.parametrize(("value", "change", "expected"), CHANGES.values(), ids=CHANGES)
def test_changes_in_place_are_seen(
    make_world: Any, value: Any, change: Callable[[Any], Any], expected: Any
) -> None:
    """What is changed inside a value that was handed out is kept, with no flag to set."""
    world = make_world()
    token = world.visit(key=copy.deepcopy(value), other=1)
    session = world.open(token)

    change(session["key"])
    done = world.commit(session)

    assert done.wrote
    assert repr(world.values(token)["key"]) == repr(expected)


@pytest.mark.parametrize("value", [value for value, _, _ in CHANGES.values()], ids=CHANGES)
def test_looking_is_no_change(make_world: Any, value: Any) -> None:
    """Values that were only looked at are not written."""
    world = make_world()
    token = world.visit(key=copy.deepcopy(value))
    session = world.open(token)

    repr(session["key"])

    assert not world.commit(session).wrote


def test_a_change_that_was_undone(world: Any) -> None:
    """What is as it was is not written."""
    token = world.visit(key=[1])
    session = world.open(token)

    session["key"].append(2)
    session["key"].pop()

    assert not world.commit(session).wrote


def test_one_object_under_two_keys(world: Any) -> None:
    """A list under two keys is one list in this request, and two in the next."""
    session = world.open()
    session["a"] = session["b"] = shared = []
    shared.append(1)
    token = world.commit(session).token
    shared.append(2)
    world.commit(session)
    session = world.open(token)

    assert dict(session) == {"a": [1, 2], "b": [1, 2]}

    session["a"].append(3)
    session["c"] = session["a"]
    session["c"].append(4)
    world.commit(session)

    assert world.values(token) == {"a": [1, 2, 3, 4], "b": [1, 2], "c": [1, 2, 3, 4]}


def test_changed_while_iterated(world: Any) -> None:
    """Keys may be deleted and set while one iterates over the session."""
    token = world.visit(a=1, b=2, c=3)
    session = world.open(token)

    for key in session:
        del session[key]
        session[key.upper()] = key
    world.commit(session)

    assert world.values(token) == {"A": "a", "B": "b", "C": "c"}


def test_only_what_changed_is_encoded(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a session with many values only those that were set or handed out are encoded."""
    token = world.visit(**{f"key{n}": ["x" * 600] for n in range(100)})
    encoded = []
    right = codec.encode_value

    def count(value: Any, **options: Any) -> bytes:
        encoded.append(options["key"])
        return right(value, **options)

    monkeypatch.setattr(codec, "encode_value", count)
    session = world.open(token)
    session["key7"].append(1)
    session["key8"] = 2
    del session["key9"]
    world.commit(session)

    assert sorted(encoded) == ["key7", "key8"]
    assert world.values(token)["key7"] == ["x" * 600, 1]


def test_only_what_is_asked_for_is_decoded(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a session of 64 KB only the asked key is decoded; `in`, `len`, iteration: none."""
    import sojourn.core.session as module

    token = world.visit(**{f"key{n}": ["x" * 600] for n in range(100)})
    decoded = []
    right = module.decode_value

    def count(raw: bytes) -> Any:
        decoded.append(right(raw))
        return decoded[-1]

    monkeypatch.setattr(module, "decode_value", count)
    session: Session = world.open(token)

    assert "key1" in session
    assert len(list(session)) == len(session) == 100
    assert decoded == []
    assert session["key5"] == session["key5"] == session.get("key5")
    assert len(decoded) == 1
