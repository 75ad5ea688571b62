"""Storing objects in the session: `ICounter(session)` is one counter for each browser.

$ twistd -n web --listen tcp:8880 --path examples/twisted
$ twistd -n sojourn --listen tcp:8880 --path examples/twisted --store sqlite:///sessions.db

With the second line the counters outlive the server: what the interface declares is kept.
"""

from twisted.python.components import registerAdapter
from twisted.web.resource import Resource
from twisted.web.server import Session
from zope.interface import Attribute, Interface, implementer

cache()


class IVisits(Interface):
    value = Attribute("how often this browser came")


@implementer(IVisits)
class Visits:
    def __init__(self, session):
        self.value = 0


registerAdapter(Visits, Session, IVisits)


class Count(Resource):
    def render_GET(self, request):
        visits = IVisits(request.getSession())
        visits.value += 1
        return b"Visit %d." % visits.value


resource = Count()
