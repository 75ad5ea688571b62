"""A process that is told to end while WSGI applications are at work in its threads."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import pytest

from .processes import Browser, Page, Server, running

pytestmark = pytest.mark.slow

SITE = '''
import sys
import time
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.python.log import startLogging
from sojourn import SessionManager
from sojourn.stores.memory import MemoryStore
from sojourn.web.twisted import SessionSite, wsgi
from sojourn.web.twisted.session import Session

wsgi._GRACE = 1.0


class Waiting(Session):
    """What is asked of it takes longer than the process lives."""

    @property
    def answer(self):
        return Deferred()


def app(environ, start_response):
    path = environ["PATH_INFO"]
    print("at work on", path, flush=True)
    session = environ["sojourn.session"]
    if path == "/plain":
        time.sleep(0.5)
    elif path == "/session":
        time.sleep(0.5)
        session.add("n")
    elif path == "/waits":
        session.answer
    elif path == "/long":
        time.sleep(2.5)
        session.add("n")
    start_response("200 OK", [("Content-Type", "text/plain")])
    time.sleep(0.2)
    return [b"done"]


site = SessionSite(
    wsgi.WSGIResource(reactor, reactor.getThreadPool(), app), SessionManager(MemoryStore())
)
site.sessionFactory = Waiting
startLogging(sys.stdout)
reactor.listenTCP(0, site, interface="127.0.0.1")
reactor.run()
print("it has ended", flush=True)
'''


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "serve_threads.py").write_text(SITE)
    with running([sys.executable, "serve_threads.py"], tmp_path) as server:
        yield server


@pytest.mark.parametrize(
    ("path", "answered", "seconds"),
    [
        ("/plain", True, 1.0),
        ("/session", True, 1.0),
        # These take longer than they may. Nothing ends a thread, but it waits for nothing more.
        ("/waits", False, 1.2),
        ("/long", False, 2.7),
    ],
)
@pytest.mark.parametrize("number", [1, 4])
def test_the_end_of_a_process(
    server: Server, path: str, answered: bool, seconds: float, number: int
) -> None:
    """Applications come to an end where that takes no longer than they have; then the process."""
    with ThreadPoolExecutor(number) as pool:
        asking = [pool.submit(Browser(server).get, path) for _ in range(number)]
        server.says(rf"(?s)(at work on.*){{{number}}}")
        start = time.monotonic()
        server.process.terminate()
        assert server.process.wait(20) == 0
        assert time.monotonic() - start < seconds + 1.5
        pages = [page_of(one) for one in asking]
    if answered:
        assert [page.body if page else None for page in pages] == [b"done"] * number
    server.reader.join(10)
    assert "it has ended" in server.log


def page_of(asking: Future[Page]) -> Page | None:
    try:
        return asking.result(10)
    except (OSError, HTTPException):
        return None


def test_the_end_of_a_process_at_rest(server: Server) -> None:
    """Where nothing is at work it ends at once, after requests that are over."""
    assert Browser(server).body("/session") == b"done"
    start = time.monotonic()
    server.process.terminate()
    assert server.process.wait(20) == 0
    assert time.monotonic() - start < 1.0
