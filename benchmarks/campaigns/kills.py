"""Writing processes that are killed, by the tests' own functions with larger numbers."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.servers import helpers

__all__ = ["kill_writers"]

ROUNDS = 25
"""In one folder; then another is begun, since each round reads all that is there."""


def kill_writers(kind: str, count: int = 1000, writers: int = 4, seed: int = 1) -> dict[str, Any]:
    """Kill that many writing processes, `writers` at a time, on SQLite or a directory."""
    began = time.monotonic()
    rounds = max(1, count // writers)
    done = acknowledged = 0
    while done < rounds:
        some = min(ROUNDS, rounds - done)
        with tempfile.TemporaryDirectory(prefix="sojourn-") as folder:
            if kind == "sqlite":
                survive = helpers("test_sqlite_processes").kill_writers
                acknowledged += survive(Path(folder, "a.db"), some * writers, writers, seed + done)
            else:
                survive = helpers("test_directory_kills").survive_kills
                acknowledged += sum(survive(Path(folder), some, writers, seed + done).values())
        done += some
    return {
        "store": kind,
        "seed": seed,
        "processes killed": rounds * writers,
        "at a time": writers,
        "acknowledged": acknowledged,
        # What is lost or cannot be read raises.
        "lost": 0,
        "seconds": round(time.monotonic() - began, 1),
        "passed": True,
    }
