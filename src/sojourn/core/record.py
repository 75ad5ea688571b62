"""What a store keeps of one session.

All times are UTC seconds since 1970 as floats; all durations are seconds.
"""

from __future__ import annotations

import msgspec

__all__ = [
    "ENDED",
    "ENDING",
    "LIVE",
    "MARK",
    "Client",
    "Ended",
    "Record",
    "ended_as",
]

LIVE = 0
"""A session in use."""
ENDING = 1
"""Ended for good, its data kept until the handlers of its end have run."""
ENDED = 2
"""A tombstone: sid, secret hash, reason and time; no data, no user."""
MARK = 3
"""Not a session: a record that flows keep for themselves (a user's mark, a lock).

Its sid is a hash of its name and its secret hash is empty, so no cookie ever opens it.
"""


class Client(msgspec.Struct, frozen=True, gc=False):
    """Who was seen with the session when it was made or last logged in."""

    address: str = ""
    agent: str = ""


class Record(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One session at rest. Fields are only ever added at the end: stores keep old ones.

    Attributes:
        sid: 22 characters of URL-safe base64, the public half of the token.
        secret_hash: SHA-256 of the secret's 43 characters, 32 bytes; empty in a `MARK`.
        version: 1 when created, one more at every later write of any kind.
        created: when the session was made.
        seen: when it was last used, to within a touch interval.
        deadline: when it ends unless it is used: the earlier of the two limits.
        idle_timeout: seconds without use after which it ends; None: no such limit.
        lifetime: seconds after creation or the last login; None: no such limit.
        data: the values (`core.codec`), perhaps sealed.
        user: who is logged in.
        authenticated: when that user last proved it.
        generation: one more at each gain of rights; writes of requests from before are dropped.
        previous_hash: the secret hash before the last renewal; empty: none.
        previous_generation: the generation that the previous secret belonged to.
        grace_until: until when the previous secret opens the session.
        salt: 16 random bytes from which form tokens are derived; new at each gain of rights.
        persistent: whether the cookie outlives the browser.
        address, agent: of the client that made it or last logged in.
        commits: the ids of the last commits, 8 bytes each, newest last.
        status: `LIVE`, `ENDING`, `ENDED` or `MARK`.
        reason: why it ended; empty while it lives. An expired one tells by its limits.
        attempts: how often a sweep has claimed it.
    """

    sid: str
    secret_hash: bytes
    version: int
    created: float
    seen: float
    deadline: float
    idle_timeout: float | None
    lifetime: float | None
    data: bytes
    user: str | None = None
    authenticated: float | None = None
    generation: int = 0
    previous_hash: bytes = b""
    previous_generation: int = 0
    grace_until: float = 0.0
    salt: bytes = b""
    persistent: bool = False
    address: str = ""
    agent: str = ""
    commits: bytes = b""
    status: int = LIVE
    reason: str = ""
    attempts: int = 0


class Ended(msgspec.Struct, frozen=True, gc=False):
    """How a store ends a session (the argument of `Store.delete`).

    Attributes:
        status: `ENDING` (handlers are owed: keep data and user) or `ENDED` (a tombstone).
        reason: why, one word: idle, lifetime, user, operator, replaced, password, theft, damaged.
        at: when; becomes `Record.seen` of a tombstone.
        due: when a sweep is to look at it again: after the lease (`ENDING`), when the tombstone
            may go (`ENDED`); becomes `Record.deadline` of a tombstone.
    """

    status: int
    reason: str
    at: float
    due: float


def ended_as(record: Record, ended: Ended) -> Record:
    """Return what a live or ending record becomes by `Store.delete`: ending, or a tombstone."""
    if ended.status == ENDING:
        return msgspec.structs.replace(
            record, version=record.version + 1, status=ENDING, reason=ended.reason
        )
    return msgspec.structs.replace(
        record,
        version=record.version + 1,
        status=ENDED,
        reason=record.reason or ended.reason,
        seen=ended.at,
        deadline=ended.due,
        data=b"",
        commits=b"",
        salt=b"",
        user=None,
    )
