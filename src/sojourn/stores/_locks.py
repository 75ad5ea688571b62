"""Locks in files, for threads and processes, on POSIX and on Windows.

The operating system holds such a lock for an open file and drops it when the holder dies, however
it dies; the empty file that stays behind is not the lock. A file is opened for each acquisition,
so that a fork inherits nothing.

Between processes the next to hold it is whoever tries first. Between threads of one process it is
who waited longest: a thread that writes again and again would else win every time, as the others
get the interpreter just while it writes.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import threading
import time
from collections import deque

from sojourn.errors import StoreUnavailable

__all__ = ["Locks"]

_OPEN = (
    os.O_RDWR
    | os.O_CREAT
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOINHERIT", 0)
)
_FIRST_WAIT = 0.0001
_LONGEST_WAIT = 0.001

try:
    import fcntl

    # flock rather than lockf: a process loses that when it closes any other opening of the file.
    def _try_lock(fd: int) -> bool:
        """Take the lock if it is free."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(fd: int) -> None:
        """Give it back now, also where a fork holds a copy of the open file."""
        fcntl.flock(fd, fcntl.LOCK_UN)

except ImportError:
    # Not a plain import, whose names type checkers know on Windows only.
    _msvcrt = importlib.import_module("msvcrt")

    def _try_lock(fd: int) -> bool:
        """Take the lock if it is free."""
        os.lseek(fd, 0, os.SEEK_SET)
        try:
            _msvcrt.locking(fd, _msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def _unlock(fd: int) -> None:
        """Give it back; Windows alone would do so some time after the close."""
        os.lseek(fd, 0, os.SEEK_SET)
        _msvcrt.locking(fd, _msvcrt.LK_UNLCK, 1)


class Locks:
    """The locks of a folder: `with locks.hold("41"):` holds the one of that name.

    Args:
        folder: where the files lie; it must exist when a lock is taken.
        timeout: for how many seconds to wait for one.
    """

    def __init__(self, folder: str, timeout: float) -> None:
        """Take nothing yet."""
        self._folder = folder
        self._timeout = timeout
        self._queues: dict[str, _Queue] = {}
        self._process = os.getpid()

    def hold(self, name: str, timeout: float | None = None) -> _Hold:
        """Return what holds a lock while it is entered.

        Entering raises `StoreUnavailable` where somebody else held it for all of the timeout, and
        `OSError` where its file cannot be opened.
        """
        if self._process != os.getpid():
            # The threads that stood in these queues were not forked.
            self._queues = {}
            self._process = os.getpid()
        queue = self._queues.get(name) or self._queues.setdefault(name, _Queue())
        return _Hold(
            queue,
            os.path.join(self._folder, name),
            self._timeout if timeout is None else timeout,
        )

    def exclude(self) -> bool:
        """Tell whether the file system refuses a lock that somebody has.

        Raises `OSError` where it knows no locks at all.
        """
        path = os.path.join(self._folder, f"check-{os.getpid()}")
        opened: list[int] = []
        try:
            opened += [os.open(path, _OPEN, 0o600), os.open(path, _OPEN, 0o600)]
            return _try_lock(opened[0]) and not _try_lock(opened[1])
        finally:
            for fd in opened:
                os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


class _Queue:
    """A lock between threads that the longest waiting gets next."""

    __slots__ = ("_held", "_mutex", "_waiting")

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._held = False
        self._waiting: deque[threading.Lock] = deque()

    def acquire(self, timeout: float) -> bool:
        with self._mutex:
            if not self._held:
                self._held = True
                return True
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        if turn.acquire(timeout=timeout):
            return True
        with self._mutex:
            if turn in self._waiting:
                self._waiting.remove(turn)
                return False
        return True  # It was handed over just as we gave up.

    def release(self) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._held = False


class _Hold:
    """Holds one lock while it is entered."""

    __slots__ = ("_fd", "_path", "_queue", "_timeout")

    def __init__(self, queue: _Queue, path: str, timeout: float) -> None:
        self._queue = queue
        self._path = path
        self._timeout = timeout
        self._fd = -1

    def __enter__(self) -> None:
        give_up = time.monotonic() + self._timeout
        if not self._queue.acquire(self._timeout):
            raise self._given_up()
        try:
            while self._fd < 0:
                self._lock(give_up)
        except BaseException:
            self._queue.release()
            raise

    def __exit__(self, *error: object) -> None:
        # What was done under the lock is done; and whichever of the two works gives it back.
        with contextlib.suppress(OSError):
            _unlock(self._fd)
        with contextlib.suppress(OSError):
            os.close(self._fd)
        self._queue.release()

    def _lock(self, give_up: float) -> None:
        """Wait until other processes let go of the file; try a new one where it was deleted."""
        fd = os.open(self._path, _OPEN, 0o600)
        wait = _FIRST_WAIT
        try:
            while not _try_lock(fd):
                left = give_up - time.monotonic()
                if left <= 0:
                    raise self._given_up()
                # Jitter, or two waiters go on meeting each other.
                time.sleep(min(wait * (0.5 + random.random()), left))
                wait = min(wait * 2, _LONGEST_WAIT)
            # A file that somebody deleted while we waited locks nobody else out.
            if os.fstat(fd).st_nlink:
                self._fd, fd = fd, -1
        finally:
            if fd >= 0:
                os.close(fd)

    def _given_up(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"the lock {self._path} was held by other threads or processes for all of "
            f"{self._timeout:g} s; look for one that hangs or is stopped (lsof shows who has the "
            "file open), or allow a longer lock_timeout"
        )
