"""C1 to C11: name and attributes of the cookie, as they leave through both middlewares."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn.core.cookie import CookieSettings
from sojourn.core.session import Session
from sojourn.errors import ConfigurationError, InvalidValue
from sojourn.manager import SessionManager
from sojourn.stores.cookie import CookieStore

from ..web.kit import Site

MakeSite = Callable[..., Site]


def write(session: Session) -> str:
    session["a"] = 1
    return ""


def attributes(line: str) -> dict[str, str]:
    """Return the attributes of a Set-Cookie header; the cookie itself under ""."""
    pair, *rest = line.split("; ")
    out = {"": pair.partition("=")[0]}
    for part in rest:
        name, _, value = part.partition("=")
        out[name] = value
    return out


def test_C1_host_prefix_and_secure(site: Site) -> None:
    """On https: __Host-, Secure, Path=/, no Domain, when it is set and when it is cleared."""
    for handler in (write, lambda session: session.end()):
        (line,) = site.visit(handler, https=True).all("Set-Cookie")
        found = attributes(line)
        assert found[""] == "__Host-id"
        assert found["Path"] == "/"
        assert "Secure" in found
        assert "Domain" not in found


@pytest.mark.parametrize("settings", [{"cookie_domain": "example.org"}, {"cookie_path": "/app"}])
def test_C2_secure_prefix(make_site: MakeSite, settings: dict[str, str]) -> None:
    """With a domain or another path the name is __Secure-; never a __Host- that cannot hold."""
    (line,) = make_site(**settings).visit(write, https=True).all("Set-Cookie")

    assert attributes(line)[""] == "__Secure-id"
    assert "Secure" in attributes(line)


def test_C4_http_only(site: Site) -> None:
    """HttpOnly; and the session itself shows its secret to nobody."""
    shown: list[str] = []

    def handler(session: Session) -> str:
        write(session)
        shown.extend((repr(session), str(session), f"{session}", repr(vars(type(session)))))
        return session.sid

    answer = site.visit(handler)
    secret = answer.token[23:]
    site.visit(lambda session: shown.extend((repr(session), repr(session._opened))))

    assert "HttpOnly" in attributes(answer.all("Set-Cookie")[0])
    assert secret not in "".join(shown)
    others = [value for name, value in answer.headers if name.lower() != "set-cookie"]
    assert secret not in answer.body.decode() + "".join(others)


def test_C5_same_site(site: Site) -> None:
    """Lax by default; None only together with Secure."""
    (line,) = site.visit(write).all("Set-Cookie")
    assert attributes(line)["SameSite"] == "Lax"

    for settings in ({}, {"cookie_secure": False}):
        with pytest.raises(ConfigurationError, match="cookie_secure=True"):
            SessionManager(cookie_samesite="None", **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="cookie_samesite"):
        SessionManager(cookie_samesite="lax")


def test_C6_size(make_site: MakeSite) -> None:
    """The cookie store takes what fits into 4,096 bytes, and refuses the next size unsent."""
    site = make_site()
    site.sessions = SessionManager(CookieStore([os.urandom(32)]), clock=site.clock)  # type: ignore[arg-type]
    sizes = []
    refused = ""
    for size in range(2400, 4000):
        try:
            answer = site.request(lambda session, size=size: session.update(a="x" * size))
        except InvalidValue as error:
            refused = str(error)
            break
        (line,) = answer.all("Set-Cookie")
        sizes.append(len(line.partition(";")[0]) - 1)

    assert "4,096" in refused
    # Base64 grows by one or two characters at a time.
    assert 4094 <= max(sizes) <= 4096
    settings = CookieSettings()
    assert settings.set("v" * 4094, None, False)
    with pytest.raises(ConfigurationError, match="4,096"):
        settings.set("v" * 4095, None, False)


def test_C7_max_age(site: Site) -> None:
    """Browsers cap Max-Age at 400 days, and no more is sent; the server's own limit holds."""
    (line,) = site.visit(lambda session: session.remember(timedelta(days=500))).all("Set-Cookie")

    assert attributes(line)["Max-Age"] == str(400 * 86400)


def test_C8_until_the_browser_is_closed(site: Site) -> None:
    """No Max-Age unless asked for; and a client that ignores it gains nothing."""
    (line,) = site.visit(write).all("Set-Cookie")
    assert "Max-Age" not in attributes(line)
    assert "Expires" not in attributes(line)

    (line,) = site.visit(lambda session: session.remember(600)).all("Set-Cookie")
    assert attributes(line)["Max-Age"] == "600"
    site.clock.advance(600)
    assert site.visit(lambda session: session.get("a")).body == b"None"


def test_C9_partitioned(make_site: MakeSite) -> None:
    """For embedded pages: when it is set and when it is cleared; only with None and Secure."""
    site = make_site(cookie_samesite="None", cookie_secure=True, cookie_partitioned=True)
    for handler in (write, lambda session: session.end()):
        (line,) = site.visit(handler).all("Set-Cookie")
        found = attributes(line)
        assert "Partitioned" in found
        assert "Secure" in found
        assert found["SameSite"] == "None"
    with pytest.raises(ConfigurationError, match="partitioned"):
        SessionManager(cookie_partitioned=True)


def test_C10_generic_name(site: Site) -> None:
    """The name tells nothing of what made it."""
    assert site.visit(write, https=True).all("Set-Cookie")[0].startswith("__Host-id=")


@given(st.text(max_size=20))
def test_C11_settings_cannot_split_the_header(text: str) -> None:
    """Name, path and domain take what cannot end an attribute or a line, and nothing else."""
    for setting in ("name", "path", "domain"):
        value = "/" + text if setting == "path" else text
        try:
            settings = CookieSettings(**{setting: value})  # type: ignore[arg-type]
        except ConfigurationError:
            continue
        for line in (settings.set("v", 5, True), settings.clear(True)):
            assert line.isascii()
            assert line.isprintable()
            assert line.count(";") == 5 + (setting == "domain") + ("Expires" in line)


def test_C11_one_cookie_of_the_name(site: Site) -> None:
    """Whatever a request did, one Set-Cookie of the name leaves, or none."""

    def everything(session: Session) -> str:
        session["a"] = 1
        session.login("alice")
        session.renew()
        session.end()
        session.login("bob")
        session.remember(60)
        session.renew()
        return ""

    for _ in range(3):
        assert len(site.visit(everything).all("Set-Cookie")) == 1
