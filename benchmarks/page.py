"""`python -m benchmarks.page FILE`: the tables of `docs/performance.md`, out of a run's JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.payloads import SIZES, label
from benchmarks.report import targets

__all__ = ["tables"]


def tables(found: dict[str, Any]) -> str:
    """Return Markdown: per scenario a table, sizes side by side; then capacity and targets."""
    cells = found["cells"]
    parts = ["\n".join(found["machine"])]
    for scenario in dict.fromkeys(cell["scenario"] for cell in cells):
        parts.append(_scenario([cell for cell in cells if cell["scenario"] == scenario]))
    for held in found["capacity"]:
        parts.append(_capacity(held))
    parts.append(_growth(found["growth"]))
    if found.get("twisted"):
        parts.append(_twisted(found["twisted"]))
    parts.append(_targets(cells))
    return "\n\n".join(parts) + "\n"


def _scenario(cells: list[dict[str, Any]]) -> str:
    sizes = [size for size in SIZES if any(cell["size"] == size for cell in cells)]
    of = {(cell["subject"], cell["size"]): cell for cell in cells}
    subjects = [cell["subject"] for cell in cells if cell["kind"] == "session"]
    lines = [
        _row([f"**{cells[0]['scenario']}**", "divided by", *map(label, sizes)]),
        _row(["---", "---", *["--:"] * len(sizes)]),
    ]
    for subject in dict.fromkeys(subjects):
        mine = [of.get((subject, size)) for size in sizes]
        if not any(cell and cell["added"] for cell in mine):
            continue
        names: dict[str, None] = {}
        for cell in mine:
            names.update(dict.fromkeys(cell["ratios"] if cell else ()))
        # Flask's own line says how it stands to Starlette; that is enough for all the others.
        for name in names:
            if name != "Flask cookie":
                lines.append(_row([subject, name, *(_ratio(cell, name) for cell in mine)]))
        unit = "(µs added)" if cells[0]["scenario"].startswith("S") else "(µs)"
        lines.append(_row([subject, unit, *map(_added, mine)]))
    return "\n".join(lines)


def _added(cell: dict[str, Any] | None) -> str:
    if not cell or not cell["added"]:
        return "–"
    # With a note: the cookie is one that browsers drop.
    return _number(cell["added"]["median"]) + (r" \*" if cell["note"] else "")


def _capacity(held: dict[str, Any]) -> str:
    return "\n".join(
        [
            _row([f"**Memory store, {held['sessions']:,} sessions of 200 B**", ""]),
            _row(["---", "--:"]),
            _row(["bytes for each, resident set", f"{held['resident']:,.0f}"]),
            _row(["... without address and agent", f"{held['bare']:,.0f}"]),
            _row(["bytes for each, as Python asked for them", f"{held['allocated']:,.0f}"]),
            _row(
                [
                    "full garbage collection, against that of an empty store",
                    f"{held['collection']:.1f} ms, {held['collection_before']:.1f} ms",
                ]
            ),
            _row(["`due`, nothing due", f"{held['due_none']:.1f} µs"]),
            _row([f"`due`, claiming {held['claimed']:,}", f"{held['due_many']:.1f} ms"]),
        ]
    )


def _growth(grown: list[dict[str, Any]]) -> str:
    lines = [
        _row(["**SQLite, a read of 200 B**", "divided by sqlite3 read", "(µs added)"]),
        _row(["---", "--:", "--:"]),
    ]
    for one in grown:
        ratio, added = one["ratio"], one["added"]
        low, high = _number(ratio["low"]), _number(ratio["high"])
        spread = f"{_number(ratio['median'])} ({low}–{high})"
        lines.append(
            _row([f"among {one['sessions']:,} sessions", spread, _number(added["median"])])
        )
    return "\n".join(lines)


def _twisted(found: dict[str, Any]) -> str:
    lines = [
        _row(["**Twisted Web, requests each second**", "of stock", "by processor time"]),
        _row(["---", "--:", "--:"]),
    ]
    for name, one in found.items():
        if isinstance(one, dict) and not name.startswith("stock"):
            shares = one["of stock"], one["of stock by processor time"]
            lines.append(_row([name, *(f"{share:.2f}" for share in shares)]))
    return "\n".join(lines)


def _targets(cells: list[dict[str, Any]]) -> str:
    lines = [_row(["**Target**", "at most", "reached", ""]), _row(["---", "--:", "--:", "---"])]
    by_key = {(cell["scenario"], cell["size"], cell["subject"]): cell for cell in cells}
    for target in targets():
        cell = by_key.get((target.scenario, target.size, target.subject))
        if cell is None or not cell["added"]:
            continue
        got = cell["ratios"].get(target.ratio) if target.ratio else cell["added"]
        if got is not None:
            met = "yes" if got["median"] <= target.limit else "**no**"
            what = f"{target.subject}, {label(target.size)}: {target.text}"
            lines.append(_row([what, f"{target.limit:g}", _number(got["median"]), met]))
    return "\n".join(lines)


def _row(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _ratio(cell: dict[str, Any] | None, name: str) -> str:
    ratio = cell["ratios"].get(name) if cell else None
    if ratio is None:
        return "–"
    low, high = _number(ratio["low"]), _number(ratio["high"])
    return f"{_number(ratio['median'])} ({low}–{high})"


def _number(number: float) -> str:
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"


if __name__ == "__main__":
    sys.stdout.write(tables(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
