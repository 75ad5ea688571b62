"""A Redis store on Twisted's reactor: `TwistedRedisStore(url)`, whose methods return Deferreds.

Records, scripts and verbs are those of `sojourn.stores.redis`; the wire is txredisapi's
(`pip install 'sojourn[twisted-redis]'`). There is neither a thread nor an event loop of asyncio in
between. For one node or a primary found by sentinels; txredisapi knows no clusters.
"""

from __future__ import annotations

import builtins
import contextlib
import socket
import threading
from collections.abc import Sequence
from typing import Any, TypeVar

import redis.exceptions
import redis.sentinel
import txredisapi
from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from sojourn.core.calls import Outcome
from sojourn.core.record import Ended, Record
from sojourn.errors import ConfigurationError
from sojourn.stores.redis.links import ERRORS
from sojourn.stores.redis.settings import Settings, Target
from sojourn.stores.redis.store import Awaiting, suspect
from sojourn.stores.redis.verbs import Request, Steps

__all__ = ["TwistedRedisStore"]

T = TypeVar("T")
Command = tuple[Any, ...]
_Address = tuple[Any, str]
"""A class of endpoints, and a host in digits."""
_ENDPOINTS = {socket.AF_INET: TCP4ClientEndpoint, socket.AF_INET6: TCP6ClientEndpoint}

_KNOWN = {"host", "port", "path", "db", "username", "password", "connection_class"}
_TLS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
_IDLE = 4
"""So many connections that wait for replicas are kept open."""

_ERRORS: dict[str, type[redis.RedisError]] = {
    "LOADING": redis.exceptions.BusyLoadingError,
    "MOVED": redis.exceptions.MovedError,
    "NOAUTH": redis.exceptions.AuthenticationError,
    "NOSCRIPT": redis.exceptions.NoScriptError,
    "WRONGPASS": redis.exceptions.AuthenticationError,
}


class TwistedRedisStore(Awaiting):
    """Keeps records in Redis or Valkey; each method as in `Store`, returning a Deferred.

    Args:
        url: `redis://`, `rediss://`, `unix://` or
            `redis+sentinel://host:port,host:port/service`, with the settings of
            `sojourn.stores.redis.settings.Settings`, and of the options of redis-py `db`,
            `username`, `password`, `ssl_ca_certs`, `ssl_certfile` and `ssl_keyfile`.
        reactor: None: the reactor of this process.
        settings: as in the URL.

    All calls share one connection and are answered in their order, so `max_connections` limits
    nothing here; ends that replicas are to confirm go by connections of their own. Records are
    those that `RedisStore` writes: processes of both kinds share them.

    Example:
        >>> sessions = SessionManager(TwistedRedisStore("redis://localhost"))
    """

    deferred = True
    """Tells `sojourn.web.twisted` that calls return Deferreds."""

    def __init__(self, url: str, reactor: Any = None, **settings: Any) -> None:
        """Read the URL; connect to nothing yet.

        Raises:
            ConfigurationError: it names a cluster, or says something that is not known here.
        """
        super().__init__(url, **settings)
        self._reactor = reactor
        self._link: _Link | None = None
        self._known = _options(self._target)

    def load(self, sid: str) -> Deferred[Record | None]:
        """As `Store.load`."""
        return self._run(self._verbs.load(sid))

    def create(self, record: Record) -> Deferred[bool]:
        """As `Store.create`."""
        return self._run(self._verbs.create(record))

    def replace(self, record: Record, expected_version: int) -> Deferred[Record | Outcome]:
        """As `Store.replace`."""
        return self._run(self._verbs.replace(record, expected_version))

    def touch(
        self, sid: str, expected_version: int, seen: float, deadline: float
    ) -> Deferred[bool]:
        """As `Store.touch`."""
        return self._run(self._verbs.touch(sid, expected_version, seen, deadline))

    def delete(self, sid: str, ended: Ended | None = None) -> Deferred[bool]:
        """As `RedisStore.delete`."""
        return self._run(self._verbs.delete(sid, ended))

    def due(self, now: float, lease: float, limit: int = 100) -> Deferred[builtins.list[Record]]:
        """As `Store.due`."""
        return self._run(self._verbs.due(now, lease, limit))

    def list(
        self, user: str | None = None, status: int | None = 0, after: str = "", limit: int = 100
    ) -> Deferred[builtins.list[Record]]:
        """As `Store.list`."""
        return self._run(self._verbs.page(user, status, after, limit))

    def count(self, user: str | None = None, status: int | None = 0) -> Deferred[int]:
        """As `RedisStore.count`."""
        return self._run(self._verbs.count(user, status))

    def check(self) -> Deferred[builtins.list[str]]:
        """As `RedisStore.check`."""
        return self._run(self._verbs.check())

    def close(self) -> Deferred[None]:
        """As `Store.close`; a later call connects again."""
        link, self._link = self._link, None
        return ensureDeferred(link.close()) if link is not None else succeed(None)

    def _run(self, steps: Steps[T]) -> Deferred[T]:
        """Run a verb: do what it yields."""
        return ensureDeferred(self._steps(steps))

    async def _steps(self, steps: Steps[T]) -> T:
        link = self._link or self._open()
        request: Request | None = None
        try:
            if not self._looked:
                await self._look(link)
            request = next(steps)
            while True:
                request = steps.send(await self._perform(link, request))
        except StopIteration as stop:
            result: T = stop.value
            return result
        except ERRORS as error:
            failed = self._failed(error, request)
            if isinstance(error, redis.ResponseError) and suspect(error, failed):
                # Of others the link knows which connection it was.
                link.reconnect()
            raise failed from error

    def _open(self) -> _Link:
        if self._reactor is None:
            from twisted.internet import reactor

            self._reactor = reactor
        self._link = _Link(self._target, self.settings, self._known, self._reactor)
        return self._link

    async def _look(self, link: _Link) -> None:
        """Warn, once, of a server that would drop sessions."""
        try:
            self._warn(await link.primaries("INFO", "memory"))
        except redis.ResponseError as error:
            self._not_told(error)
        self._looked = True


class _Protocol(txredisapi.RedisProtocol):  # type: ignore[misc]
    """One connection. Values stay bytes: what looks like a number may be a sid or a record."""

    alive = True
    under_way = 0
    """Calls that wait for their answer."""
    left = False
    """It gets no more calls, and ends with the last one that is under way."""

    def __init__(self) -> None:
        super().__init__(charset=None)

    def tryConvertData(self, data: Any) -> Any:  # noqa: N802, RUF100 (the library's name)
        return data

    def connectionLost(self, why: Any = None) -> None:
        self.alive = False
        super().connectionLost(why)

    def leave(self) -> None:
        self.left = True
        if not self.under_way:
            self.transport.abortConnection()


class _Factory(Factory):
    noisy = False
    protocol = _Protocol

    def stopTrying(self) -> None:
        """Nothing tries by itself; a call that needs a connection opens one."""


class _Link:
    """Connections for one reactor; its methods are those of `sojourn.stores.redis.links`."""

    def __init__(
        self, target: Target, settings: Settings, options: dict[str, Any], reactor: Any
    ) -> None:
        self._target = target
        self._settings = settings
        self._options = options
        self._reactor = reactor
        self._shared: _Protocol | None = None
        self._waiting: list[Deferred[_Protocol]] | None = None
        """Those that wait for the shared connection, while it is being opened."""
        self._idle: list[_Protocol] = []
        """Connections for ends that replicas are to confirm."""

    async def call(self, command: Command) -> Any:
        """Send one command and return its answer."""
        connection = self._shared
        if connection is None or not connection.alive:
            connection = await self._connected()
        try:
            return await self._send(connection, command)
        except txredisapi.RedisError as error:
            raise _of_redis_py(error) from error

    async def batch(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands at once; return answers, errors among them."""
        return await self._batch(await self._connected(), commands)

    async def confirmed(self, command: Command, key: str, wait: Command) -> list[Any]:
        """Send a command and, on the same connection, the one that waits for replicas.

        On no connection that others use: they would wait too.
        """
        connection = None
        while self._idle and connection is None:
            connection = self._idle.pop()
            connection = connection if connection.alive else None
        if connection is None:
            connection = await self._opened()
        answers = await self._batch(connection, (command, wait))
        if connection.alive and not connection.left and len(self._idle) < _IDLE:
            self._idle.append(connection)
        else:
            connection.leave()
        return answers

    async def primaries(self, *command: str) -> list[Any]:
        """Send INFO to the one server there is."""
        return [_told(await self.call(command))]

    def reconnect(self) -> None:
        """Let go of connections, whose server may be gone or have become a replica."""
        for connection in (self._shared, *self._idle):
            if connection is not None:
                connection.leave()
        self._shared = None
        self._idle.clear()

    async def close(self) -> None:
        """Close all connections, and wait until they are closed."""
        open_ = [one for one in (self._shared, *self._idle) if one is not None and one.alive]
        gone = [one.whenDisconnected() for one in open_]
        self._shared = None
        self._idle.clear()
        for one in open_:
            one.transport.abortConnection()
        for one in gone:
            await one

    async def _batch(self, connection: _Protocol, commands: Sequence[Command]) -> list[Any]:
        pending = [self._send(connection, command) for command in commands]
        answers = []
        for one in pending:
            try:
                answers.append(await one)
            except txredisapi.ResponseError as error:
                answers.append(_of_redis_py(error))
            except txredisapi.RedisError as error:
                for other in pending:
                    other.addErrback(_ignore)
                raise _of_redis_py(error) from error
        return answers

    def _send(self, connection: _Protocol, command: Command) -> Deferred[Any]:
        """Send a command; fails with `TimeoutError` where the answer takes too long."""
        connection.under_way += 1
        answer: Deferred[Any] = connection.execute_command(*command)
        late = self._reactor.callLater(self._settings.timeout, self._late, connection, answer)

        def came(result: Any) -> Any:
            if late.active():
                late.cancel()
            connection.under_way -= 1
            if connection.left and not connection.under_way:
                connection.transport.abortConnection()
            return result

        return answer.addBoth(came)

    def _late(self, connection: _Protocol, answer: Deferred[Any]) -> None:
        # Others may still get theirs on this connection; what comes now takes a new one.
        if self._shared is connection:
            self.reconnect()
        connection.left = True
        answer.errback(_NoAnswer("no answer in time"))

    async def _connected(self) -> _Protocol:
        """Return the shared connection; of several that need a new one, one opens it."""
        if self._shared is not None and self._shared.alive:
            return self._shared
        if self._waiting is not None:
            waiter: Deferred[_Protocol] = Deferred()
            self._waiting.append(waiter)
            return await waiter
        self._waiting = []
        try:
            connection = self._shared = await self._opened()
        except BaseException as error:
            waiting, self._waiting = self._waiting, None
            for waiter in waiting:
                waiter.errback(error)
            raise
        waiting, self._waiting = self._waiting, None
        for waiter in waiting:
            waiter.callback(connection)
        return connection

    async def _opened(self) -> _Protocol:
        """Open a connection to the primary."""
        target = self._target
        if target.kind == "node":
            options = self._options
            if options.get("path"):
                return await self._open(None, options)
            address = (options.get("host", "localhost"), int(options.get("port", 6379)))
            return await self._open(address, options)
        address = await self._primary()
        connection = await self._open(address, self._options)
        role = await self._ask(connection, "ROLE")
        if role[0] != b"master":
            connection.leave()
            raise redis.sentinel.MasterNotFoundError(f"{address[0]}:{address[1]} is none")
        return connection

    async def _primary(self) -> tuple[str, int]:
        """Ask the sentinels, one after the other, where the primary is."""
        target = self._target
        quarter = self._settings.timeout / 4
        tls = {name: self._options[name] for name in _TLS if name in self._options}
        for address in target.addresses:
            with contextlib.suppress(*ERRORS):
                sentinel = await self._open(address, tls | target.sentinel_options, quarter)
                try:
                    found = await self._ask(
                        sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", target.service
                    )
                finally:
                    sentinel.leave()
                if found:
                    return found[0].decode(), int(found[1])
        raise redis.sentinel.MasterNotFoundError(f"no sentinel knows {target.service!r}")

    async def _open(
        self, address: tuple[str, int] | None, options: dict[str, Any], seconds: float | None = None
    ) -> _Protocol:
        """Open a connection and log in."""
        seconds = seconds or self._settings.connect_timeout
        shown = options.get("path") or "{}:{}".format(*(address or ()))
        try:
            if address is None:
                endpoint: Any = UNIXClientEndpoint(self._reactor, options["path"], timeout=seconds)
                connection: _Protocol = await endpoint.connect(_Factory())
            else:
                connection = await self._reach(address, options, seconds)
        except Exception as error:
            # Of many kinds: no such name, refused, no route, too late, a wrong certificate.
            raise redis.ConnectionError(f"Error connecting to {shown}: {error}") from error
        try:
            password = options.get("password")
            if password:
                user = (options["username"],) if options.get("username") else ()
                await self._ask(connection, "AUTH", *user, password)
            if options.get("db"):
                await self._ask(connection, "SELECT", int(options["db"]))
        except BaseException:
            connection.leave()
            raise
        return connection

    async def _reach(
        self, address: tuple[str, int], options: dict[str, Any], seconds: float
    ) -> _Protocol:
        """Connect to the first address of a host that answers."""
        failed: Exception = DNSLookupError(f"no address of {address[0]}")
        for kind, number in await _addresses(self._reactor, *address, seconds):
            endpoint: Any = kind(self._reactor, number, address[1], timeout=seconds)
            if self._target.tls:
                endpoint = wrapClientTLS(_tls(address[0], options), endpoint)
            try:
                connection: _Protocol = await endpoint.connect(_Factory())
            except ConnectError as error:
                failed = error.with_traceback(None)
            else:
                return connection
        raise failed

    async def _ask(self, connection: _Protocol, *command: Any) -> Any:
        try:
            return await self._send(connection, command)
        except txredisapi.RedisError as error:
            raise _of_redis_py(error) from error


class _NoAnswer(txredisapi.ConnectionError):  # type: ignore[misc]
    """The server takes too long."""


def _addresses(reactor: Any, host: str, port: int, seconds: float) -> Deferred[list[_Address]]:
    """Look a host up, in a thread of its own.

    Twisted's endpoints do that in the reactor's threads, an address in digits too: where slow work
    of the application fills these, and waits for a session, nobody would get any further.
    """
    answer: Deferred[list[_Address]] = Deferred()

    def tell(found: Any) -> None:
        if late.active():
            late.cancel()
            answer.callback(found)

    def look() -> None:
        found: Any
        try:
            found = [
                (_ENDPOINTS[family], number[0])
                for family, *_, number in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                if family in _ENDPOINTS
            ]
        except OSError as error:
            found = Failure(error)
        reactor.callFromThread(tell, found)

    late = reactor.callLater(
        seconds, answer.errback, DNSLookupError(f"{host} was not found in {seconds:g} s")
    )
    threading.Thread(target=look, name="sojourn-lookup", daemon=True).start()
    return answer


def _ignore(_: object) -> None:
    """Let a failure be that of the whole batch, which was raised."""


def _of_redis_py(error: Exception) -> Exception:
    """Return redis-py's error for one of txredisapi's: what the verbs and messages know."""
    text = str(error)
    if isinstance(error, _NoAnswer):
        return redis.TimeoutError(text)
    if isinstance(error, txredisapi.ResponseError):
        kind = _ERRORS.get(text.partition(" ")[0], redis.ResponseError)
        code = text.partition(" ")[0]
        return kind(text.partition(" ")[2] if code == "MOVED" else text)
    return redis.ConnectionError(text or "the connection was lost")


def _options(target: Target) -> dict[str, Any]:
    """Return what a URL says of the server, as redis-py reads it.

    Raises:
        ConfigurationError: it names a cluster, or has an option that is not known here.
    """
    if target.kind == "cluster":
        raise ConfigurationError(
            f"{target.shown}: txredisapi knows no clusters; give the session manager this URL and "
            "run Twisted on its asyncio reactor (twistd --reactor=asyncio)"
        )
    parse_url: Any = redis.connection.parse_url
    options: dict[str, Any] = parse_url(target.url)
    strange = sorted(options.keys() - _KNOWN - _TLS)
    if strange:
        raise ConfigurationError(
            f"{target.shown}: {', '.join(strange)}: Twisted's client takes only "
            f"{', '.join(sorted((_KNOWN | _TLS) - {'connection_class', 'host', 'port', 'path'}))}"
        )
    return options


def _tls(host: str, options: dict[str, Any]) -> Any:
    """Return how TLS is spoken with a server: its certificate is always checked."""
    from twisted.internet import ssl

    trust = None
    if options.get("ssl_ca_certs"):
        with open(options["ssl_ca_certs"], "rb") as file:
            pem = file.read()
        begin = b"-----BEGIN CERTIFICATE-----"
        trust = ssl.trustRootFromCertificates(
            [ssl.Certificate.loadPEM(begin + part) for part in pem.split(begin)[1:]]
        )
    mine = None
    if options.get("ssl_certfile"):
        with open(options["ssl_certfile"], "rb") as file:
            pem = file.read()
        if options.get("ssl_keyfile"):
            with open(options["ssl_keyfile"], "rb") as file:
                pem += b"\n" + file.read()
        mine = ssl.PrivateCertificate.loadPEM(pem)
    return ssl.optionsForClientTLS(host, trustRoot=trust, clientCertificate=mine)


def _told(raw: bytes) -> dict[str, Any]:
    """Return what INFO says, numbers as such."""
    lines = (line.partition(":") for line in raw.decode().splitlines())
    return {
        name: int(value) if value.isdecimal() else value for name, colon, value in lines if colon
    }
