"""A Pyramid application with the routes of `sojourn.testing.scenarios`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any

from pyramid.config import Configurator
from pyramid.response import Response

from sojourn import Append, SessionManager, state
from sojourn.web.pyramid import Request, Session, SessionFactory


@state("cart")
@dataclass
class Cart:
    items: Annotated[list[str], Append] = field(default_factory=list)


def done(made: object) -> dict[str, bool]:
    return {"ok": True}


def put(session: Session, key: str, value: str) -> dict[str, str]:
    session[key] = value
    return {"value": value}


def fill(session: Session, item: str) -> dict[str, list[str]]:
    session[Cart].items.append(item)
    return {"items": session[Cart].items}


def login(session: Session, user: str, *, remember: bool = False) -> dict[str, str | None]:
    session.login(user)
    if remember:
        session.remember(timedelta(days=30))
    return {"user": session.user}


def me(session: Session) -> dict[str, Any]:
    ended = session.ended_before
    return {
        "user": session.user,
        "sid": session.sid,
        "new": session.new,
        "ended": ended.reason if ended else None,
    }


def end_others(request: Request) -> dict[str, int]:
    session, sessions = request.session, request.sessions
    user = session.user
    return {"ended": len(sessions.end_all(user, keep=session.sid)) if user else 0}


def fail(session: Session, key: str) -> None:
    session.add(key)
    raise RuntimeError("this page always fails")


def stream(request: Request) -> Response:
    session, key = request.session, request.query["key"]
    session.get(key)

    def body() -> Iterator[bytes]:
        yield b"one\n"
        session.add(key)
        yield b"two\n"

    return Response(app_iter=body(), content_type="text/plain")


View = Callable[[Any], Any]
PAGES: dict[tuple[str, str], View] = {
    ("GET", "quiet"): lambda r: {"ok": True},
    ("GET", "get"): lambda r: {"value": r.session.get(r.query["key"])},
    ("POST", "set"): lambda r: put(r.session, r.query["key"], r.query["value"]),
    ("POST", "add"): lambda r: {"value": r.session.add(r.query["key"])},
    ("GET", "cart"): lambda r: {"items": r.session[Cart].items},
    ("POST", "cart"): lambda r: fill(r.session, r.query["item"]),
    ("GET", "flash"): lambda r: {"messages": r.session.pop_flash()},
    ("POST", "flash"): lambda r: done(r.session.flash(r.query["text"])),
    ("GET", "token"): lambda r: {"token": r.session.csrf_token},
    ("POST", "form"): lambda r: done(r.session.check_csrf(r.query["token"])),
    ("GET", "me"): lambda r: me(r.session),
    ("POST", "login"): lambda r: login(r.session, r.query["user"]),
    ("POST", "remember"): lambda r: login(r.session, r.query["user"], remember=True),
    ("POST", "renew"): lambda r: done(r.session.renew()),
    ("POST", "logout"): lambda r: done(r.session.invalidate()),
    ("POST", "end-others"): end_others,
    ("POST", "stream"): stream,
    ("POST", "fail"): lambda r: fail(r.session, r.query["key"]),
}


class Query(dict[str, str]):
    """The parameters of a request; a missing one is an empty text."""

    def __missing__(self, key: str) -> str:
        return ""


def make_app(sessions: SessionManager) -> Any:
    """Return the WSGI application."""
    config = Configurator()
    config.include(SessionFactory(sessions).includeme)
    config.add_request_method(lambda request: Query(request.GET), "query", reify=True)
    for (method, name), view in PAGES.items():
        route = f"{method} {name}"
        config.add_route(route, f"/api/{name}", request_method=method)
        config.add_view(view, route_name=route, renderer="json")
    return config.make_wsgi_app()
