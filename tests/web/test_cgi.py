"""`cgi_session`: scripts in processes of their own, given what a web server gives."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sojourn.errors import ConfigurationError
from sojourn.manager import SessionManager
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Clock, Fault, FlakyStore
from sojourn.web.cgi import cgi_session
from tests.web.kit import Answer

Run = Callable[..., Answer]


def environ(cookie: str = "", **more: str) -> dict[str, str]:
    """The variables of a request (RFC 3875, section 4.1)."""
    made = {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        "REMOTE_ADDR": "192.0.2.7",
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "/visits.cgi",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
    }
    return made | ({"HTTP_COOKIE": cookie} if cookie else {}) | more


def answer_of(raw: bytes) -> Answer:
    """What a web server reads from a script."""
    head, _, body = raw.partition(b"\r\n\r\n")
    headers = [
        (name, value.strip())
        for name, _, value in (line.partition(":") for line in head.decode("latin-1").split("\r\n"))
    ]
    status = next((value for name, value in headers if name == "Status"), "200")
    return Answer(int(status[:3]), headers, body)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a script as a web server does; `sessions` is there for it, in a file."""

    def run(script: str, cookie: str = "", **more: str) -> Answer:
        path = tmp_path / "script.cgi"
        path.write_text(
            "import sys\n"
            "from sojourn import SessionManager\n"
            "from sojourn.web.cgi import cgi_session\n"
            f"sessions = SessionManager('sqlite:///{tmp_path}/sessions.db')\n"
            + textwrap.dedent(script)
        )
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        done = subprocess.run(
            [sys.executable, str(path)],
            env=kept
            | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            | environ(cookie, **more),
            capture_output=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr.decode()
        assert done.stderr == b""
        return answer_of(done.stdout)

    return run


VISITS = """
with cgi_session(sessions) as session:
    print("Content-Type: text/plain")
    print()
    print(f"visit {session.add('visits')}")
"""


def test_processes_share_a_session(run: Run) -> None:
    """Each request is a process; the second and third find the session of the first."""
    first = run(VISITS)
    cookie = f"id={first.token}"
    second, third = run(VISITS, cookie), run(VISITS, cookie)

    assert [one.body for one in (first, second, third)] == [
        b"visit 1\n",
        b"visit 2\n",
        b"visit 3\n",
    ]
    assert first.one("Content-Type") == "text/plain"
    assert "HttpOnly" in (first.one("Set-Cookie") or "")
    assert first.one("Cache-Control") == "no-store, private"
    assert second.token == third.token == ""
    assert first.one("Status") is None


def test_what_the_script_prints_passes_through(run: Run) -> None:
    """Status, several headers of one name, bytes and a session that was not looked at."""
    answer = run(
        r"""
        with cgi_session(sessions) as session:
            print("Status: 404 Not Here\nSet-Cookie: a=1\nSet-Cookie: b=2")
            print("Content-Type: image/png\r\n")
            sys.stdout.buffer.write(b"\x89PNG\n\n\x00")
        """
    )

    assert (answer.status, answer.body) == (404, b"\x89PNG\n\n\x00")
    assert answer.all("Set-Cookie") == ["a=1", "b=2"]
    assert answer.one("Vary") is None


def test_its_own_cookies_and_the_sessions(run: Run) -> None:
    """A script that sets cookies keeps them beside the one of a new session."""
    answer = run(
        """
        with cgi_session(sessions) as session:
            session["a"] = 1
            print("Set-Cookie: mine=1\\nLocation: /elsewhere\\n")
        """
    )

    names = [line.partition("=")[0] for line in answer.all("Set-Cookie")]
    assert names == ["mine", "id"]
    # A status would turn off what the server does for a Location.
    assert (answer.one("Status"), answer.one("Location")) == (None, "/elsewhere")


def test_a_session_made_in_the_middle_of_the_page(run: Run) -> None:
    """What was printed before it is held back, so that its cookie can still be set."""
    script = """
        with cgi_session(sessions) as session:
            print("Content-Type: text/plain")
            print()
            print("a page")
            print(session.add("visits"))
            sys.exit()
        """
    first = run(script)

    assert first.body == b"a page\n1\n"
    assert run(script, f"id={first.token}").body == b"a page\n2\n"


def test_https(run: Run) -> None:
    """The server says so with HTTPS=on; then the cookie is the secure one."""
    answer = run(VISITS, HTTPS="on")

    assert (answer.one("Set-Cookie") or "").startswith("__Host-id=")
    assert "; Secure" in (answer.one("Set-Cookie") or "")


# In this process, where a store and a clock can be handed in.


down = Fault.UNAVAILABLE


def serve(sessions: SessionManager, script: Callable[[Any], object], cookie: str = "") -> Answer:
    out = io.BytesIO()
    with cgi_session(sessions, environ(cookie), out) as session:
        script(session)
    return answer_of(out.getvalue())


def page(session: Any) -> None:
    print("Content-Type: text/plain\n")
    print(session.add("visits"))


def test_the_head_waits_for_the_commit() -> None:
    """A store that fails at the commit makes a 503 of the page, and nothing else is sent."""
    store = FlakyStore(MemoryStore(), lambda verb, _: down if verb == "create" else None)
    sessions = SessionManager(store, clock=Clock())

    answer = serve(sessions, page)

    assert answer.status == 503
    assert answer.body.startswith(b"Your session cannot be reached")
    assert answer.all("Set-Cookie") == []


def test_a_store_that_is_down_at_load() -> None:
    """A script that uses the session answers 503, one that does not goes on."""
    faults: list[Fault] = []
    store = FlakyStore(MemoryStore(), lambda *_: faults[0] if faults else None)
    sessions = SessionManager(store, clock=Clock())
    cookie = f"id={serve(sessions, page).token}"
    faults.append(down)

    assert serve(sessions, page, cookie).status == 503
    assert serve(sessions, lambda _: print("A: b\n\nplain"), cookie).body == b"plain\n"


def test_an_error_keeps_nothing() -> None:
    """An exception leaves the block, nothing is sent, and nothing is kept."""
    store = MemoryStore()
    sessions = SessionManager(store, clock=Clock())
    out = io.BytesIO()

    def fails() -> None:
        with cgi_session(sessions, environ(), out) as session:
            page(session)
            raise LookupError

    with pytest.raises(LookupError):
        fails()
    assert out.getvalue() == b""
    assert store.count() == 0


def test_a_5xx_keeps_nothing() -> None:
    """An error page of the script's own is sent, and what was done before it is not kept."""
    store = MemoryStore()

    def fails(session: Any) -> None:
        session["a"] = 1
        print("Status: 500 Oh\n\nsorry")

    answer = serve(SessionManager(store, clock=Clock()), fails)

    assert (answer.status, answer.body, store.count()) == (500, b"sorry\n", 0)


def test_flushing_sends_and_what_comes_later_is_kept() -> None:
    """A page that flushes leaves bit by bit; a session that was there is committed at the end."""
    store = MemoryStore()
    sessions = SessionManager(store, clock=Clock())
    cookie = f"id={serve(sessions, page).token}"
    out = io.BytesIO()

    with cgi_session(sessions, environ(cookie), out) as session:
        print("A: b\n\none", flush=True)
        sent = out.getvalue()
        session.add("visits")
        print("two")

    assert sent.endswith(b"\r\n\r\none\n")
    assert out.getvalue() == sent + b"two\n"
    assert serve(sessions, page, cookie).body == b"3\n"


def test_a_long_page_is_not_held_in_memory() -> None:
    """After 64 KiB it is on its way, before the script has ended."""
    out = io.BytesIO()

    with cgi_session(SessionManager(clock=Clock()), environ(), out):
        print("A: b\n")
        for _ in range(65):
            print("x" * 1023)
        sent = len(out.getvalue())

    assert sent > 64 * 1024


@pytest.mark.parametrize(
    ("printed", "message"),
    [("", "printed nothing"), ("Hello world\n\nx", "'Hello world' where its head belongs")],
)
def test_no_head(printed: str, message: str) -> None:
    """A script that prints no head is told so, in the server's log."""
    with pytest.raises(ConfigurationError, match=message):
        serve(SessionManager(clock=Clock()), lambda _: print(printed, end=""))


def test_standard_output_comes_back() -> None:
    """After the block printing is what it was before."""
    before = sys.stdout
    serve(SessionManager(clock=Clock()), page)

    assert sys.stdout is before
