"""`DirectoryStore` and files that are no records: flipped, cut, foreign, links, folders, fifos."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sojourn.core.calls import GONE
from sojourn.core.record import ENDED, ENDING, Ended, Record
from sojourn.errors import DamagedRecord, StoreUnavailable
from sojourn.stores.directory import DirectoryStore
from sojourn.testing import new_record, next_version

NOW = 1_750_000_000.0
DAY = 86400.0
HEAD = 120
SECOND_SLOT = range(68, 120)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "sessions", lock_timeout=2.0)


def path_of(store: DirectoryStore, record: Record) -> Path:
    name = record.sid.encode().hex()
    return Path(store._root) / "records" / name[:2] / name


def assert_damaged(store: DirectoryStore, record: Record) -> None:
    for call in (
        lambda: store.load(record.sid),
        lambda: store.replace(next_version(record), record.version),
    ):
        with pytest.raises(DamagedRecord, match=record.sid):
            call()


def test_every_flipped_bit_is_found(store: DirectoryStore) -> None:
    """Whichever bit of a file flips, nothing but that very record or `DamagedRecord` comes out."""
    record = new_record(NOW, user="alice", data=b"words " * 30)
    store.create(record)
    path = path_of(store, record)
    whole = path.read_bytes()
    harmless = set()
    with path.open("r+b", buffering=0) as file:
        for position in range(len(whole)):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([whole[position] ^ (1 << bit)]), position)
                try:
                    assert store.load(record.sid) == record
                    harmless.add(position)
                except DamagedRecord:
                    pass
            os.pwrite(file.fileno(), whole[position : position + 1], position)

    # Nothing but the slot that no touch has used yet may differ without harm.
    assert harmless == {*SECOND_SLOT}


def test_a_flipped_bit_of_a_touch_costs_at_most_that_touch(store: DirectoryStore) -> None:
    """After a touch there are two states in the file; a flipped bit gives one of them."""
    record = new_record(NOW)
    store.create(record)
    path = path_of(store, record)
    store.touch(record.sid, 1, NOW + 1.0, NOW + DAY)
    touched, whole = store.load(record.sid), path.read_bytes()
    answers = set()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            found = store.load(record.sid)
        except DamagedRecord:
            answers.add((position in range(16, HEAD), "damaged"))
            continue
        assert found in (record, touched)
        answers.add((position in SECOND_SLOT, "before" if found == record else "after"))

    assert answers == {(False, "damaged"), (True, "before"), (False, "after")}


def test_every_cut_is_found(store: DirectoryStore) -> None:
    """A file that ends too early, at whichever byte, or goes on too long is damaged."""
    record = new_record(NOW, data=b"words " * 30)
    store.create(record)
    path = path_of(store, record)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedRecord):
            store.load(record.sid)
    path.write_bytes(whole + b"\0")
    with pytest.raises(DamagedRecord):
        store.load(record.sid)
    path.write_bytes(whole)

    assert store.load(record.sid) == record


@pytest.mark.parametrize("size", [72 * 1024 - 300, 72 * 1024, 1_000_000])
def test_large_files_are_checked_too(size: int, store: DirectoryStore) -> None:
    """A file that is read in several pieces is checked as a whole."""
    record = new_record(NOW, data=bytes(size))
    store.create(record)
    path = path_of(store, record)
    whole = path.read_bytes()
    assert store.load(record.sid) == record
    for broken in (whole[:-1], whole[:-1] + b"\1", whole[:size] + b"\1" + whole[size + 1 :]):
        path.write_bytes(broken)
        with pytest.raises(DamagedRecord):
            store.load(record.sid)


def test_a_record_under_another_name_is_nobodys(store: DirectoryStore) -> None:
    """A file that was copied over another session's gives nobody somebody else's data."""
    mine, theirs = new_record(NOW, user="alice"), new_record(NOW, user="bob")
    store.create(mine)
    store.create(theirs)
    path_of(store, mine).write_bytes(path_of(store, theirs).read_bytes())

    with pytest.raises(DamagedRecord, match=theirs.sid):
        store.load(mine.sid)


def test_a_newer_format_says_so(store: DirectoryStore) -> None:
    """What a newer release wrote is told apart from rubbish."""
    record = new_record(NOW)
    store.create(record)
    path = path_of(store, record)
    path.write_bytes(b"Sojourn\x02" + path.read_bytes()[8:])

    with pytest.raises(DamagedRecord, match="format is 2, and this release reads 1"):
        store.load(record.sid)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def json(path: Path) -> None:
    path.write_bytes(b'{"user": "alice"}' * 100)


def pickled(path: Path) -> None:
    path.write_bytes(b"\x80\x04cposix\nsystem\n(S'true'\ntR." + bytes(200))


def folder(path: Path) -> None:
    path.mkdir()
    (path / "kept").write_bytes(b"by the operator")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link_to_null(path: Path) -> None:
    path.symlink_to("/dev/null")


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def link_to_secret(path: Path) -> None:
    secret = path.with_name("secret")
    secret.write_bytes(b"untouched")
    path.symlink_to(secret)


def unix_socket(path: Path) -> None:
    before = os.getcwd()
    os.chdir(path.parent)  # as the whole path is too long for a socket
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


IN_PLACE = [
    empty,
    json,
    pickled,
    folder,
    fifo,
    link_to_null,
    link_to_nothing,
    link_to_secret,
    unix_socket,
]


@pytest.fixture(params=IN_PLACE, ids=lambda put: put.__name__)
def damaged(store: DirectoryStore, request: pytest.FixtureRequest) -> Iterator[Record]:
    """A session with something else in the place of its file."""
    record = new_record(NOW, user="alice", deadline=NOW + 60.0)
    store.create(record)
    path = path_of(store, record)
    path.unlink()
    request.param(path)
    yield record
    secret = path.with_name("secret")
    assert secret.exists() == (request.param is link_to_secret)
    assert not secret.exists() or secret.read_bytes() == b"untouched"


def test_every_verb_meets_it(store: DirectoryStore, damaged: Record) -> None:
    """Each verb answers as its contract says, at once, and `create` takes the sid as taken."""
    assert_damaged(store, damaged)
    with pytest.raises(DamagedRecord):
        store.touch(damaged.sid, 1, NOW, NOW + DAY)
    assert store.create(damaged) is False
    assert store.list() == store.list("alice") == []
    assert store.count() == 0


@pytest.mark.parametrize(
    "ended", [None, Ended(ENDING, "user", NOW, NOW), Ended(ENDED, "damaged", NOW, NOW + DAY)]
)
def test_delete_sets_it_aside(
    store: DirectoryStore,
    damaged: Record,
    ended: Ended | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`delete` moves it to where an operator can look, and writes one line."""
    before = os.lstat(path_of(store, damaged))

    assert store.delete(damaged.sid, ended) is True
    (aside,) = (Path(store._root) / "damaged").iterdir()
    assert aside.name.startswith(damaged.sid + ".")
    assert os.lstat(aside).st_ino == before.st_ino
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert damaged.sid in line.getMessage()
    assert str(aside) in line.getMessage()

    assert store.load(damaged.sid) is None
    assert store.delete(damaged.sid, ended) is False
    assert store.replace(next_version(damaged), 1) is GONE
    assert store.list("alice") == []


def test_due_sets_it_aside(
    store: DirectoryStore, damaged: Record, caplog: pytest.LogCaptureFixture
) -> None:
    """`due` passes it over, moves it away and writes one line; others are claimed as ever."""
    other = new_record(NOW, deadline=NOW + 61.0)
    store.create(other)

    assert [record.sid for record in store.due(NOW + 120.0, 600.0)] == [other.sid]
    assert len(caplog.records) == 1
    assert len([*(Path(store._root) / "damaged").iterdir()]) == 1
    assert store.due(NOW + 120.0, 600.0) == []
    assert len(caplog.records) == 1


def test_due_sets_aside_what_no_journal_names(store: DirectoryStore) -> None:
    """A damaged file with no entry is found by the daily comparison."""
    record = new_record(NOW)
    store.create(record)
    path_of(store, record).write_bytes(b"")
    for journal in (Path(store._root) / "due").iterdir():
        journal.unlink()

    assert store.due(NOW, 60.0) == []
    assert len([*(Path(store._root) / "damaged").iterdir()]) == 1


@pytest.mark.parametrize("put", [folder, fifo, link_to_null, link_to_secret, link_to_nothing])
def test_a_journal_that_is_none(
    store: DirectoryStore, put: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """A link or folder in the place of a journal is set aside, never followed."""
    record = new_record(NOW, sid="A" * 22)
    store.create(record)
    (journal,) = (Path(store._root) / "due").iterdir()
    journal.unlink()
    put(journal)
    other = new_record(NOW, sid="AB" * 11)
    assert store.create(other)
    found = store.due(NOW + DAY, 60.0)

    assert sorted(r.sid for r in found) == [record.sid, other.sid]
    assert len(caplog.records) == 1
    secret = journal.with_name("secret")
    assert not secret.exists() or secret.read_bytes() == b"untouched"


@pytest.mark.parametrize("name", ["records", "records/41", "due", "users", "new", "damaged"])
def test_a_folder_that_is_a_link_is_not_used(name: str, tmp_path: Path) -> None:
    """A link in the place of one of the store's folders stops the store, and is told."""
    root, elsewhere = tmp_path / "sessions", tmp_path / "elsewhere"
    DirectoryStore(root).count()
    (root / name).rename(elsewhere)
    (root / name).symlink_to(elsewhere)
    store = DirectoryStore(root)

    with pytest.raises(StoreUnavailable, match=rf"{name}.*links are never followed"):
        store.create(new_record(NOW, sid="A" * 22))
    assert [path for path in elsewhere.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("user_folder", [True, False])
def test_a_users_folder_that_is_a_link_is_not_used(user_folder: bool, tmp_path: Path) -> None:
    """Neither the folder of a user nor the lock is written through a link."""
    store = DirectoryStore(tmp_path / "sessions")
    store.count()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if user_folder:
        path = Path(store._user_folder("alice"))
        path.parent.mkdir()
        path.symlink_to(elsewhere)
    else:
        (tmp_path / "sessions" / "locks" / "41").symlink_to(elsewhere / "lock")

    with pytest.raises(StoreUnavailable, match="links are never followed"):
        store.create(new_record(NOW, sid="A" * 22, user="alice"))
    assert [*elsewhere.iterdir()] == []
    assert store.load("A" * 22) is None


def test_a_fifo_with_a_writer_hangs_nobody(store: DirectoryStore) -> None:
    """Not even a fifo that somebody writes to delays a load."""
    record = new_record(NOW)
    store.create(record)
    path = path_of(store, record)
    path.unlink()
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    answers: list[object] = []

    def load() -> None:
        try:
            answers.append(store.load(record.sid))
        except DamagedRecord as error:
            answers.append(error)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(10.0)
    os.close(writer)

    assert isinstance(answers[0], DamagedRecord)
