"""R1: two requests of one visitor, every order of their calls on the store, no timing.

Each request opens the session, does one thing, and commits. The invariants are those of DESIGN
sections 5 and 6; what a request was told (its cookie, what was dropped) must be true in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sojourn.core import ending, flows, opening
from sojourn.core.calls import Flow, Pause
from sojourn.core.expiry import start_of
from sojourn.core.record import ENDED, LIVE
from sojourn.core.session import Session
from sojourn.core.token import Token
from sojourn.errors import Conflict

Request = Callable[[Any, Token], Flow[Any]]


def asks(act: Callable[[Session], Any]) -> Request:
    def request(world: Any, token: Token) -> Flow[Any]:
        opened = yield from opening.open_session([token], world.env)
        session = Session(world.env, lambda: opened)
        session.get("n")
        act(session)
        try:
            return (yield from flows.commit(session, world.env))
        except Conflict:
            return None

    return request


def login(user: str) -> Callable[[Session], None]:
    def act(session: Session) -> None:
        if not session._opened.previous:
            session.login(user)

    return act


def end_all(world: Any, token: Token) -> Flow[Any]:
    ended = yield from ending.end_all_of("alice", None, "password", world.env)
    return ended


def operator(world: Any, token: Token) -> Flow[Any]:
    return (yield from ending.end(token.sid, "operator", world.env))


def an_hour_later(world: Any, token: Token) -> Flow[Any]:
    yield Pause(0.0)
    world.clock.advance(3600)


REQUESTS: dict[str, Request] = {
    "read": asks(lambda session: None),
    "write": asks(lambda session: session.__setitem__("w", 1)),
    "add": asks(lambda session: session.add("n")),
    "append": asks(lambda session: session.append("log", "x")),
    "touch": asks(lambda session: session.touch()),
    "renew": asks(lambda session: session.renew()),
    "renew and add": asks(lambda session: (session.renew(), session.add("n"))),
    "login": asks(login("alice")),
    "login of bob": asks(login("bob")),
    "login and add": asks(lambda session: (login("alice")(session), session.add("n"))),
    "end": asks(lambda session: session.end("user")),
    "end all": end_all,
    "operator": operator,
    "expire": an_hour_later,
}


def schedules(world_of: Callable[[], tuple[Any, Token]], *names: str) -> Iterator[Any]:
    """Run the requests once in every order of their calls; yield the world after each."""
    choices: list[int] = []
    while True:
        world, token = world_of()
        running = {number: REQUESTS[name](world, token) for number, name in enumerate(names)}
        pending = {number: next(flow) for number, flow in running.items()}
        results: dict[int, Any] = {}
        widths: list[int] = []
        order: list[int] = []
        while pending:
            alive = sorted(pending)
            place = len(widths)
            if place == len(choices):
                choices.append(0)
            widths.append(len(alive))
            number = alive[choices[place]]
            order.append(number)
            call = pending.pop(number)
            answer = None if type(call) is Pause else call.on(world.store)
            try:
                pending[number] = running[number].send(answer)
            except StopIteration as stop:
                results[number] = stop.value
        yield world, token, [results[number] for number in range(len(names))], order
        # The next schedule: the last choice that can still be another one.
        del choices[len(widths) :]
        while choices and choices[-1] == widths[len(choices) - 1] - 1:
            choices.pop()
        if not choices:
            return
        choices[-1] += 1


def kept(done: Any) -> bool:
    """Tell whether a commit said that it kept what the request did."""
    return isinstance(done, flows.Committed) and done.wrote and not done.dropped


def judge(world: Any, token: Token, names: tuple[str, ...], results: list[Any]) -> None:
    record = world.store.load(token.sid)
    expired = "expire" in names
    commits = [done for done in results if isinstance(done, flows.Committed)]
    tokens = {token, *(done.token for done in commits if done.token is not None)}

    # Ended stays ended, and says so.
    if any(name == "operator" for name in names) or any(done.cleared for done in commits):
        assert record.status == ENDED
        assert record.data == b""
        assert record.user is None
    if record.status == LIVE:
        # No change that was acknowledged is lost, and none is there twice.
        added = sum("add" in name and kept(done) for name, done in zip(names, results, strict=True))
        appended = sum(
            name == "append" and kept(done) for name, done in zip(names, results, strict=True)
        )
        # What was kept may also be in another session, made since this one was over.
        values = world.run_values(record)
        if not expired:
            assert values["n"] == 1 + added
            assert len(values.get("log", [])) == appended
        # No session outlives its limits.
        assert record.deadline <= start_of(record) + record.lifetime
        assert record.deadline <= record.seen + record.idle_timeout
        assert record.seen <= world.clock()
        # A login that was acknowledged is there, and was meant.
        for name, done in zip(names, results, strict=True):
            if "login" in name and kept(done) and done.token and done.token.sid == token.sid:
                assert record.user is not None
        if record.user is not None:
            assert f"login of {record.user}" in names or record.user == "alice"
    # The secret from before a login sees nothing of it; after the grace one secret is left.
    opened = world.opened([token])
    if record.status == LIVE and record.generation:
        assert opened.record is None
    world.clock.advance(11)
    live = [one for one in tokens if world.opened([one]).record is not None]
    assert len({one.sid for one in live}) == len(live)
    assert len([one for one in live if one.sid == token.sid]) <= 1
    if record.status == LIVE and not expired:
        # The visitor is not logged out: somebody was sent the secret that lives.
        assert len([one for one in live if one.sid == token.sid]) == 1
    # All sessions of the user ended at the end: none is left that began before.
    if "end all" in names and record.status == LIVE:
        assert record.user is None or "login" in "".join(names)


@pytest.fixture
def world_of(make_world: Any) -> Callable[[], tuple[Any, Token]]:
    def make() -> tuple[Any, Token]:
        world = make_world()
        token = world.visit(n=1)
        world.clock.advance(200)

        def values(record: Any) -> dict[str, Any]:
            opened = opening.Opened(world.clock(), record, record.data)
            return dict(Session(world.env, lambda: opened))

        world.run_values = values
        return world, token

    return make


@pytest.mark.parametrize("second", REQUESTS)
@pytest.mark.parametrize("first", REQUESTS)
def test_r1_two_requests(world_of: Any, first: str, second: str) -> None:
    """R1: whatever two requests do, in every order of their calls, all promises hold."""
    names = (first, second)
    count = 0
    for world, token, results, order in schedules(world_of, *names):
        count += 1
        try:
            judge(world, token, names, results)
        except AssertionError as error:
            error.add_note(f"{names} in the order {order}: {results}")
            raise

    assert count > 1 or "expire" in names


@pytest.mark.parametrize(
    "names",
    [
        ("add", "add", "add"),
        ("add", "renew and add", "add"),
        ("add", "login", "add"),
        ("renew", "renew", "add"),
        ("add", "end", "touch"),
        ("write", "operator", "login"),
        ("append", "append", "expire"),
        ("renew", "end", "renew"),
    ],
    ids="-".join,
)
def test_r1_three_requests(world_of: Any, names: tuple[str, ...]) -> None:
    """R1: the same for three requests."""
    for world, token, results, order in schedules(world_of, *names):
        try:
            judge(world, token, names, results)
        except AssertionError as error:
            error.add_note(f"{names} in the order {order}: {results}")
            raise


def test_r1_end_all_against_logins(world_of: Any) -> None:
    """R1: a login whose commit began before all sessions of the user ended is over afterwards."""
    count = 0
    for world, _, results, order in schedules(world_of, "login", "end all"):
        # The first call of a login loads the session; with the second its commit begins.
        if order[:2] == [0, 0]:
            count += 1
            assert world.run(ending.records_of("alice", world.env)) == [], order
            token = results[0].token
            assert token is None or world.opened([token]).record is None

    assert count > 10
