"""Files in tests/typing/ are never run, only checked: what must pass, what must be refused."""

from pathlib import Path

import pytest
from mypy import api

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "tests" / "typing").glob("*.py"))


def mypy(*files: Path, cache: Path) -> str:
    out, err, status = api.run(
        ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(cache), *map(str, files)]
    )
    assert status in (0, 1), err
    return out if status else ""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_typing(monkeypatch: pytest.MonkeyPatch) -> None:
    """mypy accepts each line of tests/typing/, and refuses those that expect a refusal."""
    monkeypatch.chdir(ROOT)

    assert FILES
    assert mypy(*FILES, cache=ROOT / ".mypy_cache") == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "x: int = 'text'",
        "x: int = 1  # type: ignore[assignment]",
        "x: int = 'text'  # type: ignore[arg-type]",
        "x: int = 'text'  # type: ignore",
        "from typing import assert_type; assert_type(1, str)",
    ],
)
def test_a_wrong_line_is_seen(tmp_path: Path, line: str) -> None:
    """The test above would fail: for a line not accepted, and for a refusal that does not come."""
    file = tmp_path / "wrong.py"
    file.write_text(f"{line}\n")

    assert "error:" in mypy(file, cache=tmp_path / "cache")
