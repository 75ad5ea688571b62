"""`sojourn copy`: everything goes over, nothing newer is lost, and it may be killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import apsw
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace as changed

from sojourn.cli.commands import cli
from sojourn.core.record import ENDED, ENDING, LIVE, MARK, Ended, Record
from sojourn.drivers import run
from sojourn.stores import open_store
from sojourn.stores.copying import compare, copy
from sojourn.stores.memory import MemoryStore
from sojourn.stores.pair import Joined, digest_of
from sojourn.testing import new_record

NOW = time.time()


def copied(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["copy", *arguments], env={"COLUMNS": "200"})


def fill(store: Any, number: int) -> list[Record]:
    """Records of every status, of many sizes; some touched, some changed, some ended."""
    chance = random.Random(7)
    records = []
    for index in range(number):
        status = (LIVE, LIVE, LIVE, LIVE, ENDING, ENDED, MARK)[index % 7]
        record = new_record(
            NOW - chance.random() * 1000,
            user=f"user{index % 50}" if index % 3 and status != ENDED else None,
            data=chance.randbytes(chance.choice((0, 10, 200, 3000))),
            status=LIVE if status in (ENDING, ENDED) else status,
        )
        assert store.create(record)
        if index % 4 == 0:
            store.touch(record.sid, 1, NOW, NOW + 5000.0)
        if status in (ENDING, ENDED):
            store.delete(record.sid, Ended(status, "user", NOW, NOW + 86400.0))
        records.append(record)
    return records


@pytest.fixture
def urls(tmp_path: Path) -> tuple[str, str]:
    return f"sqlite:///{tmp_path}/old.db", f"directory:///{tmp_path}/new"


def everything(store: Any) -> list[Record]:
    records: list[Record] = []
    while page := store.list(None, None, records[-1].sid if records else "", 100):
        records += page
    return records


def test_all_of_every_status_goes_over(urls: tuple[str, str]) -> None:
    """Live, ending, ended and marks; in every field; and the digests say so."""
    old = open_store(urls[0])
    fill(old, 350)
    done = copied(*urls)
    new = open_store(urls[1])

    assert done.exit_code == 0, done.output
    assert "Copied 350" in done.output
    assert "Verified" in done.output
    assert list(map(digest_of, everything(old))) == list(map(digest_of, everything(new)))
    for status in (LIVE, ENDING, ENDED, MARK):
        assert old.count(None, status) == new.count(None, status) > 0
    assert new.list("user1") == old.list("user1")


def test_a_second_run_writes_nothing(urls: tuple[str, str]) -> None:
    """What is there already is counted, and left alone."""
    fill(open_store(urls[0]), 70)
    copied(*urls)
    again = copied(*urls)

    assert again.exit_code == 0
    assert "Copied 0; there already 70" in again.output


def test_an_empty_source_is_told(urls: tuple[str, str]) -> None:
    """A misspelt URL is that of an empty store, all of which is in the target: it says so."""
    done = copied(*urls)

    assert done.exit_code == 0
    assert "The source holds no records; is its URL the right one?" in done.output


def test_verify_only_copies_nothing(urls: tuple[str, str]) -> None:
    """It says what is missing, and fails."""
    fill(open_store(urls[0]), 7)
    done = copied(*urls, "--verify-only")

    assert done.exit_code == 1
    assert "7 are missing or older" in done.output
    assert open_store(urls[1]).count(None, None) == 0


def test_nothing_newer_is_overwritten() -> None:
    """The same or a higher version in the target stays; a lower one is brought up."""
    old, new = MemoryStore(), MemoryStore()
    newer, older = new_record(NOW, version=5), new_record(NOW, version=5)
    old.create(newer)
    old.create(older)
    new.create(changed(newer, version=6, data=b"newer"))
    new.create(changed(older, version=4, data=b"older"))
    done = run(copy(lambda _: None), (old, new))
    compared = run(compare(lambda _: None), (old, new))

    assert (done.copied, done.newer) == (1, 1)
    assert new.load(newer.sid) == changed(newer, version=6, data=b"newer")
    assert new.load(older.sid) == older
    assert (compared.newer, compared.different) == (1, [])


@pytest.mark.parametrize("status", [ENDING, ENDED])
def test_an_end_counts_more_than_a_version(status: int) -> None:
    """What has ended on one side has ended in the target, whatever the versions say."""
    old, new = MemoryStore(), MemoryStore()
    here, there = new_record(NOW), new_record(NOW, version=9)
    for record in (here, there):
        old.create(record)
        new.create(changed(record, version=5))
    ended = Ended(status, "user", NOW, NOW + 86400.0)
    old.delete(here.sid, ended)
    new.delete(there.sid, ended)
    run(copy(lambda _: None), (old, new))

    for record in (here, there):
        found = new.load(record.sid)
        assert found is not None
        assert (found.status, found.reason) == (status, "user")


def test_one_that_is_ending_ends() -> None:
    """Where the source has come to the end of a session, the target is brought there too."""
    old, new = MemoryStore(), MemoryStore()
    record = new_record(NOW)
    for store, status in ((old, ENDED), (new, ENDING)):
        store.create(record)
        store.delete(record.sid, Ended(status, "user", NOW, NOW + 86400.0))
    done = run(copy(lambda _: None), (old, new))

    found = new.load(record.sid)
    assert found is not None
    assert (done.ended, found.status, found.data) == (1, ENDED, b"")


def test_one_that_is_ending_is_not_claimed_at_once() -> None:
    """Its due time goes over to no store; it becomes a minute, in which its sweep can end it."""
    old, new = MemoryStore(), MemoryStore()
    record = new_record(NOW - 9000.0)
    old.create(record)
    old.due(NOW, 60.0)
    run(copy(lambda _: None, lambda: NOW), (old, new))

    assert new.due(NOW + 59.0, 60.0) == []
    assert [one.sid for one in new.due(NOW + 61.0, 60.0)] == [record.sid]


@pytest.mark.parametrize("numbers", [(0, 0), (0, 250), (250, 0), (99, 100), (100, 101), (300, 7)])
def test_both_are_read_side_by_side(numbers: tuple[int, int]) -> None:
    """Each sid of either store once, in order, also at the borders of pages."""
    stores = MemoryStore(), MemoryStore()
    shared = [new_record(NOW) for _ in range(min(numbers))][::2]
    wanted: list[dict[str, Record]] = [{}, {}]
    for store, records, number in zip(stores, wanted, numbers, strict=True):
        for record in [*shared, *(new_record(NOW) for _ in range(number - len(shared)))]:
            store.create(record)
            records[record.sid] = record
    rows, got = Joined(), []
    while page := run(rows.next(), stores):
        got += page

    assert [row.sid for row in got] == sorted(wanted[0] | wanted[1])
    assert all((row.old, row.new) == tuple(w.get(row.sid) for w in wanted) for row in got)


def test_killed_in_the_midst_it_goes_on(tmp_path: Path) -> None:
    """kill -9 at any moment: what is there is whole, and the next run brings the rest."""
    urls = f"sqlite:///{tmp_path}/old.db", f"sqlite:///{tmp_path}/new.db"
    old, new = open_store(urls[0]), open_store(urls[1])
    fill(old, 3000)
    wanted = {record.sid: digest_of(record) for record in everything(old)}
    command = [sys.executable, "-m", "sojourn.cli", "copy", *urls]
    for _ in range(2):
        there = new.count(None, None)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        # Its own progress says when: how long it takes to start depends on the machine.
        end = time.monotonic() + 30
        while new.count(None, None) < there + 200 and time.monotonic() < end:
            assert process.poll() is None
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kept = everything(new)
        assert there < len(kept) < 3000
        assert all(digest_of(record) == wanted[record.sid] for record in kept)
    done = copied(*urls)

    assert done.exit_code == 0, done.output
    assert {record.sid: digest_of(record) for record in everything(new)} == wanted


def test_damaged_records_are_told(urls: tuple[str, str], tmp_path: Path) -> None:
    """One in the source is counted, one in the way in the target is named."""
    old, new = open_store(urls[0]), open_store(urls[1])
    unreadable, blocked = new_record(NOW), new_record(NOW)
    for record in (unreadable, blocked):
        old.create(record)
    old.close()
    with contextlib.closing(apsw.Connection(str(tmp_path / "old.db"))) as connection:
        values = (unreadable.sid,)
        connection.execute("UPDATE sojourn_sessions SET head = x'' WHERE sid = ?", values)
    new.create(blocked)
    (path,) = (tmp_path / "new").rglob(blocked.sid.encode().hex())
    path.write_bytes(b"\xff" * 40)
    done = copied(*urls)

    assert done.exit_code == 1
    assert "1 of 2 records of the source could not be read" in done.output
    assert blocked.sid in done.output
    assert "1 are missing" in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sqlite:///x.db", "sqlite:///x.db"), "both URLs are the same"),
        (("nothing:x", "memory:"), "no store is known"),
        (("memory:", "sqlite:////nowhere/at/all.db"), "nowhere"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], words: str) -> None:
    """No traceback; what came and what to do."""
    done = copied(*arguments)

    assert done.exit_code == 1
    assert words in done.output
    assert "Traceback" not in done.output
