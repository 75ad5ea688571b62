"""The JSON routes that `sojourn.testing.scenarios` drives; what each does is told there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from sojourn.cli.demo.cart import Cart
from sojourn.cli.demo.http import HttpError, Request, Response, json

if TYPE_CHECKING:
    from wsgiref.types import StartResponse

__all__ = ["ROUTES", "STREAM", "stream"]

STREAM = ("POST", "/api/stream")
"""The one route whose body is no whole: `stream`."""

Page = Callable[[Request], Response]


def _quiet(request: Request) -> Response:
    return json({"ok": True})


def _get(request: Request) -> Response:
    return json({"value": request.session.get(request.query["key"])})


def _set(request: Request) -> Response:
    query = request.query
    request.session[query["key"]] = query["value"]
    return json({"value": query["value"]})


def _add(request: Request) -> Response:
    try:
        return json({"value": request.session.add(request.query["key"])})
    except TypeError as error:
        raise HttpError(400, f"{error}. Choose another key.") from None


def _cart(request: Request) -> Response:
    return json({"items": request.session[Cart].items})


def _fill_cart(request: Request) -> Response:
    request.session[Cart].items.append(request.query["item"])
    return _cart(request)


def _messages(request: Request) -> Response:
    return json({"messages": request.session.pop_flash()})


def _flash(request: Request) -> Response:
    request.session.flash(request.query["text"])
    return json({"ok": True})


def _token(request: Request) -> Response:
    return json({"token": request.session.csrf_token})


def _form(request: Request) -> Response:
    request.session.check_csrf(request.query["token"])
    return json({"ok": True})


def _me(request: Request) -> Response:
    session = request.session
    ended = session.ended_before
    return json(
        {
            "user": session.user,
            "sid": session.sid,
            "new": session.is_new,
            "ended": ended.reason if ended else None,
        }
    )


def _login(request: Request) -> Response:
    request.session.login(request.query["user"])
    return json({"user": request.session.user})


def _remember(request: Request) -> Response:
    request.session.login(request.query["user"])
    request.session.remember(timedelta(days=30))
    return json({"user": request.session.user})


def _renew(request: Request) -> Response:
    request.session.renew()
    return json({"ok": True})


def _logout(request: Request) -> Response:
    request.session.logout()
    return json({"ok": True})


def _end_others(request: Request) -> Response:
    session = request.session
    if session.user is None:
        return json({"ended": 0})
    ended = request.demo.sessions.end_all(session.user, keep=session.sid)
    return json({"ended": len(ended)})


def _fail(request: Request) -> Response:
    request.session.add(request.query["key"])
    raise RuntimeError("this page always fails; nothing that it wrote is kept")


def stream(request: Request, start_response: StartResponse) -> Iterator[bytes]:
    """Answer bit by bit, and write to the session after the head has left."""
    key = request.query["key"]
    request.session.get(key)
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    yield b"one\n"
    request.session.add(key)
    yield b"two\n"


ROUTES: dict[tuple[str, str], Page] = {
    ("GET", "/api/quiet"): _quiet,
    ("GET", "/api/get"): _get,
    ("POST", "/api/set"): _set,
    ("POST", "/api/add"): _add,
    ("GET", "/api/cart"): _cart,
    ("POST", "/api/cart"): _fill_cart,
    ("GET", "/api/flash"): _messages,
    ("POST", "/api/flash"): _flash,
    ("GET", "/api/token"): _token,
    ("POST", "/api/form"): _form,
    ("GET", "/api/me"): _me,
    ("POST", "/api/login"): _login,
    ("POST", "/api/remember"): _remember,
    ("POST", "/api/renew"): _renew,
    ("POST", "/api/logout"): _logout,
    ("POST", "/api/end-others"): _end_others,
    ("POST", "/api/fail"): _fail,
}
