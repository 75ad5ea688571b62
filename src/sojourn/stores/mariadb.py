"""Records in MariaDB 10.6 or newer, by PyMySQL (blocking) and asyncmy (asynchronous).

`docs/stores/mariadb.md` has the promises, the plans of the statements and the settings;
`docs/decisions/0031-mariadb-drivers.md` why these drivers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
from collections.abc import Callable, Sequence
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit

import asyncmy
import pymysql
from asyncmy import errors as asyncmy_errors
from pymysql.constants import ER

from sojourn.core.record import Record
from sojourn.errors import ConfigurationError, InvalidValue, StoreUnavailable
from sojourn.stores.base import Promises
from sojourn.stores.heads import record_of
from sojourn.stores.sql import (
    COLUMNS,
    Answer,
    AsyncPool,
    AsyncSqlStore,
    ConnectionLost,
    Dialect,
    Pool,
    Row,
    Settings,
    SqlStore,
    Statement,
    Steps,
    Wrapper,
    settings_of,
)

__all__ = ["AsyncMariadbStore", "Mariadb", "MariadbStore", "afrom_url", "from_url", "schema"]

_log = logging.getLogger("sojourn.stores.mariadb")

_SETTINGS = ("timeout", "pool_size")
_DRIVER_SETTINGS = ("ssl", "ssl_ca", "ssl_cert", "ssl_key", "unix_socket")

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """\
CREATE TABLE IF NOT EXISTS sojourn_sessions (
    sid VARCHAR(22) NOT NULL,
    version BIGINT NOT NULL,
    status TINYINT NOT NULL CHECK (status BETWEEN 0 AND 3),
    seen DOUBLE NOT NULL,
    deadline DOUBLE NOT NULL,
    due DOUBLE NOT NULL,
    attempts BIGINT NOT NULL,
    user_name VARCHAR(512),
    reason TEXT NOT NULL,
    head MEDIUMBLOB NOT NULL,
    data LONGBLOB NOT NULL,
    PRIMARY KEY (sid),
    KEY sojourn_sessions_due (due),
    KEY sojourn_sessions_user (user_name, sid, status),
    KEY sojourn_sessions_status (status, sid)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin""",
    ),
)
"""What takes a schema from each version, its place in the row, to the next one.

MariaDB commits at each statement of this kind, so each has to bear a repetition.
"""

META = "CREATE TABLE IF NOT EXISTS sojourn_meta (version INTEGER NOT NULL) ENGINE=InnoDB"


def schema() -> str:
    """Return the SQL that makes the schema, to be run by whoever may make tables."""
    statements = [META, *(text for step in MIGRATIONS for text in step)]
    statements.append(f"INSERT INTO sojourn_meta (version) VALUES ({len(MIGRATIONS)})")
    return "".join(f"{text};\n" for text in statements)


_SELECTED = "version, status, seen, deadline, reason, attempts, head, data"
# A result's columns cost PyMySQL more than the whole rest of a read, so for it they travel as one.
_PACKED = (
    "concat_ws(' ', version, status, seen, deadline, attempts, length(head), hex(reason), head, "
    "data) AS packed"
)

# What may be set is in other indexes too, and the planner would look at those first.
_UPDATE = "UPDATE sojourn_sessions FORCE INDEX (PRIMARY) SET"
_SET = (
    "version = %s, seen = %s, deadline = %s, user_name = %s, head = %s, data = %s, "
    "due = least(due, deadline)"
)
_IF_CURRENT = "sid = %s AND version = %s AND status IN (0, 3)"

_LARGE = 1 << 18
"""From this size on it is looked whether data fits into a packet; the least packet is larger."""


class Mariadb(Dialect):
    """MariaDB's statements.

    Each UPDATE that is counted raises the version, so that rows found and rows changed, which a
    connection may count (CLIENT_FOUND_ROWS), are the same.
    An UPDATE assigns from left to right and sees what it has assigned; its WHERE does not.
    """

    name = "MariaDB"
    migrations = MIGRATIONS
    sees_assigned = True
    selected = _SELECTED
    indexes = ("sojourn_sessions_due", "sojourn_sessions_user", "sojourn_sessions_status")
    largest: int | None = None
    """The server's max_allowed_packet."""
    growth = 1
    """How many bytes a byte of data takes in a statement."""

    load = Statement(f"SELECT {_SELECTED} FROM sojourn_sessions WHERE sid = %s", rows=True)
    # Not INSERT IGNORE, which would also turn values that do not fit into others that do.
    create = Statement(
        f"INSERT INTO sojourn_sessions ({', '.join(COLUMNS)}) "
        f"VALUES ({', '.join(['%s'] * len(COLUMNS))})",
        name="create",
    )
    replace = Statement(
        f"{_UPDATE} status = 0, reason = '', attempts = 0, {_SET} WHERE {_IF_CURRENT}",
        name="replace",
    )
    replace_any = Statement(
        f"{_UPDATE} status = %s, reason = %s, attempts = %s, {_SET} WHERE {_IF_CURRENT}"
    )
    touch = Statement(
        f"{_UPDATE} seen = %s, deadline = %s, version = version + 1 WHERE {_IF_CURRENT}",
        name="touch",
    )
    end = Statement(
        "UPDATE sojourn_sessions SET reason = %s, version = version + 1, due = %s, status = 1 "
        "WHERE sid = %s AND status IN (0, 3)"
    )
    bury = Statement(
        "UPDATE sojourn_sessions SET reason = CASE reason WHEN '' THEN %s ELSE reason END, "
        "version = version + 1, seen = %s, deadline = %s, due = %s, data = '', "
        "head = left(head, ord(head)), user_name = NULL, status = 2 WHERE sid = %s AND status <> 2"
    )
    remove = Statement("DELETE FROM sojourn_sessions WHERE sid = %s")
    look = Statement(
        "SELECT sid, status, deadline FROM sojourn_sessions FORCE INDEX (sojourn_sessions_due) "
        "WHERE due <= %s ORDER BY due LIMIT %s FOR UPDATE SKIP LOCKED",
        rows=True,
    )

    def __init__(self) -> None:
        """Take the statements."""
        self.version = len(self.migrations)

    def check(self, record: Record) -> None:
        """As `Dialect.check`; MariaDB cuts the connection when a statement is too long."""
        super().check(record)
        size = len(record.data) * self.growth
        if size < _LARGE or self.largest is None:
            return
        # Beside the data: the texts of the head, and what is not counted.
        texts = len(record.address) + len(record.agent) + len(record.reason)
        if size + 8 * texts + 65_536 > self.largest:
            raise InvalidValue(
                f"a session of {len(record.data)} bytes makes a statement of about {size}, and "
                f"the server takes {self.largest}: raise max_allowed_packet on the server, or "
                "keep less in the session"
            )

    def page(self, now: float, lease: float, limit: int) -> Steps[tuple[list[Record], int]]:
        """As `Dialect.page`, in one short transaction."""
        yield Statement("START TRANSACTION"), ()
        rows, _ = yield self.look, (now, limit)
        moved, removed, claimed = [], [], []
        for sid, status, deadline in rows:
            if status != 1 and deadline > now:
                moved.append(sid)
            elif status >= 2:
                removed.append(sid)
            else:
                claimed.append(sid)
        records: list[Record] = []
        if moved:
            yield self._among("UPDATE sojourn_sessions SET due = deadline", moved), tuple(moved)
        if removed:
            yield self._among("DELETE FROM sojourn_sessions", removed), tuple(removed)
        if claimed:
            claim = self._among(
                "UPDATE sojourn_sessions SET version = version + 1, attempts = attempts + 1, "
                "due = %s, status = 1",
                claimed,
            )
            yield claim, (now + lease, *claimed)
            again = self._among(
                f"SELECT sid, {self.selected} FROM sojourn_sessions", claimed, rows=True
            )
            found, _ = yield again, tuple(claimed)
            records, damaged = self.records(found)
            yield from self.put_aside(damaged)
        yield Statement("COMMIT"), ()
        return records, len(rows)

    @staticmethod
    def _among(text: str, sids: Sequence[str], rows: bool = False) -> Statement:
        places = ", ".join(["%s"] * len(sids))
        return Statement(f"{text} WHERE sid IN ({places})", rows=rows)

    def do_check(self) -> Steps[list[str]]:
        """As `SqlStore.check`: engine, collation, indexes, and what a crash would lose."""
        of_table = "table_schema = database() AND table_name = 'sojourn_sessions'"
        rows, _ = yield (
            Statement(
                "SELECT @@innodb_flush_log_at_trx_commit, @@innodb_doublewrite, "
                "@@global.read_only, "
                f"(SELECT engine FROM information_schema.tables WHERE {of_table}), "
                "(SELECT collation_name FROM information_schema.columns "
                f"WHERE {of_table} AND column_name = 'sid')",
                rows=True,
            ),
            (),
        )
        flush, doublewrite, read_only, engine, collation = rows[0]
        found = []
        if flush != 1:
            found.append(
                f"innodb_flush_log_at_trx_commit is {flush}: sessions, and logouts, that were "
                "acknowledged may be lost when the server fails; set it to 1"
            )
        if str(doublewrite).upper() in ("0", "OFF"):
            found.append(
                "innodb_doublewrite is off: a loss of power may damage the whole database; set it "
                "on"
            )
        if read_only:
            found.append("the server is read_only and takes no writes; name the primary")
        if engine != "InnoDB":
            found.append(
                f"sojourn_sessions is kept by {engine}, which has no transactions; ALTER TABLE "
                "sojourn_sessions ENGINE=InnoDB"
            )
        if not str(collation).endswith("_bin"):
            found.append(
                f"the collation of sid is {collation}, to which different sids are the same; make "
                "the table as it is in: sojourn schema mariadb"
            )
        text = f"SELECT DISTINCT index_name FROM information_schema.statistics WHERE {of_table}"
        rows, _ = yield Statement(text, rows=True), ()
        return found + self.missing({str(name) for (name,) in rows})

    def prepare(self) -> Steps[None]:
        """As `Dialect.prepare`; a lock of the server holds off other processes."""
        rows, _ = yield (
            Statement(
                "SELECT version(), database(), @@sql_mode, @@max_allowed_packet, "
                "@@innodb_flush_log_at_trx_commit, (SELECT count(*) "
                "FROM information_schema.tables "
                "WHERE table_schema = database() AND table_name = 'sojourn_meta')",
                rows=True,
            ),
            (),
        )
        release, database, mode, packet, flush, is_there = rows[0]
        self._judge(release, database, mode)
        if flush != 1:
            _log.warning(
                "innodb_flush_log_at_trx_commit is %s: sessions, and logouts, that were "
                "acknowledged may be lost when the server fails; set it to 1",
                flush,
            )
        self.largest = int(packet)
        if is_there and (yield from self.found()) == self.version:
            return
        lock = Statement(
            "SELECT get_lock(concat('sojourn.', md5(database())), @@innodb_lock_wait_timeout)",
            rows=True,
        )
        rows, _ = yield lock, ()
        if rows[0][0] != 1:
            raise StoreUnavailable("another process has been at the tables of Sojourn for too long")
        yield Statement(META), ()
        found = yield from self.found()
        for number, migration in enumerate(self.migrations[found:], found + 1):
            for text in migration:
                yield Statement(text), ()
            if number == 1:
                yield Statement("INSERT INTO sojourn_meta (version) VALUES (1)"), ()
            else:
                yield Statement("UPDATE sojourn_meta SET version = %s"), (number,)
        yield (
            Statement("SELECT release_lock(concat('sojourn.', md5(database())))", rows=True),
            (),
        )

    def _judge(self, release: str, database: str | None, mode: str) -> None:
        """Raise `ConfigurationError` with everything that is wrong with a server or connection."""
        faults = []
        numbers = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
        if "mariadb" not in release.lower() or numbers < (10, 6):
            faults.append(f"the server is {release}; it must be MariaDB 10.6 or newer")
        if database is None:
            faults.append("no database is named; put it at the end of the URL")
        if "STRICT_ALL_TABLES" not in mode and "STRICT_TRANS_TABLES" not in mode:
            faults.append(
                f"the connection's sql_mode is {mode!r}, in which values are cut to fit; add "
                "STRICT_ALL_TABLES"
            )
        if faults:
            raise ConfigurationError("; ".join(faults))


class PackedMariadb(Mariadb):
    """The same for PyMySQL: a row has one column, of bytes."""

    selected = _PACKED
    growth = 2  # PyMySQL sends hexadecimal digits, older ones backslashes
    load = Statement(
        f"SELECT {_PACKED} FROM sojourn_sessions WHERE sid = %s", rows=True, name="load"
    )

    def record(self, sid: str, row: Row) -> Record:
        """Make a record of the bytes."""
        (packed,) = row
        if packed is None:
            raise StoreUnavailable(
                f"the session {sid} is larger than max_allowed_packet of the server is now; raise "
                "it again"
            )
        *columns, reason, rest = packed.split(b" ", 7)
        version, status, seen, deadline, attempts, size = columns
        length = int(size)
        return record_of(
            sid,
            int(version),
            int(status),
            float(seen),
            float(deadline),
            bytes.fromhex(reason.decode()).decode() if reason else "",
            int(attempts),
            rest[:length],
            rest[length + 1 :],
        )


_PROMISES = Promises(
    survives="power",
    shared="hosts",
    note="With innodb_flush_log_at_trx_commit=1, the server's default.",
)


class MariadbStore(SqlStore):
    """A blocking store in MariaDB.

        store = from_url("mariadb://app:secret@db.example/app")
        store = MariadbStore.from_engine(engine)         # SQLAlchemy's, on PyMySQL
        store = MariadbStore(connect=make_a_connection)  # one new PyMySQL connection a call

    See `docs/stores/mariadb.md` for Django.
    """

    promises = _PROMISES

    def __init__(
        self, connect: Callable[[], Any], *, timeout: float = 3.0, pool_size: int = 10
    ) -> None:
        """Make a store that opens its connections by `connect`.

        Args:
            connect: returns a new PyMySQL connection, which from then on is the store's alone.
                Its `read_timeout` and `write_timeout` are what bounds the wait for a server that
                hangs.
            timeout: seconds that the server may take for a statement, and that a call waits for
                a free connection.
            pool_size: how many connections there are at most.
        """

        def opened() -> _Connection:
            connection = _Connection(connect(), timeout)
            try:
                for statement in _session(timeout):
                    connection.execute(statement, ())
            except BaseException:
                connection.close()
                raise
            return connection

        super().__init__(PackedMariadb(), Pool(opened, pool_size, timeout))

    @classmethod
    def from_engine(cls, engine: Any, *, timeout: float = 3.0) -> MariadbStore:
        """Make a store on the connections of a SQLAlchemy engine (`mariadb+pymysql`).

        `timeout` is for people: give the engine `connect_args` with `read_timeout` and
        `write_timeout` of as many seconds.
        """
        return cls._of_engine(
            engine,
            PackedMariadb(),
            lambda proxy: _OfEngine(proxy, timeout),
            ("mariadb+pymysql", "mysql+pymysql"),
        )


class AsyncMariadbStore(AsyncSqlStore):
    """A store in MariaDB for asyncio."""

    promises = _PROMISES

    def __init__(
        self, connect: Callable[[], Any], *, timeout: float = 3.0, pool_size: int = 10
    ) -> None:
        """As `MariadbStore`; `connect` returns an awaitable for an asyncmy connection.

        The pool is one for each event loop that uses the store.
        """

        async def opened() -> _AsyncConnection:
            connection = _AsyncConnection(await connect(), timeout)
            try:
                for statement in _session(timeout):
                    await connection.execute(statement, ())
            except BaseException:
                connection.close()
                raise
            return connection

        super().__init__(Mariadb(), AsyncPool(opened, pool_size, timeout))


def _session(timeout: float) -> tuple[Statement, ...]:
    """Return what makes a connection fit for the store."""
    # The server gives up first, so that a slow statement does not cost the connection.
    return (
        Statement(
            "SET SESSION autocommit = 1, sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', "
            f"innodb_lock_wait_timeout = {max(1, int(timeout * 0.7))}, "
            f"max_statement_time = {timeout * 0.9:.3f}"
        ),
        Statement("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"),
    )


def from_url(url: str) -> MariadbStore:
    """Make a blocking store from `mariadb://user:password@host:3306/database?...`.

    Its query may have `timeout` (seconds, 3), `pool_size` (10), `unix_socket`, and for TLS `ssl`
    (1), `ssl_ca`, `ssl_cert`, `ssl_key`.
    """
    arguments, settings = _arguments(url)
    timeout = settings.timeout

    def connect() -> Any:
        try:
            return pymysql.connect(
                **arguments,
                connect_timeout=timeout,
                read_timeout=timeout,
                write_timeout=timeout,
            )
        except (pymysql.Error, OSError) as error:
            raise _cannot_connect(arguments, error) from error

    return MariadbStore(connect, timeout=timeout, pool_size=settings.pool_size)


def afrom_url(url: str) -> AsyncMariadbStore:
    """Make an asynchronous store from a URL; as `from_url`."""
    arguments, settings = _arguments(url)
    timeout = settings.timeout

    async def connect() -> Any:
        try:
            async with asyncio.timeout(timeout):
                return await asyncmy.connect(
                    **arguments, connect_timeout=timeout, stmt_cache_size=32
                )
        except TimeoutError as error:
            late = TimeoutError(f"no answer in {timeout:g} s")
            raise _cannot_connect(arguments, late) from error
        except (asyncmy_errors.Error, OSError, EOFError) as error:
            raise _cannot_connect(arguments, error) from error

    return AsyncMariadbStore(connect, timeout=timeout, pool_size=settings.pool_size)


def _arguments(url: str) -> tuple[dict[str, Any], Settings]:
    """Return what the drivers are to connect with, and our settings."""
    rest, settings = settings_of(url, _SETTINGS)
    parts = urlsplit(rest)
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    faults = [f"unknown setting {name!r}" for name in given if name not in _DRIVER_SETTINGS]
    if faults:
        known = ", ".join((*_SETTINGS, *_DRIVER_SETTINGS))
        faults[-1] += f" (there are: {known})"
    try:
        port = parts.port or 3306
    except ValueError as error:
        port = 0
        faults.append(str(error))
    database = unquote(parts.path.lstrip("/"))
    if not database:
        faults.append("no database; put its name at the end: mariadb://host/database")
    if faults:
        raise ConfigurationError("the store's URL has " + "; ".join(faults))
    arguments: dict[str, Any] = {
        "host": parts.hostname or "localhost",
        "port": port,
        "user": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password or ""),
        "database": database,
        "unix_socket": given.get("unix_socket"),
        "charset": "utf8mb4",
        "autocommit": True,
        "binary_prefix": True,
    }
    if given.get("ssl", "0") != "0" or "ssl_ca" in given or "ssl_cert" in given:
        context = ssl.create_default_context(cafile=given.get("ssl_ca"))
        if "ssl_cert" in given:
            context.load_cert_chain(given["ssl_cert"], given.get("ssl_key"))
        arguments["ssl"] = context
    return arguments, settings


def _cannot_connect(arguments: dict[str, Any], error: Exception) -> StoreUnavailable:
    where = arguments["unix_socket"] or f"{arguments['host']}:{arguments['port']}"
    return StoreUnavailable(f"cannot connect to MariaDB at {where}: {error}")


_LOST = {
    0,  # the driver closed it
    1053,  # server shutdown in progress
    1927,  # connection was killed
    2006,  # server has gone away
    2013,  # lost connection during query
    2014,  # commands out of sync
    2055,  # lost connection
}
_TRANSIENT = {
    1020,  # record has changed since last read (innodb_snapshot_isolation)
    1213,  # deadlock
}
_TAKEN: Answer = ((), 0)


def _unavailable(error: Exception, limit: float) -> StoreUnavailable:
    """Say what an error of a driver means."""
    code = error.args[0] if error.args else 0
    text = f"MariaDB: {error}"
    if isinstance(error.__context__, TimeoutError):
        return StoreUnavailable(f"no answer from MariaDB in {limit:g} s: {error}")
    if code in _LOST or not isinstance(code, int):
        return ConnectionLost(text)
    return StoreUnavailable(text, transient=code in _TRANSIENT)


class _Connection(Wrapper):
    """A PyMySQL connection with one cursor that is used again and again.

    PyMySQL prepares nothing, so what is used often is prepared in SQL: the server parses it once,
    and each use sends only the values.
    """

    __slots__ = ("_cursor", "_escape", "_prepared", "_query")

    prepares: ClassVar[bool] = True
    """Whether the connection is ours for longer than one call."""

    def __init__(self, raw: Any, limit: float) -> None:
        super().__init__(raw, limit)
        self._cursor = raw.cursor(pymysql.cursors.Cursor)
        self._query = raw.query
        self._escape = raw.escape
        self._prepared: dict[str, str] = {}

    def execute(self, statement: Statement, values: tuple[Any, ...]) -> Answer:
        try:
            text = statement.text
            if values:
                name = statement.name
                using = self._prepared.get(name)
                if using is None and name and self.prepares:
                    using = self._prepare(statement)
                literals = self._literals(values)
                text = using + ",".join(literals) if using else text % tuple(literals)
            if statement.rows:
                count = self._cursor.execute(text)
                return self._cursor.fetchall(), count
            return (), self._query(text)
        except pymysql.IntegrityError as error:
            if error.args[0] == ER.DUP_ENTRY:
                return _TAKEN
            raise _unavailable(error, self.limit) from error
        except (pymysql.Error, OSError) as error:
            raise _unavailable(error, self.limit) from error

    def _literals(self, values: tuple[Any, ...]) -> list[str]:
        """Return values in SQL: as PyMySQL has them, without its steps between where they cost."""
        literals = []
        for value in values:
            kind = type(value)
            if kind is bytes:
                literals.append(f"X'{value.hex()}'")
            elif kind is int:
                literals.append(str(value))
            elif kind is float and 1e-4 < value < 1e16:
                literals.append(f"{value!r}e0")  # without an exponent it were a DECIMAL
            else:
                literals.append(self._escape(value))
        return literals

    def _prepare(self, statement: Statement) -> str:
        """Prepare a statement; return what comes before the values from then on, or nothing."""
        name = f"sojourn_{statement.name}"
        using = f"EXECUTE {name} USING "
        try:
            self._query(f"PREPARE {name} FROM {self._escape(statement.text.replace('%s', '?'))}")
        except pymysql.Error as error:
            if error.args[0] != ER.MAX_PREPARED_STMT_COUNT_REACHED:
                raise
            using = ""
        self._prepared[statement.name] = using
        return using

    def close(self) -> None:
        with contextlib.suppress(pymysql.Error, OSError):
            self.raw.close()


class _OfEngine(_Connection):
    """A PyMySQL connection on loan from an engine; each verb is a transaction of its own."""

    __slots__ = ("_proxy",)

    prepares = False

    def __init__(self, proxy: Any, limit: float) -> None:
        self._proxy = proxy
        super().__init__(proxy.driver_connection, limit)

    def give(self) -> None:
        try:
            if not self.raw.get_autocommit():
                self.raw.commit()
        except (pymysql.Error, OSError) as error:
            self._proxy.invalidate()
            raise _unavailable(error, self.limit) from error
        self._proxy.close()

    def close(self) -> None:
        self._proxy.invalidate()


class _AsyncConnection(Wrapper):
    """An asyncmy connection with one cursor; its statements are prepared by the server."""

    __slots__ = ("_cursor",)

    def __init__(self, raw: Any, limit: float) -> None:
        super().__init__(raw, limit)
        self._cursor = raw.cursor()

    async def execute(self, statement: Statement, values: tuple[Any, ...]) -> Answer:
        cursor = self._cursor
        try:
            async with asyncio.timeout(self.limit):
                await cursor.execute(statement.text, values or None)
            rows = await cursor.fetchall() if statement.rows else ()
            return rows, cursor.rowcount
        except TimeoutError:
            raise StoreUnavailable(f"no answer from MariaDB in {self.limit:g} s") from None
        except asyncmy_errors.IntegrityError as error:
            if error.args[0] == ER.DUP_ENTRY:
                return _TAKEN
            raise _unavailable(error, self.limit) from error
        except (asyncmy_errors.Error, OSError, EOFError) as error:
            raise _unavailable(error, self.limit) from error

    def close(self) -> None:
        self.raw.close()

    async def quit(self) -> None:
        with contextlib.suppress(asyncmy_errors.Error, OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self.raw.ensure_closed()
        self.raw.close()
