"""The sessions that are stored: one small key that requests use, among nested values.

`theme` is the small key. Around it lie what real sessions hold: who the visitor is, a cart, pages
that were seen, filters of a table. Sizes are those of the whole session as compact JSON. In a
session of 64 KB the values are larger, not only more: a real one has a few fat keys.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import msgspec

__all__ = ["KEY", "SIZES", "label", "payload", "size_of"]

KEY = "theme"
"""The small key."""
SIZES = (200, 4096, 65536)
"""Bytes of the sessions, about."""

_WORDS = (
    "amber birch cedar dune ember fjord grove heath inlet jetty knoll larch marsh north oasis pine "
    "quay ridge shore tarn upland vale wharf yew"
).split()


def label(size: int) -> str:
    """Return a size for people."""
    return f"{size} B" if size < 1024 else f"{size // 1024} KB"


def size_of(values: Any) -> int:
    """Return the length of the compact JSON."""
    return len(msgspec.json.encode(values))


@cache
def payload(size: int) -> dict[str, Any]:
    """Return the values of a session of about that size: one object, not to be changed."""
    source = random.Random(size)
    values: dict[str, Any] = {
        "user": {"id": 48151, "name": "Ada Example", "roles": ["editor"]},
        KEY: theme(0, 0),
        "visits": 17,
    }
    fat = max(40, size // 16)
    names = iter(f"{word}{number or ''}" for number in range(100) for word in _WORDS)
    while (missing := size - size_of(values)) > 30:
        values[next(names)] = _value(source, min(fat, missing - 12))
    return values


def theme(visitor: int, turn: int) -> str:
    """Return a value of the small key, always of the same length, never the same again."""
    return f"dark-{visitor:04d}-{turn:06d}"


def _value(source: random.Random, size: int) -> Any:
    """Return a list of small dicts, or a single one, of about that size as JSON."""
    items: list[dict[str, Any]] = []
    while size_of(items) < size - 80:
        items.append(
            {
                "sku": f"{source.choice(_WORDS)}-{source.randrange(10**6)}",
                "count": source.randrange(1, 20),
                "price": source.randrange(100, 10**5) / 100,
                "tags": source.sample(_WORDS, 2),
                "gift": source.random() < 0.5,
            }
        )
    return items or {"seen": source.randrange(10**6), "sort": source.choice(_WORDS)}
