"""`sojourn move`: what an operator sees, from the first step to the last."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sojourn.cli.commands import cli
from sojourn.core.calls import Flow
from sojourn.core.record import ENDED, Ended
from sojourn.stores import open_store, phases
from sojourn.testing import new_record

NOW = time.time()


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no workers here to wait for."""
    monkeypatch.setattr(phases, "PATIENCE", 0.0)


@pytest.fixture
def urls(tmp_path: Path) -> tuple[str, str]:
    """A store with 30 sessions, 10 of them ended, and one that is empty."""
    urls = f"sqlite:///{tmp_path}/old.db", f"directory:///{tmp_path}/new"
    store = open_store(urls[0])
    for index in range(30):
        record = new_record(NOW)
        store.create(record)
        if index % 3 == 0:
            store.delete(record.sid, Ended(ENDED, "user", NOW, NOW + 3600.0))
    store.close()
    return urls


def move(*arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(cli, ["move", *arguments], input=answer, env={"COLUMNS": "200"})


def test_from_the_first_phase_to_the_last(urls: tuple[str, str]) -> None:
    """Each step says where one is and what comes next; the last one is asked for."""
    before = move("status", *urls)
    assert before.exit_code == 0, before.output
    assert "Phase: old." in before.output
    assert "All workers must use the moving: URL before" in before.output

    assert "Phase: old leads." in move("advance", *urls).output
    brought = move("advance", *urls)
    assert brought.exit_code == 0, brought.output
    assert "Brought over 30 of 30" in brought.output
    digests = [line.split()[-1] for line in brought.output.splitlines() if "digest" in line]
    assert len(digests) == 2
    assert digests[0] == digests[1] != "0" * 32
    assert "Phase: new leads." in brought.output

    refused = move("advance", *urls, answer="n\n")
    assert refused.exit_code == 1
    assert "no step leads back" in refused.output
    assert "Phase: new leads." in move("status", *urls).output
    assert "Phase: new." in move("advance", *urls, "--yes").output

    over = move("advance", *urls, "--yes")
    assert over.exit_code == 1
    assert "the move is over" in over.output
    no_way = move("back", *urls)
    assert no_way.exit_code == 1
    assert "has missed what happened since" in no_way.output
    assert open_store(urls[1]).count(None, ENDED) == 10


def test_the_last_step_is_asked_for_though_the_phase_before_it_passed_meanwhile(
    urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker may end the switch between the look at the phase and the step."""
    move("advance", *urls)
    switching = phases.settle
    monkeypatch.setattr(phases, "settle", lambda *_: (_ for _ in ()))
    move("advance", *urls)
    monkeypatch.setattr(phases, "settle", switching)
    assert "Phase: switching" in move("status", *urls).output
    look = phases.state

    def state() -> Flow[phases.State]:
        seen = yield from look()
        yield from phases.settle(*(yield from phases.current()))
        return seen

    monkeypatch.setattr(phases, "state", state)
    done = move("advance", *urls)
    monkeypatch.setattr(phases, "state", look)

    assert done.exit_code == 1
    assert "changed by somebody else meanwhile" in done.output
    assert "Phase: new leads." in move("status", *urls).output


def test_back(urls: tuple[str, str]) -> None:
    """One step at a time, until nothing is left to go back from."""
    move("advance", *urls)
    move("advance", *urls)
    assert "Phase: old leads." in move("back", *urls).output
    assert "Phase: old." in move("back", *urls).output
    last = move("back", *urls)

    assert last.exit_code == 1
    assert "nothing to go back from" in last.output


def test_what_is_in_the_way_is_said_in_a_line(urls: tuple[str, str]) -> None:
    """A target that is not empty; the same URL twice."""
    open_store(urls[1]).create(new_record(NOW))
    for done, words in (
        (move("advance", *urls), "holds 1 records; a move begins with an empty one"),
        (move("status", urls[0], urls[0]), "both URLs are the same"),
    ):
        assert done.exit_code == 1
        assert words in done.output
        assert "Traceback" not in done.output


def test_one_store_does_not_answer(urls: tuple[str, str], tmp_path: Path) -> None:
    """The status says which."""
    (tmp_path / "file").write_text("not a folder")
    done = move("status", urls[0], f"directory:///{tmp_path}/file")

    assert done.exit_code == 0, done.output
    assert "does not answer" in done.output
