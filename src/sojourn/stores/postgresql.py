"""Records in PostgreSQL 12 or newer, by psycopg 3, blocking and asynchronous.

`docs/stores/postgresql.md` has the promises, the plans of the statements and the settings.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg import waiting
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow, tuple_row
from psycopg.types.numeric import Int8BinaryDumper

from sojourn.core.record import Record
from sojourn.errors import ConfigurationError, InvalidValue, StoreUnavailable
from sojourn.stores.base import Promises
from sojourn.stores.sql import (
    COLUMNS,
    Answer,
    AsyncPool,
    AsyncSqlStore,
    ConnectionLost,
    Dialect,
    Pool,
    Settings,
    SqlStore,
    Statement,
    Steps,
    Wrapper,
    settings_of,
)

__all__ = [
    "AsyncPostgresqlStore",
    "Postgresql",
    "PostgresqlStore",
    "afrom_url",
    "from_url",
    "schema",
]

T = TypeVar("T")

_SETTINGS = ("timeout", "pool_size", "relaxed_touches")

MIGRATIONS: tuple[str, ...] = (
    """\
CREATE TABLE sojourn_sessions (
    sid text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    status smallint NOT NULL CHECK (status BETWEEN 0 AND 3),
    seen double precision NOT NULL,
    deadline double precision NOT NULL,
    due double precision NOT NULL,
    attempts bigint NOT NULL,
    user_name text COLLATE "C",
    reason text NOT NULL,
    head bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (sid) INCLUDE (status)
) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05,
    toast.autovacuum_vacuum_scale_factor = 0.05
);
ALTER TABLE sojourn_sessions ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE INDEX sojourn_sessions_due ON sojourn_sessions (due);
CREATE INDEX sojourn_sessions_user ON sojourn_sessions (user_name, sid)
    INCLUDE (status) WHERE user_name IS NOT NULL;
CREATE INDEX sojourn_sessions_ended ON sojourn_sessions (status, sid) WHERE status <> 0;
""",
)
"""What takes a schema from each version, its place in the row, to the next one."""

META = """\
CREATE TABLE IF NOT EXISTS sojourn_meta (version integer NOT NULL);
"""

# Holds off other processes that would make the schema at the same time. "sojourn" in ASCII.
_LOCK = int.from_bytes(b"sojourn", "big")


def schema() -> str:
    """Return the SQL that makes the schema, to be run by whoever may make tables."""
    version = f"INSERT INTO sojourn_meta (version) VALUES ({len(MIGRATIONS)});\n"
    return "BEGIN;\n" + META + "".join(MIGRATIONS) + version + "COMMIT;\n"


_FIELDS = ("version", "status", "seen", "deadline", "reason", "attempts", "head", "data")
"""What `record_of` takes besides the sid, in its order."""
_SELECTED = ", ".join(_FIELDS)
_SET = (
    "version = %s, seen = %s, deadline = %s, user_name = %s, head = %s, data = %s, "
    "due = least(due, %s)"
)

# Asks the transaction to wait for the disk where a role, a database or a server is set not to.
# remote_apply waits for even more, and is left alone.
_DURABLE = (
    "WITH durable AS MATERIALIZED (SELECT set_config('synchronous_commit', "
    "CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' "
    "ELSE 'on' END, true)) "
)
_RELAXED = "WITH relaxed AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)) "
_TOUCH = "SET seen = %s, deadline = %s, version = version + 1"
_IF_CURRENT = "sid = %s AND version = %s AND status IN (0, 3)"


class Postgresql(Dialect):
    """PostgreSQL's statements."""

    name = "PostgreSQL"
    migrations = MIGRATIONS
    selected = _SELECTED
    indexes = ("sojourn_sessions_due", "sojourn_sessions_user", "sojourn_sessions_ended")

    load = Statement(f"SELECT {_SELECTED} FROM sojourn_sessions WHERE sid = %s", rows=True)
    create = Statement(
        f"INSERT INTO sojourn_sessions ({', '.join(COLUMNS)}) "
        f"VALUES ({', '.join(['%s'] * len(COLUMNS))}) ON CONFLICT (sid) DO NOTHING"
    )
    replace = Statement(
        "UPDATE sojourn_sessions SET status = 0, reason = '', attempts = 0, "
        f"{_SET} WHERE {_IF_CURRENT}"
    )
    replace_any = Statement(
        "UPDATE sojourn_sessions SET status = %s, reason = %s, attempts = %s, "
        f"{_SET} WHERE {_IF_CURRENT}"
    )
    touch = Statement(f"UPDATE sojourn_sessions {_TOUCH} WHERE {_IF_CURRENT}")
    end = Statement(
        _DURABLE + "UPDATE sojourn_sessions SET status = 1, reason = %s, "
        "version = version + 1, due = %s FROM durable WHERE sid = %s AND status IN (0, 3)"
    )
    bury = Statement(
        _DURABLE + "UPDATE sojourn_sessions SET status = 2, "
        "reason = CASE reason WHEN '' THEN %s ELSE reason END, version = version + 1, "
        "seen = %s, deadline = %s, due = %s, data = '', user_name = NULL, head = "
        "CASE head WHEN '' THEN head ELSE substr(head, 1, get_byte(head, 0)) END "
        "FROM durable WHERE sid = %s AND status <> 2"
    )
    remove = Statement(_DURABLE + "DELETE FROM sojourn_sessions USING durable WHERE sid = %s")
    claim = Statement(
        "WITH given AS (SELECT %s::double precision AS now, %s::double precision AS until), "
        "page AS MATERIALIZED ("
        "SELECT sid, status, deadline FROM sojourn_sessions "
        "WHERE due <= %s ORDER BY due LIMIT %s FOR UPDATE SKIP LOCKED), "
        "moved AS (UPDATE sojourn_sessions s SET due = s.deadline FROM page, given "
        "WHERE s.sid = page.sid AND page.status <> 1 AND page.deadline > given.now), "
        "removed AS (DELETE FROM sojourn_sessions s USING page, given "
        "WHERE s.sid = page.sid AND page.status IN (2, 3) AND page.deadline <= given.now), "
        "claimed AS (UPDATE sojourn_sessions s SET status = 1, version = s.version + 1, "
        "attempts = s.attempts + 1, due = given.until FROM page, given "
        "WHERE s.sid = page.sid "
        "AND (page.status = 1 OR page.status = 0 AND page.deadline <= given.now) "
        f"RETURNING s.sid, {', '.join('s.' + name for name in _FIELDS)}) "
        f"SELECT (SELECT count(*) FROM page), sid, {_SELECTED} "
        "FROM given LEFT JOIN claimed ON true",
        rows=True,
    )

    def __init__(self, relaxed_touches: bool = False) -> None:
        """Take the statements; with `relaxed_touches` a touch does not wait for the disk."""
        self.version = len(self.migrations)
        if relaxed_touches:
            self.touch = Statement(
                f"{_RELAXED}UPDATE sojourn_sessions {_TOUCH} FROM relaxed WHERE {_IF_CURRENT}"
            )

    def check_text(self, name: str, text: str, limit: int) -> None:
        """As `Dialect.check_text`; PostgreSQL's text has no NUL."""
        super().check_text(name, text, limit)
        if "\0" in text:
            raise InvalidValue(
                f"{name} is {text!r}; PostgreSQL keeps no NUL (\\x00) in a text: leave it out"
            )

    def page(self, now: float, lease: float, limit: int) -> Steps[tuple[list[Record], int]]:
        """As `Dialect.page`, in one statement where nothing is damaged."""
        rows, _ = yield self.claim, (now, now + lease, now, limit)
        looked = int(rows[0][0])
        records, damaged = self.records(row[1:] for row in rows if row[1] is not None)
        yield from self.put_aside(damaged)
        return records, looked

    def do_check(self) -> Steps[list[str]]:
        """As `SqlStore.check`: privileges, indexes, and what a crash of the server would lose."""
        asked = [
            "current_user",
            *(f"has_table_privilege('sojourn_sessions', '{name}')" for name in _PRIVILEGES),
            *(f"current_setting('{name}')" for name in _DANGERS),
        ]
        rows, _ = yield Statement(f"SELECT {', '.join(asked)}", rows=True), ()
        role, granted, values = rows[0][0], rows[0][1:5], rows[0][5:]
        found = [
            f"the role {role} may not {name} in sojourn_sessions; GRANT {name} ON "
            f"sojourn_sessions TO {role}"
            for name, may in zip(_PRIVILEGES, granted, strict=True)
            if not may
        ]
        found += [
            f"{name} is off: {danger}; set it on"
            for (name, danger), value in zip(_DANGERS.items(), values, strict=True)
            if value == "off"
        ]
        text = (
            "SELECT indexrelid::regclass::text FROM pg_index "
            "WHERE indrelid = 'sojourn_sessions'::regclass AND indisvalid"
        )
        rows, _ = yield Statement(text, rows=True), ()
        there = {str(name).rpartition(".")[2] for (name,) in rows}
        return found + self.missing(there)

    def prepare(self) -> Steps[None]:
        """As `Dialect.prepare`, in one transaction under a lock of its own."""
        rows, _ = yield (
            Statement(
                "SELECT current_setting('server_version_num')::integer, "
                "to_regclass('sojourn_meta') IS NOT NULL",
                rows=True,
            ),
            (),
        )
        number, is_there = rows[0]
        if number < 120_000:
            raise ConfigurationError(
                f"the server is PostgreSQL {number // 10_000}; Sojourn needs 12 or newer"
            )
        if is_there and (yield from self.found()) == self.version:
            return
        yield Statement("BEGIN"), ()
        yield Statement("SELECT pg_advisory_xact_lock(%s)", rows=True), (_LOCK,)
        yield Statement(META), ()
        found = yield from self.found()
        for migration in self.migrations[found:]:
            yield Statement(migration), ()
        if found == 0:
            yield Statement("INSERT INTO sojourn_meta (version) VALUES (%s)"), (self.version,)
        else:
            yield Statement("UPDATE sojourn_meta SET version = %s"), (self.version,)
        yield Statement("COMMIT"), ()


_PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE")
_DANGERS = {
    "fsync": "a loss of power may damage the whole database",
    "full_page_writes": "a loss of power may damage the whole database",
    "synchronous_commit": "the changes of the last moments are lost when the server dies",
}

_PROMISES = Promises(
    survives="power",
    shared="hosts",
    note="The end of a session waits for the disk even where synchronous_commit is off.",
)


class PostgresqlStore(SqlStore):
    """A blocking store in PostgreSQL.

        store = from_url("postgresql://app@db.example/app")
        store = PostgresqlStore.from_engine(engine)        # SQLAlchemy's, on psycopg 3
        store = PostgresqlStore(connect=make_a_connection)  # one new psycopg 3 connection a call

    See `docs/stores/postgresql.md` for Django.
    """

    promises = _PROMISES

    def __init__(
        self,
        connect: Callable[[], Any],
        *,
        timeout: float = 3.0,
        pool_size: int = 10,
        relaxed_touches: bool = False,
    ) -> None:
        """Make a store that opens its connections by `connect`.

        Args:
            connect: returns a new psycopg 3 connection, which from then on is the store's alone.
            timeout: seconds that a statement, or the wait for a free connection, may take.
            pool_size: how many connections there are at most.
            relaxed_touches: do not wait for the disk when only the deadline is put off.
        """

        def opened() -> _Connection:
            raw = connect()
            raw.autocommit = True
            return _Connection(raw, timeout)

        pool = Pool(opened, pool_size, timeout)
        super().__init__(Postgresql(relaxed_touches), pool)

    @classmethod
    def from_engine(
        cls, engine: Any, *, timeout: float = 3.0, relaxed_touches: bool = False
    ) -> PostgresqlStore:
        """Make a store on the connections of a SQLAlchemy engine (`postgresql+psycopg`)."""
        return cls._of_engine(
            engine,
            Postgresql(relaxed_touches),
            lambda proxy: _OfEngine(proxy, timeout),
            ("postgresql+psycopg",),
        )


class AsyncPostgresqlStore(AsyncSqlStore):
    """A store in PostgreSQL for asyncio."""

    promises = _PROMISES

    def __init__(
        self,
        connect: Callable[[], Any],
        *,
        timeout: float = 3.0,
        pool_size: int = 10,
        relaxed_touches: bool = False,
    ) -> None:
        """As `PostgresqlStore`; `connect` returns an awaitable for a `psycopg.AsyncConnection`.

        The pool is one for each event loop that uses the store.
        """

        async def opened() -> _AsyncConnection:
            raw = await connect()
            await raw.set_autocommit(True)
            return _AsyncConnection(raw, timeout)

        pool: AsyncPool[_AsyncConnection] = AsyncPool(opened, pool_size, timeout)
        super().__init__(Postgresql(relaxed_touches), pool)


def from_url(url: str) -> PostgresqlStore:
    """Make a blocking store from a URL as libpq takes it, `postgresql://user@host/database?...`.

    Its query may also have `timeout` (seconds, 3), `pool_size` (10), `relaxed_touches` (0 or 1).
    """
    arguments, settings = _arguments(url)

    def connect() -> psycopg.Connection[TupleRow]:
        try:
            return psycopg.connect(**arguments)
        except psycopg.Error as error:
            raise _cannot_connect(arguments, error) from error

    return PostgresqlStore(connect, **msgspec.structs.asdict(settings))


def afrom_url(url: str) -> AsyncPostgresqlStore:
    """Make an asynchronous store from a URL; as `from_url`."""
    arguments, settings = _arguments(url)

    async def connect() -> psycopg.AsyncConnection[TupleRow]:
        try:
            return await psycopg.AsyncConnection.connect(**arguments)
        except psycopg.Error as error:
            raise _cannot_connect(arguments, error) from error

    return AsyncPostgresqlStore(connect, **msgspec.structs.asdict(settings))


def _arguments(url: str) -> tuple[dict[str, Any], Settings]:
    """Return what psycopg is to connect with, and our settings."""
    conninfo, settings = settings_of(url, _SETTINGS)
    try:
        given = conninfo_to_dict(conninfo)
    except psycopg.Error as error:
        raise ConfigurationError(f"the store's URL is none for PostgreSQL: {error}") from error
    limit = int(settings.timeout * 1000)
    # The server gives up first, so that a slow statement does not cost the connection.
    options = (
        f"-c statement_timeout={max(1, limit * 9 // 10)} "
        "-c default_transaction_isolation=read\\ committed"
    )
    arguments: dict[str, Any] = {
        "connect_timeout": max(2, math.ceil(settings.timeout)),
        "tcp_user_timeout": limit,
        "keepalives_idle": 60,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "application_name": "sojourn",
        **given,
        "options": f"{options} {given.get('options') or ''}".strip(),
        "autocommit": True,
    }
    return arguments, settings


def _where(arguments: dict[str, Any]) -> str:
    host = arguments.get("host") or arguments.get("hostaddr") or "the local socket"
    return f"{host}:{arguments.get('port') or 5432}"


def _cannot_connect(arguments: dict[str, Any], error: psycopg.Error) -> StoreUnavailable:
    return StoreUnavailable(f"cannot connect to PostgreSQL at {_where(arguments)}: {error}")


class _TooSlow(Exception):
    """The server did not answer in time."""


def _bounded(gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
    """Pass on what psycopg waits for, and raise where a wait ends with nothing ready."""
    try:
        waits = next(gen)
        while True:
            ready = yield waits
            if not ready:
                gen.close()
                raise _TooSlow
            waits = gen.send(ready)
    except StopIteration as stop:
        answer: T = stop.value
        return answer


def _wait(
    raw: weakref.ReferenceType[Any],
    limit: float,
    gen: Generator[Any, Any, T],
    interval: float = 0.0,
    timeout: float | None = None,
) -> T:
    """In the place of `Connection.wait`, which waits for ever for a server that hangs.

    Keepalives and tcp_user_timeout do not help there: the kernel of the server's host answers.
    """
    return waiting.wait(_bounded(gen), raw().pgconn.socket, interval=limit)  # type: ignore[union-attr]


async def _await(
    raw: weakref.ReferenceType[Any],
    limit: float,
    gen: Generator[Any, Any, T],
    interval: float = 0.0,
    timeout: float | None = None,
) -> T:
    """In the place of `AsyncConnection.wait`, for the same reason, and one more.

    Where a task is cancelled, that one asks the server to cancel the statement and waits; here the
    connection is closed by whoever took it.
    """
    return await waiting.wait_async(_bounded(gen), raw().pgconn.socket, interval=limit)  # type: ignore[union-attr]


def _unavailable(error: psycopg.Error, raw: Any) -> StoreUnavailable:
    """Say what an error of psycopg means."""
    text = f"PostgreSQL: {error}"
    if raw.closed:
        return ConnectionLost(text)
    # A deadlock or a serialization failure: the next try may well succeed.
    return StoreUnavailable(text, transient=error.sqlstate in ("40001", "40P01"))


def _too_slow(raw: Any, limit: float) -> StoreUnavailable:
    return StoreUnavailable(f"no answer from PostgreSQL at {_where_is(raw)} in {limit:g} s")


def _where_is(raw: Any) -> str:
    try:
        return f"{raw.info.host}:{raw.info.port}"
    except psycopg.Error:
        return "a connection that is closed"


def _adapt(cursor: Any) -> None:
    """Send every int as a bigint, on this cursor alone.

    psycopg sends the smallest type that holds the value, and prepares a statement anew for each
    combination of types.
    """
    cursor.adapters.register_dumper(int, Int8BinaryDumper)


class _Connection(Wrapper):
    """A psycopg connection with one cursor that is used again and again.

    Neither depends on the row factory or the cursor class that the connection was made with.
    """

    __slots__ = ("_cursor",)

    def __init__(self, raw: Any, limit: float) -> None:
        super().__init__(raw, limit)
        raw.wait = functools.partial(_wait, weakref.ref(raw), limit)
        self._cursor: psycopg.Cursor[TupleRow] = psycopg.Cursor(raw, row_factory=tuple_row)
        self._cursor.format = psycopg.pq.Format.BINARY
        _adapt(self._cursor)

    def execute(self, statement: Statement, values: tuple[Any, ...]) -> Answer:
        cursor = self._cursor
        try:
            # Without values a text may hold several statements, which cannot be prepared.
            if values:
                cursor.execute(statement.text, values, prepare=True)
            else:
                cursor.execute(statement.text, binary=False)
            if statement.rows:
                return cursor.fetchall(), cursor.rowcount
            return (), cursor.rowcount
        except psycopg.Error as error:
            raise _unavailable(error, self.raw) from error
        except _TooSlow:
            raise _too_slow(self.raw, self.limit) from None

    def close(self) -> None:
        self.raw.pgconn.finish()


class _OfEngine(_Connection):
    """A psycopg connection on loan from an engine, in autocommit mode until it is given back."""

    __slots__ = ("_autocommit", "_proxy")

    def __init__(self, proxy: Any, limit: float) -> None:
        self._proxy = proxy
        raw = proxy.driver_connection
        self._autocommit = raw.autocommit
        raw.autocommit = True  # sends nothing
        super().__init__(raw, limit)

    def give(self) -> None:
        del self.raw.wait
        self.raw.autocommit = self._autocommit
        self._proxy.close()

    def close(self) -> None:
        self._proxy.invalidate()


class _AsyncConnection(Wrapper):
    """As `_Connection`."""

    __slots__ = ("_cursor",)

    def __init__(self, raw: Any, limit: float) -> None:
        super().__init__(raw, limit)
        raw.wait = functools.partial(_await, weakref.ref(raw), limit)
        self._cursor: psycopg.AsyncCursor[TupleRow] = psycopg.AsyncCursor(
            raw, row_factory=tuple_row
        )
        self._cursor.format = psycopg.pq.Format.BINARY
        _adapt(self._cursor)

    async def execute(self, statement: Statement, values: tuple[Any, ...]) -> Answer:
        cursor = self._cursor
        try:
            if values:
                await cursor.execute(statement.text, values, prepare=True)
            else:
                await cursor.execute(statement.text, binary=False)
            if statement.rows:
                return await cursor.fetchall(), cursor.rowcount
            return (), cursor.rowcount
        except psycopg.Error as error:
            raise _unavailable(error, self.raw) from error
        except _TooSlow:
            raise _too_slow(self.raw, self.limit) from None

    def close(self) -> None:
        self.raw.pgconn.finish()

    async def quit(self) -> None:
        self.raw.pgconn.finish()
