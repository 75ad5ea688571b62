"""The fixtures of `tests/demo/servers.py`."""

from __future__ import annotations

from tests.demo.servers import start

__all__ = ["start"]
