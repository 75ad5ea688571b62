"""The ASGI middleware: when it commits, cancelled or not, over http and websockets."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from sojourn.core.calls import Call
from sojourn.errors import StoreUnavailable
from sojourn.manager import SessionManager
from sojourn.stores.memory import MemoryStore
from sojourn.stores.threaded import ThreadedStore
from sojourn.testing import (
    AsyncFlakyStore,
    AsyncRecordingStore,
    AsyncWrappedStore,
    Fault,
    FlakyStore,
    RecordingStore,
)
from sojourn.web.asgi import COMMIT, KEY, SessionMiddleware

from .kit import Answer, call_asgi, scope, talk_asgi
from .serving import uvicorn

pytestmark = pytest.mark.anyio

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/x")]}


def body(text: str = "", more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text.encode(), "more_body": more}


class Served:
    """One application behind the middleware."""

    def __init__(self, app: Any, store: Any = None, **settings: Any) -> None:
        self.store = RecordingStore(MemoryStore() if store is None else store)
        exclude = settings.pop("exclude", ())
        self.sessions = SessionManager(self.store, **settings)
        self.app = SessionMiddleware(app, self.sessions, exclude=exclude)
        self.cookie = ""

    async def get(self, **kwargs: Any) -> Answer:
        """Make a request and keep the cookie."""
        call = {key: kwargs.pop(key) for key in ("on_event", "receive") if key in kwargs}
        answer = await call_asgi(self.app, scope(**({"cookie": self.cookie} | kwargs)), **call)
        if answer.token:
            self.cookie = f"id={answer.token}"
        return answer

    async def talk(self, *coming: dict[str, Any], **kwargs: Any) -> list[dict[str, Any]]:
        """Open a websocket; return what the application sent."""
        sent: list[dict[str, Any]] = []
        connection = scope(kind="websocket", **({"cookie": self.cookie} | kwargs))
        coming = ({"type": "websocket.connect"}, *coming)
        await talk_asgi(self.app, connection, sent, receive=coming)
        return sent

    async def values(self) -> dict[str, Any]:
        """Return what the next request sees."""
        return dict(self.sessions.session(self.cookie))

    async def start(self, **values: Any) -> None:
        """Give the visitor a session with those values."""
        session = self.sessions.session()
        session.update(values)
        self.cookie = f"id={self.sessions.commit(session).token}"
        self.store.calls.clear()


# Bodies that come bit by bit.


async def test_commits_before_the_first_bytes() -> None:
    """The head waits for the first bytes; what was done until then is in the store before it."""

    async def app(connection: Any, receive: Any, send: Any) -> None:
        await send(START)
        connection[KEY]["a"] = 1
        await send(body("", more=True))
        connection[KEY]["b"] = 2
        await send(body("one", more=True))
        await send(body("two"))

    served = Served(app)
    seen: list[list[str]] = []
    answer = await served.get(on_event=lambda what: seen.append(served.store.verbs))

    assert answer.body == b"onetwo"
    assert answer.token
    assert seen == [["create"]] * 3
    assert await served.values() == {"a": 1, "b": 2}


async def test_a_body_that_writes_late() -> None:
    """What the body changes after the head has left is committed when it ends."""

    async def app(connection: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(connection[KEY]["a"], more=True))
        connection[KEY].add("n")
        await send(body("two"))

    served = Served(app)
    await served.start(a="one")

    assert (await served.get()).body == b"onetwo"
    assert served.store.verbs == ["load", "replace"]
    assert await served.values() == {"a": "one", "n": 1}


@pytest.mark.parametrize("later", ["a", "flash", "login", "in place"])
async def test_a_new_session_after_the_head(later: str, caplog: pytest.LogCaptureFixture) -> None:
    """No cookie can be set any more: it is logged, and no record is left that nobody can open."""

    async def app(connection: Any, receive: Any, send: Any) -> None:
        session = connection[KEY]
        assert session.get("a") is None
        await send(START)
        await send(body("one"))
        if later == "a":
            session["a"] = 1
        elif later == "flash":
            session.flash("x")
        elif later == "login":
            session.login("alice")
        else:
            session["a"] = []
            session["a"].append(1)

    served = Served(app)
    answer = await served.get()

    assert answer.all("Set-Cookie") == []
    assert served.store.count(status=None) == 0
    assert len(caplog.records) == 1
    assert "first written to after the head" in caplog.text


async def test_logout_after_the_head() -> None:
    """L6: the end of a session is carried out even where it comes too late for the cookie."""

    async def app(connection: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body("one"))
        connection[KEY].logout()
        connection[KEY].flash("Bye")

    served = Served(app)
    await served.start(a=1)
    await served.get()

    assert await served.values() == {}
    assert served.store.count() == 0


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("sent", [False, True])
async def test_an_application_that_raises(keep: bool, sent: bool) -> None:
    """Before the head or after it: nothing more is kept, unless the operator wants it."""

    async def app(connection: Any, receive: Any, send: Any) -> None:
        await send(START)
        if sent:
            await send(body("x", more=True))
        connection[KEY]["a"] = 2
        raise ZeroDivisionError

    served = Served(app, commit_on_error=keep)
    await served.start(a=1)

    with pytest.raises(ZeroDivisionError):
        await served.get()
    assert await served.values() == {"a": 2 if keep else 1}


@pytest.mark.parametrize("tells", ["receive", "send"])
async def test_the_client_goes(tells: str) -> None:
    """The application stops because the client has gone: what it finished is kept."""

    async def app(connection: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body("x", more=True))
        connection[KEY]["a"] = 2
        if tells == "send":
            await send(body("y"))
        message = await receive()
        while message["type"] != "http.disconnect":
            message = await receive()
        raise RuntimeError("the client has gone")

    def gone(what: str) -> None:
        bodies.append(what)
        if tells == "send" and bodies.count("body") == 2:
            raise OSError("gone")

    bodies: list[str] = []
    served = Served(app)
    await served.start(a=1)

    with pytest.raises((OSError, RuntimeError)):
        await served.get(on_event=gone)
    assert await served.values() == {"a": 2}


async def test_nothing_follows_an_answer_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    """After the 503 the application may go on sending: nothing of it reaches the client."""

    async def app(connection: Any, receive: Any, send: Any) -> None:
        connection[KEY]["a"] = 1
        await send(START)
        for _ in range(3):
            await send(body("more", more=True))
        await send(body("end"))

    store = FlakyStore(
        MemoryStore(), lambda verb, _: Fault.UNAVAILABLE if verb == "create" else None
    )
    answer = await Served(app, store).get()

    assert answer.status == 503
    assert b"more" not in answer.body
    assert len(caplog.records) == 1


async def test_a_failure_that_raises_again() -> None:
    """Where the store fails and the application lets it pass, the client gets the 503."""

    async def app(connection: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(connection[KEY]["a"]))

    store = FlakyStore(MemoryStore(), lambda verb, _: Fault.UNAVAILABLE if verb == "load" else None)
    served = Served(app, store)
    await served.start(a="x")
    answer = await served.get()

    assert (answer.status, answer.one("Retry-After")) == (503, "5")


async def test_a_store_with_a_network_behind_it_is_asked_before_the_handler() -> None:
    """Its record is loaded when a cookie came; the error shows when the session is used."""
    loads = AsyncRecordingStore(ThreadedStore(MemoryStore()))
    loads.promises = MemoryStore.promises.__class__(survives="nothing", shared="process")
    down = AsyncFlakyStore(loads, lambda verb, _: Fault.UNAVAILABLE if verb == "load" else None)

    async def app(connection: Any, receive: Any, send: Any) -> None:
        if connection["path"] == "/use":
            connection[KEY].get("a")
        await send(START)
        await send(body("fine"))

    for store, status in ((loads, 200), (down, 503)):
        sessions = SessionManager(store)
        new = await sessions.asession()
        new["a"] = 1
        cookie = f"id={(await sessions.acommit(new)).token}"
        middleware = SessionMiddleware(app, sessions)

        assert (await call_asgi(middleware, scope(cookie=cookie))).body == b"fine"
        answer = await call_asgi(middleware, scope(cookie=cookie, path="/use"))
        assert answer.status == status
        assert answer.all("Vary") == (["Cookie"] if status == 200 else [])
    assert loads.verbs == ["create", "load", "load", "create"]


# Cancelled.


class Slow(AsyncWrappedStore):
    """A store with a wait before and after each call, as a network has."""

    async def pass_on(self, call: Call) -> Any:
        """Make the call."""
        await asyncio.sleep(0)
        answer = await super().pass_on(call)
        await asyncio.sleep(0)
        return answer


@pytest.mark.parametrize("stream", [False, True])
async def test_cancelled_at_each_await(stream: bool) -> None:
    """Wherever a request is cancelled, its changes are in the store whole, or not at all.

    When the head has left, those from before it are; when a part of a body was sent, what it
    finished until then is.
    """

    async def app(connection: Any, receive: Any, send: Any) -> None:
        session = connection[KEY]
        session.update(a=2, b=2)
        await asyncio.sleep(0)
        await send(START)
        await send(body("one", more=True))
        if stream:
            session.update(a=3, b=3)
            await asyncio.sleep(0)
        await send(body("two"))
        await asyncio.sleep(0)

    ends = set()
    others = asyncio.all_tasks()
    for step in range(60):
        memory = MemoryStore()
        slow = Slow(ThreadedStore(memory))
        slow.promises = MemoryStore.promises.__class__(survives="nothing", shared="process")
        sessions = SessionManager(slow)
        new = await sessions.asession()
        new.update(a=1, b=1)
        cookie = f"id={(await sessions.acommit(new)).token}"
        sent: list[dict[str, Any]] = []
        task = asyncio.ensure_future(
            talk_asgi(SessionMiddleware(app, sessions), scope(cookie=cookie), sent)
        )
        for _ in range(step):
            await asyncio.sleep(0)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        # What was begun in the background ends by itself.
        await asyncio.gather(*asyncio.all_tasks() - others)

        values = dict(SessionManager(memory).session(cookie))
        assert values["a"] == values["b"], step
        if sent:
            assert values["a"] >= 2, step
        if outcome is None:
            assert values["a"] == 3 if stream else 2
        ends.add((values["a"], isinstance(outcome, asyncio.CancelledError)))
    assert (1, True) in ends
    assert (2, True) in ends
    assert ((3, True) in ends) is stream
    assert any(not cancelled for _, cancelled in ends)


# Websockets.


ACCEPT = {"type": "websocket.accept", "subprotocol": None, "headers": [(b"x-own", b"1")]}


async def test_websocket_accept_brings_the_cookie() -> None:
    """A session that is made before a websocket is accepted has its cookie in the handshake."""

    async def app(connection: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        connection[KEY]["a"] = 1
        await send(ACCEPT)
        connection[KEY]["a"] = 2
        await receive()

    served = Served(app)
    (accept,) = await served.talk()
    headers = dict(accept["headers"])

    assert headers[b"x-own"] == b"1"
    assert headers[b"cache-control"] == b"no-store, private"
    served.cookie = headers[b"set-cookie"].decode().partition(";")[0]
    assert await served.values() == {"a": 2}
    assert served.store.verbs == ["create", "replace", "load"]


async def test_websocket_closed_before_it_is_accepted() -> None:
    """Changes to a session that is there are kept; a new one could not be told of."""

    async def app(connection: Any, receive: Any, send: Any) -> None:
        connection[KEY]["refused"] = 1
        await send({"type": "websocket.close", "code": 4003})

    served = Served(app)
    assert await served.talk() == [{"type": "websocket.close", "code": 4003}]
    assert served.store.count(status=None) == 0

    await served.start(a=1)
    await served.talk()
    assert await served.values() == {"a": 1, "refused": 1}


async def test_websocket_that_ends_in_an_exception() -> None:
    """Frameworks raise where the client has gone: what was finished until then is kept."""

    async def app(connection: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        while (message := await receive())["type"] == "websocket.receive":
            connection[KEY].append("said", message["text"])
        raise RuntimeError("disconnected")

    served = Served(app)
    await served.start()
    await served.start(a=1)
    with pytest.raises(RuntimeError):
        await served.talk(*({"type": "websocket.receive", "text": text} for text in "abc"))

    assert await served.values() == {"a": 1, "said": ["a", "b", "c"]}


async def test_websocket_commit_in_between() -> None:
    """A long connection saves with `await scope["sojourn.commit"]()`, as often as it likes."""
    seen: list[dict[str, Any]] = []

    async def app(connection: Any, receive: Any, send: Any) -> None:
        await receive()
        await connection[COMMIT]()
        await send(ACCEPT)
        for number in (1, 2):
            connection[KEY].add("n")
            await connection[COMMIT]()
            seen.append(await served.values())
            assert connection[KEY]["n"] == number

    served = Served(app)
    await served.start(n=0)
    await served.talk()

    assert seen == [{"n": 1}, {"n": 2}]
    assert await served.values() == {"n": 2}


async def test_websocket_commit_of_a_session_nobody_has(caplog: pytest.LogCaptureFixture) -> None:
    """A session that is first written to when the handshake is over is not kept, but told of."""

    async def app(connection: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        connection[KEY]["a"] = 1
        await connection[COMMIT]()

    served = Served(app)
    await served.talk()

    assert served.store.count(status=None) == 0
    assert "first written to after" in caplog.text


async def test_websocket_commit_tells_of_a_store_that_is_down() -> None:
    """There the error reaches the application, which can do something about it."""

    async def app(connection: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        connection[KEY]["a"] = 2
        with pytest.raises(StoreUnavailable):
            await connection[COMMIT]()

    store = FlakyStore(
        MemoryStore(), lambda verb, _: Fault.UNAVAILABLE if verb == "replace" else None
    )
    served = Served(app, store)
    await served.start(a=1)
    await served.talk()

    assert await served.values() == {"a": 1}


async def test_websocket_without_a_store() -> None:
    """Where the session cannot be loaded the handshake is refused: try again later."""

    async def app(connection: Any, receive: Any, send: Any) -> None:
        connection[KEY].get("a")
        await send(ACCEPT)

    store = FlakyStore(MemoryStore(), lambda verb, _: Fault.UNAVAILABLE if verb == "load" else None)
    served = Served(app, store)
    await served.start(a=1)

    assert [(one["type"], one["code"]) for one in await served.talk()] == [
        ("websocket.close", 1013)
    ]


# Other kinds of connections, and other ways in.


async def test_lifespan_passes_through() -> None:
    """What is neither http nor websocket reaches the application as it is."""
    seen: list[Any] = []

    async def app(connection: Any, receive: Any, send: Any) -> None:
        seen.append((connection, receive, send))

    given = ({"type": "lifespan", "asgi": {}}, object(), object())
    await SessionMiddleware(app, SessionManager())(*given)  # type: ignore[arg-type]

    assert seen == [given]
    assert KEY not in given[0]


@pytest.mark.parametrize(
    ("path", "excluded"),
    [
        ("/static", True),
        ("/static/", True),
        ("/static/a.css", True),
        ("/api/open", True),
        ("/statics", False),
        ("/", False),
        ("/x/static", False),
        ("/api", False),
    ],
)
async def test_exclude(path: str, excluded: bool) -> None:
    """Excluded paths, and all below them, get no session and cost no look at the cookie."""
    seen: list[bool] = []

    async def app(connection: Any, receive: Any, send: Any) -> None:
        seen.append(KEY in connection)
        await send(START)
        await send(body())

    served = Served(app, exclude=["/static/", "/api/open"])
    await served.start(a=1)
    await served.get(path=path)

    assert seen == [not excluded]


async def show(connection: Any, receive: Any, send: Any) -> None:
    await send(START)
    await send(body(repr(connection[KEY].get("a"))))


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_split_cookie_headers(at: int) -> None:
    """HTTP/2 and 3 may send each cookie in a header of its own (RFC 9113, section 8.2.3)."""
    served = Served(show)
    await served.start(a=1)
    split = ["x=1", "y=2"]
    split.insert(at, served.cookie)

    assert (await served.get(cookie=split)).body == b"1"


async def test_two_cookies_in_two_headers() -> None:
    """Two different ones are two, however they came."""
    served = Served(show)
    await served.start(a=1)
    first = served.cookie
    await served.start(a=2)

    assert (await served.get(cookie=[first, served.cookie])).body == b"None"


async def test_an_agent_that_is_not_ascii() -> None:
    """Any bytes in the User-Agent are kept as something that can be shown."""

    async def app(connection: Any, receive: Any, send: Any) -> None:
        connection[KEY].login("alice")
        await send(START)
        await send(body())

    served = Served(app)
    await served.get(headers=[(b"user-agent", bytes(range(256)) * 4)])
    (device,) = served.sessions.of_user("alice")

    assert device.client.address == "192.0.2.7"
    assert len(device.client.agent) == 400
    assert device.client.agent.isprintable()


async def test_starlette() -> None:
    """`request.session` of Starlette is this session, in http and websocket alike."""
    starlette = pytest.importorskip("starlette.applications")
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    async def endpoint(request: Request) -> Response:
        request.session["n"] = request.session.get("n", 0) + 1
        return PlainTextResponse(str(request.session["n"]))

    served = Served(starlette.Starlette(routes=[Route("/", endpoint)]))

    assert [(await served.get()).body for _ in range(3)] == [b"1", b"2", b"3"]


# A real server.


def test_uvicorn(caplog: pytest.LogCaptureFixture) -> None:
    """Behind a real server: a session over several requests, a client that goes, a logout."""
    done = threading.Event()

    async def app(connection: Any, receive: Any, send: Any) -> None:
        session, path = connection[KEY], connection["path"]
        if path == "/add":
            session.add("n")
        elif path == "/out":
            session.logout()
        elif path == "/fail":
            session.add("n", 100)
            raise ZeroDivisionError
        await send(START)
        if path == "/stream":
            await send(body(str(session.get("n")), more=True))
            session.add("n", 10)
            while (await receive())["type"] != "http.disconnect":
                pass
            session.add("n", 10)
            done.set()
        await send(body(str(session.get("n"))))

    sessions = SessionManager()
    with (
        uvicorn(SessionMiddleware(app, sessions)) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        assert client.get("/").text == "None"
        assert client.get("/add").text == "1"
        with client.stream("GET", "/stream") as answer:
            assert next(answer.iter_raw()) == b"1"
        assert done.wait(10)
        assert client.get("/fail").status_code == 500
        assert client.get("/").text == "21"
        kept = dict(client.cookies)
        client.get("/out")
        assert dict(client.cookies) == {}
        client.cookies.update(kept)
        assert client.get("/").text == "None"


async def test_a_page_without_the_session_works_on_an_unusable_file(tmp_path: Path) -> None:
    """Also when the store cannot even be opened, a page that looks at no session is answered."""
    (tmp_path / "sessions.db").write_bytes(b"no database, but text" * 100)
    sessions = SessionManager(f"sqlite:///{tmp_path / 'sessions.db'}")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/", "headers": [(b"cookie", b"id=x")], "scheme": "http"}
    await SessionMiddleware(app, sessions)(scope, None, send)  # type: ignore[arg-type]

    assert [message.get("status") for message in sent] == [200, None]
