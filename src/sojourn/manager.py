"""The session manager: settings, store and driver; the one object that an integration talks to."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from datetime import timedelta
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import msgspec

from sojourn.core import adopting, ending, flows
from sojourn.core.calls import Count, Flow
from sojourn.core.cookie import CookieSettings, find, tokens_in
from sojourn.core.ending import Swept
from sojourn.core.expiry import NIST_800_63B_4_AAL2, Expiry, seconds
from sojourn.core.opening import Opened, judge, open_session
from sojourn.core.record import Client, Record
from sojourn.core.rules import Environment, Rules
from sojourn.core.sealing import Sealer
from sojourn.core.session import Session
from sojourn.core.token import Entropy, Token, is_sid
from sojourn.devices import Device
from sojourn.drivers import arun, run
from sojourn.errors import (
    ConfigurationError,
    Conflict,
    DamagedRecord,
    InvalidValue,
    SojournError,
    StoreUnavailable,
)
from sojourn.handlers import ADesk, Desk, Handler, Handlers
from sojourn.stores import check_url, open_async_store, open_store
from sojourn.stores.base import AsyncStore, Store
from sojourn.sweeper import Sweeper

if TYPE_CHECKING:
    from sojourn.stores.cookie import CookieJar, CookieStore

__all__ = ["Committed", "SessionManager"]

T = TypeVar("T")
S = TypeVar("S", bound=Session)
H = TypeVar("H", bound=Handler)
Committed = flows.Committed

log = logging.getLogger("sojourn")

_LEVELS = {
    "damaged": logging.WARNING,
    "suspicious": logging.WARNING,
    "two cookies": logging.WARNING,
    "dropped": logging.INFO,
}
_DEFAULT = NIST_800_63B_4_AAL2
_LOGGED_DAMAGE = 1000


class SessionManager:
    """Opens the session of a request and commits what was done to it.

    One manager serves blocking and asynchronous code at once; methods that touch the store exist
    in both forms, the asynchronous one with an `a` in front.

    Attributes:
        counters: what happened since the start, by name: created, renewed, ended, written,
            retries (another request was first, and the changes were merged), overwritten (keys
            set by two requests at once), dropped (writes that came too late), damaged,
            suspicious, refused, store errors.
    """

    def __init__(
        self,
        store: str | Store | AsyncStore = "memory://",
        *,
        expiry: Expiry | None = None,
        idle_timeout: timedelta | float | None = _DEFAULT.idle_timeout,
        lifetime: timedelta | float | None = _DEFAULT.lifetime,
        touch_interval: timedelta | float | None = None,
        grace: timedelta | float = 10.0,
        tombstone: timedelta | float | None = timedelta(days=1),
        seal_keys: Sequence[bytes | str] = (),
        max_bytes: int = 1024 * 1024,
        max_keys: int = 1000,
        max_depth: int = 64,
        max_sessions: int | None = None,
        on_too_many: Literal["end-oldest", "deny"] = "end-oldest",
        on_theft: Literal["log", "end", "end-user"] = "log",
        on_conflict: Literal["last", "raise"] = "last",
        on_store_error: Literal["raise", "continue"] = "raise",
        commit_on_error: bool = False,
        cookie_name: str = "id",
        cookie_secure: bool | None = None,
        cookie_domain: str | None = None,
        cookie_path: str = "/",
        cookie_samesite: Literal["Lax", "Strict", "None"] = "Lax",
        cookie_partitioned: bool = False,
        cookie_persistent: bool = False,
        clock: Callable[[], float] = time.time,
        entropy: Entropy = os.urandom,
    ) -> None:
        """Check all settings; the store is opened when it is first needed.

        Args:
            store: a URL ("sqlite:///sessions.db", see `sojourn.stores.open_store`), or a store.
            expiry: a named pair of limits, such as `sojourn.NIST_800_63B_4_AAL3`, in place of the
                two that follow.
            idle_timeout: how long a session lives without being used (default 1 hour); None: no
                such limit.
            lifetime: how long it lives after creation or login in any case (default 24 hours).
            touch_interval: how long it must have gone unseen before a mere use is written
                (default: a twentieth of the idle timeout).
            grace: how long the old cookie works after a renewal.
            tombstone: how long the reason of an ended session is kept; None: not at all.
            seal_keys: keys that the data is sealed with at rest, newest first; see `Sealer`.
            max_bytes, max_keys, max_depth: of the values of one session.
            max_sessions: how many sessions a user may have; None: any number.
            on_too_many: what a login above that number does: "end-oldest" (the session seen
                longest ago ends, reason "replaced") or "deny" (it fails with `TooManySessions`).
            on_theft: what a use of a renewed cookie after its grace brings: "log", "end" (the
                session, reason "theft") or "end-user" (all sessions of its user). It may be a
                thief, or the visitor from whom a thief renewed the cookie.
            on_conflict: "last": where two requests set the same key at once, the last commit
                wins; "raise": the later one fails with `Conflict`.
            on_store_error: "raise": a request that needs the store gets `StoreUnavailable` (a
                503); "continue": it goes on with an empty session that is not kept. Ending a
                session raises all the same: nobody is told that he is logged out who is not.
            commit_on_error: whether a request is committed that ends in an unhandled exception, or
                in an answer of 500 or above, which is what frameworks make of one.
            cookie_name, ...: see `CookieSettings`.
            cookie_persistent: whether browsers keep the cookie of a new session when they are
                closed, for as long as the session can live; `session.persistent` says it of one.
            clock, entropy: the time in UTC seconds, and random bytes.

        Raises:
            ConfigurationError: with everything that is wrong.
        """
        faults: list[str] = []

        def checked(make: Callable[[], T]) -> T | None:
            try:
                return make()
            except ConfigurationError as error:
                faults.append(str(error))
                return None

        if expiry is not None and not isinstance(expiry, Expiry):
            faults.append(
                f"expiry is {expiry!r}; it must be an Expiry such as sojourn.NIST_800_63B_4_AAL3"
            )
        elif expiry is not None:
            given = (idle_timeout, lifetime) != (_DEFAULT.idle_timeout, _DEFAULT.lifetime)
            if given:
                faults.append("expiry is given together with idle_timeout or lifetime; give one")
            idle_timeout, lifetime = expiry.idle_timeout, expiry.lifetime
        idle = checked(lambda: seconds(idle_timeout, "idle_timeout"))
        life = checked(lambda: seconds(lifetime, "lifetime"))
        if idle_timeout is None and lifetime is None:
            faults.append("idle_timeout and lifetime are both None; a session must end some time")
        shortest = min((limit for limit in (idle, life) if limit), default=1.0)
        touch = checked(lambda: seconds(touch_interval, "touch_interval"))
        if touch is None:
            touch = (idle or shortest) / 20
        elif touch >= shortest:
            faults.append(
                f"touch_interval is {touch:g} s; it must be shorter than the limits "
                f"({shortest:g} s), or sessions in use would end"
            )
        for name, value in (("grace", grace), ("tombstone", tombstone)):
            if value:
                checked(lambda value=value, name=name: seconds(value, name))  # type: ignore[misc]
        for name, number in (
            ("max_bytes", max_bytes),
            ("max_keys", max_keys),
            ("max_depth", max_depth),
        ):
            if type(number) is not int or number < 1:
                faults.append(f"{name} is {number!r}; it must be an int above 0")
        if type(max_depth) is int and max_depth > 200:
            faults.append(f"max_depth is {max_depth}; it must be 200 at most")
        if isinstance(store, str):
            checked(lambda: check_url(store))
        elif not hasattr(store, "load"):
            faults.append(
                f"store is {store!r}; it must be a URL such as 'sqlite:///sessions.db', or a store"
            )
        for name, flag in (
            ("commit_on_error", commit_on_error),
            ("cookie_persistent", cookie_persistent),
        ):
            if not isinstance(flag, bool):
                faults.append(f"{name} is {flag!r}; it must be True or False")
        if max_sessions is not None and (type(max_sessions) is not int or max_sessions < 1):
            faults.append(f"max_sessions is {max_sessions!r}; it must be an int above 0, or None")
        for name, choice, allowed in (
            ("on_too_many", on_too_many, ("end-oldest", "deny")),
            ("on_theft", on_theft, ("log", "end", "end-user")),
            ("on_conflict", on_conflict, ("last", "raise")),
            ("on_store_error", on_store_error, ("raise", "continue")),
        ):
            if choice not in allowed:
                faults.append(f"{name} is {choice!r}; it must be {' or '.join(map(repr, allowed))}")
        sealer = checked(lambda: Sealer(seal_keys)) if seal_keys else None
        cookie = checked(
            lambda: CookieSettings(
                cookie_name,
                secure=cookie_secure,
                domain=cookie_domain,
                path=cookie_path,
                samesite=cookie_samesite,
                partitioned=cookie_partitioned,
            )
        )
        if faults or cookie is None:
            raise ConfigurationError("; ".join(faults))
        self.cookie: CookieSettings = cookie
        self.commit_on_error = commit_on_error
        self.counters: Counter[str] = Counter()
        self._continue = on_store_error == "continue"
        self._env = Environment(
            Rules(
                idle_timeout=idle,
                lifetime=life,
                touch_interval=touch,
                grace=seconds(grace, "grace") or 0.0 if grace else 0.0,
                tombstone=seconds(tombstone, "tombstone") or 0.0 if tombstone else 0.0,
                max_bytes=max_bytes,
                max_keys=max_keys,
                max_depth=max_depth,
                keep_conflicts=on_conflict == "last",
                max_sessions=max_sessions,
                deny_new=on_too_many == "deny",
                on_theft=on_theft,
                sealer=sealer,
                persistent=cookie_persistent,
            ),
            clock,
            entropy,
        )
        self._handlers: Handlers | None = None
        self._given = store
        self._carried = (
            store.startswith("cookie:") if isinstance(store, str) else hasattr(store, "jar")
        )
        self._lock = threading.Lock()
        self._store: Store | None = None
        # The store, where nothing else is to be asked before its `load`.
        self._direct: Store | None = None
        self._astore: AsyncStore | None = None
        self._damage_seen: set[str] = set()

    def describe(self) -> dict[str, Any]:
        """Return the policy in force, as plain values: what an operator or an auditor asks for.

        Durations are in seconds. Keys are counted, never shown.
        """
        rules, cookie = self._env.rules, self.cookie
        given = self._given
        return {
            # Never the URL: it may hold a password.
            "store": given.partition(":")[0] if isinstance(given, str) else type(given).__name__,
            "idle_timeout": rules.idle_timeout,
            "lifetime": rules.lifetime,
            "touch_interval": rules.touch_interval,
            "grace": rules.grace,
            "tombstone": rules.tombstone,
            "sealed": rules.sealer is not None,
            "max_bytes": rules.max_bytes,
            "max_keys": rules.max_keys,
            "max_depth": rules.max_depth,
            "max_sessions": rules.max_sessions,
            "on_too_many": "deny" if rules.deny_new else "end-oldest",
            "on_theft": rules.on_theft,
            "on_conflict": "last" if rules.keep_conflicts else "raise",
            "on_store_error": "continue" if self._continue else "raise",
            "commit_on_error": self.commit_on_error,
            "cookie_persistent": rules.persistent,
            "cookie_http": cookie.clear(False),
            "cookie_https": cookie.clear(True),
        }

    # The store, in the colour that is needed.

    @property
    def store(self) -> Store:
        """The blocking store; opened on first use.

        Raises:
            ConfigurationError: the manager was given an asynchronous one.
        """
        store = self._store
        return store if store is not None else self._open_store()

    def _open_store(self) -> Store:
        with self._lock:
            if self._store is None:
                given = self._given
                if isinstance(given, str):
                    self._keep(open_store(given))
                elif inspect.iscoroutinefunction(given.load):
                    raise ConfigurationError(
                        f"{type(given).__name__} is an asynchronous store, and this code is "
                        "blocking; give SessionManager the URL, or a blocking store"
                    )
                else:
                    self._keep(given)  # type: ignore[arg-type]
            return self._store  # type: ignore[return-value]

    def _keep(self, store: Store) -> None:
        self._store = store
        self._direct = None if store.promises.stale else store

    @property
    def astore(self) -> AsyncStore:
        """The asynchronous store; opened on first use. A blocking one is run in threads."""
        store = self._astore
        return store if store is not None else self._open_astore()

    def _open_astore(self) -> AsyncStore:
        from sojourn.stores.threaded import ThreadedStore

        with self._lock:
            if self._astore is None:
                given = self._given
                if self._store is not None:
                    # One and the same: a memory store opened twice would be two.
                    self._astore = ThreadedStore(self._store)
                elif isinstance(given, str):
                    self._astore = open_async_store(given)
                    if isinstance(self._astore, ThreadedStore):
                        self._keep(self._astore.store)
                elif inspect.iscoroutinefunction(given.load):
                    self._astore = given  # type: ignore[assignment]
                else:
                    self._keep(given)  # type: ignore[arg-type]
                    self._astore = ThreadedStore(given)  # type: ignore[arg-type]
            return self._astore  # type: ignore[return-value]

    def run(self, flow: Flow[T]) -> T:
        """Run a flow on the store, blocking."""
        handlers = self._handlers
        return run(flow, self.store if handlers is None else Desk(self.store, handlers))

    async def arun(self, flow: Flow[T]) -> T:
        """Run a flow on the store, on the event loop."""
        handlers = self._handlers
        return await arun(flow, self.astore if handlers is None else ADesk(self.astore, handlers))

    def close(self) -> None:
        """Close the blocking store."""
        if self._store is not None:
            self._store.close()

    async def aclose(self) -> None:
        """Close both stores."""
        if self._astore is not None:
            await self._astore.close()
        self.close()

    # A request, blocking.

    @overload
    def session(
        self, cookie: str = "", *, https: bool = False, client: Client | None = None
    ) -> Session: ...
    @overload
    def session(
        self,
        cookie: str = "",
        *,
        https: bool = False,
        client: Client | None = None,
        kind: type[S],
        load: Callable[[], Opened] | None = None,
    ) -> S: ...
    def session(
        self,
        cookie: str = "",
        *,
        https: bool = False,
        client: Client | None = None,
        kind: type[Any] = Session,
        load: Callable[[], Opened] | None = None,
    ) -> Any:
        """Return the session of a request; it is loaded when it is first used.

        Args:
            cookie: the Cookie header, latin-1.
            https: whether the request came by https.
            client: who makes it.
            kind: a class below `Session`, for an integration whose framework asks more of it.
            load: what finds it in place of the cookie; not where the cookie holds the record.
        """
        if self._carried:
            return self._carried_session(cookie, https, client, kind)
        if load is not None:
            return kind(self._env, load, client or _NOBODY)
        return kind(self._env, self.open, client or _NOBODY, cookie, https)

    def open(self, cookie: str, https: bool) -> Opened:
        """Find what a request's cookie opens.

        Raises:
            StoreUnavailable: unless such requests are to go on.
        """
        env = self._env
        token = self.cookie.quick_look_for[https](cookie)
        if token is not None:
            # The ordinary case of `open_session`, without the cost of a flow. Where the store
            # has anything to say but an answer, the flow and its driver know what to do.
            try:
                store = self._direct
                if store is None and self._store is None:
                    self._open_store()
                    store = self._direct
                if store is not None:
                    return judge(store.load(token.sid), token, env.clock(), env)
            except StoreUnavailable as error:
                if not error.transient:
                    # It has waited as long as it may; nobody is to wait that long again.
                    return self._without(error)
            except DamagedRecord:
                pass
        tokens = tokens_in(cookie, self.cookie.name_for[https])
        if not tokens:
            return Opened(env.clock())
        try:
            return self.run(open_session(tokens, env))
        except StoreUnavailable as error:
            return self._without(error)

    def commit(self, session: Session, *, late: bool = False) -> Committed:
        """Write what was done to a session; see `flows.commit` for what it raises.

        It may be called in a request as often as there is something to be saved: each answers
        with the cookie that is to be set because of all of them.

        Args:
            session: of this manager.
            late: the head of the answer has left, so a new session is not made.
        """
        if session._settled():
            return _NOTHING_DONE if late else session._owed or _NOTHING_DONE
        if self._carried:
            return self._commit_carried(session, late)
        try:
            done = self.run(flows.commit(session, self._env, late))
        except StoreUnavailable as error:
            done = self._uncommitted(error, session)
        self._note(done)
        return done if late else _with_owed(session, done)

    def owed(self, session: Session) -> Committed:
        """Return what the answer of a request that failed has to tell the browser all the same.

        Nothing more of such a request is kept. But what it has committed before, or a lock has for
        it, stands: a login whose cookie is not sent logs its visitor out.
        """
        return session._owed or _NOTHING_DONE

    # The same on an event loop.

    async def asession(
        self, cookie: str = "", *, https: bool = False, client: Client | None = None
    ) -> Session:
        """Return the session of a request.

        It is loaded now if a cookie came, unless the store's reads are so brief that they can be
        made on the loop when the session is first used. Where the store does not answer, the
        error is raised when the session is first used, so that a page without it works.
        """
        client = client or _NOBODY
        session = self.session_at_once(cookie, https, client)
        if session is None and self._astore is None:
            try:
                # Not on the loop: to open a file may take its time.
                await asyncio.to_thread(self._open_astore)
            except SojournError as error:
                failure = error
                return Session(self._env, lambda: self._without(failure), client)
            session = self.session_at_once(cookie, https, client)
        if session is None:
            session = await self._loaded_session(cookie, https, client)
        return session

    def session_at_once(self, cookie: str, https: bool, client: Client) -> Session | None:
        """Return the session of a request, on an event loop, if that needs no waiting.

        None: the store is not open yet, or a cookie came and the store must be awaited; see
        `asession`.
        """
        if self._carried:
            return self._carried_session(cookie, https, client, Session)
        store = self._astore
        if store is None:
            return None
        if store.promises.inline and self._store is not None:
            return Session(self._env, self.open, client, cookie, https)
        if not tokens_in(cookie, self.cookie.name_for[https]):
            env = self._env
            return Session(env, lambda: Opened(env.clock()), client)
        return None

    async def _loaded_session(self, cookie: str, https: bool, client: Client) -> Session:
        env = self._env
        tokens = tokens_in(cookie, self.cookie.name_for[https])
        try:
            opened = await arun(open_session(tokens, env), self.astore)
        except StoreUnavailable as error:
            failure = error
            return Session(env, lambda: self._without(failure), client)
        return Session(env, lambda: opened, client)

    async def acommit(self, session: Session, *, late: bool = False) -> Committed:
        """As `commit`; once begun it goes on to its end, also where the caller is cancelled."""
        if session._settled():
            return _NOTHING_DONE if late else session._owed or _NOTHING_DONE
        if self._carried:
            return self._commit_carried(session, late)
        try:
            done = await _finish(
                self.arun(flows.commit(session, self._env, late)),
                # Handlers are others' code, which may ask for the task that it runs in.
                at_once=self._handlers is None and self.astore.promises.inline,
            )
        except StoreUnavailable as error:
            done = self._uncommitted(error, session)
        self._note(done)
        return done if late else _with_owed(session, done)

    # Where the cookie holds the record itself: no store is asked, so both colours are one.

    def _carried_session(self, cookie: str, https: bool, client: Client | None, kind: type[S]) -> S:
        box: list[CookieJar] = []
        load = partial(self._open_carried, box, cookie, https)
        session: S = _carried(kind)(self._env, load, client or _NOBODY)
        session.box = box  # type: ignore[attr-defined]
        return session

    def _open_carried(self, box: list[CookieJar], cookie: str, https: bool) -> Opened:
        name = self.cookie.name_for[https]
        store: CookieStore = self.store  # type: ignore[assignment]
        jar = store.jar(find(cookie, name), name)
        box.append(jar)
        return run(open_session(jar.tokens, self._env), jar)

    def _commit_carried(self, session: Any, late: bool) -> Committed:
        jar: CookieJar = session.box[0]
        handlers = self._handlers
        at: Any = jar if handlers is None else Desk(jar, handlers)
        done = run(flows.commit(session, self._env, late), at)
        done.sealed = jar.sealed(session._opened.token)
        if done.sealed is not None and done.max_age is None:
            done.max_age = flows.max_age_of(session, self._env)
        self._note(done)
        return done if late else _with_owed(session, done)

    # Events.

    def on_created(self, handler: H) -> H:
        """Register a handler that is called with each session that was made: `handler(session)`.

        It runs in the request, after the commit. Like all handlers it may be blocking or a
        coroutine function; what it raises is logged and harms nobody.
        """
        return self._register("created", handler)

    def on_renewed(self, handler: H) -> H:
        """Register a handler that is called with each session that got a new secret."""
        return self._register("renewed", handler)

    def on_suspicious(self, handler: H) -> H:
        """Register a handler for uses of a renewed cookie after its grace: `handler(session)`."""
        return self._register("suspicious", handler)

    def on_ended(self, handler: H) -> H:
        """Register a handler of the end of sessions: `handler(session, reason)`.

        It is called for whatever reason a session ends; `session` is as it was at its end, to be
        read, and over before the first handler runs. Of a session that was ended in a request the
        handlers run after that commit; of one whose time is over, in a sweep (`sweeper`).

        Each handler runs **at least once**, also when the process that began with it dies: the
        session is deleted only when all its handlers have run, and until then another sweep
        comes back to it. So a handler can run twice; `session.sid` never names two sessions and
        serves as the key to notice that. One that raises runs again later, together with the
        others of that session: after one lease, then twice as long each time; after ten attempts
        the session is set aside (`set_aside`).
        """
        return self._register("ended", handler)

    def on_ended_in_transaction(self, handler: H) -> H:
        """Register `handler(session, reason, connection)`: exactly once, in the store's database.

        What it writes through the connection (a DBAPI cursor's parent, or apsw's) becomes true
        in the same transaction that deletes the session, or neither does. For the SQL stores.
        """
        return self._register("ended in transaction", handler)

    def watch(self, session: Session, callback: Handler) -> None:
        """Call `callback(sid, reason)` once when that session is over: in this process only.

        Where this process ends it, at once after that was written. Where another one does, or its
        time runs out, in the next sweep of this process (`sweep`, `sweeper`) after the deadline
        that is known here; if it was used meanwhile, its new deadline is waited for. There is no
        timer for it. The reason is empty where nobody knows it any more.

        Unlike a handler it does not survive this process, and it is not called again if it fails.
        It is for what is bound to this process: a connection, an object in memory.
        """
        if self._handlers is None:
            self._handlers = Handlers()
        self._handlers.watches.add(session.sid, session.deadline, callback)

    def unwatch(self, sid: str, callback: Handler) -> bool:
        """Take back one `watch`; False where it was called already, or there was none."""
        handlers = self._handlers
        return handlers is not None and handlers.watches.remove(sid, callback)

    def _register(self, event: str, handler: H) -> H:
        if self._handlers is None:
            self._handlers = Handlers()
        self._handlers.add(event, handler)
        rules = msgspec.structs.replace(
            self._env.rules, handlers=self._env.rules.handlers | {event}
        )
        self._env = msgspec.structs.replace(self._env, rules=rules)
        return handler

    # Sweeping.

    def sweep(self, *, stop: Callable[[], bool] | None = None) -> Swept:
        """End all sessions whose time is over, and run their handlers; blocking.

        A session is swept a minute after its deadline, so that a worker whose clock is ahead by
        less than that ends none early. For requests it is over at its deadline.

        Args:
            stop: asked before each page whether to leave the rest to the next sweep.
        """
        return self.run(self.sweeping(stop))

    async def asweep(self, *, stop: Callable[[], bool] | None = None) -> Swept:
        """As `sweep`."""
        return await self.arun(self.sweeping(stop))

    def sweeping(self, stop: Callable[[], bool] | None = None) -> Flow[Swept]:
        """As `sweep`, as a flow, for drivers of other kinds."""
        done = yield from ending.sweep(self._env, self._owner(), self._page(), stop)
        if self._handlers is not None:
            yield from self._handlers.watches.check(self._env.clock())
        return self._swept(done)

    def sweeper(self, every: timedelta | float = 60.0) -> Sweeper:
        """Return what sweeps again and again: as a thread (`start`) or a task (`run`)."""
        return Sweeper(self, every)

    def set_aside(self) -> list[Record]:
        """Return the sessions whose handlers failed too often, for an operator to look at."""
        return self.run(ending.set_aside(self._env))

    async def aset_aside(self) -> list[Record]:
        """As `set_aside`."""
        return await self.arun(ending.set_aside(self._env))

    def retry(self, sid: str) -> bool:
        """Run the handlers of a session's end again; whether all of them ran."""
        return self.run(ending.retry(_sid(sid), self._env))

    async def aretry(self, sid: str) -> bool:
        """As `retry`."""
        return await self.arun(ending.retry(_sid(sid), self._env))

    def _page(self) -> int:
        # One at a time where handlers run, so that a lease is for one session, and what counts as
        # an attempt at its handlers is one.
        awaited = self._env.rules.handlers & {"ended", "ended in transaction"}
        return 1 if awaited else 100

    def _swept(self, done: Swept) -> Swept:
        self.counters["swept"] += done.ended
        if done.failed:
            log.error(
                "handlers of the end of %d sessions failed and will run again; %d of these were "
                "set aside for an operator",
                done.failed,
                done.set_aside,
            )
        return done

    # Users and operators.

    def find(self, sid: str) -> Session | None:
        """Return a live session by its sid, for an operator's page or a job; None: there is none.

        The visitor's cookie is not known here: what is written to it is committed as always, but
        a renewal or a login would leave the visitor without the new cookie.

        Args:
            sid: of the session. What is no sid names none: it may come from a form.
        """
        return self.run(ending.find(sid, self._env)) if is_sid(sid) else None

    async def afind(self, sid: str) -> Session | None:
        """As `find`."""
        return await self.arun(ending.find(sid, self._env)) if is_sid(sid) else None

    def adopt(
        self,
        token: Token,
        values: Mapping[str, Any],
        *,
        user: str | None = None,
        client: Client | None = None,
    ) -> bool:
        """Keep a session that another system made; False where one is or was there already.

        Its limits begin now. No handler of new sessions hears of it.

        Args:
            token: what its cookie stands for; see `sojourn.core.adopting.token_of`.
            values: what it holds, as a session holds it.
            user: who is logged in.
            client: who it was made by.

        Raises:
            InvalidValue: a value that cannot be stored, or too many.
            StoreUnavailable: the store did not answer.
        """
        user = _user(user) if user is not None else None
        return self.run(adopting.adopt(token, values, self._env, user, client or _NOBODY))

    async def aadopt(
        self,
        token: Token,
        values: Mapping[str, Any],
        *,
        user: str | None = None,
        client: Client | None = None,
    ) -> bool:
        """As `adopt`."""
        user = _user(user) if user is not None else None
        return await self.arun(adopting.adopt(token, values, self._env, user, client or _NOBODY))

    def end(self, sid: str, reason: str = "operator", *, user: str | None = None) -> bool:
        """End one session for good; returns whether this call did it.

        Args:
            sid: of the session. What is no sid names none: it may come from a form.
            reason: told to its visitor; for what the user did by "user".
            user: end it only if it is that user's. Always give it where users end sessions
                themselves, or they could end those of others.
        """
        if not is_sid(sid):
            return False
        done = self.run(ending.end(sid, reason, self._env, _user(user) if user else None))
        self.counters["ended"] += done
        return done

    async def aend(self, sid: str, reason: str = "operator", *, user: str | None = None) -> bool:
        """As `end`."""
        if not is_sid(sid):
            return False
        done = await self.arun(ending.end(sid, reason, self._env, _user(user) if user else None))
        self.counters["ended"] += done
        return done

    def end_all(self, user: str, *, keep: str | None = None, reason: str = "user") -> list[str]:
        """End all sessions of a user, but the one whose sid is `keep`; returns their sids.

        A login that is in flight does not survive it either.
        """
        ended = self.run(ending.end_all_of(_user(user), keep, reason, self._env))
        self.counters["ended"] += len(ended)
        return ended

    async def aend_all(
        self, user: str, *, keep: str | None = None, reason: str = "user"
    ) -> list[str]:
        """As `end_all`."""
        ended = await self.arun(ending.end_all_of(_user(user), keep, reason, self._env))
        self.counters["ended"] += len(ended)
        return ended

    def of_user(self, user: str, *, current: str | None = None) -> list[Device]:
        """Return the live sessions of a user, the one seen last first.

        Args:
            user: whose.
            current: the sid of the request's own session, to be marked as such.
        """
        records = self.run(ending.records_of(_user(user), self._env))
        return [Device(record, record.sid == current) for record in records]

    async def aof_user(self, user: str, *, current: str | None = None) -> list[Device]:
        """As `of_user`."""
        records = await self.arun(ending.records_of(_user(user), self._env))
        return [Device(record, record.sid == current) for record in records]

    def count(self, user: str | None = None) -> int:
        """Return how many sessions there are, also those past their deadline and not yet swept."""
        return self.run(_count(user))

    async def acount(self, user: str | None = None) -> int:
        """As `count`."""
        return await self.arun(_count(user))

    # One at a time.

    @contextlib.contextmanager
    def exclusive(
        self, session: Session, *, wait: float = 10.0, lease: float = 30.0
    ) -> Iterator[Session]:
        """Read, decide and write with no other `exclusive` of the same session in between.

        What was done to the session so far is committed first, and the session is read anew; it
        is committed again at the end, before the lock is given back. Requests that do not ask for
        the lock are not held up; what they change is merged as always.

        Args:
            session: which. A new one needs no lock, as nobody else can have it, and is kept by
                the request's own commit.
            wait: how many seconds to wait for the lock at most.
            lease: after how many seconds the lock ends by itself, should this process die.

        Raises:
            Conflict: the lock was not to be had in that time, or its lease ran out meanwhile.
            SessionEnded: the session ended while waiting for it.

        What is raised inside it undoes what was done to the session under the lock.
        """
        if session.is_new:
            with _undone(session):
                yield session
            return
        self.commit(session)
        name, owner = session.sid, self._owner()
        try:
            with _undone(session):
                if not self.run(ending.acquire(name, owner, lease, self._env, wait)):
                    raise _locked(name, wait)
                self.run(flows.refresh(session, self._env))
                yield session
                if not self.run(ending.extend(name, owner, lease, self._env)):
                    raise _lost(name, lease)
                self.commit(session)
        finally:
            self.run(ending.release(name, owner, self._env))

    @contextlib.asynccontextmanager
    async def aexclusive(
        self, session: Session, *, wait: float = 10.0, lease: float = 30.0
    ) -> AsyncIterator[Session]:
        """As `exclusive`."""
        if session.is_new:
            with _undone(session):
                yield session
            return
        await self.acommit(session)
        name, owner = session.sid, self._owner()
        try:
            with _undone(session):
                # To its end, also when cancelled: or the lock would be taken and never given back.
                taking = self.arun(ending.acquire(name, owner, lease, self._env, wait))
                if not await _finish(taking):
                    raise _locked(name, wait)
                await self.arun(flows.refresh(session, self._env))
                yield session
                if not await self.arun(ending.extend(name, owner, lease, self._env)):
                    raise _lost(name, lease)
                await self.acommit(session)
        finally:
            await _finish(self.arun(ending.release(name, owner, self._env)))

    def _owner(self) -> str:
        """Return a name for a lock's holder that no other has, in any process."""
        return self._env.entropy(12).hex()

    # Inside.

    def _without(self, error: SojournError) -> Opened:
        self.counters["store errors"] += 1
        if not self._continue or not isinstance(error, StoreUnavailable):
            raise error
        log.error("the request goes on without a session: %s", error)
        return Opened(self._env.clock(), shadow=True, failure=error)

    def _uncommitted(self, error: StoreUnavailable, session: Session) -> Committed:
        self.counters["store errors"] += 1
        if not self._continue or session._working().ends:
            # Nobody is told that he is logged out who is not.
            raise error
        log.error("what the request did to its session is lost: %s", error)
        return Committed(dropped="store", events=[])

    def _note(self, done: Committed) -> None:
        counters = self.counters
        if done.wrote:
            counters["written"] += 1
        if done.retries:
            counters["retries"] += done.retries
            counters["overwritten"] += len(done.overwritten)
        if not done.events:
            return
        for event, sid, detail in done.events:
            counters[event] += 1
            if event == "damaged":
                # A visitor with a damaged session comes again and again: one line is enough.
                if sid in self._damage_seen:
                    continue
                if len(self._damage_seen) < _LOGGED_DAMAGE:
                    self._damage_seen.add(sid)
            log.log(_LEVELS.get(event, logging.DEBUG), "session %s %s: %s", sid, event, detail)


@cache
def _carried(kind: type[Session]) -> Any:
    """Return that kind of session with a `box` for its request's jar, once it is loaded."""
    names = {"__slots__": ("box",), "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), names)


_NOBODY = Client()
_NOTHING_DONE = Committed()


def _with_owed(session: Session, done: Committed) -> Committed:
    """Add what earlier commits of the request have to tell the browser: they had no answer yet."""
    owed: Committed | None = session._owed
    if owed is not None:
        if not done.tells:
            done.token, done.sealed, done.max_age = owed.token, owed.sealed, owed.max_age
        done.cleared |= owed.cleared
    if done.tells:
        session._owed = done
    return done


async def _finish(coroutine: Coroutine[Any, Any, T], *, at_once: bool = False) -> T:
    """Await to the end, also when the caller is cancelled in the middle; then be cancelled.

    Args:
        coroutine: what to await.
        at_once: it is our own code down to the futures that it waits for, and seldom waits at
            all. So it is begun here, and only gets a task, which costs more than a small write,
            if it comes to wait. (Others' code may ask in which task it runs, and be misled.)
    """
    rest: Coroutine[Any, Any, T] = coroutine
    if at_once:
        try:
            waits_for = coroutine.send(None)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        rest = _rest(coroutine, waits_for)
    task = asyncio.ensure_future(rest)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            await asyncio.wait([task])
        raise


async def _rest(coroutine: Coroutine[Any, Any, T], waits_for: Any) -> T:
    """Await what is left of a coroutine that was begun by hand and came to wait."""
    return await _Rest(coroutine, waits_for)  # type: ignore[no-any-return]


class _Rest:
    def __init__(self, coroutine: Coroutine[Any, Any, Any], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine, waits_for = self._coroutine, self._waits_for
        while True:
            step: Any = coroutine.send
            try:
                value: Any = yield waits_for
            except BaseException as error:
                step, value = coroutine.throw, error
            try:
                waits_for = step(value)
            except StopIteration as stop:
                return stop.value


@contextlib.contextmanager
def _undone(session: Session) -> Iterator[None]:
    """Undo what was done to a session where that raises."""
    try:
        yield
    except BaseException:
        # Or the request's own commit would write it, without the lock.
        session._abandon()
        raise


def _locked(name: str, wait: float) -> Conflict:
    return Conflict(
        f"another request has held the lock of session {name} for {wait:g} s; try again"
    )


def _lost(name: str, lease: float) -> Conflict:
    return Conflict(
        f"the lock of session {name} ran out after {lease:g} s, and what was done under it is not "
        "kept; give exclusive() a longer lease"
    )


def _user(user: str) -> str:
    """Return the id of a user; None and the like would mean the sessions of everybody.

    Raises:
        InvalidValue: it is none.
    """
    if not isinstance(user, str) or not user:
        raise InvalidValue(
            f"the user is {user!r}; it must be a str that is not empty. Nobody is logged in where "
            "session.user is None"
        )
    return user


def _count(user: str | None) -> Flow[int]:
    return (yield Count(user))  # type: ignore[no-any-return]


def _sid(sid: str) -> str:
    if not is_sid(sid):
        raise ConfigurationError(f"{sid!r} is not a sid; it must be 22 characters of base64url")
    return sid
