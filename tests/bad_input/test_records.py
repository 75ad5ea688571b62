"""Records that were damaged in the store: a fresh session and one log line, never more."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import apsw
import msgspec
import pytest

from sojourn.core import codec
from sojourn.core.session import Session
from sojourn.stores.memory import MemoryStore
from sojourn.stores.sqlite import SqliteStore

from ..web.kit import SITES, Site


def show(session: Session) -> str:
    return str(session.get("a"))


def flipped(data: bytes, bit: int) -> bytes:
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-1],
    "cut in the head": lambda data: data[:3],
    "one bit of the version": lambda data: flipped(data, 0),
    "one bit of the check": lambda data: flipped(data, 12),
    "one bit of the length": lambda data: flipped(data, 44),
    "one bit of the index": lambda data: flipped(data, 76),
    "one bit of the value": lambda data: flipped(data, 8 * len(data) - 40),
    "a future codec": lambda data: b"\x02" + data[1:],
    "a codec of long after": lambda data: b"\x7f" + data[1:],
    "sealed": lambda data: b"\x81" + bytes(60),
    "JSON": lambda data: b'{"a": 1}',
    "a pickle": lambda data: (
        b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s."
    ),
    "zeros": lambda data: bytes(len(data)),
    "noise": lambda data: random.Random(7).randbytes(len(data)),
}


@pytest.fixture(params=SITES)
def make_site(request: pytest.FixtureRequest) -> Callable[..., Site]:
    """Sites of each colour."""
    return SITES[request.param]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_data(
    make_site: Callable[..., Site], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """200 and a fresh session; one line in the log, however often the visitor comes again."""
    memory = MemoryStore()
    site = make_site(memory)
    token = site.visit(lambda session: session.update(a="secret")).token
    record = memory._records[token[:22]]
    memory._records[token[:22]] = msgspec.structs.replace(record, data=DAMAGE[damage](record.data))

    for _ in range(3):
        answer = site.visit(show)
        assert (answer.status, answer.body) == (200, b"None")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert token[:22] in caplog.text
    assert token[23:] not in caplog.text

    # Who writes gets a session that works: a new one, unless only the value written was damaged.
    answer = site.visit(lambda session: session.update(a=1))
    assert answer.token[:22] != token[:22]
    assert site.visit(show).body == b"1"


def test_every_bit_of_a_record(make_site: Callable[..., Site]) -> None:
    """Whatever one bit of the data is flipped: the values as they were, or none; never others."""
    memory = MemoryStore()
    site = make_site(memory)
    values: dict[str, Any] = {"a": "x" * 5, "n": 7}
    token = site.visit(lambda session: session.update(values)).token
    good = memory._records[token[:22]]
    for bit in range(8 * len(good.data)):
        bad = msgspec.structs.replace(good, data=flipped(good.data, bit))
        memory._records[token[:22]] = bad
        session = site.sessions.session(site.cookie)
        seen = {}
        for key in ("a", "n"):
            if key in session:
                seen[key] = session.get(key)
        assert {key: value for key, value in seen.items() if value is not None}.items() <= (
            values.items()
        ), bit
        assert site.sessions.commit(session).token is None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sojourn_sessions SET data = x''",
        "UPDATE sojourn_sessions SET data = substr(data, 1, 4)",
        "UPDATE sojourn_sessions SET data = CAST(x'02' || substr(data, 2) AS BLOB)",
        "UPDATE sojourn_sessions SET head = x''",
        "UPDATE sojourn_sessions SET head = substr(head, 5)",
        "UPDATE sojourn_sessions SET status = 9",
        "UPDATE sojourn_sessions SET due = 9e999",
        "UPDATE sojourn_sessions SET due = NULL",
        "UPDATE sojourn_sessions SET version = -5",
        "UPDATE sojourn_sessions SET user_name = CAST(x'ff' AS TEXT)",
        "DELETE FROM sojourn_sessions",
    ],
)
def test_damaged_rows(
    make_site: Callable[..., Site], statement: str, tmp_path: Any, no_blocking_on_the_loop: Any
) -> None:
    """Whatever is written into the table behind our back: no error page, and writing works."""
    no_blocking_on_the_loop.deactivate()
    store = SqliteStore(tmp_path / "s.db")
    site = make_site(store)
    site.visit(lambda session: session.update(a="was"))
    with apsw.Connection(str(tmp_path / "s.db")) as connection:
        connection.execute(statement)
    connection.close()

    assert site.visit(show).status == 200
    assert site.visit(lambda session: session.update(a="new")).status == 200
    assert site.visit(show).body == b"new"
    store.close()


def test_the_damage_is_damage() -> None:
    """None of the above can be read: otherwise the tests would show nothing."""
    memory = MemoryStore()
    site = SITES["wsgi"](memory)
    token = site.visit(lambda session: session.update(a="secret")).token
    data = memory._records[token[:22]].data

    assert set(codec.split(data)) == {"a"}
    assert all(change(data) != data for change in DAMAGE.values())
