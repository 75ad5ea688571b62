"""Logging errors: an interrupted response is told of in the log, with its reason.

$ python examples/twisted/logging_errors.py

Ask for http://127.0.0.1:8880/ with curl and end it with Control-C. /visits tells in the log also
whose session it was: its `uid` names it and opens nothing, so that it may be logged.
"""

from __future__ import annotations

from serving import seconds, serve
from twisted.internet import reactor
from twisted.python import log
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from sojourn import SessionManager
from sojourn.web.twisted import SessionSite


class Delayed(Resource):
    isLeaf = True

    def render_GET(self, request: Request) -> int:
        call = reactor.callLater(seconds(5), self.finish, request)
        finished = request.notifyFinish()
        finished.addErrback(log.err, self.describe(request))
        finished.addCallback(lambda _: call.active() and call.cancel())
        return NOT_DONE_YET

    def describe(self, request: Request) -> str:
        return "the client of / went before its page was ready"

    def finish(self, request: Request) -> None:
        request.write(b"Nothing to log.")
        request.finish()


class DelayedVisits(Delayed):
    def describe(self, request: Request) -> str:
        session = request.getSession()
        session.add("visits")
        return f"the client of session {session.uid.decode()} went before its page was ready"


root = Resource()
root.putChild(b"", Delayed())
root.putChild(b"visits", DelayedVisits())

if __name__ == "__main__":
    serve(SessionSite(root, SessionManager("sqlite:///sessions.db")))
