"""Logout against late requests of the same session, again and again: nothing may rise.

In a trial one caller logs the visitor out, and another commits a request that had opened the
session before: a write, a renewal, or a touch. Callers are two processes, or two threads where
the store is the memory of one. Both go through a batch of sessions in step with the clock, each
with a random delay of its own, so that now one is first and now the other; how often each was is
in the report.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import Counter
from functools import partial
from typing import Any

from benchmarks.campaigns.places import place
from benchmarks.campaigns.processes import arguments, started
from sojourn import SessionManager
from sojourn.core.record import ENDED
from sojourn.core.token import parse_token

__all__ = ["races"]

BATCH = 250
KINDS = ("write", "renewal", "touch")


def races(kind: str, trials: int, seed: int = 1) -> dict[str, Any]:
    """Run that many trials on a store; a report with how many sessions rose."""
    began = time.monotonic()
    if kind == "memory":
        manager = SessionManager("memory://")
        counts = _batches(manager, trials, seed, partial(_threads, manager))
        about = "two threads"
    else:
        with place(kind) as at:
            manager = SessionManager(at.url)
            with started("races", [(at.url,)] * 2) as (one, other):
                counts = _batches(manager, trials, seed, partial(_pair, one, other))
            about = f"{at.about}; two processes"
    manager.close()
    return {
        "store": kind,
        "about": about,
        "seed": seed,
        "trials": trials,
        **counts,
        "seconds": round(time.monotonic() - began, 1),
        "passed": counts["risen"] == 0 and counts["cookies that open it"] == 0,
    }


def _batches(manager: SessionManager, trials: int, seed: int, run: Any) -> dict[str, int]:
    choose = random.Random(seed)
    total: Counter[str] = Counter({"risen": 0, "cookies that open it": 0})
    while trials:
        size = min(trials, BATCH)
        trials -= size
        began = time.monotonic()
        cookies = [_made(manager) for _ in range(size)]
        step = (time.monotonic() - began) / size
        late, told = run(cookies, choose.randrange(1 << 30), step)
        for cookie, outcome, ended in zip(cookies, late, told, strict=True):
            kept = outcome.startswith("kept")
            total["the late request was first" if kept else "the logout was first"] += 1
            token = parse_token(cookie[3:])
            assert token is not None
            record = manager.store.load(token.sid)
            over = record is None or record.status == ENDED
            total["risen"] += not (over and ended == "ended")
            for one in {cookie, f"id={outcome.partition(' ')[2]}"}:
                total["cookies that open it"] += not manager.session(one).is_new
            manager.store.delete(token.sid)
    return dict(total)


def _made(manager: SessionManager) -> str:
    session = manager.session("")
    session["n"] = 1
    session.login("alice")
    return f"id={manager.commit(session).token}"


def _open(manager: SessionManager, cookies: list[str], side: int, order: int) -> list[Any]:
    """Open all sessions of a batch, and do to each what this side does."""
    opened = []
    for number, cookie in enumerate(cookies):
        session = manager.session(cookie)
        session.get("n")
        if side:
            session.end("user")
        else:
            match KINDS[(number + order) % 3]:
                case "write":
                    session["late"] = number
                case "renewal":
                    session.renew()
                case _:
                    session.touch()
        opened.append(session)
    return opened


def _commit(
    manager: SessionManager, opened: list[Any], side: int, order: int, start: float, step: float
) -> list[str]:
    told = []
    choose = random.Random(order + side)
    for number, session in enumerate(opened):
        moment = start + step * (2 * number + choose.random())
        while time.monotonic() < moment:
            time.sleep(0)
        done = manager.commit(session)
        if side:
            told.append("ended" if done.cleared else "nothing")
        else:
            told.append(f"kept {done.token or ''}" if done.wrote and not done.dropped else "gone")
    return told


def _threads(
    manager: SessionManager, cookies: list[str], order: int, step: float
) -> list[list[str]]:
    told: list[list[str]] = [[], []]
    opened = [_open(manager, cookies, side, order) for side in (0, 1)]
    start = time.monotonic() + 0.001

    def work(side: int) -> None:
        told[side] = _commit(manager, opened[side], side, order, start, step)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(side,)) for side in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    return told


def _pair(one: Any, other: Any, cookies: list[str], order: int, step: float) -> list[list[str]]:
    for side, process in enumerate((one, other)):
        process.stdin.write(json.dumps([side, cookies, order, step]) + "\n")
        process.stdin.flush()
    for process in (one, other):
        process.stdout.readline()
    start = time.monotonic() + 0.002
    for process in (one, other):
        process.stdin.write(f"{start}\n")
        process.stdin.flush()
    return [json.loads(process.stdout.readline()) for process in (one, other)]


def _work(url: str) -> None:
    manager = SessionManager(url)
    for line in sys.stdin:
        side, cookies, order, step = json.loads(line)
        opened = _open(manager, cookies, side, order)
        print("ready", flush=True)
        start = float(sys.stdin.readline())
        print(json.dumps(_commit(manager, opened, side, order, start, step)), flush=True)


if __name__ == "__main__":
    _work(*arguments())
