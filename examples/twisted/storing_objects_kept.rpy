"""The same without `cache()`, kept under an unmodified server.

$ PYTHONPATH=examples/twisted twistd -n web --listen tcp:8880 --path examples/twisted

This script is run at each request, so its interface is in a module, which is imported once.
"""

from counting import ICounter
from twisted.web.resource import Resource

from sojourn.web.twisted import SessionResource


class Count(Resource):
    def render_GET(self, request):
        counter = ICounter(request.getSession())
        counter.value += 1
        return b"Visit %d." % counter.value


resource = SessionResource(Count(), "sqlite:///sessions.db")
