"""Servers that are killed under load: one that comes back, and a primary that has a replica."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.campaigns.crew import crew
from benchmarks.campaigns.history import Report, check, read
from benchmarks.campaigns.places import Place, extended, place

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


def fail_over(
    kind: str, count: int = 5, lag: float = 0.0, workers: int = 3, seed: int = 1
) -> dict[str, Any]:
    """Kill a primary that many times under load, and wait until its replica has taken over.

    The URL says `wait=1`: an end is reported when the replica has it.

    Args:
        kind: "sentinel" or "cluster".
        count: of kills.
        lag: for so many seconds before, the replica hears nothing from the primary.
        workers: how many, besides the one that sweeps.
        seed: of all that is random.
    """
    with place(kind) as at, tempfile.TemporaryDirectory(prefix="sojourn-") as folder:
        began = time.monotonic()
        url = extended(at.url, "wait=1")
        kills = _kill_again_and_again(at, url, Path(folder), count, workers, seed, 5.0, lag)
        report = check(Path(folder), url, loses=True)
        found = shown(report)
        # Redis does not promise to keep what the replica had not got. What it had, it does.
        stray = [
            moment
            for moment in report.lost_at
            if not any(kill - lag - 0.2 <= moment <= kill + 0.2 for kill, _ in kills)
        ]
        found["lost that the replica had"] = len(stray)
        found["missed by an end of all"] = report.missed
        # WAIT was asked for, so no end is among what may be lost.
        found["passed"] = found["passed"] and report.risen == 0 and not stray
        if at.kind == "sentinel":
            # In a cluster the other shards go on, so there it says nothing.
            longest = max(changed - kill for kill, changed in kills)
            found["seconds without a change, at most"] = round(longest, 1)
        return {
            "store": kind,
            "about": f"{at.about}; wait=1 for ends",
            "seed": seed,
            "kills": count,
            "replica cut off before, seconds": lag,
            "workers": workers,
            **found,
            "seconds": round(time.monotonic() - began, 1),
        }


def fail_over_behind(kind: str, count: int = 5, seed: int = 1) -> dict[str, Any]:
    """Kill primaries whose replica has missed half a second."""
    return fail_over(kind, count, lag=0.5, seed=seed)


def _kill_again_and_again(
    at: Place,
    url: str,
    folder: Path,
    count: int,
    workers: int,
    seed: int,
    settle: float = 0.0,
    lag: float = 0.0,
) -> list[tuple[float, float]]:
    """Kill and start; returns when it was killed and when the first change came after it."""
    assert at.kill is not None
    assert at.start is not None
    choose = random.Random(seed)
    kills = []
    with crew(url, folder, workers, seed):
        for _ in range(count):
            time.sleep(0.3 + choose.random())
            if lag:
                assert at.lose is not None
                at.lose(lag)
            else:
                at.kill()
            killed = time.time()
            # A replica takes over meanwhile, where there is one.
            time.sleep(settle)
            at.start()
            kills.append((killed, _until_changed(folder, killed)))
        time.sleep(0.5)
    return kills


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
