"""Many `add`s of several processes on one session: none may be lost, none counted twice."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.campaigns.places import Place, place
from benchmarks.campaigns.processes import arguments, finish, started
from sojourn import SessionManager

__all__ = ["adds"]


def adds(kind: str, count: int = 10_000, processes: int = 8) -> dict[str, Any]:
    """Add 1 `count` times in all, as requests of their own, from that many processes."""
    with place(kind) as at:
        return _adds(at, count, processes)


def _adds(at: Place, count: int, processes: int) -> dict[str, Any]:
    manager = SessionManager(at.url)
    session = manager.session("")
    session["n"] = 0
    cookie = f"id={manager.commit(session).token}"
    shares = [count // processes + (one < count % processes) for one in range(processes)]
    with started("adds", [(at.url, cookie, share) for share in shares]) as running:
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()
        began = time.monotonic()
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [finish(process) for process in running]
        took = time.monotonic() - began
    acknowledged = sum(one["acknowledged"] for one in told)
    found = manager.session(cookie)["n"]
    manager.close()
    return {
        "store": at.kind,
        "about": at.about,
        "processes": processes,
        "asked": count,
        "acknowledged": acknowledged,
        "found": found,
        "lost": acknowledged - found,
        "merged again": sum(one["retries"] for one in told),
        "seconds": round(took, 1),
        "passed": acknowledged == found == count,
    }


def _work(url: str, cookie: str, share: int) -> Iterator[Any]:
    manager = SessionManager(url)
    manager.session(cookie).get("n")
    yield "ready"
    sys.stdin.readline()
    acknowledged = retries = 0
    for _ in range(share):
        session = manager.session(cookie)
        session.add("n")
        done = manager.commit(session)
        acknowledged += done.wrote and not done.dropped
        retries += done.retries
    manager.close()
    yield {"acknowledged": acknowledged, "retries": retries}


if __name__ == "__main__":
    for said in _work(*arguments()):
        print(json.dumps(said), flush=True)
