"""Components of zope interfaces: what is kept of them, and how it merges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from zope.interface import Attribute, Interface, implementer, taggedValue
from zope.schema import Float, Int, List, TextLine, Tuple

from sojourn.errors import (
    ConfigurationError,
    Conflict,
    InvalidValue,
    NewerState,
    StateMismatch,
)
from sojourn.manager import SessionManager
from sojourn.web.components import component, drop, hold, put, schema_of


class ICounter(Interface):
    value = Attribute("how often")
    names = Attribute("who came")
    cache = Attribute("not kept")

    def bump() -> None:
        """Methods are no state."""


ICounter["cache"].setTaggedValue("transient", True)


@implementer(ICounter)
class Counter:
    def __init__(self) -> None:
        self.value = 0
        self.names: list[str] = []
        self.cache = "fresh"

    def bump(self) -> None:
        self.value += 1


class Visitor:
    """A browser: each `visit` is a request."""

    def __init__(self, sessions: SessionManager | None = None) -> None:
        self.sessions = sessions or SessionManager()
        self.cookie = ""

    def open(self) -> Any:
        return self.sessions.session(self.cookie)

    def commit(self, session: Any) -> Any:
        done = self.sessions.commit(session)
        if done.token is not None:
            self.cookie = f"id={done.token}"
        return done

    def visit(self, act: Callable[[Any], Any]) -> Any:
        session = self.open()
        result = act(session)
        self.commit(session)
        return result


@pytest.fixture
def visitor() -> Visitor:
    return Visitor()


def counter(session: Any) -> Counter:
    found: Counter = component(session, ICounter, Counter)
    return found


def interface(name: str = "IThing", **attributes: Any) -> Any:
    """Return an interface with these Attributes; `name__tag` gives one a tagged value."""
    body: dict[str, Any] = {}
    for key, value in attributes.items():
        if "__" not in key:
            body[key] = value if value is not None else Attribute(key)
    made: Any = type(Interface)(name, (Interface,), body, __module__="tests.things")
    for key, value in attributes.items():
        field, split, tag = key.partition("__")
        if split:
            (made[field] if field else made).setTaggedValue(tag, value)
    return made


class Thing:
    def __init__(self, **state: Any) -> None:
        vars(self).update(state)


# What is kept.


def test_state_is_kept(visitor: Visitor) -> None:
    """Declared Attributes come back, changes in place too; transient ones and others do not."""

    def change(session: Any) -> None:
        made = counter(session)
        made.bump()
        made.names.append("ann")
        made.cache = "used"
        made.other = 1  # type: ignore[attr-defined]

    visitor.visit(change)
    visitor.visit(lambda session: counter(session).names.append("bob"))

    made = visitor.visit(counter)
    assert (made.value, made.names, made.cache) == (1, ["ann", "bob"], "fresh")
    assert not hasattr(made, "other")


def test_reading_writes_nothing(visitor: Visitor) -> None:
    """Who only looks at a component makes no session, and changes none."""
    visitor.visit(counter)
    assert visitor.cookie == ""
    visitor.visit(lambda session: counter(session).bump())

    session = visitor.open()
    counter(session)

    assert not visitor.commit(session).wrote


def test_the_first_state_can_be_kept(visitor: Visitor) -> None:
    """Where the first look at a component is to be remembered, it is."""
    visitor.visit(lambda session: hold(session, ICounter, Counter(), keep=True))

    assert visitor.cookie != ""
    assert visitor.visit(lambda session: len(session._index)) == 1


def test_one_component_in_a_request(visitor: Visitor) -> None:
    """It is made once, and is the same object until the end."""
    session = visitor.open()

    assert counter(session) is counter(session)


def test_what_the_mapping_shows(visitor: Visitor) -> None:
    """Components are no keys of the mapping; `clear` removes them too."""

    def change(session: Any) -> None:
        counter(session).bump()
        session["a"] = 1

    visitor.visit(change)
    assert visitor.visit(lambda session: (list(session), len(session))) == (["a"], 1)
    visitor.visit(lambda session: session.clear())

    assert visitor.visit(counter).value == 0


def test_the_same_object_goes_on_after_a_commit(visitor: Visitor) -> None:
    """What is changed after a commit is written by the next one."""
    session = visitor.open()
    made = counter(session)
    made.bump()
    visitor.commit(session)
    made.bump()
    visitor.commit(session)

    assert counter(session) is made
    assert visitor.visit(counter).value == 2


def test_put_and_drop(visitor: Visitor) -> None:
    """A component may be put in place of the one that was made, and taken away."""
    mine = Counter()
    mine.value = 40
    visitor.visit(lambda session: put(session, ICounter, mine))
    assert visitor.visit(counter).value == 40
    visitor.visit(lambda session: drop(session, ICounter))

    assert visitor.visit(counter).value == 0
    with pytest.raises(KeyError):
        visitor.visit(lambda session: drop(session, ICounter))


def test_no_factory(visitor: Visitor) -> None:
    """Where nothing makes one there is none."""
    assert visitor.visit(lambda session: component(session, ICounter, lambda: None)) is None


def test_unknown_interfaces_pass_through(visitor: Visitor) -> None:
    """A process that does not know an interface changes nothing of its components."""
    visitor.visit(lambda session: counter(session).bump())

    visitor.visit(lambda session: session.add("n"))

    assert visitor.visit(counter).value == 1


def test_unknown_attributes_pass_through(visitor: Visitor) -> None:
    """Old code that does not know an Attribute carries along what newer code wrote in it."""
    new, old = interface(a=None, b=None), interface(a=None)
    visitor.visit(lambda session: put(session, new, Thing(a=1, b=2)))

    def change(session: Any) -> None:
        component(session, old, Thing).a = 10

    visitor.visit(change)
    made = visitor.visit(lambda session: component(session, new, Thing))
    assert (made.a, made.b) == (10, 2)


def test_attributes_that_the_class_computes(visitor: Visitor) -> None:
    """A property that cannot be set is not stored; one that can be is."""

    class Cart:
        def __init__(self) -> None:
            self.items = [2, 3]

        @property
        def total(self) -> int:
            return sum(self.items)

    ICart = interface("ICart", items=None, total=None)
    visitor.visit(lambda session: component(session, ICart, Cart).items.append(5))

    made = visitor.visit(lambda session: component(session, ICart, Cart))
    assert made.total == 10


def test_what_cannot_be_stored(visitor: Visitor) -> None:
    """The error names the interface and the Attribute."""

    def change(session: Any) -> None:
        counter(session).names = object()  # type: ignore[assignment]

    with pytest.raises(InvalidValue, match=r"ICounter\.names"):
        visitor.visit(change)


def test_inherited_attributes(visitor: Visitor) -> None:
    """Those of the bases are state too."""

    class IMore(ICounter):
        more = Attribute("more")

    def change(session: Any) -> None:
        made = component(session, IMore, Counter)
        made.value, made.more = 7, 8

    visitor.visit(change)
    made = visitor.visit(lambda session: component(session, IMore, Counter))
    assert (made.value, made.more) == (7, 8)
    # Another interface, so another component.
    assert visitor.visit(counter).value == 0


# Names.


def test_key(visitor: Visitor) -> None:
    """`session.key` names a component where the dotted name is not unique or must change."""
    one = interface("ICounter", a=None, __key="x")
    one.setTaggedValue("session.key", "cart.counter")
    other = interface("IRenamed", a=None)
    other.setTaggedValue("session.key", "cart.counter")
    visitor.visit(lambda session: put(session, one, Thing(a=1)))

    assert visitor.visit(lambda session: component(session, other, Thing)).a == 1


def test_two_scripts_with_an_interface_of_one_name(visitor: Visitor) -> None:
    """Zope takes the two for equal; with keys of their own their components stay apart."""
    first, second = interface("ICounter", a=None), interface("ICounter", a=None)
    assert first == second
    first.setTaggedValue("session.key", "first.rpy")
    second.setTaggedValue("session.key", "second.rpy")
    visitor.visit(lambda session: put(session, first, Thing(a=1)))
    visitor.visit(lambda session: put(session, second, Thing(a=2)))

    both = visitor.visit(
        lambda session: [component(session, one, Thing).a for one in (first, second)]
    )
    assert both == [1, 2]


def test_a_script_that_is_run_again(visitor: Visitor) -> None:
    """Each run makes the interface anew; the component is the same."""
    for _ in range(3):
        made = interface("ICounter", a=None)

        def bump(session: Any, made: Any = made) -> int:
            thing = component(session, made, lambda: Thing(a=0))
            thing.a += 1
            return int(thing.a)

        count = visitor.visit(bump)

    assert count == 3


def test_nothing_to_keep(visitor: Visitor) -> None:
    """Without Attributes, or transient, nothing of a component is kept: it is for one process."""

    class IMarker(Interface):
        def act() -> None: ...

    class ILocal(Interface):
        taggedValue("transient", True)
        a = Attribute("a")

    assert schema_of(IMarker) is None
    assert schema_of(ILocal) is None
    with pytest.raises(ConfigurationError, match="ILocal declares no Attributes, or is transient"):
        visitor.visit(lambda session: put(session, ILocal, Thing(a=1)))


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        ("session.key", "", "session.key is ''"),
        ("version", 0, "version is 0"),
        ("version", "2", "version is '2'"),
    ],
)
def test_wrong_tags(tag: str, value: Any, message: str) -> None:
    """All faults are told together, with the interface's name."""
    made = interface(a=None, a__merge="often")
    made.setTaggedValue(tag, value)

    with pytest.raises(ConfigurationError) as raised:
        schema_of(made)
    assert message in str(raised.value)
    assert "merge of a is 'often'" in str(raised.value)
    assert "tests.things.IThing" in str(raised.value)


# Merging.


@pytest.mark.parametrize(
    ("rule", "before", "one", "other", "after"),
    [
        ("add", 10, 11, 12, 13),
        ("max", 10, 30, 20, 30),
        ("append", ["a"], ["a", "b"], ["a", "c"], ["a", "b", "c"]),
        ("union", {"a"}, {"a", "b"}, {"c", "a"}, {"a", "b", "c"}),
        ("union", {"a": 1}, {"a": 1, "b": 2}, {"c": 3}, {"b": 2, "c": 3}),
        ("last", 10, 11, 12, 12),
        (None, 10, 11, 12, 12),
    ],
)
def test_merge(
    visitor: Visitor, rule: str | None, before: Any, one: Any, other: Any, after: Any
) -> None:
    """What two requests do to one Attribute at once."""
    made = interface(a=None, b=None, **({"a__merge": rule} if rule else {}))
    visitor.visit(lambda session: put(session, made, Thing(a=before, b=0)))
    first, second = visitor.open(), visitor.open()
    component(first, made, Thing).a = one
    thing = component(second, made, Thing)
    thing.a, thing.b = other, 1

    visitor.commit(first)
    assert visitor.commit(second).retries == 1

    thing = visitor.visit(lambda session: component(session, made, Thing))
    assert (thing.a, thing.b) == (after, 1)


def test_different_attributes_merge(visitor: Visitor) -> None:
    """Two requests that change different Attributes both count."""
    made = interface(a=None, b=None)
    visitor.visit(lambda session: put(session, made, Thing(a=0, b=0)))
    first, second = visitor.open(), visitor.open()
    component(first, made, Thing).a = 1
    component(second, made, Thing).b = 1
    visitor.commit(first)
    visitor.commit(second)

    thing = visitor.visit(lambda session: component(session, made, Thing))
    assert (thing.a, thing.b) == (1, 1)


def test_one_that_another_request_deletes(visitor: Visitor) -> None:
    """What this request changed stands, and nothing else of the component comes back."""
    made = interface(a=None, b=None)
    visitor.visit(lambda session: put(session, made, Thing(a=1, b=1)))
    first, second, third = visitor.open(), visitor.open(), visitor.open()
    component(first, made, Thing).a = 2
    put(second, made, Thing(a=3, b=3))
    third.clear()
    visitor.commit(third)
    visitor.commit(first)

    look = lambda session: vars(component(session, made, Thing))  # noqa: E731
    assert visitor.visit(look) == {"a": 2}
    visitor.visit(lambda session: session.clear())
    visitor.commit(second)
    assert visitor.visit(look) == {"a": 3, "b": 3}


def test_both_make_the_first_one(visitor: Visitor) -> None:
    """Two requests that make it at once start from what the factory made: their adds count."""
    made = interface(a=None, a__merge="add")
    visitor.visit(lambda session: session.add("n"))
    first, second = visitor.open(), visitor.open()
    for session in (first, second):
        component(session, made, lambda: Thing(a=100)).a += 1
    visitor.commit(first)
    visitor.commit(second)

    assert visitor.visit(lambda session: component(session, made, Thing)).a == 102


def test_equal_is_not_the_same(visitor: Visitor) -> None:
    """1 that became True is a change, and is not lost in a merge."""
    made = interface(a=None, b=None)
    visitor.visit(lambda session: put(session, made, Thing(a=1, b=0)))
    first, second = visitor.open(), visitor.open()
    component(first, made, Thing).b = 5
    component(second, made, Thing).a = True
    visitor.commit(first)
    visitor.commit(second)

    assert visitor.visit(lambda session: component(session, made, Thing)).a is True


# Versions.


def test_upgrade(visitor: Visitor) -> None:
    """An older version is upgraded step by step; that alone writes nothing."""
    old = interface(count=None)
    new = interface(a=None, __version=3)
    new.setTaggedValue(
        "upgrades",
        {1: lambda fields: {"b": fields["count"]}, 2: lambda fields: {"a": fields["b"] * 2}},
    )
    visitor.visit(lambda session: put(session, old, Thing(count=4)))

    session = visitor.open()
    assert component(session, new, Thing).a == 8
    assert not visitor.commit(session).wrote
    visitor.visit(lambda session: put(session, new, Thing(a=9)))
    assert visitor.visit(lambda session: component(session, new, Thing)).a == 9


def test_missing_upgrade(visitor: Visitor) -> None:
    """Says which one, and leaves the state alone."""
    old, new = interface(a=None), interface(a=None, __version=2)
    visitor.visit(lambda session: put(session, old, Thing(a=4)))

    with pytest.raises(StateMismatch, match="no upgrade from it to 2"):
        visitor.visit(lambda session: component(session, new, Thing))
    assert visitor.visit(lambda session: component(session, old, Thing)).a == 4


def test_newer_state(visitor: Visitor) -> None:
    """Old code leaves newer state untouched, and does not merge into it either."""
    old, new = interface(a=None), interface(a=None, __version=2)
    visitor.visit(lambda session: put(session, old, Thing(a=1)))
    late = visitor.open()
    component(late, old, Thing).a = 5
    visitor.visit(lambda session: put(session, new, Thing(a=2)))

    with pytest.raises(NewerState, match="written as version 2; this code knows 1"):
        visitor.visit(lambda session: component(session, old, Thing))
    with pytest.raises(Conflict, match="cannot be merged"):
        visitor.commit(late)


# Fields of zope.schema.


class IPerson(Interface):
    name = TextLine(title="name", max_length=10)
    age = Int(title="age", min=0, required=False)
    size = Float(title="size", required=False)
    marks = Tuple(title="marks", value_type=Int(), required=False)
    friends = List(title="friends", value_type=TextLine(), required=False)


def person() -> Thing:
    return Thing(name=None, age=None, size=None, marks=None, friends=None)


def test_fields_convert(visitor: Visitor) -> None:
    """Text becomes a number, a list a tuple, an int a float; the component shows it too."""

    def change(session: Any) -> Thing:
        made: Any = component(session, IPerson, person)
        made.name, made.age, made.size, made.marks = b"ann", "36", 2, [1, 2]
        return made  # type: ignore[no-any-return]

    made: Any = visitor.visit(change)
    assert (made.name, made.age, made.size, made.marks) == ("ann", 36, 2.0, (1, 2))
    made = visitor.visit(lambda session: component(session, IPerson, person))
    assert (made.name, made.age, made.size, made.marks) == ("ann", 36, 2.0, (1, 2))
    assert type(made.size) is float


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("name", "x" * 11, r"IPerson\.name is .*TooLong"),
        ("name", "two\nlines", r"IPerson\.name is .*ConstraintNotSatisfied"),
        ("age", -1, r"IPerson\.age is -1.*TooSmall"),
        ("age", "old", r"IPerson\.age is 'old'"),
        ("friends", [1], r"IPerson\.friends is \[1\].*WrongContainedType"),
        ("marks", 5, r"IPerson\.marks is 5.*WrongType"),
    ],
)
def test_fields_refuse(visitor: Visitor, name: str, value: Any, message: str) -> None:
    """What a field does not allow raises at the commit, and nothing is written."""

    def change(session: Any) -> None:
        made = component(session, IPerson, person)
        made.name = "ann"
        setattr(made, name, value)

    with pytest.raises(InvalidValue, match=message):
        visitor.visit(change)
    assert visitor.cookie == ""


def test_a_required_field_that_is_not_filled_in(visitor: Visitor) -> None:
    """None is no value of it: it is not stored, and the factory's first value stands."""

    def change(session: Any) -> None:
        component(session, IPerson, person).age = 5

    visitor.visit(change)

    made = visitor.visit(lambda session: component(session, IPerson, lambda: Thing(name="first")))
    assert (made.name, made.age) == ("first", 5)


def test_stored_state_that_a_field_refuses(visitor: Visitor) -> None:
    """A field that allows less than before says so, and the state stays; what fits is converted."""
    old = interface(a=None)
    strict = interface(a=Int(max=3))
    visitor.visit(lambda session: put(session, old, Thing(a="3")))
    assert visitor.visit(lambda session: component(session, strict, Thing)).a == 3
    visitor.visit(lambda session: put(session, old, Thing(a="4")))

    with pytest.raises(StateMismatch, match="its field refuses that"):
        visitor.visit(lambda session: component(session, strict, Thing))
    assert visitor.visit(lambda session: component(session, old, Thing)).a == "4"


def test_damaged_state(visitor: Visitor) -> None:
    """Flipped bits cost the visitor a fresh session, as anywhere."""
    visitor.visit(lambda session: counter(session).bump())
    store: Any = visitor.sessions.store
    sid = visitor.cookie[3:25]
    record = store.load(sid)
    data = bytearray(record.data)
    data[-6] ^= 1
    import msgspec

    store.replace(
        msgspec.structs.replace(record, data=bytes(data), version=record.version + 1),
        record.version,
    )

    assert visitor.visit(counter).value == 0
    assert visitor.sessions.counters["damaged"] == 1
