"""What happens to sessions, as events of Pyramid: `@subscriber(SessionCreated)`."""

from __future__ import annotations

from typing import Any

from zope.interface import providedBy

from sojourn.core.session import Session
from sojourn.manager import SessionManager

__all__ = ["SessionCreated", "SessionEnded", "SessionRenewed", "notify"]


class SessionCreated:
    """A session was made; the commit is done.

    Attributes:
        session: which.
    """

    def __init__(self, session: Session) -> None:
        self.session = session


class SessionRenewed:
    """A session got a new secret: by a login, or by `renew`.

    Attributes:
        session: which.
    """

    def __init__(self, session: Session) -> None:
        self.session = session


class SessionEnded:
    """A session is over, for whatever reason; see `SessionManager.on_ended`.

    A subscriber that raises is called again later, so it may run twice for one session.

    Attributes:
        session: as it was at its end, to be read.
        reason: one word: user, idle, lifetime, operator, replaced, password, theft.
    """

    def __init__(self, session: Session, reason: str) -> None:
        self.session = session
        self.reason = reason


def notify(registry: Any, sessions: SessionManager) -> None:
    """Tell the subscribers of a registry; registers only what somebody subscribed to.

    Handlers of the end of sessions are not free: each end is written twice for them. It may be
    called again, when there are more subscribers.
    """
    told: set[object] = registry.__dict__.setdefault("_sojourn_told", set())

    def subscribed(event: object) -> bool:
        key = type(event), sessions
        if key in told or not registry.adapters.subscriptions([providedBy(event)], None):
            return False
        told.add(key)
        return True

    nothing: Any = None
    if subscribed(SessionCreated(nothing)):
        sessions.on_created(lambda session: registry.notify(SessionCreated(session)))
    if subscribed(SessionRenewed(nothing)):
        sessions.on_renewed(lambda session: registry.notify(SessionRenewed(session)))
    if subscribed(SessionEnded(nothing, "")):
        sessions.on_ended(lambda session, why: registry.notify(SessionEnded(session, why)))
