"""`RedisStore` when servers hang, die, come back and hand over, and when callers give up."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as changed

from sojourn import SessionManager
from sojourn.core.calls import SAVED
from sojourn.core.record import ENDED, ENDING, Ended, Record
from sojourn.errors import StoreUnavailable
from sojourn.stores.redis import AsyncRedisStore, RedisStore, afrom_url, from_url
from sojourn.stores.redis.layout import SHARDS, user_hash
from sojourn.testing import new_record, next_version
from tests.stores.servers_redis import (
    Cluster,
    Sentinels,
    Server,
    prefix,
    redis_cluster,
    redis_program,
    redis_sentinels,
    redis_server,
    until,
)

pytestmark = pytest.mark.server

_fixtures = (prefix, redis_cluster, redis_program, redis_sentinels, redis_server)

NOW = time.time()
DAY = 86400.0
TOMBSTONE = Ended(ENDED, "user", NOW, NOW + DAY)


@pytest.fixture(params=[from_url, afrom_url], ids=["blocking", "async"])
def make(request: pytest.FixtureRequest) -> Callable[..., Both]:
    """How to make a store of one colour, for tests written once."""
    return lambda *arguments, **settings: Both(request.param(*arguments, **settings))


class Both:
    """A store whose methods are awaited whatever its colour; a blocking one works in threads."""

    def __init__(self, store: RedisStore | AsyncRedisStore) -> None:
        """Take a store."""
        self.store = store
        self.keys = store._verbs.keys

    async def __call__(self, name: str, *arguments: Any) -> Any:
        method = getattr(self.store, name)
        if inspect.iscoroutinefunction(method):
            return await method(*arguments)
        return await asyncio.to_thread(method, *arguments)

    async def __aenter__(self) -> Both:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self("close")


@pytest.fixture
def own_server(redis_program: str, tmp_path: Path) -> Iterator[Server]:
    """A node for one test, that keeps what it answered for."""
    server = Server(redis_program, tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.end()


async def seconds(call: Any, match: str, transient: bool | None = None) -> float:
    """How long it took until the call said that the store is not available."""
    start = time.monotonic()
    with pytest.raises(StoreUnavailable, match=match) as caught:
        await call
    assert transient is None or caught.value.transient is transient
    return time.monotonic() - start


async def found(store: Both, sid: str) -> Record | None:
    """Load, and again where an error says that this may help, as drivers do."""
    try:
        record: Record | None = await store("load", sid)
    except StoreUnavailable as error:
        if not error.transient:
            raise
        record = await store("load", sid)
    return record


# One node.


@pytest.mark.anyio
async def test_hung(make: Callable[..., Both], own_server: Server) -> None:
    """A server that hangs costs each call `timeout`, no more; then the store just goes on."""
    records = [new_record(NOW, data=b"%d" % i) for i in range(8)]
    async with make(own_server.url, timeout=0.4) as store:
        for record in records:
            await store("create", record)
        with own_server.hung():
            for call in (
                store("load", records[0].sid),
                store("create", new_record(NOW)),
                store("touch", records[0].sid, 7, NOW, NOW),
                store("list"),
                store("due", NOW, 60.0),
            ):
                assert await seconds(call, "no answer from .* in 0.4 s", False) < 1.2
            many = [seconds(store("load", r.sid), "no answer") for r in records[:4]]
            assert max(await asyncio.gather(*many)) < 1.2

        # The late answers of those calls belong to nobody.
        for record in records * 3:
            assert await store("load", record.sid) == record


@pytest.mark.anyio
async def test_killed_and_restarted(make: Callable[..., Both], own_server: Server) -> None:
    """While the server is away calls fail at once; when it is back they work, by themselves."""
    record = new_record(NOW)
    async with make(own_server.url) as store:
        assert await store("create", record)
        own_server.kill()
        for _ in range(3):
            assert await seconds(store("load", record.sid), "cannot be reached") < 1
        own_server.start()

        for _ in range(3):
            with contextlib.suppress(StoreUnavailable):
                assert await store("load", record.sid) == record
        assert await store("load", record.sid) == record
        assert await store("replace", next_version(record), 1) is SAVED


@pytest.mark.anyio
async def test_restarted_unseen(make: Callable[..., Both], own_server: Server) -> None:
    """A restart between two calls costs at most one error, and that says to try again."""
    record = new_record(NOW)
    async with make(own_server.url) as store:
        assert await store("create", record)
        own_server.kill()
        own_server.start()

        assert await found(store, record.sid) == record


@pytest.mark.anyio
async def test_nobody_there(make: Callable[..., Both]) -> None:
    """Where nobody listens, a call says so at once and advises no new try."""
    for url in (
        "redis://127.0.0.1:1",
        "redis+sentinel://127.0.0.1:1,127.0.0.1:2/main",
        "redis+cluster://127.0.0.1:1,127.0.0.1:2",
        "unix:///nowhere",
    ):
        async with make(url) as store:
            assert await seconds(store("load", "a" * 22), re.escape(url), False) < 1.5


@pytest.mark.anyio
async def test_cut(make: Callable[..., Both], redis_server: Server, prefix: str) -> None:
    """A connection that the server cuts costs at most one error, which says to try again."""
    record = new_record(NOW)
    async with make(redis_server.url, prefix=prefix) as store:
        await store("create", record)
        for _ in range(10):
            redis_server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert await found(store, record.sid) == record


# Callers.


@pytest.mark.anyio
async def test_cancelled(redis_server: Server, prefix: str) -> None:
    """A task may be cancelled at any point: nobody gets the answer that was meant for it."""
    store = afrom_url(redis_server.url, prefix=prefix, max_connections=3)
    records = [new_record(NOW, data=b"%d" % i) for i in range(6)]
    for record in records:
        await store.create(record)
    cancelled = finished = 0
    try:
        for steps in list(range(40)) * 5:
            tasks = [asyncio.create_task(store.load(r.sid)) for r in records[:4]]
            for _ in range(steps):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            for answer in await asyncio.gather(*tasks, return_exceptions=True):
                cancelled += isinstance(answer, asyncio.CancelledError)
                finished += isinstance(answer, Record)
            for record in records:
                assert await store.load(record.sid) == record
    finally:
        await store.close()

    assert cancelled > 100
    assert finished > 10


@pytest.mark.anyio
async def test_cancelled_while_the_answer_waits(own_server: Server) -> None:
    """Cancelled in the middle of a read and a write, of which the answers come later."""
    store = afrom_url(own_server.url, max_connections=4, timeout=5)
    records = [new_record(NOW, data=b"%d" % i) for i in range(4)]
    for record in records:
        await store.create(record)
    try:
        for _ in range(10):
            with own_server.hung():
                tasks = [asyncio.create_task(store.load(r.sid)) for r in records[:2]]
                tasks += [asyncio.create_task(store.replace(r, 99)) for r in records[2:]]
                await asyncio.sleep(0.01)
                for task in tasks:
                    task.cancel()
                assert all(
                    isinstance(answer, asyncio.CancelledError)
                    for answer in await asyncio.gather(*tasks, return_exceptions=True)
                )
            answers = await asyncio.gather(*(store.load(r.sid) for r in records))
            assert answers == records
    finally:
        await store.close()
    # Each one's own connection was dropped, none was left behind.
    until(lambda: _clients(own_server) == 1)


def _clients(server: Server) -> int:
    with server.client() as client:
        return len(client.client_list())


@pytest.mark.anyio
async def test_no_more_connections_than_allowed(
    make: Callable[..., Both], own_server: Server
) -> None:
    """However many call at once, there are at most `max_connections`."""
    record = new_record(NOW)
    async with make(own_server.url, max_connections=3) as store:
        await store("create", record)
        answers = await asyncio.gather(*(store("load", record.sid) for _ in range(60)))

        assert answers == [record] * 60
        assert _clients(own_server) <= 3 + 1


@pytest.mark.anyio
async def test_exhausted(make: Callable[..., Both], own_server: Server) -> None:
    """Who finds all connections in use for `timeout` is told so; nothing is used up by that."""
    record = new_record(NOW)
    async with make(own_server.url, max_connections=1, timeout=0.5) as store:
        await store("create", record)
        with own_server.hung():
            first = asyncio.ensure_future(seconds(store("load", record.sid), "no answer"))
            await asyncio.sleep(0.25)
            second = asyncio.ensure_future(seconds(store("load", record.sid), "no answer"))
            third = asyncio.ensure_future(seconds(store("load", record.sid), "1 connections were"))
            assert max(await asyncio.gather(first, second, third)) < 1.5

        for _ in range(3):
            assert await store("load", record.sid) == record


INCREMENT = """
import sys
from sojourn.stores.redis import from_url
from sojourn.core.calls import SAVED
from sojourn.testing import next_version

store = from_url(sys.argv[1])
record = store.load(sys.argv[2])
for _ in range(int(sys.argv[3])):
    while True:
        newer = next_version(record, data=b"%d" % (int(record.data) + 1))
        answer = store.replace(newer, record.version)
        if answer is SAVED:
            record = newer
            break
        record = answer
store.close()
"""


def test_increments_of_processes(redis_server: Server, prefix: str) -> None:
    """8 processes add 250 times each to one session: none is lost."""
    url = f"{redis_server.url}?prefix={prefix}"
    record = new_record(NOW, data=b"0")
    with contextlib.closing(from_url(url)) as store:
        store.create(record)
        command = [sys.executable, "-c", INCREMENT, url, record.sid, "250"]
        processes = [subprocess.Popen(command) for _ in range(8)]
        try:
            assert [process.wait(60) for process in processes] == [0] * 8
        finally:
            for process in processes:
                process.kill()

        last = store.load(record.sid)
    assert last is not None
    assert (last.data, last.version) == (b"2000", 2001)


FORK = """
import os, sys
from sojourn.stores.redis import from_url
from sojourn.testing import new_record

store = from_url(sys.argv[1], max_connections=2)
mine, other = new_record(0.0, data=b"parent"), new_record(0.0, data=b"child")
assert store.create(mine) and store.create(other)
store._free.acquire()  # As if another thread were in the middle of a call.
child = os.fork()
own = other if child == 0 else mine
for _ in range(300):
    assert store.load(own.sid) == own
if child == 0:
    for _ in range(2):
        assert store._free.acquire(timeout=1)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_fork(redis_server: Server, prefix: str) -> None:
    """A forked process shares no connection with its parent, and waits for none of its threads."""
    url = f"{redis_server.url}?prefix={prefix}"
    subprocess.run([sys.executable, "-c", FORK, url], check=True, timeout=30)


def test_event_loops(redis_server: Server, prefix: str) -> None:
    """One asynchronous store serves one event loop after the other, and two at a time."""
    store = afrom_url(redis_server.url, prefix=prefix)
    record = new_record(NOW)

    async def use() -> None:
        await store.create(record)
        for _ in range(50):
            assert await store.load(record.sid) == record
        await store.close()

    asyncio.run(use())
    asyncio.run(use())
    faults: list[BaseException] = []

    def in_thread() -> None:
        try:
            asyncio.run(use())
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=in_thread) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


# Durable ends.


def replica_of(servers: Sentinels | Cluster, key: str) -> Server:
    """The node that copies the one which serves a key."""
    if isinstance(servers, Sentinels):
        primary = servers.primary()
        return next(node for node in servers.nodes if node is not primary)
    primary = servers.primary_of(key)
    port = primary.ask("ROLE")[2][0][1]
    return next(node for node in servers.nodes if node.port == int(port))


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["sentinels", "cluster"])
async def test_an_end_is_confirmed(
    kind: str, make: Callable[..., Both], prefix: str, request: pytest.FixtureRequest
) -> None:
    """With `wait=1`, `delete` returns when a replica has it, and else says that none confirmed."""
    servers = request.getfixturevalue(f"redis_{kind}")
    record = new_record(NOW, user="alice")
    other = new_record(NOW, sid=record.sid[:21] + "_")
    async with make(servers.url, prefix=prefix, wait=1, wait_timeout=0.4) as store:
        for one in (record, other):
            assert await store("create", one)
        replica = replica_of(servers, store.keys.record(record.sid))
        with replica.hung():
            taken = await seconds(
                store("delete", record.sid, TOMBSTONE), "0 of 1 replicas confirmed it in 0.4 s"
            )
            assert 0.3 < taken < 1.5
            assert (await store("load", record.sid)).status == ENDED
            # Said again, by another process, though the session has ended: it is not confirmed.
            async with make(servers.url, prefix=prefix, wait=1, wait_timeout=0.4) as another:
                await seconds(another("delete", record.sid, TOMBSTONE), "0 of 1 replicas")

        assert await store("delete", record.sid, TOMBSTONE) is False
        assert await store("delete", other.sid, TOMBSTONE) is True
        with replica.client() as client:
            client.execute_command("READONLY") if kind == "cluster" else None
            assert client.get(store.keys.record(other.sid))[3] == ENDED


@pytest.mark.anyio
@pytest.mark.parametrize("handlers", [False, True])
@pytest.mark.parametrize("kind", ["sentinels", "cluster"])
async def test_the_end_of_all_is_confirmed(
    kind: str,
    handlers: bool,
    make: Callable[..., Both],
    prefix: str,
    request: pytest.FixtureRequest,
) -> None:
    """An end of all that no replica confirmed fails again, though nothing is left to be ended.

    So it is for who asks in another process, and with handlers, until a replica has it.
    """
    servers = request.getfixturevalue(f"redis_{kind}")
    settings = {"prefix": prefix, "wait": 1, "wait_timeout": 0.4}

    async def end_all(store: Both) -> list[str]:
        manager = SessionManager(store.store, idle_timeout=1000)
        if handlers:
            manager.on_ended(lambda session, reason: None)
        if inspect.iscoroutinefunction(store.store.load):
            return await manager.aend_all("alice")
        return await asyncio.to_thread(manager.end_all, "alice")

    record = new_record(NOW, user="alice")
    async with make(servers.url, **settings) as store, make(servers.url, **settings) as another:
        assert await store("create", record)
        with replica_of(servers, store.keys.record(record.sid)).hung():
            await seconds(end_all(store), "0 of 1 replicas confirmed it")
            assert (await store("load", record.sid)).status == (ENDING if handlers else ENDED)
            for one in (store, another):
                await seconds(end_all(one), "0 of 1 replicas confirmed it")

        assert await end_all(another) == []
        assert await end_all(store) == []
        if not handlers:
            index = store.keys.user(user_hash("alice"))
            server = servers.primary() if kind == "sentinels" else servers.primary_of(index)
            assert server.ask("ZCARD", index) == 0


@pytest.mark.anyio
async def test_an_end_is_in_the_file(make: Callable[..., Both], own_server: Server) -> None:
    """With `aof`, `delete` returns when the end is in the append-only file; before 7.2, says no."""
    own_server.ask("CONFIG", "SET", "appendfsync", "everysec")
    record = new_record(NOW)
    async with make(own_server.url, aof=True, timeout=4, wait_timeout=3) as store:
        await store("create", record)
        faults = await store("check")
        if any("needs Redis 7.2" in fault for fault in faults):
            await seconds(store("delete", record.sid, TOMBSTONE), "could not be confirmed.*WAITAOF")
            return
        assert faults == []
        assert await store("delete", record.sid, TOMBSTONE) is True
        own_server.kill()
        own_server.start()
        with contextlib.suppress(StoreUnavailable):
            await store("load", record.sid)

        assert (await store("load", record.sid)).status == ENDED


# Handing over.


async def under_load(store: Both, fault: Callable[[], Any], heal: Callable[[], Any]) -> None:
    """Write, read and end sessions while a primary goes; then look at what there is.

    No record is another's or a mixture; what was confirmed to have ended has ended; and the store
    works again by itself.
    """
    stop = asyncio.Event()
    sids: list[str] = []
    ended: list[str] = []
    slowest = 0.0

    async def visitor() -> None:
        nonlocal slowest
        while not stop.is_set():
            record = new_record(NOW, user="alice")
            record = changed(record, data=f"{record.sid}:1".encode())
            sids.append(record.sid)
            start = time.monotonic()
            try:
                await store("create", record)
                newer = next_version(record, data=f"{record.sid}:2".encode())
                await store("replace", newer, 1)
                start = time.monotonic()
                check(await store("load", record.sid), record.sid)
                await store("delete", record.sid, TOMBSTONE)
                ended.append(record.sid)
            except StoreUnavailable:
                slowest = max(slowest, time.monotonic() - start)
                await asyncio.sleep(0.02)

    def check(found: Record | None, sid: str) -> None:
        if found is not None:
            assert found.sid == sid
            if found.status != ENDED:
                assert found.data == f"{sid}:{found.version}".encode()

    async def faults() -> None:
        await asyncio.sleep(0.3)
        assert ended
        await asyncio.to_thread(fault)
        await asyncio.to_thread(heal)
        new = new_record(NOW)
        end = time.monotonic() + 20
        while True:
            with contextlib.suppress(StoreUnavailable):
                await store("create", new)
                if await store("load", new.sid) == new:
                    break
            assert time.monotonic() < end, "the store did not recover"
            await asyncio.sleep(0.02)
        before = len(ended)
        while len(ended) < before + 20:
            assert time.monotonic() < end, "the visitors did not recover"
            await asyncio.sleep(0.02)
        stop.set()

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(visitor())
        group.create_task(faults())

    for sid in sids:
        check(await store("load", sid), sid)
    risen = []
    for sid in ended:
        found = await store("load", sid)
        if found is not None and found.status != ENDED:
            risen.append(sid)
    assert risen == [], f"{len(risen)} of {len(ended)} are alive again"
    assert slowest < 12


@contextlib.contextmanager
def taken_away(how: str, node: Server, taken_over: Callable[[], Any]) -> Iterator[Any]:
    """Give two functions: one takes a node away, one brings it back when another took over."""
    hanging = contextlib.ExitStack()

    def fault() -> None:
        if how == "killed":
            node.kill()
        else:
            hanging.enter_context(node.hung())

    def heal() -> None:
        until(taken_over, 30, "the hand-over")
        back()

    def back() -> None:
        hanging.close()
        if node.process.poll() is not None:
            node.start()

    try:
        yield fault, heal
    finally:
        back()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("make", "how"), [(from_url, "killed"), (afrom_url, "hung")], indirect=["make"]
)
async def test_sentinels_hand_over(
    how: str, make: Callable[..., Both], redis_sentinels: Sentinels, prefix: str
) -> None:
    """A primary dies or hangs: the replica takes over, and no confirmed end is undone."""
    old = redis_sentinels.primary()
    async with make(redis_sentinels.url, prefix=prefix, wait=1, timeout=1.5) as store:
        with taken_away(how, old, lambda: redis_sentinels.primary() is not old) as (fault, heal):
            await under_load(store, fault, heal)
    redis_sentinels.settle()


# When redis-py's cluster client forgets a node, it leaves its connections to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.anyio
@pytest.mark.parametrize("how", ["killed", "hung"])
async def test_a_cluster_hands_over(
    how: str, make: Callable[..., Both], redis_cluster: Cluster, prefix: str
) -> None:
    """One primary of three dies or hangs: its replica takes over, no confirmed end is undone."""
    async with make(redis_cluster.url, prefix=prefix, wait=1, timeout=1.5) as store:
        keys = [store.keys.due(shard) for shard in SHARDS]
        key, old = next(
            (key, node)
            for key in keys
            if (node := redis_cluster.primary_of(key)) is not redis_cluster.nodes[0]
        )
        with taken_away(how, old, lambda: redis_cluster.primary_of(key) is not old) as both:
            await under_load(store, *both)
    redis_cluster.settle()


@pytest.mark.anyio
async def test_a_hung_sentinel(
    make: Callable[..., Both], redis_sentinels: Sentinels, prefix: str
) -> None:
    """One sentinel of three that hangs costs time once, and no error, wherever it is in the URL."""
    url = redis_sentinels.url
    with redis_sentinels.sentinels[0].hung():
        async with make(url, prefix=prefix) as store:
            new = new_record(NOW)
            assert await store("create", new)
            assert await store("load", new.sid) == new


def test_no_sentinel_is_forgotten(redis_sentinels: Sentinels, prefix: str) -> None:
    """After an error all sentinels are asked, also one that redis-py lost from its list."""
    with contextlib.closing(from_url(redis_sentinels.url, prefix=prefix)) as store:
        assert store.load("a" * 22) is None
        link = store._link
        assert link is not None
        lost = redis_sentinels.sentinels[0].port
        link._sentinel.sentinels = [
            one
            for one in link._sentinel.sentinels
            if one.connection_pool.connection_kwargs["port"] == lost
        ]
        with redis_sentinels.sentinels[0].hung():
            link.client.connection_pool.disconnect()
            with pytest.raises(StoreUnavailable, match="no sentinel names a primary"):
                store.load("a" * 22)
            assert store.load("a" * 22) is None
