"""What applications hold: a `twisted.web.server.Session` that outlives the process.

It is the stock class with its whole interface, over a session of the core. An application's own
session class, or what its `sessionFactory` returns, is made one by `durable`.

A session that was made by hand (`Session(site, uid)`, `site.makeSession()`) has nothing of the
core: it is of this process only, and does what the stock one does.
"""

# Twisted has few types; and a Deferred with a callback need not be awaited.
# mypy: disable-error-code="no-untyped-call,unused-awaitable"

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, ValuesView
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.web import server

from sojourn.core import codec
from sojourn.core.opening import Opened
from sojourn.core.rules import Environment
from sojourn.core.session import Session as CoreSession
from sojourn.errors import ConfigurationError, InvalidValue, SessionEnded
from sojourn.manager import Committed, SessionManager
from sojourn.web import components
from sojourn.web.twisted._log import log
from sojourn.web.twisted.driver import as_deferred
from sojourn.web.twisted.live import LiveSession
from sojourn.web.twisted.realm import Entry, Live

__all__ = ["CURRENT", "DurableSession", "Session", "durable"]

if TYPE_CHECKING:
    _Base = server.Session
else:
    # It is put before the class, whichever it is.
    _Base = object

CURRENT: ContextVar[Any] = ContextVar("sojourn.web.twisted.request", default=None)
"""The request that is rendered at the moment."""

_ATTRIBUTE = "\0a:"
"""Before the names of plain attributes, as keys of the values."""
_STOCK = frozenset(
    {
        "_adapterCache",
        "_expireCall",
        "_reactor",
        "_sojourn",
        "_sojourn_core",
        "_sojourn_known",
        "_sojourn_stored",
        "expireCallbacks",
        "lastModified",
        "sessionNamespaces",
        "site",
        "uid",
    }
)
"""Attributes of the stock session and of ours: of this process, or kept otherwise."""
_TIMEOUT = server.Session.sessionTimeout
_warned: set[tuple[str, str]] = set()


class _Of:
    """An attribute of the core's session; one of the same name set by an application wins."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, session: Any, owner: Any = None) -> Any:
        if session is None:
            return self
        return getattr(session._core, self.name)


class _Limit(_Of):
    """An attribute of the core's session that may be set."""

    def __set__(self, session: Any, value: Any) -> None:
        setattr(session._writable(), self.name, value)


class _Timeout:
    """`sessionTimeout`: of the instance, else of its class, else the manager's idle timeout."""

    def __get__(self, session: Any, owner: Any = None) -> Any:
        kind = owner if session is None else type(session)
        timeout = _of_class(kind)
        if timeout is not None:
            return timeout
        if session is None or session._sojourn is None:
            return _TIMEOUT
        idle = session._core.idle_timeout
        return None if idle is None else idle.total_seconds()


def _of_class(kind: type) -> Any:
    """Return what an application has set as `sessionTimeout` on a class; None: it has not."""
    for cls in kind.__mro__:
        found = cls.__dict__.get("sessionTimeout")
        if found is not None and not isinstance(found, _Timeout):
            return None if cls is server.Session and found == _TIMEOUT else found
    return None


class _NoCall:
    """In place of the timer that a session had: there is none for each."""

    def active(self) -> bool:
        return False

    def cancel(self) -> None:
        """There is nothing to cancel."""

    def reset(self, seconds: float) -> None:
        """There is nothing to put off."""

    delay = reset


class DurableSession(_Base):
    """What makes a session class a durable one; put before the class by `durable`."""

    _sojourn: Live | None = None
    _sojourn_core: CoreSession | None = None
    _sojourn_known: dict[str, bytes | None]
    _sojourn_stored: set[str]

    sessionTimeout: Any = _Timeout()

    def _bind(self, live: Live) -> None:
        """Become the face of a live session."""
        state = vars(self)
        state["_sojourn"] = live
        # What its constructor has set is its first state, and no reason to store anything.
        state["_sojourn_known"] = {name: _encoded(state[name]) for name in _plain(state)}
        state["_sojourn_stored"] = set()
        if live.shared:
            live.core.use()
        self._load_attributes()

    # The core.

    @property
    def _core(self) -> CoreSession:
        live = self._sojourn
        if live is not None:
            shared: CoreSession = live.core
            return shared
        core = self._sojourn_core
        if core is None:
            # Made by hand: a session of its own, that nobody commits.
            core = _local()
            vars(self)["_sojourn_core"] = core
        return core

    def _writable(self) -> CoreSession:
        live = self._sojourn
        if live is not None and live.over:
            raise SessionEnded(
                f"session {live.sid} has ended, and nothing can be kept in it any more; "
                "request.getSession() returns a fresh one"
            )
        return self._core

    def _entry(self, request: Any = None) -> Entry | None:
        """Return the request that is at work with this session; None: it is not known which."""
        live = self._sojourn
        if live is None:
            return None
        if request is not None:
            return live.entry_of(request)
        entry = live.entry_of(CURRENT.get())
        if entry is None and len(live.entries) == 1:
            entry = live.entries[0]
        return entry

    def _speaker(self, request: Any, what: str) -> Entry:
        """Return the request whose answer brings the new cookie.

        Raises:
            ConfigurationError: several use the session, and it is not known which it is.
        """
        entry = self._entry(request)
        if entry is None:
            raise ConfigurationError(
                "several requests use this session at the moment, or none does, and it is not "
                f"known for which of them this is; say so: session.{what}(..., request=request)"
            )
        return entry

    # The stock interface.

    @property
    def uid(self) -> bytes:
        """The sid, as bytes: safe to print and to log. Whoever asks for it has it kept."""
        live = self._sojourn
        if live is not None and live.shared and not live.over:
            live.core.keep()
        return vars(self)["uid"]  # type: ignore[no-any-return]

    @uid.setter
    def uid(self, uid: bytes) -> None:
        vars(self)["uid"] = uid

    def startCheckingExpiration(self) -> None:
        """Nothing to start: no session has a timer."""
        if self._sojourn is None:
            super().startCheckingExpiration()
        else:
            self._expireCall = _NoCall()

    def notifyOnExpire(self, callback: Callable[[], object]) -> None:
        """Call back once, in this process, when the session has ended: here or elsewhere."""
        live = self._sojourn
        if live is not None:
            if live.over:
                _call(callback, live.sid)
                return
            live.pin()
        super().notifyOnExpire(callback)

    def touch(self) -> None:
        """Count as a use; written at most once a touch interval."""
        super().touch()
        live = self._sojourn
        if live is not None and live.shared and not live.over:
            live.core.use()

    def expire(self) -> None:
        """End the session for good. Harmless where it has ended already."""
        self.end("user")

    def end(self, reason: str = "user", *, request: Any = None) -> None:
        """End the session for good, and call back who waits for that.

        The browser's cookie is cleared, and `request.getSession()` returns a fresh session.

        Args:
            reason: user, operator, replaced, password, theft; `ended_before` tells it later.
            request: whose answer clears the cookie, where several use the session.
        """
        live = self._sojourn
        if live is None:
            if self.site is None or self.site.sessions.get(self.uid) is self:
                super().expire()
            return
        if not live.over:
            live.end(reason, self._entry(request))
            self._ended()
            sessions = getattr(self.site, "sessions", None)
            if type(sessions) is dict:
                # Of a stock site, which the stock session is about to leave.
                sessions[self.uid] = self
            super().expire()

    logout = expire

    def _ended(self) -> None:
        """Call back who waits for the end: each once, whatever another of them does."""
        callbacks, self.expireCallbacks = self.expireCallbacks, []
        live = self._sojourn
        for callback in callbacks:
            _call(callback, live.sid if live is not None else "")

    # Components.

    def getComponent(self, interface: Any, default: Any = None) -> Any:
        """Return the component of an interface, as the session keeps it."""
        live = self._sojourn
        if live is None or components.schema_of(interface) is None:
            found = super().getComponent(interface, default)
            if live is not None and found is not default and found is not self:
                self._hold_local(interface)
            return found
        core = live.core
        found = components.held(core, interface)
        if found is not None:
            return found
        made = interface.__adapt__(self)
        if made is None or made is self or live.over:
            return default if made is None else made
        if getattr(made, "temporaryAdapter", False):
            return made
        found = components.hold(core, interface, made, keep=True)
        if getattr(made, "multiComponent", False):
            self.addComponent(made)
        return found

    def setComponent(self, interface: Any, component: Any) -> None:
        """Let this be the component of an interface."""
        if self._sojourn is None or components.schema_of(interface) is None:
            super().setComponent(interface, component)
            if self._sojourn is not None:
                self._hold_local(interface)
            return
        components.put(self._writable(), interface, component)

    def unsetComponent(self, interface: Any) -> None:
        """Forget the component of an interface."""
        if self._sojourn is None or components.schema_of(interface) is None:
            super().unsetComponent(interface)
            return
        components.drop(self._writable(), interface)

    def _hold_local(self, interface: Any) -> None:
        """Stay in memory for a component that is of this process only."""
        live = self._sojourn
        assert live is not None
        if not live.pinned and interface.__identifier__ in _qualified(self):
            live.pin()

    # Plain attributes.

    def _load_attributes(self) -> None:
        """Set the stored ones; what was changed here and is not committed yet stays."""
        live = self._sojourn
        assert live is not None
        core, state, known = live.core, vars(self), self._sojourn_known
        stored = {key for key in core._index if key.startswith(_ATTRIBUTE)} if _has(core) else ()
        if not stored and not self._sojourn_stored:
            return
        for key in stored:
            name = key[len(_ATTRIBUTE) :]
            if name in state and _encoded(state[name]) != known.get(name):
                continue
            value = core.get(key)
            state[name] = value
            known[name] = _encoded(value)
        for name in [name for name in self._sojourn_stored if _ATTRIBUTE + name not in stored]:
            if name in state and _encoded(state[name]) == known.get(name):
                del state[name], known[name]
        state["_sojourn_stored"] = {key[len(_ATTRIBUTE) :] for key in stored}

    def _reset(self) -> None:
        """Forget what was changed since the last commit."""
        state = vars(self)
        for name in _plain(state):
            if name not in self._sojourn_stored and name not in self._sojourn_known:
                del state[name]
        for name in list(self._sojourn_stored):
            state.pop(name, None)
            self._sojourn_known.pop(name, None)
        self._load_attributes()

    def _refresh(self) -> None:
        """Show what a commit or another process has written."""
        self._load_attributes()

    def _collect(self) -> None:
        """Hand plain attributes over to the core; called before each commit."""
        live = self._sojourn
        assert live is not None
        core, state, known = live.core, vars(self), self._sojourn_known
        for name in _plain(state):
            value = state[name]
            raw = _encoded(value)
            if raw is None:
                self._stays_local(name, value)
                if name in self._sojourn_stored or known.get(name) is not None:
                    self._drop_attribute(core, name)
                known[name] = None
            elif name not in known or raw != known[name]:
                known[name] = raw
                core._put(_ATTRIBUTE + name, value)
                self._sojourn_stored.add(name)
        for name in [name for name in known if name not in state]:
            del known[name]
            self._drop_attribute(core, name)
        self._set_timeout(core)

    def _drop_attribute(self, core: CoreSession, name: str) -> None:
        self._sojourn_stored.discard(name)
        if _has(core) and _ATTRIBUTE + name in core._index:
            core._drop(_ATTRIBUTE + name)

    def _set_timeout(self, core: CoreSession) -> None:
        """Let `sessionTimeout` hold for this session, if it is one that is kept."""
        wanted = vars(self).get("sessionTimeout")
        if wanted is None:
            wanted = _of_class(type(self))
        if wanted is None or (core.is_new and core._settled()):
            return
        idle = core.idle_timeout
        if idle is None or idle.total_seconds() != wanted:
            core.idle_timeout = wanted

    def _stays_local(self, name: str, value: Any) -> None:
        live = self._sojourn
        assert live is not None
        live.pin()
        kind = type(value)
        if (name, kind.__qualname__) not in _warned:
            _warned.add((name, kind.__qualname__))
            log.warn(
                "session.{attribute} holds a {module}.{kind}, which cannot be stored; it stays in "
                "this process. Storable are {allowed}",
                attribute=name,
                module=kind.__module__,
                kind=kind.__qualname__,
                allowed=codec.ALLOWED,
            )

    # A mapping, and what the core's session has more.

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, key: Any) -> Any:
        return self._core[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._writable()[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._writable()[key]

    def __contains__(self, key: object) -> bool:
        return key in self._core

    def __iter__(self) -> Iterator[str]:
        return iter(self._core)

    def __len__(self) -> int:
        return len(self._core)

    def __repr__(self) -> str:
        live = self._sojourn
        if live is None:
            return object.__repr__(self)
        return f"<{type(self).__name__} {live.sid}{' ended' if live.over else ''}>"

    def get(self, key: Any, default: Any = None) -> Any:
        """As of a dict."""
        return self._core.get(key, default)

    def keys(self) -> KeysView[str]:
        """As of a dict."""
        return self._core.keys()

    def values(self) -> ValuesView[Any]:
        """As of a dict."""
        return self._core.values()

    def items(self) -> ItemsView[str, Any]:
        """As of a dict."""
        return self._core.items()

    def pop(self, key: Any, *default: Any) -> Any:
        """As of a dict."""
        return self._writable().pop(key, *default)

    def popitem(self) -> tuple[str, Any]:
        """As of a dict."""
        return self._writable().popitem()

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """As of a dict."""
        return self._writable().setdefault(key, default)

    def update(self, *others: Any, **values: Any) -> None:
        """As of a dict."""
        self._writable().update(*others, **values)

    def clear(self) -> None:
        """Remove all values, typed state, components and messages; the session lives on."""
        self._writable().clear()

    def add(self, key: str, amount: Any = 1) -> Any:
        """Add to a number; what concurrent requests of other processes add counts as well."""
        return self._writable().add(key, amount)

    def append(self, key: str, *items: Any) -> None:
        """Append to a list; what others append is kept as well."""
        self._writable().append(key, *items)

    def union(self, key: str, items: Iterable[Any]) -> None:
        """Add to a set; what others add is kept as well."""
        self._writable().union(key, items)

    def max(self, key: str, value: Any) -> Any:
        """Set a value if it is greater; of concurrent ones the greatest wins."""
        return self._writable().max(key, value)

    def flash(self, message: Any, queue: str = "", allow_duplicate: bool = True) -> None:
        """Keep a message for the next page that pops it."""
        self._writable().flash(message, queue, allow_duplicate)

    def peek_flash(self, queue: str = "") -> list[Any]:
        """Return the messages of a queue and leave them there."""
        return self._core.peek_flash(queue)

    def pop_flash(self, queue: str = "") -> list[Any]:
        """Return the messages of a queue and remove them."""
        return self._writable().pop_flash(queue)

    def check_csrf(self, token: object) -> None:
        """Make sure that a form's token is of this session."""
        self._core.check_csrf(token)

    def fresh(self, within: Any) -> bool:
        """Tell whether the user logged in within that time."""
        return self._core.fresh(within)

    def remember(self, lifetime: Any) -> None:
        """Keep the visitor signed in for that long, also when the browser is closed."""
        self._writable().remember(lifetime)
        vars(self).pop("sessionTimeout", None)
        vars(self)["sessionTimeout"] = self._core.idle_timeout.total_seconds()  # type: ignore[union-attr]

    def login(self, user: str, *, request: Any = None, **claims: Any) -> None:
        """Log a user in: a new secret, a new form token, both limits start anew.

        Other requests that use the session meanwhile do not go on with it: they are told to come
        again (409).

        Args:
            user: the user's id.
            request: whose answer brings the new cookie, where several use the session and it is
                not the one that is rendered at the moment.
            claims: see `claims`.
        """
        core = self._writable()
        live = self._sojourn
        if live is None:
            core.login(user, **claims)
            return
        speaker = self._speaker(request, "login")
        if core.user not in (None, user):
            self.end("replaced", request=speaker.request)
            speaker.request.getSession().login(user, request=speaker.request, **claims)
            return
        core._opened = speaker.opened
        core._client = speaker.request._client_of()
        core.login(user, **claims)
        live.speaker = speaker
        for entry in live.entries:
            if entry is not speaker and entry.request.startedWriting:
                # It cannot be told any more, and is to see nothing of this user's.
                entry.request.cut_off()

    def renew(self, *, request: Any = None) -> None:
        """Give the session a new secret; its uid and what is in it stay."""
        core = self._writable()
        live = self._sojourn
        if live is None:
            return
        speaker = self._speaker(request, "renew")
        core._opened = speaker.opened
        core.renew()
        live.speaker = speaker

    def exclusive(
        self, *, wait: float = 10.0, lease: float = 30.0, request: Any = None
    ) -> Deferred[Any]:
        """Take the lock of the session; the Deferred fires with the session, read anew.

        The lock is given back by itself, with the commit before the answer leaves, or when the
        request is over. A request that cannot have it gets a `Conflict` (409).

        Args:
            wait: how many seconds to wait at most.
            lease: after how many seconds the lock ends by itself, should this process die.
            request: which takes it, where several use the session.
        """
        live = self._sojourn
        self._writable()
        if live is None:
            raise ConfigurationError("a session that was made by hand has no lock")
        return live.realm.lock(self._speaker(request, "exclusive"), wait, lease)

    def commit(self) -> Deferred[Committed]:
        """Write now what was done so far: for work that outlasts its request, or long streams."""
        live = self._sojourn
        if live is None:
            raise ConfigurationError("a session that was made by hand is in no store")
        entry = self._entry() or Entry(live, None, live.core._opened, self)
        request = entry.request
        return as_deferred(live.realm.commit(entry, request is None or request.too_late))

    sid: str = _Of("The uid, as a str.")  # type: ignore[assignment]
    user: str | None = _Of("Who is logged in.")  # type: ignore[assignment]
    claims: dict[str, Any] = _Of("What `login` was told of the user.")  # type: ignore[assignment]
    authenticated: float | None = _Of("When the user logged in.")  # type: ignore[assignment]
    created: float = _Of("When it was made, in UTC seconds.")  # type: ignore[assignment]
    seen: float = _Of("When it was last used.")  # type: ignore[assignment]
    deadline: float = _Of("When it ends unless it is used again.")  # type: ignore[assignment]
    remaining: float = _Of("Seconds until then.")  # type: ignore[assignment]
    is_new: bool = _Of("Whether it is not in the store yet.")  # type: ignore[assignment]
    status: Any = _Of("What was done to it so far.")
    client: Any = _Of("Address and agent of the client that made it.")
    ended_before: Any = _Of("Why the former session of this visitor ended.")
    peek: Any = _Of("The values, read-only.")
    csrf_token: str = _Of("A token for a form of this session.")  # type: ignore[assignment]
    idle_timeout: Any = _Limit("The time without use after which it ends.")
    lifetime: Any = _Limit("The time after creation or login at which it ends.")
    persistent: Any = _Limit("Whether the browser keeps the cookie when it is closed.")


class Session(DurableSession, server.Session):
    """The stock session, made durable."""


_durable: dict[type, type] = {}


def durable(session: Any) -> DurableSession:
    """Make what a `sessionFactory` returned a durable session; its class stays in front of ours.

    Raises:
        ConfigurationError: it is no `twisted.web.server.Session`.
    """
    kind = type(session)
    if isinstance(session, DurableSession):
        return session
    if not isinstance(session, server.Session):
        raise ConfigurationError(
            f"sessionFactory returned a {kind.__module__}.{kind.__qualname__}; it must be a "
            "twisted.web.server.Session"
        )
    made = _durable.get(kind)
    if made is None:
        if kind is server.Session:
            made = Session
        else:
            made = type(kind.__name__, (DurableSession, kind), {"__module__": kind.__module__})
        _durable[kind] = made
    session.__class__ = made
    return session  # type: ignore[return-value]


def _local() -> CoreSession:
    rules_of = SessionManager()
    env: Environment = rules_of._env
    return LiveSession(env, lambda: Opened(env.clock()))


def _plain(state: dict[str, Any]) -> list[str]:
    """Return the names of the attributes that an application has set."""
    return [name for name in state if name not in _STOCK and name[0] != "_"]


def _has(core: CoreSession) -> bool:
    """Tell whether there is anything in it to look at."""
    return core._active or core._record is not None


def _encoded(value: Any) -> bytes | None:
    try:
        return codec.encode_value(value, key="")
    except InvalidValue:
        return None


def _qualified(session: Any) -> Any:
    return session._adapterCache


def _call(callback: Callable[[], object], sid: str) -> None:
    try:
        callback()
    except Exception:
        log.failure("a callback at the end of session {sid} failed", sid=sid)
