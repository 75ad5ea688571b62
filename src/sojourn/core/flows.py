"""What is done with a store, step by step: generators that yield calls and receive the answers.

The drivers run them blocking, on an event loop, or under Twisted; so the rules stand here once.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sojourn.core import codec, ending
from sojourn.core.calls import (
    GONE,
    SAVED,
    Create,
    Flow,
    Load,
    Outcome,
    Pause,
    Replace,
    Tell,
    Touch,
)
from sojourn.core.expiry import (
    MAX_COOKIE_AGE,
    deadline_of,
    start_of,
    touch_interval_of,
)
from sojourn.core.opening import unseal
from sojourn.core.operations import NO_CHANGES, Changes, Segments, apply, overwritten, patch
from sojourn.core.record import LIVE, Record
from sojourn.core.rules import Environment
from sojourn.core.session import Session
from sojourn.core.status import Status
from sojourn.core.token import Token, drawn, hash_secret, new_secret, same_hash
from sojourn.errors import Conflict, DamagedRecord, InvalidValue, SessionEnded, TooManySessions

__all__ = [
    "Committed",
    "commit",
    "max_age_of",
    "refresh",
]

# Looked up once: an enumeration's members are slow to reach.
_NEW, _STARTED, _UNCHANGED = Status.NEW, Status.STARTED, Status.UNCHANGED
_TOUCHED, _RENEWED = Status.TOUCHED, Status.RENEWED

_TRIES = 200
"""Compare-and-swap that fails this often means that something is wrong, not busy."""
_COMMITS = 16
"""How many commits of others may come upon one whose answer got lost, for it to find itself."""


class Committed(msgspec.Struct):
    """What a commit did, for the answer to the browser and for the counters.

    Attributes:
        token: to be sent to the browser; None: the cookie stays as it is.
        sealed: what is sent in place of the token where the cookie holds the record itself.
        max_age: of that cookie, in seconds; None: until the browser is closed.
        cleared: a session was ended: the browser is to forget its cookie.
        wrote: whether anything was written.
        retries: how often another request was first.
        overwritten: keys that another request changed meanwhile and this one set anew.
        dropped: why what this request wrote was not kept: "" (it was), "gone" (the session ended
            meanwhile), "login" (a login came between), "shadow" (the cookie was from before one),
            "damaged" (the stored data cannot be read), "late" (a new session, and its cookie
            could not be sent any more), "late renewal" (a renewal or a login, likewise: it did
            not happen; of a renewal the other changes are kept).
        events: what happened, for handlers and the log: (event, sid, detail).
    """

    token: Token | None = None
    sealed: str | None = None
    max_age: int | None = None
    cleared: bool = False
    wrote: bool = False
    retries: int = 0
    overwritten: tuple[str, ...] = ()
    dropped: str = ""
    events: list[tuple[str, str, str]] = []

    @property
    def tells(self) -> bool:
        """Whether the browser has to know of it."""
        return self.token is not None or self.sealed is not None or self.cleared


def refresh(session: Session, env: Environment) -> Flow[None]:
    """Read a session anew that was just committed.

    Raises:
        SessionEnded: it has ended.
    """
    record: Record | None = yield Load(session.sid)
    if record is None or record.status != LIVE or env.clock() >= record.deadline:
        raise SessionEnded(f"session {session.sid} ended while its lock was waited for")
    before = session._record
    if before is None or record.generation != before.generation:
        # What this request was begun with must not see what a login has brought since.
        raise SessionEnded(f"a login came while the lock of session {session.sid} was waited for")
    if record.secret_hash != before.secret_hash:
        # Another request renewed it, and its answer brings the cookie: read and merge only.
        session._opened = msgspec.structs.replace(session._opened, previous=True)
    session._reread(record, unseal(record, env))


def _seal(data: bytes, sid: str, env: Environment) -> bytes:
    sealer = env.rules.sealer
    return data if sealer is None else sealer.seal(data, sid.encode(), env.entropy)


# Committing.


def commit(
    session: Session, env: Environment, late: bool = False, changes: Changes | None = None
) -> Flow[Committed]:
    """Write what a request did to its session: all of it, or nothing.

    The session may be used on afterwards and committed again.

    Args:
        session: what the request used.
        env: rules, time, randomness.
        late: no cookie can be sent any more, so no new session is made that nobody could open.
        changes: what `session._collect()` has just answered, from a caller that had to know.

    Raises:
        InvalidValue: a value that cannot be stored, or too many; before anything is written.
        Conflict: the same key was set by two requests and the rules forbid that, or typed state
            of a newer version stands in the way, or two logins of different users met.
        StoreUnavailable: the store did not answer.
    """
    done = Committed(events=[])
    if session._settled():
        return done
    work = session._working()
    done.events.extend(work.notes)
    for event, sid, _ in work.notes:
        if event == "suspicious":
            ended = yield from ending.suspected(sid, env)
            done.events.extend(("ended", one, "theft") for one in ended)
    work.notes.clear()
    if changes is None:
        changes = session._collect()
    status = session._status
    if session._opened.shadow:
        # An ended session cannot be a shadow's own: there is nothing to end here either.
        if status is not _NEW:
            done.dropped = "shadow"
        return done
    # A new session's values are checked before anything is written, the end of an old one too.
    prepared = _prepare(session, changes, env) if status is _STARTED else None
    while work.ends:
        sid, reason = work.ends[0]
        done.wrote |= yield from ending.end(sid, reason, env)
        done.cleared = True
        done.events.append(("ended", sid, reason))
        work.ends.pop(0)
    if prepared is not None:
        if late:
            done.dropped = "late"
        else:
            yield from _create(session, changes, prepared, done, env)
        return done
    try:
        if status is _UNCHANGED or status is _TOUCHED:
            if session._active:
                yield from _touch(session, done, env)
        elif status is not _NEW and status is not _STARTED:
            if late and status is _RENEWED:
                # The browser could not be told the new secret, and would be logged out by it.
                done.dropped = "late renewal"
                if session._working().login:
                    session._restart()
                    return done
            yield from _replace(session, changes, done, env, renewing=not late)
    except DamagedRecord as error:
        done.dropped = "damaged"
        done.events.append(("damaged", session.sid, str(error)))
    return done


def _prepare(session: Session, changes: Changes, env: Environment) -> Segments | None:
    """Return the values of a new session; None: it comes to nothing, so none is made."""
    segments = apply({}, changes, env.rules.max_depth)
    work = session._working()
    if not segments and not work.head and not work.salt:
        return None
    _check_size(segments, sum(map(len, segments.values())), env)
    return segments


def _create(
    session: Session, changes: Changes, segments: Segments, done: Committed, env: Environment
) -> Flow[None]:
    now = env.clock()
    work = session._working()
    head = work.head
    secret = new_secret(env.entropy)
    commit_id = drawn(env.entropy, 8)
    data = codec.join(segments)
    sid = session.sid
    idle_timeout, lifetime = session._value("idle_timeout"), session._value("lifetime")
    start = head.get("authenticated", now)
    client = session.client
    record = Record(
        sid=sid,
        secret_hash=hash_secret(secret),
        version=1,
        created=now,
        seen=now,
        deadline=deadline_of(now, start, idle_timeout, lifetime),
        idle_timeout=idle_timeout,
        lifetime=lifetime,
        data=_seal(data, sid, env),
        user=head.get("user"),
        authenticated=head.get("authenticated"),
        generation=1 if work.login else 0,
        salt=work.salt or drawn(env.entropy, 16),
        persistent=session._value("persistent"),
        address=_shown(client.address, 100),
        agent=_shown(client.agent, 400),
        commits=commit_id,
    )
    epoch = (yield from _begin_login(session, done, env)) if work.login else 0
    if epoch is None:
        return
    if not (yield Create(record)):
        # The sid is random: what lies there is our own first try, whose answer got lost.
        there: Record | None = yield Load(sid)
        if there is None or there.secret_hash != record.secret_hash:
            raise Conflict(f"the sid {sid} is taken; is the random source of this machine broken?")
        if there.status != LIVE:
            done.dropped = "gone"
            done.events.append(("dropped", sid, "the session ended meanwhile"))
            return
    done.wrote = True
    done.token = Token(sid, secret)
    done.max_age = _max_age(record, now)
    done.events.append(("created", sid, ""))
    session._saved(record, data, changes)
    session._opened = msgspec.structs.replace(session._opened, token=done.token)
    if work.login and not (yield from _confirm_login(session, record, epoch, done, env)):
        return
    if "created" in env.rules.handlers:
        yield Tell("created", session, "")


def _touch(session: Session, done: Committed, env: Environment) -> Flow[None]:
    record = session._record
    assert record is not None
    now = env.clock()
    if session._opened.previous:
        return
    if _is_over(session, record, now):
        # Sat out in this very request: whoever asked meanwhile was told that it had ended.
        _gone(session, record, done)
        return
    if session._status is not _TOUCHED and now - record.seen < touch_interval_of(record, env.rules):
        return
    seen = max(record.seen, now)
    deadline = deadline_of(seen, start_of(record), record.idle_timeout, record.lifetime)
    if (yield Touch(record.sid, record.version, seen, deadline)):
        done.wrote = True
        record = msgspec.structs.replace(
            record, version=record.version + 1, seen=seen, deadline=deadline
        )
    session._saved(record, session._data, NO_CHANGES)


def _gone(session: Session, record: Record, done: Committed) -> None:
    """Note that the session ended while the request was under way; nothing brings it back.

    Whoever goes on with it, in a stream or on a websocket, has a new and empty one.
    """
    done.dropped = "gone"
    done.events.append(("dropped", record.sid, "the session ended meanwhile"))
    session._restart()


def _is_over(session: Session, record: Record, now: float) -> bool:
    """Tell whether a session's time ran out during the request itself.

    The request was a use, at its beginning; that is what its end is counted from.
    """
    if now < record.deadline:
        return False
    seen = max(record.seen, session._opened.now) if session._active else record.seen
    return now >= deadline_of(seen, start_of(record), record.idle_timeout, record.lifetime)


def _replace(
    session: Session, changes: Changes, done: Committed, env: Environment, renewing: bool
) -> Flow[None]:
    """Write to the record that was loaded, or merge into the one that took its place."""
    loaded = session._record
    assert loaded is not None
    token = session._opened.token
    renewing = renewing and session._status is _RENEWED
    work = session._working()
    login = work.login
    epoch = (yield from _begin_login(session, done, env)) if login else 0
    if epoch is None:
        return
    commit_id = drawn(env.entropy, 8)
    secret = new_secret(env.entropy) if renewing else ""
    current, data = loaded, session._data
    while True:
        new_data = patch(data, changes)
        if new_data is None:
            segments = apply(codec.split(data), changes, env.rules.max_depth)
            new_data = codec.join(segments)
            _check_size(segments, len(new_data), env)
        if _is_over(session, current, env.clock()):
            _gone(session, loaded, done)
            return
        record = _next(session, current, new_data, secret, commit_id, env)
        answer: Record | Outcome = yield Replace(record, current.version)
        if answer is SAVED:
            break
        if answer is GONE or not isinstance(answer, Record):
            _gone(session, loaded, done)
            return
        if commit_id in _ids(answer):
            # Our own write, whose answer got lost. What has come upon it since is not ours to
            # see: it may be a login.
            if answer.secret_hash != record.secret_hash:
                secret = ""  # Renewed since, by a request whose answer brings the cookie.
            break
        if answer.generation != loaded.generation:
            if login and answer.user != work.head["user"]:
                raise Conflict("another request logged in another user at the same time")
            done.dropped = "login"
            done.events.append(("dropped", loaded.sid, "a login came between"))
            return
        current, data = answer, unseal(answer, env)
        lost = overwritten(codec.split(session._data), codec.split(data), changes)
        if lost and not env.rules.keep_conflicts:
            raise Conflict(f"another request changed {', '.join(map(repr, lost))} meanwhile")
        done.overwritten = tuple(lost)
        if secret and answer.secret_hash != loaded.secret_hash and not login:
            secret = ""  # Renewed by another request, whose answer brings the cookie.
            session._opened = msgspec.structs.replace(session._opened, previous=True)
        done.retries += 1
        if done.retries >= _TRIES:
            raise Conflict(f"other requests changed the session {done.retries} times meanwhile")
        if done.retries > 2 and done.retries % 2:
            # Full jitter, so that many writers of one session do not stay in step. Not before each
            # try: after a wait others have written, and the first one only reads what.
            spread = int.from_bytes(env.entropy(2)) / 65536
            yield Pause(spread * min(0.001 * 2 ** min(done.retries, 6), 0.05))
    done.wrote = True
    if secret and token is not None:
        done.token = token = Token(record.sid, secret)
        done.max_age = _max_age(record, record.seen)
        done.events.append(("renewed", record.sid, "login" if login else ""))
    elif (
        token is not None
        and (record.persistent or loaded.persistent)
        and _max_age(record, 0) != _max_age(loaded, 0)
        # Never a secret that was renewed: it would take the place of the new one.
        and same_hash(hash_secret(token.secret), record.secret_hash)
    ):
        done.token = token
        done.max_age = _max_age(record, record.seen)
    session._saved(record, new_data, changes, merged=bool(done.retries))
    if record.secret_hash != loaded.secret_hash:
        # Where it is not ours, it was merged into what another request has renewed, and that
        # one's cookie counts.
        ours = token is None or same_hash(hash_secret(token.secret), record.secret_hash)
        opened = session._opened
        session._opened = msgspec.structs.replace(
            opened, token=token, previous=opened.previous or not ours
        )
    if login and not (yield from _confirm_login(session, record, epoch, done, env)):
        return
    if secret and "renewed" in env.rules.handlers:
        yield Tell("renewed", session, "login" if login else "")


def _next(
    session: Session, current: Record, data: bytes, secret: str, commit_id: bytes, env: Environment
) -> Record:
    """Return the record that is to follow `current`."""
    now, rules = env.clock(), env.rules
    # The request's own settings over the current record, not over the one at load: another
    # request may have set a limit meanwhile that this one did not touch.
    work = session._working()
    seen = max(current.seen, now) if session._active else current.seen
    changed: dict[str, Any] = {
        "version": current.version + 1,
        "seen": seen,
        "data": data if rules.sealer is None else _seal(data, current.sid, env),
        "commits": (current.commits + commit_id)[-8 * _COMMITS :],
    }
    if work.head:
        changed.update(work.head)
    idle_timeout = changed.get("idle_timeout", current.idle_timeout)
    lifetime = changed.get("lifetime", current.lifetime)
    start = changed.get("authenticated", start_of(current))
    changed["deadline"] = deadline_of(seen, start, idle_timeout, lifetime)
    if secret:
        changed["secret_hash"] = hash_secret(secret)
        changed["previous_hash"] = current.secret_hash
        changed["previous_generation"] = current.generation
        changed["grace_until"] = now + rules.grace
    if work.salt:
        changed["salt"] = work.salt
    if work.login:
        client = session.client
        changed["generation"] = current.generation + 1
        changed["address"] = _shown(client.address, 100)
        changed["agent"] = _shown(client.agent, 400)
    return msgspec.structs.replace(current, **changed)


def _shown(text: str, size: int) -> str:
    """Return what a client said of itself, fit for every store, log and page."""
    text = text[:size]
    if text.isprintable():
        return text
    # Also lone surrogates and NUL, which stores refuse: no header may make a login fail.
    return "".join(char if char.isprintable() else "?" for char in text)


def _ids(record: Record) -> list[bytes]:
    return [record.commits[i : i + 8] for i in range(0, len(record.commits), 8)]


def max_age_of(session: Session, env: Environment) -> int | None:
    """Return the Max-Age that the cookie of a session in the store has now."""
    record = session._record
    return None if record is None else _max_age(record, env.clock())


def _max_age(record: Record, now: float) -> int | None:
    """Return the Max-Age of the cookie: until the session cannot live any longer."""
    if not record.persistent:
        return None
    if record.lifetime is None:
        return MAX_COOKIE_AGE
    return max(0, min(MAX_COOKIE_AGE, round(start_of(record) + record.lifetime - now)))


def _check_size(segments: Segments, size: int, env: Environment) -> None:
    rules = env.rules
    if len(segments) > rules.max_keys:
        raise InvalidValue(
            f"the session has {len(segments)} keys; allowed are {rules.max_keys} (max_keys)"
        )
    if size > rules.max_bytes:
        largest = max(segments, key=lambda key: len(segments[key]))
        raise InvalidValue(
            f"the session takes {size:,} bytes; allowed are {rules.max_bytes:,} (max_bytes). The "
            f"largest value is session[{largest!r}] with {len(segments[largest]):,} bytes"
        )


# Logging in.


def _begin_login(session: Session, done: Committed, env: Environment) -> Flow[int | None]:
    """Take a place for a login; returns what the user's mark says before anything is written.

    None: the user's sessions were all ended since `login` was called, so there is no login.
    """
    head = session._working().head
    user: str = head["user"]
    epoch = yield from ending.may_log_in(user, session.sid, head["authenticated"])
    if epoch is None:
        done.dropped = "gone"
        done.events.append(("dropped", session.sid, "the user's sessions were ended meanwhile"))
        session._restart()
        return None
    try:
        going = yield from ending.reserve(user, session.sid, env)
    except TooManySessions:
        # Whoever catches this may answer with a page of their own, and commit.
        session._forget_login()
        raise
    for sid in going:
        yield from ending.end(sid, "replaced", env)
    return epoch


def _confirm_login(
    session: Session, record: Record, epoch: int, done: Committed, env: Environment
) -> Flow[bool]:
    """Look at the user's mark again: what was ended before it was written ends now."""
    assert record.user is not None
    if (yield from ending.stands(record.user, record.sid, epoch, env)):
        return True
    yield from ending.end(record.sid, "replaced", env)
    done.token, done.cleared, done.dropped = None, True, "gone"
    done.events.append(("dropped", record.sid, "the user's sessions were ended meanwhile"))
    session._restart()
    return False
