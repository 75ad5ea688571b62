"""`TwistedRedisStore` on real servers: the contract, and the faults that `RedisStore` is put to."""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.threads import blockingCallFromThread

from sojourn.core.record import ENDED, Ended
from sojourn.errors import ConfigurationError, DamagedRecord, StoreUnavailable
from sojourn.stores.redis import from_url
from sojourn.testing import CHECKS, Check, new_record, run_check
from sojourn.testing.interleave import any_calls_agree_with_the_model
from sojourn.testing.proxy import Proxy
from sojourn.web.twisted.redis import TwistedRedisStore
from tests.stores.servers_redis import (
    Sentinels,
    Server,
    prefix,
    redis_cluster,
    redis_program,
    redis_sentinels,
    redis_server,
)
from tests.stores.test_redis_faults import (
    Both,
    own_server,
    test_a_hung_sentinel,
    test_an_end_is_in_the_file,
    test_cut,
    test_hung,
    test_killed_and_restarted,
    test_restarted_unseen,
    test_sentinels_hand_over,
)

pytestmark = pytest.mark.server

_fixtures = (own_server, prefix, redis_cluster, redis_program, redis_sentinels, redis_server)
# The faults that the other Redis stores are put to: here `make` makes this one.
_shared = (
    test_a_hung_sentinel,
    test_an_end_is_in_the_file,
    test_cut,
    test_hung,
    test_killed_and_restarted,
    test_restarted_unseen,
    test_sentinels_hand_over,
)

NOW = time.time()
TOMBSTONE = Ended(ENDED, "user", NOW, NOW + 86400.0)


class InReactor:
    """The store as a blocking one: each call is made in the reactor's thread and waited for."""

    def __init__(self, store: TwistedRedisStore, reactor: Any) -> None:
        self._store = store
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not callable(found) or name.startswith("_"):
            return found
        return functools.partial(blockingCallFromThread, self._reactor, found)

    def kind_of(self, name: str, *arguments: Any) -> type:
        """Make a call and wait for it; the type of what it returned at once."""
        kinds: list[type] = []

        def call() -> Any:
            returned = getattr(self._store, name)(*arguments)
            kinds.append(type(returned))
            return returned

        blockingCallFromThread(self._reactor, call)
        return kinds[0]


@pytest.fixture(scope="module")
def reactor() -> Iterator[Any]:
    """A reactor of our own that runs in a thread; the process's is left alone."""
    reactor = SelectReactor()
    thread = threading.Thread(target=reactor.run, kwargs={"installSignalHandlers": False})
    thread.start()
    yield reactor
    reactor.callFromThread(reactor.stop)
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def open_store(reactor: Any) -> Iterator[Callable[..., InReactor]]:
    """Make stores, and close them in the end."""
    made: list[InReactor] = []

    def make(url: str, **settings: Any) -> InReactor:
        made.append(InReactor(TwistedRedisStore(url, reactor, **settings), reactor))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def make(open_store: Callable[..., InReactor]) -> Callable[..., Both]:
    """How the tests of faults make a store."""
    return lambda *arguments, **settings: Both(open_store(*arguments, **settings))  # type: ignore[arg-type]


@pytest.fixture
def store(open_store: Callable[..., InReactor], redis_server: Server, prefix: str) -> InReactor:
    """A store on one node."""
    return open_store(redis_server.url, prefix=prefix)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Check, store: Any) -> None:
    """One node keeps the contract, asked from many threads at once."""
    run_check(check, store)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_sentinel(
    check: Check,
    open_store: Callable[..., InReactor],
    redis_sentinels: Sentinels,
    prefix: str,
) -> None:
    """A primary found by sentinels keeps the contract, each end confirmed by its replica."""
    run_check(check, open_store(redis_sentinels.url, prefix=prefix, wait=1))


@pytest.mark.parametrize("seed", range(5))
def test_any_calls(seed: int, store: Any) -> None:
    """Five fixed sequences of 300 calls get the answers of the model."""
    run_check(functools.partial(any_calls_agree_with_the_model, 300, seed), store)


def test_every_call_returns_a_deferred(store: InReactor) -> None:
    """A reactor waits for nothing: what comes back is a Deferred, also from a closed store."""
    record = new_record(NOW)
    calls: list[tuple[Any, ...]] = [
        ("load", record.sid),
        ("create", record),
        ("replace", record, 1),
        ("touch", record.sid, 1, NOW, NOW),
        ("delete", record.sid, TOMBSTONE),
        ("due", NOW, 60.0),
        ("list",),
        ("count",),
        ("check",),
        ("close",),
        ("close",),
    ]

    assert [store.kind_of(*call) for call in calls] == [Deferred] * len(calls)


def test_records_are_those_of_the_blocking_store(store: InReactor, redis_server: Server) -> None:
    """What one writes the other reads, byte for byte: processes of both kinds share sessions."""
    records = [new_record(NOW, data=b"12.5"), new_record(NOW, user="alice", data=b"\xff\x00\r\n")]
    blocking = from_url(redis_server.url, prefix=store.settings.prefix)
    store.create(records[0])
    blocking.create(records[1])

    assert blocking.load(records[0].sid) == records[0]
    assert store.load(records[1].sid) == records[1]
    assert store.list(user="alice") == [records[1]]
    assert (store.count(), blocking.count()) == (2, 2)
    blocking.close()


def test_a_sid_that_looks_like_a_number(store: InReactor) -> None:
    """It stays what it is; txredisapi would make an int of it."""
    record = new_record(NOW, sid="1234567890123456789012", user="bob")
    store.create(record)

    assert store.list() == [record]
    assert store.due(record.deadline + 1, 60.0)[0].sid == record.sid


def test_a_value_of_another_type_is_damage(store: InReactor, redis_server: Server) -> None:
    """What is no string under the sid of a session costs its visitor the session, not a 500."""
    sid = "a" * 22
    redis_server.ask("SADD", store._verbs.keys.record(sid), "x")

    with pytest.raises(DamagedRecord, match="another type"):
        store.load(sid)


def test_one_connection_for_all(
    open_store: Callable[..., InReactor], redis_server: Server, prefix: str
) -> None:
    """A hundred calls at once open one connection, not one each; close() closes it."""
    before = redis_server.ask("INFO", "stats")["total_connections_received"]
    store = open_store(redis_server.url, prefix=prefix)
    many = [threading.Thread(target=store.load, args=("a" * 22,)) for _ in range(100)]
    for one in many:
        one.start()
    for one in many:
        one.join()
    after = redis_server.ask("INFO", "stats")["total_connections_received"]

    # Each ask() is a connection of its own; one of them lies in between.
    assert after - before == 2
    assert b"idle" in redis_server.ask("CLIENT", "LIST")
    store.close()
    assert store.load("a" * 22) is None


def test_a_slow_answer_is_nobody_elses(
    open_store: Callable[..., InReactor], own_server: Server
) -> None:
    """Calls on a server that hangs fail after `timeout`; each later call gets its own answer."""
    records = [new_record(NOW, data=b"%d" % i) for i in range(20)]
    store = open_store(own_server.url, timeout=0.3)
    for record in records:
        store.create(record)
    failed = []
    with own_server.hung():
        for record in records[:3]:
            with pytest.raises(StoreUnavailable, match=r"no answer from .* in 0\.3 s") as caught:
                store.load(record.sid)
            failed.append(caught.value.transient)

    assert failed == [False] * 3
    assert [store.load(record.sid) for record in records] == records


def test_a_silent_connection_is_left(
    open_store: Callable[..., InReactor], redis_server: Server, prefix: str
) -> None:
    """Where the network drops what is sent, one call fails, and the next takes a new connection."""
    record = new_record(NOW)
    with Proxy(redis_server.port) as proxy:
        store = open_store(f"redis://127.0.0.1:{proxy.port}", prefix=prefix, timeout=0.4)
        store.create(record)
        with proxy.silence(), pytest.raises(StoreUnavailable, match="no answer"):
            store.load(record.sid)
        assert proxy.accepted == 1

        assert store.load(record.sid) == record
        assert proxy.accepted == 2


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:1",
        "redis+sentinel://127.0.0.1:1,127.0.0.1:2/main",
        "unix:///nowhere",
        "rediss://127.0.0.1:1",
    ],
)
def test_nobody_there(url: str, open_store: Callable[..., InReactor]) -> None:
    """Where nobody listens, a call says so at once and advises no new try."""
    start = time.monotonic()
    with pytest.raises(StoreUnavailable, match=re.escape(url)) as caught:
        open_store(url).load("a" * 22)

    assert not caught.value.transient
    assert time.monotonic() - start < 1.5


def test_password_database_and_socket(
    open_store: Callable[..., InReactor], own_server: Server
) -> None:
    """A URL with a password, a database or a socket is understood; a wrong password says so."""
    record = new_record(NOW)
    own_server.ask("CONFIG", "SET", "requirepass", "secret")
    try:
        there = own_server.url.removeprefix("redis://")
        good = open_store(f"redis://:secret@{there}/3")
        good.create(record)

        with pytest.raises(StoreUnavailable, match="lets nobody in"):
            open_store(f"redis://:wrong@{there}/3").load(record.sid)
        with pytest.raises(StoreUnavailable, match="lets nobody in"):
            open_store(own_server.url).load(record.sid)
        assert good.load(record.sid) == record
        assert open_store(f"redis://:secret@{there}").load(record.sid) is None
        assert open_store(f"unix://:secret@{own_server.socket}?db=3").load(record.sid) == record
    finally:
        blocking = from_url(f"redis://:secret@{there}")
        blocking._open().client.config_set("requirepass", "")
        blocking.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis+cluster://127.0.0.1:1", "knows no clusters; .* --reactor=asyncio"),
        ("redis://127.0.0.1?health_check_interval=3", "health_check_interval: .* takes only"),
        ("redis://127.0.0.1?timeout=0", "timeout is 0"),
    ],
)
def test_wrong_urls(url: str, message: str) -> None:
    """What this client cannot do is told when the store is made."""
    with pytest.raises(ConfigurationError, match=message):
        TwistedRedisStore(url)
