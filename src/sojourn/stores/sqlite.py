"""Records in one SQLite file, for any number of threads and processes of one host.

The file is in WAL mode: readers wait for nobody, and one writes at a time. A connection is
taken from a short list for the time of one call and put back, so that threads may come and go.
Why `apsw` and not the standard library: docs/decisions/0010-sqlite-driver.md.
"""

from __future__ import annotations

import _thread
import builtins
import contextlib
import ctypes
import logging
import os
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qsl, unquote
from zlib import crc32

import apsw
import msgspec
from msgspec.structs import force_setattr
from msgspec.structs import replace as changed

from sojourn.core.calls import GONE, SAVED, Outcome
from sojourn.core.codec import CRC_RESIDUE, checked
from sojourn.core.record import ENDED, ENDING, LIVE, MARK, Ended, Record, ended_as
from sojourn.errors import (
    ConfigurationError,
    DamagedRecord,
    InvalidValue,
    SojournError,
    StoreUnavailable,
)
from sojourn.stores._rights import open_to_others
from sojourn.stores.base import Promises, WouldBlock

__all__ = ["MIGRATIONS", "SCHEMA", "SqliteStore", "from_url"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

_OLDEST_SQLITE = 3_051_003
"""The first without the WAL-reset fault, by which two connections may damage a file."""

_SYNCHRONOUS = ("normal", "full")

# Connections that wait for the next call; more are only open while calls overlap.
_KEPT_CONNECTIONS = 8

# A checkpoint is due after so many bytes more in the log, counted as these pages for each write and
# its data (SQLite itself takes 4 MiB). A log of several times that size is one that ordinary
# checkpoints cannot finish.
_CHECKPOINT_BYTES = 4 << 20
_ROW_BYTES = 2 * 4096
_LARGE_LOG_PAGES = 4000
_CHECKPOINT_SECONDS = 0.025

# How long `due` holds the write lock at most before it lets others write, and with how many rows.
_CLAIM_SECONDS = 0.02
_CLAIM_ROWS = 100
_CLAIM_PAUSE = 0.002


# Statements ---------------------------------------------------------------------------------------

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE sojourn_meta (
        name TEXT NOT NULL PRIMARY KEY,
        value INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE sojourn_sessions (
        sid TEXT COLLATE BINARY NOT NULL PRIMARY KEY,
        version INTEGER NOT NULL,
        status INTEGER NOT NULL,
        user_name TEXT COLLATE BINARY,
        due REAL,
        head BLOB NOT NULL,
        data BLOB NOT NULL
    ) STRICT;

    CREATE INDEX sojourn_sessions_due ON sojourn_sessions (due) WHERE due IS NOT NULL;
    CREATE INDEX sojourn_sessions_user ON sojourn_sessions (user_name, sid, status)
        WHERE user_name IS NOT NULL;
    CREATE INDEX sojourn_sessions_ended ON sojourn_sessions (status, sid) WHERE status <> 0;

    INSERT INTO sojourn_meta (name, value) VALUES ('schema', 0), ('checkpoints', 0);
    """,
)
"""What leads from each version of the schema to the next: the first makes version 1 out of nothing.

Only ever appended to. All that a file lacks run in one transaction.
"""


def _schema() -> str:
    """Return the SQL that makes the tables in an empty or in an application's own file."""
    steps = "".join(MIGRATIONS)
    done = f"UPDATE sojourn_meta SET value = {len(MIGRATIONS)} WHERE name = 'schema';"
    return f"BEGIN IMMEDIATE;\n{steps}\n    {done}\nCOMMIT;\n"


SCHEMA = _schema()
"""The newest schema as SQL, for people who make the tables themselves."""

_TABLE = "sojourn_sessions"

# Short texts: apsw finds a prepared statement by its text, which costs 0.1 us for 100 characters.
_LOAD = "SELECT version,head,data FROM sojourn_sessions WHERE sid=?"
_CREATE = (
    f"INSERT INTO {_TABLE}(sid,version,status,user_name,due,head,data)"
    "VALUES(?,?,?,?,?,?,?)ON CONFLICT(sid)DO NOTHING"
)
# The common case: user and status stay, and the due time need not move. An UPDATE that names an
# indexed column writes its index anew even where the value stays; this one writes no index.
_REPLACE = (
    f"UPDATE {_TABLE} SET version=?2,head=?6,data=?7"
    " WHERE sid=?1 AND version=?8 AND status=?3 AND user_name IS ?4 AND due<=?5"
)
_REPLACE_ALL = (
    f"UPDATE {_TABLE} SET version=?2,status=?3,user_name=?4,due=?5,head=?6,data=?7"
    " WHERE sid=?1 AND version=?8"
)
_HEAD = f"SELECT version,head FROM {_TABLE} WHERE sid=?"
_TOUCH = f"UPDATE {_TABLE} SET version=?2,head=?3 WHERE sid=?1 AND version=?2-1"

_STATUS_OF = f"SELECT status FROM {_TABLE} WHERE sid = ?"
_REMOVE = f"DELETE FROM {_TABLE} WHERE sid = ?"
_MAKE_ENDING = (
    f"UPDATE {_TABLE} SET version = ?2, status = {ENDING}, due = ?3, head = ?4 "
    "WHERE sid = ?1 AND version = ?2 - 1"
)
_PUT_OFF = f"UPDATE {_TABLE} SET due = ?2 WHERE sid = ?1 AND status = {ENDING}"
_MAKE_ENDED = (
    f"UPDATE {_TABLE} SET version = ?2, status = {ENDED}, due = ?3, head = ?4, "
    "data = x'', user_name = NULL WHERE sid = ?1 AND version = ?2 - 1"
)

_ANY_DUE = f"SELECT 1 FROM {_TABLE} WHERE due <= ? LIMIT 1"
_DUE_PAGE = f"SELECT rowid FROM {_TABLE} WHERE due <= ? ORDER BY due, rowid LIMIT ?"
_HEAD_IN = f"SELECT version, head FROM {_TABLE} WHERE rowid = ?"
_DATA_IN = f"SELECT data FROM {_TABLE} WHERE rowid = ?"
_CLAIM = (
    f"UPDATE {_TABLE} SET status = {ENDING}, version = ?2, due = ?3, head = ?4 WHERE rowid = ?1"
)
_MOVE = f"UPDATE {_TABLE} SET due = ?2 WHERE rowid = ?1"
_REMOVE_ROW = f"DELETE FROM {_TABLE} WHERE rowid = ?1"

_CHECKPOINTED = "UPDATE sojourn_meta SET value = value + 1 WHERE name = 'checkpoints'"


def _where(user: str | None, status: int | None) -> str:
    """Return the condition of `list` and `count`, which an index serves in the order of sids."""
    terms = []
    if user is not None:
        terms.append("user_name = :user")
    if status is not None:
        terms.append("status = :status")
        if user is None and status != LIVE:
            # Lets SQLite use the index that holds only those.
            terms.append(f"status <> {LIVE}")
    return " AND ".join(terms) or "true"


def _list_statement(user: str | None, status: int | None) -> str:
    where = _where(user, status)
    return f"SELECT version,head,data FROM {_TABLE} WHERE {where} AND sid > :after ORDER BY sid"


def _count_statement(user: str | None, status: int | None) -> str:
    if user is None and status == LIVE:
        # Two counts of an index are some hundred times faster than to read the status of all.
        others = f"SELECT count(*) FROM {_TABLE} WHERE status <> {LIVE}"
        return f"SELECT (SELECT count(*) FROM {_TABLE}) - ({others})"
    return f"SELECT count(*) FROM {_TABLE} WHERE {_where(user, status)}"


# Rows ---------------------------------------------------------------------------------------------

# A row's `head` is the record without its data: the fields in MessagePack, then their CRC-32. What
# SQL needs of it stands in columns besides. One column is read and checked in less than half the
# time of twenty-three.

_STATUSES = frozenset((LIVE, ENDING, ENDED, MARK))
_encode_fields = msgspec.msgpack.Encoder().encode
_decode_fields = msgspec.msgpack.Decoder(Record).decode


def _head_of(record: Record) -> bytes:
    """Return what `head` holds of a record; InvalidValue for a time that is no number."""
    times = record.created + record.seen + record.deadline + record.grace_until
    if times != times:
        raise InvalidValue(f"the record {record.sid!r} cannot be stored: one of its times is NaN")
    return checked(_encode_fields(changed(record, data=b"")))


def _record(row: tuple[Any, ...], sid: str) -> Record:
    """Return the record of a row; raises `DamagedRecord` for whatever cannot be one.

    Args:
        row: its version, head and data.
        sid: what it was looked for by, for the message.
    """
    version, head, data = row
    try:
        # `codec.unchecked`, written out: this is done for every request.
        if crc32(head) != CRC_RESIDUE:
            raise ValueError("its head does not match its checksum")
        record = _decode_fields(head[:-4])
        if (
            record.version != version
            or not LIVE <= record.status <= MARK
            or type(data) is not bytes
        ):
            raise ValueError(
                f"its head is of version {record.version} and status {record.status}, its row of "
                f"version {version} and with data of type {type(data).__name__}"
            )
    except (TypeError, ValueError) as error:
        # The table is STRICT, but a flipped bit in a row changes the type of a column too.
        raise DamagedRecord(f"the record {sid!r} is damaged: {error}") from error
    # It is nobody else's yet.
    force_setattr(record, "data", data)
    return record


def _row(record: Record) -> tuple[Any, ...]:
    """Return the columns of a record, in the order of the statements that write all."""
    return (
        record.sid,
        record.version,
        record.status,
        record.user,
        record.deadline,
        _head_of(record),
        record.data,
    )


def _refused(sid: str, error: Exception) -> InvalidValue:
    """Return the error for a record with a value that no column takes: a time that is no number."""
    return InvalidValue(f"the record {sid!r} cannot be stored: {error}")


# Connections --------------------------------------------------------------------------------------


class _Connection:
    """One connection, with the verbs on it. Raises what apsw raises."""

    __slots__ = (
        "__weakref__",
        "_changes",
        "_synchronous",
        "apsw",
        "closed",
        "execute",
        "wrote",
    )

    def __init__(self, connection: apsw.Connection, synchronous: str) -> None:
        self.apsw = connection
        self.closed = False
        self._synchronous = synchronous
        self._changes = connection.changes
        # One cursor for all: every statement below runs to its end, by `get` or because it
        # returns no rows, so that none holds a read transaction open.
        self.execute = connection.cursor().execute
        connection.pragma("synchronous", synchronous)
        # `SqliteStore` has a thread do it, after so many bytes; SQLite would make a request wait.
        connection.wal_autocheckpoint(0)
        self.wrote = 0

    def close(self) -> None:
        self.closed = True
        self.apsw.close(True)

    def has_moved(self) -> bool:
        """Tell whether the file was deleted, moved or replaced; False where SQLite cannot tell."""
        moved = ctypes.c_int(0)
        try:
            self.apsw.file_control("main", apsw.SQLITE_FCNTL_HAS_MOVED, ctypes.addressof(moved))
        except apsw.Error:
            return False
        return bool(moved.value)

    def wait_for(self, seconds: float) -> None:
        """Set how long it waits for a lock."""
        self.apsw.set_busy_timeout(round(seconds * 1000))

    def load(self, sid: str) -> Record | None:
        row = self.execute(_LOAD, (sid,)).get
        return None if row is None else _record(row, sid)

    def create(self, record: Record) -> bool:
        try:
            self.execute(_CREATE, _row(record))
        except apsw.ConstraintError as error:
            raise _refused(record.sid, error) from error
        self.wrote += _ROW_BYTES + len(record.data)
        return self._changes() == 1

    def replace(self, record: Record, expected_version: int) -> Record | Outcome:
        try:
            return self._replace(record, expected_version)
        except apsw.ConstraintError as error:
            raise _refused(record.sid, error) from error

    def _replace(self, record: Record, expected_version: int) -> Record | Outcome:
        # Each statement is atomic by itself, and versions only grow: one that the first statement
        # did not find is another's for ever, or it was only not the common case. What comes after
        # it finds out which, and what it reads is current at that later moment. So no transaction
        # is needed around them.
        values = (*_row(record), expected_version)
        self.wrote += _ROW_BYTES + len(record.data)
        if record.status == LIVE or record.status == MARK:
            self.execute(_REPLACE, values)
            if self._changes() == 1:
                return SAVED
        current = self.load(record.sid)
        if (
            current is not None
            and current.version == expected_version
            and (current.status == LIVE or current.status == MARK)
        ):
            self.execute(_REPLACE_ALL, values)
            if self._changes() == 1:
                return SAVED
            current = self.load(record.sid)
        if current is None or current.status == ENDING or current.status == ENDED:
            return GONE
        return current

    def _head(self, sid: str) -> Record | None:
        """Return a record without its data."""
        row = self.execute(_HEAD, (sid,)).get
        return None if row is None else _record((*row, b""), sid)

    def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> bool:
        record = self._head(sid)
        if (
            record is None
            or record.version != expected_version
            or (record.status != LIVE and record.status != MARK)
        ):
            return False
        head = _head_of(changed(record, version=expected_version + 1, seen=seen, deadline=deadline))
        self.execute(_TOUCH, (sid, expected_version + 1, head))
        self.wrote += _ROW_BYTES
        return self._changes() == 1

    def delete(self, sid: str, ended: Ended | None) -> bool:
        self.wrote += _ROW_BYTES
        status = self.execute(_STATUS_OF, (sid,)).get
        if status is None:
            return False
        if status in (ENDING, ENDED, MARK):
            # No session that lives is ended by this: what makes it durable came before, or a
            # sweep will do the same again.
            return self._end(sid, ended)
        with self._durably():
            return self._end(sid, ended)

    @contextlib.contextmanager
    def _durably(self) -> Iterator[None]:
        """Have the disk confirm what is committed inside, and all that was committed before."""
        if self._synchronous == "full":
            yield
            return
        self.execute("PRAGMA synchronous = FULL")
        try:
            yield
        finally:
            self.execute("PRAGMA synchronous = NORMAL")

    def _end(self, sid: str, ended: Ended | None) -> bool:
        if ended is None:
            self.execute(_REMOVE, (sid,))
            return self._changes() == 1
        while True:
            try:
                record = self._head(sid)
            except (DamagedRecord, UnicodeDecodeError):
                # There is nothing to make a tombstone of.
                self.execute(_REMOVE, (sid,))
                return self._changes() == 1
            if record is None or record.status == ENDED:
                return False
            if ended.status == ENDING and record.status == ENDING:
                self.execute(_PUT_OFF, (sid, ended.due))
                return False
            record = ended_as(record, ended)
            if ended.status == ENDING:
                statement = _MAKE_ENDING
            else:
                statement = _MAKE_ENDED
                record = changed(record, persistent=False, address="", agent="")
            try:
                self.execute(statement, (sid, record.version, ended.due, _head_of(record)))
            except apsw.ConstraintError:
                # A STRICT table takes no row with a column of a wrong type.
                self.execute(_REMOVE, (sid,))
            if self._changes() == 1:
                return True
            # Another was first, and what it wrote is to be ended then.

    def bury(self, sid: str, ended: Ended, work: Callable[[apsw.Connection], None]) -> bool:
        self.wrote += _ROW_BYTES
        with self._transaction():
            if self.execute(_STATUS_OF, (sid,)).get != ENDING:
                return False
            self._end(sid, ended)
            work(self.apsw)
        return True

    def claim(self, now: float, lease: float, limit: int) -> tuple[list[Record], int]:
        """Do one short transaction of `due`; return what it claimed, and how many it looked at."""
        if self.execute(_ANY_DUE, (now,)).get is None:
            return [], 0
        claimed: list[Record] = []
        looked = 0
        with self._transaction():
            stop = time.monotonic() + _CLAIM_SECONDS
            rows: Any = self.execute(_DUE_PAGE, (now, min(limit, _CLAIM_ROWS))).fetchall()
            for (rowid,) in rows:
                record = self._claim_row(rowid, now, lease)
                if record is not None:
                    claimed.append(record)
                looked += 1
                if time.monotonic() > stop:
                    break
        self.wrote += looked * _ROW_BYTES
        return claimed, looked

    def _claim_row(self, rowid: int, now: float, lease: float) -> Record | None:
        """Claim, move, remove or set aside one row that is due; return it if it was claimed."""
        try:
            record = _record((*self.execute(_HEAD_IN, (rowid,)).get, b""), f"in row {rowid}")
            if record.status != ENDING and record.deadline > now:
                self.execute(_MOVE, (rowid, record.deadline))
            elif record.status == ENDED or record.status == MARK:
                self.execute(_REMOVE_ROW, (rowid,))
            else:
                record = changed(
                    record,
                    status=ENDING,
                    version=record.version + 1,
                    attempts=record.attempts + 1,
                    data=self.execute(_DATA_IN, (rowid,)).get,
                )
                values = (rowid, record.version, now + lease, _head_of(record))
                self.execute(_CLAIM, values)
                return record
        except (DamagedRecord, UnicodeDecodeError, apsw.ConstraintError) as error:
            self._set_aside(rowid, error)
        return None

    def _set_aside(self, rowid: int, error: Exception) -> None:
        """Keep a damaged row for people, but out of the way of sweeps."""
        try:
            self.execute(_MOVE, (rowid, None))
            what = "set aside"
        except apsw.ConstraintError:
            # A STRICT table takes no such row back, not even unchanged.
            self.execute(_REMOVE_ROW, (rowid,))
            what = "removed"
        _log.warning("row %d of %s is damaged and was %s: %s", rowid, _TABLE, what, error)

    def list(self, user: str | None, status: int | None, after: str, limit: int) -> list[Record]:
        records: list[Record] = []
        # A cursor of its own, as it may be left before its end.
        rows = self.apsw.cursor()
        try:
            rows.execute(
                _list_statement(user, status), {"user": user, "status": status, "after": after}
            )
            while len(records) < limit:
                try:
                    record = _record(next(rows), "")
                except StopIteration:
                    break
                except (DamagedRecord, UnicodeDecodeError):
                    continue
                records.append(record)
        finally:
            rows.close()
        return records

    def count(self, user: str | None, status: int | None) -> int:
        values = {"user": user, "status": status}
        counted: int = self.execute(_count_statement(user, status), values).get
        return counted

    def faults(self) -> builtins.list[str]:
        """Return what is wrong with the file itself; reads all of it."""
        said = [str(row[0]) for row in self.execute("PRAGMA quick_check(3)").fetchall()]
        return [] if said == ["ok"] else [f"it is damaged ({'; '.join(said)}); restore a backup"]

    def checkpoint(self, mode: int, busy_timeout: float) -> int:
        """Copy the log into the file, so that the next writer may begin the log anew.

        Returns:
            How many pages the log had; it is begun anew unless others wrote meanwhile.
        """
        # Where a checkpoint waits for others, it lets nobody write meanwhile.
        self.wait_for(_CHECKPOINT_SECONDS)
        try:
            pages, copied = self.apsw.wal_checkpoint(mode=mode)
            if copied == pages:
                # The first write now begins the log anew and waits for the disk. This one does,
                # so that no request has to.
                self.execute(_CHECKPOINTED)
            return pages
        finally:
            self.wait_for(busy_timeout)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            if self.apsw.in_transaction:
                self.execute("ROLLBACK")
            raise

    def prepare(self) -> None:
        """Make sure of the log and the schema.

        Raises `ConfigurationError` where the file is not ours or not for this release; it is left
        as it is.
        """
        if self._version() < len(MIGRATIONS) or self.apsw.pragma("journal_mode") != "wal":
            if self.apsw.readonly("main"):
                raise apsw.ReadOnlyError("the tables of sojourn cannot be made or brought up")
            self._use_log()
            self._migrate()

    def _use_log(self) -> None:
        """Switch the file to WAL mode, which stays with it."""
        mode = self.apsw.pragma("journal_mode", "wal")
        if mode != "wal":
            raise ConfigurationError(
                f"SQLite cannot share memory there (its journal mode stays {mode}); name a file on "
                "a local disk"
            )

    def _migrate(self) -> None:
        with self._transaction():
            # Read again: another process may have done it while this one waited for the lock.
            version = self._version()
            for step in MIGRATIONS[version:]:
                self.execute(step)
            self.execute(
                "UPDATE sojourn_meta SET value = ? WHERE name = 'schema'", (len(MIGRATIONS),)
            )

    def _version(self) -> int:
        """Return the version of the schema, 0 for an empty file.

        Raises `ConfigurationError` where the file is another application's, or of a newer release.
        """
        query = "SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'"
        names = {name for (name,) in self.execute(query).fetchall()}
        if not names:
            return 0
        if not {_TABLE, "sojourn_meta"} <= names:
            raise ConfigurationError(
                "it is the database of another application, without the tables of sojourn; name "
                "another file, or make the tables in this one: sojourn schema sqlite"
            )
        version = self.execute("SELECT value FROM sojourn_meta WHERE name = 'schema'").get
        if not isinstance(version, int):
            raise ConfigurationError(
                "its table sojourn_meta does not tell the version of the schema; restore a backup"
            )
        if version > len(MIGRATIONS):
            raise ConfigurationError(
                f"its schema is version {version}, and this release of sojourn knows versions up "
                f"to {len(MIGRATIONS)}; use the release that wrote it, or name another file"
            )
        return version


# The store ----------------------------------------------------------------------------------------


class SqliteStore:
    """Keeps records in an SQLite file; see `docs/stores/sqlite.md`.

    Args:
        path: of the file, which is made (mode 0600) where there is none. Its folder must be on a
            local disk and writable, as SQLite keeps two more files beside it while it is used.
        synchronous: "normal": an acknowledged write survives the end of any process, and what
            ended a session also a loss of power. "full": every write survives both; each then
            waits for the disk.
        busy_timeout: seconds that a write waits for other writers before `StoreUnavailable`. One
            that waits for a thread of its process and then for another process waits for both.

    Raises:
        ConfigurationError: a setting that cannot be, an SQLite with known faults, a file that is
            no database, another application's, or of a newer release. The file is untouched.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: str = "normal",
        busy_timeout: float = 5.0,
    ) -> None:
        """Open the file; where it cannot be reached now, the first call tries again."""
        faults = []
        name = os.fspath(path)
        if name in ("", ":memory:") or "\0" in name:
            faults.append(f"path is {name!r}; name a file (to keep sessions in memory: memory://)")
        if synchronous not in _SYNCHRONOUS:
            faults.append(f"synchronous is {synchronous!r}; allowed are 'normal' and 'full'")
        if not 0 < busy_timeout <= 3600:
            faults.append(f"busy_timeout is {busy_timeout!r}; allowed is more than 0, up to 3600 s")
        if _library_version() < _OLDEST_SQLITE:
            faults.append(
                f"apsw {apsw.apsw_version()} runs SQLite {apsw.sqlite_lib_version()}, in which two "
                "connections may damage a file; 3.51.3 or newer is needed: pip install -U apsw"
            )
        if faults:
            raise ConfigurationError(f"SqliteStore({name!r}): " + "; ".join(faults) + ".")
        self.path = os.path.abspath(name)
        self.promises = Promises(
            survives="power" if synchronous == "full" else "kill",
            shared="host",
            inline=True,
            note="The end of a session survives a loss of power too.",
        )
        self._synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._wrote = 0
        self._opened: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._idle: builtins.list[_Connection] = []
        self._opening = threading.Lock()
        self._writing = threading.Lock()
        self._checkpointing = threading.Lock()
        self._held = False
        # When to look whether the open file is still the one at the path.
        self._look_again = 0.0
        _stores.add(self)
        try:
            self._idle.append(self._open())
        except StoreUnavailable as error:
            if isinstance(error.__cause__, ConfigurationError):
                raise error.__cause__ from None
            _log.warning("%s", error)

    def load(self, sid: str) -> Record | None:
        """As `Store.load`: one look-up, which waits for no writer."""
        # `_read` and `_Connection.load` written out, as every request does this.
        idle = self._idle
        try:
            connection = idle.pop()
        except IndexError:
            connection = self._open()
        try:
            row = connection.execute(_LOAD, (sid,)).get
            record = None if row is None else _record(row, sid)
        except Exception as error:
            self._fail(connection, idle, error)
        if len(idle) < _KEPT_CONNECTIONS:
            idle.append(connection)
        return record

    def create(self, record: Record) -> bool:
        """As `Store.create`. Raises `InvalidValue` for text that is not Unicode."""
        return self._write(_Connection.create, record)

    def replace(self, record: Record, expected_version: int) -> Record | Outcome:
        """As `Store.replace`. Raises `InvalidValue` for text that is not Unicode."""
        return self._write(_Connection.replace, record, expected_version)

    def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> bool:
        """As `Store.touch`: writes the page that the row begins on, not its data."""
        return self._write(_Connection.touch, sid, expected_version, seen, deadline)

    def delete(self, sid: str, ended: Ended | None = None) -> bool:
        """As `Store.delete`: for a live session, when it returns the disk has confirmed it.

        A damaged record that the engine will not write back is removed.
        """
        return self._write(_Connection.delete, sid, ended)

    def due(self, now: float, lease: float, limit: int = 100) -> builtins.list[Record]:
        """As `Store.due`, in transactions of about 20 ms.

        A damaged row gets no due time any more, or is removed where the engine will not write it.
        """
        claimed: list[Record] = []
        looked = 0
        while len(claimed) < limit and (looked < 4 * limit or not claimed):
            if looked:
                # Other processes look every few ms whether they may write.
                time.sleep(_CLAIM_PAUSE)
            records, seen = self._write(_Connection.claim, now, lease, limit - len(claimed))
            if not seen:
                break
            claimed += records
            looked += seen
        return claimed

    def list(
        self, user: str | None = None, status: int | None = LIVE, after: str = "", limit: int = 100
    ) -> builtins.list[Record]:
        """As `Store.list`."""
        return self._read(_Connection.list, user, status, after, limit)

    def bury(self, sid: str, ended: Ended, work: Callable[[apsw.Connection], None]) -> bool:
        """End a session that is `ENDING` together with what `work(connection)` writes.

        Both in one transaction, during which nobody else writes. `work` must not end it, and not
        write by this store. What it raises undoes both and is raised here.

        Args:
            sid: of the session.
            ended: its tombstone.
            work: writes to this file through the connection, which is apsw's.

        Returns:
            False, and `work` was not called, where the session is not `ENDING` any more.
        """
        return self._write(_Connection.bury, sid, ended, work)

    def count(self, user: str | None = None, status: int | None = LIVE) -> int:
        """As `Store.count`; damaged rows are counted, as only reading all would tell them."""
        return self._read(_Connection.count, user, status)

    def check(self) -> builtins.list[str]:
        """Return a sentence for each thing about the file that endangers sessions."""
        others = stat.S_IROTH | stat.S_IWOTH
        found = open_to_others(os.path.dirname(self.path), stat.S_IWOTH)
        for suffix in ("", "-wal", "-shm"):
            found += open_to_others(f"{self.path}{suffix}", others)
        return found + self._read(_Connection.faults)

    def close(self) -> None:
        """As `Store.close`: calls that are under way end as usual; a later one opens anew."""
        idle, self._idle = self._idle, []
        _close_all(idle)

    def attempt(self, verb: str, *arguments: Any) -> Any:
        """Make a call on an event loop, where it may take microseconds but must not wait.

        Args:
            verb: "load", "create", "replace" or "touch".
            arguments: those of the method.

        Returns:
            What the method returns.

        Raises:
            WouldBlock: a lock is taken, the disk would have to confirm it (`synchronous="full"`),
                no connection is open, or it is another verb. Nothing was done: make the call in a
                thread. What the method raises is raised too.
        """
        method = _ATTEMPTS.get(verb)
        writes = verb != "load"
        if method is None or (writes and self._synchronous == "full"):
            raise WouldBlock(verb)
        if writes and not self._writing.acquire(blocking=False):
            raise WouldBlock(verb)
        try:
            if writes:
                self._look_for_file()
            idle = self._idle
            try:
                connection = idle.pop()
            except IndexError:
                raise WouldBlock(verb) from None
            connection.wait_for(0)
            try:
                answer = method(connection, *arguments)
            except Exception as error:
                connection.wait_for(self._busy_timeout)
                if isinstance(error, apsw.BusyError):
                    self._give_back(connection, idle)
                    raise WouldBlock(verb) from None
                self._fail(connection, idle, error)
            connection.wait_for(self._busy_timeout)
            self._give_back(connection, idle)
            return answer
        finally:
            if writes:
                self._writing.release()

    # How a call gets a connection, and what becomes of both.

    def _read(self, method: Callable[..., T], *arguments: Any) -> T:
        """Call a method of a connection that only reads."""
        idle = self._idle
        try:
            connection = idle.pop()
        except IndexError:
            connection = self._open()
        try:
            answer = method(connection, *arguments)
        except Exception as error:
            self._fail(connection, idle, error)
        self._give_back(connection, idle)
        return answer

    def _write(self, method: Callable[..., T], *arguments: Any) -> T:
        """Call a method that writes, when it is this thread's turn.

        Threads of one process wait here, in line: SQLite lets who waits for its lock sleep and
        try again, which left single writes behind for a second where 64 threads wrote.
        """
        writing = self._writing
        if not writing.acquire(blocking=False) and not writing.acquire(timeout=self._busy_timeout):
            raise StoreUnavailable(
                f"{self.path}: other threads of this process were writing for "
                f"{self._busy_timeout:g} s; nothing was written. Write less at once, or raise "
                "busy_timeout."
            )
        try:
            self._look_for_file()
            return self._read(method, *arguments)
        finally:
            writing.release()

    def _look_for_file(self) -> None:
        """Once a second, before a write: open anew where the file was deleted, moved or replaced.

        SQLite goes on with a file that nobody else finds any more, and all that it writes there is
        gone with the process.
        """
        now = time.monotonic()
        if now < self._look_again:
            return
        self._look_again = now + 1.0
        idle = self._idle
        try:
            connection = idle.pop()
        except IndexError:
            return
        moved = connection.has_moved()
        idle.append(connection)
        if not moved:
            return
        _log.error(
            "%s was deleted, moved or replaced while it was open; what is there now is opened in "
            "its place. Stop all that use the file before you touch it",
            self.path,
        )
        idle, self._idle = self._idle, []
        for connection in idle:
            # Closing it must not remove the log beside the path: that may be another file's now.
            connection.apsw.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        _close_all(idle)

    def _give_back(self, connection: _Connection, idle: builtins.list[_Connection]) -> None:
        """Put a connection back where it came from, and have a long log copied."""
        wrote, connection.wrote = connection.wrote, 0
        if len(idle) < _KEPT_CONNECTIONS:
            idle.append(connection)
        else:
            connection.close()
        self._wrote += wrote
        if self._wrote > _CHECKPOINT_BYTES:
            self._wrote = 0
            # Not Thread.start, which waits for the thread: this may be an event loop. When the
            # interpreter is on its way out, the next process copies the log.
            with contextlib.suppress(RuntimeError):
                _thread.start_new_thread(self._checkpoint, (idle,))

    def _checkpoint(self, idle: builtins.list[_Connection]) -> None:
        """Copy the log into the file, unless the store was closed since this was asked for.

        Whatever comes in between, the next one does it.
        """
        if idle is not self._idle or not self._checkpointing.acquire(blocking=False):
            return
        try:
            method, patience = _Connection.checkpoint, self._busy_timeout
            pages = self._read(method, apsw.SQLITE_CHECKPOINT_PASSIVE, patience)
            if pages >= _LARGE_LOG_PAGES:
                # Writers that never pause are ahead of a checkpoint that holds nobody up.
                self._write(method, apsw.SQLITE_CHECKPOINT_RESTART, patience)
        except SojournError as error:
            if not isinstance(error.__cause__, apsw.BusyError):
                _log.warning("the log was not copied into the file: %s", error)
        finally:
            self._checkpointing.release()

    def _fail(
        self,
        connection: _Connection,
        idle: builtins.list[_Connection],
        error: Exception,
    ) -> NoReturn:
        """Raise what a store may raise for an error; keep the connection where it is still good."""
        if isinstance(error, InvalidValue | apsw.BusyError):
            self._give_back(connection, idle)
        else:
            connection.close()
        if isinstance(error, DamagedRecord | InvalidValue):
            raise error
        if isinstance(error, UnicodeDecodeError):
            # By a flipped bit in a row, a column of bytes is one of text.
            raise DamagedRecord(f"a record is damaged: {error}") from error
        if isinstance(error, UnicodeEncodeError | OverflowError):
            raise InvalidValue(
                f"a record cannot be stored: {error}; text must be Unicode without lone "
                "surrogates, whole numbers must fit in 64 bits"
            ) from error
        if isinstance(error, apsw.Error):
            if not isinstance(error, apsw.BusyError):
                # The others may have the same fault: opened before a disk was remounted, say.
                _close_all(idle)
            raise self._unavailable(error) from error
        raise error

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        """Return what came, and what to do, in words."""
        words = next(words for kind, words in _WORDS if isinstance(error, kind))
        words = words.format(seconds=self._busy_timeout)
        transient = isinstance(error, apsw.ProtocolError | apsw.SchemaChangeError)
        message = f"{self.path}: {words} ({type(error).__name__}: {error})"
        return StoreUnavailable(message, transient=transient)

    def _open(self) -> _Connection:
        """Open a connection to a file that is ours and has the newest schema."""
        with self._opening:
            opened: apsw.Connection | None = None
            try:
                opened = _open_file(self.path)
                opened.set_busy_timeout(round(self._busy_timeout * 1000))
                connection = _Connection(opened, self._synchronous)
                connection.prepare()
            except BaseException as error:
                if opened is not None:
                    opened.close(True)
                if isinstance(error, ConfigurationError):
                    fault = ConfigurationError(f"{self.path}: {error}.")
                    raise StoreUnavailable(str(fault)) from fault
                if isinstance(error, apsw.NotADBError):
                    fault = ConfigurationError(f"{self._unavailable(error)}")
                    raise StoreUnavailable(str(fault)) from fault
                if isinstance(error, apsw.Error | OSError | UnicodeError):
                    raise self._unavailable(error) from error
                raise
            self._opened.add(connection)
            return connection

    # Forks: no connection may be open in a child that its parent opened, so none is open while the
    # process forks.

    def _hold(self) -> None:
        """Before a fork: close what is idle, let calls that are under way end, open nothing."""
        stop = time.monotonic() + self._busy_timeout
        self._held = self._opening.acquire(timeout=self._busy_timeout)
        idle, self._idle = self._idle, []
        while True:
            _close_all(idle)
            if all(connection.closed for connection in self._opened):
                break
            if time.monotonic() > stop:
                _log.warning("%s: a call outlasted a fork; its connection is lost", self.path)
                break
            time.sleep(0.0005)

    def _release(self) -> None:
        """In the parent, after a fork: go on."""
        if self._held:
            self._held = False
            self._opening.release()

    def _forget(self) -> None:
        """In the child, after a fork: no connections, and locks that nobody holds."""
        # One that is in use by a thread that the child has not: to close it here would take locks
        # and files from under the parent.
        _lost.extend(connection for connection in self._opened if not connection.closed)
        self._opened = weakref.WeakSet()
        self._idle = []
        self._opening = threading.Lock()
        self._writing = threading.Lock()
        self._checkpointing = threading.Lock()
        self._held = False


def from_url(url: str) -> SqliteStore:
    """Return the store of `sqlite:///relative.db` or `sqlite:////absolute.db`.

    Options: `?synchronous=full`, `?busy_timeout=2.5`, joined by `&`. A `?`, `&` or `%` in the
    path is written as `%3F`, `%26`, `%25`.

    Raises:
        ConfigurationError: another form, an option that is not known, or as `SqliteStore` does.
    """
    address, _, query = url.partition("?")
    if not address.startswith("sqlite:///"):
        raise ConfigurationError(
            f"{url!r} names no SQLite file; write sqlite:///relative.db or sqlite:////absolute.db"
        )
    options: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - {"synchronous", "busy_timeout"})
    if unknown:
        raise ConfigurationError(
            f"{url!r} has unknown options: {', '.join(unknown)}; allowed are synchronous and "
            "busy_timeout"
        )
    if "busy_timeout" in options:
        try:
            options["busy_timeout"] = float(options["busy_timeout"])
        except ValueError:
            raise ConfigurationError(
                f"{url!r}: busy_timeout is a number of seconds, like 2.5"
            ) from None
    return SqliteStore(unquote(address.removeprefix("sqlite:///")), **options)


_ATTEMPTS: dict[str, Callable[..., Any]] = {
    "load": _Connection.load,
    "create": _Connection.create,
    "replace": _Connection.replace,
    "touch": _Connection.touch,
}

_WORDS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (
        (apsw.BusyError, apsw.LockedError),
        "another connection held the lock for {seconds:g} s; nothing was written. Find who does "
        "(a backup, a shell with an open transaction), or raise busy_timeout",
    ),
    (apsw.FullError, "the disk is full; nothing was written. It goes on when there is space"),
    (
        (apsw.ReadOnlyError, apsw.PermissionsError, PermissionError),
        "the file, its folder or the disk cannot be written by this user; nothing was written. "
        "Change their owner or mode",
    ),
    (
        apsw.NotADBError,
        "this is no SQLite database, or its first page is damaged; name another file, or restore "
        "a backup. It was left as it is",
    ),
    (apsw.CorruptError, "the file is damaged; restore a backup, or try .recover of sqlite3"),
    (
        (apsw.CantOpenError, OSError),
        "the file cannot be opened; look at the mode of its folder and the limit of open files",
    ),
    (apsw.IOError, "the disk answered with an error; look into the log of the system"),
    (apsw.NoMemError, "there is no memory left; nothing was written"),
    (Exception, "SQLite cannot do it; look up the error on https://sqlite.org/rescode.html"),
)


def _library_version() -> int:
    """Return the version of SQLite that apsw runs, like 3051003 for 3.51.3."""
    major, minor, patch = (int(part) for part in apsw.sqlite_lib_version().split(".")[:3])
    return major * 1_000_000 + minor * 1_000 + patch


def _close_all(idle: list[_Connection]) -> None:
    """Close what is in the list, also what other threads still put into it meanwhile."""
    while idle:
        with contextlib.suppress(IndexError):
            idle.pop().close()


def _open_file(path: str) -> apsw.Connection:
    """Open the file, and make it where there is none.

    A file that is there is opened by SQLite only, not even looked into: to close it again would
    take the locks of every connection of this process (POSIX).
    """
    with _creating:
        try:
            return apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
        except apsw.CantOpenError:
            if os.path.isdir(path):
                raise ConfigurationError("it is a folder; name a file in it") from None
            if os.path.lexists(path):
                raise
        try:
            # For its owner alone; SQLite gives the files beside it the same mode.
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:
            folder = os.path.dirname(path)
            raise ConfigurationError(f"there is no folder {folder}; make it") from None
        except FileExistsError:
            pass  # another process was faster
        else:
            try:
                if hasattr(os, "fchmod"):
                    os.fchmod(file, 0o600)  # the umask may have taken more
            finally:
                os.close(file)
        return apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)


# Forks --------------------------------------------------------------------------------------------

_stores: weakref.WeakSet[SqliteStore] = weakref.WeakSet()
_lost: list[_Connection] = []
_held: list[SqliteStore] = []
# A file of ours is opened and closed when it is made; another thread must not open it in between.
_creating = threading.Lock()


def _before_fork() -> None:
    # The stores first, in the order in which `_open` takes both.
    for store in list(_stores):
        _held.append(store)
        store._hold()
    _creating.acquire()


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop()._release()
    _creating.release()


def _after_fork_in_child() -> None:
    global _creating
    _creating = threading.Lock()
    _held.clear()
    for store in list(_stores):
        store._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
