"""A Twisted process whose store stops, hangs, comes back, or sits behind a bad network."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sojourn.testing.proxy import Proxy
from tests.stores.servers_redis import Server as RedisServer
from tests.stores.servers_redis import redis_program
from tests.stores.servers_sql import PostgresqlServer, a_postgresql

from .processes import Browser, Page, Server, running

pytestmark = [pytest.mark.server, pytest.mark.slow]

_fixtures = (redis_program,)

TIMEOUT = 1.5
"""Seconds that the store is given for an answer."""
BOUND = 10.0
"""Seconds within which every request is answered, however many wait for a store that hangs."""
GAP = 1.0
"""Seconds that the reactor may be away: this machine has other work as well."""

SITE = '''
import gc
import os
import sys
import time
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import LoopingCall
from twisted.python.log import startLogging
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from sojourn import SessionManager
from sojourn.web.twisted import SessionSite
from sojourn.web.twisted.realm import realm_of

sessions = SessionManager(sys.argv[1])
held = []
gaps = [0.0, None]


def tick():
    now = reactor.seconds()
    if gaps[1] is not None:
        gaps[0] = max(gaps[0], now - gaps[1])
    gaps[1] = now


def later():
    waiting = Deferred()
    held.append(waiting)
    return waiting


class Api(Resource):
    isLeaf = True

    def render(self, request):
        made = getattr(self, request.path.decode().strip("/"))(request)
        if isinstance(made, bytes):
            return made
        ensureDeferred(made).addErrback(request.processingFailed)
        return NOT_DONE_YET

    def quiet(self, request):
        return b"ok"

    def add(self, request):
        return b"%d" % request.getSession().add("n")

    def read(self, request):
        return b"%d" % request.getSession().get("n", 0)

    def login(self, request):
        request.getSession().login("alice")
        return b"ok"

    async def hold(self, request):
        """Looks at the session, and changes it when it is told to."""
        session = request.getSession()
        session.get("n")
        await later()
        request.write(b"%d" % session.add("n"))
        request.finish()

    async def late(self, request):
        """Changes the session when its head has left."""
        session = request.getSession()
        session.get("n")
        request.write(b"one ")
        await later()
        session.add("n")
        request.write(b"two")
        request.finish()

    async def locked(self, request):
        session = await request.getSession().exclusive(wait=8, lease=4)
        if request.args.get(b"hold"):
            await later()
        request.write(b"%d" % session.add("n"))
        request.finish()

    def held(self, request):
        return b"%d" % len(held)

    def go(self, request):
        """Lets those go on that wait."""
        waiting, held[:] = held[:], []
        for one in waiting:
            reactor.callLater(0, one.callback, None)
        return b"ok"

    def gap(self, request):
        """The longest time that the reactor was away since it was last asked."""
        longest, gaps[0] = gaps[0], 0.0
        return b"%f" % longest

    def busy(self, request):
        """Keeps all of the reactor's threads, as slow WSGI applications do."""
        for _ in range(2):
            reactor.callInThread(time.sleep, 3)
        return b"ok"

    def port(self, request):
        return type(realm_of(sessions).port).__name__.encode()

    def live(self, request):
        return b"%d" % len(realm_of(sessions).live)

    def asked(self, request):
        """How many requests are under way, but for this one."""
        return b"%d" % (len(requests) - 1)

    def files(self, request):
        # psycopg's errors are in cycles with connections that never came to be.
        gc.collect()
        return b"%d" % len(os.listdir("/proc/self/fd"))


class Request(SessionSite.requestFactory):
    def process(self):
        requests.add(self)
        self.notifyFinish().addBoth(lambda _: requests.discard(self))
        super().process()


requests = set()
reactor.suggestThreadPoolSize(2)
startLogging(sys.stdout)
LoopingCall(tick).start(0.01)
site = SessionSite(Api(), sessions, Request)
reactor.listenTCP(0, site, interface="127.0.0.1")
reactor.run()
'''


class Bed:
    """A Twisted process, the proxy before its store, and the store's server."""

    def __init__(self, site: Server, proxy: Proxy, store: Any) -> None:
        self.site = site
        self.proxy = proxy
        self.store = store

    def restart(self, host: str) -> None:
        """Begin anew, with the store's host spelt otherwise."""
        self.site.command[-1] = self.site.command[-1].replace("127.0.0.1", host)
        self.site.restart()

    @property
    def many(self) -> int:
        """How many sessions are looked up at once: in threads, no more than there are."""
        return 6 if isinstance(self.store, PostgresqlServer) else 40

    def visitor(self) -> Browser:
        """A browser with a session in which `n` is 1."""
        browser = Browser(self.site)
        assert browser.body("/add") == b"1"
        return browser

    def asked(self, path: str) -> float:
        return float(Browser(self.site).body(path))

    def go(self) -> None:
        """Let those go on that wait."""
        assert Browser(self.site).body("/go") == b"ok"

    def until(self, path: str, wanted: float) -> None:
        end = time.monotonic() + 20
        while self.asked(path) != wanted:
            assert time.monotonic() < end, path
            time.sleep(0.02)

    def recovered(self, browser: Browser) -> int:
        """`n`, as soon as the session can be had again; nobody did anything to the process."""
        end = time.monotonic() + 20
        while True:
            page = browser.get("/read")
            if page.status == 200:
                return int(page.body)
            assert (page.status, page.all("Set-Cookie")) == (503, [])
            assert time.monotonic() < end, "it does not come back"
            time.sleep(0.05)

    def down(self) -> Any:
        """Let the server be gone for the time of a block."""

        @contextlib.contextmanager
        def gone() -> Iterator[None]:
            self.store.kill()
            try:
                yield
            finally:
                self.store.start()

        return gone()


@pytest.fixture(scope="module", params=["redis", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Any]:
    """A server of its own."""
    if request.param == "postgresql":
        with a_postgresql() as server:
            yield server
        return
    program = request.getfixturevalue("redis_program")
    folder = tmp_path_factory.mktemp("redis")
    made = RedisServer(program, folder, "--appendonly", "yes", "--appendfsync", "always")
    yield made
    made.end()


@pytest.fixture
def bed(store: Any, tmp_path: Path) -> Iterator[Bed]:
    """A process on that server, through a proxy."""
    (tmp_path / "serve_sessions.py").write_text(SITE)
    if isinstance(store, PostgresqlServer) and store.process is None:
        store.start()
    with Proxy(store.port) as proxy:
        if isinstance(store, PostgresqlServer):
            url = f"postgresql://sojourn@127.0.0.1:{proxy.port}/postgres?timeout={TIMEOUT}"
        else:
            url = f"redis://127.0.0.1:{proxy.port}?timeout={TIMEOUT}&connect_timeout={TIMEOUT}"
        with running([sys.executable, "serve_sessions.py", url], tmp_path) as site:
            yield Bed(site, proxy, store)


def at_once(number: int, ask: Any) -> list[tuple[Any, float]]:
    """Call it in so many threads; what each returned, and how long it took."""

    def timed(one: int) -> tuple[Any, float]:
        start = time.monotonic()
        return ask(one), time.monotonic() - start

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(timed, range(number)))


def refused(page: Page) -> bool:
    """Whether it is a 503 that leaves the visitor who he is."""
    return page.status == 503 and page.all("Set-Cookie") == []


def test_a_server_that_is_gone(bed: Bed) -> None:
    """Who has a session keeps it; who has none gets none; pages without one are served."""
    browser = bed.visitor()
    cookies = dict(browser.cookies)
    threads = isinstance(bed.store, PostgresqlServer)
    assert browser.body("/port") == (b"ThreadPort" if threads else b"DeferredPort")
    with bed.down():
        bed.asked("/gap")
        for path in ("/read", "/add", "/login", "/locked"):
            start = time.monotonic()
            assert refused(browser.get(path)), path
            assert time.monotonic() - start < BOUND
        stranger = Browser(bed.site)
        for path in ("/add", "/login"):
            assert refused(stranger.get(path)), path
        # There was nothing to load and nothing to write.
        assert stranger.body("/read") == b"0"
        assert browser.body("/quiet") == b"ok"
        assert bed.asked("/gap") < GAP
    assert browser.cookies == cookies
    assert bed.recovered(browser) == 1
    assert browser.body("/add") == b"2"
    assert bed.asked("/live") == 0


def test_a_server_that_hangs(bed: Bed) -> None:
    """Many requests wait for it no longer than their limit; others are served; it goes on after."""
    browser = bed.visitor()
    # One session in many windows, and many sessions: loads of one are shared.
    windows = [browser_of(bed, browser) for _ in range(12)]
    windows += [bed.visitor() for _ in range(bed.many)]
    quiet: list[float] = []
    with bed.store.hung():
        bed.asked("/gap")
        over = threading.Event()

        def others() -> None:
            while not over.is_set():
                start = time.monotonic()
                assert Browser(bed.site).body("/quiet") == b"ok"
                quiet.append(time.monotonic() - start)

        beside = threading.Thread(target=others)
        beside.start()
        try:
            pages = at_once(len(windows), lambda one: windows[one].get("/add"))
        finally:
            over.set()
            beside.join()
    assert all(refused(page) for page, _ in pages)
    assert max(seconds for _, seconds in pages) < BOUND
    assert max(quiet) < 2 * GAP
    assert bed.asked("/gap") < GAP
    # Of those none was written: none had been loaded.
    assert [bed.recovered(one) for one in windows] == [1] * len(windows)
    assert bed.asked("/live") == 0


def browser_of(bed: Bed, browser: Browser) -> Browser:
    """Another window of the same browser."""
    made = Browser(bed.site)
    made.cookies = dict(browser.cookies)
    return made


@pytest.mark.parametrize("fault", ["gone", "hangs", "silent", "refusing"])
@pytest.mark.parametrize("page", ["hold", "late"])
def test_a_commit_that_fails(bed: Bed, fault: str, page: str) -> None:
    """Before the head it is a 503; after it, it is logged; the session goes on with what it was."""
    browser = bed.visitor()
    faults = {
        "gone": bed.down,
        "hangs": bed.store.hung,
        "silent": bed.proxy.silence,
        "refusing": bed.proxy.refusing,
    }
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(browser.get, f"/{page}")
        bed.until("/held", 1)
        with faults[fault]():
            bed.asked("/gap")
            bed.go()
            start = time.monotonic()
            got = answer.result(30)
            assert time.monotonic() - start < BOUND
            assert bed.asked("/gap") < GAP
    if page == "hold":
        assert refused(got)
        assert "StoreUnavailable" in bed.site.log
    else:
        assert (got.status, got.body) == (200, b"one two")
        bed.site.says("what was changed is lost")
    # A write whose answer did not come may have been made, once.
    assert bed.recovered(browser) in ((1, 2) if fault in ("hangs", "silent") else (1,))
    bed.until("/live", 0)


def test_replies_that_break_off(bed: Bed) -> None:
    """Wherever a reply ends, a change is made once or not at all, and nobody is logged out."""
    browser = bed.visitor()
    cookies = dict(browser.cookies)
    sure, unsure = 1, 0
    for at in (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377):
        bed.proxy.reset_reply(at)
        page = browser.get("/add")
        bed.proxy.disarm()
        if page.status == 200:
            sure += 1
        else:
            assert refused(page)
            unsure += 1
        assert sure <= bed.recovered(browser) <= sure + unsure
        assert browser.cookies == cookies
    assert sure > 1
    assert bed.asked("/live") == 0


def test_cut_connections_under_load(bed: Bed) -> None:
    """Connections that are reset all the time cost some answers, no count and no session."""
    browser = bed.visitor()
    over = threading.Event()

    def cut() -> None:
        while not over.wait(0.05):
            bed.proxy.cut()

    bed.asked("/gap")
    cutting = threading.Thread(target=cut)
    cutting.start()
    try:
        pages = at_once(8, lambda one: [browser_of(bed, browser).get("/add") for _ in range(8)])
    finally:
        over.set()
        cutting.join()
    all_pages = [page for some, _ in pages for page in some]
    sure = sum(page.status == 200 for page in all_pages)
    assert all(page.status == 200 or refused(page) for page in all_pages)
    assert 1 + sure <= bed.recovered(browser) <= 1 + len(all_pages)
    assert bed.asked("/gap") < GAP


def test_a_slow_network(bed: Bed) -> None:
    """Requests wait for their own answers, not for those of others; the reactor for none."""
    browser = bed.visitor()
    others = [bed.visitor() for _ in range(6)]
    bed.proxy.latency = 0.15
    bed.asked("/gap")
    start = time.monotonic()
    pages = at_once(6, lambda one: others[one].body("/add"))
    assert [body for body, _ in pages] == [b"2"] * 6
    # A load and a commit each, and connections that have to be opened first.
    assert time.monotonic() - start < 4.0
    assert bed.asked("/gap") < GAP
    bed.proxy.latency = 0.0
    assert browser.body("/add") == b"2"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_new_connections_while_all_threads_are_busy(bed: Bed, host: str) -> None:
    """Applications that wait for a session in threads are not in the way of its store."""
    bed.restart(host)
    browser = bed.visitor()
    assert browser.body("/busy") == b"ok"
    bed.proxy.cut()
    start = time.monotonic()
    assert browser.body("/add") == b"2"
    assert time.monotonic() - start < 1.5


def test_a_pipeline_while_the_server_hangs(bed: Bed) -> None:
    """Requests of one connection are answered in their order, and it goes on to be of use."""
    browser = bed.visitor()
    cookie = f"Cookie: id={browser.cookies['id']}\r\n"

    def head(path: str, more: str = cookie) -> bytes:
        return f"GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode()

    with socket.create_connection(("127.0.0.1", bed.site.port), 20) as connection:
        with bed.store.hung():
            start = time.monotonic()
            connection.sendall(head("/add") + head("/quiet", "") + head("/read") + head("/quiet"))
            assert statuses(connection, 4) == [503, 200, 503, 200]
            assert time.monotonic() - start < BOUND
        bed.recovered(browser)
        connection.sendall(head("/read"))
        assert statuses(connection, 1) == [200]


def statuses(connection: socket.socket, number: int) -> list[int]:
    """Read so many answers."""
    found = []
    for _ in range(number):
        answer = http.client.HTTPResponse(connection)
        # It reads ahead; one byte at a time leaves the next answer to the next.
        answer.fp = connection.makefile("rb", buffering=0)  # type: ignore[assignment]
        answer.begin()
        answer.read()
        found.append(answer.status)
    return found


def test_clients_that_go_while_the_server_hangs(bed: Bed) -> None:
    """Their requests are let go of, and so are their sessions."""
    visitors = [bed.visitor() for _ in range(5)]
    with bed.store.hung():
        for visitor in visitors:
            cookie = f"Cookie: id={visitor.cookies['id']}\r\n"
            for path in ("/add", "/locked", "/login"):
                with socket.create_connection(("127.0.0.1", bed.site.port), 20) as connection:
                    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{cookie}\r\n".encode())
        bed.until("/asked", 0)
    assert [bed.recovered(visitor) for visitor in visitors] == [1] * 5
    bed.until("/live", 0)


@contextlib.contextmanager
def occupied(store: Any) -> Iterator[None]:
    """Let the server be there, and have no time for sessions: a lock, or a pause."""
    if isinstance(store, PostgresqlServer):
        import psycopg

        with psycopg.connect(store.url()) as connection:
            connection.execute("LOCK TABLE sojourn_sessions IN ACCESS EXCLUSIVE MODE")
            yield
        return
    store.ask("CLIENT", "PAUSE", "60000", "WRITE")
    yield
    store.ask("CLIENT", "UNPAUSE")


def test_a_server_that_has_no_time(bed: Bed) -> None:
    """A server that somebody else has locked is a store that does not answer; then it goes on."""
    browser = bed.visitor()
    with occupied(bed.store):
        bed.asked("/gap")
        pages = at_once(6, lambda one: browser_of(bed, browser).get("/add"))
        assert all(refused(page) and seconds < BOUND for page, seconds in pages)
        assert browser.body("/quiet") == b"ok"
        assert bed.asked("/gap") < GAP
    bed.recovered(browser)
    bed.until("/asked", 0)
    before = int(browser.body("/read"))
    # In a paused server writes wait, to be made when it goes on: each once, as it was asked for.
    assert 1 <= before <= 7
    assert browser.body("/add") == str(before + 1).encode()


def test_nothing_is_left_open(bed: Bed) -> None:
    """Faults of all kinds, again and again: connections and files are as many as before."""
    browser = bed.visitor()

    def faults() -> None:
        with bed.proxy.silence():
            assert refused(browser.get("/add"))
        with bed.proxy.refusing():
            assert refused(browser.get("/add"))
        bed.proxy.cut()
        with bed.store.hung():
            at_once(6, lambda one: visitors[one].get("/add"))
        bed.recovered(browser)
        at_once(16, lambda one: visitors[one].get("/add"))

    visitors = [bed.visitor() for _ in range(16)]
    faults()
    before, connections = bed.asked("/files"), clients(bed)
    for _ in range(2):
        faults()
    assert bed.asked("/files") <= before + 2
    assert clients(bed) <= connections + 2


def clients(bed: Bed) -> int:
    """How many connections the server has."""
    if isinstance(bed.store, PostgresqlServer):
        import psycopg

        with psycopg.connect(bed.store.url()) as connection:
            query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            row = connection.execute(query).fetchone()
            assert row is not None
            return int(row[0])
    return len(bed.store.ask("CLIENT", "LIST").splitlines())


def test_a_lock_that_cannot_be_given_back(bed: Bed) -> None:
    """It ends with its lease: who waits that long has it then, and nothing was written under it."""
    browser = bed.visitor()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(browser.get, "/locked?hold=1")
        bed.until("/held", 1)
        with bed.proxy.silence():
            bed.go()
            assert refused(answer.result(30))
    bed.recovered(browser)
    start = time.monotonic()
    page = browser.get("/locked")
    assert page.status == 200
    assert time.monotonic() - start < 6.0
    assert browser.body("/locked") == str(int(page.body) + 1).encode()
    assert bed.asked("/live") == 0


def test_the_end_of_a_process_whose_store_hangs(bed: Bed) -> None:
    """It ends when it is told to, with requests that wait."""
    # More than there are threads: those that wait for one must not be begun one after another.
    many = 60
    visitors = [bed.visitor() for _ in range(many)]
    with bed.store.hung(), ThreadPoolExecutor(many) as pool:

        def ask(one: int) -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                visitors[one].get("/add")

        asking = [pool.submit(ask, one) for one in range(many)]
        bed.until("/asked", many)
        start = time.monotonic()
        bed.site.process.terminate()
        try:
            bed.site.process.wait(60)
        except subprocess.TimeoutExpired:
            bed.site.kill()
            raise
        assert time.monotonic() - start < BOUND
        for one in asking:
            one.result(30)
