"""A1 to A30: known attacks and faults, each tried. Those of one row only are in that row's file."""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
import os
import random
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sojourn.core import codec, csrf, flows, opening, token
from sojourn.core.session import Session
from sojourn.core.token import Token, new_secret, new_sid
from sojourn.errors import DamagedRecord, InvalidValue
from sojourn.manager import SessionManager
from sojourn.stores import memory as memory_module
from sojourn.stores import open_store, sqlite
from sojourn.stores.cookie import CookieStore
from sojourn.web.asgi import SessionMiddleware as AsgiMiddleware
from sojourn.web.headers import with_session

from ..web.kit import Site, call_asgi, scope

SOAK = bool(os.environ.get("SOJOURN_SOAK"))
MakeSite = Callable[..., Site]
KEY = os.urandom(32)


def show(session: Session) -> str:
    return str(session.get("a"))


def write(session: Session) -> str:
    session["a"] = 1
    return ""


def who(session: Session) -> str:
    return str(session.user)


def invented() -> Token:
    return Token(new_sid(os.urandom), new_secret(os.urandom))


def test_A2_forged_sealed_cookies(make_site: MakeSite) -> None:
    """10,000 cookies in formats of old and of others: none falls through to a plainer decoder."""
    site = make_site()
    site.sessions = SessionManager(CookieStore([KEY]), clock=site.clock)  # type: ignore[arg-type]
    chance = random.Random(2)
    bodies = [
        b'{"a": 1, "user": "admin"}',
        msgspec.msgpack.encode({"a": 1}),
        codec.join({"a": codec.encode_value(1, key="a", depth=9)}),
        b"\x80\x04}\x94\x8c\x01a\x94K\x01s.",
        b"eyJhIjoxfQ.aR3c.5tKq",
    ]
    for number in range(10_000):
        body = chance.choice(bodies) + chance.randbytes(chance.randrange(40))
        if number % 3 == 0:
            body = bytes([0x81]) + chance.randbytes(32) + body
        value = urlsafe_b64encode(body).rstrip(b"=").decode()
        session = site.sessions.session(f"id={value}")
        assert session.get("a") is None
        assert session.user is None


def test_A5_equal_texts_unrelated_tokens(make_site: MakeSite) -> None:
    """Two sealed cookies of the same session share their version and key id, and nothing else."""
    sealer = CookieStore([KEY])._sealer
    one, two = (sealer.seal(b"x" * 400, b"sid", os.urandom) for _ in range(2))

    assert one[:9] == two[:9]
    same = sum(left == right for left, right in zip(one[9:], two[9:], strict=True))
    assert same < 20
    blocks = [one[at : at + 16] for at in range(33, len(one) - 16, 16)]
    assert len(set(blocks)) == len(blocks)


@pytest.mark.parametrize("carried", [False, True])
def test_A6_raw_replay(make_site: MakeSite, carried: bool) -> None:
    """A client that keeps cookies as it likes gains nothing after either limit."""
    for use, wait in ((0.0, 3600.0), (3000.0, 86400.0)):
        site = make_site()
        if carried:
            site.sessions = SessionManager(CookieStore([KEY]), clock=site.clock)  # type: ignore[arg-type]
        site.visit(lambda session: session.login("alice"))
        end = site.clock() + wait
        while use and site.clock() + use < end:
            site.clock.advance(use)
            assert site.visit(who).body == b"alice"
        first = site.cookie
        site.clock.now = end
        assert site.request(who, cookie=first).body == b"None"


def test_A7_fixation(site: Site) -> None:
    """A cookie that was planted before the login does not become the login."""
    for planted in (f"id={site.request(write).token}", f"id={invented()}"):
        site.cookie = planted
        site.visit(lambda session: session.login("victim"))

        assert site.cookie != planted
        assert site.visit(who).body == b"victim"
        assert site.request(who, cookie=planted).body == b"None"
        site.clock.advance(11)
        assert site.request(who, cookie=planted).body == b"None"


def test_A8_slow_save_after_logout(site: Site) -> None:
    """A request that saves after the logout, over HTTP: dead, and no cookie (counts: L6)."""
    site.visit(lambda session: session.login("alice"))
    cookie = site.cookie

    def slow(session: Session) -> str:
        session["a"] = 1
        site.sessions.commit(out)
        return ""

    out = site.sessions.session(cookie)
    out.logout()
    answer = site.request(slow, cookie=cookie)

    assert answer.all("Set-Cookie") == []
    assert site.request(who, cookie=cookie).body == b"None"
    assert site.store.count() == 0


@pytest.mark.parametrize("fault", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_A9_a_handler_cannot_stop_an_end(
    make_site: MakeSite, fault: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """The session is over before the first handler runs, whatever the handlers do."""
    site = make_site()
    site.visit(lambda session: session.login("alice"))
    cookie = site.cookie
    seen: list[str | None] = []

    def handler(session: Session, reason: str) -> None:
        seen.append(SessionManager(site.store, clock=site.clock).session(cookie).user)
        raise fault

    site.sessions.on_ended(handler)
    try:
        site.visit(lambda session: session.logout())
    except fault:
        # A server that is being ended: the session is over all the same.
        pass

    assert seen == [None]
    assert site.request(who, cookie=cookie).body == b"None"


def test_A10_a_new_password_ends_the_others(site: Site) -> None:
    """`end_all` after a reset: none is left, and a login in flight does not survive it."""
    cookies = []
    for _ in range(5):
        site.visit(lambda session: session.login("alice"), cookie="")
        cookies.append(site.cookie)
    in_flight = site.sessions.session()
    in_flight.login("alice")
    site.sessions.commit(in_flight)

    assert len(site.sessions.end_all("alice", reason="password")) == 6
    for cookie in cookies:
        assert site.request(who, cookie=cookie).body == b"None"


@pytest.mark.parametrize("value", ["", "None", "null", "0", "undefined", ".", "A" * 22 + "."])
def test_A11_no_special_ids(site: Site, value: str) -> None:
    """Empty and made-up ids open nothing, and what one visitor writes with them no other sees."""
    site.visit(write, cookie=f"id={value}")

    assert site.request(show, cookie=f"id={value}").body == b"None"
    assert site.sessions.session(f"id={'A' * 22}.{'A' * 43}").get("a") is None


def test_A12_a_secret_is_never_looked_up() -> None:
    """Look-up time gives no secret away, by construction; timing itself would be a noisy test.

    The store is asked by the sid alone, which is public. The secret is hashed before anything is
    compared, so that what differs and where is nothing that a client can steer, and the hashes
    are compared by `hmac.compare_digest`.
    """
    import hmac

    assert token.same_hash is hmac.compare_digest
    judge = ast.parse(inspect.getsource(opening.judge))
    compared = [node for node in ast.walk(judge) if isinstance(node, ast.Compare)]
    for node in compared:
        assert "hash" not in ast.unparse(node) or ast.unparse(node).endswith("is None")
        assert "secret" not in ast.unparse(node)
    calls = [ast.unparse(node) for node in ast.walk(judge) if isinstance(node, ast.Call)]
    assert sum(one.startswith("same_hash(") for one in calls) == 2
    assert "sha256(token.secret.encode()).digest()" in calls
    for module in (memory_module, sqlite):
        assert "WHERE secret" not in inspect.getsource(module)
        assert "secret_hash=" not in inspect.getsource(module)
    assert "compare_digest" in inspect.getsource(csrf.check)


def test_A12_the_store_sees_no_secret(site: Site) -> None:
    """Nothing that is asked of the store holds a secret, right or wrong."""
    right = site.visit(write).token
    wrong = f"{right[:23]}{new_secret(os.urandom)}"
    for value in (right, wrong):
        site.request(lambda session: session.add("n"), cookie=f"id={value}")
    asked = repr(site.store.calls)

    assert right[:22] in asked
    assert right[23:] not in asked
    assert wrong[23:] not in asked


def test_A13_store_filled_by_visits(site: Site) -> None:
    """5,000 visits without a cookie, or with an invented one, that write nothing: store flat."""
    for number in range(5000):
        session = site.sessions.session(f"id={invented()}" if number % 2 else "")
        session.get("cart")
        len(session)
        site.sessions.commit(session)

    assert site.store.count(status=None) == 0


@pytest.mark.parametrize(
    "value",
    ["../" * 30, "..%2f" * 13, "\0" * 66, "con." + "A" * 62, "A" * 300, "/" * 66, "\\" * 66],
)
def test_A14_paths(
    make_site: MakeSite, value: str, tmp_path: Path, no_blocking_on_the_loop: Any
) -> None:
    """No path in a cookie reaches the file system. More of them: S2."""
    no_blocking_on_the_loop.deactivate()
    store = open_store(f"directory:///{tmp_path / 'sessions'}")
    site = make_site(store)
    before = sorted(tmp_path.rglob("*"))

    assert site.request(show, cookie=f"id={value}").body == b"None"
    assert site.verbs == []
    assert sorted(tmp_path.rglob("*")) == before
    store.close()


def test_A15_two_ids_one_place(
    make_site: MakeSite, tmp_path: Path, no_blocking_on_the_loop: Any
) -> None:
    """Ids that differ only in case, or by what Unicode folds, are two, also as files."""
    no_blocking_on_the_loop.deactivate()
    store = open_store(f"directory:///{tmp_path / 'sessions'}")
    site = make_site(store)
    value = site.visit(write).token
    swapped = value[:22].swapcase()[:21] + value[21:]
    for other in (swapped, value.upper(), value.lower(), value.replace("k", "\u212a")):
        if other != value:
            header = f"id={other}".encode(errors="replace").decode("latin-1")
            assert site.request(show, cookie=header).body == b"None"
    names = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert len({name.lower() for name in names}) == len(names)
    for _ in range(200):
        site.visit(write, cookie="")
    files = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert len({name.lower() for name in files}) == len(files)
    store.close()


# A16 is P1 and P2 (test_caching.py).


@pytest.mark.parametrize("kind", ["threads", "tasks"])
def test_A17_interleaved_requests(kind: str) -> None:
    """2,000 requests (with SOJOURN_SOAK 1,000,000) of 100 users at once: 0 foreign values."""
    sessions = SessionManager()
    cookies = {}
    for number in range(100):
        session = sessions.session()
        session.login(f"user{number}")
        session["own"] = f"user{number}"
        cookies[f"user{number}"] = f"id={sessions.commit(session).token}"
    rounds = 1_000_000 // 100 if SOAK else 20
    foreign: list[Any] = []

    def check(user: str, session: Session) -> None:
        if (session.user, session["own"]) != (user, user):
            foreign.append((user, session.user))
        session.add("n")

    if kind == "threads":

        def work(first: int) -> None:
            for one in range(rounds * 12):
                user = f"user{(first + one * 7) % 100}"
                session = sessions.session(cookies[user])
                check(user, session)
                if one % 3 == 0:
                    time.sleep(0)
                check(user, session)
                sessions.commit(session)

        threads = [threading.Thread(target=work, args=(number * 13,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
    else:

        async def app(connection: Any, receive: Any, send: Any) -> None:
            session = connection["session"]
            user = connection["path"][1:]
            check(user, session)
            await asyncio.sleep(0)
            check(user, session)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": session.user.encode()})

        served = AsgiMiddleware(app, sessions)

        async def visit(user: str) -> None:
            for _ in range(rounds):
                answer = await call_asgi(served, scope(cookie=cookies[user], path=f"/{user}"))
                if answer.body != user.encode():
                    foreign.append((user, answer.body))

        async def everybody() -> None:
            await asyncio.gather(*(visit(user) for user in cookies))

        asyncio.run(everybody())
    assert foreign == []
    for user, cookie in cookies.items():
        assert sessions.session(cookie).user == user


def test_A18_no_control_characters_leave(site: Site) -> None:
    """Whatever is in the request or the session, our own header lines hold printable ASCII."""
    evil = "x\r\nSet-Cookie: admin=1\x00\x7f;,"
    answer = site.visit(
        lambda session: (session.update({"k": evil}), session.login(evil.replace("\0", ""))),
        cookie=f"id={evil}",
    )

    for name in ("Set-Cookie", "Vary", "Cache-Control"):
        for value in answer.all(name):
            assert value.isascii()
            assert value.isprintable()
    assert len(answer.all("Set-Cookie")) == 1
    assert with_session([], flows.Committed(), site.sessions.cookie, True)


@pytest.mark.parametrize("part", ["\\", ",", '"', ";", "=", "id=", "id=x;", '\\"', "; id"])
def test_A19_no_quadratic_parsing(site: Site, part: str, caplog: pytest.LogCaptureFixture) -> None:
    """64 KiB of what slows other parsers: milliseconds, and at most one log line."""
    header = (part * 65536)[: 64 * 1024]
    begun = time.process_time()
    assert site.request(show, cookie=header).status == 200

    # Far above what it takes (about a millisecond), far below what quadratic parsing takes.
    assert time.process_time() - begun < 0.5
    assert len(caplog.records) <= 1


@pytest.mark.parametrize(
    "before", ["=", "\u2000", "\x85", "\xa0", "\x1c", "\x0b", ",", " =", '"', "__Secure-"]
)
def test_A20_another_spelling_of_the_name(site: Site, before: str) -> None:
    """A cookie under an odd spelling of the name is another cookie. (All: tests/core.)."""
    value = site.visit(write, https=True).token
    header = f"{before}__Host-id={value}".encode().decode("latin-1")

    assert site.request(show, cookie=header, https=True).body == b"None"
    planted = site.request(lambda session: session.update(a="evil"), cookie="", https=True).token
    header = f"{before}__Host-id={planted}; __Host-id={value}".encode().decode("latin-1")
    assert site.request(show, cookie=header, https=True).body == b"1"


def test_A21_cookie_sandwich(site: Site) -> None:
    """Quotes in other cookies swallow nothing, and are no way to have ours shown."""
    value = site.visit(write).token
    for header in (
        f'$Version=1; q="x; id={value}; r=y"',
        f'q="; id={value}; "',
        f"q='; id={value}",
    ):
        assert site.request(show, cookie=header).body == b"1"
    assert site.request(show, cookie=f'id="{value}"').body == b"None"


def test_A22_tossed_cookies(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A planted cookie beside the visitor's own, in both orders: never the planted one alone."""
    own = site.request(write).token
    planted = site.request(lambda session: session.update(a="evil")).token
    for header in (f"id={own}; id={planted}", f"id={planted}; id={own}"):
        assert site.request(show, cookie=header).body == b"None"
    assert "two live sessions" in caplog.text
    assert site.sessions.counters["two cookies"] == 2
    many = "; ".join(f"id={invented()}" for _ in range(300))
    site.verbs  # noqa: B018
    site.request(show, cookie=many)
    assert len(site.verbs) <= 4


def test_A23_namespaces(site: Site) -> None:
    """Typed state, flash messages and claims lie apart from plain keys: none can be forged."""
    site.visit(lambda session: session.login("alice", role="user"))
    for key in ("\0claims", "\0f:", "\0x"):
        with pytest.raises(InvalidValue):
            site.visit(lambda session, key=key: session.update({key: {"role": "admin"}}))
    site.visit(lambda session: session.update({"claims": {"role": "admin"}, "user": "root"}))

    assert site.visit(lambda session: [session.user, session.claims]).body == (
        b"['alice', {'role': 'user'}]"
    )


def test_A24_nothing_shows_the_token(site: Site) -> None:
    """Lists of sessions, and what they show, hold sids alone."""
    site.visit(lambda session: session.login("alice"))
    secret = site.cookie[26:]
    (device,) = site.sessions.of_user("alice")
    shown = (
        repr(device)
        + repr(device.record)
        + "".join(str(getattr(device, name)) for name in dir(device) if not name.startswith("_"))
    )

    assert device.sid in shown
    assert secret not in shown
    assert secret not in repr(Token(device.sid, secret))


def test_A25_rotation_race(site: Site) -> None:
    """A late answer never sends the old cookie, and the old one is not revived by it."""
    old = f"id={site.visit(write).token}"
    late = [site.sessions.session(old) for _ in range(20)]
    for number, session in enumerate(late):
        session.add("n")
        if number % 3 == 0:
            session.renew()
        elif number % 3 == 1:
            session.remember(60 * 60 * 24 * 30)
    site.visit(lambda session: session.renew())
    tokens = [site.sessions.commit(session).token for session in late]

    assert set(tokens) == {None}
    assert site.visit(lambda session: session["n"]).body == b"20"
    site.clock.advance(11)
    assert site.request(show, cookie=old).body == b"None"


@pytest.mark.parametrize("gain", ["login", "renew"])
def test_A26_slow_requests_from_before(site: Site, gain: str) -> None:
    """Writes from before a login are dropped; those from before a mere renewal are kept."""
    old = site.visit(write).token
    slow = site.sessions.session(f"id={old}")
    slow["planted"] = True
    site.visit(lambda session: session.login("alice") if gain == "login" else session.renew())
    done = site.sessions.commit(slow)

    assert done.token is None
    assert site.visit(lambda session: "planted" in session).body == (
        b"False" if gain == "login" else b"True"
    )


def bombs() -> dict[str, bytes]:
    """Return small inputs that make careless decoders take long, or much memory."""
    deep = msgspec.msgpack.encode(1)
    for _ in range(20_000):
        deep = b"\x91" + deep
    return {
        "nested arrays": deep,
        "nested maps": b"\x81\xa1a" * 20_000 + b"\x01",
        "an array of 4 billion": b"\xdd\xff\xff\xff\xff",
        "a map of 4 billion": b"\xdf\xff\xff\xff\xff",
        "a text of 4 GB": b"\xdb\xff\xff\xff\xff",
        "bytes of 4 GB": b"\xc6\xff\xff\xff\xff",
        "an extension of 4 GB": b"\xc9\xff\xff\xff\xff\x01",
        "arrays of 4 billion in each other": b"\xdd\xff\xff\xff\xff" * 1000,
        "zeros": bytes(100_000),
    }


@pytest.mark.parametrize("name", list(bombs()))
def test_A27_decode_bombs(name: str) -> None:
    """As a value, as an index, as a whole record: damaged, at once."""
    from zlib import crc32

    bomb = bombs()[name]
    as_value = bomb + crc32(bomb).to_bytes(4, "little")
    length = len(bomb).to_bytes(4, "big")
    as_index = b"\x01" + crc32(bomb).to_bytes(4, "big") + length + bomb
    begun = time.process_time()
    for decode, raw in (
        (codec.decode_value, as_value),
        (codec.decode_value, bomb),
        (codec.decode_index, as_index),
        (codec.decode_index, bomb),
    ):
        with pytest.raises(DamagedRecord):
            decode(raw)

    assert time.process_time() - begun < 0.5


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x" * (1024 * 1024), "max_bytes"),
        ({str(number): number for number in range(1001)}, "max_keys"),
        ([[]], "deep"),
    ],
    ids=["bytes", "keys", "depth"],
)
def test_A28_giant_sessions(make_site: MakeSite, value: Any, message: str) -> None:
    """What is too large is refused with the numbers in the error; the session is unharmed."""
    site = make_site()
    site.visit(write)
    if message == "deep":
        for _ in range(70):
            value = [value]
    with pytest.raises(InvalidValue) as caught:
        site.visit(
            lambda session: (
                session.update(value) if isinstance(value, dict) else session.update(b=value)
            )
        )

    assert message in str(caught.value)
    assert site.visit(lambda session: [show(session), len(session)]).body == b"['1', 1]"


def test_A30_temporary_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Eight writers of one session in a directory: no torn file, nothing left behind."""
    caplog.set_level(logging.WARNING)
    store = open_store(f"directory:///{tmp_path / 'sessions'}")
    sessions = SessionManager(store)
    first = sessions.session()
    first["n"] = 0
    cookie = f"id={sessions.commit(first).token}"
    wrong: list[Any] = []

    def work(number: int) -> None:
        for turn in range(15):
            session = sessions.session(cookie)
            session.add("n")
            session["pad"] = str(number) * 1000
            sessions.commit(session)
            seen = sessions.session(cookie)["pad"]
            if len(set(seen)) != 1:
                wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert wrong == []
    assert sessions.session(cookie)["n"] == 120
    assert caplog.records == []
    left = [path for path in tmp_path.rglob("*") if "tmp" in path.name]
    assert left == []
    store.close()
