"""The HTTP scenarios, on the example applications under real servers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sojourn.testing.scenarios import ScenarioFailed, check_restart, run_scenario, run_scenarios

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
SERVERS = {
    "wsgi": ("-m", "waitress", "--listen=127.0.0.1:0", "--threads=8", "app:app"),
    "asgi": ("-m", "uvicorn", "--port=0", "--no-access-log", "app:app"),
}


def example(start: Callable[..., Any], name: str, store: str) -> Any:
    """Start the example of that interface on that store."""
    path = os.pathsep.join(filter(None, [str(EXAMPLES / name), os.environ.get("PYTHONPATH")]))
    return start(*SERVERS[name], PYTHONPATH=path, SESSIONS=store)


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("store", ["memory://", "sqlite:///sessions.db"])
def test_scenarios(start: Callable[..., Any], name: str, store: str) -> None:
    """WSGI and ASGI, in memory and in a file: a browser finds the same behaviour."""
    run_scenarios(example(start, name, store).url)


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_restart(start: Callable[..., Any], name: str, by: signal.Signals) -> None:
    """A restart, also after kill -9, loses no session and revives none."""
    first = example(start, name, "sqlite:///sessions.db")

    def restart() -> str:
        first.end(by)
        return str(example(start, name, "sqlite:///sessions.db").url)

    check_restart(first.url, restart)


def test_wsgi_and_asgi_share_a_file(start: Callable[..., Any]) -> None:
    """A visitor moves from the one to the other, both running, and nothing is lost."""
    first = example(start, "wsgi", "sqlite:///sessions.db")
    second = example(start, "asgi", "sqlite:///sessions.db")

    check_restart(first.url, lambda: str(second.url))
    check_restart(second.url, lambda: str(first.url))
