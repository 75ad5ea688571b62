"""Moves the sessions of a running application from one store to another, with nobody logged out.

    SessionManager("moving:?old=sqlite%3A%2F%2F%2Fsessions.db&new=postgresql%3A%2F%2Fdb%2Fapp")

All workers use the same two stores in this order; `sojourn move advance` leads them through the
phases (`sojourn.stores.phases`). What holds in every phase:

* One store decides, the leader: a call is what the leader answers. Compare-and-swap takes place
  there alone.
* Where there is a follower, it has every change before the call returns. Nothing is reported that
  is not in both; so either may become the leader, and nobody notices.
* An end goes to the follower first, then to the leader. Whoever is broken off in between has ended
  it on one side only, and whoever comes upon that next finishes it. No way leads back from an end,
  on neither side: what was ended cannot rise from the other.
* A write that was broken off after the leader had it was never reported. The next write to that
  session, or the verification before the switch, brings it to the follower.

While a follower is written, both stores must answer, or a write fails with `StoreUnavailable`.
"""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qsl

import msgspec

from sojourn.core.calls import (
    SAVED,
    Count,
    Create,
    Delete,
    Due,
    Flow,
    List,
    Load,
    Outcome,
    Pause,
    Replace,
    Touch,
)
from sojourn.core.record import ENDED, LIVE, MARK, Ended, Record
from sojourn.errors import ConfigurationError, DamagedRecord, StoreUnavailable
from sojourn.stores import open_async_store, open_store
from sojourn.stores.base import AsyncStore, Promises, Store
from sojourn.stores.pair import MOVING, NEW, At, arun, put_off, run
from sojourn.stores.phases import LEADER, LEASE, PATIENCE, REFRESH, SWITCHING, current, settle, sync

__all__ = ["AsyncMovingStore", "MovingStore", "afrom_url", "from_url"]

T = TypeVar("T")

_POLL = 0.05
_WAIT = 10.0
"""How long a call waits for the end of a switch at most."""
_TRIES = 5

# Counts on while the machine sleeps, where there is such a clock: a worker must not take knowledge
# from before that for fresh.
_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", None)


def _uptime() -> float:
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)


class _View(msgspec.Struct, frozen=True):
    """What a worker knows of the phase: the mark's version, who leads, and since when it knows."""

    version: int
    leader: int
    follower: int | None
    at: float

    @property
    def final(self) -> bool:
        """Whether the move is over; it never changes again."""
        return (self.leader, self.follower) == (NEW, None)


class _Verbs:
    """The verbs of the contract on a pair of stores, as flows."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._view: _View | None = None
        self._switch = (0, 0.0)

    # The phase.

    def _known(self) -> Flow[_View]:
        view = self._view
        if view is not None and (view.final or self._clock() - view.at < REFRESH):
            return view
        return (yield from self._read())

    def _read(self) -> Flow[_View]:
        """Read the mark; while the stores switch, wait."""
        begun = self._clock()
        while True:
            at = self._clock()
            version, mark = yield from current(first=self._view is None)
            if mark.phase != SWITCHING:
                view = _View(version, *LEADER[mark.phase], at)
                self._view = view
                return view
            now = self._clock()
            if self._switch[0] != version:
                self._switch = (version, now)
            if now - self._switch[1] >= PATIENCE:
                yield from settle(version, mark)
                continue
            if now - begun >= _WAIT:
                raise StoreUnavailable(
                    f"the move did not come out of the phase {SWITCHING!r} in {_WAIT:g} s; look "
                    "at it with sojourn move status"
                )
            yield Pause(_POLL)

    def _do(self, verb: Callable[[_View], Flow[T]]) -> Flow[T]:
        """Do something under a phase that is still in force when it is done; else do it again.

        The contract allows every verb to be done twice.
        """
        view = yield from self._known()
        for _ in range(_TRIES):
            answer = yield from verb(view)
            if view.final or self._clock() - view.at < LEASE:
                return answer
            before, view = view, (yield from self._read())
            if view.version == before.version:
                return answer
        raise StoreUnavailable(
            f"the phase of the move changed {_TRIES} times during one call", transient=True
        )

    # The verbs.

    def load(self, sid: str) -> Flow[Record | None]:
        def verb(view: _View) -> Flow[Record | None]:
            return (yield At(view.leader, Load(sid)))  # type: ignore[no-any-return]

        return self._do(verb)

    def create(self, record: Record) -> Flow[bool]:
        def verb(view: _View) -> Flow[bool]:
            made: bool = yield At(view.leader, Create(record))
            if view.follower is None:
                return made
            if made and (yield At(view.follower, Create(record))):
                # Who removed it meanwhile found nothing to remove in the follower.
                if (yield At(view.leader, Load(record.sid))) == record:
                    return made
            elif made:
                yield from self._forget_namesake(record, view.follower)
            yield from sync(record.sid, view.leader, view.follower)
            return made

        return self._do(verb)

    def _forget_namesake(self, record: Record, follower: int) -> Flow[None]:
        """Remove a tombstone whose time is over: the leader let go of it, and took the sid again.

        That of this very session, if it has ended meanwhile, is another one, and stays.
        """
        try:
            there: Record | None = yield At(follower, Load(record.sid))
        except DamagedRecord:
            return
        if there is None or there.status != ENDED:
            return
        if (there.secret_hash, there.created) != (record.secret_hash, record.created):
            yield At(follower, Delete(record.sid))

    def replace(self, record: Record, expected_version: int) -> Flow[Record | Outcome]:
        call = Replace(record, expected_version)

        def verb(view: _View) -> Flow[Record | Outcome]:
            answer: Record | Outcome = yield At(view.leader, call)
            # Whatever the answer is: in a newer record the caller may find its own commit, and take
            # it for saved.
            if view.follower is not None and not (
                answer is SAVED and (yield At(view.follower, call)) is SAVED
            ):
                yield from sync(record.sid, view.leader, view.follower)
            return answer

        return self._do(verb)

    def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> Flow[bool]:
        call = Touch(sid, expected_version, seen, deadline)

        def verb(view: _View) -> Flow[bool]:
            done: bool = yield At(view.leader, call)
            if view.follower is not None and not (done and (yield At(view.follower, call))):
                yield from sync(sid, view.leader, view.follower)
            return done

        return self._do(verb)

    def delete(self, sid: str, ended: Ended | None) -> Flow[bool]:
        call = Delete(sid, ended)
        done = False

        def verb(view: _View) -> Flow[bool]:
            # Done again under another phase, it answers False although it was this call.
            nonlocal done
            there = view.follower is not None and (yield At(view.follower, call))
            here: bool = yield At(view.leader, call)
            # A tombstone that both made lasts. Where it was removed, a write that was under way may
            # have put it back; where it is ending, its data may be of two versions.
            fenced = ended is not None and ended.status == ENDED and here and there
            if view.follower is not None and not fenced:
                yield from sync(sid, view.leader, view.follower)
            done = done or here
            return done

        return self._do(verb)

    def due(self, now: float, lease: float, limit: int) -> Flow[builtins.list[Record]]:
        def verb(view: _View) -> Flow[builtins.list[Record]]:
            # Of the follower, a sweep removes what is long over when it has become the leader.
            claimed: builtins.list[Record] = yield At(view.leader, Due(now, lease, limit))
            if view.follower is not None:
                for record in claimed:
                    copy = Replace(record, record.version - 1)
                    if (yield At(view.follower, copy)) is not SAVED:
                        yield from sync(record.sid, view.leader, view.follower)
                    yield At(view.follower, put_off(record, now + lease))
            return claimed

        return self._do(verb)

    def list(
        self, user: str | None, status: int | None, after: str, limit: int
    ) -> Flow[builtins.list[Record]]:
        def verb(view: _View) -> Flow[builtins.list[Record]]:
            # One more, in case that the move's own mark is among them.
            more = limit + (status in (None, MARK))
            page: builtins.list[Record] = yield At(view.leader, List(user, status, after, more))
            return [record for record in page if record.sid != MOVING][:limit]

        return self._do(verb)

    def count(self, user: str | None, status: int | None) -> Flow[int]:
        def verb(view: _View) -> Flow[int]:
            number: int = yield At(view.leader, Count(user, status))
            if user is None and status in (None, MARK):
                number -= (yield At(view.leader, Load(MOVING))) is not None
            return number

        return self._do(verb)


class MovingStore:
    """A blocking store that moves from one store to another.

    Attributes:
        old, new: the two stores.
    """

    def __init__(self, old: Store, new: Store, clock: Callable[[], float] = _uptime) -> None:
        """Take both; nothing is asked of them before the first call.

        Args:
            old: holds the sessions when the move begins.
            new: empty when the move begins.
            clock: seconds that pass, from any beginning.

        Raises:
            ConfigurationError: one of the stores cannot be moved from or to.
        """
        self.old, self.new = old, new
        self.promises = _promises(old, new)
        self._stores = (old, new)
        self._verbs = _Verbs(clock)

    def load(self, sid: str) -> Record | None:
        """As `Store.load`."""
        return run(self._verbs.load(sid), self._stores)

    def create(self, record: Record) -> bool:
        """As `Store.create`."""
        return run(self._verbs.create(record), self._stores)

    def replace(self, record: Record, expected_version: int) -> Record | Outcome:
        """As `Store.replace`."""
        return run(self._verbs.replace(record, expected_version), self._stores)

    def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> bool:
        """As `Store.touch`."""
        return run(self._verbs.touch(sid, expected_version, seen, deadline), self._stores)

    def delete(self, sid: str, ended: Ended | None = None) -> bool:
        """As `Store.delete`."""
        return run(self._verbs.delete(sid, ended), self._stores)

    def due(self, now: float, lease: float, limit: int = 100) -> list[Record]:
        """As `Store.due`."""
        return run(self._verbs.due(now, lease, limit), self._stores)

    def list(
        self, user: str | None = None, status: int | None = LIVE, after: str = "", limit: int = 100
    ) -> builtins.list[Record]:
        """As `Store.list`."""
        return run(self._verbs.list(user, status, after, limit), self._stores)

    def count(self, user: str | None = None, status: int | None = LIVE) -> int:
        """As `Store.count`."""
        return run(self._verbs.count(user, status), self._stores)

    def close(self) -> None:
        """Close both stores."""
        try:
            self.old.close()
        finally:
            self.new.close()


class AsyncMovingStore:
    """The same for event loops, on two asynchronous stores."""

    def __init__(
        self, old: AsyncStore, new: AsyncStore, clock: Callable[[], float] = _uptime
    ) -> None:
        """Take both; as `MovingStore`."""
        self.old, self.new = old, new
        self.promises = _promises(old, new)
        self._stores = (old, new)
        self._verbs = _Verbs(clock)

    async def load(self, sid: str) -> Record | None:
        """As `Store.load`."""
        return await arun(self._verbs.load(sid), self._stores)

    async def create(self, record: Record) -> bool:
        """As `Store.create`."""
        return await arun(self._verbs.create(record), self._stores)

    async def replace(self, record: Record, expected_version: int) -> Record | Outcome:
        """As `Store.replace`."""
        return await arun(self._verbs.replace(record, expected_version), self._stores)

    async def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> bool:
        """As `Store.touch`."""
        return await arun(self._verbs.touch(sid, expected_version, seen, deadline), self._stores)

    async def delete(self, sid: str, ended: Ended | None = None) -> bool:
        """As `Store.delete`."""
        return await arun(self._verbs.delete(sid, ended), self._stores)

    async def due(self, now: float, lease: float, limit: int = 100) -> list[Record]:
        """As `Store.due`."""
        return await arun(self._verbs.due(now, lease, limit), self._stores)

    async def list(
        self, user: str | None = None, status: int | None = LIVE, after: str = "", limit: int = 100
    ) -> builtins.list[Record]:
        """As `Store.list`."""
        return await arun(self._verbs.list(user, status, after, limit), self._stores)

    async def count(self, user: str | None = None, status: int | None = LIVE) -> int:
        """As `Store.count`."""
        return await arun(self._verbs.count(user, status), self._stores)

    async def close(self) -> None:
        """Close both stores."""
        try:
            await self.old.close()
        finally:
            await self.new.close()


_SURVIVES = ("nothing", "restart", "kill", "power")
_SHARED = ("process", "host", "hosts")


def _promises(old: Any, new: Any) -> Promises:
    """Return what both promise.

    Raises:
        ConfigurationError: one of them cannot be moved from or to.
    """
    both: tuple[Promises, Promises] = (old.promises, new.promises)
    for store, promises in zip((old, new), both, strict=True):
        if not (promises.lists and promises.merges and promises.revokes):
            raise ConfigurationError(
                f"{type(store).__name__} can be moved neither from nor to: it cannot list its "
                "sessions, or holds them in the browser"
            )
    return Promises(
        survives=min((one.survives for one in both), key=_SURVIVES.index),
        shared=min((one.shared for one in both), key=_SHARED.index),
        note="While sessions move from one store to another: what both promise.",
    )


def from_url(url: str) -> MovingStore:
    """Return the store for `moving:?old=<URL>&new=<URL>`, each of the two percent-encoded."""
    old, new = _urls(url)
    return MovingStore(open_store(old), open_store(new))


def afrom_url(url: str) -> AsyncMovingStore:
    """Return the asynchronous store for such a URL."""
    old, new = _urls(url)
    return AsyncMovingStore(open_async_store(old), open_async_store(new))


def _urls(url: str) -> tuple[str, str]:
    rest = url.partition(":")[2]
    where, _, query = rest.partition("?")
    if where.strip("/"):
        _refuse("has a host or a path")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict")
    except ValueError:
        _refuse("cannot be taken apart")
    given = dict(pairs)
    if len(pairs) != 2 or given.keys() != {"old", "new"} or not all(given.values()):
        _refuse(f"has {', '.join(name for name, _ in pairs) or 'nothing'}")
    if given["old"] == given["new"]:
        _refuse("names the same store twice")
    return given["old"], given["new"]


def _refuse(what: str) -> NoReturn:
    # The URL itself is in no message: it may hold a password.
    raise ConfigurationError(
        f"the URL of a move {what}; it is 'moving:?old=...&new=...' and nothing more, with the two "
        "URLs percent-encoded (urllib.parse.quote(url, safe=''))"
    )
