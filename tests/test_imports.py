"""The direction of imports, and what a bare `import sojourn` loads."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "sojourn"

# room: the rooms it may import from, besides itself and `errors`.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "core": set(),
    "stores": {"core"},
    "drivers": {"core", "stores.base"},
    "handlers": {"core"},
    "devices": {"core"},
    "sweeper": {"core", "manager"},
    "manager": {"core", "stores", "drivers", "handlers", "devices", "sweeper"},
    # Twisted's driver lies in `web`, and does what `drivers` and `handlers` do for the others.
    "web": {"core", "stores", "drivers", "handlers", "devices", "manager"},
    "dashboard": {"core", "stores", "drivers", "manager", "web"},
    "cli": {"core", "stores", "drivers", "manager", "web"},
    "testing": {"core", "stores.base"},
}

# What core may import: nothing here waits, knows the time or chance by itself, or does I/O.
CORE_MAY_IMPORT = set(
    "__future__ abc base64 binascii collections contextlib copy dataclasses datetime decimal enum"
    " functools hashlib hmac itertools math msgspec operator re struct types typing uuid weakref"
    " zlib zoneinfo".split()
)

# A client library or framework is imported only in a module of its name; these go by another.
GOES_BY = {
    "asgiref": {"django"},
    "apsw": {"sqlite"},
    "asyncmy": {"mariadb"},
    "click": {"cli"},
    "cryptography": {"sealing"},
    "hiredis": {"redis"},
    "jinja2": {"cli", "dashboard"},
    "psycopg": {"postgresql"},
    "psycopg_pool": {"postgresql"},
    "pymysql": {"mariadb"},
    "pyramid_debugtoolbar": {"pyramid"},
    "rich": {"cli"},
    "sqlite3": {"sqlite"},
    "txredisapi": {"twisted"},
    "ua_parser": {"devices"},
    "uvicorn": {"cli"},
    "waitress": {"cli"},
    "webob": {"pyramid"},
    "werkzeug": {"flask"},
    "zope": {"twisted", "pyramid", "components"},
}

FRAMEWORKS_AND_CLIENTS = GOES_BY.keys() | set(
    "aiohttp attr attrs bottle django falcon flask litestar pydantic pyramid quixote redis sanic"
    " starlette tornado twisted".split()
)
# Modules that are about one of these, and load it.
NAMED_AFTER_ONE = FRAMEWORKS_AND_CLIENTS.union(*GOES_BY.values())


def name_of(path: Path, package: Path = PACKAGE) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """Each import anywhere in the file, in functions and under TYPE_CHECKING too: line, full name.

    `from a import b` gives `a.b`, as only the reader of `a` knows whether `b` is a module.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def fault(module: str, imported: str) -> str | None:
    """Why this module may not import this name; None where it may."""
    here = module.removeprefix("sojourn").removeprefix(".")
    top, _, there = imported.partition(".")
    if top == "sojourn":
        if not here or there.startswith("__"):
            return None  # the public names are gathered from every room
        room = here.partition(".")[0]
        allowed = ROOMS[room] | {room, "errors"}
        if not any(within(there, other) for other in allowed):
            return f"{room} may import only {', '.join(sorted(allowed))}"
    elif within(here, "core") and top not in CORE_MAY_IMPORT:
        if (here, top) != ("core.sealing", "cryptography"):
            return "core imports nothing that waits, does I/O, or knows the time or chance"
    elif (top not in sys.stdlib_module_names and top != "msgspec") or top == "sqlite3":
        homes = GOES_BY.get(top, {top})
        if not homes & set(here.split(".")):
            return f"{top} is imported only in a module named {' or '.join(sorted(homes))}"
    return None


def test_every_room_is_one_of_the_design() -> None:
    """A new room is named in ROOMS, with what it may import, before it is used."""
    rooms = {name.split(".")[1] for name in MODULES if "." in name}

    assert {"core", "errors"} <= rooms
    assert rooms <= set(ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    """core <- stores, drivers <- manager <- web <- dashboard, cli; clients in their module."""
    path = MODULES[module]

    faults = [
        f"{path.relative_to(ROOT)}:{line} imports {name}: {why}"
        for line, name in imports(module, path)
        if (why := fault(module, name))
    ]

    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sojourn.core.flows", "from ..stores.base import Store"),
        ("sojourn.core.flows", "from .. import manager"),
        ("sojourn.core.flows", "import sojourn.drivers"),
        ("sojourn.core.flows", "import time"),
        ("sojourn.core.flows", "def f():\n    import os"),
        ("sojourn.core.flows", "from cryptography.hazmat import primitives"),
        ("sojourn.core.flows", "import attrs"),
        ("sojourn.drivers", "from sojourn.stores.memory import MemoryStore"),
        ("sojourn.drivers", "from sojourn import SessionManager"),
        ("sojourn.errors", "from .core.record import Record"),
        ("sojourn.stores.memory", "from sojourn.web import wsgi"),
        ("sojourn.stores.memory", "import redis"),
        ("sojourn.stores.memory", "import sqlite3"),
        ("sojourn.manager", "from .web.wsgi import SessionMiddleware"),
        ("sojourn.web.wsgi", "import flask"),
        ("sojourn.web.wsgi", "import werkzeug.http"),
        ("sojourn.testing.contract", "from sojourn.manager import SessionManager"),
        ("sojourn.testing.contract", "import pytest"),
    ],
)
def test_a_wrong_import_is_seen(tmp_path: Path, module: str, source: str) -> None:
    """The test above would fail, for each kind of import that it is there to refuse."""
    path = tmp_path / f"{module.rpartition('.')[2]}.py"
    path.write_text(source)

    assert [name for _, name in imports(module, path) if fault(module, name)]


def loaded_by(*modules: str) -> set[str]:
    """The top-level names in sys.modules of a bare process after these imports."""
    code = f"import sys, {', '.join(modules)}, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_importing_sojourn_loads_no_framework_and_no_client() -> None:
    """`import sojourn` in a bare process costs nobody a library that they do not use."""
    assert not loaded_by("sojourn") & FRAMEWORKS_AND_CLIENTS


# The cookie store is nothing but sealing.
LOADS_ITS_OWN = {"sojourn.stores.cookie", "sojourn.core.sealing"}


@pytest.mark.parametrize(
    "module",
    [
        name
        for name in MODULES
        if name not in LOADS_ITS_OWN and not NAMED_AFTER_ONE & set(name.split("."))
    ],
)
def test_a_shared_module_loads_no_framework_and_no_client(module: str) -> None:
    """Nor does any module that is not itself named after one."""
    assert not loaded_by(module) & FRAMEWORKS_AND_CLIENTS


def test_every_public_name_is_there() -> None:
    """`__all__` is complete: each name in it can be had, and is listed by dir()."""
    import sojourn

    names = getattr(sojourn, "__all__", None)
    if names is None:
        pytest.skip("sojourn has no public names yet")

    assert len(names) == len(set(names))
    assert not [name for name in names if not hasattr(sojourn, name)]
    assert set(names) <= set(dir(sojourn))
