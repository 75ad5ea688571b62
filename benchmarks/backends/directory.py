"""Files: a bare read, and a bare write to a temporary file that is renamed over the old one.

No fsync on either side, which is the directory store's default. Renaming over a file varies a
factor of three between moments on ext4: read the ratios of writes as rough.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.subjects import Backend, Missing, Raw

__all__ = ["fresh", "running"]


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """Find out whether the store can be used."""
    try:
        import sojourn.stores.directory  # noqa: F401
    except ImportError as error:
        raise Missing(f"the directory store cannot be used ({error})") from None
    yield


@contextmanager
def fresh(_: None, folder: Path) -> Iterator[Backend]:
    """Yield new folders."""
    files = folder / "files"
    files.mkdir()
    prefix = f"{files}{os.sep}"

    def write(key: str, data: bytes) -> None:
        with open(f"{prefix}{key}.new", "wb") as file:
            file.write(data)
        os.replace(f"{prefix}{key}.new", prefix + key)

    def read(key: str) -> bytes:
        with open(prefix + key, "rb") as file:
            return file.read()

    raw = Raw("file", write, read, write)
    yield Backend("directory", f"directory:///{folder / 'sojourn'}", (raw,))
