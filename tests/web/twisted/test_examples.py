"""Every installment of the tutorial, run as its first lines say, over loopback HTTP."""

from __future__ import annotations

import hashlib
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import pytest

from .processes import EXAMPLES, TWISTD, Browser, Server, running

pytestmark = pytest.mark.slow

Start = Callable[..., Server]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The examples, where they may keep sessions."""
    return shutil.copytree(EXAMPLES, tmp_path / "twisted", ignore=shutil.ignore_patterns("__*"))


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Start an example by its name, or twistd with these arguments."""
    with ExitStack() as stack:

        def start(name: str, *arguments: str) -> Server:
            listen = "tcp:0:interface=127.0.0.1"
            if name.endswith(".py"):
                command = [sys.executable, name, listen, *arguments]
            else:
                command = [*TWISTD, name, "--listen", listen, *arguments]
            return stack.enter_context(running(command, folder))

        yield start


def interrupt(server: Server, path: str, cookie: str = "") -> None:
    """Ask for a page, and go before it comes."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        line = f"Cookie: {cookie}\r\n" if cookie else ""
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{line}\r\n".encode())
        time.sleep(0.3)


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether it comes true in that time."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


# Asynchronous responses.


def test_asynchronous(start: Start) -> None:
    """The page comes later, others are served meanwhile; visits survive kill -9."""
    server = start("asynchronous.py", "0.4")
    began = time.monotonic()
    assert Browser(server).body() == b"Sorry to keep you waiting."
    assert time.monotonic() - began >= 0.4

    browser = Browser(server)
    assert browser.body("/visits") == b"Sorry to keep you waiting, for the 1. time."
    assert browser.body("/visits") == b"Sorry to keep you waiting, for the 2. time."
    server.restart()
    assert browser.body("/visits") == b"Sorry to keep you waiting, for the 3. time."


def test_asynchronous_deferred(start: Start) -> None:
    """By a Deferred, and by a coroutine that uses the session before and after it waits."""
    server = start("asynchronous_deferred.py", "0.2")
    assert Browser(server).body() == b"It was worth the wait."

    browser = Browser(server)
    assert browser.body("/visits") == b"When you came it was 0, and now it is 1."
    server.restart()
    assert browser.body("/visits") == b"When you came it was 1, and now it is 2."


def test_interrupted(start: Start) -> None:
    """Work for a client that has gone is called off, and what that changed is kept."""
    server = start("interrupted.py", "1.0")
    assert Browser(server).body() == b"You were patient."
    interrupt(server, "/")
    server.says("called off")

    browser = Browser(server)
    assert browser.body("/visits") == b"You were patient."
    # A session begins with a page that arrives.
    assert browser.cookies == {}
    assert browser.body("/patience") == b"You went 0 times."
    (cookie,) = browser.cookies.items()
    interrupt(server, "/visits", "=".join(cookie))
    server.says("(?s)called off.*called off")
    assert browser.body("/patience") == b"You went 1 times."


def test_logging_errors(start: Start) -> None:
    """The log has the reason why a response was interrupted, and whose session it was."""
    server = start("logging_errors.py", "0.6")
    assert Browser(server).body() == b"Nothing to log."
    browser = Browser(server)
    assert browser.body("/visits") == b"Nothing to log."
    assert "went before" not in server.log

    interrupt(server, "/")
    server.says("the client of / went before its page was ready")
    server.says("ConnectionDone")
    (cookie,) = browser.cookies.items()
    interrupt(server, "/visits", "=".join(cookie))
    said = server.says(r"the client of session ([-\w]{22}) went before its page was ready")
    assert cookie[1].startswith(said.group(1) + ".")


# WSGI.


def test_wsgi_stock(start: Start) -> None:
    """An application without sessions, as the stock server has it."""
    page = Browser(start("web", "--wsgi", "wsgi.hello")).get()

    assert (page.status, page.body) == (200, b"Hello from a thread.")
    assert page.all("Content-Type") == ["text/plain"]


def test_wsgi(start: Start) -> None:
    """An application finds its session in its environment, and keeps its own cookies."""
    server = start("sojourn", "--wsgi", "wsgi.visits", "--store", "sqlite:///../sessions.db")
    browser = Browser(server)
    assert browser.body() == b"Visit 1."
    assert set(browser.cookies) == {"seen", "id"}
    assert browser.body("/any/path") == b"Visit 2."
    server.restart()
    assert browser.body() == b"Visit 3."


def test_wsgi_beside_twisted(start: Start) -> None:
    """It is the very session that pages of Twisted's beside it have."""
    browser = Browser(start("wsgi.py"))

    assert browser.body("/hello") == b"Hello from a thread."
    assert browser.cookies == {}
    assert browser.body("/visits") == b"Visit 1."
    assert browser.body("/visits") == b"Visit 2."
    assert browser.body("/shown") == b"Twisted sees 2 visits."


# HTTP authentication.


def digest(challenge: str, user: str, password: str, path: str) -> str:
    """Return an Authorization header for a Digest challenge (RFC 2617)."""
    said = dict(re.findall(r'(\w+)="([^"]*)"', challenge))

    def md5(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()

    secret = md5(f"{user}:{said['realm']}:{password}")
    response = md5(f"{secret}:{said['nonce']}:00000001:c:auth:{md5(f'GET:{path}')}")
    return (
        f'Digest username="{user}", realm="{said["realm"]}", nonce="{said["nonce"]}", '
        f'uri="{path}", qop=auth, nc=00000001, cnonce="c", response="{response}", '
        f'opaque="{said["opaque"]}", algorithm="md5"'
    )


def test_http_auth_stock(start: Start) -> None:
    """Each request proves who it is, and each answer is followed by a logout."""
    server = start("web", "--path", ".")
    browser, path = Browser(server), "/http_auth.rpy"

    for _ in range(2):
        page = browser.get(path)
        assert (page.status, page.body) == (401, b"Unauthorized")
        (challenge,) = page.all("WWW-Authenticate")
        wrong = digest(challenge, "alice", "catfish", path)
        assert browser.get(path, Authorization=wrong).status == 401
        right = digest(challenge, "alice", "swordfish", path)
        assert browser.body(path, Authorization=right) == b"Hello, alice"
    assert eventually(lambda: server.log.count("logout of alice") == 2)


def test_http_auth(start: Start) -> None:
    """One request proves who it is; the cookie does from then on, in every process."""
    server = start("web", "--path", ".")
    browser, path = Browser(server), "/http_auth_kept.rpy"

    page = browser.get(path)
    assert (page.status, page.body, browser.cookies) == (401, b"Unauthorized", {})
    (challenge,) = page.all("WWW-Authenticate")
    wrong = digest(challenge, "alice", "catfish", path)
    assert browser.get(path, Authorization=wrong).status == 401
    assert browser.cookies == {}
    right = digest(challenge, "alice", "swordfish", path)
    assert browser.body(path, Authorization=right) == b"Hello, alice"
    assert list(browser.cookies) == ["id"]
    for _ in range(3):
        assert browser.body(path) == b"Hello, alice"
    server.restart()
    assert browser.body(path) == b"Hello, alice"
    assert "logout" not in server.log


# Sessions.


def shows(body: bytes) -> bytes:
    found = re.fullmatch(rb"This is session ([-\w]{22}|[0-9a-f]{64})", body)
    assert found, body
    return found.group(1)


def test_session_basics_stock(start: Start) -> None:
    """Show and expire, as the stock server has it: a restart ends all sessions."""
    server = start("web", "--path", ".")
    browser = Browser(server)
    first = shows(browser.body("/session_basics.rpy"))
    assert shows(browser.body("/session_basics.rpy")) == first
    server.restart()
    assert shows(browser.body("/session_basics.rpy")) != first


@pytest.mark.parametrize("how", ["sojourn", "web"])
def test_session_basics(start: Start, how: str) -> None:
    """The script as it is under `twistd sojourn`, or with `SessionResource` under `twistd web`."""
    store = ["--store", "sqlite:///../sessions.db"] if how == "sojourn" else []
    path = "/session_basics.rpy" if how == "sojourn" else "/session_basics_kept.rpy"
    server = start(how, "--path", ".", *store)
    browser = Browser(server)

    first = shows(browser.body(path))
    assert shows(browser.body(path)) == first
    assert browser.cookies["id"].encode().startswith(first + b".")
    server.restart()
    assert shows(browser.body(path)) == first

    ended = browser.get(path + "/expire")
    assert (ended.status, ended.body) == (200, b"It has ended.")
    assert browser.cookies == {}
    second = shows(browser.body(path))
    assert second != first
    assert shows(browser.body(path)) == second
    # Another browser has another session.
    assert shows(Browser(server).body(path)) not in (first, second)


@pytest.mark.parametrize(
    ("how", "path"),
    [
        ("sojourn", "/storing_objects.rpy"),
        ("web", "/storing_objects_kept.rpy"),
        ("sojourn", "/storing_objects_kept.rpy"),
    ],
    ids=["with cache()", "without cache()", "without cache(), twice"],
)
def test_storing_objects(start: Start, how: str, path: str) -> None:
    """ICounter(session) counts past one, with cache() and without it, and past a restart."""
    store = ["--store", "sqlite:///../sessions.db"] if how == "sojourn" else []
    server = start(how, "--path", ".", *store)
    browser, other = Browser(server), Browser(server)

    assert [browser.body(path) for _ in range(3)] == [b"Visit 1.", b"Visit 2.", b"Visit 3."]
    assert other.body(path) == b"Visit 1."
    server.restart()
    assert [browser.body(path) for _ in range(3)] == [b"Visit 4.", b"Visit 5.", b"Visit 6."]
    assert other.body(path) == b"Visit 2."


def test_storing_objects_stock(start: Start) -> None:
    """The same script under the stock server forgets at a restart."""
    server = start("web", "--path", ".")
    browser, path = Browser(server), "/storing_objects.rpy"

    assert [browser.body(path) for _ in range(3)] == [b"Visit 1.", b"Visit 2.", b"Visit 3."]
    server.restart()
    assert browser.body(path) == b"Visit 1."


def test_session_endings(start: Start) -> None:
    """Visited it lives on; not visited it ends, and who waits for that is told once."""
    server = start("session_endings.py", "1.5")
    browser = Browser(server)

    for number in range(1, 6):
        assert browser.body() == b"Visit %d." % number
        time.sleep(0.5)
    sid = browser.cookies["id"].partition(".")[0]
    assert "expired" not in server.log
    server.says(f"expired: {sid}")
    assert browser.body() == b"Visit 1."
    assert server.log.count(f"expired: {sid}") == 1


# CGI.


def test_scripts(start: Start) -> None:
    """A program, a script and a script handed to an interpreter share the session of the site."""
    server = start("scripts.py")
    browser = Browser(server)

    page = browser.get("/date")
    assert (page.status, page.body) == (200, b"%d\n" % date.today().year)
    assert browser.cookies == {"seen": "yes"}
    assert browser.body("/visits") == b"Visit 1.\n"
    assert set(browser.cookies) == {"seen", "id"}
    assert browser.body("/filtered") == b"Visit 2.\n"
    assert browser.body("/visits/any/path?a=b") == b"Visit 3.\n"
    assert browser.body("/shown") == b"Twisted sees 3 visits."
    server.restart()
    assert browser.body("/visits") == b"Visit 4.\n"


@pytest.mark.parametrize("how", ["web", "sojourn"])
def test_scripts_of_a_folder(start: Start, how: str) -> None:
    """The script needs nothing of Twisted's: the stock server runs it too."""
    store = ["--store", "sqlite:///../sessions.db"] if how == "sojourn" else []
    browser = Browser(start(how, "--path", ".", *store))

    assert browser.body("/visits.cgi") == b"Visit 1.\n"
    assert browser.body("/visits.cgi") == b"Visit 2.\n"


def test_every_example_is_here() -> None:
    """Each file of the folder is named in this module."""
    text = Path(__file__).read_text()
    helpers = {"serving.py", "counting.py", "httpd.password", "README.md"}
    served = {
        path.name
        for path in EXAMPLES.iterdir()
        if path.is_file() and path.suffix != ".pyc" and path.name not in helpers
    }

    assert served
    assert [name for name in served if name.rpartition(".")[0] not in text] == []
