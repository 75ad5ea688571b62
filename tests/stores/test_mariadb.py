"""MariaDB: the promises of every SQL store, and its own."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace as changed

from sojourn.core.calls import SAVED
from sojourn.core.record import ENDED, ENDING, Ended
from sojourn.errors import ConfigurationError, InvalidValue, StoreUnavailable
from sojourn.testing import CHECKS, new_record, next_version, run_check

from .servers_sql import MariadbServer, a_mariadb
from .sql_promises import SqlPromises, aclosing, closing

pymysql = pytest.importorskip("pymysql")
mariadb = pytest.importorskip("sojourn.stores.mariadb")

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server() -> Iterator[MariadbServer]:
    with a_mariadb() as running:
        yield running


def run_sql(server: MariadbServer, *statements: str) -> list[Any]:
    with server.connect("sojourn") as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return list(cursor.fetchall())


@pytest.fixture
def url(server: MariadbServer) -> str:
    """A database without tables."""
    run_sql(server, "DROP TABLE IF EXISTS sojourn_sessions, sojourn_meta, sojourn_more")
    return server.url()


class TestMariadb(SqlPromises):
    make = staticmethod(mariadb.from_url)
    amake = staticmethod(mariadb.afrom_url)

    @pytest.fixture(autouse=True)
    def _keep_server(self, server: MariadbServer) -> None:
        self.server = server

    def run_sql(self, url: str, *statements: str) -> list[Any]:
        return run_sql(self.server, *statements)

    def write_head(self, url: str, sid: str, head: bytes) -> None:
        text = f"UPDATE sojourn_sessions SET head = X'{head.hex()}' WHERE sid = '{sid}'"
        run_sql(self.server, text)

    @contextlib.contextmanager
    def a_lock_on(self, url: str, sid: str) -> Iterator[None]:
        with self.server.connect("sojourn") as connection, connection.cursor() as cursor:
            cursor.execute("START TRANSACTION")
            cursor.execute("SELECT 1 FROM sojourn_sessions WHERE sid = %s FOR UPDATE", (sid,))
            yield
            cursor.execute("ROLLBACK")

    def through(self, url: str, port: int) -> str:
        return f"mariadb://root@127.0.0.1:{port}/sojourn"


def test_nul_in_a_text(url: str) -> None:
    """MariaDB keeps a NUL in a text, in its place, and tells such users apart."""
    records = [new_record(time.time(), user=user, agent=user) for user in ("a", "a\0", "a\0b")]
    with closing(mariadb.from_url(url)) as store:
        for record in records:
            assert store.create(record)
        for record in records:
            assert store.list(record.user) == [record]


def test_data_larger_than_a_packet(server: MariadbServer, url: str) -> None:
    """Data that the server would not take are refused before they are sent, with both numbers."""
    record = new_record(time.time())
    run_sql(server, "SET GLOBAL max_allowed_packet = 1048576")
    try:
        with closing(mariadb.from_url(url)) as store:
            store.create(record)
            for size in (500_000, 1_000_000):
                with pytest.raises(InvalidValue, match="server takes 1048576: raise max_allowed"):
                    store.replace(next_version(record, data=bytes(size)), 1)
            fits = next_version(record, data=bytes(490_000))
            assert store.replace(fits, 1) is SAVED
            assert store.load(record.sid) == fits
    finally:
        run_sql(server, "SET GLOBAL max_allowed_packet = 67108864")


@pytest.mark.anyio
async def test_data_larger_than_a_packet_async(server: MariadbServer, url: str) -> None:
    """The same for prepared statements, which take their values as they are."""
    record = new_record(time.time())
    run_sql(server, "SET GLOBAL max_allowed_packet = 1048576")
    try:
        async with aclosing(mariadb.afrom_url(url)) as store:
            await store.create(record)
            with pytest.raises(InvalidValue, match="server takes 1048576: raise max_allowed"):
                await store.replace(next_version(record, data=bytes(1_000_000)), 1)
            fits = next_version(record, data=bytes(980_000))
            assert await store.replace(fits, 1) is SAVED
            assert await store.load(record.sid) == fits
    finally:
        run_sql(server, "SET GLOBAL max_allowed_packet = 67108864")


# The table and its plans.


@pytest.fixture
def filled(server: MariadbServer, url: str) -> MariadbServer:
    """A server with so many sessions that the planner has a choice."""
    with closing(mariadb.from_url(url)) as store:
        store.count()
    run_sql(
        server,
        "INSERT INTO sojourn_sessions (sid, version, status, seen, deadline, due, attempts, "
        "user_name, reason, head, data) SELECT lpad(seq, 22, 'A'), 1, if(seq % 100 = 0, 2, 0), "
        "seq, seq, seq, 0, if(seq % 3 > 0, concat('user', seq % 500), NULL), '', "
        "repeat('y', 150), repeat('x', 200) FROM seq_1_to_3000",
        "ANALYZE TABLE sojourn_sessions",
    )
    return server


def _plan(server: MariadbServer, text: str, values: tuple[Any, ...]) -> dict[str, Any]:
    with server.connect("sojourn") as connection:
        cursor = connection.cursor(pymysql.cursors.DictCursor)
        cursor.execute(f"EXPLAIN {text}", values)
        [row] = [row for row in cursor.fetchall() if row["table"]]
        return dict(row)


SID = "A" * 18 + "1234"


@pytest.mark.parametrize("dialect", [mariadb.Mariadb, mariadb.PackedMariadb])
@pytest.mark.parametrize(
    ("verb", "values", "key", "how"),
    [
        ("load", (SID,), "PRIMARY", "const"),
        ("touch", (1.0, 2.0, SID, 1), "PRIMARY", "range"),
        ("end", ("user", 2.0, SID), "PRIMARY", "range"),
        ("bury", ("user", 1.0, 2.0, 2.0, SID), "PRIMARY", "range"),
        ("remove", (SID,), "PRIMARY", "range"),
        ("look", (30.0, 10), "sojourn_sessions_due", "range"),
    ],
)
def test_each_statement_uses_its_index(
    filled: MariadbServer, dialect: Any, verb: str, values: tuple[Any, ...], key: str, how: str
) -> None:
    """EXPLAIN shows the index that was made for the statement, and no scan of the table."""
    plan = _plan(filled, getattr(dialect(), verb).text, values)

    assert (plan["key"], plan["type"]) == (key, how)
    assert "filesort" not in (plan["Extra"] or "")


@pytest.mark.parametrize(("verb", "more"), [("replace", ()), ("replace_any", (3, "", 0))])
def test_replace_uses_its_index(filled: MariadbServer, verb: str, more: tuple[Any, ...]) -> None:
    """The same for the statements that write all of a session."""
    values = (*more, 2, 1.0, 2.0, "user7", b"head", b"data", SID, 1)
    plan = _plan(filled, getattr(mariadb.Mariadb, verb).text, values)

    assert (plan["key"], plan["type"]) == ("PRIMARY", "range")


@pytest.mark.parametrize(
    ("verb", "arguments", "key", "covered"),
    [
        ("do_list", ("user7", 0, "", 10), "sojourn_sessions_user", False),
        ("do_list", ("user7", None, "", 10), "sojourn_sessions_user", False),
        ("do_list", (None, 2, "A", 10), "sojourn_sessions_status", False),
        ("do_count", ("user7", 0), "sojourn_sessions_user", True),
        ("do_count", ("user7", None), "sojourn_sessions_user", True),
        ("do_count", (None, 2), "sojourn_sessions_status", True),
        ("do_count", (None, 0), "sojourn_sessions_status", True),
    ],
)
def test_lists_and_counts_use_an_index(
    filled: MariadbServer, verb: str, arguments: tuple[Any, ...], key: str, covered: bool
) -> None:
    """Lists go through an index in its order, counts do not touch the table."""
    statement, values = next(getattr(mariadb.Mariadb(), verb)(*arguments))
    plan = _plan(filled, statement.text, values)

    assert plan["key"] == key
    assert "filesort" not in plan["Extra"]
    assert ("Using index" in plan["Extra"].split("; ")) is covered or not covered


def test_list_of_all_goes_through_the_primary_key(filled: MariadbServer) -> None:
    """A page of all sessions is read in the order of an index, without sorting."""
    statement, values = next(mariadb.Mariadb().do_list(None, 0, "A", 10))
    plan = _plan(filled, statement.text, values)

    assert plan["key"] in ("PRIMARY", "sojourn_sessions_status")
    assert "filesort" not in plan["Extra"]


def test_schema_by_hand_is_the_schema_on_demand(server: MariadbServer, url: str) -> None:
    """What `schema()` prints makes the same tables, and the store takes them as they are."""

    def described() -> list[Any]:
        return [
            run_sql(server, f"SHOW CREATE TABLE {name}")
            for name in ("sojourn_sessions", "sojourn_meta")
        ]

    with closing(mariadb.from_url(url)) as store:
        store.count()
    made = described()
    printed = [part for part in mariadb.schema().split(";\n") if part]
    run_sql(server, "DROP TABLE sojourn_sessions, sojourn_meta", *printed)
    with closing(mariadb.from_url(url)) as store:
        store.count()

    assert described() == made
    assert run_sql(server, "SELECT version FROM sojourn_meta") == [(1,)]


def test_keys_are_compared_by_their_bytes(server: MariadbServer, url: str) -> None:
    """Whatever the server's and the database's collation: binary, and with no padding."""
    with closing(mariadb.from_url(url)) as store:
        store.count()
    rows = run_sql(
        server,
        "SELECT DISTINCT collation_name FROM information_schema.columns WHERE "
        "table_name = 'sojourn_sessions' AND column_name IN ('sid', 'user_name')",
    )

    assert rows == [("utf8mb4_nopad_bin",)]


def test_a_user_that_may_make_no_tables(server: MariadbServer, url: str) -> None:
    """An application that may only read and write uses a schema that somebody else made."""
    run_sql(
        server,
        "CREATE OR REPLACE USER modest@'%' IDENTIFIED BY 'p@ss w/rd'",
        *[part for part in mariadb.schema().split(";\n") if part],
        "GRANT SELECT, INSERT, UPDATE, DELETE ON sojourn.sojourn_sessions TO modest@'%'",
        "GRANT SELECT ON sojourn.sojourn_meta TO modest@'%'",
    )
    record = new_record(time.time() - 7200)
    modest = url.replace("root@", "modest:p%40ss%20w%2Frd@")
    with closing(mariadb.from_url(modest)) as store:
        assert store.create(record)
        assert len(store.due(time.time(), 60.0)) == 1
        assert store.delete(record.sid)
    run_sql(server, "DROP USER modest@'%'")


class _Next(mariadb.PackedMariadb):
    """A release to come, with a second version of the schema."""

    migrations = (
        *mariadb.MIGRATIONS,
        (
            "ALTER TABLE sojourn_sessions ADD COLUMN IF NOT EXISTS tenant TEXT",
            "CREATE TABLE IF NOT EXISTS sojourn_more (a INTEGER)",
        ),
    )


def test_migration(server: MariadbServer, url: str) -> None:
    """A newer release brings an older schema up to date, keeps the records, and does so once."""
    record = new_record(time.time())
    with closing(mariadb.from_url(url)) as store:
        store.create(record)
        for _ in range(2):
            newer = mariadb.from_url(url)
            newer._dialect = _Next()
            with closing(newer):
                assert newer.load(record.sid) == record
        # The older release, which runs beside it during a rolling deploy, goes on.
        assert store.replace(next_version(record), 1) is SAVED
    assert run_sql(server, "SELECT version FROM sojourn_meta") == [(2,)]
    assert run_sql(server, "SELECT count(*) FROM sojourn_more") == [(0,)]


def test_a_migration_that_was_cut_off_is_finished(server: MariadbServer, url: str) -> None:
    """MariaDB commits each step by itself: what was done before the cut is done again unharmed."""
    record = new_record(time.time())
    with closing(mariadb.from_url(url)) as store:
        store.create(record)
    run_sql(server, "ALTER TABLE sojourn_sessions ADD COLUMN tenant TEXT")
    with closing(mariadb.from_url(url)) as store:
        store._dialect = _Next()
        assert store.load(record.sid) == record
    assert run_sql(server, "SELECT version FROM sojourn_meta") == [(2,)]


def test_another_process_at_the_schema(server: MariadbServer, url: str) -> None:
    """Who makes the tables holds off others; where that takes too long, they say so."""
    with closing(mariadb.from_url(url + "?timeout=1.5")) as store:
        with server.connect("sojourn") as connection, connection.cursor() as cursor:
            cursor.execute("SELECT get_lock(concat('sojourn.', md5(database())), 0)")
            with pytest.raises(StoreUnavailable, match="another process"):
                store.count()
        assert store.count() == 0


# What the connection is like.


def test_the_store_brings_its_own_settings(server: MariadbServer, url: str) -> None:
    """Strict values, READ COMMITTED and time limits, on a server that is set otherwise."""
    with closing(mariadb.from_url(url + "?timeout=2")) as store:
        connection = store._source.take()
        rows, _ = connection.execute(
            mariadb.Statement(
                "SELECT @@sql_mode, @@tx_isolation, @@autocommit, @@max_statement_time, "
                "@@innodb_lock_wait_timeout, @@global.sql_mode, @@character_set_client",
                True,
            ),
            (),
        )
        store._source.give(connection)

    mode, isolation, autocommit, limit, lock_wait, around, charset = rows[0]
    assert mode == "STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION"
    assert (isolation, autocommit, float(limit), lock_wait) == ("READ-COMMITTED", 1, 1.8, 1)
    assert (around, charset) == ("", "utf8mb4")


def test_a_server_that_is_not_durable_is_told_of(
    server: MariadbServer, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """innodb_flush_log_at_trx_commit decides for all writes; the log says so where it is not 1."""
    run_sql(server, "SET GLOBAL innodb_flush_log_at_trx_commit = 2")
    try:
        with caplog.at_level(logging.WARNING), closing(mariadb.from_url(url)) as store:
            store.count()
            store.count()
    finally:
        run_sql(server, "SET GLOBAL innodb_flush_log_at_trx_commit = 1")
    told = [record for record in caplog.records if "innodb_flush" in record.message]

    assert len(told) == 1
    assert "is 2" in told[0].message


@pytest.mark.parametrize(
    "ended",
    [None, Ended(ENDED, "user", 1e9, 2e9), Ended(ENDING, "user", 1e9, 2e9)],
    ids=["removed", "ended", "ending"],
)
def test_logout_survives_a_kill(server: MariadbServer, url: str, ended: Ended | None) -> None:
    """The server is killed at once after the answer: the session stays ended."""
    record = new_record(time.time())
    with closing(mariadb.from_url(url)) as store:
        store.create(record)
        assert store.delete(record.sid, ended)
        server.kill()
        server.start()
        found = store.load(record.sid)

    assert found is None if ended is None else found.status == ended.status


def test_read_only_server(server: MariadbServer, url: str) -> None:
    """A server that takes no writes: reads go on, writes are StoreUnavailable."""
    record = new_record(time.time())
    run_sql(
        server,
        "CREATE OR REPLACE USER reader@'%'",
        "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE ON sojourn.* TO reader@'%'",
    )
    with closing(mariadb.from_url(url.replace("root@", "reader@"))) as store:
        store.create(record)
        run_sql(server, "SET GLOBAL read_only = 1")
        try:
            assert store.load(record.sid) == record
            for call in (
                lambda: store.create(new_record(time.time())),
                lambda: store.replace(next_version(record), 1),
                lambda: store.touch(record.sid, 1, 1.0, 2.0),
                lambda: store.delete(record.sid),
            ):
                with pytest.raises(StoreUnavailable, match="read-only"):
                    call()
        finally:
            run_sql(server, "SET GLOBAL read_only = 0")
        assert store.replace(next_version(record), 1) is SAVED


def test_a_killed_connection_is_replaced(server: MariadbServer, url: str) -> None:
    """An administrator's KILL, or wait_timeout, costs nobody an error."""
    record = new_record(time.time())
    with closing(mariadb.from_url(url)) as store:
        store.create(record)
        connection = store._source.take()
        number = connection.raw.thread_id()
        store._source.give(connection)
        run_sql(server, f"KILL {number}")
        assert store.load(record.sid) == record


def test_one_statement_a_verb(server: MariadbServer, url: str) -> None:
    """A request costs one statement a verb: no BEGIN, no COMMIT, no question on checkout.

    Once the connection has prepared them.
    """
    record = new_record(time.time())
    with closing(mariadb.from_url(url)) as store:
        for _ in range(2):
            store.create(record)
            store.load(record.sid)
            store.replace(next_version(record), 1)
            store.touch(record.sid, 2, record.seen, record.deadline)
            store.delete(record.sid)
        store.create(record)
        connection = store._source.take()
        sent: list[Any] = []
        execute_command = connection.raw._execute_command

        def counting(command: int, text: Any) -> None:
            sent.append(text)
            execute_command(command, text)

        connection.raw._execute_command = counting
        store._source.give(connection)
        store.load(record.sid)
        store.replace(next_version(record), 1)
        store.touch(record.sid, 2, record.seen, record.deadline)
        store.delete(record.sid)

    assert [text.partition(b" USING")[0].decode() for text in sent if text] == [
        "EXECUTE sojourn_load",
        "EXECUTE sojourn_replace",
        "EXECUTE sojourn_touch",
        f"DELETE FROM sojourn_sessions WHERE sid = '{record.sid}'",
    ]


def test_no_room_for_prepared_statements(server: MariadbServer, url: str) -> None:
    """Where the server takes no more of them, all goes on, with the statements as they are."""
    record = new_record(time.time())
    run_sql(server, "SET GLOBAL max_prepared_stmt_count = 0")
    try:
        with closing(mariadb.from_url(url)) as store:
            assert store.create(record)
            assert not store.create(record)
            assert store.touch(record.sid, 1, record.seen, record.deadline)
            newer = changed(record, version=3, user="it's")
            assert store.replace(newer, 2) is SAVED
            assert store.load(record.sid) == newer
    finally:
        run_sql(server, "SET GLOBAL max_prepared_stmt_count = 16382")


def test_an_engines_connections_keep_no_prepared_statements(
    server: MariadbServer, url: str
) -> None:
    """What the application's connections are used for otherwise is not touched."""
    engine = _engine(server)
    try:
        store = mariadb.MariadbStore.from_engine(engine)
        store.create(new_record(time.time()))
        with engine.connect() as connection:
            rows = connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Com_prepare_sql'")
            counted = [int(row[1]) for row in rows]
    finally:
        engine.dispose()

    assert counted == [0]


@pytest.mark.anyio
async def test_the_asynchronous_store_prepares_its_statements(
    server: MariadbServer, url: str
) -> None:
    """Each statement is prepared once for a connection, and then only executed."""
    record = new_record(time.time())
    async with aclosing(mariadb.afrom_url(url)) as store:
        await store.create(record)
        for _ in range(10):
            await store.load(record.sid)
        connection = await store._source.take()
        rows, _ = await connection.execute(
            mariadb.Statement("SHOW SESSION STATUS LIKE 'Com_stmt_%'", True), ()
        )
        store._source.give(connection)
    counts = {name: int(value) for name, value in rows}

    assert counts["Com_stmt_prepare"] == 2
    assert counts["Com_stmt_execute"] == 11


# Handed in.


def _engine(server: MariadbServer, **arguments: Any) -> Any:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    return sqlalchemy.create_engine(
        f"mariadb+pymysql://root@127.0.0.1:{server.port}/sojourn",
        connect_args={
            "read_timeout": 1,
            "write_timeout": 1,
            "sql_mode": "STRICT_ALL_TABLES",
            "charset": "utf8mb4",
            **arguments,
        },
    )


def test_sqlalchemy_engine(server: MariadbServer, url: str) -> None:
    """An engine that the application has: the contract, on its pool, with everything committed.

    SQLAlchemy's connections count the rows that an UPDATE found; ours count those it changed.
    """
    engine = _engine(server)
    try:
        store = mariadb.MariadbStore.from_engine(engine)
        for check in CHECKS:
            store.count()
            run_sql(server, "DELETE FROM sojourn_sessions")
            if "any_calls" not in check.__name__ and "race" not in check.__module__:
                run_check(check, store)
        record = new_record(time.time())
        store.create(record)
        assert run_sql(server, f"SELECT sid FROM sojourn_sessions WHERE sid = '{record.sid}'")
        assert engine.pool.checkedout() == 0
        assert engine.pool.checkedin() > 0
    finally:
        engine.dispose()


def test_sqlalchemy_engine_and_faults(server: MariadbServer, url: str) -> None:
    """On an engine too: a bounded wait for a server that hangs, and no error after a restart."""
    engine = _engine(server)
    record = new_record(time.time())
    try:
        store = mariadb.MariadbStore.from_engine(engine)
        store.create(record)
        with server.hung():
            start = time.monotonic()
            with pytest.raises(StoreUnavailable, match="no answer"):
                store.load(record.sid)
            assert time.monotonic() - start < 3.0
        assert store.load(record.sid) == record
        server.stop()
        server.start()
        assert store.load(record.sid) == record
    finally:
        engine.dispose()


def test_engines_that_cannot_work(server: MariadbServer, url: str) -> None:
    """Another driver, or values that would be cut to fit, are refused by name."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    with pytest.raises(ConfigurationError, match=r"sqlite\+pysqlite"):
        mariadb.MariadbStore.from_engine(sqlalchemy.create_engine("sqlite://"))
    loose = _engine(server, sql_mode="")
    try:
        with pytest.raises(ConfigurationError, match="cut to fit; add STRICT_ALL_TABLES"):
            mariadb.MariadbStore.from_engine(loose).load("a" * 22)
    finally:
        loose.dispose()


def test_connections_made_by_the_application(server: MariadbServer, url: str) -> None:
    """A callable that makes PyMySQL connections, of whatever settings, is enough."""
    record = new_record(time.time(), user="\u00e9 ")
    made = []

    def connect() -> Any:
        made.append(
            pymysql.connect(host="127.0.0.1", port=server.port, user="root", database="sojourn")
        )
        return made[-1]

    with closing(mariadb.MariadbStore(connect)) as store:
        assert store.create(record)
        assert store.list("\u00e9 ") == [record]
        assert store.list("e ") == []
        assert len(made) == 1


DJANGO = """
import sys, time
import pymysql
pymysql.install_as_MySQLdb()
import django
from django.conf import settings
settings.configure(DATABASES={"default": {
    "ENGINE": "django.db.backends.mysql", "NAME": "sojourn", "USER": "root",
    "HOST": "127.0.0.1", "PORT": int(sys.argv[1]),
}})
django.setup()
from django.db import connection, transaction
from sojourn.stores.mariadb import MariadbStore
from sojourn.testing import CHECKS, new_record, run_check

def connect():
    return connection.get_new_connection(connection.get_connection_params())

store = MariadbStore(connect)
for check in CHECKS:
    store.count()
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM sojourn_sessions")
    run_check(check, store)
record = new_record(time.time())
try:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        assert store.create(record)
        raise LookupError
except LookupError:
    pass
assert store.load(record.sid) == record, "the session went with the request's transaction"
store.close()
connection.close()
"""


def test_django_connection(server: MariadbServer, url: str) -> None:
    """Django's settings make the connections; a request's rollback takes no session with it."""
    pytest.importorskip("django")
    from .sql_promises import finish, python

    finish([python(DJANGO, str(server.port))])


# URLs.


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("mariadb://me:hidden@localhost", "no database"),
        ("mariadb://me:hidden@localhost/x?pool_size=-1", "pool_size='-1'"),
        ("mariadb://me:hidden@localhost/x?colour=red", "unknown setting 'colour'.*unix_socket"),
        ("mariadb://me:hidden@localhost:port/", "port.*no database"),
    ],
)
def test_urls_that_cannot_work(url: str, named: str) -> None:
    """Every wrong setting is named, before anything connects; the password is not."""
    for make in (mariadb.from_url, mariadb.afrom_url):
        with pytest.raises(ConfigurationError, match=named) as caught:
            make(url)
        assert "hidden" not in str(caught.value)


def test_a_socket_of_the_machine(server: MariadbServer, url: str) -> None:
    """`unix_socket` in the URL leads to the server."""
    path = server.home / "s"
    record = new_record(time.time())
    if len(os.fsencode(path)) > 100:
        pytest.skip("the path of the socket is too long for a socket")
    with closing(mariadb.from_url(f"mariadb://root@/sojourn?unix_socket={path}")) as store:
        assert store.create(record)
        assert store.load(record.sid) == record


def test_tls_is_not_given_up(server: MariadbServer) -> None:
    """Where the URL asks for TLS and the server has none, there is no connection in clear."""
    with (
        closing(mariadb.from_url(server.url() + "?ssl=1")) as store,
        pytest.raises(StoreUnavailable, match="cannot connect to MariaDB at 127"),
    ):
        store.load("a" * 22)


def test_an_older_server_is_refused() -> None:
    """What is not MariaDB 10.6 or newer, or names no database: all faults in one message."""
    dialect = mariadb.Mariadb()
    steps = dialect.prepare()
    next(steps)
    with pytest.raises(ConfigurationError, match=r"8\.0\.36.*10\.6 or newer; no database"):
        steps.send(([("8.0.36", None, "STRICT_TRANS_TABLES", 1, 1, 0)], 1))
