"""The manager: settings, store and driver in one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sojourn.core import expiry
from sojourn.core.session import Session
from sojourn.core.token import Token
from sojourn.errors import ConfigurationError, Conflict, InvalidValue, StoreUnavailable
from sojourn.manager import SessionManager
from sojourn.stores.cookie import CookieStore
from sojourn.stores.memory import MemoryStore
from sojourn.stores.sqlite import SqliteStore
from sojourn.testing import Clock, FlakyStore, RecordingStore
from sojourn.testing.faults import Fault


def manager(store: Any = "memory://", **settings: Any) -> SessionManager:
    settings.setdefault("clock", Clock())
    return SessionManager(store, **settings)


def visit(sessions: SessionManager, **values: Any) -> str:
    """Make a session; return the Cookie header of its visitor."""
    session = sessions.session()
    session.update(values)
    done = sessions.commit(session)
    assert done.token is not None
    return f"a=b; id={done.token}"


# Settings.


def test_all_faults_in_one_message() -> None:
    """Whatever is wrong is said at once, each with its name."""
    wrong: dict[str, Any] = {
        "idle_timeout": 0,
        "lifetime": "long",
        "touch_interval": -1,
        "grace": -5,
        "tombstone": timedelta(-1),
        "seal_keys": ["short"],
        "max_bytes": 0,
        "max_keys": "many",
        "max_depth": 1000,
        "max_sessions": 0,
        "on_conflict": "merge",
        "on_store_error": "ignore",
        "on_too_many": "maybe",
        "on_theft": "police",
        "cookie_name": "a b",
        "cookie_samesite": "none",
        "cookie_path": "x",
        "cookie_domain": "",
    }
    with pytest.raises(ConfigurationError) as caught:
        SessionManager(**wrong)

    for name in wrong:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"idle_timeout": None, "lifetime": None}, "both None"),
        ({"idle_timeout": 60, "touch_interval": 60}, "shorter than the limits"),
        ({"idle_timeout": None, "lifetime": 60, "touch_interval": 61}, "shorter than the limits"),
        ({"expiry": expiry.NIST_800_63B_4_AAL1, "lifetime": 60}, "give one"),
        ({"expiry": expiry.Expiry(None, None)}, "both None"),
        ({"cookie_samesite": "None"}, "cookie_secure=True"),
        ({"seal_keys": "a string of more than thirty-two characters"}, "must be a list"),
        ({"max_bytes": True}, "max_bytes"),
        ({"max_bytes": 1.5}, "max_bytes"),
    ],
)
def test_faults(settings: dict[str, Any], words: str) -> None:
    """Settings that cannot work together are refused before anything runs."""
    with pytest.raises(ConfigurationError, match=words):
        SessionManager(**settings)


@pytest.mark.parametrize(
    ("settings", "idle", "lifetime", "touch"),
    [
        ({}, 3600, 86400, 180),
        ({"expiry": expiry.NIST_800_63B_4_AAL1}, None, 30 * 86400, 1.5 * 86400),
        ({"expiry": expiry.NIST_800_63B_4_AAL2}, 3600, 86400, 180),
        ({"expiry": expiry.NIST_800_63B_4_AAL3}, 900, 43200, 45),
        ({"idle_timeout": 60, "lifetime": None}, 60, None, 3),
        ({"idle_timeout": timedelta(minutes=1), "touch_interval": 7}, 60, 86400, 7),
    ],
)
def test_limits(
    settings: dict[str, Any], idle: float | None, lifetime: float | None, touch: float
) -> None:
    """Limits come from a preset or from the settings; a touch is due after a twentieth of idle."""
    sessions = manager(**settings)
    cookie = visit(sessions, a=1)
    session = sessions.session(cookie)

    assert session.idle_timeout == (None if idle is None else timedelta(seconds=idle))
    assert session.lifetime == (None if lifetime is None else timedelta(seconds=lifetime))
    clock: Any = sessions._env.clock
    clock.advance(touch - 0.1)
    session = sessions.session(cookie)
    session["a"]
    assert not sessions.commit(session).wrote
    clock.advance(0.1)
    session = sessions.session(cookie)
    session["a"]
    assert sessions.commit(session).wrote


def test_no_grace_no_tombstone() -> None:
    """Both may be nothing: the old cookie dies at once, an ended session leaves no trace."""
    sessions = manager(grace=0, tombstone=None)
    cookie = visit(sessions, a=1)
    session = sessions.session(cookie)
    session.renew()
    new = sessions.commit(session).token

    assert sessions.session(cookie).is_new
    session = sessions.session(f"id={new}")
    session.logout()
    sessions.commit(session)
    assert sessions.store.count(status=None) == 0


# The store.


def test_opened_when_first_needed(tmp_path: Path) -> None:
    """Making a manager opens nothing; a request without a cookie that writes nothing neither."""
    file = tmp_path / "sessions.db"
    sessions = manager(f"sqlite:///{file}")
    session = sessions.session()
    assert session.get("a") is None
    sessions.commit(session)

    assert not file.exists()
    visit(sessions, a=1)
    assert file.exists()
    sessions.close()


@pytest.mark.parametrize("first", ["blocking", "asynchronous"])
@pytest.mark.parametrize("given", ["url", "store"])
def test_one_store_in_both_colours(first: str, given: str) -> None:
    """Blocking and asynchronous code of one manager see the same sessions."""
    sessions = manager("memory://" if given == "url" else MemoryStore())

    async def avisit(cookie: str = "") -> str:
        session = await sessions.asession(cookie)
        session.add("n")
        done = await sessions.acommit(session)
        return f"id={done.token}" if done.token else cookie

    cookie = visit(sessions, n=1) if first == "blocking" else asyncio.run(avisit())
    asyncio.run(avisit(cookie))
    session = sessions.session(cookie)
    session.add("n")
    sessions.commit(session)

    assert dict(sessions.session(cookie)) == {"n": 3}


def test_an_asynchronous_store_for_blocking_code() -> None:
    """Blocking code with an asynchronous store is told so at once."""

    class Async:
        async def load(self, sid: str) -> None: ...

    with pytest.raises(ConfigurationError, match=r"Async is an asynchronous store"):
        _ = manager(Async()).store


def test_a_wrong_sid() -> None:
    """What is no sid, from a form perhaps, names no session; the store is not asked."""
    store = RecordingStore(MemoryStore())
    sessions = manager(store)

    for sid in ("", "../../etc/passwd", "a" * 22 + "\n", "A" * 21):
        assert sessions.end(sid) is False
    assert not store.calls
    assert sessions.end("A" * 22) is False
    assert store.calls


def test_ending_only_ones_own() -> None:
    """With `user` a session ends only if it is that user's, whatever sid a form sent."""
    sessions = manager()
    session = sessions.session()
    session.login("alice")
    sessions.commit(session)

    assert not sessions.end(session.sid, "user", user="bob")
    assert [device.user for device in sessions.of_user("alice")] == ["alice"]
    assert sessions.end(session.sid, "user", user="alice")
    assert sessions.of_user("alice") == []


@pytest.mark.anyio
@pytest.mark.parametrize("user", [None, "", 5])
async def test_nobody_is_not_everybody(user: Any) -> None:
    """Asking for the sessions of a visitor who is not logged in raises; it shows nobody's."""
    sessions = manager()
    session = sessions.session()
    session.login("alice")
    sessions.commit(session)

    for ask in (sessions.of_user, sessions.end_all):
        with pytest.raises(InvalidValue, match="not empty"):
            ask(user)
    for aask in (sessions.aof_user, sessions.aend_all):
        with pytest.raises(InvalidValue, match="not empty"):
            await aask(user)
    assert len(sessions.of_user("alice")) == 1


def test_a_wrong_store_is_refused_at_once() -> None:
    """The scheme and what else can be known of a store is checked when the manager is made."""
    for store, words in (
        ("sqlit:///x.db", "no store is known"),
        ("x.db", "no colon"),
        (None, "must be a URL"),
        (Path("x.db"), "must be a URL"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            SessionManager(store)  # type: ignore[arg-type]


# Requests.


@pytest.mark.parametrize("https", [True, False])
def test_the_name_goes_with_the_scheme(https: bool) -> None:
    """On https only the `__Host-` cookie counts, on http only the plain one."""
    sessions = manager()
    token = visit(sessions, a=1).partition("id=")[2]

    for name, counts in (("__Host-id", https), ("id", not https), ("ID", False)):
        session = sessions.session(f"{name}={token}", https=https)
        assert ("a" in session) is counts


def test_two_live_cookies() -> None:
    """A22: two live sessions in one header count as none, in either order, and one line tells."""
    sessions = manager()
    one, two = (visit(sessions, a=n).partition("; ")[2] for n in (1, 2))
    for header in (f"{one}; {two}", f"{two}; {one}"):
        session = sessions.session(header)
        assert session.get("a") is None
        sessions.commit(session)

    assert sessions.counters["two cookies"] == 2
    assert sessions.session(f"{one}; id=planted")["a"] == 1


def test_users() -> None:
    """Sessions are listed and ended by user; the one to keep stays."""
    sessions = manager()
    tokens = []
    for _ in range(3):
        session = sessions.session()
        session.login("alice")
        tokens.append(sessions.commit(session).token)
    keep = tokens[0]
    assert keep is not None

    assert len(sessions.of_user("alice")) == sessions.count("alice") == 3
    assert len(sessions.end_all("alice", keep=keep.sid)) == 2
    assert [record.sid for record in asyncio.run(sessions.aof_user("alice"))] == [keep.sid]
    assert asyncio.run(sessions.aend(keep.sid)) is True
    assert sessions.end(keep.sid) is False
    assert asyncio.run(sessions.acount("alice")) == 0
    assert asyncio.run(sessions.aend_all("alice")) == []
    assert sessions.counters["ended"] == 3


def test_counters() -> None:
    """What happened is counted by name."""
    sessions = manager()
    cookie = visit(sessions, a=1, n=1)
    first, second = sessions.session(cookie), sessions.session(cookie)
    for session in (first, second):
        session["a"] = 2
        session.add("n")
    for session in (first, second):
        sessions.commit(session)
    late = sessions.session(cookie)
    late["a"] = 3
    session = sessions.session(cookie)
    session.renew()
    sessions.commit(session)
    session = sessions.session(cookie)
    session.logout()
    sessions.commit(session)
    sessions.commit(late)

    counters = sessions.counters
    assert counters["created"] == 1
    assert counters["renewed"] == 1
    assert counters["ended"] == 1
    assert counters["dropped"] == 1
    # The second of the two was merged; the late one found the session gone.
    assert (counters["retries"], counters["overwritten"]) == (1, 1)
    assert counters["written"] == 5


def test_on_conflict() -> None:
    """With on_conflict="raise" the later of two plain sets fails."""
    sessions = manager(on_conflict="raise")
    cookie = visit(sessions, a=1)
    first, second = sessions.session(cookie), sessions.session(cookie)
    first["a"] = second["a"] = 2
    sessions.commit(first)

    with pytest.raises(Conflict):
        sessions.commit(second)


# Damage.


def test_one_line_for_a_damaged_record(caplog: pytest.LogCaptureFixture) -> None:
    """A damaged session costs one line in the log, however often its visitor comes."""
    sessions = manager()
    cookie = visit(sessions, a=1)
    (record,) = sessions.store.list()
    damaged = msgspec.structs.replace(record, version=record.version + 1, data=b"\x01garbage")
    sessions.store.replace(damaged, record.version)
    with caplog.at_level(logging.INFO, "sojourn"):
        for _ in range(5):
            session = sessions.session(cookie)
            assert session.get("a") is None
            sessions.commit(session)

    assert [line.levelname for line in caplog.records] == ["WARNING"]
    assert record.sid in caplog.text
    assert sessions.counters["damaged"] == 5


def test_p4_no_secret_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """P4: whatever happens, no secret is logged."""
    sessions = manager(grace=0)
    with caplog.at_level(logging.DEBUG, "sojourn"):
        cookie = visit(sessions, a=1)
        session = sessions.session(cookie)
        session.login("alice")
        new = sessions.commit(session).token
        for header in (cookie, f"id={new}", cookie[:-2] + "QE"):
            session = sessions.session(header)
            session.get("a")
            sessions.commit(session)

    assert "suspicious" in caplog.text
    assert new is not None
    assert new.secret not in caplog.text
    assert cookie.rpartition(".")[2] not in caplog.text


# The store is down.


def down(*verbs: str) -> Any:
    return lambda verb, _: Fault.UNAVAILABLE if verb in verbs else None


def test_p6_raise() -> None:
    """P6: with on_store_error="raise" every use says so, and a page without a use works."""
    store = MemoryStore()
    cookie = visit(manager(store), a=1)
    sessions = manager(FlakyStore(store, down("load", "create", "replace", "delete")))

    session = sessions.session(cookie)
    assert not sessions.commit(session).wrote
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            session.get("a")
    assert session.failure is not None
    new = sessions.session()
    new["a"] = 1
    with pytest.raises(StoreUnavailable):
        sessions.commit(new)
    assert sessions.counters["store errors"] == 2


def test_p6_continue(caplog: pytest.LogCaptureFixture) -> None:
    """P6: with "continue" a request goes on with an empty session: never a stale login."""
    store = MemoryStore()
    session = manager(store).session()
    cookie = visit(manager(store), a=1)
    sessions = manager(FlakyStore(store, down("load", "create")), on_store_error="continue")

    session = sessions.session(cookie)
    assert (session.get("a"), session.user) == (None, None)
    session["b"] = 1
    done = sessions.commit(session)
    assert (done.token, done.wrote, done.dropped) == (None, False, "shadow")
    new = sessions.session()
    new["a"] = 1
    done = sessions.commit(new)
    assert (done.token, done.wrote, done.dropped) == (None, False, "store")
    assert "goes on without a session" in caplog.text
    assert "is lost" in caplog.text
    assert sessions.counters["store errors"] == 2


@pytest.mark.parametrize("verb", ["load", "delete"])
def test_a_logout_is_never_pretended(verb: str) -> None:
    """Also with "continue", a logout that did not get through raises: the session still lives."""
    store = MemoryStore()
    cookie = visit(manager(store), a=1)
    sessions = manager(FlakyStore(store, down(verb)), on_store_error="continue")
    session = sessions.session(cookie)

    def logout() -> None:
        session.logout()
        sessions.commit(session)

    with pytest.raises(StoreUnavailable):
        logout()
    assert manager(store).session(cookie)["a"] == 1


@contextlib.contextmanager
def held(file: Path) -> Iterator[None]:
    """Hold the write lock of a database in another process: within one, its locks are not seen."""
    script = (
        "import sqlite3, sys\n"
        "file = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "file.execute('BEGIN IMMEDIATE')\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
        process.communicate()


def test_p6_a_file_that_another_process_holds(tmp_path: Path) -> None:
    """P6: a real database that cannot be written: reported, or go on; never taken for saved."""
    file = tmp_path / "sessions.db"
    store = SqliteStore(str(file), busy_timeout=0.05)
    cookie = visit(manager(store), a=1)
    with held(file):
        sessions = manager(store)
        session = sessions.session(cookie)
        session["a"] = 2
        with pytest.raises(StoreUnavailable):
            sessions.commit(session)
        sessions = manager(store, on_store_error="continue")
        session = sessions.session(cookie)
        session["a"] = 3
        done = sessions.commit(session)
        assert (done.wrote, done.dropped) == (False, "store")
        session = sessions.session(cookie)
        session.logout()
        with pytest.raises(StoreUnavailable):
            sessions.commit(session)

    assert manager(store).session(cookie)["a"] == 1
    store.close()


@pytest.mark.anyio
async def test_p6_on_a_loop() -> None:
    """P6: on a loop the error comes at the first use, too, so that other pages work."""

    class Down:
        promises = MemoryStore.promises

        async def load(self, sid: str) -> Any:
            raise StoreUnavailable("down")

    token = Token("A" * 22, "A" * 43)
    for policy in ("raise", "continue"):
        sessions = manager(Down(), on_store_error=policy)
        session = await sessions.asession(f"id={token}")
        assert not (await sessions.acommit(session)).wrote
        if policy == "raise":
            with pytest.raises(StoreUnavailable):
                session.get("a")
        else:
            assert session.get("a") is None


def test_t1_no_randomness() -> None:
    """T1: when the random source fails, so does the request; nothing weaker is used."""
    sources = [os.urandom]

    def entropy(size: int) -> bytes:
        return sources[-1](size)

    def broken(size: int) -> bytes:
        raise OSError("no randomness")

    sessions = manager(entropy=entropy)
    session = sessions.session()
    session["a"] = 1
    sources.append(broken)
    with pytest.raises(OSError, match="no randomness"):
        sessions.commit(session)
    sources.append(lambda size: bytes(size // 2))
    with pytest.raises(ValueError, match="random source gave"):
        sessions.commit(session)
    assert sessions.store.count() == 0


# Kinds of sessions, and persistent cookies.


class Named(Session):
    """A session as an integration may need it."""

    __slots__ = ()

    @property
    def name(self) -> str:
        return f"session {self['a']}"


@pytest.mark.parametrize("store", ["memory://", CookieStore([os.urandom(32)])])
def test_a_session_of_another_kind(store: Any) -> None:
    """An integration gets sessions of its own class, wherever the record is kept."""
    sessions = SessionManager(store)
    first = sessions.session(kind=Named)
    first["a"] = 1
    done = sessions.commit(first)

    found = sessions.session(f"id={done.sealed or done.token}", kind=Named)

    assert isinstance(found, Named)
    assert found.name == "session 1"


def test_persistent_by_default() -> None:
    """With `cookie_persistent` a new session's cookie outlives the browser; one may differ."""
    sessions = SessionManager(cookie_persistent=True, lifetime=1000)
    session, other = sessions.session(), sessions.session()
    session["a"] = other["a"] = 1
    other.persistent = False

    assert session.persistent
    assert sessions.commit(session).max_age == 1000
    assert sessions.commit(other).max_age is None

    plain = SessionManager().session()
    plain["a"] = 1
    assert not plain.persistent
