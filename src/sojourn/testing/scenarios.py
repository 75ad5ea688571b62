r"""HTTP scenarios: what a browser may expect of a site, whatever framework it is made with.

    from sojourn.testing.scenarios import run_scenarios

    run_scenarios("http://127.0.0.1:8000")

They drive an application over real HTTP, as visitors with cookies of their own. It exposes these
routes; parameters come in the query string of GET and POST alike, and every answer is a JSON
object with status 200 unless something else is said:

    GET  /api/quiet            {"ok": true}, and never looks at the session
    GET  /api/get?key=K        {"value": session.get(K)}
    POST /api/set?key=K&value=V    session[K] = V; {"value": V}
    POST /api/add?key=K        {"value": session.add(K)}
    GET  /api/cart             {"items": session[Cart].items}
    POST /api/cart?item=I      session[Cart].items.append(I); {"items": ...}
    GET  /api/flash            {"messages": session.pop_flash()}
    POST /api/flash?text=T     session.flash(T); {"ok": true}
    GET  /api/token            {"token": session.csrf_token}
    POST /api/form?token=T     session.check_csrf(T); {"ok": true}; on CsrfError any answer with 403
    GET  /api/me               {"user": session.user, "sid": session.sid, "new": session.is_new,
                                "ended": session.ended_before.reason, or null}
    POST /api/login?user=U     session.login(U); {"user": U}
    POST /api/remember?user=U  session.login(U); session.remember(timedelta(days=30)); {"user": U}
    POST /api/renew            session.renew(); {"ok": true}
    POST /api/logout           session.logout(); {"ok": true}
    POST /api/end-others       {"ended": len(sessions.end_all(session.user, keep=session.sid))};
                               {"ended": 0} if nobody is logged in
    POST /api/stream?key=K     a streamed text: reads session.get(K), sends "one\n", and then, in
                                the body, does session.add(K) and sends "two\n"
    POST /api/fail?key=K       session.add(K), then raises; the server answers with 500

`Cart` is a dataclass of the application with `items: Annotated[list[str], Append]`, an empty list
at first. A missing parameter is an empty text. The session settings are the default ones.

Nothing here needs pytest; `SCENARIOS` is for those who want a test of each.
"""

from __future__ import annotations

import json
import re
import secrets
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from http.client import HTTPConnection, HTTPSConnection
from threading import Barrier, Thread
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from sojourn.testing.records import expect

__all__ = [
    "SCENARIOS",
    "Answer",
    "Scenario",
    "ScenarioFailed",
    "Site",
    "Visitor",
    "check_restart",
    "run_scenario",
    "run_scenarios",
]

TOKEN = re.compile(r"[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}")
"""What the value of a session cookie looks like."""
PARALLEL = 20
_TIMEOUT = 30.0
_LATE = 5.0
_DAY = 86400


class ScenarioFailed(AssertionError):
    """A site does not do what the scenarios ask for; the message has every one that failed."""


class Answer(NamedTuple):
    """What came back.

    Attributes:
        status: of the answer.
        headers: names in lower case, in the order in which they came.
        body: all of it.
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Return the values of all headers of that name."""
        return [value for header, value in self.headers if header == name]

    def parts(self, name: str) -> set[str]:
        """Return the comma-separated parts of all headers of that name, in lower case."""
        joined = ",".join(self.all(name))
        return {part.strip().lower() for part in joined.split(",")} - {""}

    @property
    def json(self) -> dict[str, Any]:
        """The JSON object in the body."""
        try:
            value = json.loads(self.body)
        except ValueError:
            value = None
        expect(isinstance(value, dict), f"the body is not a JSON object: {self.body[:200]!r}")
        return value  # type: ignore[no-any-return]


class Site(NamedTuple):
    """The site that a scenario drives.

    Attributes:
        base_url: such as "http://127.0.0.1:8000"; with a path in front of the routes, or without.
        https: whether the application takes itself to be on https.
        context: for TLS; None: that of the standard library.
    """

    base_url: str
    https: bool
    context: ssl.SSLContext | None = None

    @property
    def cookie_name(self) -> str:
        """The name of the session cookie."""
        return "__Host-id" if self.https else "id"

    def visitor(self, token: str | None = None) -> Visitor:
        """Return a visitor without a cookie, or with that one."""
        return Visitor(self, token)


class Visitor:
    """A browser with a cookie of its own; sends it as browsers do.

    Attributes:
        token: the value of the session cookie it holds; None: none.
    """

    def __init__(self, site: Site, token: str | None = None) -> None:
        """Visit that site for the first time, or with a copied cookie."""
        self.site = site
        self.token = token

    def get(self, path: str, /, **query: str) -> Answer:
        """Send a GET, which must succeed."""
        return _succeeded(self.send("GET", path, query))

    def post(self, path: str, /, **query: str) -> Answer:
        """Send a POST, which must succeed."""
        return _succeeded(self.send("POST", path, query))

    def send(
        self, method: str, path: str, query: Mapping[str, str], cookie: bytes | None = None
    ) -> Answer:
        """Send a request, on a connection of its own; take up the session cookie that comes.

        Args:
            method: GET or POST.
            path: of the route.
            query: its parameters.
            cookie: a Cookie header to send in place of the visitor's own, byte for byte; no
                cookie is taken up then.
        """
        site, own = self.site, cookie is None
        if cookie is None and self.token is not None:
            cookie = f"{site.cookie_name}={self.token}".encode()
        answer = _send(site, method, path, query, cookie)
        if own:
            for value in answer.all("set-cookie"):
                self._take(value)
        return answer

    def read(self, key: str) -> Any:
        """Return a value of the session."""
        return self.get("/api/get", key=key).json["value"]

    def me(self) -> dict[str, Any]:
        """Return who this visitor is to the site."""
        return self.get("/api/me").json

    def _take(self, set_cookie: str) -> None:
        name, value, attributes = _cookie(set_cookie)
        if name == self.site.cookie_name:
            self.token = value if value and attributes.get("max-age") != "0" else None


Scenario = Callable[[Site], None]


def _send(
    site: Site, method: str, path: str, query: Mapping[str, str], cookie: bytes | None
) -> Answer:
    url = urlsplit(site.base_url)
    host = url.hostname or ""
    connection: HTTPConnection
    if url.scheme == "https":
        connection = HTTPSConnection(host, url.port, timeout=_TIMEOUT, context=site.context)
    else:
        connection = HTTPConnection(host, url.port, timeout=_TIMEOUT)
    target = url.path.rstrip("/") + path
    if query:
        target += "?" + urlencode(query)
    try:
        connection.putrequest(method, target)
        connection.putheader("Connection", "close")
        if cookie is not None:
            connection.putheader("Cookie", cookie)
        if method == "POST":
            connection.putheader("Content-Length", "0")
        connection.endheaders()
        response = connection.getresponse()
        headers = [(name.lower(), value) for name, value in response.getheaders()]
        return Answer(response.status, headers, response.read())
    finally:
        connection.close()


def _succeeded(answer: Answer) -> Answer:
    expect(answer.status == 200, f"the answer is {answer.status}: {answer.body[:200]!r}")
    return answer


def _cookie(set_cookie: str) -> tuple[str, str, dict[str, str]]:
    """Take a Set-Cookie header apart: name, value, attributes by name in lower case."""
    pair, *rest = set_cookie.split(";")
    name, _, value = pair.strip().partition("=")
    attributes = {}
    for part in rest:
        key, _, given = part.strip().partition("=")
        attributes[key.lower()] = given
    return name, value, attributes


def _new_cookie(site: Site, answer: Answer) -> tuple[str, dict[str, str]]:
    """Return value and attributes of the one session cookie that an answer sets."""
    found = [_cookie(value) for value in answer.all("set-cookie")]
    mine = [(value, attributes) for name, value, attributes in found if name == site.cookie_name]
    expect(
        len(mine) == 1,
        f"the answer should set the cookie {site.cookie_name} once; it sets "
        f"{[name for name, _, _ in found] or 'none'}",
    )
    return mine[0]


def _sets_none(answer: Answer, what: str) -> None:
    expect(not answer.all("set-cookie"), f"{what}: it sets a cookie: {answer.all('set-cookie')}")


def _at_once(jobs: Iterable[Callable[[], object]]) -> None:
    """Run jobs in threads, all started at the same moment; raise the first error."""
    jobs = list(jobs)
    start = Barrier(len(jobs))
    errors: list[BaseException] = []

    def run(job: Callable[[], object]) -> None:
        try:
            start.wait(_TIMEOUT)
            job()
        except BaseException as error:
            errors.append(error)

    threads = [Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _same(got: object, wanted: object, what: str) -> None:
    expect(got == wanted, f"{what}: {got!r} came, {wanted!r} is right")


# Coming and going.


def no_session_without_a_write(site: Site) -> None:
    """A visitor who only reads gets no cookie, and so no session is kept for them."""
    visitor = site.visitor()

    for path in ("/api/quiet", "/api/get", "/api/me", "/api/flash", "/api/cart"):
        _sets_none(visitor.get(path), f"GET {path} without a cookie")


def counter_over_two_pages(site: Site) -> None:
    """What one page writes the next one reads."""
    visitor = site.visitor()

    _same(visitor.post("/api/add", key="n").json["value"], 1, "the first add")
    _same(visitor.read("n"), 1, "read on another page")
    _same(visitor.post("/api/add", key="n").json["value"], 2, "the second add")
    _same(visitor.read("n"), 2, "read again")


def each_visitor_has_their_own(site: Site) -> None:
    """A second visitor starts from nothing and changes nothing of the first."""
    first, second = site.visitor(), site.visitor()
    first.post("/api/add", key="n")
    first.post("/api/add", key="n")

    _same(second.post("/api/add", key="n").json["value"], 1, "the second visitor's first add")
    _same(first.read("n"), 2, "the first visitor's value")
    expect(first.token != second.token, "two visitors got the same cookie")


def text_comes_back_equal(site: Site) -> None:
    """Values of any script come back as they were, and under their own key."""
    visitor = site.visitor()
    texts = {"plain": "a b&c=d", "größe": "naïve – 日本語 🍵", "\N{SNOWMAN}": "<b>\"'%00"}

    for key, text in texts.items():
        visitor.post("/api/set", key=key, value=text)

    for key, text in texts.items():
        _same(visitor.read(key), text, f"session[{key!r}]")


def typed_state_is_kept(site: Site) -> None:
    """A cart of a class of the application is the same cart on the next page."""
    visitor = site.visitor()
    visitor.post("/api/cart", item="tea")
    visitor.post("/api/cart", item="map")

    _same(visitor.get("/api/cart").json["items"], ["tea", "map"], "the cart")
    _same(site.visitor().get("/api/cart").json["items"], [], "another visitor's cart")


def flash_is_shown_once(site: Site) -> None:
    """A message waits for the next page that shows it, and is gone after that."""
    visitor = site.visitor()
    visitor.post("/api/flash", text="Added.")
    visitor.post("/api/flash", text="Added again.")

    _same(visitor.get("/api/flash").json["messages"], ["Added.", "Added again."], "messages")
    _same(visitor.get("/api/flash").json["messages"], [], "messages the second time")


# Cookies that are no cookies.


def malformed_cookies_are_new_visitors(site: Site) -> None:
    """Whatever stands in the cookie, the answer is that for a new visitor."""
    owner = site.visitor()
    owner.post("/api/set", key="n", value="secret")
    token, name = owner.token or "", site.cookie_name
    sid, _, secret = token.partition(".")
    other = "B" if secret[0] == "A" else "A"
    values = [
        "",
        "x",
        ".",
        f"{sid}",
        f"{sid}.",
        f".{secret}",
        f"{secret}.{sid}",
        f"{sid}.{secret[:-1]}",
        f"{token}A",
        f"{token}.{secret}",
        f'"{token}"',
        f"{token},",
        f"{token}%20",
        f"{sid}.{other}{secret[1:]}",
        token.swapcase(),
        "../../../../etc/passwd",
        f"../{token}",
        "' OR 1=1 --",
        "A" * 66,
        "A" * 4000,
        "\xff\xfe\x80",
        "\u00e9" * 33,
        f"{token}\xa0",
    ]
    headers = [f"{name}={value}" for value in values]
    headers += [f"{name}x={token}", f"x{name}={token}", f"{name} ={token}", f"{name}", "=", ";;"]
    headers += [f"{name.upper()}={token}"]

    for header in headers:
        answer = site.visitor().send("GET", "/api/get", {"key": "n"}, header.encode("latin-1"))
        what = f"Cookie: {header[:80]!r}"
        _same(answer.status, 200, f"status for {what}")
        _same(answer.json["value"], None, f"value for {what}")
        _sets_none(answer, what)
    _same(owner.read("n"), "secret", "the owner's value afterwards")


def client_never_chooses_an_id(site: Site) -> None:
    """A well-formed token that this site never gave opens nothing and does not become one."""
    made_up = f"{secrets.token_urlsafe(16)[:21]}A.{secrets.token_urlsafe(32)[:42]}A"
    visitor = site.visitor(made_up)

    _same(visitor.read("n"), None, "a value for a made-up token")
    answer = visitor.post("/api/add", key="n")
    token, _ = _new_cookie(site, answer)
    expect(
        made_up.partition(".")[0] not in token, "the new session has the id that the client chose"
    )


def wrong_secret_opens_nothing(site: Site) -> None:
    """The public half of a token with another secret is a new visitor; the owner loses nothing."""
    owner, other = site.visitor(), site.visitor()
    owner.post("/api/add", key="n")
    other.post("/api/add", key="m")
    sid = (owner.token or "").partition(".")[0]
    secret = (other.token or "").partition(".")[2]
    thief = site.visitor(f"{sid}.{secret}")

    _same(thief.read("n"), None, "what a wrong secret reads")
    thief.post("/api/add", key="n")
    expect((thief.token or sid).partition(".")[0] != sid, "a wrong secret was given the session")
    _same(owner.post("/api/add", key="n").json["value"], 2, "the owner's counter afterwards")


def two_cookies_count_at_most_once(site: Site) -> None:
    """Of two session cookies the one that is live counts; of two live ones none does."""
    first, second = site.visitor(), site.visitor()
    first.post("/api/set", key="n", value="first")
    second.post("/api/set", key="n", value="second")
    name = site.cookie_name
    sid = (first.token or "").partition(".")[0]
    dead = f"{sid}.{(second.token or '').partition('.')[2]}"

    def read(*tokens: str | None) -> object:
        header = "; ".join(f"{name}={token}" for token in tokens).encode()
        answer = _succeeded(site.visitor().send("GET", "/api/get", {"key": "n"}, header))
        return answer.json["value"]

    _same(read(first.token, "junk"), "first", "a live cookie before junk")
    _same(read("junk", first.token), "first", "a live cookie after junk")
    _same(read(dead, first.token), "first", "a live cookie after a wrong one")
    _same(read(first.token, first.token), "first", "the same cookie twice")
    _same(read(first.token, second.token), None, "two live cookies")
    _same(read(second.token, first.token), None, "two live cookies, the other way round")


# Headers.


def cookie_has_all_attributes(site: Site) -> None:
    """HttpOnly, SameSite=Lax, Path=/, no Domain; on https Secure and the __Host- name."""
    answer = site.visitor().post("/api/add", key="n")
    value, attributes = _new_cookie(site, answer)

    expect(TOKEN.fullmatch(value) is not None, "the cookie's value is not a token")
    wanted = {"path": "/", "httponly": "", "samesite": "Lax"}
    if site.https:
        wanted["secure"] = ""
    _same(attributes, wanted, "the attributes of the cookie")
    expect("no-store" in answer.parts("cache-control"), "Set-Cookie without Cache-Control no-store")


def set_cookie_only_for_a_new_token(site: Site) -> None:
    """The cookie is sent once, and again only when the token changes."""
    visitor = site.visitor()
    _new_cookie(site, visitor.post("/api/add", key="n"))

    _sets_none(visitor.get("/api/get", key="n"), "a read")
    _sets_none(visitor.post("/api/add", key="n"), "a second write")
    _sets_none(visitor.post("/api/flash", text="hello"), "a message")
    before = visitor.token
    _new_cookie(site, visitor.post("/api/renew"))
    expect(visitor.token != before, "a renewal sent the old token")
    _sets_none(visitor.post("/api/add", key="n"), "a write after the renewal")


def answers_with_a_session_are_private(site: Site) -> None:
    """An answer that looked at the session says Vary: Cookie and private; another says neither."""
    visitor = site.visitor()
    for cookie in ("without a cookie", "with a cookie"):
        for path in ("/api/get", "/api/me", "/api/cart"):
            answer = visitor.get(path)
            what = f"GET {path} {cookie}"
            expect("cookie" in answer.parts("vary"), f"{what}: Vary: Cookie is missing")
            expect("private" in answer.parts("cache-control"), f"{what}: private is missing")
        answer = visitor.get("/api/quiet")
        what = f"GET /api/quiet {cookie}"
        expect("cookie" not in answer.parts("vary"), f"{what}: Vary: Cookie, but nothing was read")
        expect("private" not in answer.parts("cache-control"), f"{what}: it is private")
        _sets_none(answer, what)
        visitor.post("/api/add", key="n")


def remembered_cookie_outlives_the_browser(site: Site) -> None:
    """Keep me signed in: the cookie gets the Max-Age of the session; otherwise it has none."""
    visitor = site.visitor()
    _, attributes = _new_cookie(site, visitor.post("/api/remember", user=_user()))
    age = int(attributes.get("max-age") or 0)

    expect(30 * _DAY - 60 <= age <= 30 * _DAY, f"Max-Age is {age}, not 30 days")


def logout_clears_the_cookie(site: Site) -> None:
    """At logout the browser is told to forget the cookie, over https all that it stored."""
    visitor = site.visitor()
    visitor.post("/api/login", user=_user())
    answer = visitor.post("/api/logout")
    value, attributes = _new_cookie(site, answer)

    _same((value, attributes.get("max-age")), ("", "0"), "the cookie that logout sets")
    expect("no-store" in answer.parts("cache-control"), "logout without Cache-Control no-store")
    cleared = bool(answer.all("clear-site-data"))
    _same(cleared, site.https, "whether Clear-Site-Data was sent")


# Logging in and out.


def login_renews_the_secret(site: Site) -> None:
    """A login gives a new secret; the old cookie sees nothing of it and cannot write to it."""
    visitor, user = site.visitor(), _user()
    visitor.post("/api/set", key="n", value="before")
    old, sid = site.visitor(visitor.token), visitor.me()["sid"]
    visitor.post("/api/login", user=user)
    expect(visitor.token != old.token, "a login left the cookie as it was")

    me = visitor.me()
    _same((me["user"], me["sid"]), (user, sid), "user and sid after the login")
    _same(visitor.read("n"), "before", "a value from before the login")
    _same(old.me()["user"], None, "who the old cookie is")
    _same(old.read("n"), None, "what the old cookie reads")
    answer = old.post("/api/set", key="n", value="planted")
    # It would take the place of the cookie that is on its way to the browser.
    _sets_none(answer, "a write with the old cookie, just after the login")
    _same(visitor.read("n"), "before", "the value after a write with the old cookie")


def renewal_keeps_parallel_requests(site: Site) -> None:
    """After a mere renewal, requests on their way with the old cookie still read and merge."""
    visitor = site.visitor()
    visitor.post("/api/add", key="n")
    old, sid = site.visitor(visitor.token), visitor.me()["sid"]
    visitor.post("/api/renew")

    _same(visitor.me()["sid"], sid, "the sid after the renewal")
    answer = old.post("/api/add", key="n")
    _same(answer.json["value"], 2, "an add with the old cookie, within its grace")
    _sets_none(answer, "an add with the old cookie")
    _same(visitor.read("n"), 2, "what the new cookie reads")


def logout_ends_copies_too(site: Site) -> None:
    """After a logout no copy of the cookie opens the session, and a write does not revive it."""
    visitor = site.visitor()
    visitor.post("/api/login", user=_user())
    visitor.post("/api/set", key="n", value="mine")
    copy, sid = site.visitor(visitor.token), visitor.me()["sid"]
    visitor.post("/api/logout")

    _same(visitor.me()["user"], None, "the user after logout")
    me = copy.me()
    _same((me["user"], me["new"], me["ended"]), (None, True, "user"), "who a copied cookie is")
    _same(copy.read("n"), None, "what a copied cookie reads")
    copy.post("/api/add", key="m")
    expect(copy.me()["sid"] != sid, "a write with a copied cookie revived the session")
    _same(copy.read("n"), None, "what it reads after a write")


def another_user_starts_anew(site: Site) -> None:
    """A login as another user begins a new session, with nothing of the former user's in it."""
    visitor, first, second = site.visitor(), _user(), _user()
    visitor.post("/api/login", user=first)
    visitor.post("/api/set", key="n", value="of the first")
    copy, sid = site.visitor(visitor.token), visitor.me()["sid"]
    visitor.post("/api/login", user=second)

    me = visitor.me()
    _same(me["user"], second, "the user")
    expect(me["sid"] != sid, "the second user has the first one's session")
    _same(visitor.read("n"), None, "what the second user reads")
    _same(copy.me()["user"], None, "who the first user's cookie is")


def end_all_others(site: Site) -> None:
    """A user ends all their other sessions; this one and other users' go on."""
    user = _user()
    here, there, elsewhere, stranger = (site.visitor() for _ in range(4))
    for visitor in (here, there, elsewhere):
        visitor.post("/api/login", user=user)
    stranger.post("/api/login", user=_user())

    _same(here.post("/api/end-others").json["ended"], 2, "how many were ended")
    _same(here.me()["user"], user, "the user here")
    for visitor in (there, elsewhere):
        me = visitor.me()
        _same((me["user"], me["ended"]), (None, "user"), "who another device is")
    expect(stranger.me()["user"] is not None, "another user was logged out")


def form_token_is_checked(site: Site) -> None:
    """A form is taken with a token of this session, each time another; else refused with 403."""
    visitor, other = site.visitor(), site.visitor()
    token = visitor.get("/api/token").json["token"]
    again = visitor.get("/api/token").json["token"]
    foreign = other.get("/api/token").json["token"]

    expect(token != again, "two pages have the same form token, which compression can guess")
    for good in (token, again):
        visitor.post("/api/form", token=good)
    for bad in ("", "x", foreign, token[:-4] + "AAAA", "é" * 86):
        answer = visitor.send("POST", "/api/form", {"token": bad})
        _same(answer.status, 403, f"status for the form token {bad[:12]!r}")
    visitor.post("/api/login", user=_user())
    answer = visitor.send("POST", "/api/form", {"token": token})
    _same(answer.status, 403, "status for a form token from before the login")


# At the same time, late, and failing.


def parallel_adds_are_all_kept(site: Site) -> None:
    """Twenty requests at once add to one counter, and none is lost."""
    visitor = site.visitor()
    visitor.post("/api/set", key="first", value="here")

    _at_once([lambda: visitor.post("/api/add", key="n")] * PARALLEL)

    _same(visitor.read("n"), PARALLEL, f"the counter after {PARALLEL} adds at once")


def parallel_writes_of_other_keys_are_all_kept(site: Site) -> None:
    """Requests at once that set different keys, or append to one list, all leave their mark."""
    visitor = site.visitor()
    visitor.post("/api/set", key="first", value="here")
    names = [f"key{number}" for number in range(PARALLEL // 2)]

    def set_one(name: str) -> Callable[[], object]:
        return lambda: visitor.post("/api/set", key=name, value=name)

    def put_one(name: str) -> Callable[[], object]:
        return lambda: visitor.post("/api/cart", item=name)

    _at_once([*map(set_one, names), *map(put_one, names)])

    lost = [name for name in names if visitor.read(name) != name]
    expect(not lost, f"values were lost: {', '.join(lost)}")
    _same(sorted(visitor.get("/api/cart").json["items"]), sorted(names), "the cart")


def late_write_of_a_stream_is_kept(site: Site) -> None:
    """What a streaming body writes after its head has left is there when the body has ended."""
    visitor = site.visitor()
    visitor.post("/api/add", key="n")
    answer = visitor.post("/api/stream", key="n")
    _same(answer.body, b"one\ntwo\n", "the streamed body")

    # A server may pass on the last bytes before the application has come to its end.
    end = time.monotonic() + _LATE
    while (value := visitor.read("n")) != 2 and time.monotonic() < end:
        time.sleep(0.02)
    _same(value, 2, f"what the stream added, {_LATE:g} s after its end")


def failed_request_keeps_nothing(site: Site) -> None:
    """A request that ends in an error of the application leaves the session as it was."""
    visitor, new = site.visitor(), site.visitor()
    visitor.post("/api/add", key="n")

    answer = visitor.send("POST", "/api/fail", {"key": "n"})
    _same(answer.status, 500, "status of the failing page")
    _same(visitor.read("n"), 1, "the value that the failing page had added to")
    answer = new.send("POST", "/api/fail", {"key": "n"})
    _same(answer.status, 500, "status of the failing page for a new visitor")
    _sets_none(answer, "a failing page for a new visitor")


SCENARIOS: Mapping[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        no_session_without_a_write,
        counter_over_two_pages,
        each_visitor_has_their_own,
        text_comes_back_equal,
        typed_state_is_kept,
        flash_is_shown_once,
        malformed_cookies_are_new_visitors,
        client_never_chooses_an_id,
        wrong_secret_opens_nothing,
        two_cookies_count_at_most_once,
        cookie_has_all_attributes,
        set_cookie_only_for_a_new_token,
        answers_with_a_session_are_private,
        remembered_cookie_outlives_the_browser,
        logout_clears_the_cookie,
        login_renews_the_secret,
        renewal_keeps_parallel_requests,
        logout_ends_copies_too,
        another_user_starts_anew,
        end_all_others,
        form_token_is_checked,
        parallel_adds_are_all_kept,
        parallel_writes_of_other_keys_are_all_kept,
        late_write_of_a_stream_is_kept,
        failed_request_keeps_nothing,
    )
}
"""All scenarios by name; each docstring says what it asks for."""


def run_scenario(
    scenario: Scenario,
    base_url: str,
    *,
    https: bool | None = None,
    context: ssl.SSLContext | None = None,
) -> None:
    """Run one scenario.

    Args:
        scenario: one of `SCENARIOS`, or your own.
        base_url: of the site: "http://127.0.0.1:8000".
        https: whether the application takes itself to be on https, as behind a proxy; None: as
            the URL says.
        context: for a certificate that this machine does not trust.

    Raises:
        ScenarioFailed: with what came, and what is right.
    """
    try:
        scenario(_site(base_url, https, context))
    except AssertionError as error:
        raise ScenarioFailed(_failure(scenario, error)) from error


def run_scenarios(
    base_url: str, *, https: bool | None = None, context: ssl.SSLContext | None = None
) -> None:
    """Run all scenarios, to the end; the arguments are those of `run_scenario`.

    Raises:
        ScenarioFailed: with every scenario that failed.
        OSError: the site cannot be reached.
    """
    failures = []
    for scenario in SCENARIOS.values():
        try:
            scenario(_site(base_url, https, context))
        except AssertionError as error:
            failures.append(_failure(scenario, error))
    if failures:
        count = f"{len(failures)} of {len(SCENARIOS)} scenarios failed"
        raise ScenarioFailed("\n".join([f"{count} on {base_url}:", *failures]))


def check_restart(
    base_url: str,
    restart: Callable[[], str],
    *,
    https: bool | None = None,
    context: ssl.SSLContext | None = None,
) -> None:
    """Check that a restart of the application loses nothing and revives nothing.

    Args:
        base_url: of the site before.
        restart: ends the application, in whatever way, starts it again, and returns its URL.
        https, context: as for `run_scenario`.

    Raises:
        ScenarioFailed: with what came, and what is right.
    """
    before = _site(base_url, https, context)
    user = _user()
    guest, member, gone = before.visitor(), before.visitor(), before.visitor()
    guest.post("/api/add", key="n")
    guest.post("/api/cart", item="tea")
    guest.post("/api/flash", text="Welcome back.")
    form_token = guest.get("/api/token").json["token"]
    member.post("/api/login", user=user)
    member.post("/api/set", key="k", value="kept")
    gone.post("/api/login", user=user)
    copy = gone.token
    gone.post("/api/logout")

    after = _site(restart(), https, context)
    guest, member = after.visitor(guest.token), after.visitor(member.token)
    try:
        _same(guest.post("/api/add", key="n").json["value"], 2, "the counter")
        _same(guest.get("/api/cart").json["items"], ["tea"], "the cart")
        _same(guest.get("/api/flash").json["messages"], ["Welcome back."], "the message")
        guest.post("/api/form", token=form_token)
        _same(member.me()["user"], user, "the user")
        _same(member.read("k"), "kept", "the user's value")
        _same(after.visitor(copy).me()["user"], None, "who a cookie is that was logged out")
    except AssertionError as error:
        raise ScenarioFailed(_failure(check_restart, error)) from error


def _site(base_url: str, https: bool | None, context: ssl.SSLContext | None) -> Site:
    scheme = urlsplit(base_url).scheme
    if scheme not in ("http", "https"):
        raise ValueError(f"base_url is {base_url!r}; it must begin with http:// or https://")
    return Site(base_url, scheme == "https" if https is None else https, context)


def _failure(scenario: Callable[..., object], error: AssertionError) -> str:
    promise = (scenario.__doc__ or "").strip().partition("\n")[0]
    name = getattr(scenario, "__name__", repr(scenario))
    return f"- {name} ({promise}): {error}"


def _user() -> str:
    # A site may keep its sessions from one run to the next.
    return f"user-{secrets.token_hex(6)}"
