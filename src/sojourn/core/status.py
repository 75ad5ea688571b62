"""What a request has done to its session, as a state, and how it passes to the next."""

from __future__ import annotations

import enum

__all__ = ["TRANSITIONS", "Event", "Status"]


class Status(enum.IntEnum):
    """What a request has done to its session so far."""

    NEW = 0
    """There is none in the store, and nothing was written."""
    STARTED = 1
    """There is none in the store; something was written."""
    UNCHANGED = 2
    """Loaded; only read."""
    TOUCHED = 3
    """Loaded; to be extended without waiting for the touch interval."""
    CHANGED = 4
    """Loaded; something was written."""
    RENEWED = 5
    """Loaded; it gets a new secret (and what was written)."""


class Event(enum.IntEnum):
    """What can happen to a session in a request."""

    WRITE = 0
    TOUCH = 1
    RENEW = 2
    END = 3
    COMMIT = 4


TRANSITIONS: dict[tuple[Status, Event], Status] = {
    (Status.NEW, Event.WRITE): Status.STARTED,
    (Status.NEW, Event.TOUCH): Status.NEW,
    (Status.NEW, Event.RENEW): Status.NEW,
    (Status.NEW, Event.END): Status.NEW,
    (Status.NEW, Event.COMMIT): Status.NEW,
    (Status.STARTED, Event.WRITE): Status.STARTED,
    (Status.STARTED, Event.TOUCH): Status.STARTED,
    (Status.STARTED, Event.RENEW): Status.STARTED,
    (Status.STARTED, Event.END): Status.NEW,
    (Status.STARTED, Event.COMMIT): Status.UNCHANGED,
    (Status.UNCHANGED, Event.WRITE): Status.CHANGED,
    (Status.UNCHANGED, Event.TOUCH): Status.TOUCHED,
    (Status.UNCHANGED, Event.RENEW): Status.RENEWED,
    (Status.UNCHANGED, Event.END): Status.NEW,
    (Status.UNCHANGED, Event.COMMIT): Status.UNCHANGED,
    (Status.TOUCHED, Event.WRITE): Status.CHANGED,
    (Status.TOUCHED, Event.TOUCH): Status.TOUCHED,
    (Status.TOUCHED, Event.RENEW): Status.RENEWED,
    (Status.TOUCHED, Event.END): Status.NEW,
    (Status.TOUCHED, Event.COMMIT): Status.UNCHANGED,
    (Status.CHANGED, Event.WRITE): Status.CHANGED,
    (Status.CHANGED, Event.TOUCH): Status.CHANGED,
    (Status.CHANGED, Event.RENEW): Status.RENEWED,
    (Status.CHANGED, Event.END): Status.NEW,
    (Status.CHANGED, Event.COMMIT): Status.UNCHANGED,
    (Status.RENEWED, Event.WRITE): Status.RENEWED,
    (Status.RENEWED, Event.TOUCH): Status.RENEWED,
    (Status.RENEWED, Event.RENEW): Status.RENEWED,
    (Status.RENEWED, Event.END): Status.NEW,
    (Status.RENEWED, Event.COMMIT): Status.UNCHANGED,
}
"""All transitions. The diagram in the docs and the exhaustive test are made from this table."""
