"""Other session layers: one file each, with `subject() -> Subject`, raising `Missing`."""

from __future__ import annotations

NAMES = ("starlette", "flask")
"""The files, in the order of the tables."""
