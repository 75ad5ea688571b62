"""Servers on free ports: real processes, ended by their id, and threads of this one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from waitress import wasyncore
from waitress.server import create_server

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

PATIENCE = 30.0
Start = Callable[..., "Server"]
Serve = Callable[["WSGIApplication"], str]


class Server:
    """One server process; its address is the first URL that it prints."""

    def __init__(self, command: list[str], folder: Path, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.printed = ""
        self.url = ""
        self._known = threading.Event()
        # All is read at once, or a talkative server would wait for a full pipe.
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        if not self._known.wait(PATIENCE) or not self.url:
            self.end(signal.SIGKILL)
            raise AssertionError(f"it printed no address:\n{self.printed}")

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as out:
            for line in out:
                self.printed += line
                found = re.search(r"https?://[\w.\[\]:]+:\d+", line)
                if found and not self.url:
                    self.url = found[0]
                    self._known.set()
        self._known.set()

    def end(self, by: signal.Signals = signal.SIGINT) -> int:
        """End it by a signal; returns the exit code; then `printed` has all that it printed."""
        if self.process.poll() is None:
            self.process.send_signal(by)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"it did not end after {by.name}:\n{self.printed}") from None
        finally:
            self._reader.join()
        return code


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server: `start("-m", "uvicorn", ...)` with Python; all are ended in the end."""
    servers: list[Server] = []

    def run(*arguments: str, **env: str) -> Server:
        server = Server([sys.executable, *arguments], tmp_path, env)
        servers.append(server)
        return server

    yield run
    for server in servers:
        if server.process.poll() is None:
            server.end(signal.SIGTERM)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve a WSGI application from a thread of this process; returns its URL."""
    stop = threading.Event()
    threads = []

    def run(app: WSGIApplication) -> str:
        server = create_server(app, listen="127.0.0.1:0", threads=24)

        def loop() -> None:
            while not stop.is_set():
                wasyncore.loop(timeout=0.05, map=server._map, use_poll=True, count=1)
            server.task_dispatcher.shutdown()
            wasyncore.close_all(server._map)

        threads.append(threading.Thread(target=loop))
        threads[-1].start()
        return f"http://127.0.0.1:{server.effective_port}"

    yield run
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
