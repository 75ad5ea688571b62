"""The pages: each shows one thing that a session does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta

from sojourn.cli.demo.cart import GOODS, MOST, Cart, Goods
from sojourn.cli.demo.http import HttpError, Request, Response, json, redirect

__all__ = ["ROUTES"]

Page = Callable[[Request], Response]

SHORT = timedelta(seconds=30)
USUAL = timedelta(hours=1)
REMEMBERED = timedelta(days=30)

ROUTES: dict[tuple[str, str], Page] = {}


def _route(method: str, path: str) -> Callable[[Page], Page]:
    def register(page: Page) -> Page:
        ROUTES[method, path] = page
        return page

    return register


def _form(path: str) -> Callable[[Page], Page]:
    """Register what a form is sent to; its token is checked first."""

    def register(page: Page) -> Page:
        def checked(request: Request) -> Response:
            request.session.check_csrf(request.form["token"])
            return page(request)

        ROUTES["POST", path] = checked
        return page

    return register


def render(request: Request, template: str, **values: object) -> Response:
    """Return a page, with what all pages show of the session."""
    session = request.session
    body = request.demo.templates.get_template(template).render(
        path=request.path,
        session=session,
        user=session.user,
        messages=session.pop_flash(),
        ended_before=session.ended_before,
        now=request.demo.clock(),
        **values,
    )
    return Response(200, [("Content-Type", "text/html; charset=utf-8")], body.encode())


# A counter on two pages.


@_route("GET", "/")
def _home(request: Request) -> Response:
    return render(request, "home.html", visits=request.session.add("visits"))


@_route("GET", "/other")
def _other(request: Request) -> Response:
    return render(request, "other.html", visits=request.session.add("visits"))


# A cart.


@_route("GET", "/cart")
def _cart(request: Request) -> Response:
    lines = [
        (name, GOODS[name], number)
        for name, number in Counter(request.session[Cart].items).items()
        if name in GOODS
    ]
    total = sum(goods.price * number for _, goods, number in lines)
    return render(request, "cart.html", goods=GOODS, lines=lines, total=total)


@_form("/cart/add")
def _cart_add(request: Request) -> Response:
    goods = _goods(request)
    cart = request.session[Cart]
    if len(cart.items) >= MOST:
        request.session.flash(f"The cart is full: it holds {MOST} things.")
    else:
        cart.items.append(request.form["item"])
        request.session.flash(f"{goods.name} added to your cart.")
    return redirect("/cart")


@_form("/cart/remove")
def _cart_remove(request: Request) -> Response:
    goods = _goods(request)
    cart = request.session[Cart]
    if request.form["item"] in cart.items:
        cart.items.remove(request.form["item"])
        request.session.flash(f"{goods.name} removed from your cart.")
    return redirect("/cart")


def _goods(request: Request) -> Goods:
    goods = GOODS.get(request.form["item"])
    if goods is None:
        raise HttpError(400, "There is no such thing to be bought.")
    return goods


# Signing in and out.


@_route("GET", "/account")
def _account(request: Request) -> Response:
    return render(request, "account.html")


@_form("/account/sign-in")
def _sign_in(request: Request) -> Response:
    name = request.form["name"].strip()
    if not 0 < len(name) <= 40 or not name.isprintable():
        request.session.flash("A name has 1 to 40 characters.")
        return redirect("/account")
    session = request.session
    session.login(name)
    if request.form["remember"]:
        session.remember(REMEMBERED)
    session.flash(f"You are signed in as {name}.")
    return redirect("/account")


@_form("/account/renew")
def _renew(request: Request) -> Response:
    request.session.renew()
    request.session.flash("Your cookie has a new secret. Everything else stayed as it was.")
    return redirect("/account")


@_form("/account/sign-out")
def _sign_out(request: Request) -> Response:
    request.session.logout()
    request.session.flash("You are signed out. No copy of your cookie works any more.")
    return redirect("/account")


# The user's devices.


@_route("GET", "/devices")
def _devices(request: Request) -> Response:
    session, sessions = request.session, request.demo.sessions
    user = session.user
    devices = [] if user is None else sessions.of_user(user, current=session.sid)
    devices.sort(key=lambda device: not device.current)
    return render(request, "devices.html", devices=devices)


@_form("/devices/end")
def _end(request: Request) -> Response:
    session, sid = request.session, request.form["sid"]
    user = session.user
    mine = {device.sid for device in request.demo.sessions.of_user(user)} if user else set()
    if sid == session.sid:
        return _sign_out(request)
    if sid in mine and request.demo.sessions.end(sid, "user"):
        session.flash("That session was ended.")
    else:
        session.flash("That session was over already.")
    return redirect("/devices")


@_form("/devices/end-others")
def _end_others(request: Request) -> Response:
    session = request.session
    ended = 0
    if session.user is not None:
        ended = len(request.demo.sessions.end_all(session.user, keep=session.sid))
    session.flash("1 other session was ended." if ended == 1 else f"{ended} others were ended.")
    return redirect("/devices")


# Two tabs at once.


@_route("GET", "/tabs")
def _tabs(request: Request) -> Response:
    return render(request, "tabs.html", count=request.session.get("tabs", 0))


@_form("/tabs/add")
def _tabs_add(request: Request) -> Response:
    count = request.session.add("tabs")
    return json({"count": count}) if request.accepts_json() else redirect("/tabs")


@_form("/tabs/reset")
def _tabs_reset(request: Request) -> Response:
    request.session.pop("tabs", None)
    return redirect("/tabs")


# Time.


@_route("GET", "/time")
def _time(request: Request) -> Response:
    session, now = request.session, request.demo.clock()
    # What this page tells is the time from now on, so it counts as a use at once.
    session.touch()
    idle, lifetime = session.idle_timeout, session.lifetime
    start = session.created if session.authenticated is None else session.authenticated
    ends = [at + limit.total_seconds() for at, limit in ((now, idle), (start, lifetime)) if limit]
    return render(
        request,
        "time.html",
        left=min(ends) - now,
        idle=idle,
        lifetime=lifetime,
        short=idle == SHORT,
    )


@_form("/time/short")
def _short(request: Request) -> Response:
    request.session.idle_timeout = SHORT
    request.session.flash("This session now ends after 30 seconds without use.")
    return redirect("/time")


@_form("/time/usual")
def _usual(request: Request) -> Response:
    request.session.idle_timeout = USUAL
    request.session.flash("This session now ends after an hour without use.")
    return redirect("/time")
