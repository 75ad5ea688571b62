"""The workers of a campaign: some that use sessions, one that sweeps; to be killed and replaced."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.campaigns.processes import kill, start

__all__ = ["Crew", "crew"]

AHEAD = 58.0
"""How far the clock of the sweeper is ahead: nearly as far as it may be."""


class Crew:
    """Processes by name; one that is killed is replaced by one with another name."""

    def __init__(self, url: str, folder: Path, seed: int, pace: float) -> None:
        """Have none yet."""
        self._url, self._folder, self._seed, self._pace = url, str(folder), seed, pace
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._started = 0

    def start(self, role: str) -> None:
        """Start one that works or sweeps, and wait until it does."""
        self._started += 1
        name = f"{role}{self._started}"
        sweeps = role == "sweep"
        process = start(
            "worker",
            *(role, self._url, self._folder, name, self._seed),
            *(0.5 if sweeps else self._pace, AHEAD if sweeps else 0.0),
        )
        self._running[name] = process
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", f"{name} did not come up"

    def kill(self, choose: random.Random) -> str:
        """Kill one and replace it; returns which."""
        self._look()
        name = choose.choice([*self._running])
        process = self._running.pop(name)
        kill(process)
        self.start(name.rstrip("0123456789"))
        return name

    @contextlib.contextmanager
    def paused(self, choose: random.Random) -> Iterator[str]:
        """Stop one in the midst of what it does, and let it go on afterwards."""
        self._look()
        name = choose.choice([*self._running])
        self._running[name].send_signal(signal.SIGSTOP)
        try:
            yield name
        finally:
            self._running[name].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Let all come to their end, each after the request that it is at."""
        self._look()
        for process in self._running.values():
            assert process.stdin is not None
            process.stdin.close()
        for process in self._running.values():
            process.wait(60)
        self._look(over=True)

    def end(self) -> None:
        """Leave none behind."""
        for process in self._running.values():
            kill(process)

    def _look(self, over: bool = False) -> None:
        # One that failed by itself would leave less of a load than the report says.
        for name, process in self._running.items():
            code = process.poll()
            assert code == 0 if over else code is None, f"{name} ended by itself with {code}"


@contextlib.contextmanager
def crew(url: str, folder: Path, workers: int, seed: int, pace: float = 0.002) -> Iterator[Crew]:
    """Keep that many workers and a sweeper at work; at the end they have ended."""
    running = Crew(url, folder, seed, pace)
    try:
        for _ in range(workers):
            running.start("work")
        running.start("sweep")
        yield running
        running.stop()
    finally:
        running.end()
