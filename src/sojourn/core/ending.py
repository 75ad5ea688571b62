"""How sessions end: one, all of a user, and those whose time is over; users' marks; locks.

Like all flows these are generators of calls. What needs more than one record at once rests on
marks: records that are no sessions, changed by compare-and-swap like any other.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from sojourn.core import codec
from sojourn.core.calls import (
    SAVED,
    Bury,
    Create,
    Delete,
    Due,
    Flow,
    List,
    Load,
    Pause,
    Replace,
    Tell,
)
from sojourn.core.expiry import expired_reason
from sojourn.core.opening import Opened, unseal
from sojourn.core.record import ENDED, ENDING, LIVE, MARK, Ended, Record
from sojourn.core.rules import Environment
from sojourn.core.session import Session
from sojourn.core.token import name_to_sid
from sojourn.errors import DamagedRecord, TooManySessions

__all__ = [
    "SKEW",
    "Swept",
    "acquire",
    "end",
    "end_all_of",
    "extend",
    "find",
    "may_log_in",
    "records_of",
    "release",
    "reserve",
    "retry",
    "set_aside",
    "stands",
    "suspected",
    "sweep",
]

_MARK_TIME = 7 * 86400.0
_SET_ASIDE = 100 * 365 * 86400.0
"""When what is set aside would be due: not in this life, but a number that every store can keep."""
_RESERVED = 60.0
"""How long a login that is under way keeps its place among its user's sessions."""
_PAGE = 100
_BREATH = 0.0003
"""How long a sweep pauses after each session. SQLite has no queue of writers: one that waits looks
again every few milliseconds, and would find one that never pauses writing each time."""
SKEW = 60.0
"""How far apart the clocks of two workers may be: a sweep comes that much later, so that none whose
clock is ahead ends a session that lives by another's."""


class Swept(msgspec.Struct):
    """What a sweep did.

    Attributes:
        ended: sessions that are over and whose handlers, if any, have run.
        failed: sessions one of whose handlers failed; they come again later.
        set_aside: of these, those that failed too often and wait for an operator.
        busy: another sweeper is at work, and this one did nothing.
    """

    ended: int = 0
    failed: int = 0
    set_aside: int = 0
    busy: bool = False


# One session.


def end(sid: str, reason: str, env: Environment, user: str | None = None) -> Flow[bool]:
    """End one session for good, then run the handlers of its end; whether this call ended it.

    It is over before the first handler runs, whatever the handlers do. With `user` it ends only
    where it is that user's.
    """
    if user is not None:
        try:
            theirs: Record | None = yield Load(sid)
        except DamagedRecord:
            return False
        if theirs is None or theirs.user != user:
            return False
    now, rules = env.clock(), env.rules
    if not _awaited(env):
        return (yield Delete(sid, _tombstone(reason, now, env)))  # type: ignore[no-any-return]
    if not (yield Delete(sid, Ended(ENDING, reason, now, now + rules.lease))):
        return False
    try:
        record: Record | None = yield Load(sid)
    except DamagedRecord:
        return True
    if record is not None and record.status == ENDING:
        yield from _finish(record, env)
    return True


def _awaited(env: Environment) -> bool:
    handlers = env.rules.handlers
    return "ended" in handlers or "ended in transaction" in handlers


def _tombstone(reason: str, now: float, env: Environment, at: float | None = None) -> Ended | None:
    keep = env.rules.tombstone
    return Ended(ENDED, reason, now if at is None else at, now + keep) if keep else None


def _end_of(record: Record, now: float) -> float:
    """Return when a session that is over came to its end: that a sweep came later is no matter."""
    return now if record.reason else min(now, record.deadline)


def _finish(record: Record, env: Environment) -> Flow[bool]:
    """Run the handlers of a session that is ending, then bury it; whether all of them ran."""
    now, rules = env.clock(), env.rules
    reason = expired_reason(record)
    at = _end_of(record, now)
    try:
        session = _final(record, env)
    except DamagedRecord:
        # Whoever has to tidy up after a session has to for this one too: sid and user are known.
        session, reason = _emptied(record, env), "damaged"
    failed: list[str] = []
    if "ended" in rules.handlers:
        failed = yield Tell("ended", session, reason)
    if not failed and "ended in transaction" in rules.handlers:
        # The tombstone and what the handlers wrote become true in one step, or neither does.
        keep = max(rules.tombstone, 1.0)
        failed = yield Bury(Ended(ENDED, reason, at, now + keep), session, reason)
        if not failed:
            return True
    if not failed:
        yield Delete(record.sid, _tombstone(reason, now, env, at))
        return True
    due = now + _SET_ASIDE if record.attempts >= rules.max_attempts else _next_try(record, env)
    yield Delete(record.sid, Ended(ENDING, reason, now, due))
    return False


def _next_try(record: Record, env: Environment) -> float:
    """Return when: twice as late each time, a day at most, and not all at the same moment."""
    spread = 0.75 + int.from_bytes(env.entropy(2)) / 131072
    return env.clock() + min(86400.0, env.rules.lease * 2.0**record.attempts) * spread


def _try_again(record: Record, env: Environment) -> Flow[bool]:
    """Finish what a sweep claimed; put off first what it claimed before.

    Handlers that end the process they run in are so tried later and later, as those that fail.
    """
    if record.attempts > 1:
        yield Delete(record.sid, Ended(ENDING, "", env.clock(), _next_try(record, env)))
    return (yield from _finish(record, env))


def _final(record: Record, env: Environment) -> Session:
    """Return the session as it was at its end, for handlers to read.

    Raises:
        DamagedRecord: its values cannot be read.
    """
    at = env.clock()
    data = unseal(record, env)
    codec.split(data)
    opened = Opened(at, record, data)
    return Session(env, lambda: opened)


def _emptied(record: Record, env: Environment) -> Session:
    """Return a session whose values cannot be read any more: without them."""
    opened = Opened(env.clock(), msgspec.structs.replace(record, data=codec.EMPTY), codec.EMPTY)
    return Session(env, lambda: opened)


def suspected(sid: str, env: Environment) -> Flow[list[str]]:
    """Do what the rules say about a renewed cookie that was used again; the sids that it ended."""
    policy = env.rules.on_theft
    try:
        record: Record | None = yield Load(sid)
    except DamagedRecord:
        return []
    if record is None or record.status != LIVE:
        return []
    if "suspicious" in env.rules.handlers:
        try:
            session = _final(record, env)
        except DamagedRecord:
            session = _emptied(record, env)
        yield Tell("suspicious", session, "theft")
    if policy == "end-user" and record.user is not None:
        return (yield from end_all_of(record.user, None, "theft", env))
    if policy != "log" and (yield from end(sid, "theft", env)):
        return [sid]
    return []


# Those whose time is over.


def sweep(
    env: Environment, owner: str, page: int = _PAGE, stop: Callable[[], bool] | None = None
) -> Flow[Swept]:
    """End all sessions that are over, page by page; run their handlers; forget old tombstones.

    One sweeper is at work at a time, whoever comes first; one that dies is followed by another
    when its lease is over. Sessions are ended `SKEW` seconds after their deadline; until then
    they are over for requests, and nothing is lost.

    Args:
        env: rules, time, randomness.
        owner: a name for this sweeper that no other has.
        page: how many sessions are claimed at once.
        stop: asked before each page whether to leave the rest to the next sweep.
    """
    done = Swept()
    rules = env.rules
    if not (yield from acquire("sweep", owner, rules.lease, env)):
        done.busy = True
        return done
    held_until = env.clock() + rules.lease
    while stop is None or not stop():
        now = env.clock()
        if now > held_until - rules.lease / 2:
            if not (yield from acquire("sweep", owner, rules.lease, env)):
                return done
            held_until = now + rules.lease
        # Claimed until `now + lease`, as others see it who also look at what was due before.
        records: list[Record] = yield Due(now - SKEW, rules.lease + SKEW, page)
        if not records:
            break
        for record in records:
            if env.clock() > now + rules.lease / 2:
                # Others may claim the rest when the lease is over; do not run into that.
                break
            if not _awaited(env):
                end = _end_of(record, now)
                yield Delete(record.sid, _tombstone(expired_reason(record), now, env, end))
                done.ended += 1
            elif record.attempts > rules.max_attempts:
                # Whoever ran its handlers so often did not live to tell that they had failed.
                yield Delete(record.sid, Ended(ENDING, "", now, now + _SET_ASIDE))
                done.failed += 1
                done.set_aside += 1
            elif (yield from _try_again(record, env)):
                done.ended += 1
            else:
                done.failed += 1
                done.set_aside += record.attempts >= rules.max_attempts
            yield Pause(_BREATH)
    yield from release("sweep", owner, env)
    return done


def set_aside(env: Environment) -> Flow[list[Record]]:
    """Return the sessions whose handlers failed too often: they wait for an operator."""
    found: list[Record] = []
    after = ""
    while True:
        page: list[Record] = yield List(None, ENDING, after, _PAGE)
        found.extend(record for record in page if record.attempts >= env.rules.max_attempts)
        if len(page) < _PAGE:
            return found
        after = page[-1].sid


def retry(sid: str, env: Environment) -> Flow[bool]:
    """Try the handlers of a session's end again now; whether all of them ran."""
    record: Record | None = yield Load(sid)
    if record is None or record.status != ENDING:
        return False
    return (yield from _finish(record, env))


def find(sid: str, env: Environment) -> Flow[Session | None]:
    """Return a live session by its sid: for operators and jobs, who have no cookie of it."""
    now = env.clock()
    try:
        record: Record | None = yield Load(sid)
        if record is None or record.status != LIVE or now >= record.deadline:
            return None
        opened = Opened(now, record, unseal(record, env))
    except DamagedRecord:
        return None
    return Session(env, lambda: opened)


# Users.


def records_of(user: str, env: Environment) -> Flow[list[Record]]:
    """Return the live records of a user, the one seen last first."""
    now, after = env.clock(), ""
    found: list[Record] = []
    while True:
        page: list[Record] = yield List(user, LIVE, after, _PAGE)
        found.extend(record for record in page if now < record.deadline)
        if len(page) < _PAGE:
            break
        after = page[-1].sid
    return sorted(found, key=lambda record: -record.seen)


def end_all_of(user: str, keep: str | None, reason: str, env: Environment) -> Flow[list[str]]:
    """End all sessions of a user but one; returns the sids of those that this call ended.

    A login that is in flight does not survive it: this raises the user's mark first and looks for
    sessions then; a login writes its session first and looks at the mark then. So one of the two
    sees the other.
    """
    yield from _raise_epoch(user, keep, env)
    ended = []
    after = ""
    while True:
        page: list[Record] = yield List(user, LIVE, after, _PAGE)
        for record in page:
            if record.sid != keep and (yield from end(record.sid, reason, env)):
                ended.append(record.sid)
        if len(page) < _PAGE:
            return ended
        after = page[-1].sid


def may_log_in(user: str, sid: str, at: float) -> Flow[int | None]:
    """Return the epoch to log a user in under; None: all sessions of the user were ended since.

    A login counts from when `Session.login` was called, so one whose password was checked before
    all sessions were ended does not outlive that, however late it is committed.

    Args:
        user: who logs in.
        sid: of the session; the one that was to be kept when the others were ended may.
        at: when `Session.login` was called.
    """
    mark = yield from _mark(_mark_of(user))
    if mark is None:
        return 0
    if mark.generation and mark.created > at and mark.reason != sid:
        return None
    return mark.generation


def stands(user: str, sid: str, epoch: int, env: Environment) -> Flow[bool]:
    """Tell, after a login was written, whether nobody had ended it before that.

    Args:
        user: who logged in.
        sid: of the session.
        epoch: what `may_log_in` said before it was written.
        env: rules, time, randomness.
    """
    name = _mark_of(user)
    while True:
        mark = yield from _mark(name)
        if (0 if mark is None else mark.generation) != epoch:
            return False
        if env.rules.max_sessions is None:
            return True
        places = {} if mark is None else _places_in(mark)
        # From here on it counts as a session that lives, and no longer than it does.
        if places.pop(sid, -1.0) < 0:
            return False
        if (yield from _put_mark(name, mark, _encode(places), None, env)):
            return True


def reserve(user: str, sid: str, env: Environment) -> Flow[list[str]]:
    """Take a place among the sessions that a user may have; returns those that must make way.

    The user's mark holds the places of logins that are under way, each until `stands`, and which
    sessions were told to make way. One login changes it at a time, so parallel logins never take
    more places than there are, and never end more sessions than they need. A login that came to
    nothing gives its place back after a minute.

    Raises:
        TooManySessions: there is no place, and the rules refuse a new session.
    """
    limit = env.rules.max_sessions
    if limit is None:
        return []
    name = _mark_of(user)
    while True:
        now = env.clock()
        mark = yield from _mark(name)
        places = {} if mark is None else _places_in(mark)
        live = {record.sid: record.seen for record in (yield from records_of(user, env))}
        # Negative: since when it is to make way. It may still live, but takes no place.
        leaving = {
            one: at
            for one, at in places.items()
            if at < 0 and one != sid and (one in live or now + at < _RESERVED)
        }
        coming = {
            one: at for one, at in places.items() if at >= 0 and one != sid and now - at < _RESERVED
        }
        taken = coming | live
        kept = {one: at for one, at in taken.items() if one != sid and one not in leaving}
        oldest = sorted(kept, key=lambda one: kept[one])
        going = oldest[: max(0, len(kept) - limit + 1)]
        if going and env.rules.deny_new:
            raise TooManySessions(
                f"user {user!r} has {len(kept)} sessions; allowed are {limit} (max_sessions). End "
                "one of them first"
            )
        leaving |= dict.fromkeys(going, -now)
        places = {one: coming[one] for one in coming if one not in leaving} | leaving
        if (yield from _put_mark(name, mark, _encode(places | {sid: now}), None, env)):
            # Also those that another login was to end, which may have died before it did.
            return [one for one in leaving if one in going or one in live]


def _raise_epoch(user: str, keep: str | None, env: Environment) -> Flow[None]:
    name = _mark_of(user)
    while True:
        mark = yield from _mark(name)
        now = env.clock()
        # From the clock, so that a mark that was swept is never counted from 0 again.
        epoch = max(1, int(now * 1000), 0 if mark is None else mark.generation + 1)
        if (yield from _put_mark(name, mark, None, epoch, env, keep)):
            return


# Locks.


def acquire(name: str, owner: str, lease: float, env: Environment, wait: float = 0.0) -> Flow[bool]:
    """Take a lock that ends by itself after a lease; or keep it longer, if it is ours already.

    Args:
        name: of the lock.
        owner: a name that no other has.
        lease: seconds.
        env: rules, time, randomness.
        wait: how many seconds to try, at most.

    Returns:
        Whether it is ours now.
    """
    sid = name_to_sid("lock:" + name)
    begun, tries = env.clock(), 0
    while True:
        now = env.clock()
        mark = yield from _mark(sid)
        free = mark is None or mark.deadline <= now or mark.reason == owner
        if free and (yield from _put_lock(sid, mark, owner, now + lease, env)):
            return True
        if now - begun >= wait:
            if not free:
                return False
            # Somebody was faster; or it was this very call, whose first answer got lost.
            mark = yield from _mark(sid)
            return mark is not None and mark.reason == owner and mark.deadline > now
        tries += 1
        spread = 0.5 + int.from_bytes(env.entropy(2)) / 131072
        yield Pause(min(0.001 * 2 ** min(tries, 6), 0.05) * spread)


def extend(name: str, owner: str, lease: float, env: Environment) -> Flow[bool]:
    """Keep a lock for longer; False where anybody may have had it since we took it.

    Not `acquire`, which is content with a lock that another took and gave back meanwhile.
    """
    sid = name_to_sid("lock:" + name)
    mark = yield from _mark(sid)
    if mark is None or mark.reason != owner:
        return False
    return (yield from _put_lock(sid, mark, owner, env.clock() + lease, env))


def release(name: str, owner: str, env: Environment) -> Flow[bool]:
    """Give a lock back; False where it is not ours any more: its lease had run out."""
    sid = name_to_sid("lock:" + name)
    mark = yield from _mark(sid)
    if mark is None or mark.reason != owner:
        return False
    # Not deleted: only compare-and-swap can tell that nobody took it in between.
    return (yield from _put_lock(sid, mark, "", env.clock(), env))


# Marks.


def _mark_of(user: str) -> str:
    return name_to_sid("user:" + user)


def _mark(sid: str) -> Flow[Record | None]:
    """Load a mark; a damaged one makes way for a new one, which is greater than it was."""
    try:
        return (yield Load(sid))  # type: ignore[no-any-return]
    except DamagedRecord:
        yield Delete(sid)
        return None


def _put_mark(
    sid: str,
    mark: Record | None,
    data: bytes | None,
    epoch: int | None,
    env: Environment,
    keep: str | None = None,
) -> Flow[bool]:
    # `created` and `reason` of a mark: when all sessions were ended last, and which was to stay.
    now = env.clock()
    until = now + max(_MARK_TIME, 2 * (env.rules.lifetime or 0.0))
    if mark is None:
        new = _new_mark(sid, now, until)
        new = msgspec.structs.replace(
            new, data=data or b"", generation=epoch or 0, reason=keep or ""
        )
        return (yield Create(new))  # type: ignore[no-any-return]
    new = msgspec.structs.replace(
        mark,
        version=mark.version + 1,
        seen=now,
        deadline=max(mark.deadline, until),
        data=mark.data if data is None else data,
        generation=mark.generation if epoch is None else epoch,
        created=mark.created if epoch is None else now,
        reason=mark.reason if epoch is None else keep or "",
    )
    return (yield Replace(new, mark.version)) is SAVED


def _put_lock(
    sid: str, mark: Record | None, owner: str, until: float, env: Environment
) -> Flow[bool]:
    now = env.clock()
    if mark is None:
        new = msgspec.structs.replace(_new_mark(sid, now, until), reason=owner)
        return (yield Create(new))  # type: ignore[no-any-return]
    new = msgspec.structs.replace(
        mark, version=mark.version + 1, seen=now, deadline=until, reason=owner
    )
    return (yield Replace(new, mark.version)) is SAVED


def _new_mark(sid: str, now: float, until: float) -> Record:
    return Record(sid, b"", 1, now, now, until, None, until - now, b"", status=MARK)


def _places_in(mark: Record) -> dict[str, float]:
    return _places(mark.data) if mark.data else {}


_encode = msgspec.msgpack.Encoder().encode
_places = msgspec.msgpack.Decoder(dict[str, float]).decode
