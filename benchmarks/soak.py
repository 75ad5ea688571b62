"""A mixed load with random faults for some minutes, and a look at what is left: `make soak`.

    python -m benchmarks.soak --minutes 10
    python -m benchmarks.soak --minutes 2 --store redis --seed 7

Several processes use sessions as visitors do (new ones, changes, logins, renewals, logouts, the
end of all sessions of a user, touches, sessions that run out), and one sweeps, with a clock that
is ahead. Meanwhile workers are killed and paused, the server behind the store is killed and hung,
and the network between them is cut, silenced, slowed down. In the end every change that was
acknowledged must be there exactly once, nothing may be alive after an acknowledged end, and the
handlers of all that has ended must have run. See `docs/reliability.md`.

It takes the time it is given and a little more, listens and connects on the loopback only, and
leaves nothing behind.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.campaigns.crew import Crew, crew
from benchmarks.campaigns.failover import shown
from benchmarks.campaigns.history import check
from benchmarks.campaigns.places import Missing, Place, extended, place
from sojourn.testing.proxy import Proxy

__all__ = ["main", "soak"]

STORES = ("sqlite", "directory", "redis", "postgresql", "mariadb")
LOOPBACK = {None, "", "localhost", "127.0.0.1", "::1"}

Fault = Callable[[random.Random], object]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak; one line of JSON for each store. Returns 1 where a promise was broken."""
    parser = argparse.ArgumentParser("python -m benchmarks.soak", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=10.0, help="for all stores together")
    parser.add_argument(
        "--store",
        action="append",
        help=f"one of {', '.join(STORES)}, whose servers are started here, and after that perhaps "
        "a query for its URL (redis?near=5); or a URL on this host",
    )
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=None)
    asked = parser.parse_args(arguments)
    seed = random.randrange(1 << 16) if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    stores = asked.store or [*STORES]
    failed = False
    for store in stores:
        try:
            report = soak(store, 60.0 * asked.minutes / len(stores), asked.workers, seed)
        except Missing as reason:
            report = {"store": store, "not run": str(reason), "passed": bool(not asked.store)}
        except AssertionError as fault:
            report = {"store": store, "faults": [str(fault)], "passed": False}
        failed |= not report["passed"]
        print(json.dumps(report), flush=True)
    return int(failed)


def soak(store: str, seconds: float, workers: int, seed: int) -> dict[str, Any]:
    """Load one store for that long, with faults; a report of what was found afterwards."""
    choose = random.Random(f"{seed} {store}")
    with contextlib.ExitStack() as stack:
        at = stack.enter_context(_place(store))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sojourn-")))
        proxy, url = None, at.url
        if at.port:
            proxy = stack.enter_context(Proxy(at.port))
            url = extended(at.url.replace(f":{at.port}", f":{proxy.port}"), "timeout=1")
        done: Counter[str] = Counter()
        with crew(url, folder, workers, seed) as running:
            faults = dict(_faults(at, running, proxy))
            # The last fault may take some seconds; so does the end.
            end = time.monotonic() + max(1.0, seconds - 5.0)
            while time.monotonic() < end:
                time.sleep(choose.uniform(0.2, 2.0))
                name = choose.choice([*faults])
                faults[name](choose)
                done[name] += 1
            # In health, so that the workers come to an end.
            time.sleep(1.0)
        report = shown(check(folder, at.url))
        return {
            "store": store,
            "about": at.about,
            "seed": seed,
            "faults made": dict(done),
            **report,
        }


@contextlib.contextmanager
def _place(store: str) -> Iterator[Place]:
    if store.partition("?")[0] in STORES:
        with place(store) as at:
            yield at
        return
    parts = urlsplit(store)
    if parts.hostname not in LOOPBACK:
        raise SystemExit(f"{store} is not on this host; a soak breaks things only where it runs")
    yield Place(parts.scheme, store, "as given; only workers are killed", port=0)


def _faults(at: Place, running: Crew, proxy: Proxy | None) -> Iterator[tuple[str, Fault]]:
    """Yield what can be done to this store, by name; each puts all right again."""

    def paused(choose: random.Random) -> None:
        with running.paused(choose):
            time.sleep(choose.uniform(0.5, 2.0))

    yield "worker killed", running.kill
    yield "worker paused", paused
    if at.kill is not None:

        def restarted(choose: random.Random) -> None:
            assert at.kill is not None
            assert at.start is not None
            at.kill()
            time.sleep(choose.uniform(0.0, 1.0))
            at.start()

        yield "server killed", restarted
    if at.hang is not None:

        def hung(choose: random.Random) -> None:
            assert at.hang is not None
            with at.hang():
                time.sleep(choose.uniform(0.2, 2.0))

        yield "server hung", hung
    if proxy is None:
        return

    def silent(choose: random.Random) -> None:
        with proxy.silence():
            time.sleep(choose.uniform(0.2, 2.0))

    def refusing(choose: random.Random) -> None:
        with proxy.refusing():
            time.sleep(choose.uniform(0.2, 1.0))

    def slow(choose: random.Random) -> None:
        proxy.latency, proxy.piece = choose.uniform(0.0, 0.02), choose.choice((None, 1, 50))
        time.sleep(choose.uniform(0.2, 2.0))
        proxy.latency, proxy.piece = 0.0, None

    def broken(choose: random.Random) -> None:
        for _ in range(choose.randrange(1, 20)):
            proxy.reset_reply(choose.choice((0, 0, choose.randrange(300))))
            time.sleep(choose.uniform(0.0, 0.1))
        proxy.disarm()

    yield "network cut", lambda choose: proxy.cut()
    yield "network silent", silent
    yield "network refusing", refusing
    yield "network slow", slow
    yield "replies broken off", broken


if __name__ == "__main__":
    sys.exit(main())
