"""Tables of the documentation that are drawn from the code, so that they cannot differ from it."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

STORES = [
    ("memory", "MemoryStore", "memory://"),
    ("cookie", "CookieStore", "cookie:///keys.txt"),
    ("sqlite", "SqliteStore", "sqlite:///sessions.db"),
    ("directory", "DirectoryStore", "directory:///sessions"),
    ("redis", "RedisStore", "redis://host"),
    ("postgresql", "PostgresqlStore", "postgresql://host/database"),
    ("mariadb", "MariadbStore", "mariadb://host/database"),
]
SURVIVES = {
    "nothing": "the end of the process ends it",
    "restart": "a restart",
    "kill": "kill -9",
    "power": "loss of power",
}


def table(head: list[str], rows: list[list[str]]) -> nodes.table:
    """Return a table of plain text."""
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]

    def row(cells: list[str]) -> nodes.row:
        line = nodes.row()
        for cell in cells:
            entry = nodes.entry()
            entry += nodes.paragraph(text=cell)
            line += entry
        return line

    top = nodes.thead()
    top += row(head)
    body = nodes.tbody()
    body += [row(cells) for cells in rows]
    group += [top, body]
    out = nodes.table()
    out += group
    return out


class StateDiagram(SphinxDirective):
    """The life of a session in a request: `TRANSITIONS`, a row a status, a column an event."""

    def run(self) -> list[nodes.Node]:
        """Draw it."""
        from sojourn.core.status import TRANSITIONS, Event, Status

        events = list(Event)
        rows = [
            [status.name.lower(), *(TRANSITIONS[status, event].name.lower() for event in events)]
            for status in Status
        ]
        return [table(["status", *(event.name.lower() for event in events)], rows)]


class StoreTable(SphinxDirective):
    """What each store promises: its `promises`."""

    def run(self) -> list[nodes.Node]:
        """Draw it."""
        rows = []
        for module, name, url in STORES:
            store: Any = getattr(importlib.import_module(f"sojourn.stores.{module}"), name)
            promises = getattr(store, "promises", None)
            if promises is None:
                # They depend on its settings: those of the default, in a folder of its own.
                with tempfile.TemporaryDirectory() as folder:
                    opened = store(Path(folder) / "sessions")
                    promises = opened.promises
                    opened.close()
            rows.append(
                [
                    url,
                    SURVIVES[promises.survives],
                    promises.shared,
                    "yes" if promises.revokes else "no",
                    "yes" if promises.merges else "no",
                    "yes" if promises.lists else "no",
                    promises.note,
                ]
            )
        head = ["store", "survives", "shared by", "revokes", "merges", "lists", "note"]
        return [table(head, rows)]


def setup(app: Any) -> dict[str, bool]:
    """Add the directives."""
    app.add_directive("state-diagram", StateDiagram)
    app.add_directive("store-table", StoreTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
