"""`DirectoryStore`: the contract in both colours, its files, what is due, and who looks on."""

from __future__ import annotations

import functools
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as changed

from sojourn.core.calls import SAVED
from sojourn.core.record import ENDED, ENDING, MARK, Ended
from sojourn.errors import ConfigurationError, StoreUnavailable
from sojourn.stores import _locks as locks
from sojourn.stores import directory as module
from sojourn.stores import open_store
from sojourn.stores.base import Store
from sojourn.stores.directory import DirectoryStore
from sojourn.stores.threaded import ThreadedStore
from sojourn.testing import CHECKS, Check, arun_check, new_record, next_version, run_check
from sojourn.testing.interleave import any_calls_agree_with_the_model

NOW = 1_750_000_000.0
DAY = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "sessions", lock_timeout=2.0)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Check, store: DirectoryStore) -> None:
    """The store keeps the contract, with threads."""
    run_check(check, store)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_with_fsync(check: Check, tmp_path: Path) -> None:
    """It keeps the same contract when it writes to the disk each time."""
    run_check(check, DirectoryStore(tmp_path, fsync=True))


@pytest.mark.anyio
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_contract_async(check: Check, tmp_path: Path) -> None:
    """It keeps the contract from an event loop, in threads."""
    store = ThreadedStore(DirectoryStore(tmp_path))
    try:
        await arun_check(check, store)
    finally:
        await store.close()


@pytest.mark.parametrize("seed", range(20))
def test_any_calls(seed: int, store: DirectoryStore) -> None:
    """Twenty fixed sequences of 300 calls get the answers of the model."""
    run_check(functools.partial(any_calls_agree_with_the_model, 300, seed), store)


def test_is_a_store(store: DirectoryStore) -> None:
    """It has every verb, and says what it promises."""
    assert isinstance(store, Store)
    assert store.promises.survives == "kill"
    assert DirectoryStore("x", fsync=True).promises.survives == "power"


# URLs and arguments


def test_url_relative_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slashes begin a relative path, four an absolute one; %-codes are read."""
    monkeypatch.chdir(tmp_path)

    for url, path in [
        ("directory:///a/b", tmp_path / "a" / "b"),
        (f"directory:///{tmp_path}/c", tmp_path / "c"),
        ("directory:///with%20space%3F", tmp_path / "with space?"),
    ]:
        record = new_record(NOW)
        assert open_store(url).create(record)
        assert DirectoryStore(path).load(record.sid) == record


def test_url_options(tmp_path: Path) -> None:
    """Options of a URL are those of the class."""
    store = DirectoryStore.from_url(f"directory:///{tmp_path}?fsync=true&lock_timeout=0.5")

    assert store.promises.survives == "power"
    assert DirectoryStore.from_url("directory:///x?fsync=false").promises.survives == "kill"


def test_url_with_faults_names_them_all() -> None:
    """A URL that is not understood is refused, with every fault at once."""
    with pytest.raises(ConfigurationError) as caught:
        DirectoryStore.from_url("directory://relative?fsync=yes&sync=1")

    for part in ("host", "no path", "fsync='yes'", "sync='1'", "fsync=true"):
        assert part in str(caught.value)


def test_a_relative_path_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that changes its working directory later does not change the store."""
    monkeypatch.chdir(tmp_path)
    store = DirectoryStore("sessions")
    monkeypatch.chdir("/")
    store.count()

    assert (tmp_path / "sessions" / "records").is_dir()


@pytest.mark.parametrize("sid", ["", "a" * 21, "a" * 23, "../../../etc/passwd..!", "a" * 21 + "\n"])
def test_no_text_becomes_a_path(sid: str, store: DirectoryStore) -> None:
    """What is not a sid is refused before it comes near a path."""
    for call in (store.load, store.delete):
        with pytest.raises(ValueError, match="22 characters"):
            call(sid)


# Files


def every_path(root: Path) -> list[Path]:
    return [root, *root.rglob("*")]


def test_modes(tmp_path: Path) -> None:
    """Folders have mode 0700 and files 0600, whatever the umask allows."""
    before = os.umask(0)
    try:
        store = DirectoryStore(tmp_path / "sessions")
        record = new_record(NOW, user="alice")
        store.create(record)
        store.touch(record.sid, 1, NOW, NOW + DAY)
        (tmp_path / "sessions" / "records" / "2d" / ("2d" * 22)).write_bytes(b"damaged")
        store.delete("-" * 22)
        store.due(NOW, 60.0)
    finally:
        os.umask(before)

    ours = [path for path in every_path(tmp_path / "sessions") if path.parent.name != "damaged"]
    assert len(ours) > 70
    for path in ours:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_names_survive_the_folding_of_case(store: DirectoryStore, tmp_path: Path) -> None:
    """Two sids that differ in case only have names that differ otherwise too."""
    for sid in ("abcdefghijklmnopqrstuv", "ABCDEFGHIJKLMNOPQRSTUV", "abcdefghijklmnopqrstuV"):
        store.create(new_record(NOW, sid=sid, user="alice"))

    for folder in ("records", "users"):
        names = [p.name for p in every_path(tmp_path / "sessions" / folder) if p.is_file()]
        assert len({name.casefold() for name in names}) == len(names) == 3


def test_nothing_is_left_of_what_was_removed(store: DirectoryStore, tmp_path: Path) -> None:
    """A removed session leaves no file but the lock, and after its time no entry."""
    record = new_record(NOW, user="alice")
    store.create(record)
    store.delete(record.sid)
    store.due(NOW + DAY, 60.0)

    left = [p for p in every_path(tmp_path) if p.is_file() and p.parent.name != "locks"]
    assert left == []
    assert [*(tmp_path / "sessions" / "users").glob("*/*")] == []


def test_foreign_files_are_left_alone(store: DirectoryStore, tmp_path: Path) -> None:
    """Files that the store did not make are neither read, moved nor removed by any verb."""
    store.count()
    root = tmp_path / "sessions"
    ten_years_ago = NOW - 3650 * DAY
    foreign = [root / "README", tmp_path / "beside"]
    for folder in ("records", "records/41", "new", "due", "users", "locks", "damaged"):
        for name in ("README", "41" * 22 + "x", ".hidden", "00000000-zz", "0" * 32 + ".tmp"):
            foreign.append(root / folder / name)
    for path in foreign:
        path.write_bytes(b"not yours")
        os.utime(path, (ten_years_ago, ten_years_ago))

    record = new_record(NOW, sid="A" * 22, user="alice")
    store.create(record)
    assert store.list() == store.list("alice") == [record]
    assert len(store.due(NOW + DAY, 60.0)) == 1
    store.delete(record.sid)

    for path in foreign:
        assert path.read_bytes() == b"not yours"
        assert path.stat().st_mtime == ten_years_ago


def test_a_touch_writes_no_data(store: DirectoryStore, tmp_path: Path) -> None:
    """A touch of a session of 1 MB leaves its file in place and its body unwritten."""
    record = new_record(NOW, data=os.urandom(1_000_000))
    store.create(record)
    (path,) = (tmp_path / "sessions" / "records" / record.sid[:1].encode().hex()).iterdir()
    before, whole = path.stat(), path.read_bytes()

    for version in range(1, 6):
        assert store.touch(record.sid, version, NOW + version, NOW + DAY + version)

    assert path.stat().st_ino == before.st_ino
    assert path.read_bytes()[120:] == whole[120:]
    assert path.read_bytes()[:120] != whole[:120]
    assert store.load(record.sid) == changed(
        record, version=6, seen=NOW + 5, deadline=NOW + DAY + 5
    )


def test_a_touch_that_was_cut_in_two_costs_only_that_touch(
    store: DirectoryStore, tmp_path: Path
) -> None:
    """A slot that lost its power halfway leaves the record as it was before that touch."""
    record = new_record(NOW)
    store.create(record)
    (path,) = (tmp_path / "sessions" / "records").glob("*/*")
    for version in (1, 2, 3):
        before = path.read_bytes()
        kept = store.load(record.sid)
        store.touch(record.sid, version, NOW + version, NOW + DAY + version)
        after = path.read_bytes()
        assert before != after
        for cut in range(16, 120):
            torn = after[:cut] + before[cut:]
            path.write_bytes(torn)
            assert store.load(record.sid) in (
                kept,
                changed(
                    kept, version=version + 1, seen=NOW + version, deadline=NOW + DAY + version
                ),
            )
            if torn not in (before, after):
                assert store.load(record.sid) == kept
        path.write_bytes(after)


def test_loads_meet_whole_records_only(store: DirectoryStore) -> None:
    """Loads without a lock, beside touches and replaces, see versions that only grow."""
    record = new_record(NOW, data=bytes(200_000))
    store.create(record)
    call = (
        "import sys, time; from sojourn.stores.directory import DirectoryStore\n"
        "from sojourn.testing import next_version\n"
        "store = DirectoryStore(sys.argv[1]); sid = sys.argv[2]; record = store.load(sid)\n"
        "for i in range(400):\n"
        "    if i % 4 == 0:\n"
        "        new = next_version(record, data=bytes([i % 256]) * 200_000)\n"
        "        store.replace(new, record.version); record = new\n"
        "    else:\n"
        "        store.touch(sid, record.version, i, i); record = next_version(record)\n"
    )
    writer = run_python(call, store._root, record.sid)
    version = loads = 0
    while version < 401:
        found = store.load(record.sid)
        assert found is not None
        assert found.version >= version
        assert len({*found.data}) == 1
        version = found.version
        loads += 1
        if writer.poll() is not None:
            assert writer.returncode == 0
    writer.wait()

    assert loads > 100


def run_python(code: str, *args: str, **kwargs: Any) -> subprocess.Popen[str]:
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env={**os.environ, "PYTHONPATH": paths},
        text=True,
        **kwargs,
    )


# Several processes

ADD = """
import sys
from sojourn.core.calls import SAVED
from sojourn.stores.directory import DirectoryStore
from sojourn.testing import next_version
store, sid = DirectoryStore(sys.argv[1], lock_timeout=30), sys.argv[2]
current = store.load(sid)
for _ in range(250):
    while True:
        newer = next_version(current, data=b"%d" % (int(current.data) + 1))
        answer = store.replace(newer, current.version)
        if answer is SAVED:
            current = newer
            break
        current = answer
"""


def test_increments_of_eight_processes_are_all_kept(store: DirectoryStore) -> None:
    """Eight processes that add 250 times each by compare-and-swap lose no increment."""
    record = new_record(NOW, data=b"0")
    store.create(record)
    adders = [run_python(ADD, store._root, record.sid) for _ in range(8)]
    for adder in adders:
        assert adder.wait(100) == 0

    last = store.load(record.sid)
    assert last is not None
    assert (int(last.data), last.version) == (2000, 2001)


def test_a_stopped_holder_of_a_lock_is_waited_for_only_so_long(tmp_path: Path) -> None:
    """Where another process holds the lock and hangs, a write fails in time; a load goes on."""
    store = DirectoryStore(tmp_path, lock_timeout=0.2)
    record = new_record(NOW)
    store.create(record)
    hold = (
        "import sys; from sojourn.stores._locks import Locks\n"
        "with Locks(sys.argv[1], 1.0).hold(sys.argv[2]): print('held', flush=True); input()\n"
    )
    holder = run_python(
        hold,
        str(tmp_path / "locks"),
        record.sid[:1].encode().hex(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        assert holder.stdout.readline() == "held\n"
        before = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"locks.* held by other .*lsof"):
            store.replace(next_version(record), 1)
        assert 0.2 <= time.monotonic() - before < 5.0
        assert store.load(record.sid) == record
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()

    assert store.replace(next_version(record), 1) is SAVED


FORKS = """
import os, sys, threading
from sojourn.errors import StoreUnavailable
from sojourn.stores.directory import DirectoryStore
from sojourn.testing import new_record
store = DirectoryStore(sys.argv[1], lock_timeout=0.2)
store.count()
held, let_go = threading.Event(), threading.Event()
def hold():
    with store._locks.hold("41"):
        held.set()
        let_go.wait()
holder = threading.Thread(target=hold)
holder.start()
held.wait()
at, done = os.pipe(), os.pipe()
child = os.fork()
if not child:
    try:
        store.create(new_record(1.0, sid="A" * 22))
        os._exit(1)  # it wrote beside the parent's thread
    except StoreUnavailable:
        os.write(done[1], b".")
    os.read(at[0], 1)
    os._exit(0 if store.create(new_record(1.0, sid="A" * 22)) else 2)
if os.read(done[0], 1):
    let_go.set()
    holder.join()
    os.write(at[1], b".")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_inherits_no_lock(tmp_path: Path) -> None:
    """A fork waits for its parent's threads as for any process, and no longer than they hold."""
    child = run_python(FORKS, str(tmp_path))
    assert child.wait(30) == 0


def test_a_lock_file_that_was_deleted_locks_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waited for a lock file that somebody tidied away meets nobody who took the new one."""
    waits, inside = threading.Event(), threading.Event()
    real = locks._try_lock

    def watched(fd: int) -> bool:
        taken = real(fd)
        if not taken:
            waits.set()
        return taken

    monkeypatch.setattr(locks, "_try_lock", watched)
    # Each of its own, or the three would queue before they come to the file.
    first, second, third = (locks.Locks(str(tmp_path), 10.0) for _ in range(3))

    def wait_for_it() -> None:
        with second.hold("41"):
            inside.set()

    waiter = threading.Thread(target=wait_for_it)
    old = first.hold("41")
    old.__enter__()
    waiter.start()
    assert waits.wait(5.0)
    (tmp_path / "41").unlink()
    with third.hold("41"):
        old.__exit__()
        waits.clear()
        assert waits.wait(5.0)  # now for the new file
        assert not inside.is_set()
    waiter.join(5.0)

    assert inside.is_set()


# What is due


def test_due_opens_only_what_is_due(store: DirectoryStore) -> None:
    """Of 10,000 sessions a sweep opens the ten that are over, and no other."""
    records = [
        new_record(NOW, deadline=NOW + (10.0 if index % 1000 == 0 else DAY + index))
        for index in range(10_000)
    ]
    for record in records:
        store.create(record)
    with opened_files() as opened:
        claimed = store.due(NOW + 10.0, 60.0)
    over = {record.sid for record in records[::1000]}

    assert {record.sid for record in claimed} == over
    names = {os.path.basename(path) for path in opened if f"{os.sep}records{os.sep}" in path}
    assert names == {sid.encode().hex() for sid in over}

    with opened_files() as opened:
        assert store.due(NOW + 20.0, 60.0) == []
    assert [path for path in opened if f"{os.sep}records{os.sep}" in path] == []
    assert len(opened) <= 64


_watchers: list[list[str]] = []


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(args[0], str):
        for watcher in _watchers:
            watcher.append(args[0])


class opened_files:
    """Which files are opened while it is entered, as an audit hook tells."""

    added = False

    def __enter__(self) -> list[str]:
        if not opened_files.added:
            sys.addaudithook(_watch)  # which nothing removes
            opened_files.added = True
        _watchers.append([])
        return _watchers[-1]

    def __exit__(self, *error: object) -> None:
        _watchers.pop()


def test_due_finds_what_no_journal_names(store: DirectoryStore, tmp_path: Path) -> None:
    """What a loss of power took from the journals, or came from a backup, is found again."""
    records = [new_record(NOW, deadline=NOW + index) for index in range(20)]
    for record in records:
        store.create(record)
    for path in (tmp_path / "sessions" / "due").iterdir():
        path.unlink()

    wanted = sorted(record.sid for record in records)
    found = DirectoryStore(tmp_path / "sessions").due(NOW + 60.0, 600.0)
    assert sorted(record.sid for record in found) == wanted


def test_due_looks_for_lost_ones_once_a_day(store: DirectoryStore, tmp_path: Path) -> None:
    """A store that runs on finds them within a day, and compares no names before."""
    store.due(NOW, 60.0)
    record = new_record(NOW, deadline=NOW + 1.0)
    store.create(record)
    for path in (tmp_path / "sessions" / "due").iterdir():
        path.unlink()

    assert store.due(NOW + DAY - 1.0, 60.0) == []
    assert [r.sid for r in store.due(NOW + DAY, 60.0)] == [record.sid]


def test_due_keeps_the_rest_of_a_damaged_journal(store: DirectoryStore, tmp_path: Path) -> None:
    """An entry that a full disk cut short spoils neither the one before nor the one behind."""
    store.due(NOW, 60.0)
    first, second = new_record(NOW, sid="A" * 22), new_record(NOW, sid="AB" * 11)
    store.create(first)
    (journal,) = (tmp_path / "sessions" / "due").iterdir()
    with journal.open("ab") as file:
        file.write(b"\nABCDEFGHIJ")
    store.create(second)

    found = store.due(NOW + 3600.0, 60.0)
    assert sorted(record.sid for record in found) == [first.sid, second.sid]
    assert store.due(NOW + 3600.0, 60.0) == []


def test_due_holds_no_lock_for_long(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep of many sessions of one folder lets others in between, and forgets none."""
    for index in range(100):
        store.create(new_record(NOW, sid=f"A{index:021d}", deadline=NOW + index / 100))
    holds: list[str] = []
    hold = store._locks.hold

    def note(name: str) -> Any:
        holds.append(name)
        return hold(name)

    monkeypatch.setattr(store._locks, "hold", note)
    monkeypatch.setattr(module, "_HOLD", 0.0)

    found = store.due(NOW + 60.0, 600.0)
    assert [record.sid for record in found] == [f"A{index:021d}" for index in range(100)]
    assert holds == ["41"] * 100


def test_due_tidies_up_after_killed_writers(store: DirectoryStore, tmp_path: Path) -> None:
    """Files that were never renamed go when they are an hour old, by the time given to due."""
    store.count()
    left = tmp_path / "sessions" / "new" / ("0" * 32 + ".new")
    left.write_bytes(b"half a record")
    os.utime(left, (NOW, NOW))

    store.due(NOW + 3600.0, 60.0)
    assert left.exists()
    store.due(NOW + 3601.0, 60.0)
    assert not left.exists()


def test_due_returns_what_it_claimed_before_a_fault(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk fails halfway, what is leased to the caller reaches the caller."""
    for index in range(10):
        store.create(new_record(NOW, deadline=NOW + index))
    real, writes = DirectoryStore._update, []

    def fails_later(self: DirectoryStore, *args: Any, **kwargs: Any) -> None:
        writes.append(args)
        if len(writes) > 4:
            raise OSError(5, "Input/output error", "disk")
        real(self, *args, **kwargs)

    monkeypatch.setattr(DirectoryStore, "_update", fails_later)
    first = store.due(NOW + 60.0, 600.0)
    assert len(first) == 4
    with pytest.raises(StoreUnavailable, match="look at the disk"):
        store.due(NOW + 60.0, 600.0)
    monkeypatch.setattr(DirectoryStore, "_update", real)
    second = store.due(NOW + 60.0, 600.0)
    assert len({record.sid for record in first + second}) == 10


@pytest.mark.parametrize("deadline", [float("inf"), 1e300, -5.0, 0.0])
def test_deadlines_of_any_size(deadline: float, store: DirectoryStore) -> None:
    """A session without a limit, or with one before 1970, has a place among the due ones."""
    record = new_record(NOW, deadline=deadline)
    store.create(record)

    found = store.due(NOW, 60.0)
    assert [r.sid for r in found] == ([] if deadline > NOW else [record.sid])
    assert store.load(record.sid) is not None


# Users


def test_a_marker_that_a_killed_writer_left_is_stale(store: DirectoryStore, tmp_path: Path) -> None:
    """A name in a user's folder counts only if the record says the same, and else is removed."""
    mine, theirs = new_record(NOW, user="alice"), new_record(NOW, user="bob")
    store.create(mine)
    store.create(theirs)
    store._mark_user("alice", theirs.sid)
    store._mark_user("alice", "A" * 22)

    assert store.list("alice") == [mine]
    assert store.count("alice") == 1
    (left,) = Path(store._user_folder("alice")).iterdir()
    assert left.name == mine.sid.encode().hex()


def test_a_user_folder_that_vanishes_is_made_again(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login loses no race against the end of the user's only other session."""
    other = new_record(NOW, user="alice")
    store.create(other)
    made = module._make_folder
    lost: list[str] = []

    def make_then_lose(path: str) -> None:
        made(path)
        if path == store._user_folder("alice") and not lost:
            lost.append(path)
            store._unmark_user("alice", other.sid)
            assert not os.path.exists(path)

    monkeypatch.setattr(module, "_make_folder", make_then_lose)
    record = new_record(NOW, user="alice")
    assert store.create(record)

    assert lost
    assert store.list("alice") == [record]


# Platforms

WITHOUT_FCNTL = """
import os, sys, types
from sojourn.testing import new_record  # whose own imports need a real platform
sys.modules["fcntl"] = None
calls = []
def locking(fd, mode, length):
    calls.append((mode, length, os.lseek(fd, 0, os.SEEK_CUR)))
    os.lockf(fd, os.F_ULOCK if mode == 0 else os.F_TLOCK, length)
sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2, LK_UNLCK=0)
from sojourn.stores.directory import DirectoryStore
store = DirectoryStore(sys.argv[1])
record = new_record(1.0)
assert store.create(record) and store.load(record.sid) == record
assert calls == [(2, 1, 0), (0, 1, 0)], calls
"""


def test_without_fcntl(tmp_path: Path) -> None:
    """On a platform that has no fcntl the module can be imported, and locks by msvcrt."""
    assert run_python(WITHOUT_FCNTL, str(tmp_path)).wait(30) == 0


def test_windows_is_asked_again_while_a_reader_has_the_file(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Windows refuses while the file is open elsewhere is tried again, but not for ever."""
    record = new_record(NOW)
    store.create(record)
    monkeypatch.setattr(module, "_WINDOWS", True)
    real, refusals = os.replace, 3

    def busy(*args: Any) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise PermissionError(13, "The process cannot access the file")
        real(*args)

    monkeypatch.setattr(os, "replace", busy)
    assert store.replace(next_version(record), 1) is SAVED
    refusals = 1000
    with pytest.raises(StoreUnavailable):
        store.replace(changed(record, version=3), 2)
    monkeypatch.undo()

    found = store.load(record.sid)
    assert found is not None
    assert found.version == 2


# The whole directory


def test_a_directory_that_was_taken_away_ends_no_session(tmp_path: Path) -> None:
    """While the directory is gone nothing is answered; when it is back, all is there."""
    store = DirectoryStore(tmp_path / "sessions")
    record = new_record(NOW)
    store.create(record)
    (tmp_path / "sessions").rename(tmp_path / "elsewhere")

    for call in (
        lambda: store.load(record.sid),
        lambda: store.create(new_record(NOW)),
        lambda: store.delete(record.sid),
        lambda: store.due(NOW, 60.0),
        lambda: store.count(),
    ):
        with pytest.raises(StoreUnavailable, match="mount it again"):
            call()
    assert not (tmp_path / "sessions").exists()

    (tmp_path / "elsewhere").rename(tmp_path / "sessions")
    assert store.load(record.sid) == record


def test_close_begins_anew(tmp_path: Path) -> None:
    """After close, the next call makes the folders that are missing."""
    store = DirectoryStore(tmp_path / "sessions")
    store.count()
    (tmp_path / "sessions").rename(tmp_path / "elsewhere")
    store.close()

    assert store.load("A" * 22) is None
    assert store.create(new_record(NOW))


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    """A path that is a file is told, and not at the start of the application."""
    (tmp_path / "sessions").write_bytes(b"")
    store = DirectoryStore(tmp_path / "sessions")

    with pytest.raises(StoreUnavailable, match="sessions"):
        store.load("A" * 22)


def test_the_directory_itself_may_be_a_link(tmp_path: Path) -> None:
    """An operator may put the directory elsewhere by a link."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "sessions").symlink_to(tmp_path / "disk")
    record = new_record(NOW)

    assert DirectoryStore(tmp_path / "sessions").create(record)
    assert DirectoryStore(tmp_path / "disk").load(record.sid) == record


@pytest.fixture
def durable(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was put on the disk: the names of files and folders given to fsync."""
    synced: list[str] = []
    real = os.fsync

    def note(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        synced.append(os.path.basename(os.path.dirname(path)) + "/" + os.path.basename(path))
        real(fd)

    monkeypatch.setattr(os, "fsync", note)
    return synced


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="the names of open files: no /proc")
def test_an_end_is_always_on_the_disk(store: DirectoryStore, durable: list[str]) -> None:
    """Without fsync nothing but the end of a session waits for the disk; with it, everything."""
    now = NOW
    for ended in (None, Ended(ENDED, "user", now, now + DAY), Ended(ENDING, "user", now, now)):
        record = new_record(now, user="alice", sid="A" * 22)
        store.create(record)
        store.replace(next_version(record), 1)
        store.touch(record.sid, 2, now, now + DAY)
        assert durable == []
        assert store.delete(record.sid, ended)
        assert "records/41" in durable
        assert ended is None or any(name.startswith("new/") for name in durable)
        durable.clear()
        store.delete(record.sid)
        durable.clear()

    careful = DirectoryStore(store._root, fsync=True)
    careful.count()
    durable.clear()
    careful.create(new_record(now, user="alice", sid="A" * 22))
    folder = os.path.basename(careful._user_folder("alice"))
    order = [name for name in durable if name.endswith(folder) or name[:4] in ("new/", "reco")]
    assert [name[:4] for name in order] == [f"{folder[:2]}/{folder[:1]}", "new/", "reco"]
    durable.clear()
    careful.touch("A" * 22, 1, now, now + DAY)
    assert durable == ["41/" + "41" * 22]


def test_statuses_of_all_kinds_are_swept(store: DirectoryStore, tmp_path: Path) -> None:
    """When all is over, nothing is left but what handlers are owed."""
    records = [new_record(NOW, status=status, deadline=NOW) for status in (0, ENDED, MARK)]
    for record in records:
        store.create(record)
    (claimed,) = store.due(NOW, 60.0)

    assert store.list(status=None) == [claimed]
    store.delete(claimed.sid)
    assert store.due(NOW + DAY, 60.0) == []
    assert [*(tmp_path / "sessions" / "due").iterdir()] == []
