"""SQLite files that cannot be used: none of them hangs a site, and none is made worse."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from sojourn.core.session import Session
from sojourn.errors import ConfigurationError
from sojourn.stores.sqlite import SqliteStore

from ..web.kit import SITES, Site

MakeSite = Callable[..., Site]


def show(session: Session) -> str:
    return str(session.get("a"))


def write(session: Session) -> str:
    session.update(a=1)
    return "written"


@pytest.fixture(autouse=True)
def blocking_is_meant(no_blocking_on_the_loop: Any) -> None:
    """Opening a file is done on the loop here."""
    no_blocking_on_the_loop.deactivate()


@pytest.fixture(params=SITES)
def make_site(request: pytest.FixtureRequest) -> MakeSite:
    """Sites of each colour."""
    return SITES[request.param]


NOT_OURS = {
    "a text": b"This is not a database. " * 100,
    "noise": os.urandom(8192),
    "half a header": b"SQLite format 3\0" + os.urandom(84),
}


@pytest.mark.parametrize("content", NOT_OURS.values(), ids=NOT_OURS)
def test_not_a_database(tmp_path: Path, content: bytes) -> None:
    """The store refuses to start, says which file it is, and leaves it as it was."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)

    with pytest.raises(ConfigurationError, match=r"photo\.jpg"):
        SqliteStore(path)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["photo.jpg"]


def test_another_applications_database(tmp_path: Path) -> None:
    """A database that is not ours is not used, and not changed."""
    path = tmp_path / "shop.db"
    with apsw.Connection(str(path)) as connection:
        connection.execute("CREATE TABLE goods (name TEXT)")
    connection.close()
    before = path.read_bytes()

    with pytest.raises(ConfigurationError, match="another application"):
        SqliteStore(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", NOT_OURS.values(), ids=NOT_OURS)
def test_overwritten_under_a_running_site(
    make_site: MakeSite, tmp_path: Path, content: bytes
) -> None:
    """A file that was overwritten: pages without a session work, the others answer 503."""
    path = tmp_path / "s.db"
    store = SqliteStore(path)
    site = make_site(store)
    site.visit(write)
    store.close()
    for name in os.listdir(tmp_path):
        (tmp_path / name).unlink()
    path.write_bytes(content)

    assert site.request(lambda session: "fine").status == 200
    assert site.request(show).status == 503
    answer = site.request(write, cookie="")
    assert (answer.status, answer.all("Set-Cookie")) == (503, [])
    assert path.read_bytes() == content
    store.close()


def test_locked_by_another_process(make_site: MakeSite, tmp_path: Path) -> None:
    """Reading waits for nobody; writing waits as long as it was told, then 503; then it works."""
    path = tmp_path / "s.db"
    store = SqliteStore(path, busy_timeout=0.2)
    site = make_site(store)
    site.visit(write)
    with apsw.Connection(str(path)) as other:
        other.execute("UPDATE sojourn_sessions SET due = 0")
        assert site.visit(show).body == b"1"
        begun = time.monotonic()
        answer = site.request(lambda session: session.update(a=2))
        assert time.monotonic() - begun < 5
        assert (answer.status, answer.all("Set-Cookie")) == (503, [])
        assert site.visit(show).body == b"1"
    other.close()

    assert site.visit(lambda session: session.update(a=3)).status == 200
    assert site.visit(show).body == b"3"
    store.close()


@contextlib.contextmanager
def a_small_disk(folder: Path, size: str = "size=400k") -> Iterator[Path]:
    """Mount a small disk; skip where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("a small disk NOT TESTED: mounting one is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk(make_site: MakeSite, tmp_path: Path) -> None:
    """Writing fails with 503 and no cookie; reading works; with room again all goes on."""
    with a_small_disk(tmp_path / "disk") as disk:
        store = SqliteStore(disk / "s.db")
        site = make_site(store)
        site.visit(write)
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

        failed = 0
        for number in range(20):
            large = "x" * 50_000
            answer = site.request(lambda session, large=large: session.update(b=large), cookie="")
            assert answer.status in (200, 503), number
            if answer.status == 503:
                failed += 1
                assert answer.all("Set-Cookie") == []
        assert failed
        assert site.visit(show).body == b"1"

        filler.unlink()
        assert site.visit(lambda session: session.update(a=2)).status == 200
        assert site.visit(show).body == b"2"
        store.close()


def test_read_only_disk(make_site: MakeSite, tmp_path: Path) -> None:
    """On a disk that became read-only sessions can still be read, or say 503; never an error."""
    with a_small_disk(tmp_path / "disk", "size=4m") as disk:
        store = SqliteStore(disk / "s.db")
        site = make_site(store)
        site.visit(write)
        store.close()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

        assert site.request(lambda session: "fine").status == 200
        assert site.request(show).status in (200, 503)
        answer = site.request(write, cookie="")
        assert (answer.status, answer.all("Set-Cookie")) == (503, [])

        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert site.visit(show).body == b"1"
        assert site.visit(lambda session: session.update(a=2)).status == 200
        store.close()
