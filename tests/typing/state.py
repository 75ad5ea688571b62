"""What a session gives by class and by key."""

from dataclasses import dataclass, field
from typing import Any, assert_type

from sojourn.core.session import Session
from sojourn.core.state import state


@state("cart", version=2, upgrades={1: lambda old: {"items": old["lines"]}})
@dataclass
class Cart:
    items: list[str] = field(default_factory=list)
    total: int = 0


def by_class(session: Session) -> None:
    assert_type(session[Cart], Cart)
    assert_type(session[Cart].items, list[str])
    session[Cart] = Cart()
    session[Cart].total += 1
    del session[Cart]
    assert_type(session.peek[Cart], Cart)


def by_key(session: Session) -> None:
    assert_type(session["theme"], Any)
    session["theme"] = "dark"
    session |= {"a": 1}
    del session["theme"]
    assert_type(session.add("visits"), Any)
    assert_type(session.user, str | None)
    assert_type(session.pop_flash(), list[Any])
    for key in session:
        assert_type(key, str)


def refused(session: Session) -> None:
    session[Cart].total = "one"  # type: ignore[assignment]
    session[Cart].totl = 1  # type: ignore[attr-defined]
    session[1] = "one"  # type: ignore[call-overload]
    session[b"key"]  # type: ignore[call-overload]
    session.login(7)  # type: ignore[arg-type]
    session.sid = "x"  # type: ignore[misc]
    session.usr = "alice"  # type: ignore[attr-defined]
    text: str = session[Cart]  # type: ignore[assignment]
    print(text)


assert_type(Cart().total, int)
