"""The WSGI middleware: when it commits, whatever way an application takes to answer (PEP 3333)."""

from __future__ import annotations

import io
import logging
import sys
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import httpx
import pytest

from sojourn.errors import StoreUnavailable, TooManySessions
from sojourn.manager import SessionManager
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Fault, FlakyStore, RecordingStore
from sojourn.web.wsgi import KEY, SessionMiddleware

from .kit import Answer, call_wsgi, environ
from .serving import waitress

OK = [("Content-Type", "text/plain")]


class Served:
    """One application behind the middleware."""

    def __init__(self, app: Any, store: Any = None, **settings: Any) -> None:
        self.store = RecordingStore(store or MemoryStore())
        self.sessions = SessionManager(self.store, **settings)
        self.app = SessionMiddleware(app, self.sessions)
        self.cookie = ""

    def get(self, *, valid: bool = True, **kwargs: Any) -> Answer:
        """Make a request, checked against PEP 3333, and keep the cookie."""
        app = validator(self.app) if valid else self.app
        call = {key: kwargs.pop(key) for key in ("on_event", "read") if key in kwargs}
        answer = call_wsgi(app, environ(cookie=self.cookie, **kwargs), **call)
        if answer.token:
            self.cookie = f"id={answer.token}"
        return answer

    def values(self) -> dict[str, Any]:
        """Return what the next request sees."""
        return dict(self.sessions.session(self.cookie))

    def start(self, **values: Any) -> None:
        """Give the visitor a session with those values."""
        session = self.sessions.session()
        session.update(values)
        self.cookie = f"id={self.sessions.commit(session).token}"
        self.store.calls.clear()


# Bodies that come bit by bit.


def test_a_generator_commits_before_its_first_bytes() -> None:
    """What it did until then is in the store when the head leaves, and the cookie is in it."""

    def app(env: Any, start: Any) -> Iterator[bytes]:
        start("200 OK", OK)
        env[KEY]["a"] = 1
        yield b""
        env[KEY]["b"] = 2
        yield b"one"
        yield b"two"

    served = Served(app)
    seen: list[list[str]] = []
    answer = served.get(on_event=lambda what: seen.append(served.store.verbs))

    assert answer.body == b"onetwo"
    assert answer.token
    assert seen == [["create"]] * 3
    assert served.values() == {"a": 1, "b": 2}


def test_a_generator_that_writes_late() -> None:
    """What the body changes after the head has left is committed when it ends."""

    def app(env: Any, start: Any) -> Iterator[bytes]:
        start("200 OK", OK)
        yield env[KEY]["a"].encode()
        env[KEY].add("n")
        yield b"two"

    served = Served(app)
    served.start(a="one")

    assert served.get().body == b"onetwo"
    assert served.store.verbs == ["load", "replace"]
    assert served.values() == {"a": "one", "n": 1}


def test_a_generator_that_is_not_finished() -> None:
    """The client goes in the middle: the server closes the body, and what was done is kept."""
    closed = []

    def app(env: Any, start: Any) -> Iterator[bytes]:
        start("200 OK", OK)
        try:
            for number in range(10):
                env[KEY]["n"] = number
                yield b"x"
        finally:
            closed.append(True)

    served = Served(app)
    served.start(n=-1)

    served.get(read=3)

    assert closed == [True]
    assert served.values() == {"n": 3}


def test_a_body_that_is_never_asked_for() -> None:
    """The client has gone before the first byte: what the handler finished is kept."""

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"x"])

    def app(env: Any, start: Any) -> Any:
        env[KEY]["n"] = 1
        start("200 OK", OK)
        return Body()

    served = Served(app)
    served.start(n=0)
    served.app(environ(cookie=served.cookie), lambda *args: lambda data: None).close()  # type: ignore[attr-defined]

    assert served.values() == {"n": 1}


@pytest.mark.parametrize("later", ["a", "state", "flash", "login"])
def test_a_new_session_after_the_head(later: str, caplog: pytest.LogCaptureFixture) -> None:
    """No cookie can be set any more: it is logged, and no record is left that nobody can open."""

    def app(env: Any, start: Any) -> Iterator[bytes]:
        start("200 OK", OK)
        session = env[KEY]
        values = session.get("x")
        yield b"one"
        assert values is None
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
    answer = served.get()

    assert answer.all("Set-Cookie") == []
    assert served.store.count(status=None) == 0
    assert len(caplog.records) == 1
    assert "first written to after the head" in caplog.text
    assert "'/'" in caplog.text


def test_logout_after_the_head() -> None:
    """L6: the end of a session is carried out even where it comes too late for the cookie."""

    def app(env: Any, start: Any) -> Iterator[bytes]:
        start("200 OK", OK)
        yield b"one"
        env[KEY].logout()
        env[KEY].flash("Bye")

    served = Served(app)
    served.start(a=1)
    served.get()

    assert served.values() == {}
    assert served.sessions.session(served.cookie).ended_before is not None
    assert served.store.count() == 0


def test_renewed_after_the_head(caplog: pytest.LogCaptureFixture) -> None:
    """A renewal that cannot be told to the browser does not happen; the log says so."""

    def app(env: Any, start: Any) -> Iterator[bytes]:
        start("200 OK", OK)
        yield b"one"
        env[KEY].renew()
        env[KEY]["b"] = 2

    served = Served(app)
    served.start(a=1)
    before = served.sessions.store.list()[0]
    served.get()
    after = served.sessions.store.list()[0]

    assert [r.levelno for r in caplog.records if r.levelno > logging.DEBUG] == [logging.ERROR]
    assert "renewed" in caplog.text
    assert after.version == before.version + 1
    assert after.secret_hash == before.secret_hash


def test_logged_in_after_the_head(caplog: pytest.LogCaptureFixture) -> None:
    """A login whose cookie cannot be sent any more does not happen, nor what came with it."""

    def app(env: Any, start: Any) -> Iterator[bytes]:
        start("200 OK", OK)
        yield b"one"
        env[KEY].login("alice")

    served = Served(app)
    served.start(a=1)
    before = served.sessions.store.list()
    served.get()

    assert served.sessions.store.list() == before
    assert "logged in after the head" in caplog.text


def test_the_store_fails_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """The head has left, so that the failure can only be logged; the body comes whole."""

    def app(env: Any, start: Any) -> Iterator[bytes]:
        start("200 OK", OK)
        yield b"one"
        env[KEY]["a"] = 2
        yield b"two"

    flaky = FlakyStore(
        MemoryStore(), lambda verb, _: Fault.UNAVAILABLE if verb == "replace" else None
    )
    served = Served(app, flaky)
    served.start(a=1)

    assert served.get().body == b"onetwo"
    assert "what the body changed is lost" in caplog.text
    assert served.values() == {"a": 1}


def test_the_store_fails_before_the_first_bytes() -> None:
    """A generator's session cannot be loaded: the clear 503 comes in place of its answer."""

    def app(env: Any, start: Any) -> Iterator[bytes]:
        start("200 OK", OK)
        yield env[KEY]["a"]
        yield b"never"

    flaky = FlakyStore(MemoryStore(), lambda verb, _: Fault.UNAVAILABLE if verb == "load" else None)
    served = Served(app, flaky)
    served.start(a=1)
    answer = served.get()

    assert (answer.status, answer.one("Retry-After")) == (503, "5")
    assert b"never" not in answer.body


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("chunks", [0, 1])
def test_a_generator_that_raises(keep: bool, chunks: int) -> None:
    """Before its first bytes or after them: nothing more is kept, unless the operator wants it."""

    def app(env: Any, start: Any) -> Iterator[bytes]:
        start("200 OK", OK)
        for _ in range(chunks):
            yield b"x"
        env[KEY]["a"] = 2
        raise ZeroDivisionError

    served = Served(app, commit_on_error=keep)
    served.start(a=1)

    with pytest.raises(ZeroDivisionError):
        served.get(valid=False)
    assert served.values() == {"a": 2 if keep else 1}


# write() and start_response.


def test_write() -> None:
    """The old write() callable: the session is committed before its first bytes."""

    def app(env: Any, start: Any) -> list[bytes]:
        write = start("200 OK", OK)
        env[KEY]["a"] = 1
        write(b"one ")
        env[KEY]["a"] = 2
        write(b"two ")
        return [b"three"]

    served = Served(app)
    seen: list[list[str]] = []
    answer = served.get(on_event=lambda what: seen.append(served.store.verbs))

    assert answer.body == b"one two three"
    assert answer.token
    assert seen[0] == ["create"]


def test_what_comes_between_writes_is_committed_at_the_end() -> None:
    """After write() has sent the head, the list that follows is the end of a body."""

    def app(env: Any, start: Any) -> list[bytes]:
        write = start("200 OK", OK)
        write(b"one")
        env[KEY]["a"] = 2
        return []

    served = Served(app)
    served.start(a=1)
    served.get()

    assert served.values() == {"a": 2}


@pytest.mark.parametrize("catches", [False, True])
def test_a_write_that_is_refused(catches: bool) -> None:
    """Where the commit fails at write(), the client gets the 503, and nothing after it."""

    def app(env: Any, start: Any) -> list[bytes]:
        write = start("200 OK", OK)
        env[KEY]["a"] = 1
        for _ in range(2):
            try:
                write(b"one")
            except Exception:
                if not catches:
                    raise
        return [b"more"]

    flaky = FlakyStore(
        MemoryStore(), lambda verb, _: Fault.UNAVAILABLE if verb == "create" else None
    )
    answer = Served(app, flaky).get()

    assert answer.status == 503
    assert answer.all("Set-Cookie") == []
    assert b"one" not in answer.body
    assert b"more" not in answer.body
    assert answer.one("Content-Length") == str(len(answer.body))


def test_changes_after_start_response() -> None:
    """start_response only notes the head: what is changed until the body leaves is in time."""

    def app(env: Any, start: Any) -> list[bytes]:
        start("200 OK", OK)
        env[KEY]["a"] = 1
        return [b"x"]

    served = Served(app)

    assert served.get().token
    assert served.values() == {"a": 1}


def test_start_response_twice() -> None:
    """A second head without exc_info is the application's mistake (PEP 3333)."""

    def app(env: Any, start: Any) -> list[bytes]:
        start("200 OK", OK)
        start("200 OK", OK)
        return [b"x"]

    with pytest.raises(AssertionError, match="second time"):
        Served(app).get(valid=False)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("listed", [True, False])
def test_exc_info(keep: bool, listed: bool) -> None:
    """An error page by exc_info replaces the head and keeps nothing of what failed.

    What it shows may come from the session all the same, so no cache may keep it.
    """

    def app(env: Any, start: Any) -> Any:
        start("200 OK", OK)
        try:
            env[KEY]["a"] = 2
            raise ZeroDivisionError
        except ZeroDivisionError:
            headers = [*OK, ("Cache-Control", "public")]
            start("500 Oh no", headers, sys.exc_info())
        return [b"sorry"] if listed else iter([b"sorry"])

    served = Served(app, commit_on_error=keep)
    served.start(a=1)
    answer = served.get()

    assert (answer.status, answer.body) == (500, b"sorry")
    assert served.values() == {"a": 2 if keep else 1}
    assert answer.one("Vary") == "Cookie"
    assert answer.one("Cache-Control") == "private"


def test_exc_info_after_the_head() -> None:
    """Too late to change anything: the server raises it, and nothing is kept."""

    def app(env: Any, start: Any) -> Iterator[bytes]:
        start("200 OK", OK)
        yield b"one"
        env[KEY]["a"] = 2
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            start("500 Oh no", OK, sys.exc_info())
        yield b"never"

    served = Served(app)
    served.start(a=1)

    with pytest.raises(ZeroDivisionError):
        served.get(valid=False)
    assert served.values() == {"a": 1}


# Bodies without bytes, and those of the server.


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("body", [[], [b""], (), iter([]), iter([b"", b""])], ids=repr)
def test_empty_bodies(body: Any, method: str, status: str) -> None:
    """An answer without bytes has its cookie like any other."""

    def app(env: Any, start: Any) -> Any:
        env[KEY]["a"] = 1
        start(status, [])
        return body

    answer = Served(app).get(valid=False, method=method)

    assert answer.body == b""
    assert answer.token


def test_file_wrapper() -> None:
    """A file that the server wraps is sent whole, and closed."""
    file = io.BytesIO(b"x" * 20000)

    def app(env: Any, start: Any) -> Any:
        env[KEY]["a"] = 1
        start("200 OK", OK)
        return env["wsgi.file_wrapper"](file, 8192)

    served = Served(app)
    answer = served.get(valid=False, **{"wsgi.file_wrapper": FileWrapper})

    assert len(answer.body) == 20000
    assert answer.token
    assert file.closed


def test_a_body_is_closed_once() -> None:
    """The application's close() is called once, also when it raises."""
    calls = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"x"])

        def close(self) -> None:
            calls.append(1)
            raise ZeroDivisionError

    def app(env: Any, start: Any) -> Any:
        env[KEY]["a"] = 2
        start("200 OK", OK)
        return Body()

    served = Served(app)
    served.start(a=1)
    with pytest.raises(ZeroDivisionError):
        served.get(valid=False)

    assert calls == [1]
    assert served.values() == {"a": 2}


def test_no_cycle() -> None:
    """A request leaves nothing to the garbage collector: its session goes with it."""
    seen: list[weakref.ref[Any]] = []

    def app(env: Any, start: Any) -> list[bytes]:
        env[KEY]["a"] = 1
        seen.append(weakref.ref(env[KEY]))
        start("200 OK", OK)
        return [b"x"]

    Served(app).get(valid=False)

    assert [one() for one in seen] == [None]


# A real server.


def test_waitress() -> None:
    """Behind a real server: a session over several requests, late writes and a logout."""

    def app(env: Any, start: Any) -> Any:
        session, path = env[KEY], env["PATH_INFO"]
        start("200 OK", OK)
        if path == "/stream":

            def body() -> Iterator[bytes]:
                yield str(session.get("n")).encode()
                session.add("n", 10)
                yield b" more"

            return body()
        if path == "/out":
            session.logout()
        elif path == "/add":
            session.add("n")
        elif path == "/fail":
            session.add("n", 100)
            raise ZeroDivisionError
        elif path == "/file":
            session.add("n")
            return env["wsgi.file_wrapper"](io.BytesIO(b"x" * 100_000))
        return [] if env["REQUEST_METHOD"] == "HEAD" else [str(session.get("n")).encode()]

    sessions = SessionManager()
    with (
        waitress(SessionMiddleware(app, sessions)) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        assert client.get("/").text == "None"
        assert client.get("/add").text == "1"
        assert client.get("/stream").text == "1 more"
        assert client.get("/fail").status_code == 500
        assert client.get("/").text == "11"
        assert len(client.get("/file").content) == 100_000
        assert client.head("/add").status_code == 200
        assert client.get("/").text == "13"
        kept = dict(client.cookies)
        client.get("/out")
        assert dict(client.cookies) == {}
        client.cookies.update(kept)
        assert client.get("/").text == "None"


def test_a_refused_login_leaves_the_answer_to_the_application() -> None:
    """Who catches TooManySessions answers with a page of their own; the rest is still kept."""

    def app(env: Any, start: Any) -> list[bytes]:
        session = env[KEY]
        session["asked"] = True
        session.login("alice")
        try:
            served.sessions.commit(session)
        except TooManySessions:
            start("409 Conflict", OK)
            return [b"Sign out somewhere else first."]
        start("200 OK", OK)
        return [b"welcome"]

    served = Served(app, max_sessions=1, on_too_many="deny")
    assert served.get().body == b"welcome"
    served.cookie = ""
    answer = served.get()

    assert answer.status == 409
    assert answer.body == b"Sign out somewhere else first."
    session = served.sessions.session(served.cookie)
    assert (session["asked"], session.user) == (True, None)


def test_a_store_that_hangs_is_asked_once_a_request() -> None:
    """The limits of time of several looks at the session do not add up."""

    def app(env: Any, start: Any) -> list[bytes]:
        for _ in range(3):
            with suppress(StoreUnavailable):
                env[KEY].get("a")
        start("200 OK", OK)
        return [b"without"]

    flaky = FlakyStore(MemoryStore(), lambda verb, _: Fault.UNAVAILABLE if verb == "load" else None)
    served = Served(app, flaky)
    served.start(a=1)
    served.store.calls.clear()
    served.get()
    once = len(served.store.calls)
    served.store.calls.clear()
    with suppress(StoreUnavailable):
        served.sessions.session(served.cookie).get("a")

    assert len(served.store.calls) == once


@pytest.mark.parametrize("keep", [False, True])
def test_an_error_page_of_the_framework_keeps_nothing(keep: bool) -> None:
    """What ended in a 5xx is not kept, whoever made the page; commit_on_error keeps it."""

    def app(env: Any, start: Any) -> list[bytes]:
        env[KEY].add("a")
        start("500 Internal Server Error", OK)
        return [b"sorry"]

    served = Served(app, commit_on_error=keep)
    served.start(a=1)
    answer = served.get()

    assert (answer.status, answer.body) == (500, b"sorry")
    assert served.values() == {"a": 2 if keep else 1}


def test_a_form_of_another_session_is_answered_with_403() -> None:
    """An application may leave CsrfError to the middleware; nothing of the request is kept."""

    def app(env: Any, start: Any) -> list[bytes]:
        env[KEY]["a"] = 2
        env[KEY].check_csrf("of somebody else")
        raise AssertionError

    served = Served(app)
    served.start(a=1)
    answer = served.get()

    assert answer.status == 403
    assert b"form" in answer.body
    assert served.values() == {"a": 1}


def test_a_stream_whose_session_ends_goes_on_without_it() -> None:
    """After a logout elsewhere a long connection stands for nobody any more."""
    users = []

    def app(env: Any, start: Any) -> Iterator[bytes]:
        session = env[KEY]
        session.login("alice")
        start("200 OK", OK)
        yield b"one"
        served.sessions.end(session.sid)
        session["a"] = 1
        assert served.sessions.commit(session, late=True).dropped == "gone"
        users.append((session.user, dict(session)))

    served = Served(app)
    served.get()

    assert users == [(None, {})]


def test_an_answer_of_ours_to_head_has_no_body() -> None:
    """Or the rest of a kept connection would be out of step."""

    def app(env: Any, start: Any) -> list[bytes]:
        env[KEY].check_csrf("nothing")
        raise AssertionError

    served = Served(app)
    served.start(a=1)
    answer = served.get(method="HEAD")

    assert (answer.status, answer.body) == (403, b"")
