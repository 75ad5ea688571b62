"""`sojourn doctor`: on every store, sound and with each fault that it can tell."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from click.testing import CliRunner

from sojourn.cli.commands import cli
from sojourn.core.calls import GONE
from sojourn.core.record import MARK, Record
from sojourn.stores import _locks, open_async_store, open_store
from sojourn.stores.memory import MemoryStore
from sojourn.testing import new_record
from tests.stores.servers_redis import Server, redis_program, redis_server
from tests.stores.servers_sql import MariadbServer, PostgresqlServer, a_mariadb, a_postgresql

_fixtures = (redis_program, redis_server)

SOUND = "no fault was found"


def examined(url: str) -> list[str]:
    """What the doctor says; it ends with 0 only where it finds nothing."""
    done = CliRunner().invoke(cli, ["doctor", "--store", url])
    lines = [line.strip() for line in done.output.splitlines()]
    faults = [line for line in lines if line.startswith("found: ")]
    assert done.exit_code == (1 if faults else 0), done.output
    assert (SOUND in lines) is not bool(faults)
    return lines


def found(url: str) -> list[str]:
    """The faults that it finds."""
    return [line[7:] for line in examined(url) if line.startswith("found: ")]


def leaves_nothing(url: str) -> bool:
    with contextlib.closing(open_store(url)) as store:
        return store.count(None, None) == 0


# Stores without a server.


@pytest.mark.parametrize("kind", ["sqlite:///{}/s.db", "directory:///{}/sessions", "memory://"])
def test_a_sound_store(tmp_path: Path, kind: str) -> None:
    """It says what the store promises, that it works, and how many sessions there are."""
    url = kind.format(tmp_path)
    lines = examined(url)

    assert SOUND in lines
    assert "a record was made, read, changed and removed" in lines
    assert "0 live sessions" in lines
    assert [line for line in lines if line.startswith("what is saved survives ")]
    assert [line for line in lines if line.startswith("it is shared by the ")]
    assert leaves_nothing(url)
    assert not list(tmp_path.rglob("check-*"))


def test_a_cookie_store(tmp_path: Path) -> None:
    """There is nothing to look at but its keys."""
    (tmp_path / "keys").write_text(secrets.token_hex(32))

    assert "the browser keeps the sessions: there is nothing here to look at" in examined(
        f"cookie:///{tmp_path}/keys"
    )
    assert "cannot be read" in found(f"cookie:///{tmp_path}/none")[0]


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("nothing", "has no colon"),
        ("oracle://x/y", "no store is known by the scheme 'oracle'"),
        ("sqlite:////no/such/folder/s.db", "there is no folder /no/such/folder"),
        ("directory:////dev/null/x", "/dev/null"),
        ("redis://127.0.0.1:1", "cannot be reached"),
        ("postgresql://127.0.0.1:1/x", "cannot connect to PostgreSQL at 127.0.0.1:1"),
        ("mariadb://127.0.0.1:1/x", "cannot connect to MariaDB at 127.0.0.1:1"),
        ("redis://127.0.0.1:6379?wait=-1", "wait is -1"),
    ],
)
def test_a_store_that_is_not_there(url: str, fault: str) -> None:
    """One line for each thing that is wrong, and no traceback."""
    faults = found(url)

    assert len(faults) == 1
    assert fault in faults[0]


def test_secrets_are_not_shown() -> None:
    """No password comes out of it, found or not."""
    lines = examined("postgresql://app:s3cret@127.0.0.1:1/x?password=s3cret")

    assert lines[0] == "postgresql://127.0.0.1:1/x"
    assert "s3cret" not in "".join(lines)


def test_a_file_that_others_read(tmp_path: Path) -> None:
    """Access of everybody on the machine, to the file or by way of its folder."""
    url, path = f"sqlite:///{tmp_path}/s.db", tmp_path / "s.db"
    assert found(url) == []
    path.chmod(0o644)
    assert found(url)[0] == (
        f"everybody on this machine has access to {path} (mode 644); chmod o= {path}"
    )
    path.chmod(0o660)
    assert found(url) == []
    tmp_path.chmod(0o777)
    assert found(url) == [
        f"everybody on this machine has access to {tmp_path} (mode 777); chmod o= {tmp_path}"
    ]
    tmp_path.chmod(0o777 | stat.S_ISVTX)
    assert found(url) == []


def test_a_file_that_is_damaged(tmp_path: Path) -> None:
    """Pages that are no pages any more."""
    url, path = f"sqlite:///{tmp_path}/s.db", tmp_path / "s.db"
    with contextlib.closing(open_store(url)) as store:
        for _ in range(300):
            store.create(new_record(1e9, data=b"x" * 300))
    with path.open("r+b") as file:
        file.seek(20 * 4096)
        file.write(os.urandom(30 * 4096))

    assert "it is damaged (" in found(url)[0]


def test_a_file_of_another_release(tmp_path: Path) -> None:
    """A schema that is newer than this release."""
    url = f"sqlite:///{tmp_path}/s.db"
    open_store(url).close()
    with contextlib.closing(apsw.Connection(f"{tmp_path}/s.db")) as connection:
        connection.execute("UPDATE sojourn_meta SET value = 99 WHERE name = 'schema'")

    assert "its schema is version 99" in found(url)[0]


def test_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Access of others, damaged files that were set aside, locks that keep nobody out."""
    url, root = f"directory:///{tmp_path}/sessions", tmp_path / "sessions"
    assert found(url) == []
    root.chmod(0o750)
    assert found(url) == []
    root.chmod(0o701)
    assert f"access to {root} (mode 701)" in found(url)[0]
    root.chmod(0o700)
    (root / "damaged" / "one").touch()
    assert "1 damaged files were set aside" in found(url)[0]
    (root / "damaged" / "one").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(_locks, "_try_lock", lambda fd: True)
        assert "two programs can hold one lock" in found(url)[0]

        def refuses(fd: int) -> bool:
            raise OSError(95, "Operation not supported")

        patched.setattr(_locks, "_try_lock", refuses)
        assert "there are no locks (Operation not supported)" in found(url)[0]
    assert found(url) == []


@pytest.mark.parametrize("verb", ["create", "replace", "touch", "delete", "load"])
def test_a_store_that_answers_wrong(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """What is used is compared with what is right, verb by verb."""
    wrong: Any = {"replace": GONE, "load": new_record(1e9)}.get(verb, False)
    monkeypatch.setattr(MemoryStore, verb, lambda *arguments: wrong)

    assert found("memory://")[0].startswith(f"{verb} answered ")


def test_what_it_uses_is_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """The record that it makes is a mark: no session appears in a list, no handler hears of it."""
    made: list[Record] = []

    class Watched(MemoryStore):
        def create(self, record: Record) -> bool:
            made.append(record)
            return super().create(record)

    monkeypatch.setattr("sojourn.cli.doctor.open_store", lambda url: Watched())
    assert found("memory://") == []
    assert [record.status for record in made] == [MARK]


# Servers.


@pytest.mark.server
def test_redis(redis_server: Server) -> None:
    """Persistence, eviction, replicas, memory that is full."""
    url = f"{redis_server.url}?prefix=doctor"
    assert [fault.partition(":")[0] for fault in found(url)] == ["appendonly is no"]
    redis_server.ask("CONFIG", "SET", "appendonly", "yes")
    try:
        assert found(url) == []
        assert leaves_nothing(url)
        assert "the server has 0 replicas" in found(f"{url}&wait=1")[0]
        redis_server.ask("CONFIG", "SET", "maxmemory", "100mb")
        redis_server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        assert "maxmemory-policy is allkeys-lru" in found(url)[0]
        redis_server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        redis_server.ask("CONFIG", "SET", "maxmemory", "1")
        assert "maxmemory" in found(url)[0]
    finally:
        for name, value in (
            ("appendonly", "no"),
            ("maxmemory", "0"),
            ("maxmemory-policy", "noeviction"),
        ):
            redis_server.ask("CONFIG", "SET", name, value)


@pytest.mark.server
def test_answers_from_memory(redis_server: Server) -> None:
    """How old an answer may be is told of a store that remembers, and of no other."""
    url = f"{redis_server.url}?prefix=doctor"
    told = "a request may be answered from memory, 0.5 s old at most"

    assert told in examined(f"{url}&near=0.5")
    assert not [line for line in examined(url) if line.startswith("a request may be answered")]


class Durable(PostgresqlServer):
    """As it is set up for what counts."""

    def command(self) -> list[str]:
        return [*super().command(), "-c", "fsync=on"]


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgresqlServer]:
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("tests.stores.servers_sql.PostgresqlServer", Durable)
            server = stack.enter_context(a_postgresql())
        yield server


@pytest.mark.server
def test_postgresql(postgresql: PostgresqlServer) -> None:
    """What is off, privileges, indexes, the version of the schema."""
    import psycopg

    url = postgresql.url()
    assert found(url) == []
    assert leaves_nothing(url)
    off = "?options=-c%20synchronous_commit%3Doff"
    assert "synchronous_commit is off" in found(url + off)[0]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE app LOGIN")
        connection.execute("GRANT SELECT ON sojourn_meta, sojourn_sessions TO app")
        connection.execute("GRANT INSERT ON sojourn_sessions TO app")
        assert [
            fault
            for fault in found(url.replace("sojourn@", "app@"))
            if fault.startswith("the role app may not ")
        ] == [
            f"the role app may not {name} in sojourn_sessions; GRANT {name} ON sojourn_sessions "
            "TO app"
            for name in ("UPDATE", "DELETE")
        ]
        connection.execute("DELETE FROM sojourn_sessions")
        connection.execute("DROP INDEX sojourn_sessions_due")
        assert "the index sojourn_sessions_due is missing" in found(url)[0]
        connection.execute("UPDATE sojourn_meta SET version = 99")
        assert "of version 99" in found(url)[0]


@pytest.mark.server
def test_postgresql_without_fsync() -> None:
    """A server that may lose all in a power cut; both colours of the store say so."""

    async def main(url: str) -> list[str]:
        store: Any = open_async_store(url)
        try:
            faults: list[str] = await store.check()
            return faults
        finally:
            await store.close()

    with a_postgresql() as server:
        faults = found(server.url())
        assert "fsync is off: a loss of power may damage" in faults[0]
        assert asyncio.run(main(server.url())) == faults


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariadbServer]:
    with a_mariadb() as server:
        yield server


@pytest.mark.server
def test_mariadb(mariadb: MariadbServer) -> None:
    """What a crash would lose, a server for reading, tables that are not as they should be."""
    url = mariadb.url()
    assert found(url) == []
    assert leaves_nothing(url)
    with mariadb.connect("sojourn") as connection, connection.cursor() as cursor:
        for setting, fault in (
            ("innodb_flush_log_at_trx_commit = 2", "innodb_flush_log_at_trx_commit is 2"),
            ("read_only = 1", "the server is read_only"),
        ):
            cursor.execute(f"SET GLOBAL {setting}")
            assert fault in found(url)[0]
            cursor.execute("SET GLOBAL innodb_flush_log_at_trx_commit = 1, read_only = 0")
        assert found(url) == []
        cursor.execute("DROP INDEX sojourn_sessions_user ON sojourn_sessions")
        assert "the index sojourn_sessions_user is missing" in found(url)[0]
        cursor.execute("ALTER TABLE sojourn_sessions ENGINE = Aria")
        cursor.execute(
            "ALTER TABLE sojourn_sessions MODIFY sid VARCHAR(22) COLLATE utf8mb4_nopad_bin"
        )
        faults = found(url)
        assert "sojourn_sessions is kept by Aria" in faults[0]
        assert not [fault for fault in faults if "collation" in fault]
        cursor.execute(
            "ALTER TABLE sojourn_sessions MODIFY sid VARCHAR(22) COLLATE utf8mb4_general_ci"
        )
        assert any("the collation of sid is utf8mb4_general_ci" in one for one in found(url))
