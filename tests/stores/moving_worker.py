"""A worker of an application whose store moves: uses sessions, and writes down what it was told.

    python moving_worker.py MOVING-URL LOG SHARED-TOKENS SEED

The log has one line before each change (`try`), and one after it, when it was reported (`did`), so
that whoever reads it after a kill -9 knows what must be there, and what may be there.
"""

from __future__ import annotations

import os
import random
import sys
import time

from sojourn import SessionManager
from sojourn.errors import SojournError


def main(url: str, path: str, tokens: str, seed: int) -> None:
    """Work until killed."""
    sessions = SessionManager(url)
    chance = random.Random(seed)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with open(tokens) as file:
        shared = file.read().split()
    own: dict[str, str] = {}

    def note(*words: object) -> None:
        os.write(log, (" ".join(map(str, words)) + "\n").encode())

    def change(what: str, sid: str, token: str) -> None:
        """Do one thing to a session, as a request would."""
        session = sessions.session(f"id={token}" if token else "")
        if token and session.is_new:
            note("miss", what, sid)
            own.pop(sid, None)
            return
        sid = sid or session.sid
        note("try", what, sid)
        if what == "add":
            session.add("n")
        elif what == "new":
            session["n"] = 0
        elif what == "login":
            session.login("alice")
        else:
            session.end("user")
        done = sessions.commit(session)
        if done.dropped:
            note("dropped", what, sid, done.dropped)
            own.pop(sid, None)
            return
        note("did", what, sid, done.token or "")
        if what == "logout":
            own.pop(sid, None)
        elif done.token is not None:
            own[sid] = str(done.token)

    note("begins")
    while True:
        time.sleep(0.002)  # A visitor's pause, so that the logs stay short.
        what = chance.choices(
            ("shared", "add", "new", "login", "logout", "sweep"), (30, 30, 20, 8, 10, 1)
        )[0]
        try:
            if what == "sweep":
                sessions.sweep()
            elif what == "shared":
                token = chance.choice(shared)
                change("add", token[:22], token)
            elif what == "new" or not own:
                change("new", "", "")
            else:
                sid = chance.choice(list(own))
                change(what, sid, own[sid])
        except SojournError as error:
            # Nobody knows whether it happened; the browser would try again.
            note("error", type(error).__name__, error)
            own.clear()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
