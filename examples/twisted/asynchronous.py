"""Asynchronous responses: a page that comes later, while others are served.

$ python examples/twisted/asynchronous.py

http://127.0.0.1:8880/ takes five seconds; so does /visits, which also counts how often this
browser came. The session is there before and after the wait, and is saved before the page leaves.
"""

from __future__ import annotations

from serving import seconds, serve
from twisted.internet import reactor
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from sojourn import SessionManager
from sojourn.web.twisted import SessionSite


class Delayed(Resource):
    isLeaf = True

    def render_GET(self, request: Request) -> int:
        reactor.callLater(seconds(5), self.finish, request)
        return NOT_DONE_YET

    def finish(self, request: Request) -> None:
        request.write(b"Sorry to keep you waiting.")
        request.finish()


class DelayedVisits(Delayed):
    def finish(self, request: Request) -> None:
        visits = request.getSession().add("visits")
        request.write(b"Sorry to keep you waiting, for the %d. time." % visits)
        request.finish()


root = Resource()
root.putChild(b"", Delayed())
root.putChild(b"visits", DelayedVisits())

if __name__ == "__main__":
    serve(SessionSite(root, SessionManager("sqlite:///sessions.db")))
