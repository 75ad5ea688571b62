"""What a Redis URL says, and what is assumed where it is silent."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import msgspec

from sojourn.errors import ConfigurationError

__all__ = ["Settings", "Target", "read_url"]

SCHEMES = {
    "redis": ("node", False),
    "rediss": ("node", True),
    "unix": ("node", False),
    "redis+unix": ("node", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set for a `RedisStore`, as an argument or as a parameter in its URL.

    Attributes:
        prefix: what the names of all keys begin with (inside their braces).
        timeout: seconds that a server has for an answer; also how long a call waits for a
            connection when all are in use.
        connect_timeout: seconds for opening a connection.
        max_connections: how many calls are under way at once, for each process.
        wait: how many replicas must have confirmed the end of a session before `delete` returns.
        aof: whether the end of a session must be in the append-only file before `delete`
            returns, on the primary and on as many replicas as `wait` says; needs Redis 7.2.
        wait_timeout: seconds for that; less than `timeout`.
        overdue: seconds for which the server keeps a record beyond its deadline, should no sweep
            come for it.
        near: for how many seconds, at most, a request may be answered from this process's memory
            after its session was loaded; 0: every request asks the server.
    """

    prefix: str = "sojourn"
    timeout: float = 2.0
    connect_timeout: float = 1.0
    max_connections: int = 64
    wait: int = 0
    aof: bool = False
    wait_timeout: float = 1.0
    overdue: float = 7 * 86400.0
    near: float = 0.0

    def faults(self) -> list[str]:
        """Return a sentence for each setting that cannot work."""
        found = []
        if not self.prefix or set(self.prefix) & set("{}"):
            found.append(f"prefix is {self.prefix!r}; it is one character or more, without braces")
        for name in ("timeout", "connect_timeout", "wait_timeout"):
            if not 0 < getattr(self, name) < 3600:
                found.append(f"{name} is {getattr(self, name)}; give seconds above 0")
        if self.max_connections < 1:
            found.append(f"max_connections is {self.max_connections}; it is 1 or more")
        if self.wait < 0:
            found.append(f"wait is {self.wait}; give a number of replicas, 0 for none")
        if (self.wait or self.aof) and self.wait_timeout >= self.timeout:
            found.append(
                f"wait_timeout is {self.wait_timeout} and timeout {self.timeout}; "
                "wait_timeout is the smaller one"
            )
        if self.overdue < 0:
            found.append(
                f"overdue is {self.overdue}; give seconds, at least as long as the "
                "sweep may ever stand still"
            )
        if not 0 <= self.near < 3600:
            found.append(f"near is {self.near}; give seconds, 0 for no answers from memory")
        return found


class Target(msgspec.Struct, frozen=True):
    """Which servers.

    Attributes:
        kind: "node", "sentinel" or "cluster".
        url: for redis-py: of the node; else with the first address, for what it says besides.
        addresses: of the sentinels or of some nodes of the cluster.
        service: the name under which the sentinels know the primary.
        tls: whether connections are encrypted.
        shown: the URL without what is secret, for messages.
        sentinel_options: user and password of the sentinels themselves.
    """

    kind: str
    url: str
    addresses: tuple[tuple[str, int], ...]
    service: str
    tls: bool
    shown: str
    sentinel_options: dict[str, str]


def read_url(url: str, options: dict[str, Any]) -> tuple[Target, Settings]:
    """Take a URL apart; what it says wins over `options`.

    Raises:
        ConfigurationError: with every fault.
    """
    faults: list[str] = []
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ConfigurationError(
            f"{parts.scheme!r} is no scheme of a Redis URL; there are {', '.join(SCHEMES)}"
        )
    kind, tls = SCHEMES[parts.scheme]
    ours: dict[str, Any] = dict(options)
    theirs: list[tuple[str, str]] = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in Settings.__struct_fields__:
            ours[name] = value
        elif name in ("protocol", "decode_responses"):
            faults.append(f"{name} is not for a URL to set; leave it out")
        else:
            theirs.append((name, value))
    try:
        settings = msgspec.convert(ours, Settings, strict=False)
        faults += settings.faults()
    except msgspec.ValidationError as error:
        settings = Settings()
        faults.append(f"a setting is wrong: {error}; there are {Settings.__struct_fields__}")

    addresses: list[tuple[str, int]] = []
    service = ""
    sentinel_options: dict[str, str] = {}
    path, hosts = parts.path, parts.netloc.rpartition("@")[2]
    if kind == "node":
        scheme = "unix" if parts.scheme == "redis+unix" else parts.scheme
        netloc = parts.netloc
    else:
        scheme = "rediss" if tls else "redis"
        for address in hosts.split(","):
            one = urlsplit(f"//{address}")
            try:
                port = one.port or (26379 if kind == "sentinel" else 6379)
            except ValueError:
                port = 0
            if not one.hostname or not port:
                faults.append(f"{address!r} is no address; write host:port,host:port")
            addresses.append((one.hostname or "", port))
        user = parts.netloc.rpartition("@")[0]
        netloc = (user + "@" if user else "") + hosts.partition(",")[0]
    if kind == "sentinel":
        service, _, database = path.lstrip("/").partition("/")
        service, path = unquote(service), f"/{database}"
        if not service:
            faults.append("no service; write redis+sentinel://host:port,host:port/service")
        for name, value in theirs:
            if name in ("sentinel_username", "sentinel_password"):
                sentinel_options[name.removeprefix("sentinel_")] = value
        theirs = [(name, value) for name, value in theirs if not name.startswith("sentinel_")]
    if kind == "cluster" and path.strip("/") not in ("", "0"):
        faults.append(f"database {path.strip('/')!r}; a cluster has only database 0")
    if kind == "cluster" and settings.near:
        faults.append(
            f"near is {settings.near}, but a cluster has several primaries, and each would have to "
            "tell of changes; leave near out, or use one primary, under Sentinel if need be"
        )
    if faults:
        raise ConfigurationError(f"{_shown(url)}: " + "; ".join(faults))
    return (
        Target(
            kind,
            # Not urlunsplit, which writes unix:/path.
            f"{scheme}://{netloc}{path}?{urlencode(theirs)}",
            tuple(addresses),
            service,
            tls,
            _shown(url),
            sentinel_options,
        ),
        settings,
    )


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
