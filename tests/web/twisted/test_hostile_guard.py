"""`SessionGuard` against hostile clients, and against what goes wrong in the middle of a login."""

from __future__ import annotations

import hashlib
import re
import time
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest
from twisted.cred import credentials
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import Deferred, fail
from twisted.logger import globalLogPublisher
from twisted.python.threadable import registerAsIOThread
from twisted.web.guard import BasicCredentialFactory, DigestCredentialFactory
from twisted.web.resource import IResource, Resource
from zope.interface import implementer

from sojourn.errors import StoreUnavailable
from sojourn.stores.memory import MemoryStore
from sojourn.web.twisted.deferred import DeferredSessions
from sojourn.web.twisted.guard import SessionGuard

from .conftest import Logged
from .kit import LATER, Answer, DeferredStore, Page, Web, Wire, parse
from .test_guard import authorization

PASSWORDS = {"alice": b"swordfish", "bob": b"sesame"}
LIFETIME = credentials.DigestCredentialFactory.CHALLENGE_LIFETIME_SECS


@implementer(IRealm)
class Realm:
    """Counts the avatars that are there, and how often each was logged out.

    Attributes:
        outs: one number for each avatar: its logouts.
        page: what an avatar shows.
        waiting: where it is a list, avatars come when its Deferreds fire.
    """

    def __init__(self) -> None:
        self.outs: list[int] = []
        self.page: Callable[[Any], Any] = lambda request: b"home of " + self.user(request)
        self.waiting: list[Deferred[Any]] | None = None
        self.leaving: Callable[[], Any] = lambda: None

    @staticmethod
    def user(request: Any) -> bytes:
        return str(request.getSession().user).encode()

    @property
    def there(self) -> int:
        return self.outs.count(0)

    def requestAvatar(self, user: Any, mind: Any, *interfaces: Any) -> Any:
        number = len(self.outs)
        self.outs.append(0)

        def logout() -> Any:
            self.outs[number] += 1
            return self.leaving()

        found = IResource, Page(lambda request: self.page(request)), logout
        if self.waiting is None:
            return found
        self.waiting.append(Deferred())
        return self.waiting[-1].addCallback(lambda _: found)


class Guarded(Web):
    """A site with a page for all, and one behind Digest and Basic."""

    def __init__(self, store: Any = None, **settings: Any) -> None:
        super().__init__(store, **settings)
        root = Resource()
        self.realm = Realm()
        self.digest = DigestCredentialFactory(b"md5", b"here")
        self.digest.digest._getTime = self.clock
        passwords = InMemoryUsernamePasswordDatabaseDontUse(**PASSWORDS)
        self.guard = SessionGuard(
            Portal(self.realm, [passwords]),
            [self.digest, BasicCredentialFactory(b"here")],
            self.sessions,
        )
        root.putChild(b"home", self.guard)
        root.putChild(b"free", Page(lambda request: b"%d" % request.getSession().add("n")))
        root.putChild(b"out", Page(lambda request: request.getSession().expire() or b"out"))
        self.site.resource = root

    def go(self, path: str = "/home", cookie: str | None = None, **headers: str) -> Wire:
        wire = self.wire()
        wire.send(path, self.cookie if cookie is None else cookie, **headers)
        return wire

    def ask(self, path: str = "/home", cookie: str | None = None, **headers: str) -> Answer:
        answer = self.go(path, cookie, **headers).take()
        if cookie is None:
            self.keep(answer)
        return answer

    def challenge(self) -> str:
        """A challenge that nobody has answered yet."""
        return self.ask(cookie="").all("WWW-Authenticate")[0]

    def respond(self) -> str:
        """The right answer to such a challenge, as a header."""
        return digest(self.challenge())


def digest(challenge: str, user: str = "alice", password: str = "swordfish", count: int = 1) -> str:
    """Return the header that answers a Digest challenge (RFC 2617), the `count`th time."""
    said = dict(re.findall(r'(\w+)="([^"]*)"', challenge))

    def md5(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()

    secret, number = md5(f"{user}:{said['realm']}:{password}"), f"{count:08x}"
    response = md5(f"{secret}:{said['nonce']}:{number}:c:auth:{md5('GET:/home')}")
    return (
        f'Digest username="{user}", realm="{said["realm"]}", nonce="{said["nonce"]}", '
        f'uri="/home", qop=auth, nc={number}, cnonce="c", response="{response}", '
        f'opaque="{said["opaque"]}", algorithm="md5"'
    )


BASIC = authorization("alice")["Authorization"]


@pytest.fixture(autouse=True)
def this_is_the_reactors_thread() -> None:
    """As in a process that runs one; another test may have had one in a thread."""
    registerAsIOThread()


@pytest.fixture(params=["at once", "deferred"])
def web(request: pytest.FixtureRequest) -> Guarded:
    """A site on a store that never waits, and on one whose methods return Deferreds."""
    return Guarded(DeferredStore() if request.param == "deferred" else None)


def records(web: Guarded) -> int:
    """How many sessions are stored."""
    store = web.store.store
    return int(store.count())


# Digest.


def test_an_answer_opens_one_session(web: Guarded) -> None:
    """Whoever has listened and sends it again gets a challenge, from now to its last second."""
    heard = web.respond()
    assert web.ask(Authorization=heard).body == b"home of alice"
    for _ in range(3):
        answer = web.ask(cookie="", Authorization=heard)
        assert (answer.status, answer.all("Set-Cookie")) == (401, [])
        web.pass_time(LIFETIME / 4)
    assert (records(web), len(web.realm.outs)) == (1, 1)


def test_a_challenge_opens_one_session(web: Guarded) -> None:
    """A browser that answers it again, by counting on, is told to answer a new one by itself."""
    challenge = web.challenge()
    assert web.ask(Authorization=digest(challenge)).status == 200
    again = web.ask(cookie="", Authorization=digest(challenge, count=2))
    assert again.status == 401
    new = again.all("WWW-Authenticate")[0]
    assert 'stale="true"' in new
    there = web.ask(cookie="", Authorization=digest(new))
    assert there.body == b"home of alice"


def test_who_has_logged_out_is_asked_again(web: Guarded) -> None:
    """Browsers go on to answer the old challenge; that does not open a session anew."""
    challenge = web.challenge()
    web.ask(Authorization=digest(challenge))
    assert web.ask("/out").body == b"out"
    answer = web.ask(Authorization=digest(challenge, count=2))
    assert answer.status == 401
    assert "stale" not in answer.all("WWW-Authenticate")[0]
    assert web.ask(Authorization=web.respond()).status == 200


def test_a_login_that_failed_asks_nobody_again(web: Guarded) -> None:
    """Who got a 503 and comes again is let in without typing: the browser answers by itself."""
    challenge = web.challenge()
    with down(web, "create"):
        assert web.ask(Authorization=digest(challenge)).status == 503
    again = web.ask(Authorization=digest(challenge, count=2))
    new = again.all("WWW-Authenticate")[0]
    assert (again.status, 'stale="true"' in new) == (401, True)
    assert web.ask(Authorization=digest(new)).body == b"home of alice"


def test_answered_challenges_are_forgotten(web: Guarded) -> None:
    """When the stock guard takes them for too old, nobody needs to know of them."""
    for _ in range(20):
        assert web.ask(cookie="", Authorization=web.respond()).status == 200
        web.pass_time(LIFETIME / 5)
    answered = web.guard.inner.answered
    assert 4 <= len(answered) <= 7
    assert all(login.request is None for _, login in answered.values())


def test_answers_to_other_challenges(web: Guarded) -> None:
    """Too old, of another realm, of another guard, of another user, or for another method."""
    old = web.respond()
    web.pass_time(LIFETIME + 2)
    elsewhere = DigestCredentialFactory(b"md5", b"here")
    elsewhere.digest._getTime = web.clock
    made = elsewhere.digest.getChallenge("")
    foreign = ", ".join(f'{name}="{told(value)}"' for name, value in made.items())
    fresh = web.challenge()
    for answer in (
        old,
        digest(foreign),
        digest(fresh.replace('"here"', '"there"')),
        digest(fresh, "bob"),
        digest(fresh).replace('"alice"', '"bob"'),
        digest(fresh, "mallory", ""),
    ):
        assert web.ask(cookie="", Authorization=answer).status == 401
    wire = web.wire()
    wire.send("/home", "", "POST", Authorization=digest(fresh))
    assert wire.take().status == 401
    assert (records(web), web.realm.outs) == (0, [])
    # It was none of these that used it up.
    assert web.ask(Authorization=digest(fresh)).status == 200


def told(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


MANGLED: dict[str, Callable[[str], str]] = {
    "nothing": lambda good: "Digest",
    "blank": lambda good: "Digest ",
    "signs": lambda good: 'Digest ====,,,,"""',
    "no base64": lambda good: re.sub(r'opaque="[^"]*"', 'opaque="a-b"', good),
    "no opaque": lambda good: re.sub(r', opaque="[^"]*"', "", good),
    "no nonce": lambda good: re.sub(r'nonce="[^"]*", ', "", good, count=1),
    "no uri": lambda good: re.sub(r'uri="[^"]*", ', "", good),
    "an empty uri": lambda good: re.sub(r'uri="[^"]*"', 'uri=""', good),
    "no response": lambda good: re.sub(r'response="[^"]*", ', "", good),
    "an unknown algorithm": lambda good: good.replace('"md5"', '"sha-256"'),
    "md5-sess": lambda good: good.replace('"md5"', '"md5-sess"').replace('cnonce="c", ', ""),
    "auth-int": lambda good: good.replace("qop=auth", "qop=auth-int"),
    "a name of no letters": lambda good: good.replace("nc=", "\xe9="),
    "an open quote": lambda good: good + ', x="',
    "Basic without base64": lambda good: "Basic \xff\xfe!!",
    "Basic without a colon": lambda good: "Basic YWxpY2U=",
    "another scheme": lambda good: "Bearer " + "x" * 1000,
    "no scheme": lambda good: "x" * 10_000,
}


@pytest.mark.parametrize("name", MANGLED)
def test_mangled_headers(web: Guarded, name: str) -> None:
    """Bytes of a stranger are answered by the challenge, and fill no log with failures."""
    failures: list[Any] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("log_failure") is not None:
            failures.append(event["log_failure"])

    globalLogPublisher.addObserver(observe)
    try:
        answer = web.ask(Authorization=MANGLED[name](web.respond()))
    finally:
        globalLogPublisher.removeObserver(observe)
    assert (answer.status, answer.all("Set-Cookie")) == (401, [])
    assert (failures, records(web), web.site._realm.live) == ([], 0, {})


SHAPES = {
    "letters": "a" * 15_000,
    "commas": 'a="x"' + "," * 15_000,
    "a quoted value after a blank": 'uri = "' + "a" * 15_000 + '"',
    "blanks": "a=" + " " * 15_000,
    "tabs": "a=x" + "\t" * 15_000,
    "quotes": '"' * 15_000,
    "names": "a=b " * 3_700,
    "equal signs": "=" * 15_000,
    "pairs without a comma": 'a="x"' * 3_000,
    "a long name": "a=x, " + "b" * 15_000 + "=x",
    "many pairs": 'a="x", ' * 2_100,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_long_header_does_not_hold_the_reactor_up(shape: str) -> None:
    """Nobody has to be logged in to send one: a parser that is quadratic would stop all others."""
    web = Guarded()
    start = time.process_time()
    assert web.ask(Authorization="Digest " + SHAPES[shape]).status == 401
    assert time.process_time() - start < 0.1


# What becomes of an avatar whose login is none.


class down:
    """A store one of whose methods fails."""

    def __init__(self, web: Guarded, name: str) -> None:
        self.web, self.name = web, name
        # Under what records or defers the calls.
        self.store: Any = web.store.store
        assert isinstance(self.store, MemoryStore)

    def __enter__(self) -> None:
        def failing(*_: object) -> None:
            raise StoreUnavailable("the disk is gone")

        setattr(self.store, self.name, failing)

    def __exit__(self, *_: object) -> None:
        delattr(self.store, self.name)


def is_down(web: Guarded) -> None:
    with down(web, "replace"):
        assert web.ask(Authorization=BASIC).status == 503


def is_one_too_many(web: Guarded) -> None:
    assert web.ask(Authorization=BASIC).status == 403


def client_goes_before_the_head(web: Guarded) -> None:
    web.realm.page = lambda request: request.getSession().sid and LATER
    wire = web.go(Authorization=BASIC)
    assert wire.received == b""
    wire.hang_up()


def client_goes_before_the_avatar(web: Guarded) -> None:
    web.realm.waiting = []
    wire = web.go(Authorization=BASIC)
    wire.hang_up()
    web.realm.waiting[0].callback(None)


def session_ends_before_the_avatar(web: Guarded) -> None:
    web.realm.waiting = []
    wire = web.go(Authorization=BASIC)
    assert web.ask("/out").body == b"out"
    web.realm.page = fails
    web.realm.waiting[0].callback(None)
    assert wire.take().status == 500


def fails(request: Any) -> bytes:
    raise RuntimeError("as it was asked to")


def page_fails(web: Guarded) -> None:
    web.realm.page = fails
    assert web.ask(Authorization=BASIC).status == 500


FAILING = [
    is_down,
    is_one_too_many,
    page_fails,
    client_goes_before_the_head,
    client_goes_before_the_avatar,
    session_ends_before_the_avatar,
]


@pytest.mark.parametrize("failing", FAILING, ids=lambda failing: failing.__name__)
@pytest.mark.parametrize("again", [1, 3])
@pytest.mark.parametrize("deferred", [False, True], ids=["at once", "deferred"])
def test_a_login_that_is_none_leaves_no_avatar(
    failing: Callable[[Guarded], None], again: int, deferred: bool
) -> None:
    """It is logged out when the request is over, once, and not when its visitor's session ends."""
    web = Guarded(DeferredStore() if deferred else None, max_sessions=1, on_too_many="deny")
    if failing is is_one_too_many:
        assert web.ask(cookie="", Authorization=BASIC).status == 200
    before = web.realm.there
    web.ask("/free")
    for _ in range(again):
        failing(web)
        web.reactor.advance(0)
        web.realm.waiting = None
        assert web.realm.there == before
    web.realm.page = lambda request: b"home"
    assert all(number <= 1 for number in web.realm.outs)
    if failing is not session_ends_before_the_avatar:
        assert web.ask("/free").body == b"2"
    assert web.ask().status == 401
    web.pass_time(100_000)
    web.pass_time(100_000)
    assert set(web.realm.outs) == {1}


def test_a_client_that_goes_while_the_login_is_written() -> None:
    """Nobody has the new cookie: the avatar has nobody to serve, whatever the store has done."""
    store = DeferredStore()
    web = Guarded(store)
    web.ask("/free")
    store.hold = True
    wire = web.go(Authorization=BASIC)
    while store.held and store.held[0][0] != "replace":
        store.release(1)
    assert store.held
    wire.hang_up()
    store.release_all()
    web.reactor.advance(0)
    assert web.realm.outs == [1]


def test_a_stream_that_is_interrupted_keeps_the_avatar(web: Guarded) -> None:
    """The head with the cookie has left: the login is one, and the avatar goes on to serve it."""

    def stream(request: Any) -> Any:
        request.write(b"one")
        return LATER

    web.realm.page = stream
    wire = web.go(Authorization=BASIC)
    web.keep(parse(wire.received + b"0\r\n\r\n")[0])
    wire.hang_up()
    web.reactor.advance(0)
    assert web.realm.outs == [0]
    web.realm.page = lambda request: b"home of " + web.realm.user(request)
    assert web.ask().body == b"home of alice"
    assert web.ask("/out").body == b"out"
    assert web.realm.outs == [1]


def test_a_user_who_cannot_be_stored(web: Guarded) -> None:
    """A checker may let names in that are none here: an error of the site, and no avatar stays."""
    name = "\xff" * 3
    web.guard.inner.portal.checkers.clear()
    checker = InMemoryUsernamePasswordDatabaseDontUse()
    checker.addUser(name.encode("latin-1"), b"x")
    web.guard.inner.portal.registerChecker(checker)
    basic = "Basic " + b64encode(name.encode("latin-1") + b":x").decode()
    assert web.ask(Authorization=basic).status == 500
    assert (web.realm.outs, records(web)) == ([1], 0)


def test_the_realm_makes_something_else(web: Guarded) -> None:
    """What is no avatar is an error of the site, at the login and afterwards."""
    web.realm.requestAvatar = lambda *_: None  # type: ignore[method-assign]
    assert web.ask(Authorization=BASIC).status == 500
    assert records(web) == 0
    del web.realm.requestAvatar
    assert web.ask(Authorization=BASIC).status == 200
    other = another(web)
    other.realm.requestAvatar = lambda *_: None  # type: ignore[method-assign]
    assert [other.ask().status for _ in range(2)] == [500, 500]
    del other.realm.requestAvatar
    assert other.ask().body == b"home of alice"


def another(web: Guarded) -> Guarded:
    """Another process on the same store, to which the same browser comes."""
    made = Guarded(web.store, clock=web.clock)
    made.cookie = web.cookie
    return made


# Several at once.


def test_a_cookie_that_was_just_renewed(web: Guarded) -> None:
    """Who logs in with the cookie of a moment ago is told to come again, by a 409."""
    web.ask("/free")
    before = web.cookie
    web.site.resource.putChild(b"renew", Page(lambda request: request.getSession().renew() or b""))
    web.ask("/renew")
    assert web.cookie != before
    assert web.ask(cookie=before, Authorization=BASIC).status == 409
    assert set(web.realm.outs) <= {1}
    assert web.ask(Authorization=BASIC).status == 200


@pytest.mark.parametrize("users", [("alice", "alice"), ("alice", "bob"), ("bob", "alice")])
@pytest.mark.parametrize("first", [0, 1])
def test_logins_of_one_browser_at_once(web: Guarded, users: tuple[str, str], first: int) -> None:
    """Two requests with one cookie: who is told a new one is in, as who he said he is."""
    web.ask("/free")
    web.realm.waiting = []
    wires = [
        web.go(Authorization=authorization(user, PASSWORDS[user].decode())["Authorization"])
        for user in users
    ]
    waiting, web.realm.waiting = web.realm.waiting, None
    for number in (first, 1 - first):
        waiting[number].callback(None)
    answers = [wire.take() for wire in wires]
    web.reactor.advance(0)

    statuses = sorted(answer.status for answer in answers)
    assert statuses in ([200, 200], [200, 409])
    for user, answer in zip(users, answers, strict=True):
        assert answer.status == 409 or answer.body == f"home of {user}".encode()
        assert answer.status == 200 or answer.token == ""
    last = answers[1 - first] if answers[1 - first].status == 200 else answers[first]
    name = users[answers.index(last)]
    web.cookie = f"id={last.token}"
    assert web.ask().body == f"home of {name}".encode()
    web.ask("/out")
    web.pass_time(100_000)
    web.pass_time(100_000)
    assert set(web.realm.outs) == {1}


def test_first_requests_without_a_cookie_at_once(web: Guarded) -> None:
    """Each begins a session of its own; each has its avatar until it ends."""
    web.realm.waiting = []
    wires = [web.go(cookie="", Authorization=BASIC) for _ in range(5)]
    waiting, web.realm.waiting = web.realm.waiting, None
    for one in reversed(waiting):
        one.callback(None)
    answers = [wire.take() for wire in wires]
    assert [answer.status for answer in answers] == [200] * 5
    assert len({answer.token for answer in answers}) == 5
    assert web.realm.outs == [0] * 5
    web.cookie = f"id={answers[2].token}"
    web.ask("/out")
    assert sorted(web.realm.outs) == [0, 0, 0, 0, 1]
    web.pass_time(100_000)
    web.pass_time(100_000)
    assert web.realm.outs == [1] * 5


def test_a_session_that_ends_while_its_avatar_comes(web: Guarded) -> None:
    """Who logs out meanwhile is not shown a page by the avatar, which is logged out at once."""
    web.ask(Authorization=BASIC)
    other = another(web)
    other.realm.waiting = []
    wire = other.go()
    assert other.ask("/out").body == b"out"
    other.realm.waiting[0].callback(None)
    assert wire.take().status == 401
    assert other.realm.outs == [1]


def test_ends_from_all_sides_at_once(web: Guarded) -> None:
    """By its user, by another process and by time in one moment: one logout in each process."""
    web.ask(Authorization=BASIC)
    other = another(web)
    other.ask()
    web.clock.advance(3601)
    other.ask("/out")
    web.ask("/out")
    for one in (web, other, web, other):
        one.reactor.advance(3601)
    assert (web.realm.outs, other.realm.outs) == ([1], [1])


def test_no_logout_where_the_process_ends(web: Guarded) -> None:
    """The session goes on elsewhere; the next process asks for an avatar of its own."""
    web.ask(Authorization=BASIC)
    after = another(web)
    assert after.ask().body == b"home of alice"
    assert (web.realm.outs, after.realm.outs) == ([0], [0])


@pytest.mark.parametrize("how", ["raises", "fails later"])
def test_a_logout_that_fails(web: Guarded, how: str, logged: Logged) -> None:
    """The page is served, others are called back all the same, and the log has it once."""

    def leaving() -> Any:
        if how == "raises":
            raise RuntimeError("it sticks")
        return fail(RuntimeError("it sticks"))

    web.realm.leaving = leaving
    told: list[int] = []
    web.ask(Authorization=BASIC)
    web.site.resource.putChild(
        b"listen",
        Page(lambda request: request.getSession().notifyOnExpire(lambda: told.append(1)) or b""),
    )
    web.ask("/listen")
    assert web.ask("/out").body == b"out"
    assert (told, web.realm.outs) == ([1], [1])
    failures = [event["log_failure"].value for event in logged if event.get("log_failure")]
    assert [str(error) for error in failures] == ["it sticks"]


# Who is who.


def test_a_stolen_cookie_from_before_the_login(web: Guarded) -> None:
    """Whoever planted a cookie, or knows it, is nobody after the login under it."""
    web.ask("/free")
    planted = web.cookie
    assert web.ask(Authorization=web.respond()).status == 200
    assert web.cookie != planted
    for path in ("/home", "/home/cellar"):
        answer = web.ask(path, cookie=planted)
        assert (answer.status, answer.token) == (401, "")
    assert web.ask("/free", cookie=planted).body == b"1"


def test_a_forged_cookie_with_ones_own_password(web: Guarded) -> None:
    """The sid of another user's session may be known; with a secret that is none it is nobody's."""
    web.ask(Authorization=BASIC)
    sid, _, secret = web.cookie.partition("=")[2].partition(".")
    forged = f"id={sid}.{secret[::-1]}"
    bob = authorization("bob", "sesame")["Authorization"]
    answer = web.ask(cookie=forged, Authorization=bob)
    assert answer.body == b"home of bob"
    assert answer.token.partition(".")[0] != sid
    assert web.ask().body == b"home of alice"


def test_many_wrong_passwords(web: Guarded) -> None:
    """They cost a look at the password each, and leave nothing in store, memory or timers."""
    web.ask("/free")
    for number in range(50):
        wrong = authorization("alice", str(number))["Authorization"]
        for cookie in ("", web.cookie):
            answer = web.ask(cookie=cookie, Authorization=wrong)
            assert (answer.status, answer.all("Set-Cookie")) == (401, [])
    assert (records(web), web.realm.outs) == (1, [])
    assert (web.site._realm.live, web.timers, web.guard.inner.answered) == ({}, [], {})


def test_a_user_whose_password_is_changed(web: Guarded) -> None:
    """The password is not looked at again: the operator ends the user's sessions."""
    web.ask(Authorization=BASIC)
    web.guard.inner.portal.checkers.clear()
    assert web.ask().body == b"home of alice"
    other = another(web)
    ending = DeferredSessions(other.sessions, other.reactor).end_all("alice", reason="password")
    assert len(ending.result) == 1
    assert web.ask(Authorization=BASIC).status == 401
    web.pass_time(3601)
    assert web.realm.outs == [1]
