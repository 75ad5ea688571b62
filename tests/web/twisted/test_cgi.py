"""CGI in a real server: what children find of the session, and what comes back from them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .processes import Browser, Server, running

pytestmark = pytest.mark.slow

SITE = '''
import os
import sys
from twisted.internet import reactor
from twisted.python.log import startLogging
from twisted.web.resource import Resource
from sojourn import SessionManager
from sojourn.web.twisted import SessionSite
from sojourn.web.twisted.cgi import CGIScript, FilteredScript

sessions = SessionManager("sqlite:///sessions.db")


class Before(Resource):
    """Does something with the session, then lets the script go on."""

    def __init__(self, act, script):
        super().__init__()
        self.act, self.script = act, script
        self.isLeaf = True

    def render(self, request):
        self.act(request.getSession())
        return self.script.render(request)


class Python(FilteredScript):
    filter = sys.executable


root = Resource()
for name, act in {
    b"begin": lambda session: session.add("n", 100),
    b"login": lambda session: session.login("alice"),
    b"end": lambda session: session.end("user"),
    b"look": lambda session: session.get("n"),
}.items():
    root.putChild(name, Before(act, CGIScript(os.path.abspath("counts.cgi"))))
root.putChild(b"counts", CGIScript(os.path.abspath("counts.cgi")))
root.putChild(b"filtered", Python(os.path.abspath("counts.cgi")))
root.putChild(b"environ", CGIScript(os.path.abspath("environ.cgi")))
startLogging(sys.stdout)
reactor.listenTCP(0, SessionSite(root, sessions), interface="127.0.0.1")
reactor.run()
'''

COUNTS = """#!/usr/bin/env python3
from sojourn import SessionManager
from sojourn.web.cgi import cgi_session

with cgi_session(SessionManager("sqlite:///sessions.db")) as session:
    print("Content-Type: text/plain")
    print("Set-Cookie: mine=1")
    print()
    print(session.sid[:0], session.user, session.add("n"))
"""

ENVIRON = """#!/bin/sh
echo Content-Type: text/plain
echo
env
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "serve_scripts.py").write_text(SITE)
    for name, text in ("counts.cgi", COUNTS), ("environ.cgi", ENVIRON):
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o755)
    with running([sys.executable, "serve_scripts.py"], tmp_path) as server:
        yield server


def test_a_brand_new_session(server: Server) -> None:
    """What Twisted's side began, the child finds: it has the cookie before the browser has it."""
    browser = Browser(server)
    page = browser.get("/begin")

    assert (page.status, page.body) == (200, b" None 101\n")
    names = [line.partition("=")[0] for line in page.all("Set-Cookie")]
    assert sorted(names) == ["id", "mine"]
    assert browser.body("/counts") == b" None 102\n"
    assert browser.body("/filtered") == b" None 103\n"


def test_the_child_begins_one(server: Server) -> None:
    """Where nobody has begun a session, the child does, with a cookie of its own making."""
    browser = Browser(server)

    assert browser.body("/look") == b" None 1\n"
    assert set(browser.cookies) == {"id", "mine"}
    assert browser.body("/begin") == b" None 102\n"


def test_a_login_before_the_child(server: Server) -> None:
    """The child gets the new cookie in place of the one that the browser sent."""
    browser = Browser(server)
    browser.get("/begin")
    before = browser.cookies["id"]

    assert browser.body("/login") == b" alice 102\n"
    assert browser.cookies["id"] != before
    assert browser.body("/counts") == b" alice 103\n"


def test_an_end_before_the_child(server: Server) -> None:
    """The child does not see what has ended, and begins anew."""
    browser = Browser(server)
    browser.get("/begin")
    first = browser.cookies["id"].partition(".")[0]

    assert browser.body("/end") == b" None 1\n"
    assert browser.cookies["id"].partition(".")[0] != first
    assert browser.body("/counts") == b" None 2\n"


def test_what_the_child_is_told(server: Server) -> None:
    """The environment is that of CGI, with a path after the script, and all cookies."""
    browser = Browser(server)
    browser.cookies = {"a": "1"}
    told = browser.body("/environ/x%20y/z?q=1", X_Thing="yes").decode().splitlines()

    for line in (
        "PATH_INFO=/x y/z",
        "QUERY_STRING=q=1",
        "HTTP_COOKIE=a=1",
        "HTTP_X_THING=yes",
        "REQUEST_METHOD=GET",
        "GATEWAY_INTERFACE=CGI/1.1",
    ):
        assert line in told


def test_other_cookies_stay(server: Server, tmp_path: Path) -> None:
    """Beside the new cookie of the session the child gets those that the browser sent."""
    (tmp_path / "counts.cgi").write_text(ENVIRON)
    browser = Browser(server)
    browser.cookies = {"a": "1", "id": "nonsense"}
    told = browser.body("/begin").decode()
    (line,) = [line for line in told.splitlines() if line.startswith("HTTP_COOKIE=")]

    assert line == f"HTTP_COOKIE=a=1; id={browser.cookies['id']}"
    assert browser.cookies["id"] != "nonsense"


def test_a_failing_script(server: Server, tmp_path: Path) -> None:
    """It is a 500, and the visitor stays who he is."""
    browser = Browser(server)
    browser.get("/begin")
    (tmp_path / "counts.cgi").write_text("#!/bin/sh\nexit 1\n")
    assert browser.get("/counts").status == 500
    (tmp_path / "counts.cgi").write_text(COUNTS)
    assert browser.body("/counts") == b" None 102\n"
