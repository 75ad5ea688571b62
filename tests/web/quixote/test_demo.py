"""The demo: Session3's six scenarios, by link and by form, on every store."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import quixote
from quixote.directory import Directory
from quixote.publish import Publisher

from sojourn import SessionManager as Sessions
from sojourn.web.quixote import Session, SessionManager
from tests.stores.servers_redis import prefix, redis_program, redis_server
from tests.stores.servers_sql import a_mariadb, a_postgresql

from ..kit import call_wsgi, environ
from .serving import DEMO, Browser

__all__ = ["prefix", "redis_program", "redis_server"]

STORES = (
    "memory",
    "sqlite",
    "directory",
    "cookie",
    pytest.param("redis", marks=pytest.mark.server),
    pytest.param("postgresql", marks=pytest.mark.server),
    pytest.param("mariadb", marks=pytest.mark.server),
)


@pytest.fixture(scope="module")
def demo() -> Iterator[Any]:
    """The demo's module."""
    spec = importlib.util.spec_from_file_location("quixote_demo", DEMO / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def postgresql_url() -> Iterator[str]:
    with a_postgresql() as server:
        yield server.url()


@pytest.fixture(scope="module")
def mariadb_url() -> Iterator[str]:
    with a_mariadb() as server:
        yield server.url()


@pytest.fixture(params=STORES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of each store."""
    kind = request.param
    if kind == "redis":
        server = request.getfixturevalue("redis_server")
        return f"{server.url}?prefix={request.getfixturevalue('prefix')}"
    if kind in ("postgresql", "mariadb"):
        found: str = request.getfixturevalue(f"{kind}_url")
        return found
    (tmp_path / "keys.txt").write_text(secrets.token_hex(32))
    return {
        "memory": "memory://",
        "sqlite": f"sqlite:///{tmp_path}/sessions.db",
        "directory": f"directory:///{tmp_path}/sessions",
        "cookie": f"cookie:///{tmp_path}/keys.txt",
    }[kind]


Make = Callable[[], Browser]


@pytest.fixture
def site(demo: Any, url: str) -> Iterator[Make]:
    """Serve the demo on that store; makes browsers."""
    quixote.cleanup()
    app = demo.make_app(url)
    publisher = quixote.get_publisher()
    publisher.logger.error_log = io.StringIO()

    def send(method: str, path: str, cookie: str = "", body: str = "") -> Any:
        more: dict[str, Any] = {"wsgi.multiprocess": False}
        if method == "POST":
            more["wsgi.input"] = io.BytesIO(body.encode())
            more["CONTENT_LENGTH"] = str(len(body))
            more["CONTENT_TYPE"] = "application/x-www-form-urlencoded"
        return call_wsgi(app, environ(cookie=cookie, path=path, method=method, **more))

    yield lambda: Browser(send)
    with contextlib.suppress(AttributeError):
        publisher.session_manager.sessions.close()
    quixote.cleanup()


class Visitor:
    """Somebody who uses the demo by its links, or by its forms."""

    def __init__(self, browser: Browser, by: str) -> None:
        self.browser = browser
        self.by = by

    def do(self, page: str) -> int:
        """Do one of the six; returns the status of what is shown at last."""
        if self.by == "link" or not page:
            return self.browser.go(f"/{page}").status
        self.browser.go("/")
        return self.browser.go(f"/{page}", "POST", f"csrf_token={self.browser.token}").status

    @property
    def session(self) -> str | None:
        return self.browser.go("/").session

    @property
    def counter(self) -> int:
        return self.browser.go("/").counter


@pytest.fixture(params=["link", "form"])
def visitor(site: Make, request: pytest.FixtureRequest) -> Visitor:
    return Visitor(site(), request.param)


# The six.


def test_increment(visitor: Visitor) -> None:
    """The counter is 0 until it is counted, however often it is looked at, and then goes on."""
    assert [visitor.counter, visitor.counter] == [0, 0]
    assert visitor.do("increment") == 200
    assert visitor.counter == 1
    assert visitor.do("increment") == 200
    assert [visitor.counter, visitor.counter] == [2, 2]


def test_increment_and_fail(visitor: Visitor) -> None:
    """What failed did not count."""
    visitor.do("increment")
    assert visitor.do("incrementfail") == 500
    assert visitor.counter == 1
    visitor.do("increment")
    assert visitor.counter == 2


def test_logout(visitor: Visitor) -> None:
    """A session that was kept is over with its logout, and the next logout does no harm."""
    assert visitor.session is None
    visitor.do("keep")
    assert visitor.session is not None
    assert visitor.do("logout") == 200
    assert visitor.session is None
    assert visitor.browser.cookie == ""
    assert visitor.do("logout") == 200


def test_logout_and_fail(visitor: Visitor) -> None:
    """A logout that failed did not happen."""
    visitor.do("keep")
    kept = visitor.session
    assert kept is not None
    assert visitor.do("logoutfail") == 500
    assert visitor.session == kept


def test_logout_with_nothing_kept(visitor: Visitor) -> None:
    """Whoever has no session may log out."""
    assert visitor.do("logout") == 200
    assert visitor.session is None


def test_session_id(visitor: Visitor) -> None:
    """There is none until it is kept; then it stays what it is."""
    assert [visitor.session, visitor.session] == [None, None]
    visitor.do("keep")
    kept = visitor.session
    assert kept is not None
    visitor.do("increment")
    visitor.do("keep")
    assert visitor.session == kept


# What the links of the classic demo lack.


def test_a_form_from_elsewhere(site: Make) -> None:
    """A form without the session's token does nothing; that of another visitor neither."""
    victim, other = site(), site()
    victim.go("/increment")
    token = other.go("/increment").token
    assert token

    for body in ("", "csrf_token=", f"csrf_token={token}"):
        assert victim.go("/increment", "POST", body).status == 403
        assert victim.go("/logout", "POST", body).status == 403
        assert victim.go("/").counter == 1


def test_looking_makes_no_session(site: Make) -> None:
    """The page with the forms gives nobody a cookie who does nothing."""
    browser = site()

    assert browser.go("/").cookie == ""
    assert browser.token == ""
    browser.go("/increment", "POST")
    assert browser.go("/").counter == 1


def test_pages_that_are_not_there(site: Make) -> None:
    """They answer 404, in the dress of the others."""
    browser = site()

    assert browser.go("/nothing").status == 404
    assert "<style>" in browser.page
    assert browser.go("/incrementfail").status == 500
    assert "<style>" in browser.page


# What others show.


def browse(app: Any) -> Browser:
    def send(method: str, path: str, cookie: str = "", body: str = "") -> Any:
        more: dict[str, Any] = {"wsgi.multiprocess": False}
        return call_wsgi(app, environ(cookie=cookie, path=path, method=method, **more))

    return Browser(send)


def test_the_site_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first site of the page on Quixote counts, and forgets at a logout."""
    page = (DEMO.parent.parent / "docs" / "web" / "quixote.md").read_text()
    source = page.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    site: dict[str, Any] = {"__name__": "site_of_the_docs"}
    exec(source, site)
    publisher = site["create_publisher"]()
    publisher.logger.error_log = io.StringIO()
    browser = browse(quixote.get_wsgi_app())

    assert [browser.go("/").page for _ in range(3)] == ["visit 1", "visit 2", "visit 3"]
    assert browser.go("/logout").page == "visit 1"
    assert (tmp_path / "sessions.db").exists()
    publisher.session_manager.sessions.close()


def test_a_class_of_session3s_demo() -> None:
    """A class and pages as they are written for Session3 need no change but their imports."""

    class Classic(Session):
        def __init__(self, id: Any) -> None:
            Session.__init__(self, id)
            self.counter = 0
            self.keep = False

        def increment(self) -> None:
            self.counter += 1

        def has_info(self) -> bool:
            return bool(self.keep)

    class Pages(Directory):
        _q_exports = ("", "keep", "increment")

        def _q_index(self) -> str:
            session = quixote.get_session()
            return f"{session.id is None} {session.counter}"

        def keep(self) -> Any:
            quixote.get_session().keep = True
            return quixote.redirect(quixote.get_path(1) + "/")

        def increment(self) -> Any:
            quixote.get_session().increment()
            return quixote.redirect(quixote.get_path(1) + "/")

    quixote.cleanup()
    manager = SessionManager(Sessions("memory://"), Classic)
    Publisher(Pages(), session_manager=manager)
    app = quixote.get_wsgi_app()
    browser = Browser(
        lambda method, path, cookie="", body="": call_wsgi(
            app,
            environ(
                cookie=cookie, path=path, **{"wsgi.multiprocess": False, "wsgi.multithread": False}
            ),
        )
    )

    assert browser.go("/increment").page == "True 0"
    assert browser.go("/keep").page == "False 0"
    assert [browser.go("/increment").page for _ in range(2)] == ["False 1", "False 2"]
    assert browser.go("/").page == "False 2"
