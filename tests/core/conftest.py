"""A small world for the core: a store in memory, a clock that stands still, visitors."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

import pytest

from sojourn.core import flows, opening
from sojourn.core.calls import Call, Flow
from sojourn.core.opening import Opened
from sojourn.core.record import Client, Record
from sojourn.core.rules import Environment, Rules
from sojourn.core.session import Session
from sojourn.core.token import Token
from sojourn.drivers import run
from sojourn.errors import SojournError
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Clock

T = TypeVar("T")
CLIENT = Client("192.0.2.1", "test")


class World:
    """Rules, clock and store, and what a request does with them.

    Attributes:
        calls: every call that was made on the store, in order.
    """

    def __init__(self, **rules: Any) -> None:
        settings: dict[str, Any] = {
            "idle_timeout": 3600.0,
            "lifetime": 86400.0,
            "touch_interval": 180.0,
        }
        self.clock = Clock(1_750_000_000.0)
        self.env = Environment(Rules(**(settings | rules)), self.clock, os.urandom)
        self.store = MemoryStore()
        self.calls: list[Call] = []

    def run(self, flow: Flow[T]) -> T:
        """Run a flow on the store."""
        return run(self._watched(flow), self.store)

    def _watched(self, flow: Flow[T]) -> Generator[Call, Any, T]:
        try:
            call = next(flow)
            while True:
                self.calls.append(call)
                try:
                    answer = yield call
                except SojournError as error:
                    call = flow.throw(error)
                else:
                    call = flow.send(answer)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    def open(self, *tokens: Token | None, client: Client = CLIENT) -> Session:
        """Return the session of a request that came with those tokens; loaded on first use."""
        given = [token for token in tokens if token is not None]
        return Session(self.env, lambda: self.run(opening.open_session(given, self.env)), client)

    def commit(self, session: Session) -> flows.Committed:
        """End the request."""
        return self.run(flows.commit(session, self.env))

    def visit(self, **values: Any) -> Token:
        """Make a session with those values; return the cookie."""
        session = self.open()
        session.update(values)
        if not values:
            session.csrf_token  # noqa: B018 - makes a session without values
        token = self.commit(session).token
        assert token is not None
        return token

    def values(self, token: Token) -> dict[str, Any]:
        """Return what a visitor with that cookie would see."""
        return dict(self.open(token))

    def record(self, token: Token) -> Record:
        """Return what the store holds."""
        record = self.store.load(token.sid)
        assert record is not None
        return record

    def opened(self, tokens: Iterable[Token]) -> Opened:
        """Return what tokens open."""
        return self.run(opening.open_session(tokens, self.env))


@pytest.fixture(scope="session")
def make_world() -> type[World]:
    """Make as many worlds as a test needs, with rules of their own."""
    return World


@pytest.fixture
def world() -> World:
    """One world with an idle timeout of an hour, a lifetime of a day, touches after 3 minutes."""
    return World()
