"""Long campaigns on the life of sessions: kills of sweepers, large sweeps, races with an end.

    python -m benchmarks.life_campaigns kills --count 200
    python -m benchmarks.life_campaigns large --count 1000000
    python -m benchmarks.life_campaigns end-all --store sqlite --count 100000
    python -m benchmarks.life_campaigns processes --store postgresql --count 10000
    python -m benchmarks.life_campaigns cap --store memory --count 100

Each prints one line of JSON and fails where a promise was broken. Their short forms are tests.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sojourn import SessionManager
from sojourn.core import codec
from sojourn.core.ending import SKEW
from sojourn.core.record import ENDED, ENDING, LIVE, Record
from sojourn.core.session import Session
from sojourn.errors import TooManySessions
from sojourn.testing import Clock, new_record

IDLE = 1800.0


def sid_of(sessions: SessionManager, **values: Any) -> str:
    """Make a session, and return its sid."""
    session = sessions.session()
    session.update(values or {"n": 1})
    token = sessions.commit(session).token
    assert token is not None
    return token.sid


# Kill -9 of the sweeper.

_SWEEPER = """
import os, signal, sys
from sojourn import SessionManager

path, log, now, die_at = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
sessions = SessionManager(f"sqlite:///{path}", idle_timeout=1800, clock=lambda: now)
store = sessions.store
steps = 0

def step():
    global steps
    steps += 1
    if steps == die_at:
        os.kill(os.getpid(), signal.SIGKILL)

def stepping(method):
    def call(*arguments):
        step()
        answer = method(*arguments)
        step()
        return answer
    return call

store.due, store.delete = stepping(store.due), stepping(store.delete)
file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@sessions.on_ended
def ended(session, reason):
    step()
    os.write(file, f"{session.sid} {session['n']}\\n".encode())
    step()

sessions.sweep()
"""


def kills(folder: Path, count: int = 200, seed: int = 0) -> dict[str, Any]:
    """Kill a sweeper between claim, handler and delete, again and again; start the next.

    Checked after each: whoever was deleted was handled. In the end: all were, and none more often
    than the kills explain.
    """
    choose = random.Random(seed)
    clock = Clock()
    path, log = folder / "sessions.db", folder / "log"
    log.touch()
    made: list[str] = []
    killed = 0
    begun = time.perf_counter()
    while killed < count:
        sessions = SessionManager(f"sqlite:///{path}", idle_timeout=IDLE, clock=clock)
        made += [sid_of(sessions, n=1) for _ in range(3)]
        sessions.close()
        clock.advance(IDLE + 2 * SKEW + 1)
        died = _sweep_in_a_process(path, log, clock(), choose.randrange(1, 34))
        killed += died
        _check_handled(path, log)
    clock.advance(86400)
    assert not _sweep_in_a_process(path, log, clock(), 0)
    runs = _check_handled(path, log)
    assert set(runs) == set(made), "not all sessions were handled"
    again = sum(runs.values()) - len(made)
    assert again <= killed, f"{again} handlers ran again after {killed} kills"
    return {
        "kills": killed,
        "sessions": len(made),
        "handled": len(runs),
        "handled again": again,
        "most runs of one": max(runs.values()),
        "deleted unhandled": 0,
        "seconds": round(time.perf_counter() - begun, 1),
    }


def _sweep_in_a_process(path: Path, log: Path, now: float, die_at: int) -> bool:
    """Return whether it was killed."""
    done = subprocess.run(
        [sys.executable, "-c", _SWEEPER, str(path), str(log), str(now), str(die_at)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def _check_handled(path: Path, log: Path) -> Counter[str]:
    runs = Counter(line.split()[0] for line in log.read_text().splitlines())
    with _closing(path) as sessions:
        store = sessions.store
        there = {record.sid for status in (LIVE, ENDING) for record in _all(store, status)}
        buried = {record.sid for record in _all(store, ENDED)}
    assert not buried - set(runs), "a session was deleted unhandled"
    assert not there & buried
    return runs


class _closing:
    def __init__(self, path: Path) -> None:
        self.sessions = SessionManager(f"sqlite:///{path}")

    def __enter__(self) -> SessionManager:
        return self.sessions

    def __exit__(self, *_: object) -> None:
        self.sessions.close()


def _all(store: Any, status: int) -> list[Any]:
    found: list[Any] = []
    while page := store.list(None, status, found[-1].sid if found else "", 1000):
        found += page
    return found


# A large sweep, and requests beside it.

_REQUESTS = """
import json, select, sys, time
from sojourn import SessionManager

path, cookie = sys.argv[1], sys.argv[2]
sessions = SessionManager(f"sqlite:///{path}", idle_timeout=1e6, lifetime=None)
took = []
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.001)[0]:
    begun = time.perf_counter()
    session = sessions.session(cookie)
    session.add("n")
    sessions.commit(session)
    took.append(time.perf_counter() - begun)
took.sort()
at = lambda share: round(took[min(len(took) - 1, int(len(took) * share))] * 1000, 2)
print(json.dumps({"requests": len(took), "p50 ms": at(0.5), "p99 ms": at(0.99),
                  "p99.9 ms": at(0.999), "max ms": at(1.0)}))
"""


def large(
    folder: Path,
    count: int = 1_000_000,
    due: int | None = None,
    handlers: bool = False,
    alone_for: float = 5.0,
) -> dict[str, Any]:
    """Sweep many sessions that are due at once, out of many more, while another process writes.

    The requests' times are taken without the sweep, then with it.

    Args:
        folder: for the file.
        count: how many sessions there are.
        due: how many of them are over; a tenth if not given.
        handlers: whether there is a handler of their end.
        alone_for: seconds of requests without the sweep.
    """
    due = count // 10 if due is None else due
    path = folder / "sessions.db"
    clock = Clock(time.time())
    sessions = SessionManager(f"sqlite:///{path}", idle_timeout=1e6, lifetime=None, clock=clock)
    session = sessions.session()
    session["n"] = 0
    cookie = f"{sessions.cookie.name_for[False]}={sessions.commit(session).token}"
    now = clock()
    for record in _records(count, due, now):
        sessions.store.create(record)
    assert sessions.store.count() == count + 1
    if handlers:
        sessions.on_ended(lambda session, reason: None)
    alone = _beside(path, cookie, lambda: time.sleep(alone_for))
    sessions.sweep(stop=lambda: True)
    before = _memory()
    begun = time.perf_counter()
    swept: list[int] = []
    beside = _beside(path, cookie, lambda: swept.append(sessions.sweep().ended))
    seconds = time.perf_counter() - begun
    assert swept == [due], swept
    assert sessions.store.count() == count + 1 - due
    sessions.close()
    return {
        "sessions": count,
        "swept": swept[0],
        "handlers": handlers,
        "seconds": round(seconds, 1),
        "more memory MiB": round((_memory() - before) / 1024, 1),
        "requests alone": alone,
        "requests beside": beside,
    }


def _records(count: int, due: int, now: float) -> Iterator[Record]:
    data = codec.join({"n": codec.encode_value(1, key="n", depth=8)})
    for number in range(count):
        over = number % (count // due) == 0 and number // (count // due) < due
        deadline = now - 3600.0 - number * 1e-3 if over else now + 1e5 + number
        yield new_record(now - 7200.0, deadline=deadline, data=data)


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _beside(path: Path, cookie: str, work: Callable[[], Any]) -> dict[str, Any]:
    with subprocess.Popen(
        [sys.executable, "-c", _REQUESTS, str(path), cookie],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        work()
        out, _ = process.communicate("\n")
        figures: dict[str, Any] = json.loads(out)
        return figures


# Races.


class Together:
    """Threads that begin their jobs at the same moment, again and again."""

    def __init__(self, size: int) -> None:
        self._jobs: list[Callable[[], Any]] = []
        self._begin, self._end = threading.Barrier(size + 1), threading.Barrier(size + 1)
        self.errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._work, args=(number,), daemon=True)
            for number in range(size)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, number: int) -> None:
        while True:
            self._begin.wait()
            if not self._jobs:
                return
            try:
                self._jobs[number]()
            except BaseException as error:
                self.errors.append(error)
            self._end.wait()

    def run(self, jobs: list[Callable[[], Any]]) -> None:
        """Run as many jobs as there are threads."""
        self._jobs = jobs
        self._begin.wait()
        self._end.wait()
        if self.errors:
            raise self.errors[0]

    def close(self) -> None:
        self._jobs = []
        self._begin.wait()
        for thread in self._threads:
            thread.join()


KINDS = ("login", "upgrade", "renewal", "write", "touch")


def end_all(store: Any, count: int = 100_000, wide: int = 50, seed: int = 0) -> dict[str, Any]:
    """Race ends of all of a user's sessions with requests in flight; count who survives.

    Args:
        store: a blocking store, or its URL.
        count: requests in flight, `wide` of them against one end at a time, of each kind as many.
        wide: how many at once.
        seed: of the order in which they begin.
    """
    choose = random.Random(seed)
    sessions = SessionManager(store, idle_timeout=IDLE, touch_interval=1)

    def pending(kind: str, user: str) -> Session:
        cookie = "" if kind == "login" else _made(sessions, None if kind == "upgrade" else user)
        session = sessions.session(cookie)
        if kind in ("login", "upgrade"):
            session.login(user)
        elif kind == "renewal":
            session.renew()
        elif kind == "write":
            session.add("n")
        else:
            session.touch()
        return session

    together = Together(wide + 1)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    trials, survivors, dropped = 0, 0, 0
    begun = time.perf_counter()
    try:
        while trials < count:
            user = f"user {seed} {trials}"
            in_flight = [pending(KINDS[number % 5], user) for number in range(wide)]
            done: list[Any] = []
            jobs: list[Callable[[], Any]] = [
                partial(_commit, sessions, session, done) for session in in_flight
            ]
            jobs.append(partial(sessions.end_all, user))
            choose.shuffle(jobs)
            together.run(jobs)
            trials += wide
            dropped += sum(bool(one.dropped) for one in done)
            survivors += len(sessions.of_user(user))
    finally:
        sys.setswitchinterval(before)
        together.close()
        sessions.close()
    assert survivors == 0, f"{survivors} of {trials} survived"
    return {
        "store": type(sessions.store).__name__,
        "trials": trials,
        "survivors": survivors,
        # That came after the end; the others were written, and ended then.
        "came too late": dropped,
        "seconds": round(time.perf_counter() - begun, 1),
    }


_RACER = """
import json, random, sys, time
from sojourn import SessionManager

sessions = SessionManager(sys.argv[1], idle_timeout=1800, touch_interval=1)
choose = random.Random(sys.argv[2])
print("ready", flush=True)
while line := sys.stdin.readline():
    user, jobs = json.loads(line)
    opened = []
    for kind, cookie in jobs:
        session = sessions.session(cookie)
        if kind in ("login", "upgrade"):
            session.login(user)
        elif kind == "renewal":
            session.renew()
        elif kind == "write":
            session.add("n")
        else:
            session.touch()
        opened.append(session)
    print("opened", flush=True)
    start, span = json.loads(sys.stdin.readline())
    told = []
    for session, delay in zip(opened, sorted(choose.random() for _ in opened)):
        while time.monotonic() < start + delay * span:
            time.sleep(0)
        done = sessions.commit(session)
        told.append([bool(done.dropped), str(done.token) if done.token else ""])
    print(json.dumps(told), flush=True)
sessions.close()
"""


def end_all_of_processes(
    url: str, count: int = 10_000, workers: int = 4, each: int = 5, seed: int = 0
) -> dict[str, Any]:
    """Race ends of all of a user's sessions with requests of other processes.

    Every request has opened its session before the end begins, and is committed some time before,
    while or after it runs. As soon as the end has returned, no session from before it opens any
    more; when the requests are through as well, the store has no live one of the user, and no
    cookie that any request was given opens one.

    Args:
        url: of a store that processes share.
        count: requests in flight, `workers` times `each` against one end at a time.
        workers: processes that send them.
        each: requests of each process, one of each kind.
        seed: of the kinds' order and of the moments.
    """
    choose = random.Random(seed)
    sessions = SessionManager(url, idle_timeout=IDLE, touch_interval=1)
    name = sessions.cookie.name_for[False]
    kinds = [KINDS[number % len(KINDS)] for number in range(workers * each)]
    counts: Counter[str] = Counter()
    trials = 0
    begun = time.perf_counter()

    def opens(cookie: str, user: str) -> bool:
        return sessions.session(cookie).user == user

    with contextlib.ExitStack() as stack:
        stack.callback(sessions.close)
        racers = [stack.enter_context(_racer(url, f"{seed} {n}")) for n in range(workers)]
        while trials < count:
            user = f"user {seed} {trials}"
            choose.shuffle(kinds)
            making = time.monotonic()
            cookies = [
                "" if kind == "login" else _made(sessions, None if kind == "upgrade" else user)
                for kind in kinds
            ]
            jobs = list(zip(kinds, cookies, strict=True))
            for number, racer in enumerate(racers):
                racer.tell((user, jobs[number * each : (number + 1) * each]))
            span = time.monotonic() - making
            for racer in racers:
                assert racer.hear() == "opened"
            start = time.monotonic() + 0.001
            for racer in racers:
                racer.tell((start, span))
            time.sleep(max(0.0, start + choose.random() * span - time.monotonic()))
            ended = sessions.end_all(user)
            counts["alive at once"] += sum(opens(cookie, user) for cookie in cookies if cookie)
            told = [one for racer in racers for one in json.loads(racer.hear())]
            trials += len(told)
            counts["ended"] += len(ended)
            counts["came too late"] += sum(dropped for dropped, _ in told)
            counts["alive"] += len(sessions.of_user(user))
            given = [f"{name}={token}" for _, token in told if token]
            counts["risen"] += sum(opens(cookie, user) for cookie in [*cookies, *given])
    risen = counts["alive at once"] + counts["alive"] + counts["risen"]
    assert risen == 0, f"of {trials}: {dict(counts)}"
    return {
        "store": type(sessions.store).__name__,
        "processes": workers + 1,
        "trials": trials,
        "ended": counts["ended"],
        "came too late": counts["came too late"],
        "survivors": risen,
        "seconds": round(time.perf_counter() - begun, 1),
    }


def _made(sessions: SessionManager, user: str | None) -> str:
    """Make a session, of a user or of a guest; return its cookie."""
    session = sessions.session()
    session["n"] = 1
    if user:
        session.login(user)
    return f"{sessions.cookie.name_for[False]}={sessions.commit(session).token}"


class _Racer:
    """A process that commits requests when it is told."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def tell(self, value: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{json.dumps(value)}\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "a process of the campaign has ended by itself"
        return line.strip()


@contextlib.contextmanager
def _racer(url: str, seed: str) -> Iterator[_Racer]:
    with subprocess.Popen(
        [sys.executable, "-c", _RACER, url, seed],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        racer = _Racer(process)
        try:
            assert racer.hear() == "ready"
            yield racer
            process.communicate(timeout=20)
            assert process.returncode == 0
        finally:
            process.kill()


def cap(store: Any, count: int = 100, logins: int = 50, limit: int = 3) -> dict[str, Any]:
    """Log in in parallel under a cap, again and again; each time exactly that many are left."""
    sessions = {
        policy: SessionManager(store, idle_timeout=IDLE, max_sessions=limit, on_too_many=policy)
        for policy in ("end-oldest", "deny")
    }
    together = Together(logins)
    left: Counter[str] = Counter()
    begun = time.perf_counter()
    try:
        for number in range(count):
            policy = ("end-oldest", "deny")[number % 2]
            manager, user = sessions[policy], f"capped {number}"
            together.run([partial(_log_in, manager, user)] * logins)
            left[f"{policy}: {len(manager.of_user(user))}"] += 1
    finally:
        together.close()
        sessions["deny"].close()
    assert set(left) <= {f"end-oldest: {limit}", f"deny: {limit}"}, left
    return {
        "store": type(sessions["deny"].store).__name__,
        "rounds": count,
        "parallel logins": logins,
        "left": dict(left),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def _commit(sessions: SessionManager, session: Session, done: list[Any]) -> None:
    done.append(sessions.commit(session))


def _log_in(sessions: SessionManager, user: str) -> None:
    session = sessions.session()
    session.login(user)
    try:
        sessions.commit(session)
    except TooManySessions:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("campaign", choices=["kills", "large", "end-all", "processes", "cap"])
    parser.add_argument("--count", type=int)
    parser.add_argument(
        "--store", default="memory", help="memory, or a store that the campaigns know"
    )
    parser.add_argument("--handlers", action="store_true", help="sweep with a handler")
    given = parser.parse_args()
    number = {} if given.count is None else {"count": given.count}
    from benchmarks.campaigns.places import place

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if given.store == "memory":
            store = "memory://"
        else:
            store = stack.enter_context(place(given.store)).url
        if given.campaign == "kills":
            figures = kills(folder, **number)
        elif given.campaign == "large":
            figures = large(folder, **number, handlers=given.handlers)
        elif given.campaign == "end-all":
            figures = end_all(store, **number)
        elif given.campaign == "processes":
            figures = end_all_of_processes(store, **number)
        else:
            from sojourn.stores import open_store

            figures = cap(open_store(store), **number)
    print(json.dumps({"campaign": given.campaign, **figures}))


if __name__ == "__main__":
    main()
