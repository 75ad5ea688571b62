"""T1 to T8: what the browser holds. One test or more per row, named after it."""

from __future__ import annotations

import os
import random
from base64 import urlsafe_b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sojourn.core.cookie import tokens_in
from sojourn.core.session import Session
from sojourn.core.token import Token, new_secret, new_sid
from sojourn.stores import open_store
from sojourn.stores.memory import MemoryStore

from ..web.kit import Site

SOAK = bool(os.environ.get("SOJOURN_SOAK"))
MakeSite = Callable[..., Site]


def show(session: Session) -> str:
    return str(session.get("a"))


def write(session: Session) -> str:
    session["a"] = 1
    return ""


def invented() -> str:
    return f"id={Token(new_sid(os.urandom), new_secret(os.urandom))}"


def test_T1_random_and_long() -> None:
    """20,000 tokens (with SOJOURN_SOAK 1,000,000): none equal, one length, no bit biased.

    384 bits from the system's source, of which 256 are secret.
    """
    number = 1_000_000 if SOAK else 20_000
    sids, secrets = set(), set()
    ones = [0] * 384
    for _ in range(number):
        sid, secret = new_sid(os.urandom), new_secret(os.urandom)
        sids.add(sid)
        secrets.add(secret)
        raw = urlsafe_b64decode(sid + "==") + urlsafe_b64decode(secret + "=")
        for bit, digit in enumerate(f"{int.from_bytes(raw):0384b}"):
            if digit == "1":
                ones[bit] += 1

    assert len(sids) == len(secrets) == number
    assert {len(sid) for sid in sids} == {22}
    assert {len(secret) for secret in secrets} == {43}
    sigma = (number / 4) ** 0.5
    # Of 384 bits one is beyond five sigma once in 4,500 runs; six make that one in 1,300,000.
    assert max(abs(one - number / 2) for one in ones) < 6 * sigma


@pytest.mark.parametrize("fault", ["raises", "gives nothing", "gives too little"])
def test_T1_no_weaker_source(make_site: MakeSite, fault: str) -> None:
    """Where the system has no randomness the request fails; nothing else is used in its place."""

    def broken(size: int) -> bytes:
        if fault == "raises":
            raise OSError("no entropy")
        return b"" if fault == "gives nothing" else os.urandom(size - 1)

    # The manager's own name is drawn when it is made.
    working = [True]
    site = make_site(entropy=lambda size: os.urandom(size) if working[0] else broken(size))
    working[0] = False

    with pytest.raises((OSError, ValueError)):
        site.request(write)
    assert site.store.count(status=None) == 0


def test_T2_the_server_decides(make_site: MakeSite) -> None:
    """The same cookie opens nothing once the store has forgotten it."""
    memory = MemoryStore()
    site = make_site(memory)
    cookie = f"id={site.visit(write).token}"
    assert site.request(show, cookie=cookie).body == b"1"

    memory.delete(cookie[3:25])

    assert site.request(show, cookie=cookie).body == b"None"


def test_T3_no_token_is_adopted(site: Site) -> None:
    """Invented, ended and expired ones: what is written then goes under a sid of our own."""
    ended = site.request(write).token
    site.sessions.end(ended[:22])
    expired = site.request(write).token
    site.clock.advance(3601)
    cookies = [*(invented() for _ in range(5)), f"id={ended}", f"id={expired}"]
    for cookie in cookies:
        assert site.request(show, cookie=cookie).all("Set-Cookie") == []
        token = site.request(write, cookie=cookie).token
        assert token
        assert token[:22] != cookie[3:25]
        assert token[23:] != cookie[26:]
        assert site.request(show, cookie=cookie).body == b"None"


def test_T4_a_login_ends_the_old_cookie(site: Site) -> None:
    """At once for what is private, and altogether: there is no grace for a gain of rights."""
    old = f"id={site.visit(write).token}"
    site.visit(lambda session: session.login("alice"))
    for wait in (0, 5, 6, 600):
        site.clock.advance(wait)
        assert site.request(lambda session: [session.user, session.get("a")], cookie=old).body == (
            b"[None, None]"
        )
    assert site.visit(lambda session: session.user).body == b"alice"


def test_T4_with_requests_under_way(site: Site) -> None:
    """50 requests that began before the login: none logs in with the old cookie, none writes."""
    old = f"id={site.visit(write).token}"
    under_way = [site.sessions.session(old) for _ in range(50)]
    for number, session in enumerate(under_way):
        assert session["a"] == 1
        session[f"planted{number}"] = number
        if number % 2:
            session.renew()
    site.visit(lambda session: session.login("alice"))

    for session in under_way:
        done = site.sessions.commit(session)
        assert (done.token, done.dropped) == (None, "login")
    assert site.visit(lambda session: [session.user, list(session)]).body == b"['alice', ['a']]"
    assert site.request(lambda session: session.user, cookie=old).body == b"None"


def test_T4_a_login_again(site: Site) -> None:
    """So does each later login, of the same user and of another."""
    seen = set()
    for user in ("alice", "alice", "bob"):
        site.visit(lambda session, user=user: session.login(user))
        seen.add(site.cookie)
    assert len(seen) == 3
    for cookie in seen - {site.cookie}:
        assert site.request(lambda session: session.user, cookie=cookie).body == b"None"


def test_T5_shape_before_look_up(site: Site) -> None:
    """50,000 malformed cookies (with SOJOURN_SOAK 1,000,000): none reaches the store."""
    chance = random.Random(5)
    good = str(Token(new_sid(os.urandom), new_secret(os.urandom)))
    for _ in range(1_000_000 if SOAK else 50_000):
        raw = bytearray(good.encode())
        for _ in range(chance.randrange(1, 4)):
            raw[chance.randrange(len(raw))] = chance.choice(b"!./ =%\\\x00\x85\xa0\xff~")
        if chance.random() < 0.5:
            del raw[chance.randrange(len(raw))]
        text = raw.decode("latin-1")
        if text != good:
            assert tokens_in(f"id={text}", "id") == []
            session = site.sessions.session(f"id={text}")
            assert "a" not in session

    assert site.verbs == []


@pytest.mark.parametrize("kind", ["memory", "sqlite", "directory"])
def test_T6_a_stolen_store_logs_nobody_in(
    make_site: MakeSite, kind: str, tmp_path: Path, no_blocking_on_the_loop: Any
) -> None:
    """No secret is in the store: not in its files, and not in its records."""
    no_blocking_on_the_loop.deactivate()
    urls = {
        "memory": "memory://",
        "sqlite": f"sqlite:///{tmp_path / 's.db'}",
        "directory": f"directory:///{tmp_path / 'sessions'}",
    }
    store = open_store(urls[kind])
    site = make_site(store)
    secrets = []
    for number in range(5):
        secrets.append(site.visit(write, cookie="").token[23:])
        secrets.append(site.visit(lambda session, n=number: session.login(f"u{n}")).token[23:])
        secrets.append(site.visit(lambda session: session.renew()).token[23:])
    dump = repr(store.list(status=None)).encode()
    store.close()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            dump += path.read_bytes() + path.name.encode()

    assert len(set(secrets)) == 15
    for secret in secrets:
        assert secret.encode() not in dump
        assert urlsafe_b64decode(secret + "=") not in dump


def test_T6_the_hash_opens_nothing(site: Site) -> None:
    """What the store holds, sent as a secret, is refused."""
    token = site.visit(write).token
    record = site.store.store.load(token[:22])
    assert record is not None
    from base64 import urlsafe_b64encode

    stolen = urlsafe_b64encode(record.secret_hash).rstrip(b"=").decode()

    assert site.request(show, cookie=f"id={token[:22]}.{stolen}").body == b"None"


def test_T7_nothing_personal_in_the_cookie(make_site: MakeSite) -> None:
    """The cookie is made of randomness alone: with the same one, all users get the same cookie."""
    seen = set()
    for user in ("alice", "bob", "x" * 255, "1"):
        chance = random.Random(7)
        site = make_site(entropy=chance.randbytes)
        seen.add(site.visit(lambda session, user=user: session.login(user, role=user)).token)
        assert user not in site.cookie or user == "1"

    assert len(seen) == 1


def test_T8_only_by_cookie(site: Site) -> None:
    """A token in the path, in another header or under another name is not looked at."""
    token = site.visit(write).token

    for cookie in (f"session={token}", f"ID={token}", f"sid={token}", token, f"id:{token}"):
        assert site.request(show, cookie=cookie, path=f"/id={token}").body == b"None"
    assert site.request(show, cookie="", path=f"/;id={token}").body == b"None"
