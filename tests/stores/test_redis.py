"""`RedisStore` on real servers: the contract everywhere, and what it promises beyond."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis
from msgspec.structs import replace as changed

from sojourn.core.calls import SAVED
from sojourn.core.record import ENDED, ENDING, LIVE, MARK, Ended, Record
from sojourn.errors import ConfigurationError, DamagedRecord, StoreUnavailable
from sojourn.stores.base import AsyncStore, Store
from sojourn.stores.redis import AsyncRedisStore, RedisStore, afrom_url, from_url, scripts
from sojourn.stores.redis.layout import HEAD_SIZE, SHARDS, Keys, decode, encode, user_hash
from sojourn.stores.redis.links import Link
from sojourn.stores.redis.settings import Settings, read_url
from sojourn.stores.redis.verbs import Run, Verbs, earliest, faults_of
from sojourn.testing import CHECKS, Check, arun_check, new_record, next_version, run_check
from sojourn.testing.interleave import any_calls_agree_with_the_model
from tests.stores.servers_redis import (
    Cluster,
    Sentinels,
    Server,
    prefix,
    redis_cluster,
    redis_program,
    redis_sentinels,
    redis_server,
)

pytestmark = pytest.mark.server

_fixtures = (prefix, redis_cluster, redis_program, redis_sentinels, redis_server)

NOW = time.time()
DAY = 86400.0


@pytest.fixture
def store(redis_server: Server, prefix: str) -> Iterator[RedisStore]:
    """A blocking store on one node."""
    with contextlib.closing(from_url(redis_server.url, prefix=prefix)) as store:
        yield store


@contextlib.asynccontextmanager
async def asynchronous(url: str, **settings: Any) -> AsyncIterator[AsyncRedisStore]:
    """An asynchronous store, closed in the end."""
    store = afrom_url(url, **settings)
    try:
        yield store
    finally:
        await store.close()


# The contract.


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Check, store: RedisStore) -> None:
    """One node keeps the contract, with threads."""
    run_check(check, store)


@pytest.mark.anyio
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_contract_async(check: Check, redis_server: Server, prefix: str) -> None:
    """One node keeps the contract, with tasks."""
    async with asynchronous(redis_server.url, prefix=prefix) as store:
        await arun_check(check, store)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_cluster(check: Check, redis_cluster: Cluster, prefix: str) -> None:
    """A cluster keeps the contract, with threads."""
    with contextlib.closing(from_url(redis_cluster.url, prefix=prefix)) as store:
        run_check(check, store)


@pytest.mark.anyio
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_contract_cluster_async(check: Check, redis_cluster: Cluster, prefix: str) -> None:
    """A cluster keeps the contract, with tasks."""
    async with asynchronous(redis_cluster.url, prefix=prefix) as store:
        await arun_check(check, store)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_sentinel(check: Check, redis_sentinels: Sentinels, prefix: str) -> None:
    """A primary found by sentinels keeps the contract, each end confirmed by its replica."""
    with contextlib.closing(from_url(redis_sentinels.url, prefix=prefix, wait=1)) as store:
        run_check(check, store)


@pytest.mark.anyio
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_contract_sentinel_async(
    check: Check, redis_sentinels: Sentinels, prefix: str
) -> None:
    """A primary found by sentinels keeps the contract, with tasks."""
    async with asynchronous(redis_sentinels.url, prefix=prefix, wait=1) as store:
        await arun_check(check, store)


@pytest.mark.parametrize("seed", range(10))
def test_any_calls(seed: int, store: RedisStore) -> None:
    """Ten fixed sequences of 300 calls get the answers of the model."""
    run_check(functools.partial(any_calls_agree_with_the_model, 300, seed), store)


def test_protocols(redis_server: Server) -> None:
    """Each is a store of its colour, and connects to nothing before it is used."""
    assert isinstance(from_url("redis://127.0.0.1:1"), Store)
    assert isinstance(afrom_url("redis://127.0.0.1:1"), AsyncStore)


# Where things lie.


def keys_of(store: RedisStore) -> dict[str, str]:
    """Every key under the store's prefix, with its type."""
    with raw(store) as client:
        found = client.keys(f"{{{store.settings.prefix}:*")
        return {key.decode(): client.type(key).decode() for key in found}


@contextlib.contextmanager
def raw(store: RedisStore) -> Iterator[Any]:
    """A bare client to the store's node."""
    with redis.Redis.from_url(store._target.url, protocol=2) as client:
        yield client


def test_layout(store: RedisStore) -> None:
    """A session is one string, a member of two sets of its slot, and one of its user's index."""
    record = new_record(NOW, sid="A" * 22, user="alice")
    store.create(record)
    base = f"{{{store.settings.prefix}:A}}:"
    index = Keys(store.settings.prefix).user(user_hash("alice"))

    assert keys_of(store) == {
        f"{base}s:{record.sid}": "string",
        f"{base}due": "zset",
        f"{base}0": "zset",
        index: "zset",
    }

    store.delete(record.sid, Ended(ENDED, "user", NOW, NOW + DAY))

    assert keys_of(store) == {
        f"{base}s:{record.sid}": "string",
        f"{base}due": "zset",
        f"{base}2": "zset",
    }

    store.delete(record.sid)

    assert keys_of(store) == {}


def test_one_slot(redis_cluster: Cluster) -> None:
    """All keys of one call lie in one slot, and those of the shards in many."""
    verbs = Verbs(Settings(wait=1))
    slots = set()
    for shard in SHARDS:
        record = new_record(NOW, sid=shard + "b" * 21)
        sid = record.sid
        ended = Ended(ENDED, "user", NOW, NOW)
        calls = [
            next(verbs.create(record)),
            next(verbs.replace(record, 1)),
            next(verbs.touch(sid, 1, NOW, NOW)),
            next(verbs.delete(sid, ended)),
            verbs._claim(shard, NOW, NOW, [sid]),
        ]
        keys = {key for call in calls if isinstance(call, Run) for key in call.keys}
        keys.add(verbs.keys.record(sid))
        of_shard = {redis.cluster.key_slot(key.encode()) for key in keys}
        assert len(of_shard) == 1, keys
        slots |= of_shard

    assert len(slots) > 60
    assert redis_cluster.nodes[0].ask("CLUSTER", "KEYSLOT", verbs.keys.record("a" * 22)) in slots


def test_shards_are_in_the_order_of_sids() -> None:
    """`list` walks the shards as sids are sorted."""
    assert list(SHARDS) == sorted(SHARDS)
    assert len(SHARDS) == 64


def test_one_round_trip(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each verb of a request sends one command; a login two more, the end of its session one."""
    sent: list[str] = []
    call = Link.call

    def counted(link: Link, command: Any) -> Any:
        sent.append(command[0])
        return call(link, command)

    record = new_record(NOW)
    ended = Ended(ENDED, "user", NOW, NOW + DAY)
    store.create(new_record(NOW, user="x"))
    store.touch(record.sid, 1, NOW, NOW)
    store.replace(record, 1)
    store.delete(record.sid, ended)  # The server knows the scripts.
    monkeypatch.setattr(Link, "call", counted)

    def trips(verb: Callable[..., Any], *arguments: Any) -> int:
        sent.clear()
        verb(*arguments)
        return len(sent)

    assert trips(store.create, record) == 1
    assert trips(store.load, record.sid) == 1
    assert trips(store.touch, record.sid, 1, NOW, NOW + DAY) == 1
    second = changed(record, version=3)
    assert trips(store.replace, second, 2) == 1
    third = changed(record, version=4, user="alice")
    assert trips(store.replace, third, 3) == 3
    assert trips(store.replace, changed(third, version=5), 4) == 1
    assert trips(store.delete, record.sid, ended) == 2
    assert trips(store.create, new_record(NOW, user="alice")) == 2


def test_a_touch_rewrites_the_head_alone(store: RedisStore) -> None:
    """A touch changes no byte behind the head, and no set."""
    record = new_record(NOW, data=b"x" * 70_000)
    store.create(record)
    key = store._verbs.keys.record(record.sid)
    with raw(store) as client:
        before = client.get(key)
        due = client.zscore(store._verbs.keys.due(record.sid), record.sid)
        assert store.touch(record.sid, 1, NOW + 5, NOW + 900)

        after = client.get(key)
        assert after[HEAD_SIZE:] == before[HEAD_SIZE:]
        assert after[:HEAD_SIZE] != before[:HEAD_SIZE]
        assert client.zscore(store._verbs.keys.due(record.sid), record.sid) == due


def test_a_due_time_only_moves_forward(store: RedisStore) -> None:
    """`replace` sets the due time where the new deadline is earlier, else leaves it."""
    record = new_record(NOW, deadline=NOW + 50)
    store.create(record)
    with raw(store) as client:
        for version, deadline, due in ((2, 90, 50), (3, 20, 20), (4, 30, 20)):
            newer = changed(record, version=version, deadline=NOW + deadline)
            assert store.replace(newer, version - 1) is SAVED
            assert client.zscore(store._verbs.keys.due(record.sid), record.sid) == NOW + due


def test_earliest() -> None:
    """What comes after the end of a full page waits until that shard was asked again."""
    full = [b"a", b"1", b"c", b"3"]
    other = [b"b", b"2", b"d", b"4"]

    assert earliest([full, other[:2], []], 2, 10) == ["a", "b", "c"]
    assert earliest([full, other], 2, 10) == ["a", "b", "c"]
    assert earliest([full, other], 3, 10) == ["a", "b", "c", "d"]
    assert earliest([full, other], 3, 2) == ["a", "b"]


def test_no_hidden_tries() -> None:
    """redis-py repeats nothing by itself: no command, no connecting, not to a sentinel either."""
    node = Link(*read_url("redis://h", {}))
    sentinel = Link(*read_url("redis+sentinel://h/main", {}))
    for client in (node.client, sentinel.client, *sentinel._sentinels):
        assert client.connection_pool.make_connection().retry._retries == 0
    for link in (node, sentinel):
        link.close()


# Scripts.


def test_scripts_may_be_flushed(store: RedisStore) -> None:
    """A server that has forgotten the scripts is told again, whatever the call is."""
    record = new_record(NOW, user="alice", deadline=NOW + 5)
    with raw(store) as client:

        def forgotten() -> RedisStore:
            client.script_flush()
            return store

        assert forgotten().create(record)
        assert forgotten().replace(next_version(record, user="bob"), 1) is SAVED
        assert forgotten().touch(record.sid, 2, NOW, NOW + 6)
        assert [r.user for r in forgotten().due(NOW + 7, 60)] == ["bob"]
        assert forgotten().delete(record.sid, Ended(ENDED, "idle", NOW, NOW + DAY))
        assert not forgotten().delete(record.sid, Ended(ENDED, "idle", NOW, NOW + DAY))


@pytest.mark.anyio
async def test_scripts_may_be_flushed_async(redis_server: Server, prefix: str) -> None:
    """The same with an event loop."""
    async with asynchronous(redis_server.url, prefix=prefix) as store:
        record = new_record(NOW)
        for step in (
            lambda: store.create(record),
            lambda: store.touch(record.sid, 1, NOW, NOW + 6),
            lambda: store.delete(record.sid),
        ):
            async with redis.asyncio.Redis(port=redis_server.port, protocol=2) as client:
                await client.script_flush()

            assert await step() is True


# Records and what can happen to them.

RECORD = new_record(
    NOW,
    sid="R" * 22,
    user="alice",
    address="::1",
    agent="x" * 40,
    data=b"data",
    commits=b"12345678",
    reason="idle",
    attempts=3,
)


def test_encoding() -> None:
    """What was encoded is decoded to an equal record."""
    assert decode(encode(RECORD), RECORD.sid) == RECORD


def test_an_older_record_lacks_newer_fields() -> None:
    """The fields are written in order, so one that was added at the end has its default."""
    import msgspec

    from sojourn.stores.redis import layout

    kept = layout._kept_of(RECORD)
    older = msgspec.msgpack.encode(kept[:-1])

    assert layout._IN_KEPT[-1] == "agent"
    assert layout._decode_kept(older).agent == ""
    newer = msgspec.msgpack.encode((*kept, "of a later version"))
    assert layout._decode_kept(newer).agent == RECORD.agent


def test_flipped_bits() -> None:
    """A flip of any bit of any byte is seen."""
    good = encode(RECORD)
    for place in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            with pytest.raises(DamagedRecord):
                decode(bytes(bad), RECORD.sid)


def test_cut_short() -> None:
    """So is a record that lost its end, or got more."""
    good = encode(RECORD)
    for length in range(len(good)):
        with pytest.raises(DamagedRecord):
            decode(good[:length], RECORD.sid)
    with pytest.raises(DamagedRecord):
        decode(good + b"\0", RECORD.sid)


def test_of_another() -> None:
    """A good record under another's sid is nobody's."""
    with pytest.raises(DamagedRecord, match="the record of RRR"):
        decode(encode(RECORD), "S" * 22)


def flipped(place: int) -> Callable[[bytes], bytes]:
    def flip(value: bytes) -> bytes:
        return value[:place] + bytes([value[place] ^ 4]) + value[place + 1 :]

    return flip


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda value: b"",
    "no head": lambda value: value[:40],
    "foreign": lambda value: b"O:8:" + value,
    "later layout": lambda value: b"SJ\x02" + value[3:],
    "version": flipped(10),
    "deadline": flipped(25),
    "length": flipped(43),
    "checksum": flipped(70),
}


@pytest.mark.parametrize("kind", [*DAMAGE, "type"])
def test_damaged(kind: str, store: RedisStore) -> None:
    """A damaged head: `load`, `replace`, `touch` say so, `due` and `list` pass, `delete` clears."""
    record = new_record(NOW, deadline=NOW - 5)
    other = new_record(NOW, deadline=NOW - 4)
    store.create(record)
    store.create(other)
    key = store._verbs.keys.record(record.sid)
    with raw(store) as client:
        if kind == "type":
            client.delete(key)
            client.rpush(key, "a list")
        else:
            client.set(key, DAMAGE[kind](client.get(key)))

    with pytest.raises(DamagedRecord, match=record.sid):
        store.load(record.sid)
    with pytest.raises(DamagedRecord, match=record.sid):
        store.replace(next_version(record), 1)
    with pytest.raises(DamagedRecord, match=record.sid):
        store.touch(record.sid, 1, NOW, NOW)
    assert not store.create(record)
    assert [r.sid for r in store.list()] == [other.sid]
    assert [r.sid for r in store.due(NOW, 60)] == [other.sid]
    assert store.count(status=LIVE) == 0
    assert store.delete(record.sid, Ended(ENDED, "damaged", NOW, NOW + DAY))
    assert store.load(record.sid) is None


def test_damaged_body(store: RedisStore) -> None:
    """A damaged body behind a good head: `load` says so, a sweep sets it aside, once."""
    record = new_record(NOW, deadline=NOW - 5)
    store.create(record)
    key = store._verbs.keys.record(record.sid)
    with raw(store) as client:
        value = client.get(key)
        client.set(key, value[:-1] + bytes([value[-1] ^ 1]))

        with pytest.raises(DamagedRecord):
            store.load(record.sid)
        assert store.list() == []
        assert store.due(NOW, 60) == []
        assert client.zcard(store._verbs.keys.due(record.sid)) == 0
        assert store.due(NOW + 1000, 60) == []
    with pytest.raises(DamagedRecord):
        store.load(record.sid)


def test_vanished(store: RedisStore) -> None:
    """A sweep forgets what the server has dropped."""
    gone = [new_record(NOW, deadline=NOW - 9) for _ in range(5)]
    there = new_record(NOW, deadline=NOW - 1)
    for record in [*gone, there]:
        store.create(record)
    with raw(store) as client:
        for record in gone:
            client.delete(store._verbs.keys.record(record.sid))

    assert store.list() == [there]
    assert [r.sid for r in store.due(NOW, 60, limit=1)] == [there.sid]
    assert store.count() == 0
    assert store.count(status=ENDING) == 1


# Time to live.


def test_the_server_drops_what_no_sweep_came_for(redis_server: Server, prefix: str) -> None:
    """A record outlives its deadline by `overdue`, whatever the clocks say, and moves with it."""
    past = NOW - 40 * DAY
    with contextlib.closing(from_url(redis_server.url, prefix=prefix, overdue=1000)) as store:
        record = new_record(past, deadline=past + 500)
        key = store._verbs.keys.record(record.sid)
        with raw(store) as client:

            def lives() -> float:
                return float(client.pttl(key)) / 1000

            store.create(record)
            assert lives() == pytest.approx(1500, abs=5)
            store.touch(record.sid, 1, past + 100, past + 900)
            assert lives() == pytest.approx(1800, abs=5)
            store.replace(changed(record, version=3, seen=past, deadline=past + 50), 2)
            assert lives() == pytest.approx(1050, abs=5)
            store.due(past + 60, 30)
            assert lives() == pytest.approx(1030, abs=5)
            store.delete(record.sid, Ended(ENDED, "idle", past + 60, past + 2060))
            assert lives() == pytest.approx(3000, abs=5)


def test_no_limit_no_time_to_live(store: RedisStore) -> None:
    """A session without any limit is kept for good, also once it has none."""
    record = new_record(NOW, deadline=math.inf)
    key = store._verbs.keys.record(record.sid)
    with raw(store) as client:
        store.create(record)
        assert client.ttl(key) == -1
        store.replace(next_version(record, deadline=NOW + 5), 1)
        assert client.ttl(key) > 0
        store.touch(record.sid, 2, NOW, math.inf)
        assert client.ttl(key) == -1
        store.touch(record.sid, 3, NOW, NOW + 5)
        assert client.ttl(key) > 0
    assert [r.deadline for r in store.list()] == [NOW + 5]


def test_drops_for_real(redis_server: Server, prefix: str) -> None:
    """What the server has dropped is gone: no load, no touch, no replace brings it back."""
    settings = {"prefix": prefix, "overdue": 0.0}
    with contextlib.closing(from_url(redis_server.url, **settings)) as store:
        record = new_record(NOW, deadline=NOW)
        assert store.create(record)
        with raw(store) as client:
            while client.exists(store._verbs.keys.record(record.sid)):
                pass

        assert store.load(record.sid) is None
        assert not store.touch(record.sid, 1, NOW, NOW + 5)
        assert repr(store.replace(next_version(record), 1)) == "GONE"


# The index of a user.


def test_index_is_written_first(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies while it logs somebody in leaves an index that is ahead, not behind."""
    record = new_record(NOW, user="alice")
    bare = new_record(NOW)
    store.create(bare)
    call = Link.call

    def dies(link: Link, command: Any) -> Any:
        if command[1] == scripts.CREATE.sha or command[-1] == 1:
            raise KeyboardInterrupt
        return call(link, command)

    monkeypatch.setattr(Link, "call", dies)
    with pytest.raises(KeyboardInterrupt):
        store.create(record)
    with pytest.raises(KeyboardInterrupt):
        store.replace(next_version(bare, user="alice"), 1)
    monkeypatch.undo()

    index = store._verbs.keys.user(user_hash("alice"))
    with raw(store) as client:
        assert client.zcard(index) == 2
        assert store.list("alice") == []
        assert store.count("alice") == 0
        # A reader does not take out what may be about to appear ...
        assert client.zcard(index) == 2
        assert store.create(record)
        assert store.list("alice") == [record]
        # ... but what has been there for long.
        client.zadd(index, {bare.sid: NOW - 2 * 3600, record.sid: NOW - 2 * 3600})
        assert store.list("alice") == [record]
        assert client.zrange(index, 0, -1) == [record.sid.encode()]


def test_a_changed_user_changes_the_list(store: RedisStore) -> None:
    """A session is listed for the user that it has, and for no other."""
    record = new_record(NOW, user="alice")
    store.create(record)
    second = next_version(record, user="bob")
    assert store.replace(second, 1) is SAVED
    assert store.list("alice") == []
    assert store.count("alice") == 0
    assert store.list("bob") == [second]
    third = next_version(second, user=None)
    assert store.replace(third, 2) is SAVED
    assert store.list("bob") == []
    assert store.list() == [third]


# What servers and settings say.


def test_eviction_warning(
    redis_program: str, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that would drop sessions without a word is named in the log, at the first call."""
    policy = ("--maxmemory", "64mb", "--maxmemory-policy", "volatile-lru")
    server = Server(redis_program, tmp_path, *policy)
    try:
        for _ in range(2):
            with contextlib.closing(from_url(server.url)) as store:
                caplog.clear()
                store.load("a" * 22)
                store.load("a" * 22)

                warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
                assert len(warnings) == 1
                assert "maxmemory-policy is volatile-lru" in warnings[0].getMessage()
                assert any("maxmemory-policy" in one for one in store.check())
        server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        with contextlib.closing(from_url(server.url)) as store:
            caplog.clear()
            store.load("a" * 22)

            assert caplog.records == []
            assert not any("maxmemory-policy" in one for one in store.check())
            assert any("appendonly is no" in one for one in store.check())
    finally:
        server.end()


def test_full(redis_program: str, tmp_path: Any) -> None:
    """A server whose memory is full refuses new sessions, keeps the old ones, and lets them end."""
    server = Server(redis_program, tmp_path)
    try:
        with contextlib.closing(from_url(server.url)) as store:
            record = new_record(NOW)
            store.create(record)
            server.ask("CONFIG", "SET", "maxmemory", "1")

            with pytest.raises(StoreUnavailable, match="maxmemory"):
                store.create(new_record(NOW))
            assert store.load(record.sid) == record
            assert store.delete(record.sid, Ended(ENDING, "user", NOW, NOW + 60))
            assert store.delete(record.sid, Ended(ENDED, "user", NOW, NOW + 60))
            assert store.delete(record.sid)
    finally:
        server.end()


def test_nothing_told(redis_program: str, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A managed server that keeps its settings to itself is used; one quiet line says so."""
    server = Server(redis_program, tmp_path)
    caplog.set_level(logging.INFO, "sojourn.stores.redis")
    try:
        server.ask("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-info", "-config")
        url = f"redis://app:secret@127.0.0.1:{server.port}"
        with contextlib.closing(from_url(url)) as store:
            assert store.create(new_record(NOW))

            assert [r.levelno for r in caplog.records] == [logging.INFO]
            assert "secret" not in caplog.text
            assert "secret" not in repr(store)
            with pytest.raises(StoreUnavailable, match="refused") as caught:
                store.check()
            assert "secret" not in str(caught.value)
        with contextlib.closing(from_url(url.replace("secret", "guess"))) as store:
            with pytest.raises(StoreUnavailable, match="lets nobody in") as caught:
                store.load("a" * 22)
            assert "guess" not in str(caught.value)
    finally:
        server.end()


def test_faults_of_a_server() -> None:
    """What INFO tells against keeping sessions there."""
    good = {
        "redis_version": "7.2.4",
        "maxmemory": 0,
        "maxmemory_policy": "noeviction",
        "aof_enabled": 1,
        "connected_slaves": 1,
    }

    assert faults_of(good, Settings(wait=1, aof=True)) == []
    assert faults_of(good | {"maxmemory_policy": "allkeys-lru"}, Settings()) == []
    for told, settings, said in (
        ({"redis_version": "6.0.16"}, Settings(), "6.2 is the oldest"),
        ({"redis_version": "7.0.15"}, Settings(aof=True), "aof is set, which needs Redis 7.2"),
        ({"maxmemory": 1, "maxmemory_policy": "allkeys-lru"}, Settings(), "policy is allkeys-lru"),
        ({"connected_slaves": 1}, Settings(wait=2), "wait is 2, but the server has 1"),
        ({"aof_enabled": 0}, Settings(), "appendonly is no"),
    ):
        found = faults_of(good | told, settings)
        assert len(found) == 1
        assert said in found[0]


@pytest.mark.parametrize(
    ("url", "kind", "addresses", "service", "client_url"),
    [
        ("redis://u:p@h:1/2?ssl=x", "node", (), "", "redis://u:p@h:1/2?ssl=x"),
        ("rediss://h/0?ssl_ca_certs=/c", "node", (), "", "rediss://h/0?ssl_ca_certs=%2Fc"),
        ("unix:///run/r.sock?db=3", "node", (), "", "unix:///run/r.sock?db=3"),
        ("redis+unix:///run/r.sock", "node", (), "", "unix:///run/r.sock?"),
        (
            "redis+sentinel://u:p@a:1,b,[::1]:3/main/4?sentinel_password=x",
            "sentinel",
            (("a", 1), ("b", 26379), ("::1", 3)),
            "main",
            "redis://u:p@a:1/4?",
        ),
        ("rediss+cluster://a,b:7", "cluster", (("a", 6379), ("b", 7)), "", "rediss://a?"),
    ],
)
def test_url(
    url: str, kind: str, addresses: tuple[Any, ...], service: str, client_url: str
) -> None:
    """A URL names the kind of servers, their addresses, and what redis-py is to know."""
    target, settings = read_url(url, {})

    assert (target.kind, target.addresses, target.service) == (kind, addresses, service)
    assert target.url == client_url
    assert target.tls == url.startswith("rediss")
    assert ":p@" not in target.shown
    assert settings == Settings()
    assert target.sentinel_options == ({"password": "x"} if "sentinel_password" in url else {})


def test_url_with_settings() -> None:
    """Settings may stand in the URL, and win over arguments."""
    url = "redis://h?wait=2&aof=true&timeout=3.5&prefix=p&socket_keepalive=yes&max_connections=9"
    target, settings = read_url(url, {"prefix": "q", "connect_timeout": 0.5})

    assert settings == Settings(
        wait=2, aof=True, timeout=3.5, prefix="p", max_connections=9, connect_timeout=0.5
    )
    assert target.url == "redis://h?socket_keepalive=yes"


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        ("http://h", {}, "'http' is no scheme"),
        ("redis+sentinel://h", {}, "no service"),
        ("redis+cluster://h:x", {}, "'h:x' is no address"),
        ("redis+cluster://h/3", {}, "only database 0"),
        ("redis://h?prefix=a{b", {}, "without braces"),
        ("redis://h?wait=two", {}, "wait"),
        ("redis://h", {"wayt": 1}, "wayt"),
        ("redis://h?timeout=0&max_connections=0", {}, "timeout is 0.0"),
        ("redis://h?timeout=0&max_connections=0", {}, "max_connections is 0"),
        ("redis://h?wait=1&wait_timeout=2", {}, "wait_timeout is the smaller"),
        ("redis://h?wait=-1", {}, "wait is -1"),
        ("redis://h?protocol=3", {}, "protocol is not for a URL"),
        ("redis://h?wayt=1", {}, "redis-py does not take this: .*wayt"),
        ("redis+sentinel://h/s?wayt=1", {}, "redis-py does not take this: .*wayt"),
        ("redis://h:port", {}, "redis-py does not take this: .*port"),
        ("redis://h", {"overdue": -1}, "overdue is -1"),
    ],
)
def test_bad_url(url: str, options: dict[str, Any], said: str) -> None:
    """What cannot work is said at once, all of it."""
    with pytest.raises(ConfigurationError, match=said):
        from_url(url, **options)


def test_tls_options_reach_every_connection() -> None:
    """`rediss` means TLS with the options of the URL: to the node, the sentinels, the cluster."""
    options = "ssl_cert_reqs=none&ssl_ca_certs=/ca"
    node = Link(*read_url(f"rediss://h?{options}", {}))
    sentinel = Link(*read_url(f"rediss+sentinel://h/main?{options}", {}))
    for pool in (
        node.client.connection_pool,
        sentinel.client.connection_pool,
        sentinel._sentinel.sentinels[0].connection_pool,
    ):
        assert issubclass(pool.connection_class, redis.SSLConnection)
        assert pool.connection_kwargs["ssl_ca_certs"] == "/ca"
        assert pool.connection_kwargs["ssl_cert_reqs"] == "none"
    for link in (node, sentinel):
        link.close()


def test_unix_socket(redis_server: Server, prefix: str) -> None:
    """A store works over a unix socket, in another database too."""
    url = f"unix://{redis_server.socket}?db=3&prefix={prefix}"
    with contextlib.closing(from_url(url)) as store:
        record = new_record(NOW)

        assert store.create(record)
        assert store.load(record.sid) == record
    with redis.Redis(port=redis_server.port, db=3, protocol=2) as client:
        assert client.exists(store._verbs.keys.record(record.sid))


def test_a_node_of_a_cluster(redis_cluster: Cluster) -> None:
    """Who gives the address of a cluster's node as a single one is told what to write."""
    with contextlib.closing(from_url(redis_cluster.nodes[0].url)) as store:

        def everywhere() -> None:
            for shard in SHARDS:
                store.load(shard * 22)

        with pytest.raises(StoreUnavailable, match=r"redis\+cluster://"):
            everywhere()


def test_marks_of_a_user_may_come_back(store: RedisStore) -> None:
    """The sid of a mark may be used again, so its entry in the index is left to the readers."""
    mark = new_record(NOW, status=MARK, secret_hash=b"", user="alice")
    store.create(mark)
    store.delete(mark.sid)
    with raw(store) as client:
        assert client.zcard(store._verbs.keys.user(user_hash("alice"))) == 1
    assert store.list("alice", None) == []


def of_all(store: RedisStore, limit: int) -> list[Record]:
    records: list[Record] = []
    after = ""
    while page := store.list(None, None, after, limit):
        records += page
        after = page[-1].sid
        if len(page) < limit:
            break
    return records


@pytest.mark.parametrize("limit", [1, 7, 100, 1000])
def test_pages(limit: int, store: RedisStore) -> None:
    """Pages of any size give every session once, in order, past gaps of vanished ones."""
    records = sorted((new_record(NOW) for _ in range(300)), key=lambda r: r.sid)
    for record in records:
        store.create(record)
    with raw(store) as client:
        for record in records[10:40]:
            client.delete(store._verbs.keys.record(record.sid))

    assert of_all(store, limit) == records[:10] + records[40:]
