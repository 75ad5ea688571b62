"""The short forms of `benchmarks/life_campaigns.py`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from sojourn import SessionManager
from sojourn.stores import open_store
from sojourn.stores.memory import MemoryStore

from .conftest import STORES, url_of

SHARED = STORES[1:]
"""Those that processes share."""

# The benchmarks are no package of the path that tests are found by.
_FILE = Path(__file__).parents[2] / "benchmarks" / "life_campaigns.py"
_spec = importlib.util.spec_from_file_location("life_campaigns", _FILE)
assert _spec is not None
assert _spec.loader is not None
life_campaigns: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(life_campaigns)


def test_a_sweeper_that_is_killed(tmp_path: Path) -> None:
    """Kill -9 between claim, handler and delete: all handled, none deleted unhandled."""
    figures = life_campaigns.kills(tmp_path, 12)

    assert figures["kills"] == 12
    assert figures["handled"] == figures["sessions"]


@pytest.mark.parametrize("handlers", [False, True])
def test_a_large_sweep(tmp_path: Path, handlers: bool) -> None:
    """What is due is swept in bounded memory, and requests of another process go on beside it."""
    figures = life_campaigns.large(tmp_path, 5000, handlers=handlers, alone_for=0.1)

    assert figures["swept"] == 500
    assert figures["more memory MiB"] < 20
    assert figures["requests beside"]["requests"] > 0


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_an_end_of_all_against_requests_in_flight(tmp_path: Path, kind: str) -> None:
    """Logins, renewals, writes and touches in flight: nobody survives."""
    store = "memory://" if kind == "memory" else f"sqlite:///{tmp_path}/s.db"
    figures = life_campaigns.end_all(store, 500)

    assert (figures["trials"], figures["survivors"]) == (500, 0)
    assert figures["came too late"] > 0


@pytest.mark.parametrize("kind", SHARED, indirect=True)
def test_an_end_of_all_against_other_processes(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The same with requests of three other processes; nobody lives and nobody rises."""
    url = url_of(kind, request, tmp_path)
    figures = life_campaigns.end_all_of_processes(url, 300, workers=3)

    assert (figures["trials"], figures["survivors"]) == (300, 0)
    assert figures["ended"] > 0
    assert figures["came too late"] > 0


def test_a_cap(tmp_path: Path) -> None:
    """50 parallel logins under a cap of 3 leave 3, with either policy."""
    for store in (MemoryStore(), open_store(f"sqlite:///{tmp_path}/s.db")):
        figures = life_campaigns.cap(store, 4)
        assert figures["left"] == {"end-oldest: 3": 2, "deny: 3": 2}


# The campaigns find what they are there to find.


def test_an_unhandled_session_is_seen(tmp_path: Path) -> None:
    """A session that was deleted unhandled fails the campaign."""
    sessions = SessionManager(f"sqlite:///{tmp_path}/sessions.db")
    sessions.end(life_campaigns.sid_of(sessions))
    sessions.close()
    (tmp_path / "log").touch()

    with pytest.raises(AssertionError, match="deleted unhandled"):
        life_campaigns._check_handled(tmp_path / "sessions.db", tmp_path / "log")


def test_a_survivor_is_seen() -> None:
    """A store that forgets an end fails the campaign."""

    class Forgetful(MemoryStore):
        def delete(self, sid: str, ended: Any = None) -> bool:
            return True

    with pytest.raises(AssertionError, match="survived"):
        life_campaigns.end_all(Forgetful(), 100)


def test_a_survivor_of_processes_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An end that passes over a session fails the campaign of processes."""
    monkeypatch.setattr(SessionManager, "end_all", lambda self, user: [])

    with pytest.raises(AssertionError, match="'risen'"):
        life_campaigns.end_all_of_processes(f"sqlite:///{tmp_path}/s.db", 10, workers=2)


def test_a_cap_that_does_not_hold_is_seen() -> None:
    """The same where too many are left."""

    class Forgetful(MemoryStore):
        def delete(self, sid: str, ended: Any = None) -> bool:
            return True

    with pytest.raises(AssertionError):
        life_campaigns.cap(Forgetful(), 2)
