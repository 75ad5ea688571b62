"""Three ways in: a Site of ours, an existing one, one subtree of any; scripts under `twistd`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock as ReactorClock
from twisted.web import resource, server

from sojourn.errors import ConfigurationError
from sojourn.manager import SessionManager
from sojourn.web.twisted import SessionResource, SessionSite, install
from sojourn.web.twisted.session import DurableSession

from .kit import DeferredStore, Page, Wire
from .running import SOURCE

# Twisted's own, of its error pages.
pytestmark = pytest.mark.filterwarnings("ignore:twisted.web.resource._Unsafe:DeprecationWarning")


def count(request: Any) -> str:
    return str(request.getSession().add("n"))


def branch(**children: Any) -> resource.Resource:
    made = resource.Resource()
    for name, child in children.items():
        made.putChild(name.encode(), child)
    return made


def fail(request: Any) -> str:
    raise RuntimeError("as it is meant to")


def get(site: Any, path: str, cookie: str = "") -> Any:
    wire = Wire(site)
    wire.send(path, cookie)
    return wire.take()


def stock(root: Any) -> Any:
    site = server.Site(root, reactor=ReactorClock())
    site.startFactory()
    return site


@pytest.fixture(params=["at once", "deferred"])
def sessions(request: pytest.FixtureRequest) -> SessionManager:
    return SessionManager(DeferredStore() if request.param == "deferred" else "memory://")


# A Site that exists.


def test_install(sessions: SessionManager) -> None:
    """The same Site, of its own class, with durable sessions from then on."""

    class Mine(server.Site):
        label = "mine"

    site = Mine(branch(count=Page(count)), reactor=ReactorClock())
    by_hand = site.makeSession()

    assert install(site, sessions) is site
    assert (isinstance(site, Mine), site.label) == (True, "mine")
    site.startFactory()
    first = get(site, "/count")
    assert (first.body, first.token != "") == (b"1", True)
    assert get(site, "/count", f"id={first.token}").body == b"2"
    # What was live before stays as it was.
    assert site.sessions[by_hand.uid] is by_hand
    by_hand.expire()
    assert by_hand.uid not in site.sessions


def test_install_twice(sessions: SessionManager) -> None:
    """The later manager counts."""
    site = stock(branch(count=Page(count)))
    install(site, SessionManager())
    install(site, sessions)
    first = get(site, "/count")

    assert sessions.counters["created"] == 1
    assert get(site, "/count", f"id={first.token}").body == b"2"


def test_stock_arguments() -> None:
    """Where nothing is said of sessions they are in memory; all else is as of the stock Site."""

    class Mine(server.Request):
        pass

    site = SessionSite(branch(count=Page(count)), Mine, timeout=7, reactor=ReactorClock())
    site.startFactory()

    assert (site.requestFactory, site.timeOut) == (Mine, 7)
    first = get(site, "/count")
    assert get(site, "/count", f"id={first.token}").body == b"2"
    assert SessionSite(branch(), requestFactory=Mine).requestFactory is Mine
    assert SessionSite(branch(), "memory://", Mine).requestFactory is Mine


def test_by_url() -> None:
    """A URL stands for one manager in this process, wherever it is given."""
    sites = [SessionSite(branch(count=Page(count)), "memory://#by-url") for _ in range(2)]
    first = get(sites[0], "/count")

    assert get(sites[1], "/count", f"id={first.token}").body == b"2"


def test_a_wrong_manager() -> None:
    """Says what was given and what it must be."""
    with pytest.raises(ConfigurationError, match="it must be a SessionManager"):
        install(stock(branch()), object())  # type: ignore[arg-type]


def test_nested_sites(sessions: SessionManager) -> None:
    """A Site inside another: with one manager the visitor has one session in both."""
    inner = SessionSite(branch(count=Page(count)), sessions)
    site = SessionSite(branch(inner=inner, count=Page(count)), sessions)
    first = get(site, "/count")
    cookie = f"id={first.token}"

    assert get(site, "/inner/count", cookie).body == b"2"
    assert get(site, "/count", cookie).body == b"3"


def test_a_pickled_site() -> None:
    """As the stock one: without its sessions."""
    state = SessionSite(branch()).__getstate__()
    assert state["sessions"] == {}
    assert "_realm" not in state


# A subtree.


def test_subtree(sessions: SessionManager) -> None:
    """Durable below it; beside it the stock sessions, which know nothing of it."""

    def kind(request: Any) -> str:
        return str(isinstance(request.getSession(), DurableSession))

    below = branch(deep=branch(count=Page(count)), kind=Page(kind), count=Page(count))
    site = stock(branch(app=SessionResource(below, sessions), kind=Page(kind)))
    first = get(site, "/app/count")
    cookie = f"id={first.token}"

    assert first.body == b"1"
    assert get(site, "/app/deep/count", cookie).body == b"2"
    assert get(site, "/app/count", cookie).body == b"3"
    assert get(site, "/app/kind", cookie).body == b"True"
    assert get(site, "/app/nothing", cookie).status == 404
    stock_answer = get(site, "/kind", cookie)
    assert stock_answer.body == b"False"
    assert stock_answer.one("Set-Cookie").startswith("TWISTED_SESSION=")
    for session in list(site.sessions.values()):
        session.expire()


def test_a_leaf(sessions: SessionManager) -> None:
    """A leaf inside is a leaf, with what is left of the path; methods are refused as ever."""

    class Leaf(resource.Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> bytes:
            return count(request).encode() + b" " + b"/".join(request.postpath)

    site = stock(branch(leaf=SessionResource(Leaf(), sessions)))
    first = get(site, "/leaf/a/b")
    cookie = f"id={first.token}"

    assert first.body == b"1 a/b"
    assert get(site, "/leaf/a/b", cookie).body == b"2 a/b"
    wire = Wire(site)
    wire.send("/leaf", cookie, "POST")
    assert wire.take().status == 405
    site = stock(branch(leaf=SessionResource(Page(fail), sessions)))
    assert get(site, "/leaf", cookie).status == 500


def test_children_are_put_inside(sessions: SessionManager) -> None:
    """`putChild` on it is `putChild` on the resource inside."""
    wrapped = SessionResource(branch(), sessions)
    wrapped.putChild(b"count", Page(count))

    assert get(stock(branch(app=wrapped)), "/app/count").body == b"1"


def test_a_subtree_of_our_own_site(sessions: SessionManager) -> None:
    """The manager of the subtree counts there."""
    other = SessionManager(cookie_name="other")
    site = SessionSite(branch(app=SessionResource(branch(count=Page(count)), other)), sessions)

    answer = get(site, "/app/count")

    assert answer.one("Set-Cookie").startswith("other=")
    assert get(site, "/app/count", answer.one("Set-Cookie").partition(";")[0]).body == b"2"
    assert sessions.counters["created"] == 0


def test_the_client_goes_while_a_subtree_loads() -> None:
    """Nothing is rendered, and nothing is left."""
    store = DeferredStore()
    sessions = SessionManager(store)
    called: list[str] = []

    def handler(request: Any) -> str:
        called.append("rendered")
        return count(request)

    site = stock(branch(app=SessionResource(branch(count=Page(handler)), sessions)))
    first = get(site, "/app/count")
    store.hold = True
    wire = Wire(site)
    wire.send("/app/count", f"id={first.token}")
    wire.hang_up()
    store.release_all()

    assert called == ["rendered"]


# Scripts, under the `twistd web` that everybody has.

COUNTER = """
from twisted.python.components import getAdapterFactory, registerAdapter
from twisted.web.resource import Resource
from twisted.web.server import Session
from zope.interface import Attribute, Interface, implementer
from sojourn.web.twisted import SessionResource

class ICounter(Interface):
    value = Attribute("how often")

ICounter.setTaggedValue("session.key", "{key}")

@implementer(ICounter)
class Counter:
    def __init__(self, session):
        self.value = 0

if getAdapterFactory(Session, ICounter, None) is None:
    registerAdapter(Counter, Session, ICounter)

class CounterResource(Resource):
    isLeaf = True

    def render_GET(self, request):
        counter = ICounter(request.getSession())
        counter.value += 1
        return b"Visit #%d for you!" % counter.value

{cache}
resource = SessionResource(CounterResource(), "{store}")
"""


class Twistd:
    """`twistd web --path`, unmodified."""

    def __init__(self, folder: Path) -> None:
        self.log = folder.parent / "twistd.log"
        self.log.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "twisted", f"--log-file={self.log}", "web"),
                *("--listen", "tcp:0:interface=127.0.0.1", "--path", str(folder)),
            ],
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            cwd=folder.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.port = 0
        end = time.monotonic() + 30
        while not self.port and time.monotonic() < end and self.process.poll() is None:
            time.sleep(0.02)
            text = self.log.read_text() if self.log.exists() else ""
            if "starting on" in text:
                self.port = int(re.findall(r"starting on (\d+)", text)[0])
        assert self.port, self.log.read_text() if self.log.exists() else "no log"

    def get(self, path: str, cookie: str) -> tuple[str, str]:
        from http.client import HTTPConnection

        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path, headers={"Cookie": cookie} if cookie else {})
            response = connection.getresponse()
            body = response.read().decode()
            assert response.status == 200, body
            return body, (response.getheader("Set-Cookie") or cookie).partition(";")[0]
        finally:
            connection.close()

    def end(self, by: int = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(by)
            self.process.wait(30)


@pytest.fixture
def twistd() -> Iterator[Callable[[Path], Twistd]]:
    started: list[Twistd] = []

    def run(folder: Path) -> Twistd:
        started.append(Twistd(folder))
        return started[-1]

    yield run
    for one in started:
        one.end()


@pytest.mark.parametrize("cache", ["", "cache()"], ids=["each time", "cached"])
def test_scripts(tmp_path: Path, twistd: Callable[[Path], Twistd], cache: str) -> None:
    """Two `.rpy` scripts count, each for itself, past one and past `kill -9`."""
    (tmp_path / "www").mkdir()
    for name in ("one", "two"):
        script = COUNTER.format(
            key=f"{name}.rpy", cache=cache, store=f"sqlite:///{tmp_path / 'sessions.db'}"
        )
        (tmp_path / "www" / f"{name}.rpy").write_text(script)
    server, cookie, visits = twistd(tmp_path / "www"), "", []
    for _ in range(3):
        body, cookie = server.get("/one.rpy", cookie)
        visits.append(body)
    visits.append(server.get("/two.rpy", cookie)[0])
    server.end(signal.SIGKILL)
    server = twistd(tmp_path / "www")
    visits.append(server.get("/one.rpy", cookie)[0])
    visits.append(server.get("/two.rpy", cookie)[0])

    assert visits == [f"Visit #{number} for you!" for number in (1, 2, 3, 1, 4, 2)]
