"""Times, devices and reasons in words."""

from __future__ import annotations

import re
from datetime import UTC, datetime

__all__ = ["FILTERS", "agent", "ago", "duration", "ended", "iso", "moment"]

_ENDED = {
    "idle": "it was not used for too long",
    "lifetime": "it had reached its longest time",
    "user": "it was signed out, here or from another device",
    "operator": "it was ended by those who run this site",
    "replaced": "somebody signed in under another name in this browser",
    "password": "the password was changed",
    "theft": "somebody else seems to have used it",
}

# The order matters: many browsers also name those whose pages they want to get.
_BROWSERS = (
    ("Edg", "Edge"),
    ("OPR/", "Opera"),
    ("SamsungBrowser/", "Samsung Internet"),
    ("Firefox/", "Firefox"),
    ("FxiOS/", "Firefox"),
    ("HeadlessChrome/", "Chrome"),
    ("Chrome/", "Chrome"),
    ("CriOS/", "Chrome"),
    ("Safari/", "Safari"),
    ("curl/", "curl"),
)
_SYSTEMS = (
    ("Android", "Android"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Windows", "Windows"),
    ("CrOS", "ChromeOS"),
    ("Macintosh", "macOS"),
    ("Linux", "Linux"),
)


def agent(text: str) -> str:
    """Return a User-Agent header in words: "Firefox on Linux"."""
    browser = next((name for mark, name in _BROWSERS if mark in text), "")
    system = next((name for mark, name in _SYSTEMS if mark in text), "")
    if browser and system:
        return f"{browser} on {system}"
    found = browser or system or re.sub(r"[^ -~]", "", text)[:40].strip()
    return found or "Unknown device"


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
    "agent": agent,
    "duration": duration,
    "ended": ended,
    "iso": iso,
    "moment": moment,
}
