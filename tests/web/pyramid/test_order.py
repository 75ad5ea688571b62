"""When a session is committed in the order of a Pyramid request, and what becomes of errors."""

from __future__ import annotations

import gc
import io
import logging
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyramid.events import NewResponse
from pyramid.httpexceptions import HTTPForbidden, HTTPFound, HTTPNoContent
from pyramid.request import Request
from pyramid.response import FileIter, Response
from pyramid.tweens import EXCVIEW
from webtest import TestApp

from sojourn import Conflict, CsrfError, InvalidValue, SessionManager, TooManySessions
from sojourn.errors import StoreUnavailable
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Clock, Fault, FlakyStore, RecordingStore
from sojourn.web.pyramid import SessionFactory

from ..kit import call_wsgi, environ
from .apps import make_app

Answer = Any


class World:
    """A site and one visitor; each view is given with the visit."""

    def __init__(
        self,
        include: bool,
        store: Any = None,
        configure: Callable[[Any], object] = lambda config: None,
        factory: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.store = RecordingStore(MemoryStore() if store is None else store)
        self.sessions = SessionManager(self.store, clock=Clock(), **settings)
        self.view: Callable[[Any], Any] = lambda request: ""
        self.app = make_app(
            SessionFactory(self.sessions, **(factory or {})),
            lambda request: self.view(request),
            include=include,
            configure=configure,
        )
        self.browser = TestApp(self.app)

    def visit(self, view: Callable[[Any], Any], **more: Any) -> Answer:
        self.view = view
        return self.browser.get("/", **more)

    def values(self) -> dict[str, Any]:
        """What the visitor's session holds."""
        found: dict[str, Any] = {}
        self.visit(lambda request: found.update(request.session) or "")
        return found


MakeWorld = Callable[..., World]


@pytest.fixture(params=["include", "factory"])
def make_world(request: pytest.FixtureRequest) -> MakeWorld:
    return lambda *args, **kwargs: World(request.param == "include", *args, **kwargs)


@pytest.fixture
def included() -> MakeWorld:
    return lambda *args, **kwargs: World(True, *args, **kwargs)


def write(request: Any) -> str:
    request.session["a"] = 1
    return ""


# When.


def test_committed_before_the_server_has_the_head(make_world: MakeWorld) -> None:
    """In a response callback, after those of the application."""
    world = make_world()
    calls: list[tuple[str, list[str]]] = []

    def view(request: Any) -> str:
        request.session["a"] = 1

        def after(request: Any, response: Any) -> None:
            calls.append(("callback", world.store.verbs))
            request.session["b"] = 2

        request.add_response_callback(after)
        return "done"

    world.view = view
    answer = call_wsgi(
        world.app, environ(), on_event=lambda what: calls.append((what, world.store.verbs))
    )

    once = ["create"]
    assert calls == [("callback", []), ("head", once), ("body", once)]
    assert len(answer.all("Set-Cookie")) == 1
    session = world.sessions.session(f"id={answer.token}")
    assert dict(session) == {"a": 1, "b": 2}


@pytest.mark.parametrize("commit_on_error", [True, False])
@pytest.mark.parametrize("early", [True, False])
def test_a_subscriber_of_new_response(
    included: MakeWorld, early: bool, commit_on_error: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What it writes is kept, with the cookie that is due, also if it is the first to look."""

    def listen(event: Any) -> None:
        event.request.session["page"] = event.request.path
        event.response.headers["X-Seen"] = "yes"

    world = included(
        configure=lambda config: config.add_subscriber(listen, NewResponse),
        commit_on_error=commit_on_error,
    )

    answer = world.visit(write if early else lambda request: "")

    assert answer.headers["X-Seen"] == "yes"
    assert answer.headers.getall("Vary") == ["Cookie"]
    assert len(answer.headers.getall("Set-Cookie")) == 1
    assert world.values()["page"] == "/"
    assert caplog.records == []


def test_a_subscriber_that_ends_what_the_view_made(make_world: MakeWorld) -> None:
    """The answer then brings one cookie line: the one that removes it."""

    def listen(event: Any) -> None:
        if "end" in event.request.params:
            event.request.session.invalidate()

    world = make_world(configure=lambda config: config.add_subscriber(listen, NewResponse))
    world.visit(write)
    world.view = lambda request: request.session.renew() or ""

    answer = world.browser.get("/?end=1")

    (line,) = answer.headers.getall("Set-Cookie")
    assert line.startswith("id=; Max-Age=0;")
    assert world.sessions.count() == 0
    assert world.values() == {}


def test_a_finished_callback(make_world: MakeWorld) -> None:
    """What one writes is kept, if it was added before the response callbacks ran."""
    world = make_world()

    def view(request: Any) -> str:
        request.add_finished_callback(lambda request: request.session.update(b=2))
        request.session["a"] = 1
        return ""

    world.visit(view)

    assert world.values() == {"a": 1, "b": 2}


def test_one_load_and_one_write(make_world: MakeWorld) -> None:
    """Looking twice at the end costs nothing: no more calls than anywhere else."""
    world = make_world()
    world.visit(write)
    world.store.calls.clear()

    world.visit(lambda request: request.session.update(b=2) or "")
    assert world.store.verbs == ["load", "replace"]
    world.store.calls.clear()
    world.visit(lambda request: str(dict(request.session)))
    assert world.store.verbs == ["load"]


# Streams.


def stream(request: Any) -> Response:
    def body() -> Iterator[bytes]:
        yield b"one"
        request.session.add("n")
        yield b"two"

    return Response(app_iter=body(), content_type="text/plain")


def test_a_late_write(make_world: MakeWorld) -> None:
    """What a streaming body writes is committed at its end, and the head is as it was."""
    world = make_world()
    world.visit(write)

    def view(request: Any) -> Response:
        assert request.session["a"] == 1
        return stream(request)

    answer = world.visit(view)

    assert answer.body == b"onetwo"
    assert world.values() == {"a": 1, "n": 1}


def test_a_late_first_look(included: MakeWorld) -> None:
    """With `include` also if the body is the first to look at the session."""
    world = included()
    world.visit(write)

    world.visit(stream)

    assert world.values() == {"a": 1, "n": 1}


def test_a_late_new_session(included: MakeWorld, caplog: pytest.LogCaptureFixture) -> None:
    """It cannot be kept, as its cookie cannot be set any more; the log says so."""
    world = included()

    assert world.visit(stream).body == b"onetwo"

    assert world.sessions.count() == 0
    assert "no cookie can be set any more" in caplog.text


def test_a_client_that_goes(included: MakeWorld) -> None:
    """What was written until then is kept, and the body is closed."""
    world, closed = included(), []
    cookie = _cookie(world.visit(write))

    class Body:
        def __init__(self, request: Any) -> None:
            self.session = request.session

        def __iter__(self) -> Iterator[bytes]:
            yield b"one"
            self.session.add("n")
            yield b"two"
            self.session.add("n")
            yield b"three"

        def close(self) -> None:
            closed.append(True)

    world.view = lambda request: Response(app_iter=Body(request), content_type="text/plain")
    answer = call_wsgi(world.app, environ(cookie=cookie), read=1)

    assert (answer.body, closed) == (b"one", [True])
    assert world.values()["n"] == 1


def test_a_stream_that_breaks(make_world: MakeWorld) -> None:
    """Nothing of it is kept that was not committed before its head."""
    for commit_on_error in (False, True):
        world = make_world(commit_on_error=commit_on_error)
        world.visit(write)

        def view(request: Any) -> Response:
            request.session["before"] = 1

            def body(session: Any = request.session) -> Iterator[bytes]:
                yield b"one"
                session["after"] = 1
                raise ZeroDivisionError

            return Response(app_iter=body(), content_type="text/plain")

        with pytest.raises(ZeroDivisionError):
            world.visit(view)
        after = {"after": 1} if commit_on_error else {}
        assert world.values() == {"a": 1, "before": 1} | after


def test_a_stream_keeps_its_headers(included: MakeWorld) -> None:
    """Its length too, which setting a body takes away."""
    world = included()

    def view(request: Any) -> Response:
        response = Response(content_type="text/plain")
        response.app_iter = (chunk for chunk in (b"one", b"two"))
        response.content_length = 6
        return response

    world.view = view
    assert call_wsgi(world.app, environ()).one("Content-Length") == "6"


def test_a_file_is_given_to_the_server(included: MakeWorld) -> None:
    """It is not wrapped: a server sends what it made of a file by itself."""
    world = included()

    class Wrapper(FileIter):  # type: ignore[misc]
        """As servers have one."""

    for kind in (FileIter, Wrapper):
        world.view = lambda request, kind=kind: Response(app_iter=kind(io.BytesIO(b"file")))
        env = environ() | {"wsgi.file_wrapper": Wrapper}
        result = world.app(env, lambda *head: None)
        assert type(result) is kind


# Errors.


def test_an_error_without_a_view(make_world: MakeWorld) -> None:
    """An exception that nobody answers goes to the server, and nothing is kept."""
    world = make_world()
    world.visit(write)

    def view(request: Any) -> str:
        request.session["b"] = 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        world.visit(view)
    assert world.values() == {"a": 1}


CASES = {
    # What the view raises: its status, and whether it is committed by set_on_exception.
    "found": (lambda: HTTPFound("/"), 302, {None: True, True: True, False: False}),
    "forbidden": (lambda: HTTPForbidden(), 403, {None: True, True: True, False: False}),
    "error": (lambda: ZeroDivisionError(), 500, {None: False, True: True, False: False}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("policy", [None, True, False])
def test_set_on_exception(make_world: MakeWorld, case: str, policy: bool | None) -> None:
    """An exception that a view answers: what is raised as an answer is one, unless told else."""
    make, status, kept = CASES[case]

    def configure(config: Any) -> None:
        def answer(error: Exception, request: Any) -> Response:
            return Response("sorry", status=500)

        config.add_exception_view(answer, context=ZeroDivisionError)

    world = make_world(configure=configure, factory={"set_on_exception": policy})

    def view(request: Any) -> str:
        request.session["a"] = 1
        raise make()

    answer = world.visit(view, expect_errors=True)

    assert answer.status_int == status
    assert bool(answer.headers.getall("Set-Cookie")) == kept[policy]
    assert world.sessions.count() == kept[policy]
    assert answer.headers.getall("Vary") == ["Cookie"]


def test_set_on_exception_is_the_last_word(make_world: MakeWorld) -> None:
    """What it drops stays dropped, also where errors are committed otherwise."""

    def configure(config: Any) -> None:
        config.add_exception_view(lambda error, request: Response("sorry"), context=Exception)

    world = make_world(
        configure=configure, factory={"set_on_exception": False}, commit_on_error=True
    )
    world.visit(write)

    def view(request: Any) -> str:
        request.session["a"] = 2
        raise ZeroDivisionError

    assert world.visit(view).text == "sorry"
    assert world.values() == {"a": 1}


def test_an_error_page_keeps_nothing(make_world: MakeWorld) -> None:
    """A view that returns a 5xx has failed too, but for `commit_on_error`."""
    for commit_on_error in (False, True):
        world = make_world(commit_on_error=commit_on_error)
        view = lambda request: write(request) or Response("sorry", status=502)  # noqa: E731

        world.visit(view, expect_errors=True)

        assert world.sessions.count() == commit_on_error


@pytest.mark.parametrize(
    ("error", "status"),
    [(Conflict("twice"), 409), (CsrfError("old"), 403), (TooManySessions("six"), 403)],
)
def test_errors_that_nobody_answers(included: MakeWorld, error: Exception, status: int) -> None:
    """Those of the session are answered, and nothing is kept."""
    world = included()
    world.visit(write)

    def view(request: Any) -> str:
        request.session["b"] = 1
        raise error

    answer = world.visit(view, expect_errors=True)

    assert answer.status_int == status
    assert answer.headers["Cache-Control"] == "no-store, private"
    assert world.values() == {"a": 1}


def test_an_exception_view_comes_first(included: MakeWorld) -> None:
    """The application's own answer to an error of the session is the one that counts."""

    def configure(config: Any) -> None:
        config.add_exception_view(
            lambda error, request: Response("mine", status=418), context=CsrfError
        )
        config.add_exception_view(
            lambda error, request: Response("down", status=200), context=StoreUnavailable
        )

    world = included(FlakyStore(MemoryStore(), lambda verb, _: Fault.UNAVAILABLE), configure)

    def raises(request: Any) -> str:
        raise CsrfError("old")

    assert world.visit(raises, expect_errors=True).text == "mine"
    cookie = {"Cookie": f"id={'A' * 22}.{'A' * 43}"}
    answer = world.visit(lambda request: str(dict(request.session)), headers=cookie)
    assert answer.text == "down"
    assert answer.headers.getall("Vary") == ["Cookie"]


def test_a_general_exception_view_does_not_hide_that_the_store_is_down(
    make_world: MakeWorld,
) -> None:
    """A 500 that an application makes of whatever it meets becomes the clear 503."""

    def configure(config: Any) -> None:
        config.add_exception_view(
            lambda error, request: Response("oops", status=500), context=Exception
        )

    world = make_world(FlakyStore(MemoryStore(), lambda verb, _: Fault.UNAVAILABLE), configure)
    cookie = {"Cookie": f"id={'A' * 22}.{'A' * 43}"}

    answer = world.visit(
        lambda request: str(dict(request.session)), headers=cookie, expect_errors=True
    )

    assert (answer.status_int, answer.headers["Retry-After"]) == (503, "5")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Response("fine"),
        lambda: HTTPFound("/"),
        lambda: HTTPNoContent(),
        lambda: Response(app_iter=(part for part in (b"a", b"b"))),
    ],
)
def test_a_commit_that_fails(make_world: MakeWorld, make: Callable[[], Response]) -> None:
    """Outside of every exception view, whatever the answer was: a 503 with nothing of it."""
    world = make_world(FlakyStore(MemoryStore(), lambda verb, _: Fault.UNAVAILABLE))

    answer = world.visit(lambda request: write(request) or make(), expect_errors=True)

    assert (answer.status_int, answer.headers["Retry-After"]) == (503, "5")
    assert answer.headers.getall("Set-Cookie") == []
    assert answer.headers.getall("Location") == []
    assert b"try again" in answer.body
    assert answer.headers["Content-Length"] == str(len(answer.body))


def test_a_second_commit_that_fails(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """The one after the response callbacks too: the head has not left. The first one stands."""
    broken: list[bool] = []
    store = FlakyStore(MemoryStore(), lambda verb, _: Fault.UNAVAILABLE if broken else None)

    def listen(event: Any) -> None:
        broken.append(True)
        event.request.session["b"] = 2

    world = make_world(store, lambda config: config.add_subscriber(listen, NewResponse))

    answer = world.visit(write, expect_errors=True)

    assert answer.status_int == 503
    assert len(answer.headers.getall("Set-Cookie")) == 1
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    broken.clear()
    (token,) = [record.sid for record in store.list()]
    assert dict(world.sessions.find(token)) == {"a": 1}


def test_a_value_that_cannot_be_stored(make_world: MakeWorld) -> None:
    """It reaches the server as an error, before the head; nothing is kept."""
    world = make_world()

    with pytest.raises(InvalidValue, match="session\\['a'\\]"):
        world.visit(lambda request: request.session.update(a=[object()]) or "")
    assert world.sessions.count() == 0


def test_a_tween_may_look_too(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """One around the exception views, in both directions."""
    module: Any = types.ModuleType("module_of_a_tween")
    module.factory = counting_tween
    monkeypatch.setitem(sys.modules, "module_of_a_tween", module)

    world = make_world(
        configure=lambda config: config.add_tween("module_of_a_tween.factory", over=EXCVIEW)
    )

    world.visit(lambda request: "")

    assert world.values() == {"in": 2, "out": 1}


def counting_tween(handler: Callable[[Any], Any], registry: Any) -> Callable[[Any], Any]:
    def tween(request: Any) -> Any:
        request.session.add("in")
        response = handler(request)
        request.session.add("out")
        return response

    return tween


# Requests within requests.


@pytest.mark.parametrize("tweens", [True, False])
def test_a_subrequest(make_world: MakeWorld, tweens: bool) -> None:
    """It has a session of its own, of its own cookie; and each merges into the record."""
    world = make_world()
    cookie = _cookie(world.visit(write))

    def view(request: Any) -> str:
        if request.path == "/inner":
            request.session.add("n")
            return "inner"
        request.session.add("n")
        inner = Request.blank("/inner", headers={"Cookie": cookie})
        text: str = request.invoke_subrequest(inner, use_tweens=tweens).text
        return text

    assert world.visit(view).text == "inner"
    assert world.values() == {"a": 1, "n": 2}


@pytest.mark.parametrize("broken", ["", "create"])
def test_nothing_is_left_to_the_garbage_collector(make_world: MakeWorld, broken: str) -> None:
    """A session goes with its request, also where it could not be committed."""
    store = FlakyStore(MemoryStore(), lambda verb, _: Fault.UNAVAILABLE if verb == broken else None)
    world = make_world(store)
    left: list[Any] = []

    def view(request: Any) -> str:
        request.session.add("n")
        left.append(weakref.ref(request.session))
        return ""

    world.view = view
    gc.collect()
    gc.disable()
    try:
        call_wsgi(world.app, environ())
        assert left[0]() is None
    finally:
        gc.enable()


def _cookie(answer: Answer) -> str:
    line: str = answer.headers["Set-Cookie"]
    return line.partition(";")[0]
