"""Whole requests in a check: the flows of the core on the store that is checked, with faults.

A check is a flow, so what a driver does for a flow is done here by flows around it: they answer
what is not for the store, call again where an answer got lost, stop in the middle, and lay several
requests into one another. So all of it works on stores of both colours, and nothing waits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias, TypeVar

from sojourn.core import ending, flows, opening
from sojourn.core.calls import Call, Flow, Pause, Tell
from sojourn.core.opening import Opened
from sojourn.core.record import Record
from sojourn.core.rules import Environment, Rules
from sojourn.core.session import Session
from sojourn.core.token import Token
from sojourn.errors import SojournError, StoreUnavailable
from sojourn.testing.clock import Clock
from sojourn.testing.faults import Crash, Fault
from sojourn.testing.records import expect

__all__ = ["Act", "Point", "Site", "every_order", "every_point", "opened_by"]

T = TypeVar("T")

Act: TypeAlias = Callable[[Session], object]
"""What application code does with the session of a request."""


class Site:
    """An application: rules, a clock, handlers that remember; its methods are flows.

    Attributes:
        clock: of this worker; another site made with `other` may be ahead or behind.
        env: what flows take.
        handled: the ends whose handlers ran: (sid, reason, what `n` was).
    """

    def __init__(self, clock: Clock, **rules: Any) -> None:
        """Take the time from `clock`; rules as in `core.rules`."""
        settings: dict[str, Any] = {
            "idle_timeout": 3600.0,
            "lifetime": 86400.0,
            "touch_interval": 180.0,
            "handlers": frozenset({"ended"}),
        }
        self.clock = clock
        self.rules = Rules(**(settings | rules))
        self.env = Environment(self.rules, clock, os.urandom)
        self.handled: list[tuple[str, str, object]] = []

    def other(self, ahead: float) -> Site:
        """Return another worker of the same application, whose clock is that much ahead."""
        site = Site(self.clock)
        clock = self.clock
        site.rules = self.rules
        site.env = Environment(self.rules, lambda: clock() + ahead, os.urandom)
        site.handled = self.handled
        return site

    def served(self, flow: Flow[T]) -> Flow[T]:
        """Run a flow of the core as a driver does: run handlers, and wait for nothing."""
        return _answered(flow, self._serve)

    def _serve(self, call: Call) -> Flow[Any]:
        if type(call) is Pause:
            return None
        if type(call) is Tell:
            self.handled.append((call.session.sid, call.reason, call.session.get("n")))
            return []
        return (yield call)

    def visit(self, token: Token | None, act: Act) -> Flow[flows.Committed]:
        """Make a request: open the session, let `act` use it, commit."""
        return (yield from self.served(self._visit(token, act)))

    def _visit(self, token: Token | None, act: Act) -> Flow[flows.Committed]:
        tokens = [] if token is None else [token]
        opened = yield from opening.open_session(tokens, self.env)
        session = opened_by(opened, self.env)
        act(session)
        return (yield from flows.commit(session, self.env))

    def arrive(self, act: Act = lambda session: None) -> Flow[Token]:
        """Make a new session with `n` = 1, and return its cookie."""

        def begin(session: Session) -> None:
            session["n"] = 1
            session["log"] = ["first"]
            act(session)

        done = yield from self.visit(None, begin)
        expect(done.token is not None, f"a new session got no cookie: {done}")
        return done.token  # type: ignore[return-value]

    def arrivals(self, count: int, act: Act = lambda session: None) -> Flow[list[Token]]:
        """Make several new sessions, and return their cookies."""
        tokens = []
        for _ in range(count):
            tokens.append((yield from self.arrive(act)))
        return tokens

    def seen(self, token: Token) -> Flow[Session]:
        """Return what a request with that cookie sees; nothing is written."""
        opened = yield from self.served(opening.open_session([token], self.env))
        return opened_by(opened, self.env)

    def end(self, sid: str, reason: str = "user") -> Flow[bool]:
        """End one session, as an operator does."""
        return (yield from self.served(ending.end(sid, reason, self.env)))

    def end_all(self, user: str) -> Flow[list[str]]:
        """End all sessions of a user."""
        return (yield from self.served(ending.end_all_of(user, None, "password", self.env)))

    def sweep(self, owner: str = "sweeper", page: int = 10) -> Flow[ending.Swept]:
        """Sweep once."""
        return (yield from self.served(ending.sweep(self.env, owner, page)))

    def of_user(self, user: str) -> Flow[list[Record]]:
        """Return the live records of a user."""
        return (yield from self.served(ending.records_of(user, self.env)))


def opened_by(opened: Opened, env: Environment) -> Session:
    """Return the session that was opened."""
    return Session(env, lambda: opened)


class Point:
    """A place among the calls of a request, and the fault that happens there.

    Attributes:
        number: which call, counted from 1.
        fault: `LOST_REPLY`: the driver calls again, and that answer arrives. `TWICE`: the store
            gets the call twice. `UNAVAILABLE`: the store does it, but no answer ever arrives: the
            request fails. `CRASH_BEFORE` and `CRASH_AFTER`: the process ends there.
        met: whether the request came that far.
    """

    def __init__(self, number: int, fault: Fault) -> None:
        """Choose."""
        self.number, self.fault, self.met = number, fault, False

    def __repr__(self) -> str:
        return f"{self.fault.name} at call {self.number}"

    def on(self, flow: Flow[T]) -> Flow[T]:
        """Run a request that meets the fault.

        Raises:
            Crash: the process that made the request is no more.
            StoreUnavailable: as the core passes it on.
        """
        count = 0

        def answer(call: Call) -> Flow[Any]:
            nonlocal count
            count += 1
            if count != self.number:
                return (yield call)
            self.met = True
            return (yield from self._happen(call))

        return _answered(flow, answer)

    def _happen(self, call: Call) -> Flow[Any]:
        if self.fault is Fault.CRASH_BEFORE:
            raise Crash(repr(self))
        answer: Any = None
        try:
            answer = yield call
            if self.fault in (Fault.LOST_REPLY, Fault.TWICE):
                answer = yield call
        except SojournError:
            if self.fault not in (Fault.CRASH_AFTER, Fault.UNAVAILABLE):
                raise
        if self.fault is Fault.CRASH_AFTER:
            raise Crash(repr(self))
        if self.fault is Fault.UNAVAILABLE:
            raise StoreUnavailable(f"no answer: {self!r}")
        return answer


def every_point(*faults: Fault, calls: int = 100) -> Iterator[Point]:
    """Yield each place in a request with each fault, until the request has no such call.

    Raises:
        AssertionError: a request that was to be tried made no call, or never came to an end.
    """
    for fault in faults:
        for number in range(1, calls + 1):
            point = Point(number, fault)
            yield point
            if not point.met:
                expect(number > 1, "the request made no call at all")
                break
        else:
            raise AssertionError(f"the request made more than {calls} calls")


def every_order(begin: Callable[[], Flow[list[Flow[Any]]]]) -> Flow[list[list[Any]]]:
    """Run requests at the same time, once in each order of their calls.

    Args:
        begin: called for each order: prepares, and returns the requests.

    Returns:
        For each order what the requests returned.
    """
    told: list[list[Any]] = []
    choices: list[int] = []
    while True:
        running = yield from begin()
        pending: dict[int, Call] = {}
        results: list[Any] = [None] * len(running)
        for number, flow in enumerate(running):
            _step(number, flow, None, pending, results)
        widths: list[int] = []
        while pending:
            alive = sorted(pending)
            place = len(widths)
            if place == len(choices):
                choices.append(0)
            widths.append(len(alive))
            number = alive[choices[place]]
            answer = yield pending.pop(number)
            _step(number, running[number], answer, pending, results)
        told.append(results)
        # The next order: the last choice that can still be another one.
        del choices[len(widths) :]
        while choices and choices[-1] == widths[len(choices) - 1] - 1:
            choices.pop()
        if not choices:
            return told
        choices[-1] += 1


def _step(
    number: int, flow: Flow[Any], answer: Any, pending: dict[int, Call], results: list[Any]
) -> None:
    try:
        pending[number] = flow.send(answer)
    except StopIteration as stop:
        results[number] = stop.value


def recorded(flow: Flow[T], calls: list[Call]) -> Flow[T]:
    """Run a flow, and remember its calls."""

    def keep(call: Call) -> Flow[Any]:
        calls.append(call)
        return (yield call)

    return _answered(flow, keep)


def _answered(flow: Flow[T], answer: Callable[[Call], Flow[Any]]) -> Flow[T]:
    """Run a flow; another one finds the answer to each of its calls."""
    try:
        call = next(flow)
        while True:
            try:
                found = yield from answer(call)
            except SojournError as error:
                call = flow.throw(error)
            else:
                call = flow.send(found)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def sids(records: Iterable[Record]) -> list[str]:
    """Return the sids, sorted."""
    return sorted(record.sid for record in records)
