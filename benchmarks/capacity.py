"""How much memory a stored session takes, and how long the memory store holds others up.

Each figure comes from a process of its own that makes so many sessions through the WSGI
middleware, as visitors do (each with an address and an agent), and looks at itself:

- bytes by the resident set, before and after: what the machine has to have;
- bytes by `tracemalloc`: what Python asked for, without what the allocator rounds up;
- a full collection of the garbage collector with all of them alive;
- one call of `due`: with nothing due, and with 1,000 that are.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tracemalloc
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from benchmarks.payloads import payload

__all__ = ["Held", "report"]


@dataclass(frozen=True)
class Held:
    """What so many sessions in memory cost.

    Attributes:
        sessions: how many.
        resident: bytes for each, by the resident set.
        allocated: bytes for each, by tracemalloc; of another process, of 100,000 at most.
        bare: bytes for each, by the resident set, with neither address nor agent.
        collection: milliseconds of a full collection; and how much longer than without them.
        due_none: microseconds of a call of `due` with nothing due.
        due_many: milliseconds of a call that claims so many.
        claimed: how many.
    """

    sessions: int
    resident: float
    allocated: float
    bare: float
    collection: float
    collection_before: float
    due_none: float
    due_many: float
    claimed: int


def report(writer: Any, count: int) -> list[Held]:
    """Measure in processes of their own, and print."""
    main = _child("resident", count)
    held = Held(
        sessions=count,
        resident=main["resident"],
        allocated=_child("traced", min(count, 100_000))["allocated"],
        bare=_child("anonymous", count)["resident"],
        collection=main["collection"],
        collection_before=main["collection_before"],
        due_none=main["due_none"],
        due_many=main["due_many"],
        claimed=main["claimed"],
    )
    writer.table(
        f"Memory store, {count:,} sessions of 200 B",
        ["", "figure"],
        [
            ["bytes for each, resident set", f"{held.resident:,.0f}"],
            ["... without address and agent", f"{held.bare:,.0f}"],
            ["bytes for each, tracemalloc", f"{held.allocated:,.0f}"],
            [
                "full collection, ms (with an empty store)",
                f"{held.collection:.1f} ({held.collection_before:.1f})",
            ],
            ["`due` with nothing due, µs", f"{held.due_none:.1f}"],
            [f"`due` that claims {held.claimed:,}, ms", f"{held.due_many:.2f}"],
        ],
    )
    return [held]


def _child(what: str, count: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.capacity", what, str(count)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"python -m benchmarks.capacity {what} {count} failed:\n{done.stderr}")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def _resident() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        # The peak; in this process nothing is let go of meanwhile, so it is the same.
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _fill(sessions: Any, numbers: range, *, client: bool) -> None:
    """Let new visitors come, each with values, address and agent that are objects of its own."""
    from sojourn.web.wsgi import KEY, SessionMiddleware

    template = payload(200)

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        return None

    def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ[KEY].update(template)
        start_response("200 OK", [])
        return [b""]

    app = SessionMiddleware(view, sessions)
    agent = b"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
    environ = {"wsgi.url_scheme": "http", "HTTP_COOKIE": ""}
    for number in numbers:
        if client:
            environ["REMOTE_ADDR"] = f"192.0.{number >> 8 & 255}.{number & 255}"
            environ["HTTP_USER_AGENT"] = agent.decode()
        app(dict(environ), start_response)


def _collection() -> float:
    times = []
    for _ in range(3):
        start = perf_counter()
        gc.collect()
        times.append((perf_counter() - start) * 1000)
    return min(times)


def _measure(what: str, count: int) -> dict[str, Any]:
    from sojourn.manager import SessionManager

    now = [1_750_000_000.0]
    sessions = SessionManager("memory://", idle_timeout=1800, clock=lambda: now[0])
    early = min(1000, max(1, count // 10))
    _fill(SessionManager("memory://"), range(1000), client=True)
    before_collection = _collection()
    if what == "traced":
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
    else:
        before = _resident()
    _fill(sessions, range(early), client=what != "anonymous")
    # The others come over half an hour, as they would.
    step = max(1, (count - early) // 1000)
    for first in range(early, count, step):
        now[0] += 1.5
        _fill(sessions, range(first, min(count, first + step)), client=what != "anonymous")
    if what == "traced":
        return {"allocated": (tracemalloc.get_traced_memory()[0] - before) / count}
    gc.collect()
    taken = _resident() - before
    store = sessions.store
    assert store.count() == count
    nothing = []
    for _ in range(5):
        start = perf_counter()
        found = store.due(1_750_000_000.0 + 1799, 60.0, early)
        nothing.append((perf_counter() - start) * 1e6)
        assert not found
    start = perf_counter()
    claimed = store.due(1_750_000_000.0 + 1800.5, 60.0, early)
    many = (perf_counter() - start) * 1000
    assert len(claimed) == early
    return {
        "resident": taken / count,
        "collection": _collection(),
        "collection_before": before_collection,
        "due_none": min(nothing),
        "due_many": many,
        "claimed": early,
    }


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]))))
