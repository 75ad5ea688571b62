"""The Cookie header is read byte for byte; Set-Cookie says what the settings ask for."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn.core.cookie import MAX_HEADER, CookieSettings, find, quick_look, tokens_in
from sojourn.core.token import Token, new_secret, new_sid
from sojourn.errors import ConfigurationError

TOKEN = Token(new_sid(os.urandom), new_secret(os.urandom))
OTHER = Token(new_sid(os.urandom), new_secret(os.urandom))
NAME = "__Host-id"


@pytest.mark.parametrize(
    "header",
    [
        "{}",
        "a=1; {}",
        "{}; a=1",
        "a=1; {}; b=2",
        "a=1;{};b=2",
        " \t{}\t ",
        "a=1 ;\t{}\t; b=2",
        ";;;{};;;",
        "a; {}; b",
        "=; {}",
        "{}; {}",
        "__host-id=x; {}",
        "x__Host-id=x; {}",
        'a="; {}; b="',
        "a=\\; {}",
        "a={{1,2}}; {}",
    ],
)
def test_found(header: str) -> None:
    """The cookie is found wherever it stands, whatever stands beside it; equal ones are one."""
    assert tokens_in(header.format(*[f"{NAME}={TOKEN}"] * 2), NAME) == [TOKEN]


@pytest.mark.parametrize(
    "before",
    [chr(code) for code in range(256) if chr(code) not in " \t;"]
    + ["=", "\u2000", "\u3000", "\ufeff", "\u2028", "a,", '"', "$Version=1,", "%20", "\\"],
)
def test_a20_no_other_spelling_before(before: str) -> None:
    """A20: no byte before the name is stripped but space and tab, no comma parts two cookies."""
    pair = f"{NAME}={TOKEN}"

    assert tokens_in(before + pair, NAME) == []
    assert tokens_in(f"a=1; {before}{pair}; b=2", NAME) == []


@pytest.mark.parametrize(
    "name",
    [
        "__host-id",
        "__HOST-ID",
        "__Host-Id",
        "__Host-id\x85",
        "__Host-id\xa0",
        "__Host-id ",
        "__Host-id\t",
        "__Host-id\0",
        "__Host%2Did",
        "__Host‐id",
        '"__Host-id"',
        "__Host-id[]",
        "__Host_id",
        "=__Host-id",
        "",
    ],
)
def test_a20_no_other_name(name: str) -> None:
    """A20: another spelling of the name, or no name at all, is another cookie."""
    assert tokens_in(f"{name}={TOKEN}", NAME) == []
    assert tokens_in(f"{name}={NAME}={TOKEN}", NAME) == []
    assert tokens_in(f"{name}={TOKEN}; {NAME}=another", NAME) == []


@pytest.mark.parametrize(
    "value",
    ['"{}"', "'{}'", "{}\x85", "{}\xa0", "{}\0", "{},", "={}", "%20{}", "{}\n", "{}\\", "{} a"],
)
def test_a21_no_quoting(value: str) -> None:
    """A21: the value is taken as it stands: no quotes are removed, nothing is decoded."""
    assert tokens_in(f"{NAME}={value.format(TOKEN)}", NAME) == []


def test_a21_cookie_sandwich() -> None:
    """A21: quotes in other cookies swallow nothing."""
    assert tokens_in(f'$Version=1; a="x; {NAME}={TOKEN}; b=y"', NAME) == [TOKEN]


def test_a22_several_cookies_of_the_name() -> None:
    """A22: different ones are all found, in their order, so that the flow can refuse them."""
    header = f"{NAME}={TOKEN}; {NAME}={OTHER}; {NAME}={TOKEN}; {NAME}=planted"

    assert find(header, NAME) == [str(TOKEN), str(OTHER), "planted"]
    assert tokens_in(header, NAME) == [TOKEN, OTHER]


def test_a22_a_cap_on_tokens() -> None:
    """A22: of very many well-formed tokens only four cost a look-up."""
    tokens = [Token(new_sid(os.urandom), new_secret(os.urandom)) for _ in range(100)]

    assert tokens_in("; ".join(f"{NAME}={token}" for token in tokens), NAME) == tokens[:4]


JUNK = {
    "backslashes": "\\" * MAX_HEADER,
    "quotes": '"' * MAX_HEADER,
    "commas": "," * MAX_HEADER,
    "semicolons": ";" * MAX_HEADER,
    "equals": "=" * MAX_HEADER,
    "spaces": " " * MAX_HEADER,
    "pairs": "a=b;" * (MAX_HEADER // 4),
    "the name": f"{NAME}=" * (MAX_HEADER // 10),
    "cookies of the name": ";".join(f"{NAME}={n:x}" for n in range(4500)),
    "cookies of a short name": ";".join(f"i={n:x}" for n in range(9000)),
    "escapes": '"' + "\\a" * (MAX_HEADER // 2 - 1),
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_a19_junk_costs_linear_time(junk: str) -> None:
    """A19: 64 KiB of anything is read in a few milliseconds."""
    start = time.process_time()

    for name in (NAME, "i"):
        assert tokens_in(junk[:MAX_HEADER], name) == []
        assert quick_look(name)(junk[:MAX_HEADER]) is None

    assert time.process_time() - start < 0.05


def test_a19_a_header_too_long() -> None:
    """A header of more than 64 KiB holds no session cookie, however it is looked for."""
    cookie = f"{NAME}={TOKEN}"
    fits = cookie + "; a=" + "b" * (MAX_HEADER - len(cookie) - 4)

    assert len(fits) == MAX_HEADER
    assert quick_look(NAME)(fits) == TOKEN
    assert tokens_in(fits, NAME) == [TOKEN]
    assert quick_look(NAME)(fits + "b") is None
    assert tokens_in(fits + "b", NAME) == []


PIECES = st.sampled_from(
    [
        f"{NAME}={TOKEN}",
        f"{NAME}={OTHER}",
        f"{NAME}=",
        f"{NAME}={str(TOKEN)[:-1]}",
        f"x{NAME}={TOKEN}",
        f"{NAME}={NAME}={TOKEN}",
        "; ",
        ";",
        " ",
        "\t",
        "=",
        ",",
        '"',
        "a=1",
        "\x85",
        "x",
    ]
)


@given(st.lists(PIECES, max_size=8).map("".join))
def test_the_short_cut_agrees(header: str) -> None:
    """Where the quick look finds a token, the thorough one finds that token and no other."""
    quick = quick_look(NAME)(header)

    assert quick is None or tokens_in(header, NAME) == [quick]


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_any_header(header: str) -> None:
    """Any text at all is read without an exception."""
    assert tokens_in(header, NAME) == []
    assert tokens_in(f"{header};{NAME}={TOKEN};{header}", NAME) == [TOKEN]


# Set-Cookie.


def test_c1_defaults() -> None:
    """C1, C4, C5: on https the name has `__Host-` and all flags; on http only what can be."""
    cookie = CookieSettings()

    assert cookie.set("v", None, True) == "__Host-id=v; Path=/; HttpOnly; SameSite=Lax; Secure"
    assert cookie.set("v", None, False) == "id=v; Path=/; HttpOnly; SameSite=Lax"
    assert cookie.set("v", 60, True) == (
        "__Host-id=v; Max-Age=60; Path=/; HttpOnly; SameSite=Lax; Secure"
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"domain": "example.org"},
            "__Secure-id=v; Path=/; HttpOnly; SameSite=Lax; Domain=example.org; Secure",
        ),
        ({"path": "/app"}, "__Secure-id=v; Path=/app; HttpOnly; SameSite=Lax; Secure"),
        ({"name": "s"}, "__Host-s=v; Path=/; HttpOnly; SameSite=Lax; Secure"),
        ({"samesite": "Strict"}, "__Host-id=v; Path=/; HttpOnly; SameSite=Strict; Secure"),
        (
            {"samesite": "None", "secure": True, "partitioned": True},
            "__Host-id=v; Path=/; HttpOnly; SameSite=None; Partitioned; Secure",
        ),
    ],
)
def test_c2_settings(settings: dict[str, Any], expected: str) -> None:
    """C2, C5, C9: each setting shows in the header, to the letter, when set and when cleared."""
    cookie = CookieSettings(**settings)
    name, _, tail = expected.partition("=v")

    assert cookie.set("v", None, True) == expected
    assert cookie.clear(True) == (
        f"{name}=; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT{tail}"
    )


@pytest.mark.parametrize(
    ("secure", "https", "expected"),
    [
        (None, True, True),
        (None, False, False),
        (True, False, True),
        (True, True, True),
        (False, True, False),
        (False, False, False),
    ],
)
def test_secure(secure: bool | None, https: bool, expected: bool) -> None:
    """`secure` may be forced either way; else the scheme of the request decides."""
    cookie = CookieSettings(secure=secure)

    assert cookie.is_secure(https) is expected
    assert cookie.name_for[https] == ("__Host-id" if expected else "id")


@pytest.mark.parametrize("secure", [True, False])
def test_c6_the_browsers_limit(secure: bool) -> None:
    """C6: name and value of 4,096 bytes are sent; of 4,097 an error says all the numbers."""
    cookie = CookieSettings()
    room = 4096 - len(cookie.names[secure])

    assert "x" * room in cookie.set("x" * room, None, secure)
    with pytest.raises(ConfigurationError, match=r"takes 4,097 bytes .*browsers take 4,096"):
        cookie.set("x" * (room + 1), None, secure)


def test_c7_max_age() -> None:
    """C7: Max-Age is never more than the 400 days that browsers allow."""
    cookie = CookieSettings()

    assert "; Max-Age=34560000;" in cookie.set("v", 34_560_000, True)
    assert "; Max-Age=34560000;" in cookie.set("v", 34_560_001, True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": ""}, "cookie_name"),
        ({"name": "a b"}, "cookie_name"),
        ({"name": "a;b"}, "cookie_name"),
        ({"name": "a=b"}, "cookie_name"),
        ({"name": "ä"}, "cookie_name"),
        ({"name": "a\n"}, "cookie_name"),
        ({"name": "__Host-id"}, "prefix"),
        ({"name": "__secure-id"}, "prefix"),
        ({"samesite": "lax"}, "cookie_samesite"),
        ({"samesite": ""}, "cookie_samesite"),
        ({"samesite": "None"}, "cookie_secure=True"),
        ({"samesite": "None", "secure": False}, "cookie_secure=True"),
        ({"partitioned": True}, "cookie_partitioned"),
        ({"path": "app"}, "cookie_path"),
        ({"path": ""}, "cookie_path"),
        ({"path": "/a;b"}, "cookie_path"),
        ({"path": "/a b"}, "cookie_path"),
        ({"path": "/a\r\n"}, "cookie_path"),
        ({"domain": ""}, "cookie_domain"),
        ({"domain": "a;b"}, "cookie_domain"),
        ({"domain": "a b"}, "cookie_domain"),
        ({"domain": "a\n"}, "cookie_domain"),
    ],
)
def test_a18_settings_refused(settings: dict[str, Any], words: str) -> None:
    """A18: nothing that would split the header or that browsers refuse is accepted."""
    with pytest.raises(ConfigurationError, match=words):
        CookieSettings(**settings)


def test_all_faults_at_once() -> None:
    """Every wrong setting is in the one message."""
    with pytest.raises(ConfigurationError) as caught:
        CookieSettings("a b", samesite="no", partitioned=True, path="x", domain="a b", secure=False)

    for name in ("name", "samesite", "partitioned", "path", "domain"):
        assert f"cookie_{name}" in str(caught.value)
