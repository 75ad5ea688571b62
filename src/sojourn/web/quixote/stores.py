"""The classic stores of Quixote's world and ours, each behind the other's contract.

`SessionStore(sessions, Visitor)` puts our sessions behind a session manager of Session3 or of
Quixote, with the names that these call. `ForeignStore(store)` puts a store that somebody wrote
for Session3 or Quixote behind ours, with all that our sessions promise.

For new code neither is needed: `sojourn.web.quixote.SessionManager` does more.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import pickle
import threading
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import quixote
from msgspec.structs import replace as changed

from sojourn.core import codec
from sojourn.core import session as core
from sojourn.core.adopting import token_of
from sojourn.core.calls import GONE, SAVED, Flow, List, Outcome, Replace
from sojourn.core.expiry import expired_reason, touch_interval_of
from sojourn.core.record import ENDED, ENDING, LIVE, Client, Ended, Record, ended_as
from sojourn.core.token import Token
from sojourn.errors import (
    ConfigurationError,
    DamagedRecord,
    InvalidValue,
    SessionEnded,
    StoreUnavailable,
)
from sojourn.manager import SessionManager
from sojourn.stores._locks import Locks
from sojourn.stores.base import Promises, Store

__all__ = ["ForeignStore", "SessionStore", "Sid", "check_server", "safety"]

_PAGE = 100
_HELD = "_sojourn"
"""The attribute of a session object under which its Sojourn session is found."""
_HEAD = ("id", "user", "_remote_address", "_creation_time", "_access_time")
"""Attributes that are fields of the record, and no values."""


# What a store is fit for.


def safety(store: Store) -> tuple[bool, bool]:
    """Tell whether several processes may use a store at once, and whether several threads may."""
    return store.promises.shared != "process", getattr(store, "is_thread_safe", True)


def check_server(store: Store, environ: Mapping[str, Any]) -> None:
    """Make sure that a store fits the server that a request came by.

    Args:
        store: ours.
        environ: of the request; the one object itself, as CGI is known by it.

    Raises:
        ConfigurationError: the server has several processes or threads, and the store is for one.
    """
    processes, threads = safety(store)
    name = type(store).__name__
    many = (
        environ.get("wsgi.multiprocess")
        or environ.get("wsgi.run_once")
        or environ.get("SCGI") == "1"
        or environ is os.environ
    )
    if many and not processes:
        raise ConfigurationError(
            f"{name} is for one process, and this server has several or starts one for each "
            "request: visitors would lose their sessions. Use a store that processes share, such "
            "as directory:///sessions or sqlite:///sessions.db"
        )
    if environ.get("wsgi.multithread") and not threads:
        raise ConfigurationError(
            f"{name} is not safe for threads (is_thread_safe is false), and this server has "
            "several. Serve with one thread for each process, or use another store"
        )


def check_publisher(manager: Any) -> None:
    """Make sure that a store fits a publisher for threads, where it is known before any request.

    A store that is named by its URL is opened, and then checked, with the first request.

    Args:
        manager: Quixote's session manager; another one than ours with a `SessionStore` too.

    Raises:
        ConfigurationError: the store is for one thread.
    """
    for one in (manager, getattr(manager, "store", None)):
        sessions = getattr(one, "sessions", None)
        given: Any = sessions._given if isinstance(sessions, SessionManager) else ""
        if not isinstance(given, str) and not safety(given)[1]:
            raise ConfigurationError(
                f"{type(given).__name__} is not safe for threads (is_thread_safe is false), and "
                "ThreadSafePublisher is for servers with several. Make a "
                "quixote.publish.Publisher and serve with one thread for each process, or use "
                "another store"
            )


# Our sessions behind managers of Session3 and Quixote.


class Sid(str):
    """The name of a session as this store lists it.

    `load_session` and `has_session` find the session by it, where a cookie that holds the same
    letters opens nothing: what is listed may be shown and logged.
    """

    __slots__ = ()


class SessionStore:
    """Our sessions behind Session3's manager, or Quixote's `BaseSessionManager`.

    An object of the session class is kept attribute by attribute: two requests that set different
    ones both count, and one that changes none writes nothing. Attributes are plain values, as in
    any session of ours; of what cannot be kept the error names the attribute.

    The manager makes the ids, and its cookie is the id itself. So there is no new secret at a
    login, as there is with `sojourn.web.quixote.SessionManager`. Records are the same with both,
    and that manager takes over the cookies of this one.

    Attributes:
        sessions: Sojourn's manager, which has the store and all settings.
    """

    def __init__(self, sessions: SessionManager | str, session_class: type[Any]) -> None:
        """Keep sessions of one class.

        Args:
            sessions: Sojourn's manager, or the URL of a store.
            session_class: the one that the session manager is given.

        Raises:
            ConfigurationError: the store keeps nothing on the server, or is none.
        """
        if isinstance(sessions, str):
            sessions = SessionManager(sessions)
        if not isinstance(sessions, SessionManager):
            raise ConfigurationError(
                f"sessions is {sessions!r}; it must be a sojourn.SessionManager, or the URL of a "
                "store"
            )
        if sessions.describe()["store"] in ("cookie", "CookieStore"):
            raise ConfigurationError(
                "the browsers hold the sessions of that store, in cookies of ours; behind another "
                "session manager's cookies it can find none"
            )
        if issubclass(session_class, dict | list | set):
            raise ConfigurationError(
                f"{session_class.__qualname__} is a kind of dict, list or set; "
                "what is kept of a session are its attributes, so derive it from "
                "collections.UserDict"
            )
        self.sessions = sessions
        self.session_class = session_class
        # As in `sojourn.web.quixote.DictSession`: keys and attributes are apart.
        self._prefix = "." if issubclass(session_class, UserDict) else ""
        self._here = threading.local()
        self._checked = 0

    @property
    def is_multiprocess_safe(self) -> bool:
        """Whether several processes may use it at once."""
        return safety(self.sessions.store)[0]

    @property
    def is_thread_safe(self) -> bool:
        """Whether several threads may use it at once."""
        return safety(self.sessions.store)[1]

    # Called by the managers.

    def load_session(self, id: str | None, default: Any = None) -> Any:
        """Return the session with that id, or the default.

        Raises:
            StoreUnavailable: the store did not answer.
            ConfigurationError: the store does not fit the server.
        """
        self._check_server()
        waiting = self._waiting()
        if waiting is not None and id in waiting:
            session = waiting[id]
            return default if session is None else session
        found = self._find(id)
        session = None if found is None else self._object(id, found)
        return default if session is None else session

    def save_session(self, session: Any) -> None:
        """Keep a session: what was changed of it, merged into what others have changed.

        Within a transaction of Quixote's it waits for the commit.

        Raises:
            InvalidValue: an attribute that cannot be kept.
            SessionEnded: a session of that id has ended; it does not come back.
            StoreUnavailable: the store did not answer.
        """
        waiting = self._waiting()
        if waiting is None:
            self._save(session)
        else:
            waiting[session.id] = session

    def delete_session(self, session: Any) -> None:
        """End a session for good; one that is not there is no error.

        Args:
            session: the session, as Session3 gives it, or its id, as Quixote does.
        """
        id = session if session is None or isinstance(session, str) else session.id
        waiting = self._waiting()
        if waiting is None:
            self._end(session)
        elif id is not None:
            waiting[id] = None

    def has_session(self, id: str | None) -> bool:
        """Tell whether there is a live session with that id."""
        waiting = self._waiting()
        if waiting is not None and id in waiting:
            return waiting[id] is not None
        return self._find(id) is not None

    # Quixote's transactions.

    def transaction_start(self) -> None:
        """Hold back what is saved and deleted from here on in this thread."""
        self._here.waiting = {}

    def transaction_commit(self, session: Any) -> None:
        """Do what was held back, and keep what was changed of the request's session."""
        waiting = self._waiting() or {}
        self._here.waiting = None
        if session is not None and _HELD in vars(session):
            # Quixote gives us one again only where it says itself that it is dirty.
            waiting.setdefault(session.id, session)
        for id, one in waiting.items():
            if one is None:
                self._end(id)
            else:
                self._save(one)

    def transaction_abort(self, session: Any) -> None:
        """Forget what was held back."""
        self._here.waiting = None

    # Called by operators.

    def setup(self) -> None:
        """Make the tables or folders of the store, where they are not there yet."""
        self.sessions.count()

    def delete_old_sessions(self, minutes: float) -> tuple[int, int]:
        """End the sessions that were not used for that long; returns (ended, remaining).

        One that is used meanwhile stays. Uses are written once in a touch interval (a twentieth of
        the idle timeout), so that much longer is waited. What is over by the limits of the manager
        ends in any case.
        """
        ended = remaining = 0
        env = self.sessions._env
        for record in self._records():
            now = env.clock()
            unused = now - record.seen - touch_interval_of(record, env.rules)
            if now < record.deadline and unused <= minutes * 60:
                remaining += 1
                continue
            final = changed(record, version=record.version + 1, deadline=min(now, record.deadline))
            if now >= record.deadline or self.sessions.run(_replace(final)) is SAVED:
                ended += self.sessions.end(record.sid, expired_reason(record))
            else:
                remaining += 1
        return ended, remaining

    def iter_sessions(self) -> Iterator[tuple[Sid, Any]]:
        """Iterate over (name, session) of all live sessions.

        The name is a `Sid`: the store does not know the ids that are in the cookies.
        """
        for sid in self:
            found = self.sessions.find(sid)
            session = None if found is None else self._object(sid, found)
            if session is not None:
                yield sid, session

    def __iter__(self) -> Iterator[Sid]:
        """Iterate over the names of all live sessions."""
        env = self.sessions._env
        for record in self._records():
            if env.clock() < record.deadline:
                yield Sid(record.sid)

    # Inside.

    def _records(self) -> Iterator[Record]:
        after = ""
        while True:
            page = self.sessions.run(_page(after))
            yield from page
            if len(page) < _PAGE:
                return
            after = page[-1].sid

    def _waiting(self) -> dict[Any, Any] | None:
        """Return what a transaction of this thread holds back, by id; None: there is none."""
        return getattr(self._here, "waiting", None)

    def _check_server(self) -> None:
        """Refuse a server that the store does not fit, with the first request of this process."""
        if self._checked == os.getpid() or quixote.get_publisher() is None:
            return
        request = quixote.get_request()
        if request is not None:
            check_server(self.sessions.store, request.environ)
            self._checked = os.getpid()

    def _find(self, id: str | None) -> core.Session | None:
        if isinstance(id, Sid):
            return self.sessions.find(id)
        if not isinstance(id, str) or not 0 < len(id) <= 256:
            return None
        name = self.sessions.cookie.name_for[False]
        found = self.sessions.session(f"{name}={_token(id)}")
        if not found.is_new:
            return found
        # For the log: it may be new because it is damaged.
        self.sessions.commit(found)
        return None

    def _object(self, id: str | None, found: core.Session) -> Any:
        """Return an object of the session class with the attributes of a session.

        None where its values turn out to be damaged.
        """
        kind: Any = self.session_class
        session = kind.__new__(kind)
        attributes = vars(session)
        prefix = self._prefix
        for name, default in _DEFAULTS.items():
            if hasattr(kind, _MADE_BY[name]):
                attributes[name] = default()
        values: dict[str, Any] = {}
        with contextlib.suppress(KeyError):
            values.update((key, found[key]) for key in found)
        if found.is_new:
            # Its values turned out to be damaged. For the log:
            self.sessions.commit(found)
            return None
        if prefix:
            attributes["data"] = {k: value for k, value in values.items() if k[:1] != prefix}
        for key, value in values.items():
            if key.startswith(prefix):
                attributes[key[len(prefix) :]] = value
        user = found.user
        attributes.update(
            id=id,
            user=found.get(prefix + "user") if user is None else user,
            _remote_address=found.client.address,
            _creation_time=found.created,
            _access_time=found.seen,
        )
        attributes[_HELD] = found
        return session

    def _save(self, session: Any) -> None:
        values, user = self._values(session)
        found: core.Session | None = vars(session).get(_HELD)
        if found is None:
            token = _token(session.id)
            client = Client(str(getattr(session, "_remote_address", None) or "")[:100])
            if self.sessions.adopt(token, values, user=user, client=client):
                return
            found = self._find(session.id)
            if found is None:
                raise SessionEnded(
                    f"session {token.sid} has ended, and another one cannot take its id"
                )
            vars(session)[_HELD] = found
        if found.is_new:
            # It ended when it was saved the last time, and nothing brings it back.
            return
        _bring_to(found, values)
        if user != found.user:
            # No login of ours: the manager has no way to give the browser a new secret.
            found._set_head("user", user)
        self.sessions.commit(found)

    def _values(self, session: Any) -> tuple[dict[str, Any], str | None]:
        """Return the values and the user of an object of the session class."""
        if not isinstance(session, self.session_class):
            raise InvalidValue(
                f"the session is a {type(session).__qualname__}; this store was made for "
                f"{self.session_class.__qualname__}"
            )
        prefix = self._prefix
        attributes = dict(vars(session))
        attributes.pop(_HELD, None)
        user = attributes.get("user")
        values: dict[str, Any] = {}
        if prefix:
            for key, value in attributes.pop("data", {}).items():
                if isinstance(key, str) and key[:1] == prefix:
                    raise InvalidValue(f"session[{key!r}]: a key must not begin with a dot")
                values[key] = value
        for name, value in attributes.items():
            if name in _HEAD or (name in _DEFAULTS and value == _DEFAULTS[name]()):
                continue
            values[prefix + name] = value
        named = isinstance(user, str) and 0 < len(user) <= 255 and "\0" not in user
        if named and codec.is_text(str(user)):
            return values, user
        if user is not None:
            values[prefix + "user"] = user
        return values, None

    def _end(self, session: Any) -> None:
        held: core.Session | None = None
        if session is not None and not isinstance(session, str):
            held = vars(session).get(_HELD)
            session = session.id
        if held is not None:
            self.sessions.end(held.sid, "user")
        elif isinstance(session, Sid):
            self.sessions.end(session, "user")
        elif session is not None:
            self.sessions.end(_token(session).sid, "user")


_DEFAULTS: dict[str, Callable[[], Any]] = {"_form_tokens": list, "_csrf_token": lambda: None}
"""Attributes that a session class has made in its `__init__`, which runs for new ones alone."""
_MADE_BY = {"_form_tokens": "create_form_token", "_csrf_token": "get_csrf_token"}


def _bring_to(found: core.Session, values: dict[str, Any]) -> None:
    """Make a session hold just these values, and note no change of what is the same."""
    for key in [key for key in found if key not in values]:
        del found[key]
    for key, value in values.items():
        if key in found:
            old = found[key]
            # What was changed in place the session finds out by itself.
            if old is value:
                continue
            if type(old) is type(value) and type(old) in codec.IMMUTABLE and old == value:
                continue
        found[key] = value


def _token(id: str) -> Token:
    return token_of("session3", id)


def _page(after: str) -> Flow[builtins.list[Record]]:
    return (yield List(None, LIVE, after, _PAGE))  # type: ignore[no-any-return]


def _replace(record: Record) -> Flow[Record | Outcome]:
    return (yield Replace(record, record.version - 1))  # type: ignore[no-any-return]


# A store of somebody else's behind our sessions.


class Kept:
    """What a foreign store is given to keep: a record, with the attributes of a session.

    Attributes:
        id: the sid.
        user: who is logged in.
        due: when a sweep is to look at it.
        record: the record, encoded, with a checksum.
    """

    def __init__(self, record: Record, due: float) -> None:
        """Keep a record."""
        self.id = record.sid
        self.user = record.user
        self.due = due
        self.record = codec.checked(_encode(record))

    def opened(self) -> Record:
        """Return the record.

        Raises:
            DamagedRecord: what is kept is none.
        """
        try:
            return _decode(codec.unchecked(self.record))
        except (msgspec.MsgspecError, TypeError, AttributeError) as error:
            raise DamagedRecord(f"what the store keeps is no record: {error}") from error


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode

# What unpickling raises where bytes were flipped or cut.
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    IndexError,
    LookupError,
    TypeError,
    ValueError,
)


class ForeignStore:
    """A store that was written for Session3 or for Quixote, behind our sessions.

    The foreign store keeps an object for each session as it always did, by its own means; most
    pickle it. It must have `load_session`, `save_session` and `delete_session`; with
    `iter_sessions` (Session3) or `__iter__` (Quixote) sessions can be listed and swept as well.

    One call at a time goes to it, under a lock: that makes compare-and-swap of what has no such
    thing. Sessions that lie in it from before are not seen.

    Example:
        `SessionManager(ForeignStore(MyMySQLStore(connect()), locks="/run/shop/locks"))`
    """

    def __init__(
        self, store: Any, *, locks: str | os.PathLike[str] | None = None, lock_timeout: float = 5.0
    ) -> None:
        """Keep sessions in that store.

        Args:
            store: the foreign one.
            locks: an existing folder, for a store that several processes of this host use: the
                lock between them is a file in it.
            lock_timeout: for how many seconds to wait for the lock.

        Raises:
            ConfigurationError: it lacks a method; or `locks` is given for a store that is not
                safe for several processes, or is no folder.
        """
        faults = [
            f"{type(store).__name__} has no method {name}()"
            for name in ("load_session", "save_session", "delete_session")
            if not callable(getattr(store, name, None))
        ]
        processes = bool(getattr(store, "is_multiprocess_safe", False))
        if locks is not None:
            if not processes:
                faults.append(
                    f"locks is given, and {type(store).__name__} says that it is not safe for "
                    "several processes (is_multiprocess_safe is false)"
                )
            if not os.path.isdir(locks):
                faults.append(f"locks is {os.fspath(locks)!r}; it must be an existing folder")
        if faults:
            raise ConfigurationError("; ".join(faults))
        self.store = store
        self.is_thread_safe = bool(getattr(store, "is_thread_safe", False))
        self._turn = threading.Lock()
        self._timeout = lock_timeout
        self._locks = None if locks is None else Locks(os.path.abspath(locks), lock_timeout)
        self._by_id = hasattr(store, "transaction_start")
        listing = "__iter__" if self._by_id else "iter_sessions"
        self._lists = _has_own(type(store), listing)
        self.promises = Promises(
            survives="restart",
            shared="process" if locks is None else "host",
            lists=self._lists,
            note="As durable as the store beneath. A list or a sweep reads all that is in it.",
        )

    def load(self, sid: str) -> Record | None:
        """As `Store.load`."""
        with self._mine():
            kept = self._load(sid)
        return None if kept is None else kept.opened()

    def create(self, record: Record) -> bool:
        """As `Store.create`."""
        with self._mine():
            try:
                if self._load(record.sid) is not None:
                    return False
            except DamagedRecord:
                return False
            self._save(record, record.deadline)
            return True

    def replace(self, record: Record, expected_version: int) -> Record | Outcome:
        """As `Store.replace`."""
        with self._mine():
            kept = self._load(record.sid)
            if kept is None:
                return GONE
            current = kept.opened()
            if current.status in (ENDING, ENDED):
                return GONE
            if current.version != expected_version:
                return current
            self._save(record, min(kept.due, record.deadline))
            return SAVED

    def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> bool:
        """As `Store.touch`."""
        with self._mine():
            kept = self._load(sid)
            if kept is None:
                return False
            current = kept.opened()
            if current.status in (ENDING, ENDED) or current.version != expected_version:
                return False
            touched = changed(current, version=expected_version + 1, seen=seen, deadline=deadline)
            self._save(touched, kept.due)
            return True

    def delete(self, sid: str, ended: Ended | None = None) -> bool:
        """As `Store.delete`."""
        with self._mine():
            try:
                kept = self._load(sid)
                current = None if kept is None else kept.opened()
            except DamagedRecord:
                # What cannot be read is removed.
                self._remove(sid)
                return True
            if kept is None or current is None:
                return False
            if ended is None:
                self._remove(sid, kept)
                return True
            if current.status == ENDED:
                return False
            if current.status == ended.status == ENDING:
                self._save(current, ended.due)
                return False
            self._save(ended_as(current, ended), ended.due)
            return True

    def due(self, now: float, lease: float, limit: int = 100) -> list[Record]:
        """As `Store.due`; of a store that cannot list its sessions nothing is due."""
        if not self._lists:
            return []
        claimed: list[Record] = []
        with self._mine():
            over = [kept for kept in self._all() if kept.due <= now]
            for kept in sorted(over, key=lambda kept: kept.due):
                if len(claimed) == limit:
                    break
                record = _readable(kept)
                if record is None:
                    continue
                if record.status == ENDING or (record.status == LIVE and record.deadline <= now):
                    record = changed(
                        record,
                        version=record.version + 1,
                        status=ENDING,
                        attempts=record.attempts + 1,
                    )
                    self._save(record, now + lease)
                    claimed.append(record)
                elif record.deadline <= now:
                    self._remove(kept.id, kept)
                else:
                    self._save(record, record.deadline)
        return claimed

    def list(
        self, user: str | None = None, status: int | None = LIVE, after: str = "", limit: int = 100
    ) -> builtins.list[Record]:
        """As `Store.list`.

        Raises:
            ConfigurationError: the foreign store cannot list its sessions.
        """
        return [
            record
            for kept in sorted(self._listed(), key=lambda kept: kept.id)
            if kept.id > after and (user is None or kept.user == user)
            for record in [_readable(kept)]
            if record is not None and status in (None, record.status)
        ][:limit]

    def count(self, user: str | None = None, status: int | None = LIVE) -> int:
        """As `Store.count`; `list` says what it raises."""
        return sum(
            record is not None and status in (None, record.status)
            for kept in self._listed()
            if user is None or kept.user == user
            for record in [_readable(kept)]
        )

    def close(self) -> None:
        """Close the foreign store, if it can be closed."""
        close = getattr(self.store, "close", None)
        if close is not None:
            self._call(close)

    # Inside.

    @contextlib.contextmanager
    def _mine(self) -> Iterator[None]:
        """Keep all others out."""
        if self._locks is not None:
            try:
                with self._locks.hold("sessions"):
                    yield
            except OSError as error:
                raise StoreUnavailable(f"the lock cannot be taken: {error}") from error
            return
        if not self._turn.acquire(timeout=self._timeout):
            raise StoreUnavailable(
                f"another thread has used {type(self.store).__name__} for {self._timeout:g} s"
            )
        try:
            yield
        finally:
            self._turn.release()

    def _call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Call the foreign store, within a transaction where it has such.

        Raises:
            StoreUnavailable: it raised anything.
        """
        store = self.store
        try:
            if not self._by_id:
                return method(*arguments)
            store.transaction_start()
            try:
                answer = method(*arguments)
            except BaseException:
                store.transaction_abort(None)
                raise
            store.transaction_commit(None)
            return answer
        except Exception as error:
            raise StoreUnavailable(
                f"{type(store).__name__}.{getattr(method, '__name__', 'method')}() failed: "
                f"{error!r:.200}"
            ) from error

    def _load(self, sid: str) -> Kept | None:
        try:
            found = self._call(self.store.load_session, sid)
        except StoreUnavailable as failure:
            error = failure.__cause__
            if isinstance(error, KeyError) and error.args[:1] == (sid,):
                # As a dict says that there is none.
                return None
            if isinstance(error, _DAMAGE) and not isinstance(error, OSError):
                raise DamagedRecord(f"the store cannot read it: {error!r:.200}") from error
            raise
        if found is None:
            return None
        if type(found) is not Kept or not isinstance(getattr(found, "id", None), str):
            raise DamagedRecord(f"the store has a {type(found).__qualname__} under that sid")
        # A database may compare without regard to case.
        return found if found.id == sid else None

    def _save(self, record: Record, due: float) -> None:
        self._call(self.store.save_session, Kept(record, due))

    def _remove(self, sid: str, kept: Kept | None = None) -> None:
        if self._by_id:
            self._call(self.store.delete_session, sid)
            return
        if kept is None:
            kept = Kept.__new__(Kept)
            kept.id = sid
        self._call(self.store.delete_session, kept)

    def _listed(self) -> builtins.list[Kept]:
        if not self._lists:
            raise ConfigurationError(
                f"{type(self.store).__name__} cannot list its sessions; to list, count and end "
                "those of a user it needs a method iter_sessions()"
            )
        with self._mine():
            return self._all()

    def _all(self) -> builtins.list[Kept]:
        """Return all that is ours in the store, and can be read."""
        if self._by_id:
            ids = self._call(lambda: [*self.store])
        else:
            # Some give the session with its name, some its pickle.
            pairs = self._call(lambda: [(name, one) for name, one in self.store.iter_sessions()])
            found = [one for _, one in pairs if type(one) is Kept]
            if len(found) == len(pairs):
                return found
            ids = [name for name, _ in pairs]
        kept = []
        for name in ids:
            try:
                one = self._load(name)
            except DamagedRecord:
                continue
            if one is not None:
                kept.append(one)
        return kept


def _has_own(kind: type, method: str) -> bool:
    """Tell whether a store's class has a method, and not just that of the abstract store."""
    found = getattr(kind, method, None)
    return found is not None and getattr(found, "__qualname__", "") != f"SessionStore.{method}"


def _readable(kept: Kept) -> Record | None:
    try:
        return kept.opened()
    except DamagedRecord:
        return None
