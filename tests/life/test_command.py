"""`sojourn sweep`, as a process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sojourn import SessionManager
from sojourn.core.record import ENDED, LIVE
from sojourn.testing import Clock

COMMAND = [sys.executable, "-m", "sojourn.cli", "sweep"]
APP = """
from sojourn import SessionManager
sessions = SessionManager("sqlite:///sessions.db")
other = 1

@sessions.on_ended
def ended(session, reason):
    with open("told", "a") as file:
        print(session.sid, reason, session["n"], file=file)
    {fails}
"""


def filled(folder: Path, count: int = 2) -> list[str]:
    """A file with sessions that are long over, and one that lives; the sids of the former."""
    url = f"sqlite:///{folder}/sessions.db"
    clock = Clock(time.time() - 100_000)
    sids = []
    for now in [*[clock] * count, time.time]:
        sessions = SessionManager(url, clock=now)
        session = sessions.session()
        session["n"] = 1
        token = sessions.commit(session).token
        assert token is not None
        sids.append(token.sid)
        sessions.close()
    return sids[:-1]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def counts(folder: Path) -> tuple[int, int]:
    sessions = SessionManager(f"sqlite:///{folder}/sessions.db")
    try:
        return sessions.store.count(None, LIVE), sessions.store.count(None, ENDED)
    finally:
        sessions.close()


def test_once(tmp_path: Path) -> None:
    """It ends what is over, leaves the rest, and says how many it were."""
    filled(tmp_path)
    done = run(tmp_path, "--store", "sqlite:///sessions.db")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "2 ended, 0 with handlers that failed\n"
    assert counts(tmp_path) == (1, 2)
    # One that comes right after is held up by nobody.
    assert run(tmp_path, "--store", "sqlite:///sessions.db").stdout.startswith("0 ended")


def test_with_the_handlers_of_an_application(tmp_path: Path) -> None:
    """Named by its manager, the application's handlers run."""
    sids = filled(tmp_path)
    (tmp_path / "shop.py").write_text(APP.format(fails="pass"))
    done = run(tmp_path, "--sessions", "shop:sessions")

    assert done.returncode == 0, done.stderr
    told = (tmp_path / "told").read_text().splitlines()
    assert sorted(told) == sorted(f"{sid} idle 1" for sid in sids)


def test_handlers_that_fail(tmp_path: Path) -> None:
    """They are counted, logged, and the command fails, so that whoever runs it looks."""
    filled(tmp_path)
    (tmp_path / "shop.py").write_text(APP.format(fails="raise OSError('the mail server is down')"))
    done = run(tmp_path, "--sessions", "shop:sessions")

    assert done.returncode == 1
    assert "0 ended, 2 with handlers that failed" in done.stdout
    assert "the mail server is down" in done.stderr


def test_again_and_again(tmp_path: Path) -> None:
    """With --every it goes on until it is told to end, and ends at once then."""
    filled(tmp_path)
    for number in (signal.SIGTERM, signal.SIGINT):
        with subprocess.Popen(
            [*COMMAND, "--store", "sqlite:///sessions.db", "--every", "0.01"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert "about every 0.01 s" in process.stdout.readline()
            end = time.monotonic() + 60
            while counts(tmp_path) != (1, 2):
                assert time.monotonic() < end
            process.send_signal(number)
            assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --store URL, or --sessions MODULE:NAME"),
        (["--store", "memory://", "--sessions", "a:b"], "give --store URL, or --sessions"),
        (["--store", "nonsense://"], "nonsense"),
        (["--store", "memory://", "--every", "0"], "--every"),
        (["--sessions", "shop"], "it must be like shop.web:sessions"),
        (["--sessions", "no_such_shop:sessions"], "there is no module no_such_shop"),
        (["--sessions", "shop:other"], "it must be a SessionManager"),
        (["--sessions", "shop:missing"], "it must be a SessionManager"),
    ],
)
def test_what_cannot_be(tmp_path: Path, arguments: list[str], words: str) -> None:
    """It says what came and what is allowed, in a line and not in a traceback."""
    (tmp_path / "shop.py").write_text(APP.format(fails="pass"))
    done = run(tmp_path, *arguments)

    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
