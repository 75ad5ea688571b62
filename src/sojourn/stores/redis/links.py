"""Connections: one class for each colour, over redis-py's clients for the three kinds of servers.

A link sends one command, some at once, or one that replicas are to confirm. It never repeats a
command by itself (but for a cluster's redirections, which say that nothing was done): who called
knows better, and drivers do it. Errors are redis-py's; `translated` makes ours of them.
"""

from __future__ import annotations

import asyncio
import builtins
import importlib.util
from collections.abc import Sequence
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.retry
import redis.sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    MaxConnectionsError,
    MovedError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from sojourn.errors import ConfigurationError, SojournError, StoreUnavailable
from sojourn.stores.redis.layout import damaged
from sojourn.stores.redis.settings import Settings, Target

__all__ = ["ERRORS", "NO_PRIMARY", "AsyncLink", "Link", "translated", "tried"]

Command = tuple[Any, ...]

ERRORS = (RedisError, RedisClusterException, OSError, builtins.TimeoutError)
"""What a link raises."""

NO_PRIMARY = (
    redis.sentinel.MasterNotFoundError,
    redis.asyncio.sentinel.MasterNotFoundError,
)
"""What is raised where no sentinel names a primary."""

_REDIRECTIONS = 5
_REDIS_PY = tuple(int(part) for part in redis.__version__.split(".")[:2])
# Before 5.3 it had to be told of the command, for nothing.
_GET_CONNECTION = () if _REDIS_PY >= (5, 3) else ("_",)


class _ClosedByOthers:
    """Names what happens before redis-py 8 where a node of a cluster goes away.

    The caller that notices closes the connections of the others too, under their hands.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, AttributeError):
            raise redis.ConnectionError(f"closed by another caller ({error})") from error


_closed_by_others = _ClosedByOthers()


def _options(target: Target, settings: Settings, *, asynchronous: bool) -> dict[str, Any]:
    """Return what every connection is made with."""
    retry: Any = redis.asyncio.retry.Retry if asynchronous else redis.retry.Retry
    named: dict[str, Any] = {}
    if importlib.util.find_spec("redis.driver_info"):
        from redis.driver_info import DriverInfo

        # redis-py would look up its own version on the disk for each connection, to tell the
        # server. Over TLS let it tell: what comes after the handshake unasked (the server's
        # tickets) comes in with the answer. Else redis-py finds a new connection that has something
        # to be read, and refuses to use it.
        known = DriverInfo("redis-py", redis.__version__) if target.tls else None
        named["driver_info"] = known
    return named | {
        "socket_timeout": settings.timeout,
        "socket_connect_timeout": settings.connect_timeout,
        # redis-py repeats a command up to ten times by default, each time for as long again.
        "retry": retry(NoBackoff(), 0),
        # With RESP3, redis-py no longer looks at a connection before it uses it again.
        "protocol": 2,
    }


def _from_url(target: Target, defaults: dict[str, Any]) -> dict[str, Any]:
    """Return options as the URL changes them, without the address."""
    parse_url: Any = redis.connection.parse_url
    known: dict[str, Any] = defaults | parse_url(target.url)
    for name in ("host", "port", "connection_class"):
        known.pop(name, None)
    known["decode_responses"] = False
    return known


def _sentinels(target: Target, settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    """Return what connections to the sentinels are made with.

    They get a quarter of the time, so that one that hangs leaves time to ask the next.
    """
    kept = ("socket_keepalive", "socket_keepalive_options", "protocol", "retry", "driver_info")
    chosen = {
        name: value for name, value in options.items() if name in kept or name.startswith("ssl_")
    }
    quarter = settings.timeout / 4
    return chosen | {
        "socket_timeout": quarter,
        "socket_connect_timeout": quarter,
        "ssl": target.tls,
        **target.sentinel_options,
    }


def tried(target: Target, settings: Settings) -> None:
    """Make a connection that is not opened, to see that redis-py knows what the URL says.

    Raises:
        ConfigurationError: it does not.
    """
    try:
        pool: Any = redis.ConnectionPool.from_url(
            target.url, **_options(target, settings, asynchronous=False)
        )
        pool.make_connection()
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{target.shown}: redis-py does not take this: {error}") from error


class Link:
    """Blocking connections."""

    def __init__(self, target: Target, settings: Settings) -> None:
        """Make the client; only a cluster's asks its servers now."""
        options = _options(target, settings, asynchronous=False)
        self._cluster: Any = None
        self._sentinel: Any = None
        self._sentinels: tuple[Any, ...] = ()
        self._nodes: dict[tuple[str, int], Any] = {}
        limit = settings.max_connections + 1
        self.client: Any
        if target.kind == "node":
            self.client = redis.Redis.from_url(
                target.url, **options, max_connections=limit, decode_responses=False
            )
            return
        self._options = options = _from_url(target, options)
        if target.kind == "sentinel":
            sentinel: Any = redis.sentinel.Sentinel
            self._sentinel = sentinel(
                target.addresses,
                sentinel_kwargs=_sentinels(target, settings, options),
                **options,
                ssl=target.tls,
                max_connections=limit,
            )
            self._sentinels = tuple(self._sentinel.sentinels)
            self.client = self._sentinel.master_for(target.service)
            return
        self._options["ssl"] = target.tls
        options = {name: value for name, value in self._options.items() if name != "db"}
        if _REDIS_PY < (6, 0):
            # With 0, its asynchronous pipelines try not once.
            options["cluster_error_retry_attempts"] = 1
        node: Any = redis.cluster.ClusterNode
        nodes = [node(*address) for address in target.addresses]
        self.client = self._cluster = redis.RedisCluster(
            startup_nodes=nodes, require_full_coverage=False, **options
        )

    def call(self, command: Command) -> Any:
        """Send one command and return its answer.

        By the pool rather than the client, whose own bookkeeping costs a fifth of a round trip.
        """
        if self._cluster is not None:
            with _closed_by_others:
                return self._cluster.execute_command(*command)
        pool = self.client.connection_pool
        connection = pool.get_connection(*_GET_CONNECTION)
        try:
            connection.send_command(*command)
            return connection.read_response()
        except ResponseError:
            raise
        except BaseException:
            # There may be an answer on its way, which the next command would take for its own.
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    def batch(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands at once, each on keys of one slot; return answers, errors among them."""
        with _closed_by_others, self.client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return list(pipe.execute(raise_on_error=False))

    def confirmed(self, command: Command, key: str, wait: Command) -> list[Any]:
        """Send a command on a key and, on the same connection, the one that waits for replicas."""
        client = self.client
        if self._cluster is not None:
            node = self._cluster.get_node_from_key(key)
            client = self._node(node.host, node.port)
        answers: list[Any] = []
        for _ in range(_REDIRECTIONS):
            with client.pipeline(transaction=False) as pipe:
                pipe.execute_command(*command)
                pipe.execute_command(*wait)
                answers = list(pipe.execute(raise_on_error=False))
            if self._cluster is None or not isinstance(answers[0], MovedError):
                break
            client = self._node(answers[0].host, answers[0].port)
        return answers

    def _node(self, host: str, port: int) -> Any:
        """Return a client of one node of the cluster."""
        if (host, port) not in self._nodes:
            self._nodes[host, port] = redis.Redis(host=host, port=port, **self._options)
        return self._nodes[host, port]

    def primaries(self, *command: str) -> list[Any]:
        """Send a command to every primary."""
        if self._cluster is None:
            return [self.client.execute_command(*command)]
        answers = self.client.execute_command(*command, target_nodes="primaries")
        return list(answers.values()) if _by_node(answers) else [answers]

    def reconnect(self) -> None:
        """Let go of idle connections, whose server may be gone or have become a replica.

        And name all sentinels again: redis-py puts the one that answered first, and where two
        callers do so at once, one of the others drops out of its list.
        """
        if self._sentinel is not None:
            self._sentinel.sentinels = list(self._sentinels)
        if self._cluster is None:
            self.client.connection_pool.disconnect(inuse_connections=False)

    def close(self) -> None:
        """Close all connections."""
        for client in (self.client, *self._nodes.values(), *self._sentinels):
            client.close()


class AsyncLink:
    """Connections for one event loop; the same."""

    def __init__(self, target: Target, settings: Settings) -> None:
        """Make the client; it connects when it is used."""
        options = _options(target, settings, asynchronous=True)
        self._cluster: Any = None
        self._sentinel: Any = None
        self._sentinels: tuple[Any, ...] = ()
        self._nodes: dict[tuple[str, int], Any] = {}
        limit = settings.max_connections + 1
        # A call as a whole has `timeout` seconds, which costs less than one limit for the sending
        # and one for the reading. A cluster's client must meet the time-out itself, as that is how
        # it learns to ask who took over; so there the whole has room for asking.
        self.bound = settings.timeout
        self.client: Any
        if target.kind == "node":
            options["socket_timeout"] = None
            self.client = redis.asyncio.Redis.from_url(
                target.url, **options, max_connections=limit, decode_responses=False
            )
            return
        self._options = options = _from_url(target, options)
        if target.kind == "sentinel":
            sentinels = _sentinels(target, settings, options)
            options["socket_timeout"] = None
            sentinel: Any = redis.asyncio.sentinel.Sentinel
            self._sentinel = sentinel(
                target.addresses,
                sentinel_kwargs=sentinels,
                **options,
                ssl=target.tls,
                max_connections=limit,
            )
            self._sentinels = tuple(self._sentinel.sentinels)
            self.client = self._sentinel.master_for(target.service)
            return
        self.bound = 4 * settings.timeout
        self._options["ssl"] = target.tls
        options = {name: value for name, value in self._options.items() if name != "db"}
        if _REDIS_PY < (6, 0):
            # With 0, its asynchronous pipelines try not once.
            options["cluster_error_retry_attempts"] = 1
        node: Any = redis.asyncio.cluster.ClusterNode
        nodes = [node(*address) for address in target.addresses]
        self.client = self._cluster = redis.asyncio.RedisCluster(
            startup_nodes=nodes, require_full_coverage=False, **options
        )

    async def call(self, command: Command) -> Any:
        """Send one command and return its answer."""
        with _closed_by_others:
            return await self.client.execute_command(*command)

    async def batch(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands at once, each on keys of one slot; return answers, errors among them."""
        with _closed_by_others:
            async with self.client.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return list(await pipe.execute(raise_on_error=False))

    async def confirmed(self, command: Command, key: str, wait: Command) -> list[Any]:
        """Send a command on a key and, on the same connection, the one that waits for replicas."""
        client = self.client
        if self._cluster is not None:
            await self._cluster.initialize()
            node = self._cluster.get_node_from_key(key)
            client = self._node(node.host, node.port)
        answers: list[Any] = []
        for _ in range(_REDIRECTIONS):
            async with client.pipeline(transaction=False) as pipe:
                pipe.execute_command(*command)
                pipe.execute_command(*wait)
                answers = list(await pipe.execute(raise_on_error=False))
            if self._cluster is None or not isinstance(answers[0], MovedError):
                break
            client = self._node(answers[0].host, answers[0].port)
        return answers

    def _node(self, host: str, port: int) -> Any:
        """Return a client of one node of the cluster."""
        if (host, port) not in self._nodes:
            self._nodes[host, port] = redis.asyncio.Redis(host=host, port=port, **self._options)
        return self._nodes[host, port]

    async def primaries(self, *command: str) -> list[Any]:
        """Send a command to every primary."""
        if self._cluster is None:
            return [await self.client.execute_command(*command)]
        answers = await self.client.execute_command(*command, target_nodes="primaries")
        return list(answers.values()) if _by_node(answers) else [answers]

    async def reconnect(self) -> None:
        """Let go of idle connections, whose server may be gone or have become a replica.

        And name all sentinels again: redis-py puts the one that answered first, and where two
        callers do so at once, one of the others drops out of its list.
        """
        if self._sentinel is not None:
            self._sentinel.sentinels = list(self._sentinels)
        if self._cluster is None:
            await self.client.connection_pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        """Close all connections."""
        for client in (self.client, *self._nodes.values(), *self._sentinels):
            await client.aclose()


def _by_node(answers: Any) -> bool:
    """Return whether these are answers of several nodes, which redis-py gives by their names."""
    return isinstance(answers, dict) and all(isinstance(one, dict) for one in answers.values())


def translated(error: BaseException, sid: str, where: str, seconds: float) -> SojournError:
    """Return our error for one of `ERRORS`."""
    text = str(error)
    if "WRONGTYPE" in text:
        return damaged(sid, "a value of another type")
    if isinstance(error, redis.TimeoutError | builtins.TimeoutError | asyncio.TimeoutError):
        return StoreUnavailable(
            f"no answer from {where} in {seconds:g} s; what was asked may or may not have been done"
        )
    if isinstance(error, MaxConnectionsError):
        return StoreUnavailable(f"{where}: no connection is free; raise max_connections")
    if isinstance(error, AuthenticationError | AuthorizationError | BusyLoadingError):
        return StoreUnavailable(f"{where} lets nobody in: {text}")
    if isinstance(error, MovedError):
        return StoreUnavailable(
            f"{where} is a node of a cluster; give its address as redis+cluster://host:port"
        )
    if isinstance(error, NO_PRIMARY):
        return StoreUnavailable(
            f"{where}: no sentinel names a primary; one may be about to take over, or none of the "
            "sentinels is up or knows that service"
        )
    if "READONLY" in text:
        return StoreUnavailable(f"{where} has become a replica: {text}", transient=True)
    if isinstance(error, ResponseError):
        return StoreUnavailable(f"{where} refused: {text}")
    broken = isinstance(error, redis.ConnectionError) and "connecting to" not in text
    return StoreUnavailable(f"{where} cannot be reached: {text}", transient=broken)
