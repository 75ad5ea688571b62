"""Sessions on real stores, in both colours, by a clock that the test holds."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sojourn import SessionManager
from sojourn.core.record import Client, Record
from sojourn.core.session import Session
from sojourn.manager import Committed
from sojourn.stores import open_async_store, open_store
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Clock
from tests.stores.servers_redis import prefix, redis_program, redis_server
from tests.stores.servers_sql import MariadbServer, PostgresqlServer, a_mariadb, a_postgresql

__all__ = ["prefix", "redis_program", "redis_server"]

STORES = (
    "memory",
    "sqlite",
    pytest.param("redis", marks=pytest.mark.server),
    pytest.param("postgresql", marks=pytest.mark.server),
    pytest.param("mariadb", marks=pytest.mark.server),
)
SEEN = "CREATE TABLE IF NOT EXISTS seen (sid VARCHAR(22), reason VARCHAR(32))"
"""A table of the application, for handlers that write to the store's own database."""


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """One server for all tests here; each has tables of its own."""
    with a_postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariadbServer]:
    """The same."""
    with a_mariadb() as server:
        yield server


class Life:
    """One manager, driven in one colour; the methods of either are called by the blocking name.

    Attributes:
        clock: shared by all workers.
        colour: "blocking" or "async".
    """

    def __init__(self, make: Callable[[bool], Any], colour: str, clock: Clock, **settings: Any):
        self.make = make
        self.colour = colour
        self.clock = clock
        self.settings = settings
        self.runner: asyncio.Runner | None = None
        self.store = make(colour == "async")
        self.sessions = self.manager()

    def manager(self, **settings: Any) -> SessionManager:
        """Another worker on the same store, with other settings or another clock."""
        return SessionManager(self.store, **({"clock": self.clock} | self.settings | settings))

    def wait(self, coroutine: Any) -> Any:
        if self.runner is None:
            self.runner = asyncio.Runner()
        return self.runner.run(coroutine)

    def do(self, name: str, *arguments: Any, on: SessionManager | None = None, **named: Any) -> Any:
        """Call a method of the manager in this colour."""
        sessions = on or self.sessions
        if self.colour == "async":
            return self.wait(getattr(sessions, "a" + name)(*arguments, **named))
        return getattr(sessions, name)(*arguments, **named)

    def do_flow(self, flow: Any) -> Any:
        """Run a flow of the core on the store."""
        if self.colour == "async":
            return self.wait(self.sessions.arun(flow))
        return self.sessions.run(flow)

    def open(
        self, cookie: str = "", on: SessionManager | None = None, client: Client | None = None
    ) -> Session:
        """The session of a request."""
        session: Session = self.do("session", cookie, client=client, on=on)
        return session

    def commit(self, session: Session, on: SessionManager | None = None) -> Committed:
        done: Committed = self.do("commit", session, on=on)
        return done

    def cookie(self, done: Committed) -> str:
        """What the browser sends from then on."""
        assert done.token is not None
        return f"{self.sessions.cookie.name_for[False]}={done.token}"

    def login(
        self, user: str | None = "alice", on: SessionManager | None = None, **values: Any
    ) -> str:
        """Make a session, of that user or of nobody; return its cookie."""
        session = self.open(on=on)
        session.update(values or {"made": True})
        if user is not None:
            session.login(user)
        return self.cookie(self.commit(session, on))

    def alive(self, cookie: str, on: SessionManager | None = None) -> bool:
        return not self.open(cookie, on).is_new

    def record(self, cookie: str) -> Record | None:
        """What the store holds."""
        record = self.store.load(sid_of(cookie))
        if self.colour == "async":
            record = self.wait(record)
        found: Record | None = record
        return found

    def close(self) -> None:
        if self.colour == "async":
            self.wait(self.store.close())
        else:
            self.store.close()
        if self.runner is not None:
            self.runner.close()


def sid_of(cookie: str) -> str:
    return cookie.partition("=")[2].partition(".")[0]


def url_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """Return the URL of a store of a kind that is empty, for any process."""
    if kind == "redis":
        own = request.getfixturevalue("prefix")
        return f"{request.getfixturevalue('redis_server').url}?prefix={own}"
    if kind == "postgresql":
        import psycopg

        url: str = request.getfixturevalue("postgresql_server").url()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS sojourn_sessions, sojourn_meta, seen")
    elif kind == "mariadb":
        server = request.getfixturevalue("mariadb_server")
        url = server.url()
        with server.connect("sojourn") as connection, connection.cursor() as cursor:
            cursor.execute("DROP TABLE IF EXISTS sojourn_sessions, sojourn_meta, seen")
            # Here, as it would end the transaction of a handler: MariaDB has none over tables.
            cursor.execute(SEEN)
    else:
        url = f"sqlite:///{folder}/sessions.db"
    return url


def maker(kind: str, request: pytest.FixtureRequest, folder: Path) -> Callable[[bool], Any]:
    """Return what makes stores of a kind: `make(asynchronous)`; all of them hold the same."""
    if kind == "memory":
        memory = MemoryStore()

        def make(asynchronous: bool) -> Any:
            from sojourn.stores.threaded import ThreadedStore

            return ThreadedStore(memory) if asynchronous else memory

        return make
    url = url_of(kind, request, folder)
    return lambda asynchronous: (open_async_store if asynchronous else open_store)(url)


@pytest.fixture
def clock() -> Clock:
    # Of today: Redis drops by its own clock what is long over.
    return Clock(float(int(time.time())))


@pytest.fixture(params=STORES)
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of store; a test for some of them only names those with `indirect`."""
    return str(request.param)


@pytest.fixture
def make_store(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[bool], Any]:
    return maker(kind, request, tmp_path)


@pytest.fixture(params=["blocking", "async"])
def make_life(
    request: pytest.FixtureRequest, make_store: Callable[[bool], Any], clock: Clock
) -> Iterator[Callable[..., Life]]:
    """Make managers with settings of their own on one store, in both colours."""
    with contextlib.ExitStack() as stack:

        def make(**settings: Any) -> Life:
            life = Life(make_store, request.param, clock, **settings)
            stack.callback(life.close)
            return life

        yield make


@pytest.fixture
def life(make_life: Callable[..., Life]) -> Life:
    """With an idle timeout of 100 s and a lifetime of 1000 s."""
    return make_life(idle_timeout=100, lifetime=1000)


@pytest.fixture
def memory_life(clock: Clock) -> Callable[..., Life]:
    """The same in memory only and blocking, where store and colour make no difference."""
    store = MemoryStore()
    settings = {"idle_timeout": 100, "lifetime": 1000}
    return lambda **given: Life(lambda _: store, "blocking", clock, **(settings | given))
