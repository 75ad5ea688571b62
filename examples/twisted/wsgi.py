"""WSGI: applications in threads, under Twisted's server.

$ cd examples/twisted
$ PYTHONPATH=. twistd -n web --listen tcp:8880 --wsgi wsgi.hello
$ PYTHONPATH=. twistd -n sojourn --listen tcp:8880 --wsgi wsgi.visits --store sqlite:///sessions.db

`python wsgi.py` serves both, beside a page of Twisted's that shows the same session.
"""

from __future__ import annotations

from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment


def hello(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"Hello from a thread."]


def visits(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    visits = environ["sojourn.session"].add("visits")
    # Its own cookies stay its own.
    start_response("200 OK", [("Content-Type", "text/plain"), ("Set-Cookie", "seen=yes")])
    return [b"Visit %d." % visits]


if __name__ == "__main__":
    from serving import serve
    from twisted.internet import reactor
    from twisted.web.http import Request
    from twisted.web.resource import Resource

    from sojourn import SessionManager
    from sojourn.web.twisted import SessionSite
    from sojourn.web.twisted.wsgi import WSGIResource

    class Shown(Resource):
        isLeaf = True

        def render_GET(self, request: Request) -> bytes:
            return b"Twisted sees %d visits." % request.getSession().get("visits", 0)

    root = Resource()
    for name, application in (b"hello", hello), (b"visits", visits):
        root.putChild(name, WSGIResource(reactor, reactor.getThreadPool(), application))
    root.putChild(b"shown", Shown())
    serve(SessionSite(root, SessionManager("sqlite:///sessions.db")))
