"""The HTTP scenarios, which every framework passes, in Quixote under its servers."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from sojourn.testing.scenarios import check_restart, run_scenarios

from .serving import SERVERS, Waitress

HTTP = [kind for kind in SERVERS if kind not in ("scgi", "cgi")]


class BehindProxy(Waitress):
    """As a server behind a proxy that ends https."""

    def command(self) -> list[str]:
        module, *options = super().command()[1:]
        return ["-m", module, "--url-scheme=https", *options]


@pytest.mark.parametrize("kind", HTTP)
def test_scenarios(tmp_path: Path, kind: str) -> None:
    """A browser finds the same behaviour as with any other framework."""
    server = SERVERS[kind](tmp_path, "app", SESSIONS="sqlite:///sessions.db")
    try:
        run_scenarios(f"http://127.0.0.1:{server.port}")
    finally:
        server.end()


def test_scenarios_on_https(tmp_path: Path) -> None:
    """Where the server says that the request came by https, cookies are those of https."""
    server = BehindProxy(tmp_path, "app", SESSIONS="memory://")
    try:
        run_scenarios(f"http://127.0.0.1:{server.port}", https=True)
    finally:
        server.end()


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_restart(tmp_path: Path, by: signal.Signals) -> None:
    """A restart, also after kill -9, loses no session and revives none."""
    server = SERVERS["gunicorn"](tmp_path, "app", SESSIONS="sqlite:///sessions.db")
    url = f"http://127.0.0.1:{server.port}"

    def restart() -> str:
        server.end(by)
        server.start()
        return url

    try:
        check_restart(url, restart)
    finally:
        server.end()
