"""Times and reasons in words."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["FILTERS", "ago", "duration", "ended", "iso", "moment"]

_ENDED = {
    "idle": "it was not used for too long",
    "lifetime": "it had reached its longest time",
    "user": "it was signed out, here or from another device",
    "operator": "it was ended by those who run this site",
    "replaced": "somebody signed in under another name in this browser",
    "password": "the password was changed",
    "theft": "somebody else seems to have used it",
}


def duration(seconds: float) -> str:
    """Return a length of time in words, in the one unit that fits: "59 minutes"."""
    number, unit = int(seconds), "second"
    for size, name in ((60, "minute"), (3600, "hour"), (86400, "day")):
        # From 2 units on, so that "90 minutes" does not become "1 hour".
        if seconds >= 2 * size or seconds == size:
            number, unit = int(seconds // size), name
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def ago(at: float, now: float) -> str:
    """Return how long ago a time was, in words."""
    passed = now - at
    return "just now" if passed < 10 else f"{duration(passed)} ago"


def iso(at: float) -> str:
    """Return a time as a machine reads it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(at: float) -> str:
    """Return a time as people read it."""
    when = datetime.fromtimestamp(at, UTC)
    return f"{when.day} {when:%B, %H:%M} UTC"


def ended(reason: str) -> str:
    """Return why a session ended, as the second half of a sentence."""
    return _ENDED.get(reason, "it could not be read any more")


FILTERS = {
    "ago": ago,
    "duration": duration,
    "ended": ended,
    "iso": iso,
    "moment": moment,
}
