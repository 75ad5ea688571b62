"""A clock that a test holds."""

from __future__ import annotations

__all__ = ["Clock"]


class Clock:
    """Tells the time that it was told; call it wherever `time.time` would be called.

    Example:
        >>> clock = Clock(1000.0)
        >>> clock.advance(30)
        >>> clock()
        1030.0
    """

    __slots__ = ("now",)

    def __init__(self, now: float = 1_750_000_000.0) -> None:
        """Start at `now`, UTC seconds since 1970."""
        self.now = float(now)

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let that many seconds pass; negative ones set the clock back."""
        self.now += seconds
