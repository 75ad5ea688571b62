"""HTTP authentication (digest): each request proves anew who it is.

$ twistd -n web --listen tcp:8880 --path examples/twisted

Passwords are in httpd.password, beside this script: alice's is "swordfish". The server shows that
file to everyone who asks for it, as all that lies there: keep yours outside of what is served.
"""

from twisted.cred.checkers import FilePasswordDB
from twisted.cred.portal import IRealm, Portal
from twisted.python.filepath import FilePath
from twisted.web.guard import DigestCredentialFactory, HTTPAuthSessionWrapper
from twisted.web.resource import IResource, Resource
from zope.interface import implementer

cache()


class Home(Resource):
    isLeaf = True

    def __init__(self, user):
        super().__init__()
        self.user = user

    def render_GET(self, request):
        return b"Hello, " + self.user


@implementer(IRealm)
class Homes:
    def requestAvatar(self, user, mind, *interfaces):
        return IResource, Home(user), lambda: print("logout of", user.decode())


passwords = FilePath(__file__).sibling("httpd.password").path
portal = Portal(Homes(), [FilePasswordDB(passwords)])
resource = HTTPAuthSessionWrapper(portal, [DigestCredentialFactory(b"md5", b"example")])
