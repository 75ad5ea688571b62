"""The command `sojourn`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    try:
        from sojourn.cli.commands import cli
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("click", "rich"):
            raise
        sys.exit(
            f"sojourn: the command needs the package {package!r}, which is not installed: "
            'pip install "sojourn[cli]"'
        )
    cli()
