"""Sessions in a plain WSGI application: `waitress-serve --listen 127.0.0.1:8000 app:app`.

The routes are those of `sojourn.testing.scenarios`, which shows with them that this application
keeps what sessions promise. The store is named by the environment variable `SESSIONS`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any
from urllib.parse import parse_qsl
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from sojourn import Append, CsrfError, Session, SessionManager, state
from sojourn.web.wsgi import SessionMiddleware


@state("cart")
@dataclass
class Cart:
    items: Annotated[list[str], Append] = field(default_factory=list)


def quiet(session: Session, query: dict[str, str]) -> Any:
    return {"ok": True}


def get(session: Session, query: dict[str, str]) -> Any:
    return {"value": session.get(query["key"])}


def set_(session: Session, query: dict[str, str]) -> Any:
    session[query["key"]] = query["value"]
    return {"value": query["value"]}


def add(session: Session, query: dict[str, str]) -> Any:
    return {"value": session.add(query["key"])}


def show_cart(session: Session, query: dict[str, str]) -> Any:
    return {"items": session[Cart].items}


def fill_cart(session: Session, query: dict[str, str]) -> Any:
    session[Cart].items.append(query["item"])
    return {"items": session[Cart].items}


def show_flash(session: Session, query: dict[str, str]) -> Any:
    return {"messages": session.pop_flash()}


def flash(session: Session, query: dict[str, str]) -> Any:
    session.flash(query["text"])
    return {"ok": True}


def token(session: Session, query: dict[str, str]) -> Any:
    return {"token": session.csrf_token}


def form(session: Session, query: dict[str, str]) -> Any:
    session.check_csrf(query["token"])
    return {"ok": True}


def me(session: Session, query: dict[str, str]) -> Any:
    ended = session.ended_before
    return {
        "user": session.user,
        "sid": session.sid,
        "new": session.is_new,
        "ended": ended.reason if ended else None,
    }


def login(session: Session, query: dict[str, str]) -> Any:
    session.login(query["user"])
    return {"user": session.user}


def remember(session: Session, query: dict[str, str]) -> Any:
    session.login(query["user"])
    session.remember(timedelta(days=30))
    return {"user": session.user}


def renew(session: Session, query: dict[str, str]) -> Any:
    session.renew()
    return {"ok": True}


def logout(session: Session, query: dict[str, str]) -> Any:
    session.logout()
    return {"ok": True}


def fail(session: Session, query: dict[str, str]) -> Any:
    session.add(query["key"])
    raise RuntimeError("this page always fails; nothing that it wrote is kept")


PAGES: dict[tuple[str, str], Callable[[Session, dict[str, str]], Any]] = {
    ("GET", "/api/quiet"): quiet,
    ("GET", "/api/get"): get,
    ("POST", "/api/set"): set_,
    ("POST", "/api/add"): add,
    ("GET", "/api/cart"): show_cart,
    ("POST", "/api/cart"): fill_cart,
    ("GET", "/api/flash"): show_flash,
    ("POST", "/api/flash"): flash,
    ("GET", "/api/token"): token,
    ("POST", "/api/form"): form,
    ("GET", "/api/me"): me,
    ("POST", "/api/login"): login,
    ("POST", "/api/remember"): remember,
    ("POST", "/api/renew"): renew,
    ("POST", "/api/logout"): logout,
    ("POST", "/api/fail"): fail,
}


class Query(dict[str, str]):
    """The parameters of a request; a missing one is an empty text."""

    def __missing__(self, key: str) -> str:
        return ""


def make_app(sessions: SessionManager) -> WSGIApplication:
    """Return the application with its sessions."""

    def end_others(session: Session, query: dict[str, str]) -> Any:
        user = session.user
        return {"ended": len(sessions.end_all(user, keep=session.sid)) if user else 0}

    pages = {**PAGES, ("POST", "/api/end-others"): end_others}

    def site(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        session = environ["sojourn.session"]
        query = Query(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        if (method, path) == ("POST", "/api/stream"):
            return stream(session, query, start_response)
        page = pages.get((method, path))
        if page is None:
            return answer(start_response, "404 Not Found", {"error": "no such page"})
        try:
            found = page(session, query)
        except CsrfError as error:
            return answer(start_response, "403 Forbidden", {"error": str(error)})
        return answer(start_response, "200 OK", found)

    return SessionMiddleware(site, sessions)


def answer(start_response: StartResponse, status: str, value: Any) -> list[bytes]:
    body = json.dumps(value).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response(status, headers)
    return [body]


def stream(
    session: Session, query: dict[str, str], start_response: StartResponse
) -> Iterator[bytes]:
    session.get(query["key"])
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    yield b"one\n"
    # The head has left; this is committed when the body has ended.
    session.add(query["key"])
    yield b"two\n"


app = make_app(SessionManager(os.environ.get("SESSIONS", "sqlite:///sessions.db")))
