"""Typed state: a class of the application, kept in the session under a name and a version.

Dataclasses, attrs classes, msgspec Structs and pydantic models work as they are. What is stored is
a pair (version, fields); fields come back as the class declares them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import msgspec

from sojourn.core import codec
from sojourn.errors import Conflict, DamagedRecord, InvalidValue, NewerState, StateMismatch

__all__ = ["Add", "Append", "Max", "StateInfo", "Union", "describe", "state"]

T = TypeVar("T")
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]


class MergeRule:
    """How a field of typed state takes up changes that two requests made at once."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        """Name it for people."""
        self.name = name

    def __repr__(self) -> str:
        return self.name


Add = MergeRule("Add")
"""`Annotated[int, Add]`: what both added counts."""
Max = MergeRule("Max")
"""`Annotated[float, Max]`: the greater one stays."""
Append = MergeRule("Append")
"""`Annotated[list[str], Append]`: what both appended is kept."""
Union = MergeRule("Union")
"""`Annotated[set[str], Union]`: what both added or removed is; dicts are merged by their keys."""


class StateInfo(NamedTuple):
    """What is known of a class that is used as typed state."""

    cls: type[Any]
    name: str
    version: int
    upgrades: Mapping[int, Upgrade]
    fields: Mapping[str, MergeRule | None]
    stored: frozenset[str]
    model: bool

    @property
    def key(self) -> str:
        """Under which it lies among the values; applications' keys cannot begin like that."""
        return "\0s:" + self.name

    def new(self) -> Any:
        """Return a first one.

        Raises:
            InvalidValue: the class has fields without a default.
        """
        try:
            return self.cls()
        except (TypeError, ValueError) as error:
            raise InvalidValue(
                f"session[{self.cls.__name__}] makes one on first use, so each field needs a "
                f"default: {error}"
            ) from error

    def unknown(self, segment: bytes) -> dict[str, msgspec.Raw]:
        """Return the stored fields that this class does not have: newer code has added them.

        They are carried along, so that old code does not lose what new code wrote while both run.
        """
        try:
            version, fields = _open_fields(codec.unchecked(segment))
        except (msgspec.DecodeError, DamagedRecord):
            return {}  # Stored as an array, or not of typed state at all.
        if version != self.version:
            return {}
        return {name: raw for name, raw in fields.items() if name not in self.stored}

    def encode(self, value: Any, unknown: Mapping[str, msgspec.Raw] | None = None) -> bytes:
        """Return the segment of a value of this class, with fields that it does not have itself.

        Raises:
            InvalidValue: a field cannot be stored, or would not come back equal.
        """
        try:
            # By alias, since that is how a model is validated; `check` finds what warnings tell.
            fields = (
                value.model_dump(round_trip=True, by_alias=True, warnings=False)
                if self.model
                else value
            )
            raw = _encode((self.version, fields))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidValue(f"session[{self.cls.__name__}] cannot be stored: {error}") from error
        if unknown:
            version, mine = _open_fields(raw)
            raw = _encode((version, {**unknown, **mine}))
        return codec.checked(raw)

    def decode(self, segment: bytes) -> Any:
        """Return the value of a segment, upgraded where it is of an older version.

        Raises:
            NewerState: written by a newer version of the class than this one.
            StateMismatch: it is not of this class, or an upgrade is missing.
            DamagedRecord: flipped bits.
        """
        version, fields = self._open(segment)
        try:
            if version == self.version and not self.model:
                return msgspec.msgpack.decode(fields, type=self.cls)
            plain = msgspec.msgpack.decode(fields)
            while version < self.version:
                upgrade = self.upgrades.get(version)
                if upgrade is None:
                    raise StateMismatch(
                        f"session[{self.cls.__name__}] is stored as version {version}; there is "
                        f"no upgrade from it to {self.version}: add upgrades={{{version}: ...}}"
                    )
                plain = upgrade(plain)
                version += 1
            if self.model:
                # Not strict even where the model is: what it dumped comes as plain types, and
                # `check` has seen that it comes back equal.
                return self.cls.model_validate(plain, strict=False)
            return msgspec.convert(plain, self.cls, strict=False)
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
            # TypeError: a type that msgspec does not read, such as an Enum of numbers and texts.
            raise StateMismatch(
                f"session[{self.cls.__name__}] does not fit its class: {error}. Where the class "
                "has changed, give it a new version and an upgrade"
            ) from error

    def version_of(self, segment: bytes) -> int:
        """Return the version that wrote a segment.

        Raises:
            NewerState: a newer one than this.
            DamagedRecord: it is not of typed state.
        """
        return self._open(segment)[0]

    def check(self, value: Any, segment: bytes) -> None:
        """Make sure that a value comes back equal from its segment.

        Raises:
            InvalidValue: it does not; says which field, and what it would become.
        """
        try:
            back = self.decode(segment)
        except StateMismatch as error:
            # What the class itself would refuse, such as a str in a field declared as int.
            raise InvalidValue(
                f"session[{self.cls.__name__}] cannot be stored, since it would not come back: "
                f"{error.__cause__ or error}"
            ) from error
        for field in self.fields:
            mine, stored = getattr(value, field), getattr(back, field)
            if mine != stored and not (mine != mine and stored != stored):
                raise InvalidValue(
                    f"session[{self.cls.__name__}].{field} is {type(mine).__name__} and would "
                    f"come back as {type(stored).__name__}; declare the type that it holds"
                )

    def changed(self, loaded: bytes, mine: bytes) -> bool:
        """Tell whether any field differs, where the bytes do (a set has no order)."""
        try:
            return self._sorted(loaded) != self._sorted(mine)
        except StateMismatch:
            return True  # `check` says what is wrong with it.
        except TypeError:
            return True  # A dict whose keys are no str is not put in order: a write too many.

    def _sorted(self, segment: bytes) -> bytes:
        """Encode it with its sets in order: not by `==`, which sees no 1 that became True."""
        value = self.decode(segment)
        return _encode_sorted(value.model_dump(round_trip=True) if self.model else value)

    def merge(self, loaded: bytes | None, theirs: bytes | None, mine: bytes) -> bytes:
        """Return a segment with what this request changed and what another one did meanwhile.

        A field that only one of the two changed is taken from that one; a field that both did, by
        its rule, or from this request where it has none.

        Raises:
            Conflict: the other one wrote a newer version of the state.
        """
        try:
            # Deleted meanwhile: what this request changed, it would have changed in a new one.
            other = self.new() if theirs is None else self.decode(theirs)
        except InvalidValue:
            return mine  # None is made by itself.
        except StateMismatch as error:
            raise Conflict(f"{error}; the changes of this request cannot be merged") from error
        base = self.new() if loaded is None else self.decode(loaded)
        value = self.decode(mine)
        for name, rule in self.fields.items():
            old, new, now = (getattr(one, name) for one in (base, value, other))
            merged = now if new == old else new if now == old else _merged(rule, old, now, new)
            # Frozen classes merge too: nobody else has seen this instance.
            if isinstance(value, msgspec.Struct):
                msgspec.structs.force_setattr(value, name, merged)
            else:
                object.__setattr__(value, name, merged)
        return self.encode(value, None if theirs is None else self.unknown(theirs))

    def _open(self, segment: bytes) -> tuple[int, msgspec.Raw]:
        try:
            version, fields = _open(codec.unchecked(segment))
        except msgspec.DecodeError as error:
            raise DamagedRecord(f"session[{self.cls.__name__}] cannot be read: {error}") from None
        if version > self.version:
            raise NewerState(
                f"session[{self.cls.__name__}] was written as version {version}; this code knows "
                f"{self.version} and leaves it untouched. Let newer code serve this visitor, or "
                "catch NewerState"
            )
        return version, fields


def state(
    name: str, *, version: int = 1, upgrades: Mapping[int, Upgrade] | None = None
) -> Callable[[type[T]], type[T]]:
    """Name and version a class that is kept as typed state.

    Args:
        name: under which it is stored; unlike the class's own name it survives a refactoring.
        version: raise it whenever stored fields change their meaning, name or type.
        upgrades: for each older version a function that takes its fields as a dict and returns
            those of the next version; run on load.

    Example:
        >>> from dataclasses import dataclass, field
        >>> @state("cart", version=2, upgrades={1: lambda old: {"items": old["lines"]}})
        ... @dataclass
        ... class Cart:
        ...     items: list[str] = field(default_factory=list)
    """
    if not isinstance(name, str) or not name:
        raise InvalidValue(f"a state's name is {name!r}; it must be a str that is not empty")
    if type(version) is not int or version < 1:
        raise InvalidValue(f"a state's version is {version!r}; it must be an int from 1")

    def register(cls: type[T]) -> type[T]:
        _named[cls] = (name, version, upgrades or {})
        with contextlib.suppress(NameError):
            # Else its annotations name a class that comes later, or itself: see `describe`.
            _known[cls] = _describe(cls, *_named[cls])
        return cls

    return register


def describe(cls: type[Any]) -> StateInfo:
    """Return what is known of a class; one without `@state` goes by its module and name.

    Raises:
        InvalidValue: not a dataclass, attrs class, Struct or pydantic model.
    """
    info = _known.get(cls)
    if info is None:
        named = _named.get(cls) or (f"{cls.__module__}.{cls.__qualname__}", 1, {})
        try:
            info = _known[cls] = _describe(cls, *named)
        except NameError as error:
            raise InvalidValue(
                f"the annotations of {cls.__name__} cannot be read: {error}"
            ) from error
    return info


_known: WeakKeyDictionary[type[Any], StateInfo] = WeakKeyDictionary()
_named: WeakKeyDictionary[type[Any], tuple[str, int, Mapping[int, Upgrade]]] = WeakKeyDictionary()
"""What `state` was told of a class."""


def _describe(
    cls: type[Any], name: str, version: int, upgrades: Mapping[int, Upgrade]
) -> StateInfo:
    model = hasattr(cls, "__pydantic_serializer__")
    if model:
        names: Any = cls.model_fields
    elif hasattr(cls, "__struct_fields__"):
        names = cls.__struct_fields__
    elif hasattr(cls, "__dataclass_fields__"):
        # Without the pseudo-fields ClassVar and InitVar.
        names = [field.name for field in dataclasses.fields(cls)]
    elif hasattr(cls, "__attrs_attrs__"):
        names = [field.name for field in cls.__attrs_attrs__]
    else:
        raise InvalidValue(
            f"session[{getattr(cls, '__name__', cls)!s}]: typed state must be a dataclass, an "
            "attrs class, a msgspec Struct or a pydantic model"
        )
    hints = typing.get_type_hints(cls, include_extras=True)
    rules = {
        field: next(
            (m for m in getattr(hints.get(field), "__metadata__", ()) if isinstance(m, MergeRule)),
            None,
        )
        for field in names
    }
    stored = {*names, *getattr(cls, "__struct_encode_fields__", ())}
    tag = getattr(getattr(cls, "__struct_config__", None), "tag_field", None)
    if tag is not None:
        stored.add(tag)
    return StateInfo(cls, name, version, upgrades, rules, frozenset(stored), model)


def _merged(rule: MergeRule | None, old: Any, now: Any, new: Any) -> Any:
    """Return a field that both changed: `old` -> `now` in the store, `old` -> `new` here."""
    try:
        return _merge(rule, old, now, new)
    except (TypeError, ArithmeticError):
        # The rule does not fit what is there, such as None in an optional field: the later
        # request wins, as with a plain set.
        return new


def _merge(rule: MergeRule | None, old: Any, now: Any, new: Any) -> Any:
    if rule is Add:
        return now + (new - old)
    if rule is Max:
        return max(now, new)
    if rule is Append:
        size = len(old)
        # Only what was appended can be appended again; a list rebuilt otherwise is a plain set.
        return now + new[size:] if new[:size] == old else new
    if rule is Union:
        if isinstance(new, dict):
            kept = {key: item for key, item in now.items() if key in new or key not in old}
            return kept | {k: v for k, v in new.items() if k not in old or old[k] != v}
        return (now - (old - new)) | (new - old)
    return new


def _refuse(value: Any) -> Any:
    kind = type(value)
    raise TypeError(f"it holds a {kind.__module__}.{kind.__qualname__}, which has no stored form")


_encode = msgspec.msgpack.Encoder(enc_hook=_refuse).encode
_encode_sorted = msgspec.msgpack.Encoder(enc_hook=_refuse, order="deterministic").encode
_open = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw]).decode
_open_fields = msgspec.msgpack.Decoder(tuple[int, dict[str, msgspec.Raw]]).decode
