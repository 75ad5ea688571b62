"""Everything that Sojourn raises on purpose.

Each message says what came, what is allowed, and what to do.
"""

from __future__ import annotations

__all__ = [
    "ConfigurationError",
    "Conflict",
    "CsrfError",
    "DamagedRecord",
    "InvalidValue",
    "NewerState",
    "SessionEnded",
    "SojournError",
    "StateMismatch",
    "StoreUnavailable",
    "TooManySessions",
]


class SojournError(Exception):
    """The parent of all errors of this package."""


class ConfigurationError(SojournError):
    """Settings that cannot work, all faults in one message."""


class StoreUnavailable(SojournError):
    """The store did not answer: down, unreachable, hung, full, read-only or locked for too long.

    `transient` is true where the same call may succeed at once on a new try (a connection that
    broke, also when it broke after the store had done the work: calls are idempotent). A driver
    repeats such a call; the others it passes on.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        """Remember whether a new try makes sense."""
        super().__init__(message)
        self.transient = transient


class DamagedRecord(SojournError):
    """What the store holds under a sid is not a record: flipped bits, cut short, foreign, newer.

    The visitor gets a fresh session; the log gets one line.
    """


class Conflict(SojournError):
    """Another request changed the session, and the rules do not allow to merge."""


class SessionEnded(SojournError):
    """The session was ended for good; nothing brings it back."""


class InvalidValue(SojournError, ValueError):
    """A key or a value that a session cannot keep."""


class StateMismatch(SojournError):
    """Stored typed state does not fit its class: the class has changed, and its version has not.

    The stored state stays as it is: a fault of a release costs nobody their session.
    """


class NewerState(StateMismatch):
    """Typed state that newer code wrote; this code leaves it untouched, byte for byte."""


class TooManySessions(SojournError):
    """A user has as many sessions as the rules allow, and they refuse another one."""


class CsrfError(SojournError):
    """The form token is missing or is not of this session."""
