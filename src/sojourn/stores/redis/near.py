"""A near cache: for a moment, a request is answered from this process's memory.

`Memory` keeps the records; `Near` lets the server say, by client tracking, which of them have
changed. Three things have to hold for an answer from memory, and the first is enough for the bound:

* the record was asked of the server no longer than `near` seconds ago;
* the connection by which the server tells of changes works, and has been heard of lately;
* nobody has told of a change: not the server, and no write of this process.

It is for what a request begins with, and for nothing else (`stores.base`, "Recalling").
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from sojourn.core.record import LIVE, Record
from sojourn.stores.redis.links import ERRORS, Link
from sojourn.stores.redis.settings import Settings, Target

__all__ = ["Asked", "Memory", "Near", "pieces"]

_log = logging.getLogger("sojourn.stores.redis")

_ROOM = 16 * 1024 * 1024
"""Bytes that are kept at most, counted as those of the data and `_OVERHEAD` for each session."""
_OVERHEAD = 1024
_PAUSE = 0.5
"""Seconds between two tries to connect."""


class Asked:
    """A load that is under way."""

    __slots__ = ("at", "sid")

    def __init__(self, sid: str, at: float) -> None:
        """Note of what, and when it began."""
        self.sid = sid
        self.at = at


class Memory:
    """Keeps live records for so many seconds, while somebody tells of their changes.

    Args:
        seconds: how old an answer may be.
        room: how many bytes are kept at most; what was loaded first goes first.
        clock: monotonic.

    It may be used from any thread.
    """

    def __init__(
        self, seconds: float, room: int = _ROOM, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Keep nothing yet."""
        self.clock = clock
        self._seconds = seconds
        self._room = room
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[Record, float, int]] = OrderedDict()
        self._asked: dict[str, Asked] = {}
        self._size = 0
        self._sure_until = -math.inf

    def recall(self, sid: str) -> Record | None:
        """Return a record that may be shown; None: ask the server."""
        with self._lock:
            kept = self._kept.get(sid)
            if kept is None:
                return None
            now = self.clock()
            return kept[0] if now < kept[1] and now < self._sure_until else None

    def begin(self, sid: str) -> Asked | None:
        """Note that the server is about to be asked; None: what it says is not to be kept."""
        with self._lock:
            now = self.clock()
            if now >= self._sure_until:
                return None
            asked = self._asked[sid] = Asked(sid, now)
            return asked

    def end(self, asked: Asked | None, record: Record | None) -> None:
        """Keep what the server said, unless a change was told of since it was asked."""
        with self._lock:
            # Where another load of it has begun since, that one's answer is kept.
            if asked is None or self._asked.get(asked.sid) is not asked:
                return
            del self._asked[asked.sid]
            if record is not None and record.status == LIVE:
                self._remove(asked.sid)
                size = len(record.data) + _OVERHEAD
                self._kept[asked.sid] = (record, asked.at + self._seconds, size)
                self._size += size
                self._prune()

    def drop(self, sid: str) -> None:
        """Forget a session, and what a load of it that is under way will bring."""
        with self._lock:
            self._asked.pop(sid, None)
            self._remove(sid)

    def drop_all(self) -> None:
        """Do so with every session."""
        with self._lock:
            self._drop_all()

    def sure(self, until: float) -> None:
        """Note until when silence means that nothing has changed; what is over is given up."""
        with self._lock:
            self._be_sure(until)

    def unsure(self) -> None:
        """Forget all, and keep nothing until `sure` is called again."""
        with self._lock:
            self._be_unsure()

    def _be_sure(self, until: float) -> None:
        self._sure_until = until
        self._prune()

    def _be_unsure(self) -> None:
        self._sure_until = -math.inf
        self._drop_all()

    def _drop_all(self) -> None:
        self._kept.clear()
        self._asked.clear()
        self._size = 0

    def _remove(self, sid: str) -> None:
        kept = self._kept.pop(sid, None)
        if kept is not None:
            self._size -= kept[2]

    def _prune(self) -> None:
        now = self.clock()
        while self._kept:
            sid, (_, until, _) = next(iter(self._kept.items()))
            if self._size <= self._room and now < until:
                break
            self._remove(sid)


class Near(Memory):
    """A memory for the records of a store, and the thread that listens for their changes.

    The thread is for both colours: it hears of a change also while an event loop is busy. It
    starts with the first `begin` and ends with `close`, after which it may start again. A forked
    process has an empty memory and a thread of its own.
    """

    def __init__(self, target: Target, settings: Settings) -> None:
        """Connect to nothing yet."""
        super().__init__(settings.near)
        self._target = target
        self._settings = settings
        self._listener: _Listener | None = None
        _all.add(self)

    def forked(self) -> None:
        """Begin anew; a thread that is not in this process may hold the lock."""
        self._reset()
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.let_go()

    def begin(self, sid: str) -> Asked | None:
        """As `Memory.begin`; sees to it that somebody listens."""
        if self._listener is None:
            self._listen()
        return super().begin(sid)

    def _listen(self) -> None:
        with self._lock:
            if self._listener is None:
                listener = _Listener(self, self._target, self._settings)
                # Raised while the interpreter ends: then it is done without.
                with contextlib.suppress(RuntimeError):
                    listener.start()
                    self._listener = listener

    # What the listener says; one that was sent away is not heard any more.

    def told(self, keys: list[bytes] | None) -> None:
        """Take what the server says: these keys have changed, or (None) all have."""
        if keys is None:
            self.drop_all()
            return
        for key in keys:
            if key[-25:-22] == b":s:":
                self.drop(key[-22:].decode("ascii", "replace"))

    def heard(self, listener: _Listener, until: float) -> None:
        """As `sure`."""
        with self._lock:
            if self._listener is listener:
                self._be_sure(until)

    def lost(self, listener: _Listener) -> None:
        """As `unsure`."""
        with self._lock:
            if self._listener is listener:
                self._be_unsure()

    def close(self) -> None:
        """Forget all and listen no longer."""
        with self._lock:
            listener, self._listener = self._listener, None
            self._be_unsure()
        if listener is not None:
            listener.stop()


class _Listener(threading.Thread):
    """Listens until it is stopped, and connects again where the connection breaks."""

    def __init__(self, near: Near, target: Target, settings: Settings) -> None:
        super().__init__(name="sojourn-near", daemon=True)
        self._near = near
        self._target = target
        self._settings = settings
        self._stopped = threading.Event()
        self._socket: socket.socket | None = None
        self._warned = False

    def stop(self) -> None:
        """Have it end soon."""
        self._stopped.set()
        waiting = self._socket
        if waiting is not None:
            with contextlib.suppress(OSError):
                waiting.shutdown(socket.SHUT_RDWR)

    def let_go(self) -> None:
        """Close this process's copy of the connection, which stays open in the one it forked from.

        Else the server would go on talking to nobody when that one has ended.
        """
        inherited = self._socket
        if inherited is not None:
            with contextlib.suppress(OSError):
                inherited.close()

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._connect()
            # Also what a socket raises that is shut down under the hands of this thread.
            except (*ERRORS, ValueError, AttributeError) as error:
                if not self._stopped.is_set() and not self._warned:
                    self._warned = True
                    _log.warning(
                        "%s: not told of changes, so every load asks the server: %s",
                        self._target.shown,
                        error,
                    )
            self._stopped.wait(_PAUSE)

    def _connect(self) -> None:
        link = Link(self._target, self._settings)
        try:
            connection = link.client.connection_pool.make_connection()
            connection.connect()
            try:
                self._socket = connection._sock
                if not self._stopped.is_set():
                    self._listen(connection._sock)
            finally:
                self._near.lost(self)
                self._socket = None
                connection.disconnect()
        finally:
            link.close()

    def _listen(self, server: socket.socket) -> None:
        """Have changes told, take them in, and ask for a sign of life now and then.

        redis-py connects; from here on bytes are read here, since its way of handing out what a
        server says unasked differs from one version and parser to the next.
        """
        near, limit = self._near, self._settings.timeout
        beat = limit / 4
        server.settimeout(beat)
        prefix = f"{{{self._settings.prefix}:"
        waiting: deque[float] = deque()

        def ask(*command: str) -> None:
            # The time before it is sent: what the server told before its answer is in then.
            waiting.append(near.clock())
            server.sendall(_packed(command))

        ask("HELLO", "3")
        ask("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", prefix)
        asked, greeted = waiting[0], False
        data = b""
        while True:
            try:
                chunk = server.recv(65536)
                if not chunk:
                    raise RedisConnectionError("the server closed the connection")
                data += chunk
            except TimeoutError:
                pass
            read = 0
            for end, kind, value in pieces(data):
                read = end
                if kind == b">":
                    if value[0] == b"invalidate":
                        near.told(value[1])
                elif kind in b"-!":
                    raise ResponseError(value.decode(errors="replace"))
                else:
                    asked = waiting.popleft()
                    if greeted:
                        near.heard(self, asked + limit)
                        self._warned = False
                    greeted = True
            data = data[read:]
            now = near.clock()
            if waiting and now - waiting[0] > limit:
                raise RedisConnectionError(f"nothing was heard for {limit:g} s")
            if not waiting and now - asked >= beat:
                ask("PING")


_all: weakref.WeakSet[Near] = weakref.WeakSet()


def _forked() -> None:
    for near in _all:
        near.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


# RESP3, as much of it as is needed.


def _packed(command: tuple[str, ...]) -> bytes:
    words = [word.encode() for word in command]
    parts = [b"*%d\r\n" % len(words), *(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)]
    return b"".join(parts)


class _Incomplete(Exception):
    pass


def pieces(data: bytes) -> Iterator[tuple[int, bytes, Any]]:
    """Yield what has wholly come: where it ends, its kind (the first byte), its value.

    Lists and mappings are lists, all else bytes; what is null is None.

    Raises:
        ValueError: it is not RESP3.
    """
    at = 0
    while at < len(data):
        try:
            end, value = _value(data, at)
        except _Incomplete:
            return
        yield end, data[at : at + 1], value
        at = end


def _value(data: bytes, at: int) -> tuple[int, Any]:
    end = data.find(b"\r\n", at)
    if end < 0:
        raise _Incomplete
    kind, line = data[at : at + 1], data[at + 1 : end]
    at = end + 2
    if kind in b"+-:,#(":
        return at, line
    if kind == b"_" or line == b"-1":
        return at, None
    size = int(line)
    if kind in b"$!=":
        if len(data) < at + size + 2:
            raise _Incomplete
        return at + size + 2, data[at : at + size]
    if kind not in b"*~>%":
        raise ValueError(f"{kind!r} is no RESP3")
    values = []
    for _ in range(2 * size if kind == b"%" else size):
        at, value = _value(data, at)
        values.append(value)
    return at, values
