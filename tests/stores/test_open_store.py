"""`open_store` and `open_async_store`: the right store for a URL, and clear words for the rest."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

import sojourn.stores
from sojourn.errors import ConfigurationError
from sojourn.stores import open_async_store, open_store
from sojourn.stores.base import AsyncStore, Store
from sojourn.stores.memory import MemoryStore
from sojourn.stores.threaded import ThreadedStore

SCHEMES = sojourn.stores._SCHEMES


def test_memory() -> None:
    """`memory:` is a new, empty store at each call."""
    first, second = open_store("memory://"), open_store("memory:")

    assert type(first) is MemoryStore
    assert first is not second
    assert type(open_async_store("memory://")) is ThreadedStore


def test_the_case_of_a_scheme_is_ignored() -> None:
    """A scheme is compared without case, as in any URL."""
    assert type(open_store("MEMORY://")) is MemoryStore


def test_a_blocking_store_is_put_in_threads(tmp_path: Path) -> None:
    """`open_async_store` wraps a store that has no asynchronous client."""
    url = f"directory:///{tmp_path}/sessions"
    store = open_async_store(url)

    assert type(store) is ThreadedStore
    assert type(store.store) is type(open_store(url))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_scheme_has_a_module_with_from_url(scheme: str) -> None:
    """Every scheme in the table leads to a module that follows the rule."""
    name, extra = SCHEMES[scheme]
    try:
        module = importlib.import_module(f"sojourn.stores.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sojourn"):
            raise
        pytest.skip(f"{scheme} NOT TESTED: {error.name} is not installed")

    assert callable(module.from_url)
    extras = importlib.metadata.metadata("sojourn").get_all("Provides-Extra")
    assert not extra or extra in extras


def test_an_unknown_scheme_lists_the_known_ones() -> None:
    """The error has what came, every scheme, and how to add one."""
    with pytest.raises(ConfigurationError) as caught:
        open_store("etcd://user:hunter2@host/")
    message = str(caught.value)

    assert "'etcd'" in message
    assert all(scheme in message for scheme in SCHEMES)
    assert "'sojourn.stores'" in message
    assert "hunter2" not in message


@pytest.mark.parametrize("url", ["sessions.db", ""])
def test_no_scheme(url: str) -> None:
    """A path is no URL; the error shows one that is."""
    with pytest.raises(ConfigurationError, match=r"'sqlite:///sessions\.db'.*no colon.*memory"):
        open_async_store(url)


def test_no_text() -> None:
    """Anything but a text is refused with its type."""
    with pytest.raises(ConfigurationError, match=r"such as 'sqlite:.*(Posix|Windows)Path"):
        open_store(Path("sessions.db"))  # type: ignore[arg-type]


@pytest.mark.parametrize("opener", [open_store, open_async_store])
def test_a_missing_client_library_names_the_extra(
    opener: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the package, and the extra of this package that brings it."""
    for name in [n for n in sys.modules if n.startswith("sojourn.stores.redis")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [n for n in sys.modules if n.partition(".")[0] == "redis"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)

    with pytest.raises(ConfigurationError) as caught:
        opener("redis://:hunter2@localhost/")  # type: ignore[operator]
    message = str(caught.value)

    assert "'redis'" in message
    assert 'pip install "sojourn[redis]"' in message
    assert "hunter2" not in message


def test_another_missing_module_of_ours_is_a_fault_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only a missing package of others is explained; a hole in this one stays what it is."""
    monkeypatch.setitem(SCHEMES, "hole", ("no_such_store", "hole"))

    with pytest.raises(ModuleNotFoundError, match=r"sojourn\.stores\.no_such_store"):
        open_store("hole://")


class TestThirdParties:
    """Stores by entry point, of a real distribution on the path."""

    @pytest.fixture(autouse=True)
    def installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Install a package with stores: one good, one for a scheme that is taken, one in need."""
        (tmp_path / "elsewhere.py").write_text(
            "from sojourn.stores.memory import MemoryStore\n"
            "class Elsewhere(MemoryStore):\n"
            "    url = ''\n"
            "def from_url(url):\n"
            "    store = Elsewhere()\n"
            "    store.url = url\n"
            "    return store\n"
        )
        (tmp_path / "needy.py").write_text("import no_such_client.parts\n")
        info = tmp_path / "elsewhere-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            "[sojourn.stores]\nelsewhere = elsewhere\nneedy = needy\nmemory = elsewhere\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        for name in ("elsewhere", "needy"):
            monkeypatch.delitem(sys.modules, name, raising=False)

    def test_is_found_by_its_scheme(self) -> None:
        """The module of the entry point makes the store of the whole URL."""
        store = open_store("elsewhere://host/path?x=1")

        assert type(store).__name__ == "Elsewhere"
        assert store.url == "elsewhere://host/path?x=1"  # type: ignore[attr-defined]
        assert isinstance(store, Store)

    def test_is_put_in_threads(self) -> None:
        """Without `afrom_url` it is wrapped."""
        store = open_async_store("elsewhere://")

        assert type(store) is ThreadedStore
        assert isinstance(store, AsyncStore)

    def test_takes_no_scheme_of_ours(self) -> None:
        """What `memory://` means is not for another package to say."""
        assert type(open_store("memory://")) is MemoryStore

    def test_is_listed(self) -> None:
        """The error for an unknown scheme lists it, and no scheme twice."""
        with pytest.raises(ConfigurationError) as caught:
            open_store("nowhere://")
        listed = str(caught.value).partition("Known schemes: ")[2].partition(". ")[0].split(", ")

        assert "elsewhere" in listed
        assert listed.count("memory") == 1

    def test_a_missing_package_of_its_own_is_named(self) -> None:
        """There is no extra to name, so the package itself is."""
        with pytest.raises(ConfigurationError, match='pip install "no_such_client"'):
            open_store("needy://")


def test_the_contract_loads_no_store() -> None:
    """`sojourn.stores.base` is importable alone: no other store and no client library with it."""
    code = (
        "import sys, json; before = set(sys.modules); import sojourn.stores.base;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    source = str(Path(sojourn.stores.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {source!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = json.loads(done.stdout)

    stores = [name for name in loaded if name.startswith("sojourn.stores.")]
    assert stores == ["sojourn.stores.base"]
    assert not {"redis", "psycopg", "apsw", "pymysql", "cryptography"} & set(loaded)


def test_opening_loads_only_that_store() -> None:
    """`open_store` imports the module that the URL asks for, and none beside."""
    assert isinstance(sojourn.stores, types.ModuleType)
    code = "import sys; from sojourn.stores import open_store; open_store('memory://')"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(sojourn.stores.__file__).parents[2])},
    )
    stores = {name for name in done.stdout.split() if name.startswith("sojourn.stores.")}

    assert stores == {"sojourn.stores.base", "sojourn.stores.memory"}
