"""The fault proxy, and what the stores on servers do behind it: R15 and R16."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from sojourn import SessionManager
from sojourn.core.calls import GONE, SAVED
from sojourn.core.record import ENDED, Ended, Record
from sojourn.errors import StoreUnavailable
from sojourn.stores import open_async_store, open_store
from sojourn.testing import new_record, next_version
from sojourn.testing.proxy import Proxy
from tests.stores.servers_redis import redis_program, redis_server
from tests.stores.servers_sql import a_mariadb, a_postgresql

_fixtures = (redis_program, redis_server)

TIMEOUT = 0.5


# The proxy alone.


@pytest.fixture(scope="module")
def echo() -> Iterator[int]:
    """The port of a server that says what it hears, in capitals."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(one: socket.socket) -> None:
        with one, contextlib.suppress(OSError):
            while chunk := one.recv(1000):
                one.sendall(chunk.upper())

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = listener.accept()
                threading.Thread(target=answer, args=(one,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Proxy(echo) as running:
        yield running


@contextlib.contextmanager
def client(proxy: Proxy, timeout: float = 5.0) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout) as one:
        yield one


def ask(one: socket.socket, words: bytes) -> bytes:
    one.sendall(words)
    return one.recv(1000)


def test_it_passes_on(proxy: Proxy) -> None:
    """With nothing asked for, both sides notice nothing, and ends are passed on as ends."""
    with client(proxy) as one, client(proxy) as other:
        assert ask(one, b"a") == b"A"
        assert ask(other, b"bc") == b"BC"
        assert ask(one, b"d") == b"D"
        one.shutdown(socket.SHUT_WR)
        assert one.recv(10) == b""

    assert (proxy.accepted, proxy.replied) == (2, 4)


def test_latency_and_pieces(proxy: Proxy) -> None:
    """Replies are late by the latency for each piece, on connections that are open already."""
    with client(proxy) as one:
        ask(one, b"before")
        proxy.latency, proxy.piece = 0.05, 2
        began = time.monotonic()
        assert ask(one, b"abc") == b"AB"
        assert one.recv(10) == b"C"
        assert time.monotonic() - began >= 0.1


def test_cut(proxy: Proxy) -> None:
    """Both connections are reset, and a new one works."""
    with client(proxy) as one, client(proxy) as other:
        ask(one, b"a")
        ask(other, b"b")
        proxy.cut()
        for cut in (one, other):
            with pytest.raises(ConnectionResetError):
                cut.recv(10)
    with client(proxy) as one:
        assert ask(one, b"a") == b"A"


def test_refusing(proxy: Proxy) -> None:
    """Nobody gets an answer while it refuses; then everybody does."""
    with proxy.refusing(), client(proxy) as one, pytest.raises(ConnectionError):
        ask(one, b"a")
    with client(proxy) as one:
        assert ask(one, b"a") == b"A"


def test_silence(proxy: Proxy) -> None:
    """Connections old and new are there and say nothing; what came meanwhile comes afterwards."""
    with client(proxy, 0.1) as one:
        ask(one, b"a")
        with proxy.silence(), client(proxy, 0.1) as other:
            for silent in (one, other):
                silent.sendall(b"late")
                with pytest.raises(TimeoutError):
                    silent.recv(10)
        one.settimeout(5)
        assert one.recv(10) == b"LATE"


@pytest.mark.parametrize("at", [0, 1, 3, 5])
def test_reset_in_a_reply(proxy: Proxy, at: int) -> None:
    """Just so many bytes of the reply arrive, then a reset; once."""
    with client(proxy) as one:
        ask(one, b"before")
        proxy.reset_reply(at)
        assert proxy.armed
        one.sendall(b"hello")
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := one.recv(10):
                got += chunk
            pytest.fail("the connection came to an end, and was not reset")
    assert b"HELLO"[:at].startswith(got)  # A reset may overtake what was sent before it.
    assert not proxy.armed
    with client(proxy) as one:
        assert ask(one, b"hello") == b"HELLO"


def test_a_reset_may_be_taken_back(proxy: Proxy) -> None:
    """One that did not come is asked for no more."""
    with client(proxy) as one:
        proxy.reset_reply(100)
        assert ask(one, b"a") == b"A"
        proxy.disarm()
        assert ask(one, b"b" * 200) == b"B" * 200


def test_closed(echo: int) -> None:
    """Nothing is left of it: no thread, no connection, no port."""
    before = threading.active_count()
    with Proxy(echo) as proxy, client(proxy) as one:
        ask(one, b"a")
        proxy.close()
        with pytest.raises(ConnectionResetError):
            one.recv(10)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", proxy.port), 1)
    assert threading.active_count() <= before + 1  # The echo server's may be about to end.


# Stores behind it.


@dataclass
class Behind:
    """A store behind the proxy; its verbs are awaited whatever its colour."""

    proxy: Proxy
    store: Any

    async def __call__(self, verb: str, *arguments: Any) -> Any:
        method = getattr(self.store, verb)
        if inspect.iscoroutinefunction(method):
            return await method(*arguments)
        return await asyncio.to_thread(method, *arguments)

    async def settled(self, sid: str) -> Any:
        """Load as drivers do: again where that may help, as connections that broke go one by one.

        A pool may have some that broke, so it may take some tries.
        """
        for _ in range(5):
            with contextlib.suppress(StoreUnavailable):
                return await self("load", sid)
        return await self("load", sid)


@pytest.fixture(scope="module", params=["redis", "postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A running server of each kind."""
    if request.param == "redis":
        yield request.getfixturevalue("redis_server")
        return
    # Here, as a module that is loaded on an event loop blocks it.
    pytest.importorskip(f"sojourn.stores.{request.param}")
    with (a_postgresql if request.param == "postgresql" else a_mariadb)() as running:
        yield running


@pytest.fixture
def before(server: Any) -> Iterator[Proxy]:
    """A proxy before it."""
    with Proxy(server.port) as running:
        yield running


@pytest.fixture(params=["blocking", "async"])
async def behind(
    request: pytest.FixtureRequest, server: Any, before: Proxy
) -> AsyncIterator[Behind]:
    """A store of each colour on it, through the proxy."""
    url = server.url if isinstance(server.url, str) else server.url()
    url = f"{url.replace(f':{server.port}', f':{before.port}')}?timeout={TIMEOUT}"
    opener = open_store if request.param == "blocking" else open_async_store
    one = Behind(before, opener(url))
    try:
        yield one
    finally:
        await one("close")


async def made(behind: Behind, **fields: Any) -> Record:
    record = new_record(time.time(), **fields)
    assert await behind("create", record)
    return record


async def unavailable(call: Any) -> float:
    """How long it took to say that there is no answer."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await call
    return time.monotonic() - began


@pytest.mark.server
@pytest.mark.anyio
async def test_slow_and_in_pieces(behind: Behind) -> None:
    """A slow network, and replies that come byte by byte, change nothing but the time it takes."""
    records = [await made(behind, data=b"%d" % i * 50) for i in range(3)]
    behind.proxy.latency = 0.02
    for record in records:
        assert await behind("load", record.sid) == record
    behind.proxy.latency, behind.proxy.piece = 0.0, 1
    assert await behind("replace", next_version(records[0], data=b"new"), 1) is SAVED
    assert (await behind("load", records[0].sid)).data == b"new"
    for record in records[1:]:
        assert await behind("load", record.sid) == record


@pytest.mark.server
@pytest.mark.anyio
async def test_half_open(behind: Behind) -> None:
    """A server that is there and silent costs its time limit; no late reply goes to another."""
    records = [await made(behind, data=b"%d" % i) for i in range(4)]
    with behind.proxy.silence():
        newer = next_version(records[0], data=b"newer")
        ended = Ended(ENDED, "user", time.time(), time.time() + 60)
        calls = behind("replace", newer, 1), behind("delete", records[1].sid, ended)
        for took in await asyncio.gather(*map(unavailable, calls)):
            assert took < TIMEOUT * 3 + 1
        assert await unavailable(behind("load", records[0].sid)) < TIMEOUT * 3 + 1
    # Late replies are on their way now. What was not reported as saved may be saved or not.
    assert await behind.settled(records[2].sid) == records[2]
    assert await behind("load", records[3].sid) == records[3]
    assert await behind("load", records[0].sid) in (records[0], newer)
    assert (await behind("load", records[1].sid)).status in (0, ENDED)
    assert await behind("delete", records[2].sid, ended)
    assert await behind("replace", next_version(records[2]), 1) is GONE


@pytest.mark.server
@pytest.mark.anyio
async def test_cut_while_idle(behind: Behind) -> None:
    """Connections that broke while nobody used them are replaced; what was saved is there."""
    record = await made(behind)
    for _ in range(3):
        await asyncio.to_thread(behind.proxy.cut)
        assert await behind.settled(record.sid) == record


@pytest.mark.server
@pytest.mark.anyio
async def test_nobody_there(behind: Behind) -> None:
    """Connections that are refused are an error within the time limit, until they are accepted."""
    record = await made(behind)
    refusing = behind.proxy.refusing()
    await asyncio.to_thread(refusing.__enter__)
    for call in (behind("load", record.sid), behind("touch", record.sid, 1, 2e9, 3e9)):
        assert await unavailable(call) < TIMEOUT * 3 + 1
    refusing.__exit__(None, None, None)

    assert await behind.settled(record.sid) == record


@pytest.mark.server
@pytest.mark.anyio
async def test_r15_a_lost_reply_counts_once(behind: Behind) -> None:
    """R15: the server did it and the reply got lost: the driver asks again, and it counts once."""
    manager = SessionManager(behind.store)
    blocking = not inspect.iscoroutinefunction(behind.store.load)

    def visit(cookie: str) -> Any:
        session = manager.session(cookie)
        session.add("n")
        behind.proxy.drop_reply()
        return manager.commit(session)

    async def avisit(cookie: str) -> Any:
        session = await manager.asession(cookie)
        session.add("n")
        behind.proxy.drop_reply()
        return await manager.acommit(session)

    await made(behind)  # So that it is connected.
    cookie, lost = "", 0
    for number in range(15):
        if blocking:
            done = await asyncio.to_thread(visit, cookie)
        else:
            done = await avisit(cookie)
        assert done.wrote, number
        lost += not behind.proxy.armed
        cookie = cookie or f"id={done.token}"
        behind.proxy.disarm()
    session = await manager.asession(cookie)

    assert await asyncio.to_thread(session.get, "n") == 15
    assert lost == 15


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize("verb", ["load", "create", "replace", "touch", "delete"])
async def test_r16_reset_at_every_byte(behind: Behind, verb: str) -> None:
    """R16: whereever a reply breaks off, the answer is right or none, and the next one is right."""
    now = time.time()
    other = await made(behind, data=b"of another")

    async def call(record: Record) -> Any:
        match verb:
            case "load":
                return await behind("load", record.sid)
            case "create":
                return await behind("create", record)
            case "replace":
                return await behind("replace", next_version(record, data=b"new"), 1)
            case "touch":
                return await behind("touch", record.sid, 1, now, now + 3600.0)
            case _:
                return await behind("delete", record.sid, Ended(ENDED, "user", now, now + 60))

    async def fresh() -> Record:
        # All with the same times: as text they are not all of one length.
        times = {"created": now, "seen": now, "deadline": now + 1800.0}
        return new_record(now) if verb == "create" else await made(behind, **times)

    for _ in range(3):  # Statements are prepared, scripts known.
        right = await call(await fresh())
    record = await fresh()
    before = behind.proxy.replied
    await call(record)
    length = behind.proxy.replied - before
    assert length > 3

    # MariaDB sends the names of all columns with every row: there, not at each of their bytes.
    positions = range(0, length, 5 if length > 500 else 1)
    met = 0
    for at in positions:
        record = await fresh()
        behind.proxy.reset_reply(at)
        # A store may ask again by itself; the second time it finds what the first one did.
        again: Any = record if verb == "load" else False
        with contextlib.suppress(StoreUnavailable):
            answer = await call(record)
            if verb == "replace" and answer is not SAVED:
                again = next_version(record, data=b"new")
            assert answer in (record if verb == "load" else right, again), at
        met += not behind.proxy.armed
        behind.proxy.disarm()
        assert await behind.settled(other.sid) == other, at
        # What the server had been asked for, it did.
        found = await behind("load", record.sid)
        assert found.version == (1 if verb in ("load", "create") else 2), (at, found)
    assert met == len(positions)
