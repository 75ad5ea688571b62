"""docs/security.md names a test for each id, and every test that is named after an id."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "security.md"
WITHOUT_TEST = {"A29"}
NOT_OFFERED = {"C3", "L11", "D1", "D2", "O1"}


def rows() -> dict[str, list[str]]:
    """Return the ids of the page's tables, each with the tests that its row names."""
    found: dict[str, list[str]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and re.fullmatch(r"[A-Z]\d+", cells[0]):
            assert cells[0] not in found, cells[0]
            found[cells[0]] = re.findall(r"`(test_\w+)`", cells[3])
    return found


def named_tests() -> set[str]:
    """Return the tests in this folder that are named after an id."""
    names = set()
    for path in HERE.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and re.match(r"test_[A-Z]\d+_", node.name):
                names.add(node.name)
    return names


def test_every_id_is_there() -> None:
    """T1 to T8, L1 to L11, C1 to C11, P1 to P6, K1 to K7, S1 to S4, X1, A1 to A30."""
    last = {"T": 8, "L": 11, "C": 11, "P": 6, "K": 7, "S": 4, "X": 1, "A": 30}
    ids = {f"{letter}{number + 1}" for letter, most in last.items() for number in range(most)}

    assert set(rows()) == ids - NOT_OFFERED
    page = PAGE.read_text(encoding="utf-8")
    for one in NOT_OFFERED:
        assert re.search(rf"^\| [^|]*\b{one}\b", page, re.MULTILINE), one


def test_every_named_test_exists() -> None:
    """What a row names is a test of this folder, and every row names one."""
    known = named_tests()
    for one, named in rows().items():
        assert named or one in WITHOUT_TEST, one
        assert set(named) <= known, one


def test_every_test_is_named() -> None:
    """Each test that bears an id stands in that id's row."""
    table = rows()
    for name in named_tests():
        one = name.split("_")[1]
        assert name in table.get(one, ()), name
