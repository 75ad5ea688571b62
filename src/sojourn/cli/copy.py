"""`sojourn copy`: all records of one store into another one, verified."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sojourn.cli.demo.command import store_name
from sojourn.drivers import run
from sojourn.errors import ConfigurationError, SojournError
from sojourn.stores import open_store
from sojourn.stores.base import Store
from sojourn.stores.copying import Compared, Copied, compare, copy, count
from sojourn.stores.pair import OLD, Report

__all__ = ["bar", "copy_command", "opened", "speaking"]

_SHOWN = 5


@click.command("copy")
@click.argument("source", metavar="FROM-URL")
@click.argument("target", metavar="TO-URL")
@click.option("--verify-only", is_flag=True, help="Copy nothing; compare the two stores.")
def copy_command(source: str, target: str, verify_only: bool) -> None:
    """Copy all sessions from one store into another one.

    Also what has ended, and marks: they are fences. What is newer in the target stays. Broken off,
    it is run again and goes on. For a copy the application stands still, or loses what it writes
    meanwhile; `sojourn move` moves the sessions of one that runs.

    The exit status is 0 where the target holds everything, and 1 where it does not.
    """
    console = Console(highlight=False, soft_wrap=True)
    with speaking(), opened(source, target) as stores:
        total = run(count(OLD), stores)
        copied = None
        if not verify_only:
            with bar(console, "Copying", total) as told:
                copied = run(copy(told), stores)
        with bar(console, "Verifying", total) as told:
            compared = run(compare(told), stores)
        good = _report(console, total, copied, compared)
    if not good:
        raise SystemExit(1)


@contextlib.contextmanager
def speaking() -> Iterator[None]:
    """Tell our own errors in one line, without a traceback."""
    try:
        yield
    except SojournError as error:
        raise click.ClickException(str(error)) from error


@contextlib.contextmanager
def opened(old: str, new: str) -> Iterator[tuple[Store, Store]]:
    """Open two stores, and close both.

    Raises:
        ConfigurationError: they are one and the same, or one cannot list what it holds.
    """
    if old == new:
        raise ConfigurationError(
            "both URLs are the same; the first names the store that holds the sessions, the "
            "second the one that is to hold them"
        )
    with contextlib.ExitStack() as stack:
        stores = []
        for url in (old, new):
            store = open_store(url)
            stack.callback(store.close)
            if not store.promises.lists:
                raise ConfigurationError(
                    f"{store_name(url)} does not list its sessions (the browsers hold them), so "
                    "there is nothing that could be copied from or to it"
                )
            stores.append(store)
        yield stores[0], stores[1]


@contextlib.contextmanager
def bar(console: Console, what: str, total: int) -> Iterator[Report]:
    """Show a progress bar; yields what to call with the number that is done."""
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)
        told: Callable[[int], None] = lambda done: progress.update(task, completed=done)  # noqa: E731
        yield told
        progress.update(task, completed=total, total=total)


def _report(console: Console, total: int, copied: Copied | None, compared: Compared) -> bool:
    """Print what was done and found; whether the target holds everything."""
    if copied is not None:
        console.print(
            f"Copied {copied.copied:,}; there already {copied.equal:,}; "
            f"ended as in the source {copied.ended:,}; left as newer in the target "
            f"{copied.newer:,}."
        )
        for sid, why in copied.refused[:_SHOWN]:
            console.print(f"[red]Not copied[/red] {sid}: {escape(why)}")
        if copied.damaged:
            console.print(
                f"[red]Not copied[/red] {len(copied.damaged):,}: under their sids the target has "
                f"damaged records ({', '.join(copied.damaged[:_SHOWN])})."
            )
    unread = total - compared.records
    if unread > 0:
        console.print(
            f"[yellow]{unread:,} of {total:,} records of the source could not be read[/yellow] "
            "(damaged, or gone meanwhile)."
        )
    if not total:
        console.print("[yellow]The source holds no records[/yellow]; is its URL the right one?")
    console.print(f"Source: {compared.records:,} records, digest {compared.digest:032x}")
    console.print(f"Target: {compared.found:,} of these, digest {compared.target_digest:032x}")
    if compared.others:
        console.print(f"The target holds {compared.others:,} records more, of its own.")
    if compared.different:
        console.print(
            f"[red]Not the same[/red]: {len(compared.different):,} are missing or older in the "
            f"target ({', '.join(compared.different[:_SHOWN])}). Is the application still "
            "writing? Run the same command again."
        )
        return False
    if compared.newer:
        console.print(
            f"Verified: all are there, {compared.newer:,} of them newer or ended in the target "
            "(that is why the digests differ)."
        )
    else:
        console.print("[green]Verified[/green]: all are there, and equal.")
    return True
