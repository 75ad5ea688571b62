"""Session basics: show the session, end it at /session_basics.rpy/expire.

$ twistd -n web --listen tcp:8880 --path examples/twisted
$ twistd -n sojourn --listen tcp:8880 --path examples/twisted --store sqlite:///sessions.db

With the second line, and nothing changed here, the session outlives the server.
"""

from twisted.web.resource import Resource

cache()


class Show(Resource):
    def render_GET(self, request):
        return b"This is session " + request.getSession().uid


class Expire(Resource):
    def render_GET(self, request):
        request.getSession().expire()
        return b"It has ended."


resource = Show()
resource.putChild(b"expire", Expire())
