"""What a session adds to the headers of an answer, beside whatever the application set."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn.core.cookie import CookieSettings
from sojourn.core.token import Token, new_secret, new_sid
from sojourn.manager import Committed
from sojourn.web.headers import Headers, with_session

READ = Committed()
NEW = Committed(token=Token(new_sid(os.urandom), new_secret(os.urandom)))
ENDED = Committed(cleared=True)
COOKIE = CookieSettings()


def merged(*headers: tuple[str, str], done: Committed = READ, https: bool = True) -> Headers:
    """Return the headers that are added or changed, names in lower case, sorted."""
    out = with_session(list(headers), done, COOKIE, https)
    return sorted((name.lower(), value) for name, value in out)


def values(name: str, headers: Headers) -> list[str]:
    return [value for key, value in headers if key == name]


def test_read() -> None:
    """A session that was looked at makes the answer private and dependent on the cookie."""
    assert merged() == [("cache-control", "private"), ("vary", "Cookie")]


def test_new() -> None:
    """A cookie comes with no-store."""
    assert merged(done=NEW) == [
        ("cache-control", "no-store, private"),
        ("set-cookie", f"__Host-id={NEW.token}; Path=/; HttpOnly; SameSite=Lax; Secure"),
        ("vary", "Cookie"),
    ]


def test_ended() -> None:
    """The end of a session clears the cookie; over https the browser's other storage too."""
    plain = merged(done=ENDED, https=False)

    assert dict(merged(done=ENDED))["clear-site-data"] == '"cookies", "storage"'
    assert "clear-site-data" not in dict(plain)
    assert dict(plain)["set-cookie"].startswith("id=; Max-Age=0;")
    assert dict(plain)["cache-control"] == "no-store, private"


def test_ended_and_new() -> None:
    """The cookie of the new session is not taken away again by Clear-Site-Data."""
    out = merged(done=Committed(cleared=True, token=NEW.token))

    assert values("clear-site-data", out) == ['"storage"']
    assert len(values("set-cookie", out)) == 1
    assert str(NEW.token) in values("set-cookie", out)[0]


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ([], ["Cookie"]),
        (["Accept"], ["Accept", "Cookie"]),
        (["Cookie"], ["Cookie"]),
        (["COOKIE"], ["COOKIE"]),
        (["Accept, cookie"], ["Accept, cookie"]),
        (["Accept", "Cookie"], ["Accept", "Cookie"]),
        (["*"], ["*"]),
        (["Accept , * "], ["Accept , * "]),
        (["Cookie2"], ["Cookie", "Cookie2"]),
        (["X-Cookie-Consent"], ["Cookie", "X-Cookie-Consent"]),
        (["Accept-*"], ["Accept-*", "Cookie"]),
        (["Set-Cookie, Origin"], ["Cookie", "Set-Cookie, Origin"]),
    ],
)
def test_vary(given: list[str], added: list[str]) -> None:
    """Vary is added unless a line names Cookie, or *, as a whole word."""
    assert sorted(values("vary", merged(*(("vArY", one) for one in given)))) == added


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["public"], "private"),
        (["PUBLIC, Max-Age=60"], "private, Max-Age=60"),
        (["max-age=60, S-MaxAge=600"], "private, max-age=60"),
        (["s-maxage=600"], "private"),
        (["s-maxage = 600"], "private"),
        (["no-store"], "private, no-store"),
        (["No-Store"], "private, No-Store"),
        (["private"], "private"),
        (['private="x"'], "private"),
        (['private="set-cookie, x", max-age=1'], "private, max-age=1"),
        (['public="a, b"'], "private"),
        (['no-cache="Set-Cookie, X"'], 'private, no-cache="Set-Cookie, X"'),
        (['no-cache="a\\", public, b"'], 'private, no-cache="a\\", public, b"'),
        (['no-cache="without an end, public'], "private"),
        (['x="', 'y", public'], "private"),
        (["public", "max-age=60", "proxy-revalidate"], "private, max-age=60"),
        (["", ", ,"], "private"),
        (["immutable, stale-while-revalidate=5"], "private, immutable, stale-while-revalidate=5"),
        (["publicity=1"], "private, publicity=1"),
    ],
)
def test_cache_control(given: list[str], expected: str) -> None:
    """All lines become one, in which nothing allows a shared cache to keep the answer."""
    lines = [("cAcHe-CoNtRoL", one) for one in given]

    assert values("cache-control", merged(*lines)) == [expected]
    assert values("cache-control", merged(*lines, done=NEW)) == ["no-store, private"]


@pytest.mark.parametrize(
    "name", ["CDN-Cache-Control", "Acme-CDN-cache-control", "Surrogate-Control"]
)
def test_targeted_cache_control(name: str) -> None:
    """What would overrule Cache-Control in one kind of shared cache goes (RFC 9213)."""
    assert merged((name, "public, max-age=60")) == merged()


def test_others_are_kept() -> None:
    """The application's own lines stay, in their order, its cookies too."""
    own = [
        ("Set-Cookie", "a=1"),
        ("Content-Type", "text/html"),
        ("Set-Cookie", "b=2; Path=/x"),
        ("X-Cache-Controller", "x"),
        ("Expires", "0"),
    ]

    for done in (READ, NEW, ENDED):
        assert with_session(own, done, COOKIE, True)[: len(own)] == own
    assert len(own) == 5


def test_c11_one_line_of_the_name() -> None:
    """C11: one Set-Cookie of the session's name at most, whatever happened in the request."""
    for done in (NEW, ENDED, Committed(cleared=True, token=NEW.token, sealed="s")):
        out = merged(("Set-Cookie", "a=1"), done=done)
        assert sum(value.startswith("__Host-id=") for value in values("set-cookie", out)) == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["Cache-Control", "cache-control", "Vary", "VARY", "X-Y", "Set-Cookie"]
            ),
            st.text(st.sampled_from('publicsmaxe-=60,"\\ *Cook'), max_size=30)
            | st.sampled_from(["public", "s-maxage=9", "Cookie", "*", "max-age=5", "no-store"]),
        ),
        max_size=5,
    )
)
def test_p1_whatever_the_application_set(headers: Headers) -> None:
    """P1, P2: of any headers there come one Cache-Control with private, and a Vary."""
    for done in (READ, NEW, ENDED):
        out = with_session(headers, done, COOKIE, True)
        control = [value for name, value in out if name.lower() == "cache-control"]
        vary = ",".join(value for name, value in out if name.lower() == "vary")

        assert len(control) == 1
        assert control[0] in ("private", "no-store, private") or control[0].startswith("private, ")
        # Outside of quotations nothing opens it up.
        bare = "".join(control[0].replace('\\"', "").replace("\\\\", "").split('"')[::2])
        names = [part.partition("=")[0].strip().lower() for part in bare.split(",")]
        assert "private" in names
        assert not {"public", "s-maxage"} & set(names)
        assert {"cookie", "*"} & {part.strip().lower() for part in vary.split(",")}
