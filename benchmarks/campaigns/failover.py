"""Servers that are killed under load: one that comes back, and a primary that has a replica."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.campaigns.crew import crew
from benchmarks.campaigns.history import Report, check, read
from benchmarks.campaigns.places import Place, place

__all__ = ["fail_over", "kill_servers", "shown"]


def kill_servers(kind: str, count: int = 20, workers: int = 3, seed: int = 1) -> dict[str, Any]:
    """Kill a server that many times under load, and start it again each time."""
    with place(kind) as at, tempfile.TemporaryDirectory(prefix="sojourn-") as folder:
        began = time.monotonic()
        _kill_again_and_again(at, at.url, Path(folder), count, workers, seed)
        report = check(Path(folder), at.url)
        return {
            "store": kind,
            "about": at.about,
            "seed": seed,
            "kills": count,
            "workers": workers,
            **shown(report),
            "seconds": round(time.monotonic() - began, 1),
        }


def fail_over(kind: str, count: int = 5, workers: int = 3, seed: int = 1) -> dict[str, Any]:
    """Kill a primary that many times under load, wait until its replica has taken over.

    The URL says `wait=1`: a logout is reported when the replica has it.
    """
    with place(kind) as at, tempfile.TemporaryDirectory(prefix="sojourn-") as folder:
        began = time.monotonic()
        url = f"{at.url}?wait=1"
        away = _kill_again_and_again(at, url, Path(folder), count, workers, seed, settle=5.0)
        report = check(Path(folder), url, loses=True)
        found = shown(report)
        # Redis promises to keep no change that its replica had not got, but WAIT was asked for.
        found["passed"] = found["passed"] and report.risen == 0
        if kind == "sentinel":
            # In a cluster the other shards go on, so there it says nothing.
            found["seconds without a change, at most"] = round(away, 1)
        return {
            "store": kind,
            "about": f"{at.about}; wait=1 for ends",
            "seed": seed,
            "kills": count,
            "workers": workers,
            **found,
            "seconds": round(time.monotonic() - began, 1),
        }


def _kill_again_and_again(
    at: Place, url: str, folder: Path, count: int, workers: int, seed: int, settle: float = 0.0
) -> float:
    """Kill and start; returns for how long no worker got anything done, at most."""
    assert at.kill is not None
    assert at.start is not None
    choose = random.Random(seed)
    longest = 0.0
    with crew(url, folder, workers, seed):
        for _ in range(count):
            time.sleep(0.3 + choose.random())
            at.kill()
            killed = time.time()
            # A replica takes over meanwhile, where there is one.
            time.sleep(settle)
            at.start()
            longest = max(longest, _until_changed(folder, killed) - killed)
        time.sleep(0.5)
    return longest


def _until_changed(folder: Path, after: float) -> float:
    """Wait until a worker was told of a change that it asked for after that; return when."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        lines = read(folder)
        asked = {line["id"] for line in lines if "id" in line and line["at"] > after}
        for line in lines:
            if line.get("ack") in asked:
                return float(line["at"])
        time.sleep(0.1)
    raise AssertionError("no worker got anything done in 60 s after a kill")


def shown(report: Report) -> dict[str, Any]:
    """Return a report as plain values."""
    return {
        "counts": dict(sorted(report.counts.items())),
        "lost": report.lost,
        "risen": report.risen,
        "faults": report.faults[:20],
        "passed": not report.faults,
    }
