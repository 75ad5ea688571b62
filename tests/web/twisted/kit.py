"""A browser and a site in one process, over transports of memory; nothing waits by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock as ReactorClock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web import resource, server

from sojourn.manager import SessionManager
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Clock, RecordingStore
from sojourn.web.twisted import SessionSite

from ..kit import Answer as Answer

LATER = object()
"""What a handler returns that answers later. (Twisted's own mark for that is the int 1.)"""


def parse(raw: bytes, *, head: bool = False) -> tuple[Answer, bytes]:
    """Return the first answer in what a server sent, and what follows it."""
    top, _, rest = raw.partition(b"\r\n\r\n")
    lines = top.decode("latin-1").split("\r\n")
    status = int(lines[0].split()[1])
    headers = [
        (name, value.strip()) for name, _, value in (one.partition(":") for one in lines[1:])
    ]
    answer = Answer(status, headers)
    if head or status in (204, 304):
        return answer, rest
    if answer.one("Transfer-Encoding") == "chunked":
        body = b""
        while True:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            body, rest = body + rest[:length], rest[length + 2 :]
            if not length:
                break
        answer.body = body
    else:
        length = int(answer.one("Content-Length") or len(rest))
        answer.body, rest = rest[:length], rest[length:]
    return answer, rest


class Transport(StringTransport):
    """One that can also be that of a TLS connection's plain side."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def abortConnection(self) -> None:
        self.aborted = True

    def setTcpNoDelay(self, on: bool) -> None:
        pass


class Wire:
    """One connection to a site."""

    def __init__(self, site: Any, https: bool = False) -> None:
        self.transport = Transport()
        if https:
            from twisted.internet.interfaces import ISSLTransport
            from zope.interface import directlyProvides, providedBy

            directlyProvides(self.transport, ISSLTransport, providedBy(self.transport))
        self.protocol = site.buildProtocol(None)
        self.protocol.makeConnection(self.transport)

    def send(
        self,
        path: str = "/",
        cookie: str = "",
        method: str = "GET",
        body: bytes = b"",
        **headers: str,
    ) -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
        if cookie:
            lines.append(f"Cookie: {cookie}")
        if body or method == "POST":
            lines.append(f"Content-Length: {len(body)}")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.protocol.dataReceived("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    @property
    def received(self) -> bytes:
        return self.transport.value()

    def take(self, *, head: bool = False) -> Answer:
        """Return the next answer, which has arrived."""
        answer, rest = parse(self.received, head=head)
        self.transport.clear()
        self.transport.write(rest)
        return answer

    def hang_up(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))


class Page(resource.Resource):
    """A leaf that asks a function for its answer."""

    isLeaf = True

    def __init__(self, handler: Callable[[Any], Any]) -> None:
        super().__init__()
        self.handler = handler

    def render(self, request: Any) -> Any:
        made = self.handler(request)
        if made is LATER:
            return server.NOT_DONE_YET
        if isinstance(made, bytes):
            return made
        return str(made).encode()


class DeferredStore:
    """A store whose methods return Deferreds, which fire when the test says so, or at once.

    Attributes:
        held: the calls that wait, by name, while `hold` is set.
        failing: raised by every call.
    """

    deferred = True

    def __init__(self, store: Any = None) -> None:
        self.store = MemoryStore() if store is None else store
        self.promises = msgspec.structs.replace(self.store.promises, inline=False)
        self.hold = False
        self.held: list[tuple[str, Deferred[Any], Callable[[], Any]]] = []
        self.calls: list[str] = []
        self.failing: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        def call(*args: Any) -> Deferred[Any]:
            self.calls.append(name)
            waiting: Deferred[Any] = Deferred()

            def make() -> Any:
                if self.failing is not None:
                    raise self.failing
                return method(*args)

            if self.hold:
                self.held.append((name, waiting, make))
                return waiting
            try:
                return succeed(make())
            except Exception:
                waiting.errback(Failure())
                return waiting

        return call

    def release(self, count: int | None = None) -> list[str]:
        """Let calls go on that wait; their names."""
        names = []
        for name, waiting, make in self.held[:count]:
            self.held.pop(0)
            names.append(name)
            try:
                answer = make()
            except Exception:
                waiting.errback(Failure())
            else:
                waiting.callback(answer)
        return names

    def release_all(self) -> list[str]:
        names: list[str] = []
        while self.held:
            names += self.release()
        return names


class Web:
    """A SessionSite with handlers given per request, and a browser's cookie.

    Attributes:
        clock: the manager's time; `reactor` is driven by `pass_time` together with it.
    """

    def __init__(self, store: Any = None, *, site: Any = None, **settings: Any) -> None:
        self.clock = settings.pop("clock", None) or Clock()
        self.reactor = settings.pop("reactor", None) or ReactorClock()
        self.reactor.rightNow = self.clock()
        self.store = RecordingStore(MemoryStore()) if store is None else store
        self.sessions = SessionManager(self.store, clock=self.clock, **settings)
        self.pages: dict[bytes, Callable[[Any], Any]] = {}
        root = resource.Resource()
        root.getChild = lambda path, request: Page(self.handler)  # type: ignore[method-assign]
        self.site = (site or SessionSite)(root, self.sessions, reactor=self.reactor)
        self.site.startFactory()
        self.handler: Callable[[Any], Any] = lambda request: b""
        self.cookie = ""

    def wire(self, https: bool = False) -> Wire:
        return Wire(self.site, https)

    def request(
        self,
        handler: Callable[[Any], Any],
        *,
        cookie: str | None = None,
        https: bool = False,
        method: str = "GET",
        **headers: str,
    ) -> Answer:
        """Make one request on a connection of its own; it must be answered by now."""
        wire = self.begin(handler, cookie=cookie, https=https, method=method, **headers)
        return wire.take(head=method == "HEAD")

    def begin(
        self,
        handler: Callable[[Any], Any],
        *,
        cookie: str | None = None,
        https: bool = False,
        method: str = "GET",
        **headers: str,
    ) -> Wire:
        self.handler = handler
        wire = self.wire(https)
        wire.send("/", self.cookie if cookie is None else cookie, method, **headers)
        return wire

    def visit(self, handler: Callable[[Any], Any], **kwargs: Any) -> Answer:
        """As `request`, and keep the cookie as a browser does."""
        answer = self.request(handler, **kwargs)
        self.keep(answer)
        return answer

    def keep(self, answer: Answer) -> None:
        for line in answer.all("Set-Cookie"):
            pair = line.partition(";")[0]
            if pair.startswith(("id=", "__Host-id=")):
                self.cookie = "" if "Max-Age=0" in line else pair

    @property
    def timers(self) -> list[Any]:
        """The timers of Sojourn; a Site has some of its own."""
        return [
            call
            for call in self.reactor.getDelayedCalls()
            if getattr(call.func, "__module__", "").startswith("sojourn")
        ]

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.reactor.advance(seconds)

    @property
    def verbs(self) -> list[str]:
        """The calls on the store since the last look."""
        verbs: list[str] = self.store.verbs if hasattr(self.store, "verbs") else self.store.calls
        verbs = list(verbs)
        self.store.calls.clear()
        return verbs
