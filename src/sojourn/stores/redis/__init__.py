"""Redis and Valkey: one node, Sentinel, or Cluster (redis-py; `pip install 'sojourn[redis]'`).

`layout` says where a record lies and how it is written, `scripts` what happens on the server,
`verbs` what is asked of it, `links` how connections are made, `store` ties these together.
"""

from __future__ import annotations

from typing import Any

from sojourn.stores.redis.settings import Settings
from sojourn.stores.redis.store import AsyncRedisStore, RedisStore

__all__ = ["AsyncRedisStore", "RedisStore", "Settings", "afrom_url", "from_url"]


def from_url(url: str, **settings: Any) -> RedisStore:
    """Return the blocking store for a URL; it connects when it is used."""
    return RedisStore(url, **settings)


def afrom_url(url: str, **settings: Any) -> AsyncRedisStore:
    """Return the asynchronous store for a URL; it connects when it is used."""
    return AsyncRedisStore(url, **settings)
