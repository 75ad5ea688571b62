"""The SQLite store with other processes, killed ones, forks, locks and full disks."""

import json
import os
import random
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest

from sojourn.core.calls import SAVED
from sojourn.core.record import ENDED, Ended, Record
from sojourn.errors import StoreUnavailable
from sojourn.stores.sqlite import SqliteStore
from sojourn.testing import new_record, next_version

NOW = 1_750_000_000.5

PRELUDE = """
import json, os, sys, time
from pathlib import Path
import apsw
from sojourn.core.calls import GONE, SAVED
from sojourn.core.record import ENDED, Ended, Record
from sojourn.errors import *
from sojourn.stores import sqlite
from sojourn.stores.sqlite import SqliteStore
from sojourn.testing import new_record, next_version
NOW = 1_750_000_000.5
path, *args = sys.argv[1:]
"""


def start(script: str, path: Path, *args: object) -> subprocess.Popen[str]:
    """Run a script in a process of its own; it has `path`, `args` and the names of the prelude."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script), str(path), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def finish(process: subprocess.Popen[str]) -> Any:
    """Wait for its end, and return what it printed last, as JSON."""
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0, out
    return json.loads(out.splitlines()[-1]) if out else None


def check_integrity(path: Path) -> None:
    connection = apsw.Connection(str(path))
    assert connection.pragma("integrity_check") == "ok"
    connection.close()


# Several processes on one file


def test_two_processes(tmp_path: Path) -> None:
    """What one process did, the other sees at once: a write, an end, a claim."""
    path = tmp_path / "a.db"
    store = SqliteStore(path)
    records = [new_record(NOW), new_record(NOW), new_record(NOW - 9999, deadline=NOW - 60)]
    for record in records:
        store.create(record)
    other = start(
        """
        store = SqliteStore(path)
        for line in sys.stdin:
            sid = line.strip()
            record = store.load(sid)
            print(json.dumps([record.version, record.status, record.data.decode()]), flush=True)
        """,
        path,
    )

    def seen(sid: str) -> Any:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write(sid + "\n")
        other.stdin.flush()
        return json.loads(other.stdout.readline())

    assert seen(records[0].sid) == [1, 0, "as created"]
    store.replace(next_version(records[0], data=b"newer"), 1)
    assert seen(records[0].sid) == [2, 0, "newer"]
    store.delete(records[1].sid, Ended(ENDED, "user", NOW, NOW + 60))
    assert seen(records[1].sid) == [2, 2, ""]
    store.due(NOW, 60.0)
    assert seen(records[2].sid) == [2, 1, "as created"]
    other.communicate()
    store.close()


def test_no_increment_is_lost(tmp_path: Path) -> None:
    """8 processes add 1 to one record by compare-and-swap, 200 times each: it says 1,600."""
    path = tmp_path / "a.db"
    store = SqliteStore(path)
    record = new_record(NOW, data=b"0")
    store.create(record)
    script = """
        import os

        store = SqliteStore(path, busy_timeout=30.0)
        conflicts = 0
        open(os.path.join(args[1], str(os.getpid())), "w").close()
        while len(os.listdir(args[1])) < 8:
            pass
        for _ in range(200):
            current = store.load(args[0])
            while True:
                data = b"%d" % (int(current.data) + 1)
                newer = next_version(current, data=data)
                os.sched_yield()  # or on few cores each would come to its end undisturbed
                answer = store.replace(newer, current.version)
                if answer is SAVED:
                    break
                conflicts += 1
                current = answer
        print(conflicts)
    """
    ready = tmp_path / "ready"
    ready.mkdir()
    processes = [start(script, path, record.sid, ready) for _ in range(8)]
    conflicts = [finish(process) for process in processes]

    after = store.load(record.sid)
    assert after is not None
    assert (after.data, after.version) == (b"1600", 1601)
    assert sum(conflicts) > 0
    store.close()
    check_integrity(path)


@pytest.mark.parametrize("old", [False, True])
def test_many_processes_start_at_once(tmp_path: Path, old: bool) -> None:
    """A new file, and one to be brought up, is made by whoever comes first; all can use it."""
    path = tmp_path / "a.db"
    if old:
        SqliteStore(path).close()
    script = """
        steps = ("CREATE TABLE sojourn_more (x);", "INSERT INTO sojourn_more VALUES (1);")
        sqlite.MIGRATIONS += steps
        while time.time() < float(args[0]):
            pass
        store = SqliteStore(path, busy_timeout=30.0)
        print(json.dumps(store.create(new_record(NOW))))
    """
    moment = time.time() + 1.5
    processes = [start(script, path, moment) for _ in range(8)]
    made = [finish(process) for process in processes]

    assert made == [True] * 8
    connection = apsw.Connection(str(path))
    assert connection.execute("SELECT count(*) FROM sojourn_sessions").get == 8
    assert connection.execute("SELECT count(*) FROM sojourn_more").get == 1
    assert connection.execute("SELECT value FROM sojourn_meta WHERE name = 'schema'").get == 3
    connection.close()


# Killed processes

WRITER = """
    store = SqliteStore(path, busy_timeout=30.0)
    sid, user = args
    record = store.load(sid)
    while True:
        newer = next_version(record, data=b"%d" % (record.version + 1) * 50)
        assert store.replace(newer, record.version) is SAVED
        record = newer
        print(record.version, flush=True)
        if record.version % 20 == 0:
            extra = new_record(NOW, user=user)
            assert store.create(extra)
            print("made", extra.sid, flush=True)
            assert store.delete(extra.sid, Ended(ENDED, "user", NOW, NOW + 60))
            print("ended", extra.sid, flush=True)
        if record.version % 100 == 0:
            store._checkpoint(store._idle)
"""


def kill_writers(path: Path, kills: int, writers: int = 2, seed: int = 5) -> int:
    """Kill writing processes that often; nothing that they had reported may be lost.

    Returns:
        How many acknowledged writes there were.

    Raises:
        AssertionError: a write was lost, one that ended is alive, or the file is damaged.
    """
    choose = random.Random(seed)
    store = SqliteStore(path)
    records = [new_record(NOW, version=5) for _ in range(writers)]
    for record in records:
        store.create(record)
    store.close()
    acknowledged = dict.fromkeys((record.sid for record in records), 5)
    ended: set[str] = set()
    for _ in range(0, kills, writers):
        processes = {one.sid: start(WRITER, path, one.sid, f"of {one.sid}") for one in records}
        for process in processes.values():
            assert process.stdout is not None
            assert process.stdout.readline(), "the writer did not come up"
        time.sleep(choose.random() * 0.05)
        for process in processes.values():
            process.send_signal(signal.SIGKILL)
        for sid, process in processes.items():
            assert process.stdout is not None
            out = process.stdout.read()
            process.communicate()
            # What comes after the last line end was not reported.
            for line in out.split("\n")[:-1]:
                match line.split():
                    case ["ended", gone]:
                        ended.add(gone)
                    case ["made", _]:
                        pass
                    case [version]:
                        acknowledged[sid] = int(version)
        check_integrity(path)
        store = SqliteStore(path)
        for sid, version in acknowledged.items():
            after = store.load(sid)
            assert after is not None
            assert after.version >= version, (
                f"{sid}: {version} was reported, {after.version} is left"
            )
            assert after.data == b"%d" % after.version * 50
            acknowledged[sid] = after.version
        for sid in ended:
            left = store.load(sid)
            assert isinstance(left, Record)
            assert left.status == ENDED
        store.close()
    return sum(acknowledged.values()) - 5 * writers + len(ended)


@pytest.mark.slow
def test_kill(tmp_path: Path) -> None:
    """26 times kill -9 of a writing process: nothing acknowledged is lost, the file is sound."""
    assert kill_writers(tmp_path / "a.db", 26) > 1000


# Locks


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process holds the write lock."""
    process = start(
        """
        connection = apsw.Connection(path)
        connection.execute("BEGIN IMMEDIATE")
        print(1, flush=True)
        sys.stdin.read()
        """,
        path,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    try:
        yield
    finally:
        process.communicate()


def test_locked_by_another_process(tmp_path: Path) -> None:
    """Reads go on; a write waits for the time given, says why it failed, and works afterwards."""
    path = tmp_path / "a.db"
    store = SqliteStore(path, busy_timeout=0.3)
    record = new_record(NOW - 9999, deadline=NOW)
    store.create(record)
    newer = next_version(record, data=b"newer")
    with locked(path):
        for call in (
            lambda: store.replace(newer, 1),
            lambda: store.create(new_record(NOW)),
            lambda: store.touch(record.sid, 1, NOW, NOW),
            lambda: store.delete(record.sid),
            lambda: store.due(NOW, 60.0),
        ):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match=r"held the lock for 0\.3 s") as caught:
                call()
            assert 0.25 < time.monotonic() - began < 5
            assert not caught.value.transient
        assert store.load(record.sid) == record
        assert store.list() == [record]
        # Opened anew, too.
        store.close()
        assert store.load(record.sid) == record

    assert store.replace(newer, 1) is SAVED
    assert store.load(record.sid) == newer
    store.close()


def test_a_new_file_locked_by_another_process(tmp_path: Path) -> None:
    """A store that cannot make its tables now is usable when the lock is gone."""
    path = tmp_path / "a.db"
    path.touch()
    with locked(path):
        store = SqliteStore(path, busy_timeout=0.1)
        with pytest.raises(StoreUnavailable, match="held the lock"):
            store.load("x" * 22)

    assert store.create(new_record(NOW))
    store.close()


def test_threads_wait_in_line(tmp_path: Path) -> None:
    """A thread that another one of its process keeps from writing gives up after its time."""
    store = SqliteStore(tmp_path / "a.db", busy_timeout=0.1)
    with store._writing, pytest.raises(StoreUnavailable, match="other threads of this process"):
        store.create(new_record(NOW))
    assert store.create(new_record(NOW))
    store.close()


# Forks

FORK = """
    import threading
    store = SqliteStore(path)
    record = new_record(NOW)
    store.create(record)
    stop = threading.Event()
    def work():
        while not stop.is_set():
            assert store.create(new_record(NOW))
            store.load(record.sid)
    threads = [threading.Thread(target=work) for _ in range(3)] if args[0] == "threads" else []
    for thread in threads:
        thread.start()
    children = []
    for number in range(6):
        child = os.fork()
        if child == 0:
            # What is open now was opened by the parent.
            links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
            inherited = [l for l in links if os.path.lexists(l) and path in os.readlink(l)]
            code = 1 if inherited else 0
            try:
                for turn in range(50):
                    assert store.load(record.sid) == record
                    assert store.create(new_record(NOW, user="child"))
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                code = 2
            sys.stdout.flush()
            store.close()
            os._exit(code)
        children.append(child)
        assert store.create(new_record(NOW, user="parent"))
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps([codes, store.count("child"), store.count("parent")]))
"""


@pytest.mark.parametrize("others", ["alone", "threads"])
def test_fork(tmp_path: Path, others: str) -> None:
    """A child never has a connection of its parent; both go on, also with threads that write."""
    path = tmp_path / "a.db"
    process = start(FORK, path, others)

    assert finish(process) == [[0] * 6, 300, 6]
    check_integrity(path)


# Disks


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own in memory; skips, with a reason, where the machine allows none."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("FULL AND READ-ONLY DISKS NOT TESTED: there is no mount command")
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip()
        pytest.skip(f"FULL AND READ-ONLY DISKS NOT TESTED: no tmpfs can be mounted: {reason}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk(tmp_path: Path) -> None:
    """A full disk is told to the caller, what was there stays, and space is enough to go on."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        store = SqliteStore(disk / "a.db")
        kept = new_record(NOW, data=b"kept")
        store.create(kept)
        filler = disk / "filler"
        for _ in range(3):
            made = [new_record(NOW, data=os.urandom(20_000)) for _ in range(3)]
            for record in made:
                assert store.create(record)
            filler.write_bytes(bytes(free(disk)))
            large = new_record(NOW, data=os.urandom(600_000))
            newer = next_version(kept, data=large.data)
            for call in (store.create, lambda record: store.replace(record, record.version - 1)):
                with pytest.raises(StoreUnavailable, match="disk") as caught:
                    call(large if call == store.create else newer)
                assert not caught.value.transient
            assert store.load(large.sid) is None
            assert store.load(kept.sid) == kept
            for record in made:
                assert store.load(record.sid) == record

            filler.unlink()
            newer = next_version(kept, data=b"kept still")
            assert store.replace(newer, kept.version) is SAVED
            kept = newer
            for record in made:
                assert store.delete(record.sid)
        store.close()
        check_integrity(disk / "a.db")


def free(folder: Path) -> int:
    at = os.statvfs(folder)
    return at.f_bavail * at.f_frsize


def test_read_only_disk(tmp_path: Path) -> None:
    """On a read-only disk writes are refused with the reason; when it is writable, all goes on."""
    with small_disk(tmp_path / "disk", "4m") as disk:
        path = disk / "a.db"
        store = SqliteStore(path)
        record = new_record(NOW)
        store.create(record)
        store.close()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        began = time.monotonic()
        for each in (store, SqliteStore(path)):
            for call in (
                lambda each=each: each.create(new_record(NOW)),
                lambda each=each: each.delete(record.sid),
                lambda each=each: each.touch(record.sid, 1, NOW, NOW),
            ):
                with pytest.raises(StoreUnavailable, match=r"cannot be (written|opened)"):
                    call()
            try:
                assert each.load(record.sid) == record
            except StoreUnavailable:
                pass  # SQLite cannot read a file in WAL mode without the files beside it
        assert time.monotonic() - began < 5
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)

        newer = next_version(record, data=b"newer")
        assert store.replace(newer, 1) is SAVED
        assert store.load(record.sid) == newer
        store.close()


def test_a_new_file_on_a_read_only_disk(tmp_path: Path) -> None:
    """Where no file can be made, calls say so, and the store comes up when one can."""
    with small_disk(tmp_path / "disk", "4m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        store = SqliteStore(disk / "a.db")
        with pytest.raises(StoreUnavailable, match=r"cannot be (written|opened).*Read-only"):
            store.create(new_record(NOW))
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)

        assert store.create(new_record(NOW))
        store.close()


# What the disk has confirmed


def syncs(path: Path, tmp_path: Path, call: str, synchronous: str = "normal") -> int:
    """How often a call has the disk confirm the log: the system calls of a process, counted."""
    script = f"""
        store = SqliteStore(path, synchronous={synchronous!r})
        record = new_record(NOW)
        store.create(record)
        store.touch(record.sid, 1, NOW, NOW + 60)
        print(os.getpid(), flush=True)
        sys.stdin.readline()
        {call}
        print("done", flush=True)
        sys.stdin.readline()
        os._exit(0)
    """
    process = start(script, path)
    assert process.stdin is not None
    assert process.stdout is not None
    pid = process.stdout.readline().strip()
    trace = tmp_path / "trace"
    tracer = subprocess.Popen(
        ["strace", "-f", "-e", "trace=fsync,fdatasync", "-o", str(trace), "-p", pid],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    assert select.select([tracer.stderr], [], [], 20)[0]
    if "attached" not in (line := tracer.stderr.readline()):
        process.communicate()
        pytest.skip(f"DURABLE LOGOUT NOT TESTED: strace may not look: {line}")
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"
    process.communicate("\n")
    tracer.communicate(timeout=20)
    return sum("sync(" in line for line in trace.read_text().splitlines())


@pytest.mark.parametrize(
    ("call", "synchronous", "expected"),
    [
        ("store.touch(record.sid, 2, NOW, NOW + 60)", "normal", 0),
        ("store.touch(record.sid, 2, NOW, NOW + 60)", "full", 1),
        ("store.delete(record.sid, Ended(ENDED, 'user', NOW, NOW + 60))", "normal", 1),
        ("store.delete(record.sid, Ended(1, 'user', NOW, NOW + 60))", "normal", 1),
        ("store.delete(record.sid)", "normal", 1),
        ("store.delete(record.sid); store.create(new_record(NOW))", "normal", 1),
        ("store.due(NOW + 9999, 60.0); store.delete(record.sid)", "normal", 0),
    ],
)
def test_logout_is_durable(tmp_path: Path, call: str, synchronous: str, expected: int) -> None:
    """The end of a live session is on the disk before `delete` returns; a touch need not be."""
    if not Path("/usr/bin/strace").exists():
        pytest.skip("DURABLE LOGOUT NOT TESTED: strace is not installed")
    assert syncs(tmp_path / "a.db", tmp_path, call, synchronous) == expected
