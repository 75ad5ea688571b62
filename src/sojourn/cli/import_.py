"""`sojourn import`: the sessions of another system, so that nobody is logged out by the change."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.markup import escape

from sojourn.cli.copy import bar, speaking
from sojourn.cli.sweep import load_sessions
from sojourn.core.record import Client
from sojourn.errors import ConfigurationError, InvalidValue
from sojourn.manager import SessionManager
from sojourn.web import session3 as old

__all__ = ["import_group"]

_SHOWN = 20


@click.group("import")
def import_group() -> None:
    """Take over the sessions of another system."""


@import_group.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False), metavar="DIRECTORY")
@click.option("--store", metavar="URL", help="Where the sessions go, with the default settings.")
@click.option(
    "--sessions",
    "name",
    metavar="MODULE:NAME",
    help="The application's SessionManager, with its store and settings.",
)
@click.option(
    "--allow",
    multiple=True,
    metavar="MODULE.CLASS",
    help="A class of yours that sessions are of, or hold. May be given many times.",
)
@click.option(
    "--user-id",
    default="",
    metavar="NAME",
    help="Where the user of a session is an object: its attribute that is the id.",
)
@click.option("--dict", "mapping", is_flag=True, help="Your sessions are of a kind of DictSession.")
def session3(
    directory: str,
    store: str | None,
    name: str | None,
    allow: tuple[str, ...],
    user_id: str,
    mapping: bool,
) -> None:
    """Take over the sessions in a directory of Session3's.

    Its files are pickles. No code in them runs, and no class of yours is imported: an object
    becomes a session, or inside a session a dict, if its class is allowed. What is not allowed is
    refused and named.

    The files are only read. The cookies of the visitors go on working; the limits of time begin
    now. Stop the application before, or what it writes meanwhile is not taken over. A second run
    takes over what the first one could not.

    The exit status is 1 where sessions were refused.
    """
    if (store is None) == (name is None):
        raise click.UsageError("give --store URL, or --sessions MODULE:NAME")
    console = Console(highlight=False, soft_wrap=True)
    with speaking():
        sessions = load_sessions(name) if name is not None else SessionManager(store or "")
        try:
            taking = functools.partial(old.taken_over, mapping=mapping, user_id=user_id)
            done = _take_over(console, directory, sessions, {*old.ALLOWED, *allow}, taking)
        finally:
            sessions.close()
    _report(console, done, sessions)
    if done.refused:
        raise SystemExit(1)


class _Done(NamedTuple):
    """What became of the files: (name, why) of those that were not taken over."""

    taken: list[str]
    there: list[str]
    refused: list[tuple[str, str]]
    damaged: list[tuple[str, str]]
    foreign: list[str]


def _take_over(
    console: Console,
    directory: str,
    sessions: SessionManager,
    allowed: set[str],
    taking: Callable[[old.Found], tuple[dict[str, Any], str | None, Client]],
) -> _Done:
    promises = sessions.store.promises
    if promises.survives == "nothing" or not promises.revokes:
        raise ConfigurationError(
            f"{type(sessions.store).__name__} keeps nothing that the application would find: it "
            "forgets with this process, or the browsers hold the sessions. Name another store"
        )
    done = _Done([], [], [], [], [])
    files = sorted(os.listdir(directory))
    with bar(console, "Importing", len(files)) as told:
        for number, name in enumerate(files, 1):
            if number % 100 == 0:
                told(number)
            token = old.token_of_id(name)
            if token is None:
                done.foreign.append(name)
                continue
            try:
                found = old.session_in(old.read(directory, name), name, allowed)
                values, user, client = taking(found)
                new = sessions.adopt(token, values, user=user, client=client)
            except (old.Refused, InvalidValue) as error:
                done.refused.append((name, str(error)))
            except old.Unreadable as error:
                done.damaged.append((name, str(error)))
            else:
                (done.taken if new else done.there).append(name)
    return done


def _report(console: Console, done: _Done, sessions: SessionManager) -> None:
    console.print(f"Taken over {len(done.taken):,}; there already {len(done.there):,}.")
    if done.taken:
        policy = sessions.describe()
        limits = (("without use", policy["idle_timeout"]), ("in any case", policy["lifetime"]))
        told = [f"after {timedelta(seconds=limit)} {when}" for when, limit in limits if limit]
        console.print(f"From now on they end {' and '.join(told)}.")
    for what, why, some in (
        ("Refused", "and the exit status is 1", done.refused),
        ("Damaged", "and left alone", done.damaged),
    ):
        if some:
            console.print(f"[red]{what}[/red] {len(some):,}, {why}:")
        for name, reason in some[:_SHOWN]:
            # The name is what the visitor's cookie holds: whoever reads it whole is logged in.
            console.print(f"  {name[:4]}...: {escape(_visible(reason))}")
        if len(some) > _SHOWN:
            console.print(f"  and {len(some) - _SHOWN:,} more")
    if done.foreign:
        names = ", ".join(map(repr, done.foreign[:_SHOWN]))
        console.print(f"No files of Session3's, {len(done.foreign):,}: {escape(names)}")


def _visible(text: str) -> str:
    """Return a text without what would command the terminal, as names in a file may do."""
    return text if text.isprintable() else repr(text)[1:-1]
