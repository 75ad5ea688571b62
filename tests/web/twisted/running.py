"""Twisted processes for the tests: started, killed, started again, ended by their id."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

APP = Path(__file__).with_name("app.py")
SOURCE = Path(__file__).parents[3] / "src"
PATIENCE = 30.0


class Process:
    """One process of `app.py`.

    Attributes:
        url: where it listens.
    """

    def __init__(self, log: Path, store: str, *options: str) -> None:
        self.log = log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(APP), store, *options],
                env={**os.environ, "PYTHONPATH": str(SOURCE)},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        late = threading.Timer(PATIENCE, self.process.kill)
        late.start()
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        late.cancel()
        if not self.url:
            self.end()
            raise AssertionError(log.read_text())

    def kill(self) -> None:
        """As power that goes: no handler of it runs."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process on a store: `start("memory://")`; all are ended in the end."""
    processes: list[Process] = []

    def run(store: str, *options: str) -> Process:
        process = Process(tmp_path / "log", store, *options)
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.end()


def post(url: str, path: str, cookie: str = "", **query: str) -> tuple[dict[str, Any], str]:
    """Make a request on a connection of its own: what it answered, and the cookie from then on."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE)
    try:
        headers = {"Cookie": cookie} if cookie else {}
        connection.request("POST", f"{path}?{urlencode(query)}", b"", headers)
        response = connection.getresponse()
        body = response.read()
        assert response.status == 200, (response.status, body)
        set_cookie = response.getheader("Set-Cookie")
        return json.loads(body), set_cookie.partition(";")[0] if set_cookie else cookie
    finally:
        connection.close()
