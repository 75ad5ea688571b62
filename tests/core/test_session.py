"""`Session` beyond the mapping: what counts as a use, peeking, its life, what it refuses."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from sojourn.core.record import Client
from sojourn.core.session import Session
from sojourn.core.status import TRANSITIONS, Event, Status
from sojourn.errors import InvalidValue, SojournError

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


def test_peek_of_damaged_data(world: Any) -> None:
    """Damaged data is empty to a peek too, and reported; the next real use sees it as well."""
    token = world.visit(a=1)
    damage(world, token)
    session = world.open(token)

    assert dict(session.peek) == {}
    assert [event[0] for event in world.commit(session).events] == ["damaged"]


# The table of transitions.

DO: dict[Event, Callable[[Session], Any]] = {
    Event.WRITE: lambda session: session.__setitem__("key", [1]),
    Event.TOUCH: lambda session: session.touch(),
    Event.RENEW: lambda session: session.renew(),
    Event.END: lambda session: session.end(),
}
REACH: dict[Status, list[Event]] = {
    Status.NEW: [],
    Status.STARTED: [Event.WRITE],
    Status.UNCHANGED: [],
    Status.TOUCHED: [Event.TOUCH],
    Status.CHANGED: [Event.WRITE],
    Status.RENEWED: [Event.RENEW],
}


def test_the_table_is_complete() -> None:
    """Every event has its transition in every status."""
    assert set(TRANSITIONS) == set(itertools.product(Status, Event))


@pytest.mark.parametrize(("status", "event"), TRANSITIONS, ids=str)
def test_transitions(make_world: Any, status: Status, event: Event) -> None:
    """A session goes from each status to the next as the table says, and writes accordingly."""
    world = make_world()
    token = None if status in (Status.NEW, Status.STARTED) else world.visit(a=1)
    session = world.open(token)
    for before in REACH[status]:
        DO[before](session)
    assert session.status is status

    if event is not Event.COMMIT:
        DO[event](session)
        after = session.status
        assert after is TRANSITIONS[status, event]
        done = world.commit(session)
        assert done.wrote is (
            after not in (Status.NEW, Status.UNCHANGED)
            or (event is Event.END and token is not None)
        )
        assert (done.token is not None) is (after in (Status.STARTED, Status.RENEWED))
        assert session.is_new is (after is Status.NEW)
        status = after
    world.commit(session)
    assert session.status is TRANSITIONS[status, Event.COMMIT]


# Its life.


def test_nothing_written_nothing_made(world: Any) -> None:
    """T3, L10: a request without a cookie that only reads makes no call and gets no cookie."""
    session = world.open()

    assert dict(session) == {}
    assert (session.user, session.get("a"), "a" in session) == (None, None, False)
    session.renew()
    session.touch()
    session.pop_flash()
    done = world.commit(session)

    assert (done.token, done.wrote, world.calls) == (None, False, [])


def test_what_comes_to_nothing(world: Any) -> None:
    """Set and deleted, flashed and shown in one request: no session is made of it."""
    session = world.open()
    session["a"] = 1
    del session["a"]
    session.flash("hello")
    session.pop_flash()
    session["b"] = 1
    session.clear()

    assert world.commit(session).token is None
    assert world.store.count(status=None) == 0


def test_attributes(world: Any) -> None:
    """What a session tells of itself."""
    session = world.open()
    made = world.clock()

    assert session.is_new
    assert (session.created, session.seen) == (made, made)
    assert (session.deadline, session.remaining) == (made + 3600, 3600)
    assert session.idle_timeout.total_seconds() == 3600
    assert session.lifetime.total_seconds() == 86400
    assert (session.user, session.authenticated, session.claims) == (None, None, {})
    assert session.client.agent == "test"
    assert session.persistent is False

    session["a"] = 1
    sid = session.sid
    token = world.commit(session).token
    assert (token.sid, session.sid, session.is_new) == (sid, sid, False)

    world.clock.advance(1000)
    session = world.open(token)
    assert not session.is_new
    assert (session.sid, session.created, session.seen) == (sid, made, made)
    assert (session.deadline, session.remaining) == (made + 3600, 2600)

    world.clock.advance(5000)
    assert session.remaining == 0


def test_sid_is_stable(world: Any) -> None:
    """The sid of a new session is known before it is made; renewal and login keep it."""
    session = world.open()
    sid = session.sid
    session["a"] = 1
    token = world.commit(session).token
    for act in (Session.renew, lambda session: session.login("alice")):
        session = world.open(token)
        act(session)
        token = world.commit(session).token
        assert token.sid == sid


@pytest.mark.parametrize("name", ["idle_timeout", "lifetime"])
def test_limits_of_one_session(world: Any, name: str) -> None:
    """A limit may be set for one session; its deadline moves at once, no other's."""
    token, other = world.visit(a=1), world.visit(a=1)
    session = world.open(token)

    setattr(session, name, 60)
    assert session.remaining == 60
    world.commit(session)

    assert world.record(token).deadline == world.clock() + 60
    assert world.record(other).deadline == world.clock() + 3600
    world.clock.advance(60)
    assert world.open(token).is_new
    assert world.open(token).ended_before.reason == name.removesuffix("_timeout")
    assert not world.open(other).is_new


def test_one_limit_must_stay(world: Any) -> None:
    """One of the two limits may be taken away, not both."""
    session = world.open(world.visit(a=1))
    session.idle_timeout = None

    assert session.deadline == session.created + 86400
    with pytest.raises(InvalidValue, match="would never end"):
        session.lifetime = None
    for wrong in (0, -1, "60", True):
        with pytest.raises(SojournError, match=r"session\.lifetime"):
            session.lifetime = wrong


def test_remember(world: Any) -> None:
    """`remember` sets both limits and makes the cookie outlive the browser; once, not each time."""
    token = world.visit(a=1)
    session = world.open(token)

    session.remember(30 * 86400)
    done = world.commit(session)

    assert (done.token, done.max_age) == (token, 30 * 86400)
    world.clock.advance(20 * 86400)
    session = world.open(token)
    assert session.persistent
    session["b"] = 1
    assert world.commit(session).token is None
    world.clock.advance(10 * 86400)
    assert world.open(token).is_new


def test_setting_what_is_set_writes_nothing(world: Any) -> None:
    """A limit set to what it is, or `persistent` to what it is, is no change."""
    session = world.open(world.visit(a=1))
    session.lifetime = session.lifetime
    session.idle_timeout = 3600
    session.persistent = False

    assert session.status is Status.UNCHANGED


def test_login(world: Any) -> None:
    """A login keeps the values, takes claims, tells the client anew and starts both limits anew."""
    token = world.visit(cart=[1])
    world.clock.advance(1000)
    session = world.open(token, client=Client("198.51.100.7", "other"))

    session.login("alice", role="admin")
    done = world.commit(session)

    now = world.clock()
    session = world.open(done.token)
    assert (session.user, session.claims, dict(session)) == (
        "alice",
        {"role": "admin"},
        {"cart": [1]},
    )
    assert session.authenticated == now
    assert session.client == Client("198.51.100.7", "other")
    assert session.fresh(within=10)
    world.clock.advance(11)
    assert not session.fresh(within=10)
    assert world.record(done.token).deadline == now + 3600
    session.claims["role"] = "changed"
    assert session.claims == {"role": "admin"}


def test_l4_login_starts_the_lifetime_anew(world: Any) -> None:
    """L4: the absolute limit counts from the last login."""
    token = world.visit(a=1)
    for _ in range(30):
        world.clock.advance(3000)
        session = world.open(token)
        assert not session.is_new
        session.login("alice")
        token = world.commit(session).token

    assert world.clock() - world.record(token).created > 86400


def test_a_login_without_claims_forgets_the_old_ones(world: Any) -> None:
    """Claims are those of the last login."""
    session = world.open()
    session.login("alice", role="admin")
    session = world.open(world.commit(session).token)
    session.login("alice")
    session = world.open(world.commit(session).token)

    assert session.claims == {}


def test_login_of_another_user(world: Any) -> None:
    """Where another user was logged in, that session ends, and nothing of it is in the new one."""
    session = world.open()
    session.login("alice")
    session["private"] = 1
    session.flash("for alice")
    old = world.commit(session).token
    session = world.open(old)

    session.login("bob")
    done = world.commit(session)

    assert done.token.sid != old.sid
    assert done.cleared
    session = world.open(done.token)
    assert (session.user, dict(session), session.peek_flash()) == ("bob", {}, [])
    assert world.open(old).ended_before.reason == "replaced"


def test_login_after_a_first_commit(world: Any) -> None:
    """A session made and committed in this request sends its new secret at a login."""
    session = world.open()
    session["a"] = 1
    first = world.commit(session).token
    session.login("alice")
    second = world.commit(session).token

    assert second is not None
    assert second.secret != first.secret
    assert world.open(second).user == "alice"
    assert world.open(first).user is None


@pytest.mark.parametrize("user", ["", "a" * 256, "a\0b", "\ud800", None, 7, b"alice"])
def test_users_refused(world: Any, user: Any) -> None:
    """A user is a str of 1 to 255 characters that every store can keep; else nothing happens."""
    session = world.open()

    with pytest.raises(InvalidValue, match="login"):
        session.login(user)
    assert session.status is Status.NEW


def test_what_a_client_says_of_itself(world: Any) -> None:
    """Address and agent are cut, and stripped of what stores, logs and pages cannot bear."""
    session = world.open(client=Client("a" * 500, "x\0\r\n\ud800" + "b" * 1000))
    session["a"] = 1
    record = world.record(world.commit(session).token)

    assert record.address == "a" * 100
    assert record.agent == "x????" + "b" * 395


def test_end_then_flash(world: Any) -> None:
    """After `end` the object stands for a new session: what is written makes one."""
    token = world.visit(a=1)
    session = world.open(token)

    session.logout()
    assert (dict(session), session.user, session.is_new) == ({}, None, True)
    session.flash("Good bye.")
    done = world.commit(session)

    assert done.cleared
    assert done.token.sid != token.sid
    assert world.open(done.token).pop_flash() == ["Good bye."]
    assert world.open(token).ended_before.reason == "user"


def test_end_alone(world: Any) -> None:
    """After `end` and nothing else the cookie is to be cleared, and no session is made."""
    token = world.visit(a=1)
    session = world.open(token)
    session["b"] = 2

    session.end("theft")
    done = world.commit(session)

    assert (done.token, done.cleared, done.wrote) == (None, True, True)
    assert world.open(token).ended_before.reason == "theft"
    assert world.open(token).ended_before.at == world.clock()


def test_ending_what_never_was(world: Any) -> None:
    """Ending a new session makes no call and clears no cookie."""
    session = world.open()
    session["a"] = 1
    session.end()
    done = world.commit(session)

    assert (done.token, done.cleared, done.wrote, world.calls) == (None, False, False, [])


@pytest.mark.parametrize("reason", ["", "x" * 33, None, 5])
def test_reasons_refused(world: Any, reason: Any) -> None:
    """A reason is one short word."""
    session = world.open(world.visit(a=1))

    with pytest.raises(InvalidValue, match="reason"):
        session.end(reason)
    assert session.status is Status.UNCHANGED


# Messages.


def test_flash_queues(world: Any) -> None:
    """Messages come back once, in order, by queue; a peek leaves them; any value is a message."""
    session = world.open()
    session.flash("one")
    session.flash("two")
    session.flash(("three", 3), "other")
    session.flash("two", allow_duplicate=False)
    token = world.commit(session).token
    session = world.open(token)

    assert session.peek_flash() == ["one", "two"]
    assert session.pop_flash() == ["one", "two"]
    assert session.pop_flash() == []
    assert session.peek_flash("other") == [("three", 3)]
    world.commit(session)
    session = world.open(token)
    assert session.pop_flash() == []
    assert session.pop_flash("other") == [("three", 3)]


def test_shown_messages_leave_nothing_behind(world: Any) -> None:
    """When all messages are popped the data is as it was before."""
    token = world.visit(a=1)
    before = world.record(token).data
    session = world.open(token)
    session.flash("one")
    world.commit(session)
    session = world.open(token)
    session.pop_flash()
    world.commit(session)

    assert world.record(token).data == before


# What it refuses, and what it does not show.


def test_limits_of_the_data(make_world: Any) -> None:
    """Size, keys and depth are bounded: the message has the numbers, and nothing is written."""
    world = make_world(max_bytes=1000, max_keys=3, max_depth=2)
    token = world.visit(a=1)

    session = world.open(token)
    session["big"] = "x" * 2000
    with pytest.raises(InvalidValue, match=r"takes 2,0\d\d bytes; allowed are 1,000 .*'big'"):
        world.commit(session)

    session = world.open(token)
    session.update(b=1, c=1, d=1)
    with pytest.raises(InvalidValue, match=r"has 4 keys; allowed are 3 \(max_keys\)"):
        world.commit(session)

    session = world.open(token)
    session["deep"] = [[[]]]
    with pytest.raises(InvalidValue, match=r"'deep'.*nested deeper .*max_depth"):
        world.commit(session)

    session = world.open()
    session["big"] = "x" * 2000
    with pytest.raises(InvalidValue, match="max_bytes"):
        world.commit(session)
    assert world.values(token) == {"a": 1}
    assert world.store.count() == 1


def test_a_lowered_limit_lets_old_sessions_live(make_world: Any) -> None:
    """A session that is larger than a limit set since can still be read, renewed and ended."""
    world, strict = make_world(), make_world(max_bytes=100)
    strict.store = world.store
    token = world.visit(a="x" * 200)
    session = strict.open(token)
    session.renew()
    token = strict.commit(session).token

    assert strict.values(token) == {"a": "x" * 200}
    session = strict.open(token)
    del session["a"]
    strict.commit(session)
    assert strict.values(token) == {}


@pytest.mark.parametrize("value", [object(), 1j, range(3), bytearray(), Status.NEW, copy])
def test_values_refused_at_once(world: Any, value: Any) -> None:
    """A type that cannot be stored raises at the assignment: key, type, what is allowed."""
    session = world.open()

    with pytest.raises(InvalidValue, match=r"session\['basket'\] is a .*allowed are str, int"):
        session["basket"] = value
    assert session.status is Status.NEW


def test_values_refused_at_the_commit(world: Any) -> None:
    """What lies deeper raises at the commit, before anything is written; the old session lives."""
    token = world.visit(a=1)
    session = world.open(token)
    session["a"] = 2
    session["basket"] = [{"x": object()}]

    with pytest.raises(InvalidValue, match=r"session\['basket'\] .*object"):
        world.commit(session)
    assert world.values(token) == {"a": 1}


def test_a_bad_new_value_does_not_end_the_old_session(world: Any) -> None:
    """When the values that follow an `end` cannot be stored, the end has not happened either."""
    token = world.visit(a=1)
    session = world.open(token)
    session.end()
    session["b"] = [object()]

    with pytest.raises(InvalidValue):
        world.commit(session)
    assert world.values(token) == {"a": 1}


def test_c4_no_secret_in_sight(world: Any) -> None:
    """C4: no repr shows the secret, and that of a session loads nothing."""
    token = world.visit(a=1)
    session = world.open(token)

    assert repr(session) == "<Session not loaded>"
    assert not session.loaded
    session.renew()
    done = world.commit(session)
    shown = [repr(session), str(session), repr(done), repr(session._opened), f"{done.token!r}"]

    assert session.sid in shown[0]
    for text in shown:
        assert token.secret not in text
        assert done.token.secret not in text


@pytest.mark.parametrize(
    "act", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"]
)
def test_not_copied(make_world: Any, act: Callable[[Any], Any]) -> None:
    """A session is of one request: it is neither copied nor pickled, loaded or not."""
    world = make_world()
    session = world.open(world.visit(a=1))

    for _ in range(2):
        with pytest.raises(TypeError, match=r"dict\(session\)"):
            act(session)
        session.get("a")


def test_unknown_attributes(world: Any) -> None:
    """A name that a session does not have is an AttributeError, and does not load it."""
    session = world.open(world.visit(a=1))

    for name in ("modified", "_modified", "__html__", "id"):
        assert not hasattr(session, name)
    with pytest.raises(AttributeError):
        session.usr = "alice"
    assert not session.loaded


# Damage.


def damage(world: Any, token: Any, **fields: Any) -> None:
    record = world.record(token)
    fields = fields or {"data": bytes(len(record.data))}
    newer = msgspec.structs.replace(record, version=record.version + 1, **fields)
    world.store.replace(newer, record.version)


def test_damaged_data(world: Any) -> None:
    """Damaged data is a fresh session and one report; what is written makes a new session."""
    token = world.visit(a=1)
    damage(world, token)
    session = world.open(token)

    assert session.get("a") is None
    assert session.is_new
    session["b"] = 1
    done = world.commit(session)

    assert [event[:2] for event in done.events if event[0] == "damaged"] == [("damaged", token.sid)]
    assert done.token.sid != token.sid
    assert world.values(done.token) == {"b": 1}


def test_one_damaged_value(world: Any) -> None:
    """A value of which a bit flipped is not there, nor is the rest: never a wrong value."""
    token = world.visit(a="a text", b="another one")
    data = bytearray(world.record(token).data)
    data[data.index(b"another")] ^= 1
    damage(world, token, data=bytes(data))
    session = world.open(token)

    assert session["a"] == "a text"
    with pytest.raises(KeyError):
        session["b"]
    assert dict(session) == {}
    assert [event[0] for event in world.commit(session).events] == ["damaged"]


def test_damage_is_not_written_over(world: Any) -> None:
    """A renewal does not look at the data; a write that must merge into damaged data is dropped."""
    token = world.visit(a=1)
    session = world.open(token)
    session.add("n")
    damage(world, token)

    done = world.commit(session)

    assert done.dropped == "damaged"
    assert [event[0] for event in done.events] == ["damaged"]
