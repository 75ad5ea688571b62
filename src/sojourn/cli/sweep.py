"""`sojourn sweep`: ends the sessions whose time is over, once or again and again."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
from typing import Any

import click

from sojourn.errors import SojournError
from sojourn.manager import SessionManager

__all__ = ["load_sessions", "sweep"]


@click.command()
@click.option("--store", metavar="URL", help="Where the sessions are, if they have no handlers.")
@click.option(
    "--sessions",
    "name",
    metavar="MODULE:NAME",
    help="The application's SessionManager, with its settings and handlers.",
)
@click.option(
    "--every",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Sweep again and again, about that often.  [default: once]",
)
def sweep(store: str | None, name: str | None, every: float | None) -> None:
    """End the sessions whose time is over, and run their handlers.

    Where the application has handlers of the end of sessions (on_ended), name its SessionManager
    by --sessions: a sweep that knows none ends sessions without them.

    Any number of sweepers may run; one at a time is at work.
    """
    if (store is None) == (name is None):
        raise click.UsageError("give --store URL, or --sessions MODULE:NAME")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    try:
        sessions = load_sessions(name) if name is not None else SessionManager(store or "")
        try:
            if every is None:
                _once(sessions)
            else:
                _again_and_again(sessions, every)
        finally:
            sessions.close()
    except SojournError as error:
        raise click.ClickException(str(error)) from error


def _once(sessions: SessionManager) -> None:
    done = sessions.sweep()
    if done.busy:
        click.echo("another sweeper is at work; nothing was done")
        return
    click.echo(f"{done.ended} ended, {done.failed} with handlers that failed")
    if done.failed:
        click.echo(f"{done.set_aside} of these were set aside: see SessionManager.set_aside")
        sys.exit(1)


def _again_and_again(sessions: SessionManager, every: float) -> None:
    stop = threading.Event()

    def end(signum: int, frame: Any) -> None:
        stop.set()

    before = [(number, signal.signal(number, end)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        # Now, so that a store that cannot work is told here and not in the log of some later hour.
        sessions.count()
        with sessions.sweeper(every):
            click.echo(f"sweeping about every {every:g} s; end it with Ctrl-C")
            stop.wait()
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def load_sessions(name: str) -> SessionManager:
    """Return the manager that `package.module:name` names, from the current folder too."""
    module, _, attribute = name.partition(":")
    if not module or not attribute.isidentifier():
        raise click.UsageError(f"--sessions is {name!r}; it must be like shop.web:sessions")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise click.ClickException(f"--sessions {name}: there is no module {error.name}") from error
    if not isinstance(found, SessionManager):
        raise click.ClickException(
            f"--sessions {name}: that is {found!r}; it must be a SessionManager"
        )
    return found
