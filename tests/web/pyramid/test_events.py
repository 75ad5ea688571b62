"""What happens to sessions, told through Pyramid's events."""

from __future__ import annotations

from typing import Any

import pytest
from webtest import TestApp

from sojourn import SessionManager
from sojourn.core.session import Session
from sojourn.testing import Clock
from sojourn.web.pyramid import SessionCreated, SessionEnded, SessionFactory, SessionRenewed

from .apps import make_app


class World:
    def __init__(self, *kinds: Any, listener: Any = None) -> None:
        self.told: list[Any] = []
        self.clock = Clock()
        self.sessions = SessionManager(clock=self.clock)

        def configure(config: Any) -> None:
            for kind in kinds:
                config.add_subscriber(listener or self.told.append, kind)

        self.view: Any = None
        app = make_app(
            SessionFactory(self.sessions), lambda request: self.view(request), configure=configure
        )
        self.browser = TestApp(app)

    def visit(self, view: Any) -> list[Any]:
        """Make a request; return what was told because of it."""
        self.told.clear()
        self.view = view
        self.browser.get("/")
        return [(type(event).__name__, event.session["a"]) for event in self.told]


@pytest.fixture
def world() -> World:
    return World(SessionCreated, SessionRenewed, SessionEnded)


def test_a_life(world: World) -> None:
    """Made, renewed by `renew` and by a login, ended with a reason; reading tells nothing."""
    assert world.visit(lambda r: r.session.update(a=1) or "") == [("SessionCreated", 1)]
    assert world.visit(lambda r: str(dict(r.session))) == []
    assert world.visit(lambda r: r.session.update(a=2) or "") == []
    assert world.visit(lambda r: r.session.renew() or "") == [("SessionRenewed", 2)]
    assert world.visit(lambda r: r.session.login("alice") or "") == [("SessionRenewed", 2)]
    assert world.told[0].session.user == "alice"
    assert world.visit(lambda r: r.session.invalidate() or "") == [("SessionEnded", 2)]
    assert world.told[0].reason == "user"
    assert isinstance(world.told[0].session, Session)


def test_ends_outside_of_requests(world: World) -> None:
    """By an operator, and by time in a sweep."""
    world.visit(lambda r: r.session.update(a=1) or "")
    sid = world.told[0].session.sid
    world.told.clear()
    world.sessions.end(sid)
    assert [(event.session.sid, event.reason) for event in world.told] == [(sid, "operator")]

    world.visit(lambda r: r.session.update(a=2) or "")
    world.told.clear()
    world.clock.advance(4000)
    world.sessions.sweep()
    assert [(event.session["a"], event.reason) for event in world.told] == [(2, "idle")]


def test_a_subscriber_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """The request is answered; of an end it is told again in a later sweep."""
    tries: list[str] = []

    def fails(event: Any) -> None:
        tries.append(event.session.sid)
        if len(tries) == 1:
            raise ZeroDivisionError

    world = World(SessionEnded, listener=fails)
    world.visit(lambda r: r.session.update(a=1) or "")
    world.visit(lambda r: r.session.invalidate() or "")
    assert len(tries) == 1
    assert "ZeroDivisionError" in caplog.text

    world.clock.advance(1000)
    world.sessions.sweep()

    assert len(tries) == 2
    assert tries[0] == tries[1]


def test_only_what_somebody_subscribed_to() -> None:
    """Handlers of an end cost a write; there are none where nobody listens."""
    assert World().sessions._env.rules.handlers == frozenset()
    assert World(SessionRenewed).sessions._env.rules.handlers == {"renewed"}
