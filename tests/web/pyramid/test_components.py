"""`ICounter(request.session)`: what zope adapters keep, in the same record as elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from pyramid.interfaces import ISession
from webtest import TestApp
from zope.interface import Attribute, Interface, implementer

from sojourn import Append, SessionManager, state
from sojourn.testing import Clock
from sojourn.web.components import component
from sojourn.web.pyramid import SessionFactory

from .apps import make_app


class ICounter(Interface):  # type: ignore[misc]
    value = Attribute("how often")
    value.setTaggedValue("merge", "add")


@implementer(ICounter)
class Counter:
    def __init__(self, session: Any) -> None:
        self.value = 0


class INote(Interface):  # type: ignore[misc]
    """Without Attributes: of one request only."""


@implementer(INote)
class Note:
    def __init__(self, session: Any) -> None:
        self.session = session


class IUnknown(Interface):  # type: ignore[misc]
    value = Attribute("nobody adapts to it")


@state("pyramid tests: cart")
@dataclass
class Cart:
    items: Annotated[list[str], Append] = field(default_factory=list)


class World:
    def __init__(self, include: bool) -> None:
        self.sessions = SessionManager(clock=Clock())
        self.view: Any = None

        def configure(config: Any) -> None:
            config.registry.registerAdapter(Counter, (ISession,), ICounter)
            config.registry.registerAdapter(Note, (ISession,), INote)

        factory = SessionFactory(self.sessions)
        app = make_app(
            factory, lambda request: self.view(request), configure=configure, include=include
        )
        self.browser = TestApp(app)

    def visit(self, view: Any) -> Any:
        self.view = view
        return self.browser.get("/")


@pytest.fixture(params=["include", "factory"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param == "include")


def count(request: Any) -> str:
    counter = ICounter(request.session)
    counter.value += 1
    return str(counter.value)


def test_a_component_is_kept(world: World) -> None:
    """Changed in place, with no flag; one object in a request."""
    assert [world.visit(count).text for _ in range(3)] == ["1", "2", "3"]
    assert world.visit(lambda r: str(ICounter(r.session) is ICounter(r.session))).text == "True"


def test_reading_it_writes_nothing(world: World) -> None:
    """Also where there is none yet: no session is made for it."""
    answer = world.visit(lambda r: str(ICounter(r.session).value))

    assert (answer.text, world.sessions.count()) == ("0", 0)
    assert answer.headers.getall("Set-Cookie") == []


def test_requests_at_once_merge(world: World) -> None:
    """An Attribute that adds: what both requests counted counts."""
    world.visit(count)

    def slow(request: Any) -> str:
        counter = ICounter(request.session)
        world.view = count
        TestApp(world.browser.app).get("/", headers={"Cookie": request.headers["Cookie"]})
        counter.value += 1
        return ""

    world.visit(slow)

    assert world.visit(lambda r: str(ICounter(r.session).value)).text == "3"


def test_it_is_the_same_in_other_frameworks(world: World) -> None:
    """The record holds it by the interface, whatever framework serves the next request."""
    world.visit(count)
    session = world.sessions.session(f"id={world.browser.cookies['id']}")
    counter = component(session, ICounter, lambda: Counter(session))
    assert counter.value == 1
    counter.value = 41
    world.sessions.commit(session)

    assert world.visit(count).text == "42"


def test_of_one_request_only(world: World) -> None:
    """An interface without Attributes is adapted to, and nothing is kept."""
    answer = world.visit(lambda r: str(INote(r.session).session is r.session))

    assert (answer.text, world.sessions.count()) == ("True", 0)


def test_no_adapter(world: World) -> None:
    """It could not adapt, as zope.interface says; a default is taken; it is itself an ISession."""

    def view(request: Any) -> str:
        with pytest.raises(TypeError, match="Could not adapt"):
            IUnknown(request.session)
        assert ISession(request.session) is request.session
        return str(IUnknown(request.session, "default"))

    assert world.visit(view).text == "default"


def test_typed_state(world: World) -> None:
    """State by its class, changed in place."""
    for item in ("tea", "map"):
        world.visit(lambda r, item=item: r.session[Cart].items.append(item) or "")

    assert world.visit(lambda r: str(r.session[Cart].items)).text == "['tea', 'map']"
