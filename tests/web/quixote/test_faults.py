"""What was seen to go wrong with sessions in Quixote, each once: here it does not.

All on a directory, the one store that Quixote's users had; pages are reached as over HTTP.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import pickle
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import quixote
from quixote.errors import AccessError, TraversalError

from sojourn.core.record import MARK
from sojourn.stores.directory import DirectoryStore
from sojourn.web.quixote import DictSession, Session
from sojourn.web.quixote.stores import SessionStore

from ..serving import waitress
from .old_files import RunsACommand

Page = Callable[[], Any]


class Visitor(Session):
    """As in Session3's demo."""

    counter = 0

    def has_info(self) -> bool:
        return self.counter > 0 or super().has_info()


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "sessions")


@pytest.fixture
def site(make_site: Callable[..., Any], store: DirectoryStore) -> Any:
    return make_site(Visitor, store)


def increment() -> str:
    quixote.get_session().add("counter")
    return "ok"


def show() -> str:
    session = quixote.get_session()
    return f"{session.user} {session.counter}"


def log_out() -> str:
    quixote.get_session_manager().expire_session()
    return "gone"


def log_in() -> str:
    quixote.get_session().set_user("alice")
    return "alice"


def files(store: DirectoryStore) -> list[Path]:
    return [path for path in Path(store._root, "records").rglob("*") if path.is_file()]


@contextlib.contextmanager
def served(site: Any, page: Page, threads: int = 8) -> Iterator[Callable[..., Any]]:
    """The page behind a server with threads; yields what makes a request: (status, body)."""
    site.root.page = page
    with waitress(quixote.get_wsgi_app(), threads) as port:

        def get(cookie: str = "", path: str = "/") -> tuple[int, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            with contextlib.closing(connection):
                connection.request("GET", path, headers={"Cookie": cookie} if cookie else {})
                answer = connection.getresponse()
                return answer.status, answer.read()

        yield get


def together(number: int, job: Callable[[int], Any]) -> list[Any]:
    """Run a job in so many threads that begin at once; what they returned."""
    barrier = threading.Barrier(number)
    answers: list[Any] = []

    def run(which: int) -> None:
        barrier.wait(10)
        answers.append(job(which))

    threads = [threading.Thread(target=run, args=[which]) for which in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == number
    return answers


@pytest.mark.parametrize("name", ["id", "QX_session"])
def test_01_a_cookie_that_names_a_device(site: Any, tmp_path: Path, name: str) -> None:
    """Whoever sends it is a new visitor, at once; and so is nobody else held up."""
    paths = ["/dev/null", "/dev/zero", "/proc/self/environ", "/dev/tty"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        paths += [str(tmp_path / "fifo"), "../fifo"]
    for path in paths:
        began = time.monotonic()
        answer = site.request(show, cookie=f"{name}={path}")
        assert (answer.status, answer.body) == (200, b"None 0")
        assert time.monotonic() - began < 5
    site.visit(increment)
    assert site.visit(show).body == b"None 1"


@pytest.mark.parametrize("name", ["id", "QX_session"])
def test_02_a_cookie_that_names_a_file_of_an_attacker(
    site: Any, store: DirectoryStore, tmp_path: Path, name: str
) -> None:
    """By whatever path, and wherever it lies: nothing that is in it runs."""
    made = tmp_path / "made"
    evil = pickle.dumps(RunsACommand(made))
    site.visit(increment)
    (tmp_path / "upload").write_bytes(evil)
    root = Path(store._root)
    for place in ("upload", "evil_evil_e", "records/evil_evil_e", f"records/{'A' * 22}"):
        path = root / place
        path.write_bytes(evil)
        for value in (str(path), place, f"../{place}", f"../sessions/{place}", path.name):
            assert site.request(show, cookie=f"{name}={value}").body == b"None 0"
    # In the place of a session: damaged, and a new visitor.
    _file_of(store, site.cookie).write_bytes(evil)
    assert site.visit(show).body == b"None 0"
    assert not made.exists()


def test_03_what_is_there_cannot_be_asked(site: Any) -> None:
    """One answer for a file that is there, one that is not, a NUL; and no second name of one's."""
    site.visit(increment)
    token = site.cookie.partition("=")[2]
    sid = token.partition(".")[0]
    answers = {
        (answer.status, answer.body, tuple(answer.all("Set-Cookie")))
        for value in [
            *("/etc/passwd", "/no/such/file", "a\0b", "\0", "..", ".", "%2e%2e/x"),
            *(f"./{token}", f"../sessions/{token}", f"{token}\0", f"{token}/", f" .{token}"),
            *(sid, f"./{sid}", f"{sid}.{'A' * 43}"),
        ]
        for answer in [site.request(show, cookie=f"id={value}")]
    }
    assert answers == {(200, b"None 0", ())}


def test_04_no_update_is_lost(site: Any) -> None:
    """Eight clients on one session, and a page that takes 10 ms."""
    site.visit(increment)

    def work() -> str:
        session = quixote.get_session()
        session.add("counter")
        time.sleep(0.01)
        return "ok"

    with served(site, work) as get:
        answers = together(8, lambda _: [get(site.cookie) for _ in range(20)])
    assert answers == [[(200, b"ok")] * 20] * 8
    assert site.visit(show).body == b"None 161"


def test_05_a_reader_meets_no_half_written_session(site: Any) -> None:
    """While others write all the time, each look finds it, whole; none waits for anything."""
    site.visit(increment)
    cookie, sessions = site.cookie, site.sessions
    over = threading.Event()

    def write(_: int) -> None:
        while not over.is_set():
            session = sessions.session(cookie)
            session["padding"] = "x" * 3000
            session.add("counter")
            sessions.commit(session)

    seen: list[int] = []
    with contextlib.ExitStack() as stack:
        threads = [threading.Thread(target=write, args=[0]) for _ in range(2)]
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(over.set)
        end = time.monotonic() + 60
        while (len(seen) < 1000 or seen[-1] < 100) and time.monotonic() < end:
            session = sessions.session(cookie)
            seen.append(session["counter"])
    assert seen == sorted(seen)
    assert seen[-1] >= 100


ADDS = """
import sys
from sojourn import SessionManager
sessions = SessionManager(sys.argv[1])
for number in range(100):
    session = sessions.session(sys.argv[2])
    session.add("counter")
    session[sys.argv[3]] = "x" * 64_000 + str(number)
    sessions.commit(session)
"""


def test_06_processes_with_large_sessions(tmp_path: Path) -> None:
    """Four of them, 64 KB: no error and nothing lost."""
    from sojourn import SessionManager

    url = f"directory:///{tmp_path}/sessions"
    sessions = SessionManager(url)
    session = sessions.session()
    session["counter"] = 0
    cookie = f"id={sessions.commit(session).token}"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    children = [
        subprocess.Popen([sys.executable, "-c", ADDS, url, cookie, name], env=env)
        for name in ("a", "b", "c", "d")
    ]

    assert [child.wait(60) for child in children] == [0] * 4
    found = sessions.session(cookie)
    assert found["counter"] == 400
    assert all(found[name].endswith("x99") for name in "abcd")


# 7, kill -9 while saving, is test_kills.py.


@pytest.mark.parametrize("error", [None, TraversalError, AccessError])
def test_08_a_value_that_cannot_be_kept(site: Any, store: DirectoryStore, error: Any) -> None:
    """An error that names it; the session stays whole; a first one leaves no file behind."""

    def spoil() -> str:
        session = quixote.get_session()
        session.counter += 1
        session.cart = [threading.Lock()]
        if error is not None:
            raise error
        return "ok"

    assert site.request(spoil, cookie="").status == 500
    assert files(store) == []
    site.visit(increment)
    assert site.visit(spoil).status == 500
    assert "session['cart'] is or holds a _thread.lock" in site.log.getvalue()
    assert site.visit(show).body == b"None 1"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"\xff" * len(whole),
        lambda whole: pickle.dumps(["another", "type"]),
        lambda whole: b"\0" * len(whole),
        lambda whole: whole[:-20] + bytes([whole[-20] ^ 4]) + whole[-19:],
    ],
    ids=["empty", "half", "garbage", "wrong type", "zeros", "one bit"],
)
def test_09_a_damaged_file(
    site: Any, store: DirectoryStore, spoil: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Costs its visitor a fresh session, once, and the log a line; nobody else anything."""
    site.visit(increment)
    other = site.cookie
    site.cookie = ""
    site.visit(increment)
    mine = _file_of(store, site.cookie)
    mine.write_bytes(spoil(mine.read_bytes()))

    answer = site.visit(increment)
    assert answer.status == 200
    assert site.visit(show).body == b"None 1"
    assert len([one for one in caplog.records if "damaged" in one.getMessage()]) == 1
    assert site.request(show, cookie=other).body == b"None 1"


def _file_of(store: DirectoryStore, cookie: str) -> Path:
    return Path(store._path(cookie.partition("=")[2].partition(".")[0]))


@pytest.mark.parametrize("again", range(20))
def test_10_a_logout_while_another_request_is_slow(site: Any, again: int) -> None:
    """It is under way when the user logs out, and writes after that: nobody is logged in again."""
    site.visit(log_in)
    cookie = site.cookie
    slow, gone = threading.Event(), threading.Event()

    def page() -> str:
        if quixote.get_request().get_path() == "/logout":
            return log_out()
        quixote.get_session().counter += 1
        slow.set()
        gone.wait(10)
        return "late"

    answers: list[Any] = []
    with served(site, page, 2) as get:
        thread = threading.Thread(target=lambda: answers.append(get(cookie)))
        thread.start()
        slow.wait(10)
        assert get(cookie, "/logout") == (200, b"gone")
        gone.set()
        thread.join()
    assert answers == [(200, b"late")]
    assert site.request(show, cookie=cookie).body == b"None 0"
    assert site.sessions.count() == 0


def test_11_logouts_at_once(site: Any) -> None:
    """Four of one session: each gets its page."""
    cookies = []
    for _ in range(25):
        site.cookie = ""
        site.visit(log_in)
        cookies.append(site.cookie)
    with served(site, log_out, 4) as get:
        for cookie in cookies:
            assert together(4, lambda _, cookie=cookie: get(cookie)) == [(200, b"gone")] * 4  # type: ignore[misc]
    assert site.sessions.count() == 0


@pytest.mark.parametrize("error", [TraversalError, AccessError])
def test_12_a_logout_that_ends_in_an_error_page(site: Any, error: type[Exception]) -> None:
    """The server forgets the session, and the browser its cookie."""

    def page() -> str:
        log_out()
        raise error

    site.visit(log_in)
    cookie = site.cookie
    answer = site.visit(page)
    assert answer.status in (403, 404)
    assert "Max-Age=0" in (answer.one("Set-Cookie") or "")
    assert site.request(show, cookie=cookie).body == b"None 0"


def test_13_a_login_renews_the_secret(site: Any) -> None:
    """Whoever planted or read the cookie from before it has nothing; nor has one made up."""
    site.visit(increment)
    planted = site.cookie
    site.visit(log_in)

    assert site.cookie != planted
    assert site.visit(show).body == b"alice 1"
    assert site.request(show, cookie=planted).body == b"None 0"
    made_up = f"id={'A' * 22}.{'A' * 43}"
    answer = site.request(increment, cookie=made_up)
    assert answer.token
    assert answer.token not in made_up


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_14_who_lists_the_directory_is_nobody(site: Any, store: DirectoryStore) -> None:
    """Names and contents of files are no tokens; and only the owner may look at all."""
    before = os.umask(0o022)
    try:
        site.visit(log_in)
    finally:
        os.umask(before)
    token = site.cookie.partition("=")[2]
    sid, _, secret = token.partition(".")
    for path in [Path(store._root), *Path(store._root).rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
        if path.is_file():
            assert secret.encode() not in path.read_bytes()
        for value in (path.name, sid, f"{sid}.{path.name}"):
            assert site.request(show, cookie=f"id={value}").body == b"None 0"


def test_15_a_form_of_an_anonymous_visitor(site: Any) -> None:
    """It can be sent."""
    token = site.visit(lambda: quixote.get_session().create_form_token()).body.decode()

    def send() -> str:
        session = quixote.get_session()
        known = session.has_form_token(token)
        session.remove_form_token(token)
        return f"{known} {session.has_form_token(token)}"

    assert site.visit(send).body == b"True False"


def test_16_what_quixotes_own_sessions_can_do(site: Any) -> None:
    """CSRF tokens, REMOTE_USER, and a manager that is gone through."""
    token = site.visit(lambda: quixote.get_session().get_csrf_token()).body.decode()
    sent = site.post(lambda: str(quixote.get_session().valid_csrf_token()), f"csrf_token={token}")
    assert sent.body == b"True"
    site.visit(log_in)
    assert site.visit(lambda: quixote.get_request().get_environ("REMOTE_USER")).body == b"alice"
    assert site.visit(
        lambda: " ".join(str(session.user) for session in quixote.get_session_manager())
    ).body == (b"alice")


def test_17_mappings(make_site: Callable[..., Any], store: DirectoryStore) -> None:
    """Keys without a user are kept, and so is a user without keys."""
    site = make_site(DictSession, store)

    def put() -> str:
        quixote.get_session()["colour"] = "red"
        return ""

    site.visit(put)
    assert site.cookie
    assert site.visit(lambda: quixote.get_session()["colour"]).body == b"red"
    site.cookie = ""
    site.visit(log_in)
    assert site.visit(lambda: str(quixote.get_user())).body == b"alice"


def test_18_deleting_old_sessions(site: Any, store: DirectoryStore) -> None:
    """Two at once beside logouts; a subdirectory, a foreign file: nothing stops it, those stay."""
    cookies = []
    for _ in range(40):
        site.cookie = ""
        site.visit(log_in)
        cookies.append(site.cookie)
    root = Path(store._root)
    (root / "a directory").mkdir()
    (root / "records" / "backup").mkdir()
    foreign = [root / "notes.txt", root / "records" / "notes.txt", root / "records/backup/x"]
    for path in foreign:
        path.write_text("by hand")
        os.utime(path, (0, 0))
    site.clock.advance(1800)
    classic = SessionStore(site.sessions, Visitor)

    def job(which: int) -> Any:
        if which < 2:
            return classic.delete_old_sessions(10)
        return [site.sessions.end(cookie[3:25], "user") for cookie in cookies[::3]]

    answers = together(3, job)
    assert classic.delete_old_sessions(10) == (0, 0)
    ended = sum(answer.count(True) if isinstance(answer, list) else answer[0] for answer in answers)
    assert ended == 40
    assert all(path.read_text() == "by hand" for path in foreign)


def test_19_visitors_who_only_look(site: Any, store: DirectoryStore) -> None:
    """They leave nothing, also where has_info is true; nor do robots; what is left is swept."""

    class Everybody(Session):
        def has_info(self) -> bool:
            return True

    site.manager.session_class = Everybody
    for _ in range(300):
        assert site.request(lambda: str(quixote.get_session().user), cookie="").token == ""

    def note() -> str:
        quixote.get_session().landed = "/"
        return ""

    for _ in range(30):
        site.request(note, cookie="", HTTP_USER_AGENT="Mozilla/5.0 (compatible; Googlebot/2.1)")
    assert files(store) == []
    for _ in range(30):
        site.request(note, cookie="")
    assert site.sessions.count() == 30
    site.clock.advance(3600 + 61)
    assert site.sessions.sweep().ended == 30
    site.clock.advance(86400 + 61)
    site.sessions.sweep()
    # But for the sweeper's own lock, which is one record whatever happens.
    assert {record.status for record in store.list(status=None)} <= {MARK}


def test_20_first_requests_of_one_browser_at_once(site: Any) -> None:
    """Looking makes no session; of those that write the browser keeps one, and the rest is swept.

    No server can know that they are of one browser: they came without a cookie.
    """
    with served(site, show, 4) as get:
        assert together(4, lambda _: get()) == [(200, b"None 0")] * 4
    assert site.sessions.count() == 0
    with served(site, increment, 4) as get:
        together(4, lambda _: get())
    assert {session.counter for session in site.manager} == {1}
    site.clock.advance(3600 + 61)
    assert site.sessions.sweep().ended == 4
