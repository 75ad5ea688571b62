"""Every server of Quixote's, and WSGI's: the demo as a real process, restarted, killed, shared."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from .serving import DEMO, SERVERS, Browser, Server, environment, free_port

Start = Callable[..., Server]

STORES = {"sqlite": "sqlite:///sessions.db", "directory": "directory:///sessions"}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers of the demo: `start("scgi", "sqlite:///sessions.db")`; all are ended."""
    with contextlib.ExitStack() as stack:

        def run(kind: str, store: str = STORES["sqlite"], module: str = "demo") -> Server:
            server = SERVERS[kind](tmp_path, module, SESSIONS=store)
            stack.callback(server.end)
            return server

        yield run


@pytest.mark.parametrize("kind", SERVERS)
def test_the_demo(start: Start, kind: str) -> None:
    """The six pages do under each server what they do under any."""
    browser = Browser(start(kind).send)

    assert browser.go("/").session is None
    assert browser.go("/increment").counter == 1
    kept = browser.session
    assert kept is not None
    assert browser.go("/increment", "POST", f"csrf_token={browser.token}").counter == 2
    assert browser.go("/increment", "POST", "csrf_token=forged").status == 403
    assert browser.go("/incrementfail").status == 500
    assert browser.go("/").counter == 2
    assert browser.go("/logoutfail").status == 500
    assert browser.go("/").session == kept
    old = browser.cookie
    assert browser.go("/logout").session is None
    assert browser.cookie == ""
    assert Browser(browser.send, old).go("/").session is None
    assert browser.go("/logout").status == 200
    assert browser.go("/nothing").status == 404
    assert browser.go("/keep").session not in (None, kept)


@pytest.mark.parametrize("kind", SERVERS)
def test_bad_cookies(start: Start, kind: str) -> None:
    """No cookie stops a server, or makes it fail; the next visitor is served as ever."""
    server = start(kind, STORES["directory"])

    for value in ("/dev/null", "../sessions", "A" * 11, "\xff", "x" * 5000):
        if kind == "cgi" and value == "\xff":
            continue  # An environment holds bytes, and which ones depends on the web server.
        for name in ("id", "QX_session"):
            answer = server.send("GET", "/", cookie=f"{name}={value}")
            assert (value, answer.status, answer.all("set-cookie")) == (value, 200, [])
    assert Browser(server.send).go("/increment").counter == 1


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", [kind for kind in SERVERS if kind != "cgi"])
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_restarted(start: Start, kind: str, store: str, by: signal.Signals) -> None:
    """What was answered is there after a restart, and after kill -9; what ended stays ended."""
    server = start(kind, STORES[store])
    here, gone = Browser(server.send), Browser(server.send)
    here.go("/increment")
    gone.go("/increment")
    old = gone.cookie
    gone.go("/logout")

    server.end(by)
    server.start()

    assert here.go("/increment").counter == 2
    assert Browser(server.send, old).go("/").session is None


@pytest.mark.parametrize("kind", ["gunicorn", "scgi", "waitress"])
def test_killed_under_load(start: Start, kind: str) -> None:
    """kill -9 in the midst of writing, ten times: no increment that was answered is lost."""
    server = start(kind, STORES["directory"])
    browsers = [Browser(server.send) for _ in range(4)]
    for browser in browsers:
        browser.go("/increment")
    answered = [1] * len(browsers)
    sent = [1] * len(browsers)

    for _ in range(10):
        over = threading.Event()

        def load(number: int, over: threading.Event = over) -> None:
            cookie = browsers[number].cookie
            while not over.is_set():
                sent[number] += 1
                try:
                    if server.send("GET", "/increment", cookie=cookie).status == 302:
                        answered[number] += 1
                # What the killed server did not answer may have happened or not.
                except (OSError, HTTPException, AssertionError):
                    pass

        threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.15)
        server.end(signal.SIGKILL)
        over.set()
        for thread in threads:
            thread.join(30)
        server.start()

    for browser, least, most in zip(browsers, answered, sent, strict=True):
        assert least <= browser.go("/").counter <= most
    assert sum(answered) > 10


def test_servers_share_a_store(start: Start) -> None:
    """A visitor goes from one server to another, all of them running, and is known in each."""
    servers = [start(kind) for kind in SERVERS]
    browser = Browser(servers[0].send)

    for number, server in enumerate(servers, 1):
        browser.send = server.send
        assert browser.go("/increment").counter == number


@pytest.mark.parametrize("kind", ["gunicorn", "scgi", "cgi"])
def test_a_store_of_one_process(start: Start, kind: str) -> None:
    """Where each process would have sessions of its own, no page works, and the log says why."""
    server = start(kind, "memory://")

    assert server.send("GET", "/").status == 500
    assert "is for one process, and this server has several" in server.log


@pytest.mark.parametrize("kind", ["simple", "threaded", "waitress", "gunicorn-threads"])
def test_memory(start: Start, kind: str) -> None:
    """One process may keep its sessions in memory."""
    browser = Browser(start(kind, "memory://").send)

    browser.go("/increment")
    assert browser.go("/increment").counter == 2


def test_the_command(tmp_path: Path) -> None:
    """`python demo.py --port N STORE` prints its address, serves, and ends with Ctrl-C."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(DEMO / "demo.py"), "--port", str(port), "directory:///kept"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert f"http://127.0.0.1:{port}/" in process.stdout.readline()
        server: Any = SERVERS["cgi"](tmp_path, "demo")
        server.port = port
        browser = Browser(lambda *a, **k: _patient(Server.send, server, *a, **k))
        assert browser.go("/increment").counter == 1
        assert (tmp_path / "kept").is_dir()
    finally:
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=30)[0]
    assert (process.returncode, rest[-7:]) == (0, "Ended.\n")


@pytest.mark.parametrize(
    "store", ["nonsense://x", "sqlite:////not/there.db", "cookie:///not/there"]
)
def test_a_store_that_cannot_be(tmp_path: Path, store: str) -> None:
    """The command says so at once, and serves nothing."""
    done = subprocess.run(
        [sys.executable, str(DEMO / "demo.py"), "--port", str(free_port()), store],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert "demo.py: error: " in done.stderr
    assert "Traceback" not in done.stderr


def _patient(send: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """Send, as soon as the server listens."""
    stop = time.monotonic() + 30
    while True:
        try:
            return send(*args, **more)
        except ConnectionRefusedError:
            assert time.monotonic() < stop
            time.sleep(0.02)


def test_nothing_is_left(tmp_path: Path, start: Start) -> None:
    """Servers are ended with all their children; else later tests would meet them."""
    server = start("gunicorn")
    assert server.process is not None
    group = server.process.pid
    server.end()

    stop = time.monotonic() + 10
    while time.monotonic() < stop:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    raise AssertionError(f"processes of group {group} are still there")
