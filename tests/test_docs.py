"""Every code block of README.md and docs/ is run.

The rules, which CONTRIBUTING.md tells to those who write:

- Every block is fenced and names its language. `python` blocks of a page run in order, in one
  module, in an empty folder. With `>>>` they are doctests.
- In a `console` block, lines from `$ ` on are commands, run by bash in that folder; they must
  succeed. Lines below a command are what it prints, `...` standing for anything.
- `$ make x` is tried dry: there is such a target. `$ pip install 'sojourn[x]'` is only read: there
  is such an extra.
- A block below `<!-- not run: <reason> -->` is not run, only compiled where it is Python.
"""

import ast
import doctest
import os
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("README.md"), *sorted((ROOT / "docs").rglob("*.md"))]

# Languages that only show something; a new one is added here on purpose.
SHOWN = {"html", "http", "ini", "json", "mermaid", "nginx", "sql", "text", "toml", "yaml"}
RUN = {"python", "console"}


@dataclass(frozen=True)
class Block:
    line: int
    """Of its first line of code, counted from 1."""
    language: str
    code: str
    not_run: bool


def blocks_of(text: str) -> Iterator[Block]:
    """The fenced blocks of a page; AssertionError, with the line, for what the rules refuse."""
    comment = ""
    for token in MarkdownIt().parse(text):
        if token.type == "html_block":
            comment = token.content.strip()
        elif token.type in ("fence", "code_block"):
            assert token.map is not None
            line = token.map[0] + 1
            assert token.type == "fence", f"line {line}: indented; fence it and name its language"
            language = token.info.strip()
            directive = language.startswith("{") and not language.startswith("{code")
            assert language in RUN | SHOWN or directive, f"line {line}: language {language!r}"
            not_run = comment.startswith("<!-- not run:")
            reason = comment.removeprefix("<!-- not run:").removesuffix("-->").strip()
            assert not not_run or len(reason.split()) >= 3, f"line {line}: no reason given"
            yield Block(line + 1, language, token.content, not_run)
            comment = ""
        elif token.nesting >= 0:
            comment = ""


def run_python(block: Block, page: Path, module: types.ModuleType) -> None:
    source = "\n" * (block.line - 1) + block.code  # so that a traceback names the page's line
    if block.code.lstrip().startswith(">>>"):
        if block.not_run:
            return
        test = doctest.DocTestParser().get_doctest(
            block.code, module.__dict__, page.name, str(page), block.line - 1
        )
        doctest.DebugRunner(optionflags=doctest.ELLIPSIS).run(test, clear_globs=False)
        module.__dict__.update(test.globs)
        return
    code = compile(ast.parse(source, str(page)), str(page), "exec")
    if not block.not_run:
        exec(code, module.__dict__)


def commands_of(block: Block) -> Iterator[tuple[str, str]]:
    """Each command of a console block, with the output shown below it."""
    assert block.code.startswith("$ "), f"line {block.line}: a console block starts with '$ '"
    for part in ("\n" + block.code).split("\n$ ")[1:]:
        command, _, output = part.partition("\n")
        while command.endswith("\\"):
            more, _, output = output.partition("\n")
            command += "\n" + more
        yield command, output.strip()


def extras() -> set[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return set(tomllib.load(file)["project"]["optional-dependencies"])


def run_console(block: Block, folder: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for command, expected in commands_of(block):
        where = folder
        words = command.split()
        if words[:2] == ["pip", "install"]:
            wanted = [Requirement(word.strip("'\"")) for word in words[2:] if "sojourn" in word]
            assert all(one.name == "sojourn" and one.extras <= extras() for one in wanted), command
            continue
        if words[0] == "make":
            # Run dry, as `make test` is what runs this test.
            command, expected, where = f"{command} --dry-run", "", ROOT
        if block.not_run:
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=where,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}"
        shown = done.stdout.strip()
        assert not expected or doctest.OutputChecker().check_output(
            expected, shown, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        ), f"$ {command}\nshown in the page:\n{expected}\nprinted:\n{shown}"


def run_page(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run one page; how many blocks it has."""
    # A real module, for what looks up the annotations of a class there.
    module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(folder)
    blocks = list(blocks_of(page.read_text(encoding="utf-8")))
    for block in blocks:
        if block.language == "python":
            run_python(block, page, module)
        elif block.language == "console":
            run_console(block, folder)
    return len(blocks)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What README.md and docs/ show works as shown."""
    run_page(page, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nassert 1 == 2\n```", AssertionError),
        ("```python\nx = 1\n```\n\ntext\n\n```python\nassert x == 2\n```", AssertionError),
        ("```python\n>>> 1 + 1\n3\n```", doctest.DocTestFailure),
        ("- in a list\n\n  ```python\n  1 / 0\n  ```", ZeroDivisionError),
        ("```console\n$ false\n```", AssertionError),
        ("```console\n$ echo one\ntwo\n```", AssertionError),
        ("```console\n$ make no-such-target\n```", AssertionError),
        ("```console\n$ pip install 'sojourn[nothing]'\n```", AssertionError),
        ("```console\nls\n```", AssertionError),
        ("```\nno language\n```", AssertionError),
        ("```bash\nls\n```", AssertionError),
        ("```{code-block} python\n1 / 0\n```", AssertionError),
        ("text\n\n    indented\n", AssertionError),
        ("<!-- not run: -->\n```python\n1 / 0\n```", AssertionError),
        ("<!-- not run: it would take a day -->\n```python\n1 /\n```", SyntaxError),
        (
            "<!-- not run: it would take a day -->\n\ntext\n\n```python\n1 / 0\n```",
            ZeroDivisionError,
        ),
    ],
)
def test_a_wrong_block_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, error: type[Exception]
) -> None:
    """The test above would fail, for each fault that it is there to find."""
    page = tmp_path / "page.md"
    page.write_text(text)

    with pytest.raises(error):
        run_page(page, tmp_path, monkeypatch)


def test_a_right_page_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks share one module and one folder; annotations of their classes are found."""
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nfrom dataclasses import dataclass\n\n"
        "@dataclass\nclass Cart:\n    items: 'list[str]'\n```\n\n"
        "```python\nimport typing\n\nassert typing.get_type_hints(Cart) == {'items': list[str]}\n"
        "import pathlib\n\npathlib.Path('made').write_text('here')\n```\n\n"
        "```python\n>>> Cart(['tea'])\nCart(items=['tea'])\n```\n\n"
        "```console\n$ cat made; echo; echo b\nhe...\nb\n"
        "$ make test\n$ pip install 'sojourn[sqlite]'\n```\n\n"
        "<!-- not run: it would take a day -->\n```python\n1 / 0\n```\n"
    )

    assert run_page(page, tmp_path, monkeypatch) == 5


LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]


def links_of(page: Path) -> list[str]:
    """The targets of a page's links that are files of this project."""
    markdown = MarkdownIt("commonmark").enable("table")
    targets = [
        str(child.attrs["href"])
        for token in markdown.parse(page.read_text())
        for child in token.children or ()
        if child.type == "link_open"
    ]
    return [target.partition("#")[0] for target in targets if "://" not in target]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    """A link to a file of this project leads to one."""
    missing = [target for target in links_of(page) if not (page.parent / target).exists()]

    assert not missing


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    """The test above sees the links of a page, also those in tables."""
    page = tmp_path / "page.md"
    page.write_text("[a](a.md) and\n\n| [b](b.md#part) |\n|---|\n| [c](https://c.example) |\n")

    assert links_of(page) == ["a.md", "b.md"]


def test_decisions_have_numbers_of_their_own() -> None:
    """A decision is cited by its number: each has one, which its title repeats, and a status."""
    records = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    numbers = [record.name[:4] for record in records]

    assert len(numbers) > 5
    assert sorted(set(numbers)) == numbers
    for number, record in zip(numbers, records, strict=True):
        title, _, status = record.read_text().split("\n")[:3]
        assert title.startswith(f"# {number}: "), record.name
        assert status.startswith("Status: "), record.name
