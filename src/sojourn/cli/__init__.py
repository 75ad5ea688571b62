"""The command `sojourn`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    try:
        from sojourn.cli.commands import cli
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit(
            f"sojourn: the command needs the package {error.name!r}, which is not installed: "
            'pip install "sojourn[cli]"'
        )
    cli()
