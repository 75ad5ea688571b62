"""The verbs of a store as generators: what is asked of the servers, and what the answers mean.

Both stores run these; the classes in `store` differ only in how they wait. Each verb that serves a
request yields once, but for two cases: a new session of a user, or a session that gets another
user, is first entered in that user's index; one that ends is taken out of it afterwards.

**The index of a user** is never behind: a session is entered before the record that names the user
can be seen. It may be ahead, after a crash in between, so readers compare with the record, and take
out what has been there for an hour without belonging there. A session that ended for good is taken
out at once, as its sid never comes back. (A `MARK`'s may, so it is left to the readers.) Where
replicas are to confirm an end, it is taken out when they have.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Generator, Iterable
from typing import Any, TypeAlias, TypeVar

from redis.exceptions import RedisError, ResponseError

from sojourn.core.calls import GONE, SAVED, Outcome
from sojourn.core.record import ENDED, ENDING, Ended, Record
from sojourn.errors import DamagedRecord, StoreUnavailable
from sojourn.stores.redis import scripts
from sojourn.stores.redis.layout import (
    HEAD_SIZE,
    SHARDS,
    Keys,
    damaged,
    decode,
    encode,
    head_user,
    milliseconds,
    user_hash,
)
from sojourn.stores.redis.scripts import Script
from sojourn.stores.redis.settings import Settings

__all__ = [
    "Batch",
    "Get",
    "Info",
    "Request",
    "Run",
    "Steps",
    "Verbs",
    "confirmation",
    "dropping",
    "earliest",
    "faults_of",
    "see_confirmed",
    "settled",
]

T = TypeVar("T")

_STATUSES = (0, 1, 2, 3)
_NO_USER = user_hash(None)
_STALE = 3600
_VERSION = struct.Struct(">Q").pack
_TIMES = struct.Struct(">dd").pack
_VERSION_AND_TIMES = struct.Struct(">Qdd").pack


class Run:
    """Run a script; answers with what it returns. `confirm`: replicas are to have it too."""

    __slots__ = ("arguments", "confirm", "keys", "script", "sid")

    def __init__(
        self,
        script: Script,
        keys: tuple[str, ...],
        arguments: tuple[Any, ...],
        sid: str = "",
        confirm: bool = False,
    ) -> None:
        """Say what to run."""
        self.script = script
        self.keys = keys
        self.arguments = arguments
        self.sid = sid
        self.confirm = confirm

    @property
    def by_name(self) -> tuple[Any, ...]:
        """The command for a server that knows the script."""
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.arguments)

    @property
    def in_full(self) -> tuple[Any, ...]:
        """The command for one that does not; it will after this."""
        return ("EVAL", self.script.text, len(self.keys), *self.keys, *self.arguments)


class Get:
    """Fetch the value of a key; answers with bytes or None."""

    __slots__ = ("command", "sid")

    def __init__(self, key: str, sid: str) -> None:
        """Say which."""
        self.command = ("GET", key)
        self.sid = sid


class Batch:
    """Plain commands at once; answers with a list, None for a value of another type."""

    __slots__ = ("commands",)
    sid = ""

    def __init__(self, commands: Iterable[tuple[Any, ...]]) -> None:
        """Say which."""
        self.commands = list(commands)


class Info:
    """What every primary tells of itself: answers with a list of mappings."""

    __slots__ = ("command",)
    sid = ""

    def __init__(self, *section: str) -> None:
        """Say what is wanted, or nothing for most of it."""
        self.command = ("INFO", *section)


Request: TypeAlias = Run | Get | Batch | Info
Steps: TypeAlias = Generator[Request, Any, T]


class Verbs:
    """The verbs, for one prefix and its settings."""

    def __init__(self, settings: Settings) -> None:
        """Prepare the names of keys."""
        self.settings = settings
        self.keys = Keys(settings.prefix)
        self._confirms = settings.wait > 0 or settings.aof

    def _life(self, record: Record) -> int:
        """Return the time to live of a live record, in the server's milliseconds.

        By its own times, so that the server's clock need not agree with ours.
        """
        return milliseconds(max(record.deadline - record.seen, 0.0) + self.settings.overdue)

    # Called for every request.

    def load(self, sid: str) -> Steps[Record | None]:
        """As `Store.load`."""
        raw = yield Get(self.keys.record(sid), sid)
        return None if raw is None else decode(raw, sid)

    def create(self, record: Record) -> Steps[bool]:
        """As `Store.create`."""
        if record.user is not None:
            yield self._enter(record)
        sid = record.sid
        keys = self.keys
        made = yield Run(
            scripts.CREATE,
            (keys.record(sid), keys.due(sid), keys.status(sid, record.status)),
            (encode(record), sid, repr(record.deadline), self._life(record)),
            sid,
        )
        return bool(made)

    def _enter(self, record: Record) -> Run:
        index = self.keys.user(user_hash(record.user))
        return Run(scripts.ENTER, (index,), (record.sid,), record.sid)

    def replace(self, record: Record, expected_version: int) -> Steps[Record | Outcome]:
        """As `Store.replace`."""
        sid = record.sid
        keys = (self.keys.record(sid), self.keys.due(sid))
        arguments = (_VERSION(expected_version), encode(record), self._life(record))
        answer = yield Run(scripts.REPLACE, keys, (*arguments, 0), sid)
        if answer == 2:
            yield self._enter(record)
            answer = yield Run(scripts.REPLACE, keys, (*arguments, 1), sid)
        if answer == 1:
            return SAVED
        if answer == 0:
            return GONE
        if answer == -1:
            raise damaged(sid, "a value")
        return decode(answer, sid)

    def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> Steps[bool]:
        """As `Store.touch`."""
        life = milliseconds(max(deadline - seen, 0.0) + self.settings.overdue)
        answer = yield Run(
            scripts.TOUCH,
            (self.keys.record(sid),),
            (
                _VERSION(expected_version),
                _VERSION_AND_TIMES(expected_version + 1, seen, deadline),
                life,
            ),
            sid,
        )
        if answer == -1:
            raise damaged(sid, "a value")
        return bool(answer)

    def delete(self, sid: str, ended: Ended | None) -> Steps[bool]:
        """As `Store.delete`."""
        status: int | str = ""
        reason, at, due = "", 0.0, 0.0
        if ended is not None:
            status, reason, at, due = ended.status, ended.reason, ended.at, ended.due
        keys = self.keys.all_of(sid)
        answer = yield Run(
            scripts.DELETE,
            (*keys, self.keys.waited(sid)),
            (
                sid,
                status,
                reason.encode(),
                _TIMES(at, due),
                repr(due),
                milliseconds(max(due - at, 0.0) + self.settings.overdue),
                int(self._confirms),
            ),
            sid,
            self._confirms,
        )
        if not answer:
            return False
        user = answer[1]
        if user and user != _NO_USER:
            yield self._leave(user, 0, [sid])
        return True

    def _leave(self, user: bytes, age: int, sids: list[str]) -> Run:
        return Run(scripts.FORGET, (self.keys.user(user),), (age, *sids))

    # Called by sweeps and by people.

    def due(self, now: float, lease: float, limit: int) -> Steps[list[Record]]:
        """As `Store.due`.

        Looks into all shards at once for what comes first in each, then claims shard by shard, and
        again until there is enough or nothing is left.
        """
        claimed: list[Record] = []
        peek = max(4, limit // 16)
        until = ("-inf", repr(now), "WITHSCORES", "LIMIT", 0, peek)
        while len(claimed) < limit:
            found = yield Batch(("ZRANGEBYSCORE", self.keys.due(shard), *until) for shard in SHARDS)
            waiting = earliest(found, peek, limit - len(claimed))
            if not waiting:
                break
            got: dict[str, Record] = {}
            for shard in sorted({sid[0] for sid in waiting}):
                sids = [sid for sid in waiting if sid[0] == shard]
                answer = yield self._claim(shard, now, now + lease, sids)
                for sid, raw in zip(answer[::2], answer[1::2], strict=True):
                    name = sid.decode()
                    try:
                        got[name] = decode(raw, name)
                    except DamagedRecord:
                        yield self._set_aside(name)
            claimed += [got[sid] for sid in waiting if sid in got]
        return claimed

    def _claim(self, shard: str, now: float, again: float, sids: list[str]) -> Run:
        keys = self.keys
        return Run(
            scripts.CLAIM,
            (
                keys.due(shard),
                *(keys.status(shard, status) for status in _STATUSES),
                keys.records(shard),
            ),
            (repr(now), repr(again), milliseconds(again - now + self.settings.overdue), *sids),
        )

    def _set_aside(self, sid: str) -> Batch:
        """Take a record with a good head and a damaged body out of the sets, that is, of `due`."""
        return Batch(("ZREM", key, sid) for key in self.keys.all_of(sid)[1:])

    def page(
        self, user: str | None, status: int | None, after: str, limit: int
    ) -> Steps[list[Record]]:
        """As `Store.list`."""
        if user is not None:
            return (yield from self._of_user(user, status, after, limit))
        wanted = _STATUSES if status is None else (status,)
        page: list[Record] = []
        shards = SHARDS[SHARDS.index(after[0]) :] if after else SHARDS
        several = 1
        while shards and len(page) < limit:
            # One shard holds a page of a large store; of a small one, many hold little.
            some, rest = shards[:several], shards[several:]
            missing = limit - len(page)
            beyond = (f"({after}" if after else "-", "+", "LIMIT", 0, missing)
            found = yield Batch(
                ("ZRANGEBYLEX", self.keys.status(shard, one), *beyond)
                for shard in some
                for one in wanted
            )
            sids = sorted({sid.decode() for sids in found for sid in sids or ()})[:missing]
            page += yield from self._read(sids, user, wanted)
            if len(sids) == missing:
                after = sids[-1]
                shards = SHARDS[SHARDS.index(after[0]) :]
            else:
                shards = rest
            several *= 4
        return page[:limit]

    def _read(
        self, sids: list[str], user: str | None, wanted: tuple[int, ...]
    ) -> Steps[list[Record]]:
        """Load records; return those that are of that user and status, pass over damaged ones."""
        records = []
        found = (yield Batch(("GET", self.keys.record(sid)) for sid in sids)) if sids else ()
        for sid, raw in zip(sids, found, strict=True):
            if raw is not None:
                try:
                    record = decode(raw, sid)
                except DamagedRecord:
                    continue
                if record.status in wanted and user in (None, record.user):
                    records.append(record)
        return records

    def _of_user(
        self, user: str, status: int | None, after: str, limit: int
    ) -> Steps[list[Record]]:
        """List one user's sessions: the index, and each record asked whether it belongs there."""
        sids = [sid for sid in (yield from self._entered(user)) if sid > after]
        wanted = _STATUSES if status is None else (status,)
        page: list[Record] = []
        while sids and len(page) < limit:
            missing = limit - len(page)
            some, sids = sids[:missing], sids[missing:]
            found = yield from self._read(some, None, _STATUSES)
            yield from self._settle(user, found)
            of_user = [record for record in found if record.user == user]
            yield from self._clean(user, some, [record.sid for record in of_user])
            page += [record for record in of_user if record.status in wanted]
        return page

    def _entered(self, user: str) -> Steps[list[str]]:
        index = self.keys.user(user_hash(user))
        found = yield Batch([("ZRANGE", index, 0, -1)])
        return sorted(sid.decode() for sid in found[0] or ())

    def _settle(self, user: str, found: list[Record]) -> Steps[None]:
        """See to sessions that are over and yet in the index; take out what never comes back.

        Whoever ended them may have been told that no replica had confirmed it. So this waits again:
        who asks what is left of a user must not hear "nothing" of what a failover may bring back.
        """
        over = [record.sid for record in found if record.status in (ENDING, ENDED)]
        if self._confirms:
            for sid in {sid[0]: sid for sid in over}.values():
                yield Run(scripts.CONFIRM, (self.keys.waited(sid),), (), sid, True)
        gone = [record.sid for record in found if record.status == ENDED and record.user != user]
        if gone:
            yield self._leave(user_hash(user), 0, gone)

    def _clean(self, user: str, sids: list[str], belong: list[str]) -> Steps[None]:
        """Take out of the index what has long been there without belonging there."""
        strangers = sorted(set(sids).difference(belong))
        if strangers:
            yield self._leave(user_hash(user), _STALE, strangers)

    def count(self, user: str | None, status: int | None) -> Steps[int]:
        """As `Store.count`."""
        wanted = _STATUSES if status is None else (status,)
        if user is None:
            found = yield Batch(
                ("ZCARD", self.keys.status(shard, one)) for shard in SHARDS for one in wanted
            )
            return sum(number or 0 for number in found)
        hashed = user_hash(user)
        sids = yield from self._entered(user)
        number = 0
        for start in range(0, len(sids), 1000):
            some = sids[start : start + 1000]
            heads = yield Batch(
                ("GETRANGE", self.keys.record(sid), 0, HEAD_SIZE - 1) for sid in some
            )
            of_user = [
                (sid, head)
                for sid, head in zip(some, heads, strict=True)
                if head_user(head) == hashed
            ]
            number += sum(head[3] in wanted for _, head in of_user)
            # Whether the end of those that are over is confirmed, only a list looks at.
            over = {sid for sid, head in zip(some, heads, strict=True) if _is_tombstone(head)}
            yield from self._clean(user, some, [*over, *(sid for sid, _ in of_user)])
        return number

    def check(self) -> Steps[list[str]]:
        """Return a sentence for each thing about the servers that endangers sessions."""
        found: list[str] = []
        for info in (yield Info()):
            found += faults_of(info, self.settings)
        return list(dict.fromkeys(found))


def earliest(found: list[Any], full: int, limit: int) -> list[str]:
    """Merge pages of (sid, due time) of all shards; return the first sids, surely in order.

    What comes after the last entry of a page that is full may be preceded by what that page left
    out.
    """
    horizon = float("inf")
    entries: list[tuple[float, str]] = []
    for page in found:
        if page:
            entries += [
                (float(at), sid.decode()) for sid, at in zip(page[::2], page[1::2], strict=True)
            ]
            if len(page) == 2 * full:
                horizon = min(horizon, entries[-1][0])
    return [sid for at, sid in heapq.nsmallest(limit, entries) if at <= horizon]


def dropping(info: dict[str, Any]) -> str:
    """Return what is wrong where a server drops sessions when its memory is full, else ""."""
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction" or not info.get("maxmemory", 1):
        return ""
    return (
        f"maxmemory-policy is {policy}: when its memory is full, the server drops sessions without "
        "a word; set maxmemory-policy noeviction, then it refuses new ones"
    )


def faults_of(info: dict[str, Any], settings: Settings) -> list[str]:
    """Return what a server's INFO tells against keeping sessions there."""
    found = [dropping(info)]
    # Valkey tells here, for what asks, which Redis it is like.
    name = str(info.get("redis_version", "0"))
    version = tuple(int(part) for part in name.split(".")[:2] if part.isdigit())
    if version < (6, 2):
        found.append(f"the server is Redis {name}; 6.2 is the oldest that works")
    if settings.aof and version < (7, 2):
        found.append(f"aof is set, which needs Redis 7.2 or Valkey; the server is {name}")
    if not info.get("aof_enabled", 1):
        found.append(
            "appendonly is no: what was written since the last snapshot is lost when the server "
            "ends; set appendonly yes"
        )
    replicas = info.get("connected_slaves", settings.wait)
    if replicas < settings.wait:
        found.append(
            f"wait is {settings.wait}, but the server has {replicas} replicas: no end of a "
            "session can be confirmed; start replicas, or lower wait"
        )
    return [sentence for sentence in found if sentence]


def _is_tombstone(head: bytes | None) -> bool:
    return head is not None and head[3:4] == bytes([ENDED])


def settled(answers: list[Any]) -> list[Any]:
    """Return the answers of a batch; raise the first error but those of foreign values."""
    for error in answers:
        if isinstance(error, Exception) and not _foreign(error):
            raise error
    return [None if isinstance(answer, Exception) else answer for answer in answers]


def _foreign(error: Exception) -> bool:
    return isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE")


def confirmation(settings: Settings) -> tuple[Any, ...]:
    """Return the command that waits until a write is where it is to be."""
    wait = round(settings.wait_timeout * 1000)
    if settings.aof:
        return ("WAITAOF", 1, settings.wait, wait)
    return ("WAIT", settings.wait, wait)


def see_confirmed(answer: Any, settings: Settings, where: str) -> None:
    """Raise `StoreUnavailable` unless the answer to `confirmation` says that it is there."""
    ended = f"the session has ended on {where}, but"
    if isinstance(answer, RedisError):
        raise StoreUnavailable(f"{ended} that could not be confirmed: {answer}") from answer
    local, replicas = (answer[0], answer[1]) if settings.aof else (1, answer)
    if local < 1 or replicas < settings.wait:
        fsync = ", nor is it in the append-only file" if local < 1 else ""
        raise StoreUnavailable(
            f"{ended} only {replicas} of {settings.wait} replicas confirmed it in "
            f"{settings.wait_timeout:g} s{fsync}; a failover now might bring it back. "
            "Try again, or lower wait="
        )
