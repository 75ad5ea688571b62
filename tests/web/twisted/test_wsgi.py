"""`WSGIResource`: applications in threads of a real server, with the session of the request."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.threads import blockingCallFromThread
from twisted.python.threadpool import ThreadPool
from twisted.web import wsgi
from twisted.web.resource import Resource
from twisted.web.server import Site
from zope.interface import Attribute, Interface, implementer

from sojourn.errors import Conflict, StoreUnavailable
from sojourn.manager import SessionManager
from sojourn.stores.memory import MemoryStore
from sojourn.web.twisted import Session, SessionSite
from sojourn.web.twisted.wsgi import WSGIResource

from .kit import Answer, Page

App = Callable[[Any, Any], Any]


class Server:
    """A site on a port, with a reactor in a thread; `app` is called for each request."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.sessions = SessionManager(self.store)
        self.app: App = lambda environ, start: []
        self.reactor = SelectReactor()
        self.thread = threading.Thread(
            target=self.reactor.run, kwargs={"installSignalHandlers": False}
        )
        self.pool = ThreadPool(0, 4)
        self.cookie = ""
        self.page: Callable[[Any], Any] = lambda request: b""
        self.thread.start()
        blockingCallFromThread(self.reactor, self.begin)

    def begin(self) -> None:
        self.pool.start()
        root = Resource()

        def application(environ: Any, start_response: Any) -> Any:
            return self.app(environ, start_response)

        root.putChild(b"app", WSGIResource(self.reactor, self.pool, application))
        root.putChild(b"stock", wsgi.WSGIResource(self.reactor, self.pool, application))
        root.putChild(b"page", Page(lambda request: self.page(request)))
        self.root = root
        self.site: Any = SessionSite(root, self.sessions, reactor=self.reactor)
        listening: Any = self.reactor.listenTCP(0, self.site, interface="127.0.0.1")
        self.port: int = listening.getHost().port

    def end(self) -> None:
        blockingCallFromThread(self.reactor, self.pool.stop)
        self.reactor.callFromThread(self.reactor.stop)
        self.thread.join(10)
        assert not self.thread.is_alive()

    def get(self, app: App, path: str = "/app") -> Answer:
        self.app = app
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path, headers={"Cookie": self.cookie} if self.cookie else {})
            got = connection.getresponse()
            answer = Answer(got.status, got.getheaders(), got.read())
        finally:
            connection.close()
        for line in answer.all("Set-Cookie"):
            if line.startswith("id="):
                self.cookie = "" if "Max-Age=0" in line else line.partition(";")[0]
        return answer

    def do(self, what: Callable[[Any], Any]) -> Any:
        """Return what a function makes of the session, in an application."""
        found: list[Any] = []

        def app(environ: Any, start_response: Any) -> list[bytes]:
            found.append(what(environ["sojourn.session"]))
            return ok(environ, start_response)

        assert self.get(app).status == 200
        return found[0]

    def show(self, what: Callable[[Any], Any]) -> bytes:
        """Return what a page of Twisted's own makes of the session."""
        self.page = lambda request: str(what(request.getSession())).encode()
        return self.get(ok, "/page").body


def ok(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server()
    yield server
    server.end()


@pytest.fixture
def server(running: Server) -> Server:
    running.cookie = ""
    return running


def test_one_session(server: Server) -> None:
    """What the application writes, Twisted's pages read, and the other way round."""
    server.do(lambda session: session.update(a=1))
    assert server.show(lambda session: session.add("a")) == b"2"
    assert server.do(lambda session: session["a"]) == 2
    assert server.show(lambda session: session.sid).decode() == server.do(lambda s: s.sid)


def test_a_mapping(server: Server) -> None:
    """It is a mapping with all that a session has, by item, method and attribute."""

    def use(session: Any) -> None:
        assert "a" not in session
        assert len(session) == 0
        session["a"] = [1]
        session["a"].append(2)
        session.setdefault("b", "x")
        assert sorted(session) == ["a", "b"]
        assert session.pop("b") == "x"
        assert session.get("b", 7) == 7
        del session["a"]
        session["c"] = {"d": 1}
        session.flash("Hello")
        assert session.is_new
        session.idle_timeout = 60
        assert session.idle_timeout.total_seconds() == 60
        with pytest.raises(KeyError):
            session["a"]
        with pytest.raises(AttributeError):
            session.no_such_thing  # noqa: B018

    server.do(use)
    assert server.do(dict) == {"c": {"d": 1}}
    assert server.do(lambda session: session.pop_flash()) == ["Hello"]


def test_changes_in_place(server: Server) -> None:
    """Of what it was handed out an application may change the inside, and that is kept."""
    server.do(lambda session: session.update(cart=[]))
    server.do(lambda session: session["cart"].append("tea"))

    assert server.do(lambda session: session["cart"]) == ["tea"]


class INotes(Interface):
    text = Attribute("what was noted")


@implementer(INotes)
class Notes:
    def __init__(self, session: Any) -> None:
        self.text = ""


def test_components(server: Server) -> None:
    """`INotes(session)` works in the thread, and is what Twisted's pages have."""
    from twisted.python.components import registerAdapter
    from twisted.web import server as stock

    registerAdapter(Notes, stock.Session, INotes)
    server.do(lambda session: setattr(INotes(session), "text", "noted"))

    assert server.show(lambda session: INotes(session).text) == b"noted"


def test_not_looked_at(server: Server) -> None:
    """An application that does not use it costs no session, and its page may be cached."""
    answer = server.get(ok)
    assert (answer.all("Set-Cookie"), answer.one("Vary")) == ([], None)


def test_login_and_end(server: Server) -> None:
    """A login brings the new cookie with this answer; an end clears it."""
    server.do(lambda session: session.update(a=1))
    before = server.cookie
    server.do(lambda session: session.login("alice"))
    assert server.cookie != before
    assert server.do(lambda session: (session.user, session["a"])) == ("alice", 1)

    def end(session: Any) -> Any:
        session.end("user")
        # From here on it is a fresh one.
        return session.user, "a" in session

    former = server.cookie.partition(".")[0]
    assert server.do(end) == (None, False)
    assert server.cookie == ""

    def begin_anew(session: Any) -> None:
        session["b"] = 1
        session.end("user")
        session["c"] = 2

    server.do(begin_anew)
    assert server.do(dict) == {"c": 2}
    assert server.cookie.partition(".")[0] != former


def test_its_own_cookies(server: Server) -> None:
    """The application's Set-Cookie headers stay beside the session's."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        environ["sojourn.session"]["a"] = 1
        start_response("200 OK", [("Set-Cookie", "one=1"), ("Set-Cookie", "two=2; Path=/x")])
        return [b"ok"]

    lines = server.get(app).all("Set-Cookie")
    assert sorted(line.partition("=")[0] for line in lines) == ["id", "one", "two"]
    assert "two=2; Path=/x" in lines


def test_what_the_body_does_is_kept(server: Server) -> None:
    """Bodies are made bit by bit; before the first bytes a session can begin, after them change."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        session = environ["sojourn.session"]
        start_response("200 OK", [])
        session["n"] = 1
        yield b"a"
        session.add("n")
        yield b"b"
        session.add("n")

    assert server.get(app).body == b"ab"
    assert server.do(lambda session: session["n"]) == 3


def test_an_error_keeps_nothing(server: Server) -> None:
    """An exception is a 500, and what was done before it is dropped."""
    server.do(lambda session: session.update(a=1))

    def app(environ: Any, start_response: Any) -> Any:
        environ["sojourn.session"]["a"] = 2
        raise LookupError

    assert server.get(app).status == 500
    assert server.do(lambda session: session["a"]) == 1


def test_errors_that_are_answered(server: Server) -> None:
    """A conflict that the application leaves is a 409; once the head has left it is its own."""
    server.do(lambda session: session.update(a=1))

    def early(environ: Any, start_response: Any) -> Any:
        environ["sojourn.session"]["a"] = 2
        raise Conflict("no")

    def late(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        yield b"begun"
        raise Conflict("no")

    answer = server.get(early)
    assert (answer.status, answer.body[:15]) == (409, b"Another request")
    with pytest.raises(http.client.IncompleteRead):
        server.get(late)
    assert server.do(lambda session: session["a"]) == 1


def test_a_store_that_is_down(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """At load as at the commit it is a 503; an application that does not look is served."""

    def down(*_: object) -> None:
        raise StoreUnavailable("the disk is gone")

    def app(environ: Any, start_response: Any) -> list[bytes]:
        environ["sojourn.session"].add("n")
        return ok(environ, start_response)

    assert server.get(app).status == 200
    with monkeypatch.context() as patched:
        patched.setattr(server.store, "load", down)
        assert server.get(app).status == 503
        assert server.get(ok).status == 200
    with monkeypatch.context() as patched:
        patched.setattr(server.store, "replace", down)
        assert server.get(app).status == 503
    assert server.do(lambda session: session["n"]) == 1


def test_what_is_a_deferred_is_waited_for(server: Server) -> None:
    """`exclusive` and `commit` return when it is done, and `exclusive` the session itself."""
    server.do(lambda session: session.update(a=1))

    def use(session: Any) -> None:
        assert session.exclusive() is session
        session["a"] += 1
        assert session.commit().wrote

    server.do(use)
    assert server.do(lambda session: session["a"]) == 2


def test_parallel_requests(server: Server) -> None:
    """Twenty threads of one session at once: nothing is lost."""
    server.do(lambda session: session.update(n=0))
    cookie = server.cookie

    def app(environ: Any, start_response: Any) -> list[bytes]:
        environ["sojourn.session"].add("n")
        return ok(environ, start_response)

    server.app = app

    def visit() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("GET", "/app", headers={"Cookie": cookie})
        connection.getresponse().read()
        connection.close()

    threads = [threading.Thread(target=visit) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.do(lambda session: session["n"]) == 20


def test_a_client_that_has_gone(server: Server) -> None:
    """What the application does after that is kept."""
    server.do(lambda session: session.update(n=0))
    done = threading.Event()

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        session = environ["sojourn.session"]
        start_response("200 OK", [])
        try:
            yield b"begun"
            while not session._request._disconnected:
                # Until the reactor has seen it.
                done.wait(0.01)
        finally:
            session.add("n")

    server.app = app
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"GET /app HTTP/1.1\r\nHost: localhost\r\nCookie: {server.cookie}\r\n\r\n"
        connection.sendall(head.encode())
        while b"begun" not in connection.recv(4096):
            pass

    # Not by a request, which might share the session with that one.
    others = SessionManager(server.store)
    end = time.monotonic() + 10
    while others.session(server.cookie).peek["n"] != 1:
        assert time.monotonic() < end
        done.wait(0.01)


def test_the_stock_resource_has_no_session(server: Server) -> None:
    """Nor has ours under a stock site: it does what the stock one does."""
    keys: list[bool] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        keys.append("sojourn.session" in environ)
        return ok(environ, start_response)

    server.get(app, "/stock")
    stock = Site(server.root, reactor=server.reactor)
    listening = blockingCallFromThread(
        server.reactor, lambda: [server.reactor.listenTCP(0, stock, interface="127.0.0.1")]
    )[0]
    port, server.port = server.port, listening.getHost().port
    try:
        server.get(app)
    finally:
        server.port = port
        blockingCallFromThread(server.reactor, listening.stopListening)
    assert keys == [False, False]


def test_in_the_reactors_thread(server: Server) -> None:
    """Handed over to code in the reactor's thread, it works there too, and waits for nothing."""
    kinds: list[type] = []

    def use(session: Any) -> int:
        def there() -> int:
            kinds.append(type(session.commit()))
            return int(session.add("n"))

        return int(blockingCallFromThread(server.reactor, there))

    assert server.do(use) == 1
    assert kinds == [Deferred]


def test_it_is_not_a_session_by_itself(server: Server) -> None:
    """What it stands for is the real one."""
    assert server.do(lambda session: isinstance(session, Session)) is False
    assert server.do(repr) == "<the session of b'/app', in a thread>"
