"""`twistd sojourn`: found by twistd, with the options of `twistd web` and a store."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .processes import ROOT, TWISTD, Browser, environment, running

pytestmark = pytest.mark.slow

PAGE = """
from twisted.web.resource import Resource


class Visits(Resource):
    isLeaf = True

    def render_GET(self, request):
        session = request.getSession()
        return b"%d %s" % (session.add("visits"), type(session).__module__.encode())
"""


def twistd(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TWISTD, *arguments],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(PAGE)
    (tmp_path / "index.html").write_text("a file")
    return tmp_path


def test_it_is_listed(folder: Path) -> None:
    """`twistd --help` names it, and its own help has the store beside the options of `web`."""
    assert "sojourn" in twistd(folder, "--help").stdout
    told = twistd(folder, "sojourn", "--help").stdout

    for option in ("--store=", "--path=", "--wsgi=", "--class=", "--listen="):
        assert option in told
    assert "sqlite:///sessions.db" in told


def test_a_class(folder: Path) -> None:
    """A resource class, by its name; its sessions outlive the server."""
    command = [*TWISTD, "sojourn", "--class", "shop.Visits", "--listen", "tcp:0"]
    with running([*command, "--store", "sqlite:///kept.db"], folder) as server:
        browser = Browser(server)
        assert browser.body() == b"1 sojourn.web.twisted.session"
        server.restart()
        assert browser.body() == b"2 sojourn.web.twisted.session"

    assert (folder / "kept.db").exists()


def test_two_servers(folder: Path) -> None:
    """Two of them on one store know the same visitors."""
    command = [*TWISTD, "--pidfile", "", "sojourn", "--class", "shop.Visits", "--listen", "tcp:0"]
    with running(command, folder) as one, running(command, folder) as two:
        browser = Browser(one)
        seen = []
        for server in (one, two, one, two):
            browser.server = server
            seen.append(int(browser.body().split()[0]))

    assert seen == [1, 2, 3, 4]


def test_files(folder: Path) -> None:
    """A folder is served as by `twistd web`, and files cost no session."""
    (folder / "site").mkdir()
    (folder / "index.html").rename(folder / "site" / "index.html")
    command = [*TWISTD, "sojourn", "--path", "site", "--listen", "tcp:0"]
    with running(command, folder) as server:
        page = Browser(server).get("/index.html")

    assert (page.status, page.body, page.all("Set-Cookie")) == (200, b"a file", [])


def test_it_sweeps(folder: Path) -> None:
    """It brings the sweeper with it."""
    code = (
        "from sojourn.web.twisted.tap import Options, makeService\n"
        "from sojourn.web.twisted.service import SweeperService\n"
        "options = Options()\n"
        "options.parseOptions(['--store', 'memory://', '--class', 'shop.Visits'])\n"
        "print([type(one).__name__ for one in makeService(options)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.stdout == "['StreamServerEndpointService', 'SweeperService']\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--store", "nosuch://x"], "--store: no store is known by the scheme 'nosuch'"),
        (["--personal"], "--personal publishes a site to another server"),
        (["--wsgi", "shop.nothing"], "No such WSGI application"),
        (["--path", "."], "sessions.db lies in what --path gives to everybody"),
        (["--path", ".", "--store", "directory:///a/b"], "lies in what --path gives"),
    ],
)
def test_wrong_options(folder: Path, arguments: list[str], message: str) -> None:
    """What cannot work is told before anything listens."""
    done = twistd(folder, "sojourn", *arguments)

    assert done.returncode != 0
    assert message in done.stdout + done.stderr


def test_it_is_in_the_wheel(tmp_path: Path) -> None:
    """The plugin is where twistd looks for it, in a folder that stays everybody's."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=100,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("twisted/")]

    assert names == ["twisted/plugins/sojourn_web.py"]
