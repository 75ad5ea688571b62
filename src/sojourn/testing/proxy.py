"""A TCP proxy before a real server, that does to the connection what networks do.

    with Proxy(5432) as proxy:
        store = open_store(f"postgresql://127.0.0.1:{proxy.port}/sessions")
        with proxy.silence():
            store.load(sid)     # StoreUnavailable, after the store's own time limit

It knows nothing of what it passes on. "Reply" is whatever the server sends.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

__all__ = ["Proxy"]

_LINGER_NOT = struct.pack("ii", 1, 0)
"""Closing a socket with this set tells the other side by a reset, not by an end."""


class Proxy:
    """Listens on a free port of the loopback, and connects to `host:port` for each client.

    A context manager. What is changed while it runs holds for connections that are open too. It
    may be used from any thread.

    Attributes:
        port: where it listens.
        latency: seconds for which each piece of a reply is held back.
        piece: of how many bytes these pieces are at most; None: as they come.
        accepted: how many connections clients have made.
        replied: how many bytes were passed on to clients.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        """Begin to listen; the server need not be there yet."""
        self.latency = 0.0
        self.piece: int | None = None
        self.accepted = 0
        self.replied = 0
        self._target = (host, port)
        self._lock = threading.Lock()
        self._passing = threading.Event()
        self._passing.set()
        self._refusing = False
        self._left: int | None = None
        self._connections: set[_Connection] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._woken, self._wake = socket.socketpair()
        self._closed = False
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What can go wrong.

    def cut(self) -> None:
        """Reset all connections that are open. New ones are accepted."""
        with self._lock:
            connections = [*self._connections]
        for connection in connections:
            connection.reset()
        for connection in connections:
            connection.thread.join(5)

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Reset all connections, and every new one at once: nobody is there."""
        self._refusing = True
        self.cut()
        try:
            yield
        finally:
            self._refusing = False

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Pass on nothing in either direction; new connections are accepted, and never answered.

        What comes meanwhile is passed on afterwards, on connections that are still open: late
        replies, which no store may take for the reply to another question.
        """
        self._passing.clear()
        try:
            yield
        finally:
            self._passing.set()

    def reset_reply(self, at: int) -> None:
        """Reset the connection once `at` more bytes of replies were passed on; this one time.

        With 0, the request is passed on, and the connection reset when the reply begins: the
        server did it, and the client will never know.
        """
        with self._lock:
            self._left = at

    def drop_reply(self) -> None:
        """Swallow the reply to the next request and reset the connection; this one time."""
        self.reset_reply(0)

    @property
    def armed(self) -> bool:
        """Whether a reset that was asked for is still to come; asking for it again replaces it."""
        return self._left is not None

    def disarm(self) -> None:
        """Take back a reset that was asked for."""
        with self._lock:
            self._left = None

    def close(self) -> None:
        """Stop listening and reset all connections. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._passing.set()
        self._wake.send(b"x")
        self._accepting.join(5)
        for one in (self._listener, self._woken, self._wake):
            one.close()
        self.cut()

    # The work.

    def _accept(self) -> None:
        while True:
            # A thread that waits in `accept` is not woken by `close` everywhere.
            ready, _, _ = select.select([self._listener, self._woken], [], [])
            if self._woken in ready:
                return
            client, _ = self._listener.accept()
            if self._refusing:
                _reset(client)
                continue
            self.accepted += 1
            connection = _Connection(self, client)
            with self._lock:
                self._connections.add(connection)
            connection.thread.start()

    def _forget(self, connection: _Connection) -> None:
        with self._lock:
            self._connections.discard(connection)

    def _allowed(self, size: int) -> tuple[int, bool]:
        """Return how many of that many bytes of a reply may pass, and whether a reset follows."""
        with self._lock:
            if self._left is None or size < self._left:
                if self._left is not None:
                    self._left -= size
                self.replied += size
                return size, False
            allowed, self._left = self._left, None
            self.replied += allowed
            return allowed, True


class _Connection:
    """One client and its connection to the server, in a thread of their own.

    Only that thread closes the sockets: closed by another one while it waits in a call, a socket
    would live on, and no reset would be sent.
    """

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server: socket.socket | None = None
        self._woken, self._wake = socket.socketpair()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def reset(self) -> None:
        """Have it reset, soon."""
        with contextlib.suppress(OSError):
            self._wake.send(b"x")

    def _run(self) -> None:
        try:
            with contextlib.suppress(OSError):
                self._pass_on()
        finally:
            self._proxy._forget(self)
            for one in (self._client, self._server):
                if one is not None:
                    _reset(one)
            self._woken.close()
            self._wake.close()

    def _pass_on(self) -> None:
        self._hold()
        server = self._server = socket.create_connection(self._proxy._target, 5)
        for one in (self._client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        open_ends = [self._client, server]
        while open_ends:
            ready, _, _ = select.select([*open_ends, self._woken], [], [])
            self._hold()
            if self._woken in ready:
                return
            for one in ready:
                chunk = one.recv(65536)
                if not chunk:
                    # One side has said all that it had to say; the other may go on.
                    open_ends.remove(one)
                    (server if one is self._client else self._client).shutdown(socket.SHUT_WR)
                elif one is self._client:
                    server.sendall(chunk)
                elif not self._reply(chunk):
                    return

    def _hold(self) -> None:
        """Wait while the proxy is silent; being reset ends that."""
        while not self._proxy._passing.is_set():
            if select.select([self._woken], [], [], 0.01)[0]:
                raise OSError

    def _reply(self, chunk: bytes) -> bool:
        """Pass on a part of a reply; False where the connection is to be reset after it."""
        proxy = self._proxy
        size = proxy.piece or len(chunk)
        for start in range(0, len(chunk), size):
            piece = chunk[start : start + size]
            if proxy.latency:
                end = time.monotonic() + proxy.latency
                while (left := end - time.monotonic()) > 0:
                    if select.select([self._woken], [], [], left)[0]:
                        return False
            allowed, over = proxy._allowed(len(piece))
            self._client.sendall(piece[:allowed])
            if over:
                return False
        return True


def _reset(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    one.close()
