"""Opening a session: what the cookies of a request stand for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from hashlib import sha256
from typing import NamedTuple

import msgspec

from sojourn.core import codec
from sojourn.core.calls import Flow, Load
from sojourn.core.expiry import expired_reason
from sojourn.core.record import LIVE, MARK, Record
from sojourn.core.rules import Environment
from sojourn.core.token import Token, hash_secret, same_hash
from sojourn.errors import DamagedRecord, StoreUnavailable

__all__ = ["EndedBefore", "Opened", "judge", "open_session", "unseal"]


class EndedBefore(NamedTuple):
    """Why the session that this visitor had is over.

    Attributes:
        reason: idle, lifetime, user, operator, replaced, password, theft or damaged.
        at: when, in UTC seconds.
    """

    reason: str
    at: float


class Opened(msgspec.Struct, frozen=True, gc=False):
    """What was found for a request's cookie.

    Attributes:
        now: when it was looked for.
        record: the live record; None: none, a new session.
        data: its data, unsealed.
        token: the token that opened it.
        previous: it was opened with the secret before the last renewal, within its grace: it may
            read and merge, but gets no new secret.
        shadow: the cookie is from before a login that has just happened. The request sees an
            empty session and nothing that it writes is kept, so that it can neither read what
            the login brought nor replace the cookie that is on its way to the browser.
        ended_before: the visitor's former session, if it is known why it ended.
        failure: the store did not answer, and the request goes on without its session.
        notes: what is to be reported: (event, sid, detail).
    """

    now: float
    record: Record | None = None
    data: bytes = codec.EMPTY
    token: Token | None = None
    previous: bool = False
    shadow: bool = False
    ended_before: EndedBefore | None = None
    failure: StoreUnavailable | None = None
    notes: tuple[tuple[str, str, str], ...] = ()


def open_session(tokens: Iterable[Token], env: Environment) -> Flow[Opened]:
    """Find the session of a request.

    Of several different cookies at most the one that is live counts, and two live ones count as
    none: somebody planted one of them, and nobody knows which.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    now = env.clock()
    found: list[Opened] = []
    for token in tokens:
        try:
            record: Record | None = yield Load(token.sid, partial(_surely_opens, token, now))
            opened = judge(record, token, now, env)
        except DamagedRecord as error:
            opened = Opened(now, notes=(("damaged", token.sid, str(error)),))
        found.append(opened)
    if len(found) == 1:
        return found[0]
    live = [one for one in found if one.record is not None]
    notes = tuple(note for one in found for note in one.notes)
    if len(live) == 1:
        return msgspec.structs.replace(live[0], notes=notes)
    if live:
        notes += (("two cookies", live[0].record.sid, "two live sessions; none counts"),)  # type: ignore[union-attr]
    return Opened(now, notes=notes)


def _surely_opens(token: Token, now: float, record: Record) -> bool:
    """Tell whether a token opens a record, even if the record is not the newest.

    A no is not to be had from an old one: the session may have been renewed, or used, since.
    """
    given = hash_secret(token.secret)
    return record.status == LIVE and now < record.deadline and same_hash(given, record.secret_hash)


def judge(record: Record | None, token: Token, now: float, env: Environment) -> Opened:
    """Decide what a token opens.

    Raises:
        DamagedRecord: the record's data cannot be unsealed.
    """
    if record is None:
        return Opened(now)
    # `hash_secret`, written out: this is done for every request.
    given = sha256(token.secret.encode()).digest()
    if same_hash(given, record.secret_hash):
        if record.status == LIVE and now < record.deadline:
            data = record.data if env.rules.sealer is None else unseal(record, env)
            return Opened(now, record, data, token)
        return _over(record, now)
    if record.status == MARK:
        return Opened(now)
    if record.previous_hash and same_hash(given, record.previous_hash):
        if record.status != LIVE or now >= record.deadline:
            return _over(record, now)
        if now < record.grace_until:
            if record.previous_generation == record.generation:
                return Opened(now, record, unseal(record, env), token, previous=True)
            return Opened(now, shadow=True)
        return Opened(now, notes=(("suspicious", record.sid, "a renewed cookie was used again"),))
    return Opened(now, notes=(("refused", record.sid, "the secret is not that of the session"),))


def _over(record: Record, now: float) -> Opened:
    at = record.deadline if record.status == LIVE else record.seen
    return Opened(now, ended_before=EndedBefore(expired_reason(record), at))


def unseal(record: Record, env: Environment) -> bytes:
    """Return the data of a record as it was before sealing.

    Raises:
        DamagedRecord: a broken seal, an unknown key, or sealed data and no keys.
    """
    sealer = env.rules.sealer
    return record.data if sealer is None else sealer.open(record.data, record.sid.encode())
