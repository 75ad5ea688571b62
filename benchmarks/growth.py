"""Whether a read costs more where many sessions are stored: SQLite, beside its bare `SELECT`.

The scenarios look a few hundred sessions up again and again, and all that a look-up needs stays in
the caches of the processor. On a site one of very many visitors comes, and then another. Here two
thousand of them come in turn, among so many that are stored.
"""

from __future__ import annotations

import random
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from benchmarks.backends.sqlite import PRAGMAS, SELECT, TABLE
from benchmarks.calling import call_wsgi, wsgi_app
from benchmarks.measuring import Figure, Wrong, figure
from benchmarks.payloads import KEY, payload
from benchmarks.scenarios import read
from sojourn import SessionManager
from sojourn.web.wsgi import KEY as SESSION
from sojourn.web.wsgi import SessionMiddleware

__all__ = ["COUNTS", "Grown", "report"]

COUNTS = (1_000, 100_000)
_VISITORS = 2_000
_ROUNDS = 15


@dataclass(frozen=True)
class Grown:
    """What a read costs where so many sessions of 200 B are stored.

    Attributes:
        sessions: how many.
        added: microseconds added to a request.
        select: microseconds of the bare `SELECT` by primary key.
        ratio: of the two, round by round.
    """

    sessions: int
    added: Figure
    select: Figure
    ratio: Figure


def report(writer: Any, folder: Path, counts: Sequence[int]) -> list[Grown]:
    """Measure, and print."""
    found = [_measure(folder / f"{number}-{count}", count) for number, count in enumerate(counts)]
    writer.table(
        "S2 by how many sessions SQLite holds, 200 B",
        ["sessions", "÷ sqlite3 read", "µs added", "µs of the SELECT"],
        [
            [
                f"{one.sessions:,}",
                f"{one.ratio.median:.2f} ({one.ratio.low:.2f}–{one.ratio.high:.2f})",
                f"{one.added.median:.2f} (min {one.added.least:.2f})",
                f"{one.select.median:.2f} (min {one.select.least:.2f})",
            ]
            for one in found
        ],
    )
    return found


def _measure(folder: Path, count: int) -> Grown:
    folder.mkdir()
    sessions = SessionManager(f"sqlite:///{folder / 'sojourn.db'}")
    bare = sqlite3.connect(folder / "bare.db", isolation_level=None)
    try:
        for statement in (*PRAGMAS, TABLE):
            bare.execute(statement)
        cookies = _stored(sessions, count)
        blob = msgspec.json.encode(payload(200))
        keys = [secrets.token_urlsafe(16) for _ in range(count)]
        bare.execute("BEGIN")
        bare.executemany("INSERT INTO raw (key, data) VALUES (?, ?)", [(k, blob) for k in keys])
        bare.execute("COMMIT")
        source = random.Random(count)
        cookies = source.sample(cookies, min(count, _VISITORS))
        keys = source.sample(keys, len(cookies))
        return _rounds(count, sessions, cookies, bare, keys)
    finally:
        sessions.close()
        bare.close()


def _stored(sessions: SessionManager, count: int) -> list[str]:
    """Store so many sessions; return their cookies."""
    cookies = []
    name = sessions.cookie.name_for[False]
    for _ in range(count):
        session = sessions.session()
        session.update(payload(200))
        cookies.append(f"{name}={sessions.commit(session).token}")
    return cookies


def _rounds(
    count: int, sessions: SessionManager, cookies: list[str], bare: Any, keys: list[str]
) -> Grown:
    with_it, without = SessionMiddleware(wsgi_app(SESSION, read), sessions), wsgi_app("", None)
    nothing = [None] * len(cookies)
    wanted = str(payload(200)[KEY]).encode()
    added, select = [], []
    for _ in range(_ROUNDS):
        start = perf_counter()
        for key in keys:
            bare.execute(SELECT, (key,)).fetchone()[0]
        select.append((perf_counter() - start) / len(keys) * 1e6)
        called = call_wsgi(with_it, cookies, nothing)
        if set(called.bodies) != {wanted}:
            raise Wrong("growth: a session was not found")
        spent = called.seconds - call_wsgi(without, cookies, nothing).seconds
        added.append(spent / len(cookies) * 1e6)
    ratio = [one / other for one, other in zip(added, select, strict=True)]
    return Grown(count, figure(added), figure(select), figure(ratio))
