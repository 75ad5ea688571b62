"""Moves from one store to another under load, in which all that takes part is killed by chance.

The workers, and what is looked for afterwards, are those of `tests/stores/test_moving_load.py`;
there the kills come at chosen points, here anywhere, and the servers are killed as well.
"""

from __future__ import annotations

import contextlib
import importlib
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from benchmarks.campaigns.places import Missing, Place, place
from sojourn import SessionManager
from sojourn.drivers import run
from sojourn.errors import StoreUnavailable
from sojourn.stores import open_store, phases

__all__ = ["moves"]

WAY = ("new leads", "old leads", "new leads", "old", "new leads", "new")
"""The phases that a move is led to, one after the other: there, back, and there for good."""
HARMS = 3
"""Kills while it is led to each of them."""
BYSTANDERS = 1000
SHARED = 8


def moves(kind: str, count: int = 5, workers: int = 3, seed: int = 1) -> dict[str, Any]:
    """Move so many times, each time between two new stores; `kind` is "sqlite-postgresql" or so."""
    began = time.monotonic()
    old_kind, _, new_kind = kind.partition("-")
    found, killed, about = Counter[str](), Counter[str](), ""
    for number in range(seed, seed + count):
        with contextlib.ExitStack() as stack:
            old, new = (stack.enter_context(place(one)) for one in (old_kind, new_kind))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sojourn-")))
            about = f"{old.about}; {new.about}"
            move = _Move(old, new, folder, workers, number)
            stack.callback(move.close)
            found.update(move.go())
            killed.update(move.killed)
    return {
        "store": kind,
        "about": about,
        "seed": seed,
        "moves": count,
        "killed": dict(sorted(killed.items())),
        **found,
        "seconds": round(time.monotonic() - began, 1),
        "passed": not (found["logged out"] or found["lost"] or found["risen"]),
    }


class _Move:
    """One move, and who uses the sessions meanwhile."""

    def __init__(self, old: Place, new: Place, folder: Path, workers: int, seed: int) -> None:
        try:
            self._load: Any = importlib.import_module("tests.stores.test_moving_load")
        except ImportError as error:
            raise Missing(f"the tests cannot be imported ({error})") from None
        self.killed: Counter[str] = Counter()
        self._choose = random.Random(seed)
        self._places = (old, new)
        self._kept = self._load.fill(old.url, BYSTANDERS)
        self._shared = _some_sessions(old.url)
        (folder / "shared").write_text("\n".join(self._shared))
        url = f"moving:?old={quote(old.url, safe='')}&new={quote(new.url, safe='')}"
        self._stores = open_store(old.url), open_store(new.url)
        self._crew = self._load.Workers(url, folder, workers, seed)

    def close(self) -> None:
        """End what was started."""
        self._crew.end()
        for store in self._stores:
            store.close()

    def go(self) -> Counter[str]:
        """Lead it all the way; return what was done, and what went wrong."""
        self._crew.wait_until_at_work()
        for phase in WAY:
            self._lead_to(phase)
        # At work with the new store alone.
        time.sleep(1.0)
        if any(process.poll() is not None for process in self._crew.processes):
            raise AssertionError("a worker ended by itself")
        self._crew.end()
        found: Counter[str] = self._load.judge(
            self._crew, self._places[1].url, self._kept, self._shared
        )
        del found["kills"]
        return found

    def _lead_to(self, target: str) -> None:
        """Run `sojourn move` until that is the phase, whatever happens to it and to the others."""
        end = time.monotonic() + 120
        harms, said = HARMS, ""
        while (phase := self._phase()) != target or harms:
            if time.monotonic() > end:
                raise AssertionError(f"no way from {phase!r} to {target!r}: {said[-500:]}")
            if phase == target:
                harms -= 1
                self._kill(None)
                continue
            # After a step back that did not reach the new store, that is what an operator is told.
            again = "sojourn move back" in said
            mover = _mover(phase, target, again, *(one.url for one in self._places))
            try:
                if harms:
                    harms -= 1
                    time.sleep(self._choose.uniform(0.0, 5.0))
                    self._kill(mover)
                said = mover.communicate(timeout=100)[0].decode()
            finally:
                mover.kill()
                mover.communicate()

    def _phase(self) -> str:
        end = time.monotonic() + 30
        while True:
            try:
                return str(run(phases.state(), self._stores).phase)
            except StoreUnavailable:
                # A connection from before a kill.
                if time.monotonic() > end:
                    raise

    def _kill(self, mover: subprocess.Popen[bytes] | None) -> None:
        """kill -9 one of all that take part; a worker or a server comes back."""
        names = ["worker", *(name for name, at in self._servers().items() if at.kill is not None)]
        if mover is not None and mover.poll() is None:
            names.append("sojourn move")
        name = self._choose.choice(names)
        self.killed[name] += 1
        if name == "worker":
            self._crew.kill_one()
        elif name == "sojourn move":
            assert mover is not None
            mover.kill()
        else:
            at = self._servers()[name]
            assert at.kill is not None
            assert at.start is not None
            at.kill()
            time.sleep(self._choose.uniform(0.0, 1.0))
            at.start()

    def _servers(self) -> dict[str, Place]:
        return dict(zip(("old server", "new server"), self._places, strict=True))


def _some_sessions(url: str) -> list[str]:
    """Return the cookies of sessions that all workers use."""
    manager = SessionManager(url)
    with contextlib.closing(manager):
        cookies = []
        for _ in range(SHARED):
            session = manager.session()
            session["n"] = 0
            cookies.append(str(manager.commit(session).token))
        return cookies


def _mover(phase: str, target: str, back: bool, *urls: str) -> subprocess.Popen[bytes]:
    """Begin a step that leads from a phase to another; or a step back."""
    forward = not back and phases.PHASES.index(phase) < phases.PHASES.index(target)
    # Without --yes it does not go further than to "new leads".
    final = ["--yes"] if target == phases.PHASES[-1] else []
    words = ["advance", *final] if forward else ["back"]
    return subprocess.Popen(
        [sys.executable, "-m", "sojourn.cli", "move", *words, *urls],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
