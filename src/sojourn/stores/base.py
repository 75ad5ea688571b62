"""The contract of a store. A store author needs no other page.

A store keeps `Record`s by sid. It knows nothing of HTTP, cookies, secrets or merging: it is asked
for one atomic step at a time, and every rule above that is written once, in `core.flows`. Every
store passes `sojourn.testing.check_store`.

**Words.** A record is *live* while its status is `LIVE`, whatever its deadline says: expiry is
judged by the core, which knows the time; a store never compares `deadline` with a clock except in
`due`, where the time is an argument. *Ended* means `ENDING` or `ENDED`. A `MARK` is kept like a
live record by `load`, `create`, `replace`, `touch` and `delete`, but is no session: `list` and
`count` show it only when asked for that status or for all, and `due` removes it when its deadline
is over.

**Atomic.** Each method is one atomic step with regard to every other caller of the same store in
any thread, task, process or host that the store's `promises` name. When a method has returned,
every later call of anyone sees what it did.

**Idempotent.** Any call may be made twice with the same arguments, because a reply got lost: the
second does no further harm (a `replace` then answers with the current record, in which the caller
finds its own commit id; a `create` answers False).

**Time limits.** Every method returns or raises within a bounded time, whatever the server does.

**Errors.** `StoreUnavailable` when the store did not or could not answer (down, hung, full,
read-only, locked for too long); nothing is reported as done that was not. `DamagedRecord` from
`load`, `replace` and `touch` when what lies under the sid is not a record; from `list` and `due`
never: they pass over a damaged one (and `due` sets it aside, so that it is not met again). No
other exception for anything that came out of the store. A sid is always 22 characters of
`A-Z a-z 0-9 _ -`, or the caller is at fault.

**Due times.** Besides the record a store keeps, for each sid, when a sweep is to look at it. It
starts as the deadline at `create`, and `replace` sets it to the new deadline where that is earlier
than the due time kept. `touch` leaves it alone, so that a touch changes no index: `due` finds such
a record, sees a later deadline, and moves its due time there without returning it.

**Recalling.** A store may have one method more, `recall(sid, opens)`, with which a request begins:
as `load`, but it may return a record from this process's memory, at most `promises.stale` seconds
old, if `opens(record)` says that it opens the session. So memory never keeps a visitor out, and
what is written upon such a record is compared with the version that the store has.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec

from sojourn.core.calls import Outcome
from sojourn.core.record import Ended, Record

__all__ = ["AsyncStore", "Promises", "Store", "WouldBlock"]


class WouldBlock(Exception):
    """A call that may not wait would have to; nothing was done.

    A blocking store may have a method `attempt(verb, *arguments)` that makes a call only if that
    takes microseconds, and raises this otherwise. `ThreadedStore` tries it on the event loop,
    before it goes to a thread.
    """


class Promises(msgspec.Struct, frozen=True, kw_only=True):
    """What a store promises, as data; the docs' table and `sojourn doctor` read it.

    Attributes:
        survives: the worst that an acknowledged write survives: "nothing", "restart" (of the
            application), "kill" (kill -9 of any process), "power" (loss of power).
        shared: who may use it at once: "process", "host" (several processes), "hosts".
        revokes: an ended session stays ended, also for a copied cookie.
        merges: concurrent changes are merged (atomic compare-and-swap).
        lists: sessions can be listed and counted, by user too.
        inline: a read is a few microseconds and never waits, so that an event loop may make it
            without a thread.
        stale: for how many seconds, at most, the beginning of a request may be shown what another
            process has changed since; writes and locks are never based on it.
        note: one sentence more, for people.
    """

    survives: str
    shared: str
    revokes: bool = True
    merges: bool = True
    lists: bool = True
    inline: bool = False
    stale: float = 0.0
    note: str = ""


@runtime_checkable
class Store(Protocol):
    """A store whose methods block. For the words used here see the module."""

    promises: Promises

    # Called for every request.

    def load(self, sid: str) -> Record | None:
        """Return the record under `sid`, whatever its status and deadline; None if there is none.

        Writes nothing. Raises `DamagedRecord`, `StoreUnavailable`.
        """
        ...

    def create(self, record: Record) -> bool:
        """Keep a new record, exactly as given, of whatever status; due at its deadline.

        Returns False, and changes nothing, if the sid is taken by anything, damaged or ended too.
        Raises `StoreUnavailable`.
        """
        ...

    def replace(self, record: Record, expected_version: int) -> Record | Outcome:
        """Put `record` in the place of the one with that version: compare-and-swap.

        `record.version` is already the new version. Answers `SAVED`; or `GONE` where there is
        none or it has ended (this never creates, and never revives); or, where the version is
        another, the current record, with nothing written.
        Raises `DamagedRecord`, `StoreUnavailable`.
        """
        ...

    def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> bool:
        """Extend a live record: set `seen` and `deadline`, add one to `version`, nothing else.

        Returns False, and changes nothing, where there is none, it has ended, or its version is
        another (whoever wrote that has also extended it). Raises `StoreUnavailable`;
        `DamagedRecord` only where the engine reads the record to do it.
        """
        ...

    def delete(self, sid: str, ended: Ended | None = None) -> bool:
        """End a session for good, as durably as the engine can; unconditional.

        * `ended.status == ENDING`: a live record becomes `ENDING`, with reason, one more version,
          data and user kept, due at `ended.due`. One that is `ENDING` already keeps its reason,
          its version and all else, and only gets the new due time (that is how a sweep puts off a
          failed handler); that answers False, so that of several callers one ended it.
        * `ended.status == ENDED`: a live, ending or damaged record becomes a tombstone: status
          `ENDED`, the reason (kept where it was `ENDING` with a reason), `seen` = `ended.at`,
          `deadline` and due time = `ended.due`, one more version; `data`, `commits` and `salt`
          become empty, `user` None. Sid, secret hashes and `created` stay. Where a store cannot
          read a damaged record it removes it.
        * `ended is None`: what lies under the sid, of any status, is removed altogether.

        Returns False where there was nothing, or where the record has already come as far.
        Raises `StoreUnavailable`.
        """
        ...

    # Called by sweeps and by people.

    def due(self, now: float, lease: float, limit: int = 100) -> list[Record]:
        """Claim up to `limit` sessions that are over, for `lease` seconds.

        Looks at what is due at `now`, earliest first, at most a few times `limit`, and never
        holds a lock for longer than about 50 ms:

        * `LIVE` with `deadline <= now`: becomes `ENDING` (reason stays empty), returned;
        * `ENDING`: its lease ran out or its time has come: returned;
        * `LIVE` with a later deadline (it was touched): its due time moves there;
        * `ENDED` or `MARK` with `deadline <= now`: removed; a `MARK` with a later one moves.

        What is returned has one more version, one more attempt, and is due again at
        `now + lease`; no other caller gets it before then. The data in it is final: `replace`
        and `touch` answer that it is gone. An empty list means that nothing was over at `now`
        (also when a full page was only moved or removed, it goes on to the next).
        """
        ...

    def list(
        self, user: str | None = None, status: int | None = 0, after: str = "", limit: int = 100
    ) -> list[Record]:
        """Return a page of records with a sid greater than `after`, in the order of their sids.

        Of one user, or of all where it is None; of one status (default `LIVE`), or of every one
        where it is None. Also those past their deadline that no sweep has met. A page shorter
        than `limit` is the last. Order: by code point of the sid.
        """
        ...

    def count(self, user: str | None = None, status: int | None = 0) -> int:
        """Return how many records `list` would show in all its pages."""
        ...

    def close(self) -> None:
        """Let go of files and connections. Idempotent; a later call opens them again or raises."""
        ...


@runtime_checkable
class AsyncStore(Protocol):
    """The same for event loops: each method as in `Store`, awaited."""

    promises: Promises

    async def load(self, sid: str) -> Record | None:
        """As `Store.load`."""
        ...

    async def create(self, record: Record) -> bool:
        """As `Store.create`."""
        ...

    async def replace(self, record: Record, expected_version: int) -> Record | Outcome:
        """As `Store.replace`."""
        ...

    async def touch(self, sid: str, expected_version: int, seen: float, deadline: float) -> bool:
        """As `Store.touch`."""
        ...

    async def delete(self, sid: str, ended: Ended | None = None) -> bool:
        """As `Store.delete`."""
        ...

    async def due(self, now: float, lease: float, limit: int = 100) -> list[Record]:
        """As `Store.due`."""
        ...

    async def list(
        self, user: str | None = None, status: int | None = 0, after: str = "", limit: int = 100
    ) -> list[Record]:
        """As `Store.list`."""
        ...

    async def count(self, user: str | None = None, status: int | None = 0) -> int:
        """As `Store.count`."""
        ...

    async def close(self) -> None:
        """As `Store.close`."""
        ...
