"""The SQLite store in one process: contract, settings, schema, damage, files."""

import asyncio
import contextlib
import logging
import os
import random
import re
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from blockbuster import BlockBuster

from sojourn.core import codec
from sojourn.core.calls import GONE, SAVED
from sojourn.core.record import ENDED, ENDING, LIVE, MARK, Ended, Record
from sojourn.errors import (
    ConfigurationError,
    DamagedRecord,
    InvalidValue,
    SojournError,
    StoreUnavailable,
)
from sojourn.stores import sqlite
from sojourn.stores.base import WouldBlock
from sojourn.stores.sqlite import SqliteStore, from_url
from sojourn.stores.threaded import ThreadedStore
from sojourn.testing import CHECKS, arun_check, new_record, next_version, run_check

NOW = 1_750_000_000.5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path)
    yield store
    store.close()


def execute(path: Path, sql: str, values: Any = ()) -> Any:
    """Run SQL as an operator would, on a connection of its own."""
    connection = apsw.Connection(str(path))
    try:
        return connection.execute(sql, values).fetchall()
    finally:
        connection.close()


def damage(path: Path, change: str, values: Any = ()) -> None:
    """Change a row to what a STRICT table refuses, as flipped bits do."""
    connection = apsw.Connection(str(path))
    try:
        connection.pragma("writable_schema", True)
        name = " WHERE name = 'sojourn_sessions'"
        [(strict,)] = connection.execute("SELECT sql FROM sqlite_schema" + name).fetchall()
        loose = strict.replace(" STRICT", "").replace(" NOT NULL", "").replace("REAL", "")
        loose = (
            loose.replace("INTEGER", "").replace("TEXT", "").replace("PRIMARY", "NOT NULL PRIMARY")
        )
        for sql in (loose, strict):
            connection.execute("UPDATE sqlite_schema SET sql = ?" + name, (sql,))
            connection.pragma("writable_schema", "reset")
            connection.pragma("writable_schema", True)
            if sql is loose:
                connection.execute("UPDATE sojourn_sessions SET " + change, values)
    finally:
        connection.close()


# The contract


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(store: SqliteStore, check: Any) -> None:
    """It keeps the contract of a store."""
    run_check(check, store)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_in_threads(path: Path, check: Any) -> None:
    """It keeps the contract behind an event loop, and the loop is never blocked."""
    store = ThreadedStore(SqliteStore(path))

    async def run() -> None:
        await arun_check(check, store)
        await store.close()

    asyncio.run(run())


def test_promises(path: Path) -> None:
    """What it says of itself follows `synchronous`."""
    assert SqliteStore(path).promises.survives == "kill"
    assert SqliteStore(path, synchronous="full").promises.survives == "power"
    assert SqliteStore(path).promises.shared == "host"


# Settings


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:///relative.db", "relative.db"),
        ("sqlite:///sub/a%3Fb%26c%25.db?synchronous=full", "sub/a?b&c%.db"),
        ("sqlite:///{folder}/absolute.db?busy_timeout=0.5&synchronous=normal", "absolute.db"),
        ("sqlite:///a#b.db", "a#b.db"),
    ],
)
def test_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, file: str) -> None:
    """A URL names the file, relative with three slashes and absolute with four, and options."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()

    store = from_url(url.format(folder=tmp_path))

    assert store.path == str(tmp_path / file)
    assert (tmp_path / file).exists()
    assert store.promises.survives == ("power" if "full" in url else "kill")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite://relative.db", "sqlite:///relative.db or sqlite:////absolute.db"),
        ("sqlite:relative.db", "names no SQLite file"),
        ("sqlite:///", "name a file"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:///a.db?synchronous=off", "allowed are 'normal' and 'full'"),
        ("sqlite:///a.db?journal=wal&sync=1", "unknown options: journal, sync; allowed"),
        ("sqlite:///a.db?busy_timeout=soon", "number of seconds"),
        ("sqlite:///a.db?busy_timeout=0", "more than 0"),
        ("sqlite:///a.db?busy_timeout=nan", "more than 0"),
        ("sqlite:///nowhere/a.db", "no folder"),
        ("sqlite:///.", "it is a folder"),
    ],
)
def test_wrong_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, words: str) -> None:
    """A URL that cannot be is refused with what is allowed, and no file is made."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigurationError, match=words):
        from_url(url)

    assert list(tmp_path.iterdir()) == []


def test_all_faults_at_once() -> None:
    """Every wrong setting is in one message."""
    with pytest.raises(ConfigurationError, match=r"name a file.*synchronous.*busy_timeout"):
        SqliteStore("", synchronous="no", busy_timeout=-1)


def test_an_sqlite_with_known_faults_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An SQLite that may damage a WAL file is refused, by its number and with the remedy."""
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    with pytest.raises(
        ConfigurationError, match=r"SQLite 3\.51\.2.*3\.51\.3 or newer.*pip install"
    ):
        SqliteStore(path)
    assert not path.exists()

    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.3")
    SqliteStore(path).close()


def test_a_relative_path_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later change of the working directory does not move the store."""
    monkeypatch.chdir(tmp_path)
    store = SqliteStore("a.db")
    record = new_record(NOW)
    store.create(record)
    store.close()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    assert store.load(record.sid) == record


# Values that no column takes


def test_what_cannot_be_stored_is_told(store: SqliteStore) -> None:
    """Text that is no Unicode, times that are no number: `InvalidValue`, and nothing written."""
    good = new_record(NOW)
    store.create(good)
    for bad in ({"agent": "\ud800"}, {"deadline": float("nan")}, {"version": 1 << 64}):
        with pytest.raises(InvalidValue):
            store.create(new_record(NOW, **bad))
        if "version" not in bad:
            with pytest.raises(InvalidValue):
                store.replace(next_version(good, **bad), 1)
    with pytest.raises(InvalidValue):
        store.touch(good.sid, 1, float("nan"), NOW)

    assert store.list() == [good]


# Files


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o377])
def test_only_the_owner_may_read(path: Path, umask: int) -> None:
    """Whatever the umask, the file and the two beside it have mode 0600."""
    before = os.umask(umask)
    try:
        store = SqliteStore(path)
        store.create(new_record(NOW))
    finally:
        os.umask(before)

    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
    assert modes == {path.name + end: 0o600 for end in ("", "-wal", "-shm")}
    store.close()


def test_the_mode_of_a_file_that_is_there_stays(path: Path) -> None:
    """An operator's mode is not changed, and the two files beside it get the same."""
    path.touch()
    path.chmod(0o640)
    store = SqliteStore(path)
    store.create(new_record(NOW))

    assert {stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()} == {0o640}
    store.close()


def test_close_leaves_one_file(store: SqliteStore, path: Path) -> None:
    """After `close` all is in the one file, and a later call opens it again."""
    record = new_record(NOW)
    store.create(record)
    store.close()
    store.close()

    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert store.load(record.sid) == record


def test_threads_come_and_go(store: SqliteStore, path: Path) -> None:
    """64 threads at once, three times over, leave no more than the few connections kept."""
    record = new_record(NOW)
    store.create(record)
    for _ in range(3):
        barrier = threading.Barrier(64)

        def work(barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            for _ in range(20):
                assert store.load(record.sid) is not None
                assert store.create(new_record(NOW))

        with ThreadPoolExecutor(64) as pool:
            for done in [pool.submit(work) for _ in range(64)]:
                done.result()

    assert store.count() == 1 + 3 * 64 * 20
    store._checkpointing.acquire()  # one that is under way has a connection
    assert sum(not one.closed for one in store._opened) <= 8
    # Of a file with locks SQLite closes descriptors later, and takes them again first.
    assert open_files(path) <= 64
    store._checkpointing.release()
    store.close()
    assert open_files(path) == 0


def open_files(path: Path) -> int:
    """How many descriptors of this process are open on the file."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"/proc/self/fd/{fd}") == str(path)
    return count


def begun(path: Path) -> int:
    """How often the log was begun anew, from its header."""
    return int.from_bytes(Path(f"{path}-wal").read_bytes()[12:16], "big")


def test_the_log_is_copied_in_the_background(store: SqliteStore, path: Path) -> None:
    """After some MB of writes a thread copies the log, and the log is begun anew."""
    store.create(new_record(NOW))
    first = begun(path)
    stop = time.monotonic() + 20
    while begun(path) == first:
        assert time.monotonic() < stop, "nobody copied the log"
        store.create(new_record(NOW, data=os.urandom(60_000)))
        time.sleep(0.002)

    assert path.stat().st_size > 2 << 20


def test_a_checkpoint_that_comes_late_opens_nothing(store: SqliteStore, path: Path) -> None:
    """After `close` the thread that was to copy the log leaves the file alone."""
    store.create(new_record(NOW))
    idle = store._idle
    store.close()
    store._checkpoint(idle)

    assert not store._idle
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_large_log_is_begun_anew_under_writers_that_never_pause(
    store: SqliteStore, path: Path
) -> None:
    """A checkpoint that others write past does not leave the log to grow for ever."""
    stop = threading.Event()

    def write() -> None:
        record = new_record(NOW, data=os.urandom(50_000))
        store.create(record)
        while not stop.is_set():
            newer = next_version(record, data=os.urandom(50_000))
            assert store.replace(newer, record.version) is SAVED
            record = newer

    store._wrote = -1 << 60  # nobody copies but this test
    store.create(new_record(NOW))
    first = begun(path)
    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        while os.stat(f"{path}-wal").st_size < 20 << 20:
            time.sleep(0.001)
        assert begun(path) == first
        store._checkpoint(store._idle)
        assert begun(path) > first
    finally:
        stop.set()
        for thread in threads:
            thread.join()


# What is in the file


def test_not_a_database(path: Path) -> None:
    """A file that is no database is refused by its name, and left as it is."""
    content = os.urandom(10_000)
    path.write_bytes(content)

    with pytest.raises(ConfigurationError, match=rf"{path}: this is no SQLite database"):
        SqliteStore(path)

    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_empty_file_is_taken(path: Path) -> None:
    """A file of no bytes is a new one."""
    path.touch()
    assert SqliteStore(path).create(new_record(NOW))


def test_another_applications_database(path: Path) -> None:
    """A database with other tables and not ours is refused, and left as it is."""
    execute(path, "CREATE TABLE people (name TEXT)")
    content = path.read_bytes()

    with pytest.raises(ConfigurationError, match=r"another application.*sojourn schema sqlite"):
        SqliteStore(path)

    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_shared_file(path: Path) -> None:
    """Our tables may be made in another application's file, whose own marks stay."""
    execute(path, "PRAGMA application_id = 77; PRAGMA user_version = 5;")
    execute(path, "CREATE TABLE people (name TEXT); INSERT INTO people VALUES ('ann');")
    execute(path, sqlite.SCHEMA)
    store = SqliteStore(path)
    for check in CHECKS[:3]:
        run_check(check, store)
    store.close()

    assert execute(path, "PRAGMA application_id") == [(77,)]
    assert execute(path, "PRAGMA user_version") == [(5,)]
    assert execute(path, "SELECT * FROM people") == [("ann",)]


def test_the_published_schema_is_that_of_a_new_file(tmp_path: Path) -> None:
    """`SCHEMA` and the store make the same tables."""
    SqliteStore(tmp_path / "a.db").close()
    execute(tmp_path / "b.db", sqlite.SCHEMA)

    query = "SELECT type, name, sql FROM sqlite_schema ORDER BY name"
    assert execute(tmp_path / "a.db", query) == execute(tmp_path / "b.db", query)
    query = "SELECT * FROM sojourn_meta"
    assert execute(tmp_path / "a.db", query) == execute(tmp_path / "b.db", query)


def test_the_head_is_the_record(store: SqliteStore, path: Path) -> None:
    """Every field of `Record` stands in `head`, and what SQL needs in columns besides."""
    given = new_record(
        NOW,
        user="alice",
        authenticated=NOW - 5,
        generation=3,
        previous_hash=b"p" * 32,
        previous_generation=2,
        grace_until=NOW + 9,
        salt=b"s" * 16,
        persistent=True,
        address="192.0.2.1",
        agent="Mozilla",
        commits=b"c" * 16,
        reason="why",
        attempts=7,
        data=b"data",
    )
    store.create(given)

    [row] = execute(path, "SELECT * FROM sojourn_sessions")
    assert row[:5] == (given.sid, given.version, given.status, "alice", given.deadline)
    assert row[6] == given.data
    head = msgspec.msgpack.decode(codec.unchecked(row[5]), type=Record)
    assert msgspec.structs.replace(head, data=given.data) == given
    assert store.load(given.sid) == given


def test_a_newer_schema(path: Path) -> None:
    """A file of a newer release is refused with both versions, and left as it is."""
    SqliteStore(path).close()
    execute(path, "UPDATE sojourn_meta SET value = 99 WHERE name = 'schema'")
    content = path.read_bytes()

    with pytest.raises(ConfigurationError, match=r"version 99.*up to 1\b"):
        SqliteStore(path)

    assert path.read_bytes() == content


def test_migration(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of version 1 is brought up, step by step, with its records."""
    store = SqliteStore(path)
    record = new_record(NOW)
    store.create(record)
    store.close()
    steps = (
        "ALTER TABLE sojourn_sessions ADD COLUMN note TEXT;",
        "UPDATE sojourn_sessions SET note = 'brought up'; CREATE TABLE sojourn_more (x);",
    )
    monkeypatch.setattr(sqlite, "MIGRATIONS", (*sqlite.MIGRATIONS, *steps))

    assert SqliteStore(path).load(record.sid) == record
    assert execute(path, "SELECT note FROM sojourn_sessions") == [("brought up",)]
    assert execute(path, "SELECT value FROM sojourn_meta WHERE name = 'schema'") == [(3,)]


def test_a_migration_that_fails_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps or none: the file stays what it was, and the release before can go on with it."""
    SqliteStore(path).close()
    before = execute(path, "SELECT sql FROM sqlite_schema")
    steps = ("CREATE TABLE sojourn_more (x);", "CREATE TABLE sojourn_more (x);")
    with monkeypatch.context() as context:
        context.setattr(sqlite, "MIGRATIONS", (*sqlite.MIGRATIONS, *steps))
        store = SqliteStore(path)
        with pytest.raises(StoreUnavailable, match="already exists"):
            store.load("x" * 22)

    assert execute(path, "SELECT sql FROM sqlite_schema") == before
    assert SqliteStore(path).create(new_record(NOW))


# Plans


STATEMENTS = {
    name: value
    for name, value in vars(sqlite).items()
    if isinstance(value, str) and value.startswith(("SELECT", "INSERT", "UPDATE", "DELETE"))
} | {
    f"{make.__name__}({user}, {status})": make(user, status)
    for make in (sqlite._list_statement, sqlite._count_statement)
    for user in (None, "alice")
    for status in (None, LIVE, ENDING, ENDED, MARK)
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_every_statement_uses_an_index(store: SqliteStore, path: Path, name: str) -> None:
    """No statement reads the table from end to end, or sorts."""
    connection = apsw.Connection(str(path))
    needed = STATEMENTS[name].count("?") and 30
    values: Any = {"user": "u", "status": 1, "after": ""} if ":" in STATEMENTS[name] else None
    cursor = connection.cursor()
    query = "EXPLAIN QUERY PLAN " + STATEMENTS[name]
    if values is None:
        for count in range(needed + 1):
            try:
                plan = cursor.execute(query, (1,) * count).fetchall()
                break
            except apsw.BindingsError:
                continue
        else:
            raise AssertionError(STATEMENTS[name])
    else:
        plan = cursor.execute(query, values).fetchall()
    connection.close()
    details = [detail for *_, detail in plan if not detail.startswith("SCALAR SUBQUERY")]

    assert (
        name == "_CREATE"
        or any(" USING " in detail for detail in details)
        or (details == ["SCAN CONSTANT ROW"] and len(plan) > 1)
    )
    for detail in details:
        assert "TEMP B-TREE" not in detail
        if detail.startswith("SCAN") and detail != "SCAN CONSTANT ROW":
            assert "USING COVERING INDEX" in detail


def test_there_are_statements() -> None:
    """The test above looks at those of every verb."""
    assert {"_LOAD", "_CREATE", "_REPLACE", "_TOUCH", "_MAKE_ENDED", "_DUE_PAGE"} <= set(STATEMENTS)


# Speed that can be told without a clock


def test_touch_writes_one_page(store: SqliteStore, path: Path) -> None:
    """A touch of a session of 64 KB writes a page, not its data."""
    record = new_record(NOW, data=os.urandom(65_536))
    store.create(record)
    # SQLite stores a 1 without a byte of its own: from 1 to 2 the row grows, and is written anew.
    assert store.touch(record.sid, 1, NOW + 5.25, NOW + 1805.25)
    before = os.stat(f"{path}-wal").st_size
    assert store.touch(record.sid, 2, NOW + 10.25, NOW + 1810.25)

    assert os.stat(f"{path}-wal").st_size - before < 5000


def test_replace_writes_no_index(store: SqliteStore, path: Path) -> None:
    """A replace that keeps the user and does not end earlier writes the one page of its row."""
    store._wrote = -1 << 60  # no checkpoint, which writes too
    for _ in range(2000):
        store.create(new_record(NOW, user="alice"))
    record = new_record(NOW, user="alice", version=5)
    store.create(record)
    before = os.stat(f"{path}-wal").st_size
    newer = next_version(record, data=b"x" * 9, deadline=record.deadline + 60.25)
    assert store.replace(newer, 5) is SAVED

    assert os.stat(f"{path}-wal").st_size - before < 5000


# Due


@pytest.mark.slow
def test_due_of_100_000(path: Path) -> None:
    """Each of 100,000 is claimed once, in transactions of at most 100 rows."""
    store = SqliteStore(path)
    connection = store._idle[0]
    with connection._transaction():
        for _ in range(100_000):
            connection.create(new_record(NOW - 3600, deadline=NOW - random.random() * 1000))
    records, looked = connection.claim(NOW, 60.0, 5000)
    assert 0 < len(records) == looked <= 100
    seen = {record.sid for record in records}
    while page := store.due(NOW, 60.0, 5000):
        assert len(page) <= 5000
        sids = {record.sid for record in page}
        assert len(sids) == len(page)
        assert not seen & sids
        seen |= sids

    assert len(seen) == 100_000
    store.close()


def test_writers_get_in_between_pages_of_due(store: SqliteStore) -> None:
    """While one long `due` runs, another connection gets the write lock."""
    connection = store._idle[0]
    with connection._transaction():
        for _ in range(3000):
            connection.create(new_record(NOW - 3600, deadline=NOW - 1, data=bytes(4000)))
    other = SqliteStore(store.path)
    claimed: list[int] = []
    thread = threading.Thread(target=lambda: claimed.append(len(store.due(NOW, 60.0, 3000))))
    thread.start()
    wrote_before_the_end = 0
    while thread.is_alive():
        other.create(new_record(NOW))
        wrote_before_the_end += thread.is_alive()
    thread.join()

    assert claimed == [3000]
    assert wrote_before_the_end > 1
    other.close()


# Damage

DAMAGES = {
    "head is empty": ("head = x''", ()),
    "head is cut": ("head = substr(head, 1, length(head) - 5)", ()),
    "head is another codec's": ("head = ?", (codec.checked(b"\x80"),)),
    "head is of few fields": ("head = ?", (codec.checked(b"\x91\xa1x"),)),
    "head is text": ("head = CAST(x'ff00fe' AS TEXT)", ()),
    "head is a number": ("head = 5", ()),
    "status is unknown": ("head = ?", (sqlite._head_of(new_record(NOW, status=9)),)),
    "version is NULL": ("version = NULL", ()),
    "version is another": ("version = 77", ()),
    "version is text": ("version = 'first'", ()),
    "data is a number": ("data = 5", ()),
}


@pytest.mark.parametrize("change", DAMAGES)
def test_a_damaged_row(
    store: SqliteStore, path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    """`load`, `replace` and `touch` tell; `list` passes it over; `due` meets it once at most."""
    record = new_record(NOW - 3600, deadline=NOW - 1, user="alice")
    neighbour = new_record(NOW - 3600, deadline=NOW - 1, user="alice")
    store.create(record)
    store.create(neighbour)
    store.close()
    sql, values = DAMAGES[change]
    damage(path, f"{sql} WHERE sid = '{record.sid}'", values)

    with pytest.raises(DamagedRecord):
        store.load(record.sid)
    with pytest.raises(DamagedRecord):
        store.replace(next_version(record), 99)
    assert store.load(neighbour.sid) == neighbour
    assert store.list() == [neighbour]
    assert store.list("alice", None) == [neighbour]
    assert not store.create(record)
    with caplog.at_level(logging.WARNING):
        assert [r.sid for r in store.due(NOW, 60.0)] == [neighbour.sid]
    assert len(caplog.records) == 1
    assert store.due(NOW, 60.0) == []
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "change", ["status = 9", "status = -1", "user_name = 'mallory'", "user_name = NULL", "due = 0"]
)
def test_what_is_there_for_sql_is_mended(store: SqliteStore, path: Path, change: str) -> None:
    """The head is what counts: a column that says something else is put right by the next write."""
    record = new_record(NOW, user="alice")
    store.create(record)
    execute(path, f"UPDATE sojourn_sessions SET {change}")

    assert store.load(record.sid) == record
    assert store.due(NOW, 60.0) == []
    changed = next_version(record)
    assert store.replace(changed, record.version) is SAVED
    assert store.list("alice") == [changed]
    assert store.list("mallory") == []
    [(status, due)] = execute(path, "SELECT status, due FROM sojourn_sessions")
    assert (status, due) == (LIVE, changed.deadline)


@pytest.mark.parametrize("change", DAMAGES)
@pytest.mark.parametrize("status", [ENDING, ENDED, None])
def test_a_damaged_row_can_be_ended(
    store: SqliteStore, path: Path, change: str, status: int | None
) -> None:
    """Whatever is damaged, `delete` ends it: it is no live session any more."""
    record = new_record(NOW)
    store.create(record)
    store.close()
    sql, values = DAMAGES[change]
    damage(path, sql, values)

    ended = None if status is None else Ended(status, "damaged", NOW, NOW + 60)
    assert store.delete(record.sid, ended)
    try:
        left = store.load(record.sid)
    except DamagedRecord:
        left = None
    assert left is None or left.status in (ENDING, ENDED)
    try:
        answer = store.replace(next_version(record), 1)
    except DamagedRecord:
        answer = GONE
    assert answer is GONE
    assert not touched(store, record)
    assert store.due(NOW + 120, 60.0) == [] or status == ENDING


def touched(store: SqliteStore, record: Record) -> bool:
    try:
        return any(store.touch(record.sid, version, NOW, NOW + 60) for version in (1, 2, 3))
    except DamagedRecord:
        return False


def test_flipped_bits(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A bit flipped anywhere in the file: an answer or an error of ours, from every verb."""
    store = SqliteStore(path)
    records = [new_record(NOW, user=f"user {i % 3}", data=bytes(i * 100)) for i in range(30)]
    for record in records:
        store.create(record)
    store.close()
    content = path.read_bytes()
    choose = random.Random(11)
    kinds: set[str] = set()
    for trial in range(250):
        copy = tmp_path / f"copy{trial}.db"
        bad = bytearray(content)
        # Half of them in the first pages, where the schema and the roots of the trees are.
        where = choose.randrange(len(bad) if trial % 2 else 3 * 4096)
        bad[where] ^= 1 << choose.randrange(8)
        copy.write_bytes(bad)
        kinds |= try_everything(copy, records)
        for file in tmp_path.glob("copy*"):
            file.unlink()
    for size in (0, 10, 100, 1000, 4096, 5000, len(content) // 2, len(content) - 1):
        copy = tmp_path / f"cut{size}.db"
        copy.write_bytes(content[:size])
        kinds |= try_everything(copy, records)

    assert {"DamagedRecord", "StoreUnavailable", "ConfigurationError", "Record"} <= kinds


def try_everything(path: Path, records: list[Record]) -> set[str]:
    """Call every verb; the kinds of what came. Whatever is not of ours goes through."""
    kinds: set[str] = set()
    try:
        store = SqliteStore(path, busy_timeout=0.1)
    except SojournError as error:
        return {type(error).__name__}
    calls: list[Any] = [lambda r=r: store.load(r.sid) for r in records]
    for record in records[:6]:
        calls.append(lambda r=record: store.replace(next_version(r, data=b"newer"), 1))
        calls.append(lambda r=record: store.touch(r.sid, 2, NOW, NOW + 60))
    for index, record in enumerate(records[6:12]):
        ended = Ended(1 + index % 2, "user", NOW, NOW + 60)
        calls.append(lambda r=record, e=ended: store.delete(r.sid, e))
    calls += [
        lambda: store.create(new_record(NOW)),
        lambda: store.list(None, None),
        lambda: store.list("user 1"),
        store.count,
        lambda: store.due(NOW + 9999, 60.0, 10),
    ]
    for call in calls:
        try:
            answer = call()
        except SojournError as error:
            kinds.add(type(error).__name__)
        else:
            kinds.add(type(answer).__name__)
            if isinstance(answer, Record):
                assert answer.status in (LIVE, ENDING, ENDED, MARK)
    store.close()
    return kinds


def test_a_file_that_is_cut_while_it_is_used(store: SqliteStore, path: Path) -> None:
    """The file becomes short under an open store: `StoreUnavailable`, nothing else."""
    records = [new_record(NOW, data=os.urandom(20_000)) for _ in range(50)]
    for record in records:
        store.create(record)
    store._checkpoint(store._idle)
    os.truncate(path, 5000)
    # A connection of its own has these pages not in its memory.
    other = SqliteStore(path)
    read = [one.sid for one in records if isinstance(outcome(other, one.sid), Record)]
    lost = [outcome(other, one.sid) for one in records if one.sid not in read]
    assert len(lost) > 20
    for error in lost:
        assert isinstance(error, StoreUnavailable)
        assert re.search(r"restore a backup|log of the system", str(error))


def test_a_fault_drops_all_connections(store: SqliteStore, path: Path) -> None:
    """After a fault of the disk no connection is kept from before: it may have the same fault."""
    record = new_record(NOW, data=os.urandom(50_000))
    store.create(record)
    store.close()
    store._idle += [store._open() for _ in range(3)]
    os.truncate(path, 30_000)
    assert isinstance(outcome(store, record.sid), StoreUnavailable)

    assert not store._idle


def outcome(store: SqliteStore, sid: str) -> Record | SojournError | None:
    try:
        return store.load(sid)
    except SojournError as error:
        return error


# What an event loop may call


def test_attempt(store: SqliteStore) -> None:
    """Four verbs can be tried without waiting, with the answers that they always have."""
    record = new_record(NOW)
    newer = next_version(record, data=b"newer")

    assert store.attempt("create", record) is True
    assert store.attempt("create", record) is False
    assert store.attempt("load", record.sid) == record
    assert store.attempt("replace", newer, 1) is SAVED
    assert store.attempt("replace", newer, 1) == newer
    assert store.attempt("touch", record.sid, 2, NOW, NOW + 60) is True
    assert store.attempt("load", "x" * 22) is None


def test_attempt_never_waits_for_another_writer(store: SqliteStore, path: Path) -> None:
    """While another connection or thread writes, `attempt` says at once that it would block."""
    record = new_record(NOW)
    store.create(record)
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(WouldBlock):
        store.attempt("touch", record.sid, 1, NOW, NOW + 60)
    with pytest.raises(WouldBlock):
        store.attempt("replace", next_version(record), 1)
    assert store.attempt("load", record.sid) == record
    assert time.monotonic() - began < 2.5  # busy_timeout is 5 s
    other.execute("ROLLBACK")
    other.close()

    with store._writing, pytest.raises(WouldBlock):
        store.attempt("touch", record.sid, 1, NOW, NOW + 60)
    assert store.attempt("touch", record.sid, 1, NOW, NOW + 60) is True


def test_attempt_restores_the_patience_of_a_connection(store: SqliteStore, path: Path) -> None:
    """After an attempt that met a lock, a usual call on that connection waits as it should."""
    record = new_record(NOW)
    store.create(record)
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(WouldBlock):
        store.attempt("touch", record.sid, 1, NOW, NOW + 60)
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(store.touch(record.sid, 1, NOW, NOW + 60)))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    other.execute("ROLLBACK")
    other.close()
    thread.join()

    assert done == [True]


def test_attempt_leaves_what_the_disk_must_confirm(path: Path) -> None:
    """`delete`, other verbs, a store with synchronous="full", a closed one: in a thread."""
    store = SqliteStore(path)
    record = new_record(NOW)
    store.create(record)
    for verb, arguments in (("delete", (record.sid,)), ("due", (NOW, 60.0)), ("close", ())):
        with pytest.raises(WouldBlock):
            store.attempt(verb, *arguments)
    store.close()
    with pytest.raises(WouldBlock):
        store.attempt("load", record.sid)
    full = SqliteStore(path, synchronous="full")
    with pytest.raises(WouldBlock):
        full.attempt("touch", record.sid, 1, NOW, NOW + 60)

    assert full.attempt("load", record.sid) == record


def test_attempt_on_a_loop_does_not_block_it(
    store: SqliteStore, no_blocking_on_the_loop: BlockBuster
) -> None:
    """All that `attempt` does on a loop passes the watch for blocking calls, checkpoints too."""
    record = new_record(NOW, data=os.urandom(50_000))

    async def run() -> int:
        nonlocal record
        store.attempt("create", record)
        tries = 0
        for _ in range(300):
            newer = next_version(record, data=os.urandom(50_000))
            try:
                assert store.attempt("replace", newer, record.version) is SAVED
            except WouldBlock:
                tries += 1
                await asyncio.to_thread(store.replace, newer, record.version)
            record = newer
        return tries

    assert asyncio.run(run()) < 100
    assert store.load(record.sid) == record


def test_a_file_that_is_deleted_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Within a second of writes it opens what is at the path now, and says so once."""
    now = [0.0]
    monkeypatch.setattr("sojourn.stores.sqlite.time.monotonic", lambda: now[0])
    path = tmp_path / "sessions.db"
    store = SqliteStore(path)
    before, after = new_record(NOW), new_record(NOW)
    assert store.create(before)
    for file in tmp_path.iterdir():
        file.unlink()
    other = SqliteStore(path)
    theirs = new_record(NOW)
    assert other.create(theirs)

    now[0] = 2.0
    assert store.create(after)

    assert other.load(after.sid) == after
    assert (store.load(theirs.sid), store.load(before.sid)) == (theirs, None)
    assert caplog.text.count("was deleted, moved or replaced") == 1
    other.close()
    store.close()
    assert SqliteStore(path).load(theirs.sid) == theirs
