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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import backends, capacity
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
from benchmarks.subjects import Backend, Missing, Subject, sojourn_asgi, sojourn_wsgi
from sojourn.manager import SessionManager

_QUICK, _FULL = 45.0, 260.0
"""Seconds for the requests of the two forms, about; the capacity comes on top."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments say; returns the exit code."""
    options = _arguments(argv)
    writer = Writer()
    pinned = _pin()
    chosen = [one for one in SCENARIOS if not options.scenario or one.name in options.scenario]
    sizes = options.size or SIZES
    groups = [(one, size) for one in chosen for size in (sizes if one.sized else sizes[:1])]
    total = _QUICK if options.quick else _FULL
    if options.iterations:
        plan = Plan(0.0, passes=1, rounds=(2, 2), visitors=options.iterations)
    else:
        plan = Plan(total / max(len(groups), 4))
    for line in (*_machine(pinned), *(f"{label(size)}: {sizes_text(size)}" for size in sizes)):
        writer.line(line)
    cells: list[Cell] = []
    names: list[str] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sojourn-bench-")))
        modules = []
        for name in options.backend or backends.NAMES:
            module = importlib.import_module(f"benchmarks.backends.{name}")
            try:
                modules.append((module, stack.enter_context(module.running(folder))))
            except Missing as error:
                writer.line(f"skipped: {name}: {error}")
        peers = _peers(writer)
        for number, (scenario, size) in enumerate(groups):
            here = folder / str(number)
            here.mkdir()
            with _subjects(modules, here, writer) as (subjects, ready):
                names = [backend.name for backend in ready]
                found = _group(scenario, size, [*subjects, *peers], ready, plan)
            cells += found
            columns = sorted({name for cell in found for name in cell.ratios}, key=_column)
            writer.table(
                f"{scenario.name}, {scenario.text}"
                + (f", session of {label(size)}" if scenario.sized else ""),
                ["", *(f"÷ {column}" for column in columns), "µs added"],
                table_of(found, columns),
            )
            for cell in found:
                if cell.note:
                    writer.line(f"{cell.subject}: {cell.note}")
    reached = []
    for target in targets(names):
        got = target.reached(cells)
        if got is not None:
            met = "yes" if got.median <= target.limit else "NO"
            where = f"{target.scenario}, {label(target.size)}, {target.subject}"
            reached.append([f"{where}: {target.text}", f"{target.limit:g}", time_text(got), met])
    if reached:
        writer.table("Targets", ["", "at most", "reached", ""], reached)
    held: list[Any] = []
    if not options.no_capacity:
        count = 1_000_000 if options.full else 100_000
        held = capacity.report(writer, options.iterations or count)
    if options.json:
        content = {
            "machine": _machine(pinned),
            "cells": [cell.plain() for cell in cells],
            "capacity": [asdict(one) for one in held],
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
    parser.add_argument("--backend", action="append", choices=backends.NAMES)
    parser.add_argument("--no-capacity", action="store_true", help="requests only")
    parser.add_argument(
        "--iterations", type=int, metavar="N", help="N visitors, two rounds: only to try it"
    )
    return parser.parse_args(argv)


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
    modules: Sequence[tuple[Any, Any]], folder: Path, writer: Writer
) -> Iterator[tuple[list[Subject], list[Backend]]]:
    """Yield Sojourn on every back end, each empty."""
    subjects: list[Subject] = []
    ready: list[Backend] = []
    with ExitStack() as stack:
        for module, handle in modules:
            backend = stack.enter_context(module.fresh(handle, folder))
            ready.append(backend)
            for make in (sojourn_wsgi, sojourn_asgi):
                sessions = SessionManager(backend.url)
                stack.callback(sessions.close)
                subjects.append(make(backend, sessions))
        yield subjects, ready


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
        for raw in backend.raws if scenario.raw else ():
            legs.append(RawLeg(raw, scenario, size, visitors))
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


def _brief(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return "cannot: " + (text if len(text) < 90 else text[:87] + "...")


def _column(name: str) -> tuple[bool, str]:
    return ("cookie" in name, name)


if __name__ == "__main__":
    sys.exit(main())
