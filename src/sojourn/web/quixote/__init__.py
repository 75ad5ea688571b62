"""Quixote: `Publisher(root, session_manager=SessionManager(sessions))`.

    from quixote.directory import Directory

    import sojourn
    from sojourn.web.quixote import Session, SessionManager, ThreadSafePublisher

    class Visitor(Session):
        counter = 0

        def has_info(self):
            return self.counter > 0 or super().has_info()

    sessions = sojourn.SessionManager("sqlite:///sessions.db")

    def create_publisher():
        return ThreadSafePublisher(Root(), session_manager=SessionManager(sessions, Visitor))

It takes the place of Quixote's own session manager, and of Session3's, in all of Quixote's servers
and behind its WSGI form.
"""

from __future__ import annotations

from sojourn.web.quixote.manager import SessionManager
from sojourn.web.quixote.publisher import ThreadSafePublisher
from sojourn.web.quixote.session import DictSession, Session
from sojourn.web.quixote.stores import ForeignStore, SessionStore

__all__ = [
    "DictSession",
    "ForeignStore",
    "Session",
    "SessionManager",
    "SessionStore",
    "ThreadSafePublisher",
]
