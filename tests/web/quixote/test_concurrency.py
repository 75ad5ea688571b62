"""Eight clients on one session, each page 10 ms at work: nothing is lost, whatever serves them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from .serving import SERVERS, Server

CLIENTS = 8
EACH = 100
STORES = {"sqlite": "sqlite:///sessions.db", "directory": "directory:///sessions"}


def count_together(server: Server, page: str) -> tuple[int, int, list[str]]:
    """Count 800 times from eight clients.

    Returns:
        What the counter shows then, how many were answered with success, and what else came.
    """
    cookie = server.send("GET", "/add").all("set-cookie")[0].partition(";")[0]
    begin = int(server.send("GET", "/", cookie=cookie).body)
    answered = 0
    others: list[str] = []
    lock = threading.Lock()

    def client() -> None:
        nonlocal answered
        for _ in range(EACH):
            answer = server.send("GET", page, cookie=cookie)
            with lock:
                if answer.status == 200:
                    answered += 1
                else:
                    others.append(f"{answer.status} {answer.body[:80]!r}")

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    return int(server.send("GET", "/", cookie=cookie).body) - begin, answered, others


KINDS = ("gunicorn", "gunicorn-threads", "waitress", "scgi")
CASES = [
    *(("add", kind, store) for kind in KINDS for store in STORES),
    *(("exclusive", kind, "sqlite") for kind in KINDS),
    ("exclusive", "gunicorn", "directory"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "kind", "store"), CASES)
def test_nothing_is_lost(tmp_path: Path, how: str, kind: str, store: str) -> None:
    """`session.add("counter")` by itself, and a plain read and set where requests exclude others.

    800 of 800 count, in processes, in threads, under SCGI.
    """
    env = {"EXCLUSIVE": "1"} if how == "exclusive" else {}
    server = SERVERS[kind](tmp_path, "counting", SESSIONS=STORES[store], **env)
    try:
        counted, answered, others = count_together(server, "/plain" if env else "/add")
    finally:
        server.end()

    assert (counted, answered, others) == (CLIENTS * EACH, CLIENTS * EACH, [])


def test_without_either_much_is_lost(tmp_path: Path) -> None:
    """A plain read and set by itself does lose: else the test above would show nothing."""
    server = SERVERS["gunicorn-threads"](tmp_path, "counting", SESSIONS=STORES["sqlite"])
    try:
        counted, answered, _ = count_together(server, "/plain")
    finally:
        server.end()

    assert answered == CLIENTS * EACH
    assert 0 < counted < CLIENTS * EACH * 0.9
