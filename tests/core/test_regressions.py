"""Faults that a hostile reader found; each test failed before its fault was mended."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest

from sojourn.core.state import state
from sojourn.errors import InvalidValue, SessionEnded
from sojourn.manager import SessionManager
from sojourn.stores.memory import MemoryStore


@pytest.fixture
def sessions() -> SessionManager:
    return SessionManager(MemoryStore())


def start(sessions: SessionManager, **values: Any) -> str:
    """Make a session; return its cookie."""
    session = sessions.session()
    session.update(values)
    return f"id={sessions.commit(session).token}"


def test_exclusive_never_enters_what_a_login_made(sessions: SessionManager) -> None:
    """A request from before a login does not get into the logged-in session by its lock."""
    cookie = start(sessions, n=1)
    attacker, victim = sessions.session(cookie), sessions.session(cookie)
    assert attacker["n"] == 1
    victim.login("victim")
    victim["card"] = "4111"
    sessions.commit(victim)

    with pytest.raises(SessionEnded, match="a login came"), sessions.exclusive(attacker):
        raise AssertionError
    assert attacker.user is None
    assert "card" not in attacker
    attacker.renew()
    assert sessions.commit(attacker).token is None


def test_exclusive_after_a_renewal_gets_no_new_secret(sessions: SessionManager) -> None:
    """A request whose cookie was renewed while it waited may read and merge, no more."""
    cookie = start(sessions, n=1)
    late, other = sessions.session(cookie), sessions.session(cookie)
    assert late["n"] == 1
    other.renew()
    fresh = sessions.commit(other).token
    with sessions.exclusive(late):
        late["n"] += 1
        late.renew()

    session = sessions.session(f"id={fresh}")
    assert session["n"] == 2
    assert not session._opened.previous


def test_a_merge_then_a_renewal_leaves_the_newer_cookie_alone(sessions: SessionManager) -> None:
    """Who was merged into another's renewal does not renew with a secret that is old already."""
    cookie = start(sessions, n=1)
    late, other = sessions.session(cookie), sessions.session(cookie)
    late.add("n")
    other.renew()
    fresh = sessions.commit(other).token
    sessions.commit(late)
    late.renew()

    assert sessions.commit(late).token is None
    assert sessions.session(f"id={fresh}")["n"] == 2


def test_a_second_commit_keeps_what_was_merged_in_the_first(sessions: SessionManager) -> None:
    """Values that were handed out show what other requests did, and undo none of it."""
    cookie = start(sessions, log=[0], seen=[1])
    session, other = sessions.session(cookie), sessions.session(cookie)
    seen = session["seen"]
    session.append("log", "r1")
    other.append("log", "o1")
    other.append("seen", 2)
    sessions.commit(other)
    sessions.commit(session)
    session["log"].append("r2")
    seen.append(3)
    sessions.commit(session)

    assert dict(sessions.session(cookie)) == {"log": [0, "o1", "r1", "r2"], "seen": [1, 2, 3]}


@state("thing")
@dataclass
class Thing:
    name: str = ""
    amount: int = field(default=0, compare=False)


@state("basket of things")
@dataclass
class Basket:
    thing: Thing = field(default_factory=Thing)
    flag: int = 1
    price: Decimal = Decimal("1.0")
    tags: set[str] = field(default_factory=set)


def test_changes_that_equality_does_not_see(sessions: SessionManager) -> None:
    """A change in place is kept although `==` sees none; the order of a set is no change."""
    session = sessions.session()
    session[Basket].tags = set("abcdefgh")
    cookie = f"id={sessions.commit(session).token}"
    session = sessions.session(cookie)
    session[Basket].thing.amount = 500
    session[Basket].price = Decimal("1.00")
    assert sessions.commit(session).wrote

    basket = sessions.session(cookie)[Basket]
    assert (basket.thing.amount, str(basket.price)) == (500, "1.00")
    session = sessions.session(cookie)
    session[Basket].tags = set(reversed("abcdefgh"))
    assert not sessions.commit(session).wrote


def test_two_classes_of_one_name(sessions: SessionManager) -> None:
    """Two classes under one name in one request: an error, in place of a lost change."""

    @state("thing")
    @dataclass
    class Other:
        name: str = ""

    session = sessions.session()
    session[Thing].name = "kept"
    with pytest.raises(InvalidValue, match="give one another name"):
        session[Other]
