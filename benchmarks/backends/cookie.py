"""The record itself in the cookie, sealed. Nothing is kept here, so there is no floor."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.subjects import Backend, Missing

__all__ = ["fresh", "running"]


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """Find out whether it can be used."""
    try:
        import sojourn.stores.cookie  # noqa: F401
    except ImportError as error:
        raise Missing(f"there is no cookie store ({error})") from None
    yield


@contextmanager
def fresh(_: None, folder: Path) -> Iterator[Backend]:
    """Yield one with a new key."""
    keys = folder / "keys.txt"
    keys.write_text(secrets.token_urlsafe(32) + "\n", encoding="utf-8")
    yield Backend("cookie", f"cookie:///{keys}")
