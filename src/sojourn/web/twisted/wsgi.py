"""WSGI applications under Twisted: `environ["sojourn.session"]` is the session of the request.

`WSGIResource` in place of `twisted.web.wsgi.WSGIResource`. The application runs in a thread, and a
session belongs to the reactor's, so each use of the session is made there and waited for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure
from twisted.python.threadable import isInIOThread
from twisted.web import wsgi

from sojourn.errors import StoreUnavailable
from sojourn.web.failure import ANSWERED
from sojourn.web.twisted._log import log
from sojourn.web.twisted.request import DurableRequest
from sojourn.web.twisted.session import CURRENT
from sojourn.web.wsgi import KEY

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["KEY", "SessionInThread", "WSGIResource"]

_GRACE = 5.0
"""Seconds that applications have to come to an end when the process is told to."""


class WSGIResource(wsgi.WSGIResource):
    """Serves a WSGI application, with the session of the request; arguments as of the stock one.

    The application's own Set-Cookie headers stay. To a request of a stock site it adds nothing.
    """

    def render(self, request: Any) -> Any:
        """Hand the request to a thread."""
        application = self._application
        if isinstance(request, DurableRequest) and request._realm is not None:
            application = partial(self._serve, request)
        stage = _stage_of(self._reactor)
        return wsgi.WSGIResource(stage, stage.pool(self._threadpool), application).render(request)

    def _serve(
        self, request: Any, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterator[bytes]:
        application: WSGIApplication = self._application
        session = environ[KEY] = SessionInThread(request, _stage_of(self._reactor))
        result: Iterable[bytes] = ()
        try:
            result = application(environ, start_response)
            yield from result
        except Exception as error:
            if not session._answered(error):
                raise
        finally:
            close: Callable[[], object] | None = getattr(result, "close", None)
            if close is not None:
                close()
            session._close()


class _Stage:
    """A reactor for applications in threads; the stock one never ends where such a thread waits.

    When it stops it waits for its threads, and they wait for it. So they get some seconds first to
    come to an end, and after these nothing of theirs is waited for.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._lock = threading.Lock()
        self._calls: deque[Callable[[], object]] = deque()
        self._waiting: set[SimpleQueue[Any]] = set()
        self._running = 0
        self._ending: Deferred[None] | None = None
        self._over = False
        reactor.addSystemEventTrigger("before", "shutdown", self._stop)

    def ask(self, call: Callable[[], Any]) -> Any:
        """Call something in the reactor's thread, and wait for its answer in this one.

        Raises:
            StoreUnavailable: the process is about to end.
        """
        answers: SimpleQueue[Any] = SimpleQueue()
        self._waiting.add(answers)
        try:
            self.callFromThread(lambda: maybeDeferred(call).addBoth(answers.put))
            answer = answers.get()
        finally:
            self._waiting.discard(answers)
        if isinstance(answer, Failure):
            answer.raiseException()
        return answer

    # What the stock resource asks of a reactor and of a pool of threads.

    def callFromThread(self, function: Any, *args: Any, **kwargs: Any) -> None:
        with self._lock:
            if self._over:
                raise StoreUnavailable("the process is about to end")
            self._calls.append(partial(function, *args, **kwargs))
        self._reactor.callFromThread(self._call)

    def pool(self, threads: Any) -> _Pool:
        return _Pool(self, threads)

    def _call(self) -> None:
        if self._calls:
            self._calls.popleft()()

    def _begin(self, threads: Any, run: Callable[[], object]) -> None:
        self._running += 1

        def counted() -> None:
            try:
                run()
            finally:
                self._reactor.callFromThread(self._ended)

        if not self._over:
            threads.callInThread(counted)

    def _ended(self) -> None:
        self._running -= 1
        if self._ending is not None:
            # A moment later: what it has written has to leave.
            self._reactor.callLater(0.1, self._break_if_done)

    def _break_if_done(self) -> None:
        if not self._running and not self._over:
            self._break()

    def _stop(self) -> Deferred[None] | None:
        if not self._running:
            self._over = True
            return None
        self._ending = Deferred()
        self._timer = self._reactor.callLater(_GRACE, self._break)
        return self._ending

    def _break(self) -> None:
        with self._lock:
            self._over = True
        if self._timer.active():
            self._timer.cancel()
        while self._calls:
            try:
                self._call()
            except Exception:
                log.failure("what a thread has asked for failed, and the process is about to end")
        for answers in list(self._waiting):
            answers.put(Failure(StoreUnavailable("the process is about to end")))
        assert self._ending is not None
        self._ending.callback(None)


class _Pool:
    """The threads of a stage."""

    def __init__(self, stage: _Stage, threads: Any) -> None:
        self._stage = stage
        self._threads = threads

    def callInThread(self, run: Callable[[], object]) -> None:
        self._stage._begin(self._threads, run)


_stages: dict[Any, _Stage] = {}


def _stage_of(reactor: Any) -> _Stage:
    stage = _stages.get(reactor)
    if stage is None:
        stage = _stages[reactor] = _Stage(reactor)
    return stage


class SessionInThread(MutableMapping[str, Any]):
    """The session of a request for code in another thread: each use is made in the reactor's.

    It has all that the session has. Where that returns a Deferred (`exclusive`, `commit`), it is
    waited for here. The session is looked at when it is first used.
    """

    def __init__(self, request: Any, stage: _Stage) -> None:
        """Stand for the session of a request."""
        vars(self).update(_request=request, _stage=stage, _session=None)

    def _do(self, what: Callable[..., Any], *args: Any) -> Any:
        """Call `what(session, *args)` in the reactor's thread, for the request."""

        def call() -> Any:
            state = vars(self)
            token = CURRENT.set(state["_request"])
            try:
                session = state["_session"]
                if session is None or session._sojourn.over:
                    session = state["_session"] = state["_request"].getSession()
                return what(session, *args)
            finally:
                CURRENT.reset(token)

        answer = call() if isInIOThread() else self._stage.ask(call)
        return self if answer is vars(self)["_session"] else answer

    def _answered(self, error: Exception) -> bool:
        """Answer for an error that stands in the way of the application's answer; False: no."""
        request = self._request

        def answer() -> bool:
            if request.startedWriting or request._disconnected:
                return False
            if error is not request._refusal and not isinstance(error, ANSWERED):
                return False
            request._refuse(Failure(error))
            return True

        return bool(self._stage.ask(answer))

    def _close(self) -> None:
        """Keep what was changed after the client had gone, and its request with it."""
        if vars(self)["_session"] is not None and self._request._disconnected:
            self._do(lambda session: session.commit())

    def __getattr__(self, name: str) -> Any:
        if name[:1] == "_" and name not in ("__conform__",):
            raise AttributeError(name)
        found = self._do(getattr, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._do(lambda session: getattr(session, name)(*args, **kwargs))

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        self._do(setattr, name, value)

    def __delattr__(self, name: str) -> None:
        self._do(delattr, name)

    def __getitem__(self, key: Any) -> Any:
        return self._do(lambda session: session[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        def put(session: Any) -> None:
            session[key] = value

        self._do(put)

    def __delitem__(self, key: Any) -> None:
        def drop(session: Any) -> None:
            del session[key]

        self._do(drop)

    def __contains__(self, key: object) -> bool:
        return bool(self._do(lambda session: key in session))

    def __iter__(self) -> Iterator[str]:
        return iter(self._do(list))

    def __len__(self) -> int:
        return int(self._do(len))

    def __repr__(self) -> str:
        return f"<the session of {self._request.uri!r}, in a thread>"


for _name in ("get", "pop", "popitem", "setdefault", "update", "clear"):
    # In one call each: those of `MutableMapping` would be several, with others in between.
    def _method(self: Any, *args: Any, _name: str = _name, **kwargs: Any) -> Any:
        return self._do(lambda session: getattr(session, _name)(*args, **kwargs))

    _method.__name__ = _name
    setattr(SessionInThread, _name, _method)
