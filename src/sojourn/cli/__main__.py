"""`python -m sojourn.cli` does what the command `sojourn` does."""

from __future__ import annotations

from sojourn.cli import main

main()
