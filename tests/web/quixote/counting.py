"""A site that counts in pages that take their time: `/add` merges, `/plain` reads and then sets."""

from __future__ import annotations

import os
import time
from typing import Any

import quixote
from quixote.directory import Directory

from sojourn import SessionManager as Sessions
from sojourn.web.quixote import Session, SessionManager, ThreadSafePublisher

WORK = 0.01
"""Seconds that a page works between looking at the session and being done."""


class Counter(Session):
    counter = 0

    def has_info(self) -> bool:
        return self.counter > 0


class Root(Directory):
    _q_exports = ("", "add", "plain")

    def _q_index(self) -> str:
        return str(quixote.get_session().counter)

    def add(self) -> str:
        counted = quixote.get_session().add("counter")
        time.sleep(WORK)
        return str(counted)

    def plain(self) -> str:
        session = quixote.get_session()
        counted = session.counter
        time.sleep(WORK)
        session.counter = counted + 1
        return str(session.counter)


def create_publisher() -> ThreadSafePublisher:
    sessions = Sessions(os.environ["SESSIONS"])
    exclusive = bool(os.environ.get("EXCLUSIVE"))
    manager = SessionManager(sessions, Counter, exclusive=exclusive)
    return ThreadSafePublisher(Root(), session_manager=manager)


def make_app() -> Any:
    create_publisher()
    return quixote.get_wsgi_app()
