"""PostgreSQL: the promises of every SQL store, and its own."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace as changed

from sojourn.core.calls import SAVED
from sojourn.core.record import ENDED, ENDING, Ended
from sojourn.errors import ConfigurationError, InvalidValue, StoreUnavailable
from sojourn.testing import CHECKS, new_record, next_version, run_check

from .servers_sql import PostgresqlServer, a_postgresql
from .sql_promises import SqlPromises, aclosing, closing

psycopg = pytest.importorskip("psycopg")
postgresql = pytest.importorskip("sojourn.stores.postgresql")

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresqlServer]:
    with a_postgresql() as running:
        yield running


def run_sql(url: str, *statements: str, values: tuple[Any, ...] | None = None) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        rows: list[Any] = []
        for statement in statements:
            cursor = connection.execute(statement, values)
            rows = cursor.fetchall() if cursor.description else []
        return rows


@pytest.fixture
def url(server: PostgresqlServer) -> str:
    """A database without tables."""
    run_sql(server.url(), "DROP TABLE IF EXISTS sojourn_sessions, sojourn_meta")
    return server.url()


@contextlib.contextmanager
def a_filled_store(url: str, sessions: int = 3000) -> Iterator[Any]:
    """A store with so many sessions that the planner has a choice, and its connection."""
    with closing(postgresql.from_url(url)) as store:
        store.count()
        run_sql(
            url,
            "INSERT INTO sojourn_sessions (sid, version, status, seen, deadline, due, attempts, "
            "user_name, reason, head, data) SELECT lpad(i::text, 22, 'A'), 1, CASE i % 100 "
            "WHEN 0 THEN 2 ELSE 0 END, i, i, i, 0, CASE WHEN i % 3 > 0 THEN 'user' || i % 500 END, "
            "'', decode(repeat('cd', 150), 'hex'), decode(repeat('ab', 200), 'hex') "
            f"FROM generate_series(1, {sessions}) i",
            "VACUUM ANALYZE sojourn_sessions",
        )
        yield store


class TestPostgresql(SqlPromises):
    make = staticmethod(postgresql.from_url)
    amake = staticmethod(postgresql.afrom_url)

    def run_sql(self, url: str, *statements: str) -> list[Any]:
        return run_sql(url, *statements)

    def write_head(self, url: str, sid: str, head: bytes) -> None:
        run_sql(url, "UPDATE sojourn_sessions SET head = %s WHERE sid = %s", values=(head, sid))

    @contextlib.contextmanager
    def a_lock_on(self, url: str, sid: str) -> Iterator[None]:
        with psycopg.connect(url) as connection:
            connection.execute("SELECT 1 FROM sojourn_sessions WHERE sid = %s FOR UPDATE", (sid,))
            yield
            connection.rollback()

    def through(self, url: str, port: int) -> str:
        return f"postgresql://sojourn@127.0.0.1:{port}/postgres"


@pytest.mark.parametrize("number", [1, 2, 3], ids=["second", "third", "fourth"])
def test_contract_on_older_versions(number: int) -> None:
    """Every other version that is installed keeps the contract."""
    with a_postgresql(number) as running, closing(postgresql.from_url(running.url())) as store:
        for check in CHECKS:
            store.count()
            run_sql(running.url(), "DELETE FROM sojourn_sessions")
            run_check(check, store)


def test_nul_in_a_text(url: str) -> None:
    """PostgreSQL has no NUL in a text: InvalidValue before anything is sent, and nobody's list."""
    record = new_record(time.time())
    with closing(postgresql.from_url(url)) as store:
        store.create(record)
        for fields in ({"user": "a\0"}, {"agent": "\0"}, {"address": "\0"}, {"reason": "\0"}):
            with pytest.raises(InvalidValue, match="keeps no NUL"):
                store.create(new_record(time.time(), **fields))
            with pytest.raises(InvalidValue, match="keeps no NUL"):
                store.replace(next_version(record, **fields), 1)
        assert store.list("a\0") == []
        assert store.count("a\0") == 0
        assert store.list(status=None) == [record]


# The table and its plans.


@pytest.mark.parametrize(
    ("verb", "values", "index"),
    [
        ("load", ("A" * 18 + "1234",), "Index Scan using sojourn_sessions_pkey"),
        ("touch", (1.0, 2.0, "A" * 18 + "1234", 1), "Index Scan using sojourn_sessions_pkey"),
        ("end", ("user", 2.0, "A" * 18 + "1234"), "Index Scan using sojourn_sessions_pkey"),
        ("bury", ("u", 1.0, 2.0, 2.0, "A" * 18 + "1234"), "Index Scan using sojourn_sessions_pkey"),
        ("remove", ("A" * 18 + "1234",), "Index Scan using sojourn_sessions_pkey"),
        ("claim", (30.0, 90.0, 30.0, 10), "Index Scan using sojourn_sessions_due"),
    ],
)
def test_each_statement_uses_its_index(
    url: str, verb: str, values: tuple[Any, ...], index: str
) -> None:
    """EXPLAIN shows the index that was made for the statement, and no scan of the table."""
    with a_filled_store(url):
        statement = getattr(postgresql.Postgresql(), verb)
        plan = "\n".join(row[0] for row in run_sql(url, f"EXPLAIN {statement.text}", values=values))

    assert index in plan
    assert "Seq Scan" not in plan


@pytest.mark.parametrize(("verb", "more"), [("replace", ()), ("replace_any", (3, "", 0))])
def test_replace_uses_its_index(url: str, verb: str, more: tuple[Any, ...]) -> None:
    """The same for the statements that write all of a session."""
    values = (*more, 2, 1.0, 2.0, "user7", b"head", b"data", 2.0, "A" * 18 + "1234", 1)
    statement = getattr(postgresql.Postgresql, verb)
    with a_filled_store(url):
        plan = run_sql(url, f"EXPLAIN {statement.text}", values=values)

    assert any("Index Scan using sojourn_sessions_pkey" in row[0] for row in plan)


@pytest.mark.parametrize(
    ("verb", "arguments", "index"),
    [
        ("do_list", ("user7", 0, "", 10), "sojourn_sessions_user"),
        ("do_list", ("user7", None, "", 10), "sojourn_sessions_user"),
        ("do_list", (None, 0, "A", 10), "Index Scan using sojourn_sessions_pkey"),
        ("do_list", (None, 2, "A", 10), "Index Scan using sojourn_sessions_ended"),
        ("do_count", ("user7", 0), "Index Only Scan using sojourn_sessions_user"),
        ("do_count", ("user7", None), "Index Only Scan using sojourn_sessions_user"),
        ("do_count", (None, 2), "Index Only Scan using sojourn_sessions_ended"),
        ("do_count", (None, 0), "Index Only Scan using sojourn_sessions_pkey"),
    ],
)
def test_lists_and_counts_use_an_index(
    url: str, verb: str, arguments: tuple[Any, ...], index: str
) -> None:
    """Lists go through an index in its order, counts do not touch the table."""
    with a_filled_store(url):
        statement, values = next(getattr(postgresql.Postgresql(), verb)(*arguments))
        plan = "\n".join(row[0] for row in run_sql(url, f"EXPLAIN {statement.text}", values=values))

    assert index in plan
    assert "Seq Scan" not in plan


def _updates(url: str, expected: int) -> tuple[int, int]:
    """How many updates there were, and how many of them were heap-only, once they are counted."""
    end = time.monotonic() + 20
    updates = hot = 0
    while updates < expected and time.monotonic() < end:
        [(updates, hot)] = run_sql(
            url,
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables "
            "WHERE relname = 'sojourn_sessions'",
        )
        time.sleep(0.05)
    assert updates == expected
    return updates, hot


def test_touches_are_hot(url: str) -> None:
    """A touch changes no index, and its page has room: a heap-only update, from the first on."""
    records = [new_record(time.time(), data=bytes(200), user=f"user{i}") for i in range(200)]
    with closing(postgresql.from_url(url)) as store:
        for record in records:
            store.create(record)
        for record in records:
            assert store.touch(record.sid, 1, record.seen + 9, record.deadline + 60)
    updates, hot = _updates(url, 200)

    assert hot / updates > 0.95


def test_replaces_are_hot(url: str) -> None:
    """So is a replace that changes data and puts off the deadline, again and again."""
    records = [new_record(time.time(), data=bytes(200), user=f"user{i}") for i in range(200)]
    with closing(postgresql.from_url(url)) as store:
        for record in records:
            store.create(record)
        for version in range(1, 6):
            for record in records:
                newer = changed(
                    record,
                    version=version + 1,
                    data=bytes(200 + version),
                    deadline=record.deadline + version,
                )
                assert store.replace(newer, version) is SAVED
    updates, hot = _updates(url, 1000)

    assert hot / updates > 0.95


def test_large_data_are_stored_as_they_are(url: str) -> None:
    """64 KB that would compress well lie in the TOAST table at their full size."""
    record = new_record(time.time(), data=bytes(65536))
    with closing(postgresql.from_url(url)) as store:
        store.create(record)
        [(size,)] = run_sql(url, "SELECT pg_column_size(data) FROM sojourn_sessions")

    assert size == 65536


def test_keys_are_compared_by_their_bytes(url: str) -> None:
    """Whatever the collation of the database."""
    with closing(postgresql.from_url(url)) as store:
        store.count()
    rows = run_sql(
        url,
        "SELECT DISTINCT collation_name FROM information_schema.columns WHERE "
        "table_name = 'sojourn_sessions' AND column_name IN ('sid', 'user_name')",
    )

    assert rows == [("C",)]


def test_schema_by_hand_is_the_schema_on_demand(url: str) -> None:
    """What `schema()` prints makes the same tables, and the store takes them as they are."""

    def described() -> list[Any]:
        return run_sql(
            url,
            "SELECT table_name, column_name, data_type, is_nullable, collation_name "
            "FROM information_schema.columns WHERE table_name LIKE 'sojourn%' "
            "UNION ALL SELECT tablename, indexname, indexdef, '', '' FROM pg_indexes "
            "WHERE tablename LIKE 'sojourn%' "
            "UNION ALL SELECT relname, reloptions::text, '', '', '' "
            "FROM pg_class WHERE relname = 'sojourn_sessions' ORDER BY 1, 2",
        )

    with closing(postgresql.from_url(url)) as store:
        store.count()
    made = described()
    run_sql(url, "DROP TABLE sojourn_sessions, sojourn_meta", postgresql.schema())
    with closing(postgresql.from_url(url)) as store:
        store.count()

    assert described() == made
    assert len(made) == 17


def test_a_role_that_may_make_no_tables(url: str) -> None:
    """An application that may only read and write uses a schema that somebody else made."""
    run_sql(
        url,
        "DROP ROLE IF EXISTS modest",
        "CREATE ROLE modest LOGIN",
        postgresql.schema(),
        "GRANT SELECT, INSERT, UPDATE, DELETE ON sojourn_sessions TO modest",
        "GRANT SELECT ON sojourn_meta TO modest",
    )
    record = new_record(time.time() - 7200)
    with closing(postgresql.from_url(url.replace("sojourn@", "modest@"))) as store:
        assert store.create(record)
        assert len(store.due(time.time(), 60.0)) == 1
        assert store.delete(record.sid)
    run_sql(url, "DROP OWNED BY modest", "DROP ROLE modest")


class _Next(postgresql.Postgresql):
    """A release to come, with a second version of the schema."""

    migrations = (
        *postgresql.MIGRATIONS,
        "ALTER TABLE sojourn_sessions ADD COLUMN tenant text; CREATE TABLE sojourn_more (a int);",
    )


def test_migration(url: str) -> None:
    """A newer release brings an older schema up to date, keeps the records, and does so once."""
    record = new_record(time.time())
    run_sql(url, "DROP TABLE IF EXISTS sojourn_more")
    with closing(postgresql.from_url(url)) as store:
        store.create(record)
        for _ in range(2):
            newer = postgresql.from_url(url)
            newer._dialect = _Next()
            with closing(newer):
                assert newer.load(record.sid) == record
        # The older release, which runs beside it during a rolling deploy, goes on.
        assert store.replace(next_version(record), 1) is SAVED
    assert run_sql(
        url, "SELECT version FROM sojourn_meta", "SELECT count(*) FROM sojourn_more"
    ) == [(0,)]
    assert run_sql(url, "SELECT version FROM sojourn_meta") == [(2,)]
    run_sql(url, "DROP TABLE sojourn_more")


def test_a_migration_that_fails_changes_nothing(url: str) -> None:
    """The steps are one transaction: after an error the old schema is there, untouched."""

    class Broken(postgresql.Postgresql):
        migrations = (
            *postgresql.MIGRATIONS,
            "CREATE TABLE sojourn_half (a int)",
            "SELECT 1 / 0",
        )

    record = new_record(time.time())
    with closing(postgresql.from_url(url)) as store:
        store.create(record)
        store.close()
        store._dialect, store._ready = Broken(), False
        with pytest.raises(StoreUnavailable, match="division by zero"):
            store.load(record.sid)
    with closing(postgresql.from_url(url)) as store:
        assert store.load(record.sid) == record
    assert run_sql(url, "SELECT to_regclass('sojourn_half')") == [(None,)]


# Durability.


def _power_fails(server: PostgresqlServer) -> None:
    """Stop the log's writer, so that only what was waited for is on the disk; then kill all."""
    server.signal(signal.SIGSTOP)
    server.kill()
    server.start()


def test_logout_is_durable_where_commits_are_not(server: PostgresqlServer, url: str) -> None:
    """With synchronous_commit=off a kill may take a touch back, but no end of a session."""
    now = time.time()
    kept = [new_record(now) for _ in range(3)]
    relaxed = url + "?options=-c%20synchronous_commit%3Doff"
    with closing(postgresql.from_url(url)) as store:
        for record in kept:
            store.create(record)
    endings = (None, Ended(ENDED, "user", now, now + 60.0), Ended(ENDING, "user", now, now + 60.0))
    for record, ended in zip(kept, endings, strict=True):
        with closing(postgresql.from_url(relaxed)) as store:
            lost = new_record(now)
            assert store.delete(record.sid, ended)
            assert store.create(lost)
            _power_fails(server)
            found = store.load(record.sid)
            assert found is None or found.status == ended.status
            # That this one is gone shows that the test would notice.
            assert store.load(lost.sid) is None


def test_relaxed_touches(server: PostgresqlServer, url: str) -> None:
    """With relaxed_touches a touch does not wait for the disk, and everything else does."""
    now = time.time()
    record = new_record(now)
    with closing(postgresql.from_url(url + "?relaxed_touches=1")) as store:
        assert store.create(record)
        assert store.touch(record.sid, 1, now + 60.0, now + 1860.0)
        _power_fails(server)
        assert store.load(record.sid) == record
        newer = next_version(record)
        assert store.replace(newer, 1) is SAVED
        _power_fails(server)
        assert store.load(record.sid) == newer
    with closing(postgresql.from_url(url)) as store:
        assert store.touch(record.sid, 2, now + 60.0, now + 1860.0)
        _power_fails(server)
        assert store.load(record.sid).version == 3


def test_read_only_server(url: str) -> None:
    """A server that takes no writes: reads go on, writes are StoreUnavailable, none is reported."""
    record = new_record(time.time())
    with closing(postgresql.from_url(url)) as store:
        store.create(record)
    with closing(
        postgresql.from_url(url + "?options=-c%20default_transaction_read_only%3Don")
    ) as store:
        assert store.load(record.sid) == record
        for call in (
            lambda: store.create(new_record(time.time())),
            lambda: store.replace(next_version(record), 1),
            lambda: store.touch(record.sid, 1, 1.0, 2.0),
            lambda: store.delete(record.sid),
            lambda: store.due(time.time(), 60.0),
        ):
            with pytest.raises(StoreUnavailable, match="read-only"):
                call()


def test_one_statement_a_verb(url: str) -> None:
    """A request costs one round trip a verb: no BEGIN, no COMMIT, no question on checkout."""
    record = new_record(time.time())
    with closing(postgresql.from_url(url)) as store:
        store.create(record)
        store.load(record.sid)
        store.replace(next_version(record), 1)
        store.touch(record.sid, 2, record.seen, record.deadline)
        seen: list[str] = []
        connection = store._source.take()
        waited = connection.raw.wait

        def counting(gen: Any, *arguments: Any, **more: Any) -> Any:
            seen.append(gen.__name__)
            return waited(gen, *arguments, **more)

        connection.raw.wait = counting
        store._source.give(connection)
        store.load(record.sid)
        store.replace(changed(record, version=4), 3)
        store.touch(record.sid, 4, record.seen, record.deadline)

    assert len(seen) == 3


def test_ints_of_any_size_share_a_prepared_statement(url: str) -> None:
    """psycopg prepares for each combination of types; a version that grows does not add any."""
    with closing(postgresql.from_url(url)) as store:
        for version in (1, 40_000, 3_000_000_000):
            record = new_record(time.time(), version=version, generation=version)
            store.create(record)
            store.replace(next_version(record), version)
        connection = store._source.take()
        rows, _ = connection.execute(
            postgresql.Statement(
                "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE %s", True
            ),
            ("%sojourn_sessions%",),
        )
        store._source.give(connection)

    assert rows[0][0] == 2  # create and replace


# Handed in.


def test_sqlalchemy_engine(url: str) -> None:
    """An engine that the application has: the contract, on its pool, which stays usable."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        store = postgresql.PostgresqlStore.from_engine(engine, timeout=2.0)
        for check in CHECKS:
            store.count()
            run_sql(url, "DELETE FROM sojourn_sessions")
            run_check(check, store)
        assert engine.pool.checkedout() == 0
        assert engine.pool.checkedin() > 0
        with engine.begin() as connection:
            assert not connection.connection.driver_connection.autocommit
            connection.execute(sqlalchemy.text("CREATE TEMPORARY TABLE a (b int)"))
    finally:
        engine.dispose()


def test_sqlalchemy_engine_and_faults(server: PostgresqlServer, url: str) -> None:
    """On an engine too: a bounded wait for a server that hangs, and no error after a restart."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    record = new_record(time.time())
    try:
        store = postgresql.PostgresqlStore.from_engine(engine, timeout=1.0)
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


def test_engine_of_another_driver(url: str) -> None:
    """An engine that the store cannot use is refused by name."""
    sqlalchemy = pytest.importorskip("sqlalchemy")

    with pytest.raises(ConfigurationError, match=r"sqlite\+pysqlite"):
        postgresql.PostgresqlStore.from_engine(sqlalchemy.create_engine("sqlite://"))


DJANGO = """
import sys, time
import django
from django.conf import settings
host, port = sys.argv[1].split(":")
settings.configure(DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "USER": "sojourn",
    "HOST": host, "PORT": port, "ATOMIC_REQUESTS": True,
}})
django.setup()
from django.db import connection, transaction
from sojourn.stores.postgresql import PostgresqlStore
from sojourn.testing import CHECKS, new_record, run_check

def connect():
    return connection.get_new_connection(connection.get_connection_params())

store = PostgresqlStore(connect)
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


def test_django_connection(server: PostgresqlServer, url: str) -> None:
    """Django's settings make the connections; a request's rollback takes no session with it."""
    pytest.importorskip("django")
    from .sql_promises import finish, python

    finish([python(DJANGO, f"127.0.0.1:{server.port}")])


# URLs.


def test_settings_of_the_url(url: str) -> None:
    """What the URL says reaches the server: the time limit, libpq's own options, isolation."""
    with closing(postgresql.from_url(url + "?timeout=2&options=-c%20work_mem%3D5MB")) as store:
        connection = store._source.take()
        rows, _ = connection.execute(
            postgresql.Statement(
                "SELECT current_setting('statement_timeout'), current_setting('work_mem'), "
                "current_setting('default_transaction_isolation')",
                True,
            ),
            (),
        )
        store._source.give(connection)

    assert rows == [("1800ms", "5MB", "read committed")]


@pytest.mark.parametrize(
    ("end", "named"),
    [
        ("?pool_size=0", "pool_size='0'"),
        ("?timeout=soon&pool_size=many", "timeout='soon'.*pool_size='many'"),
        ("?relaxed_touches=perhaps", "0 or 1"),
        ("?nonsense=1", "nonsense"),
    ],
)
def test_urls_that_cannot_work(end: str, named: str) -> None:
    """Every wrong setting is named, before anything connects; the password is not."""
    with pytest.raises(ConfigurationError, match=named) as caught:
        postgresql.from_url("postgresql://me:hidden@localhost/x" + end)

    assert "hidden" not in str(caught.value)


def test_errors_show_no_password(server: PostgresqlServer) -> None:
    """The address is in the message, what nobody may see is not."""
    store = postgresql.from_url(f"postgresql://me:hidden@127.0.0.1:{server.port}/nowhere")
    with pytest.raises(StoreUnavailable, match="cannot connect to PostgreSQL at 127") as caught:
        store.load("a" * 22)

    assert "hidden" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.anyio
async def test_a_statement_that_is_too_slow_keeps_the_connection(url: str) -> None:
    """The server gives up before the client does, so the connection stays in the pool."""
    record = new_record(time.time())
    async with aclosing(postgresql.afrom_url(url + "?timeout=1")) as store:
        await store.create(record)
        connection = await store._source.take()
        try:
            with pytest.raises(StoreUnavailable, match="statement timeout"):
                await connection.execute(postgresql.Statement("SELECT pg_sleep(%s)", True), (5.0,))
            assert not connection.raw.closed
        finally:
            store._source.drop(connection)
