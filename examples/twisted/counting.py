"""An object for sessions: `ICounter(session)`; imported by scripts that are run at each request."""

from __future__ import annotations

from typing import Any

from twisted.python.components import registerAdapter
from twisted.web.server import Session
from zope.interface import Attribute, Interface, implementer


class ICounter(Interface):
    value = Attribute("how often this browser came")


@implementer(ICounter)
class Counter:
    def __init__(self, session: Any) -> None:
        self.value = 0


registerAdapter(Counter, Session, ICounter)
