"""Session endings: sessions that end after five seconds without a visit, and who is told.

$ python examples/twisted/session_endings.py

http://127.0.0.1:8880/ starts a session; as long as it is visited it lives. When it ends, `expired`
is told, in the process that asked for it, for whatever reason and wherever it ended. `ended` is
told of every session, also of those that end while this server does not run: at the next sweep.
"""

from __future__ import annotations

from serving import seconds, serve
from twisted.internet import reactor
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import Session

from sojourn import SessionManager
from sojourn.web.twisted import SessionSite
from sojourn.web.twisted.service import SweeperService


class ShortSession(Session):
    sessionTimeout = seconds(5)


class Told(Resource):
    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        session = request.getSession()
        if "visits" not in session:
            session.notifyOnExpire(lambda: self.expired(session.uid))
        return b"Visit %d." % session.add("visits")

    def expired(self, uid: bytes) -> None:
        print("expired:", uid.decode())


sessions = SessionManager("sqlite:///sessions.db")


@sessions.on_ended
def ended(session, reason):
    print(f"ended ({reason}):", session.sid, "after", session["visits"], "visits")


if __name__ == "__main__":
    site = SessionSite(Told(), sessions)
    site.sessionFactory = ShortSession
    reactor.callWhenRunning(SweeperService(sessions, every=60).startService)
    serve(site)
