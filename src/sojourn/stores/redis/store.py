"""`RedisStore` and `AsyncRedisStore`: the same verbs, waited for in two ways.

(A third one, for Twisted, is in `sojourn.web.twisted.redis`.)
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from redis.exceptions import NoScriptError, RedisError, ResponseError

from sojourn.core.calls import Outcome
from sojourn.core.record import Ended, Record
from sojourn.errors import ConfigurationError, SojournError, StoreUnavailable
from sojourn.stores.base import Promises
from sojourn.stores.redis.links import ERRORS, AsyncLink, Link, translated, tried
from sojourn.stores.redis.near import Near
from sojourn.stores.redis.settings import read_url
from sojourn.stores.redis.verbs import (
    Batch,
    Get,
    Info,
    Request,
    Run,
    Steps,
    Verbs,
    confirmation,
    dropping,
    see_confirmed,
    settled,
)

__all__ = ["AsyncRedisStore", "Awaiting", "Common", "RedisStore", "suspect"]

T = TypeVar("T")

_log = logging.getLogger("sojourn.stores.redis")

_PROMISES = Promises(
    survives="restart",
    shared="hosts",
    note="what a kill of the server or a failover leaves is what its persistence and replication "
    "settings keep; with wait= or aof= a logout is confirmed first; with near= a request may be "
    "answered from memory",
)


class Common:
    """What all colours share: the settings, the verbs, and what errors become."""

    promises = _PROMISES

    def __init__(self, url: str, **settings: Any) -> None:
        """Read the URL; connect to nothing yet."""
        self._target, self.settings = read_url(url, settings)
        tried(self._target, self.settings)
        self._verbs = Verbs(self.settings)
        self._confirmation = confirmation(self.settings)
        self._looked = False
        self._near: Near | None = None
        if self.settings.near:
            self._remember()

    def _remember(self) -> None:
        if not hasattr(self, "recall"):
            raise ConfigurationError(
                f"{self._target.shown}: near is {self.settings.near}, but a {type(self).__name__} "
                "answers nothing from memory; leave near out"
            )
        self._near = Near(self._target, self.settings)
        weakref.finalize(self, self._near.close)
        self.promises = msgspec.structs.replace(_PROMISES, stale=self.settings.near)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._target.shown!r})"

    def _failed(self, error: BaseException, request: Request | None) -> SojournError:
        sid = request.sid if request is not None else ""
        return translated(error, sid, self._target.shown, self.settings.timeout)

    def _busy(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"{self._target.shown}: all {self.settings.max_connections} connections were in use "
            f"for {self.settings.timeout:g} s; raise max_connections"
        )

    def _confirmed(self, answers: list[Any]) -> Any:
        """Return the answer to the command, once that to the waiting is good."""
        if isinstance(answers[0], RedisError):
            raise answers[0]
        see_confirmed(answers[1], self.settings, self._target.shown)
        return answers[0]

    def _warn(self, infos: list[dict[str, Any]]) -> None:
        """Log, at the first call, that a server would drop sessions without a word."""
        for sentence in {dropping(info) for info in infos} - {""}:
            _log.warning("%s: %s", self._target.shown, sentence)

    def _not_told(self, error: Exception) -> None:
        """Log quietly that the server, a managed one, keeps its settings to itself."""
        _log.info(
            "%s does not tell its maxmemory-policy (%s); it must be noeviction",
            self._target.shown,
            error,
        )


def suspect(error: BaseException, failed: SojournError) -> bool:
    """Return whether other connections may be as bad as the one that raised the error."""
    return getattr(failed, "transient", False) or not isinstance(error, ResponseError)


class RedisStore(Common):
    """Keeps records in Redis or Valkey: one node, Sentinel, or Cluster. Blocks.

    Args:
        url: `redis://`, `rediss://`, `unix://`, `redis+sentinel://host:port,host:port/service` or
            `redis+cluster://host:port,host:port`; what redis-py's URLs can say, and the settings.
        settings: as in `sojourn.stores.redis.settings.Settings`.

    Threads may share it; a process that was forked makes its own connections.
    """

    def __init__(self, url: str, **settings: Any) -> None:
        """Read the URL; connect to nothing yet."""
        super().__init__(url, **settings)
        self._link: Link | None = None
        self.reset_locks()
        _stores.add(self)

    def reset_locks(self) -> None:
        """Make the locks new; in a forked process a thread that is not there may hold them."""
        self._opening = threading.Lock()
        self._free = threading.Semaphore(self.settings.max_connections)

    def load(self, sid: str) -> Record | None:
        """As `Store.load`."""
        return self._run(self._verbs.load(sid))

    def recall(self, sid: str, opens: Callable[[Record], bool]) -> Record | None:
        """As `load`, or, with `near`, a record from memory that `opens` accepts."""
        near = self._near
        if near is None:
            return self.load(sid)
        record = near.recall(sid)
        if record is not None and opens(record):
            return record
        asked, record = near.begin(sid), None
        try:
            record = self.load(sid)
        finally:
            near.end(asked, record)
        return record

    def create(self, record: Record) -> bool:
        """As `Store.create`."""
        return self._run(self._verbs.create(record), record.sid)

    def replace(self, record: Record, expected_version: int) -> Record | Outcome:
        """As `Store.replace`."""
        return self._run(self._verbs.replace(record, expected_version), record.sid)

    def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> bool:
        """As `Store.touch`."""
        return self._run(self._verbs.touch(sid, expected_version, seen, deadline), sid)

    def delete(self, sid: str, ended: Ended | None = None) -> bool:
        """As `Store.delete`; with `wait` or `aof`, raises where that was not confirmed in time."""
        return self._run(self._verbs.delete(sid, ended), sid)

    def due(self, now: float, lease: float, limit: int = 100) -> builtins.list[Record]:
        """As `Store.due`."""
        claimed = self._run(self._verbs.due(now, lease, limit))
        if self._near is not None:
            for record in claimed:
                self._near.drop(record.sid)
        return claimed

    def list(
        self, user: str | None = None, status: int | None = 0, after: str = "", limit: int = 100
    ) -> builtins.list[Record]:
        """As `Store.list`."""
        return self._run(self._verbs.page(user, status, after, limit))

    def count(self, user: str | None = None, status: int | None = 0) -> int:
        """As `Store.count`; without a user it trusts the sets, which a sweep keeps in order."""
        return self._run(self._verbs.count(user, status))

    def check(self) -> builtins.list[str]:
        """Return a sentence for each thing about the servers that endangers sessions."""
        return self._run(self._verbs.check())

    def close(self) -> None:
        """As `Store.close`; a later call connects again."""
        with self._opening:
            link, self._link = self._link, None
        if self._near is not None:
            self._near.close()
        if link is not None:
            link.close()

    def _run(self, steps: Steps[T], written: str = "") -> T:
        """Run a verb: do what it yields; `written` is the sid of what it may change."""
        if not self._free.acquire(timeout=self.settings.timeout):
            raise self._busy()
        request: Request | None = None
        try:
            link = self._link or self._open()
            if not self._looked:
                self._look(link)
            request = next(steps)
            while True:
                request = steps.send(self._perform(link, request))
        except StopIteration as stop:
            answer: T = stop.value
            return answer
        except ERRORS as error:
            failed = self._failed(error, request)
            if self._link is not None and suspect(error, failed):
                with contextlib.suppress(*ERRORS):
                    self._link.reconnect()
            raise failed from error
        finally:
            self._free.release()
            if self._near is not None and written:
                self._near.drop(written)

    def _open(self) -> Link:
        with self._opening:
            if self._link is None:
                self._link = Link(self._target, self.settings)
            return self._link

    def _look(self, link: Link) -> None:
        """Warn, once, of a server that would drop sessions."""
        try:
            self._warn(link.primaries("INFO", "memory"))
        except ResponseError as error:
            self._not_told(error)
        self._looked = True

    def _perform(self, link: Link, request: Request) -> Any:
        if isinstance(request, Get):
            return link.call(request.command)
        if isinstance(request, Batch):
            return settled(link.batch(request.commands))
        if isinstance(request, Info):
            return link.primaries(*request.command)
        if request.confirm:
            return self._confirm(link, request)
        try:
            return link.call(request.by_name)
        except NoScriptError:
            return link.call(request.in_full)

    def _confirm(self, link: Link, request: Run) -> Any:
        key = request.keys[0]
        answers = link.confirmed(request.by_name, key, self._confirmation)
        if isinstance(answers[0], NoScriptError):
            answers = link.confirmed(request.in_full, key, self._confirmation)
        return self._confirmed(answers)


_stores: weakref.WeakSet[RedisStore] = weakref.WeakSet()


def _forked() -> None:
    for store in _stores:
        store.reset_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Awaiting(Common):
    """Does what a verb yields on a link whose methods are awaited."""

    async def _perform(self, link: Any, request: Request) -> Any:
        if isinstance(request, Get):
            return await link.call(request.command)
        if isinstance(request, Batch):
            return settled(await link.batch(request.commands))
        if isinstance(request, Info):
            return await link.primaries(*request.command)
        if request.confirm:
            return await self._confirm(link, request)
        try:
            return await link.call(request.by_name)
        except NoScriptError:
            return await link.call(request.in_full)

    async def _confirm(self, link: Any, request: Run) -> Any:
        key = request.keys[0]
        answers = await link.confirmed(request.by_name, key, self._confirmation)
        if isinstance(answers[0], NoScriptError):
            answers = await link.confirmed(request.in_full, key, self._confirmation)
        return self._confirmed(answers)


class AsyncRedisStore(Awaiting):
    """The same for asyncio; arguments as for `RedisStore`.

    One store serves every event loop that uses it, each with connections of its own; `close` closes
    those of the loop that it is called in.
    """

    def __init__(self, url: str, **settings: Any) -> None:
        """Read the URL; connect to nothing yet."""
        super().__init__(url, **settings)
        self._links: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[AsyncLink, asyncio.Semaphore]
        ] = weakref.WeakKeyDictionary()

    async def load(self, sid: str) -> Record | None:
        """As `Store.load`."""
        return await self._run(self._verbs.load(sid))

    async def recall(self, sid: str, opens: Callable[[Record], bool]) -> Record | None:
        """As `load`, or, with `near`, a record from memory that `opens` accepts."""
        near = self._near
        if near is None:
            return await self.load(sid)
        record = near.recall(sid)
        if record is not None and opens(record):
            return record
        asked, record = near.begin(sid), None
        try:
            record = await self.load(sid)
        finally:
            near.end(asked, record)
        return record

    async def create(self, record: Record) -> bool:
        """As `Store.create`."""
        return await self._run(self._verbs.create(record), record.sid)

    async def replace(self, record: Record, expected_version: int) -> Record | Outcome:
        """As `Store.replace`."""
        return await self._run(self._verbs.replace(record, expected_version), record.sid)

    async def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> bool:
        """As `Store.touch`."""
        return await self._run(self._verbs.touch(sid, expected_version, seen, deadline), sid)

    async def delete(self, sid: str, ended: Ended | None = None) -> bool:
        """As `RedisStore.delete`."""
        return await self._run(self._verbs.delete(sid, ended), sid)

    async def due(self, now: float, lease: float, limit: int = 100) -> builtins.list[Record]:
        """As `Store.due`."""
        claimed = await self._run(self._verbs.due(now, lease, limit))
        if self._near is not None:
            for record in claimed:
                self._near.drop(record.sid)
        return claimed

    async def list(
        self, user: str | None = None, status: int | None = 0, after: str = "", limit: int = 100
    ) -> builtins.list[Record]:
        """As `Store.list`."""
        return await self._run(self._verbs.page(user, status, after, limit))

    async def count(self, user: str | None = None, status: int | None = 0) -> int:
        """As `RedisStore.count`."""
        return await self._run(self._verbs.count(user, status))

    async def check(self) -> builtins.list[str]:
        """As `RedisStore.check`."""
        return await self._run(self._verbs.check())

    async def close(self) -> None:
        """As `Store.close`; a later call connects again."""
        opened = self._links.pop(asyncio.get_running_loop(), None)
        if self._near is not None and not self._links:
            self._near.close()
        if opened is not None:
            await opened[0].close()

    def _open(self) -> tuple[AsyncLink, asyncio.Semaphore]:
        """Return what this event loop uses."""
        loop = asyncio.get_running_loop()
        opened = self._links.get(loop)
        if opened is None:
            opened = (
                AsyncLink(self._target, self.settings),
                asyncio.Semaphore(self.settings.max_connections),
            )
            self._links[loop] = opened
        return opened

    async def _run(self, steps: Steps[T], written: str = "") -> T:
        """Run a verb: do what it yields; `written` is the sid of what it may change."""
        link, free = self._open()
        try:
            async with asyncio.timeout(self.settings.timeout) if free.locked() else _no_limit:
                await free.acquire()
        except TimeoutError:
            raise self._busy() from None
        request: Request | None = None
        try:
            if not self._looked:
                await self._look(link)
            request = next(steps)
            while True:
                async with asyncio.timeout(link.bound):
                    answer = await self._perform(link, request)
                request = steps.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        except ERRORS as error:
            failed = self._failed(error, request)
            if suspect(error, failed):
                with contextlib.suppress(*ERRORS):
                    await link.reconnect()
            raise failed from error
        finally:
            free.release()
            if self._near is not None and written:
                self._near.drop(written)

    async def _look(self, link: AsyncLink) -> None:
        """Warn, once, of a server that would drop sessions."""
        try:
            async with asyncio.timeout(link.bound):
                self._warn(await link.primaries("INFO", "memory"))
        except ResponseError as error:
            self._not_told(error)
        self._looked = True


_no_limit = contextlib.nullcontext()
