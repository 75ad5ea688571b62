"""`examples/pyramid/sessions`: by WebTest, and as `pserve development.ini` runs it."""

from __future__ import annotations

import html
import http.cookiejar
import importlib
import re
import shutil
import signal
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from webtest import TestApp

from tests.demo.servers import start

__all__ = ["start"]

ROOT = Path(__file__).parent.parent.parent.parent
EXAMPLE = ROOT / "examples" / "pyramid" / "sessions"


# By WebTest.


@pytest.fixture
def make_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """Make the application, as a process that is started again does."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    settings = {"sojourn.store": f"sqlite:///{tmp_path}/sessions.db", "session.timeout": "1200"}
    apps = []

    def make() -> Any:
        apps.append(importlib.import_module("tutorial").main({}, **settings))
        return apps[-1]

    yield make
    for app in apps:
        from pyramid.interfaces import ISessionFactory

        app.registry.getUtility(ISessionFactory).sessions.close()
    for name in [name for name in sys.modules if name.partition(".")[0] == "tutorial"]:
        del sys.modules[name]


def count(page: str) -> int:
    found = re.search(r"Count: (\d+)", page)
    assert found is not None, page
    return int(found[1])


def test_two_urls_share_one_counter(make_app: Callable[[], Any]) -> None:
    """1, 2, 3, 4; a second client begins at 1."""
    app = make_app()
    first, second = TestApp(app), TestApp(app)

    seen = [count(first.get(path).text) for path in ("/", "/howdy", "/", "/howdy")]

    assert seen == [1, 2, 3, 4]
    assert count(second.get("/").text) == 1
    assert "<h1>Hi Home View</h1>" in first.get("/").text
    assert "<h1>Hi Hello View</h1>" in first.get("/howdy").text


def test_a_tampered_cookie(make_app: Callable[[], Any]) -> None:
    """A new visitor, and no error; the owner's session is as it was."""
    app = make_app()
    owner = TestApp(app)
    owner.get("/")
    token = owner.cookies["id"]
    for bad in (token[:-4] + "AAAA", token.swapcase(), "x", f"{token}x"):
        answer = TestApp(app).get("/", headers={"Cookie": f"id={bad}"})
        assert (answer.status_int, count(answer.text)) == (200, 1)
    assert count(owner.get("/").text) == 2


def test_a_message_after_a_redirect(make_app: Callable[[], Any]) -> None:
    """The page after the form says once what was done."""
    browser = TestApp(make_app())
    form = browser.get("/").form
    form["item"] = "tea & <b>"

    redirect = form.submit()
    assert redirect.status_int == 303
    page = redirect.follow()

    assert "<p>Your item was added.</p>" in page.text
    assert "<li>tea &amp; &lt;b&gt;</li>" in page.text
    again = browser.get("/howdy")
    assert "Your item was added." not in again.text
    assert "<li>tea" in again.text


def test_a_page_that_is_not_there(make_app: Callable[[], Any]) -> None:
    """It does not look at the session: no cookie, nothing said to caches."""
    answer = TestApp(make_app()).get("/missing", status=404)

    assert answer.headers.getall("Set-Cookie") == []
    assert answer.headers.getall("Vary") == []


# As a process.


class Browser:
    """A visitor with a cookie jar."""

    def __init__(self) -> None:
        self.jar = http.cookiejar.CookieJar()
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.jar))

    def get(self, url: str, data: dict[str, str] | None = None) -> str:
        body = None if data is None else urllib.parse.urlencode(data).encode()
        with self.opener.open(url, body, timeout=20) as answer:
            assert answer.status == 200
            return html.unescape(answer.read().decode())


@pytest.fixture
def serve(start: Any, tmp_path: Path) -> Callable[[], Any]:
    """Run `pserve development.ini`, on a free port."""
    folder = tmp_path / "sessions"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("*.db*", "__pycache__"))
    ini = (folder / "development.ini").read_text()
    assert ini.count("127.0.0.1:6543") == 1
    (folder / "development.ini").write_text(ini.replace("127.0.0.1:6543", "127.0.0.1:0"))
    path = f"{folder}:{ROOT / 'src'}"
    command = ("-W", "ignore", "-m", "pyramid.scripts.pserve", str(folder / "development.ini"))
    return lambda: start(*command, PYTHONPATH=path)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_pserve(serve: Callable[[], Any], by: signal.Signals) -> None:
    """1, 2, 3, 4 over HTTP, and after a restart 5, also after kill -9."""
    first, second = Browser(), Browser()
    server = serve()
    seen = [count(first.get(server.url + path)) for path in ("/", "/howdy", "/", "/howdy")]
    assert seen == [1, 2, 3, 4]

    server.end(by)
    server = serve()

    assert count(first.get(server.url + "/")) == 5
    assert count(second.get(server.url + "/howdy")) == 1


def test_a_message_over_a_restart(serve: Callable[[], Any]) -> None:
    """A message waits for the page that shows it, also if the process ends in between."""
    browser = Browser()
    server = serve()
    browser.get(server.url + "/")
    page = browser.get(server.url + "/add", {"item": "tea"})
    assert "Your item was added." in page
    assert "tea" in page
    assert "Your item was added." not in browser.get(server.url + "/")

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *arguments: Any) -> None:
            return None

    browser.opener = urllib.request.build_opener(
        urllib.request.HTTPCookieProcessor(browser.jar), Stay
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        browser.get(server.url + "/add", {"item": "map"})
    caught.value.close()
    assert caught.value.code == 303
    server.end(signal.SIGKILL)
    server = serve()

    page = browser.get(server.url + "/")
    assert "Your item was added." in page
    assert "map" in page
