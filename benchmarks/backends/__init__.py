"""Back ends: one file each, all with the same two functions.

- `running(folder)`, a context manager entered once: starts the server, or finds it; yields
  whatever `fresh` needs. Raises `Missing` where there is none.
- `fresh(running, folder)`, a context manager entered for each table of figures: yields a `Backend`
  with nothing in it.

The bare commands are what an application would write that only wants one blob by its key: no
expiry, no version, no check.
"""

from __future__ import annotations

EMBEDDED = ("memory", "sqlite", "cookie", "directory")
SERVERS = ("redis", "postgresql", "mariadb")
"""The files, in the order of the tables."""
