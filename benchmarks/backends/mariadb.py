"""MariaDB as installed: statements on a kept connection of PyMySQL, and of asyncmy."""

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
    "CREATE TABLE raw (name VARCHAR(32) PRIMARY KEY, data LONGBLOB NOT NULL) CHARSET latin1",
)
# PyMySQL has to be told that it is no text; asyncmy says so itself.
_INSERT = "INSERT INTO raw (name, data) VALUES (%s, _binary %s)"
_SELECT = "SELECT data FROM raw WHERE name = %s"
_UPDATE = "UPDATE raw SET data = _binary %s WHERE name = %s"


@contextmanager
def running(folder: Path) -> Iterator[Any]:
    """Start a server."""
    try:
        import asyncmy  # noqa: F401
        import pymysql  # noqa: F401
    except ImportError as error:
        raise Missing(f"the MariaDB store cannot be used ({error})") from None
    with entered(helpers("servers_sql").a_mariadb()) as server:
        yield server


@contextmanager
def fresh(server: Any, folder: Path) -> Iterator[Backend]:
    """Yield the server with an empty table."""
    connection = server.connect("sojourn")
    cursor = connection.cursor()
    for statement in _SETUP:
        cursor.execute(statement)
    aconnection, acursor = runner.run(_connect(server.port))
    execute, aexecute = cursor.execute, acursor.execute
    ainserting, aupdating = (text.replace("_binary ", "") for text in (_INSERT, _UPDATE))

    def insert(key: str, data: bytes) -> None:
        execute(_INSERT, (key, data))

    def read(key: str) -> Any:
        execute(_SELECT, (key,))
        return cursor.fetchone()[0]

    def write(key: str, data: bytes) -> None:
        execute(_UPDATE, (data, key))

    async def ainsert(key: str, data: bytes) -> None:
        await aexecute(ainserting, (key, data))

    async def aread(key: str) -> Any:
        await aexecute(_SELECT, (key,))
        return (await acursor.fetchone())[0]

    async def awrite(key: str, data: bytes) -> None:
        await aexecute(aupdating, (data, key))

    raws = (
        Raw("PyMySQL", insert, read, write),
        Raw("asyncmy", ainsert, aread, awrite, asynchronous=True),
    )
    try:
        yield Backend("MariaDB", server.url(), raws)
    finally:
        runner.run(_close(aconnection))
        connection.close()


async def _connect(port: int) -> tuple[Any, Any]:
    import asyncmy

    connection = await asyncmy.connect(
        host="127.0.0.1", port=port, user="root", db="sojourn", autocommit=True
    )
    return connection, connection.cursor()


async def _close(connection: Any) -> None:
    await connection.ensure_closed()
