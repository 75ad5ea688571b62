"""Servers of Twisted's in processes of their own, on free ports, and a browser to visit them."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

ROOT = Path(__file__).parent.parent.parent.parent
EXAMPLES = ROOT / "examples" / "twisted"

TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n"]
"""The program `twistd`, which stays in the foreground."""


def environment(folder: Path) -> dict[str, str]:
    """What a process finds: the modules that this one finds, and those in its folder."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), *sys.path])),
        "PYTHONUNBUFFERED": "1",
        # Scripts that name `python3` in their first line are to find this one.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }


class Page(msgspec.Struct):
    """What a browser got."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


class Browser:
    """Keeps cookies."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.cookies: dict[str, str] = {}

    def get(self, path: str = "/", **headers: str) -> Page:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        connection = self.connect()
        try:
            connection.request("GET", path, headers=sent)
            answer = connection.getresponse()
            page = Page(answer.status, answer.getheaders(), answer.read())
        finally:
            connection.close()
        for line in page.all("Set-Cookie"):
            name, _, rest = line.partition("=")
            if "Max-Age=0" in rest:
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = rest.partition(";")[0]
        return page

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)

    def body(self, path: str = "/", **headers: str) -> bytes:
        page = self.get(path, **headers)
        assert page.status == 200, page
        return page.body


class Server:
    """A process that says "starting on <port>"."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.command = command
        self.folder = folder
        self.lines: list[str] = []
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            cwd=self.folder,
            env=environment(self.folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        try:
            self.port = int(self.says(r"starting on (\d+)").group(1))
        except BaseException:
            self.kill()
            raise

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.append(line)

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def says(self, pattern: str, seconds: float = 20.0) -> re.Match[str]:
        """Wait until it has printed something."""
        end = time.monotonic() + seconds
        while True:
            over = self.process.poll() is not None or time.monotonic() > end
            found = re.search(pattern, self.log)
            if found:
                return found
            assert not over, f"it did not say {pattern!r}, but:\n{self.log}"
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()
        self.reader.join(10)

    def restart(self) -> None:
        """Kill it, and start it again with the same files."""
        self.kill()
        self.lines = []
        self.start()

    def end(self) -> None:
        """End it as an operator does."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        self.kill()


@contextlib.contextmanager
def running(command: list[str], folder: Path) -> Iterator[Server]:
    """A server, ended in the end."""
    server = Server(command, folder)
    try:
        yield server
    finally:
        server.end()
