"""CGI children that are killed, never end, or write what they should not; and hostile clients."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import ssl
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.stores.servers_redis import Server as RedisServer
from tests.stores.servers_redis import prefix, redis_program, redis_server

from .processes import Browser, Server, running

pytestmark = pytest.mark.slow

_fixtures = (prefix, redis_program, redis_server)

SITE = '''
import os
import sys
from twisted.internet import reactor
from twisted.python.log import startLogging
from twisted.web.resource import Resource
from sojourn import SessionManager
from sojourn.web.twisted import SessionSite
from sojourn.web.twisted.cgi import CGIScript, FilteredScript

sessions = SessionManager("STORE")


class Before(Resource):
    """Does something with the session, then lets the script go on."""

    isLeaf = True

    def __init__(self, act, script):
        super().__init__()
        self.act, self.script = act, script

    def render(self, request):
        self.act(request.getSession())
        return self.script.render(request)


class After(Resource):
    """Goes on to change the session while the script is at work."""

    isLeaf = True

    def __init__(self, script):
        super().__init__()
        self.script = script

    def render(self, request):
        session = request.getSession()
        made = self.script.render(request)
        session.add("n", 100)
        session.add("meanwhile")
        return made


class Page(Resource):
    isLeaf = True

    def __init__(self, show):
        super().__init__()
        self.show = show

    def render(self, request):
        return str(self.show(request)).encode()


class Python(FilteredScript):
    filter = sys.executable


ACTS = {
    "": lambda session: None,
    "begin-": lambda session: session.add("n", 100),
    "renew-": lambda session: session.renew(),
    "login-": lambda session: session.login("alice"),
}
root = Resource()
for name in sorted(os.listdir(".")):
    if name.endswith(".cgi"):
        for before, act in ACTS.items():
            path = os.path.abspath(name)
            script = Python(path) if name.startswith("filtered") else CGIScript(path)
            path = (before + name[:-4]).encode()
            root.putChild(path, Before(act, script) if before else script)
        root.putChild(b"after-" + name[:-4].encode(), After(script))
root.putChild(b"free", Page(lambda request: request.getSession().add("n")))
root.putChild(b"me", Page(lambda request: request.getSession().user))
live = sessions.__dict__
root.putChild(b"live", Page(lambda request: len(live["_twisted_realm"].live)))
root.putChild(b"os-environ", Page(lambda request: dict(os.environ)))
key = lambda request: request.uri.decode().partition("?")[2]
root.putChild(b"read", Page(lambda request: request.getSession().get(key(request))))
startLogging(sys.stdout)
reactor.listenTCP(0, SessionSite(root, sessions), interface="127.0.0.1")
if os.path.exists("server.pem"):
    from twisted.internet import ssl

    with open("server.pem") as file:
        options = ssl.PrivateCertificate.loadPEM(file.read()).options()
    port = reactor.listenSSL(0, SessionSite(root, sessions), options, interface="127.0.0.1")
    print("and by TLS on", port.getHost().port)
reactor.run()
'''

OPEN = """#!/usr/bin/env python3
import os
import signal
import sys
import time
from sojourn import SessionManager
from sojourn.web.cgi import cgi_session

sessions = SessionManager("sqlite:///sessions.db")
"""
HEAD = 'print("Content-Type: text/plain")\nprint()\n'

Scripts = dict[str, str]
Serve = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serve scripts, given by name; a text is what a Python script does with `sessions`."""
    running_ones: list[Any] = []

    def start(store: str = "sqlite:///sessions.db", **scripts: str) -> Server:
        (tmp_path / "serve_scripts.py").write_text(SITE.replace("STORE", store))
        for name, text in scripts.items():
            path = tmp_path / f"{name}.cgi"
            path.write_text(text if text.startswith("#!") else OPEN + text)
            path.chmod(0o755)
        one = running([sys.executable, "serve_scripts.py"], tmp_path)
        running_ones.append(one)
        return one.__enter__()  # type: ignore[no-any-return]

    yield start
    for one in running_ones:
        one.__exit__(None, None, None)


def wait_for(path: Path) -> str:
    """What a child has written to a file, once it has."""
    end = time.monotonic() + 20
    while not path.exists() or not path.read_text().endswith("\n"):
        assert time.monotonic() < end, f"there is no {path}"
        time.sleep(0.01)
    return path.read_text().strip()


ENVIRON = """#!/bin/sh
echo Content-Type: text/plain
echo
env
"""


def told(browser: Browser, path: str, **headers: str) -> dict[str, str]:
    """The environment that a child was given."""
    lines = browser.body(path, **headers).decode("latin-1").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


# What can go wrong with a child.


@pytest.mark.parametrize("before", ["", "begin-"])
def test_a_program_that_cannot_be_started(serve: Serve, before: str) -> None:
    """It is a 500, with a session as without; nobody waits for an answer that never comes."""
    server = serve(gone="#!/nonexistent/program\n", environ=ENVIRON)
    browser = Browser(server)
    if before:
        assert browser.get(f"/{before}gone").status == 500
    # A path that no program can be given.
    assert browser.get(f"/{before}environ/%00").status == 500
    assert browser.body("/live") == b"0"
    assert browser.get("/begin-environ").status == 200


def test_a_child_that_is_killed(serve: Serve, tmp_path: Path) -> None:
    """What it did before its first bytes left is kept, what came later is not; nobody is out."""
    dies = "with cgi_session(sessions) as session:\n" + textwrap.indent(
        "session.add('n')\n"
        "if os.environ['QUERY_STRING'] == 'late':\n"
        + textwrap.indent(HEAD, "    ")
        + "    print('one', flush=True)\n"
        "    session.add('n', 50)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
        "    ",
    )
    server = serve(dies=dies)
    browser = Browser(server)
    assert browser.body("/free") == b"1"
    assert browser.get("/dies").status == 500
    assert browser.body("/free") == b"2"
    page = browser.get("/dies?late")
    assert (page.status, page.body) == (200, b"one\n")
    assert browser.body("/free") == b"4"
    # And a brand-new session of its own making.
    stranger = Browser(server)
    assert stranger.get("/dies").status == 500
    assert stranger.cookies == {}
    stranger.get("/dies?late")
    assert stranger.body("/free") == b"2"
    assert browser.body("/live") == b"0"


def lingering(body: str) -> str:
    """A script that tells its process id, says one word, and goes on."""
    return "with cgi_session(sessions) as session:\n" + textwrap.indent(
        "with open(os.environ['QUERY_STRING'], 'w') as file:\n"
        "    print(os.getpid(), file=file)\n" + HEAD + body,
        "    ",
    )


@pytest.mark.parametrize("before", ["", "begin-"])
@pytest.mark.parametrize("said", [b"", b"x"])
def test_a_client_that_goes(serve: Serve, tmp_path: Path, before: str, said: bytes) -> None:
    """A child that writes for ever ends by that, and the session is let go of at once."""
    speaks = "while True:\n    print('x' * 1000, flush=True)\n    time.sleep(0.01)\n"
    if not said:
        speaks = "time.sleep(0.2)\n" + speaks
    server = serve(speaks=lingering(speaks))
    pid_file = tmp_path / "pid"
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.sendall(f"GET /{before}speaks?pid HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        pid = int(wait_for(pid_file))
        if said:
            assert connection.recv(1000)
    browser = Browser(server)
    end = time.monotonic() + 10
    while alive(pid) or browser.body("/live") != b"0":
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_child_that_is_silent_for_ever(serve: Serve, tmp_path: Path) -> None:
    """Its session serves others meanwhile, and goes out of memory with the client."""
    server = serve(sleeps=lingering("time.sleep(100)\n"))
    browser = Browser(server)
    browser.get("/free")
    cookie = f"Cookie: id={browser.cookies['id']}\r\n"
    pid = 0
    try:
        with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
            head = f"GET /begin-sleeps?pid HTTP/1.1\r\nHost: x\r\n{cookie}\r\n"
            connection.sendall(head.encode())
            pid = int(wait_for(tmp_path / "pid"))
            assert browser.body("/free") == b"102"
            assert browser.body("/live") == b"1"
        end = time.monotonic() + 10
        while browser.body("/live") != b"0":
            assert time.monotonic() < end
            time.sleep(0.02)
        assert browser.body("/free") == b"103"
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)


def test_parent_and_child_write_at_once(serve: Serve, tmp_path: Path) -> None:
    """The request goes on to change its session while the child does: both are kept."""
    counts = "with cgi_session(sessions) as session:\n" + textwrap.indent(
        "session.add('n')\nsession['child'] = 'yes'\n" + HEAD + "print(session['n'])\n", "    "
    )
    server = serve(counts=counts)
    browser = Browser(server)
    browser.get("/free")
    for number in range(5):
        page = browser.get("/after-counts")
        assert page.status == 200
        # 1 of the page before, 1 of the child, and 100 of the page meanwhile.
        assert browser.body("/free") == str(1 + (number + 1) * 102).encode()
    assert browser.body("/read?child") == b"yes"
    assert browser.body("/read?meanwhile") == b"5"


def test_much_output(serve: Serve) -> None:
    """Many megabytes pass through a child that uses the session, to a client that is slow."""
    much = "with cgi_session(sessions) as session:\n" + textwrap.indent(
        "session.add('n')\n" + HEAD + "for _ in range(400):\n    print('x' * 50_000)\n", "    "
    )
    server = serve(much=much)
    browser = Browser(server)
    for before in ("begin-", ""):
        assert len(browser.body(f"/{before}much")) == 400 * 50_001
    assert browser.body("/free") == b"103"
    # Its reader stops, and so does the child: the server does not take it all into memory.
    (pid,) = [server.process.pid]
    resident = Path(f"/proc/{pid}/statm")
    before_it = int(resident.read_text().split()[1])
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.sendall(b"GET /begin-much HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.recv(1000)
        for _ in range(50):
            assert browser.body("/me") == b"None"
        grown = (int(resident.read_text().split()[1]) - before_it) * 4096
        assert grown < 8_000_000
        assert browser.body("/free") == b"104"


# What a child says.


def test_a_cookie_of_the_same_name(serve: Serve) -> None:
    """The child came last: of two cookies with one name the browser gets its own, and no other."""
    text = "#!/bin/sh\nprintf 'Set-Cookie: id=mine; Path=/\\nSet-Cookie: x=1\\n\\nok'\n"
    browser = Browser(serve(sets=text))
    for path in ("/begin-sets", "/sets", "/login-sets"):
        page = browser.get(path)
        assert page.body == b"ok"
        names = [line.partition(";")[0] for line in page.all("Set-Cookie")]
        assert names == ["id=mine", "x=1"]


def test_a_child_that_logs_in_or_out(serve: Serve) -> None:
    """Its cookie is the one that counts, also where the page before has looked at the session."""
    acts = "with cgi_session(sessions) as session:\n" + textwrap.indent(
        "if os.environ['QUERY_STRING'] == 'in':\n    session.login('bob')\n"
        "else:\n    session.end()\n" + HEAD + "print(session.user)\n",
        "    ",
    )
    server = serve(acts=acts)
    for before in ("", "begin-", "renew-", "login-"):
        browser = Browser(server)
        browser.get("/free")
        first = browser.cookies["id"]
        page = browser.get(f"/{before}acts?in")
        assert (page.status, page.body, len(page.all("Set-Cookie"))) == (200, b"bob\n", 1)
        assert browser.cookies["id"] != first
        assert browser.body("/me") == b"bob"
        assert browser.get(f"/{before}acts?out").status == 200
        assert browser.body("/me") == b"None"
        stale = Browser(server)
        stale.cookies["id"] = first
        assert stale.body("/me") == b"None"


INJECTED = {
    "a line feed in a value": "X-A: 1\\nX-B: 2",
    "a carriage return": "X-A: 1\\rSet-Cookie: id=planted",
    "a vertical tab": "X-A: 1\\013Set-Cookie: id=planted",
    "a separator of records": "X-A: 1\\036Set-Cookie: id=planted",
    "a next line": "X-A: 1\\205Set-Cookie: id=planted",
}


@pytest.mark.parametrize("name", INJECTED)
def test_characters_that_end_lines_elsewhere(serve: Serve, name: str) -> None:
    """No other character than a line feed makes a header of what is part of another's value."""
    plain = f"#!/bin/sh\nprintf '{INJECTED[name]}\\n\\nok'\n"
    ours = (
        (
            "with cgi_session(sessions) as session:\n"
            "    session.add('n')\n"
            f"    sys.stdout.buffer.write(b'{INJECTED[name]}\\n\\nok')\n"
        )
        .replace("\\0", "\\x0")
        .replace("\\x013", "\\x0b")
        .replace("\\x036", "\\x1e")
    )
    ours = ours.replace("\\205", "\\x85")
    server = serve(plain=plain, ours=ours)
    for path in ("/plain", "/begin-plain", "/ours", "/begin-ours"):
        page = Browser(server).get(path)
        planted = [line for line in page.all("Set-Cookie") if "planted" in line]
        assert planted == []
        assert (page.status, page.body) == (200, b"ok") or (page.status, path[-4:]) == (500, "ours")


def test_any_text_in_a_header(serve: Serve) -> None:
    """What is no control character comes to the browser as it was printed, to its last byte."""
    value = "\u212b \u2026 \u0145 \xe0"
    text = (
        "with cgi_session(sessions) as session:\n"
        f"    print('X-Name: {value}  ')\n    print()\n    print(session.add('n'))\n"
    )
    browser = Browser(serve(name=text))
    for path in ("/name", "/begin-name"):
        page = browser.get(path)
        assert (page.status, page.all("X-Name")) == (200, [value.encode().decode("latin-1")])


# What a child is told.


def test_whose_secret_is_where(serve: Serve) -> None:
    """A child has the cookie of its own visitor; the server's environment has none."""
    server = serve(environ=ENVIRON)
    first, second = Browser(server), Browser(server)
    for browser in (first, second):
        for path in ("/begin-environ", "/login-environ", "/environ", "/renew-environ"):
            assert told(browser, path)["HTTP_COOKIE"] == f"id={browser.cookies['id']}"
    secret = first.cookies["id"].partition(".")[2]
    for browser in (second, Browser(server)):
        for path in ("/begin-environ", "/environ"):
            assert secret not in repr(told(browser, path))
    assert secret not in Browser(server).body("/os-environ").decode()
    assert secret not in server.log


@pytest.mark.parametrize(
    "sent",
    [
        "id=one; id=two",
        "a=1;id=one ;b=2",
        " ;; id=one",
        "id=one\xe9",
        "x" * 8000,
        "id=" + "y" * 4000,
    ],
)
def test_strange_cookies(serve: Serve, sent: str) -> None:
    """The child gets one cookie of the session's name at most: that which the browser gets."""
    server = serve(environ=ENVIRON)
    browser = Browser(server)
    given = told(browser, "/begin-environ", Cookie=sent)["HTTP_COOKIE"]
    ids = [pair for pair in given.split("; ") if pair.startswith("id=")]
    assert ids == [f"id={browser.cookies['id']}"]


def test_over_tls(serve: Serve, tmp_path: Path) -> None:
    """The child is told that it is https, and so looks for the cookie that there is."""
    counts = "with cgi_session(sessions) as session:\n" + textwrap.indent(
        "n = session.add('n')\n" + HEAD + "print(n)\n", "    "
    )
    (tmp_path / "server.pem").write_bytes(certificate())
    server = serve(counts=counts, environ=ENVIRON)
    port = int(server.says(r"by TLS on (\d+)").group(1))
    browser = Secure(server, port)
    assert browser.body("/begin-counts") == b"101\n"
    assert list(browser.cookies) == ["__Host-id"]
    assert browser.body("/counts") == b"102\n"
    assert browser.body("/free") == b"103"
    assert told(browser, "/environ")["HTTPS"] == "on"
    assert "HTTPS" not in told(Browser(server), "/environ")


class Secure(Browser):
    """One that speaks TLS, and believes anybody."""

    def __init__(self, server: Server, port: int) -> None:
        super().__init__(server)
        self._port = port
        self._context = ssl.create_default_context()
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPSConnection(
            "127.0.0.1", self._port, timeout=20, context=self._context
        )


def certificate() -> bytes:
    """A key and a certificate for it that it has signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return private + made.public_bytes(serialization.Encoding.PEM)


@pytest.mark.server
def test_a_store_on_redis(serve: Serve, redis_server: RedisServer, prefix: str) -> None:
    """Parent and child share a session on Redis, from the first request on."""
    url = f"{redis_server.url}?prefix={prefix}"
    counts = (
        OPEN.replace("sqlite:///sessions.db", url)
        + "with cgi_session(sessions) as session:\n"
        + textwrap.indent("n = session.add('n')\n" + HEAD + "print(n)\n", "    ")
    )
    server = serve(url, counts=counts)
    browser = Browser(server)
    assert browser.body("/begin-counts") == b"101\n"
    assert browser.body("/counts") == b"102\n"
    assert browser.body("/begin-counts") == b"203\n"
    assert browser.body("/free") == b"204"
    with redis_server.hung():
        assert browser.get("/begin-counts").status == 503
    assert browser.body("/counts") == b"205\n"
