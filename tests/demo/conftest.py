"""The fixtures of `servers.py`."""

from __future__ import annotations

from tests.demo.servers import serve, start

__all__ = ["serve", "start"]
