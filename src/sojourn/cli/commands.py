"""The group of all commands; each command is a module of its own."""

from __future__ import annotations

import click

from sojourn import __version__
from sojourn.cli.copy import copy_command
from sojourn.cli.demo.command import demo
from sojourn.cli.doctor import doctor
from sojourn.cli.import_ import import_group
from sojourn.cli.move import move
from sojourn.cli.schema import schema
from sojourn.cli.sweep import sweep

__all__ = ["cli"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sojourn")
def cli() -> None:
    """One session layer for every Python web framework."""


cli.add_command(demo)
cli.add_command(copy_command)
cli.add_command(doctor)
cli.add_command(import_group)
cli.add_command(move)
cli.add_command(schema)
cli.add_command(sweep)
