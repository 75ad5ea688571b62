"""Form tokens: of this session only, masked anew on each page."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn.core import csrf
from sojourn.errors import CsrfError

SALT = bytes(range(16))


def test_masked_anew() -> None:
    """No two tokens look alike, not even in part, and each one is good."""
    tokens = [csrf.form_token(SALT, os.urandom) for _ in range(1000)]

    for half in (slice(0, 40), slice(46, 86)):
        assert len({token[half] for token in tokens}) == 1000
    assert all(csrf.check(SALT, token) for token in tokens)
    assert all(csrf.check(SALT, token.encode()) for token in tokens)


def test_every_changed_bit_is_seen() -> None:
    """A token of which any one character is another is refused, and one of another salt."""
    token = csrf.form_token(SALT, os.urandom)

    # The last character carries four spare bits.
    for place in range(85):
        other = "A" if token[place] != "A" else "B"
        assert not csrf.check(SALT, token[:place] + other + token[place + 1 :])
    assert not csrf.check(bytes(16), token)
    assert csrf.check(SALT, token)


@given(st.one_of(st.none(), st.integers(), st.binary(), st.text(max_size=200), st.lists(st.text())))
def test_any_thing(token: object) -> None:
    """Anything may come in; it is refused without an exception."""
    assert not csrf.check(SALT, token)
    assert not csrf.check(b"", token)


@pytest.mark.parametrize("token", ["é" * 86, "=" * 86, "\0" * 86, "A" * 86, "\ud800" * 86])
def test_the_right_length_alone(token: str) -> None:
    """Of the right length and wrong otherwise is refused, also where there is no salt."""
    assert not csrf.check(SALT, token)
    assert not csrf.check(b"", token)


def test_no_session_no_token() -> None:
    """A token made of no salt is good for nothing."""
    assert not csrf.check(b"", csrf.form_token(b"", os.urandom))


@pytest.mark.parametrize("size", [0, 1, 31, 33])
def test_a_mask_too_short(size: int) -> None:
    """A random source that gives too little is an error: a short mask would show the token."""
    with pytest.raises(ValueError, match=f"gave {size} bytes"):
        csrf.form_token(SALT, lambda _: bytes(size))


def test_x1_of_this_session(world: Any) -> None:
    """X1: good in later requests of this session, and in no other's; asking writes nothing more."""
    mine, other = world.visit(), world.visit()
    token = world.open(mine).csrf_token

    world.open(mine).check_csrf(token)
    with pytest.raises(CsrfError):
        world.open(other).check_csrf(token)
    with pytest.raises(CsrfError):
        world.open().check_csrf(token)
    session = world.open(mine)
    assert session.csrf_token != token
    assert not world.commit(session).wrote


def test_x1_survives_renewal_not_login(world: Any) -> None:
    """X1: it survives a renewal of the secret; a login brings another one."""
    cookie = world.visit()
    token = world.open(cookie).csrf_token
    session = world.open(cookie)
    session.renew()
    cookie = world.commit(session).token

    world.open(cookie).check_csrf(token)

    session = world.open(cookie)
    session.login("alice")
    after = session.csrf_token
    cookie = world.commit(session).token
    with pytest.raises(CsrfError):
        world.open(cookie).check_csrf(token)
    world.open(cookie).check_csrf(after)


def test_a_form_makes_a_session(world: Any) -> None:
    """The first form makes the session that its token belongs to; checking alone makes none."""
    session = world.open()
    with pytest.raises(CsrfError):
        session.check_csrf("x" * 86)
    assert not world.commit(session).wrote

    session = world.open()
    token = session.csrf_token
    session.check_csrf(token)
    cookie = world.commit(session).token

    world.open(cookie).check_csrf(token)


def test_gone_with_the_session(world: Any) -> None:
    """When the session ends, its tokens end."""
    cookie = world.visit()
    session = world.open(cookie)
    token = session.csrf_token
    session.logout()

    with pytest.raises(CsrfError):
        session.check_csrf(token)
