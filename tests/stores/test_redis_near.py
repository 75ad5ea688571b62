"""The near cache of `RedisStore`: how old an answer may be, whatever servers and networks do."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from blockbuster import BlockBuster
from msgspec.structs import replace as changed

from sojourn import SessionManager
from sojourn.core.calls import SAVED
from sojourn.core.record import ENDED, ENDING, LIVE, MARK, Ended, Record
from sojourn.errors import ConfigurationError, StoreUnavailable
from sojourn.stores.redis import AsyncRedisStore, RedisStore, afrom_url, from_url
from sojourn.stores.redis.near import Memory, Near, pieces
from sojourn.stores.redis.settings import read_url
from sojourn.stores.redis.store import Awaiting
from sojourn.testing import CHECKS, Check, Clock, arun_check, new_record, next_version, run_check
from sojourn.testing.proxy import Proxy
from tests.stores.servers_redis import (
    Sentinels,
    Server,
    prefix,
    redis_program,
    redis_sentinels,
    redis_server,
    until,
)
from tests.stores.test_redis_faults import Both, make, own_server, replica_of, taken_away

pytestmark = pytest.mark.server

_fixtures = (make, own_server, prefix, redis_program, redis_sentinels, redis_server)

NOW = time.time()
DAY = 86400.0
HOUR = 3599.0
"""For `near`, where the bound is not to be what brings an answer up to date."""
TOMBSTONE = Ended(ENDED, "user", NOW, NOW + DAY)


def always(record: Record) -> bool:
    """For `recall`: whatever it is, it will do."""
    return True


# The memory alone, with a clock.


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)


@pytest.fixture
def memory(clock: Clock) -> Memory:
    """A memory of 10 seconds that is told of changes, by whom the test says."""
    memory = Memory(10.0, room=10_000, clock=clock)
    memory.sure(math.inf)
    return memory


def load(memory: Memory, record: Record) -> None:
    memory.end(memory.begin(record.sid), record)


def test_the_bound(memory: Memory, clock: Clock) -> None:
    """A record is shown for the seconds that were set, from when the server was asked for it."""
    record = new_record(NOW)
    asked = memory.begin(record.sid)
    clock.advance(4)
    memory.end(asked, record)
    clock.advance(5.5)
    assert memory.recall(record.sid) is record

    clock.advance(0.5)

    assert memory.recall(record.sid) is None


def test_silence(memory: Memory, clock: Clock) -> None:
    """Where nothing was heard for too long, nothing is shown and nothing is kept."""
    record, other = new_record(NOW), new_record(NOW)
    memory.sure(5.0)
    load(memory, record)
    clock.advance(4.5)
    assert memory.recall(record.sid) is record

    clock.advance(0.5)
    assert memory.recall(record.sid) is None
    load(memory, other)

    memory.sure(20.0)
    assert memory.recall(record.sid) is record
    assert memory.recall(other.sid) is None


def test_a_change_while_it_is_loaded(memory: Memory) -> None:
    """What was asked for before a change was told of is not kept, whichever way it was told."""
    record = new_record(NOW)
    for tell in (
        lambda: memory.drop(record.sid),
        memory.drop_all,
        memory.unsure,
        lambda: (memory.unsure(), memory.sure(math.inf)),
    ):
        asked = memory.begin(record.sid)
        tell()
        memory.end(asked, record)
        assert memory.recall(record.sid) is None
        memory.sure(math.inf)

    asked = memory.begin(record.sid)
    memory.drop(new_record(NOW).sid)
    memory.end(asked, record)
    assert memory.recall(record.sid) is record


@pytest.mark.parametrize("order", ["first", "second"])
def test_two_loads_and_a_change_between(memory: Memory, order: str) -> None:
    """Of two loads under way at once, the one that began before a change brings nothing."""
    old = new_record(NOW)
    new = next_version(old)
    first = memory.begin(old.sid)
    memory.drop(old.sid)
    second = memory.begin(old.sid)
    if order == "first":
        memory.end(first, old)
        assert memory.recall(old.sid) is None
        memory.end(second, new)
    else:
        memory.end(second, new)
        memory.end(first, old)

    assert memory.recall(old.sid) is new


@pytest.mark.parametrize("status", [ENDING, ENDED, MARK])
def test_only_sessions_are_kept(memory: Memory, status: int) -> None:
    """No mark, no end, no absence is ever an answer from memory; they take what was kept along."""
    record = new_record(NOW)
    load(memory, record)
    load(memory, changed(record, status=status))
    assert memory.recall(record.sid) is not None  # Who changed it drops it.

    memory.drop(record.sid)
    load(memory, changed(record, status=status))
    assert memory.recall(record.sid) is None
    memory.end(memory.begin(record.sid), None)
    assert memory.recall(record.sid) is None


def test_room(memory: Memory, clock: Clock) -> None:
    """It keeps so many bytes, those asked for last, and nothing that is over."""
    records = [new_record(NOW, data=bytes(1000)) for _ in range(10)]
    for record in records:
        load(memory, record)
    kept = [memory.recall(record.sid) is not None for record in records]
    assert kept == [False] * 6 + [True] * 4
    load(memory, new_record(NOW, data=bytes(10_000)))
    assert (memory._size, len(memory._kept)) == (0, 0)

    load(memory, records[0])
    clock.advance(10)
    load(memory, records[1])
    assert [*memory._kept] == [records[1].sid]
    memory.drop(records[1].sid)
    assert (memory._size, len(memory._kept), len(memory._asked)) == (0, 0, 0)


# What is set.


def test_off_by_default(redis_server: Server, prefix: str) -> None:
    """Where nothing is set, every recall is a load, no thread runs, and nothing is stale."""
    record = new_record(NOW)
    with contextlib.closing(from_url(redis_server.url, prefix=prefix)) as store:
        store.create(record)
        for _ in range(3):
            assert store.recall(record.sid, always) == record
        assert store._near is None
        assert store.promises.stale == 0
        assert not any(thread.name == "sojourn-near" for thread in threading.enumerate())
        with contextlib.closing(from_url(redis_server.url, prefix=prefix)) as other:
            other.delete(record.sid, TOMBSTONE)
        assert status_of(store.recall(record.sid, always)) == ENDED


def test_what_is_set() -> None:
    """The bound is a parameter, and declared; what cannot be kept to is refused."""
    for store in (from_url("redis://h?near=1.5"), afrom_url("redis://h", near=1.5)):
        assert store.promises.stale == 1.5
        assert type(store).promises.stale == 0
    for wrong in ("-1", "nan", "3600"):
        with pytest.raises(ConfigurationError, match=r"near is .*; give seconds"):
            from_url(f"redis://h?near={wrong}")
    with pytest.raises(ConfigurationError, match="a cluster has several primaries"):
        from_url("redis+cluster://h?near=1")

    class Another(Awaiting):
        """A colour that has no `recall`."""

    with pytest.raises(ConfigurationError, match="a Another answers nothing from memory"):
        Another("redis://h?near=1")


def test_resp3() -> None:
    """What a server says is read wherever it was cut; what is something else is refused."""
    said = (
        b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nmodules\r\n*1\r\n%1\r\n+a\r\n:1\r\n"
        b"+OK\r\n"
        b">2\r\n$10\r\ninvalidate\r\n*2\r\n$4\r\na\r\nb\r\n$0\r\n\r\n"
        b">2\r\n$10\r\ninvalidate\r\n_\r\n"
        b"-ERR no\r\n"
    )
    whole = [
        (b"%", [b"server", b"redis", b"modules", [[b"a", b"1"]]]),
        (b"+", b"OK"),
        (b">", [b"invalidate", [b"a\r\nb", b""]]),
        (b">", [b"invalidate", None]),
        (b"-", b"ERR no"),
    ]
    assert [(kind, value) for _, kind, value in pieces(said)] == whole
    for at in range(len(said)):
        found = list(pieces(said[:at]))
        end = found[-1][0] if found else 0
        found += pieces(said[end:])
        assert [(kind, value) for _, kind, value in found] == whole
    for wrong in (b"HTTP/1.1 400\r\n", b"$x\r\n", b"\r\n"):
        with pytest.raises(ValueError, match=r"."):
            list(pieces(wrong))


# On a server, with both colours.


def trackers(server: Server) -> list[str]:
    """The ids of the connections that have changes told."""
    lines = server.ask("CLIENT", "LIST").decode().splitlines()
    flags = [dict(word.partition("=")[::2] for word in line.split()) for line in lines]
    return [client["id"] for client in flags if "B" in client["flags"]]


def status_of(record: Record | None) -> int | None:
    return None if record is None else record.status


async def keeps(store: Both, record: Record, seconds: float = 10) -> None:
    """Recall it until memory has it, as it does once the server tells of changes."""
    end = time.monotonic() + seconds
    while memory_of(store).recall(record.sid) != record:
        assert await store("recall", record.sid, always) == record
        assert time.monotonic() < end, "nothing is kept"
        await asyncio.sleep(0.01)


def memory_of(store: Both) -> Near:
    near = store.store._near
    assert near is not None
    return near


async def changes_to(store: Both, old: Record, seconds: float = 2) -> Record | None:
    """Recall until something else is there than that; return it."""
    end = time.monotonic() + seconds
    while (found := await store("recall", old.sid, always)) == old:
        assert time.monotonic() < end, f"still there after {seconds} s"
        await asyncio.sleep(0.001)
    return found  # type: ignore[no-any-return]


class Remembering:
    """A store every load of which may be from memory."""

    def __init__(self, store: RedisStore | AsyncRedisStore) -> None:
        self._store = store

    def load(self, sid: str) -> Any:
        return self._store.recall(sid, always)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Check, redis_server: Server, prefix: str) -> None:
    """Whatever one process asks and does, memory gives the answers that the server would."""
    with contextlib.closing(from_url(redis_server.url, prefix=prefix, near=HOUR)) as store:
        sure(store)
        run_check(check, Remembering(store))


@pytest.mark.anyio
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_contract_async(check: Check, redis_server: Server, prefix: str) -> None:
    """The same with tasks."""
    store = afrom_url(redis_server.url, prefix=prefix, near=HOUR)
    try:
        await asyncio.to_thread(sure, store)
        await arun_check(check, Remembering(store))
    finally:
        await store.close()


def sure(store: RedisStore | AsyncRedisStore) -> Near:
    """Wait until the server tells of changes."""
    near = store._near
    assert near is not None
    until(lambda: near.begin("a" * 22) is not None, what="being told of changes")
    near.drop("a" * 22)
    return near


@pytest.mark.anyio
async def test_no_server_is_asked(
    make: Callable[..., Both], redis_server: Server, prefix: str
) -> None:
    """What is in memory costs no call; `load` is never answered from there."""
    record = new_record(NOW)
    async with make(redis_server.url, prefix=prefix, near=HOUR) as store:
        await store("create", record)
        await keeps(store, record)
        before = gets(redis_server)
        for _ in range(50):
            assert await store("recall", record.sid, always) == record
        assert gets(redis_server) == before
        assert await store("load", record.sid) == record
        assert gets(redis_server) == before + 1
        assert await store("recall", record.sid, lambda record: False) == record
        assert gets(redis_server) == before + 2


def gets(server: Server) -> int:
    """How often a value was asked for."""
    return int(server.ask("INFO", "commandstats")["cmdstat_get"]["calls"])


@pytest.mark.anyio
@pytest.mark.parametrize("act", ["replace", "touch", "end", "sweep", "remove", "flush"])
async def test_a_change_of_another_is_told(
    act: str, make: Callable[..., Both], own_server: Server
) -> None:
    """What another process does is seen at once, long before the bound."""
    record = new_record(NOW, deadline=NOW + 60, data=b"1")
    acts: dict[str, Callable[[RedisStore], Any]] = {
        "replace": lambda other: other.replace(next_version(record, data=b"2"), 1) is SAVED,
        "touch": lambda other: other.touch(record.sid, 1, NOW + 1, NOW + 900),
        "end": lambda other: other.delete(record.sid, TOMBSTONE),
        "sweep": lambda other: other.due(NOW + 61, 60.0),
        "remove": lambda other: other.delete(record.sid),
        "flush": lambda other: own_server.ask("FLUSHALL"),
    }
    async with make(own_server.url, near=HOUR) as store:
        await store("create", record)
        for _ in range(2):
            await keeps(store, record)
        with contextlib.closing(from_url(own_server.url)) as other:
            assert await asyncio.to_thread(acts[act], other)

        found = await changes_to(store, record)

        assert found == await store("load", record.sid)


def test_a_change_while_the_answer_is_on_its_way(redis_server: Server, prefix: str) -> None:
    """A session that ended after the server had answered is not kept as it was before."""
    record = new_record(NOW)

    class Slow(RedisStore):
        """Takes so long over an answer that another process ends the session meanwhile."""

        def load(self, sid: str) -> Record | None:
            found = super().load(sid)
            with contextlib.closing(from_url(redis_server.url, prefix=prefix)) as other:
                assert other.delete(sid, TOMBSTONE)
            until(lambda: sid not in near._asked, what="being told")
            return found

    with contextlib.closing(Slow(redis_server.url, prefix=prefix, near=HOUR)) as store:
        near = sure(store)
        store.create(record)
        assert store.recall(record.sid, always) == record
        assert near.recall(record.sid) is None


# When the network or the server fails. Told by another way than asked, so that one can fail alone.


def told_by(store: Both, proxy: Proxy) -> Both:
    """Let the store hear of changes through a proxy, while it asks the server itself."""
    settings = store.store.settings
    target, _ = read_url(f"redis://127.0.0.1:{proxy.port}", {})
    store.store._near = Near(target, settings)
    return store


@pytest.fixture
def proxy(redis_server: Server, no_blocking_on_the_loop: BlockBuster) -> Iterator[Proxy]:
    """Before the server; the proxy and the other process's store may block the test's loop."""
    no_blocking_on_the_loop.deactivate()
    with Proxy(redis_server.port) as proxy:
        yield proxy


@pytest.mark.anyio
@pytest.mark.parametrize("act", ["replace", "touch", "end", "sweep", "remove"])
async def test_changes_of_its_own(
    act: str, make: Callable[..., Both], redis_server: Server, prefix: str, proxy: Proxy
) -> None:
    """What a process does itself it sees at once, though the server cannot tell of it."""
    record = new_record(NOW, deadline=NOW + 60)
    acts: dict[str, tuple[Any, ...]] = {
        "replace": ("replace", next_version(record, data=b"2"), 1),
        "touch": ("touch", record.sid, 1, NOW + 1, NOW + 900),
        "end": ("delete", record.sid, TOMBSTONE),
        "sweep": ("due", NOW + 61, 60.0),
        "remove": ("delete", record.sid),
    }
    async with make(redis_server.url, prefix=prefix, near=HOUR, timeout=60) as store:
        told_by(store, proxy)
        await store("create", record)
        await keeps(store, record)
        with proxy.silence():
            assert await store(*acts[act])
            found = await store("recall", record.sid, always)

            assert found != record
            assert found == await store("load", record.sid)


@pytest.mark.anyio
async def test_the_bound_holds_in_silence(
    make: Callable[..., Both], redis_server: Server, prefix: str, proxy: Proxy
) -> None:
    """Where the server cannot tell, an end is seen after `near` seconds all the same."""
    record = new_record(NOW)
    async with make(redis_server.url, prefix=prefix, near=0.8, timeout=60) as store:
        told_by(store, proxy)
        await store("create", record)
        await keeps(store, record)
        await asyncio.sleep(0.9)  # No longer in memory; what is asked next is.
        with proxy.silence():
            asked = time.monotonic()
            assert await store("recall", record.sid, always) == record
            with contextlib.closing(from_url(redis_server.url, prefix=prefix)) as other:
                assert other.delete(record.sid, TOMBSTONE)
            last = asked
            while status_of(await store("recall", record.sid, always)) == LIVE:
                last = time.monotonic()
                await asyncio.sleep(0.005)
                assert last < asked + 5

        # It was shown for a while, or this test has shown nothing, and no longer than that.
        assert 0.5 < last - asked < 0.85


@pytest.mark.anyio
async def test_silence_is_noticed(
    make: Callable[..., Both], redis_server: Server, prefix: str, proxy: Proxy
) -> None:
    """Where nothing was heard for `timeout` seconds all is forgotten, whatever `near` says."""
    record = new_record(NOW)
    async with make(redis_server.url, prefix=prefix, near=HOUR, timeout=0.6) as store:
        told_by(store, proxy)
        await store("create", record)
        await keeps(store, record)
        with proxy.silence():
            start = time.monotonic()
            with contextlib.closing(from_url(redis_server.url, prefix=prefix)) as other:
                assert other.delete(record.sid, TOMBSTONE)
            ended = await changes_to(store, record)
            assert status_of(ended) == ENDED
            assert time.monotonic() - start < 0.7
            await asyncio.to_thread(until, lambda: not memory_of(store)._kept)

        other_record = new_record(NOW)
        await store("create", other_record)
        await keeps(store, other_record)


@pytest.mark.anyio
async def test_a_broken_connection(
    make: Callable[..., Both], redis_server: Server, prefix: str, proxy: Proxy
) -> None:
    """When the connection breaks that tells of changes, all is forgotten; then it is made anew."""
    record = new_record(NOW)
    async with make(redis_server.url, prefix=prefix, near=HOUR) as store:
        told_by(store, proxy)
        await store("create", record)
        for _ in range(3):
            await keeps(store, record)
            near = memory_of(store)
            with proxy.refusing():
                await asyncio.to_thread(until, lambda near=near: not near._kept, 2)
                assert await store("recall", record.sid, always) == record
                assert near.recall(record.sid) is None


@pytest.mark.anyio
async def test_killed_by_the_server(make: Callable[..., Both], own_server: Server) -> None:
    """So it is where the server closes it, as after a failover."""
    records = [new_record(NOW), new_record(NOW)]
    async with make(own_server.url, near=HOUR) as store:
        for record in records:
            await store("create", record)
        for _ in range(3):
            await keeps(store, records[0])
            near = memory_of(store)
            [tracker] = trackers(own_server)
            own_server.ask("CLIENT", "KILL", "ID", tracker)
            await asyncio.to_thread(until, lambda near=near: not near._kept, 2)
            await keeps(store, records[1])
            assert near.recall(records[0].sid) is None


@pytest.mark.anyio
async def test_a_hung_server(make: Callable[..., Both], own_server: Server) -> None:
    """A server that hangs tells of nothing: after its time limit, nothing is had from memory."""
    record = new_record(NOW)
    async with make(own_server.url, near=HOUR, timeout=0.5) as store:
        await store("create", record)
        await keeps(store, record)
        with own_server.hung():
            start = time.monotonic()
            with pytest.raises(StoreUnavailable, match="no answer"):
                await changes_to(store, record, 5)
            # Half a second of trust, and the time limit of the load that had to be made then.
            assert time.monotonic() - start < 1.3

        with contextlib.suppress(StoreUnavailable):
            await store("load", record.sid)
        await keeps(store, record)


@pytest.mark.anyio
async def test_who_may_not_listen(
    make: Callable[..., Both], own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the server does not tell of changes, it is asked each time, and one warning says so."""
    own_server.ask("ACL", "SETUSER", "web", "on", ">secret", "~*", "&*", "+@all", "-client")
    record = new_record(NOW)
    url = own_server.url.replace("//", "//web:secret@")
    with caplog.at_level(logging.WARNING):
        async with make(url, near=HOUR) as store:
            await store("create", record)
            end = time.monotonic() + 1.3  # Long enough for three tries.
            while time.monotonic() < end:
                assert await store("recall", record.sid, always) == record
                await asyncio.sleep(0.05)
            assert memory_of(store).recall(record.sid) is None

    said = [entry.getMessage() for entry in caplog.records if "changes" in entry.getMessage()]
    assert len(said) == 1
    assert "every load asks the server" in said[0]
    assert "secret" not in said[0]


@pytest.mark.anyio
async def test_sentinels_hand_over(
    make: Callable[..., Both], redis_sentinels: Sentinels, prefix: str
) -> None:
    """When another server takes over, all is forgotten, and that one tells of changes then."""
    old = redis_sentinels.primary()
    record = new_record(NOW)
    settings = {"prefix": prefix, "timeout": 1.5, "wait": 1}
    async with make(redis_sentinels.url, near=HOUR, **settings) as store:
        await store("create", record)
        key = store.keys.record(record.sid)
        replica = replica_of(redis_sentinels, key)
        await asyncio.to_thread(until, lambda: replica.ask("EXISTS", key))
        await keeps(store, record)
        near = memory_of(store)
        with taken_away("killed", old, lambda: redis_sentinels.primary() is not old) as (
            kill,
            heal,
        ):
            await asyncio.to_thread(kill)
            await asyncio.to_thread(until, lambda: not near._kept)
            await asyncio.to_thread(heal)
        other = from_url(redis_sentinels.url, **settings)

        def load() -> Record | None:
            with contextlib.suppress(StoreUnavailable):
                return other.load(record.sid)
            return None

        await asyncio.to_thread(until, load)
        with contextlib.suppress(StoreUnavailable):
            await store("load", record.sid)
        await keeps(store, record, 20)
        newer = next_version(record, data=b"new")
        assert await asyncio.to_thread(other.replace, newer, 1) is SAVED
        assert await changes_to(store, record) == newer
        other.close()
    redis_sentinels.settle()


# Whole requests.


class Site:
    """Two managers on one server: one with a memory that nobody tells of changes, one without."""

    def __init__(self, server: Server, prefix: str, proxy: Proxy) -> None:
        self.clock = Clock(NOW)
        self.near = from_url(server.url, prefix=prefix, near=HOUR, timeout=60)
        told_by(Both(self.near), proxy)
        self.here = SessionManager(self.near, idle_timeout=1000, clock=self.clock)
        self.there = SessionManager(
            from_url(server.url, prefix=prefix), idle_timeout=1000, clock=self.clock
        )
        self.proxy = proxy

    @contextlib.contextmanager
    def remembered(self, **values: Any) -> Iterator[str]:
        """Make a session, have it in memory, and let the server tell of nothing."""
        session = self.there.session()
        session.update(values)
        done = self.there.commit(session)
        assert done.token is not None
        cookie, sid = f"id={done.token}", done.token.sid
        near = sure(self.near)
        until(lambda: dict(self.here.session(cookie)) == values and near.recall(sid), 5)
        with self.proxy.silence():
            yield cookie

    def close(self) -> None:
        self.here.close()
        self.there.close()


@pytest.fixture
def site(redis_server: Server, prefix: str, proxy: Proxy) -> Iterator[Site]:
    with contextlib.closing(Site(redis_server, prefix, proxy)) as site:
        yield site


def test_a_request_reads_from_memory(site: Site, redis_server: Server) -> None:
    """A request that only reads asks no server, and sees what was there within the bound."""
    with site.remembered(n=1) as cookie:
        session = site.there.session(cookie)
        session["n"] = 2
        site.there.commit(session)
        before = gets(redis_server)

        assert site.here.session(cookie)["n"] == 1
        assert gets(redis_server) == before


def test_memory_keeps_nobody_out(site: Site) -> None:
    """A cookie of another process's login opens the session here, also where memory is older."""
    with site.remembered(n=1) as cookie:
        session = site.there.session(cookie)
        session.login("alice")
        token = site.there.commit(session).token

        assert site.here.session(f"id={token}").user == "alice"


def test_memory_ends_nothing(site: Site) -> None:
    """A session that memory takes for idle, and another process has seen since, goes on."""
    with site.remembered(n=1) as cookie:
        site.clock.advance(900)
        session = site.there.session(cookie)
        assert session["n"] == 1
        site.there.commit(session)
        site.clock.advance(900)

        assert site.here.session(cookie).get("n") == 1


def test_writes_upon_memory_are_merged(site: Site) -> None:
    """What is written upon an old record is merged into the one that the store has."""
    with site.remembered(n=1, a=0, b=0) as cookie:
        for sessions, name in ((site.there, "a"), (site.here, "b")):
            session = sessions.session(cookie)
            assert session["n"] == 1
            session.add("n")
            session[name] = 1
            sessions.commit(session)

        # The write of this process took its own record out of memory.
        assert dict(site.here.session(cookie)) == {"n": 3, "a": 1, "b": 1}


def test_an_ended_session_takes_no_write(site: Site) -> None:
    """A request that began with what memory has of an ended session writes nothing."""
    with site.remembered(n=1) as cookie:
        ended = site.there.session(cookie)
        ended.end("user")
        site.there.commit(ended)
        session = site.here.session(cookie)
        session["n"] = 2
        done = site.here.commit(session)

        assert done.dropped == "gone"
        assert dict(site.here.session(cookie)) == {}


def test_exclusive_asks_the_server(site: Site) -> None:
    """Under its lock a session is read anew, never from memory: a plain `+= 1` loses nothing."""
    with site.remembered(n=1) as cookie:
        for sessions in (site.there, site.here, site.there):
            session = sessions.session(cookie)
            with sessions.exclusive(session):
                session["n"] += 1

        assert site.there.session(cookie)["n"] == 4


def test_the_end_of_all(site: Site) -> None:
    """Ending all sessions of a user is based on no memory, and empties that of this process."""
    with site.remembered(n=1) as cookie:
        session = site.there.session(cookie)
        session.login("alice")
        token = site.there.commit(session).token
        for _ in range(2):
            assert site.here.session(f"id={token}").user == "alice"
        assert site.here.end_all("alice") == [token.sid]  # type: ignore[union-attr]

        assert site.here.session(f"id={token}").user is None


def test_a_logout_in_another_process(redis_server: Server, prefix: str) -> None:
    """What another process ends is ended here at once: it is told long before the bound."""
    url = f"{redis_server.url}?prefix={prefix}"
    store = from_url(url + "&near=3599")
    sessions = SessionManager(store, idle_timeout=1000)
    session = sessions.session()
    session.login("alice")
    token = sessions.commit(session).token
    cookie = f"id={token}"
    near = sure(store)
    until(lambda: sessions.session(cookie).user == "alice" and near.recall(token.sid), 5)  # type: ignore[union-attr]
    code = (
        "import sys; from sojourn import SessionManager\n"
        "print(len(SessionManager(sys.argv[1], idle_timeout=1000).end_all('alice')))"
    )
    command = [sys.executable, "-c", code, url]
    assert subprocess.run(command, check=True, timeout=30, capture_output=True).stdout == b"1\n"

    # The process has ended, which took far longer than telling.
    until(lambda: sessions.session(cookie).user is None, 1)
    sessions.close()


ADD = """
import sys
from sojourn import SessionManager

sessions = SessionManager(sys.argv[1], idle_timeout=1000)
for number in range(int(sys.argv[3])):
    for _ in range(3):
        sessions.session(sys.argv[2]).get("n")
    session = sessions.session(sys.argv[2])
    session["seen"] = number
    session.add("n")
    sessions.commit(session)
    if number % 5 == 0:
        session = sessions.session(sys.argv[2])
        with sessions.exclusive(session, wait=30):
            session["m"] += 1
sessions.close()
"""


def test_adds_of_processes(redis_server: Server, prefix: str) -> None:
    """Processes with memories add to one session, merged and under a lock: none is lost."""
    url = f"{redis_server.url}?prefix={prefix}&near=30"
    with contextlib.closing(SessionManager(url, idle_timeout=1000)) as sessions:
        session = sessions.session()
        session.update(n=0, m=0)
        cookie = f"id={sessions.commit(session).token}"
        command = [sys.executable, "-c", ADD, url, cookie, "100"]
        processes = [subprocess.Popen(command) for _ in range(4)]
        try:
            assert [process.wait(60) for process in processes] == [0] * 4
        finally:
            for process in processes:
                process.kill()

        until(lambda: sessions.session(cookie)["n"] == 400, 2)
        assert sessions.session(cookie)["m"] == 80


# Processes, threads, loops.

FORK = """
import os, sys, time
from sojourn.stores.redis import from_url
from sojourn.testing import new_record

store = from_url(sys.argv[1], near=3599)
record = new_record(0.0)
assert store.create(record)

def keeps():
    end = time.monotonic() + 5
    while store._near.recall(record.sid) is None:
        assert store.recall(record.sid, lambda record: True) == record
        assert time.monotonic() < end
        time.sleep(0.01)

keeps()
parents = store._near._listener
store._near._lock.acquire()  # As if another thread were in the middle of a call.
child = os.fork()
if child == 0:
    assert store._near.recall(record.sid) is None
    assert parents._socket.fileno() == -1
    keeps()
    assert store._near._listener is not parents
    os._exit(0)
store._near._lock.release()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
time.sleep(0.2)
assert store._near.recall(record.sid) == record
assert store._near._listener is parents and parents.is_alive()
"""


def test_fork(redis_server: Server, prefix: str) -> None:
    """A forked process begins with an empty memory, and leaves its parent's as it is."""
    url = f"{redis_server.url}?prefix={prefix}"
    subprocess.run([sys.executable, "-c", FORK, url], check=True, timeout=30)


@pytest.mark.anyio
async def test_close(make: Callable[..., Both], own_server: Server) -> None:
    """Closing forgets all and leaves neither thread nor connection; a later call begins anew."""
    record = new_record(NOW)
    async with make(own_server.url, near=HOUR) as store:
        await store("create", record)
        for _ in range(2):
            await keeps(store, record)
            near = memory_of(store)
            listener = near._listener
            assert listener is not None
            assert len(trackers(own_server)) == 1
            await store("close")

            assert near.recall(record.sid) is None
            await asyncio.to_thread(listener.join, 5)
            assert not listener.is_alive()
            await asyncio.to_thread(until, lambda: not trackers(own_server))


def test_a_store_that_nobody_closed(redis_server: Server, prefix: str) -> None:
    """The thread of a store that is no longer there ends."""
    store = from_url(redis_server.url, prefix=prefix, near=HOUR)
    listener = sure(store)._listener
    assert listener is not None

    del store
    gc.collect()

    listener.join(5)
    assert not listener.is_alive()


def test_event_loops(redis_server: Server, prefix: str) -> None:
    """The loops of one store share a memory, which is there until the last of them closes it."""
    store = afrom_url(redis_server.url, prefix=prefix, near=HOUR)
    record = new_record(NOW)
    first_in, first_may_close = threading.Event(), threading.Event()

    async def use() -> None:
        assert await store.load(record.sid) == record
        first_in.set()
        await asyncio.to_thread(first_may_close.wait, 10)
        await store.close()

    async def main() -> None:
        await store.create(record)
        await keeps(Both(store), record)
        near = memory_of(Both(store))
        thread = threading.Thread(target=asyncio.run, args=(use(),))
        thread.start()
        assert await asyncio.to_thread(first_in.wait, 10)
        first_may_close.set()
        await asyncio.to_thread(thread.join)
        assert near.recall(record.sid) == record
        await store.close()
        assert near.recall(record.sid) is None

    asyncio.run(main())
