"""The benchmarks run, and would not time a session layer that answers wrongly. No speed is tested.

Each is run once with three visitors; what it measures then is no figure of anything.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("apsw")

ROOT = Path(__file__).parent.parent
EMBEDDED = ("memory", "SQLite", "directory")


def run(folder: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """Run the benchmarks; what they print, and the JSON that they write."""
    target = folder / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--json", str(target), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout, json.loads(target.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    return run(tmp_path_factory.mktemp("bench"), "--quick", "--iterations", "3")


def cells(found: tuple[str, dict[str, Any]]) -> dict[tuple[str, int, str], dict[str, Any]]:
    return {(one["scenario"], one["size"], one["subject"]): one for one in found[1]["cells"]}


@pytest.mark.parametrize("scenario", ["S1", "S2", "S3", "S4", "S4n"])
@pytest.mark.parametrize("backend", EMBEDDED)
@pytest.mark.parametrize("side", ["WSGI", "ASGI"])
def test_each_cell_is_measured(
    embedded: tuple[str, dict[str, Any]], side: str, backend: str, scenario: str
) -> None:
    """Every store in both colours has figures in every scenario at every size."""
    found = cells(embedded)
    sizes = (200,) if scenario == "S4n" else (200, 4096, 65536)

    for size in sizes:
        cell = found[scenario, size, f"Sojourn {side}, {backend}"]
        assert cell["note"] == ""
        assert math.isfinite(cell["added"]["median"])


@pytest.mark.parametrize(
    ("scenario", "floors"),
    [
        ("S1", {"sqlite3 insert", "apsw insert"}),
        ("S2", {"sqlite3 read", "apsw read"}),
        ("S3", {"sqlite3 write", "sqlite3 read+write", "apsw write", "apsw read+write"}),
        ("S4", set()),
    ],
)
def test_sqlite_is_compared_with_both_drivers(
    embedded: tuple[str, dict[str, Any]], scenario: str, floors: set[str]
) -> None:
    """A cell has a ratio to each bare command of its own back end, and to the other layers."""
    cell = cells(embedded)[scenario, 200, "Sojourn WSGI, SQLite"]

    ratios = set(cell["ratios"])
    assert floors == {name for name in ratios if "cookie" not in name}
    assert all(cell["ratios"][name]["median"] > 0 for name in floors)


def test_the_peers_are_measured_or_named(embedded: tuple[str, dict[str, Any]]) -> None:
    """A session layer that is not installed is told of in a line, not passed over."""
    printed, _ = embedded

    for name in ("Starlette", "Flask"):
        there = ("S2", 200, f"{name} cookie") in cells(embedded)
        assert there or f"skipped: {name} is not installed" in printed


def test_a_cookie_that_browsers_drop_is_marked(embedded: tuple[str, dict[str, Any]]) -> None:
    """The figures of a session that no browser would keep say so."""
    pytest.importorskip("starlette.middleware.sessions")
    cell = cells(embedded)["S2", 65536, "Starlette cookie"]

    assert "browsers drop" in cell["note"]


@pytest.mark.parametrize("verb", ["load", "replace"])
def test_the_verbs_are_measured(embedded: tuple[str, dict[str, Any]], verb: str) -> None:
    """Each store that has a bare command to be compared with is, verb by verb."""
    found = cells(embedded)
    raw = "read" if verb == "load" else "write"

    for backend, floors in (("SQLite", ("sqlite3", "apsw")), ("directory", ("file",))):
        cell = found[verb, 200, f"blocking store, {backend}"]
        assert set(cell["ratios"]) == {f"{floor} {raw}" for floor in floors}
        assert all(ratio["median"] > 0 for ratio in cell["ratios"].values())


def test_growth_is_measured(embedded: tuple[str, dict[str, Any]]) -> None:
    """What a read costs by how many sessions are stored has figures."""
    (grown,) = embedded[1]["growth"]

    assert grown["sessions"] == 3
    assert grown["select"]["median"] > 0


def test_capacity_is_measured(embedded: tuple[str, dict[str, Any]]) -> None:
    """Memory for each session, pauses and the sweep's call have figures."""
    (held,) = embedded[1]["capacity"]

    assert held["sessions"] == 3
    assert held["claimed"] == 1
    assert held["allocated"] > 200


def test_targets_are_shown(embedded: tuple[str, dict[str, Any]]) -> None:
    """What the project wants to reach stands under the figures, with what was reached."""
    assert "read ÷ SELECT by sqlite3" in " ".join(embedded[0].split())


@pytest.mark.server
@pytest.mark.parametrize(
    ("name", "label", "floor"),
    [
        ("redis", "Redis", "redis-py read+write"),
        ("postgresql", "PostgreSQL", "psycopg read+write"),
        ("mariadb", "MariaDB", "PyMySQL read+write"),
    ],
)
def test_a_server_is_measured(tmp_path: Path, name: str, label: str, floor: str) -> None:
    """A store on a server is measured beside the bare driver, or the reason is told."""
    found = run(tmp_path, "--iterations", "3", "--no-capacity", "--size", "200", "--backend", name)

    if f"skipped: {name}: " in found[0]:
        if os.environ.get(f"SOJOURN_TEST_{name.upper()}"):
            pytest.fail(found[0])
        pytest.skip(f"{name} NOT TESTED: {found[0].partition('skipped: ')[2].splitlines()[0]}")
    for side in ("WSGI", "ASGI"):
        assert cells(found)["S3", 200, f"Sojourn {side}, {label}"]["added"]
    assert floor in cells(found)["S3", 200, f"Sojourn WSGI, {label}"]["ratios"]


WRONG = """
from benchmarks import calling, measuring, scenarios, subjects

def app_that_forgets(action):
    def app(environ, start_response):
        session = {"theme": "of somebody else"}
        body = action(session, environ[calling.VALUE]) if action else "untouched"
        start_response("200 OK", [("Set-Cookie", "id=x")])
        return [body.encode()]
    return app

subject = subjects.Subject("Forgetful", ("bare", lambda: calling.wsgi_app("", None)),
                           app_that_forgets, calling.call_wsgi)
for scenario in scenarios.SCENARIOS[:3]:
    try:
        leg = measuring.SubjectLeg(subject, scenario, 200, 3)
        leg.once()
        leg.check()
    except (measuring.Wrong, KeyError) as error:
        print(scenario.name, "refused")
"""


def test_a_layer_that_answers_wrongly_is_not_timed() -> None:
    """One that forgets what was stored is found out, in each scenario that stores or reads."""
    done = subprocess.run(
        [sys.executable, "-c", WRONG],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["S1", "refused", "S2", "refused", "S3", "refused"]


def test_twisted_is_measured_beside_the_stock_server(
    embedded: tuple[str, dict[str, Any]],
) -> None:
    """Three pages on three servers, and what idle sessions leave in two of them."""
    pytest.importorskip("twisted")
    told, found = embedded[0], embedded[1]["twisted"]

    for page in ("page without session", "read", "write"):
        assert found[f"stock Twisted, {page}"]["of stock"] == 1.0
        for server in ("memory", "SQLite"):
            assert found[f"{server}, {page}"]["requests each second"] > 0
            assert math.isfinite(found[f"{server}, {page}"]["of stock"])
    assert {"stock Twisted, idle", "SQLite, idle"} <= found.keys()
    assert "Twisted Web, targets" in told
