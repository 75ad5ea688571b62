"""What all SQL databases have in common: the verbs, written once, and the pool of connections.

A `Dialect` is a table of statements, and the verbs of the contract as flows of statements: each
yields a `Statement` with its values and receives what the database answered. `SqlStore` drives
them over blocking connections, `AsyncSqlStore` over asynchronous ones. A connection is whatever
has the few methods of `Connection` or `AsyncConnection`: a module for a database brings two thin
classes, which run one statement, in bounded time, and turn the driver's errors into ours.

One verb is one statement and, outside of a sweep, one round trip; connections are in autocommit
mode, so that there is no BEGIN and no COMMIT to wait for.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import functools
import logging
import os
import queue
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from typing import Any, Generic, Protocol, Self, TypeAlias, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

import msgspec

from sojourn.core.calls import GONE, SAVED, Outcome
from sojourn.core.record import ENDED, ENDING, LIVE, MARK, Ended, Record
from sojourn.errors import ConfigurationError, DamagedRecord, InvalidValue, StoreUnavailable
from sojourn.stores.base import Promises
from sojourn.stores.heads import head_of, record_of

__all__ = [
    "COLUMNS",
    "AsyncConnection",
    "AsyncPool",
    "AsyncSource",
    "AsyncSqlStore",
    "Connection",
    "ConnectionLost",
    "Dialect",
    "EngineSource",
    "Pool",
    "Source",
    "SqlStore",
    "Statement",
    "Steps",
    "Wrapper",
    "settings_of",
]

T = TypeVar("T")

_log = logging.getLogger("sojourn.stores.sql")

COLUMNS = (
    "sid",
    "version",
    "status",
    "seen",
    "deadline",
    "user_name",  # `user` is a reserved word
    "reason",
    "attempts",
    "head",
    "data",
    "due",
)
"""In the order of `Dialect.create`; `head` is all that no statement asks for or changes."""

MAX_USER = 512
"""Characters of a user's name: what every database takes into an index."""
MAX_TEXT = 16_000
"""Characters of address, agent and reason."""
FAR = 1e300
"""When a damaged record is due that a sweep has met: never."""
PAGE = 50
"""Rows that one transaction of a sweep claims at most, so that it holds its locks briefly."""


class Statement(msgspec.Struct, frozen=True, gc=False):
    """A statement with `%s` for its values.

    Attributes:
        text: in SQL.
        rows: whether it answers with rows.
        name: under which a connection may prepare it; empty: it is not used often.
    """

    text: str
    rows: bool = False
    name: str = ""


_BEGIN, _COMMIT, _ROLLBACK = Statement("BEGIN"), Statement("COMMIT"), Statement("ROLLBACK")

Row: TypeAlias = Sequence[Any]
Answer: TypeAlias = tuple[Sequence[Row], int]
"""Rows, and how many rows were found or changed."""
Steps: TypeAlias = Generator[tuple[Statement, tuple[Any, ...]], Answer, T]
"""A generator that yields statements with their values, receives answers, and returns a T."""


class ConnectionLost(StoreUnavailable):
    """The connection broke; on a new one the same call may succeed at once."""

    def __init__(self, message: str) -> None:
        """It is always transient."""
        super().__init__(message, transient=True)


class Dialect:
    """One database: its statements, and the verbs in terms of them.

    A subclass fills in the statements below and the methods that differ.
    """

    name: str
    """As in a URL, and for people."""
    version: int
    """Of the schema. The database keeps its own in `sojourn_meta`."""

    load: Statement
    """sid -> one row for `record`."""
    create: Statement
    """Every column -> 1, or 0 where the sid is taken."""
    replace: Statement
    """version, seen, deadline, user, head, data, [due time], sid, expected version -> 1 or 0.

    Of a record that is `LIVE`, with no reason and no attempts: nearly all are, and a value less is
    time saved.
    """
    replace_any: Statement
    """status, reason, attempts, then as `replace` -> 1 or 0."""
    touch: Statement
    """seen, deadline, sid, expected version -> 1 or 0."""
    end: Statement
    """reason, due, sid -> 1 or 0; to `ENDING`."""
    put_off = Statement("UPDATE sojourn_sessions SET due = %s WHERE sid = %s AND status = 1")
    """due, sid; of one that is `ENDING`."""
    bury: Statement
    """reason, at, due, due, sid -> 1 or 0; to `ENDED`."""
    lock = Statement("SELECT status FROM sojourn_sessions WHERE sid = %s FOR UPDATE", rows=True)
    """sid -> its status; until the transaction ends, for us alone."""
    remove: Statement
    """sid -> 1 or 0."""
    set_aside = Statement("UPDATE sojourn_sessions SET due = %s WHERE sid = %s")
    """due, sid; of one that is damaged."""
    sees_assigned = False
    """Whether an UPDATE reads what it has assigned; then `replace` has the due time from there."""
    selected: str
    """What `record` takes besides the sid, for a SELECT."""
    indexes: tuple[str, ...]
    """Of the sessions' table, without which statements look at every row."""

    # What differs.

    def record(self, sid: str, row: Row) -> Record:
        """Make a record of a row of what is `selected`; raises `DamagedRecord`."""
        return record_of(sid, *row)

    def records(self, rows: Iterable[Row]) -> tuple[list[Record], list[str]]:
        """Make records of rows that begin with the sid; return also the sids of damaged ones."""
        records, damaged = [], []
        for row in rows:
            try:
                records.append(self.record(row[0], row[1:]))
            except DamagedRecord:
                damaged.append(row[0])
        return records, damaged

    def prepare(self) -> Steps[None]:
        """See that the schema is there and of the right version; make it or bring it up to date.

        Raises `ConfigurationError` where the database is too old or its schema is newer.
        """
        raise NotImplementedError

    def found(self) -> Steps[int]:
        """Return the version of the schema that is there, 0 for none; `sojourn_meta` is there.

        Raises `ConfigurationError` where it is newer than what this release knows.
        """
        rows, _ = yield Statement("SELECT max(version) FROM sojourn_meta", rows=True), ()
        found = int(rows[0][0] or 0)
        if found > self.version:
            raise ConfigurationError(
                f"the tables of Sojourn in {self.name} are of version {found}, and this release "
                f"of Sojourn knows versions up to {self.version}: install the newer release"
            )
        return found

    def missing(self, there: Iterable[str]) -> list[str]:
        """Return a sentence for each index that is not there."""
        return [
            f"the index {name} is missing, so that some statements look at every session; make it "
            f"as it is in: sojourn schema {self.name.lower()}"
            for name in self.indexes
            if name not in there
        ]

    def page(self, now: float, lease: float, limit: int) -> Steps[tuple[list[Record], int]]:
        """Claim from one page of what is due; return that, and how many rows were looked at."""
        raise NotImplementedError

    def do_check(self) -> Steps[list[str]]:
        """As `SqlStore.check`."""
        raise NotImplementedError

    def check(self, record: Record) -> None:
        """Raise `InvalidValue` for what the database cannot keep as it is."""
        text = f"{record.user or ''}{record.address}{record.agent}{record.reason}"
        if len(text) <= MAX_USER and text.isascii() and "\0" not in text:
            return
        if record.user is not None:
            self.check_text("user", record.user, MAX_USER)
        self.check_text("address", record.address, MAX_TEXT)
        self.check_text("agent", record.agent, MAX_TEXT)
        self.check_text("reason", record.reason, MAX_TEXT)

    def check_text(self, name: str, text: str, limit: int) -> None:
        """Raise `InvalidValue` for a text that the database cannot keep as it is."""
        if len(text) > limit:
            raise InvalidValue(
                f"{name} has {len(text)} characters; {self.name} keeps at most {limit} of it"
            )
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidValue(
                f"{name} is {text!r}, which holds half of a surrogate pair; only text that has a "
                "UTF-8 form can be kept"
            ) from None

    # The verbs, as in `sojourn.stores.base`.

    def do_load(self, sid: str) -> Steps[Record | None]:
        """As `Store.load`."""
        rows, _ = yield self.load, (sid,)
        return self.record(sid, rows[0]) if rows else None

    def do_create(self, record: Record) -> Steps[bool]:
        """As `Store.create`."""
        self.check(record)
        values = (
            record.sid,
            record.version,
            record.status,
            record.seen,
            record.deadline,
            record.user,
            record.reason,
            record.attempts,
            head_of(record),
            record.data,
            record.deadline,
        )
        _, count = yield self.create, values
        return count == 1

    def do_replace(self, record: Record, expected_version: int) -> Steps[Record | Outcome]:
        """As `Store.replace`; asks a second time only where nothing was replaced."""
        self.check(record)
        sid = record.sid
        due = () if self.sees_assigned else (record.deadline,)
        values = (
            record.version,
            record.seen,
            record.deadline,
            record.user,
            head_of(record),
            record.data,
            *due,
            sid,
            expected_version,
        )
        if record.status == LIVE and not record.reason and not record.attempts:
            _, count = yield self.replace, values
        else:
            ended = (record.status, record.reason, record.attempts)
            _, count = yield self.replace_any, (*ended, *values)
        if count == 1:
            return SAVED
        current = yield from self.do_load(sid)
        if current is None or current.status not in (LIVE, MARK):
            return GONE
        return current

    def do_touch(
        self, sid: str, expected_version: int, seen: float, deadline: float
    ) -> Steps[bool]:
        """As `Store.touch`."""
        _, count = yield self.touch, (seen, deadline, sid, expected_version)
        return count == 1

    def do_delete(self, sid: str, ended: Ended | None) -> Steps[bool]:
        """As `Store.delete`."""
        if ended is None:
            _, count = yield self.remove, (sid,)
        elif ended.status == ENDING:
            _, count = yield self.end, (ended.reason, ended.due, sid)
            if not count:
                yield self.put_off, (ended.due, sid)
        elif ended.status == ENDED:
            values = (ended.reason, ended.at, ended.due, ended.due, sid)
            _, count = yield self.bury, values
        else:
            raise ValueError(f"Ended.status is {ended.status}; use ENDING or ENDED")
        return count == 1

    def do_bury(self, sid: str, ended: Ended) -> Steps[bool]:
        """Begin a transaction and bury a session that is `ENDING`; where it is not, end it again.

        Returns:
            Whether the transaction is under way.
        """
        yield _BEGIN, ()
        rows, _ = yield self.lock, (sid,)
        if not rows or rows[0][0] != ENDING:
            yield _ROLLBACK, ()
            return False
        yield self.bury, (ended.reason, ended.at, ended.due, ended.due, sid)
        return True

    def do_list(
        self, user: str | None, status: int | None, after: str, limit: int
    ) -> Steps[list[Record]]:
        """As `Store.list`; asks a second time only where something is damaged."""
        if not self._may_be_kept(user):
            return []
        where, values = self._where(user, status)
        text = (
            f"SELECT sid, {self.selected} FROM sojourn_sessions "
            f"WHERE {where} AND sid > %s ORDER BY sid LIMIT %s"
        )
        records: list[Record] = []
        while True:
            wanted = limit - len(records)
            rows, _ = yield Statement(text, rows=True), (*values, after, wanted)
            records += self.records(rows)[0]
            if len(rows) < wanted or len(records) >= limit:
                return records
            after = rows[-1][0]

    def put_aside(self, damaged: Iterable[str]) -> Steps[None]:
        """Keep damaged records for people, but out of the way of sweeps."""
        for sid in damaged:
            yield self.set_aside, (FAR, sid)
            _log.error("the session %s is damaged; it was set aside, no sweep will look at it", sid)

    def do_count(self, user: str | None, status: int | None) -> Steps[int]:
        """As `Store.count`."""
        if not self._may_be_kept(user):
            return 0
        where, values = self._where(user, status)
        text = f"SELECT count(*) FROM sojourn_sessions WHERE {where}"
        rows, _ = yield Statement(text, rows=True), values
        return int(rows[0][0])

    def _may_be_kept(self, user: str | None) -> bool:
        """Whether there can be a record of that user."""
        try:
            self.check_text("user", user or "", MAX_USER)
        except InvalidValue:
            return False
        return True

    @staticmethod
    def _where(user: str | None, status: int | None) -> tuple[str, tuple[str, ...]]:
        """Return a condition and its values. The status stands in the text, for the planner."""
        terms, values = ["TRUE"], []
        if user is not None:
            terms.append("user_name = %s")
            values.append(user)
        if status is not None:
            terms.append(f"status = {int(status)}")
        return " AND ".join(terms[1:] or terms), tuple(values)


class Connection(Protocol):
    """A blocking connection in autocommit mode, used by one thread at a time."""

    used: bool
    """Whether it has served before: then it may have been cut in the meantime."""
    generation: int
    """For its pool."""
    raw: Any
    """The driver's own."""

    def execute(self, statement: Statement, values: tuple[Any, ...]) -> Answer:
        """Run one statement.

        Raises `ConnectionLost`, `StoreUnavailable`. A key that is there already is no error but
        a count of 0.
        """
        ...

    def close(self) -> None:
        """Close it at once, whatever state it is in."""
        ...


class AsyncConnection(Protocol):
    """The same for event loops."""

    used: bool
    generation: int
    raw: Any

    async def execute(self, statement: Statement, values: tuple[Any, ...]) -> Answer:
        """As `Connection.execute`."""
        ...

    def close(self) -> None:
        """Close it at once, whatever state it is in; never waits."""
        ...

    async def quit(self) -> None:
        """Tell the server, where that is the custom, and close."""
        ...


class Wrapper:
    """What our connections have, of whatever driver and colour."""

    __slots__ = ("generation", "limit", "raw", "used")

    def __init__(self, raw: Any, limit: float) -> None:
        """Take the driver's connection; `limit`: seconds that it may take for a statement."""
        self.raw = raw
        self.limit = limit
        self.used = False
        self.generation = 0


C = TypeVar("C", bound=Connection)
A = TypeVar("A", bound=AsyncConnection)
P = TypeVar("P", bound=Connection | AsyncConnection)


class Source(Protocol):
    """Where a blocking store has its connections from."""

    def take(self, fresh: bool = False) -> Connection:
        """Give a connection for the caller alone; `fresh`: one that was not idle before."""
        ...

    def give(self, connection: Any) -> None:
        """Take it back, sound."""
        ...

    def drop(self, connection: Any) -> None:
        """Take it back and close it: nobody knows what state it is in."""
        ...

    def clear(self) -> None:
        """Let go of all connections; those in use as soon as they come back."""
        ...


class AsyncSource(Protocol):
    """Where an asynchronous store has its connections from."""

    async def take(self, fresh: bool = False) -> AsyncConnection:
        """As `Source.take`."""
        ...

    def give(self, connection: Any) -> None:
        """As `Source.give`."""
        ...

    def drop(self, connection: Any) -> None:
        """As `Source.drop`."""
        ...

    def clear(self) -> None:
        """As `Source.clear`."""
        ...

    async def close(self) -> None:
        """Let go of all connections, politely."""
        ...


S = TypeVar("S", Source, AsyncSource)


class _Parts(Generic[S]):
    """What stores of both colours have."""

    promises: Promises

    def __init__(self, dialect: Dialect, source: S) -> None:
        """Keep the parts; nothing is opened before the first call."""
        self._dialect = dialect
        self._source: S = source
        self._ready = False

    def _failed(self, error: BaseException, connection: Any, fresh: bool) -> None:
        """Drop a connection; return where a new one may help, else raise the error again."""
        used = connection.used
        self._source.drop(connection)
        if not isinstance(error, ConnectionLost) or fresh or not used:
            raise
        # Whatever cut this one has most likely cut all that were idle with it.
        self._source.clear()


class SqlStore(_Parts[Source]):
    """A blocking store on a SQL database; the modules for the databases have `from_url`."""

    @classmethod
    def _of_engine(
        cls,
        engine: Any,
        dialect: Dialect,
        wrap: Callable[[Any], Connection],
        allowed: tuple[str, ...],
    ) -> Self:
        """Make a store on the connections of a SQLAlchemy engine of one of the `allowed` kinds."""
        kind = f"{engine.dialect.name}+{engine.dialect.driver}"
        if kind not in allowed:
            raise ConfigurationError(
                f"the engine is {kind}; {cls.__name__} takes a blocking one made by "
                f"create_engine('{allowed[0]}://...')"
            )
        store = cls.__new__(cls)
        SqlStore.__init__(store, dialect, EngineSource(engine, wrap))
        return store

    def load(self, sid: str) -> Record | None:
        """As `Store.load`."""
        return self._run(self._dialect.do_load, sid)

    def create(self, record: Record) -> bool:
        """As `Store.create`. Raises `InvalidValue` for what the database cannot keep."""
        return self._run(self._dialect.do_create, record)

    def replace(self, record: Record, expected_version: int) -> Record | Outcome:
        """As `Store.replace`. Raises `InvalidValue` for what the database cannot keep."""
        return self._run(self._dialect.do_replace, record, expected_version)

    def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> bool:
        """As `Store.touch`."""
        return self._run(self._dialect.do_touch, sid, expected_version, seen, deadline)

    def delete(self, sid: str, ended: Ended | None = None) -> bool:
        """As `Store.delete`."""
        return self._run(self._dialect.do_delete, sid, ended)

    def due(self, now: float, lease: float, limit: int = 100) -> builtins.list[Record]:
        """As `Store.due`, in transactions of at most 50 rows each."""
        claimed: list[Record] = []
        while True:
            size = min(limit - len(claimed), PAGE)
            records, looked = self._run(self._dialect.page, now, lease, size)
            claimed += records
            if looked < size or len(claimed) >= limit:
                return claimed

    def bury(self, sid: str, ended: Ended, work: Callable[[Any], None]) -> bool:
        """End a session that is `ENDING` together with what `work(connection)` writes.

        Both in one transaction, which `work` must not end. What it raises undoes both and is
        raised here.

        Args:
            sid: of the session.
            ended: its tombstone.
            work: writes to this database through the connection, which is the driver's.

        Returns:
            False, and `work` was not called, where the session is not `ENDING` any more.
        """
        connection = self._source.take()
        try:
            if not self._ready:
                _drive(self._dialect.prepare(), connection)
                self._ready = True
            begun = _drive(self._dialect.do_bury(sid, ended), connection)
            if begun:
                work(connection.raw)
                connection.execute(_COMMIT, ())
        except BaseException as error:
            # The server undoes what a connection that is closed has not committed.
            self._source.drop(connection)
            if isinstance(error, ConnectionLost):
                self._source.clear()
            raise
        self._source.give(connection)
        return begun

    def list(
        self, user: str | None = None, status: int | None = 0, after: str = "", limit: int = 100
    ) -> builtins.list[Record]:
        """As `Store.list`."""
        return self._run(self._dialect.do_list, user, status, after, limit)

    def count(self, user: str | None = None, status: int | None = 0) -> int:
        """As `Store.count`."""
        return self._run(self._dialect.do_count, user, status)

    def check(self) -> builtins.list[str]:
        """Return a sentence for each thing about the database that endangers sessions."""
        return self._run(self._dialect.do_check)

    def close(self) -> None:
        """As `Store.close`; a later call connects anew."""
        self._source.clear()

    def _run(self, verb: Callable[..., Steps[T]], *args: Any) -> T:
        """Run a verb on a connection; once more, on a new one, where an idle one had been cut."""
        fresh = False
        while True:
            connection = self._source.take(fresh)
            try:
                if not self._ready:
                    _drive(self._dialect.prepare(), connection)
                    self._ready = True
                answer = _drive(verb(*args), connection)
            except (DamagedRecord, InvalidValue):
                # Raised by us between two statements.
                self._source.give(connection)
                raise
            except BaseException as error:
                self._failed(error, connection, fresh)
                fresh = True
                continue
            self._source.give(connection)
            return answer


class AsyncSqlStore(_Parts[AsyncSource]):
    """An asynchronous store on a SQL database; the modules for the databases have `afrom_url`."""

    async def load(self, sid: str) -> Record | None:
        """As `Store.load`."""
        return await self._run(self._dialect.do_load, sid)

    async def create(self, record: Record) -> bool:
        """As `Store.create`. Raises `InvalidValue` for what the database cannot keep."""
        return await self._run(self._dialect.do_create, record)

    async def replace(self, record: Record, expected_version: int) -> Record | Outcome:
        """As `Store.replace`. Raises `InvalidValue` for what the database cannot keep."""
        return await self._run(self._dialect.do_replace, record, expected_version)

    async def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> bool:
        """As `Store.touch`."""
        return await self._run(self._dialect.do_touch, sid, expected_version, seen, deadline)

    async def delete(self, sid: str, ended: Ended | None = None) -> bool:
        """As `Store.delete`."""
        return await self._run(self._dialect.do_delete, sid, ended)

    async def due(self, now: float, lease: float, limit: int = 100) -> builtins.list[Record]:
        """As `Store.due`, in transactions of at most 50 rows each."""
        claimed: list[Record] = []
        while True:
            size = min(limit - len(claimed), PAGE)
            records, looked = await self._run(self._dialect.page, now, lease, size)
            claimed += records
            if looked < size or len(claimed) >= limit:
                return claimed

    async def bury(self, sid: str, ended: Ended, work: Callable[[Any], Awaitable[None]]) -> bool:
        """As `SqlStore.bury`; `work` is awaited."""
        connection = await self._source.take()
        try:
            if not self._ready:
                await _adrive(self._dialect.prepare(), connection)
                self._ready = True
            begun = await _adrive(self._dialect.do_bury(sid, ended), connection)
            if begun:
                await work(connection.raw)
                await connection.execute(_COMMIT, ())
        except BaseException as error:
            self._source.drop(connection)
            if isinstance(error, ConnectionLost):
                self._source.clear()
            raise
        self._source.give(connection)
        return begun

    async def list(
        self, user: str | None = None, status: int | None = 0, after: str = "", limit: int = 100
    ) -> builtins.list[Record]:
        """As `Store.list`."""
        return await self._run(self._dialect.do_list, user, status, after, limit)

    async def count(self, user: str | None = None, status: int | None = 0) -> int:
        """As `Store.count`."""
        return await self._run(self._dialect.do_count, user, status)

    async def check(self) -> builtins.list[str]:
        """As `SqlStore.check`."""
        return await self._run(self._dialect.do_check)

    async def close(self) -> None:
        """As `Store.close`; a later call connects anew."""
        await self._source.close()

    async def _run(self, verb: Callable[..., Steps[T]], *args: Any) -> T:
        """As `SqlStore._run`. A task cancelled in the middle takes its connection with it."""
        fresh = False
        while True:
            connection = await self._source.take(fresh)
            try:
                if not self._ready:
                    await _adrive(self._dialect.prepare(), connection)
                    self._ready = True
                answer = await _adrive(verb(*args), connection)
            except (DamagedRecord, InvalidValue):
                self._source.give(connection)
                raise
            except BaseException as error:
                self._failed(error, connection, fresh)
                fresh = True
                continue
            self._source.give(connection)
            return answer


def _drive(steps: Steps[T], connection: Connection) -> T:
    """Run a flow of statements."""
    execute = connection.execute
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(execute(*wanted))
    except StopIteration as stop:
        answer: T = stop.value
        return answer


async def _adrive(steps: Steps[T], connection: AsyncConnection) -> T:
    """Run a flow of statements."""
    execute = connection.execute
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(await execute(*wanted))
    except StopIteration as stop:
        answer: T = stop.value
        return answer


_pools: weakref.WeakSet[Any] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in list(_pools):
        pool.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Idle(Generic[P]):
    """The connections of all threads, or of one event loop."""

    def __init__(self, free: Any) -> None:
        self.connections: list[P] = []
        self.free = free


class _Free:
    """A semaphore in C: `threading.Semaphore` takes several times as long."""

    __slots__ = ("_tokens", "release")

    def __init__(self, count: int) -> None:
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.release = functools.partial(self._tokens.put, None)
        for _ in range(count):
            self.release()

    def acquire(self, timeout: float) -> bool:
        try:
            self._tokens.get(timeout=timeout)
        except queue.Empty:
            return False
        return True


class _Pooled(Generic[P]):
    """What pools of both colours have: the connection used last is the first to be used again.

    Why not the pool of each driver: a request needs a few hundred nanoseconds of this, and it has
    to behave in the same way for all databases when a server restarts or a process forks.
    """

    def __init__(self, connect: Callable[[], Any], size: int, timeout: float) -> None:
        """Make an empty pool.

        Args:
            connect: opens a connection, in `AsyncPool` an awaitable one; raises
                `StoreUnavailable`.
            size: how many there are at most at one time.
            timeout: seconds to wait for one to come free.
        """
        self._connect = connect
        self._size = size
        self._timeout = timeout
        self._generation = 0

    def _mine(self) -> _Idle[P]:
        """Return those that the caller may use."""
        raise NotImplementedError

    def give(self, connection: P) -> None:
        """As `Source.give`."""
        mine = self._mine()
        connection.used = True
        if connection.generation == self._generation:
            mine.connections.append(connection)
        else:
            connection.close()
        mine.free.release()

    def drop(self, connection: P) -> None:
        """As `Source.drop`."""
        try:
            connection.close()
        finally:
            self._mine().free.release()

    def clear(self) -> None:
        """As `Source.clear`; where others may use others, they find out by themselves."""
        self._generation += 1
        idle = self._mine().connections
        while idle:
            with contextlib.suppress(IndexError):
                idle.pop().close()

    def _all_in_use(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"all {self._size} connections were in use for {self._timeout:g} s; raise pool_size, "
            "or look for what keeps the database busy"
        )


class Pool(_Pooled[C]):
    """Connections for threads."""

    def __init__(self, connect: Callable[[], C], size: int, timeout: float) -> None:
        """As `_Pooled`."""
        super().__init__(connect, size, timeout)
        self._own: _Idle[C] = _Idle(_Free(size))
        self._parents: list[_Idle[C]] = []
        _pools.add(self)

    def _mine(self) -> _Idle[C]:
        return self._own

    def take(self, fresh: bool = False) -> C:
        """As `Source.take`."""
        own = self._own
        if not own.free.acquire(timeout=self._timeout):
            raise self._all_in_use()
        try:
            if not fresh:
                try:
                    return own.connections.pop()  # atomic: two threads never get the same
                except IndexError:
                    pass
            generation = self._generation
            connection: C = self._connect()
            connection.generation = generation
        except BaseException:
            own.free.release()
            raise
        return connection

    def forget(self) -> None:
        """In a forked child: leave the parent's connections alone, and start empty.

        They are kept, because to close them, or to let them be collected, could say good-bye on a
        socket that the parent still uses.
        """
        self._parents.append(self._own)
        self._own = _Idle(_Free(self._size))
        self._generation += 1


class AsyncPool(_Pooled[A]):
    """Connections for tasks; those of one event loop are never used on another."""

    def __init__(self, connect: Callable[[], Any], size: int, timeout: float) -> None:
        """As `_Pooled`."""
        super().__init__(connect, size, timeout)
        self._loops: dict[asyncio.AbstractEventLoop, _Idle[A]] = {}

    def _mine(self) -> _Idle[A]:
        loop = asyncio.get_running_loop()
        mine = self._loops.get(loop)
        if mine is None:
            # A weak dictionary would never forget a loop: its connections refer to it.
            for other in [other for other in self._loops if other.is_closed()]:
                del self._loops[other]
            mine = self._loops[loop] = _Idle(asyncio.Semaphore(self._size))
        return mine

    async def take(self, fresh: bool = False) -> A:
        """As `Source.take`."""
        mine = self._mine()
        if mine.free.locked():
            try:
                async with asyncio.timeout(self._timeout):
                    await mine.free.acquire()
            except TimeoutError:
                raise self._all_in_use() from None
        else:
            await mine.free.acquire()
        try:
            if mine.connections and not fresh:
                return mine.connections.pop()
            generation = self._generation
            connection: A = await self._connect()
            connection.generation = generation
        except BaseException:
            mine.free.release()
            raise
        return connection

    async def close(self) -> None:
        """As `AsyncSource.close`."""
        self._generation += 1
        idle = self._mine().connections
        while idle:
            await idle.pop().quit()


class EngineSource:
    """Connections out of the pool of a SQLAlchemy engine that the application has.

    SQLAlchemy is not imported: an engine is what has `raw_connection` and `dispose`.
    """

    def __init__(self, engine: Any, wrap: Callable[[Any], Connection]) -> None:
        """Use `engine`; `wrap` makes a connection of ours out of the driver's."""
        self._engine = engine
        self._wrap = wrap

    def take(self, fresh: bool = False) -> Connection:
        """As `Source.take`; where a connection was cut, the engine starts a new pool."""
        if fresh:
            self._engine.dispose(close=False)
        try:
            proxy = self._engine.raw_connection()
        except Exception as error:
            raise StoreUnavailable(f"the SQLAlchemy engine has no connection: {error}") from error
        try:
            connection = self._wrap(proxy)
            connection.used = True
        except BaseException:
            proxy.invalidate()
            raise
        return connection

    def give(self, connection: Any) -> None:
        """As `Source.give`."""
        connection.give()

    def drop(self, connection: Any) -> None:
        """As `Source.drop`."""
        connection.close()

    def clear(self) -> None:
        """Do nothing: the engine belongs to the application."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a URL may say to Sojourn itself.

    Attributes:
        timeout: seconds for a connection to be made, for a statement, for a free connection.
        pool_size: connections of one process (of one event loop).
        relaxed_touches: whether a touch may be lost when the power fails.
    """

    timeout: float = 3.0
    pool_size: int = 10
    relaxed_touches: bool = False


def settings_of(url: str, names: tuple[str, ...]) -> tuple[str, Settings]:
    """Take our own settings out of the query of a URL; return the rest, and them.

    Raises:
        ConfigurationError: a value is not of its kind.
    """
    address, _, query = url.partition("?")
    ours: dict[str, Any] = {}
    rest = []
    faults = []
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in names:
            rest.append((name, text))
            continue
        try:
            if name == "relaxed_touches":
                ours[name] = {"1": True, "true": True, "0": False, "false": False}[text]
            else:
                ours[name] = float(text) if name == "timeout" else int(text)
                if not 0 < ours[name] < 100_000:
                    raise ValueError
        except (KeyError, ValueError):
            allowed = {"relaxed_touches": "0 or 1", "timeout": "seconds above 0"}
            faults.append(f"{name}={text!r}; use {allowed.get(name, 'a whole number above 0')}")
    if faults:
        raise ConfigurationError("the store's URL has " + ", ".join(faults))
    query = urlencode(rest, quote_via=quote)
    return f"{address}?{query}" if query else address, Settings(**ours)
