"""The session: the mapping that application code touches.

It is a record opened, plus what this request did to it. It holds no store and makes no I/O of its
own, with one exception that is the caller's: it may be made with a function that finds its record
on first use, so that a request that does not touch its session costs nothing.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from datetime import timedelta
from typing import Any, ClassVar, TypeVar, overload

from sojourn.core import codec, csrf
from sojourn.core.codec import decode_index, decode_value, is_text
from sojourn.core.expiry import deadline_of, seconds, touch_interval_of
from sojourn.core.opening import EndedBefore, Opened
from sojourn.core.operations import NO_CHANGES, Changes, Kind, Operation, merge
from sojourn.core.record import Client, Record
from sojourn.core.rules import Environment
from sojourn.core.state import StateInfo, describe
from sojourn.core.status import TRANSITIONS, Event, Status
from sojourn.core.token import drawn, new_sid
from sojourn.core.work import DELETED, PENDING, Held, Work, bring_up_to_date
from sojourn.errors import Conflict, CsrfError, DamagedRecord, InvalidValue, StoreUnavailable

__all__ = ["Peek", "Session"]

T = TypeVar("T")


# Looked up once: an enumeration's members are slow to reach.
_NEW, _UNCHANGED, _WRITE = Status.NEW, Status.UNCHANGED, Event.WRITE

_NOBODY = Client()
_IMMUTABLE = codec.IMMUTABLE
_CLAIMS = "\0claims"
_FLASH = "\0f:"
_KEYS = "a key must be a str that does not begin with NUL and holds no lone surrogates"


class Session(MutableMapping[str, Any]):
    """A visitor's session.

    A mapping of str keys to plain values (see `core.codec.ALLOWED`), in the order in which the
    keys were first set; and typed state by class: `session[Cart]`. Values may be changed in
    place: what was handed out is compared with what was stored when the request is committed.

    Nothing is written before the commit, and nothing at all for a session that was only read.
    """

    __slots__ = (
        "__weakref__",
        "_active",
        "_arguments",
        "_body",
        "_cache",
        "_client",
        "_data",
        "_env",
        "_failure",
        "_index",
        "_load",
        "_opened",
        "_owed",
        "_record",
        "_status",
        "_work",
    )

    _cache: dict[Any, Any]
    _index: dict[str, int | None]
    _body: int
    _record: Record | None
    _work: Work | None

    def __init__(
        self,
        env: Environment,
        load: Callable[..., Opened],
        client: Client = _NOBODY,
        *arguments: Any,
    ) -> None:
        """Make one whose record `load(*arguments)` finds when it is first used, for that client."""
        self._env = env
        self._load: Callable[..., Opened] | None = load
        self._arguments = arguments
        self._client = client
        self._failure: StoreUnavailable | None = None
        # What a commit has to tell the browser; kept for the one that is made at the head.
        self._owed: Any = None
        self.__class__ = self._lazy

    # The record, and the values in it, are found when they are first asked for. That makes "was the
    # session looked at" and "was it used" facts that no method can forget to note. It is done by
    # two classes below each, in which what is not there yet is a property that finds it: an object
    # has the one that fits its state. (A `__getattr__` would make all attributes slower.)

    _lazy: ClassVar[type[Session]]
    """The class of one whose record was not looked for yet."""
    _found: ClassVar[type[Session]]
    """The class of one whose values were not read yet."""
    _read: ClassVar[type[Session]]
    """The class itself."""

    def __init_subclass__(cls, *, stage: bool = False, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if not stage:
            _make_stages(cls)

    def _find(self) -> None:
        """Find the record: the first look at the session."""
        if self._failure is not None:
            # Asked once a request: limits of time add up otherwise.
            raise self._failure
        try:
            opened = self._load(*self._arguments)  # type: ignore[misc]
        except StoreUnavailable as error:
            self._failure = error
            raise
        self._stand(opened)

    def _stand(self, opened: Opened) -> None:
        """Stand for what was found."""
        self.__class__ = self._found
        self._load = None
        self._opened = opened
        # `_begin`, written out: this is done for every request.
        record = self._record = opened.record
        self._data = opened.data
        self._status = _NEW if record is None else _UNCHANGED
        self._active = False
        self._work = None
        if opened.notes:
            self._working().notes.extend(opened.notes)

    def _use(self) -> None:
        """Read the values: the first use of the mapping, which also is what counts as a use."""
        self.__class__ = self._read
        self._active = True
        work = self._work
        if work is None or work.kept is None:
            self._cache = {}
        else:
            self._cache, work.kept = work.kept, None
        try:
            self._index, self._body = decode_index(self._data)
        except DamagedRecord as error:
            self._give_up(error)

    def _begin(self, record: Record | None, data: bytes) -> None:
        """Stand at the beginning for a record, or for a new session."""
        self._record = record
        self._data = data
        self._status = _NEW if record is None else _UNCHANGED
        self._active = False
        self._work = None

    def _working(self) -> Work:
        """Return where this request's doings are kept; a request that only reads has none."""
        work = self._work
        if work is None:
            work = self._work = Work()
        return work

    def _restart(self) -> Work:
        """Go on as a new session; what is to be ended and reported stays known."""
        old = self._working()
        self._begin(None, codec.EMPTY)
        self._forget_values()
        work = self._working()
        work.ends, work.notes = old.ends, old.notes
        return work

    def _forget_values(self) -> None:
        self.__class__ = self._read
        self._cache = {}
        self._index = {}
        self._active = True

    def _give_up(self, error: DamagedRecord) -> None:
        """Go on as a new session, since the stored one is damaged."""
        sid = self.sid
        self._restart().notes.append(("damaged", sid, str(error)))

    def _event(self, event: Event) -> None:
        self._status = TRANSITIONS[self._status, event]

    # What it is.

    @property
    def sid(self) -> str:
        """The public half of the token: names the session, safe to log and to show."""
        record = self._record
        if record is not None:
            return record.sid
        work = self._working()
        if not work.sid:
            work.sid = new_sid(self._env.entropy)
        return work.sid

    @property
    def status(self) -> Status:
        """What this request has done to it so far; in-place changes show at the commit."""
        return self._status

    @property
    def is_new(self) -> bool:
        """Whether it is not in the store yet."""
        return self._record is None

    @property
    def created(self) -> float:
        """When it was made, in UTC seconds."""
        return self._opened.now if self._record is None else self._record.created

    @property
    def seen(self) -> float:
        """When it was last used, to within a touch interval, in UTC seconds."""
        return self._opened.now if self._record is None else self._record.seen

    @property
    def deadline(self) -> float:
        """When it ends unless it is used again, in UTC seconds. Asking does not extend it."""
        return deadline_of(
            self.seen, self._start(), self._value("idle_timeout"), self._value("lifetime")
        )

    @property
    def remaining(self) -> float:
        """Seconds until the deadline, not below 0. Asking does not extend it."""
        return max(0.0, self.deadline - self._env.clock())

    @property
    def user(self) -> str | None:
        """Who is logged in."""
        user: str | None = self._value("user")
        # After the look-up: loading the session sets this anew.
        self._active = True
        return user

    @property
    def claims(self) -> dict[str, Any]:
        """What `login` was told of the user, as a new dict."""
        return dict(self.get(_CLAIMS, ()))

    @property
    def authenticated(self) -> float | None:
        """When the user last logged in, in UTC seconds."""
        return self._value("authenticated")  # type: ignore[no-any-return]

    @property
    def client(self) -> Client:
        """Address and agent of the client that made the session or last logged in."""
        record, work = self._record, self._work
        if record is None or (work is not None and work.login):
            return self._client
        return Client(record.address, record.agent)

    @property
    def ended_before(self) -> EndedBefore | None:
        """Why the former session of this visitor ended, if there was one and it is known."""
        return self._opened.ended_before

    @property
    def idle_timeout(self) -> timedelta | None:
        """The time without use after which it ends; may be set, for this session alone."""
        return _delta(self._value("idle_timeout"))

    @idle_timeout.setter
    def idle_timeout(self, value: timedelta | float | None) -> None:
        self._set_limit("idle_timeout", value)

    @property
    def lifetime(self) -> timedelta | None:
        """The time after creation or login at which it ends; may be set, for this one alone."""
        return _delta(self._value("lifetime"))

    @lifetime.setter
    def lifetime(self, value: timedelta | float | None) -> None:
        self._set_limit("lifetime", value)

    @property
    def persistent(self) -> bool:
        """Whether the browser keeps the cookie when it is closed; may be set."""
        return self._value("persistent")  # type: ignore[no-any-return]

    @persistent.setter
    def persistent(self, value: bool) -> None:
        if bool(value) != self._value("persistent"):
            self._set_head("persistent", bool(value))

    def remember(self, lifetime: timedelta | float) -> None:
        """Keep the visitor signed in for that long, also when the browser is closed.

        Sets `lifetime` and `idle_timeout` to it and makes the cookie persistent.
        """
        self.lifetime = lifetime
        self.idle_timeout = lifetime
        self.persistent = True

    def __repr__(self) -> str:
        # Loads nothing: a debugger must not change what a request does. Never shows the secret.
        if self._load is not None:
            return "<Session not loaded>"
        return f"<Session {self.sid} {self._status.name.lower()}>"

    def __reduce__(self) -> Any:
        # A copy would share what this request did, and each commit would write it.
        raise TypeError("a session cannot be copied or pickled; dict(session) copies its values")

    # The mapping.

    @overload
    def __getitem__(self, key: str) -> Any: ...
    @overload
    def __getitem__(self, key: type[T]) -> T: ...
    def __getitem__(self, key: Any) -> Any:
        """Return a value; or the typed state of a class, made on first use."""
        if self._load is not None:
            # To find that a slot is empty costs more.
            self._find()
            self._use()
        cache = self._cache
        if key in cache:
            return cache[key]
        packed = self._index.get(key)
        if packed is None:
            if isinstance(key, type):
                return self._state(key)
            raise KeyError(key)
        start = self._body + (packed >> 32)
        raw = self._data[start : start + (packed & 0xFFFFFFFF)]
        try:
            value = decode_value(raw)
        except DamagedRecord as error:
            self._give_up(error)
            raise KeyError(key) from None
        cache[key] = value
        if type(value) not in _IMMUTABLE:
            # To be watched: it can be changed in place.
            self._working().handed[key] = raw
        return value

    @overload
    def __setitem__(self, key: str, value: Any) -> None: ...
    @overload
    def __setitem__(self, key: type[T], value: T) -> None: ...
    def __setitem__(self, key: Any, value: Any) -> None:
        """Set a value, or the typed state of a class.

        Raises:
            InvalidValue: a key or a type that cannot be stored. What lies deeper inside the value
                is looked at when the request is committed, before anything is sent.
        """
        if type(key) is not str or key[:1] == "\0" or not (key.isascii() or is_text(key)):
            if isinstance(key, type):
                return self._set_state(key, value)
            raise InvalidValue(f"session[{key!r}]: {_KEYS}")
        if type(value) not in codec.STORABLE:
            raise InvalidValue(
                f"session[{key!r}] is a {type(value).__module__}.{type(value).__qualname__}; "
                f"allowed are {codec.ALLOWED}"
            )
        self._put(key, value)

    def __delitem__(self, key: str | type[Any]) -> None:
        """Delete a value, or the typed state of a class."""
        if isinstance(key, type):
            name = describe(key).key
            if self._working().states.pop(name, None) is None and name not in self._index:
                raise KeyError(key)
            self._cache.pop(key, None)
        else:
            name = key
            if name not in self._index or name[:1] == "\0":
                raise KeyError(key)
        self._drop(name)

    def __contains__(self, key: object) -> bool:
        """Tell whether there is such a key; for a class, whether its state is stored or used."""
        if isinstance(key, type):
            try:
                name = describe(key).key
            except InvalidValue:
                return False
            return name in self._index or name in self._working().states
        return key in self._index and not (isinstance(key, str) and key[:1] == "\0")

    def __iter__(self) -> Iterator[str]:
        return iter([key for key in self._index if key[:1] != "\0"])

    def __reversed__(self) -> Iterator[str]:
        return reversed([key for key in self._index if key[:1] != "\0"])

    def __len__(self) -> int:
        return sum(1 for key in self._index if key[:1] != "\0")

    def __ior__(self, other: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Session:
        """Update from another mapping."""
        self.update(other)
        return self

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self) | dict(other)

    def popitem(self) -> tuple[str, Any]:
        """Remove and return the item that was set last, as a dict does."""
        for key in reversed(self):
            return key, self.pop(key)
        raise KeyError("the session is empty")

    def clear(self) -> None:
        """Remove all values, typed state, claims and flash messages; the session lives on."""
        work = self._working()
        self._forget_values()
        work.kept = None
        for held in (work.handed, work.states, work.steps):
            held.clear()
        if self._record is not None:
            work.cleared = True
            self._status = TRANSITIONS[self._status, _WRITE]

    # Operations that merge with those of other requests.

    def add(self, key: str, amount: Any = 1) -> Any:
        """Add to a number (or timedelta); what concurrent requests add counts as well.

        Returns:
            The value as this request sees it.
        """
        return self._merge(key, Kind.ADD, amount)

    def append(self, key: str, *items: Any) -> None:
        """Append to a list; what concurrent requests append is kept as well."""
        self._merge(key, Kind.APPEND, list(items))

    def union(self, key: str, items: Iterable[Any]) -> None:
        """Add items to a set; what concurrent requests add is kept as well."""
        self._merge(key, Kind.UNION, set(items))

    def max(self, key: str, value: Any) -> Any:
        """Set a value if it is greater; of concurrent requests the greatest wins.

        Returns:
            The value as this request sees it.
        """
        return self._merge(key, Kind.MAX, value)

    # Its life.

    def touch(self) -> None:
        """Count this request as a use, and write that without waiting for the touch interval."""
        self._event(Event.TOUCH)
        self._active = True

    def renew(self) -> None:
        """Give the session a new secret; the sid and the data stay.

        Call it when the visitor gains rights other than by `login`, which does it by itself. The
        old cookie opens the session for the grace (10 s) after the commit, for requests that are
        on their way. A request that itself came with such an old cookie renews nothing.

        Source: OWASP ASVS 5.0, 7.2.4.
        """
        if not self._opened.previous:
            self._event(Event.RENEW)

    def login(self, user: str, **claims: Any) -> None:
        """Log a user in: new secret, new form token, both limits start anew.

        The values of the anonymous session stay; where another user was logged in, that session
        ends (reason "replaced") and a new one begins. The old cookie stops working with the
        commit, and what requests from before the login still write is dropped.

        Args:
            user: the user's id, a str of 1 to 255 characters.
            claims: anything more to be known of the user in this session; see `claims`.

        Raises:
            InvalidValue: not such an id.
            Conflict: this request came with a cookie that has just been renewed.

        Source: OWASP ASVS 5.0, 7.2.4; NIST SP 800-63B-4, section 5.2.
        """
        if (
            not isinstance(user, str)
            or not 0 < len(user) <= 255
            or "\0" in user
            or not is_text(user)
        ):
            raise InvalidValue(
                f"login({user!r}): a user is a str of 1 to 255 characters without NUL and "
                "without lone surrogates"
            )
        if self._opened.previous:
            raise Conflict(
                "this request came with a cookie that another one has just renewed; send it again"
            )
        if self._value("user") not in (None, user):
            self.end("replaced")
        work = self._working()
        work.head["user"] = user
        work.head["authenticated"] = self._env.clock()
        work.login = True
        work.salt = drawn(self._env.entropy, 16)
        self._active = True
        if claims:
            self._put(_CLAIMS, claims)
        elif _CLAIMS in self._index:
            self._drop(_CLAIMS)
        self._status = TRANSITIONS[self._status, _WRITE]
        self._event(Event.RENEW)

    def logout(self) -> None:
        """End the session because its user asked for it."""
        self.end("user")

    def fresh(self, within: timedelta | float) -> bool:
        """Tell whether the user logged in within that time: for pages that need a recent proof."""
        at, limit = self.authenticated, seconds(within, "within")
        return at is not None and limit is not None and self._env.clock() - at <= limit

    def end(self, reason: str = "user") -> None:
        """End the session for good; no copy of its cookie works once the answer has left.

        From then on this object stands for a new, empty session, which is only kept if something
        is written to it.

        Args:
            reason: user, operator, replaced, password, theft; told by `ended_before` later.

        Raises:
            StoreUnavailable: the request goes on without its session (on_store_error), which
                therefore cannot be ended.
        """
        if not isinstance(reason, str) or not 0 < len(reason) <= 32:
            raise InvalidValue(f"end({reason!r}): a reason is one short word")
        if self._opened.failure is not None:
            raise self._opened.failure
        self._event(Event.END)
        record = self._record
        if record is not None:
            self._working().ends.append((record.sid, reason))
        self._restart()
        self._opened = Opened(self._env.clock(), shadow=self._opened.shadow)

    # Reading without extending.

    @property
    def peek(self) -> Peek:
        """The values, read-only; looking at them here does not count as a use."""
        return Peek(self)

    # Messages for the next page.

    def flash(self, message: Any, queue: str = "", allow_duplicate: bool = True) -> None:
        """Keep a message for the next page that pops it."""
        if allow_duplicate or message not in self.peek_flash(queue):
            self._merge(_FLASH + queue, Kind.APPEND, [message])

    def peek_flash(self, queue: str = "") -> list[Any]:
        """Return the messages of a queue and leave them there."""
        return list(self.get(_FLASH + queue, ()))

    def pop_flash(self, queue: str = "") -> list[Any]:
        """Return the messages of a queue and remove them; those added meanwhile stay for later."""
        messages = self.peek_flash(queue)
        if messages:
            self._merge(_FLASH + queue, Kind.REMOVE, messages)
        return messages

    # Form tokens.

    @property
    def csrf_token(self) -> str:
        """A token for a form of this session, masked anew at each call.

        For a new session it makes one that is kept: a form needs a session to belong to.
        """
        return csrf.form_token(self._salt_of(make=True), self._env.entropy)

    def check_csrf(self, token: object) -> None:
        """Make sure that a form's token is of this session.

        Raises:
            CsrfError: it is missing, or of another session, or from before the login.
        """
        if not csrf.check(self._salt_of(make=False), token):
            raise CsrfError(
                "the form token is missing or is not of this session; load the page with the "
                "form again and send it from there"
            )

    # For the flows: what is to be written.

    @property
    def loaded(self) -> bool:
        """Whether the session was looked at in any way, so that the answer depends on it."""
        return self._load is None

    @property
    def failure(self) -> StoreUnavailable | None:
        """Why the session could not be loaded, if it was tried and the store did not answer."""
        return self._failure

    def _settled(self) -> bool:
        """Tell whether a commit has nothing to do: only read, and no touch is due."""
        if self._load is not None:
            return True
        work = self._work
        if work is not None and work.pending():
            return False
        if self._status is _UNCHANGED:
            if not self._active or self._opened.previous:
                return True
            env, record = self._env, self._record
            assert record is not None
            return env.clock() - record.seen < touch_interval_of(record, env.rules)
        return self._status is _NEW

    def _collect(self) -> Changes:
        """Return what was done to the values, all encoded.

        Raises:
            InvalidValue: a value that cannot be stored.
        """
        work = self._work
        if work is None:
            return NO_CHANGES
        depth = self._env.rules.max_depth
        steps: dict[str, list[Operation]] = {}
        for key, done in work.steps.items():
            steps[key] = [
                Operation(Kind.SET, codec.encode_value(self._cache[key], key=key, depth=depth))
                if step is PENDING
                else step
                for step in done
            ]
        for key, before in work.handed.items():
            after = codec.encode_value(self._cache[key], key=key, depth=depth)
            if after != before:
                steps.setdefault(key, []).append(Operation(Kind.SET, after))
        for key, held in work.states.items():
            operation = held.operation()
            if operation is not None:
                steps.setdefault(key, []).append(operation)
        if steps or work.cleared:
            self._status = TRANSITIONS[self._status, _WRITE]
        return Changes(work.cleared, steps)

    def _saved(
        self, record: Record, data: bytes, changes: Changes, *, merged: bool = False
    ) -> None:
        """Stand for what was saved; what was handed out goes on to be watched.

        Args:
            record: what was saved.
            data: its data, unsealed.
            changes: what this request did.
            merged: there are changes of other requests in it too.
        """
        work, active = self._working(), self._active
        read = self.__class__ is self._read
        handed, states = work.handed, work.states
        for key, steps in changes.steps.items():
            last = steps[-1]
            if last.kind == Kind.SET and type(self._cache[key]) not in _IMMUTABLE:
                handed[key] = last.value
            elif last.kind == Kind.STATE:
                states[key].loaded = states[key].before = last.value[1]
        cache = self._cache if handed else {}
        self._begin(record, data)
        if read:
            # To be read again on the next use, if there is one.
            self.__class__ = self._found
        if handed or states:
            if handed and merged:
                bring_up_to_date(handed, cache, data)
            work = self._working()
            work.handed, work.states = handed, states
            work.kept = {key: cache[key] for key in handed}
            for held in states.values():
                work.kept[held.info.cls] = held.value
        self._active = active

    def _forget_login(self) -> None:
        """Go on without the login of this request, which was refused; all else stays."""
        work = self._working()
        work.login = False
        work.salt = b""
        del work.head["user"], work.head["authenticated"]

    def _abandon(self) -> None:
        """Forget what was done to it since it was loaded or committed."""
        if self._record is not None:
            self._reread(self._record, self._data)
        else:
            self._restart()

    def _reread(self, record: Record, data: bytes) -> None:
        """Stand for the record as it is now; what was handed out before is watched no more."""
        active = self._active
        if active:
            # What counts as a use need not have read the values: fill them, to empty them.
            self._cache  # noqa: B018
        self._begin(record, data)
        if active:
            self.__class__ = self._found
        self._active = active

    # Inside.

    def _value(self, name: str) -> Any:
        """Return a field of the record as this request sees it."""
        work = self._work
        if work is not None and name in work.head:
            return work.head[name]
        if self._record is not None:
            return getattr(self._record, name)
        return getattr(self._env.rules, name, _FRESH.get(name))

    def _start(self) -> float:
        at = self.authenticated
        return self.created if at is None else at

    def _set_limit(self, name: str, value: timedelta | float | None) -> None:
        limit = seconds(value, f"session.{name}")
        other = "lifetime" if name == "idle_timeout" else "idle_timeout"
        if limit is None and self._value(other) is None:
            raise InvalidValue(
                f"session.{name} = None: with no {other} either, the session would never end"
            )
        if limit != self._value(name):
            self._set_head(name, limit)

    def _set_head(self, name: str, value: Any) -> None:
        self._working().head[name] = value
        self._active = True
        self._status = TRANSITIONS[self._status, _WRITE]

    def _salt_of(self, *, make: bool) -> bytes:
        work, record = self._working(), self._record
        self._active = True
        if record is not None and not work.salt:
            return record.salt
        if make and not work.salt:
            work.salt = drawn(self._env.entropy, 16)
            self._status = TRANSITIONS[self._status, _WRITE]
        return work.salt

    def _put(self, key: str, value: Any) -> None:
        self._index[key] = None
        self._cache[key] = value
        work = self._working()
        work.handed.pop(key, None)
        done = work.steps.get(key)
        if done and done[0] is DELETED:
            if done[-1] is DELETED:
                # A key that was deleted comes to stand last; any other keeps its place.
                del work.steps[key]
            work.steps[key] = [DELETED, PENDING]
        else:
            work.steps[key] = [PENDING]
        self._status = TRANSITIONS[self._status, _WRITE]

    def _drop(self, name: str) -> None:
        self._index.pop(name, None)
        self._cache.pop(name, None)
        work = self._working()
        work.handed.pop(name, None)
        work.steps.pop(name, None)
        work.steps[name] = [DELETED]
        self._status = TRANSITIONS[self._status, _WRITE]

    def _merge(self, key: str, kind: str, operand: Any) -> Any:
        if (
            type(key) is not str
            or (key[:1] == "\0" and not key.startswith(_FLASH))
            or not is_text(key)
        ):
            raise InvalidValue(f"session.{kind}({key!r}): {_KEYS}")
        depth = self._env.rules.max_depth
        # Now, since only now it is clear what is meant; the list or set is our own copy.
        codec.encode_value(operand, key=key, depth=depth)
        old = self.get(key)
        new = merge(kind, old, operand, key)
        work = self._working()
        # A key that was deleted comes to stand last; any other keeps its place.
        done = work.steps.pop(key, []) if key not in self._index else work.steps.get(key, [])
        work.steps[key] = done
        if done and done[-1] is PENDING:
            pass
        elif kind == Kind.ADD and done and done[-1].kind == Kind.ADD and type(new) is int:
            # Only of ints is a sum the same in whatever order it is made.
            done[-1] = Operation(kind, done[-1].value + operand)
        else:
            if key in work.handed:
                before = work.handed.pop(key)
                if codec.encode_value(old, key=key, depth=depth) != before:
                    done.append(PENDING)
            if not done or done[-1] is not PENDING:
                done.append(Operation(kind, operand))
        if isinstance(old, (list, set)) and type(old) is type(new):
            # In place, for whoever holds it; and watched on from here.
            (old.__setitem__(slice(None), new) if isinstance(old, list) else old.update(new))
            new = old
        self._index[key] = None
        self._cache[key] = new
        if done[-1] is not PENDING and type(new) not in _IMMUTABLE:
            work.handed[key] = codec.encode_value(new, key=key, depth=depth)
        self._status = TRANSITIONS[self._status, _WRITE]
        return new

    def _state(self, cls: type[T]) -> T:
        info = describe(cls)
        self._only_class(info)
        packed = self._index.get(info.key)
        if packed is None:
            value = info.new()
            held = Held(info, value, None, info.encode(value))
        else:
            raw = codec.segment(self._data, self._body, packed)
            try:
                value = info.decode(raw)
            except DamagedRecord as error:
                self._give_up(error)
                return self._state(cls)
            # As this version encodes it: an upgrade alone is no reason to write.
            held = Held(info, value, raw, info.encode(value))
        self._working().states[info.key] = held
        self._cache[cls] = value
        return value  # type: ignore[no-any-return]

    def _only_class(self, info: StateInfo) -> None:
        held = self._working().states.get(info.key)
        if held is not None and held.info.cls is not info.cls:
            raise InvalidValue(
                f"{info.cls.__qualname__} and {held.info.cls.__qualname__} are both named "
                f"{info.name!r} by @state, and this request uses both; give one another name"
            )

    def _set_state(self, cls: type[Any], value: Any) -> None:
        info = describe(cls)
        self._only_class(info)
        if type(value) is not cls:
            raise InvalidValue(
                f"session[{cls.__name__}] was set to a {type(value).__name__}; it must be of "
                "exactly that class"
            )
        packed = self._index.get(info.key)
        raw = None if packed is None else codec.segment(self._data, self._body, packed)
        if raw is not None:
            try:
                info.version_of(raw)
            except DamagedRecord as error:
                self._give_up(error)
                raw = None
        self._working().states[info.key] = Held(info, value, raw, b"")
        self._cache[cls] = value
        self._status = TRANSITIONS[self._status, _WRITE]


def _property(name: str, *steps: Callable[[Session], None]) -> Any:
    """Return what is in place of a slot: an attribute that is found by those steps."""

    def find(session: Session) -> Any:
        for step in steps:
            step(session)
        return getattr(session, name)

    return property(find)


_OF_RECORD = ("_active", "_data", "_opened", "_record", "_status", "_work")
_OF_VALUES = ("_body", "_cache", "_index")
_STAGES: dict[str, dict[str, Any]] = {
    "_lazy": {
        **{name: _property(name, Session._find) for name in _OF_RECORD},
        **{name: _property(name, Session._find, Session._use) for name in _OF_VALUES},
    },
    "_found": {name: _property(name, Session._use) for name in _OF_VALUES},
}


def _make_stages(cls: type[Session]) -> None:
    cls._read = cls
    for stage, properties in _STAGES.items():
        names = {
            "__slots__": (),
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
            **properties,
        }
        setattr(cls, stage, _below(cls, names))


def _below(cls: type[Session], names: dict[str, Any]) -> type[Session]:
    return types.new_class(cls.__name__, (cls,), {"stage": True}, lambda body: body.update(names))


_make_stages(Session)

_FRESH = {"user": None, "authenticated": None, "persistent": False}


class Peek(Mapping[str, Any]):
    """The values of a session, for reading without counting as a use."""

    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        """Look into that session."""
        self._session = session

    def _look(self, how: Callable[[Session], T]) -> T:
        session = self._session
        if session._active:
            return how(session)
        # Nothing was done to the values yet. Whoever looks gets a session of his own, so that
        # the next real use is the first, and nothing that is done to what he sees is kept.
        opened = Opened(session._opened.now, session._record, session._data)
        other = Session(session._env, lambda: opened, session._client)
        try:
            return how(other)
        finally:
            if other.is_new and not session.is_new:
                session._working().notes.extend(other._working().notes)

    @overload
    def __getitem__(self, key: str) -> Any: ...
    @overload
    def __getitem__(self, key: type[T]) -> T: ...
    def __getitem__(self, key: Any) -> Any:
        """Return a value, or typed state."""
        return self._look(lambda session: session[key])

    def __iter__(self) -> Iterator[str]:
        return self._look(iter)

    def __len__(self) -> int:
        return self._look(len)

    @property
    def user(self) -> str | None:
        """Who is logged in."""
        return self._session._value("user")  # type: ignore[no-any-return]


def _delta(value: float | None) -> timedelta | None:
    return None if value is None else timedelta(seconds=value)
