"""What the examples have in common: listen, and log to standard output."""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.python.log import startLogging

LISTEN = "tcp:8880:interface=127.0.0.1"


def serve(site: Any) -> None:
    """Serve until Control-C, on the endpoint named by the first argument."""
    startLogging(sys.stdout)
    serverFromString(reactor, sys.argv[1] if len(sys.argv) > 1 else LISTEN).listen(site)
    reactor.run()


def seconds(default: float) -> float:
    """How long slow pages take: the second argument."""
    return float(sys.argv[2]) if len(sys.argv) > 2 else default
