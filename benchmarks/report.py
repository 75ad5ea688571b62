"""Tables of ratios, the targets, and JSON.

A ratio is what travels from machine to machine; microseconds stand beside it only so that the
ratio can be understood.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.measuring import Figure

__all__ = ["Cell", "Target", "Writer", "table_of", "targets"]


@dataclass
class Cell:
    """What was measured of one session layer in one scenario at one size.

    Attributes:
        scenario, size, subject: which.
        added: microseconds per request, above the same application without it; for a bare
            command or application, microseconds.
        ratios: to each bare command of its back end, and to other session layers.
        kind: "session", "bare application" or "bare command".
        note: why there are no figures, or what to think of them.
    """

    scenario: str
    size: int
    subject: str
    kind: str
    added: Figure | None = None
    ratios: dict[str, Figure] = field(default_factory=dict)
    note: str = ""

    def plain(self) -> dict[str, Any]:
        """Return it as what JSON holds."""
        return asdict(self)


def ratio_text(figure: Figure | None) -> str:
    """Return a ratio with its spread."""
    if figure is None:
        return ""
    return f"{_short(figure.median)} ({_short(figure.low)}–{_short(figure.high)})"


def time_text(figure: Figure | None) -> str:
    """Return microseconds with the least."""
    return "" if figure is None else f"{_short(figure.median)} (min {_short(figure.least)})"


def _short(number: float) -> str:
    if abs(number) >= 100:
        return f"{number:.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"


def table_of(cells: Iterable[Cell], peers: Sequence[str]) -> list[list[str]]:
    """Return the rows of a table: who, ratios to the bare back end, to each peer, microseconds."""
    rows = []
    for cell in cells:
        if cell.added is None:
            continue
        bare = [
            f"{ratio_text(ratio)} {name}"
            for name, ratio in cell.ratios.items()
            if name not in peers
        ]
        ratios = [ratio_text(cell.ratios.get(peer)) for peer in peers]
        rows.append([cell.subject, "\n".join(bare), *ratios, time_text(cell.added)])
    return rows


class Writer:
    """Prints tables: with rich where it is installed, else as plain text."""

    def __init__(self) -> None:
        """Find out which."""
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            self._console: Any = None
        else:
            self._console, self._table = Console(), Table
            if not self._console.is_terminal:
                self._console.width = 150

    def line(self, text: str = "") -> None:
        """Print a line."""
        print(text, flush=True)

    def table(self, title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table."""
        if self._console is not None:
            table = self._table(title=title, title_justify="left")
            for number, head in enumerate(heads):
                table.add_column(head, justify="right" if number else "left")
            for row in rows:
                table.add_row(*row)
            self._console.print(table)
            return
        lines = [list(heads)]
        for row in rows:
            # A cell may have several lines; the others are empty below their first.
            parts = [text.split("\n") for text in row]
            for number in range(max(map(len, parts))):
                lines.append([part[number] if number < len(part) else "" for part in parts])
        widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
        lines.insert(1, ["-" * width for width in widths])
        print(f"\n{title}")
        for first, *others in lines:
            cells = [f"{first:<{widths[0]}}"]
            cells += [f"{text:>{width}}" for text, width in zip(others, widths[1:], strict=True)]
            print("  ".join(cells).rstrip(), flush=True)


@dataclass(frozen=True)
class Target:
    """What the project wants to reach.

    Attributes:
        text: for people.
        scenario, size, subject: which cell.
        ratio: to what; empty: the microseconds added.
        limit: at most.
    """

    text: str
    scenario: str
    size: int
    subject: str
    ratio: str
    limit: float

    def reached(self, cells: Sequence[Cell]) -> Figure | None:
        """Return what the target is about, if it was measured."""
        for cell in cells:
            if (cell.scenario, cell.size, cell.subject) == (self.scenario, self.size, self.subject):
                return cell.ratios.get(self.ratio) if self.ratio else cell.added
        return None


def targets() -> list[Target]:
    """Return all targets."""
    wanted = [
        Target("untouched session, µs", "S4", 200, f"Sojourn {side}, SQLite", "", 2.0)
        for side in ("WSGI", "ASGI")
    ]
    wsgi = "Sojourn WSGI, SQLite"
    for driver in ("sqlite3", "apsw"):
        wanted += [
            Target(f"read ÷ SELECT by {driver}", "S2", 200, wsgi, f"{driver} read", 3.0),
            Target(f"read of 64 KB ÷ SELECT by {driver}", "S2", 65536, wsgi, f"{driver} read", 3.0),
            Target(f"change ÷ UPDATE by {driver}", "S3", 200, wsgi, f"{driver} write", 2.0),
        ]
    for peer in ("Starlette cookie", "Flask cookie"):
        wanted.append(Target(f"read ÷ {peer}", "S2", 200, wsgi, peer, 1.0))
    wanted += [
        Target(f"replace ÷ UPDATE by {driver}", "replace", 200, "blocking store, SQLite", raw, 2.0)
        for driver, raw in (("sqlite3", "sqlite3 write"), ("apsw", "apsw write"))
    ]
    for backend, blocking, asynchronous in (
        ("Redis", "redis-py", "redis.asyncio"),
        ("PostgreSQL", "psycopg", "async psycopg"),
        ("MariaDB", "PyMySQL", "asyncmy"),
    ):
        for side, colour, driver in (
            ("WSGI", "blocking", blocking),
            ("ASGI", "async", asynchronous),
        ):
            request, store = f"Sojourn {side}, {backend}", f"{colour} store, {backend}"
            for size in (200, 65536):
                wanted += [
                    Target(f"{verb} ÷ {driver}", verb, size, store, f"{driver} {raw}", 1.5)
                    for verb, raw in (("load", "read"), ("replace", "write"))
                ]
            wanted += [
                Target(f"{what} ÷ {driver}", scenario, 200, request, f"{driver} {raw}", 1.5)
                for what, scenario, raw in (("read", "S2", "read"), ("change", "S3", "read+write"))
            ]
    directory = "blocking store, directory"
    wanted += [
        Target("load ÷ bare file read", "load", 200, directory, "file read", 3.0),
        Target("replace ÷ bare write", "replace", 200, directory, "file write", 1.3),
    ]
    directory = "Sojourn WSGI, directory"
    wanted += [
        Target("read ÷ bare file read", "S2", 200, directory, "file read", 3.0),
        Target("change ÷ bare write", "S3", 200, directory, "file read+write", 1.3),
    ]
    return wanted
