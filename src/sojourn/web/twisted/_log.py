"""Where everything of this package is logged: `twisted.logger`."""

from __future__ import annotations

from twisted.logger import Logger

__all__ = ["log"]

log = Logger("sojourn")
