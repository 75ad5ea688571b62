"""`Session` beyond the mapping: what counts as a use, peeking, its life, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sojourn.core.session import Session

# What counts as a use.

USES: dict[str, Callable[[Session], Any]] = {
    "read": lambda session: session["a"],
    "get": lambda session: session.get("nothing"),
    "in": lambda session: "a" in session,
    "len": len,
    "truth": bool,
    "iteration": list,
    "reversed": lambda session: list(reversed(session)),
    "keys": lambda session: list(session.keys()),
    "items": lambda session: list(session.items()),
    "values": lambda session: list(session.values()),
    "equality": lambda session: session == {},
    "user": lambda session: session.user,
    "claims": lambda session: session.claims,
    "peek_flash": lambda session: session.peek_flash(),
    "pop_flash": lambda session: session.pop_flash(),
    "csrf_token": lambda session: session.csrf_token,
    "touch": lambda session: session.touch(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_every_use_extends(make_world: Any, use: Callable[[Session], Any]) -> None:
    """Whatever is the first thing that a request does with its session, it extends it."""
    world = make_world()
    token = world.visit(a=1)
    before = world.record(token)
    world.clock.advance(200)
    session = world.open(token)

    use(session)
    world.commit(session)

    after = world.record(token)
    assert after.seen == world.clock()
    assert after.deadline == before.deadline + 200
    assert after.data is before.data


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_no_write_within_the_touch_interval(make_world: Any, use: Callable[[Session], Any]) -> None:
    """Within the touch interval a mere use writes nothing, except for an explicit `touch`."""
    world = make_world()
    token = world.visit(a=1)
    world.clock.advance(179)
    session = world.open(token)

    use(session)
    done = world.commit(session)

    assert done.wrote is (use is USES["touch"])


LOOKS: dict[str, Callable[[Session], Any]] = {
    "nothing": lambda session: None,
    "sid": lambda session: session.sid,
    "deadline": lambda session: session.deadline,
    "remaining": lambda session: session.remaining,
    "created": lambda session: session.created,
    "seen": lambda session: session.seen,
    "is_new": lambda session: session.is_new,
    "status": lambda session: session.status,
    "client": lambda session: session.client,
    "ended_before": lambda session: session.ended_before,
    "repr": repr,
    "peek": lambda session: session.peek["a"],
    "peek.get": lambda session: session.peek.get("b"),
    "peek in": lambda session: "a" in session.peek,
    "peek items": lambda session: dict(session.peek),
    "peek len": lambda session: len(session.peek),
    "peek.user": lambda session: session.peek.user,
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_looking_extends_nothing(make_world: Any, look: Callable[[Session], Any]) -> None:
    """What tells about a session without using it, and all of `peek`, writes nothing."""
    world = make_world()
    token = world.visit(a=[1])
    before = world.record(token)
    world.clock.advance(1800)
    session = world.open(token)

    look(session)
    done = world.commit(session)

    assert not done.wrote
    assert world.record(token) is before


def test_peek_sees_what_is_there(world: Any) -> None:
    """`peek` shows the stored values, and once the session is in use, what the request did."""
    token = world.visit(a=[1], b=2)
    session = world.open(token)

    assert dict(session.peek) == {"a": [1], "b": 2}
    assert len(session.peek) == 2

    session["c"] = 3

    assert dict(session.peek) == {"a": [1], "b": 2, "c": 3}


def test_peek_is_read_only(world: Any) -> None:
    """What is done to a value that `peek` gave is not kept, and the commit does not mind."""
    token = world.visit(a=[1])
    session = world.open(token)

    session.peek["a"].append(2)
    done = world.commit(session)

    assert not done.wrote
    assert world.values(token) == {"a": [1]}


def test_a_use_after_a_peek_counts(world: Any) -> None:
    """A peek does not hide the real use of the same key that follows it."""
    token = world.visit(a=[1])
    world.clock.advance(600)
    session = world.open(token)

    session.peek["a"]
    session["a"].append(2)
    world.commit(session)

    assert world.values(token) == {"a": [1, 2]}
    assert world.record(token).seen == world.clock()
