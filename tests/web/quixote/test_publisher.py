"""The publisher for threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quixote
from quixote.publish import Publisher
from quixote.session import BaseSessionManager
from quixote.session import Session as QuixoteSession

from sojourn import SessionManager
from sojourn.errors import ConfigurationError
from sojourn.stores.memory import MemoryStore
from sojourn.web import quixote as ours
from sojourn.web.quixote import ForeignStore, SessionStore, ThreadSafePublisher

from .conftest import Root, Site
from .foreign import PickleStore, ShelfStore

MakeSite = Callable[..., Site]


def test_each_thread_has_its_own_request(site: Site) -> None:
    """Eight requests at once, each asking for all that Quixote finds by the current request."""
    together = threading.Barrier(8)
    answers: dict[int, bytes] = {}

    def page() -> str:
        before = quixote.get_param("n"), quixote.get_session(), quixote.get_response()
        together.wait(10)
        quixote.get_session().set_user(f"user{quixote.get_param('n')}")
        together.wait(10)
        after = quixote.get_param("n"), quixote.get_session(), quixote.get_response()
        assert all(one is other for one, other in zip(before, after, strict=True))
        return f"{before[0]} {quixote.get_user()} {quixote.get_path()}"

    site.root.page = page

    def ask(number: int) -> None:
        answer = site.request(page, cookie="", QUERY_STRING=f"n={number}", path=f"/{number}")
        answers[number] = answer.body

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert answers == {n: f"{n} user{n} /{n}".encode() for n in range(8)}
    assert sorted(session.user for session in site.manager) == [f"user{n}" for n in range(8)]


def test_a_page_that_ends_the_thread(make_site: MakeSite) -> None:
    """Quixote lets SystemExit through; nothing of the request is left, its lock least of all."""
    site = make_site(exclusive=True)
    site.visit(lambda: quixote.get_session().set_user("ann") or "")

    def page() -> str:
        quixote.get_session().colour = "red"
        raise SystemExit

    with pytest.raises(SystemExit) as ended:
        site.request(page)

    # The error is held, and with it all that the page had.
    assert ended.value is not None
    assert quixote.get_publisher().get_request() is None
    session = site.sessions.find(next(iter(site.manager)).id)
    with site.sessions.exclusive(session, wait=0):
        assert dict(session) == {}


def test_nothing_outside_of_a_request(site: Site) -> None:
    """A thread that serves none has none, also while another one does."""
    seen: list[Any] = []

    def page() -> str:
        other = threading.Thread(target=lambda: seen.append(quixote.get_publisher().get_request()))
        other.start()
        other.join(10)
        return "done"

    site.visit(page)
    seen.append(quixote.get_publisher().get_request())

    assert seen == [None, None]


def test_quixotes_own(make_site: MakeSite) -> None:
    """Our manager serves Quixote's publisher as well, where there is one thread."""
    site = make_site(publisher=Publisher)

    site.visit(lambda: quixote.get_session().set_user("ann") or "")
    assert site.visit(lambda: quixote.get_user()).body == b"ann"
    # Or ours would be for nothing.
    with pytest.raises(AssertionError, match="not thread safe"):
        site.visit(lambda: "", **{"wsgi.multithread": True})
    assert ThreadSafePublisher.is_thread_safe


def manager_of(kind: str, store: Any) -> Any:
    sessions = SessionManager(store)
    if kind == "ours":
        return ours.SessionManager(sessions)
    return BaseSessionManager(QuixoteSession, SessionStore(sessions, QuixoteSession))


@pytest.mark.parametrize("kind", ["ours", "Quixote's over our SessionStore"])
def test_a_store_for_one_thread_is_refused_before_any_request(kind: str) -> None:
    """With what to do; then another publisher can be made, and serve it with one thread."""
    manager = manager_of(kind, ForeignStore(PickleStore()))

    with pytest.raises(ConfigurationError, match=r"ForeignStore is not safe.*quixote\.publish\."):
        ThreadSafePublisher(Root(), session_manager=manager)
    assert quixote.get_publisher() is None
    assert Publisher(Root(), session_manager=manager).session_manager is manager


@pytest.mark.parametrize("kind", ["ours", "Quixote's over our SessionStore"])
@pytest.mark.parametrize("store", [MemoryStore(), ForeignStore(ShelfStore())])
def test_stores_for_threads_are_taken(kind: str, store: Any) -> None:
    """Those of ours, and foreign ones that say so."""
    manager = manager_of(kind, store)

    assert ThreadSafePublisher(Root(), session_manager=manager).session_manager is manager


def test_no_store_is_opened_before_the_first_request(tmp_path: Path) -> None:
    """A process that serves nothing, or forks those that do, connects to none."""
    ThreadSafePublisher(Root(), session_manager=manager_of("ours", f"sqlite:///{tmp_path}/s.db"))

    assert not list(tmp_path.iterdir())
    quixote.cleanup()
    # And a publisher without sessions is none of its business.
    assert ThreadSafePublisher(Root()) is quixote.get_publisher()
