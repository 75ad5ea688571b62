"""Processes of a campaign: started as modules of this package, always ended by their id."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["finish", "kill", "start", "started"]

ROOT = Path(__file__).parent.parent.parent


def start(module: str, *arguments: object) -> subprocess.Popen[str]:
    """Run `benchmarks.campaigns.<module>` with those arguments, as JSON."""
    return subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.campaigns.{module}", json.dumps(arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def started(module: str, calls: list[tuple[Any, ...]]) -> Iterator[list[subprocess.Popen[str]]]:
    """Run several; whatever happens, none is left behind."""
    running = [start(module, *arguments) for arguments in calls]
    try:
        yield running
    finally:
        for process in running:
            kill(process)


def finish(process: subprocess.Popen[str]) -> Any:
    """Wait for its end; what it printed last, as JSON."""
    out, _ = process.communicate()
    if process.returncode != 0:
        raise AssertionError(f"{process.args!r} ended with {process.returncode}: {out[-2000:]}")
    return json.loads(out.splitlines()[-1]) if out.strip() else None


def kill(process: subprocess.Popen[str]) -> None:
    """End it with SIGKILL, if it has not ended by itself."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def arguments() -> list[Any]:
    """Return what `start` was given, in the process that it started."""
    given: list[Any] = json.loads(sys.argv[1])
    return given
