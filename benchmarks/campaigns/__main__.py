"""Run campaigns: `python -m benchmarks.campaigns adds races --scale 0.1`."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.campaigns.places import Missing

__all__ = ["CAMPAIGNS", "main"]

CAMPAIGNS: dict[str, tuple[str, str, dict[str, int]]] = {
    "adds": (
        "adds:adds",
        "adds of eight processes to one session",
        dict.fromkeys(("sqlite", "directory", "redis", "postgresql", "mariadb"), 10_000),
    ),
    "races": (
        "races:races",
        "logouts against late writes, renewals and touches",
        {
            "memory": 100_000,
            "sqlite": 100_000,
            "redis": 100_000,
            "postgresql": 20_000,
            "mariadb": 10_000,
            "directory": 5_000,
        },
    ),
    "kills": (
        "kills:kill_writers",
        "kill -9 of writing processes",
        {"sqlite": 1_000, "directory": 1_000},
    ),
    "pages": (
        "pages:pages",
        "records listed in pages, of all and by user",
        {
            "memory": 1_000_000,
            "sqlite": 1_000_000,
            "redis": 200_000,
            "postgresql": 200_000,
            "mariadb": 100_000,
            "directory": 50_000,
        },
    ),
    "servers": (
        "failover:kill_servers",
        "kill -9 of the server under load",
        {"redis": 20, "postgresql": 20, "mariadb": 20},
    ),
    "failover": (
        "failover:fail_over",
        "kill -9 of a primary that has a replica, under load",
        {"sentinel": 5, "cluster": 5},
    ),
    "lag": (
        "failover:fail_over_behind",
        "the same, where the replica heard nothing for half a second before",
        {"sentinel": 5, "cluster": 5},
    ),
    "moves": (
        "moves:moves",
        "moves to another store under load, with kill -9 of all that takes part",
        {
            "sqlite-postgresql": 5,
            "redis-postgresql": 5,
            "sqlite-mariadb": 5,
            "redis-mariadb": 5,
        },
    ),
}
"""By name: the function, what is counted, and how much of it on each store."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; print one line of JSON for each store."""
    about = "\n".join(f"  {name}: {what} {counts}" for name, (_, what, counts) in CAMPAIGNS.items())
    parser = argparse.ArgumentParser(
        "python -m benchmarks.campaigns",
        description=__doc__,
        epilog=f"campaigns, with their full counts:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", default=[*CAMPAIGNS], metavar="campaign")
    parser.add_argument(
        "--store",
        action="append",
        help="only this one; may be given again, and have a query for its URL: redis?near=5",
    )
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full counts")
    parser.add_argument("--seed", type=int, default=1, help="of what is left to chance")
    asked = parser.parse_args(arguments)
    unknown = set(asked.names) - set(CAMPAIGNS)
    if unknown:
        parser.error(f"no such campaign: {', '.join(sorted(unknown))}")
    failed = False
    for name in asked.names:
        where, _, counts = CAMPAIGNS[name]
        module, _, function = where.partition(":")
        run: Callable[..., dict[str, Any]] = getattr(
            importlib.import_module(f"benchmarks.campaigns.{module}"), function
        )
        seed = {"seed": asked.seed} if "seed" in inspect.signature(run).parameters else {}
        for store in asked.store or counts:
            if store.partition("?")[0] not in counts:
                continue
            count = counts[store.partition("?")[0]]
            try:
                report = run(store, max(1, round(count * asked.scale)), **seed)
            except Missing as reason:
                report = {"store": store, "not run": str(reason)}
            except AssertionError as fault:
                report = {"store": store, "fault": str(fault), "passed": False}
            failed |= not report.get("passed", True)
            print(json.dumps({"campaign": name, **report}), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
