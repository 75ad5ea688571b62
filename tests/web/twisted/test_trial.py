"""Twisted's own tests of its web server pass on our classes, where they pass on its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("trial_worker.py")
SOURCE = Path(__file__).parents[3] / "src"


def start(which: str, result: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(WORKER), which, str(result)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_twisted_s_own_web_tests(tmp_path: Path) -> None:
    """With Site, Session and Request replaced by ours none fails that passes on the stock ones."""
    outcomes = {}
    running = {}
    for which in ("stock", "ours"):
        (tmp_path / which).mkdir()
        running[which] = start(which, tmp_path / which / "result.json")
    for which, process in running.items():
        _, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors.decode()[-2000:]
        outcomes[which] = json.loads((tmp_path / which / "result.json").read_bytes())
    stock, ours = outcomes["stock"], outcomes["ours"]

    worse = {
        name: ours.get(name) for name in stock if stock[name] == "good" != ours.get(name, "missing")
    }

    assert not worse, worse
    # All of it was found, and our classes were in their place.
    assert len(stock) > 800
    assert "twisted.web.test.test_web.SessionTests.test_expire" in stock
    assert ours["sojourn"] == "in place"
