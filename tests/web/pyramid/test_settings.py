"""`config.include("sojourn.web.pyramid")`: settings of an .ini file."""

from __future__ import annotations

import inspect
import logging
import secrets
from pathlib import Path
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.interfaces import ISessionFactory
from pyramid.response import Response
from pyramid.session import SignedCookieSessionFactory
from webtest import TestApp

from sojourn import ConfigurationError, SessionManager
from sojourn.web.pyramid import SessionFactory, SettingsError
from sojourn.web.pyramid.settings import _MANAGER


def factory(**settings: Any) -> SessionFactory:
    """Make one from settings; `sojourn__lifetime` stands for `sojourn.lifetime`."""
    return SessionFactory.from_settings(
        {name.replace("__", "."): value for name, value in settings.items()}
    )


def policy(**settings: Any) -> dict[str, Any]:
    return factory(**settings).sessions.describe()


def test_defaults() -> None:
    """Without settings those of SessionManager; other settings are not looked at."""
    plain = policy(pyramid__reload_templates="true", sqlalchemy__url="x", sojourner="y")

    assert plain == SessionManager().describe()
    assert factory().set_on_exception is None
    assert factory().old_cookie is None


def test_settings_of_the_manager() -> None:
    """Texts become what the manager wants."""
    made = factory(
        sojourn__store="sqlite:///sessions.db",
        sojourn__idle_timeout=" 1800 ",
        sojourn__lifetime="none",
        sojourn__touch_interval="60.5",
        sojourn__tombstone="None",
        sojourn__max_sessions="5",
        sojourn__on_conflict="raise",
        sojourn__commit_on_error="true",
        sojourn__seal_keys=f"{secrets.token_hex(32)}\n{secrets.token_hex(32)}",
        sojourn__cookie_samesite="none",
        sojourn__cookie_secure="yes",
        sojourn__cookie_persistent="on",
    ).sessions
    found = made.describe()

    assert {name: found[name] for name in ("store", "idle_timeout", "lifetime")} == {
        "store": "sqlite",
        "idle_timeout": 1800.0,
        "lifetime": None,
    }
    assert (found["touch_interval"], found["tombstone"], found["max_sessions"]) == (60.5, 0, 5)
    assert (found["on_conflict"], found["commit_on_error"], found["sealed"]) == (
        "raise",
        True,
        True,
    )
    assert found["cookie_persistent"] is True
    assert made.cookie.name_for[False] == "__Host-id"
    assert "SameSite=None" in found["cookie_http"]


def test_every_argument_of_the_manager_is_a_setting() -> None:
    """None is forgotten, and none is there that the manager does not have."""
    assert set(_MANAGER) == set(inspect.signature(SessionManager).parameters)


def test_a_named_pair_of_limits() -> None:
    """`sojourn.expiry` takes the name of one of NIST's."""
    found = policy(sojourn__expiry="NIST_800_63B_4_AAL3")

    assert (found["idle_timeout"], found["lifetime"]) == (900.0, 43200.0)
    with pytest.raises(SettingsError, match="NIST_800_63B_4_AAL1, NIST"):
        policy(sojourn__expiry="seconds")


def test_pyramids_own_names() -> None:
    """Those of its factory mean the same here."""
    found = factory(
        session__timeout="1200",
        session__reissue_time="120",
        session__max_age="86400",
        session__secure="true",
        session__httponly="true",
        session__samesite="strict",
        session__domain="example.com",
        session__path="/shop",
        session__cookie_name="session",
        session__set_on_exception="false",
    )
    rules = found.sessions.describe()

    assert (rules["idle_timeout"], rules["touch_interval"], rules["lifetime"]) == (1200, 120, 86400)
    assert rules["cookie_persistent"] is True
    assert rules["cookie_https"] == (
        "__Secure-session=; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/shop; "
        "HttpOnly; SameSite=Strict; Domain=example.com; Secure"
    )
    assert found.sessions.cookie.is_secure(False)
    assert found.set_on_exception is False


def test_nothing_of_pyramids_names() -> None:
    """`none` is what None is to its factory: no such limit, a cookie of the browser's session."""
    rules = policy(session__timeout="none", session__max_age="none", session__domain="")

    assert (rules["idle_timeout"], rules["lifetime"]) == (None, 86400)
    assert rules["cookie_persistent"] is False
    assert policy(session__reissue_time="0")["touch_interval"] == 1


def test_all_faults_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """One error has them all, by the names of the settings; it is a ValueError as Pyramid's is."""
    with pytest.raises(SettingsError) as caught:
        factory(
            sojourn__idle_timeot="5",
            sojourn__lifetime="a day",
            sojourn__max_keys="many",
            sojourn__cookie_secure="perhaps",
            sojourn__redact="(",
            sojourn__idle_timeout="60",
            session__timeout="60",
            session__reissue_time="none",
            session__httponly="false",
            sojourn__old_cookie__secrt="x",
        )
    text = str(caught.value)

    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, ConfigurationError)
    for part in (
        "no setting sojourn.idle_timeot",
        "sojourn.lifetime is 'a day'; it must be a number of seconds",
        "sojourn.max_keys is 'many'; it must be a whole number",
        "sojourn.cookie_secure is 'perhaps'; it must be true or false",
        "sojourn.redact must be a regular expression",
        "session.timeout and sojourn.idle_timeout are one",
        "session.reissue_time is none",
        "session.httponly is false",
        "no setting sojourn.old_cookie.secrt",
        "secret of the old cookie must be",
    ):
        assert part in text


@pytest.mark.parametrize("name", ["clock", "entropy", "old_cookie.serializer"])
def test_what_no_text_stands_for(name: str) -> None:
    """A function or an object: refused at the start, not met by the first visitor."""
    with pytest.raises(SettingsError, match=f"sojourn.{name} is 'time.time'; .* from Python"):
        SessionFactory.from_settings(
            {"sojourn.old_cookie.secret": "secret", f"sojourn.{name}": "time.time"}
        )


def test_a_fault_that_the_manager_finds() -> None:
    """It is told too."""
    with pytest.raises(ConfigurationError, match="on_conflict is 'merge'"):
        factory(sojourn__on_conflict="merge")


def test_settings_without_use(caplog: pytest.LogCaptureFixture) -> None:
    """What other packages have under `session.` is named in the log, once, and not used."""
    with caplog.at_level(logging.WARNING, "sojourn"):
        factory(session__type="file", session__data_dir="/tmp", session__timeout="60")

    assert [record.getMessage() for record in caplog.records] == [
        "settings that Sojourn has no use for: session.data_dir, session.type"
    ]


def test_include(tmp_path: Path) -> None:
    """One line, and the application has sessions and their manager."""

    def view(request: Any) -> Response:
        return Response(f"{request.session.add('n')} {request.sessions.count()}")

    def app() -> TestApp:
        config = Configurator(
            settings={"sojourn.store": f"sqlite:///{tmp_path}/sessions.db", "session.timeout": "60"}
        )
        config.include("sojourn.web.pyramid")
        config.add_route("home", "/")
        config.add_view(view, route_name="home")
        made = TestApp(config.make_wsgi_app())
        managers.append(config.registry.getUtility(ISessionFactory).sessions)
        return made

    managers: list[Any] = []
    browser = app()
    assert [browser.get("/").text for _ in range(2)] == ["1 0", "2 1"]
    restarted = app()
    cookie = {"Cookie": f"id={browser.cookies['id']}"}
    assert restarted.get("/", headers=cookie).text == "3 1"
    for manager in managers:
        manager.close()


def test_another_factory_over_ours() -> None:
    """An application that includes us and sets another factory has that one, and no tween's."""
    config = Configurator()
    config.include("sojourn.web.pyramid")
    config.set_session_factory(SignedCookieSessionFactory("secret" * 12))
    config.add_route("home", "/")
    config.add_view(lambda request: Response(type(request.session).__name__), route_name="home")

    assert TestApp(config.make_wsgi_app()).get("/").text == "CookieSession"
