"""Two processes on one store: nothing is lost, not by each other and not by `kill -9`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stores.servers_redis import Server, prefix, redis_program, redis_server

from .running import Start, post, start

_fixtures = (prefix, redis_program, redis_server, start)
PARALLEL = 20


@pytest.fixture(params=["sqlite", "redis", "redis-deferreds"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, ...]:
    """The store that both processes share."""
    if request.param == "sqlite":
        return (f"sqlite:///{tmp_path / 'sessions.db'}",)
    server: Server = request.getfixturevalue("redis_server")
    url = f"{server.url}?prefix={request.getfixturevalue('prefix')}"
    return (url, "--deferred") if request.param.endswith("deferreds") else (url,)


def at_once(jobs: list[Callable[[], Any]]) -> list[Any]:
    barrier = threading.Barrier(len(jobs))
    results: list[Any] = [None] * len(jobs)

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = jobs[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.mark.parametrize("path", ["/api/count", "/api/add", "/api/locked"])
def test_parallel_increments(start: Start, two: tuple[str, ...], path: str) -> None:
    """20 increments at once over both, of a component, by an operation, and under a lock."""
    urls = [start(*two).url, start(*two).url]
    _, cookie = post(urls[0], "/api/add", key="first")

    at_once(
        [
            lambda number=number: post(urls[number % 2], path, cookie, key="n")
            for number in range(PARALLEL)
        ]
    )

    again = "/api/count" if path == "/api/count" else "/api/add"
    for url in urls:
        PARALLEL_AND_ONE = PARALLEL + 1 + urls.index(url)
        assert post(url, again, cookie, key="n")[0]["value"] == PARALLEL_AND_ONE


def test_killed_between_requests(start: Start, two: tuple[str, ...]) -> None:
    """The counter goes on in the other process, and after a restart in a third."""
    first, second = start(*two), start(*two)
    cookie, values = "", []
    for url in (first.url, second.url, first.url):
        answer, cookie = post(url, "/api/count", cookie)
        values.append(answer["value"])

    first.kill()
    values.append(post(second.url, "/api/count", cookie)[0]["value"])
    second.kill()
    third = start(*two)
    values.append(post(third.url, "/api/count", cookie)[0]["value"])

    assert values == [1, 2, 3, 4, 5]


def test_killed_as_soon_as_it_answered(start: Start, two: tuple[str, ...]) -> None:
    """What was answered was committed before: each answer of a dying process counts."""
    _, cookie = post(start(*two).url, "/api/count")
    for number in range(3):
        dying = start(*two)
        assert post(dying.url, "/api/count", cookie)[0]["value"] == number + 2
        dying.kill()

    assert post(start(*two).url, "/api/count", cookie)[0]["value"] == 5


def test_killed_with_the_lock(start: Start, two: tuple[str, ...]) -> None:
    """The lock is given back before the last byte: whoever dies after that strands nobody."""
    first, second = start(*two), start(*two)
    _, cookie = post(first.url, "/api/add", key="n")

    post(first.url, "/api/locked", cookie, key="n")
    first.kill()

    assert post(second.url, "/api/locked", cookie, key="n")[0]["value"] == 3
