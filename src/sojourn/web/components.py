"""Components: objects that a session is adapted to by a zope interface, `ICounter(session)`.

Twisted and Pyramid adapt; here stands what of such a component is kept, so that both find the same
in one record. The schema is the interface itself: its Attributes, those of its bases included.

    class ICounter(Interface):
        value = Attribute("how often")
        value.setTaggedValue("merge", "add")

    @implementer(ICounter)
    class Counter:
        def __init__(self, session):
            self.value = 0

A component is made by its factory, and what is stored is set on it then. At the commit its
Attributes are encoded and compared with what they were, so changes in place are seen. Classes are
never named in the data, and nothing of it is pickled. Components of interfaces that this process
does not know stay in the record untouched.

Tagged values of an Attribute:
    transient: true: it is not kept.
    merge: what becomes of changes that two requests made at once: "add", "append", "union", "max",
        or "last" (as without it: the later commit wins).

Tagged values of an interface:
    session.key: the name that it is kept under; its dotted name without it. Give one where that
        is not unique, as in scripts that are all run under one module name.
    transient: true: components of it are not kept at all.
    version: an int, 1 without it; raise it when stored Attributes change their meaning.
    upgrades: for each older version a function from its Attributes, as a dict, to the next one's.

Where an Attribute is a field of zope.schema, values are validated by it when they are stored and
when they come back, and converted where the field can do that (text to a number, a list to a
tuple). A required field that is None is taken for not set.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from operator import is_
from typing import Any

from zope.interface import Invalid
from zope.interface.interface import Method

from sojourn.core import codec
from sojourn.core.operations import Kind, Operation
from sojourn.core.session import Session
from sojourn.core.state import Add, Append, Max, MergeRule, Union, Upgrade, _merged
from sojourn.core.status import TRANSITIONS, Event
from sojourn.core.work import Held
from sojourn.errors import (
    ConfigurationError,
    Conflict,
    DamagedRecord,
    InvalidValue,
    NewerState,
    StateMismatch,
)

__all__ = ["Schema", "component", "drop", "held", "hold", "put", "schema_of"]

Interface = Any
"""A zope interface: they are no types for type checkers."""
Fields = dict[str, Any]

_RULES: dict[str, MergeRule | None] = {
    "add": Add,
    "append": Append,
    "union": Union,
    "max": Max,
    "last": None,
}
_PREFIX = "\0c:"
_CACHED = "_v_sojourn_schema"
_COLLECTIONS = (list, tuple, set, frozenset)
_MISSING: Any = object()
_UNCHANGING = codec.IMMUTABLE | {object}


def component(session: Session, interface: Interface, make: Callable[[], Any]) -> Any:
    """Return the component of an interface: the one that this session has, or a new one.

    Args:
        session: the session of the core.
        interface: what it is to provide; with declared Attributes (see `schema_of`).
        make: makes one in its first state; what is stored is set on it. It may return None, where
            there is no factory, and so does this then.
    """
    found = held(session, interface)
    if found is None:
        made = make()
        if made is not None:
            found = hold(session, interface, made)
    return found


def held(session: Session, interface: Interface) -> Any:
    """Return the component that was made or set already since the session was loaded, or None."""
    schema = _schema(interface)
    return session._cache.get(schema)


def hold(session: Session, interface: Interface, made: Any, *, keep: bool = False) -> Any:
    """Set what is stored of a component on one that its factory has made, and watch it.

    Args:
        session: the session of the core.
        interface: what the component provides.
        made: the component in its first state.
        keep: where nothing is stored yet, store the first state, though nothing changed it.

    Returns:
        The component.

    Raises:
        NewerState, StateMismatch: what is stored does not fit the interface; it stays as it is.
    """
    schema = _schema(interface)
    packed = session._index.get(schema.key)
    if packed is None:
        first = schema.encode(made)
        _watch(session, schema, made, None, b"" if keep else first, first)
        return made
    raw = codec.segment(session._data, session._body, packed)
    try:
        fields, as_ours = schema.read_segment(raw)
    except DamagedRecord as error:
        session._give_up(error)
        return hold(session, interface, made, keep=keep)
    schema.fill(made, fields)
    # As this version has it: an upgrade alone is no reason to write.
    seen = schema.glance(made)
    before = schema.encode(made) if seen is None else None
    held = _watch(session, schema, made, raw, before, None)
    held.seen = seen
    held.as_ours = as_ours
    return made


def put(session: Session, interface: Interface, made: Any) -> None:
    """Let this be the component, in place of what is stored or was made before."""
    schema = _schema(interface)
    packed = session._index.get(schema.key)
    raw = None if packed is None else codec.segment(session._data, session._body, packed)
    _watch(session, schema, made, raw, b"", None)
    session._status = TRANSITIONS[session._status, Event.WRITE]


def drop(session: Session, interface: Interface) -> None:
    """Forget the component and what is stored of it.

    Raises:
        KeyError: there is none.
    """
    schema = _schema(interface)
    cache = session._cache
    if session._working().states.pop(schema.key, None) is None and schema.key not in session._index:
        raise KeyError(interface)
    cache.pop(schema, None)
    session._drop(schema.key)


def schema_of(interface: Interface) -> Schema | None:
    """Return what is kept of a component; None: nothing, it is of this process only.

    Raises:
        ConfigurationError: a tagged value that cannot be.
    """
    try:
        return interface.__dict__[_CACHED]  # type: ignore[no-any-return]
    except KeyError:
        # On the interface itself: another one of the same name is equal to it, and not it.
        schema = _read_schema(interface)
        setattr(interface, _CACHED, schema)
        return schema


def _schema(interface: Interface) -> Schema:
    schema = schema_of(interface)
    if schema is None:
        raise ConfigurationError(
            f"{interface.__identifier__} declares no Attributes, or is transient, so nothing of "
            "its components can be kept in a session"
        )
    return schema


def _watch(
    session: Session,
    schema: Schema,
    made: Any,
    loaded: bytes | None,
    before: bytes | None,
    first: bytes | None,
) -> _Component:
    # Filled first: where the session is given up as damaged it is another `_Work`.
    cache = session._cache
    held = _Component(_Use(schema, first), made, loaded, before)
    session._working().states[schema.key] = held
    cache[schema] = made
    return held


class Schema:
    """What is kept of the components of one interface.

    Attributes:
        name: of the interface in a record.
        key: under which it lies among the values; applications' keys cannot begin like that.
        version: of what is stored.
        upgrades: from older versions.
        fields: the Attributes that are kept, by name.
        rules: how each of them merges.
        checking: those of the fields that check their values.
    """

    __slots__ = (
        "_of",
        "checking",
        "fields",
        "interface",
        "key",
        "name",
        "rules",
        "upgrades",
        "version",
    )

    def __init__(
        self,
        interface: Interface,
        name: str,
        version: int,
        upgrades: Mapping[int, Upgrade],
        fields: dict[str, Any],
        rules: dict[str, MergeRule | None],
    ) -> None:
        self.interface = interface
        self.name = name
        self.key = _PREFIX + name
        self.version = version
        self.upgrades = upgrades
        self.fields = fields
        self.rules = rules
        # Plain Attributes take anything.
        self.checking = {name: one for name, one in fields.items() if hasattr(one, "validate")}
        self._of: dict[type, list[tuple[str, Any]]] = {}

    # In a session's cache it stands for all interfaces that are kept under its key.

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"<Schema {self.name}>"

    def encode(self, made: Any, unknown: Mapping[str, Any] | None = None) -> bytes:
        """Return the segment of a component, with Attributes that only newer code knows.

        Raises:
            InvalidValue: an Attribute that cannot be stored, or that its field refuses.
        """
        return self._pack({**(unknown or {}), **self.read(made)})

    def encode_seen(self, made: Any, seen: list[Any]) -> bytes:
        """Return the segment of a component as it was at a `glance`."""
        fields = {}
        for (name, field), value in zip(self._kept(made), seen, strict=True):
            if value is not _MISSING and not (
                value is None and name in self.checking and field.required
            ):
                fields[name] = value
        return self._pack(fields)

    def _pack(self, fields: Fields) -> bytes:
        try:
            return codec.encode_value([self.version, fields], key=self.name)
        except InvalidValue:
            for name, value in fields.items():
                # Again, one by one, to name the one that it is.
                codec.encode_value(value, key=f"{self.name}.{name}")
            raise

    def read(self, made: Any) -> Fields:
        """Return the Attributes of a component, validated; converted ones are set on it.

        Raises:
            InvalidValue: a field refuses one.
        """
        found = {}
        for name, field in self._kept(made):
            value = getattr(made, name, _MISSING)
            if value is _MISSING:
                continue
            if name not in self.checking:
                found[name] = value
                continue
            try:
                fitting = _fitting(field, value, made)
            except (Invalid, ValueError) as error:
                raise InvalidValue(
                    f"{self.name}.{name} is {value!r}; its field refuses that: {_why(error)}"
                ) from error
            if fitting is _MISSING:
                continue
            if fitting is not value:
                setattr(made, name, fitting)
            found[name] = fitting
        return found

    def glance(self, made: Any) -> list[Any] | None:
        """Return the Attributes as they are, if none of them can change in place."""
        seen = [getattr(made, name, _MISSING) for name, _ in self._kept(made)]
        for value in seen:
            if type(value) not in _UNCHANGING:
                return None
        return seen

    def fill(self, made: Any, fields: Fields) -> None:
        """Set stored Attributes on a component."""
        for name, _ in self._kept(made):
            if name in fields:
                setattr(made, name, fields[name])

    def _kept(self, made: Any) -> list[tuple[str, Any]]:
        """Return the Attributes but those that the class computes."""
        kind = type(made)
        kept = self._of.get(kind)
        if kept is None:
            kept = self._of[kind] = [
                (name, field) for name, field in self.fields.items() if not _computed(kind, name)
            ]
        return kept

    def decode(self, segment: bytes) -> Fields:
        """As `read_segment`, its Attributes alone."""
        return self.read_segment(segment)[0]

    def read_segment(self, segment: bytes) -> tuple[Fields, bool]:
        """Return the Attributes of a segment, upgraded and validated.

        Returns:
            The Attributes, and whether they are of this version and all declared.

        Raises:
            NewerState: a newer version of the interface wrote them.
            StateMismatch: a field refuses one, or an upgrade is missing.
            DamagedRecord: flipped bits, or it is not of a component.
        """
        version, fields = self._open(segment)
        as_ours = version == self.version and fields.keys() <= self.fields.keys()
        if version > self.version:
            raise NewerState(
                f"{self.name} was written as version {version}; this code knows {self.version} "
                "and leaves it untouched. Let newer code serve this visitor, or catch NewerState"
            )
        while version < self.version:
            upgrade = self.upgrades.get(version)
            if upgrade is None:
                raise StateMismatch(
                    f"{self.name} is stored as version {version}; there is no upgrade from it to "
                    f'{self.version}: give the interface the tagged value "upgrades", '
                    f"{{{version}: ...}}"
                )
            fields = upgrade(fields)
            version += 1
        for name, field in self.checking.items():
            if name not in fields:
                continue
            try:
                fitting = _fitting(field, fields[name], None)
            except (Invalid, ValueError) as error:
                raise StateMismatch(
                    f"{self.name}.{name} is stored as {fields[name]!r}; its field refuses that: "
                    f"{_why(error)}. Where the interface has changed, give it a new version and an "
                    "upgrade"
                ) from error
            if fitting is not _MISSING:
                fields[name] = fitting
        return fields, as_ours

    def unknown(self, segment: bytes) -> Fields:
        """Return the stored Attributes that this interface does not declare: newer code's."""
        try:
            version, fields = self._open(segment)
        except DamagedRecord:
            return {}
        if version != self.version:
            return {}
        return {name: value for name, value in fields.items() if name not in self.fields}

    def merge(self, base: Fields, theirs: bytes | None, mine: bytes) -> bytes:
        """Return a segment with what this request changed since `base` and what another one did.

        An Attribute that only one of the two changed is taken from that one; one that both did,
        by its rule. Where the other one deleted the component, only what this one changed is left.

        Raises:
            Conflict: the other one wrote what this code cannot read.
        """
        try:
            other = {} if theirs is None else self.decode(theirs)
        except StateMismatch as error:
            raise Conflict(f"{error}; the changes of this request cannot be merged") from error
        changed = self.decode(mine)
        out = {} if theirs is None else {**self.unknown(mine), **self.unknown(theirs)}
        for name in self.fields:
            old, new, now = (one.get(name, _MISSING) for one in (base, changed, other))
            # By their bytes: 1 and True are equal, and a change all the same.
            if _same(new, old):
                value = now
            elif _same(now, old) or _MISSING in (old, new, now):
                value = new
            else:
                value = _merged(self.rules[name], old, now, new)
            if value is not _MISSING:
                out[name] = value
        return self._pack(out)

    def _open(self, segment: bytes) -> tuple[int, Fields]:
        value = codec.decode_value(segment)
        if type(value) is list and len(value) == 2:
            version, fields = value
            if type(version) is int and type(fields) is dict:
                return version, fields
        raise DamagedRecord(f"what is stored under {self.name} is not of a component")


class _Component(Held):
    """A component that was handed out.

    Attributes:
        seen: its Attributes then, where none of them can change in place: to look at them costs
            less than to encode them, and most requests change none. None: `before` tells.
        as_ours: what was stored of it is of this version of the interface, and all declared.
    """

    __slots__ = ("_before", "as_ours", "seen")

    def __init__(self, use: _Use, made: Any, loaded: bytes | None, before: bytes | None) -> None:
        self.info: Any = use
        self.value = made
        self.loaded = loaded
        self._before = before
        self.seen: list[Any] | None = None
        self.as_ours = False

    @property
    def before(self) -> bytes:
        """How it was encoded when it was handed out; empty: it was set anew."""
        before = self._before
        if before is None:
            assert self.seen is not None
            try:
                before = self.info.cls.encode_seen(self.value, self.seen)
            except InvalidValue:
                # A default of its class that cannot be stored: whatever is there now is new.
                before = b""
            self._before = before
        return before

    @before.setter
    def before(self, before: bytes) -> None:
        self._before = before
        self.seen = None

    def operation(self) -> Operation | None:
        """As `Held.operation`."""
        seen = self.seen
        if seen is not None:
            schema: Schema = self.info.cls
            now = schema.glance(self.value)
            if now is not None and all(map(is_, seen, now)):
                return None
            if self.as_ours:
                # So what is stored is what it was, and nothing of it is to be carried along.
                mine = schema.encode(self.value)
                if mine == self.loaded:
                    return None
                return Operation(Kind.STATE, (self.loaded, mine, self.info.merge))
        return super().operation()


class _Use:
    """A schema in one session: what the core asks of typed state.

    Attributes:
        cls: stands for the component in the session's cache.
        first: the component as its factory made it, where nothing was stored: what a merge with
            another request's first one starts from.
    """

    __slots__ = ("cls", "first")

    def __init__(self, schema: Schema, first: bytes | None) -> None:
        self.cls = schema
        self.first = first

    def encode(self, made: Any, unknown: Mapping[str, Any] | None = None) -> bytes:
        """As `Schema.encode`."""
        return self.cls.encode(made, unknown)

    def unknown(self, segment: bytes) -> Fields:
        """As `Schema.unknown`."""
        return self.cls.unknown(segment)

    def changed(self, before: bytes, mine: bytes) -> bool:
        """Tell whether two segments differ that are not the same bytes: they do."""
        return True

    def check(self, made: Any, segment: bytes) -> None:
        """Nothing more to check: what was encoded comes back equal, or is refused."""

    def merge(self, loaded: bytes | None, theirs: bytes | None, mine: bytes) -> bytes:
        """As `Schema.merge`, from what was loaded, or from how it was made."""
        base = loaded if loaded is not None else self.first
        return self.cls.merge({} if base is None else self.cls.decode(base), theirs, mine)


def _computed(kind: type, name: str) -> bool:
    """Tell whether a class has a property of that name that cannot be set."""
    here = inspect.getattr_static(kind, name, None)
    return isinstance(here, property) and here.fset is None


def _same(one: Any, other: Any) -> bool:
    if one is _MISSING or other is _MISSING:
        return one is other
    return codec.encode_value(one, key="") == codec.encode_value(other, key="")


def _read_schema(interface: Interface) -> Schema | None:
    tagged = interface.queryDirectTaggedValue
    if tagged("transient"):
        return None
    where = interface.__identifier__
    name = tagged("session.key", where)
    version = tagged("version", 1)
    faults = []
    if not isinstance(name, str) or not name or not codec.is_text(name):
        faults.append(f"session.key is {name!r}; it must be a str that is not empty")
    if type(version) is not int or version < 1:
        faults.append(f"version is {version!r}; it must be an int from 1")
    fields: dict[str, Any] = {}
    rules: dict[str, MergeRule | None] = {}
    for field_name, field in interface.namesAndDescriptions(all=True):
        if isinstance(field, Method) or field.queryTaggedValue("transient"):
            continue
        rule = field.queryTaggedValue("merge", "last")
        if rule not in _RULES:
            allowed = ", ".join(map(repr, _RULES))
            faults.append(f"merge of {field_name} is {rule!r}; it must be one of {allowed}")
            continue
        fields[field_name] = field
        rules[field_name] = _RULES[rule]
    if faults:
        raise ConfigurationError(f"tagged values of {where}: {'; '.join(faults)}")
    if not fields:
        return None
    return Schema(
        interface,
        name,
        version,
        tagged("upgrades", {}),
        # In the order of their names: the same state is the same bytes in every process.
        {name: fields[name] for name in sorted(fields)},
        rules,
    )


# Fields of zope.schema. It is not imported: whoever uses its fields has it.


def _fitting(field: Any, value: Any, made: Any) -> Any:
    """Return the value, or what the field converts it to.

    `_MISSING`: a required field that is not filled in.

    Raises:
        Invalid, ValueError: the field refuses it.
    """
    if value is None and field.required:
        return _MISSING
    bound = field.bind(made)
    try:
        bound.validate(value)
    except Invalid:
        converted = _converted(bound, value)
        if converted is _MISSING:
            raise
        bound.validate(converted)
        return converted
    return value


def _converted(field: Any, value: Any) -> Any:
    if isinstance(value, bytes) and hasattr(field, "fromBytes"):
        return field.fromBytes(value)
    if isinstance(value, (str, bytes)) and hasattr(field, "fromUnicode"):
        return field.fromUnicode(value if isinstance(value, str) else value.decode())
    wanted = getattr(field, "_type", None)
    kinds = wanted if isinstance(wanted, tuple) else (wanted,)
    for kind in kinds:
        if kind in _COLLECTIONS and isinstance(value, _COLLECTIONS):
            return kind(value)
        if kind is float and type(value) is int:
            return float(value)
    return _MISSING


def _why(error: Exception) -> str:
    """Say what a field has to say: its errors explain themselves by their names."""
    doc = getattr(error, "doc", None)
    text = doc() if callable(doc) else ""
    return ": ".join(part for part in (type(error).__name__, text or str(error)) if part)
