"""PostgreSQL as installed: prepared statements on a kept connection of psycopg, both colours.

The blob's column is stored as the Sojourn store stores its own, not compressed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.calling import runner
from benchmarks.servers import entered, helpers
from benchmarks.subjects import Backend, Missing, Raw

__all__ = ["fresh", "running"]

_SETUP = (
    "DROP TABLE IF EXISTS raw, sojourn_sessions, sojourn_meta",
    "CREATE TABLE raw (key text PRIMARY KEY, data bytea NOT NULL)",
    "ALTER TABLE raw ALTER data SET STORAGE EXTERNAL",
)
_INSERT = "INSERT INTO raw (key, data) VALUES (%s, %b)"
_SELECT = "SELECT data FROM raw WHERE key = %s"
_UPDATE = "UPDATE raw SET data = %b WHERE key = %s"


@contextmanager
def running(folder: Path) -> Iterator[Any]:
    """Start a server."""
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise Missing(f"the PostgreSQL store cannot be used ({error})") from None
    with entered(helpers("servers_sql").a_postgresql()) as server:
        yield server


@contextmanager
def fresh(server: Any, folder: Path) -> Iterator[Backend]:
    """Yield the server with an empty table."""
    import psycopg

    connection = psycopg.connect(server.url(), autocommit=True)
    for statement in _SETUP:
        connection.execute(statement)
    aconnection = runner.run(_connect(server.url()))
    execute, aexecute = connection.execute, aconnection.execute

    def insert(key: str, data: bytes) -> None:
        execute(_INSERT, (key, data), prepare=True)

    def read(key: str) -> Any:
        return execute(_SELECT, (key,), prepare=True, binary=True).fetchone()[0]  # type: ignore[index]

    def write(key: str, data: bytes) -> None:
        execute(_UPDATE, (data, key), prepare=True)

    async def ainsert(key: str, data: bytes) -> None:
        await aexecute(_INSERT, (key, data), prepare=True)

    async def aread(key: str) -> Any:
        cursor = await aexecute(_SELECT, (key,), prepare=True, binary=True)
        return (await cursor.fetchone())[0]

    async def awrite(key: str, data: bytes) -> None:
        await aexecute(_UPDATE, (data, key), prepare=True)

    raws = (
        Raw("psycopg", insert, read, write),
        Raw("async psycopg", ainsert, aread, awrite, asynchronous=True),
    )
    try:
        yield Backend("PostgreSQL", server.url(), raws)
    finally:
        runner.run(aconnection.close())
        connection.close()


async def _connect(url: str) -> Any:
    import psycopg

    return await psycopg.AsyncConnection.connect(url, autocommit=True)
