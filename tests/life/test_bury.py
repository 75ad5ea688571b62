"""Handlers in one transaction with the end of the session: exactly once."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from sojourn import SessionManager
from sojourn.core.ending import SKEW
from sojourn.core.record import ENDED, ENDING, Ended
from sojourn.core.session import Session
from sojourn.errors import ConfigurationError, StoreUnavailable
from sojourn.stores import open_store
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Clock

from .conftest import SEEN, Life, sid_of
from .test_handlers import Seen, over

SQL = pytest.mark.parametrize(
    "kind",
    [
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.server),
        pytest.param("mariadb", marks=pytest.mark.server),
    ],
    indirect=True,
)


class Writes:
    """A handler that writes a row through the connection of the store, of either kind."""

    def __init__(self, life: Life, failures: int = 0) -> None:
        self.failures = failures
        self.calls = 0
        self.awaited = life.colour == "async" and "Threaded" not in type(life.store).__name__
        self.name = type(life.store).__name__

    def of(self) -> Callable[..., Any]:
        if self.awaited:

            async def awaited(session: Session, reason: str, connection: Any) -> None:
                for statement in self.statements(session, reason):
                    await aexecute(connection, *statement)
                self.fail()

            return awaited

        def blocking(session: Session, reason: str, connection: Any) -> None:
            for statement in self.statements(session, reason):
                execute(connection, *statement)
            self.fail()

        return blocking

    def statements(self, session: Session, reason: str) -> list[tuple[Any, ...]]:
        self.calls += 1
        mark = "?" if "Mariadb" not in self.name and "Postgresql" not in self.name else "%s"
        insert = (f"INSERT INTO seen VALUES ({mark}, {mark})", (session.sid, reason))
        return [insert] if "Mariadb" in self.name else [(SEEN,), insert]

    def fail(self) -> None:
        if self.calls <= self.failures:
            raise OSError("no")


def execute(connection: Any, *statement: Any) -> None:
    """Run a statement on a connection of any driver; PyMySQL's has only cursors for that."""
    on = connection if hasattr(connection, "execute") else connection.cursor()
    on.execute(*statement)


async def aexecute(connection: Any, *statement: Any) -> None:
    on = connection if hasattr(connection, "execute") else connection.cursor()
    await on.execute(*statement)


@pytest.fixture
def rows(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    """What the handlers wrote, as a connection of another process sees it."""

    def of_sqlite() -> Any:
        with contextlib.closing(apsw.Connection(f"{tmp_path}/sessions.db")) as connection:
            if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'seen'").get is None:
                return []
            return list(connection.execute("SELECT sid, reason FROM seen ORDER BY sid"))

    def of_postgresql() -> Any:
        import psycopg

        with psycopg.connect(request.getfixturevalue("postgresql_server").url()) as connection:
            if connection.execute("SELECT to_regclass('seen')").fetchone() == (None,):
                return []
            query = 'SELECT sid, reason FROM seen ORDER BY sid COLLATE "C"'
            return list(connection.execute(query))

    def of_mariadb() -> Any:
        server = request.getfixturevalue("mariadb_server")
        with server.connect("sojourn") as connection, connection.cursor() as cursor:
            cursor.execute("SELECT sid, reason FROM seen ORDER BY BINARY sid")
            return list(cursor.fetchall())

    return {"sqlite": of_sqlite, "postgresql": of_postgresql, "mariadb": of_mariadb}[kind]


@SQL
def test_both_or_neither(life: Life, rows: Callable[[], Any]) -> None:
    """What the handler writes and the tombstone become true together, in the sweep or at once."""
    handler = Writes(life)
    life.sessions.on_ended_in_transaction(handler.of())
    swept, ended = life.login(), life.login()
    life.do("end", sid_of(ended), "operator")
    over(life)
    assert life.do("sweep").ended == 1

    found = sorted([(sid_of(swept), "idle"), (sid_of(ended), "operator")])
    assert rows() == found
    for cookie in (swept, ended):
        record = life.record(cookie)
        assert record is not None
        assert (record.status, record.data) == (ENDED, b"")
    life.clock.advance(600)
    life.do("sweep")
    assert handler.calls == 2


@SQL
def test_a_failing_handler_takes_all_back(life: Life, rows: Callable[[], Any]) -> None:
    """One that raises: nothing of it or of the others is kept, and all run again later."""
    failing, other, after = Writes(life, failures=2), Writes(life), Seen()
    life.sessions.on_ended_in_transaction(other.of())
    life.sessions.on_ended_in_transaction(failing.of())
    life.sessions.on_ended(after)
    cookie = life.login()
    over(life)
    for calls in (1, 2):
        assert life.do("sweep").failed == 1
        assert rows() == []
        record = life.record(cookie)
        assert record is not None
        assert (record.status, failing.calls, other.calls) == (ENDING, calls, calls)
        life.clock.advance(600)
    assert life.do("sweep").ended == 1

    assert rows() == [(sid_of(cookie), "idle")] * 2
    assert len(after.calls) == 3
    assert life.do("sweep").ended == 0


@SQL
def test_not_for_one_that_is_over_already(life: Life) -> None:
    """Where the session is live, buried or unknown the work is not called."""
    live, buried = life.login(), life.login()
    life.do("end", sid_of(buried))
    now = life.clock()
    called: list[Any] = []

    async def awork(connection: Any) -> None:
        called.append(connection)

    blocking = life.make(False)
    for sid in (sid_of(live), sid_of(buried), "A" * 22):
        tombstone = Ended(ENDED, "idle", now, now + 100)
        assert blocking.bury(sid, tombstone, called.append) is False
        if hasattr(life.store, "bury"):
            bury = life.store.bury(
                sid, tombstone, awork if life.colour == "async" else called.append
            )
            assert (life.wait(bury) if life.colour == "async" else bury) is False
    blocking.close()

    assert called == []
    assert life.alive(live)


@SQL
def test_the_store_goes_on_after_a_failure(life: Life) -> None:
    """Connections that a handler broke are not used again, and no lock is left behind."""

    def breaks(session: Session, reason: str, connection: Any) -> None:
        execute(connection, "SELECT * FROM no_such_table")

    async def abreaks(session: Session, reason: str, connection: Any) -> None:
        await aexecute(connection, "SELECT * FROM no_such_table")

    life.sessions.on_ended_in_transaction(abreaks if Writes(life).awaited else breaks)
    cookies = [life.login() for _ in range(5)]
    over(life)
    assert life.do("sweep").failed == 5
    again = life.login()

    assert life.alive(again)
    assert not any(life.alive(cookie) for cookie in cookies)


def test_a_store_without_transactions(clock: Clock) -> None:
    """It says so, and nothing is deleted."""
    sessions = SessionManager(MemoryStore(), clock=clock)
    sessions.on_ended_in_transaction(lambda session, reason, connection: None)
    session = sessions.session()
    session["n"] = 1
    token = sessions.commit(session).token
    assert token is not None

    with pytest.raises(ConfigurationError, match="needs a SQL store"):
        sessions.end(token.sid)
    record = sessions.store.load(token.sid)
    assert record is not None
    assert record.status == ENDING


# Kills.

CHILD = """
import os, signal, sys
import apsw
import sojourn.stores.sqlite as sqlite
from sojourn import SessionManager

path, now, die_at = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
step = 0

def maybe():
    global step
    step += 1
    if step == die_at:
        os.kill(os.getpid(), signal.SIGKILL)

def traced(method):
    def call(self, *arguments):
        maybe()
        answer = method(self, *arguments)
        maybe()
        return answer
    return call

connection = sqlite._Connection
for name in ("load", "create", "replace", "delete", "bury", "claim"):
    setattr(connection, name, traced(getattr(connection, name)))
begin = connection._transaction

def transaction(self):
    execute = self.execute
    def call(*arguments):
        maybe()
        answer = execute(*arguments)
        maybe()
        return answer
    self.execute = call
    return begin(self)

connection._transaction = transaction
sessions = SessionManager(f"sqlite:///{path}", idle_timeout=100, clock=lambda: now)

@sessions.on_ended_in_transaction
def ended(session, reason, connection):
    maybe()
    connection.execute("INSERT INTO seen VALUES (?, ?)", (session.sid, reason))
    maybe()

print(sessions.sweep().ended, step)
"""


def test_killed_between_all_steps(tmp_path: Path) -> None:
    """Kill -9 before and after every step: the handler's table and the tombstones always agree."""
    for die_at in itertools.count(1):
        path = tmp_path / f"{die_at}.db"
        clock = Clock()
        sessions = SessionManager(f"sqlite:///{path}", idle_timeout=100, clock=clock)
        session = sessions.session()
        session["n"] = 1
        token = sessions.commit(session).token
        assert token is not None
        sids = {token.sid}
        sessions.close()
        with contextlib.closing(apsw.Connection(str(path))) as connection:
            connection.execute(SEEN)
        now = clock() + 100 + SKEW
        code = [sys.executable, "-c", CHILD, str(path)]
        done = subprocess.run([*code, str(now), str(die_at)], capture_output=True, text=True)
        agree(path, sids)
        if done.returncode == 0:
            assert done.stdout.split()[0] == "1"
            assert die_at > 25
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        done = subprocess.run([*code, str(now + 200), "0"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert agree(path, sids) == sids


def agree(path: Path, sids: set[str]) -> set[str]:
    """Compare what the handler wrote with what is buried; return those."""
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        written = [sid for (sid,) in connection.execute("SELECT sid FROM seen")]
    with contextlib.closing(open_store(f"sqlite:///{path}")) as store:
        buried = {record.sid for record in store.list(None, ENDED)}
    assert len(written) == len(set(written))
    assert set(written) == buried
    assert buried <= sids
    return buried


def test_a_commit_that_fails(tmp_path: Path, clock: Clock) -> None:
    """Where the transaction cannot be committed neither is true, and the error is the store's."""
    sessions = SessionManager(f"sqlite:///{tmp_path}/sessions.db", idle_timeout=100, clock=clock)

    @sessions.on_ended_in_transaction
    def ended(session: Session, reason: str, connection: Any) -> None:
        connection.execute(
            "CREATE TABLE parent (id INTEGER PRIMARY KEY) STRICT;"
            "CREATE TABLE child (id INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED);"
            "PRAGMA defer_foreign_keys = ON; INSERT INTO child VALUES (1)"
        )

    connection = sessions.store._idle[0].apsw  # type: ignore[attr-defined]
    connection.execute("PRAGMA foreign_keys = ON")
    session = sessions.session()
    session["n"] = 1
    token = sessions.commit(session).token
    assert token is not None
    with pytest.raises(StoreUnavailable):
        sessions.end(token.sid)
    record = sessions.store.load(token.sid)

    assert record is not None
    assert record.status == ENDING
    assert os.path.exists(tmp_path / "sessions.db")
    sessions.close()
