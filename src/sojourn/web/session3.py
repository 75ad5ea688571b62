"""What Session3 left in a directory: one pickle for each session, read without running any of it.

A pickle is a program. Here its instructions are those that build plain values, dates and numbers,
and objects of the classes that the operator allows; and even of these no code runs: an object is
its attributes, held by a stand-in. Everything else is refused with its name.
"""

from __future__ import annotations

import datetime
import decimal
import io
import os
import pickle
import re
import stat
import uuid
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any, ClassVar, NamedTuple

from sojourn.core.adopting import token_of
from sojourn.core.codec import is_text
from sojourn.core.record import Client
from sojourn.core.token import Token
from sojourn.errors import InvalidValue

__all__ = [
    "ALLOWED",
    "Found",
    "Refused",
    "Unreadable",
    "read",
    "session_in",
    "taken_over",
    "token_of_id",
]

_DICT_SESSION = "session3.DictSession.DictSession"
ALLOWED = (
    "session3.Session.Session",
    _DICT_SESSION,
    "quixote.session.Session",
)
"""Classes that need no permission: they come with Session3 and Quixote."""

# Those of Session3 have 64 bits, those of Quixote's own managers 128.
_is_id = re.compile(r"[A-Za-z0-9_-]{11}(?:[A-Za-z0-9_-]{11})?").fullmatch
_NOT_VALUES = {"id", "user", "_creation_time", "_access_time", "_remote_address"}
# Of forms that were shown before: tokens are made another way now.
_NOT_VALUES |= {"_form_tokens", "_csrf_token"}
MAX_FILE = 16 * 1024 * 1024
"""Bytes; a larger file is no session that anybody could keep."""
MAX_PARTS = 1_000_000
"""Values in one session. A pickle can say in a few bytes what takes gigabytes when written out."""
MAX_DEPTH = 200
MAX_BITS = 1024
"""Of an integer. To write out or to convert a longer one can take hours."""
MAX_LOOKS = 50_000_000
"""At keys and members that are there when one is added: so many for a set of 10,000 numbers, if all
of them have one hash. What is hashed with the secret of this process, a text, costs nothing."""
MAX_KEY = 200
"""Values in one key or member. A tuple in a tuple in a tuple is hashed anew each time."""
_OPEN = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_OPEN |= getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)


class Unreadable(Exception):
    """A file that holds no session that can be taken over; the text says why."""


class Refused(Unreadable):
    """A file that asks for something that was not allowed.

    Attributes:
        name: of that: module and class.
    """

    def __init__(self, name: str) -> None:
        """Keep the name."""
        super().__init__(f"it holds a {name:.200}, which is not allowed")
        self.name = name


class Found(NamedTuple):
    """A session as its file has it.

    Attributes:
        name: of its class, with the module.
        attributes: plain values; an object that was allowed is a dict of its own attributes.
    """

    name: str
    attributes: dict[str, Any]


def token_of_id(value: str) -> Token | None:
    """Return the token that an id of Session3's stands for; None for what is no such id."""
    return token_of("session3", value) if _is_id(value) else None


def read(directory: str, name: str) -> bytes:
    """Return what is in the file of a session.

    Args:
        directory: where it lies.
        name: as the directory has it. What is inside a file never becomes part of a path.

    Raises:
        Unreadable: it is no ordinary file, or empty, or too large, or cannot be opened.
    """
    try:
        fd = os.open(os.path.join(directory, name), _OPEN)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("it is not an ordinary file")
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise Unreadable(f"it cannot be opened: {error.strerror}") from error
    if not data:
        raise Unreadable("it is empty")
    if len(data) > MAX_FILE:
        raise Unreadable(f"it is larger than {MAX_FILE:,} bytes")
    return data


def session_in(data: bytes, name: str, allowed: Collection[str]) -> Found:
    """Return the session that a file holds.

    Args:
        data: of the file.
        name: of the file, which is the id of the session.
        allowed: module and name of the classes that may be in it.

    Raises:
        Refused: something else is in it.
        Unreadable: it is damaged, or no session, or another one.
    """
    unpickler = _Unpickler(data, allowed)
    try:
        found = unpickler.load()
    except Refused:
        raise
    except Exception as error:
        # Whatever a damaged pickle makes of the machine that runs it.
        raise Unreadable(f"it is damaged, or no pickle of a session ({error!r:.80})") from error
    if not isinstance(found, _Object) or type(found.state) is not dict or found.arguments:
        raise Unreadable("it holds no session")
    state: dict[Any, Any] = found.state
    if state.get("id") != name or not all(type(key) is str for key in state):
        raise Unreadable("it holds another session, or none: its id is not the name of the file")
    parts = _Parts()
    try:
        attributes = {key: parts.plain(value, MAX_DEPTH) for key, value in state.items()}
    except (TypeError, ValueError, AttributeError) as error:
        # An object in a set, a UUID that is none.
        raise Unreadable(f"it holds what no session keeps ({error})") from error
    return Found(found.name, attributes)


def taken_over(
    found: Found, mapping: bool = False, user_id: str = ""
) -> tuple[dict[str, Any], str | None, Client]:
    """Return values, user and client as `sojourn.web.quixote` keeps them.

    Args:
        found: the session.
        mapping: it is a `DictSession`, also where its class is another one.
        user_id: the attribute of a user that is its id, where users are objects.

    Raises:
        InvalidValue: its user has no id that a session can keep, or a key cannot be one.
    """
    attributes = found.attributes
    user = attributes.get("user")
    values: dict[str, Any] = {}
    prefix = ""
    if mapping or found.name == _DICT_SESSION:
        # Keys and attributes are apart: see `sojourn.web.quixote.DictSession`.
        prefix = "."
        values.update(_keys_of(attributes.get("data", {}), prefix))
    for name, value in attributes.items():
        if name not in _NOT_VALUES and not (prefix and name == "data"):
            values[prefix + name] = value
    for key in values:
        if isinstance(key, str) and key[:1] == "\0":
            # That is where messages and the like of our own are kept.
            raise InvalidValue(f"session[{key!r:.80}]: a key must not begin with NUL")
    if type(user) is dict:
        values[prefix + "user"] = user
        if user_id not in user:
            raise InvalidValue(
                "its user is an object; name the attribute that is the user's id by --user-id"
                + (f" (it has {', '.join(map(str, user)):.200})" if user else "")
            )
        user = user[user_id]
    if type(user) is int:
        user = str(user)
    if not user:
        user = None
    elif type(user) is not str or len(user) > 255 or "\0" in user or not is_text(user):
        raise InvalidValue(
            f"its user is {user!r:.80}; a user is a str of 1 to 255 characters without NUL"
        )
    address = attributes.get("_remote_address")
    if type(address) is not str or not address.isprintable():
        address = ""
    return values, user, Client(address[:100])


def _keys_of(data: object, prefix: str) -> dict[Any, Any]:
    """Return the keys and values of a mapping.

    Raises:
        InvalidValue: it is none, or has a key that would be an attribute.
    """
    if type(data) is not dict:
        raise InvalidValue(f"its data is a {type(data).__name__}; the data of a mapping is a dict")
    for key in data:
        if isinstance(key, str) and key[:1] == prefix:
            raise InvalidValue(f"session[{key!r:.80}]: a key must not begin with a dot")
    return data


class _Object:
    """Stands for an object of an allowed class: what it was made of, and none of its code."""

    name = ""

    def __new__(cls, *arguments: Any) -> _Object:
        made = object.__new__(cls)
        made.arguments = arguments
        made.state = None
        return made

    arguments: tuple[Any, ...]
    state: Any

    def __setstate__(self, state: Any) -> None:
        """Keep what would become its attributes."""
        self.state = state


class _Decimal:
    """Stands for `decimal.Decimal`, which would also take what needs hours to convert."""

    def __new__(cls, text: object) -> Any:
        if type(text) is not str or len(text) > MAX_BITS:
            raise ValueError(f"a Decimal is made of a str of {MAX_BITS:,} characters at most")
        return decimal.Decimal(text)


class _Looks:
    """Counts what it may cost to look for keys whose hashes a file can choose."""

    def __init__(self) -> None:
        self._left = MAX_LOOKS

    def spend(self, there: int, keys: Iterable[Any]) -> None:
        """Count for keys, or members of a set, that are added to so many.

        Raises:
            ValueError: it is too much, or one of them is too large.
        """
        for there, key in enumerate(keys, there + 1):  # noqa: B020
            if type(key) is not str and type(key) is not bytes:
                self._left -= there * (MAX_KEY - _walked(key, MAX_KEY))
                if self._left < 0:
                    raise ValueError("it has too many keys or members that are no text")


def _walked(key: Any, left: int) -> int:
    """Return what is left of so many values after those of a key."""
    left -= 1
    if left < 0:
        raise ValueError(f"a key or member of a set holds more than {MAX_KEY} values")
    kind = type(key)
    if kind is uuid.UUID:
        return _walked(key.int, left)
    if kind is tuple or kind is frozenset:
        for one in key:
            left = _walked(one, left)
    elif kind is int and key.bit_length() > MAX_BITS:
        raise ValueError(f"a key is an integer of more than {MAX_BITS:,} bits")
    return left


class _Memo(dict[Any, Any]):
    """What a pickle has numbered. The numbers are texts here, as their hashes cannot be chosen."""

    def __setitem__(self, number: int, value: Any) -> None:
        if len(self) > MAX_PARTS:
            raise ValueError(f"it makes more than {MAX_PARTS:,} values")
        super().__setitem__(str(number), value)

    def __getitem__(self, number: int) -> Any:
        return super().__getitem__(str(number))


_PLAIN: dict[tuple[str, str], Callable[..., Any]] = {
    ("datetime", "datetime"): datetime.datetime,
    ("datetime", "date"): datetime.date,
    ("datetime", "time"): datetime.time,
    ("datetime", "timedelta"): datetime.timedelta,
    ("datetime", "timezone"): datetime.timezone,
    ("decimal", "Decimal"): _Decimal,
    ("uuid", "UUID"): uuid.UUID,
}
_FILLED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    # As protocol 2 calls them.
    ("__builtin__", "set"): set,
    ("__builtin__", "frozenset"): frozenset,
}
_ATOMS = {str, int, float, bool, type(None), bytes, datetime.date, datetime.timedelta}
_ATOMS |= {datetime.datetime, datetime.time, decimal.Decimal}

_NEEDED = """
    PROTO FRAME STOP MARK POP POP_MARK DUP MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM
    SETITEMS EMPTY_SET ADDITEMS FROZENSET GLOBAL STACK_GLOBAL NEWOBJ REDUCE BUILD
"""


_MAKING = "MARK TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST EMPTY_DICT EMPTY_SET"

_run: dict[int, Callable[..., None]] = pickle._Unpickler.dispatch


def _counted(run: Callable[..., None]) -> Callable[..., None]:
    def counted(self: _Unpickler) -> None:
        self._spend(())
        run(self)

    return counted


class _Unpickler(pickle._Unpickler):
    """Runs the instructions that are needed, with the classes that are allowed.

    The one in Python, as that in C makes room for whatever place in its memo a pickle names.
    """

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        code: _run[code] for code in (getattr(pickle, name)[0] for name in _NEEDED.split())
    }
    stack: list[Any]
    metastack: list[list[Any]]

    def __init__(self, data: bytes, allowed: Collection[str]) -> None:
        super().__init__(io.BytesIO(data))
        self.memo = _Memo()
        self._allowed = allowed
        self._left = MAX_PARTS
        self._looks = _Looks()
        self._named: dict[tuple[str, str], Any] = {}

    def _spend(self, arguments: Any) -> None:
        """Count what is made, and copied: one byte can make a set, three copy a list of a million.

        Raises:
            ValueError: it is too much.
        """
        self._left -= 1 + len(arguments)
        for one in arguments:
            if isinstance(one, (tuple, list, dict, set, frozenset)):
                self._left -= len(one)
        if self._left < 0:
            raise ValueError(f"it makes more than {MAX_PARTS:,} values")

    def _reduce(self) -> None:
        self._spend(self.stack[-1])
        _run[pickle.REDUCE[0]](self)

    def _newobj(self) -> None:
        self._spend(self.stack[-1])
        _run[pickle.NEWOBJ[0]](self)

    def _build(self) -> None:
        if not isinstance(self.stack[-2], (_Object, uuid.UUID)):
            raise ValueError("it has attributes for what has none")
        _run[pickle.BUILD[0]](self)

    # After a mark, what is added is the stack, and what it is added to is on the one below.

    def _setitem(self) -> None:
        self._looks.spend(len(self.stack[-3]), self.stack[-2:-1])
        _run[pickle.SETITEM[0]](self)

    def _setitems(self) -> None:
        self._looks.spend(len(self.metastack[-1][-1]), self.stack[::2])
        _run[pickle.SETITEMS[0]](self)

    def _dict(self) -> None:
        self._spend(())
        self._looks.spend(0, self.stack[::2])
        _run[pickle.DICT[0]](self)

    def _additems(self) -> None:
        self._looks.spend(len(self.metastack[-1][-1]), self.stack)
        _run[pickle.ADDITEMS[0]](self)

    def _frozenset(self) -> None:
        self._spend(())
        self._looks.spend(0, self.stack)
        _run[pickle.FROZENSET[0]](self)

    dispatch |= {
        getattr(pickle, name)[0]: _counted(_run[getattr(pickle, name)[0]])
        for name in _MAKING.split()
    }
    dispatch |= {
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _newobj,
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _setitem,
        pickle.SETITEMS[0]: _setitems,
        pickle.DICT[0]: _dict,
        pickle.ADDITEMS[0]: _additems,
        pickle.FROZENSET[0]: _frozenset,
    }

    def _filled(self, kind: Any, items: Any = ()) -> Any:
        """Return a set, a frozenset or a dict of what it was called with."""
        if type(items) not in (list, tuple):
            raise ValueError(f"a {kind.__name__} is made of a list")
        self._looks.spend(0, [key for key, _ in items] if kind is dict else items)
        return kind(items)

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in, or a plain type; imports nothing, and makes one of each."""
        found = self._named.get((module, name))
        if found is None:
            found = self._named[module, name] = self._stand_in(module, name)
        return found

    def _stand_in(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self._allowed:
            return type("_Stand_in", (_Object,), {"name": full})
        if (module, name) in _FILLED:
            return partial(self._filled, _FILLED[module, name])
        plain = _PLAIN.get((module, name))
        if plain is None:
            raise Refused(full)
        return plain


class _Parts:
    """Makes plain values of what was read, up to a number of them."""

    def __init__(self) -> None:
        self.left = MAX_PARTS
        self.looks = _Looks()
        # One text can be in a pickle once and in the session a million times.
        self.size = MAX_FILE

    def plain(self, value: Any, depth: int) -> Any:
        """Return the value with a dict for each object.

        Raises:
            Unreadable: too many values, or too deep, or something that no session keeps.
        """
        self.left -= 1
        if self.left < 0:
            raise Unreadable(f"it holds more than {MAX_PARTS:,} values")
        if depth < 0:
            raise Unreadable("its values are nested too deep, or contain themselves")
        kind = type(value)
        if kind in _ATOMS:
            if kind is str or kind is bytes:
                self.size -= len(value)
                if self.size < 0:
                    raise Unreadable(f"written out it is larger than {MAX_FILE:,} bytes")
            elif kind is int and value.bit_length() > MAX_BITS:
                raise Unreadable(f"it holds an integer of more than {MAX_BITS:,} bits")
            return value
        if kind is uuid.UUID:
            return uuid.UUID(int=value.int)
        depth -= 1
        if kind in (dict, set, frozenset):
            self.looks.spend(0, value)
        if kind is dict:
            return {self.plain(key, depth): self.plain(one, depth) for key, one in value.items()}
        if kind in (list, tuple, set, frozenset):
            return kind([self.plain(one, depth) for one in value])
        if isinstance(value, _Object):
            if value.state is None:
                # A named tuple, or a member of an enumeration.
                return self.plain(value.arguments, depth)
            if type(value.state) is dict and not value.arguments:
                return self.plain(value.state, depth)
            raise Unreadable(f"its {value.name} is no object with attributes alone")
        raise Unreadable(f"it holds a {kind.__qualname__}, which no session keeps")
