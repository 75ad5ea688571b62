"""A process that is told to end while WSGI applications are at work in its threads."""

from __future__ import annotations

import contextlib
import sys
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

wsgi._GRACE = float(sys.argv[1])


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
    elif path == "/renew":
        session.renew()
        session.exclusive(wait=20)
    elif path == "/long":
        time.sleep(2.5)
        session.add("n")
    start_response("200 OK", [("Content-Type", "text/plain")])
    time.sleep(0.2)
    return [b"done"]


sessions = SessionManager(MemoryStore())


@sessions.on_renewed
def renewed(session):
    print("was renewed", flush=True)


reactor.suggestThreadPoolSize(int(sys.argv[2]))
site = SessionSite(wsgi.WSGIResource(reactor, reactor.getThreadPool(), app), sessions)
site.sessionFactory = Waiting
startLogging(sys.stdout)
reactor.listenTCP(0, site, interface="127.0.0.1")
reactor.run()
print("it has ended", flush=True)
'''


@contextlib.contextmanager
def serving(folder: Path, grace: float, threads: int = 4) -> Iterator[Server]:
    """Serve it in a process that gives its applications so many seconds in the end."""
    (folder / "serve_threads.py").write_text(SITE)
    with running([sys.executable, "serve_threads.py", str(grace), str(threads)], folder) as server:
        yield server


@pytest.mark.parametrize(
    ("path", "answered"),
    [
        ("/plain", True),
        ("/session", True),
        # These take longer than they may. Nothing ends a thread, but it waits for nothing more.
        ("/waits", False),
        ("/long", False),
    ],
)
@pytest.mark.parametrize("number", [1, 4])
def test_the_end_of_a_process(tmp_path: Path, path: str, answered: bool, number: int) -> None:
    """Applications come to an end where that takes no longer than they have; then the process."""
    grace = 60.0 if answered else 0.5
    with serving(tmp_path, grace) as server, ThreadPoolExecutor(number) as pool:
        asking = [pool.submit(Browser(server).get, path) for _ in range(number)]
        server.says(rf"(?s)(at work on.*){{{number}}}")
        server.process.terminate()
        assert server.process.wait(30) == 0
        pages = [page_of(one) for one in asking]
        server.reader.join(10)
    if answered:
        assert [page.body if page else None for page in pages] == [b"done"] * number
    assert "it has ended" in server.log


def page_of(asking: Future[Page]) -> Page | None:
    try:
        return asking.result(10)
    except (OSError, HTTPException):
        return None


def test_the_end_of_a_process_at_rest(tmp_path: Path) -> None:
    """Where nothing is at work it ends at once, after requests that are over."""
    with serving(tmp_path, 60.0) as server:
        assert Browser(server).body("/session") == b"done"
        server.process.terminate()
        assert server.process.wait(30) == 0


def test_handlers_while_all_threads_are_at_work(tmp_path: Path) -> None:
    """A handler that a commit waits for runs, though applications hold all of the reactor's."""
    with serving(tmp_path, 0.5, threads=1) as server:
        browser = Browser(server)
        assert browser.body("/session") == b"done"
        assert browser.body("/renew") == b"done"
        assert "was renewed" in server.log
