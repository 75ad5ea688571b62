"""A store that is really taken away, and comes back: SQLite files and directories on a disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sojourn.core.session import Session
from sojourn.stores import open_store
from sojourn.stores.base import Store

from .kit import Site

MakeSite = Callable[..., Site]


def read(session: Session) -> str:
    return repr(session.get("a"))


class Place:
    """A store in a folder that can be moved away and back."""

    def __init__(self, kind: str, path: Path) -> None:
        self.folder, self.away = path / "here", path / "away"
        self.folder.mkdir()
        name = {"sqlite": "sessions.db", "directory": "sessions"}[kind]
        self.store: Store = open_store(f"{kind}:///{self.folder / name}")

    def take_away(self) -> None:
        """Let go of open files, as a new process would have none, and leave a file in the way."""
        self.store.close()
        self.folder.rename(self.away)
        self.folder.write_text("nothing here")

    def bring_back(self) -> None:
        """Put it where it was."""
        self.folder.unlink()
        self.away.rename(self.folder)


@pytest.fixture(params=["sqlite", "directory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A store on the disk."""
    made = Place(request.param, tmp_path)
    yield made
    made.store.close()


@pytest.fixture(autouse=True)
def blocking_is_meant(no_blocking_on_the_loop: Any) -> None:
    """Opening a file anew is done on the loop here."""
    no_blocking_on_the_loop.deactivate()


def test_taken_away_and_back(make_site: MakeSite, place: Place) -> None:
    """Pages without a session work, the others say 503; when it is back, all is as it was."""
    site = make_site(place.store)
    site.visit(lambda session: session.update(a=1))
    place.take_away()

    assert site.request(lambda session: "fine").status == 200
    answer = site.request(read)
    assert (answer.status, answer.one("Retry-After")) == (503, "5")
    assert answer.all("Set-Cookie") == []
    assert site.request(lambda session: session.update(b=1), cookie="").status == 503

    place.bring_back()
    assert site.visit(read).body == b"1"
    assert site.visit(lambda session: session.add("a")).body == b"2"


def test_going_on_without(make_site: MakeSite, place: Place) -> None:
    """With `on_store_error="continue"` every page works, as for a visitor without a session."""
    site = make_site(place.store, on_store_error="continue")
    site.visit(lambda session: session.update(a=1))
    place.take_away()

    answer = site.request(read)
    assert (answer.status, answer.body) == (200, b"None")
    answer = site.request(lambda session: session.update(a=5))
    assert (answer.status, answer.all("Set-Cookie")) == (200, [])

    place.bring_back()
    assert site.visit(read).body == b"1"


def test_a_logout_that_cannot_be_written(make_site: MakeSite, place: Place) -> None:
    """Nobody is told that he is logged out who is not, whatever the policy says."""
    for policy in ("raise", "continue"):
        site = make_site(place.store, on_store_error=policy)
        site.visit(lambda session: session.login("alice"))

        def logout(session: Session) -> str:
            assert session.user == "alice"
            place.take_away()
            session.logout()
            return "bye"

        answer = site.request(logout)
        place.bring_back()

        assert answer.status == 503
        assert answer.all("Set-Cookie") == []
        assert site.visit(lambda session: session.user).body == b"alice"


def test_taken_away_between_load_and_commit(make_site: MakeSite, place: Place) -> None:
    """The commit fails: 503, no cookie, and the change is not there afterwards."""
    site = make_site(place.store)
    site.visit(lambda session: session.update(a=1))

    def handler(session: Session) -> str:
        session["a"] = 2
        session.renew()
        place.take_away()
        return "done"

    answer = site.request(handler)
    place.bring_back()

    assert answer.status == 503
    assert answer.all("Set-Cookie") == []
    assert site.visit(read).body == b"1"


@pytest.mark.skipif(os.name != "posix", reason="modes of files are those of POSIX")
@pytest.mark.parametrize("kind", ["sqlite", "directory"])
def test_gone_for_good(make_site: MakeSite, tmp_path: Path, kind: str) -> None:
    """Deleted under a running site: never an error page, and new visitors are served again."""
    place = Place(kind, tmp_path)
    site = make_site(place.store)
    site.visit(lambda session: session.update(a=1))
    place.store.close()
    shutil.rmtree(place.folder)

    answer = site.request(read)
    assert answer.status in (200, 503)
    place.folder.mkdir(exist_ok=True)

    assert site.visit(lambda session: session.update(a=2), cookie="").status == 200
    assert site.visit(read).body == b"2"
    place.store.close()
