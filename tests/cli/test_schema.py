"""`sojourn schema`: the tables of a database, as SQL."""

from __future__ import annotations

import apsw
import pytest
from click.testing import CliRunner

from sojourn.cli.commands import cli
from sojourn.stores import open_store
from sojourn.testing import new_record


def printed(database: str) -> str:
    done = CliRunner().invoke(cli, ["schema", database])
    assert done.exit_code == 0, done.output
    return done.output


def test_sqlite_takes_it_and_the_store_works_with_it(tmp_path: object) -> None:
    """The SQL makes, in a file with an application's own table, what the store needs."""
    path = f"{tmp_path}/app.db"
    connection = apsw.Connection(path)
    connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    connection.execute(printed("sqlite"))
    connection.close()
    store = open_store(f"sqlite:///{path}")
    record = new_record(1.75e9)

    assert store.create(record)
    assert store.load(record.sid) == record
    store.close()


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_it_is_the_text_of_the_store(database: str) -> None:
    """The text is what the store says (its own tests run it on a server)."""
    module = pytest.importorskip(f"sojourn.stores.{database}")

    assert printed(database).strip() == module.schema().strip()
    assert "CREATE TABLE" in printed(database)


def test_another_database_is_refused() -> None:
    """What came, and what is allowed."""
    done = CliRunner().invoke(cli, ["schema", "oracle"])

    assert done.exit_code == 2
    assert all(word in done.output for word in ("oracle", "postgresql", "mariadb", "sqlite"))
