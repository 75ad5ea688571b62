"""Asynchronous responses by Deferreds, and by coroutines.

$ python examples/twisted/asynchronous_deferred.py

http://127.0.0.1:8880/ waits for a Deferred; /visits awaits one in a coroutine, and counts.
"""

from __future__ import annotations

from serving import seconds, serve
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from sojourn import SessionManager
from sojourn.web.twisted import SessionSite


class Delayed(Resource):
    isLeaf = True

    def render_GET(self, request: Request) -> int:
        waiting = deferLater(reactor, seconds(5), lambda: request)
        waiting.addCallback(self.finish)
        return NOT_DONE_YET

    def finish(self, request: Request) -> None:
        request.write(b"It was worth the wait.")
        request.finish()


class DelayedVisits(Resource):
    isLeaf = True

    def render_GET(self, request: Request) -> int:
        answering = Deferred.fromCoroutine(self.answer(request))
        answering.addErrback(request.processingFailed)
        return NOT_DONE_YET

    async def answer(self, request: Request) -> None:
        session = request.getSession()
        before = session.get("visits", 0)
        await deferLater(reactor, seconds(5))
        visits = session.add("visits")
        request.write(b"When you came it was %d, and now it is %d." % (before, visits))
        request.finish()


root = Resource()
root.putChild(b"", Delayed())
root.putChild(b"visits", DelayedVisits())

if __name__ == "__main__":
    serve(SessionSite(root, SessionManager("sqlite:///sessions.db")))
