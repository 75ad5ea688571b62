"""Quixote's servers, and those of WSGI, as real processes; and a browser for each of them."""

from __future__ import annotations

import atexit
import contextlib
import functools
import http.client
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import msgspec
import pytest

ROOT = Path(__file__).parent.parent.parent.parent
DEMO = ROOT / "examples" / "quixote"
HERE = Path(__file__).parent
PATIENCE = 30.0


class Answer(msgspec.Struct):
    """What came back."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "src"), str(DEMO), str(HERE)])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **more}


def missing(package: str) -> NoReturn:
    """Skip, or fail where the environment says that it is there."""
    variable = f"SOJOURN_TEST_{package.upper()}"
    if os.environ.get(variable):
        pytest.fail(f"{variable} is set, and {package} is not installed")
    pytest.skip(f"{package} NOT TESTED: it is not installed, and cannot be built here")


class Server:
    """One server, serving an application of a module with `create_publisher` and `make_app`.

    Attributes:
        processes: whether it has several.
        threads: whether requests of it run in several threads.
    """

    package = "quixote"
    options: tuple[str, ...] = ()

    def __init__(self, folder: Path, module: str, **env: str) -> None:
        self.folder = folder
        self.module = module
        self.env = environment(**env)
        if importlib.util.find_spec(self.package) is None:
            built = self.build()
            if built is None:
                missing(self.package)
            self.env["PYTHONPATH"] += os.pathsep + built
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def command(self) -> list[str]:
        """Return the arguments of Python."""
        raise NotImplementedError

    def build(self) -> str | None:
        """Return where its package was put for these tests, which do not find it installed."""
        return None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.command()],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # So that all its children can be ended with it, by the id of their group.
                start_new_session=True,
            )
        stop = time.monotonic() + PATIENCE
        while not self._listens():
            if self.process.poll() is not None or time.monotonic() > stop:
                self.end(signal.SIGKILL)
                raise AssertionError(f"it does not answer:\n{self.log}")
            time.sleep(0.02)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def end(self, by: signal.Signals = signal.SIGTERM) -> None:
        """End it and its children by a signal."""
        process, self.process = self.process, None
        if process is None:
            return
        # The whole group, for SCGI's and gunicorn's children.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, by)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        # Its children may take a moment longer, and one that is still about would be met.
        stop = time.monotonic() + PATIENCE
        while self._listens():
            assert time.monotonic() < stop, f"somebody still listens at {self.port}"
            time.sleep(0.005)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def send(
        self, method: str, path: str, cookie: str = "", body: str = "", agent: str = "test"
    ) -> Answer:
        """Make one request, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        headers = {"User-Agent": agent, "Connection": "close"}
        if cookie:
            headers["Cookie"] = cookie
        if method == "POST":
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            connection.request(method, path, body.encode() if method == "POST" else None, headers)
            response = connection.getresponse()
            return Answer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()


class Simple(Server):
    """`python -m quixote run`: one process, one thread."""

    def command(self) -> list[str]:
        return ["-m", "quixote", "run", *self._where(), "--app", self.module]

    def _where(self) -> tuple[str, ...]:
        return ("--host", "127.0.0.1", "--port", str(self.port))


class Threaded(Simple):
    """Threads for the clients, and one for the application."""

    def command(self) -> list[str]:
        return ["-m", "quixote.server.threaded_server", *self._where(), "--app", self.module]


class Scgi(Simple):
    """Processes that are forked as they are needed; what speaks HTTP stands before it."""

    package = "scgi"

    def build(self) -> str | None:
        return _built_scgi()

    def command(self) -> list[str]:
        factory = f"{self.module}.create_publisher"
        return ["-m", "quixote.server.scgi_server", *self._where(), "--factory", factory]

    def send(
        self, method: str, path: str, cookie: str = "", body: str = "", agent: str = "test"
    ) -> Answer:
        head = {"CONTENT_LENGTH": str(len(body)), "SCGI": "1", **variables(method, path, cookie)}
        head["HTTP_USER_AGENT"] = agent
        packed = "".join(f"{name}\0{value}\0" for name, value in head.items()).encode("latin-1")
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as connection:
            connection.sendall(b"%d:%s,%s" % (len(packed), packed, body.encode()))
            received = b"".join(iter(lambda: connection.recv(65536), b""))
        return parsed(received)


class Cgi(Server):
    """One process for each request."""

    def start(self) -> None:
        """Nothing runs yet."""

    def send(
        self, method: str, path: str, cookie: str = "", body: str = "", agent: str = "test"
    ) -> Answer:
        env = {**self.env, "CONTENT_LENGTH": str(len(body)), **variables(method, path, cookie)}
        env["HTTP_USER_AGENT"] = agent
        env["GATEWAY_INTERFACE"] = "CGI/1.1"
        done = subprocess.run(
            [sys.executable, str(DEMO / "demo.cgi")],
            cwd=self.folder,
            env=env,
            input=body.encode(),
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        with (self.folder / "log").open("ab") as log:
            log.write(done.stderr)
        assert done.returncode == 0, done.stderr.decode()
        return parsed(done.stdout)


class Gunicorn(Server):
    """WSGI, in four processes."""

    package = "gunicorn"
    options = ("--workers", "4")

    def command(self) -> list[str]:
        where = f"127.0.0.1:{self.port}"
        more = ("--bind", where, "--no-control-socket", "--log-level", "warning")
        return ["-m", "gunicorn", *self.options, *more, f"{self.module}:make_app()"]


class GunicornThreads(Gunicorn):
    """WSGI, in one process with eight threads."""

    options = ("--workers", "1", "--threads", "8")


class Waitress(Server):
    """WSGI, in one process with eight threads."""

    package = "waitress"

    def command(self) -> list[str]:
        where = f"--listen=127.0.0.1:{self.port}"
        return ["-m", "waitress", where, "--threads=8", "--call", f"{self.module}:make_app"]


@functools.cache
def _built_scgi() -> str | None:
    """Build scgi, which needs a C compiler and so is not among what the tests install."""
    path = tempfile.mkdtemp(prefix="scgi-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    try:
        subprocess.run(
            [*pip, "--no-deps", "--retries", "1", "--target", path, "scgi==2.2"],
            check=True,
            capture_output=True,
            timeout=100,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return path


SERVERS: dict[str, type[Server]] = {
    "simple": Simple,
    "threaded": Threaded,
    "scgi": Scgi,
    "cgi": Cgi,
    "gunicorn": Gunicorn,
    "gunicorn-threads": GunicornThreads,
    "waitress": Waitress,
}


def variables(method: str, path: str, cookie: str) -> dict[str, str]:
    """Return what a web server tells by CGI or SCGI."""
    url = urlsplit(path)
    told = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": url.path,
        "QUERY_STRING": url.query,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.0",
        "REMOTE_ADDR": "127.0.0.1",
    }
    if cookie:
        told["HTTP_COOKIE"] = cookie
    if method == "POST":
        told["CONTENT_TYPE"] = "application/x-www-form-urlencoded"
    return told


def parsed(raw: bytes) -> Answer:
    """Return the answer that a CGI program writes."""
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = [line.partition(": ") for line in head.decode("latin-1").split("\r\n")]
    headers = [(name, value) for name, _, value in lines]
    status = dict(headers).get("Status", "")
    assert status, raw
    return Answer(int(status[:3]), headers, body)


class Browser:
    """Visits a site with a cookie of its own and follows redirections.

    Attributes:
        cookie: what it holds; empty: nothing.
        status: of the last answer.
        page: the last page.
    """

    def __init__(self, send: Callable[..., Any], cookie: str = "") -> None:
        self.send = send
        self.cookie = cookie
        self.status = 0
        self.page = ""

    def go(self, path: str, method: str = "GET", body: str = "") -> Browser:
        """Go to a page, and on where it sends us."""
        for _ in range(5):
            answer = self.send(method, path, cookie=self.cookie, body=body)
            for line in answer.all("set-cookie"):
                pair = line.partition(";")[0]
                self.cookie = "" if "Max-Age=0" in line else pair
            self.status, self.page = answer.status, answer.body.decode()
            if answer.status != 302:
                return self
            path, method, body = urlsplit(answer.all("location")[0]).path, "GET", ""
        raise AssertionError("it is sent on and on")

    @property
    def counter(self) -> int:
        return int(re.findall('id="counter">([0-9]+)<', self.page)[0])

    @property
    def session(self) -> str | None:
        """The session's id, as the page shows it."""
        shown = re.findall('id="?session"?>([^<]+)<', self.page)[0]
        return None if shown == "none yet" else shown

    @property
    def token(self) -> str:
        """The form token of the page; empty where it has none."""
        found = re.findall('name="csrf_token" value="([^"]+)"', self.page)
        return found[0] if found else ""
