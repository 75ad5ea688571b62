"""`sojourn move`: leads the sessions of a running application from one store to another."""

from __future__ import annotations

import contextlib

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sojourn.cli.copy import bar, opened, speaking
from sojourn.cli.demo.command import store_name
from sojourn.core.record import ENDED, ENDING, LIVE, MARK
from sojourn.drivers import run
from sojourn.stores import phases
from sojourn.stores.copying import count
from sojourn.stores.pair import OLD, Report
from sojourn.stores.phases import State

__all__ = ["move"]

_MEANING = {
    "old": "The old store alone is in use.",
    "old leads": "The old store decides; every change is written to both.",
    "switching": "The stores change places; calls wait for about two seconds.",
    "new leads": "The new store decides; every change is written to both.",
    "new": "The move is over; the new store alone is in use.",
}
_NEXT = {
    "old": "advance: write to both stores. All workers must use the moving: URL before.",
    "old leads": "advance: bring the rest over, verify, and let the new store decide.",
    "switching": "It passes by itself.",
    "new leads": "advance: leave the old store behind. There is no way back from that.",
    "new": "Give the workers the URL of the new store, and then take the old one away.",
}

_urls = (
    click.argument("old", metavar="OLD-URL"),
    click.argument("new", metavar="NEW-URL"),
)


@click.group()
def move() -> None:
    """Move the sessions of a running application to another store.

    All workers use the store moving:?old=OLD-URL&new=NEW-URL (each URL percent-encoded).
    """


@move.command()
@_urls[0]
@_urls[1]
def status(old: str, new: str) -> None:
    """Show the phase and what the two stores hold."""
    with speaking(), opened(old, new) as stores:
        _show(Console(highlight=False, soft_wrap=True), run(phases.state(), stores), old, new)


@move.command()
@_urls[0]
@_urls[1]
@click.option("--yes", is_flag=True, help="Do not ask before the step from which none leads back.")
def advance(old: str, new: str, yes: bool) -> None:
    """Take one step forward. Broken off at any point, it is run again."""
    console = Console(highlight=False, soft_wrap=True)
    with speaking(), opened(old, new) as stores:
        before = run(phases.state(), stores)
        final = yes
        if before.phase == "new leads" and not yes:
            final = click.confirm(
                "From here on the old store misses what happens, and no step leads back. Go on?",
                abort=True,
            )
        with contextlib.ExitStack() as stack:

            def told(what: str) -> Report:
                stack.close()
                return stack.enter_context(bar(console, what, run(count(OLD), stores)))

            passes = run(phases.advance(told, final=final), stores)
        if passes:
            first, last = passes[0], passes[-1]
            console.print(
                f"Brought over {first.brought:,} of {first.records:,}; in the verification "
                f"{last.brought:,} more, written meanwhile; removed {last.removed:,}."
            )
            console.print(f"Old store: {last.records:,} records, digest {last.digest:032x}")
            console.print(f"New store: {last.records:,} records, digest {last.new_digest:032x}")
        _show(console, run(phases.state(), stores), old, new)


@move.command()
@_urls[0]
@_urls[1]
def back(old: str, new: str) -> None:
    """Take one step back. Nothing is lost by it."""
    with speaking(), opened(old, new) as stores:
        run(phases.back(), stores)
        _show(Console(highlight=False, soft_wrap=True), run(phases.state(), stores), old, new)


def _show(console: Console, state: State, old: str, new: str) -> None:
    phase = state.phase if not state.to else f"{state.phase} to {state.to!r}"
    console.print(f"Phase: [bold]{phase}[/bold]. {_MEANING[state.phase]}")
    console.print(f"Next: {_NEXT[state.phase]}")
    table = Table("", "Store", "Live", "Ending", "Ended", "Marks", box=None)
    for name, url, counts in zip(("Old", "New"), (old, new), state.counts, strict=True):
        cells = ["does not answer"] if counts is None else []
        if counts is not None:
            cells = [f"{counts[one]:,}" for one in (LIVE, ENDING, ENDED, MARK)]
        table.add_row(name, escape(store_name(url)), *cells)
    console.print(table)
