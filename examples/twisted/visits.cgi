#!/usr/bin/env python3
from sojourn import SessionManager
from sojourn.web.cgi import cgi_session

with cgi_session(SessionManager("sqlite:///sessions.db")) as session:
    visits = session.add("visits")
    print("Content-Type: text/plain")
    print()
    print(f"Visit {visits}.")
