"""Twisted Web: pages over loopback HTTP, beside the stock server in the same run.

    python -m benchmarks.twisted --quick

Each server is a process on a core of its own, the client is on another. The application is the
same for all: a page that does not look at the session, one that reads `ICounter(session).value`,
one that adds to it. The client keeps 16 connections busy, with the cookies of 1,000 visitors.

All servers are measured in turn in each round, in one order and in the next round in the other;
ratios are of the same round, and their median counts. By the clock is what visitors feel; by the
server's own processor time is what a machine is worth, and hardly depends on what else it does.
(With Redis and PostgreSQL part of the work is in their process.)

What idle sessions cost is measured by making them: each by a visitor who comes once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measuring import Figure, figure
from benchmarks.report import Writer, ratio_text

__all__ = ["Idle", "main", "report"]

PAGES = ("page without session", "read", "write")
CONNECTIONS = 16
STOCK = "stock Twisted"
ASYNCIO = "on its asyncio reactor"
LIMIT = 0.6
"""The target: so much of the stock server's requests each second, with the memory store."""


# The server.


def serve(store: str, reactor: str) -> None:
    """Serve the application until the pipe from the parent is closed."""
    if reactor == "asyncio":
        from twisted.internet import asyncioreactor

        asyncioreactor.install()
    from twisted.internet import reactor as running
    from twisted.internet import stdio
    from twisted.internet.protocol import Protocol
    from twisted.python.components import registerAdapter
    from twisted.web.resource import Resource
    from twisted.web.server import Session, Site
    from zope.interface import Attribute, Interface, implementer

    class ICounter(Interface):
        value = Attribute("how often")

    @implementer(ICounter)
    class Counter:
        def __init__(self, session: Any) -> None:
            self.value = 0

    registerAdapter(Counter, Session, ICounter)

    class Plain(Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> bytes:
            return b"0"

    class Read(Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> bytes:
            return b"%d" % ICounter(request.getSession()).value

    class Write(Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> bytes:
            counter = ICounter(request.getSession())
            counter.value += 1
            return b"%d" % counter.value

    class Busy(Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> bytes:
            return json.dumps([time.process_time(), _resident()]).encode()

    class Parent(Protocol):
        def connectionLost(self, reason: Any = None) -> None:
            running.stop()

    root = Resource()
    for name, page in zip((b"0", b"1", b"2", b"busy"), (Plain, Read, Write, Busy), strict=True):
        root.putChild(name, page())
    site: Any
    if store == STOCK:
        site = Site(root)
    else:
        from sojourn.manager import SessionManager
        from sojourn.web.twisted import SessionSite

        site = SessionSite(root, SessionManager(store))
    site.noisy = False
    listening: Any = running.listenTCP(0, site, interface="127.0.0.1")
    print(listening.getHost().port, flush=True)
    stdio.StandardIO(Parent())
    running.run()


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Server:
    """A server in a process of its own, and the client's connections to it."""

    def __init__(self, name: str, store: str, reactor: str = "", connections: int = CONNECTIONS):
        """Start it, on another core than this one where there is one."""
        self.name = name
        here = next(iter(os.sched_getaffinity(0)))
        other = (here - 1) % (os.cpu_count() or 1)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.twisted", "serve", store, reactor],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            preexec_fn=lambda: _stay_on(other),
        )
        assert self.process.stdout is not None
        port = int(self.process.stdout.readline())
        self.sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
        for one in self.sockets:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.cookies = [b""]

    def busy(self) -> tuple[float, int]:
        """Return its processor time so far, and its resident set."""
        seconds, resident = json.loads(
            self._ask([_request(b"busy", b"")])[0].partition(b"\r\n\r\n")[2]
        )
        return seconds, resident

    def meet(self, visitors: int) -> None:
        """Let visitors come for the first time."""
        answers = self._ask([_request(b"2", b"")] * visitors)
        self.cookies = [_cookie_of(answer) for answer in answers]

    def visit(self, page: int, visits: int) -> tuple[float, float]:
        """Let visitors come again; seconds by the clock, and of the server's processor time.

        Raises:
            AssertionError: an answer is not what it should be.
        """
        name = b"%d" % page
        asked = [_request(name, cookie) for cookie in self.cookies]
        asked = (asked * (visits // len(asked) + 1))[:visits]
        before, _ = self.busy()
        began = time.perf_counter()
        answers = self._ask(asked)
        seconds = time.perf_counter() - began
        used = self.busy()[0] - before
        expected = b"\r\n\r\n0" if page == 0 else b"\r\n\r\n"
        for answer in (answers[0], answers[-1]):
            assert answer.startswith(b"HTTP/1.1 200"), answer
            assert expected in answer, answer
            assert page == 0 or not answer.endswith(b"\r\n\r\n0"), answer
        return seconds, used

    def _ask(self, requests: Sequence[bytes]) -> list[bytes]:
        """Send requests, so many at a time as there are connections; the answers."""
        answers: list[bytes] = []
        width = len(self.sockets)
        for start in range(0, len(requests), width):
            some = requests[start : start + width]
            used = self.sockets[: len(some)]
            for one, request in zip(used, some, strict=True):
                one.sendall(request)
            answers += [_answer(one) for one in used]
        return answers

    def end(self) -> None:
        """Close everything."""
        for one in self.sockets:
            one.close()
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def _stay_on(core: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setaffinity(0, {core})


def _request(page: bytes, cookie: bytes) -> bytes:
    line = b"Cookie: " + cookie + b"\r\n" if cookie else b""
    return b"GET /" + page + b" HTTP/1.1\r\nHost: localhost\r\n" + line + b"\r\n"


def _answer(one: socket.socket) -> bytes:
    raw = one.recv(65536)
    while True:
        head, found, body = raw.partition(b"\r\n\r\n")
        if found:
            lines = head.lower().split(b"\r\n")
            length = next(int(x.split(b":")[1]) for x in lines if x.startswith(b"content-length"))
            if len(body) >= length:
                return raw
        more = one.recv(65536)
        assert more, "the server closed the connection"
        raw += more


def _cookie_of(answer: bytes) -> bytes:
    found: bytes = answer.partition(b"Set-Cookie: ")[2].partition(b"\r\n")[0].partition(b";")[0]
    assert found, answer
    return found


# The figures.


class Idle(NamedTuple):
    """What so many sessions that nobody uses do to a server: growth of its resident set."""

    name: str
    sessions: int
    grown: int


@contextlib.contextmanager
def _started(*servers: Any) -> Iterator[list[Server]]:
    with contextlib.ExitStack() as stack:
        made = []
        for name, store, reactor in servers:
            made.append(Server(name, store, reactor))
            stack.callback(made[-1].end)
        yield made


def _others(names: Sequence[str], folder: Path, stack: contextlib.ExitStack) -> Iterator[Any]:
    """Start the servers of stores; yield the ways to them."""
    for name in names:
        handle = stack.enter_context(
            importlib.import_module(f"benchmarks.backends.{name}").running(folder)
        )
        if name == "redis":
            yield "Redis, txredisapi", handle.url, ""
            # An option that txredisapi does not know, so that threads are taken.
            yield "Redis, redis-py in threads", handle.url + "?health_check_interval=0", ""
            yield f"Redis, redis-py {ASYNCIO}", handle.url, "asyncio"
        else:
            yield "PostgreSQL, psycopg in threads", handle.url(), ""
            yield f"PostgreSQL, psycopg {ASYNCIO}", handle.url(), "asyncio"


def report(
    writer: Writer,
    *,
    rounds: int = 9,
    visits: int = 3000,
    visitors: int = 1000,
    idle: int = 100_000,
    stores: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure and print; returns the figures as plain values.

    Args:
        writer: where to.
        rounds: how often each server has its turn.
        visits: requests of each page in a turn.
        visitors: how many.
        idle: how many sessions to leave idle.
        stores: "redis" and "postgresql", to be started and measured too.

    Raises:
        ImportError: Twisted is not installed.
    """
    importlib.import_module("twisted.web")
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sojourn-twisted-")))
        folder.chmod(0o755)
        servers = stack.enter_context(
            _started(
                (STOCK, STOCK, ""),
                ("memory", "memory://", ""),
                ("SQLite", f"sqlite:///{folder}/sessions.db", ""),
                *_others(stores, folder, stack),
            )
        )
        for server in servers:
            server.meet(visitors)
            for page in range(3):
                server.visit(page, min(visits, 300))
        times: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for turn in range(rounds):
            for server in servers if turn % 2 else servers[::-1]:
                for page in range(3):
                    times.setdefault((server.name, page), []).append(server.visit(page, visits))
        for page, text in enumerate(PAGES):
            stock = times[STOCK, page]
            rows = []
            for server in servers:
                mine = times[server.name, page]
                rate = visits / statistics.median(seconds for seconds, _ in mine)
                clock = figure([s[0] / m[0] for s, m in zip(stock, mine, strict=True)])
                own = figure([s[1] / m[1] for s, m in zip(stock, mine, strict=True)])
                found[f"{server.name}, {text}"] = {
                    "requests each second": rate,
                    "of stock": clock.median,
                    "of stock by processor time": own.median,
                }
                rows.append([server.name, f"{rate:,.0f}", *map(_share, (clock, own))])
            heads = ["", "requests/s", "÷ stock", "÷ stock, by the server's processor time"]
            writer.table(f"Twisted Web, {text}", heads, rows)
    reached = [
        [text, f"{LIMIT:g}", f"{share:.2f}", "yes" if share >= LIMIT else "NO"]
        for text in PAGES[1:]
        for share in [found[f"memory, {text}"]["of stock"]]
    ]
    writer.table("Twisted Web, targets: ÷ stock", ["", "at least", "reached", ""], reached)
    held = _idle(idle)
    writer.table(
        f"Twisted Web, {idle:,} idle sessions",
        ["", "the process has grown by", "for each"],
        [[one.name, f"{one.grown / 1e6:,.1f} MB", f"{one.grown / idle:,.0f} B"] for one in held],
    )
    found |= {f"{one.name}, idle": one.grown for one in held}
    return found


def _share(one: Figure) -> str:
    return ratio_text(one)


def _idle(sessions: int) -> list[Idle]:
    """Let visitors come once, and see what that leaves in the process."""
    held = []
    with tempfile.TemporaryDirectory(prefix="sojourn-twisted-") as folder:
        store = f"sqlite:///{folder}/sessions.db"
        with _started((STOCK, STOCK, ""), ("SQLite", store, "")) as servers:
            for server in servers:
                # Until the process has what it needs to work at all.
                warm = min(5000, sessions)
                server.meet(warm)
                before = server.busy()[1]
                for _ in range(0, sessions, 1000):
                    server.meet(min(1000, sessions))
                held.append(Idle(server.name, sessions, server.busy()[1] - before))
    return held


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments say; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["serve"]:
        serve(argv[1], argv[2])
        return 0
    parser = argparse.ArgumentParser(prog="python -m benchmarks.twisted", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="fewer rounds and idle sessions")
    parser.add_argument("--store", action="append", choices=("redis", "postgresql"), default=[])
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    options = parser.parse_args(argv)
    few: dict[str, Any] = {"rounds": 5, "visits": 1000, "idle": 10_000} if options.quick else {}
    found = report(Writer(), stores=options.store, **few)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
