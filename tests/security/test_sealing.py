"""K1 to K7: sealed data, in the cookie and at rest."""

from __future__ import annotations

import os
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any

import pytest

from sojourn.core.sealing import SEAL, Sealer
from sojourn.core.session import Session
from sojourn.errors import ConfigurationError, DamagedRecord
from sojourn.manager import SessionManager
from sojourn.stores.cookie import CookieStore
from sojourn.stores.memory import MemoryStore

from ..web.kit import Site

SOAK = bool(os.environ.get("SOJOURN_SOAK"))
MakeSite = Callable[..., Site]
KEY = secrets.token_bytes(32)
OTHER = secrets.token_bytes(32)


def show(session: Session) -> str:
    return str(session.get("a"))


def write(session: Session) -> str:
    session["a"] = 1
    return ""


def sealed(make_site: MakeSite, *keys: bytes, **settings: Any) -> Site:
    """Return a site whose sessions are in the cookie."""
    site = make_site(**settings)
    site.sessions = SessionManager(CookieStore(keys or [KEY]), clock=site.clock, **settings)  # type: ignore[arg-type]
    return site


def raw_of(site: Site) -> bytes:
    value = site.cookie.partition("=")[2]
    return urlsafe_b64decode(value + "=" * (-len(value) % 4))


def cookie_of(raw: bytes, name: str = "id") -> str:
    return f"{name}={urlsafe_b64encode(raw).rstrip(b'=').decode()}"


def test_K1_every_bit(make_site: MakeSite) -> None:
    """Of a sealed cookie every single flipped bit, and every truncation, makes it nothing."""
    site = sealed(make_site)
    site.visit(write)
    raw = raw_of(site)
    assert site.request(show, cookie=cookie_of(raw)).body == b"1"
    changed = [raw[:size] for size in range(len(raw))]
    for bit in range(8 * len(raw)):
        other = bytearray(raw)
        other[bit // 8] ^= 1 << bit % 8
        changed.append(bytes(other))
    for number, other in enumerate([*changed, raw + b"\0", raw * 2]):
        session = site.sessions.session(cookie_of(other))
        assert session.get("a") is None
        assert session.is_new
        if number % 200 == 0:
            answer = site.request(show, cookie=cookie_of(other))
            assert (answer.status, answer.body) == (200, b"None")


def test_K1_every_bit_at_rest() -> None:
    """The same of a record that is sealed in a store: it counts as damaged."""
    sealer = Sealer([KEY])
    whole = sealer.seal(b"some data", b"sid", os.urandom)
    assert sealer.open(whole, b"sid") == b"some data"
    for bit in range(8 * len(whole)):
        other = bytearray(whole)
        other[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedRecord):
            sealer.open(bytes(other), b"sid")
    for size in range(len(whole)):
        with pytest.raises(DamagedRecord):
            sealer.open(whole[:size], b"sid")


def test_K2_no_other_version() -> None:
    """The first byte names one fixed suite; no other value opens anything."""
    sealer = Sealer([KEY])
    whole = sealer.seal(b"some data", b"sid", os.urandom)
    for version in range(256):
        if version != SEAL:
            with pytest.raises(DamagedRecord):
                sealer.open(bytes([version]) + whole[1:], b"sid")
    for plain in (b"some data", b'{"a":1}', b"\x01" + bytes(40), b"\x80\x04."):
        with pytest.raises(DamagedRecord):
            sealer.open(plain, b"sid")


def test_K3_bound_to_its_place(make_site: MakeSite) -> None:
    """A sealed value opens under its own cookie name alone, and a record under its own sid."""
    site = sealed(make_site)
    site.visit(write)
    raw = raw_of(site)

    assert site.request(show, cookie=cookie_of(raw, "__Host-id"), https=True).body == b"None"
    other = sealed(make_site, cookie_name="other")
    assert other.request(show, cookie=cookie_of(raw, "other")).body == b"None"
    memory = MemoryStore()
    sessions = SessionManager(memory, seal_keys=[KEY])
    tokens = []
    for name in ("alice", "bob"):
        session = sessions.session()
        session.login(name)
        session["secret"] = name
        tokens.append(sessions.commit(session).token)
    alice, bob = (memory._records[token.sid] for token in tokens)  # type: ignore[union-attr]
    import msgspec

    memory._records[bob.sid] = msgspec.structs.replace(bob, data=alice.data)
    assert sessions.session(f"id={tokens[1]}").get("secret") is None


def test_K4_rotation(make_site: MakeSite) -> None:
    """CVE-2025-47278: the newest key seals, all listed open; one taken away opens nothing."""
    old = sealed(make_site, OTHER)
    old.visit(write)
    both = sealed(make_site, KEY, OTHER)
    both.cookie = old.cookie
    assert both.visit(show).body == b"1"
    both.visit(lambda session: session.update(a=2))
    assert raw_of(both)[1:9] != raw_of(old)[1:9]

    newest = sealed(make_site, KEY)
    assert newest.request(show, cookie=both.cookie).body == b"2"
    assert newest.request(show, cookie=old.cookie).body == b"None"
    for _ in range(50):
        assert raw_of(both)[1:9] == Sealer([KEY]).seal(b"", b"", os.urandom)[1:9]
        both.visit(lambda session: session.add("a"))


def test_K5_what_a_sealed_cookie_cannot_do(make_site: MakeSite) -> None:
    """A copy works until its deadline, also after logout: the store says that it cannot revoke.

    Its own limits hold for a copy too, and a session on the server does end (L6).
    """
    site = sealed(make_site)
    site.visit(lambda session: session.login("alice"))
    copy = site.cookie
    assert "Max-Age=0" in site.visit(lambda session: session.logout()).all("Set-Cookie")[0]

    assert not CookieStore.promises.revokes
    assert site.request(lambda session: session.user, cookie=copy).body == b"alice"
    site.clock.advance(3600)
    assert site.request(lambda session: session.user, cookie=copy).body == b"None"


def test_K6_nothing_repeats() -> None:
    """20,000 seals (with SOJOURN_SOAK 1,000,000) of one text: no salt and no text twice."""
    sealer = Sealer([KEY])
    number = 1_000_000 if SOAK else 20_000
    salts, texts = set(), set()
    for _ in range(number):
        whole = sealer.seal(b"the same", b"sid", os.urandom)
        salts.add(whole[9:33])
        texts.add(whole[33:])
    assert len(salts) == len(texts) == number


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_K6_nothing_repeats_after_a_fork() -> None:
    """Two children of one process seal 2,000 texts each: no salt of one is the other's."""
    sealer = Sealer([KEY])
    sealer.seal(b"x", b"y", os.urandom)
    found: set[bytes] = set()
    for _ in range(2):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                with os.fdopen(writing, "wb") as out:
                    for _ in range(2000):
                        out.write(sealer.seal(b"x", b"y", os.urandom)[9:33])
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as come:
            data = come.read()
        os.waitpid(child, 0)
        assert len(data) == 24 * 2000
        found.update(data[at : at + 24] for at in range(0, len(data), 24))

    assert len(found) == 4000


@pytest.mark.parametrize(
    "key",
    [
        b"",
        "secret",
        "changeme",
        b"x" * 31,
        b"x" * 32,
        b"\0" * 64,
        "thisismyscretkey",
        "0123456789" * 3,
        "CHANGE_ME_TO_A_COMPLEX_RANDOM_SECRET"[:31],
        None,
        12345,
        "abababababababababababababababababababab",
    ],
)
def test_K7_no_weak_key(key: Any) -> None:
    """Short, guessable or missing keys are refused at the start, and never shown."""
    for make in (lambda: SessionManager(seal_keys=[key]), lambda: CookieStore([key])):
        with pytest.raises(ConfigurationError) as caught:
            make()
        if isinstance(key, str) and len(key) > 6:
            assert key not in str(caught.value)


def test_K7_no_default_key() -> None:
    """There is none: without keys nothing is sealed, and the cookie store does not start."""
    with pytest.raises(ConfigurationError):
        CookieStore([])
    with pytest.raises(ConfigurationError):
        CookieStore("a" * 40)
