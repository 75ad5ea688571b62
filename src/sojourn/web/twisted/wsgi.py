"""WSGI applications under Twisted: `environ["sojourn.session"]` is the session of the request.

`WSGIResource` in place of `twisted.web.wsgi.WSGIResource`. The application runs in a thread, and a
session belongs to the reactor's, so each use of the session is made there and waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.threads import blockingCallFromThread
from twisted.python.failure import Failure
from twisted.python.threadable import isInIOThread
from twisted.web import wsgi

from sojourn.web.failure import ANSWERED
from sojourn.web.twisted.request import DurableRequest
from sojourn.web.twisted.session import CURRENT
from sojourn.web.wsgi import KEY

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["KEY", "SessionInThread", "WSGIResource"]


class WSGIResource(wsgi.WSGIResource):
    """Serves a WSGI application, with the session of the request; arguments as of the stock one.

    The application's own Set-Cookie headers stay. To a request of a stock site it adds nothing.
    """

    def render(self, request: Any) -> Any:
        """Hand the request to a thread."""
        application = self._application
        if isinstance(request, DurableRequest) and request._realm is not None:
            application = partial(self._serve, request)
        return wsgi.WSGIResource(self._reactor, self._threadpool, application).render(request)

    def _serve(
        self, request: Any, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterator[bytes]:
        application: WSGIApplication = self._application
        session = environ[KEY] = SessionInThread(request, self._reactor)
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


class SessionInThread(MutableMapping[str, Any]):
    """The session of a request for code in another thread: each use is made in the reactor's.

    It has all that the session has. Where that returns a Deferred (`exclusive`, `commit`), it is
    waited for here. The session is looked at when it is first used.
    """

    def __init__(self, request: Any, reactor: Any) -> None:
        """Stand for the session of a request."""
        vars(self).update(_request=request, _reactor=reactor, _session=None)

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

        answer = call() if isInIOThread() else blockingCallFromThread(self._reactor, call)
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

        return bool(blockingCallFromThread(self._reactor, answer))

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
