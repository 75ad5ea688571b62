"""CGI: programs that are started for each request, and scripts handed to one.

$ cd examples/twisted
$ python scripts.py

/date is a shell script, /visits a Python script that finds the same session as the pages of
Twisted's around it: the child gets its cookie, also where the session is new. /filtered is that
script handed to an interpreter. The children run in this folder, so the database lies here.
/visits is run by the python3 of PATH, which must have Sojourn: activate its environment first.
`twistd -n web --path examples/twisted` serves *.cgi too.
"""

from __future__ import annotations

import sys
from pathlib import Path

from serving import serve
from twisted.web.http import Request
from twisted.web.resource import Resource

from sojourn import SessionManager
from sojourn.web.twisted import SessionSite
from sojourn.web.twisted.cgi import CGIScript, FilteredScript

HERE = Path(__file__).parent


class PythonScript(FilteredScript):
    filter = sys.executable


class Shown(Resource):
    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        return b"Twisted sees %d visits." % request.getSession().get("visits", 0)


root = Resource()
root.putChild(b"date", CGIScript(str(HERE / "date.cgi")))
root.putChild(b"visits", CGIScript(str(HERE / "visits.cgi")))
root.putChild(b"filtered", PythonScript(str(HERE / "visits.cgi")))
root.putChild(b"shown", Shown())

if __name__ == "__main__":
    serve(SessionSite(root, SessionManager("sqlite:///sessions.db")))
