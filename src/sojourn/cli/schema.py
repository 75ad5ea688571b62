"""`sojourn schema`: the tables of a database, as SQL."""

from __future__ import annotations

import importlib

import click

__all__ = ["schema"]


@click.command()
@click.argument("database", type=click.Choice(["postgresql", "mariadb", "sqlite"]))
def schema(database: str) -> None:
    """Print the SQL that makes the tables of a store.

    For databases in which the application may not make tables. Where it may, the store makes them
    by itself.
    """
    try:
        module = importlib.import_module(f"sojourn.stores.{database}")
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"the tables of {database} come with its client library; the package {error.name!r} "
            f'is not installed: pip install "sojourn[{database}]"'
        ) from error
    text: str = module.SCHEMA if database == "sqlite" else module.schema()
    click.echo(text.strip("\n"))
