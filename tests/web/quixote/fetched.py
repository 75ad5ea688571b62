"""Session3 itself, fetched for the tests: nothing here depends on it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def session3_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where it lies. Where `SOJOURN_TEST_SESSION3` is set, it must be had."""
    path = str(tmp_path_factory.mktemp("session3"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    try:
        subprocess.run(
            [*pip, "--no-deps", "--retries", "1", "--target", path, "session3==3.4.1"],
            check=True,
            capture_output=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError) as error:
        if os.environ.get("SOJOURN_TEST_SESSION3"):
            pytest.fail(f"SOJOURN_TEST_SESSION3 is set, and it cannot be fetched: {error}")
        pytest.skip("session3 NOT TESTED: it cannot be fetched")
    return path


@pytest.fixture
def session3(session3_path: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of its manager and its session."""
    monkeypatch.syspath_prepend(session3_path)
    yield importlib.import_module("session3.SessionManager")
    for name in [name for name in sys.modules if name.partition(".")[0] == "session3"]:
        del sys.modules[name]
