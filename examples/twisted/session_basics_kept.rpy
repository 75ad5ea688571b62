"""Session basics, kept under an unmodified server: `SessionResource` around the resource.

$ twistd -n web --listen tcp:8880 --path examples/twisted
"""

from twisted.web.resource import Resource

from sojourn.web.twisted import SessionResource

cache()


class Show(Resource):
    def render_GET(self, request):
        return b"This is session " + request.getSession().uid


class Expire(Resource):
    def render_GET(self, request):
        request.getSession().expire()
        return b"It has ended."


root = Show()
root.putChild(b"expire", Expire())
resource = SessionResource(root, "sqlite:///sessions.db")
