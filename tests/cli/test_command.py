"""The command `sojourn`, as a process."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from sojourn import __version__
from sojourn.cli.demo.command import PORT, STORE, listen, store_name

ROOT = Path(__file__).parent.parent.parent
COMMAND = ("-m", "sojourn.cli")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_script_leads_here() -> None:
    """The installed command `sojourn` is this one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["sojourn"].partition(":")

    assert callable(getattr(import_module(module), name))


def test_help_and_version(tmp_path: Path) -> None:
    """It says what it can do, and which version it is."""
    assert "Serve a small site" in run(tmp_path, *COMMAND, "--help").stdout
    done = run(tmp_path, *COMMAND, "demo", "--help")
    assert all(word in done.stdout for word in ("--host", "--port", "--store", STORE))
    assert __version__ in run(tmp_path, *COMMAND, "--version").stdout


def test_address_and_store_are_printed(start: Callable[..., Any], tmp_path: Path) -> None:
    """It says where it is and what it keeps sessions in, and is there."""
    server = start(*COMMAND, "demo", "--port", "0")
    with urlopen(server.url) as answer:
        assert answer.status == 200
        assert "Server" not in answer.headers

    assert server.end(signal.SIGINT) == 0
    assert STORE in server.printed
    assert "survive a restart" in server.printed
    assert (tmp_path / "sojourn-demo.db").exists()


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_quietly(start: Callable[..., Any], by: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end it with no traceback and no error, also with open connections."""
    server = start(*COMMAND, "demo", "--port", "0", "--store", "memory://")
    with urlopen(server.url):
        before = server.printed
        assert server.end(by) == 0

    assert server.printed.strip() == before.strip()
    assert "a restart empties it" in server.printed


def test_port_that_was_chosen_is_in_use(tmp_path: Path) -> None:
    """A port that the user chose and another has is an error that says what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(tmp_path, *COMMAND, "demo", "--port", str(port), "--store", "memory://")

    assert done.returncode == 1
    assert done.stderr == (
        f"Error: port {port} on 127.0.0.1: in use by another program; "
        "choose another: sojourn demo --port 0\n"
    )


def test_next_free_port() -> None:
    """Where the user chose none, the next free one is taken."""
    with listen("127.0.0.1", None) as first, listen("127.0.0.1", None) as second:
        ports = [each.getsockname()[1] for each in (first, second)]

    assert PORT <= ports[0] < ports[1] < PORT + 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--store", "nothing://x"), "no store is known by the scheme 'nothing'"),
        (("--store", "sessions.db"), "has no colon"),
        (("--store", "sqlite:////no/such/folder/x.db"), "/no/such/folder"),
        (("--host", "203.0.113.1", "--store", "memory://"), "a name or address of this machine"),
        (("--host", "no.such.host.invalid", "--store", "memory://"), "address of this machine"),
        (("--port", "65536"), "65535"),
    ],
)
def test_what_cannot_work_is_told(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    """A wrong store, host or port: one line that says what came and what is allowed."""
    done = run(tmp_path, *COMMAND, "demo", *options)

    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_file_that_is_no_database(tmp_path: Path) -> None:
    """The store is tried before anybody visits."""
    (tmp_path / "letter.db").write_text("Dear Sir or Madam, " * 1000)
    done = run(tmp_path, *COMMAND, "demo", "--port", "0", "--store", "sqlite:///letter.db")

    assert done.returncode == 1
    assert "letter.db" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("package", "extra"), [("click", "cli"), ("rich", "cli")])
def test_missing_package_names_its_extra(tmp_path: Path, package: str, extra: str) -> None:
    """Without the packages of an extra the command says which extra it is."""
    code = f"import sys; sys.modules[{package!r}] = None; from sojourn.cli import main; main()"
    done = run(tmp_path, "-c", code)

    assert done.returncode == 1
    assert f'pip install "sojourn[{extra}]"' in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("package", ["jinja2", "waitress"])
def test_missing_package_of_the_demo(tmp_path: Path, package: str) -> None:
    """The same for what only the demo needs."""
    code = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv[1:] = ['demo']; "
        "from sojourn.cli import main; main()"
    )
    done = run(tmp_path, "-c", code)

    assert done.returncode == 1
    assert 'pip install "sojourn[demo]"' in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (STORE, STORE),
        ("memory://", "memory://"),
        ("redis://:secret@cache:6379/0?password=secret", "redis://cache:6379/0"),
        ("postgresql://user:secret@[::1]/db", "postgresql://[::1]/db"),
        ("redis://user:secret@[broken/0", "redis:"),
    ],
)
def test_store_is_named_without_its_password(url: str, name: str) -> None:
    """What is printed, and shown on every page, holds nothing secret."""
    assert store_name(url) == name
    assert not re.search("secret", store_name(url))
