"""The soak and the campaigns run, and their history checker sees what they are there to find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("apsw")

from benchmarks.campaigns.history import Report, check, read
from benchmarks.campaigns.places import place
from benchmarks.campaigns.worker import Worker
from benchmarks.soak import main
from sojourn.core import codec
from sojourn.core.record import ENDED, ENDING, LIVE, Ended, Record
from sojourn.errors import ConfigurationError
from sojourn.stores import open_store
from sojourn.stores.base import Store
from sojourn.testing import next_version

ROOT = Path(__file__).parent.parent


def run(module: str, *arguments: str) -> list[Any]:
    """Run a module; the lines of JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_a_short_soak() -> None:
    """Some seconds of it: faults are made, changes are acknowledged, nothing is lost."""
    (report,) = run(
        *("benchmarks.soak", "--minutes", "0.15", "--store", "sqlite", "--workers", "2"),
        *("--seed", "4"),
    )

    assert report["passed"]
    assert report["faults"] == []
    assert sum(report["faults made"].values()) >= 1
    assert report["counts"]["append acknowledged"] > 50
    assert report["counts"]["handlers run"] > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adds", "races", "kills", "pages"])
def test_campaigns_in_small(name: str) -> None:
    """Each campaign runs, with a thousandth of its counts."""
    reports = run("benchmarks.campaigns", name, "--scale", "0.005", "--store", "sqlite")

    assert [report["campaign"] for report in reports] == [name]
    assert all(report["passed"] for report in reports)


@pytest.mark.slow
def test_another_seed_and_a_query() -> None:
    """Both reach the campaign, and what is run is said."""
    (report,) = run(
        *("benchmarks.campaigns", "races", "--scale", "0.005", "--seed", "9"),
        *("--store", "sqlite?synchronous=full"),
    )

    assert (report["passed"], report["seed"]) == (True, 9)
    assert "its URL says synchronous=full" in report["about"]


def test_the_query_reaches_the_store() -> None:
    """A store that is opened by that URL has the setting."""
    with place("sqlite?synchronous=full") as at:
        assert at.url.endswith("/sessions.db?synchronous=full")
        open_store(at.url).close()
    with place("sqlite?synchronous=odd") as at, pytest.raises(ConfigurationError):
        open_store(at.url)


def test_no_other_host() -> None:
    """A soak breaks nothing that is not on this machine."""
    with pytest.raises(SystemExit, match="not on this host"):
        main(["--store", "redis://sessions.example.com", "--minutes", "0.01"])


# The history checker.


class History:
    """What one worker did, and the store that it did it on; both can be tampered with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder}/sessions.db"
        worker = Worker(self.url, str(folder), "one", 3, 0.0)
        for _ in range(300):
            worker.request()
        worker.manager.close()
        self.store: Store = open_store(self.url)

    def check(self, loses: bool = False) -> Report:
        self.store.close()
        return check(self.folder, self.url, loses)

    def some(self, status: int) -> Record:
        """A session that took more than one change; of a short one nobody knows when it ends."""
        busy = [line["sid"] for line in read(self.folder) if line.get("do") in ("append", "renew")]
        short = {line["sid"] for line in read(self.folder) if line.get("short")}
        for sid in reversed(busy):
            record = self.store.load(sid)
            if record is not None and record.status == status and sid not in short:
                return record
        raise AssertionError("there is none; take another seed")

    def change(self, record: Record, number: int, log: list[str]) -> None:
        segments = codec.split(record.data)
        segments["n"] = codec.encode_value(number, key="n", depth=9)
        segments["log"] = codec.encode_value(log, key="log", depth=9)
        newer = next_version(record, data=codec.join(segments))
        assert not isinstance(self.store.replace(newer, record.version), Record)

    def log_of(self, record: Record) -> list[str]:
        found: list[str] = codec.decode_value(codec.split(record.data)["log"])
        return found

    def write(self, **line: Any) -> None:
        with (self.folder / "two.log").open("a") as file:
            file.write(json.dumps(line) + "\n")


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    made = History(tmp_path)
    yield made
    made.store.close()


def test_a_right_history(history: History) -> None:
    """Nothing is found where nothing is wrong, and it was not for want of anything to look at."""
    report = history.check()

    assert report.faults == []
    assert (report.lost, report.risen) == (0, 0)
    counts = report.counts
    assert min(counts["ended"], counts["alive in the end"], counts["changes found"]) > 5
    assert counts["end all acknowledged"] > 0


def test_a_lost_change(history: History) -> None:
    """One acknowledged value that is not there is a loss."""
    record = history.some(LIVE)
    log = history.log_of(record)
    history.change(record, len(log) - 1, log[:-1])

    report = history.check()

    assert report.lost == 1
    assert report.faults == [f"{record.sid}: 1 acknowledged changes are lost"]


def test_a_loss_may_be_allowed(history: History) -> None:
    """Where the store may lose, it is counted; what is wrong stays a fault."""
    record = history.some(LIVE)
    log = history.log_of(record)
    history.change(record, len(log) - 1, log[:-1])

    report = history.check(loses=True)

    assert (report.lost, report.faults) == (1, [])


def test_a_change_made_twice(history: History) -> None:
    """A value that is there twice was applied twice."""
    record = history.some(LIVE)
    log = history.log_of(record)
    history.change(record, len(log) + 1, [*log, log[-1]])

    assert f"{record.sid} holds [{log[-1]!r}] twice" in history.check(loses=True).faults


def test_half_a_change(history: History) -> None:
    """A counter that does not fit its list is half a change."""
    record = history.some(LIVE)
    log = history.log_of(record)
    history.change(record, len(log) + 1, log)

    assert any("torn apart" in fault for fault in history.check(loses=True).faults)


def test_values_of_another(history: History) -> None:
    """A value of another session is a mixed record."""
    record = history.some(LIVE)
    log = history.log_of(record)
    history.change(record, len(log) + 1, [*log, "one.99999"])

    assert any("not its own" in fault for fault in history.check(loses=True).faults)


def test_a_session_that_vanished(history: History) -> None:
    """A session that nobody ended and that is gone is a loss of all that was in it."""
    record = history.some(LIVE)
    history.store.delete(record.sid)

    report = history.check()

    assert report.lost == len(history.log_of(record))
    assert any("no tombstone" in fault for fault in report.faults)


def test_a_session_that_nobody_ended(history: History) -> None:
    """One that has ended for no reason that any worker gave is a fault."""
    lines = read(history.folder)
    over = {line["user"] for line in lines if line.get("do") == "end all"}
    known = {line["sid"] for line in lines if line.get("user") in over and "sid" in line}
    known |= {line["sid"] for line in lines if line.get("short") or line.get("do") == "logout"}
    record = next(record for record in history.store.list() if record.sid not in known)
    history.store.delete(record.sid, Ended(ENDED, "user", 1.0, 9e9))

    faults = history.check().faults

    assert any("nobody ended it" in fault for fault in faults)
    assert any("no handler ran" in fault for fault in faults)


def test_a_risen_session(history: History) -> None:
    """One that is alive after an acknowledged end is found, by the store and by the lines."""
    alive = history.some(LIVE)
    history.write(at=1.0, id="two.1", do="logout", sid=alive.sid)
    history.write(at=2.0, ack="two.1")

    report = history.check()

    assert f"{alive.sid} was ended, and is alive" in report.faults
    assert f"{alive.sid} took a change after its acknowledged end" in report.faults
    assert report.risen >= 2


def test_a_login_that_outlived_the_end_of_all(history: History) -> None:
    """A login from before all sessions of its user were ended must not be alive."""
    alive = history.some(LIVE)
    history.write(at=1.0, id="two.1", do="login", sid=alive.sid, user="zoe")
    history.write(at=2.0, ack="two.1")
    history.write(at=3e9, id="two.2", do="end all", user="zoe")
    history.write(at=3e9 + 1, ack="two.2", sids=[])

    assert f"{alive.sid} was ended, and is alive" in history.check().faults


def test_a_handler_that_saw_too_little(history: History) -> None:
    """A handler has to see all that was acknowledged."""
    ended = history.some(ENDED)
    history.write(at=3e9, do="handler", sid=ended.sid, reason="user", n=0, log=[])

    assert any("changes too few" in fault for fault in history.check().faults)


def test_what_a_killed_worker_had_begun(history: History) -> None:
    """A session that is ending is brought to its end, and its handler counts."""
    alive = history.some(LIVE)
    history.write(at=3e9, id="two.1", do="logout", sid=alive.sid)
    history.store.delete(alive.sid, Ended(ENDING, "user", 1.0, 2.0))

    report = history.check()

    assert report.faults == []
    record = open_store(history.url).load(alive.sid)
    assert record is not None
    assert msgspec.structs.asdict(record)["status"] == ENDED
