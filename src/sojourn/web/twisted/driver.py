"""Twisted's driver: runs flows, and waits by Deferreds only where a store makes it wait.

How a call gets to the store depends on the store (`port_of`):

* memory, or the cookie itself: made at once, in no other turn of the reactor;
* SQLite: tried at once, and in a thread where it would have to wait for a lock;
* a store whose methods return Deferreds (its class says `deferred = True`): as it is; of a Redis
  URL such a store is made, where txredisapi is installed;
* a store with an asyncio client, where the asyncio reactor runs: as it is, on that loop;
* any other: in threads of its own, so that slow work of the application never holds it up.
"""

# Twisted has few types; and a Deferred with a callback need not be awaited.
# mypy: disable-error-code="no-untyped-call,unused-awaitable"

from __future__ import annotations

import asyncio
import atexit
import inspect
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from sojourn.core.calls import Bury, Call, Create, Delete, Due, Flow, Load, Pause, Replace, Tell
from sojourn.core.calls import Touch as TouchCall
from sojourn.core.expiry import expired_reason
from sojourn.drivers import TRIES
from sojourn.errors import ConfigurationError, SojournError, StoreUnavailable
from sojourn.handlers import Desk, Handler, Handlers
from sojourn.manager import SessionManager
from sojourn.stores.base import WouldBlock
from sojourn.stores.threaded import ThreadedStore
from sojourn.web.twisted._log import log

__all__ = ["Port", "drive", "port_of"]

T = TypeVar("T")

LIMIT = 30.0
"""Seconds after which a call counts as unanswered. Stores have shorter limits of their own."""
_ENDING = 2.0
"""Seconds in which a process that ends still begins calls that wait for a thread."""
_THREADS = 8

_ATTEMPTS: dict[type[Call], tuple[str, Callable[[Any], tuple[Any, ...]]]] = {
    Load: ("load", lambda call: (call.sid,)),
    Create: ("create", lambda call: (call.record,)),
    Replace: ("replace", lambda call: (call.record, call.expected_version)),
    TouchCall: (
        "touch",
        lambda call: (call.sid, call.expected_version, call.seen, call.deadline),
    ),
}


class Port:
    """Makes calls on a store; what it returns is the answer, or a Deferred of it.

    Attributes:
        store: the store.
        inline: a load never waits, so it is made when a session is first used, and not before.
    """

    inline = True

    def __init__(self, store: Any, reactor: Any) -> None:
        self.store = store
        self.reactor = reactor
        self.handlers = _Threads(reactor, "sojourn-handlers")

    def make(self, call: Call) -> Any:
        """Make one call."""
        return call.on(self.store)

    def bury(self, call: Bury, handlers: Handlers) -> Any:
        """End a session in one transaction with handlers."""
        return call.on(Desk(self.store, handlers))


class ThreadPort(Port):
    """A blocking store: in threads, but for what it can do without waiting."""

    def __init__(self, store: Any, reactor: Any) -> None:
        super().__init__(store, reactor)
        self.inline = bool(getattr(store.promises, "inline", False))
        self._attempt: Callable[..., Any] | None = getattr(store, "attempt", None)
        self._threads = _Threads(reactor, "sojourn-store")

    def make(self, call: Call) -> Any:
        if self._attempt is not None:
            known = _ATTEMPTS.get(type(call))
            if known is not None:
                try:
                    return self._attempt(known[0], *known[1](call))
                except WouldBlock:
                    pass
        elif self.inline and type(call) is Load:
            return call.on(self.store)
        return self._in_thread(partial(call.on, self.store))

    def bury(self, call: Bury, handlers: Handlers) -> Any:
        return self._in_thread(partial(call.on, Desk(self.store, handlers)))

    def _in_thread(self, work: Callable[[], Any]) -> Deferred[Any]:
        threads, asked = self._threads, time.monotonic()

        def in_time() -> Any:
            # After that nobody waits for it any more. And a store that hangs is not to keep a
            # process from its end, however many calls wait for it.
            if time.monotonic() > min(asked + LIMIT, threads.ends):
                raise StoreUnavailable("the store was not asked: too many calls waited for it")
            return work()

        return _limited(threads.call(in_time), self.reactor)


class _Threads:
    """Threads of our own, begun on first use.

    Not the reactor's: when slow work of the application fills those, requests would wait for it,
    and for ever where it waits for a request, as a WSGI application does.

    Attributes:
        ends: until when what waits for a thread is still begun, in monotonic seconds.
    """

    def __init__(self, reactor: Any, name: str) -> None:
        self.ends = math.inf
        self._reactor = reactor
        self._name = name
        self._pool: ThreadPool | None = None

    def call(self, work: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Call something in one of them."""
        pool = self._pool
        if pool is None:
            pool = self._pool = _Pool(0, _THREADS, self._name)
            pool.start()
            self._reactor.addSystemEventTrigger("during", "shutdown", self._stop)
            atexit.register(self._stop)
        return deferToThreadPool(self._reactor, pool, work, *arguments)

    def _stop(self) -> None:
        atexit.unregister(self._stop)
        self.ends = time.monotonic() + _ENDING
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()


class _Pool(ThreadPool):
    """A pool that does not keep the interpreter from ending, where no reactor ever ran.

    The call that it is at by then is still brought to its end: `_stop` waits for it.
    """

    @staticmethod
    def threadFactory(*args: Any, **arguments: Any) -> threading.Thread:  # type: ignore[override]
        return threading.Thread(*args, daemon=True, **arguments)


class DeferredPort(Port):
    """A store whose methods return Deferreds."""

    inline = False

    def make(self, call: Call) -> Any:
        return _limited(call.on(self.store), self.reactor)

    def bury(self, call: Bury, handlers: Handlers) -> Any:
        return _limited(call.on(Desk(self.store, handlers)), self.reactor)


class AsyncioPort(Port):
    """A store with an asyncio client, under the asyncio reactor."""

    inline = False

    def make(self, call: Call) -> Any:
        return self._awaited(call.on(self.store))

    def bury(self, call: Bury, handlers: Handlers) -> Any:
        from sojourn.handlers import ADesk

        return self._awaited(call.on(ADesk(self.store, handlers)))

    def _awaited(self, coroutine: Any) -> Deferred[Any]:
        # A task of its own: it goes on to its end, whoever waits for it.
        task = asyncio.ensure_future(coroutine, loop=self.reactor._asyncioEventloop)
        return _limited(Deferred.fromFuture(task), self.reactor)


_ports: WeakKeyDictionary[SessionManager, Port] = WeakKeyDictionary()


def port_of(sessions: SessionManager, reactor: Any) -> Port:
    """Return how the store of a manager is reached from this reactor; one for each manager."""
    port = _ports.get(sessions)
    if port is None:
        port = _ports[sessions] = _make_port(sessions, reactor)
    return port


def _make_port(sessions: SessionManager, reactor: Any) -> Port:
    given = sessions._given
    if not isinstance(given, str) and getattr(given, "deferred", False):
        return DeferredPort(given, reactor)
    asynchronous = not isinstance(given, str) and inspect.iscoroutinefunction(given.load)
    if hasattr(reactor, "_asyncioEventloop") and not sessions._carried:
        awaited = sessions.astore
        if not isinstance(awaited, ThreadedStore):
            return AsyncioPort(awaited, reactor)
    elif asynchronous:
        # Says what is wrong and what to do.
        sessions.store  # noqa: B018
    elif isinstance(given, str) and given.startswith(("redis", "unix:")):
        native = _native_redis(given, reactor)
        if native is not None:
            return DeferredPort(native, reactor)
    store = sessions.store
    promises = store.promises
    if sessions._carried or (promises.inline and promises.survives == "nothing"):
        # Neither a disk nor a network: it never waits.
        return Port(store, reactor)
    return ThreadPort(store, reactor)


def _native_redis(url: str, reactor: Any) -> Any:
    """Return a Redis store on the reactor itself; None: txredisapi is missing, or cannot do it."""
    try:
        from sojourn.web.twisted.redis import TwistedRedisStore

        return TwistedRedisStore(url, reactor)
    except (ModuleNotFoundError, ConfigurationError):
        return None


def drive(flow: Flow[T], port: Port, handlers: Handlers | None = None) -> T | Deferred[T]:
    """Run a flow to its end; returns its result at once if no call had to be waited for.

    Where something raises before anything had to be waited for it is raised here, else it is the
    Deferred's failure.
    """
    return _Run(flow, port, handlers).go(flow.send, None)  # type: ignore[no-any-return]


class _Run:
    """A flow under way.

    Attributes:
        result: what whoever began it waits for; None as long as nothing had to be waited for.
    """

    __slots__ = ("flow", "handlers", "port", "result")

    def __init__(self, flow: Flow[Any], port: Port, handlers: Handlers | None) -> None:
        self.flow = flow
        self.port = port
        self.handlers = handlers
        self.result: Deferred[Any] | None = None

    def go(self, step: Callable[[Any], Call], value: Any) -> Any:
        """Run the flow until it ends or something must be waited for."""
        flow, result = self.flow, self.result
        try:
            while True:
                call = step(value)
                try:
                    answer = _make(call, self.port, self.handlers, TRIES)
                except SojournError as error:
                    step, value = flow.throw, error
                    continue
                if isinstance(answer, Deferred):
                    if not _is_ready(answer):
                        break
                    waited, answer = answer, answer.result
                    if isinstance(answer, Failure):
                        # Taken up here: it is not to be logged as one that nobody handled.
                        waited.addErrback(lambda _: None)
                        step, value = flow.throw, answer.value
                        continue
                step, value = flow.send, answer
        except StopIteration as stop:
            if result is None:
                return stop.value
            result.callback(stop.value)
            return None
        except BaseException:
            if result is None:
                raise
            result.errback(Failure())
            return None
        if result is None:
            result = self.result = Deferred()
        answer.addCallbacks(self._answered, self._failed)
        return result

    def _answered(self, answer: Any) -> None:
        self.go(self.flow.send, answer)

    def _failed(self, failure: Failure) -> None:
        # Whatever it is: the flow's own handling of it comes first.
        self.go(self.flow.throw, failure.value)


def _make(call: Call, port: Port, handlers: Handlers | None, tries: int) -> Any:
    """Make one call, again where its answer got lost."""
    if isinstance(call, Pause):
        return _after(port.reactor, call.seconds)
    while True:
        try:
            answer = port.make(call) if handlers is None else _with_handlers(call, port, handlers)
        except StoreUnavailable as error:
            tries -= 1
            if not (tries and error.transient):
                raise
            continue
        break
    if isinstance(answer, Deferred):

        def again(failure: Failure) -> Any:
            failure.trap(StoreUnavailable)
            if tries > 1 and failure.value.transient:  # type: ignore[union-attr]
                return maybeDeferred(_make, call, port, handlers, tries - 1)
            return failure

        answer.addErrback(again)
    return answer


# Handlers and watches: what `sojourn.handlers.Desk` does, for Deferreds.


def _with_handlers(call: Call, port: Port, handlers: Handlers) -> Any:
    if isinstance(call, Tell):
        if call.event == "over":
            _over(handlers, call.session, call.reason)
            return []
        arguments = (call.session, call.reason) if call.event == "ended" else (call.session,)
        return ensureDeferred(_tell(handlers, call.event, arguments, port))
    if isinstance(call, Bury):
        return port.bury(call, handlers)
    answer = port.make(call)
    if isinstance(call, Delete):
        reason = call.ended.reason if call.ended else ""
        return _then(answer, partial(_ended, handlers, call.sid, reason))
    if isinstance(call, Due):
        return _then(answer, lambda records: _claimed(handlers, records))
    return answer


def _then(answer: Any, what: Callable[[Any], Any]) -> Any:
    if isinstance(answer, Deferred):
        return answer.addCallback(what)
    return what(answer)


def _ended(handlers: Handlers, sid: str, reason: str, done: Any) -> Any:
    _over(handlers, sid, reason)
    return done


def _claimed(handlers: Handlers, records: Any) -> Any:
    if handlers.watches:
        for record in records:
            _over(handlers, record.sid, expired_reason(record))
    return records


def _over(handlers: Handlers, sid: str, reason: str) -> None:
    """Call back who watches a session, in the reactor's thread: they are bound to it."""
    for callback in handlers.watches.take(sid):
        _call_back(callback, sid, reason)


def _call_back(callback: Handler, sid: str, reason: str) -> None:
    # Ours know that other drivers call them in some thread or other.
    maybeDeferred(getattr(callback, "at_once", callback), sid, reason).addErrback(
        lambda failure: log.failure("a callback of session {sid} failed", failure, sid=sid)
    )


async def _tell(handlers: Handlers, event: str, arguments: tuple[Any, ...], port: Port) -> Any:
    """Run handlers: coroutine functions in the reactor's thread, others in a thread of ours."""
    failed = []
    for name, handler in list(handlers._by_event.get(event, {}).items()):
        try:
            if inspect.iscoroutinefunction(handler):
                await handler(*arguments)
            elif hasattr(port.reactor, "getThreadPool"):
                await port.handlers.call(handler, *arguments)
            else:
                # A clock in place of a reactor, in a test, has no threads.
                handler(*arguments)
        except Exception:
            log.failure("handler {name} of session {sid} failed", name=name, sid=arguments[0].sid)
            failed.append(name)
    return failed


def _after(reactor: Any, seconds: float) -> Deferred[None]:
    waited: Deferred[None] = Deferred()
    reactor.callLater(seconds, waited.callback, None)
    return waited


def _limited(waited: Deferred[Any], reactor: Any) -> Deferred[Any]:
    """Return the answer of a Deferred, or `StoreUnavailable` when it took too long.

    What it stands for goes on: a client's state is not to be left in the middle of an answer.
    """
    if _is_ready(waited):
        # No timer for it.
        return waited
    result: Deferred[Any] = Deferred()
    timer = reactor.callLater(
        LIMIT,
        lambda: result.errback(
            StoreUnavailable(f"the store has not answered for {LIMIT:g} seconds")
        ),
    )

    def answered(answer: Any) -> None:
        if timer.active():
            timer.cancel()
            result.callback(answer)

    waited.addBoth(answered)
    return result


def _is_ready(waited: Deferred[Any]) -> bool:
    return waited.called and not waited.paused and not isinstance(waited.result, Deferred)


def as_deferred(answer: Any) -> Deferred[Any]:
    """Return what `drive` returned as a Deferred."""
    return answer if isinstance(answer, Deferred) else succeed(answer)
