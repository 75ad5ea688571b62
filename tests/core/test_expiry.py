"""Limits: what is a duration, when a session ends, why it ended."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn.core import expiry
from sojourn.core.expiry import deadline_of, expired_reason, seconds, start_of
from sojourn.errors import ConfigurationError
from sojourn.testing.records import new_record

DURATIONS = st.none() | st.floats(0.1, 1e9)


def test_durations() -> None:
    """Timedeltas and numbers of seconds are durations; None is no limit."""
    assert seconds(timedelta(minutes=1), "x") == 60.0
    assert seconds(60, "x") == 60.0
    assert seconds(0.5, "x") == 0.5
    assert seconds(None, "x") is None


@pytest.mark.parametrize(
    "value",
    [0, -1, timedelta(0), timedelta(-1), True, "60", float("nan"), float("inf"), 1e12, [], b"1"],
)
def test_no_durations(value: Any) -> None:
    """Whatever else is refused, with its name, what came and what is allowed."""
    with pytest.raises(ConfigurationError, match=r"idle_timeout is .*timedelta or a number"):
        seconds(value, "idle_timeout")


@given(st.floats(0, 1e9), st.floats(0, 1e6), DURATIONS, DURATIONS)
def test_deadline(start: float, used: float, idle: float | None, lifetime: float | None) -> None:
    """The deadline is the earlier of the two limits; without any limit there is an error."""
    seen = start + used
    if idle is None and lifetime is None:
        with pytest.raises(ConfigurationError, match="never end"):
            deadline_of(seen, start, idle, lifetime)
        return

    limits = [seen + idle] if idle is not None else []
    limits += [start + lifetime] if lifetime is not None else []

    assert deadline_of(seen, start, idle, lifetime) == min(limits)


@pytest.mark.parametrize(
    ("preset", "idle", "lifetime"),
    [
        (expiry.NIST_800_63B_4_AAL1, None, 30 * 24 * 3600),
        (expiry.NIST_800_63B_4_AAL2, 3600, 24 * 3600),
        (expiry.NIST_800_63B_4_AAL3, 15 * 60, 12 * 3600),
    ],
)
def test_l3_presets(preset: expiry.Expiry, idle: float | None, lifetime: float) -> None:
    """L3: the presets are those of NIST SP 800-63B-4."""
    assert seconds(preset.idle_timeout, "idle_timeout") == idle
    assert seconds(preset.lifetime, "lifetime") == lifetime


def test_reasons() -> None:
    """A record that is over tells which limit it met, unless it was given a reason."""
    idle = new_record(0.0, idle_timeout=10.0, lifetime=100.0, deadline=10.0)
    over = new_record(0.0, seen=95.0, idle_timeout=10.0, lifetime=100.0, deadline=100.0)
    logged_in = new_record(
        0.0, authenticated=50.0, seen=145.0, idle_timeout=10.0, lifetime=100.0, deadline=150.0
    )
    ended = new_record(0.0, reason="theft")

    assert expired_reason(idle) == "idle"
    assert expired_reason(over) == "lifetime"
    assert (start_of(logged_in), expired_reason(logged_in)) == (50.0, "lifetime")
    assert expired_reason(ended) == "theft"
