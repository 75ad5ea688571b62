"""S1 to S4: what lies in a store, and how it gets there."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sojourn.core.session import Session
from sojourn.core.token import Token, new_secret, new_sid
from sojourn.errors import ConfigurationError, InvalidValue
from sojourn.manager import SessionManager
from sojourn.stores import open_store
from sojourn.stores.base import Store
from sojourn.stores.memory import MemoryStore

from ..web.kit import Site

MakeSite = Callable[..., Site]


def show(session: Session) -> str:
    return str(session.get("a"))


@pytest.fixture(params=["memory", "sqlite", "directory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, no_blocking_on_the_loop: Any) -> Any:
    """One of the stores that need no server."""
    no_blocking_on_the_loop.deactivate()
    url = {
        "memory": "memory://",
        "sqlite": f"sqlite:///{tmp_path / 's.db'}",
        "directory": f"directory:///{tmp_path / 'sessions'}",
    }[request.param]
    made = open_store(url)
    yield made
    made.close()


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


def planted(tmp_path: Path) -> dict[str, bytes]:
    """Return what runs code in decoders that can."""
    canary = tmp_path / "canary"
    path = str(canary).encode()
    packed = pickle.dumps({"a": Canary(canary)})
    return {
        "pickle": packed,
        "pickle 0": pickle.dumps({"a": Canary(canary)}, protocol=0),
        "pickle behind our version": b"\x01" + packed,
        "pickle in MessagePack": msgspec.msgpack.encode({"a": packed}),
        "YAML": b"a: !!python/object/apply:os.mkdir ['" + path + b"']\n",
        "extension": msgspec.msgpack.encode({"a": msgspec.msgpack.Ext(7, packed)}),
        "every extension": b"".join(
            msgspec.msgpack.encode(msgspec.msgpack.Ext(code, packed)) for code in range(-128, 128)
        ),
        "jsonpickle": b'{"py/reduce": [{"py/function": "os.mkdir"}, ["' + path + b'"]]}',
        "marshal": b"\xe3" + bytes(60),
    }


@pytest.mark.parametrize("name", list(planted(Path("x"))))
def test_S1_nothing_runs(make_site: MakeSite, store: Store, name: str, tmp_path: Path) -> None:
    """Who can write records cannot run code: planted ones are damaged, and nothing more."""
    site = make_site(store)
    token = site.visit(lambda session: session.update(a=1)).token
    record = store.load(token[:22])
    assert record is not None
    evil = msgspec.structs.replace(record, version=record.version + 1, data=planted(tmp_path)[name])
    store.replace(evil, record.version)

    assert site.visit(show).body == b"None"
    assert site.visit(lambda session: session.peek.get("a")).status == 200
    assert site.visit(lambda session: session.update(a=2)).status == 200
    store.due(2e9, 10)
    assert not (tmp_path / "canary").exists()


def test_S1_the_canary_sings(tmp_path: Path) -> None:
    """The planted pickle does run code where it is unpickled: otherwise S1 shows nothing."""
    pickle.loads(planted(tmp_path)["pickle"])

    assert (tmp_path / "canary").exists()


NASTY = [
    "../../../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "..\\..\\windows\\win.ini",
    "/etc/passwd",
    "C:\\boot.ini",
    "con",
    "NUL",
    "a" * 300,
    "x\0y",
    "'; DROP TABLE sojourn_sessions; --",
    "' OR '1'='1",
    '" OR 1=1 --',
    "\r\nDEL sid\r\n",
    "*",
    "{}:s:*",
    "%s%n%x",
    "$(touch x)",
    "`touch x`",
    "\u212a",
    "\uff0e\uff0e\uff0f",
    "None",
    "null",
    "",
    "🙂" * 20,
]


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_S2_ids_reach_nothing(make_site: MakeSite, store: Store, text: str, tmp_path: Path) -> None:
    """Paths, SQL and commands in the cookie: no look-up and no file; as a sid: refused."""
    site = make_site(store)
    site.visit(lambda session: session.update(a=1))
    before = sorted(tmp_path.rglob("*"))
    count = store.count(status=None)
    site.verbs  # noqa: B018
    for value in (text, text[:66].ljust(66, "A"), f"{text[:22].ljust(22, 'A')}.{'A' * 43}"):
        header = f"id={value}".encode(errors="replace").decode("latin-1")
        assert site.request(show, cookie=header).body == b"None"
    assert site.sessions.end(text) is False

    assert set(site.verbs) <= ({"load"} if text in ("con", "NUL", "None", "null", "") else set())
    assert sorted(tmp_path.rglob("*")) == before
    assert store.count(status=None) == count


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_S2_values_and_users_reach_nothing(store: Store, text: str) -> None:
    """As a key, a value, a user or an agent they are text, and come back as they were."""
    sessions = SessionManager(store)
    session = sessions.session()
    session[text] = text
    if 0 < len(text) <= 255 and "\0" not in text:
        session.login(text)
        other = sessions.session()
        other.login("innocent")
        sessions.commit(other)
    else:
        with pytest.raises(InvalidValue):
            session.login(text)
    token = sessions.commit(session).token
    again = sessions.session(f"id={token}")

    assert again[text] == text
    if again.user is not None:
        assert again.user == text
        assert [device.sid for device in sessions.of_user(text)] == [again.sid]
        assert sessions.end_all(text) == [again.sid]
        assert sessions.count("innocent") == 1


def test_S3_no_lost_update(store: Store) -> None:
    """Eight threads add to one counter, each to a key of its own too: nothing is lost."""
    sessions = SessionManager(store)
    first = sessions.session()
    first["n"] = 0
    cookie = f"id={sessions.commit(first).token}"

    def work(number: int) -> None:
        for _ in range(25):
            session = sessions.session(cookie)
            session.add("n")
            session[f"own{number}"] = session.get(f"own{number}", 0) + 1
            sessions.commit(session)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    values = dict(sessions.session(cookie))
    assert values.pop("n") == 200
    assert set(values.values()) == {25}


def test_S4_keys_are_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A key comes from outside, from a file for the cookie store; nothing of ours shows it."""
    caplog.set_level("DEBUG")
    key = os.urandom(32).hex()
    path = tmp_path / "keys.txt"
    path.write_text(key + "\n")
    sessions = SessionManager(f"cookie:///{path}", seal_keys=[key])
    session = sessions.session()
    session["a"] = 1
    done = sessions.commit(session)
    assert done.sealed
    shown = repr(sessions) + repr(sessions.store) + repr(vars(sessions)) + repr(sessions._env)
    shown += repr(session) + caplog.text

    assert key not in shown
    assert bytes.fromhex(key).hex() not in shown
    path.write_text("short\n" + key)
    with pytest.raises(ConfigurationError) as caught:
        open_store(f"cookie:///{path}")
    assert key not in str(caught.value)
    assert Token(new_sid(os.urandom), new_secret(os.urandom)).secret not in repr(MemoryStore())
