"""The way of a request: loaded before anything is looked for, committed before anything leaves."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import defer, task
from twisted.internet.interfaces import IPushProducer
from twisted.web import resource, server
from zope.interface import implementer

from sojourn.errors import Conflict, StoreUnavailable
from sojourn.stores.memory import MemoryStore
from sojourn.web.twisted import Request
from sojourn.web.twisted.driver import LIMIT

from .kit import LATER, DeferredStore, Page, Web, Wire, parse

MakeWeb = Callable[..., Web]
Logged = list[dict[str, Any]]


def count(request: Any) -> str:
    return str(request.getSession().add("n"))


def quiet(request: Any) -> str:
    return "quiet"


def read(request: Any) -> str:
    return repr(request.getSession().get("n"))


@pytest.fixture
def slow() -> Web:
    """A site on a store that answers when the test lets it."""
    web = Web(DeferredStore())
    web.visit(count)
    web.verbs  # noqa: B018
    web.store.hold = True
    return web


# When the store is asked.


def test_nothing_is_asked_without_a_cookie(slow: Web) -> None:
    """No cookie: the page is there in the same turn, and the store knows nothing of it."""
    for handler in (quiet, read, lambda request: str(request.getSession() is None)):
        assert slow.request(handler, cookie="").status == 200
        assert slow.request(handler, cookie="other=1; ids=2").status == 200

    assert slow.verbs == []


def test_a_page_that_touches_no_session(web: Web) -> None:
    """It says nothing of sessions; and a store that never waits is not even asked."""
    web.visit(count)
    web.verbs  # noqa: B018

    answer = web.visit(quiet)

    assert web.verbs == (["load"] if isinstance(web.store, DeferredStore) else [])
    for name in ("Vary", "Cache-Control", "Set-Cookie"):
        assert answer.all(name) == []


def test_calls_and_headers(web: Web) -> None:
    """One load, one write or none; the cookie only when it is new; private, and Vary."""
    answer = web.visit(count)
    assert web.verbs == ["create"]
    assert answer.one("Set-Cookie") == f"id={answer.token}; Path=/; HttpOnly; SameSite=Lax"
    assert answer.one("Cache-Control") == "no-store, private"
    assert answer.one("Vary") == "Cookie"

    for handler, verbs in ((count, ["load", "replace"]), (read, ["load"])):
        answer = web.visit(handler)
        assert web.verbs == verbs
        assert answer.all("Set-Cookie") == []
        assert (answer.one("Cache-Control"), answer.one("Vary")) == ("private", "Cookie")


def test_headers_of_the_application(web: Web) -> None:
    """They stay, but for what lets shared caches keep the answer."""

    def handler(request: Any) -> str:
        request.setHeader(b"Cache-Control", b"public, max-age=60")
        request.setHeader(b"CDN-Cache-Control", b"max-age=60")
        request.setHeader(b"Vary", b"Accept")
        request.setHeader(b"X-Mine", b"1")
        request.addCookie(b"mine", b"2")
        return count(request)

    web.visit(count)
    answer = web.visit(handler)

    assert answer.one("Cache-Control") == "private, max-age=60"
    assert answer.all("CDN-Cache-Control") == []
    assert sorted(answer.all("Vary")) == ["Accept", "Cookie"]
    assert answer.one("X-Mine") == "1"
    assert answer.one("Set-Cookie") == "mine=2"


def test_set_cookie_headers_of_the_application(web: Web) -> None:
    """Raw ones, as WSGI and CGI applications set them, go along with the session's."""

    def handler(request: Any) -> str:
        request.responseHeaders.addRawHeader(b"Set-Cookie", b"a=1")
        request.responseHeaders.addRawHeader(b"Set-Cookie", b"b=2")
        request.addCookie(b"c", b"3")
        return count(request)

    assert [line.partition("=")[0] for line in web.visit(handler).all("Set-Cookie")] == [
        "a",
        "b",
        "c",
        "id",
    ]

    def without(request: Any) -> str:
        request.responseHeaders.addRawHeader(b"Set-Cookie", b"a=1")
        request.addCookie(b"c", b"3")
        return "x"

    assert web.request(without, cookie="").all("Set-Cookie") == ["a=1", "c=3"]


# The gate.


def test_nothing_leaves_before_it_is_committed(slow: Web) -> None:
    """Whoever has the first byte of the answer finds the change in every process."""
    wire = slow.begin(count)
    assert (wire.received, slow.store.release()) == (b"", ["load"])
    assert (wire.received, [name for name, _, _ in slow.store.held]) == (b"", ["replace"])

    slow.store.release()

    assert wire.take().body == b"2"


def test_what_is_called_meanwhile_is_done_in_its_order(slow: Web) -> None:
    """Writes in pieces, headers set before the head is gone, finish: as if nothing had waited."""

    def handler(request: Any) -> object:
        request.getSession().add("n")
        request.write(b"one ")
        assert not request.startedWriting
        request.setHeader(b"X-Late", b"in time")
        request.write(b"two ")
        request.write(b"three")
        request.finish()
        with pytest.raises(RuntimeError, match=r"after Request\.finish was called"):
            request.write(b"four")
        return LATER

    wire = slow.begin(handler)
    slow.store.release_all()

    answer = wire.take()
    assert (answer.body, answer.one("X-Late")) == (b"one two three", "in time")
    assert wire.received == b""


def test_only_bytes_are_written(web: Web) -> None:
    """Text is refused at once, also where it would only be kept for later."""

    def handler(request: Any) -> bytes:
        request.getSession().add("n")
        for wrong in ("text", None, 5):
            with pytest.raises(TypeError, match=f"not {type(wrong).__name__}"):
                request.write(wrong)
        return b"x"

    assert web.visit(handler).body == b"x"


def test_not_done_yet(web: Web) -> None:
    """An answer that comes later, plain or from a coroutine, keeps what it changed."""

    def later(request: Any) -> object:
        def work() -> None:
            request.write(str(request.getSession().add("n")).encode())
            request.finish()

        web.reactor.callLater(1, work)
        return LATER

    async def work(request: Any) -> None:
        request.getSession().add("n")
        await task.deferLater(web.reactor, 1)
        request.write(str(request.getSession().add("n")).encode())
        request.finish()

    for handler, body in (
        (later, b"1"),
        (lambda r: defer.ensureDeferred(work(r)) and LATER, b"3"),
    ):
        wire = web.begin(handler)
        assert wire.received == b""
        web.pass_time(1)
        answer = wire.take()
        web.keep(answer)
        assert answer.body == body
    assert web.visit(read).body == b"3"


def test_changes_of_a_stream(web: Web) -> None:
    """What changes after the head has left is committed before the last byte."""
    web.visit(count)
    requests: list[Any] = []

    def stream(request: Any) -> object:
        requests.append(request)
        request.getSession().add("n")
        request.write(b"one")
        return LATER

    wire = web.begin(stream)
    assert b"one" in wire.received
    assert web.visit(read).body == b"2"
    requests[0].getSession().add("n")
    requests[0].write(b"two")
    requests[0].finish()

    assert wire.take().body == b"onetwo"
    assert web.visit(read).body == b"3"


def test_the_last_byte_waits_too(slow: Web) -> None:
    """The end of a stream does not come before what it changed is stored."""
    requests: list[Any] = []

    def stream(request: Any) -> object:
        requests.append(request)
        request.getSession().add("n")
        request.write(b"one")
        return LATER

    wire = slow.begin(stream)
    slow.store.release_all()
    requests[0].getSession().add("n")
    requests[0].finish()
    assert wire.received.endswith(b"3\r\none\r\n")

    slow.store.release_all()

    assert wire.take().body == b"one"
    slow.store.hold = False
    assert slow.visit(read).body == b"3"


def test_too_late_for_a_cookie(web: Web, logged: Logged) -> None:
    """Of a session first written to after the head none is made, and the log says so."""

    def late(request: Any) -> object:
        request.write(b"one")
        request.getSession().add("n")
        request.finish()
        return LATER

    answer = web.request(late, cookie="")

    assert (answer.body, answer.token) == (b"one", "")
    assert web.verbs == []
    assert "no cookie can be set any more" in logged[0]["lost"]
    assert len(web.site.sessions) == 0


# Who goes away, and who comes in a row.


def test_interrupted(web: Web) -> None:
    """What a request changed whose client has gone is kept; nothing is logged as an error."""
    web.visit(count)
    cancelled: list[Any] = []

    def later(request: Any) -> object:
        request.getSession().add("n")
        request.notifyFinish().addErrback(
            lambda failure: cancelled.append(request.getSession().add("gone"))
        )
        return LATER

    wire = web.begin(later)
    wire.hang_up()

    assert cancelled == [1]
    assert web.visit(lambda r: repr(dict(r.getSession().items()))).body == b"{'n': 2, 'gone': 1}"
    assert len(web.site.sessions) == 0


def test_gone_while_it_is_loaded(slow: Web, logged: Logged) -> None:
    """The resource never runs."""
    called: list[str] = []
    wire = slow.begin(lambda request: called.append("rendered"))
    wire.hang_up()
    slow.store.release_all()

    assert called == []
    assert logged == []
    assert len(slow.site.sessions) == 0


def test_gone_while_it_is_committed(slow: Web, logged: Logged) -> None:
    """The change is kept, and nothing more happens."""
    wire = slow.begin(count)
    slow.store.release()
    wire.hang_up()
    slow.store.release_all()
    slow.store.hold = False

    assert slow.visit(read).body == b"2"
    assert logged == []
    assert len(slow.site.sessions) == 0


def test_pipelined(slow: Web) -> None:
    """Three requests in one go are answered in their order."""
    slow.handler = count
    wire = slow.wire()
    for _ in range(3):
        wire.send("/", slow.cookie)
    slow.store.release_all()

    assert [wire.take().body for _ in range(3)] == [b"2", b"3", b"4"]


def test_loads_are_shared(slow: Web) -> None:
    """Of requests with one cookie that come at once, those after the first share one more load."""
    wires = [slow.begin(count) for _ in range(20)]
    assert [name for name, _, _ in slow.store.held] == ["load"]
    assert slow.store.release() == ["load"]
    names = slow.store.release_all()

    assert names.count("load") == 1
    assert sorted(int(wire.take().body) for wire in wires) == list(range(2, 22))


def test_a_load_is_never_older_than_the_request(slow: Web) -> None:
    """What was committed elsewhere before a request came is in what it sees."""
    early = slow.begin(read)
    # The record is read for the first request, but the answer is on its way still.
    name, waiting, make = slow.store.held.pop()
    old = make()
    other = Web(slow.store.store, clock=slow.clock)
    assert other.request(count, cookie=slow.cookie).body == b"2"
    late = slow.begin(read)
    waiting.callback(old)
    slow.store.release_all()

    assert name == "load"
    assert (early.take().body, late.take().body) == (b"1", b"2")


# Methods, encodings, producers.


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_head(web: Web, method: str) -> None:
    """A HEAD commits and says what a GET would; a resource without render_HEAD too."""
    answer = web.request(count, method=method)
    assert (answer.status, answer.body == b"") == (200, method == "HEAD")
    assert answer.token

    class OnlyGet(resource.Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> bytes:
            return count(request).encode()

    web.site.resource = OnlyGet()
    answer = web.request(count, method=method, cookie=f"id={answer.token}")
    assert (answer.one("Content-Length"), answer.all("Set-Cookie")) == ("1", [])
    assert web.verbs == ["create", "load", "replace"]


@pytest.mark.parametrize("status", [204, 304])
def test_without_a_body(web: Web, status: int) -> None:
    """The session's headers go with it, and no body does."""

    def handler(request: Any) -> bytes:
        request.getSession().add("n")
        request.setResponseCode(status)
        return b"no body"

    wire = web.begin(handler)
    assert wire.received.endswith(b"\r\n\r\n")
    answer = wire.take()
    assert (answer.status, bool(answer.token)) == (status, True)


def test_gzip(web: Web) -> None:
    """Encoders see the bytes once, in order."""
    web.site.resource = resource.EncodingResourceWrapper(
        Page(lambda request: count(request) * 1000), [server.GzipEncoderFactory()]
    )
    web.visit(count)
    wire = web.wire()
    wire.send("/", web.cookie, Accept_Encoding="gzip")

    answer = wire.take()
    assert answer.one("Content-Encoding") == "gzip"
    assert gzip.decompress(answer.body) == b"2" * 1000


# Twisted's own, when its module of files is imported.
@pytest.mark.filterwarnings("ignore:twisted.web.resource._Unsafe:DeprecationWarning")
def test_files(slow: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is not read before the commit, and comes whole then."""
    from twisted.web import static

    class Files(static.File):
        def render(self, request: Any) -> Any:
            request.getSession().add("n")
            return super().render(request)

    content = bytes(range(256)) * 2000
    (tmp_path / "file").write_bytes(content)
    slow.site.resource.getChild = lambda path, request: Files(str(tmp_path / "file"))
    wire = slow.begin(quiet)
    assert slow.store.release() == ["load"]
    assert wire.received == b""
    assert wire.protocol._channel.requests[0].producer is None
    turns = task.Cooperator(scheduler=lambda turn: slow.reactor.callLater(0, turn))
    monkeypatch.setattr(task, "_theCooperator", turns)
    slow.store.release_all()
    while wire.protocol._channel.requests:
        slow.reactor.advance(0.01)

    assert wire.take().body == content


@implementer(IPushProducer)
class Pusher:
    def __init__(self, request: Any) -> None:
        self.request = request
        self.state = "producing"

    def pauseProducing(self) -> None:
        self.state = "paused"

    def resumeProducing(self) -> None:
        self.state = "producing"

    def stopProducing(self) -> None:
        self.state = "stopped"


def push(request: Any, pushers: list[Pusher]) -> object:
    request.getSession().add("n")
    pushers.append(Pusher(request))
    request.registerProducer(pushers[0], True)
    return LATER


def test_a_producer_that_pushes(slow: Web) -> None:
    """It is paused until the commit, so that nothing piles up here; CGI registers like that."""
    pushers: list[Pusher] = []
    wire = slow.begin(lambda request: push(request, pushers))
    slow.store.release()
    assert pushers[0].state == "paused"
    slow.store.release_all()
    assert pushers[0].state == "producing"
    # Its head comes only now: cookies that it brings go along.
    request = pushers[0].request
    request.responseHeaders.addRawHeader(b"Set-Cookie", b"mine=1")
    request.write(b"x")
    request.unregisterProducer()
    request.finish()

    answer = wire.take()
    assert (answer.body, answer.one("Set-Cookie")) == (b"x", "mine=1")


def test_a_producer_that_ends_before_the_commit(slow: Web) -> None:
    """Unregistered while it still waits, it is never registered."""
    pushers: list[Pusher] = []
    wire = slow.begin(lambda request: push(request, pushers))
    slow.store.release()
    request = pushers[0].request
    request.write(b"x")
    request.unregisterProducer()
    request.finish()
    slow.store.release_all()

    assert wire.take().body == b"x"
    assert pushers[0].state == "paused"


@pytest.mark.parametrize("what", ["gone", "down"])
def test_a_producer_that_is_not_wanted_any_more(slow: Web, what: str) -> None:
    """The client goes, or the store fails, while it waits: it is stopped."""
    pushers: list[Pusher] = []
    wire = slow.begin(lambda request: push(request, pushers))
    slow.store.release()
    if what == "gone":
        wire.hang_up()
    else:
        slow.store.failing = StoreUnavailable("down")
    slow.store.release_all()

    assert pushers[0].state == "stopped"
    if what == "down":
        assert wire.take().status == 503
        pushers[0].request.write(b"nobody reads this")
        pushers[0].request.finish()
        assert wire.received == b""


# HTTP/2 and https.


def test_http2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams of one connection, each with its session; reset in the middle, nothing is lost."""
    import h2.config
    import h2.connection
    import h2.events

    web = Web(DeferredStore())
    web.visit(count)
    monkeypatch.setattr("twisted.internet.reactor", web.reactor, raising=False)
    wire = Wire.__new__(Wire)
    from .kit import Transport

    wire.transport = Transport()
    wire.transport.negotiatedProtocol = b"h2"  # type: ignore[attr-defined]
    wire.protocol = web.site.buildProtocol(None)
    wire.protocol.makeConnection(wire.transport)
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    web.handler = count
    web.store.hold = True
    streams = []
    for cookie in (web.cookie, web.cookie, web.cookie):
        stream = client.get_next_available_stream_id()
        streams.append(stream)
        headers = [
            (":method", "GET"),
            (":path", "/"),
            (":scheme", "http"),
            (":authority", "localhost"),
            ("cookie", "other=1"),
            ("cookie", cookie),
        ]
        client.send_headers(stream, headers, end_stream=True)
        wire.protocol.dataReceived(client.data_to_send())
    # The second one goes while its session is loaded.
    client.reset_stream(streams[1])
    wire.protocol.dataReceived(client.data_to_send())
    for _ in range(20):
        web.store.release_all()
        web.reactor.advance(0.01)
    bodies: dict[int, bytes] = {}
    for event in client.receive_data(wire.received):
        if isinstance(event, h2.events.DataReceived):
            bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data  # type: ignore[index,operator]

    assert bodies == {streams[0]: b"2", streams[2]: b"3"}
    web.store.hold = False
    assert web.visit(read).body == b"3"


def test_https(web: Web) -> None:
    """The cookie is `__Host-id` with Secure; the one for http opens nothing there."""
    web.visit(count)
    plain = web.cookie
    answer = web.visit(count, https=True)

    assert answer.body == b"1"
    assert answer.one("Set-Cookie").startswith("__Host-id=")  # type: ignore[union-attr]
    assert answer.one("Set-Cookie").endswith("; Secure")  # type: ignore[union-attr]
    assert web.visit(count, https=True).body == b"2"
    assert web.request(count, cookie=plain).body == b"2"


def test_force_not_secure(web: Web) -> None:
    """The other of the two sessions of a browser on https; they never mix."""
    web.visit(count)
    plain = web.cookie

    def both(request: Any) -> str:
        secure, insecure = request.getSession(), request.getSession(forceNotSecure=True)
        assert secure is not insecure
        assert request.session is secure
        return repr([secure.add("n", 10), insecure.add("n")])

    answer = web.request(both, cookie=plain, https=True)
    assert answer.body == b"[10, 2]"
    assert len(answer.all("Set-Cookie")) == 1
    secure = f"__Host-id={answer.token}"
    answer = web.request(both, cookie=f"{plain}; {secure}", https=True)
    assert answer.body == b"[20, 3]"
    fresh = web.request(both, cookie="", https=True).all("Set-Cookie")
    assert sorted(line.partition("=")[0] for line in fresh) == ["__Host-id", "id"]


def test_behind_a_proxy(make_web: MakeWeb) -> None:
    """Where another ends TLS: `cookie_secure=True`, or `request.setHost(..., ssl=True)`."""
    web = make_web(cookie_secure=True)
    assert web.visit(count).one("Set-Cookie").endswith("; Secure")  # type: ignore[union-attr]
    assert web.visit(count).body == b"2"

    def told(request: Any) -> str:
        request.setHost(b"example.com", 443, ssl=1)
        return count(request)

    assert make_web().visit(told).one("Set-Cookie").startswith("__Host-id=")  # type: ignore[union-attr]


# Failures.


def failing() -> Web:
    web = Web(DeferredStore())
    web.visit(count)
    return web


def test_store_down_at_load(logged: Logged) -> None:
    """503 for a page with a session, and the visitor is not logged out; others are served."""
    web = failing()
    cookie = web.cookie
    web.store.failing = StoreUnavailable("the disk is gone")

    answer = web.visit(count)

    assert (answer.status, answer.one("Retry-After"), answer.all("Set-Cookie")) == (503, "5", [])
    assert answer.one("Cache-Control") == "no-store, private"
    assert b"cannot be reached" in answer.body
    assert web.visit(quiet).status == 200
    assert logged[0]["log_failure"].value is web.store.failing
    assert "the disk is gone" in logged[0]["error"]
    web.store.failing = None
    assert web.visit(count, cookie=cookie).body == b"2"


def test_store_down_and_the_application_answers(logged: Logged) -> None:
    """An application's own 500 page made of it becomes the 503 too; a 200 page stays."""
    web = failing()
    web.store.failing = StoreUnavailable("down")

    def own_page(status: int) -> Callable[[Any], object]:
        def handler(request: Any) -> object:
            try:
                request.getSession()
            except StoreUnavailable:
                request.setResponseCode(status)
                return "own page"
            return "no error"

        return handler

    assert web.visit(own_page(500)).status == 503
    assert web.visit(own_page(200)).body == b"own page"


def test_store_down_in_a_coroutine() -> None:
    """`processingFailed`, where Deferred code takes its errors, makes the 503."""
    web = failing()
    web.store.failing = StoreUnavailable("down")

    def handler(request: Any) -> object:
        async def work() -> None:
            request.getSession()

        defer.ensureDeferred(work()).addErrback(request.processingFailed)
        return LATER

    assert web.visit(handler).status == 503


@pytest.mark.parametrize("pieces", [False, True])
def test_store_down_at_commit(logged: Logged, pieces: bool) -> None:
    """503 in place of the page, before anything of it has left, and nothing after it."""
    web = failing()

    def handler(request: Any) -> object:
        request.setHeader(b"X-Mine", b"1")
        request.addCookie(b"mine", b"1")
        request.getSession().add("n")
        web.store.failing = StoreUnavailable("down")
        if not pieces:
            return "saved"
        request.write(b"saved")
        request.write(b"really")
        request.finish()
        return LATER

    wire = web.begin(handler)
    answer = wire.take()

    assert (answer.status, answer.all("X-Mine"), answer.all("Set-Cookie")) == (503, [], [])
    assert b"saved" not in answer.body
    assert wire.received == b""
    assert logged[0]["log_failure"].type is StoreUnavailable
    web.store.failing = None
    assert web.visit(read).body == b"1"
    assert len(web.site.sessions) == 0


def test_store_down_at_the_end_of_a_stream(logged: Logged) -> None:
    """It can only be logged."""
    web = failing()

    def handler(request: Any) -> object:
        request.getSession()
        request.write(b"one")
        request.getSession().add("n")
        web.store.failing = StoreUnavailable("down")
        request.finish()
        return LATER

    assert web.visit(handler).body == b"one"
    assert "is lost" in logged[0]["log_format"]


def test_go_on_without(logged: Logged) -> None:
    """Where the operator chose that: anonymous, no cookie, nothing kept, and the log says so."""
    web = Web(DeferredStore(), on_store_error="continue")
    web.visit(count)
    web.store.failing = StoreUnavailable("down")

    answer = web.visit(count)

    assert (answer.status, answer.body, answer.all("Set-Cookie")) == (200, b"1", [])
    web.store.failing = None
    assert web.visit(count).body == b"2"

    def fails_late(request: Any) -> str:
        body = count(request)
        web.store.failing = StoreUnavailable("down")
        return body

    assert web.visit(fails_late).body == b"3"
    web.store.failing = None
    assert web.visit(count).body == b"3"


def test_a_store_that_never_answers(slow: Web, logged: Logged) -> None:
    """A call has a limit of time, whatever the store does; the late answer harms nobody."""
    wire = slow.begin(count)
    slow.reactor.advance(LIMIT)

    assert wire.take().status == 503
    slow.store.release_all()
    assert wire.received == b""
    slow.store.hold = False
    assert slow.visit(count).body == b"2"
    assert slow.timers == []


def test_a_lost_answer_is_asked_for_again() -> None:
    """A transient failure is tried again by itself, and counts once."""
    web = failing()
    failures = [StoreUnavailable("cut", transient=True)]
    made = web.store.store.replace

    def lost(*args: Any) -> Any:
        answer = made(*args)
        if failures:
            raise failures.pop()
        return answer

    web.store.store.replace = lost
    assert web.visit(count).body == b"2"
    assert web.visit(read).body == b"2"


def test_a_failing_page(web: Web) -> None:
    """A page that ends in an exception, or says 500, keeps nothing of what it did."""
    web.visit(count)

    def fails(request: Any) -> str:
        session = request.getSession()
        session.add("n")
        session.name = "changed"
        raise RuntimeError("as it is meant to")

    def says_so(request: Any) -> str:
        request.setResponseCode(500)
        return count(request)

    for handler in (fails, says_so):
        assert web.visit(handler).status == 500
        assert (
            web.visit(lambda r: repr([r.getSession()["n"], hasattr(r.getSession(), "name")])).body
            == b"[1, False]"
        )
    assert web.request(fails, cookie="").token == ""
    assert len(web.site.sessions) == 0


def test_a_failing_page_that_is_kept(make_web: MakeWeb) -> None:
    """`commit_on_error`, as stock Twisted does."""
    web = make_web(commit_on_error=True)

    def fails(request: Any) -> str:
        request.getSession().add("n")
        raise RuntimeError("as it is meant to")

    assert web.visit(fails).status == 500
    assert web.visit(read).body == b"1"


def test_a_value_that_cannot_be_stored(web: Web) -> None:
    """Found at the commit it is a 500, and nothing of the page has left."""

    def handler(request: Any) -> object:
        request.getSession()["a"] = {"deep": object()}
        request.write(b"saved")
        request.finish()
        return LATER

    wire = web.begin(handler)
    answer = wire.take()
    assert (answer.status, answer.token) == (500, "")
    assert b"saved" not in answer.body
    assert wire.received == b""


@pytest.mark.parametrize(
    "cookie",
    ["id=", "id=x", "id=" + "A" * 66, "id=../../etc/passwd", "id=\xff\xfe", "id=a; id=b", ";;=;"],
)
def test_cookies_that_are_none(web: Web, cookie: str) -> None:
    """Whatever comes is at worst a new visitor."""
    answer = web.request(count, cookie=cookie)
    assert (answer.status, answer.body) == (200, b"1")


def test_a_request_class_of_the_application(web: Web) -> None:
    """A class of its own, or a function that makes one, gets durable sessions too."""

    class Mine(server.Request):
        def greeting(self) -> str:
            return "hello"

    def make(*args: Any, **kwargs: Any) -> Any:
        return Mine(*args, **kwargs)

    for factory in (Mine, make, Request, server.Request):
        web.cookie = ""
        web.site.requestFactory = factory
        assert [web.visit(count).body for _ in range(2)] == [b"1", b"2"]
        if factory is Mine:
            assert web.visit(lambda request: request.greeting()).body == b"hello"


def test_made_by_hand() -> None:
    """A request that no site has processed, as unit tests make them, has stock sessions."""
    from twisted.web.test.requesthelper import DummyChannel

    web = Web()
    request = Request(DummyChannel(), False)
    request.site = web.site
    request.sitepath = []  # type: ignore[attr-defined]
    session = request.getSession()

    assert request.cookies[0].startswith(b"TWISTED_SESSION=" + session.uid)
    assert web.site.sessions[session.uid] is session
    session.expire()
    assert parse(b"HTTP/1.1 200 OK\r\n\r\n")[0].status == 200


def test_memory_store_is_never_waited_for() -> None:
    """On a store in memory the answer is there before `dataReceived` returns."""
    web = Web(MemoryStore())
    assert web.visit(count).body == b"1"
    assert web.timers == []


def test_too_many_sessions(make_web: MakeWeb) -> None:
    """A login that is refused at the commit is a 403, and nobody is logged in."""
    web = make_web(max_sessions=1, on_too_many="deny")
    login = lambda request: request.getSession().login("alice") or "welcome"  # noqa: E731
    assert web.request(login, cookie="").status == 200

    answer = web.request(login, cookie="")

    assert (answer.status, answer.token, b"welcome" in answer.body) == (403, "", False)
    assert web.sessions.counters["created"] == 1


def test_a_conflict_at_the_commit(make_web: MakeWeb) -> None:
    """Where the operator wants the later of two writers to fail, that is a 409."""
    web = make_web(on_conflict="raise")
    web.visit(count)
    other = Web(web.store, clock=web.clock, on_conflict="raise")

    def handler(request: Any) -> str:
        request.getSession()["n"] = 5
        other.request(lambda r: r.getSession().update(n=6) or "", cookie=web.cookie)
        return "saved"

    assert web.visit(handler).status == 409
    assert web.visit(read).body == b"6"


def test_what_visitors_bring_about_is_one_line(web: Web, logged: Logged) -> None:
    """A form of another session: a 403, and no traceback that fills the log."""
    answer = web.visit(lambda request: request.getSession().check_csrf(b"A" * 86))

    assert answer.status == 403
    (event,) = logged
    assert "the form token is missing or is not of this session" in event["error"]
    assert "log_failure" not in event


# What was committed before the head.


def login_and_commit(then: Callable[[Any], object]) -> Callable[[Any], Any]:
    """Log in, commit at once, and go on."""

    def handler(request: Any) -> Any:
        async def work() -> None:
            session = request.getSession()
            session.login("alice")
            await session.commit()
            then(request)

        defer.ensureDeferred(work()).addErrback(request.processingFailed)
        return LATER

    return handler


def error_page(request: Any) -> None:
    request.setResponseCode(500)
    good_page(request)


def good_page(request: Any) -> None:
    request.write(b"page")
    request.finish()


def fails(request: Any) -> None:
    raise RuntimeError("as it is meant to")


def conflict(request: Any) -> None:
    raise Conflict("as it is meant to")


def who(request: Any) -> str:
    return repr(request.getSession().user)


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize(
    ("then", "status"),
    [(good_page, 200), (error_page, 500), (fails, 500), (conflict, 409)],
)
def test_a_login_that_is_committed_before_the_head(
    web: Web, then: Callable[[Any], object], status: int, new: bool
) -> None:
    """It stands whatever comes after it, and its cookie is sent: or it would be a logout."""
    if not new:
        web.visit(count)
    former = web.cookie

    answer = web.visit(login_and_commit(then))

    assert answer.status == status
    assert web.cookie not in ("", former)
    assert web.visit(who).body == b"'alice'"


def test_a_commit_while_the_head_waits_for_one(slow: Web) -> None:
    """The head brings what that one has to tell, and no cookie that comes later."""
    done: list[Any] = []

    def handler(request: Any) -> Any:
        session = request.getSession()
        session["a"] = 1
        request.write(b"page")
        session.login("alice")
        session.commit().addBoth(done.append)
        request.finish()
        return LATER

    wire = slow.begin(handler)
    slow.store.release_all()

    assert (wire.take().body, [one.dropped for one in done]) == (b"page", ["late renewal"])
    slow.store.hold = False
    assert slow.visit(lambda request: repr(request.getSession()["a"])).body == b"1"
    assert slow.visit(who).body == b"None"


def test_a_commit_after_the_head_makes_no_new_session(web: Web) -> None:
    """Its cookie could not be sent any more."""

    def handler(request: Any) -> Any:
        async def work() -> None:
            session = request.getSession()
            request.write(b"one ")
            session["a"] = 1
            assert (await session.commit()).dropped == "late"
            good_page(request)

        defer.ensureDeferred(work())
        return LATER

    answer = web.visit(handler)

    assert (answer.body, answer.all("Set-Cookie")) == (b"one page", [])
    assert "create" not in web.verbs
