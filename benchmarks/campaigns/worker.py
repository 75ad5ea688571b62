"""A process that uses sessions as visitors do, and writes down what it does and was told.

Before it asks for anything it writes a line that says what; after the answer one that says how it
went. So whoever reads the lines after it was killed knows what was acknowledged, what was not,
and what nobody can know. See `history`.

Cookies are shared by all workers, as files: each is a browser that several tabs are open in.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.campaigns.processes import arguments
from sojourn import SessionManager
from sojourn.core.token import parse_token
from sojourn.errors import Conflict, StoreUnavailable

__all__ = ["SHORT", "manager_of"]

BROWSERS = 12
USERS = 4
SHORT = 1.0
"""The idle timeout of sessions that are to run out, in seconds."""

_SHARES = {
    "append": 60,
    "renew": 8,
    "login": 8,
    "touch": 8,
    "logout": 4,
    "forget": 4,
    "end all": 1,
}


def manager_of(url: str, ahead: float = 0.0) -> SessionManager:
    """Return the manager that all use; its clock may be ahead."""
    return SessionManager(url, idle_timeout=3600, clock=lambda: time.time() + ahead)


class Worker:
    """One of them.

    Args:
        url: of the store.
        folder: for what it writes down, and for the cookies.
        name: of this worker; no other has it.
        seed: of its choices.
        pace: seconds between two requests.
        ahead: how far its clock is ahead. Only for the one that sweeps.
    """

    def __init__(
        self, url: str, folder: str, name: str, seed: int, pace: float, ahead: float = 0.0
    ) -> None:
        self._choose = random.Random(f"{seed} {name}")
        self._name, self._pace = name, pace
        self._cookies = Path(folder, "cookies")
        self._cookies.mkdir(exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._log = os.open(Path(folder, f"{name}.log"), flags, 0o600)
        self._numbers = itertools.count()
        self.manager = manager_of(url, ahead)
        self.manager.on_ended(self._on_ended)

    # Lines.

    def _write(self, **line: Any) -> None:
        os.write(self._log, (json.dumps({"at": time.time(), **line}) + "\n").encode())

    def _begin(self, do: str, **about: Any) -> str:
        value = f"{self._name}.{next(self._numbers)}"
        self._write(id=value, do=do, **about)
        return value

    def _on_ended(self, session: Any, reason: str) -> None:
        if self._choose.random() < 0.01:
            raise RuntimeError("this handler fails now and then, and runs again later")
        # `n` and `log` were changed together, by every request.
        self._write(
            do="handler", sid=session.sid, reason=reason, n=session.get("n"), log=session.get("log")
        )
        # Long enough for some to be killed here.
        time.sleep(self._choose.expovariate(1 / 0.003))

    # Requests.

    def work(self) -> None:
        """Make requests until killed, or until the standard input ends."""
        os.set_blocking(0, False)
        while True:
            with contextlib.suppress(BlockingIOError):
                if os.read(0, 1) == b"":
                    return
            try:
                self.request()
            except (StoreUnavailable, Conflict) as error:
                self._write(error=type(error).__name__, text=str(error)[:100])
                time.sleep(0.02)
            time.sleep(self._pace)

    def sweep(self) -> None:
        """Sweep until killed, or until the standard input ends."""
        os.set_blocking(0, False)
        while True:
            with contextlib.suppress(BlockingIOError):
                if os.read(0, 1) == b"":
                    return
            try:
                swept = self.manager.sweep()
                if swept.ended:
                    self._write(do="sweep", ended=swept.ended)
            except (StoreUnavailable, Conflict) as error:
                self._write(error=type(error).__name__, text=str(error)[:100])
            time.sleep(self._pace)

    def request(self) -> None:
        """Make one request of one browser."""
        number = self._choose.randrange(BROWSERS)
        user = f"user{number % USERS}"
        do = self._choose.choices([*_SHARES], [*_SHARES.values()])[0]
        if do == "end all":
            one = self._begin(do, user=user)
            self._write(ack=one, sids=self.manager.end_all(user))
            return
        file = self._cookies / str(number)
        cookie = ""
        with contextlib.suppress(FileNotFoundError):
            cookie = file.read_text()
        session = self.manager.session(f"id={cookie}")
        if session.is_new:
            do = "new"
        if do == "forget":
            # The browser was closed: nobody comes back to this session.
            file.unlink(missing_ok=True)
            return
        self._ask(session, do, user, file)

    def _ask(self, session: Any, do: str, user: str, file: Path) -> None:
        about: dict[str, Any] = {"sid": session.sid}
        if do == "new":
            about["short"] = self._choose.random() < 0.2
            if self._choose.random() < 0.5:
                about["user"] = user
        elif do == "login":
            about["user"] = user
        one = self._begin(do, **about)
        match do:
            case "logout":
                session.end("user")
            case "touch":
                session.touch()
            case _:
                session.append("log", one)
                session.add("n")
        if do == "renew":
            session.renew()
        if about.get("short"):
            session.idle_timeout = SHORT
        if "user" in about:
            session.login(user)
        done = self.manager.commit(session)
        if done.token is not None:
            self._keep(file, str(done.token))
        if (do == "logout" and done.cleared) or (done.wrote and not done.dropped):
            self._write(ack=one)
        elif done.dropped:
            self._write(dropped=one, why=done.dropped)

    def _keep(self, file: Path, cookie: str) -> None:
        assert parse_token(cookie) is not None
        new = file.with_name(f"{file.name}.{self._name}")
        new.write_text(cookie)
        new.replace(file)


if __name__ == "__main__":
    # What fails here is meant to.
    logging.getLogger("sojourn").disabled = True
    role, *rest = arguments()
    worker = Worker(*rest)
    print("ready", flush=True)
    worker.sweep() if role == "sweep" else worker.work()
    sys.stdout.flush()
