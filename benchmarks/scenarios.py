"""What a request does with its session, written once for every session layer."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from benchmarks.payloads import KEY

__all__ = ["SCENARIOS", "Action", "Scenario", "read", "read_first", "seed"]

Action = Callable[[MutableMapping[str, Any], Any], str]
"""(session, what the harness wants stored) -> the body of the answer."""


@dataclass(frozen=True)
class Scenario:
    """One kind of request.

    Attributes:
        name: short.
        text: for people.
        action: what the application does; None: it does not touch the session.
        returning: whether the request brings a session's cookie.
        raw: which of the bare commands is the floor: "read", "write", "insert" or none.
        sized: whether the size of the session can matter at all.
        verb: it is no request, but that verb of the store alone.
    """

    name: str
    text: str
    action: Action | None
    returning: bool
    raw: str = ""
    sized: bool = True
    verb: bool = False

    @property
    def floors(self) -> tuple[str, ...]:
        """Return what the bare back end does in such a request."""
        if self.raw == "write" and not self.verb:
            # What a library needs at least that merges: it has to know what it changes.
            return ("write", "read+write")
        return (self.raw,) if self.raw else ()


def _first(session: MutableMapping[str, Any], value: Any) -> str:
    session["cart"] = value
    return "stored"


def read_first(session: MutableMapping[str, Any], value: Any) -> str:
    """Tell whether what a new visitor stored is there."""
    return "equal" if session["cart"] == value else f"not equal: {session['cart']!r}"


def read(session: MutableMapping[str, Any], value: Any) -> str:
    """Read the small key."""
    return session[KEY]  # type: ignore[no-any-return]


def _change(session: MutableMapping[str, Any], value: Any) -> str:
    session[KEY] = value
    return "changed"


def seed(session: MutableMapping[str, Any], value: Any) -> str:
    """Store a whole session."""
    session.update(value)
    return "seeded"


SCENARIOS = (
    Scenario("S1", "a new visitor writes one key", _first, False, "insert"),
    Scenario("S2", "a returning visitor reads one small key", read, True, "read"),
    Scenario("S3", "a returning visitor changes one small key", _change, True, "write"),
    Scenario("S4", "a returning visitor, the session untouched", None, True),
    Scenario("S4n", "no cookie, the session untouched", None, False, sized=False),
    Scenario("load", "the store's verb alone", None, True, "read", verb=True),
    Scenario("replace", "the store's verb alone", None, True, "write", verb=True),
)
