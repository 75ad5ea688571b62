"""The classic stores: ours behind the managers of Session3 and Quixote, theirs behind ours."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pickle
import subprocess
import sys
import threading
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quixote
from quixote.errors import TraversalError
from quixote.publish import Publisher
from quixote.session import BaseSessionManager
from quixote.session import Session as QuixoteSession

from sojourn import SessionManager
from sojourn.core.record import ENDED, LIVE, Ended
from sojourn.errors import (
    ConfigurationError,
    DamagedRecord,
    InvalidValue,
    SessionEnded,
    StoreUnavailable,
)
from sojourn.stores.cookie import CookieStore
from sojourn.stores.directory import DirectoryStore
from sojourn.stores.memory import MemoryStore
from sojourn.testing import CHECKS, Clock, RecordingStore, new_record, run_check
from sojourn.web import quixote as ours
from sojourn.web.quixote.stores import ForeignStore, SessionStore, Sid, check_server, safety
from sojourn.web.session3 import token_of_id

from ..kit import Answer, call_wsgi, environ
from .conftest import Root
from .fetched import session3 as session3
from .fetched import session3_path as session3_path
from .foreign import NoListStore, PickleStore, ShelfStore, TransactionStore

Page = Callable[[], Any]


# Two managers that are not ours, unchanged.


class QuixoteManager(BaseSessionManager):  # type: ignore[misc]
    """Quixote 3.8's, with the attribute that it lacks and cannot do without."""

    ACCESS_TIME_RESOLUTION = 1


class Classic:
    """A publisher with somebody else's manager over our store, and a browser in front of it."""

    def __init__(
        self, kind: str, session3: Any, store: Any = None, base: type[Any] | None = None
    ) -> None:
        self.clock = Clock()
        self.store = RecordingStore(MemoryStore() if store is None else store)
        self.sessions = SessionManager(self.store, clock=self.clock)
        if base is None:
            base = QuixoteSession if kind == "quixote" else session3.Session

        class Visitor(base):  # type: ignore[misc, valid-type]
            counter = 0

            def has_info(self) -> bool:
                return bool(self.counter or self.user or self._form_tokens)

        self.visitor = Visitor
        self.classic = SessionStore(self.sessions, Visitor)
        if kind == "quixote":
            self.manager = QuixoteManager(Visitor, self.classic)
        else:
            self.manager = session3.SessionManager(self.classic, Visitor)
        quixote.cleanup()
        self.root = Root()
        self.publisher = Publisher(self.root, session_manager=self.manager)
        self.log = self.publisher.logger.error_log = io.StringIO()
        self.cookie = ""

    def visit(self, page: Page, **more: Any) -> Answer:
        """Make one request; keep the cookie as a browser does."""
        self.root.page = page
        env = environ(cookie=self.cookie, **more)
        env["wsgi.multithread"] = env["wsgi.multiprocess"] = False
        answer = call_wsgi(quixote.get_wsgi_app(), env)
        for line in answer.all("Set-Cookie"):
            name, _, rest = line.partition("=")
            value = rest.partition(";")[0].strip('"')
            self.cookie = f"{name}={value}" if value else ""
        return answer

    @property
    def id(self) -> str:
        """The id in the browser's cookie."""
        return self.cookie.partition("=")[2]


@pytest.fixture(params=["session3", "quixote"])
def site(request: pytest.FixtureRequest) -> Classic:
    kind = request.param
    return Classic(kind, request.getfixturevalue("session3") if kind == "session3" else None)


def increment() -> str:
    quixote.get_session().counter += 1
    return show()


def show() -> str:
    session = quixote.get_session()
    return f"{session.id} {session.counter}"


def fail() -> str:
    increment()
    raise ZeroDivisionError


def log_out() -> str:
    quixote.get_session_manager().expire_session()
    return "gone"


def test_a_session_is_kept_and_found(site: Classic) -> None:
    """Over requests, under the id that the manager gave it; in our store under no such name."""
    assert site.visit(show).body == b"None 0"
    assert site.store.verbs == []
    site.visit(increment)
    site.visit(increment)

    assert site.visit(show).body == f"{site.id} 2".encode()
    token = token_of_id(site.id)
    assert token is not None
    record = site.sessions.store.load(token.sid)
    assert record is not None
    assert site.id.encode() not in pickle.dumps(record)


def test_a_failed_request_changes_nothing(site: Classic) -> None:
    """Neither the first one nor a later one."""
    assert site.visit(fail).status == 500
    assert site.sessions.count() == 0
    site.cookie = ""
    site.visit(increment)
    assert site.visit(fail).status == 500
    assert site.visit(show).body == f"{site.id} 1".encode()


def test_a_publish_error_is_a_page(site: Classic) -> None:
    """What a page of 404 did is kept."""
    site.visit(increment)

    def missing() -> str:
        increment()
        raise TraversalError

    assert site.visit(missing).status == 404
    assert site.visit(show).body == f"{site.id} 2".encode()


def test_logout_is_final(site: Classic) -> None:
    """Also for a copy of the cookie; without a session it does no harm; nor a second time."""
    site.visit(log_out)
    site.visit(increment)
    copy = site.cookie
    assert site.visit(log_out).status == 200
    assert site.cookie == ""
    site.cookie = copy
    assert site.visit(show).body == b"None 0"
    assert site.visit(log_out).status == 200


def test_a_logout_that_fails_is_none(site: Classic) -> None:
    """The session goes on."""
    site.visit(increment)

    def log_out_and_fail() -> str:
        log_out()
        raise ZeroDivisionError

    before = site.cookie
    assert site.visit(log_out_and_fail).status == 500
    site.cookie = before
    assert site.visit(show).body == f"{site.id} 1".encode()


def test_a_request_that_only_reads_writes_nothing(site: Classic) -> None:
    """Though these managers save at each request; a use is written once a touch interval."""

    def begin() -> str:
        session = quixote.get_session()
        session.cart, session.price = ["apple"], 1.5
        return increment()

    def read() -> str:
        session = quixote.get_session()
        session.price = float(str(session.price))  # equal, and another object
        return f"{session.cart} {session.counter}"

    site.visit(begin)
    site.store.calls.clear()
    for _ in range(3):
        site.clock.advance(30.0)
        assert site.visit(read).body == b"['apple'] 1"
    assert set(site.store.verbs) == {"load"}
    site.store.calls.clear()
    site.clock.advance(200.0)
    site.visit(show)
    assert [verb for verb in site.store.verbs if verb != "load"] == ["touch"]


def test_values_changed_in_place_are_kept(site: Classic) -> None:
    """Lists and dicts, with no flag; and attributes that are deleted are gone."""

    def begin() -> str:
        session = quixote.get_session()
        session.counter, session.cart, session.coupon = 1, {"items": []}, "x"
        return ""

    def put() -> str:
        session = quixote.get_session()
        session.cart["items"].append("apple")
        del session.coupon
        return ""

    site.visit(begin)
    site.visit(put)

    def look() -> str:
        session = quixote.get_session()
        return f"{session.cart} {hasattr(session, 'coupon')}"

    assert site.visit(look).body == b"{'items': ['apple']} False"


def test_two_requests_that_set_different_attributes_both_count(site: Classic) -> None:
    """Each is merged into what the other has saved."""
    site.visit(increment)
    store = site.classic
    one, other = store.load_session(site.id), store.load_session(site.id)
    one.colour, other.size = "red", 7
    one.counter = 5
    store.save_session(one)
    store.save_session(other)

    found = store.load_session(site.id)
    assert (found.colour, found.size, found.counter) == ("red", 7, 5)


def test_a_late_request_brings_nothing_back(site: Classic) -> None:
    """It was under way when its visitor logged out, and saves its session after that; twice."""
    site.visit(increment)
    store = site.classic
    late = store.load_session(site.id)
    site.visit(log_out)
    late.counter = 9
    store.save_session(late)
    store.save_session(late)

    assert store.load_session(late.id) is None
    assert site.sessions.count() == 0


def test_a_value_that_cannot_be_kept_is_named(site: Classic) -> None:
    """The session stays as it was, whole."""
    site.visit(increment)

    def spoil() -> str:
        quixote.get_session().cart = [object()]
        return ""

    assert site.visit(spoil).status == 500
    assert "session['cart'] is or holds a object" in site.log.getvalue()
    assert site.visit(show).body == f"{site.id} 1".encode()


def test_users_are_listed(site: Classic) -> None:
    """Who is set as the user is the user of our session, in lists and for `end_all`."""

    def log_in() -> str:
        quixote.get_session().set_user("alice")
        return ""

    site.visit(increment)
    site.visit(log_in)
    assert site.visit(lambda: str(quixote.get_user())).body == b"alice"
    assert len(site.sessions.of_user("alice")) == 1
    assert len(site.sessions.end_all("alice")) == 1
    assert site.visit(lambda: str(quixote.get_user())).body == b"None"


def test_users_that_are_no_text(site: Classic) -> None:
    """They are kept as they are, as any other attribute."""

    def log_in() -> str:
        quixote.get_session().set_user({"id": 42})
        return ""

    site.visit(log_in)
    assert site.visit(lambda: str(quixote.get_user())).body == b"{'id': 42}"


def test_a_user_that_cannot_be_kept(classic: SessionStore) -> None:
    """It is refused by its name, and not kept for the database to choke on."""
    session = classic.session_class("a" * 11)
    session.user = "\ud800"

    with pytest.raises(InvalidValue, match="user"):
        classic.save_session(session)
    assert not classic.has_session("a" * 11)


def test_form_tokens(site: Classic) -> None:
    """The attributes that both session classes make in `__init__` are there in a kept one."""
    site.visit(increment)

    def form() -> str:
        return str(quixote.get_session().create_form_token())

    token = site.visit(form).body.decode()
    assert site.visit(lambda: str(quixote.get_session().has_form_token(token))).body == b"True"
    assert site.visit(show).body == f"{site.id} 1".encode()


@pytest.mark.parametrize(
    "value", ["/dev/null", "/dev/zero", "../x", "x\0y", "", "*del*", "é", "." * 5000, "-rf", "%00"]
)
def test_no_cookie_is_a_path_or_an_error(site: Classic, value: str) -> None:
    """It is a name that is not there; and nothing in memory or on disk is opened by it."""
    site.cookie = f"QX_session={value}"

    assert site.visit(show).body == b"None 0"


def test_a_name_from_a_list_opens_nothing_as_a_cookie(site: Classic) -> None:
    """What is listed may be shown: as the text of a cookie it is nobody's id."""
    site.visit(increment)
    ((name, session),) = site.classic.iter_sessions()

    assert type(name) is Sid
    assert (session.id, session.counter) == (name, 1)
    assert site.classic.load_session(name).counter == 1
    assert site.classic.has_session(name)
    assert site.classic.load_session(str(name)) is None
    site.cookie = f"QX_session={name}"
    assert site.visit(show).body == b"None 0"
    site.classic.delete_session(session)
    assert list(site.classic) == []


def test_quixotes_manager_can_be_iterated() -> None:
    """As its altdemo does, by way of the names."""
    site = Classic("quixote", None)
    site.visit(increment)

    assert [session.counter for session in site.manager] == [1]
    del site.manager[next(iter(site.classic))]
    assert [*site.manager] == []


def test_quixotes_manager_in_one_transaction() -> None:
    """What is saved early is there for the request, and comes to nothing when it fails."""
    site = Classic("quixote", None)

    def early(failing: bool) -> Page:
        def page() -> str:
            session, manager = quixote.get_session(), quixote.get_session_manager()
            session.counter = 1
            manager.maintain_session(session)
            assert session.id in manager
            assert manager.get(session.id) is session
            if failing:
                raise ZeroDivisionError
            return str(session.id)

        return page

    assert site.visit(early(True)).status == 500
    assert site.sessions.count() == 0
    site.cookie = ""
    body = site.visit(early(False)).body
    assert site.visit(show).body == body + b" 1"


class MappingOfSession3(UserDict):  # type: ignore[type-arg]
    """As Session3's DictSession: keys and attributes are apart."""

    def __init__(self, id: str | None) -> None:
        super().__init__()
        self.id = id
        self.user = None


def test_sessions_that_are_mappings() -> None:
    """Keys without a user are kept, and a user without keys; as our own DictSession has them."""
    sessions = SessionManager()
    store = SessionStore(sessions, MappingOfSession3)
    keys, user = MappingOfSession3("abcdefghijk"), MappingOfSession3("abcdefghijl")
    keys["theme"], keys.theme = "dark", "light"
    user.user = "alice"
    store.save_session(keys)
    store.save_session(user)

    found = store.load_session("abcdefghijk")
    assert (dict(found), found.theme, found.user) == ({"theme": "dark"}, "light", None)
    del found["theme"]
    found["size"] = 7
    store.save_session(found)
    assert dict(store.load_session("abcdefghijk")) == {"size": 7}
    assert store.load_session("abcdefghijl").user == "alice"
    token = token_of_id("abcdefghijk")
    assert token is not None
    session = sessions.find(token.sid)
    assert session is not None
    assert dict(session) == {".theme": "light", "size": 7}
    found[".dot"] = 1
    with pytest.raises(InvalidValue, match="must not begin with a dot"):
        store.save_session(found)


def test_our_manager_takes_their_cookies_over(session3: Any) -> None:
    """From Session3's manager over our store to ours: the visitor stays, with a full token."""
    site = Classic("session3", session3)
    site.visit(increment)
    old = site.cookie

    class Visitor(ours.Session):
        counter = 0

        def has_info(self) -> bool:
            return self.counter > 0

    quixote.cleanup()
    manager = ours.SessionManager(site.sessions, Visitor)
    ours.ThreadSafePublisher(site.root, session_manager=manager)
    site.root.page = lambda: str(quixote.get_session().counter)

    def get(cookie: str) -> Answer:
        env = environ(cookie=cookie)
        env["wsgi.multiprocess"] = False
        return call_wsgi(quixote.get_wsgi_app(), env)

    first = get(old)
    assert (first.status, first.body) == (200, b"1")
    assert len(first.token) == 66
    site.clock.advance(11)
    assert get(old).body == b"0"
    again = get(f"id={first.token}")
    assert (again.body, again.token) == (b"1", "")


# The store by itself.


class Plain:
    """A session class with nothing but what is set."""

    def __init__(self, id: str | None) -> None:
        self.id = id


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def classic(clock: Clock) -> SessionStore:
    return SessionStore(SessionManager(clock=clock), Plain)


def kept(classic: SessionStore, id: str, **attributes: Any) -> Any:
    session = Plain(id)
    vars(session).update(attributes)
    classic.save_session(session)
    return session


def test_the_classic_names(classic: SessionStore) -> None:
    """Save, load, has, delete, with a default, and nothing for no id."""
    kept(classic, "abcdefghijk", counter=1)

    assert classic.load_session("abcdefghijk").counter == 1
    assert classic.has_session("abcdefghijk")
    assert classic.load_session("nobody", "default") == "default"
    for nothing in (None, "", 5, "x" * 300):
        assert classic.load_session(nothing) is None  # type: ignore[arg-type]
        assert not classic.has_session(nothing)  # type: ignore[arg-type]
    classic.delete_session(None)
    classic.delete_session("nobody")
    classic.delete_session("abcdefghijk")
    classic.delete_session(Plain("abcdefghijk"))
    assert not classic.has_session("abcdefghijk")


def test_an_id_that_has_ended_is_taken_by_nobody(classic: SessionStore) -> None:
    """A session made anew under it would be open to whoever has the old cookie."""
    session = kept(classic, "abcdefghijk", counter=1)
    classic.delete_session(session)

    with pytest.raises(SessionEnded, match="another one cannot take its id"):
        kept(classic, "abcdefghijk", counter=2)


def test_an_object_that_was_not_loaded_takes_the_place(classic: SessionStore) -> None:
    """As with any classic store, what is saved is what is there."""
    kept(classic, "abcdefghijk", counter=1, colour="red", user="alice")
    session = kept(classic, "abcdefghijk", counter=2, user="bob")
    found = classic.load_session("abcdefghijk")

    assert (found.counter, found.user, hasattr(found, "colour")) == (2, "bob", False)
    session.counter = 3
    classic.save_session(session)
    assert classic.load_session("abcdefghijk").counter == 3


def test_another_class_is_refused(classic: SessionStore) -> None:
    """The store makes objects of the one class that it was made for."""
    with pytest.raises(InvalidValue, match="this store was made for Plain"):
        classic.save_session(MappingOfSession3("abcdefghijk"))


@pytest.mark.parametrize("at", [-6, -5], ids=["the index", "a value"])
def test_a_damaged_session_is_none(
    classic: SessionStore, caplog: pytest.LogCaptureFixture, at: int
) -> None:
    """With one line in the log."""
    kept(classic, "abcdefghijk", counter=1)
    store = classic.sessions.store
    assert isinstance(store, MemoryStore)
    (record,) = store.list()
    flipped = record.data[:at] + bytes([record.data[at] ^ 1]) + record.data[at + 1 :]
    store.delete(record.sid)
    store.create(new_record(classic.sessions._env.clock(), **_same(record, data=flipped)))

    assert classic.load_session("abcdefghijk", "none") == "none"
    assert [*classic.iter_sessions()] == []
    assert "damaged" in caplog.text


def _same(record: Any, **other: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__} | other


def test_setup_makes_what_is_missing_and_empties_nothing(tmp_path: Path) -> None:
    """Unlike those that drop the table first."""
    classic = SessionStore(f"sqlite:///{tmp_path}/s.db", Plain)
    classic.setup()
    assert (tmp_path / "s.db").exists()
    kept(classic, "abcdefghijk", counter=1)
    classic.setup()
    assert classic.has_session("abcdefghijk")


def test_old_sessions_are_deleted(clock: Clock) -> None:
    """Those unused for that long, and those that are over; it tells how many, and how many stay."""
    store = MemoryStore()
    classic = SessionStore(SessionManager(store, clock=clock, idle_timeout=3600.0), Plain)
    for number in range(130):
        kept(classic, f"old-{number}")
    clock.advance(20 * 60)
    for number in range(7):
        kept(classic, f"new-{number}")

    assert classic.delete_old_sessions(30) == (0, 137)
    # A use is written after three minutes at the earliest: 17 minutes are not surely 18 unused.
    assert classic.delete_old_sessions(18) == (0, 137)
    assert classic.delete_old_sessions(15) == (130, 7)
    assert classic.delete_old_sessions(15) == (0, 7)
    assert classic.has_session("new-0")
    assert not classic.has_session("old-0")
    clock.advance(3600)
    assert classic.delete_old_sessions(10_000) == (7, 0)
    assert {record.status for record in store.list(status=None)} == {ENDED}


def test_a_session_that_is_used_while_old_ones_are_deleted_stays(clock: Clock) -> None:
    """It is compared and swapped: whoever saved meanwhile has won."""
    store = RecordingStore(MemoryStore())
    classic = SessionStore(SessionManager(store, clock=clock), Plain)
    session = kept(classic, "abcdefghijk", counter=1)
    clock.advance(1800)

    class Meanwhile(MemoryStore):
        def list(self, *args: Any, **kwargs: Any) -> Any:
            page = store.store.list(*args, **kwargs)
            session = classic.load_session("abcdefghijk")
            session.counter += 1
            classic.save_session(session)
            return page

    other = Meanwhile()
    for verb in ("load", "replace", "delete"):
        setattr(other, verb, getattr(store.store, verb))
    operator = SessionStore(SessionManager(other, clock=clock), Plain)

    assert operator.delete_old_sessions(10) == (0, 1)
    assert classic.load_session(session.id).counter == 2


def test_two_that_delete_old_sessions_at_once(tmp_path: Path) -> None:
    """Neither fails; each session is ended by one of them; logouts meanwhile do no harm."""
    clock = Clock()
    store = DirectoryStore(tmp_path / "s")
    classic = SessionStore(SessionManager(store, clock=clock), Plain)
    for number in range(60):
        kept(classic, f"old-{number}")
    clock.advance(1800)
    (tmp_path / "s" / "foreign.txt").write_text("not ours")
    answers: list[Any] = []

    def log_out() -> None:
        for number in range(0, 60, 3):
            classic.delete_session(f"old-{number}")

    jobs: list[Callable[[], Any]] = [
        lambda: answers.append(classic.delete_old_sessions(10)),
        lambda: answers.append(classic.delete_old_sessions(10)),
        log_out,
    ]
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(answers) == 2
    assert classic.delete_old_sessions(10) == (0, 0)
    assert (tmp_path / "s" / "foreign.txt").exists()


# What they are fit for.


def test_flags_are_true(tmp_path: Path) -> None:
    """The memory of one process is for one; a directory for all of a host; both for threads."""
    for store, flags in (
        (MemoryStore(), (False, True)),
        (DirectoryStore(tmp_path), (True, True)),
        (ForeignStore(PickleStore()), (False, False)),
        (ForeignStore(ShelfStore()), (False, True)),
        (ForeignStore(TransactionStore()), (False, False)),
        (ForeignStore(TransactionStore(), locks=tmp_path), (True, False)),
    ):
        classic = SessionStore(SessionManager(store), Plain)  # type: ignore[arg-type]
        assert safety(store) == flags  # type: ignore[arg-type]
        assert (classic.is_multiprocess_safe, classic.is_thread_safe) == flags


MANY = [
    {"wsgi.multiprocess": True},
    {"wsgi.run_once": True, "wsgi.multiprocess": False},
    {"SCGI": "1"},
    os.environ,
]


@pytest.mark.parametrize("env", MANY, ids=["prefork", "cgi by wsgi", "scgi", "cgi"])
def test_a_store_for_one_process_is_refused_where_there_are_more(env: Any) -> None:
    """And one that they share is not."""
    with pytest.raises(ConfigurationError, match="MemoryStore is for one process"):
        check_server(MemoryStore(), env)
    check_server(DirectoryStore("nowhere"), env)
    check_server(MemoryStore(), dict(env) if env is os.environ else {})


def test_a_store_for_one_thread_is_refused_where_there_are_more() -> None:
    """With the name of the flag."""
    check_server(ForeignStore(ShelfStore()), {"wsgi.multithread": True})
    check_server(ForeignStore(PickleStore()), {"wsgi.multithread": False})
    with pytest.raises(ConfigurationError, match="is_thread_safe is false"):
        check_server(ForeignStore(PickleStore()), {"wsgi.multithread": True})


def test_the_first_request_tells(site: Classic) -> None:
    """Behind the other managers: each request fails with the reason, and none loses a session."""
    site.root.page = increment
    env = environ()
    env["wsgi.multithread"] = False
    answer = call_wsgi(quixote.get_wsgi_app(), env)

    assert answer.status == 500
    assert "is for one process" in site.log.getvalue()
    assert site.visit(increment).status == 200


@pytest.mark.parametrize(
    ("sessions", "kind", "words"),
    [
        (SessionManager(CookieStore(["8f1d2c3b4a5968778695a4b3c2d1e0f1a"])), Plain, "in cookies"),
        (MemoryStore(), Plain, "must be a sojourn.SessionManager"),
        (SessionManager(), type("Dict", (dict,), {}), "derive it from collections.UserDict"),
    ],
)
def test_what_cannot_work_is_refused(sessions: Any, kind: type[Any], words: str) -> None:
    """When it is made, and not at some request."""
    with pytest.raises(ConfigurationError, match=words):
        SessionStore(sessions, kind)


# A foreign store behind our sessions.


@pytest.mark.parametrize("kind", [PickleStore, ShelfStore, TransactionStore])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_foreign_store_keeps_the_contract(kind: Any, check: Any) -> None:
    """The whole contract of a store of ours, threads included."""
    run_check(check, ForeignStore(kind()))


def test_real_stores_of_session3(session3: Any, tmp_path: Path) -> None:
    """Its directory and its shelf, unchanged: sessions are kept, merged, and ended for good."""
    directory = importlib.import_module("session3.store.DirectorySessionStore")
    shelf = importlib.import_module("session3.store.ShelveSessionStore")
    (tmp_path / "d").mkdir()
    for store in (
        directory.DirectorySessionStore(str(tmp_path / "d")),
        shelf.ShelveSessionStore(str(tmp_path / "shelf")),
    ):
        sessions = SessionManager(ForeignStore(store))
        session = sessions.session()
        session["counter"] = 1
        token = sessions.commit(session).token
        cookie = f"id={token}"
        one, other = sessions.session(cookie), sessions.session(cookie)
        one.add("counter")
        other.add("counter")
        sessions.commit(one)
        sessions.commit(other)
        assert sessions.session(cookie)["counter"] == 3
        sessions.end(session.sid)
        assert sessions.session(cookie).is_new
        assert not sessions.store.promises.lists
        assert sessions.sweep().ended == 0
        with pytest.raises(ConfigurationError, match=r"iter_sessions\(\)"):
            sessions.count()


def test_our_manager_over_a_foreign_store(make_site: Callable[..., Any]) -> None:
    """Quixote, our manager, and a store that somebody wrote for Session3."""
    site = make_site(store=ForeignStore(ShelfStore()))

    def log_in() -> str:
        quixote.get_session().set_user("alice")
        return ""

    site.visit(log_in)
    assert site.visit(lambda: quixote.get_session().user).body == b"alice"
    site.sessions.end_all("alice")
    assert site.visit(lambda: str(quixote.get_session().user)).body == b"None"


def test_what_a_foreign_store_has_from_before_is_not_ours(session3: Any) -> None:
    """It is not listed, and does no harm."""
    store = PickleStore()
    store.save_session(Plain("abcdefghijk"))
    foreign = ForeignStore(store)
    record = new_record(1000.0)
    foreign.create(record)

    assert foreign.list() == [record]
    assert foreign.count() == 1
    assert foreign.due(0.0, 60.0) == []


def test_damage_in_a_foreign_store(caplog: pytest.LogCaptureFixture) -> None:
    """Cut, flipped or foreign: damaged for a visitor, passed over in lists, removed by an end."""
    store = PickleStore()
    foreign = ForeignStore(store)
    good = new_record(1000.0)
    foreign.create(good)
    records = [new_record(1000.0) for _ in range(5)]
    for record in records:
        foreign.create(record)
    sids = [record.sid for record in records]
    store.table[sids[0]] = b""
    store.table[sids[1]] = store.table[sids[1]][:40]
    store.table[sids[2]] = pickle.dumps({"id": sids[2]})
    flipped = pickle.loads(store.table[sids[3]])
    flipped.record = flipped.record[:30] + b"\xff" + flipped.record[31:]
    store.table[sids[3]] = pickle.dumps(flipped)
    flipped.record = "text"
    flipped.id = sids[4]
    store.table[sids[4]] = pickle.dumps(flipped)

    for sid in sids:
        with pytest.raises(DamagedRecord):
            foreign.load(sid)
    assert foreign.list() == [good]
    assert foreign.due(10_000.0, 60.0)[0].sid == good.sid
    for sid, record in zip(sids, records, strict=True):
        assert not foreign.create(record)
        assert foreign.delete(sid, Ended(ENDED, "damaged", 1.0, 2.0))
        assert foreign.load(sid) is None


def test_a_foreign_store_that_does_not_tell_cases_apart() -> None:
    """As a database may compare: another sid than that asked for is nobody's."""

    class Caseless(PickleStore):
        def load_session(self, id: str, default: Any = None) -> Any:
            return super().load_session(id.lower(), default)

        def save_session(self, session: Any) -> None:
            self.table[session.id.lower()] = pickle.dumps(session)

    foreign = ForeignStore(Caseless())
    record = new_record(1.0, sid="aB" * 10 + "CA")
    foreign.create(record)

    assert foreign.load(record.sid) == record
    assert foreign.load(record.sid.swapcase()[:-1] + "A") is None


def test_a_foreign_store_that_fails_is_not_there() -> None:
    """Nothing is reported as done; the message has the store, the method and the error."""

    class Down(PickleStore):
        def load_session(self, id: str, default: Any = None) -> Any:
            raise ConnectionError("no route")

    foreign = ForeignStore(Down())
    with pytest.raises(StoreUnavailable, match=r"Down.load_session\(\) failed: .*no route"):
        foreign.load(new_record(1.0).sid)


def test_a_foreign_store_with_a_list_that_is_none() -> None:
    """It fails as a store that is not there does."""

    class Odd(PickleStore):
        def iter_sessions(self) -> Any:
            return [1, 2]

    with pytest.raises(StoreUnavailable, match="failed: TypeError"):
        ForeignStore(Odd()).list()


def test_a_foreign_store_is_used_by_one_thread_at_a_time() -> None:
    """And who waits too long is told."""
    inside = threading.Event()
    go_on = threading.Event()

    class Slow(PickleStore):
        def load_session(self, id: str, default: Any = None) -> Any:
            inside.set()
            go_on.wait(10)
            return default

    foreign = ForeignStore(Slow(), lock_timeout=0.05)
    thread = threading.Thread(target=foreign.load, args=[new_record(1.0).sid])
    thread.start()
    inside.wait(10)
    try:
        with pytest.raises(StoreUnavailable, match="another thread has used Slow"):
            foreign.load(new_record(1.0).sid)
    finally:
        go_on.set()
        thread.join()


ADDS = """
import sys
from pathlib import Path
from sojourn import SessionManager
from sojourn.web.quixote.stores import ForeignStore

class Files:
    is_multiprocess_safe = True
    def __init__(self, path):
        self.path = Path(path)
    def load_session(self, id, default=None):
        import pickle
        try:
            return pickle.loads((self.path / id).read_bytes())
        except FileNotFoundError:
            return default
    def save_session(self, session):
        import pickle
        (self.path / session.id).write_bytes(pickle.dumps(session))
    def delete_session(self, session):
        (self.path / session.id).unlink()

sessions = SessionManager(ForeignStore(Files(sys.argv[1]), locks=sys.argv[2]))
for _ in range(50):
    session = sessions.session(sys.argv[3])
    session.add("counter")
    sessions.commit(session)
"""


def test_processes_share_a_foreign_store_under_a_lock(tmp_path: Path) -> None:
    """Four of them add to one session through a store with no lock of its own: none is lost."""
    folders = [tmp_path / "files", tmp_path / "locks"]
    for folder in folders:
        folder.mkdir()
    scope: dict[str, Any] = {}
    with contextlib.suppress(IndexError):
        exec(ADDS.partition("sessions =")[0], scope)
    sessions = SessionManager(ForeignStore(scope["Files"](folders[0]), locks=folders[1]))
    session = sessions.session()
    session["counter"] = 0
    cookie = f"id={sessions.commit(session).token}"
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    command = [sys.executable, "-c", ADDS, *map(str, folders), cookie]
    children = [
        subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}) for _ in range(4)
    ]

    assert [child.wait(60) for child in children] == [0] * 4
    assert sessions.session(cookie)["counter"] == 200


@pytest.mark.parametrize(
    ("store", "how", "words"),
    [
        (object(), {}, r"object has no method load_session\(\); object has no method save"),
        (PickleStore(), {"locks": "."}, "is not safe for several processes"),
        (TransactionStore(), {"locks": "/nowhere/at/all"}, "must be an existing folder"),
    ],
)
def test_foreign_stores_that_cannot_work(store: Any, how: Any, words: str) -> None:
    """All faults at once."""
    with pytest.raises(ConfigurationError, match=words):
        ForeignStore(store, **how)


def test_a_store_without_a_list_says_so() -> None:
    """To find the sessions of a user it would have to be asked for all."""
    foreign = ForeignStore(NoListStore())
    foreign.create(new_record(1.0, user="alice", status=LIVE))

    assert not foreign.promises.lists
    assert foreign.due(1e9, 60.0) == []
    with pytest.raises(ConfigurationError, match="NoListStore cannot list its sessions"):
        SessionManager(foreign).end_all("alice")
