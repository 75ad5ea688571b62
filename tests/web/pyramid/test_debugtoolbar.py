"""The panel of the debug toolbar."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.response import Response
from pyramid_debugtoolbar.toolbar import IToolbarWSGIApp
from webtest import TestApp

from sojourn import SessionManager
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Clock, Fault, FlakyStore, RecordingStore
from sojourn.web.pyramid import SessionFactory


class World:
    """An application with the toolbar, included before us or after us."""

    def __init__(self, first: bool = True, store: Any = None, **settings: Any) -> None:
        self.store = RecordingStore(MemoryStore() if store is None else store)
        self.clock = Clock()
        self.sessions = SessionManager(self.store, clock=self.clock)
        config = Configurator(
            settings={"debugtoolbar.hosts": "127.0.0.1"}
            | {name.replace("__", "."): value for name, value in settings.items()}
        )
        includes: list[Any] = ["pyramid_debugtoolbar", SessionFactory(self.sessions).includeme]
        for include in includes if first else reversed(includes):
            config.include(include)
        config.add_route("home", "/")
        config.add_view(self._home, route_name="home")
        self.view: Any = None
        self.browser = TestApp(config.make_wsgi_app(), {"REMOTE_ADDR": "127.0.0.1"})

    def _home(self, request: Any) -> Response:
        self.view(request)
        return Response("<html><body>page</body></html>")

    def panel(self, view: Any, **headers: str) -> dict[str, str]:
        """Make a request; return the rows of its panel."""
        self.view = view
        page = self.browser.get("/", headers=headers, expect_errors=True)
        where = re.search(r"/_debug_toolbar/[0-9a-f]+", page.text)
        assert where is not None
        text = self.browser.get(where[0]).text
        assert "Session" in text
        rows = re.findall(r"<tr><th>([^<]*)</th><td><code>([^<]*)</code></td></tr>", text)
        return {unescape(name): unescape(value) for name, value in rows}


@pytest.mark.parametrize("first", [True, False])
def test_it_shows_the_session(first: bool) -> None:
    """What is in it and what the request did, whichever was included first."""
    world = World(first)
    world.panel(lambda request: request.session.update(a=1))

    rows = world.panel(lambda request: request.session.update(b="<x>", cart={"items": ["tea"]}))

    assert rows["status"] == "changed"
    assert rows["user"] == "None"
    assert len(rows["sid"]) == 22
    assert (rows["['a']"], rows["['b']"]) == ("1", "'<x>'")
    assert rows["['cart']"] == "{'items': ['tea']}"


def test_what_is_secret_is_not_shown() -> None:
    """By its key, also deep inside; and never what opens the session."""
    world = World()
    secret = "s3cr3t-value"

    def view(request: Any) -> None:
        session = request.session
        session["password"] = session["API_KEY"] = session["csrf"] = session["pin"] = secret
        session["user"] = {"name": "alice", "auth": {"x": secret}, "cards": [{"iban": secret}]}
        session["spinning"] = "shown"
        session.get_csrf_token()

    world.view = view
    rows = world.panel(view)
    text = repr(rows)

    assert secret not in text
    assert rows["['password']"] == rows["['_csrft_']"] == "'(not shown)'"
    assert rows["['user']"] == "{'name': 'alice', 'auth': '(not shown)', 'cards': '(not shown)'}"
    assert rows["['spinning']"] == "'shown'"
    token = world.browser.cookies["id"]
    assert token.partition(".")[2] not in repr(world.panel(lambda request: request.session.user))


def test_keys_that_look_secret() -> None:
    """As applications spell them, and not what only looks like one."""
    secret = (
        "pwd Passwort userPin user_pin jwt bearer session_id JSESSIONID private signature cvv "
        "recovery_codes cookie otp_seed apikey"
    ).split()
    plain = ["spinning", "name", "cart", "page", "opinion"]

    rows = World().panel(
        lambda request: request.session.update(dict.fromkeys([*secret, *plain], "value"))
    )

    assert {key for key in [*secret, *plain] if rows[f"[{key!r}]"] == "'value'"} == set(plain)


def test_an_own_pattern() -> None:
    """`sojourn.redact` is another pattern, in place of ours."""
    rows = World(sojourn__redact="^name$").panel(
        lambda request: request.session.update(name="alice", password="shown")
    )

    assert (rows["['name']"], rows["['password']"]) == ("'(not shown)'", "'shown'")


def test_looking_costs_nothing() -> None:
    """A page that does not use the session stays one that does not; a read stays one load."""
    world = World()
    world.panel(lambda request: request.session.update(a=[1]))
    world.store.calls.clear()

    assert world.panel(lambda request: None) == {"Session": "not used by this request"}
    assert world.panel(lambda request: request.session) == {"Session": "not used by this request"}
    assert world.store.verbs == []
    assert world.browser.get("/").headers.getall("Vary") == []
    world.clock.advance(1000)
    assert world.panel(lambda request: request.session.peek["a"])["['a']"] == "[1]"
    assert world.store.verbs == ["load"]


def test_the_store_down() -> None:
    """The panel says so."""
    world = World(store=FlakyStore(MemoryStore(), lambda verb, _: Fault.UNAVAILABLE))

    def view(request: Any) -> None:
        try:
            request.session.get("a")
        except Exception:
            pass

    rows = world.panel(view, Cookie=f"id={'A' * 22}.{'A' * 43}")

    assert "did not answer" in rows["Session"]


def test_long_values_are_cut() -> None:
    """A value of 100 kB does not make a page of 100 kB."""
    rows = World().panel(lambda request: request.session.update(a="x" * 100_000))

    assert len(rows["['a']"]) < 600


def test_without_the_toolbar() -> None:
    """Where the application does not include it, it is left alone."""
    config = Configurator()
    config.include(SessionFactory(SessionManager()).includeme)
    app = config.make_wsgi_app()

    assert app.registry.queryUtility(IToolbarWSGIApp) is None
