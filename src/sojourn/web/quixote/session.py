"""The session as Quixote's applications know it: an object with attributes of their own.

Each attribute is a key of the Sojourn session beneath, so what is said of keys holds for them: two
requests that set different ones both count, values may be changed in place, nothing is written
before the request has succeeded, and nothing at all for a request that only reads.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, MutableMapping
from copy import deepcopy
from datetime import timedelta
from typing import Any, TextIO

import quixote

from sojourn.core import session as core
from sojourn.core.operations import Kind
from sojourn.errors import ConfigurationError, CsrfError, InvalidValue

__all__ = ["DictSession", "Session", "Visit"]

CSRF_TOKEN_NAME = "csrf_token"
_CSRF = "_csrf_token"
_USED = "_used_form_tokens"
_REMEMBERED = 64
"""So many form tokens are known to be used; each is 22 characters."""
_NOT_THERE = object()


def _of_class(cls: type, name: str) -> Any:
    """Return what a class has under a name, unbound."""
    for one in cls.__mro__:
        if name in one.__dict__:
            return one.__dict__[name]
    return _NOT_THERE


def _is_code(name: str, found: object) -> bool:
    """Tell a method or property from a default; Python's own names are no defaults either."""
    return hasattr(type(found), "__get__") or name == "_prefix" or (name[:2] == "__" == name[-2:])


class Visit:
    """What a session object of Quixote's stands on: the Sojourn session of one request.

    Attributes:
        core: the Sojourn session.
        begun: whether the application has used it; a new session's `__init__` has run then.
        over: the request is over, but for a streamed body.
    """

    over = False

    def __init__(self, session: core.Session, begun: bool = False) -> None:
        """Stand on that session."""
        self.core = session
        self.begun = begun

    def begin(self) -> None:
        """Do what comes before the first use."""


class Session:
    """A visitor's session; subclass it for attributes and methods of your own.

    Attributes that are set are kept, except those of `__slots__` and what properties of a subclass
    do with theirs. Their values are those that a Sojourn session can hold. A class attribute is
    the default of the attribute of that name. As with Session3, `__init__` runs for a new session
    and not for one that was kept; it may set attributes, which are kept if `has_info` says so.
    """

    __slots__ = ("__weakref__", "_visit")

    _visit: Visit
    _prefix = ""
    """What stands before the name of an attribute in the key of the Sojourn session."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make a new session apart from that of the request; a manager makes that one."""
        manager = quixote.get_session_manager()
        return cls._standing_on(Visit(manager.sessions.session(), begun=True))

    def __init__(self, id: str | None = None) -> None:
        """Begin as a new session.

        Args:
            id: is not looked at; a session has an id when it is kept.
        """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a default that would take the place of what is ours: `user = None`, say."""
        super().__init_subclass__(**kwargs)
        for name, value in vars(cls).items():
            if hasattr(Session, name) and not _is_code(name, value):
                raise ConfigurationError(
                    f"{cls.__qualname__}.{name} = {value!r} would take the place of what "
                    f"Session.{name} does, a login say; leave it out, or choose another name"
                )

    @classmethod
    def _standing_on(cls, visit: Visit) -> Any:
        session = object.__new__(cls)
        object.__setattr__(session, "_visit", visit)
        return session

    @property
    def sojourn(self) -> core.Session:
        """The Sojourn session beneath: for typed state, messages, limits and all else of it."""
        visit = self._visit
        if not visit.begun:
            visit.begin()
            # Before the next line, which comes back here.
            is_new = visit.core.is_new
            visit.begun = True
            if is_new:
                self.__init__(None)  # type: ignore[misc]
        return visit.core

    # Free attributes.

    def __getattribute__(self, name: str) -> Any:
        found = _of_class(type(self), name)
        if found is not _NOT_THERE and _is_code(name, found):
            return object.__getattribute__(self, name)
        beneath = self.sojourn
        try:
            return beneath[self._prefix + name]
        except KeyError:
            if found is not _NOT_THERE:
                return found
        # What a cached_property, say, has put there for this request.
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        found = _of_class(type(self), name)
        if hasattr(type(found), "__set__"):
            object.__setattr__(self, name, value)
        elif found is not _NOT_THERE and _is_code(name, found):
            raise InvalidValue(
                f"session.{name} = ...: {name!r} is a method of {type(self).__qualname__}; a "
                "session can keep no value under that name, choose another"
            )
        else:
            self.sojourn[self._prefix + name] = value

    def __delattr__(self, name: str) -> None:
        found = _of_class(type(self), name)
        if found is not _NOT_THERE and _is_code(name, found):
            object.__delattr__(self, name)
            return
        try:
            del self.sojourn[self._prefix + name]
        except KeyError:
            raise AttributeError(f"the session has no attribute {name!r}") from None

    def __repr__(self) -> str:
        # Loads nothing: a debugger must not change what a request does.
        return f"<{type(self).__name__} on {self._visit.core!r}>"

    def __str__(self) -> str:
        user = self.user
        return f"session {self.id} ({'no user' if user is None else f'user {user}'})"

    def __reduce__(self) -> Any:
        raise TypeError("a session cannot be copied or pickled: it belongs to its request")

    # What Quixote calls.

    def start_request(self) -> None:
        """Called by the manager at the beginning of each request; call it from an override.

        Lets the application find the user as REMOTE_USER in the environment. He is looked up when
        it asks for that, so that a page that does not costs nothing.
        """
        request = quixote.get_request()
        if self._visit is getattr(request, "sojourn_visit", None):
            request.environ = _Environ(request.environ, self)

    def has_info(self) -> bool:
        """Tell whether the session is worth being kept; override it for attributes of your own.

        A new session is kept where this is true and something was written to it; one that is kept
        ends where a request changes it and this is false then.
        """
        return self.user is not None or (self._prefix + _CSRF) in self.sojourn

    # Who and when.

    @property
    def id(self) -> str | None:
        """The sid: names the session, safe to log and to show; None until it is kept."""
        beneath = self.sojourn
        return None if beneath.is_new else beneath.sid

    @property
    def user(self) -> str | None:
        """Who is logged in. To set another one is `set_user`."""
        try:
            return self.sojourn.user
        except Exception:
            if not self._visit.over:
                raise
            # Quixote's access log asks, and an error there would take the answer away: that of
            # the store, or of the application's `__init__`.
            return None

    @user.setter
    def user(self, user: str | None) -> None:
        if user != self.user:
            self._log_in(user)

    def set_user(self, user: str | None) -> None:
        """Log a user in, under a new secret; or with None out, which ends the session.

        After a login the old cookie is dead, and so are all form tokens. After a logout the
        attributes go on in a new session, which is kept if `has_info` says so.

        Args:
            user: the id, a str of 1 to 255 characters. Who has more to tell of a user overrides
                `set_user` and `get_user`, and keeps the id.

        Raises:
            InvalidValue: not such an id.
        """
        self._log_in(user)

    def get_user(self) -> str | None:
        """Return who is logged in."""
        return self.user

    def _log_in(self, user: str | None) -> None:
        beneath = self.sojourn
        if user is not None:
            beneath.login(user)
        elif beneath.user is not None:
            values = dict(beneath)
            beneath.end("user")
            beneath.update(values)
            for name in (_CSRF, _USED):
                beneath.pop(self._prefix + name, None)

    def get_remote_address(self) -> str:
        """Return the address of the client that made the session or last logged in."""
        return self.sojourn.client.address

    def get_creation_time(self) -> float:
        """Return when it was made, in UTC seconds."""
        return self.sojourn.created

    def get_access_time(self) -> float:
        """Return when it was last used before this request, to within a touch interval."""
        return self.sojourn.seen

    def get_creation_age(self, _now: float | None = None) -> float:
        """Return how many seconds ago it was made."""
        return (_now or self._now()) - self.sojourn.created

    def get_access_age(self, _now: float | None = None) -> float:
        """Return how many seconds ago it was last used before this request."""
        return (_now or self._now()) - self.sojourn.seen

    def _now(self) -> float:
        return self.sojourn._env.clock()

    def dump(self, file: TextIO | None = None, header: bool = True, deep: bool = True) -> None:
        """Write what the session is, in words; with `deep` its attributes too, one a line."""
        file = file or sys.stdout
        made, used = (
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
            for at in (self.get_creation_time(), self.get_access_time())
        )
        if header:
            file.write(f"session {self.id}:\n")
        file.write(f"  user: {self.user}\n  remote address: {self.get_remote_address()}\n")
        file.write(f"  created: {made}, last used: {used}\n")
        if deep:
            for key, value in self.sojourn.items():
                if key.removeprefix(self._prefix) not in (_CSRF, _USED):
                    file.write(f"  {key}: {value!r}\n")

    # Operations that merge with those of other requests.

    def add(self, name: str, amount: Any = 1) -> Any:
        """Add to an attribute; what concurrent requests add counts as well.

        An attribute that was not set yet counts from its default.

        Returns:
            The value as this request sees it.
        """
        return self._from_default(name).add(self._prefix + name, amount)

    def append(self, name: str, *items: Any) -> None:
        """Append to a list; what concurrent requests append is kept as well.

        An attribute that was not set yet begins with its default.
        """
        self._from_default(name).append(self._prefix + name, *items)

    def _from_default(self, name: str) -> core.Session:
        beneath, key = self.sojourn, self._prefix + name
        default = _of_class(type(self), name)
        if key not in beneath and default is not _NOT_THERE and default is not None:
            # Not set: of two requests at once it would count twice, or undo the other's.
            beneath._merge(key, Kind.DEFAULT, deepcopy(default))
        return beneath

    def renew(self) -> None:
        """Give the session a new secret; `set_user` does so by itself."""
        self.sojourn.renew()

    def remember(self, lifetime: timedelta | float) -> None:
        """Keep the visitor signed in for that long, also when the browser is closed."""
        self.sojourn.remember(lifetime)

    # Form tokens: each form can be sent once.

    def create_form_token(self) -> str:
        """Return a token for a form, another one for each.

        All of them are derived from one value of the session, so showing a form writes nothing,
        save the first one of an anonymous visitor, which makes a session.
        """
        if self.sojourn.user is None:
            # The session has to last until the form comes back.
            self.get_csrf_token()
        return self.sojourn.csrf_token

    def has_form_token(self, token: object) -> bool:
        """Tell whether a token that came in is of this session, and was not used yet."""
        return (
            isinstance(token, str)
            and self._is_ours(token)
            and token[:22] not in self.sojourn.get(self._prefix + _USED, ())
        )

    def remove_form_token(self, token: str) -> None:
        """Note that a token was used.

        Raises:
            ValueError: it is not of this session, or was used already.
        """
        if not self.has_form_token(token):
            raise ValueError("the form token is not of this session, or was used already")
        beneath, key = self.sojourn, self._prefix + _USED
        beneath.append(key, token[:22])
        used = beneath[key]
        if len(used) > _REMEMBERED:
            del used[:-_REMEMBERED]

    # Tokens against forged requests: one for the session.

    def get_csrf_token(self) -> str:
        """Return the token of the session: the same for all its pages, until the user changes."""
        beneath, key = self.sojourn, self._prefix + _CSRF
        token = beneath.get(key)
        if token is None or not self._is_ours(token):
            beneath[key] = token = beneath.csrf_token
        return token

    def valid_csrf_token(self, name: str | None = None) -> bool:
        """Tell whether the request is a POST whose field `name` holds the session's token."""
        request = quixote.get_request()
        if request.get_method() != "POST":
            return False
        given = request.get_field(name or CSRF_TOKEN_NAME)
        return self._is_ours(given[-1] if isinstance(given, list) and given else given)

    def _is_ours(self, token: object) -> bool:
        try:
            self.sojourn.check_csrf(token)
        except CsrfError:
            return False
        return True


class DictSession(Session, MutableMapping[str, Any]):
    """A session that is a mapping as well: `session["cart"]`.

    Keys and attributes are apart: `session["colour"]` and `session.colour` are two values. Like
    any mapping it is false while it has no keys, whoever is logged in.
    """

    __slots__ = ()

    # No key begins with it, so no key is taken for an attribute.
    _prefix = "."

    def has_info(self) -> bool:
        """As `Session.has_info`; and where there are keys."""
        return len(self) > 0 or super().has_info()

    def __getitem__(self, key: str) -> Any:
        if _is_attribute(key):
            raise KeyError(key)
        return self.sojourn[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if _is_attribute(key):
            raise InvalidValue(f"session[{key!r}]: a key must not begin with a dot")
        self.sojourn[key] = value

    def __delitem__(self, key: str) -> None:
        if _is_attribute(key):
            raise KeyError(key)
        del self.sojourn[key]

    def __iter__(self) -> Iterator[str]:
        return iter([key for key in self.sojourn if not _is_attribute(key)])

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _is_attribute(key: object) -> bool:
    return isinstance(key, str) and key[:1] == DictSession._prefix


class _Environ(dict[str, Any]):
    """The environment of a request, in which the user is looked up when he is asked for."""

    __slots__ = ("_session",)
    _session: Session | None

    def __init__(self, environ: Any, session: Session) -> None:
        super().__init__(environ)
        self._session = session

    def _look(self, key: object) -> None:
        session = self._session
        if key == "REMOTE_USER" and session is not None:
            user = session.user
            self._session = None
            if user is not None:
                self["REMOTE_USER"] = str(user)

    def __getitem__(self, key: str) -> Any:
        self._look(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._look(key)
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As that of a dict."""
        self._look(key)
        return super().get(key, default)

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "REMOTE_USER":
            self._session = None
        super().__setitem__(key, value)
