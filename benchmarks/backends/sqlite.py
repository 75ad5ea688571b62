"""SQLite, WAL and synchronous=NORMAL, by the two drivers: the standard library's, and apsw.

A `SELECT` by primary key and an `UPDATE` of one BLOB column, each its own transaction, with a
connection that is kept. Checkpoints come as SQLite has them by default.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.subjects import Backend, Missing, Raw

__all__ = ["PRAGMAS", "SELECT", "TABLE", "fresh", "running"]

TABLE = "CREATE TABLE raw (key TEXT NOT NULL PRIMARY KEY, data BLOB NOT NULL)"
_INSERT = "INSERT INTO raw (key, data) VALUES (?, ?)"
SELECT = "SELECT data FROM raw WHERE key = ?"
_UPDATE = "UPDATE raw SET data = ? WHERE key = ?"
PRAGMAS = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = NORMAL")


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """Find out whether the store can be used."""
    try:
        import apsw  # noqa: F401
    except ImportError as error:
        raise Missing(f"the SQLite store cannot be used ({error})") from None
    yield


@contextmanager
def fresh(_: None, folder: Path) -> Iterator[Backend]:
    """Yield new files."""
    import apsw

    standard = sqlite3.connect(folder / "stdlib.db", isolation_level=None)
    other = apsw.Connection(str(folder / "apsw.db"))
    try:
        for connection in (standard, other):
            for statement in (*PRAGMAS, TABLE):
                connection.execute(statement).fetchall()
        yield Backend(
            "SQLite",
            f"sqlite:///{folder / 'sojourn.db'}",
            (_standard(standard), _apsw(other)),
        )
    finally:
        standard.close()
        other.close()


def _standard(connection: Any) -> Raw:
    execute = connection.execute

    def insert(key: str, data: bytes) -> None:
        execute(_INSERT, (key, data))

    def read(key: str) -> Any:
        return execute(SELECT, (key,)).fetchone()[0]

    def write(key: str, data: bytes) -> None:
        execute(_UPDATE, (data, key))

    return Raw("sqlite3", insert, read, write)


def _apsw(connection: Any) -> Raw:
    # One cursor for all, which is the quickest way there.
    execute = connection.cursor().execute

    def insert(key: str, data: bytes) -> None:
        execute(_INSERT, (key, data))

    def read(key: str) -> Any:
        return execute(SELECT, (key,)).get

    def write(key: str, data: bytes) -> None:
        execute(_UPDATE, (data, key))

    return Raw("apsw", insert, read, write)
