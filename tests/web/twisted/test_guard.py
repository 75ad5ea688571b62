"""`SessionGuard`: who it is, asked once; the logout once, when the session ends."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from twisted.cred.checkers import (
    AllowAnonymousAccess,
    ICredentialsChecker,
    InMemoryUsernamePasswordDatabaseDontUse,
)
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import LoginFailed
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock as ReactorClock
from twisted.python.threadable import registerAsIOThread
from twisted.web.guard import BasicCredentialFactory, DigestCredentialFactory
from twisted.web.resource import IResource, Resource
from twisted.web.server import Site
from zope.interface import implementer

from sojourn.manager import SessionManager
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Clock
from sojourn.web.twisted import SessionSite
from sojourn.web.twisted.guard import SessionGuard

from .kit import Answer, Page, Wire
from .test_examples import digest


class Home(Resource):
    """What a user is shown."""

    def __init__(self, user: bytes) -> None:
        super().__init__()
        self.user = user
        self.putChild(b"out", Page(lambda request: request.getSession().expire() or b"out"))

    def render_GET(self, request: Any) -> bytes:
        return b"home of " + self.user

    def getChild(self, path: bytes, request: Any) -> Any:
        return Page(lambda request: path + b" of " + self.user)


@implementer(IRealm)
class Homes:
    """A realm that notes who came and who went."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.refuse = False
        self.waiting: list[Deferred[None]] | None = None

    def requestAvatar(self, user: Any, mind: Any, *interfaces: Any) -> Any:
        if self.refuse:
            raise LoginFailed("gone")
        name = repr(user)
        self.events.append(f"{name} in")
        found = (IResource, Home(user or b"nobody"), lambda: self.events.append(f"{name} out"))
        if self.waiting is None:
            return found
        self.waiting.append(Deferred())
        return self.waiting[-1].addCallback(lambda _: found)


@implementer(ICredentialsChecker)
class Passwords:
    """Notes how often a password was looked at."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self) -> None:
        self.asked = 0

    def requestAvatarId(self, credentials: Any) -> Any:
        self.asked += 1
        if credentials.checkPassword(b"swordfish"):
            return succeed(credentials.username)
        raise LoginFailed("no")


class Guarded:
    """A site behind a guard, and a browser."""

    def __init__(
        self, store: Any = None, clock: Clock | None = None, name: bytes = b"here", **settings: Any
    ) -> None:
        self.clock = clock or Clock()
        self.store = MemoryStore() if store is None else store
        self.sessions = SessionManager(self.store, clock=self.clock, **settings)
        self.realm = Homes()
        self.passwords = Passwords()
        self.portal = Portal(self.realm, [self.passwords])
        root = Resource()
        root.putChild(b"free", Page(lambda request: b"%d" % request.getSession().add("visits")))
        self.reactor = ReactorClock()
        self.reactor.rightNow = self.clock()
        self.root = root
        self.site: Any = SessionSite(root, self.sessions, reactor=self.reactor)
        self.site.startFactory()
        # After the site, which knows the reactor.
        self.factories = [BasicCredentialFactory(name)]
        root.putChild(b"guarded", SessionGuard(self.portal, self.factories, self.sessions))
        self.cookie = ""

    def get(self, path: str = "/guarded", user: str = "", password: str = "swordfish") -> Answer:
        wire = Wire(self.site)
        wire.send(path, self.cookie, **authorization(user, password))
        answer = wire.take()
        for line in answer.all("Set-Cookie"):
            self.cookie = "" if "Max-Age=0" in line else line.partition(";")[0]
        return answer


def authorization(user: str, password: str = "swordfish") -> dict[str, str]:
    if not user:
        return {}
    return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture(autouse=True)
def this_is_the_reactors_thread() -> None:
    """As in a process that runs one; another test may have had one in a thread."""
    registerAsIOThread()


@pytest.fixture
def web() -> Guarded:
    return Guarded()


def test_once(web: Guarded) -> None:
    """One request proves who it is; others come by the cookie alone, below the guard too."""
    assert web.get(user="alice").body == b"home of alice"
    assert web.cookie
    assert [web.get().body for _ in range(3)] == [b"home of alice"] * 3
    assert web.get("/guarded/cellar").body == b"cellar of alice"

    assert web.passwords.asked == 1
    assert web.realm.events == ["b'alice' in"]
    assert [device.user for device in web.sessions.of_user("alice")] == ["alice"]


def test_strangers(web: Guarded) -> None:
    """Without credentials, or with wrong ones, comes the challenge, and nothing is stored."""
    for answer in (
        web.get(),
        web.get(user="alice", password="catfish"),
        web.get("/guarded/cellar"),
    ):
        assert (answer.status, answer.body) == (401, b"Unauthorized")
        assert answer.one("WWW-Authenticate") == 'basic realm="here"'
        assert answer.all("Set-Cookie") == []
    assert (web.store.count(), web.realm.events) == (0, [])


def test_the_secret_is_renewed(web: Guarded) -> None:
    """A session from before the login goes on, under a cookie that nobody knew before."""
    web.get("/free")
    before = web.cookie
    web.get(user="alice")

    assert web.cookie != before
    assert web.cookie.partition(".")[0] == before.partition(".")[0]
    assert web.get("/free").body == b"2"
    web.cookie = before
    assert web.get().status == 401


def test_logout_when_the_session_is_ended(web: Guarded) -> None:
    """Once, whatever happens after it; then the challenge again."""
    web.get(user="alice")
    web.get()
    assert web.get("/guarded/out").body == b"out"

    assert web.cookie == ""
    assert web.get().status == 401
    web.clock.advance(100000)
    web.reactor.advance(100000)
    assert web.realm.events == ["b'alice' in", "b'alice' out"]


def test_logout_when_its_time_is_over(web: Guarded) -> None:
    """Nobody comes any more: the realm is told all the same, once."""
    web.get(user="alice")
    for _ in range(3):
        web.clock.advance(1800)
        web.reactor.advance(1800)
        assert web.get().status == 200
    assert web.realm.events == ["b'alice' in"]
    for _ in range(5):
        web.clock.advance(1800)
        web.reactor.advance(1800)

    assert web.realm.events == ["b'alice' in", "b'alice' out"]
    assert web.get().status == 401


def test_another_process(web: Guarded) -> None:
    """It knows the user by the cookie, asks its own realm once, and hears of the end."""
    other = Guarded(web.store, web.clock)
    web.get(user="alice")
    other.cookie = web.cookie
    assert [other.get().body for _ in range(2)] == [b"home of alice"] * 2
    assert (other.passwords.asked, other.realm.events) == (0, ["b'alice' in"])

    web.get("/guarded/out")
    assert other.get().status == 401
    for one in (web, other):
        one.clock.advance(4000)
        one.reactor.advance(8000)
    assert web.realm.events == other.realm.events == ["b'alice' in", "b'alice' out"]


def test_another_guard(web: Guarded) -> None:
    """Who is let in by one guard has to prove who it is at another; both may be passed."""
    other = Guarded(web.store, web.clock, name=b"there")
    web.get(user="alice")
    other.cookie = web.cookie
    assert other.get().status == 401
    assert other.get(user="alice").status == 200

    web.cookie = other.cookie
    assert (web.get().body, other.get().body) == (b"home of alice", b"home of alice")
    assert (web.passwords.asked, other.passwords.asked) == (1, 1)


def test_another_user_at_another_guard(web: Guarded) -> None:
    """A session is one user's: the former one's ends, with its logout."""
    other = Guarded(web.store, web.clock, name=b"there")
    other.sessions = web.sessions
    web.root.putChild(b"other", SessionGuard(other.portal, other.factories, web.sessions))
    web.get(user="alice")
    assert web.get("/other", user="root").body == b"home of root"

    assert web.realm.events == ["b'alice' in", "b'alice' out"]
    assert web.get().status == 401
    assert web.get("/other").body == b"home of root"
    assert other.realm.events == ["b'root' in"]


def test_the_session_wins(web: Guarded) -> None:
    """Browsers send what they know with each request; the password is not looked at again."""
    web.get(user="alice")

    assert web.get(user="bob").body == b"home of alice"
    assert web.passwords.asked == 1


def test_avatars_that_come_later(web: Guarded) -> None:
    """A realm may answer by a Deferred; requests that come meanwhile wait for the same one."""
    web.get(user="alice")
    other = Guarded(web.store, web.clock)
    other.realm.waiting = []
    wires = [Wire(other.site) for _ in range(3)]
    for wire in wires:
        wire.send("/guarded", web.cookie)
    assert [wire.received for wire in wires] == [b""] * 3
    assert len(other.realm.waiting) == 1
    other.realm.waiting[0].callback(None)

    assert [wire.take().body for wire in wires] == [b"home of alice"] * 3
    assert other.realm.events == ["b'alice' in"]


def test_a_login_that_comes_later(web: Guarded) -> None:
    """At the login too: the answer waits for the avatar, and brings the cookie."""
    web.realm.waiting = []
    wire = Wire(web.site)
    wire.send("/guarded", **authorization("alice"))
    assert wire.received == b""
    web.realm.waiting[0].callback(None)
    answer = wire.take()

    assert answer.body == b"home of alice"
    web.cookie = f"id={answer.token}"
    assert web.get().body == b"home of alice"


def test_a_user_whom_the_realm_knows_no_more(web: Guarded) -> None:
    """The cookie of a user who is gone brings the challenge, not an error."""
    web.get(user="alice")
    other = Guarded(web.store, web.clock)
    other.cookie = web.cookie
    other.realm.refuse = True
    assert other.get().status == 401
    other.realm.refuse = False
    assert other.get().status == 200


def test_anonymous(web: Guarded) -> None:
    """Where the portal lets nobody in particular in, that costs no session."""
    web.portal.registerChecker(AllowAnonymousAccess())

    assert web.get().body == b"home of nobody"
    assert web.get(user="alice").body == b"home of alice"
    assert (web.store.count(), web.get().body) == (1, b"home of alice")


def test_digest() -> None:
    """A challenge is answered once too."""
    web = Guarded()
    passwords = InMemoryUsernamePasswordDatabaseDontUse(alice=b"swordfish")
    portal = Portal(web.realm, [passwords])
    web.root.putChild(
        b"digest", SessionGuard(portal, [DigestCredentialFactory(b"md5", b"d")], web.sessions)
    )
    challenge = web.get("/digest").one("WWW-Authenticate")
    assert challenge is not None
    wire = Wire(web.site)
    wire.send("/digest", Authorization=digest(challenge, "alice", "swordfish", "/digest"))
    answer = wire.take()
    assert answer.body == b"home of alice"
    web.cookie = f"id={answer.token}"

    assert web.get("/digest").body == b"home of alice"
    # The other guard's name is another.
    assert web.get().status == 401


def test_under_a_stock_site(web: Guarded) -> None:
    """The guard brings the sessions with it."""
    web.site = Site(web.root, reactor=web.reactor)
    assert web.get(user="alice").body == b"home of alice"
    assert web.get().body == b"home of alice"
    assert web.passwords.asked == 1


def test_a_failed_login_lets_nobody_in() -> None:
    """A login that the rules refuse is no login: its avatar is not shown, now or later."""
    web = Guarded(max_sessions=1, on_too_many="deny")
    web.get(user="alice")
    first, web.cookie = web.cookie, ""
    assert web.get(user="alice").status == 403
    assert web.cookie == ""
    web.cookie = first
    assert web.get().status == 200


def test_a_store_that_is_down(web: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is a 503: neither the challenge, which would log out, nor a login not kept."""
    from sojourn.errors import StoreUnavailable

    def down(*_: object) -> None:
        raise StoreUnavailable("the disk is gone")

    web.get(user="alice")
    with monkeypatch.context() as patched:
        patched.setattr(web.store, "load", down)
        assert web.get().status == 503
    assert web.get().status == 200
    web.cookie = ""
    with monkeypatch.context() as patched:
        patched.setattr(web.store, "create", down)
        assert web.get(user="bob").status == 503
    assert web.cookie == ""
