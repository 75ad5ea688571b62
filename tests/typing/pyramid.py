"""What a Pyramid request gives."""

from dataclasses import dataclass, field
from typing import Any, assert_type

from sojourn import SessionManager, state
from sojourn.web.pyramid import OldCookie, Request, Session, SessionEnded, SessionFactory


@state("pyramid cart")
@dataclass
class Cart:
    items: list[str] = field(default_factory=list)


def view(request: Request) -> None:
    assert_type(request.session, Session)
    assert_type(request.sessions, SessionManager)
    assert_type(request.session.created, int)
    assert_type(request.session.new, bool)
    assert_type(request.session["theme"], Any)
    assert_type(request.session[Cart].items, list[str])
    assert_type(request.session.get_csrf_token(), str)
    assert_type(request.session.new_csrf_token(), str)
    assert_type(request.session.pop_flash("error"), list[Any])
    assert_type(request.session.user, str | None)
    request.session.flash("saved", allow_duplicate=False)
    request.session.invalidate()
    request.session.changed()


def factories(sessions: SessionManager, settings: dict[str, Any]) -> None:
    assert_type(SessionFactory(sessions, set_on_exception=False), SessionFactory)
    assert_type(SessionFactory(sessions, old_cookie=OldCookie("secret")), SessionFactory)
    assert_type(SessionFactory.from_settings(settings).sessions, SessionManager)


def listen(event: SessionEnded) -> None:
    assert_type(event.reason, str)


def refused(request: Request) -> None:
    request.session[Cart].items = "tea"  # type: ignore[assignment]
    request.session.created = 1  # type: ignore[misc]
    request.session.invalidated()  # type: ignore[attr-defined]
    request.session.login(7)  # type: ignore[arg-type]
    request.sessions.end_everything()  # type: ignore[attr-defined]
    SessionFactory("sqlite:///sessions.db")  # type: ignore[arg-type]
