"""From Session3's directory to ours: nobody is logged out, and the old cookies are renewed once."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import quixote
from click.testing import CliRunner
from quixote.publish import Publisher

from sojourn.cli.commands import cli
from sojourn.stores import open_store
from sojourn.testing import Clock
from sojourn.web.quixote import DictSession, Session
from sojourn.web.quixote.stores import SessionStore
from sojourn.web.session3 import token_of_id

from ..kit import Answer, call_wsgi, environ
from .conftest import Root
from .fetched import session3 as session3
from .fetched import session3_path as session3_path
from .old_files import DICT_SESSION, new_id, write_session

Page = Callable[[], Any]


class Visitor(Session):
    counter = 0


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "old"
    made.mkdir()
    return made


@pytest.fixture
def take_over(
    directory: Path, tmp_path: Path, make_site: Callable[..., Any]
) -> Iterator[Callable[..., Any]]:
    """Run the command on the directory, and give a site on what came of it."""
    url = f"sqlite:///{tmp_path}/new.db"
    stores = []
    # The command has no other clock than that of this machine.
    clock = Clock(time.time())

    def run(session_class: type[Session] = Visitor, **settings: Any) -> Any:
        done = CliRunner().invoke(cli, ["import", "session3", str(directory), "--store", url])
        assert done.exit_code == 0, done.output
        stores.append(open_store(url))
        return make_site(session_class, stores[0], clock=clock, **settings)

    yield run
    for store in stores:
        store.close()


def show() -> str:
    session = quixote.get_session()
    return f"{session.user} {session.counter}"


def old(session_id: str, quoted: bool = True) -> str:
    """The cookie of Session3, in quotes as Quixote sets it."""
    return f'QX_session="{session_id}"' if quoted else f"QX_session={session_id}"


def test_nobody_is_logged_out(directory: Path, take_over: Callable[..., Any]) -> None:
    """Each visitor is who he was, and gets a full token in the place of the old cookie."""
    ids = [write_session(directory, user=f"user{n}", counter=n) for n in range(40)]
    site = take_over()
    for number, session_id in enumerate(ids):
        answer = site.request(show, cookie=old(session_id, quoted=bool(number % 2)))
        assert (answer.status, answer.body) == (200, f"user{number} {number}".encode())
        assert len(answer.token) == 66
        (expired,) = [line for line in answer.all("Set-Cookie") if line.startswith("QX_session")]
        assert "max-age=0" in expired
        again = site.request(show, cookie=f"id={answer.token}")
        assert (again.body, again.token) == (answer.body, "")


def test_the_old_cookie_is_good_once(directory: Path, take_over: Callable[..., Any]) -> None:
    """Its 64 bits open nothing ten seconds after the visitor has come with it."""
    session_id = write_session(directory, user="alice")
    site = take_over()
    token = site.request(show, cookie=old(session_id)).token

    assert site.request(show, cookie=old(session_id)).body == b"alice 0"
    site.clock.advance(11)
    assert site.request(show, cookie=old(session_id)).body == b"None 0"
    assert site.request(show, cookie=f"id={token}").body == b"alice 0"
    # Beside the new one it is not looked at, wherever the browser has it from.
    both = f"{old(session_id)}; id={token}"
    assert site.request(show, cookie=both).body == b"alice 0"


def test_a_page_that_does_not_look_takes_nothing_over(
    directory: Path, take_over: Callable[..., Any]
) -> None:
    """The old cookie stays good for the next one that does."""
    session_id = write_session(directory, user="alice")
    site = take_over()
    answer = site.request(lambda: "static", cookie=old(session_id))

    assert answer.all("Set-Cookie") == []
    assert site.request(show, cookie=old(session_id)).body == b"alice 0"


def test_many_requests_of_one_page(directory: Path, take_over: Callable[..., Any]) -> None:
    """A browser asks for much at once: all are answered, and one of them brings the new cookie."""
    session_id = write_session(directory, user="alice")
    site = take_over()
    barrier = threading.Barrier(6)
    answers: list[Answer] = []

    def page() -> str:
        text = show()
        barrier.wait(10)
        return text

    site.root.page = page
    app = quixote.get_wsgi_app()

    def get() -> None:
        answers.append(call_wsgi(app, environ(cookie=old(session_id), **{"wsgi.threads": 6})))

    threads = [threading.Thread(target=get) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [answer.body for answer in answers] == [b"alice 0"] * 6
    (token,) = [answer.token for answer in answers if answer.token]
    assert site.request(show, cookie=f"id={token}").body == b"alice 0"


def test_what_an_old_session_can_do(directory: Path, take_over: Callable[..., Any]) -> None:
    """It is changed, logged out and ended like any other; an ended one stays ended."""
    session_id = write_session(directory, user="alice", cart=["apple"])
    other = write_session(directory, user="alice")
    site = take_over()

    def put() -> str:
        quixote.get_session().cart.append("pear")
        return ""

    site.visit(put, cookie=old(session_id))
    assert site.visit(lambda: repr(quixote.get_session().cart)).body == b"['apple', 'pear']"
    assert len(site.sessions.of_user("alice")) == 2

    def leave() -> str:
        quixote.get_session_manager().expire_session()
        return ""

    site.visit(leave, cookie=old(other))
    assert site.request(show, cookie=old(other)).body == b"None 0"
    site.sessions.end_all("alice")
    assert site.visit(show).body == b"None 0"


def test_a_login_with_an_old_cookie(directory: Path, take_over: Callable[..., Any]) -> None:
    """As with any cookie from before a login: it is dead with the commit."""
    session_id = write_session(directory, user=None, counter=3)
    site = take_over()

    def log_in() -> str:
        quixote.get_session().set_user("alice")
        return ""

    site.visit(log_in, cookie=old(session_id))
    assert site.visit(show).body == b"alice 3"
    assert site.request(show, cookie=old(session_id)).body == b"None 0"


def test_mappings(directory: Path, take_over: Callable[..., Any]) -> None:
    """Keys and attributes of Session3's DictSession are those of ours."""
    data = {"theme": "dark"}
    session_id = write_session(directory, name=DICT_SESSION, user="alice", data=data, size=7)
    site = take_over(DictSession)

    def look() -> str:
        session = quixote.get_session()
        return f"{dict(session)} {session.size} {session.user}"

    assert site.request(look, cookie=old(session_id)).body == b"{'theme': 'dark'} 7 alice"


@pytest.mark.parametrize(
    "value", ["", "unknown_one", "x" * 12, "../abcdefgh", "/dev/nullll", "a\0bcdefghij", "é" * 11]
)
def test_old_cookies_of_nobody(directory: Path, take_over: Callable[..., Any], value: str) -> None:
    """They are nobody's, whatever they are; and no session is made under such an id."""
    write_session(directory, user="alice")
    site = take_over()

    def count() -> str:
        quixote.get_session().set_user("eve")
        return ""

    assert site.request(show, cookie=f"QX_session={value}").body == b"None 0"
    answer = site.request(count, cookie=f"QX_session={value}")
    token = token_of_id(value)
    assert len(answer.token) == 66
    assert token is None or site.sessions.find(token.sid) is None


def test_files_that_session3_wrote(
    session3: Any, directory: Path, take_over: Callable[..., Any]
) -> None:
    """Session3 itself, with its manager and its directory; then ours, with the same browser."""
    store = importlib.import_module("session3.store.DirectorySessionStore")
    manager = session3.SessionManager(store.DirectorySessionStore(str(directory)))
    root = Root()
    Publisher(root, session_manager=manager)

    def begin() -> str:
        session = quixote.get_session()
        session.set_user("alice")
        session.counter = 5
        return str(session.create_form_token())

    root.page = begin
    env = environ()
    env["wsgi.multithread"] = False
    answer = call_wsgi(quixote.get_wsgi_app(), env)
    (cookie,) = answer.all("Set-Cookie")
    quixote.cleanup()

    site = take_over()
    found = site.request(show, cookie=cookie.partition(";")[0])
    assert found.body == b"alice 5"
    assert len(found.token) == 66


def test_session3s_manager_goes_on_over_our_store(
    session3: Any, directory: Path, take_over: Callable[..., Any]
) -> None:
    """The first half of a move: its manager and its cookies, our store; then our manager."""
    session_id = write_session(directory, user="alice", counter=1)
    site = take_over()
    classic = SessionStore(site.sessions, session3.Session)
    session = classic.load_session(session_id)

    assert (session.user, session.counter) == ("alice", 1)
    assert session.get_remote_address() == "192.0.2.7"
    session.counter += 1
    classic.save_session(session)
    assert site.request(show, cookie=old(session_id)).body == b"alice 2"


def test_another_name_of_the_cookie(
    directory: Path, tmp_path: Path, take_over: Callable[..., Any]
) -> None:
    """The one that Quixote was configured with."""
    session_id = write_session(directory, user="alice")
    site = take_over(config={"session_cookie_name": "shop"})

    assert site.request(show, cookie=f"shop={session_id}").body == b"alice 0"
    assert site.request(show, cookie=f"QX_session={new_id()}").body == b"None 0"
