"""A store in a directory: one file for each session.

    records/41/4161...   a record; its name is its sid, each character as two hex digits, so that
                         also a file system that folds case keeps all sids apart, and the order of
                         the names is the order of the sids; 64 folders by the first character
    new/                 files being written, renamed over a record when they are whole
    due/0000b2d5-41      which records of folder 41 are due in those five minutes: a line each
    users/9f/9f86.../    an empty file for each session of a user, whose hash names the folder
    locks/41             the lock of all that concerns the records of folder 41
    damaged/             what lay in the place of a record and was none

The record is the truth; `due/` and `users/` are written before the record that they point to, are
checked against it when read, and so may name too much but never too little.
docs/decisions/0040-directory-store.md has the reasons.

A record's file, all numbers little-endian:

    16 bytes   magic, format version, CRC-32 and length of the body
    52 bytes   slot: serial, version, seen, deadline, due time, status, attempts, CRC-32
    52 bytes   slot, all zeros until it is used
    body       the record in MessagePack, as it was at the last whole write

The valid slot with the higher serial counts. What changes without the body (a touch, a sweep's
claim) is written over the other slot, so that whatever interrupts the write leaves one whole.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import hashlib
import logging
import os
import re
import secrets
import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeAlias, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
from msgspec.structs import replace as changed

from sojourn.core.calls import GONE, SAVED, Outcome
from sojourn.core.record import ENDED, ENDING, LIVE, MARK, Ended, Record, ended_as
from sojourn.errors import ConfigurationError, DamagedRecord, SojournError, StoreUnavailable
from sojourn.stores._locks import Locks
from sojourn.stores._rights import open_to_others
from sojourn.stores.base import Promises

__all__ = ["DirectoryStore"]

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)

_ALPHABET = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
_SHARDS = [f"{ord(character):02x}" for character in _ALPHABET]
_is_sid = re.compile(r"[A-Za-z0-9_-]{22}").fullmatch
_is_journal = re.compile(r"[0-9a-f]{8}-[0-9a-f]{2}").fullmatch
_is_name = re.compile(r"[0-9a-f]{44}").fullmatch
_is_new = re.compile(r"[0-9a-f]{32}\.new").fullmatch
_find_entries = re.compile(rb"\n([A-Za-z0-9_-]{22})([0-9a-f]{16})(?=\n|\Z)").findall
_ENTRY = 39

_HEAD = struct.Struct("<7sBII")
_SLOT = struct.Struct("<QQdddII")
_CHECKSUM = struct.Struct("<I")
_ALL = struct.Struct("<7sBII" + 2 * "QQdddIII")
_FIRST = _HEAD.size
_FIRST_END = _FIRST + _SLOT.size
_SECOND = _FIRST_END + _CHECKSUM.size
_SECOND_END = _SECOND + _SLOT.size
_BODY = _SECOND_END + _CHECKSUM.size
_MAGIC = b"Sojourn"
_FORMAT = 1
_CHUNK = 72 * 1024

_FOLLOWS_NOT = hasattr(os, "O_NOFOLLOW")
_NOT_FOLLOWING = (
    getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)  # or opening a fifo waits for its other end
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NOINHERIT", 0)
)
_READ = os.O_RDONLY | _NOT_FOLLOWING
_UPDATE = os.O_RDWR | _NOT_FOLLOWING
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOT_FOLLOWING
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | _NOT_FOLLOWING
_MARK = os.O_WRONLY | os.O_CREAT | _NOT_FOLLOWING
_NO_FILE = {errno.ELOOP, errno.EISDIR, errno.EAGAIN, errno.ENXIO, errno.EINVAL, errno.ENOTSUP}
"""What a link, folder, fifo or socket in a file's place answers to being opened or read."""

_WINDOWS = os.name == "nt"

_PERIOD = 300.0
_LAST_PERIOD = 0xFFFFFFFF
_HOUR = 3600.0
_DAY = 86400.0
_HOLD = 0.025
"""For how many seconds a sweep holds a lock before it lets others have it."""
_TRIES = 3

_WHAT_TO_DO = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the quota is used up: free some space or raise it",
    errno.EROFS: "the file system is read-only: mount it for writing",
    errno.EACCES: "give the user of this process the directory and all in it",
    errno.EPERM: "give the user of this process the directory and all in it",
    errno.EMFILE: "this process has too many files open: raise its limit (ulimit -n)",
    errno.ENFILE: "this machine has too many files open: raise fs.file-max",
    errno.EIO: "look at the disk and the system's log",
    errno.ENOENT: "the directory was taken away: mount it again, or restart to begin a new one",
    errno.ENOTDIR: "something else lies where a folder of the store should be: move it away",
    errno.ELOOP: "a link lies in the place of the store's own file, and links are never followed: "
    "move it away",
}

_encoder = msgspec.msgpack.Encoder()
_decode = msgspec.msgpack.Decoder(Record).decode


_Entry: TypeAlias = tuple[float, str]
"""Of a journal: a due time and a sid."""


class _Slot(NamedTuple):
    """What of a record changes without its body, and its due time."""

    serial: int
    version: int
    seen: float
    deadline: float
    due: float
    status: int
    attempts: int


class _Kept(NamedTuple):
    """A record as it was found, with what only the store knows of it."""

    record: Record
    slot: _Slot
    free: int
    """Where the other slot lies."""
    checksum: int
    """Of the body; the slots' checksums start from it, so that none fits another file."""


def _guarded(
    method: Callable[Concatenate[DirectoryStore, P], T],
) -> Callable[Concatenate[DirectoryStore, P], T]:
    """Make `StoreUnavailable` of each `OSError` that leaves a method."""

    @functools.wraps(method)
    def guarded(self: DirectoryStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            self._lay_out()
            return method(self, *args, **kwargs)
        except OSError as error:
            raise self._unavailable(error, method.__name__) from error

    return guarded


class DirectoryStore:
    """Keeps each session in a file of its own, shared by the processes of one host.

    Args:
        path: the directory; made, with mode 0700, when the store is first used.
        fsync: write to the disk, not only to the system, before saying that something is saved.
            The end of a session is written to the disk in any case.
        lock_timeout: for how many seconds to wait for a record that somebody else is writing.

    Example:
        >>> store = DirectoryStore("sessions")
        >>> store.count()
        0
    """

    def __init__(
        self, path: str | os.PathLike[str], *, fsync: bool = False, lock_timeout: float = 5.0
    ) -> None:
        """Touch nothing yet: a store that is down must not keep the application from starting."""
        # Absolute now, since a server may change its working directory later.
        given = os.fspath(path)
        self._root = given if os.path.isabs(given) else os.path.abspath(given)
        self._fsync = fsync
        self._records = os.path.join(self._root, "records")
        self._new = os.path.join(self._root, "new")
        self._due = os.path.join(self._root, "due")
        self._users = os.path.join(self._root, "users")
        self._locks = Locks(os.path.join(self._root, "locks"), lock_timeout)
        self._damaged = os.path.join(self._root, "damaged")
        self._laid_out = False
        self._checked = float("inf")
        self.promises = Promises(
            survives="power" if fsync else "kill",
            shared="host",
            inline=True,
            note="One file for each session, on a local disk.",
        )

    @classmethod
    def from_url(cls, url: str) -> DirectoryStore:
        """Make one of `directory:///relative/path` or `directory:////absolute/path?fsync=true`.

        Raises:
            ConfigurationError: with every fault of the URL.
        """
        parts = urlsplit(url)
        faults: list[str] = []
        if parts.netloc:
            faults.append(
                f"a host ({parts.netloc!r}) stands where none may; write three slashes before a "
                "relative path, four before an absolute one"
            )
        path = unquote(parts.path[1:])
        if not path:
            faults.append("no path is given, as in directory:///sessions")
        if parts.fragment:
            faults.append("a # in a path is written %23")
        fsync, lock_timeout = False, 5.0
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name == "fsync" and value in ("true", "false"):
                fsync = value == "true"
            elif name == "lock_timeout" and re.fullmatch(r"\d+(\.\d+)?", value):
                lock_timeout = float(value)
            else:
                faults.append(
                    f"{name}={value!r} is not understood; allowed are fsync=true, fsync=false "
                    "and lock_timeout=SECONDS"
                )
        if faults:
            raise ConfigurationError(f"{url}: {'; '.join(faults)}")
        return cls(path, fsync=fsync, lock_timeout=lock_timeout)

    def __repr__(self) -> str:
        return f"DirectoryStore({self._root!r}, fsync={self._fsync})"

    # Called for every request.

    def load(self, sid: str) -> Record | None:
        """As `Store.load`. Takes no lock: a file is only ever replaced as a whole."""
        path = self._path(sid)
        # `_read`, written out for the common case, as every request calls this one.
        if _FOLLOWS_NOT:
            try:
                fd = os.open(path, _READ)
                try:
                    data = os.read(fd, _CHUNK)
                finally:
                    os.close(fd)
                if len(data) < _CHUNK:
                    return _parse(data, path, sid)[0]
            except (OSError, DamagedRecord):
                pass
        try:
            kept = self._read(path, sid)
            if kept is None and self._laid_out and _FOLLOWS_NOT:
                # Where the whole directory is gone, nobody's session may seem to have ended.
                os.close(os.open(os.path.dirname(path), _READ))
        except OSError as error:
            raise self._unavailable(error, "load") from error
        return None if kept is None else kept.record

    @_guarded
    def create(self, record: Record) -> bool:
        """As `Store.create`."""
        path = self._path(record.sid)
        with self._locks.hold(_shard_of(record.sid)):
            if os.path.lexists(path):
                return False
            self._enter(record.sid, record.deadline)
            if record.user is not None:
                self._mark_user(record.user, record.sid)
            self._write(path, record, record.deadline)
            return True

    @_guarded
    def replace(self, record: Record, expected_version: int) -> Record | Outcome:
        """As `Store.replace`."""
        path = self._path(record.sid)
        with self._locks.hold(_shard_of(record.sid)):
            kept = self._read(path, record.sid)
            if kept is None or kept.record.status in (ENDING, ENDED):
                return GONE
            if kept.record.version != expected_version:
                return kept.record
            due = kept.slot.due
            if record.deadline < due:
                due = record.deadline
                self._enter(record.sid, due)
            before = kept.record.user
            if record.user is not None and record.user != before:
                self._mark_user(record.user, record.sid)
            self._write(path, record, due)
            if before is not None and before != record.user:
                self._unmark_user(before, record.sid)
            return SAVED

    @_guarded
    def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> bool:
        """As `Store.touch`. Reads and writes the head of the file, whatever its size."""
        path = self._path(sid)
        with self._locks.hold(_shard_of(sid)):
            try:
                fd = self._open(path, _UPDATE, sid)
            except FileNotFoundError:
                return False
            try:
                head = self._read_some(fd, _BODY, path, sid)
                fields, free, checksum, _ = _slot_of(head, path, sid)
                slot = _Slot._make(fields)
                if slot.status not in (LIVE, MARK) or slot.version != expected_version:
                    return False
                touched = slot._replace(
                    serial=slot.serial + 1,
                    version=slot.version + 1,
                    seen=seen,
                    deadline=deadline,
                )
                _write_at(fd, free, _pack(touched, checksum), path, self._fsync)
            finally:
                os.close(fd)
            return True

    @_guarded
    def delete(self, sid: str, ended: Ended | None = None) -> bool:
        """As `Store.delete`. On the disk before it returns, whatever `fsync` says."""
        path = self._path(sid)
        with self._locks.hold(_shard_of(sid)):
            try:
                kept = self._read(path, sid)
            except DamagedRecord as damage:
                self._set_aside(path, sid, damage)
                return True
            if kept is None:
                return False
            record = kept.record
            if ended is None:
                self._remove(path, record, durable=True)
                return True
            if record.status == ENDED:
                return False
            self._enter(sid, ended.due)
            if record.status == ended.status == ENDING:
                self._update(path, kept, durable=True, due=ended.due)
                return False
            self._write(path, ended_as(record, ended), ended.due, durable=True)
            if ended.status == ENDED and record.user is not None:
                self._unmark_user(record.user, sid)
            return True

    # Called by sweeps and by people.

    @_guarded
    def due(self, now: float, lease: float, limit: int = 100) -> builtins.list[Record]:
        """As `Store.due`. Opens the records that are due, and no other."""
        self._clear_new(now)
        if not self._checked <= now < self._checked + _DAY:
            self._check_journals()
            self._checked = now
        journals: dict[str, builtins.list[str]] = {}
        for name in os.listdir(self._due):
            if _is_journal(name) and name[:8] <= _period_of(now):
                journals.setdefault(name[:8], []).append(name[9:])
        claimed: dict[str, Record] = {}
        try:
            for period in sorted(journals):
                entries = [
                    entry
                    for shard in journals[period]
                    for entry in self._journal(period, shard)
                    if entry[0] <= now
                ]
                entries.sort()
                while entries and len(claimed) < limit:
                    page = entries[: limit - len(claimed)]
                    del entries[: len(page)]
                    self._claim_page(period, page, now, lease, claimed)
        except (OSError, StoreUnavailable):
            # What is claimed is leased to this caller, and nobody else would get it now.
            if not claimed:
                raise
        return [*claimed.values()]

    @_guarded
    def list(
        self, user: str | None = None, status: int | None = 0, after: str = "", limit: int = 100
    ) -> builtins.list[Record]:
        """As `Store.list`."""
        page: builtins.list[Record] = []
        if limit > 0:
            for record in self._matching(user, status, after):
                page.append(record)
                if len(page) >= limit:
                    break
        return page

    @_guarded
    def count(self, user: str | None = None, status: int | None = 0) -> int:
        """As `Store.count`. Reads every record of the user, or of all."""
        return sum(1 for _ in self._matching(user, status, ""))

    @_guarded
    def check(self) -> builtins.list[str]:
        """Return a sentence for each thing about the directory that endangers sessions."""
        found = open_to_others(self._root, stat.S_IRWXO)
        try:
            why = "" if self._locks.exclude() else "two programs can hold one lock"
        except OSError as error:
            why = f"there are no locks ({error.strerror})"
        if why:
            found.append(
                f"on the file system of {self._root} {why}: concurrent changes would be lost; use "
                "a local disk"
            )
        if damaged := len(os.listdir(self._damaged)):
            found.append(
                f"{damaged} damaged files were set aside in {self._damaged}; look for what damages "
                "them (a failing disk, another program), then delete them"
            )
        return found

    def close(self) -> None:
        """As `Store.close`. Nothing is held open; the next call makes what folders are missing."""
        self._laid_out = False

    # Names.

    def _path(self, sid: str) -> str:
        """Where the record of a sid lies."""
        if not _is_sid(sid):
            raise ValueError(f"{sid!r:.60} is not a sid: 22 characters of A-Z a-z 0-9 _ -")
        name = sid.encode().hex()
        return f"{self._records}{os.sep}{name[:2]}{os.sep}{name}"

    def _user_folder(self, user: str) -> str:
        name = hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest()
        return os.path.join(self._users, name[:2], name)

    # Folders.

    def _lay_out(self) -> None:
        """Make the folders that are missing, once."""
        if self._laid_out:
            return
        if not os.path.isdir(self._root):
            os.makedirs(self._root, 0o700, exist_ok=True)
        for path in (
            *(self._records, self._new, self._due, self._users, self._damaged),
            os.path.join(self._root, "locks"),
            *(os.path.join(self._records, shard) for shard in _SHARDS),
        ):
            _make_folder(path)
        if self._fsync:
            _sync_folder(self._records)
            _sync_folder(self._root)
        self._laid_out = True

    def _unavailable(self, error: OSError, doing: str) -> StoreUnavailable:
        """Say what failed, where, and what to do about it."""
        advice = _WHAT_TO_DO.get(error.errno or 0, "see to the directory")
        return StoreUnavailable(
            f"{doing}: {error.strerror or error} ({error.filename or self._root}); {advice}. "
            "Nothing is reported as saved, and what was saved before is untouched."
        )

    # One record.

    def _open(self, path: str, flags: int, sid: str) -> int:
        """Open the file of a record, or raise `DamagedRecord` if what is there is no file."""
        if not _FOLLOWS_NOT and not stat.S_ISREG(os.lstat(path).st_mode):
            raise _damaged(path, sid, "it is a link, a folder or a device")
        try:
            return _patient(os.open, path, flags)
        except OSError as error:
            if error.errno in _NO_FILE:
                raise _damaged(path, sid, "it is a link, a folder or a device") from error
            raise

    def _read_some(self, fd: int, size: int, path: str, sid: str) -> bytes:
        """Read once, or raise `DamagedRecord` if it is not a file after all."""
        try:
            return os.read(fd, size)
        except OSError as error:
            if error.errno in _NO_FILE:
                raise _damaged(path, sid, "it is a folder, a fifo or a device") from error
            raise

    def _read(self, path: str, sid: str) -> _Kept | None:
        """Read a record; None if there is none. Raises `DamagedRecord`."""
        for tries_left in range(_TRIES, -1, -1):
            try:
                data = self._read_whole(path, sid)
                record, slot, free, checksum = _parse(data, path, sid)
            except FileNotFoundError:
                return None
            except DamagedRecord:
                # Without the lock a read may meet both slots in the middle of being written; a
                # file that is damaged stays so.
                if not tries_left:
                    raise
            else:
                return _Kept(record, _Slot._make(slot), free, checksum)
        return None

    def _read_whole(self, path: str, sid: str) -> bytes:
        fd = self._open(path, _READ, sid)
        try:
            data = self._read_some(fd, _CHUNK, path, sid)
            if len(data) == _CHUNK and data.startswith(_MAGIC):
                missing = _HEAD.unpack_from(data)[3] + _BODY - len(data)
                parts = [data]
                while missing > 0 and (part := os.read(fd, min(missing, 1 << 20))):
                    parts.append(part)
                    missing -= len(part)
                data = b"".join(parts)
            return data
        finally:
            os.close(fd)

    def _write(self, path: str, record: Record, due: float, durable: bool = False) -> None:
        """Write a whole record and put it in its place."""
        durable = durable or self._fsync
        data = bytearray(_BODY)
        _encoder.encode_into(record, data, _BODY)
        checksum = zlib.crc32(memoryview(data)[_BODY:])
        _HEAD.pack_into(data, 0, _MAGIC, _FORMAT, checksum, len(data) - _BODY)
        slot = _Slot(
            1, record.version, record.seen, record.deadline, due, record.status, record.attempts
        )
        data[_FIRST:_SECOND] = _pack(slot, checksum)
        self._put(path, data, durable)
        if durable:
            _sync_folder(os.path.dirname(path))

    def _put(self, path: str, data: bytes | bytearray, durable: bool) -> None:
        """Write a file under a name that nobody else has, then rename it over `path`."""
        new = f"{self._new}{os.sep}{secrets.token_hex(16)}.new"
        fd = os.open(new, _MAKE, 0o600)
        try:
            try:
                _write_all(fd, data, new)
                if durable:
                    os.fsync(fd)
            finally:
                os.close(fd)
            _patient(os.replace, new, path)
        except BaseException:
            # If this fails too, a sweep removes it.
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise

    def _update(self, path: str, kept: _Kept, *, durable: bool, **fields: Any) -> None:
        """Write what changes without the body; nothing else moves."""
        slot = kept.slot._replace(serial=kept.slot.serial + 1, **fields)
        fd = os.open(path, _UPDATE)
        try:
            _write_at(fd, kept.free, _pack(slot, kept.checksum), path, durable)
        finally:
            os.close(fd)

    def _remove(self, path: str, record: Record, durable: bool) -> None:
        """Remove a record, then what points to it."""
        _patient(os.unlink, path)
        if durable:
            _sync_folder(os.path.dirname(path))
        if record.user is not None:
            self._unmark_user(record.user, record.sid)

    def _set_aside(self, path: str, name: str, damage: object) -> None:
        """Move what is damaged to where an operator can look at it."""
        aside = os.path.join(self._damaged, f"{name}.{secrets.token_hex(4)}")
        _patient(os.rename, path, aside)
        _sync_folder(os.path.dirname(path))
        _log.warning("%s; it was moved to %s", damage, aside)

    # What is due.

    def _enter(self, sid: str, due: float) -> None:
        """Write down, before a record says so, when it is due. Under its lock."""
        name = f"{_period_of(due)}-{_shard_of(sid)}"
        path = os.path.join(self._due, name)
        try:
            fd = os.open(path, _APPEND, 0o600)
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            self._set_aside(path, name, f"{path} is a link, a folder or a device")
            fd = os.open(path, _APPEND, 0o600)
        try:
            if os.write(fd, _entry(due, sid)) != _ENTRY:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        finally:
            os.close(fd)

    def _journal(self, period: str, shard: str) -> builtins.list[_Entry]:
        """Read what is due in five minutes, of one folder of records."""
        name = f"{period}-{shard}"
        path = os.path.join(self._due, name)
        try:
            entries = _entries_of(_read_file(path))
            if not entries:
                # Whoever made it was killed, or the disk was full, before an entry was whole.
                with self._locks.hold(shard):
                    if not _entries_of(_read_file(path)):
                        _patient(os.unlink, path)
            return entries
        except FileNotFoundError:
            return []
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            with self._locks.hold(shard):
                self._set_aside(path, name, f"{path} is a link, a folder or a device")
            return []

    def _claim_page(
        self,
        period: str,
        page: builtins.list[_Entry],
        now: float,
        lease: float,
        claimed: dict[str, Record],
    ) -> None:
        """Claim what is over of some entries of one period, adding it to `claimed` in order."""
        shards: dict[str, builtins.list[_Entry]] = {}
        for entry in page:
            shards.setdefault(_shard_of(entry[1]), []).append(entry)
        found: dict[str, Record] = {}
        try:
            for shard, entries in shards.items():
                while entries:
                    done = self._claim_some(period, shard, entries, now, lease, claimed, found)
                    entries = entries[done:]
        finally:
            for _, sid in page:
                if sid in found:
                    claimed[sid] = found[sid]

    def _claim_some(
        self,
        period: str,
        shard: str,
        entries: builtins.list[_Entry],
        now: float,
        lease: float,
        claimed: dict[str, Record],
        found: dict[str, Record],
    ) -> int:
        """Claim as many as one hold of the lock allows, and take them out of their journal.

        Whoever is killed in between leaves entries that are met again, and then are stale.
        """
        path = os.path.join(self._due, f"{period}-{shard}")
        done = 0
        with self._locks.hold(shard):
            until = time.monotonic() + _HOLD
            try:
                before = _read_file(path)
            except FileNotFoundError:
                return len(entries)
            there = set(_entries_of(before))
            for entry in entries:
                sid = entry[1]
                if entry in there and sid not in claimed and sid not in found:
                    record = self._claim(sid, now, lease)
                    if record is not None:
                        found[sid] = record
                done += 1
                if time.monotonic() >= until:
                    break
            taken = set(entries[:done])
            rest = [_entry(*entry) for entry in _entries_of(before) if entry not in taken]
            # Short leases were just entered behind.
            rest.append(_read_file(path)[len(before) :])
            left = b"".join(rest)
            if left:
                self._put(path, left, self._fsync)
            else:
                _patient(os.unlink, path)
        return done

    def _claim(self, sid: str, now: float, lease: float) -> Record | None:
        """Do with one record what `Store.due` says; the record if it was claimed."""
        path = self._path(sid)
        try:
            kept = self._read(path, sid)
        except DamagedRecord as damage:
            self._set_aside(path, sid, damage)
            return None
        if kept is None or kept.slot.due > now:
            return None
        record = kept.record
        if record.status != ENDING and not record.deadline <= now:
            self._enter(sid, record.deadline)
            self._update(path, kept, durable=self._fsync, due=record.deadline)
            return None
        if record.status in (ENDED, MARK):
            self._remove(path, record, self._fsync)
            return None
        version, attempts = record.version + 1, record.attempts + 1
        self._enter(sid, now + lease)
        self._update(
            path,
            kept,
            durable=self._fsync,
            version=version,
            status=ENDING,
            attempts=attempts,
            due=now + lease,
        )
        return changed(record, version=version, status=ENDING, attempts=attempts)

    def _check_journals(self) -> None:
        """Enter the records that no journal names: after a loss of power, or put there by hand.

        Compares names, and opens only what is missing.
        """
        journals: dict[str, builtins.list[str]] = {}
        for name in os.listdir(self._due):
            if _is_journal(name):
                journals.setdefault(name[9:], []).append(name[:8])
        for shard in _SHARDS:
            entered = {
                sid for period in journals.get(shard, ()) for _, sid in self._journal(period, shard)
            }
            for sid in self._sids_in(os.path.join(self._records, shard)):
                if sid in entered or _shard_of(sid) != shard:
                    continue
                with self._locks.hold(shard):
                    path = self._path(sid)
                    try:
                        kept = self._read(path, sid)
                    except DamagedRecord as damage:
                        self._set_aside(path, sid, damage)
                        continue
                    if kept is not None:
                        self._enter(sid, kept.slot.due)

    def _clear_new(self, now: float) -> None:
        """Remove what writers that were killed left behind."""
        for name in os.listdir(self._new):
            path = os.path.join(self._new, name)
            with contextlib.suppress(FileNotFoundError):
                if _is_new(name) and os.lstat(path).st_mtime < now - _HOUR:
                    os.unlink(path)

    # Who has which sessions.

    def _mark_user(self, user: str, sid: str) -> None:
        """Write down, before a record says so, that it is this user's. Under its lock."""
        folder = self._user_folder(user)
        for attempt in range(_TRIES, -1, -1):
            _make_folder(os.path.dirname(folder))
            _make_folder(folder)
            try:
                os.close(os.open(os.path.join(folder, _name_of(sid)), _MARK, 0o600))
                break
            except FileNotFoundError:
                # Between the two, another session of the user ended and took the folder along.
                if not attempt:
                    raise
        if self._fsync:
            _sync_folder(folder)
            _sync_folder(os.path.dirname(folder))
            _sync_folder(self._users)

    def _unmark_user(self, user: str, sid: str) -> None:
        """Take that back. Under the record's lock; what fails here is put right by `list`."""
        folder = self._user_folder(user)
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(folder, _name_of(sid)))
            os.rmdir(folder)  # fails while it is not empty

    def _unmark_if_stale(self, user: str, sid: str) -> None:
        """Take back what a killed writer left, unless somebody is writing right now."""
        with contextlib.suppress(OSError, SojournError), self._locks.hold(_shard_of(sid), 0.0):
            kept = self._read(self._path(sid), sid)
            if kept is None or kept.record.user != user:
                self._unmark_user(user, sid)

    def _matching(self, user: str | None, status: int | None, after: str) -> Iterator[Record]:
        """Read the records that `list` shows, in order."""
        for sid in self._sids(user, after):
            try:
                kept = self._read(self._path(sid), sid)
            except DamagedRecord:
                continue
            if user is not None and (kept is None or kept.record.user != user):
                self._unmark_if_stale(user, sid)
            elif kept is not None and status in (None, kept.record.status):
                yield kept.record

    def _sids(self, user: str | None, after: str) -> Iterator[str]:
        """Names of records greater than `after`, perhaps stale, in order."""
        if user is not None:
            folders = [self._user_folder(user)]
        else:
            # Folders by the first character, in its order.
            folders = [
                os.path.join(self._records, shard)
                for character, shard in zip(_ALPHABET, _SHARDS, strict=True)
                if character >= after[:1]
            ]
        for folder in folders:
            yield from sorted(sid for sid in self._sids_in(folder) if sid > after)

    def _sids_in(self, folder: str) -> builtins.list[str]:
        """Which sids the names in a folder stand for; other names are not ours."""
        try:
            if not stat.S_ISDIR(os.lstat(folder).st_mode):
                return []
            names = os.listdir(folder)
        except FileNotFoundError:
            if folder.startswith(self._users):
                return []
            raise
        sids = (bytes.fromhex(name).decode("latin-1") for name in names if _is_name(name))
        return [sid for sid in sids if _is_sid(sid)]


def _name_of(sid: str) -> str:
    return sid.encode().hex()


def _shard_of(sid: str) -> str:
    return f"{ord(sid[0]):02x}"


def _period_of(due: float) -> str:
    """Return a name for the five minutes of a time; names are in the order of the times."""
    if not due < _LAST_PERIOD * _PERIOD:  # also inf and nan
        return f"{_LAST_PERIOD:08x}"
    return f"{max(int(due // _PERIOD), 0):08x}"


def _entry(due: float, sid: str) -> bytes:
    """Write an entry of a journal.

    It begins with the newline, so that one that a full disk cut short spoils no other.
    """
    return b"\n" + sid.encode() + struct.pack(">d", due).hex().encode()


def _entries_of(data: bytes) -> list[_Entry]:
    """Read the entries of a journal, passing over what is none."""
    return [
        (struct.unpack(">d", bytes.fromhex(due.decode()))[0], sid.decode())
        for sid, due in _find_entries(data)
    ]


def _parse(data: bytes, path: str, sid: str) -> tuple[Record, tuple[Any, ...], int, int]:
    """Make a record of a file; also the slot, the other one's place and the checksum."""
    slot, free, checksum, length = _slot_of(data, path, sid)
    # A view takes longer to make than a short copy.
    body = data[_BODY:] if len(data) < 4096 else memoryview(data)[_BODY:]
    if len(body) != length:
        raise _damaged(path, sid, f"its length is {len(body)}, and should be {length}")
    if zlib.crc32(body) != checksum:
        raise _damaged(path, sid, "its checksum is wrong")
    try:
        record = _decode(body)
    except msgspec.MsgspecError as error:
        raise _damaged(path, sid, f"it cannot be decoded ({error})") from error
    if record.sid != sid:
        raise _damaged(path, sid, f"it is the record of {record.sid}")
    _, version, seen, deadline, _, status, attempts = slot
    if record.version != version:
        record = changed(
            record,
            version=version,
            seen=seen,
            deadline=deadline,
            status=status,
            attempts=attempts,
        )
    return record, slot, free, checksum


def _slot_of(data: bytes, path: str, sid: str) -> tuple[tuple[Any, ...], int, int, int]:
    """Read the head of a file.

    Returns the fields of the slot that counts, where the other one lies, and the checksum and
    length of the body.
    """
    if len(data) < _BODY:
        raise _damaged(path, sid, f"it is cut short, at {len(data)} bytes")
    head = _ALL.unpack_from(data)
    if head[0] != _MAGIC:
        raise _damaged(path, sid, "it is no record of a session")
    if head[1] != _FORMAT:
        raise _damaged(path, sid, f"its format is {head[1]}, and this release reads {_FORMAT}")
    checksum, length, first, second = head[2], head[3], head[4], head[12]
    # A slot that was never written has the serial 0.
    if second and zlib.crc32(data[_SECOND:_SECOND_END], checksum) == head[19]:
        if second > first or zlib.crc32(data[_FIRST:_FIRST_END], checksum) != head[11]:
            return head[12:19], _FIRST, checksum, length
        return head[4:11], _SECOND, checksum, length
    if zlib.crc32(data[_FIRST:_FIRST_END], checksum) != head[11]:
        raise _damaged(path, sid, "the checksums of its head are wrong")
    return head[4:11], _SECOND, checksum, length


def _pack(slot: _Slot, checksum: int) -> bytes:
    data = _SLOT.pack(*slot)
    return data + _CHECKSUM.pack(zlib.crc32(data, checksum))


def _damaged(path: str, sid: str, why: str) -> DamagedRecord:
    return DamagedRecord(f"session {sid}: {path} is damaged: {why}")


def _read_file(path: str) -> bytes:
    fd = os.open(path, _READ)
    try:
        parts = []
        while part := os.read(fd, 1 << 20):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes | bytearray, path: str) -> None:
    """Write all of it: a disk that gets full takes a part, and fails with the rest."""
    view = memoryview(data)
    while view:
        written = os.write(fd, view)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        view = view[written:]


def _write_at(fd: int, offset: int, data: bytes, path: str, durable: bool) -> None:
    """Write over a part of a file, in one call, so that no kill can cut it in two."""
    os.lseek(fd, offset, os.SEEK_SET)
    _write_all(fd, data, path)
    if durable:
        os.fsync(fd)


def _make_folder(path: str) -> None:
    """Make a folder of the store, or see that it is one and not a link to one."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        try:
            os.mkdir(path, 0o700)
            return
        except FileExistsError:
            found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        code = errno.ELOOP if stat.S_ISLNK(found.st_mode) else errno.ENOTDIR
        raise OSError(code, os.strerror(code), path)


def _sync_folder(path: str) -> None:
    """Put the names in a folder on the disk; Windows knows no such thing and does it by itself."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _patient(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call again for a while where Windows refuses because somebody reads the file just now."""
    if not _WINDOWS:
        return call(*args, **kwargs)
    wait = 0.001
    while True:
        try:
            return call(*args, **kwargs)
        except PermissionError:
            if wait > 0.5:
                raise
            time.sleep(wait)
            wait *= 2


from_url = DirectoryStore.from_url
"""What `sojourn.stores.open_store` calls."""
