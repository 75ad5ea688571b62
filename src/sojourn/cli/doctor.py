"""`sojourn doctor`: whether a store works, and what about it endangers the sessions in it."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import msgspec

from sojourn.cli.demo.command import store_name
from sojourn.core.calls import SAVED
from sojourn.core.record import MARK, Record
from sojourn.core.token import new_sid
from sojourn.errors import SojournError
from sojourn.stores import open_store
from sojourn.stores.base import Promises, Store

__all__ = ["doctor"]

_SURVIVES = {
    "nothing": "nothing, not even a restart of the application",
    "restart": "a restart of the application",
    "kill": "kill -9 of any process",
    "power": "loss of power",
}
_SHARED = {
    "process": "the threads of one process",
    "host": "the processes of one host",
    "hosts": "many hosts",
}


@click.command()
@click.option("--store", required=True, metavar="URL", help="The store, as the application has it.")
def doctor(store: str) -> None:
    """Look whether a store works, and for what endangers the sessions in it.

    It opens the store as the application does (a file, folder or table that is not there is made),
    writes, changes and removes one record that is no session, and looks at what is behind the
    store. Run it on the host of the application, and as the same user.

    The exit status is 0 where nothing was found, and 1 where something was.
    """
    click.echo(store_name(store))
    faults: list[str] = []
    with _quiet():
        try:
            opened = open_store(store)
        except SojournError as error:
            faults.append(str(error))
        else:
            _tell(opened.promises)
            with contextlib.closing(opened):
                faults += _examined(opened)
    for fault in dict.fromkeys(faults):
        click.echo(f"  found: {fault}")
    if faults:
        raise SystemExit(1)
    click.echo("  no fault was found")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep stores from telling in the log as well what is told here."""
    logger = logging.getLogger("sojourn")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _tell(promises: Promises) -> None:
    click.echo(f"  what is saved survives {_SURVIVES[promises.survives]}")
    click.echo(f"  it is shared by {_SHARED[promises.shared]}")
    if promises.stale:
        click.echo(f"  a request may be answered from memory, {promises.stale:g} s old at most")
    if promises.note:
        click.echo(f"  {promises.note}")


def _examined(store: Store) -> list[str]:
    """Return what is wrong with a store, by its own checks and by using it."""
    if not store.promises.lists:
        click.echo("  the browser keeps the sessions: there is nothing here to look at")
        return []
    found: list[str] = []
    unchecked: list[str] = []
    check: Any = getattr(store, "check", None)
    if check is None:
        click.echo("  this kind of store has no checks of its own")
    else:
        try:
            found += check()
        except SojournError as error:
            unchecked.append(str(error))
    try:
        found += _tried(store)
        click.echo(f"  {store.count()} live sessions")
    except SojournError as error:
        # It says as much as what the checks met, or more.
        return [*found, str(error)]
    return found + unchecked


def _tried(store: Store) -> list[str]:
    """Use each verb of a request on a record of our own; return what came back wrong."""
    now = time.time()
    sid = new_sid(os.urandom)
    # A mark: no cookie opens it, no handler hears of it, and a sweep removes one left behind.
    made = Record(sid, b"", 1, now, now, now + 60.0, None, 60.0, b"made", status=MARK)
    changed = msgspec.structs.replace(made, version=2, data=bytes(range(256)))
    touched = msgspec.structs.replace(changed, version=3, seen=now + 1.0, deadline=now + 61.0)
    steps: list[tuple[str, Any, Callable[[], Any]]] = [
        ("create", True, lambda: store.create(made)),
        ("load", made, lambda: store.load(sid)),
        ("replace", SAVED, lambda: store.replace(changed, 1)),
        ("touch", True, lambda: store.touch(sid, 2, touched.seen, touched.deadline)),
        ("load", touched, lambda: store.load(sid)),
        ("delete", True, lambda: store.delete(sid)),
        ("load", None, lambda: store.load(sid)),
    ]
    for name, wanted, step in steps:
        answer = step()
        if answer != wanted:
            return [f"{name} answered {answer!r}; right is {wanted!r}. Is it really that store?"]
    click.echo("  a record was made, read, changed and removed")
    return []
