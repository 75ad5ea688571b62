"""`python -m benchmarks`: measure all, print tables of ratios, write JSON where asked."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import backends, capacity, growth, twisted
from benchmarks.calling import runner
from benchmarks.measuring import (
    MAX_COOKIE,
    Plan,
    RawLeg,
    SubjectLeg,
    figure,
    measure,
    sizes_text,
)
from benchmarks.payloads import SIZES, label
from benchmarks.peers import NAMES as PEERS
from benchmarks.report import Cell, Writer, table_of, targets, time_text
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.subjects import (
    Backend,
    Missing,
    Raw,
    Subject,
    asynchronous_store,
    blocking_store,
    sojourn_asgi,
    sojourn_wsgi,
)
from sojourn.manager import SessionManager

_QUICK, _FULL = 45.0, 260.0
"""Seconds for the requests of the two forms, about; the capacity comes on top."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments say; returns the exit code."""
    options = _arguments(argv)
    writer = Writer()
    pinned = _pin()
    total = _QUICK if options.quick else _FULL
    for line in (*_machine(pinned), *(f"{label(size)}: {sizes_text(size)}" for size in SIZES)):
        writer.line(line)
    cells: list[Cell] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sojourn-bench-")))
        # Servers may run as another user, and look for their own folders below this one.
        folder.chmod(0o755)
        peers = _peers(writer)
        sets = _sets(options, folder, stack, writer)
        share = total / max(4, sum(len(_groups(one, options)) for one in sets))
        for one in sets:
            for scenario, size in _groups(one, options):
                here = Path(tempfile.mkdtemp(dir=folder))
                plan = _plan(options, share, servers=one.servers)
                with _subjects(one.modules, here) as (subjects, stores, ready):
                    if scenario.verb:
                        found = _verbs(scenario, size, stores, ready, plan)
                    else:
                        compared = subjects if one.servers else [*subjects, *peers]
                        found = _group(scenario, size, compared, ready, plan)
                cells += found
                _show(writer, scenario, size, found)
    reached = []
    for target in targets():
        got = target.reached(cells)
        if got is not None:
            met = "yes" if got.median <= target.limit else "NO"
            where = f"{target.scenario}, {label(target.size)}, {target.subject}"
            reached.append([f"{where}: {target.text}", f"{target.limit:g}", time_text(got), met])
    if reached:
        writer.table("Targets", ["", "at most", "reached", ""], reached)
    held: list[Any] = []
    grown: list[Any] = []
    if not options.no_capacity:
        count = 1_000_000 if options.full else 100_000
        held = capacity.report(writer, options.iterations or count)
        with tempfile.TemporaryDirectory(prefix="sojourn-bench-") as there:
            counts = [options.iterations] if options.iterations else growth.COUNTS
            grown = growth.report(writer, Path(there), counts)
    on_twisted: dict[str, Any] = {}
    if not options.no_twisted:
        on_twisted = _twisted(options, writer)
    if options.json:
        content = {
            "machine": _machine(pinned),
            "cells": [cell.plain() for cell in cells],
            "capacity": [asdict(one) for one in held],
            "twisted": on_twisted,
            "growth": [asdict(one) for one in grown],
        }
        Path(options.json).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about a minute, not five")
    parser.add_argument("--full", action="store_true", help="capacity with a million sessions")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--scenario", action="append", choices=[one.name for one in SCENARIOS])
    parser.add_argument("--size", action="append", type=int, choices=SIZES)
    parser.add_argument(
        "--backend",
        action="append",
        choices=(*backends.EMBEDDED, *backends.SERVERS),
        help="only these; --quick leaves the servers out unless they are named",
    )
    parser.add_argument("--no-capacity", action="store_true", help="requests only")
    parser.add_argument("--no-twisted", action="store_true", help="without Twisted Web")
    parser.add_argument(
        "--iterations", type=int, metavar="N", help="N visitors, two rounds: only to try it"
    )
    return parser.parse_args(argv)


@dataclass(frozen=True)
class _Set:
    """Back ends that are measured together: all that need no server, or one that does."""

    modules: list[tuple[Any, Any]]
    servers: bool


def _sets(
    options: argparse.Namespace, folder: Path, stack: ExitStack, writer: Writer
) -> list[_Set]:
    embedded = _Set([], False)
    found = [embedded]
    for name in (*backends.EMBEDDED, *backends.SERVERS):
        server = name in backends.SERVERS
        if name not in options.backend if options.backend else server and options.quick:
            continue
        try:
            module = importlib.import_module(f"benchmarks.backends.{name}")
            running = (module, stack.enter_context(module.running(folder)))
        except Missing as error:
            writer.line(f"skipped: {name}: {error}")
            continue
        if server:
            found.append(_Set([running], True))
        else:
            embedded.modules.append(running)
    return found if embedded.modules else found[1:]


def _groups(one: _Set, options: argparse.Namespace) -> list[tuple[Scenario, int]]:
    """Return what is measured of a set: a scenario without a call is the same on every server."""
    sizes = options.size or SIZES
    return [
        (scenario, size)
        for scenario in SCENARIOS
        if not options.scenario or scenario.name in options.scenario
        if scenario.raw or not one.servers
        for size in (sizes if scenario.sized else sizes[:1])
    ]


def _twisted(options: argparse.Namespace, writer: Writer) -> dict[str, Any]:
    """Measure Twisted Web beside the stock server."""
    if options.iterations:
        few = options.iterations
        plan = {"rounds": 1, "visits": few, "visitors": few, "idle": few}
    else:
        plan = {"rounds": 5, "visits": 1000, "idle": 10_000} if options.quick else {}
    try:
        return twisted.report(writer, **plan)
    except ImportError as error:
        writer.line(f"skipped: {error}")
        return {}


def _plan(options: argparse.Namespace, seconds: float, *, servers: bool) -> Plan:
    if options.iterations:
        return Plan(0.0, passes=1, rounds=(2, 2), visitors=options.iterations)
    return Plan(seconds, visitors=64 if servers else 256)


def _show(writer: Writer, scenario: Scenario, size: int, found: Sequence[Cell]) -> None:
    sessions = [cell.subject for cell in found if cell.kind == "session"]
    peers = [name for name in sessions if not name.startswith("Sojourn") and not scenario.verb]
    writer.table(
        f"{scenario.name}, {scenario.text}"
        + (f", session of {label(size)}" if scenario.sized else ""),
        [
            "",
            "÷ bare back end",
            *(f"÷ {peer}" for peer in peers),
            "µs" if scenario.verb else "µs added",
        ],
        table_of(found, peers),
    )
    for cell in found:
        if cell.note:
            writer.line(f"{cell.subject}: {cell.note}")


def _pin() -> str:
    """Stay on one core, with all that is started from here; a wake-up on another one costs."""
    try:
        core = max(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {core})
    except (AttributeError, OSError):
        return "not pinned to a core"
    return "pinned to one core, with the servers"


def _machine(pinned: str) -> list[str]:
    import msgspec

    load = "" if not hasattr(os, "getloadavg") else f", load {os.getloadavg()[0]:.1f}"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return [
        f"{python}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores{load}, "
        f"{pinned}; msgspec {msgspec.__version__}"
    ]


def _peers(writer: Writer) -> list[Subject]:
    found = []
    for name in PEERS:
        try:
            found.append(importlib.import_module(f"benchmarks.peers.{name}").subject())
        except Missing as error:
            writer.line(f"skipped: {error}")
    return found


@contextmanager
def _subjects(
    modules: Sequence[tuple[Any, Any]], folder: Path
) -> Iterator[tuple[list[Subject], list[tuple[Backend, Raw]], list[Backend]]]:
    """Yield Sojourn on every back end, each empty; and its stores where there is a floor."""
    subjects: list[Subject] = []
    stores: list[tuple[Backend, Raw]] = []
    ready: list[Backend] = []
    with ExitStack() as stack:
        for module, handle in modules:
            backend = stack.enter_context(module.fresh(handle, folder))
            ready.append(backend)
            blocking, asynchronous = SessionManager(backend.url), SessionManager(backend.url)
            stack.callback(blocking.close)
            stack.callback(_aclose, asynchronous)
            subjects.append(sojourn_wsgi(backend, blocking))
            subjects.append(sojourn_asgi(backend, asynchronous))
            if backend.raws:
                stores.append((backend, blocking_store(backend, blocking.store)))
            if any(raw.asynchronous for raw in backend.raws):
                stores.append((backend, asynchronous_store(backend, asynchronous.astore)))
        yield subjects, stores, ready


def _aclose(sessions: SessionManager) -> None:
    runner.run(sessions.aclose())


def _group(
    scenario: Scenario,
    size: int,
    subjects: Sequence[Subject],
    ready: Sequence[Backend],
    plan: Plan,
) -> list[Cell]:
    """Measure all session layers and bare commands in one scenario at one size."""
    visitors = plan.visitors_for(size)
    cells: list[Cell] = []
    legs: list[Any] = []
    floors: dict[str, list[tuple[str, bool]]] = {}
    for backend in ready:
        for raw in backend.raws:
            for kind in scenario.floors:
                legs.append(RawLeg(raw, kind, size, visitors))
                floors.setdefault(backend.name, []).append((legs[-1].name, raw.asynchronous))
    bares: dict[str, SubjectLeg] = {}
    measured: list[Subject] = []
    longest: dict[str, int] = {}
    for subject in subjects:
        try:
            leg = SubjectLeg(subject, scenario, size, visitors)
            leg.once()
        except Exception as error:
            # One that fails is told of, and the others are measured.
            cells.append(Cell(scenario.name, size, subject.name, "session", note=_brief(error)))
            continue
        bare = subject.bare[0]
        if bare not in bares:
            bares[bare] = SubjectLeg(subject, scenario, size, visitors, bare=True)
            legs.append(bares[bare])
        legs.append(leg)
        measured.append(subject)
        longest[subject.name] = leg.longest_cookie
    taken = measure(legs, plan)
    added = {
        subject.name: [
            with_it - without
            for with_it, without in zip(taken[subject.name], taken[subject.bare[0]], strict=True)
        ]
        for subject in measured
    }
    rows = []
    for subject in measured:
        mine = added[subject.name]
        against: dict[str, list[float]] = {}
        own = floors.get(subject.backend, [])
        mixed = len({asynchronous for _, asynchronous in own}) > 1
        for name, asynchronous in own:
            if not mixed or asynchronous == ("ASGI" in subject.name):
                against[name] = taken[name]
        for peer in subjects:
            if not peer.name.startswith("Sojourn") and peer.name != subject.name:
                against |= {peer.name: added[peer.name]} if peer.name in added else {}
        ratios = {
            name: figure([one / max(other, 1e-3) for one, other in zip(mine, others, strict=True)])
            for name, others in against.items()
        }
        cell = Cell(scenario.name, size, subject.name, "session", figure(mine), ratios)
        if longest[subject.name] > MAX_COOKIE:
            cell.note = (
                f"its cookie takes {longest[subject.name]:,} bytes; browsers drop one of more than "
                f"{MAX_COOKIE:,}"
            )
        rows.append(cell)
    for name, numbers in taken.items():
        if name not in added:
            kind = "bare application" if name in bares else "bare command"
            rows.append(Cell(scenario.name, size, name, kind, figure(numbers)))
    return rows + cells


def _verbs(
    scenario: Scenario,
    size: int,
    stores: Sequence[tuple[Backend, Raw]],
    ready: Sequence[Backend],
    plan: Plan,
) -> list[Cell]:
    """Measure the verbs of all stores, and the bare commands of their drivers."""
    visitors = plan.visitors_for(size)
    floors = {
        backend.name: [(RawLeg(raw, scenario.raw, size, visitors), raw) for raw in backend.raws]
        for backend in ready
    }
    mine = [(RawLeg(raw, scenario.raw, size, visitors), backend, raw) for backend, raw in stores]
    legs = [leg for found in floors.values() for leg, _ in found] + [leg for leg, _, _ in mine]
    taken = measure(legs, plan)
    cells = []
    for leg, backend, raw in mine:
        ratios = {
            floor.name: figure(
                [one / other for one, other in zip(taken[leg.name], taken[floor.name], strict=True)]
            )
            for floor, bare in floors[backend.name]
            if bare.asynchronous == raw.asynchronous
        }
        name = leg.name.removesuffix(f" {scenario.raw}")
        cells.append(Cell(scenario.name, size, name, "session", figure(taken[leg.name]), ratios))
    for found in floors.values():
        for leg, _ in found:
            cells.append(
                Cell(scenario.name, size, leg.name, "bare command", figure(taken[leg.name]))
            )
    return cells


def _brief(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return "cannot: " + (text if len(text) < 90 else text[:87] + "...")


if __name__ == "__main__":
    sys.exit(main())
