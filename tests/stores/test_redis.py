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
from sojourn.stores.redis import AsyncRedisStore, RedisStore, afrom_url, from_url
from sojourn.stores.redis import scripts
from sojourn.stores.redis.layout import HEAD_SIZE, SHARDS, Keys, decode, encode, user_hash
from sojourn.stores.redis.links import Link
from sojourn.stores.redis.settings import Settings, read_url
from sojourn.stores.redis.verbs import Run, Verbs, faults_of
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
