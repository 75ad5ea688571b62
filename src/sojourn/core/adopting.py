"""Taking over the sessions of another system, so that the cookies of their visitors go on working.

The other system's cookie holds an id of its own. From that id a token is derived, sid and secret,
and the session is kept under it; whoever sees the id in a cookie derives the same token, opens the
session with it, and renews it, which gives the visitor a token of ours. Like every other record
it holds nothing that opens it.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha512
from typing import Any

from sojourn.core import codec
from sojourn.core.calls import Create, Flow
from sojourn.core.expiry import deadline_of
from sojourn.core.record import Client, Record
from sojourn.core.rules import Environment
from sojourn.core.token import Token, base64_of, drawn, hash_secret
from sojourn.errors import InvalidValue

__all__ = ["adopt", "token_of"]

_NOBODY = Client()


def token_of(system: str, bearer: str) -> Token:
    """Return the token that stands for the id that another system's cookie holds.

    It is as hard to guess as that id, and not harder: of an id of 64 bits, whoever knows the sid
    needs 2 to the 64 tries. A renewal gives the session a secret of full length.

    Args:
        system: whose id it is, so that those of two systems never meet.
        bearer: what its cookie holds.
    """
    digest = sha512(f"sojourn {system}\0{bearer}".encode("utf-8", "surrogatepass")).digest()
    return Token(base64_of(digest[:16]), base64_of(digest[16:48]))


def adopt(
    token: Token,
    values: Mapping[str, Any],
    env: Environment,
    user: str | None = None,
    client: Client = _NOBODY,
) -> Flow[bool]:
    """Keep a session that another system made; False where there is or was one of that token.

    Its limits begin now: what the other system knew of its age would log out many at once. It
    counts as logged in, but not as having proved it at any time (`Session.fresh`).

    Raises:
        InvalidValue: a value that cannot be stored, or too many.
        StoreUnavailable: the store did not answer.
    """
    rules, now = env.rules, env.clock()
    for key in values:
        if not isinstance(key, str) or not codec.is_text(key):
            # Nothing could read the record.
            raise InvalidValue(
                f"session[{key!r:.80}]: a key must be a str that holds no lone surrogates"
            )
    segments = {
        key: codec.encode_value(value, key=key, depth=rules.max_depth)
        for key, value in values.items()
    }
    data = codec.join(segments)
    if len(segments) > rules.max_keys or len(data) > rules.max_bytes:
        raise InvalidValue(
            f"the session has {len(segments):,} values of {len(data):,} bytes; allowed are "
            f"{rules.max_keys:,} (max_keys) and {rules.max_bytes:,} (max_bytes)"
        )
    if rules.sealer is not None:
        data = rules.sealer.seal(data, token.sid.encode(), env.entropy)
    record = Record(
        sid=token.sid,
        secret_hash=hash_secret(token.secret),
        version=1,
        created=now,
        seen=now,
        deadline=deadline_of(now, now, rules.idle_timeout, rules.lifetime),
        idle_timeout=rules.idle_timeout,
        lifetime=rules.lifetime,
        data=data,
        user=user,
        salt=drawn(env.entropy, 16),
        address=client.address,
        agent=client.agent,
    )
    return (yield Create(record))  # type: ignore[no-any-return]
