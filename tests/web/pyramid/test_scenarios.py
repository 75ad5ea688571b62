"""The HTTP scenarios on a Pyramid application, on every store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn import SessionManager
from sojourn.testing.scenarios import check_restart, run_scenarios
from tests.stores.servers_redis import prefix, redis_program, redis_server
from tests.stores.servers_sql import a_mariadb, a_postgresql

from ..serving import waitress
from .scenario_app import make_app

__all__ = ["prefix", "redis_program", "redis_server"]

STORES = (
    "memory",
    "sqlite",
    "directory",
    pytest.param("redis", marks=pytest.mark.server),
    pytest.param("postgresql", marks=pytest.mark.server),
    pytest.param("mariadb", marks=pytest.mark.server),
)


@pytest.fixture(params=STORES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a store that nothing was written to."""
    kind = request.param
    if kind == "postgresql":
        with a_postgresql() as postgresql:
            yield postgresql.url()
    elif kind == "mariadb":
        with a_mariadb() as mariadb:
            yield mariadb.url()
    elif kind == "redis":
        server = request.getfixturevalue("redis_server")
        yield f"{server.url}?prefix={request.getfixturevalue('prefix')}"
    else:
        yield {
            "memory": "memory://",
            "sqlite": f"sqlite:///{tmp_path}/sessions.db",
            "directory": f"directory:///{tmp_path}/sessions",
        }[kind]


def test_scenarios(url: str) -> None:
    """What a browser may expect of a site; and a restart loses and revives nothing."""
    sessions = SessionManager(url)
    with waitress(make_app(sessions), threads=24) as port:
        base = f"http://127.0.0.1:{port}"
        run_scenarios(base)
        if url == "memory://":
            return
        second = SessionManager(url)
        with waitress(make_app(second), threads=4) as other:
            check_restart(base, lambda: f"http://127.0.0.1:{other}")
        second.close()
    sessions.close()


def test_scenarios_behind_a_proxy() -> None:
    """The same, where the server is told that the request came by https."""
    app = make_app(SessionManager())

    def by_https(environ: dict[str, object], start_response: object) -> object:
        return app(environ | {"wsgi.url_scheme": "https"}, start_response)

    with waitress(by_https, threads=24) as port:
        run_scenarios(f"http://127.0.0.1:{port}", https=True)
