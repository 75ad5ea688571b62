"""The demo, over HTTP and as the process that `sojourn demo` is."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, cast
from wsgiref.util import setup_testing_defaults

import httpx
import pytest

from sojourn import Conflict, CsrfError, InvalidValue, SessionManager, StoreUnavailable
from sojourn.cli.demo.http import HttpError, Request, Response
from sojourn.cli.demo.pages import ROUTES
from sojourn.cli.demo.site import ROUTES as SITE_ROUTES
from sojourn.cli.demo.site import SECURITY, make_app
from sojourn.cli.demo.site import TIME_LEFT as LEFT
from sojourn.testing import Clock
from sojourn.testing.scenarios import check_restart, run_scenarios

PAGES = [path for method, path in ROUTES if method == "GET"]
FORMS = [path for method, path in ROUTES if method == "POST"]


class Site:
    """The demo with a clock to turn."""

    def __init__(self, serve: Callable[[Any], str], store: str) -> None:
        self.clock = Clock()
        self.sessions = SessionManager(store, clock=self.clock)
        self.url = serve(make_app(self.sessions, store, self.clock))
        self.browsers: list[Browser] = []

    def browser(self, agent: str = "") -> Browser:
        self.browsers.append(Browser(self.url, agent))
        return self.browsers[-1]


class Browser:
    """Loads pages and sends their forms, as people do."""

    def __init__(self, url: str, agent: str = "") -> None:
        self.http = httpx.Client(
            base_url=url, follow_redirects=True, headers={"User-Agent": agent or "curl/8.0"}
        )

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.http.get(path, headers=headers)

    def read(self, path: str) -> str:
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    def token(self, path: str) -> str:
        found = re.search(r'name="token" value="([\w-]+)"', self.read(path))
        assert found, f"{path} has no form"
        return found[1]

    def send(self, page: str, form: str, **fields: str) -> str:
        """Send a form of a page; returns the page that it leads to."""
        answer = self.http.post(form, data={"token": self.token(page), **fields})
        assert answer.status_code == 200, answer.text
        assert [each.status_code for each in answer.history] == [303]
        return answer.text

    def sign_in(self, name: str, **fields: str) -> str:
        return self.send("/account", "/account/sign-in", name=name, **fields)

    @property
    def cookie(self) -> str:
        return self.http.cookies["id"]


@pytest.fixture(params=["memory://", "sqlite:///sessions.db"])
def site(
    request: pytest.FixtureRequest,
    serve: Callable[[Any], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Site]:
    """The demo on each store that comes with it."""
    monkeypatch.chdir(tmp_path)
    site = Site(serve, request.param)
    yield site
    for browser in site.browsers:
        browser.http.close()
    site.sessions.close()


@pytest.fixture
def browser(site: Site) -> Browser:
    return site.browser()


def count_in(page: str) -> int:
    found = re.search(r'class="count"[^>]*><span[^>]*>(\d+)<', page)
    assert found, page
    return int(found[1])


def test_scenarios(site: Site) -> None:
    """The demo keeps what every site with Sojourn keeps."""
    run_scenarios(site.url)


def test_counter_over_two_pages(site: Site, browser: Browser) -> None:
    """Both pages count on one counter; another browser starts at 1."""
    paths = ("/", "/other", "/", "/other")

    assert [count_in(browser.read(path)) for path in paths] == [1, 2, 3, 4]
    assert count_in(site.browser().read("/")) == 1


def test_cart(browser: Browser) -> None:
    """Things go into the cart and out of it, with a message that is shown once."""
    assert "Nothing yet." in browser.read("/cart")

    page = browser.send("/cart", "/cart/add", item="lantern")
    assert '<p class="message">Lantern added to your cart.</p>' in page
    browser.send("/cart", "/cart/add", item="lantern")
    page = browser.send("/cart", "/cart/add", item="map")
    assert "2 × Lantern" in page
    assert "€ 57" in page
    assert 'class="message"' not in browser.read("/cart")

    page = browser.send("/cart", "/cart/remove", item="lantern")
    assert "Lantern removed from your cart." in page
    assert "1 × Lantern" in page
    browser.send("/cart", "/cart/remove", item="lantern")
    page = browser.send("/cart", "/cart/remove", item="map")
    assert "Nothing yet." in page


def test_cart_has_an_end(browser: Browser) -> None:
    """Nobody fills the store by filling a cart."""
    token = browser.token("/cart")
    for _ in range(51):
        answer = browser.http.post("/cart/add", data={"token": token, "item": "map"})

    assert "The cart is full" in answer.text
    assert "50 × Trail map" in answer.text


def test_form_without_its_token(site: Site, browser: Browser) -> None:
    """Every form is refused without a token, and with that of another visitor; nothing changes."""
    other = site.browser()
    browser.sign_in("alice")
    browser.send("/cart", "/cart/add", item="map")
    fields = {"item": "map", "name": "mallory", "sid": "x"}

    for form in FORMS:
        for token in ({}, {"token": ""}, {"token": other.token("/cart")}):
            answer = browser.http.post(form, data={**fields, **token})
            assert answer.status_code == 403
            assert "Load the page with the form again" in answer.text
    page = browser.read("/cart")
    assert "Signed in as <strong>alice</strong>" in page
    assert "1 × Trail map" in page


def test_signing_in(site: Site, browser: Browser) -> None:
    """Signing in renews the cookie and keeps the cart; signing out ends it, copies too."""
    browser.send("/cart", "/cart/add", item="map")
    before = browser.cookie
    page = browser.sign_in("alice")
    assert "You are signed in as alice." in page
    assert browser.cookie != before
    assert browser.cookie.partition(".")[0] == before.partition(".")[0]
    assert "1 × Trail map" in browser.read("/cart")

    before = browser.cookie
    assert "new secret" in browser.send("/account", "/account/renew")
    assert browser.cookie != before

    copy = browser.cookie
    assert "You are signed out." in browser.send("/account", "/account/sign-out")
    assert "Nothing yet." in browser.read("/cart")
    thief = httpx.get(f"{site.url}/account", headers={"Cookie": f"id={copy}"})
    assert "Not signed in" in thief.text
    assert "because it was signed out, here or from another device" in thief.text


def test_keep_me_signed_in(site: Site, browser: Browser) -> None:
    """The cookie outlives the browser only where that was asked for."""
    browser.sign_in("alice")
    assert [cookie.expires for cookie in browser.http.cookies.jar] == [None]
    browser.send("/account", "/account/sign-out")
    browser.sign_in("alice", remember="yes")
    assert [cookie.expires is not None for cookie in browser.http.cookies.jar] == [True]

    site.clock.advance(20 * 86400)
    assert "Signed in as <strong>alice</strong>" in browser.read("/account")


@pytest.mark.parametrize("name", ["", "   ", "x" * 41, "a\nb", "a\0b"])
def test_names_that_are_refused(browser: Browser, name: str) -> None:
    """A name is short and printable."""
    assert "A name has 1 to 40 characters." in browser.sign_in(name)
    assert "Not signed in" in browser.read("/account")


FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1"
)


def test_devices(site: Site) -> None:
    """A user sees all their sessions and ends one from another, or all others."""
    laptop, phone, stranger = site.browser(FIREFOX), site.browser(IPHONE), site.browser()
    assert "Sign in</a> first" in laptop.read("/devices")
    for browser, name in ((laptop, "alice"), (phone, "alice"), (stranger, "bob")):
        browser.sign_in(name)

    page = laptop.read("/devices")
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        'Firefox on Linux <span class="tag">This device</span>',
        "Mobile Safari on iOS",
    ]
    assert page.count("127.0.0.1") == 2
    sids = [browser.cookie.partition(".")[0] for browser in (laptop, phone, stranger)]
    assert [sid in page for sid in sids] == [True, True, False]

    assert "was over already" in laptop.send("/devices", "/devices/end", sid=sids[2])
    assert "Signed in as <strong>bob</strong>" in stranger.read("/account")
    assert "That session was ended." in laptop.send("/devices", "/devices/end", sid=sids[1])
    page = phone.read("/account")
    assert "Not signed in" in page
    assert "because it was signed out, here or from another device" in page

    phone.sign_in("alice")
    tablet = site.browser()
    tablet.sign_in("alice")
    assert "2 others were ended." in laptop.send("/devices", "/devices/end-others")
    assert "Not signed in" in phone.read("/account")
    assert "Not signed in" in tablet.read("/account")
    assert "signed in nowhere else" in laptop.read("/devices")
    assert "You are signed out." in laptop.send(
        "/devices", "/devices/end", sid=laptop.cookie.partition(".")[0]
    )


def test_expiry_is_told(site: Site, browser: Browser) -> None:
    """After an expiry the next page says why, and the one after that no more."""
    browser.sign_in("alice")
    site.clock.advance(3601)

    page = browser.read("/")
    assert "because it was not used for too long" in page
    assert "Not signed in" in page
    assert count_in(page) == 1
    assert "Your last session" not in browser.read("/")


def test_longest_time_is_told(site: Site, browser: Browser) -> None:
    """A session that is used all the time ends after its longest time."""
    browser.read("/")
    for _ in range(47):
        site.clock.advance(1800)
        assert "Your last session" not in browser.read("/")
    site.clock.advance(1800)

    assert "because it had reached its longest time" in browser.read("/")


def test_time_left(site: Site, browser: Browser) -> None:
    """Asking for the time left does not extend it; staying does."""

    def left() -> float:
        answer: dict[str, float] = browser.get("/time/left").json()
        return answer["remaining"]

    assert left() == 0
    browser.send("/time", "/time/short")
    assert left() == 30
    site.clock.advance(20)
    assert left() == 10
    site.clock.advance(5)
    assert left() == 5
    page = browser.read("/time")  # this page counts as a use
    assert left() == 30
    site.clock.advance(20)
    found = re.search(r'src="([^"]+)"[^>]*data-url="([^"]+)"[^>]*data-csrf="([^"]+)"', page)
    assert found, page
    script, url, token = found.groups()
    assert browser.http.post(url, headers={"X-CSRF-Token": "other"}).status_code == 403
    answer = browser.http.post(url, headers={"X-CSRF-Token": token})
    assert (answer.status_code, "Content-Length" in answer.headers) == (204, False)
    assert left() == 30
    site.clock.advance(31)
    assert left() == 0
    assert browser.read(script) == files("sojourn.web").joinpath("time_left.js").read_text()
    assert "because it was not used for too long" in browser.read("/time")


def test_back_to_an_hour(browser: Browser) -> None:
    """The short time can be taken back."""
    assert "30 seconds" in browser.send("/time", "/time/short")
    assert "<dd>1 hour</dd>" in browser.send("/time", "/time/usual")


def test_tabs_without_a_script(browser: Browser) -> None:
    """The counter of "Two tabs" counts sent forms as well."""
    browser.send("/tabs", "/tabs/add")
    assert count_in(browser.send("/tabs", "/tabs/add")) == 2
    assert count_in(browser.send("/tabs", "/tabs/reset")) == 0


# What is sent to it.


def test_security_headers(browser: Browser) -> None:
    """Every answer has the headers, error pages too."""
    others = ("/static/demo.css", "/api/get", "/no/such", "/cart/add", LEFT, f"{LEFT}/time_left.js")
    for path in (*PAGES, *others):
        answer = browser.get(path)
        assert [(name, answer.headers.get(name)) for name, _ in SECURITY] == SECURITY


def test_pages_bring_nothing_inline_or_from_elsewhere(browser: Browser) -> None:
    """No inline script or style, no address of another site, so that the strict policy holds."""
    signed_out = [browser.get(path).text for path in (*PAGES, "/no/such")]
    browser.sign_in("alice")
    browser.send("/cart", "/cart/add", item="map")
    for page in (*signed_out, *map(browser.read, PAGES)):
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|javascript:", page)
        found = re.findall(r'(?:src|href|action)="([^"]*)"', page)
        assert found
        assert [each for each in found if not re.match(r"/(?!/)|#", each)] == []


def test_nothing_is_reflected(browser: Browser) -> None:
    """What comes in the address or in a header does not come out in a page; a name is escaped."""
    evil = "<script>alert(1)</script>"
    answers = [
        browser.get(f"/{evil}"),
        browser.get(f"/?x={evil}"),
        browser.get("/", **{"User-Agent": evil, "Host": "evil.example", "Referer": evil}),
        browser.http.post(f"/{evil}", data={"token": evil}),
    ]
    assert not [each for each in answers if "alert(1)" in each.text]

    pages = [browser.sign_in(evil), browser.read("/devices"), browser.read("/")]
    assert not [page for page in pages if evil in page]
    assert all("&lt;script&gt;" in page for page in pages)


def test_agent_is_escaped(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a device is shown by what its browser says of itself, that is text and no markup."""
    monkeypatch.setitem(sys.modules, "ua_parser", None)
    browser = site.browser("<b>mine</b>")
    browser.sign_in("alice")
    page = browser.read("/devices")

    assert "<b>mine" not in page
    assert "&lt;b&gt;mine&lt;/b&gt;" in page


def test_host_is_not_trusted(browser: Browser) -> None:
    """Whatever the Host header says, no answer leads there."""
    token = browser.token("/cart")
    answer = browser.http.post(
        "/cart/add",
        data={"token": token, "item": "map"},
        headers={"Host": "evil.example"},
        follow_redirects=False,
    )

    assert answer.status_code == 303
    assert answer.headers["Location"] == "/cart"
    assert "evil" not in f"{answer.headers}{browser.get('/cart', Host='evil.example').text}"


def test_changes_by_post_only(browser: Browser) -> None:
    """An address that changes something is not to be had by GET, and says so."""
    for path in FORMS:
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert browser.http.put("/cart").status_code == 405
    assert browser.get("/no/such").status_code == 404


def test_other_sites_are_refused(browser: Browser) -> None:
    """A browser that says that another site sends this is refused, JSON routes and forms alike."""
    browser.read("/")
    for site in ("cross-site", "same-site"):
        for path in ("/api/add?key=visits", "/api/stream?key=visits", "/api/logout", "/cart/add"):
            answer = browser.http.post(path, headers={"Sec-Fetch-Site": site})
            assert answer.status_code == 403
    assert browser.get("/api/get?key=visits").json() == {"value": 1}
    answer = browser.http.post("/api/add?key=visits", headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.json() == {"value": 2}


def test_other_sites_are_refused_by_their_origin(browser: Browser) -> None:
    """A browser too old to say `Sec-Fetch-Site` says where a page came from; that is compared."""
    browser.read("/")
    own = str(browser.http.base_url).rstrip("/")
    others = ("https://evil.example", "null", "", f"{own}.evil.example", own[:-1], "http://")
    for origin in others:
        for path in ("/api/add?key=visits", "/api/stream?key=visits", "/api/logout", LEFT):
            answer = browser.http.post(path, headers={"Origin": origin})
            assert (path, origin, answer.status_code) == (path, origin, 403)
    assert browser.get("/api/get?key=visits", Origin=others[0]).json() == {"value": 1}
    for headers in ({"Origin": own}, {"Origin": own.upper()}, {}):
        browser.http.post("/api/add?key=visits", headers=headers)
    assert browser.get("/api/get?key=visits").json() == {"value": 4}
    # Behind a proxy that changes the Host header, what the browser says of itself counts.
    behind = {"Origin": "https://shop.example", "Sec-Fetch-Site": "same-origin"}
    assert browser.http.post("/api/add?key=visits", headers=behind).json() == {"value": 5}


def test_bodies_are_small_and_forms(browser: Browser) -> None:
    """Large bodies, many fields, and what is no form are refused."""
    token = browser.token("/cart")
    post = browser.http.post
    form = {"Content-Type": "application/x-www-form-urlencoded"}

    assert post("/cart/add", data={"token": token, "item": "x" * 17_000}).status_code == 413
    assert post("/cart/add", content=b"x" * 20 * 1024, headers=form).status_code == 413
    assert post("/cart/add", json={"token": token}).status_code == 415
    assert post("/cart/add", files={"item": b"map"}).status_code == 415
    assert post("/cart/add", content=b"a&" * 30 + b"b=1&" * 30, headers=form).status_code == 400
    assert post("/cart/add", content=b"\xff\xfe=%ff&%", headers=form).status_code == 403
    assert post("/cart/add", data={"token": token, "item": "nothing"}).status_code == 400


def test_head(site: Site) -> None:
    """HEAD answers as GET does, without a body."""
    environ: dict[str, Any] = {"REQUEST_METHOD": "HEAD", "PATH_INFO": "/static/demo.css"}
    setup_testing_defaults(environ)
    head: list[Any] = []
    body = make_app(site.sessions, "memory://")(environ, lambda *args: head.extend(args))

    assert head[0] == "200 OK"
    assert int(dict(head[1])["Content-Length"]) > 1000
    assert b"".join(body) == b""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Conflict("two at once"), 409),
        (CsrfError("no token"), 403),
        (InvalidValue("no such value"), 400),
        (StoreUnavailable("out of reach"), 503),
        (HttpError(404, "nothing here"), 404),
    ],
)
def test_errors_have_pages_and_keep_nothing(
    browser: Browser, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    """What goes wrong in a page is told on a page, and what was written before is not kept."""

    def page(request: Request) -> Response:
        request.session.add("visits", 100)
        raise error

    browser.read("/")
    monkeypatch.setitem(cast("dict[Any, Any]", SITE_ROUTES), ("GET", "/other"), page)
    answer = browser.get("/other")

    assert answer.status_code == status
    assert "no-store" in answer.headers["Cache-Control"]
    assert "<h1>" in answer.text
    assert count_in(browser.read("/")) == 2


def test_files_are_asked_for_again(browser: Browser) -> None:
    """A browser keeps style and script, and asks whether they are still the same."""
    for name in ("demo.css", "demo.js", "icon.svg"):
        first = browser.get(f"/static/{name}")
        assert first.status_code == 200
        assert "Set-Cookie" not in first.headers
        assert "Vary" not in first.headers
        again = browser.get(f"/static/{name}", **{"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert browser.get("/static/../site.py").status_code == 404


@pytest.mark.parametrize("site", ["sqlite:///sessions.db"], indirect=True)
def test_store_that_is_gone(site: Site, browser: Browser) -> None:
    """Where the store cannot be read, a page says so with 503; one without a session works."""
    browser.sign_in("alice")
    site.sessions.close()
    for path in Path().glob("sessions.db*"):
        path.write_bytes(b"no database " * 1000)

    assert browser.get("/").status_code == 503
    assert browser.get("/devices").status_code == 503
    assert browser.get("/static/demo.css").status_code == 200


# The process.

DEMO = ("-m", "sojourn.cli", "demo", "--port", "0")


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_restart_keeps_everything(start: Callable[..., Any], by: signal.Signals) -> None:
    """End the demo, even by kill -9, start it again: everything is still there."""
    first = start(*DEMO)

    def restart() -> str:
        first.end(by)
        return str(start(*DEMO).url)

    check_restart(first.url, restart)


def test_adding_to_a_text(browser: Browser) -> None:
    """What cannot be added to is refused with a reason, and stays as it is."""
    browser.http.post("/api/set?key=name&value=abc")
    answer = browser.http.post("/api/add?key=name")

    assert answer.status_code == 400
    assert "the value there is of the type str" in answer.text
    assert "an int, float, Decimal or timedelta" in answer.text
    assert browser.http.get("/api/get?key=name").json() == {"value": "abc"}
