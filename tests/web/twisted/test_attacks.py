"""What a hostile user, a bad network or a careless application could break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import IRealm, Portal
from twisted.python.components import registerAdapter
from twisted.web import resource, server
from twisted.web.guard import BasicCredentialFactory
from zope.interface import Attribute, Interface, implementer

from sojourn import SessionManager
from sojourn.errors import Conflict, StoreUnavailable
from sojourn.stores.memory import MemoryStore
from sojourn.web.twisted import SessionResource
from sojourn.web.twisted.guard import SessionGuard

from .conftest import Logged
from .kit import LATER, DeferredStore, Page, Transport, Web, Wire

MakeWeb = Callable[..., Web]


@pytest.fixture
def slow() -> Web:
    return Web(DeferredStore())


def visited(web: Web) -> Web:
    """A browser that has a session."""

    def visit(request: Any) -> bytes:
        request.getSession()["visits"] = 1
        return b"visited"

    web.visit(visit)
    return web


def user(request: Any) -> str:
    return str(request.getSession().user)


def later(kept: list[Any], what: Callable[[Any], object]) -> Callable[[Any], Any]:
    """A handler that does something and answers later."""

    def handler(request: Any) -> Any:
        kept.append(request)
        what(request)
        return LATER

    return handler


def live_of(web: Web) -> dict[str, Any]:
    live: dict[str, Any] = web.site._realm.live
    return live


# One visitor's data shown to another: a cookie that somebody else knows.


def test_a_page_does_not_see_a_login_that_is_not_committed_yet(web: Web) -> None:
    visited(web)
    kept: list[Any] = []
    login = web.begin(later(kept, lambda request: request.getSession().login("alice")))
    other = web.request(user)
    assert (other.status, b"alice" in other.body) == (409, False)
    kept[0].finish()
    answer = login.take()
    assert answer.status == 200
    assert answer.token
    web.keep(answer)
    assert web.request(user).body == b"alice"


def test_a_page_does_not_see_a_login_whose_commit_is_under_way() -> None:
    web = visited(Web(DeferredStore()))
    store: Any = web.store
    kept: list[Any] = []
    slow = web.begin(later(kept, lambda request: request.getSession()))
    store.hold = True
    login = web.begin(lambda request: request.getSession().login("alice") or b"in")
    store.release(1)
    kept[0].write(str(kept[0].getSession().user).encode())
    kept[0].finish()
    store.release_all()
    store.hold = False
    answer = slow.take()
    assert (answer.status, b"alice" in answer.body) == (409, False)
    assert login.take().status == 200


def test_a_login_whose_page_fails_is_nobody_elses(web: Web) -> None:
    visited(web)
    kept: list[Any] = []
    slow = web.begin(later(kept, lambda request: request.getSession()))

    def login(request: Any) -> bytes:
        request.getSession().login("alice")
        raise RuntimeError("after the login")

    assert web.request(login).status == 500
    kept[0].write(str(kept[0].getSession().user).encode())
    kept[0].finish()
    answer = slow.take()
    assert (b"alice" in answer.body, answer.token) == (False, "")
    assert web.request(user).body == b"None"


def test_a_stream_sees_nothing_of_who_logs_in(web: Web) -> None:
    visited(web)
    kept: list[Any] = []

    def begin(request: Any) -> None:
        request.getSession()
        request.write(b"begun")

    stream = web.begin(later(kept, begin))
    answer = web.request(lambda request: request.getSession().login("alice") or b"in")
    assert answer.status == 200
    kept[0].write(str(kept[0].getSession().user).encode())
    assert b"alice" not in stream.received
    assert stream.transport.aborted or stream.transport.disconnecting
    # Before its end is noticed another one comes, which need not cut it off again.
    web.keep(answer)
    again = web.request(lambda request: request.getSession().login("alice") or b"in")
    assert again.status == 200
    stream.hang_up()


def test_a_stream_of_http2_is_cut_off_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other streams of its connection go on, and the application is told that it has ended."""
    import h2.config
    import h2.connection
    import h2.events

    web = visited(Web())
    monkeypatch.setattr("twisted.internet.reactor", web.reactor, raising=False)
    wire = Wire.__new__(Wire)
    wire.transport = Transport()
    wire.transport.negotiatedProtocol = b"h2"  # type: ignore[attr-defined]
    wire.protocol = web.site.buildProtocol(None)
    wire.protocol.makeConnection(wire.transport)
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()

    def send(handler: Callable[[Any], Any]) -> int:
        web.handler = handler
        stream: int = client.get_next_available_stream_id()
        path = [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "here")]
        client.send_headers(stream, [*path, ("cookie", web.cookie)], end_stream=True)
        wire.protocol.dataReceived(client.data_to_send())
        web.pass_time(0.1)
        return stream

    told: list[Any] = []
    kept: list[Any] = []

    def begin(request: Any) -> None:
        request.getSession()
        request.notifyFinish().addErrback(told.append)
        request.write(b"begun")

    first = send(later(kept, begin))
    second = send(lambda request: request.getSession().login("alice") or b"in")
    events = list(client.receive_data(wire.received))
    reset = [e.stream_id for e in events if isinstance(e, h2.events.StreamReset)]
    ended = [e.stream_id for e in events if isinstance(e, h2.events.StreamEnded)]
    assert (reset, ended) == ([first], [second])
    assert len(told) == 1
    assert live_of(web) == {}


def test_what_a_refused_page_did_is_not_kept_by_the_next(web: Web) -> None:
    visited(web)

    def page(request: Any) -> bytes:
        session = request.getSession()
        session.notifyOnExpire(lambda: None)
        session["refused"] = 1
        session.login("alice")
        session.check_csrf("wrong")
        return b""

    assert web.request(page).status == 403
    seen = web.request(lambda request: (list(request.getSession()), user(request)))
    assert seen.body == b"(['visits'], 'None')"


def test_an_old_load_does_not_put_the_live_session_away() -> None:
    web = visited(Web(DeferredStore()))
    store: Any = web.store
    kept: list[Any] = []
    login = web.begin(later(kept, lambda request: request.getSession()))
    store.hold = True
    slow = web.begin(later(kept, lambda request: request.getSession()))
    # The store has answered, and the answer is on its way.
    name, waiting, make = store.held.pop()
    assert name == "load"
    answer = make()
    store.hold = False

    session = kept[0].getSession()
    session.login("alice", request=kept[0])
    session.socket = object()
    kept[0].finish()
    web.keep(login.take())
    del session
    waiting.callback(answer)
    kept[1].write(str(kept[1].getSession().user).encode())
    kept[1].finish()
    assert b"alice" not in slow.take().body
    assert web.request(lambda request: hasattr(request.getSession(), "socket")).body == b"True"


# A commit that fails takes the changes of others with it.


@pytest.mark.parametrize("locked", [True, False])
@pytest.mark.parametrize("error", [StoreUnavailable("down"), Conflict("no")])
def test_no_request_says_it_is_kept_where_anothers_commit_lost_it(
    error: Exception, locked: bool
) -> None:
    web = visited(Web(DeferredStore()))
    store: Any = web.store
    kept: list[Any] = []

    def put(request: Any) -> None:
        session = request.getSession()
        if locked:
            session.exclusive(request=request)
        session["mine"] = 1

    mine = web.begin(later(kept, put))
    store.hold = True

    def page(request: Any) -> bytes:
        request.getSession()["theirs"] = 1
        return b"x"

    theirs = web.begin(page)
    store.release(1)
    store.failing = error
    store.release_all()
    store.failing = None
    assert theirs.take().status in (503, 409)
    store.hold = False
    kept[0].finish()
    assert mine.take().status in (503, 409)
    assert web.request(lambda request: sorted(request.getSession())).body == b"['visits']"


# Locks.


def test_a_lock_that_comes_when_its_request_is_gone_is_given_back(web: Web) -> None:
    visited(web)
    kept: list[Any] = []
    got: list[Any] = []

    def exclusive(request: Any) -> None:
        request.getSession().exclusive(request=request).addBoth(got.append)

    first = web.begin(later(kept, exclusive))
    second = web.begin(later(kept, exclusive))
    assert len(got) == 1
    second.hang_up()
    kept[0].finish()
    assert first.take().status == 200
    assert len(got) == 2
    third = web.begin(later(kept, exclusive))
    assert len(got) == 3
    assert got[2] is kept[2].getSession()
    kept[2].finish()
    assert third.take().status == 200


def test_a_lock_that_is_granted_to_a_request_that_has_gone(slow: Web) -> None:
    kept: list[Any] = []
    got: list[Any] = []

    def exclusive(request: Any) -> None:
        request.getSession().exclusive(request=request).addBoth(got.append)

    visited(slow)
    store: Any = slow.store
    first = slow.begin(later(kept, exclusive_held(store, exclusive)))
    first.hang_up()
    store.release_all()
    store.hold = False
    second = slow.begin(later(kept, exclusive))
    slow.pass_time(1)
    assert got[-1] is kept[1].getSession()
    kept[1].finish()
    assert second.take().status == 200


def exclusive_held(store: Any, exclusive: Callable[[Any], None]) -> Callable[[Any], None]:
    def begin(request: Any) -> None:
        request.getSession()
        store.hold = True
        exclusive(request)

    return begin


def test_a_lock_asked_for_twice_is_not_had_before_the_store_gave_it(slow: Web) -> None:
    visited(slow)
    store: Any = slow.store
    got: list[Any] = []
    kept: list[Any] = []

    def twice(request: Any) -> None:
        session = request.getSession()
        store.hold = True
        session.exclusive().addBoth(got.append)
        session.exclusive().addBoth(got.append)

    wire = slow.begin(later(kept, twice))
    assert got == []
    store.release_all()
    assert got == [kept[0].getSession()] * 2
    store.hold = False
    kept[0].finish()
    assert wire.take().status == 200


# Requests that are over.


@pytest.mark.parametrize("gone", ["hung up", "finished"])
def test_a_session_that_is_asked_for_when_the_request_is_over(web: Web, gone: str) -> None:
    visited(web)
    kept: list[Any] = []
    wire = web.begin(later(kept, lambda request: None))
    if gone == "finished":
        kept[0].finish()
        wire.take()
    else:
        wire.hang_up()
    session = kept[0].getSession()
    session["late"] = 1
    del session
    web.pass_time(1)
    assert live_of(web) == {}
    if gone == "hung up":
        assert web.request(lambda request: request.getSession()["late"]).body == b"1"


def test_a_failing_page_leaves_no_new_session_in_memory(web: Web) -> None:
    called: list[str] = []

    def page(request: Any) -> bytes:
        request.getSession().notifyOnExpire(lambda: called.append("over"))
        raise RuntimeError("no")

    for _ in range(3):
        web.request(page)
    assert live_of(web) == {}
    assert called == ["over"] * 3
    assert web.timers == []


# The gate.


class Failing:
    def __init__(self) -> None:
        self.stopped = 0

    def resumeProducing(self) -> None:
        raise RuntimeError("a producer that fails")

    def pauseProducing(self) -> None:
        pass

    def stopProducing(self) -> None:
        self.stopped += 1


@pytest.mark.parametrize("begun", [True, False])
def test_a_producer_that_fails_when_its_turn_comes(slow: Web, begun: bool, logged: Logged) -> None:
    visited(slow)
    store: Any = slow.store

    def page(request: Any) -> Any:
        request.getSession()["x"] = 1
        store.hold = True
        if begun:
            request.write(b"begun")
        request.registerProducer(Failing(), True)
        return LATER

    wire = slow.begin(page)
    store.release_all()
    assert wire.transport.aborted or wire.transport.disconnecting or b" 500 " in wire.received
    wire.hang_up()
    store.release_all()
    assert live_of(slow) == {}


# Two managers.


@pytest.mark.parametrize("deferred", [True, False])
def test_a_session_of_one_manager_is_none_of_anothers(deferred: bool) -> None:
    web = visited(Web(DeferredStore() if deferred else None))
    web.visit(lambda request: request.getSession().login("admin") or b"")
    other = SessionManager(DeferredStore() if deferred else MemoryStore(), clock=web.clock)
    inner = SessionResource(Page(user), other)
    web.site.resource.putChild(b"inner", inner)
    assert web.request(user).body == b"admin"
    wire = web.wire()
    wire.send("/inner", web.cookie)
    assert wire.take().body == b"None"


# Guard.


@implementer(IRealm)
class Users:
    def __init__(self, page: Any) -> None:
        self.page = page
        self.there = 0

    def requestAvatar(self, avatarId: Any, mind: Any, *interfaces: Any) -> Any:
        self.there += 1

        def logout() -> None:
            self.there -= 1

        return resource.IResource, Page(self.page), logout


def test_a_guarded_page_that_fails_leaves_no_avatar(web: Web) -> None:
    def page(request: Any) -> bytes:
        raise RuntimeError("no")

    users = Users(page)
    checker = InMemoryUsernamePasswordDatabaseDontUse(alice=b"secret")
    guard = SessionGuard(
        Portal(users, [checker]), [BasicCredentialFactory(b"here")], web.site._realm.sessions
    )
    web.site.resource = guard
    for _ in range(3):
        wire = web.wire()
        wire.send("/", "", Authorization="Basic YWxpY2U6c2VjcmV0")
        assert wire.take().status == 500
    assert users.there == 0
    assert live_of(web) == {}


# Components.


class IThing(Interface):
    one = Attribute("one")
    two = Attribute("two")


@implementer(IThing)
class Thing:
    one: Any

    def __init__(self, session: Any) -> None:
        self.two = 0


registerAdapter(Thing, server.Session, IThing)


def test_an_attribute_that_is_an_object_of_its_own_is_no_missing_one(web: Web) -> None:
    visited(web)

    def put(name: str, value: int) -> Callable[[Any], bytes]:
        def page(request: Any) -> bytes:
            setattr(IThing(request.getSession()), name, value)
            return b""

        return page

    web.request(put("two", 2))
    # A new version of the class, whose default cannot be stored.
    Thing.one = object()
    try:
        answer = web.request(put("one", 5))
    finally:
        del Thing.one
    assert answer.status == 200

    def look(request: Any) -> Any:
        thing = IThing(request.getSession())
        return thing.one, thing.two

    assert web.request(look).body == b"(5, 2)"


def test_two_managers_in_one_request(web: Web) -> None:
    """Whoever looks at a session before is told so, and gets none of the wrong manager's."""
    visited(web)
    web.visit(lambda request: request.getSession().login("admin") or b"")
    inner = SessionResource(Page(user), SessionManager(MemoryStore(), clock=web.clock))

    class Gate(resource.Resource):
        def getChild(self, path: bytes, request: Any) -> Any:
            request.getSession()
            return inner

    web.site.resource = Gate()
    wire = web.wire()
    wire.send("/inner", web.cookie)
    answer = wire.take()
    assert (answer.status, b"admin" in answer.body) == (500, False)
