"""The settings that the core needs, checked, in one value."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from sojourn.core.sealing import Sealer
from sojourn.core.token import Entropy

__all__ = ["Environment", "Rules"]


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How sessions live and what they may hold. Durations in seconds.

    Attributes:
        idle_timeout, lifetime: of a new session; None: no such limit.
        touch_interval: how long a session must have gone unseen before a mere use is written.
        grace: how long the old secret opens a session after its renewal.
        tombstone: how long an ended session is remembered; 0: not at all.
        lease: how long a sweep may take over the handlers of one session's end.
        max_bytes, max_keys, max_depth: of the values of one session.
        keep_conflicts: whether the last commit wins where two requests set the same key; else
            the later one fails with `Conflict`.
        handlers: the events that handlers are registered for: created, renewed, ended,
            "ended in transaction", suspicious.
        max_attempts: how often the handlers of one session's end are tried before it is set aside.
        max_sessions: how many sessions a user may have; None: any number.
        deny_new: whether a login above that number is refused; else the session seen longest ago
            ends.
        on_theft: what a late use of a renewed cookie brings: "log", "end" (the session),
            "end-user" (all sessions of its user).
        sealer: what seals the data at rest; None: nothing does.
        persistent: whether the cookie of a new session outlives the browser.
    """

    idle_timeout: float | None
    lifetime: float | None
    touch_interval: float
    grace: float = 10.0
    tombstone: float = 86400.0
    lease: float = 60.0
    max_bytes: int = 1024 * 1024
    max_keys: int = 1000
    max_depth: int = 64
    keep_conflicts: bool = True
    handlers: frozenset[str] = frozenset()
    max_attempts: int = 10
    max_sessions: int | None = None
    deny_new: bool = False
    on_theft: str = "log"
    sealer: Sealer | None = None
    persistent: bool = False


class Environment(msgspec.Struct, frozen=True):
    """What a session needs besides its record: rules, the time, randomness."""

    rules: Rules
    clock: Callable[[], float]
    entropy: Entropy
