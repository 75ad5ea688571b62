"""Sessions in Quixote: `waitress-serve --listen 127.0.0.1:8000 --call app:make_app`.

The routes are those of `sojourn.testing.scenarios`, which shows with them that this application
keeps what sessions promise. The store is named by the environment variable `SESSIONS`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any

import quixote
from quixote.directory import Directory
from quixote.errors import TraversalError
from quixote.http_response import Stream

import sojourn
from sojourn import Append, state
from sojourn.web.quixote import Session, SessionManager, ThreadSafePublisher


@state("cart")
@dataclass
class Cart:
    items: Annotated[list[str], Append] = field(default_factory=list)


class Visitor(Session):
    """Whatever was written to it is worth keeping."""

    def has_info(self) -> bool:
        return True


def quiet(session: Visitor) -> Any:
    return {"ok": True}


def get(session: Visitor) -> Any:
    return {"value": session.sojourn.get(text("key"))}


def set_(session: Visitor) -> Any:
    session.sojourn[text("key")] = text("value")
    return {"value": text("value")}


def add(session: Visitor) -> Any:
    return {"value": session.add(text("key"))}


def show_cart(session: Visitor) -> Any:
    return {"items": session.sojourn[Cart].items}


def fill_cart(session: Visitor) -> Any:
    session.sojourn[Cart].items.append(text("item"))
    return show_cart(session)


def show_flash(session: Visitor) -> Any:
    return {"messages": session.sojourn.pop_flash()}


def flash(session: Visitor) -> Any:
    session.sojourn.flash(text("text"))
    return {"ok": True}


def token(session: Visitor) -> Any:
    return {"token": session.create_form_token()}


def form(session: Visitor) -> Any:
    # What it raises is answered with 403.
    session.sojourn.check_csrf(text("token"))
    return {"ok": True}


def me(session: Visitor) -> Any:
    ended = session.sojourn.ended_before
    return {
        "user": session.user,
        "sid": session.sojourn.sid,
        "new": session.id is None,
        "ended": ended.reason if ended else None,
    }


def login(session: Visitor) -> Any:
    session.set_user(text("user"))
    return {"user": session.user}


def remember(session: Visitor) -> Any:
    session.set_user(text("user"))
    session.remember(timedelta(days=30))
    return {"user": session.user}


def renew(session: Visitor) -> Any:
    session.renew()
    return {"ok": True}


def logout(session: Visitor) -> Any:
    quixote.get_session_manager().expire_session()
    return {"ok": True}


def end_others(session: Visitor) -> Any:
    user, manager = session.user, quixote.get_session_manager()
    return {"ended": len(manager.sessions.end_all(user, keep=session.id)) if user else 0}


def fail(session: Visitor) -> Any:
    session.add(text("key"))
    raise RuntimeError("this page always fails; nothing that it wrote is kept")


PAGES: dict[tuple[str, str], Callable[[Visitor], Any]] = {
    ("GET", "quiet"): quiet,
    ("GET", "get"): get,
    ("POST", "set"): set_,
    ("POST", "add"): add,
    ("GET", "cart"): show_cart,
    ("POST", "cart"): fill_cart,
    ("GET", "flash"): show_flash,
    ("POST", "flash"): flash,
    ("GET", "token"): token,
    ("POST", "form"): form,
    ("GET", "me"): me,
    ("POST", "login"): login,
    ("POST", "remember"): remember,
    ("POST", "renew"): renew,
    ("POST", "logout"): logout,
    ("POST", "end-others"): end_others,
    ("POST", "fail"): fail,
}


class Api(Directory):
    def _q_lookup(self, component: str) -> Any:
        method, session = quixote.get_request().get_method(), quixote.get_session()
        if (method, component) == ("POST", "stream"):
            quixote.get_response().set_content_type("text/plain")
            return stream(session)
        page = PAGES.get((method, component))
        if page is None:
            raise TraversalError
        found = json.dumps(page(session))
        quixote.get_response().set_content_type("application/json", "utf-8")
        return found


class Root(Directory):
    _q_exports = ("api",)
    api = Api()


def stream(session: Visitor) -> Stream:
    key = text("key")
    session.sojourn.get(key)

    def chunks() -> Iterator[str]:
        yield "one\n"
        # The head has left; this is committed when the body has ended.
        session.add(key)
        yield "two\n"

    return Stream(chunks())


def text(name: str) -> Any:
    return quixote.get_param(name, "")


def create_publisher() -> ThreadSafePublisher:
    """Return the publisher; Quixote's servers call it."""
    sessions = sojourn.SessionManager(os.environ.get("SESSIONS", "sqlite:///sessions.db"))
    return ThreadSafePublisher(Root(), session_manager=SessionManager(sessions, Visitor))


def make_app() -> Any:
    """Return the WSGI application."""
    create_publisher()
    return quixote.get_wsgi_app()
