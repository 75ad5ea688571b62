"""Sessions in a plain ASGI application: `uvicorn app:app`.

The routes are those of `sojourn.testing.scenarios`, which shows with them that this application
keeps what sessions promise. The store is named by the environment variable `SESSIONS`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any
from urllib.parse import parse_qsl

from sojourn import Append, CsrfError, Session, SessionManager, state
from sojourn.web.asgi import App, Receive, Scope, Send, SessionMiddleware


@state("cart")
@dataclass
class Cart:
    items: Annotated[list[str], Append] = field(default_factory=list)


async def quiet(session: Session, query: dict[str, str]) -> Any:
    return {"ok": True}


async def get(session: Session, query: dict[str, str]) -> Any:
    return {"value": session.get(query["key"])}


async def set_(session: Session, query: dict[str, str]) -> Any:
    session[query["key"]] = query["value"]
    return {"value": query["value"]}


async def add(session: Session, query: dict[str, str]) -> Any:
    return {"value": session.add(query["key"])}


async def show_cart(session: Session, query: dict[str, str]) -> Any:
    return {"items": session[Cart].items}


async def fill_cart(session: Session, query: dict[str, str]) -> Any:
    session[Cart].items.append(query["item"])
    return {"items": session[Cart].items}


async def show_flash(session: Session, query: dict[str, str]) -> Any:
    return {"messages": session.pop_flash()}


async def flash(session: Session, query: dict[str, str]) -> Any:
    session.flash(query["text"])
    return {"ok": True}


async def token(session: Session, query: dict[str, str]) -> Any:
    return {"token": session.csrf_token}


async def form(session: Session, query: dict[str, str]) -> Any:
    session.check_csrf(query["token"])
    return {"ok": True}


async def me(session: Session, query: dict[str, str]) -> Any:
    ended = session.ended_before
    return {
        "user": session.user,
        "sid": session.sid,
        "new": session.is_new,
        "ended": ended.reason if ended else None,
    }


async def login(session: Session, query: dict[str, str]) -> Any:
    session.login(query["user"])
    return {"user": session.user}


async def remember(session: Session, query: dict[str, str]) -> Any:
    session.login(query["user"])
    session.remember(timedelta(days=30))
    return {"user": session.user}


async def renew(session: Session, query: dict[str, str]) -> Any:
    session.renew()
    return {"ok": True}


async def logout(session: Session, query: dict[str, str]) -> Any:
    session.logout()
    return {"ok": True}


async def fail(session: Session, query: dict[str, str]) -> Any:
    session.add(query["key"])
    raise RuntimeError("this page always fails; nothing that it wrote is kept")


PAGES: dict[tuple[str, str], Callable[[Session, dict[str, str]], Awaitable[Any]]] = {
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


def make_app(sessions: SessionManager) -> App:
    """Return the application with its sessions."""

    async def end_others(session: Session, query: dict[str, str]) -> Any:
        user = session.user
        return {"ended": len(await sessions.aend_all(user, keep=session.sid)) if user else 0}

    pages = {**PAGES, ("POST", "/api/end-others"): end_others}

    async def site(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        session = scope["session"]
        query = Query(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        method, path = scope["method"], scope["path"]
        if (method, path) == ("POST", "/api/stream"):
            await stream(session, query, send)
            return
        page = pages.get((method, path))
        if page is None:
            await answer(send, 404, {"error": "no such page"})
            return
        try:
            found = await page(session, query)
        except CsrfError as error:
            await answer(send, 403, {"error": str(error)})
        else:
            await answer(send, 200, found)

    async def lifespan(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await sessions.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    return SessionMiddleware(site, sessions)


async def answer(send: Send, status: int, value: Any) -> None:
    body = json.dumps(value).encode()
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def stream(session: Session, query: dict[str, str], send: Send) -> None:
    session.get(query["key"])
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"one\n", "more_body": True})
    # The head has left; this is committed when the body has ended.
    session.add(query["key"])
    await send({"type": "http.response.body", "body": b"two\n"})


app = make_app(SessionManager(os.environ.get("SESSIONS", "sqlite:///sessions.db")))
