"""Interrupted responses: the client goes before the page is ready.

$ python examples/twisted/interrupted.py

Ask for http://127.0.0.1:8880/ with curl and end it with Control-C within five seconds: the work
is called off. /visits also counts in the session how often that was, and /patience shows it: what
is changed when the client has gone is kept too. The session begins with the first look at
/patience, as its cookie needs a page that arrives:

$ curl -c jar http://127.0.0.1:8880/patience
$ curl -b jar http://127.0.0.1:8880/visits      (and Control-C)
$ curl -b jar http://127.0.0.1:8880/patience
"""

from __future__ import annotations

from serving import seconds, serve
from twisted.internet import reactor
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from sojourn import SessionManager
from sojourn.web.twisted import SessionSite


class Delayed(Resource):
    isLeaf = True

    def render_GET(self, request: Request) -> int:
        call = reactor.callLater(seconds(5), self.finish, request)
        request.notifyFinish().addErrback(self.interrupted, call, request)
        return NOT_DONE_YET

    def interrupted(self, failure: Failure, call: IDelayedCall, request: Request) -> None:
        call.cancel()
        print("called off")

    def finish(self, request: Request) -> None:
        request.write(b"You were patient.")
        request.finish()


class DelayedVisits(Delayed):
    def interrupted(self, failure: Failure, call: IDelayedCall, request: Request) -> None:
        request.getSession().add("interrupted")
        super().interrupted(failure, call, request)


class Patience(Resource):
    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        return b"You went %d times." % request.getSession().setdefault("interrupted", 0)


root = Resource()
root.putChild(b"", Delayed())
root.putChild(b"visits", DelayedVisits())
root.putChild(b"patience", Patience())

if __name__ == "__main__":
    serve(SessionSite(root, SessionManager("sqlite:///sessions.db")))
