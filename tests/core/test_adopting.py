"""Sessions of another system: found by the id in its cookie, kept, renewed, never revived."""

from __future__ import annotations

import secrets

import pytest

from sojourn import SessionManager
from sojourn.core.adopting import token_of
from sojourn.core.record import LIVE, Client
from sojourn.core.token import parse_token
from sojourn.errors import InvalidValue
from sojourn.testing import Clock

OLD_ID = "Zm9vYmFyYmF"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> SessionManager:
    return SessionManager(clock=clock)


def header(sessions: SessionManager, token: object) -> str:
    return f"{sessions.cookie.name_for[False]}={token}"


def test_a_token_is_derived_always_the_same() -> None:
    """It is spelt like any other; another id, or another system, gives another one."""
    token = token_of("session3", OLD_ID)

    assert parse_token(str(token)) == token == token_of("session3", OLD_ID)
    assert token.sid != token_of("session3", OLD_ID.lower()).sid
    assert token.sid != token_of("session4", OLD_ID).sid
    assert token.secret != token_of("session4", OLD_ID).secret
    assert parse_token(str(token_of("session3", "\udc80\0")))


def test_an_adopted_session_opens_with_its_token(sessions: SessionManager) -> None:
    """With its values, its user and its client; the store does not hold what opens it."""
    token = token_of("session3", OLD_ID)
    client = Client("192.0.2.1", "Firefox")

    assert sessions.adopt(token, {"counter": 3}, user="alice", client=client)

    session = sessions.session(header(sessions, token))
    assert (dict(session), session.user, session.client) == ({"counter": 3}, "alice", client)
    assert not session.fresh(3600.0)
    record = sessions.store.load(token.sid)
    assert record is not None
    assert token.secret.encode() not in record.secret_hash
    assert [device.sid for device in sessions.of_user("alice")] == [token.sid]


def test_it_is_renewed_to_a_full_token(sessions: SessionManager, clock: Clock) -> None:
    """The old id opens it for the grace, and no longer."""
    token = token_of("session3", OLD_ID)
    sessions.adopt(token, {"counter": 3})
    session = sessions.session(header(sessions, token))
    session.renew()
    renewed = sessions.commit(session).token

    assert renewed is not None
    assert renewed.sid == token.sid
    assert sessions.session(header(sessions, token))["counter"] == 3
    clock.advance(11)
    assert sessions.session(header(sessions, token)).is_new
    assert sessions.session(header(sessions, renewed))["counter"] == 3


def test_it_is_adopted_once(sessions: SessionManager) -> None:
    """A second time changes nothing, and nothing brings it back once it has ended."""
    token = token_of("session3", OLD_ID)
    sessions.adopt(token, {"counter": 3})

    assert not sessions.adopt(token, {"counter": 9})
    assert sessions.session(header(sessions, token))["counter"] == 3
    sessions.end(token.sid)
    assert not sessions.adopt(token, {"counter": 9})
    assert sessions.count() == 0


def test_its_limits_begin_now(sessions: SessionManager, clock: Clock) -> None:
    """And are those of the manager."""
    token = token_of("session3", OLD_ID)
    sessions.adopt(token, {})
    record = sessions.store.load(token.sid)

    assert record is not None
    assert record.status == LIVE
    assert record.deadline == clock() + 3600.0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cart": object()}, r"session\['cart'\] is or holds a object"),
        ({"big": "x" * 2_000_000}, "max_bytes"),
        ({str(number): 1 for number in range(1001)}, "max_keys"),
    ],
)
def test_what_no_session_keeps_is_refused(
    sessions: SessionManager, values: dict[str, object], words: str
) -> None:
    """Before anything is written."""
    with pytest.raises(InvalidValue, match=words):
        sessions.adopt(token_of("session3", OLD_ID), values)
    assert sessions.count() == 0


def test_it_is_sealed_as_the_manager_seals(clock: Clock) -> None:
    """And opens with the same keys."""
    sessions = SessionManager(seal_keys=[secrets.token_hex(32)], clock=clock)
    token = token_of("session3", OLD_ID)
    sessions.adopt(token, {"card": "4111"})
    record = sessions.store.load(token.sid)

    assert record is not None
    assert b"4111" not in record.data
    assert sessions.session(header(sessions, token))["card"] == "4111"


def test_a_session_is_found_by_its_sid(sessions: SessionManager, clock: Clock) -> None:
    """Live ones alone; what is written to it is committed; what is no sid names none."""
    token = token_of("session3", OLD_ID)
    sessions.adopt(token, {"counter": 3}, user="alice")
    session = sessions.find(token.sid)

    assert session is not None
    session["counter"] = 4
    sessions.commit(session)
    found = sessions.find(token.sid)
    assert found is not None
    assert (found["counter"], found.user) == (4, "alice")
    assert sessions.find("../../etc/passwd") is None
    assert sessions.find(token_of("session3", "another").sid) is None
    clock.advance(3600)
    assert sessions.find(token.sid) is None


@pytest.mark.anyio
async def test_the_same_on_an_event_loop(clock: Clock) -> None:
    """Both methods exist in both forms."""
    sessions = SessionManager(clock=clock)
    token = token_of("session3", OLD_ID)

    assert await sessions.aadopt(token, {"counter": 3})
    assert not await sessions.aadopt(token, {"counter": 3})
    found = await sessions.afind(token.sid)
    assert found is not None
    assert found["counter"] == 3
    assert await sessions.afind("nothing") is None
