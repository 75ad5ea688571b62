"""Typed state: what goes in comes out, through versions, merges and every kind of class."""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
import enum
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, ClassVar

import attrs
import msgspec
import pydantic
import pytest

from sojourn.core import codec
from sojourn.core.state import Add, Append, Max, Union, describe, state
from sojourn.errors import Conflict, InvalidValue, NewerState, StateMismatch


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Line:
    name: str = ""
    price: Decimal = Decimal(0)


@dataclass
class Cart:
    lines: list[Line] = field(default_factory=list)
    colour: Colour = Colour.RED
    when: dt.datetime | None = None
    ids: set[uuid.UUID] = field(default_factory=set)
    pair: tuple[int, str] = (0, "")
    raw: bytes = b""
    limit: int = 10
    plain: str = "x"

    limits: ClassVar[dict[str, int]] = {}


@dataclass(slots=True)
class SlotsCart(Cart):
    """A dataclass with slots that inherits its fields."""

    more: int = 0


@dataclass(frozen=True)
class FrozenLine:
    name: str = ""


@attrs.define
class AttrsCart:
    lines: list[Line] = attrs.Factory(list)
    colour: Colour = Colour.RED
    when: dt.datetime | None = None
    ids: set[uuid.UUID] = attrs.Factory(set)
    pair: tuple[int, str] = (0, "")
    raw: bytes = b""
    limit: int = 10
    plain: str = "x"


class StructCart(msgspec.Struct):
    lines: list[Line] = []
    colour: Colour = Colour.RED
    when: dt.datetime | None = None
    ids: set[uuid.UUID] = set()
    pair: tuple[int, str] = (0, "")
    raw: bytes = b""
    limit: int = 10
    plain: str = "x"


class TaggedCart(StructCart, tag="cart"):
    """A struct that carries a tag."""


class ArrayCart(StructCart, array_like=True):
    """A struct that is stored as an array."""


class ModelLine(pydantic.BaseModel):
    name: str = ""
    price: Decimal = Decimal(0)


class ModelCart(pydantic.BaseModel):
    lines: list[ModelLine] = []
    colour: Colour = Colour.RED
    when: dt.datetime | None = None
    ids: set[uuid.UUID] = set()
    pair: tuple[int, str] = (0, "")
    raw: bytes = b""
    limit: int = 10
    plain: str = "x"


class StrictCart(ModelCart):
    model_config = pydantic.ConfigDict(strict=True)


class ValidatingCart(ModelCart):
    model_config = pydantic.ConfigDict(validate_assignment=True, extra="forbid")


CARTS: list[Any] = [
    Cart,
    SlotsCart,
    AttrsCart,
    StructCart,
    TaggedCart,
    ArrayCart,
    ModelCart,
    StrictCart,
    ValidatingCart,
]


def fill(cart: Any) -> None:
    line = ModelLine if isinstance(cart, pydantic.BaseModel) else Line
    cart.lines.append(line(name="pear", price=Decimal("1.50")))
    cart.colour = Colour.BLUE
    cart.when = dt.datetime(2026, 1, 1, 12, 30, 15, 123456, tzinfo=dt.UTC)
    cart.ids.add(uuid.UUID(int=7))
    cart.pair = (1, "one")
    cart.raw = b"\0\xff"
    cart.limit = 2**40


@pytest.mark.parametrize("cls", CARTS)
def test_comes_back(make_world: Any, cls: Any) -> None:
    """State of every kind of class is made on first use, changed in place, and comes back equal."""
    world = make_world()
    session = world.open()
    cart = session[cls]

    assert cart == cls()
    assert session[cls] is cart
    fill(cart)
    token = world.commit(session).token
    back = world.open(token)[cls]

    assert type(back) is cls
    assert back == cart
    for name in ("lines", "colour", "when", "ids", "pair", "raw"):
        assert type(getattr(back, name)) is type(getattr(cart, name))
    assert type(back.lines[0].price) is Decimal


@pytest.mark.parametrize("cls", CARTS)
def test_only_a_change_is_written(make_world: Any, cls: Any) -> None:
    """State that was made or looked at and left as it was is no reason to write."""
    world = make_world()
    session = world.open()
    session[cls]
    assert world.commit(session).token is None
    session = world.open()
    fill(session[cls])
    token = world.commit(session).token

    session = world.open(token)
    assert session[cls].pair == (1, "one")
    assert not world.commit(session).wrote

    session = world.open(token)
    session[cls].lines[0].name = "quince"
    assert world.commit(session).wrote
    assert world.open(token)[cls].lines[0].name == "quince"


@pytest.mark.parametrize("cls", CARTS)
def test_set_delete_clear(make_world: Any, cls: Any) -> None:
    """State may be assigned, asked for, deleted and cleared; it is not among the keys."""
    world = make_world()
    session = world.open()
    assert cls not in session
    session[cls] = cls(limit=3)
    assert cls in session
    assert list(session) == []
    token = world.commit(session).token

    session = world.open(token)
    assert cls in session
    session[cls] = cls(limit=4)
    world.commit(session)
    assert world.open(token)[cls].limit == 4

    session = world.open(token)
    del session[cls]
    assert cls not in session
    with pytest.raises(KeyError):
        del session[cls]
    assert session[cls].limit == 10
    world.commit(session)
    assert cls not in world.open(token)

    session = world.open(token)
    session[cls].limit = 5
    session.clear()
    world.commit(session)
    assert cls not in world.open(token)


def test_deleted_and_used_again(world: Any) -> None:
    """After a deletion the state begins anew, and that is what is kept."""
    session = world.open()
    session[Cart].limit = 5
    session[Cart].plain = "old"
    token = world.commit(session).token
    session = world.open(token)
    del session[Cart]
    session[Cart].limit = 6
    world.commit(session)

    assert (world.open(token)[Cart].limit, world.open(token)[Cart].plain) == (6, "x")


def test_held_over_commits(world: Any) -> None:
    """State that was handed out is watched on after a commit, merged or not."""
    session = world.open()
    cart = session[Cart]
    cart.limit = 1
    token = world.commit(session).token
    other = world.open(token)
    other[Cart].plain = "other"
    world.commit(other)
    cart.raw = b"2"
    world.commit(session)
    cart.raw = b"3"
    world.commit(session)

    back = world.open(token)[Cart]
    assert (back.limit, back.plain, back.raw) == (1, "other", b"3")


def test_what_was_saved_is_not_written_again(world: Any) -> None:
    """A second commit with nothing changed in between writes nothing, nor does it merge."""
    session = world.open(world.visit(a=1))
    session[Cart].limit = 3
    assert world.commit(session).wrote

    assert not world.commit(session).wrote


def test_a_failed_commit_may_be_made_again(world: Any) -> None:
    """A change of state is not forgotten when the commit did not get through."""
    from sojourn.core import flows
    from sojourn.errors import StoreUnavailable

    token = world.visit(a=1)
    session = world.open(token)
    session[Cart].limit = 3
    flow = flows.commit(session, world.env)
    next(flow)
    with pytest.raises(StoreUnavailable):
        flow.throw(StoreUnavailable("down"))

    world.commit(session)

    assert world.open(token)[Cart].limit == 3


class AliasCart(pydantic.BaseModel):
    number: Annotated[int, Add] = pydantic.Field(0, alias="theNumber")


def test_aliases(world: Any) -> None:
    """A model whose fields have aliases comes back and merges like any other."""
    token = world.visit(a=1)
    first, second = world.open(token), world.open(token)
    for session in (first, second):
        session[AliasCart].number += 1
    for session in (first, second):
        world.commit(session)

    assert world.open(token)[AliasCart].number == 2


def test_frozen(world: Any) -> None:
    """A frozen class is changed by assigning a new one."""
    session = world.open()
    session[FrozenLine] = dataclasses.replace(session[FrozenLine], name="pear")
    token = world.commit(session).token

    assert world.open(token)[FrozenLine] == FrozenLine("pear")


@dataclass
class Numbered:
    names: dict[int, str] = field(default_factory=dict)


@attrs.define
class AttrsNumbered:
    names: dict[int, str] = attrs.Factory(dict)


class StructNumbered(msgspec.Struct):
    names: dict[int, str] = {}


class ModelNumbered(pydantic.BaseModel):
    names: dict[int, str] = {}


@pytest.mark.parametrize("cls", [Numbered, AttrsNumbered, StructNumbered, ModelNumbered])
def test_dicts_whose_keys_are_no_str(world: Any, cls: Any) -> None:
    """They are kept, changed in place, and written only when they have changed."""
    session = world.open()
    session[cls].names[3] = "three"
    token = world.commit(session).token

    session = world.open(token)
    session[cls].names[4] = "four"
    assert world.commit(session).wrote

    session = world.open(token)
    assert session[cls] == cls(names={3: "three", 4: "four"})
    assert not world.commit(session).wrote


@state("tree")
@dataclass
class Tree:
    leaf: Leaf | None = None
    branches: list[Tree] = field(default_factory=list)


@dataclass
class Leaf:
    size: Annotated[int, Max] = 0


def test_classes_that_name_themselves_and_later_ones(world: Any) -> None:
    """A class may have itself, and those that are written below it, in its annotations."""
    session = world.open()
    session[Tree].branches.append(Tree(Leaf(2)))
    token = world.commit(session).token

    assert world.open(token)[Tree] == Tree(branches=[Tree(Leaf(2))])
    assert describe(Tree).name == "tree"


# What is refused.


class Mixed(enum.Enum):
    ONE = 1
    TWO = "two"


@dataclass
class Unreadable:
    mixed: Mixed | None = None
    number: int = 0


def test_a_class_that_cannot_be_read_back(world: Any) -> None:
    """A type that is written, and that no decoder is made for, is refused when it is stored."""
    session = world.open()
    session[Unreadable].number = 1

    with pytest.raises(InvalidValue, match=r"session\[Unreadable\].*Mixed"):
        world.commit(session)


@dataclass
class Loose:
    items: list = field(default_factory=list)  # type: ignore[type-arg]
    anything: Any = None
    number: int = 0
    real: float = 0.0


class StructLoose(msgspec.Struct):
    items: list = []  # type: ignore[type-arg]
    anything: Any = None
    number: int = 0
    real: float = 0.0


class ModelLoose(pydantic.BaseModel):
    items: list[Any] = []
    anything: Any = None
    number: int = 0
    real: float = 0.0


LOOSE: list[Any] = [Loose, StructLoose, ModelLoose]


@pytest.mark.parametrize("cls", LOOSE)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("items", [(1, 2)]),
        ("items", [{1}]),
        ("anything", (1,)),
        ("anything", {1, 2}),
        ("anything", Decimal("1.5")),
        ("anything", uuid.UUID(int=1)),
        ("anything", Colour.RED),
    ],
)
def test_what_would_come_back_otherwise(make_world: Any, cls: Any, name: str, value: Any) -> None:
    """A value that its field's declaration would not bring back is refused, and the field named."""
    world = make_world()
    token = world.visit(a=1)
    session = world.open(token)
    setattr(session[cls], name, value)
    session["a"] = 2

    with pytest.raises(InvalidValue, match=rf"session\[{cls.__name__}\]\.{name} is "):
        world.commit(session)
    assert world.values(token) == {"a": 1}


@pytest.mark.parametrize("cls", LOOSE)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("anything", object()),
        ("anything", 2**70),
        ("anything", "\ud800"),
        ("number", "text"),
        ("number", None),
        ("items", 5),
        ("items", [object()]),
    ],
)
def test_what_cannot_be_stored(make_world: Any, cls: Any, name: str, value: Any) -> None:
    """What has no stored form, or what the class itself would refuse, is an InvalidValue."""
    world = make_world()
    token = world.visit(a=1)
    session = world.open(token)
    setattr(session[cls], name, value)

    with pytest.raises(InvalidValue, match=rf"session\[{cls.__name__}\]"):
        world.commit(session)


@dataclass
class Needs:
    name: str


def test_first_use_needs_defaults(world: Any) -> None:
    """A class that cannot be made without arguments says so; assigned first it is welcome."""
    session = world.open()

    with pytest.raises(InvalidValue, match=r"session\[Needs\] .*each field needs a default"):
        session[Needs]
    session[Needs] = Needs("alice")
    token = world.commit(session).token
    assert world.open(token)[Needs] == Needs("alice")


@pytest.mark.parametrize("cls", [int, str, dict, object, Colour, type])
def test_other_classes(world: Any, cls: Any) -> None:
    """A class that is none of the four kinds is refused, with the four kinds."""
    with pytest.raises(InvalidValue, match=r"dataclass, an attrs class, a msgspec Struct or a pyd"):
        world.open()[cls]


def test_only_of_exactly_that_class(world: Any) -> None:
    """A subclass would lose its own fields: it goes under its own class."""

    @dataclass
    class Special(Cart):
        extra: int = 0

    session = world.open()
    for value in (Special(), Line(), None, {}):
        with pytest.raises(InvalidValue, match=r"session\[Cart\] was set to a "):
            session[Cart] = value
    session[Special] = Special(extra=5)
    token = world.commit(session).token

    assert world.open(token)[Special].extra == 5
    assert Cart not in world.open(token)


@pytest.mark.parametrize(
    ("name", "version"), [("", 1), (None, 1), ("a", 0), ("a", "1"), ("a", True), ("a", 1.0)]
)
def test_wrong_names_and_versions(name: Any, version: Any) -> None:
    """A name is a text, a version an int from 1."""
    with pytest.raises(InvalidValue, match="a state's"):
        state(name, version=version)


# Names and versions.


def test_the_name_survives_a_refactoring(world: Any) -> None:
    """What counts is the name in `@state`, not where the class is defined."""

    @state("kept")
    @dataclass
    class Before:
        n: int = 0

    @state("kept")
    class After(msgspec.Struct):
        n: int = 0
        new: str = "default"

    session = world.open()
    session[Before].n = 5
    token = world.commit(session).token

    assert world.open(token)[After] == After(5, "default")


def test_classes_in_functions(world: Any) -> None:
    """Classes with annotations as text may be defined anywhere."""

    @dataclass
    class Local:
        n: Annotated[int, Add] = 0
        when: dt.date | None = None

    session = world.open()
    session[Local].n = 5
    session[Local].when = dt.date(2026, 1, 1)
    token = world.commit(session).token

    assert world.open(token)[Local] == Local(5, dt.date(2026, 1, 1))
    assert describe(Local).fields == {"n": Add, "when": None}


def versions() -> tuple[Any, Any, Any]:
    @state("basket")
    @dataclass
    class One:
        lines: list[str] = field(default_factory=list)

    @state("basket", version=2, upgrades={1: lambda old: {"items": old["lines"]}})
    @dataclass
    class Two:
        items: list[str] = field(default_factory=list)

    @state(
        "basket",
        version=3,
        upgrades={
            1: lambda old: {"items": old["lines"]},
            2: lambda old: {"items": {name: 1 for name in old["items"]}},
        },
    )
    class Three(pydantic.BaseModel):
        items: dict[str, int] = {}

    return One, Two, Three


def test_upgrades(world: Any) -> None:
    """Old state is upgraded step by step when it is loaded; that alone writes nothing."""
    one, two, three = versions()
    session = world.open()
    session[one].lines.append("pear")
    token = world.commit(session).token

    assert world.open(token)[two].items == ["pear"]
    session = world.open(token)
    assert session[three].items == {"pear": 1}
    assert not world.commit(session).wrote

    session = world.open(token)
    session[three].items["fig"] = 2
    world.commit(session)
    assert world.open(token)[three].items == {"pear": 1, "fig": 2}


def raw_state(world: Any, token: Any) -> bytes:
    return codec.split(world.record(token).data)["\0s:basket"]


def test_newer_state_is_left_untouched(world: Any) -> None:
    """Old code neither reads nor changes what newer code wrote, whatever else it does."""
    one, two, three = versions()
    session = world.open()
    session["a"] = 1
    session[three].items["pear"] = 2
    token = world.commit(session).token
    before = raw_state(world, token)
    for old in (one, two):
        session = world.open(token)
        assert old in session
        with pytest.raises(NewerState, match="written as version 3; this code knows"):
            session[old]
        with pytest.raises(NewerState):
            session[old] = old()
        session["a"] = [1]
        session["b" * len(old.__name__)] = 2
        session.login("alice")
        token = world.commit(session).token

        assert raw_state(world, token) == before
    assert world.open(token)[three].items == {"pear": 2}


def test_newer_state_that_came_meanwhile(world: Any) -> None:
    """Where newer code wrote first, the change of older code is a Conflict, and nothing is lost."""
    one, _, three = versions()
    session = world.open()
    session[one].lines.append("pear")
    token = world.commit(session).token
    old, new = world.open(token), world.open(token)
    old[one].lines.append("fig")
    new[three].items["quince"] = 1
    world.commit(new)
    before = raw_state(world, token)

    with pytest.raises(Conflict, match="cannot be merged"):
        world.commit(old)
    assert raw_state(world, token) == before


def test_older_state_that_came_meanwhile(world: Any) -> None:
    """Where older code wrote first, newer code upgrades that and merges into it."""

    @state("count")
    @dataclass
    class One:
        n: int = 0

    @state("count", version=2, upgrades={1: lambda old: {"total": old["n"]}})
    @dataclass
    class Two:
        total: Annotated[int, Add] = 0

    session = world.open()
    session[One].n = 10
    token = world.commit(session).token
    old, new = world.open(token), world.open(token)
    new[Two].total += 1
    old[One].n += 5
    world.commit(old)
    world.commit(new)

    assert world.open(token)[Two].total == 16


@pytest.mark.parametrize("how", ["delete", "clear"])
def test_deleted_by_another_request(world: Any, how: str) -> None:
    """What was there before a deletion does not come back; what was done since it began does."""
    token = world.visit(a=1)
    session = world.open(token)
    session[Ruled] = Ruled(total=5, best=2.0, log=["old"], tags={"old"}, plain=7)
    world.commit(session)
    mine, theirs = world.open(token), world.open(token)
    mine[Ruled].total += 1
    mine[Ruled].log.append("new")
    mine[Ruled].plain = 8
    if how == "clear":
        theirs.clear()
    else:
        del theirs[Ruled]
    world.commit(theirs)
    world.commit(mine)

    assert world.open(token)[Ruled] == Ruled(total=1, log=["new"], plain=8)


def test_set_after_a_deletion_by_another_request(world: Any) -> None:
    """State that a request sets is set as a whole; so is that of a class with no defaults."""

    @dataclass
    class Whole:
        number: Annotated[int, Add]

    token = world.visit(a=1)
    first = world.open(token)
    first[Ruled], first[Whole] = Ruled(total=5, plain=7), Whole(5)
    world.commit(first)
    mine, theirs = world.open(token), world.open(token)
    mine[Ruled] = Ruled(total=6, plain=7)
    mine[Whole].number += 1
    theirs.clear()
    world.commit(theirs)
    world.commit(mine)

    back = world.open(token)
    assert (back[Ruled], back[Whole]) == (Ruled(total=6, plain=7), Whole(6))


def test_a_damaged_state_can_be_assigned(world: Any) -> None:
    """Assigning over damaged state gives a fresh session with that state."""
    session = world.open()
    session[Cart].limit = 5
    token = world.commit(session).token
    record = world.record(token)
    damaged = msgspec.structs.replace(
        record, version=record.version + 1, data=record.data[:-1] + b"\0"
    )
    world.store.replace(damaged, record.version)
    session = world.open(token)

    session[Cart] = Cart(limit=6)
    done = world.commit(session)

    assert world.open(done.token)[Cart].limit == 6


# The rules of merging, one by one.


@dataclass
class Ruled:
    kind: ClassVar[str] = "ruled"
    total: Annotated[int, Add] = 0
    money: Annotated[Decimal, Add] = Decimal(0)
    time: Annotated[dt.timedelta, Add] = dt.timedelta(0)
    maybe: Annotated[int | None, Add] = None
    best: Annotated[float, Max] = 0.0
    maybe_best: Annotated[int | None, Max] = None
    log: Annotated[list[str], Append] = field(default_factory=list)
    trail: Annotated[tuple[int, ...], Append] = ()
    tags: Annotated[set[str], Union] = field(default_factory=set)
    notes: Annotated[dict[str, int], Union] = field(default_factory=dict)
    plain: int = 0


@dataclass(frozen=True, slots=True)
class FrozenRuled:
    total: Annotated[int, Add] = 0
    log: Annotated[tuple[str, ...], Append] = ()


class StructRuled(msgspec.Struct, frozen=True):
    total: Annotated[int, Add] = 0
    log: Annotated[tuple[str, ...], Append] = ()


@attrs.frozen
class AttrsRuled:
    total: Annotated[int, Add] = 0
    log: Annotated[tuple[str, ...], Append] = ()


class ModelRuled(pydantic.BaseModel, frozen=True):
    total: Annotated[int, Add] = 0
    log: Annotated[tuple[str, ...], Append] = ()


@pytest.mark.parametrize(
    ("name", "base", "theirs", "mine", "expected"),
    [
        ("total", 5, 7, 4, 6),
        ("money", Decimal("1.1"), Decimal("1.2"), Decimal("1.3"), Decimal("1.4")),
        ("time", dt.timedelta(1), dt.timedelta(2), dt.timedelta(3), dt.timedelta(4)),
        ("maybe", None, 3, 5, 5),
        ("maybe", 1, None, 5, 5),
        ("maybe", 1, 3, None, None),
        ("maybe", 1, 3, 5, 7),
        ("best", 1.0, 3.0, 2.0, 3.0),
        ("best", 1.0, 2.0, 3.0, 3.0),
        ("maybe_best", None, 3, None, 3),
        ("maybe_best", 1, None, 2, 2),
        ("log", ["a"], ["a", "b"], ["a", "c"], ["a", "b", "c"]),
        ("log", ["a"], ["a", "b"], ["c"], ["c"]),
        ("log", ["a"], [], ["a", "c"], ["c"]),
        ("trail", (1,), (1, 2), (1, 3), (1, 2, 3)),
        ("tags", {"a", "b"}, {"b", "c"}, {"a", "d"}, {"c", "d"}),
        ("notes", {"a": 1, "b": 2}, {"b": 2, "c": 3}, {"a": 1, "d": 4}, {"c": 3, "d": 4}),
        ("notes", {"a": 1}, {"a": 2}, {"a": 3}, {"a": 3}),
        ("notes", {"a": 1}, {"a": 2}, {"a": 1, "b": 1}, {"a": 2, "b": 1}),
        ("plain", 1, 2, 3, 3),
        ("plain", 1, 2, 1, 2),
    ],
)
def test_rules(name: str, base: Any, theirs: Any, mine: Any, expected: Any) -> None:
    """A field that two requests changed at once becomes what its rule says."""
    info = describe(Ruled)

    def segment(value: Any) -> bytes:
        return info.encode(Ruled(**{name: copy.deepcopy(value)}))

    merged = info.decode(info.merge(segment(base), segment(theirs), segment(mine)))

    assert merged == Ruled(**{name: expected})


@pytest.mark.parametrize("cls", [FrozenRuled, StructRuled, AttrsRuled, ModelRuled])
def test_frozen_classes_merge(make_world: Any, cls: Any) -> None:
    """Frozen classes of every kind merge too."""
    world = make_world()
    token = world.visit(a=1)
    sessions = [world.open(token) for _ in range(3)]
    for number, session in enumerate(sessions):
        session[cls] = cls(total=session[cls].total + 1, log=(str(number),))
    for session in sessions:
        world.commit(session)

    assert world.open(token)[cls] == cls(total=3, log=("0", "1", "2"))


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "gives None": lambda old: None,
    "gives too little": lambda old: {"items": 5},
}


@pytest.mark.parametrize("upgrade", BROKEN.values(), ids=BROKEN)
def test_upgrades_that_do_not_fit(make_world: Any, upgrade: Callable[[Any], Any]) -> None:
    """What an upgrade returns must fit the class; else asking for it raises and costs nothing."""
    world = make_world()
    one, _, _ = versions()

    @state("basket", version=2, upgrades={1: upgrade})
    @dataclass
    class Two:
        items: list[str] = field(default_factory=list)

    session = world.open()
    session[one].lines.append("pear")
    token = world.commit(session).token
    session = world.open(token)

    with pytest.raises(StateMismatch, match="does not fit its class"):
        session[Two]
    session["more"] = 1
    world.commit(session)
    assert world.open(token)[one].lines == ["pear"]


def test_a_missing_upgrade(world: Any) -> None:
    """Without an upgrade the error says which one is missing, and the stored state stays."""
    one, _, _ = versions()

    @state("basket", version=3, upgrades={2: lambda old: old})
    @dataclass
    class Three:
        items: list[str] = field(default_factory=list)

    session = world.open()
    session[one].lines.append("pear")
    token = world.commit(session).token
    session = world.open(token)

    with pytest.raises(StateMismatch, match=r"upgrades=\{1: ...\}"):
        session[Three]
    session["more"] = 1
    world.commit(session)
    assert world.open(token)[one].lines == ["pear"]


def kinds_of_two() -> Iterator[Any]:
    """The same state as older and as newer code has it; the newer one has a field more."""

    @state("profile")
    @dataclass
    class Old:
        n: int = 0

    @state("profile")
    @dataclass
    class New:
        n: int = 0
        z: str = ""

    @state("profile")
    class OldStruct(msgspec.Struct):
        n: int = 0

    @state("profile")
    class NewStruct(msgspec.Struct):
        n: int = 0
        z: str = ""

    @state("profile")
    class OldModel(pydantic.BaseModel):
        n: int = 0

    @state("profile")
    class NewModel(pydantic.BaseModel):
        n: int = 0
        z: str = ""

    yield pytest.param((Old, New), id="dataclass")
    yield pytest.param((OldStruct, NewStruct), id="struct")
    yield pytest.param((OldModel, NewModel), id="pydantic")


@pytest.mark.parametrize("kinds", list(kinds_of_two()))
def test_a_field_that_only_newer_code_has(world: Any, kinds: tuple[Any, Any]) -> None:
    """Old code carries it along, alone and when it merges: a rolling deploy loses nothing."""
    old, new = kinds
    session = world.open()
    session[new] = new(n=1, z="kept")
    token = world.commit(session).token

    session = world.open(token)
    session[old].n = 2
    world.commit(session)
    assert world.open(token)[new] == new(n=2, z="kept")

    slow, quick = world.open(token), world.open(token)
    slow[old].n = 5
    quick[new].z = "changed"
    world.commit(quick)
    world.commit(slow)
    assert world.open(token)[new] == new(n=5, z="changed")

    session = world.open(token)
    session[old] = old(n=7)
    world.commit(session)
    session[old].n = 8
    world.commit(session)
    assert world.open(token)[new] == new(n=8, z="changed")
