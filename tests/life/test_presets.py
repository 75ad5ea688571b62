"""Presets by standard, on both sides of each limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sojourn import SessionManager
from sojourn.core import expiry as presets
from sojourn.core.expiry import Expiry
from sojourn.errors import ConfigurationError

from .conftest import Life

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
# NIST SP 800-63B-4, sections 2.1.3, 2.2.3 and 2.3.3: preset, overall limit, inactivity limit.
LIMITS = [
    ("NIST_800_63B_4_AAL1", 30 * DAY, None),
    ("NIST_800_63B_4_AAL2", 24 * HOUR, HOUR),
    ("NIST_800_63B_4_AAL3", 12 * HOUR, 15 * MINUTE),
]


def with_preset(memory_life: Callable[..., Life], name: str) -> Life:
    preset: Expiry = getattr(presets, name)
    return memory_life(
        expiry=preset,
        # In place of those of the fixture.
        idle_timeout=presets.NIST_800_63B_4_AAL2.idle_timeout,
        lifetime=presets.NIST_800_63B_4_AAL2.lifetime,
    )


@pytest.mark.parametrize(("name", "overall", "idle"), LIMITS)
def test_overall_limit(
    memory_life: Callable[..., Life], name: str, overall: float, idle: float | None
) -> None:
    """Used all the time it lives to the last moment before the limit, and is dead at it."""
    life = with_preset(memory_life, name)
    cookie = life.login()
    begun = life.clock()
    step = (idle or overall) / 3
    while life.clock() + step < begun + overall:
        life.clock.advance(step)
        session = life.open(cookie)
        session.touch()
        life.commit(session)
    life.clock.now = begun + overall - 0.001
    assert life.alive(cookie)
    life.clock.now = begun + overall
    before = life.open(cookie).ended_before

    assert before is not None
    assert before == ("lifetime", begun + overall)


@pytest.mark.parametrize(("name", "overall", "idle"), LIMITS)
def test_inactivity_limit(
    memory_life: Callable[..., Life], name: str, overall: float, idle: float | None
) -> None:
    """Unused it lives to the last moment before the limit; AAL1 has none."""
    life = with_preset(memory_life, name)
    cookie = life.login()
    begun = life.clock()
    life.clock.now = begun + (idle or overall) - 0.001
    assert life.alive(cookie)
    life.clock.now = begun + (idle or overall)
    assert not life.alive(cookie)
    before = life.open(cookie).ended_before
    assert before is not None
    assert before.reason == ("idle" if idle else "lifetime")


def test_the_default_is_aal2() -> None:
    """Who says nothing gets 24 hours, and 1 hour without use."""
    settings = SessionManager().describe()

    assert (settings["lifetime"], settings["idle_timeout"]) == (24 * HOUR, HOUR)


@pytest.mark.parametrize("given", [{"idle_timeout": 5}, {"lifetime": 50}])
def test_a_preset_and_a_limit(given: dict[str, Any]) -> None:
    """Both at once is refused: one of them would not be what it says."""
    with pytest.raises(ConfigurationError, match="give one"):
        SessionManager(expiry=presets.NIST_800_63B_4_AAL3, **given)


def test_no_limit_at_all() -> None:
    """A session must end some time."""
    with pytest.raises(ConfigurationError, match="must end some time"):
        SessionManager(idle_timeout=None, lifetime=None)
