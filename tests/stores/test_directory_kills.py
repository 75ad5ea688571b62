"""`DirectoryStore` and processes that die: at random points by kill -9, and at every single call.

`survive_kills(path, kills, writers)` is the long run; a soak calls it with 1,000.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sojourn.core.calls import SAVED
from sojourn.core.record import ENDED, LIVE
from sojourn.stores.directory import DirectoryStore
from sojourn.testing import new_record, next_version

DAY = 86400.0

WRITER = """
import json, os, sys, time
from sojourn.core.calls import SAVED
from sojourn.core.record import ENDED, Ended
from sojourn.stores.directory import DirectoryStore
from sojourn.testing import new_record, next_version

path, shared, me, padding = sys.argv[1], sys.argv[2], sys.argv[3], "x" * int(sys.argv[4])
store = DirectoryStore(path, lock_timeout=30)
now = time.time()
deadline = now + 900.0

def say(*words):
    os.write(1, (json.dumps(words) + "\\n").encode())

current = store.load(shared)
say("begun")
while True:
    values = json.loads(current.data)
    values[me] = values.get(me, 0) + 1
    values["padding"] = padding
    deadline -= 0.001  # earlier each time, so that each write enters a due time
    newer = next_version(current, data=json.dumps(values).encode(), deadline=deadline)
    answer = store.replace(newer, current.version)
    if answer is not SAVED:
        current = answer
        continue
    current = newer
    say("counted", values[me])
    session = new_record(now, user="alice", data=padding.encode())
    store.create(session)
    say("created", session.sid)
    if store.touch(session.sid, 1, now + 1.0, now + 2000.0):
        say("touched", session.sid)
    if values[me] % 2:
        store.delete(session.sid, Ended(ENDED, "user", now, now + 600.0))
        say("ended", session.sid)
    if values[me] % 3 == 0:
        store.delete(session.sid)
        say("removed", session.sid)
"""


def survive_kills(path: Path, kills: int, writers: int = 1, seed: int = 1) -> dict[str, int]:
    """Let `writers` processes write to one directory and kill -9 all, `kills` times.

    Raises AssertionError where an acknowledged change is lost, a record cannot be read, an ended
    session is alive, one that is there would be forgotten by a sweep or a list, or a lock stays.
    Returns how much was acknowledged.
    """
    chance = random.Random(seed)
    totals = {"counted": 0, "created": 0, "touched": 0, "ended": 0, "removed": 0}
    store = DirectoryStore(path, lock_timeout=1.0)
    now = time.time()
    # The comparison of journals with names happens now, and not when it could hide what is lost.
    assert store.due(now, 60.0) == []
    shared = new_record(now, data=b"{}", deadline=now + 1800.0)
    store.create(shared)
    counted: dict[str, int] = {}
    for _ in range(kills):
        children = start_writers(path, shared.sid, writers, chance.choice([0, 2_000, 100_000]))
        # From the moment that all of them write; most calls take less than a millisecond.
        time.sleep(chance.uniform(0.0, 0.03))
        for child in children:
            child.send_signal(signal.SIGKILL)
        said: list[tuple[str, list[str | int]]] = []
        for index, child in enumerate(children):
            child.wait()
            assert child.stdout is not None
            lines = child.stdout.read().splitlines()
            child.stdout.close()
            assert child.returncode == -signal.SIGKILL
            said += [(str(index), json.loads(line)) for line in lines]
        for _, words in said:
            totals[str(words[0])] += 1
        check(store, shared.sid, said, counted)
        # No lock stayed behind, and the next writers find a place to write to.
        current = store.load(shared.sid)
        assert current is not None
        assert store.replace(next_version(current), current.version) is SAVED
    assert store.list(status=None, limit=1)
    assert not [*(path / "damaged").iterdir()]
    nothing_is_forgotten(store, now + 4000.0)
    # Nor does what was half written lie there for ever.
    store.due(time.time() + 2 * 3600.0, 60.0)
    assert [*(path / "new").iterdir()] == []
    return totals


def start_writers(path: Path, shared: str, writers: int, size: int) -> list[subprocess.Popen[str]]:
    """Start writers and wait until all of them are about to write."""
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), shared, str(index), str(size)],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for index in range(writers)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == '["begun"]\n'
    return children


def check(
    store: DirectoryStore,
    shared: str,
    said: list[tuple[str, list[str | int]]],
    counted: dict[str, int],
) -> None:
    """Compare what writers said with what is there."""
    last: dict[str, str] = {}
    for writer, (word, what) in said:
        if word == "counted":
            counted[writer] = int(what)
        else:
            last[str(what)] = word
    record = store.load(shared)
    assert record is not None
    values = json.loads(record.data)
    for writer, number in counted.items():
        # One more may have been saved, and its writer killed before it could say so.
        assert number <= values[writer] <= number + 1, f"writer {writer}: a change was lost"
        counted[writer] = values[writer]
    of_alice = {record.sid for record in store.list("alice", None, limit=100_000)}
    next_state = {"created": (LIVE,), "touched": (LIVE, ENDED, None), "ended": (ENDED, None)}
    for sid, word in last.items():
        found = store.load(sid)
        assert (found and found.status) in next_state.get(word, (None,)), (sid, word, found)
        if found is not None:
            assert word == "created" or found.version >= 2
            assert (sid in of_alice) == (found.status == LIVE)


def nothing_is_forgotten(store: DirectoryStore, later: float) -> None:
    """Every record that is there comes up in a sweep when its time is over."""
    there = {record.sid for record in store.list(status=None, limit=100_000)}
    live = {record.sid for record in store.list(limit=100_000)}
    assert there
    swept: set[str] = set()
    assert store._checked <= later < store._checked + DAY, "the comparison would hide it"
    while page := store.due(later, 600.0, 1000):
        swept |= {record.sid for record in page}
    assert swept == live
    assert {record.sid for record in store.list(status=None, limit=100_000)} == live
    for sid in live:
        store.delete(sid)
    assert store.due(later + 600.0, 600.0) == []
    root = Path(store._root)
    assert [*(root / "due").iterdir(), *(root / "users").glob("*/*/*")] == []


def test_a_killed_writer_loses_nothing(tmp_path: Path) -> None:
    """A process that writes all the time is killed 25 times; all that it said was done is there."""
    totals = survive_kills(tmp_path, 25)

    assert min(totals.values()) > 0


def test_four_killed_writers_lose_nothing(tmp_path: Path) -> None:
    """The same with four processes that share one directory and one session."""
    totals = survive_kills(tmp_path, 6, writers=4)

    assert min(totals.values()) > 0


DIES = """
import os, sys
import sojourn.stores._locks as locks
from sojourn.core.record import ENDED, ENDING, LIVE, MARK, Ended
from sojourn.stores.directory import DirectoryStore
from sojourn.testing import new_record, next_version

root, verb, now = sys.argv[1], sys.argv[2], 1_750_000_000.0
NAMES = "open close write read replace rename unlink mkdir rmdir fsync lseek lstat listdir"

def dying(call):
    def instead(*args, **kwargs):
        global left
        if not left:
            os._exit(9)
        left -= 1
        return call(*args, **kwargs)
    return instead

def make_mortal():
    for name in NAMES.split():
        setattr(os, name, dying(getattr(os, name)))
    locks._try_lock, locks._unlock = dying(locks._try_lock), dying(locks._unlock)

calls = 0
while True:
    path = os.path.join(root, str(calls))
    store = DirectoryStore(path, fsync=calls % 2 == 0, lock_timeout=0.5)
    store.due(now, 60.0)  # compares journals with names, and not again today
    old = new_record(now, user="alice", deadline=now + 900.0)
    if verb != "create":
        store.create(old)
    if verb == "due-moved":
        store.touch(old.sid, 1, now, now + 9000.0)
    if verb == "due-tombstone":
        store.delete(old.sid, Ended(ENDED, "user", now, now + 900.0))
    if verb == "remove-damaged":
        with open(store._path(old.sid), "wb") as file:
            file.write(b"rubbish")
    before = None if verb == "remove-damaged" else store.load(old.sid)
    new = next_version(old, user="bob", data=b"new", deadline=now + 600.0)
    ended = {"ending": Ended(ENDING, "user", now, now + 60.0),
             "ended": Ended(ENDED, "user", now, now + 60.0)}
    child = os.fork()
    if not child:
        left = calls
        make_mortal()
        if verb == "create":
            store.create(old)
        elif verb == "replace":
            store.replace(new, 1)
        elif verb == "touch":
            store.touch(old.sid, 1, now + 1.0, now + 990.0)
        elif verb.startswith("due"):
            store.due(now + 5000.0, 60.0)
        else:
            store.delete(old.sid, ended.get(verb))
        os._exit(0)
    died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert died in (0, 9), died
    where = f"{verb} killed before call {calls + 1}"

    # Old or new, nothing between.
    try:
        found = store.load(old.sid)
    except Exception as error:
        assert verb == "remove-damaged", (where, error)
        assert store.delete(old.sid), where
        found = None
    if died == 0 or found != before:
        version, user, status, present = {
            "create": (1, "alice", LIVE, True),
            "replace": (2, "bob", LIVE, True),
            "touch": (2, "alice", LIVE, True),
            "ending": (2, "alice", ENDING, True),
            "ended": (2, None, ENDED, True),
            "remove": (0, "", 0, False),
            "remove-damaged": (0, "", 0, False),
            "due": (2, "alice", ENDING, True),
            "due-moved": (2, "alice", LIVE, True),
            "due-tombstone": (0, "", 0, False),
        }[verb]
        assert (found is not None) == present, (where, found)
        if found is not None:
            assert (found.version, found.user, found.status) == (version, user, status), where
    # Listed under its user, and under no other.
    for user in ("alice", "bob"):
        wanted = [found] if found is not None and found.user == user else []
        assert store.list(user, None) == wanted, (where, user)
    # The lock is free, and a sweep finds it.
    later = now + 20_000.0
    swept = store.due(later, 600.0)
    alive = found is not None and found.status != ENDED
    assert [record.sid for record in swept] == ([old.sid] if alive else []), (where, swept)
    assert store._checked == now
    store.delete(old.sid)
    assert store.due(later + 600.0, 600.0) == [], where
    for folder in ("due", "users", "new", "records"):
        for top, _, files in os.walk(os.path.join(path, folder)):
            # What is half written goes after an hour of the file's own time, which is today.
            assert not files or folder == "new", (where, top, files)
    if died == 0:
        break
    calls += 1
print(calls)
"""


@pytest.mark.parametrize(
    "verb",
    [
        "create",
        "replace",
        "touch",
        "ending",
        "ended",
        "remove",
        "remove-damaged",
        "due",
        "due-moved",
        "due-tombstone",
    ],
)
def test_killed_at_every_call(verb: str, tmp_path: Path) -> None:
    """Wherever a verb is killed, the record is the old or the new, and nothing forgets it."""
    done = subprocess.run(
        [sys.executable, "-c", DIES, str(tmp_path), verb],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 6  # or hardly any call was met
