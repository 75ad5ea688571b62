#!/usr/bin/env python3
"""The demo as a CGI script: one process for each request."""

import sys

from demo import create_publisher
from quixote.server import cgi_server

# Quixote reads and writes bytes, and takes these two, which are for text.
sys.__stdin__, sys.__stdout__ = sys.stdin.detach(), sys.stdout.detach()
cgi_server.run(create_publisher)
