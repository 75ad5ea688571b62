"""The HTTP scenarios over SessionSite, on every store and by every way to it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn.testing.scenarios import SCENARIOS, check_restart, run_scenario, run_scenarios
from tests.stores.servers_redis import Server, prefix, redis_program, redis_server
from tests.stores.servers_sql import MariadbServer, PostgresqlServer, a_mariadb, a_postgresql

from .running import Start, start

_fixtures = (prefix, redis_program, redis_server, start)

# What needs the server to know the session: a sealed cookie is good wherever a copy of it is.
NOT_WITHOUT_A_SERVER = {
    "cookie_has_all_attributes",
    "end_all_others",
    "late_write_of_a_stream_is_kept",
    "login_renews_the_secret",
    "logout_ends_copies_too",
    "malformed_cookies_are_new_visitors",
    "parallel_adds_are_all_kept",
    "parallel_writes_of_other_keys_are_all_kept",
    "renewal_keeps_parallel_requests",
    "set_cookie_only_for_a_new_token",
    "another_user_starts_anew",
}


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgresqlServer]:
    with a_postgresql() as running:
        yield running


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariadbServer]:
    with a_mariadb() as running:
        yield running


@pytest.mark.parametrize("options", [(), ("--asyncio",)], ids=["plain", "asyncio"])
def test_memory(start: Start, options: tuple[str, ...]) -> None:
    """In memory."""
    run_scenarios(start("memory://", *options).url)


@pytest.mark.parametrize("options", [(), ("--asyncio",)], ids=["plain", "asyncio"])
@pytest.mark.parametrize("scheme", ["sqlite", "directory"])
def test_files(start: Start, tmp_path: Path, scheme: str, options: tuple[str, ...]) -> None:
    """On SQLite and in a directory; and a restart loses nothing."""
    url = f"{scheme}:///{tmp_path / 'sessions'}"
    first = start(url, *options)
    run_scenarios(first.url)

    def restart() -> str:
        first.end()
        return start(url, *options).url

    check_restart(first.url, restart)


def test_cookie(start: Start, tmp_path: Path) -> None:
    """In the cookie itself: what can be promised there."""
    keys = tmp_path / "keys"
    keys.write_text(secrets.token_hex(32))
    url = start(f"cookie:///{keys}").url

    for name, scenario in SCENARIOS.items():
        if name not in NOT_WITHOUT_A_SERVER:
            run_scenario(scenario, url)


@pytest.mark.server
@pytest.mark.parametrize(
    "options", [(), ("--asyncio",), ("--deferred",)], ids=["threads", "asyncio", "deferreds"]
)
def test_redis(start: Start, redis_server: Server, prefix: str, options: tuple[str, ...]) -> None:
    """On Redis: in threads, on the asyncio reactor, by the client of Twisted."""
    url = f"{redis_server.url}?prefix={prefix}"
    first = start(url, *options)
    run_scenarios(first.url)

    def restart() -> str:
        first.kill()
        return start(url, *options).url

    check_restart(first.url, restart)


@pytest.mark.server
@pytest.mark.parametrize("options", [(), ("--asyncio",)], ids=["threads", "asyncio"])
def test_postgresql(start: Start, postgresql: PostgresqlServer, options: tuple[str, ...]) -> None:
    """On PostgreSQL: in threads, and on the asyncio reactor."""
    run_scenarios(start(postgresql.url(), *options).url)


@pytest.mark.server
@pytest.mark.parametrize("options", [(), ("--asyncio",)], ids=["threads", "asyncio"])
def test_mariadb(start: Start, mariadb: MariadbServer, options: tuple[str, ...]) -> None:
    """On MariaDB: in threads, and on the asyncio reactor."""
    run_scenarios(start(mariadb.url(), *options).url)
