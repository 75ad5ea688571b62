"""When a session ends by itself: the two limits, the deadline, and when to write a touch.

Pure functions of numbers; all times are UTC seconds, all durations seconds.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from sojourn.core.record import Record
from sojourn.errors import ConfigurationError

if TYPE_CHECKING:
    from sojourn.core.rules import Rules

__all__ = [
    "MAX_COOKIE_AGE",
    "NIST_800_63B_4_AAL1",
    "NIST_800_63B_4_AAL2",
    "NIST_800_63B_4_AAL3",
    "Expiry",
    "deadline_of",
    "expired_reason",
    "seconds",
    "start_of",
    "touch_interval_of",
]

MAX_COOKIE_AGE = 400 * 86400
"""Browsers cap a cookie's Max-Age at 400 days (RFC 6265bis, section 5.5)."""


class Expiry(msgspec.Struct, frozen=True):
    """A pair of limits; None means that there is no such limit. One of them must be set.

    Attributes:
        idle_timeout: the time without use after which a session ends.
        lifetime: the time after creation, or the last login, at which it ends in any case.
    """

    idle_timeout: timedelta | None
    lifetime: timedelta | None


# NIST SP 800-63B-4 (2025), sections 2.1.3, 2.2.3 and 2.3.3: reauthentication. AAL1 asks for an
# overall limit of at most 30 days and needs no inactivity limit; AAL2 for 24 hours and 1 hour;
# AAL3 for 12 hours and 15 minutes.
NIST_800_63B_4_AAL1 = Expiry(idle_timeout=None, lifetime=timedelta(days=30))
NIST_800_63B_4_AAL2 = Expiry(idle_timeout=timedelta(hours=1), lifetime=timedelta(hours=24))
NIST_800_63B_4_AAL3 = Expiry(idle_timeout=timedelta(minutes=15), lifetime=timedelta(hours=12))


def seconds(value: timedelta | float | None, name: str) -> float | None:
    """Return a duration in seconds.

    Raises:
        ConfigurationError: it is not a duration, or not longer than nothing.
    """
    if value is None:
        return None
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e11:
        raise ConfigurationError(
            f"{name} is {value!r}; it must be a timedelta or a number of seconds above 0, or None"
        )
    return float(value)


def deadline_of(
    seen: float, start: float, idle_timeout: float | None, lifetime: float | None
) -> float:
    """Return when a session ends if it is not used again: the earlier of its two limits.

    Args:
        seen: its last use.
        start: its creation or the last login, whichever is later.
        idle_timeout, lifetime: its limits; at least one is not None.
    """
    if lifetime is None:
        if idle_timeout is None:
            raise ConfigurationError(
                "a session needs an idle_timeout or a lifetime, or it would never end"
            )
        return seen + idle_timeout
    end = start + lifetime
    return end if idle_timeout is None else min(end, seen + idle_timeout)


def start_of(record: Record) -> float:
    """Return when a record's lifetime began: at its creation or the last login."""
    return record.created if record.authenticated is None else record.authenticated


def touch_interval_of(record: Record, rules: Rules) -> float:
    """Return how long a session must have gone unseen before a mere use is written.

    That of the rules; of a session with an idle timeout of its own, that is shorter, the same
    part of it: a session in use must never end because its uses were not worth writing.
    """
    idle = record.idle_timeout
    if idle == rules.idle_timeout or idle is None:
        return rules.touch_interval
    longest = rules.idle_timeout or rules.lifetime or idle
    return rules.touch_interval * min(1.0, idle / longest)


def expired_reason(record: Record) -> str:
    """Return why a record is over: the reason it was given, or else the limit that it met."""
    if record.reason:
        return record.reason
    if record.lifetime is not None and record.deadline >= start_of(record) + record.lifetime:
        return "lifetime"
    return "idle"
