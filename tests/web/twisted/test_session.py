"""What applications hold: the stock Session's interface, over sessions that outlive the process."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any

import pytest
from twisted.internet import defer
from twisted.python import components
from twisted.python.components import registerAdapter
from twisted.web import server
from zope.interface import Attribute, Interface, implementer

from sojourn import Append, SessionManager, state
from sojourn.errors import ConfigurationError, InvalidValue, SessionEnded
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Clock
from sojourn.web.twisted import Session, SessionSite
from sojourn.web.twisted.session import DurableSession

from .kit import LATER, DeferredStore, Web

MakeWeb = Callable[..., Web]


class ICounter(Interface):
    value = Attribute("how often")


class IAdded(Interface):
    value = Attribute("how often")


IAdded["value"].setTaggedValue("merge", "add")


@implementer(ICounter, IAdded)
class Counter:
    def __init__(self, session: Any) -> None:
        self.value = 0


class IConnection(Interface):
    def send() -> None:
        """Nothing of it can be kept."""


@implementer(IConnection)
class Connection:
    def __init__(self, session: Any) -> None:
        self.sent: list[str] = []


registerAdapter(Counter, server.Session, ICounter)
registerAdapter(Counter, server.Session, IAdded)
registerAdapter(Connection, server.Session, IConnection)


@state("twisted.cart")
@dataclass
class Cart:
    items: Annotated[list[str], Append] = field(default_factory=list)


def count(request: Any) -> str:
    counter = ICounter(request.getSession())
    counter.value += 1
    return str(counter.value)


def peer(web: Web) -> Web:
    """Another process on the same store, with the same browser."""
    other = Web(web.store, clock=web.clock, reactor=web.reactor)
    other.cookie = web.cookie
    return other


@pytest.fixture(autouse=True)
def forget_warnings() -> None:
    from sojourn.web.twisted import session

    session._warned.clear()


# The stock interface.


def test_it_is_the_stock_class(web: Web) -> None:
    """What `isinstance` and the adapters of the stock class know; and it is true when empty."""

    def handler(request: Any) -> str:
        session = request.getSession()
        assert isinstance(session, server.Session)
        assert session.site is web.site
        assert request.session is session
        assert request.getSession() is session
        assert bool(session)
        assert len(session) == 0
        return "x"

    assert web.visit(handler).status == 200


def test_show_session(web: Web) -> None:
    """The uid is bytes, the first half of the cookie, and the same on reload."""
    shown = [web.visit(lambda request: request.getSession().uid) for _ in range(3)]

    assert shown[0].body == shown[1].body == shown[2].body
    assert shown[0].token.startswith(shown[0].body.decode() + ".")
    assert [answer.token == "" for answer in shown] == [False, True, True]


def test_store_an_object_in_the_session(web: Web) -> None:
    """`ICounter(session)` counts on, in this process and in the next."""
    values = [web.visit(count).body for _ in range(3)]
    values.append(peer(web).visit(count).body)
    values.append(web.visit(count).body)

    assert values == [b"1", b"2", b"3", b"4", b"5"]


def test_nothing_is_kept_of_who_is_only_met(web: Web) -> None:
    """A flood without cookies that gets sessions leaves nothing: no record, no memory, no timer."""
    for _ in range(500):
        answer = web.request(lambda request: str(request.getSession() is not None), cookie="")
        assert answer.token == ""

    assert web.verbs == []
    assert len(web.site.sessions) == 0
    assert web.timers == []


@pytest.mark.parametrize(
    "observe",
    [
        lambda session: session.uid,
        lambda session: ICounter(session),
        lambda session: session.setComponent(ICounter, Counter(session)),
        lambda session: session.notifyOnExpire(lambda: None),
        lambda session: setattr(session, "name", "ann"),
        lambda session: session.add("n"),
        lambda session: session[Cart].items.append("x"),
        lambda session: IConnection(session),
        lambda session: session.csrf_token,
    ],
)
def test_who_is_looked_at_is_kept(web: Web, observe: Callable[[Any], object]) -> None:
    """The uid, a component, an attribute, a callback, a value: any of them makes a session."""
    answer = web.visit(lambda request: str(observe(request.getSession()) is None))

    assert answer.token != ""
    assert web.verbs == ["create"]


def test_memory_is_only_for_requests_in_flight(web: Web) -> None:
    """When no request uses it nothing is kept of it here, and no cycle waits for the collector."""
    kept: list[weakref.ref[Any]] = []

    def handler(request: Any) -> str:
        session = request.getSession()
        session["a"] = 1
        kept.append(weakref.ref(session))
        assert list(web.site.sessions) == [session.uid]
        return "x"

    gc.disable()
    try:
        web.visit(handler)
        web.visit(handler)
        assert [ref() for ref in kept] == [None, None]
    finally:
        gc.enable()

    assert len(web.site.sessions) == 0


def test_requests_at_once_share_one_object(web: Web) -> None:
    """One object, whose changes by each are seen by the other, and all are kept."""
    web.visit(count)
    requests: list[Any] = []

    def later(request: Any) -> object:
        requests.append(request)
        ICounter(request.getSession()).value += 1
        return LATER

    wires = [web.begin(later) for _ in range(20)]
    sessions = {id(request.getSession()) for request in requests}
    assert len(sessions) == 1
    assert ICounter(requests[0].getSession()).value == 21
    for request in requests:
        ICounter(request.getSession()).value += 1
        request.finish()

    assert [wire.take().status for wire in wires] == [200] * 20
    assert web.visit(count).body == b"42"
    assert len(web.site.sessions) == 0


def test_what_comes_between_is_not_lost() -> None:
    """Changes made while a commit of the same session is under way are kept by the next one."""
    web = Web(DeferredStore())
    web.visit(count)
    requests: list[Any] = []

    def later(request: Any) -> object:
        requests.append(request)
        session = request.getSession()
        session[f"key {len(requests)}"] = 1
        session.add("n")
        session.append("list", len(requests))
        ICounter(session).value += 1
        session.name = len(requests)
        return LATER

    first, second = web.begin(later), web.begin(later)
    web.store.hold = True
    requests[0].finish()
    # The write of the first is on its way.
    session = requests[1].getSession()
    session["meanwhile"] = [1]
    session["meanwhile"].append(2)
    session.add("n")
    session.append("list", "x")
    session[Cart].items.append("tea")
    ICounter(session).value += 1
    session.name = "between"
    assert first.received == second.received == b""
    requests[1].finish()
    assert web.store.release_all() == ["replace", "replace"]
    assert (first.take().status, second.take().status) == (200, 200)

    web.store.hold = False

    def look(request: Any) -> str:
        session = request.getSession()
        return repr(
            [
                *(session[key] for key in ("key 1", "key 2", "meanwhile", "n", "list")),
                session[Cart].items,
                ICounter(session).value,
                session.name,
            ]
        )

    wanted = [1, 1, [1, 2], 3, [1, 2, "x"], ["tea"], 4, "between"]
    assert web.visit(look).body.decode() == repr(wanted)
    assert peer(web).visit(look).body.decode() == repr(wanted)


def test_new_session_changed_while_it_is_made() -> None:
    """What a stream writes while the session is being created is kept in it."""
    web = Web(DeferredStore())
    web.store.hold = True
    requests: list[Any] = []

    def later(request: Any) -> object:
        requests.append(request)
        request.getSession()["a"] = 1
        request.write(b"one")
        request.getSession()["b"] = 2
        assert request.getSession().csrf_token
        request.finish()
        return LATER

    wire = web.begin(later)
    assert wire.received == b""
    assert web.store.release_all() == ["create", "replace"]
    web.keep(wire.take())
    web.store.hold = False

    assert web.visit(lambda r: repr(dict(r.getSession().items()))).body == b"{'a': 1, 'b': 2}"


def test_another_process_is_seen_by_who_shares(web: Web) -> None:
    """A request that comes while others hold the session brings what is stored by now."""
    web.visit(count)
    other = peer(web)
    held: list[Any] = []

    def hold(request: Any) -> object:
        held.append(request)
        session = request.getSession()
        ICounter(session)
        session.setdefault("list", [])
        assert session[Cart].items == []
        return LATER

    wire = web.begin(hold)

    def elsewhere(request: Any) -> str:
        session = request.getSession()
        ICounter(session).value += 10
        session["new"] = 1
        session.name = "there"
        session[Cart].items.append("tea")
        return "x"

    other.visit(elsewhere)

    def look(request: Any) -> str:
        session = request.getSession()
        assert session is held[0].getSession()
        return repr([ICounter(session).value, session["new"], session.name, session[Cart].items])

    assert web.visit(look).body == b"[11, 1, 'there', ['tea']]"
    ICounter(held[0].getSession()).value += 1
    held[0].finish()
    assert wire.take().status == 200
    assert web.visit(count).body == b"13"
    assert peer(web).visit(lambda r: repr(r.getSession().name)).body == b"'there'"


# Its life.


def test_activity_keeps_it_alive(web: Web) -> None:
    """One getSession() per request is a use: the stock class lost that in 18.9."""
    web.visit(count)
    for number in range(10):
        web.pass_time(3000)
        assert web.visit(count).body == str(number + 2).encode()
    web.pass_time(3600)

    assert web.visit(count).body == b"1"


def test_reading_is_a_use_too(web: Web) -> None:
    """A bare getSession() extends it; and a touch is written once an interval only."""
    web.visit(count)
    for _ in range(5):
        web.pass_time(3000)
        web.visit(lambda request: str(request.getSession() is None))
    assert web.verbs == ["create", *["load", "touch"] * 5]

    for _ in range(5):
        web.visit(lambda request: request.getSession().touch() or "")
    assert web.verbs == ["load"] * 5
    assert web.visit(count).body == b"2"


class ShortSession(server.Session):
    sessionTimeout = 5


def test_timeout_of_a_class(web: Web) -> None:
    """`sessionFactory = ShortSession`, as in the tutorial: it is over after five seconds."""
    web.site.sessionFactory = ShortSession

    def handler(request: Any) -> str:
        session = request.getSession()
        assert isinstance(session, ShortSession)
        assert session.sessionTimeout == 5
        return count(request)

    assert web.visit(handler).body == b"1"
    web.pass_time(4.9)
    assert web.visit(handler).body == b"2"
    web.pass_time(4.9)
    assert web.visit(handler).body == b"3"
    web.pass_time(5)
    assert web.visit(handler).body == b"1"


def test_timeout_of_an_instance(web: Web) -> None:
    """It holds at once, for this session, and in other processes."""

    def remember(request: Any) -> str:
        request.getSession().sessionTimeout = 20000
        return count(request)

    web.visit(remember)
    web.pass_time(19000)
    assert peer(web).visit(count).body == b"2"
    web.pass_time(19000)
    assert web.visit(lambda r: r.getSession().sessionTimeout).body == b"20000"
    web.pass_time(20000)
    assert web.visit(count).body == b"1"


def test_timeout_set_shorter(web: Web) -> None:
    """Also one that is set shorter on a session that exists."""
    web.visit(count)

    def shorten(request: Any) -> str:
        request.getSession().sessionTimeout = 10
        return ""

    web.visit(shorten)
    web.pass_time(10)
    assert web.visit(count).body == b"1"


def test_timeout_of_the_manager(make_web: MakeWeb) -> None:
    """Where the application says nothing, the manager's idle timeout counts, and is shown."""
    web = make_web(idle_timeout=120)

    assert web.visit(lambda r: repr(r.getSession().sessionTimeout)).body == b"120.0"
    web.visit(count)
    web.pass_time(120)
    assert web.visit(count).body == b"1"


def test_lifetime(make_web: MakeWeb) -> None:
    """There is an absolute limit too, which no use extends; `remember` sets both."""
    web = make_web(idle_timeout=100, lifetime=300)
    web.visit(count)
    for _ in range(3):
        web.pass_time(99)
        web.visit(count)
    web.pass_time(10)
    assert web.visit(count).body == b"1"

    answer = web.visit(lambda r: r.getSession().remember(timedelta(days=30)) or "")
    assert "Max-Age=2592000" in answer.one("Set-Cookie")  # type: ignore[operator]
    web.pass_time(86400)
    assert web.visit(count).body == b"2"


def test_last_modified(web: Web) -> None:
    """When it was last used, on the reactor's clock."""
    web.visit(count)
    web.pass_time(50)

    assert (
        web.visit(lambda r: repr(r.getSession().lastModified)).body
        == repr(web.reactor.seconds()).encode()
    )


def test_expire(web: Web) -> None:
    """It is over for every copy of the cookie, and the browser forgets its own."""
    web.visit(count)
    copy = web.cookie

    def expire(request: Any) -> str:
        request.getSession().expire()
        return "Your session has been expired."

    answer = web.visit(expire)

    assert answer.one("Set-Cookie").startswith("id=; Max-Age=0;")  # type: ignore[union-attr]
    assert web.cookie == ""
    assert web.request(count, cookie=copy).body == b"1"
    assert len(web.site.sessions) == 0


def test_expire_twice_and_from_its_own_callback(web: Web, logged: list[Any]) -> None:
    """Ending what has ended does nothing."""
    web.visit(count)
    calls = []

    def handler(request: Any) -> str:
        session = request.getSession()
        session.notifyOnExpire(lambda: calls.append("called") or session.expire())
        session.expire()
        session.expire()
        return "x"

    assert web.visit(handler).status == 200
    assert calls == ["called"]
    assert logged == []


def test_a_fresh_session_after_expire(web: Web) -> None:
    """The next getSession() of the same request is a fresh one, and is kept."""
    web.visit(count)
    old = web.cookie

    def handler(request: Any) -> str:
        before = request.getSession()
        before.expire()
        after = request.getSession()
        assert after is not before
        assert request.session is after
        assert (before.uid, len(before)) != (after.uid, 1)
        after["a"] = "fresh"
        return count(request)

    answer = web.visit(handler)

    assert answer.body == b"1"
    assert len(answer.all("Set-Cookie")) == 1
    assert answer.token
    assert web.visit(lambda r: r.getSession()["a"]).body == b"fresh"
    assert web.request(count, cookie=old).body == b"1"


def test_writing_to_what_has_ended(web: Web) -> None:
    """It says so, and what to do; reading gives nothing, and the uid stays."""
    web.visit(count)

    def handler(request: Any) -> str:
        session = request.getSession()
        uid = session.uid
        session["a"] = 1
        session.expire()
        assert (session.get("a"), dict(session.items()), session.uid) == (None, {}, uid)
        with pytest.raises(SessionEnded, match=r"request\.getSession\(\) returns a fresh one"):
            session["a"] = 2
        with pytest.raises(SessionEnded):
            session.setComponent(ICounter, Counter(session))
        return "x"

    assert web.visit(handler).status == 200


def test_ended_elsewhere_while_in_use(web: Web) -> None:
    """A request that is under way does not bring it back; its next getSession() is a fresh one."""
    web.visit(count)
    requests: list[Any] = []

    def later(request: Any) -> object:
        requests.append(request)
        count(request)
        return LATER

    wire = web.begin(later)
    other = peer(web)
    other.visit(lambda r: r.getSession().expire() or "")
    requests[0].finish()

    assert wire.take().status == 200
    assert web.visit(count).body == b"1"


# Callbacks of the end.


def test_notify_on_expire(web: Web) -> None:
    """Each callback once, in their order, when the session is ended here."""
    called: list[str] = []

    def register(request: Any) -> str:
        session = request.getSession()
        session.notifyOnExpire(lambda: called.append("first"))
        session.notifyOnExpire(lambda: called.append("second"))
        return ""

    web.visit(register)
    assert called == []

    def expire(request: Any) -> str:
        session = request.getSession()
        assert len(session.expireCallbacks) == 2
        session.expire()
        assert called == ["first", "second"]
        return ""

    web.visit(expire)
    web.pass_time(100000)
    assert called == ["first", "second"]
    assert web.timers == []


def test_a_callback_that_fails(web: Web, logged: list[Any]) -> None:
    """The others run all the same, and the page is not the one to pay."""
    called: list[str] = []

    def register(request: Any) -> str:
        session = request.getSession()
        session.notifyOnExpire(lambda: 1 / 0)
        session.notifyOnExpire(lambda: called.append("second"))
        return ""

    web.visit(register)
    assert web.visit(lambda r: r.getSession().expire() or "").status == 200

    assert called == ["second"]
    assert [event["log_failure"].type for event in logged] == [ZeroDivisionError]


def test_a_callback_that_registers_another(web: Web) -> None:
    """It is called at once, and once: the end does not come again."""
    called: list[str] = []

    def handler(request: Any) -> str:
        session = request.getSession()

        def again() -> None:
            called.append("again")
            if len(called) < 5:
                session.notifyOnExpire(lambda: called.append("late"))

        session.notifyOnExpire(again)
        session.expire()
        return ""

    web.visit(handler)
    assert called == ["again", "late"]


def test_sat_out(web: Web) -> None:
    """At the timeout the callbacks run, and not before: one timer, which asks the store first."""
    web.site.sessionFactory = ShortSession
    called: list[float] = []
    started = web.clock()

    def register(request: Any) -> str:
        request.getSession().notifyOnExpire(lambda: called.append(web.clock() - started))
        return ""

    web.visit(register)
    assert len(web.timers) == 1
    for _ in range(3):
        web.pass_time(3)
        web.visit(lambda r: str(r.getSession() is None))
    assert called == []
    for _ in range(8):
        web.pass_time(1)

    assert called == [14.0]
    assert web.timers == []
    assert len(web.site.sessions) == 0


def test_used_in_another_process(web: Web) -> None:
    """A session that another process keeps alive does not expire in this one."""
    called: list[str] = []
    web.site.sessionFactory = ShortSession
    web.visit(lambda r: r.getSession().notifyOnExpire(lambda: called.append("x")) or "")
    other = peer(web)
    other.site.sessionFactory = ShortSession
    for _ in range(5):
        web.pass_time(4)
        other.visit(lambda r: str(r.getSession() is None))

    assert called == []
    web.pass_time(4)
    web.pass_time(4)
    assert called == ["x"]


def test_ended_in_another_process(web: Web) -> None:
    """When this process looks again it learns of it, and calls back; once."""
    called: list[str] = []
    web.visit(lambda r: r.getSession().notifyOnExpire(lambda: called.append("x")) or "")
    peer(web).visit(lambda r: r.getSession().expire() or "")
    assert called == []

    web.pass_time(3600)
    web.pass_time(3600)

    assert called == ["x"]
    assert web.timers == []


def test_many_callbacks_one_timer(web: Web) -> None:
    """However many sessions are waited for, there is one timer."""
    for _ in range(50):
        web.request(lambda r: r.getSession().notifyOnExpire(lambda: None) or "", cookie="")

    assert len(web.site.sessions) == 50
    assert len(web.timers) == 1
    for session in list(web.site.sessions.values()):
        session.expire()
    assert len(web.site.sessions) == 0
    assert web.timers == []


def test_store_down_when_it_is_looked_for(logged: list[Any]) -> None:
    """Nothing is taken for ended because the store does not answer; it is asked again."""
    from sojourn.errors import StoreUnavailable

    web = Web(DeferredStore(), idle_timeout=10, touch_interval=1)
    called: list[str] = []
    web.visit(lambda r: r.getSession().notifyOnExpire(lambda: called.append("x")) or "")
    web.store.failing = StoreUnavailable("down")
    for _ in range(5):
        web.pass_time(5)
    assert called == []
    assert "could not be looked for" in logged[0]["log_format"]

    web.store.failing = None
    for _ in range(5):
        web.pass_time(5)
    assert called == ["x"]


# Components and attributes.


def test_components_of_this_process(web: Web) -> None:
    """One without Attributes stays with the session here; another process makes its own."""

    def send(request: Any) -> str:
        connection = IConnection(request.getSession())
        connection.sent.append("x")
        return str(len(connection.sent))

    assert [web.visit(send).body for _ in range(3)] == [b"1", b"2", b"3"]
    assert peer(web).visit(send).body == b"1"


def test_set_and_unset_component(web: Web) -> None:
    """As of any Componentized."""

    def set_one(request: Any) -> str:
        session = request.getSession()
        mine = Counter(session)
        mine.value = 41
        session.setComponent(ICounter, mine)
        assert session.getComponent(ICounter) is mine
        assert request.getSession(ICounter) is mine
        return count(request)

    assert web.visit(set_one).body == b"42"
    assert peer(web).visit(count).body == b"43"
    web.visit(lambda r: r.getSession().unsetComponent(ICounter) or "")
    assert web.visit(count).body == b"1"

    class IUnknown(Interface):
        a = Attribute("a")

    def ask(request: Any) -> str:
        with pytest.raises(TypeError, match="Could not adapt"):
            IUnknown(request.getSession())
        return repr(request.getSession().getComponent(IUnknown, "none"))

    assert web.visit(ask).body == b"'none'"


class ITemporary(Interface):
    a = Attribute("a")


@implementer(ITemporary)
class Temporary:
    temporaryAdapter = True

    def __init__(self, session: Any) -> None:
        self.a = 0


registerAdapter(Temporary, server.Session, ITemporary)


def test_temporary_adapter(web: Web) -> None:
    """One that says it is temporary is made at each look, and nothing of it is kept."""

    def handler(request: Any) -> str:
        session = request.getSession()
        ITemporary(session).a = 5
        return str(ITemporary(session).a)

    assert web.visit(handler).body == b"0"
    assert web.verbs == []


def test_adapters_by_the_durable_class(web: Web) -> None:
    """Adapters registered for our class, or for the application's own, work as well."""

    class IOwn(Interface):
        a = Attribute("a")

    @implementer(IOwn)
    class Own:
        def __init__(self, session: Any) -> None:
            self.a = 0

    class OwnSession(Session):
        pass

    registerAdapter(Own, OwnSession, IOwn)
    web.site.sessionFactory = OwnSession

    def handler(request: Any) -> str:
        own = IOwn(request.getSession())
        own.a += 1
        return str(own.a)

    assert [web.visit(handler).body for _ in range(2)] == [b"1", b"2"]


def test_component_that_is_the_session_itself(web: Web) -> None:
    """A session class that provides the interface is its own component."""

    class ISelf(Interface):
        a = Attribute("a")

    @implementer(ISelf)
    class SelfSession(server.Session):
        pass

    web.site.sessionFactory = SelfSession
    assert web.visit(lambda r: str(ISelf(r.getSession()) is r.getSession())).body == b"True"


def test_plain_attributes(web: Web) -> None:
    """What can be stored is kept; changes in place are seen; deleting one deletes it."""

    def set_all(request: Any) -> str:
        session = request.getSession()
        session.user_info = {"name": "ann", "seen": []}
        session.number = 5
        session.gone = "x"
        return ""

    web.visit(set_all)

    def change(request: Any) -> str:
        session = request.getSession()
        session.user_info["seen"].append(("a", {1, 2}))
        session.number += 1
        del session.gone
        return ""

    web.visit(change)

    def look(request: Any) -> str:
        session = request.getSession()
        return repr([session.user_info, session.number, hasattr(session, "gone")])

    wanted = repr([{"name": "ann", "seen": [("a", {1, 2})]}, 6, False]).encode()
    assert web.visit(look).body == peer(web).visit(look).body == wanted
    web.verbs  # noqa: B018
    web.visit(look)
    assert web.verbs == ["load"]


def test_attributes_of_the_session_class(web: Web) -> None:
    """What a constructor sets is a first state, and no reason to store; changes are kept."""

    class OwnSession(server.Session):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.basket: list[str] = []

    web.site.sessionFactory = OwnSession
    assert web.visit(lambda r: repr(r.getSession().basket)).token == ""
    web.visit(lambda r: r.getSession().basket.append("tea") or "")
    web.visit(lambda r: r.getSession().basket.append("map") or "")

    assert peer_with(web, OwnSession).visit(lambda r: repr(r.getSession().basket)).body == (
        b"['tea', 'map']"
    )


def peer_with(web: Web, factory: Any) -> Web:
    other = peer(web)
    other.site.sessionFactory = factory
    return other


def test_names_of_ours_that_an_application_uses(web: Web) -> None:
    """`session.user = ...` has always worked: the application's attribute is what it was set to."""

    def set_it(request: Any) -> str:
        session = request.getSession()
        session.user = {"id": 7}
        session.claims = "mine"
        session.status = 3
        return ""

    web.visit(set_it)

    def look(request: Any) -> str:
        session = request.getSession()
        return repr([session.user, session.claims, session.status])

    assert web.visit(look).body == b"[{'id': 7}, 'mine', 3]"


def test_live_objects(web: Web, logged: list[Any]) -> None:
    """They stay in this process as long as the session lives; the log says so once."""

    def set_it(request: Any) -> str:
        session = request.getSession()
        session.updates = [defer.Deferred()]
        session.updates.append(object())
        session.name = "kept"
        return ""

    web.visit(set_it)
    web.visit(set_it)

    def look(request: Any) -> str:
        session = request.getSession()
        return repr([len(getattr(session, "updates", ())), session.name])

    assert web.visit(look).body == b"[2, 'kept']"
    assert peer(web).visit(look).body == b"[0, 'kept']"
    assert [event["attribute"] for event in logged] == ["updates"]
    web.pass_time(4000)
    assert len(web.site.sessions) == 0
    assert web.timers == []


def test_an_attribute_that_becomes_live(web: Web) -> None:
    """A stored list that gets a live object in it is stored no longer, and no page fails."""
    web.visit(lambda r: setattr(r.getSession(), "updates", [1]) or "")

    def subscribe(request: Any) -> str:
        request.getSession().updates.append(object())
        return ""

    assert web.visit(subscribe).status == 200
    assert web.visit(lambda r: str(len(r.getSession().updates))).body == b"2"
    assert peer(web).visit(lambda r: str(hasattr(r.getSession(), "updates"))).body == b"False"


# The mapping, logins.


def test_mapping_and_typed_state(web: Web) -> None:
    """On the same object, over the same record."""

    def write(request: Any) -> str:
        session = request.getSession()
        session["theme"] = "dark"
        session.update(a=1, b=2)
        session.setdefault("c", []).append(3)
        session[Cart].items.append("tea")
        session.union("tags", ["x"])
        session.max("best", 9)
        session.flash("Added.")
        return repr([session.pop("b"), "a" in session, len(session), sorted(session)])

    assert web.visit(write).body == b"[2, True, 5, ['a', 'best', 'c', 'tags', 'theme']]"

    def read(request: Any) -> str:
        session = request.getSession()
        found = [session["theme"], session["c"], session[Cart].items, session["tags"]]
        del session["a"]
        return repr([*found, session.pop_flash(), list(session.keys()), session.peek["best"]])

    assert web.visit(read).body == (
        b"['dark', [3], ['tea'], {'x'}, ['Added.'], ['theme', 'c', 'tags', 'best'], 9]"
    )
    web.visit(lambda r: r.getSession().clear() or "")
    assert web.visit(lambda r: repr(list(r.getSession()))).body == b"[]"


def test_login(web: Web) -> None:
    """A new secret; the uid and the values stay; an old cookie sees nothing of it."""
    web.visit(count)
    old = web.cookie
    uid = web.visit(lambda r: r.getSession().uid).body

    answer = web.visit(lambda r: r.getSession().login("alice", role="admin") or "")

    assert answer.token
    assert web.cookie != old

    def who(request: Any) -> str:
        session = request.getSession()
        return repr([session.user, session.claims, session.uid == uid, ICounter(session).value])

    assert web.visit(who).body == b"['alice', {'role': 'admin'}, True, 1]"
    assert web.request(who, cookie=old).body.startswith(b"[None, {}, False, 0")


def test_another_user_logs_in(web: Web) -> None:
    """The session of the first one ends, and the second one's begins with nothing in it."""
    called: list[str] = []

    def first(request: Any) -> str:
        session = request.getSession()
        session.login("alice")
        session["a"] = 1
        session.notifyOnExpire(lambda: called.append("over"))
        return ""

    web.visit(first)
    copy = web.cookie
    web.visit(lambda r: r.getSession().login("bob") or "")

    assert called == ["over"]
    who = lambda r: repr([r.getSession().user, r.getSession().get("a")])  # noqa: E731
    assert web.visit(who).body == b"['bob', None]"
    assert web.request(who, cookie=copy).body == b"[None, None]"


def test_renew(web: Web) -> None:
    """A new secret; the old one works for the grace, and then no more."""
    web.visit(count)
    old = web.cookie
    answer = web.visit(lambda r: r.getSession().renew() or "")

    assert answer.token
    assert web.cookie != old
    assert web.request(count, cookie=old).body == b"2"
    web.pass_time(11)
    assert web.request(count, cookie=old).body == b"1"
    assert web.visit(count).body == b"3"


def test_who_logs_in_gets_the_cookie(web: Web) -> None:
    """Of two requests at once the one that logged in; the other began before it and gets 409."""
    web.visit(count)
    requests: list[Any] = []

    def wait(request: Any) -> object:
        requests.append(request)
        request.getSession()
        return LATER

    attacker = web.begin(wait)
    answer = web.request(lambda r: r.getSession().login("alice") or "in")
    assert (answer.status, answer.body) == (200, b"in")
    assert answer.token

    requests[0].write(b"what is seen of alice")
    requests[0].finish()

    refused = attacker.take()
    assert (refused.status, refused.token) == (409, "")
    assert b"alice" not in refused.body
    web.keep(answer)
    assert web.visit(lambda r: repr(r.getSession().user)).body == b"'alice'"


def test_who_logs_in_outside_of_render(web: Web) -> None:
    """Where it is not known which of several requests it is, it must be said."""
    web.visit(count)
    requests: list[Any] = []

    def wait(request: Any) -> object:
        requests.append(request)
        request.getSession()
        return LATER

    first, second = web.begin(wait), web.begin(wait)
    session = requests[0].getSession()
    with pytest.raises(ConfigurationError, match=r"session\.renew\(\.\.\., request=request\)"):
        session.renew()
    session.renew(request=requests[1])
    requests[0].finish()
    requests[1].finish()

    assert first.take().token == ""
    assert second.take().token != ""


def test_form_tokens(web: Web) -> None:
    """Of this session; a wrong one that the application lets through is a 403."""
    token = web.visit(lambda r: r.getSession().csrf_token).body.decode()
    assert web.visit(lambda r: r.getSession().check_csrf(token) or "fine").body == b"fine"

    def refuse(request: Any) -> str:
        request.getSession().check_csrf("x")
        return ""

    assert web.visit(refuse).status == 403


def test_ids_at_rest(web: Web) -> None:
    """What is stored, shown and logged logs nobody in."""
    web.visit(count)
    secret = web.cookie.partition(".")[2]
    records = [repr(record) for record in web.store.store.list()]

    assert secret not in "".join(records)
    assert secret not in repr(web.visit(lambda r: repr(r.getSession())).body)


# Locks.


def test_exclusive(web: Web) -> None:
    """One after the other: read, wait, write; nothing is lost, and the lock is given back."""
    web.visit(lambda r: r.getSession().add("n"))
    order: list[str] = []
    waiting: list[defer.Deferred[Any]] = []

    def locked(name: str) -> Callable[[Any], object]:
        def handler(request: Any) -> object:
            async def work() -> None:
                session = await request.getSession().exclusive()
                order.append(f"{name} begins")
                before = session["n"]
                pause: defer.Deferred[Any] = defer.Deferred()
                waiting.append(pause)
                await pause
                session["n"] = before + 1
                order.append(f"{name} ends")
                request.write(b"done")
                request.finish()

            defer.ensureDeferred(work())
            return LATER

        return handler

    wires = [web.begin(locked("first")), web.begin(locked("second"))]
    assert order == ["first begins"]
    waiting[0].callback(None)
    assert order == ["first begins", "first ends", "second begins"]
    waiting[1].callback(None)

    assert [wire.take().body for wire in wires] == [b"done", b"done"]
    assert web.visit(lambda r: str(r.getSession()["n"])).body == b"3"


def test_exclusive_of_a_new_session(web: Web) -> None:
    """Nobody else can have it: it is there at once, and kept with the answer."""

    def handler(request: Any) -> object:
        async def work() -> None:
            session = await request.getSession().exclusive()
            session["n"] = 1
            request.write(b"done")
            request.finish()

        defer.ensureDeferred(work()).addErrback(request.processingFailed)
        return LATER

    assert web.visit(handler).body == b"done"
    assert web.visit(lambda r: str(r.getSession()["n"])).body == b"1"


def test_exclusive_of_two_processes(web: Web) -> None:
    """The other process waits too; who waits too long gets 409, and nothing of it is kept."""
    web.visit(lambda r: r.getSession().add("n"))
    other = peer(web)
    requests: list[Any] = []

    def hold(request: Any) -> object:
        requests.append(request)
        request.getSession().exclusive()
        return LATER

    wire = web.begin(hold)

    def want(request: Any) -> object:
        async def work() -> None:
            try:
                session = await request.getSession().exclusive(wait=5.0)
            except Exception:
                from twisted.python.failure import Failure

                request.processingFailed(Failure())
                return
            session.add("n", 100)
            request.finish()

        defer.ensureDeferred(work())
        return LATER

    late = other.begin(want)
    for _ in range(200):
        web.pass_time(0.05)
    assert late.take().status == 409
    soon = other.begin(want)
    requests[0].getSession().add("n")
    requests[0].finish()
    for _ in range(100):
        web.pass_time(0.05)

    assert (wire.take().status, soon.take().status) == (200, 200)
    assert web.visit(lambda r: str(r.getSession()["n"])).body == b"102"


def test_a_lock_that_ran_out(web: Web) -> None:
    """Who held it too long is told so, and what was done under it is not kept."""
    web.visit(lambda r: r.getSession().add("n"))
    requests: list[Any] = []

    def hold(request: Any) -> object:
        requests.append(request)
        request.getSession().exclusive(lease=5.0)
        return LATER

    wire = web.begin(hold)
    web.pass_time(6)
    assert peer(web).visit(lambda r: r.getSession().exclusive() and "mine").status == 200
    requests[0].getSession()["n"] = 50
    requests[0].write(b"x")
    requests[0].finish()

    assert wire.take().status == 409
    assert web.visit(lambda r: str(r.getSession()["n"])).body == b"1"


def test_a_lock_is_given_back_when_the_client_goes(web: Web) -> None:
    """Also by a request that is interrupted."""
    web.visit(lambda r: r.getSession().add("n"))
    wire = web.begin(lambda r: r.getSession().exclusive() and LATER)
    wire.hang_up()

    assert web.visit(lambda r: r.getSession().exclusive() and "mine").body == b"mine"


# Factories, sessions made by hand.


def test_factories(web: Web) -> None:
    """A class, a subclass of ours, a function: what comes is durable, and what it was."""

    class Mine(server.Session):
        def expire(self) -> None:
            called.append("before")
            server.Session.expire(self)
            called.append("after")

    called: list[str] = []

    def make(site: Any, uid: bytes) -> Any:
        session = Mine(site, uid)
        session.label = "made by a function"  # type: ignore[attr-defined]
        return session

    for factory in (server.Session, Session, Mine, make):
        web.cookie = ""
        web.site.sessionFactory = factory
        assert [web.visit(count).body for _ in range(2)] == [b"1", b"2"]

    def look(request: Any) -> str:
        session = request.getSession()
        assert isinstance(session, Mine)
        assert isinstance(session, DurableSession)
        session.expire()
        return session.label  # type: ignore[attr-defined,no-any-return]

    assert web.visit(look).body == b"made by a function"
    assert called == ["before", "after"]


def test_a_factory_of_something_else(web: Web) -> None:
    """Says what it must be."""
    web.site.sessionFactory = lambda site, uid: object()

    def handler(request: Any) -> str:
        with pytest.raises(ConfigurationError, match=r"sessionFactory returned a builtins\.object"):
            request.getSession()
        return ""

    assert web.visit(handler).status == 200
    assert len(web.site.sessions) == 0


def test_made_by_hand(web: Web) -> None:
    """Sessions put into `site.sessions` are found by their stock cookie, and are stock ones."""

    def make(request: Any) -> str:
        session = web.site.makeSession()
        session.note = "local"
        request.addCookie(b"TWISTED_SESSION", session.uid)
        return ""

    answer = web.request(make)
    cookie = answer.one("Set-Cookie")
    assert cookie is not None

    def look(request: Any) -> str:
        session = request.getSession()
        assert request.session is session
        session["a"] = 1
        return repr([session.note, session["a"], len(session.uid)])

    assert web.request(look, cookie=cookie).body == b"['local', 1, 64]"
    web.pass_time(900)
    assert web.request(lambda r: str(hasattr(r.getSession(), "note")), cookie=cookie).body == (
        b"False"
    )
    assert web.verbs == []


def test_timer_idiom(web: Web) -> None:
    """`_expireCall.cancel()`, a new timeout, `startCheckingExpiration()`: published code."""

    def handler(request: Any) -> str:
        session = request.getSession()
        session.startCheckingExpiration()
        session._expireCall.cancel()
        session.sessionTimeout = 50000
        session.startCheckingExpiration()
        assert not session._expireCall.active()
        return count(request)

    web.visit(handler)
    web.pass_time(49000)
    assert web.visit(count).body == b"2"


def test_sessions_is_a_view(web: Web) -> None:
    """Of those that are in use, by uid; others are KeyErrors; deleting one ends it."""
    web.visit(count)

    def handler(request: Any) -> str:
        session = request.getSession()
        sessions = web.site.sessions
        assert sessions[session.uid] is session
        assert web.site.getSession(session.uid) is session
        assert sessions.get(b"x") is None
        assert list(sessions.values()) == [session]
        with pytest.raises(KeyError):
            web.site.getSession(b"no such")
        del sessions[session.uid]
        return str(len(sessions))

    assert web.visit(handler).body == b"0"
    assert web.visit(count).body == b"1"


def test_commit_outside_of_a_request(web: Web) -> None:
    """Work that outlasts its request writes by `commit()`."""
    sessions: list[Any] = []
    web.visit(lambda r: sessions.append(r.getSession()) or count(r))
    sessions[0]["late"] = "kept"
    done: list[Any] = []
    sessions[0].commit().addCallback(done.append)

    assert done[0].wrote
    assert web.visit(lambda r: r.getSession()["late"]).body == b"kept"


def test_ended_from_a_timer(web: Web) -> None:
    """Expiring all of `site.sessions`, as tests and admin pages do, ends them in the store."""
    web.visit(lambda r: r.getSession().notifyOnExpire(lambda: None) or count(r))
    for session in list(web.site.sessions.values()):
        session.expire()

    assert web.visit(count).body == b"1"


def test_what_cannot_be_stored(web: Web, logged: list[Any]) -> None:
    """A value that cannot be stored fails at once; deeper inside, with a 500 before the head."""

    def at_once(request: Any) -> str:
        with pytest.raises(InvalidValue):
            request.getSession()["a"] = object()
        return "x"

    assert web.visit(at_once).status == 200

    def deep(request: Any) -> str:
        request.getSession()["a"] = [object()]
        return "x"

    assert web.visit(deep).status == 500


def test_a_session_is_not_in_the_way_of_others() -> None:
    """Sessions of two sites with managers of their own do not mix; with one manager they do."""
    store, clock = MemoryStore(), Clock()
    shared = SessionManager(store, clock=clock)
    first, second, third = Web(store, clock=clock), Web(store, clock=clock), Web()
    for site in (first, second):
        site.site = SessionSite(site.site.resource, shared)
    assert first.site._realm is second.site._realm
    assert third.site._realm is not first.site._realm


def test_no_name_of_ours_hides_one_of_twisted() -> None:
    """The mixin adds names; those of the stock class that it has, it has by its contract."""
    ours = {name for name in vars(DurableSession) if not name.startswith("_")}
    stock = {
        name
        for cls in (server.Session, components.Componentized)
        for name in vars(cls)
        if not name.startswith("_")
    }

    assert ours & stock == {
        "expire",
        "getComponent",
        "notifyOnExpire",
        "sessionTimeout",
        "setComponent",
        "startCheckingExpiration",
        "touch",
        "unsetComponent",
    }


# What is easily lost.


def test_changed_here_and_there(web: Web) -> None:
    """What was changed here and is not committed yet outlasts a look at what others wrote."""
    web.visit(lambda r: IAdded(r.getSession()) and "")
    held: list[Any] = []

    def hold(request: Any) -> object:
        held.append(request)
        session = request.getSession()
        IAdded(session).value += 1
        session[Cart].items.append("here")
        session["list"] = ["here"]
        session.name = "here"
        return LATER

    wire = web.begin(hold)

    def elsewhere(request: Any) -> str:
        session = request.getSession()
        IAdded(session).value += 10
        session[Cart].items.append("there")
        session["other"] = "there"
        session.label = "there"
        return ""

    peer(web).visit(elsewhere)

    def look(request: Any) -> str:
        session = request.getSession()
        return repr(
            [
                IAdded(session).value,
                session[Cart].items,
                session["list"],
                session["other"],
                session.name,
                session.label,
            ]
        )

    # The look itself brings what is stored, and commits what is shared.
    web.visit(look)
    held[0].finish()
    assert wire.take().status == 200
    wanted = [11, ["there", "here"], ["here"], "there", "here", "there"]
    assert web.visit(look).body.decode() == repr(wanted)
    assert peer(web).visit(look).body.decode() == repr(wanted)


def test_a_form_token_while_the_session_is_made() -> None:
    """A token that is asked for while the session is being created is one of that session."""
    web = Web(DeferredStore())
    web.store.hold = True
    tokens: list[str] = []

    def handler(request: Any) -> object:
        session = request.getSession()
        tokens.append(session.csrf_token)
        request.write(b"form: ")
        tokens.append(session.csrf_token)
        request.finish()
        return LATER

    wire = web.begin(handler)
    web.store.release_all()
    web.keep(wire.take())
    web.store.hold = False

    for token in tokens:
        check = web.visit(lambda r, t=token: r.getSession().check_csrf(t) or "fine")
        assert check.body == b"fine"


def test_a_failing_page_of_a_session_that_is_waited_for(web: Web) -> None:
    """It stays in memory, and yet nothing of what the page did stays in it."""
    web.visit(lambda r: r.getSession().notifyOnExpire(lambda: None) or count(r))

    def fails(request: Any) -> str:
        session = request.getSession()
        session["a"] = 1
        session.name = "changed"
        count(request)
        raise RuntimeError("as it is meant to")

    assert web.visit(fails).status == 500

    def look(request: Any) -> str:
        session = request.getSession()
        return repr([session.get("a"), hasattr(session, "name"), ICounter(session).value])

    assert web.visit(look).body == b"[None, False, 1]"


def test_callbacks_where_a_commit_finds_it_ended(web: Web) -> None:
    """A request of this process that comes upon the end calls back then, and once."""
    called: list[str] = []
    web.visit(lambda r: r.getSession().notifyOnExpire(lambda: called.append("x")) or count(r))
    requests: list[Any] = []

    def later(request: Any) -> object:
        requests.append(request)
        count(request)
        return LATER

    wire = web.begin(later)
    peer(web).visit(lambda r: r.getSession().expire() or "")
    requests[0].finish()

    assert wire.take().status == 200
    assert called == ["x"]
    web.pass_time(100000)
    assert called == ["x"]
    assert web.timers == []


def test_whose_device_logged_in(web: Web) -> None:
    """The client of a session is that of the request that logged in."""
    web.visit(count, User_Agent="first")
    web.visit(lambda r: r.getSession().login("alice") or "", User_Agent="second")

    assert web.visit(lambda r: r.getSession().client.agent, User_Agent="third").body == b"second"
