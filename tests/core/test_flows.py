"""Flows: what a request reads and writes, under time, races, lost replies and hostile cookies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from sojourn.core import ending, flows, opening
from sojourn.core.calls import Create, Delete, Load, Pause, Replace, Touch
from sojourn.core.record import ENDED, LIVE, MARK, Record
from sojourn.core.session import Session
from sojourn.core.token import Token, hash_secret, new_secret, new_sid
from sojourn.drivers import run
from sojourn.errors import Conflict, DamagedRecord, StoreUnavailable
from sojourn.testing import FlakyStore
from sojourn.testing.faults import Fault, at


def kinds(world: Any) -> list[str]:
    """Name the calls that were made since the last time."""
    names = [type(call).__name__ for call in world.calls]
    world.calls.clear()
    return names


# Calls.


def test_calls_of_a_request(world: Any) -> None:
    """One load to read, one write where something changed, none without a cookie or a use."""
    session = world.open()
    session["a"] = 1
    token = world.commit(session).token
    assert kinds(world) == ["Create"]

    world.commit(world.open(token))
    assert kinds(world) == []

    session = world.open(token)
    session["a"]
    world.commit(session)
    assert kinds(world) == ["Load"]

    session = world.open(token)
    session["a"] = 2
    session.renew()
    token = world.commit(session).token
    assert kinds(world) == ["Load", "Replace"]

    world.clock.advance(180)
    session = world.open(token)
    session["a"]
    world.commit(session)
    assert kinds(world) == ["Load", "Touch"]

    session = world.open(token)
    session.logout()
    world.commit(session)
    assert kinds(world) == ["Load", "Delete"]


def test_a_new_sessions_record(world: Any) -> None:
    """The store is told the hash of the secret, the limits, the client; never the secret."""
    session = world.open()
    session["a"] = 1
    token = world.commit(session).token
    record, now = world.record(token), world.clock()

    assert record.secret_hash == hash_secret(token.secret)
    assert (record.version, record.status, record.generation) == (1, LIVE, 0)
    assert (record.created, record.seen, record.deadline) == (now, now, now + 3600)
    assert (record.idle_timeout, record.lifetime) == (3600, 86400)
    assert (record.address, record.agent) == ("192.0.2.1", "test")
    assert len(record.salt) == 16
    assert token.secret not in repr(record)
    assert token.secret.encode() not in msgspec.msgpack.encode(record)


# Cookies.


def test_t3_invented_tokens(world: Any) -> None:
    """T3, C4: a token that nobody made opens nothing, and its sid is never adopted."""
    for _ in range(5):
        token = Token(new_sid(world.env.entropy), new_secret(world.env.entropy))
        session = world.open(token)
        session["a"] = 1
        done = world.commit(session)
        assert done.token.sid != token.sid
        assert done.token.secret != token.secret


def test_a_wrong_secret(world: Any) -> None:
    """The right sid with another secret opens nothing, changes nothing, and is reported."""
    token = world.visit(a=1)
    before = world.record(token)
    session = world.open(Token(token.sid, new_secret(world.env.entropy)))

    assert dict(session) == {}
    session["b"] = 1
    done = world.commit(session)

    assert done.token.sid != token.sid
    assert ("refused", token.sid) in [event[:2] for event in done.events]
    assert world.record(token) is before


def test_the_hash_is_no_secret(world: Any) -> None:
    """T6: who has stolen the store has nothing to log in with."""
    from base64 import urlsafe_b64encode

    token = world.visit(a=1)
    stolen = urlsafe_b64encode(world.record(token).secret_hash).rstrip(b"=").decode()

    assert world.opened([Token(token.sid, stolen)]).record is None


def test_a_mark_is_no_session(world: Any) -> None:
    """What flows keep for themselves is opened by no cookie."""
    world.run(ending.end_all_of("alice", None, "user", world.env))
    (mark,) = world.store.list(status=MARK)

    for secret in (new_secret(world.env.entropy), "A" * 43):
        opened = world.opened([Token(mark.sid, secret)])
        assert (opened.record, opened.shadow, opened.notes) == (None, False, ())


def test_two_cookies(world: Any) -> None:
    """A22: of several cookies the one that is live counts; two live ones count as none."""
    one, two = world.visit(a=1), world.visit(a=2)
    dead = Token(new_sid(world.env.entropy), new_secret(world.env.entropy))

    for tokens in ([one, dead], [dead, one], [dead, one, dead]):
        assert world.opened(tokens).record.sid == one.sid
    for tokens in ([one, two], [two, one], [one, dead, two]):
        opened = world.opened(tokens)
        assert opened.record is None
        assert [note[0] for note in opened.notes] == ["two cookies"]
    assert world.opened([]).record is None


# Time.


def test_l1_idle_timeout(world: Any) -> None:
    """L1: a session lives until the last moment of its idle timeout, and not a moment longer."""
    token = world.visit(a=1)
    world.clock.advance(3599.9)
    assert world.opened([token]).record is not None
    world.clock.advance(0.1)
    opened = world.opened([token])

    assert opened.record is None
    assert opened.ended_before == ("idle", world.clock())


def test_l2_lifetime(world: Any) -> None:
    """L2: used every minute, it is over after its lifetime all the same."""
    token = world.visit(a=1)
    end = world.clock() + 86400
    while world.clock() < end - 60:
        world.clock.advance(60)
        session = world.open(token)
        assert session["a"] == 1
        world.commit(session)
        assert world.record(token).deadline <= end
    world.clock.advance(60)

    assert world.opened([token]).ended_before == ("lifetime", end)


def test_touches_are_rare(world: Any) -> None:
    """A session that is used every second is touched once in a touch interval."""
    token = world.visit(a=1)
    for _ in range(1800):
        world.clock.advance(1)
        session = world.open(token)
        session["a"]
        world.commit(session)

    assert kinds(world).count("Touch") == 10


def test_a_write_extends_too(world: Any) -> None:
    """What is written counts as a use."""
    token = world.visit(a=1)
    world.clock.advance(100)
    session = world.open(token)
    session["b"] = 1
    world.commit(session)

    assert world.record(token).deadline == world.clock() + 3600


@pytest.mark.parametrize("jump", [-3600, -86400, -1, 0])
def test_r17_a_clock_that_jumps_back(make_world: Any, jump: float) -> None:
    """R17: a clock set back neither extends nor ends a session, whatever is done with it then."""
    world = make_world()
    token = world.visit(a=1)
    before = world.record(token)
    world.clock.advance(jump)
    for act in (
        lambda session: session["a"],
        lambda session: session.__setitem__("a", 2),
        lambda session: session.touch(),
        lambda session: session.renew(),
    ):
        session = world.open(token)
        assert not session.is_new
        act(session)
        token = world.commit(session).token or token

    after = world.record(token)
    assert (after.seen, after.deadline) == (before.seen, before.deadline)


def test_r17_a_clock_that_jumps_forward(world: Any) -> None:
    """R17: a clock a day ahead ends a session; whatever comes then does not bring it back."""
    token = world.visit(a=1)
    deadline = world.record(token).deadline
    world.clock.advance(86400)
    session = world.open(token)
    assert session.is_new
    session.touch()
    session.renew()
    world.commit(session)
    world.clock.advance(-86400)

    assert world.record(token).deadline == deadline


# Renewal.


def renewed(world: Any, token: Token, act: Callable[[Session], Any] = Session.renew) -> Token:
    session = world.open(token)
    act(session)
    done = world.commit(session)
    assert isinstance(done.token, Token)
    return done.token


def test_t4_renewal(world: Any) -> None:
    """T4: a renewal gives another secret; the old one works for the grace, then never."""
    old = world.visit(a=1)
    new = renewed(world, old)

    assert (new.sid, new.secret != old.secret) == (old.sid, True)
    world.clock.advance(9.9)
    assert world.values(old) == world.values(new) == {"a": 1}
    world.clock.advance(0.1)
    opened = world.opened([old])
    assert opened.record is None
    assert [note[0] for note in opened.notes] == ["suspicious"]
    assert world.values(new) == {"a": 1}


def test_the_old_cookie_in_its_grace(world: Any) -> None:
    """In its grace the old cookie may write; it renews nothing, and is never sent again."""
    old = world.visit(a=1)
    new = renewed(world, old)
    session = world.open(old)
    session["b"] = 2
    session.renew()
    session.remember(1_000_000)
    with pytest.raises(Conflict, match="just renewed"):
        session.login("alice")
    done = world.commit(session)

    assert (done.token, done.wrote) == (None, True)
    assert world.values(new) == {"a": 1, "b": 2}


def test_remember_on_a_request_overtaken_by_a_renewal(world: Any) -> None:
    """A request that came before a renewal and commits after it does not send its old secret."""
    token = world.visit(a=1)
    late = world.open(token)
    late.remember(1_000_000)
    new = renewed(world, token)
    done = world.commit(late)

    assert done.token is None
    assert world.record(new).persistent


def test_two_renewals_at_once(world: Any) -> None:
    """Of two renewals at once one sends its secret, and that is the one that lives on."""
    token = world.visit(a=1)
    first, second = world.open(token), world.open(token)
    first.renew()
    second.renew()
    second["b"] = 1
    one, two = world.commit(first), world.commit(second)

    assert two.token is None
    world.clock.advance(11)
    assert world.values(one.token) == {"a": 1, "b": 1}
    assert world.values(token) == {}


def test_a26_requests_from_before_a_login(world: Any) -> None:
    """A26: they see nothing of the login, what they write is dropped, they send no cookie."""
    old = world.visit(a=1)
    loaded_before = world.open(old)
    loaded_before["b"] = "late"
    new = renewed(world, old, lambda session: session.login("alice"))
    done = world.commit(loaded_before)
    assert (done.token, done.wrote, done.dropped) == (None, False, "login")

    session = world.open(old)
    assert (session.user, dict(session)) == (None, {})
    session["b"] = "late"
    done = world.commit(session)
    assert (done.token, done.wrote, done.dropped) == (None, False, "shadow")

    world.clock.advance(10)
    opened = world.opened([old])
    assert [note[0] for note in opened.notes] == ["suspicious"]
    assert world.values(new) == {"a": 1}


def test_a_renewal_keeps_late_writes(world: Any) -> None:
    """A25: a mere renewal drops nothing of the requests under way."""
    token = world.visit(a=1)
    late = [world.open(token) for _ in range(20)]
    for number, session in enumerate(late):
        session.add("n")
        session[f"k{number}"] = number
    new = renewed(world, token)
    for session in late:
        assert world.commit(session).dropped == ""

    values = world.values(new)
    assert values.pop("n") == 20
    assert values == {"a": 1} | {f"k{number}": number for number in range(20)}


def test_two_logins_at_once(world: Any) -> None:
    """Two logins of one user at once: one counts; of two users: the later one is a Conflict."""
    for user, other in (("alice", "alice"), ("alice", "bob")):
        token = world.visit(a=1)
        first, second = world.open(token), world.open(token)
        first.login(user)
        second.login(other)
        new = world.commit(first).token
        if user == other:
            done = world.commit(second)
            assert (done.token, done.dropped) == (None, "login")
        else:
            with pytest.raises(Conflict, match="another user"):
                world.commit(second)
        assert world.open(new).user == "alice"


# The end.


@pytest.mark.parametrize("tombstone", [0.0, 86400.0])
def test_l6_gone_is_final(make_world: Any, tombstone: float) -> None:
    """L6, A8: a late write, touch, renewal or login brings no ended session back."""
    world = make_world(tombstone=tombstone)
    token = world.visit(a=1)
    acts: list[Callable[[Session], Any]] = [
        lambda session: session.__setitem__("b", 1),
        lambda session: session.add("n"),
        lambda session: session.touch(),
        lambda session: session.renew(),
        lambda session: session.login("alice"),
        lambda session: session.end("other"),
        lambda session: session.clear(),
    ]
    late = [world.open(token) for _ in acts]
    for act, session in zip(acts, late, strict=True):
        act(session)
    ended = world.open(token)
    ended.logout()
    world.commit(ended)
    for session in late:
        done = world.commit(session)
        assert done.token is None
        assert not done.wrote

    opened = world.opened([token])
    assert opened.record is None
    if tombstone:
        assert opened.ended_before.reason == "user"
        assert world.record(token).status == ENDED
    else:
        assert world.store.load(token.sid) is None


def test_l7_end_all(world: Any) -> None:
    """L7: all sessions of a user end but the one to keep; others' stay."""

    def login(user: str) -> Token:
        session = world.open()
        session.login(user)
        token = world.commit(session).token
        assert isinstance(token, Token)
        return token

    mine = [login("alice") for _ in range(250)]
    bobs = login("bob")
    ended = world.run(ending.end_all_of("alice", mine[0].sid, "password", world.env))

    assert sorted(ended) == sorted(token.sid for token in mine[1:])
    assert [record.sid for record in world.run(ending.records_of("alice", world.env))] == [
        mine[0].sid
    ]
    assert world.open(bobs).user == "bob"
    assert world.open(mine[1]).ended_before.reason == "password"
    assert world.open(login("alice")).user == "alice"


def drive(world: Any, flow: Any, until: type | None = None, skip: int = 0) -> Any:
    """Make a flow's calls; stop before the call of that kind, or at its end."""
    answer = None
    while True:
        try:
            call = flow.send(answer)
        except StopIteration as stop:
            return stop.value
        if until is not None and type(call) is until:
            if not skip:
                return call
            skip -= 1
        answer = None if type(call) is Pause else call.on(world.store)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("calls", range(6))
def test_a_login_in_flight_does_not_survive_end_all(make_world: Any, new: bool, calls: int) -> None:
    """Whenever all sessions are ended while a login is under way, it is over afterwards."""
    world = make_world()
    token = None if new else world.visit(a=1)
    session = world.open(token)
    session.login("alice")
    login = flows.commit(session, world.env)
    answer, done = None, None
    for step in range(20):
        if step == calls:
            world.run(ending.end_all_of("alice", None, "password", world.env))
        try:
            call = login.send(answer)
        except StopIteration as stop:
            done = stop.value
            break
        answer = call.on(world.store)
    assert done is not None
    begun_before = calls > 0
    if calls > step:
        world.run(ending.end_all_of("alice", None, "password", world.env))

    live = world.run(ending.records_of("alice", world.env))
    assert len(live) == (0 if begun_before else 1)
    if not begun_before:
        return
    if done.token is not None:
        assert world.opened([done.token]).record is None


def test_a_damaged_mark_locks_nobody_out(world: Any) -> None:
    """A user's mark that cannot be read makes way for a new one."""

    class Damaging:
        def __init__(self, store: Any) -> None:
            self.store = store
            self.damaged: set[str] = set()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.store, name)

        def load(self, sid: str) -> Record | None:
            if sid in self.damaged:
                raise DamagedRecord("flipped bits")
            found: Record | None = self.store.load(sid)
            return found

        def delete(self, sid: str, ended: Any = None) -> bool:
            self.damaged.discard(sid)
            return bool(self.store.delete(sid, ended))

    world.store = store = Damaging(world.store)
    world.run(ending.end_all_of("alice", None, "user", world.env))
    (mark,) = store.list(status=MARK)
    store.damaged.add(mark.sid)

    session = world.open()
    session.login("alice")
    done = world.commit(session)

    assert world.open(done.token).user == "alice"
    store.damaged.add(mark.sid)
    world.run(ending.end_all_of("alice", None, "user", world.env))
    assert world.open(done.token).user is None


# Lost replies.


def test_r15_a_lost_reply_of_a_write(world: Any) -> None:
    """R15: the write happened, the answer was lost: the new try applies nothing twice."""
    token = world.visit(n=1, log=[1])
    world.store = FlakyStore(world.store, at("replace", Fault.LOST_REPLY))
    session = world.open(token)
    session.add("n")
    session.append("log", 2)
    session.renew()
    done = world.commit(session)

    assert world.values(done.token) == {"n": 2, "log": [1, 2]}
    assert world.record(token).version == 2


@pytest.mark.parametrize("others", [1, 2, 3])
def test_r15_others_came_upon_it(make_world: Any, others: int) -> None:
    """R15: also where others have written upon it before the new try."""
    world = make_world()
    token = world.visit(n=0)
    session = world.open(token)
    session.add("n")
    flow = flows.commit(session, world.env)
    call = drive(world, flow, until=Replace)
    call.on(world.store)
    for _ in range(others):
        other = world.open(token)
        other.add("n")
        world.commit(other)
    with pytest.raises(StopIteration) as stop:
        flow.send(call.on(world.store))

    assert stop.value.value.wrote
    assert world.values(token) == {"n": others + 1}


def test_r15_a_login_came_upon_it(world: Any) -> None:
    """R15, A26: who finds his own write below a login sees and sends nothing of the login."""
    token = world.visit(a=1)
    session = world.open(token)
    session["b"] = 1
    session.renew()
    flow = flows.commit(session, world.env)
    call = drive(world, flow, until=Replace)
    call.on(world.store)
    other = Session(world.env, lambda: opening.Opened(world.clock(), world.record(token)))
    other._opened = msgspec.structs.replace(other._opened, token=token)
    other["secret"] = 1
    other.login("alice")
    # The record of the store is newer than the one it was made from: as if it had loaded now.
    other._record, other._data = world.record(token), world.record(token).data
    new = world.commit(other).token
    with pytest.raises(StopIteration) as stop:
        flow.send(call.on(world.store))
    done = stop.value.value

    assert done.token is None
    assert session.user is None
    assert "secret" not in session
    session["c"] = 1
    assert world.commit(session).dropped == "login"
    assert world.open(new).user == "alice"


def test_r15_a_lost_reply_of_a_creation(world: Any) -> None:
    """R15: a session whose creation was not confirmed is found, and is the visitor's."""
    world.store = FlakyStore(world.store, at("create", Fault.LOST_REPLY))
    session = world.open()
    session["a"] = 1
    done = world.commit(session)

    assert world.values(done.token) == {"a": 1}
    assert world.store.count() == 1


def test_created_and_ended_before_the_new_try(world: Any) -> None:
    """A session that was ended before its creation was confirmed stays ended, and no error."""
    session = world.open()
    session["a"] = 1
    flow = flows.commit(session, world.env)
    call = drive(world, flow, until=Create)
    call.on(world.store)
    world.run(ending.end(call.record.sid, "operator", world.env))

    load = flow.send(call.on(world.store))
    with pytest.raises(StopIteration) as stop:
        flow.send(load.on(world.store))

    done = stop.value.value
    assert (done.token, done.dropped) == (None, "gone")


def test_a_sid_that_is_taken(world: Any) -> None:
    """A sid that is somebody else's is never taken over."""
    token = world.visit(a=1)
    session = world.open()
    session["b"] = 1
    session._working().sid = token.sid

    with pytest.raises(Conflict, match="taken"):
        world.commit(session)
    assert world.values(token) == {"a": 1}


@pytest.mark.parametrize(
    ("verb", "act"),
    [
        ("touch", lambda session: session.touch()),
        ("delete", lambda session: session.end("user")),
    ],
)
def test_r15_other_lost_replies(make_world: Any, verb: str, act: Any) -> None:
    """R15: a touch or an end may be made twice."""
    world = make_world()
    token = world.visit(a=1)
    world.store = FlakyStore(world.store, at(verb, Fault.LOST_REPLY))
    session = world.open(token)
    act(session)
    world.commit(session)

    assert world.record(token).version == 2


@pytest.mark.parametrize("verb", ["load", "create", "replace", "touch", "delete"])
def test_p6_a_store_that_is_down(make_world: Any, verb: str) -> None:
    """P6: what did not get through raises; it is never reported as done, nor is it done later."""
    world = make_world()
    token = world.visit(a=1)
    acts: dict[str, Callable[[], Any]] = {
        "load": lambda: world.open(token)["a"],
        "create": lambda: world.visit(b=1),
        "replace": lambda: renewed(world, token),
        "touch": lambda: renewed(world, token, Session.touch),
        "delete": lambda: renewed(world, token, Session.logout),
    }
    inner = world.store
    world.store = FlakyStore(inner, lambda asked, _: Fault.UNAVAILABLE if asked == verb else None)

    with pytest.raises(StoreUnavailable):
        acts[verb]()
    world.store = inner
    assert world.record(token).version == 1


def test_a_commit_may_be_made_again(world: Any) -> None:
    """After a commit that failed the session still knows what was done."""
    token = world.visit(n=1, log=[1])
    session = world.open(token)
    session["log"].append(2)
    session["a"] = 1
    session.add("n")
    flow = flows.commit(session, world.env)
    drive(world, flow, until=Replace)
    with pytest.raises(StoreUnavailable):
        flow.throw(StoreUnavailable("down"))

    world.commit(session)

    assert world.values(token) == {"n": 2, "log": [1, 2], "a": 1}


# Contention.


def test_tries_are_bounded_and_spread(world: Any) -> None:
    """A commit that always comes second waits with jitter, and gives up in the end."""
    token = world.visit(a=1)
    session = world.open(token)
    session["b"] = 1
    flow = flows.commit(session, world.env)
    pauses = []

    def always_second() -> None:
        answer = None
        while True:
            call = flow.send(answer)
            if type(call) is Pause:
                pauses.append(call.seconds)
                answer = None
                continue
            record = world.record(token)
            newer = msgspec.structs.replace(record, version=record.version + 1)
            world.store.replace(newer, record.version)
            answer = call.on(world.store)

    with pytest.raises(Conflict, match="200 times"):
        always_second()

    assert len(set(pauses)) > 90
    assert all(0 <= pause <= 0.05 for pause in pauses)


def test_who_waits_comes_through(world: Any) -> None:
    """Where others write during each wait, a try with what was just read follows without one."""
    token = world.visit(n=0)
    session = world.open(token)
    session.add("n")
    flow = flows.commit(session, world.env)
    others = waits = 0

    def others_first() -> None:
        nonlocal others, waits
        answer = None
        while True:
            call = flow.send(answer)
            waits += type(call) is Pause
            if not waits or type(call) is Pause:
                other = world.open(token)
                other.add("n")
                assert world.commit(other).wrote
                others += 1
            answer = None if type(call) is Pause else call.on(world.store)

    with pytest.raises(StopIteration) as stop:
        others_first()

    assert stop.value.value.wrote
    assert waits == 1
    assert world.values(token) == {"n": others + 1}


def test_a_damaged_record_that_came_meanwhile(world: Any) -> None:
    """Where the record was damaged since the load, the write or touch is dropped and reported."""
    token = world.visit(a=1)
    for act, kind in ((Session.touch, Touch), (Session.renew, Replace)):
        session = world.open(token)
        act(session)
        flow = flows.commit(session, world.env)
        drive(world, flow, until=kind)
        with pytest.raises(StopIteration) as stop:
            flow.throw(DamagedRecord("flipped bits"))
        done = stop.value.value
        assert (done.dropped, done.token) == ("damaged", None)
        assert [event[:2] for event in done.events] == [("damaged", token.sid)]


def test_a_damaged_record(world: Any) -> None:
    """A record that cannot be read is no session and one report."""
    token = world.visit(a=1)
    flow = opening.open_session([token], world.env)
    call = next(flow)
    assert type(call) is Load
    assert call.sid == token.sid
    with pytest.raises(StopIteration) as stop:
        flow.throw(DamagedRecord("flipped bits"))

    assert stop.value.value.record is None
    assert stop.value.value.notes == (("damaged", token.sid, "flipped bits"),)


def test_reading_anew(world: Any) -> None:
    """A session that was only asked for its user can be read anew."""
    token = world.visit(a=1)
    session = world.open(token)
    assert session.user is None
    other = world.open(token)
    other["a"] = 2
    world.commit(other)

    world.run(flows.refresh(session, world.env))

    assert session["a"] == 2


def test_delete_is_unconditional(world: Any) -> None:
    """The end of a session is a delete, whatever version it has come to."""
    token = world.visit(a=1)
    session = world.open(token)
    session.logout()
    other = world.open(token)
    other["a"] = 2
    world.commit(other)
    world.calls.clear()
    world.commit(session)

    assert [type(call) for call in world.calls] == [Delete]
    assert run(opening.open_session([token], world.env), world.store).record is None
