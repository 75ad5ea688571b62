"""`sojourn import session3`: sessions go over, ids stay valid, and no pickle runs anything."""

from __future__ import annotations

import os
import pickle
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sojourn import SessionManager
from sojourn.cli.commands import cli
from sojourn.web.session3 import token_of_id
from tests.web.quixote.old_files import (
    DICT_SESSION,
    SESSION,
    RunsACommand,
    as_object,
    classes_named,
    new_id,
    pickled,
    write_session,
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "old"
    made.mkdir()
    return made


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/new.db"


def imported(directory: Path, *arguments: str) -> Result:
    command = ["import", "session3", str(directory), *arguments]
    return CliRunner().invoke(cli, command, env={"COLUMNS": "200"})


def opened(url: str, session_id: str) -> Any:
    """The session that this old id opens."""
    sessions = SessionManager(url)
    return sessions.session(f"{sessions.cookie.name_for[False]}={token_of_id(session_id)}")


def test_sessions_go_over_and_old_ids_open_them(directory: Path, url: str) -> None:
    """With the user, the address and the attributes; and a second run changes nothing."""
    ids = [write_session(directory, user=f"user{n}", counter=n) for n in range(5)]
    done = imported(directory, "--store", url)

    assert done.exit_code == 0, done.output
    assert "Taken over 5; there already 0" in done.output
    assert "after 1:00:00 without use and after 1 day, 0:00:00 in any case" in done.output
    for number, session_id in enumerate(ids):
        session = opened(url, session_id)
        assert session.user == f"user{number}"
        assert session["counter"] == number
        assert session.client.address == "192.0.2.7"
    assert not any(session_id in done.output for session_id in ids)
    assert "Taken over 0; there already 5" in imported(directory, "--store", url).output
    assert sorted(os.listdir(directory)) == sorted(ids)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_that_session3_had(directory: Path, url: str, protocol: int) -> None:
    """It has written protocol 4; its forerunners and its SQL stores wrote 2."""
    values = {"cart": [1, {"a": (1, None)}], "price": 1.5, "tags": {"x"}, "big": 1 << 70}
    session_id = write_session(directory, user="alice", protocol=protocol, **values)
    imported(directory, "--store", url)

    session = opened(url, session_id)
    assert {key: session[key] for key in values} == values


def test_classes_of_your_own_are_allowed_by_name(directory: Path, url: str) -> None:
    """What is not allowed is refused with its name; when it is allowed, a second run takes it."""
    session_id = new_id()
    with classes_named("shop.cart.Cart", "shop.web.ShopSession") as (cart, shop):
        held = as_object(cart, items=["apple"])
        session = as_object(shop, id=session_id, user="alice", cart=held)
        (directory / session_id).write_bytes(pickle.dumps(session, 4))
    good = write_session(directory, user="bob")
    done = imported(directory, "--store", url)

    assert done.exit_code == 1
    assert "Taken over 1" in done.output
    assert f"{session_id[:4]}...: it holds a shop.web.ShopSession, which is not allowed" in (
        done.output
    )
    assert opened(url, good).user == "bob"
    assert opened(url, session_id).is_new
    again = imported(directory, "--store", url, "--allow", "shop.web.ShopSession")
    assert "it holds a shop.cart.Cart, which is not allowed" in again.output
    allow = ["--allow", "shop.web.ShopSession", "--allow", "shop.cart.Cart"]
    done = imported(directory, "--store", url, *allow)
    assert done.exit_code == 0, done.output
    assert opened(url, session_id)["cart"] == {"items": ["apple"]}


def test_no_pickle_runs_anything(directory: Path, url: str, tmp_path: Path) -> None:
    """Nor is a module imported that it names; also where its class is said to be allowed."""
    made = tmp_path / "made by a pickle"
    first, second, third = new_id(), new_id(), new_id()
    (directory / first).write_bytes(pickle.dumps(RunsACommand(made)))
    (directory / second).write_bytes(pickled(second, user="eve", held=RunsACommand(made)))
    (directory / third).write_bytes(pickled(third, name="antigravity.Session", user="eve"))
    done = imported(directory, "--store", url, "--allow", "os.makedirs")
    refused = imported(directory, "--store", url)

    assert not made.exists()
    assert "os.makedirs" in refused.output
    assert "antigravity.Session" in refused.output
    assert "antigravity" not in sys.modules
    assert opened(url, first).is_new
    assert opened(url, third).is_new
    # As allowed, it is what stands for an object, and no call of anything.
    assert opened(url, second)["held"] == (str(made),)
    assert done.exit_code == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (b"\0" * 180, "damaged"),
        (b"\x80\x04", "damaged"),
        (b"hello, world\n", "damaged"),
        (b"\xff" * 50, "damaged"),
        (pickle.dumps({"id": "x"}), "it holds no session"),
        (pickle.dumps(None), "it holds no session"),
        # A memo's place of two milliards: 32 GB, if it were made room for.
        (b"\x80\x04Nr\xff\xff\xff\x7f.", "it holds no session"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.", "damaged"),
        (b"\x80\x04\x82\x01.", "damaged"),
        (b"Pname\n.", "damaged"),
    ],
)
def test_damaged_files_are_reported_and_skipped(
    directory: Path, url: str, data: bytes, words: str
) -> None:
    """The others go over."""
    damaged = new_id()
    (directory / damaged).write_bytes(data)
    good = write_session(directory, user="bob")
    done = imported(directory, "--store", url)

    assert done.exit_code == 0, done.output
    assert f"{damaged[:4]}...: " in done.output
    assert words in done.output
    assert "Taken over 1" in done.output
    assert opened(url, good).user == "bob"


def test_a_file_cut_short_anywhere_is_damaged(directory: Path, url: str) -> None:
    """As kill -9 leaves them: never a session with half of its values."""
    whole = pickled("abcdefghijk", user="alice", counter=1)
    for size in range(len(whole)):
        (directory / f"{size:011}").write_bytes(whole[:size])
    done = imported(directory, "--store", url)

    assert "Taken over 0; there already 0" in done.output
    assert f"Damaged {len(whole)}" in done.output
    assert "Traceback" not in done.output


def test_a_file_of_another_session_is_none(directory: Path, url: str) -> None:
    """A file tells nothing by its inside that its name does not: a copy is no second session."""
    (directory / "abcdefghijk").write_bytes(pickled("../../../../x", user="root"))
    (directory / "abcdefghijl").write_bytes(pickled("ABCDEFGHIJK", user="root"))
    done = imported(directory, "--store", url)

    assert "Damaged 2" in done.output
    assert SessionManager(url).count() == 0


def test_foreign_files_are_named_and_not_opened(directory: Path, url: str) -> None:
    """A subdirectory, a link, a pipe, a file of another name; a pipe must not hold it up."""
    (directory / "README.txt").write_text("by hand")
    (directory / "a_directory").mkdir()
    os.symlink("/etc/passwd", directory / "LINKLINKLIN")
    if hasattr(os, "mkfifo"):
        os.mkfifo(directory / "PIPEPIPEPIP")
    done = imported(directory, "--store", url)

    assert done.exit_code == 0, done.output
    assert "'README.txt'" in done.output
    assert "a_di...: it" in done.output
    assert "LINK...: it cannot be opened" in done.output
    assert "not an ordinary file" in done.output


def test_values_that_a_session_cannot_keep_are_named(directory: Path, url: str) -> None:
    """By the attribute; and a few bytes that mean gigabytes are found out."""
    keyed = write_session(directory, user="alice", prices={1: "one"})
    doubled: list[Any] = []
    for _ in range(60):
        doubled = [doubled, doubled]
    bomb = write_session(directory, user="alice", doubled=doubled)
    looped: list[Any] = []
    looped.append(looped)
    loop = write_session(directory, user="alice", looped=looped)
    large = write_session(directory, user="alice", large="x" * 2_000_000)
    done = imported(directory, "--store", url)

    assert done.exit_code == 1
    assert f"{keyed[:4]}...: session['prices'] holds a dict with a key of type int" in done.output
    assert f"{bomb[:4]}...: it holds more than 1,000,000 values" in done.output
    assert f"{loop[:4]}...: its values are nested too deep" in done.output
    assert f"{large[:4]}...: the session has" in done.output
    assert SessionManager(url).count() == 0


def test_a_session_that_ended_is_not_taken_over_again(directory: Path, url: str) -> None:
    """Whoever has logged out since the first run stays logged out."""
    session_id = write_session(directory, user="alice")
    imported(directory, "--store", url)
    sessions = SessionManager(url)
    assert len(sessions.end_all("alice")) == 1
    done = imported(directory, "--store", url)

    assert "Taken over 0; there already 1" in done.output
    assert opened(url, session_id).is_new


def test_the_manager_of_an_application(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its store, its limits and its seal are used."""
    session_id = write_session(directory, user="alice", card="4111")
    (tmp_path / "shop_with_sessions.py").write_text(
        "from datetime import timedelta\n"
        "from sojourn import SessionManager\n"
        f"sessions = SessionManager('sqlite:///{tmp_path}/shop.db', lifetime=None,\n"
        "    idle_timeout=timedelta(days=30), seal_keys=['8f1d2c3b4a5968778695a4b3c2d1e0f1a'])\n"
    )
    monkeypatch.chdir(tmp_path)
    done = imported(directory, "--sessions", "shop_with_sessions:sessions")

    assert done.exit_code == 0, done.output
    assert "after 30 days, 0:00:00 without use." in done.output
    import shop_with_sessions  # type: ignore[import-not-found]

    token = token_of_id(session_id)
    assert token is not None
    session = shop_with_sessions.sessions.find(token.sid)
    assert (session.user, session["card"]) == ("alice", "4111")
    assert b"4111" not in shop_with_sessions.sessions.store.load(token.sid).data


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give --store URL, or --sessions MODULE:NAME"),
        (("--store", "memory://"), "MemoryStore keeps nothing that the application would find"),
        (("--store", "nothing:x"), "no store is known"),
    ],
)
def test_errors_are_one_line(directory: Path, arguments: tuple[str, ...], words: str) -> None:
    """No traceback; what came and what to do."""
    done = imported(directory, *arguments)

    assert done.exit_code != 0
    assert words in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("name", "how"),
    [(DICT_SESSION, ()), ("shop.Session", ("--allow", "shop.Session", "--dict"))],
)
def test_sessions_that_are_mappings(
    directory: Path, url: str, name: str, how: tuple[str, ...]
) -> None:
    """Session3's DictSession keeps its keys apart from its attributes; so does ours."""
    data = {"theme": "dark", "user": "a key"}
    session_id = write_session(directory, name=name, user="alice", data=data, theme="light")
    done = imported(directory, "--store", url, *how)

    assert done.exit_code == 0, done.output
    assert dict(opened(url, session_id)) == {"theme": "dark", "user": "a key", ".theme": "light"}
    assert opened(url, session_id).user == "alice"


@pytest.mark.parametrize(
    ("user", "wanted"), [("alice", "alice"), (42, "42"), (None, None), ("", None), (0, "0")]
)
def test_users(directory: Path, url: str, user: object, wanted: str | None) -> None:
    """Ids are text; whoever was nobody stays nobody."""
    session_id = write_session(directory, user=user, counter=1)
    done = imported(directory, "--store", url)

    assert done.exit_code == 0, done.output
    session = opened(url, session_id)
    assert (session.user, dict(session)) == (wanted, {"counter": 1})


def test_users_that_are_objects(directory: Path, url: str) -> None:
    """Which of their attributes is the id has to be said; the rest is kept beside it."""
    session_id = new_id()
    with classes_named("shop.User", "session3.Session.Session") as (kind, plain):
        user = as_object(kind, name="alice", admin=False)
        session = as_object(plain, id=session_id, user=user)
        (directory / session_id).write_bytes(pickle.dumps(session, 4))
    refused = imported(directory, "--store", url, "--allow", "shop.User")
    done = imported(directory, "--store", url, "--allow", "shop.User", "--user-id", "name")

    assert refused.exit_code == 1
    assert "name the attribute that is the user's id by --user-id (it has name, admin)" in (
        refused.output
    )
    assert done.exit_code == 0, done.output
    assert opened(url, session_id).user == "alice"
    assert opened(url, session_id)["user"] == {"name": "alice", "admin": False}


@pytest.mark.parametrize("user", ["x" * 256, "a\0b", "\udc80", ["alice"], 1.5])
def test_users_that_no_session_can_have(directory: Path, url: str, user: object) -> None:
    """They are refused, each with its reason; not one is logged in as somebody else."""
    write_session(directory, user=user)
    done = imported(directory, "--store", url)

    assert done.exit_code == 1
    assert "a user is a str of 1 to 255 characters" in done.output
    assert SessionManager(url).count() == 0


def raw(session_id: str, *pairs: bytes, name: str = SESSION) -> bytes:
    """Return the pickle of a session with attributes written by hand."""
    module, _, cls = name.rpartition(".")
    head = b"\x80\x04" + called(module, cls) + b")\x81}("
    return head + text("id") + text(session_id) + b"".join(pairs) + b"ub."


def called(module: str, name: str) -> bytes:
    return text(module) + text(name) + pickle.STACK_GLOBAL


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + len(raw).to_bytes(4, "little") + raw


def integer(value: int) -> bytes:
    raw = pickle.encode_long(value)
    return pickle.LONG4 + len(raw).to_bytes(4, "little") + raw


BAD_KEYS = {"a lone surrogate": "a\ud800", "of messages": "\0f:", "a number": 1}


@pytest.mark.parametrize("key", BAD_KEYS.values(), ids=BAD_KEYS)
@pytest.mark.parametrize("name", [SESSION, DICT_SESSION])
def test_keys_that_cannot_be(directory: Path, url: str, key: Any, name: str) -> None:
    """The session is refused, and the others go over; a record that nobody can read is not made."""
    first, last = sorted(new_id() for _ in range(2))
    written = text(key) if isinstance(key, str) else b"K\x01"
    pair = written + b"N"
    if name == DICT_SESSION:
        pair = text("data") + b"}(" + pair + b"u"
    (directory / first).write_bytes(raw(first, pair, name=name))
    write_session(directory, last)
    done = imported(directory, "--store", url)

    assert "Taken over 1;" in done.output
    there = "Refused 1" if name == DICT_SESSION or isinstance(key, str) else "Damaged 1"
    assert there in done.output
    assert opened(url, first).is_new


@pytest.mark.parametrize("data", [b"K\x01", b"]K\x01a", b"}(" + text(".user") + text("bob") + b"u"])
def test_mappings_that_are_none(directory: Path, url: str, data: bytes) -> None:
    """Nor does a key of a mapping become an attribute."""
    session_id = new_id()
    (directory / session_id).write_bytes(raw(session_id, text("data") + data, name=DICT_SESSION))
    done = imported(directory, "--store", url)

    assert "Taken over 0;" in done.output
    assert "Refused 1" in done.output


BOMBS = {
    "a long integer": text("user") + integer(10**5000),
    "a long integer as a key of the user": text("user") + b"}(" + integer(10**5000) + b"Nu",
    "a Decimal of a long integer": text("x")
    + called("decimal", "Decimal")
    + integer(1 << 8_000_000)
    + b"\x85R",
    "a text a million times": text("x")
    + b"]("
    + text("a" * 1_000_000)
    + b"\x94"
    + b"h\x00" * 1_000_000
    + b"e",
    "sets of the same": text("x")
    + b"]\x94("
    + b"".join(b"M" + number.to_bytes(2, "little") for number in range(1 << 16))
    + b"e0"
    + called("builtins", "set")
    + b"\x940]("
    + b"h\x01h\x00\x85R" * 100_000
    + b"e",
    "objects of the same": text("x")
    + b"("
    + b"N" * 100_000
    + b"t\x940"
    + called("session3.Session", "Session")
    + b"\x940]("
    + b"h\x01h\x00\x81" * 100_000
    + b"e",
    "attributes of a class": text("x") + called("uuid", "UUID") + b"}(" + text("a") + b"Nub",
}


def nested(first: int) -> bytes:
    """Return a set of sets: to compare it with another one takes 2 to the 45 comparisons."""
    made = b")"
    for number in range(first, first + 45):
        twice = [b"h%cK%c\x86" % (number, member) for member in (1, 2)]
        made += b"\x940(" + b"".join(twice) + b"\x91"
    return made


# Python's hash of a number is the remainder by this, in every process.
SAME = [integer(number * (2**61 - 1)) for number in range(1, 40_001)]
KEYED = b"N".join(SAME) + b"N"
BOMBS |= {
    "keys of one hash": text("x") + b"}(" + KEYED + b"u",
    "keys of one hash, one by one": text("x") + b"}" + b"Ns".join(SAME) + b"Ns",
    "keys of one hash, in the old way": text("x") + b"(" + KEYED + b"d",
    "keys of one hash, in order": text("x")
    + called("collections", "OrderedDict")
    + b"]("
    + b"N\x86".join(SAME)
    + b"N\x86e\x85R",
    "members of one hash": text("x") + b"\x8f(" + b"".join(SAME) + b"\x90",
    "members of one hash, for good": text("x") + b"(" + b"".join(SAME) + b"\x91",
    "members of one hash, in the old way": text("x")
    + called("builtins", "set")
    + b"]("
    + b"".join(SAME)
    + b"e\x85R",
    "one member again and again": text("x")
    + b"\x8f("
    + b"".join(SAME[:5000])
    + b"\x94\x90("
    + b"h\x00" * 100_000
    + b"\x90",
    "a set of one hash again and again": text("x")
    + b"](\x8f("
    + b"".join(SAME[:5000])
    + b"\x90\x94"
    + b"h\x00" * 150
    + b"e",
    "a key of tuples of tuples": text("x") + b"})" + b"2\x86" * 60 + b"Ns",
    "two equal sets of sets": text("x") + b"\x8f(" + nested(0) + nested(45) + b"\x90",
    "a member that is long, again and again": text("x")
    + b"\x8f("
    + integer(1 << 8_000_000)
    + b"\x94"
    + b"h\x00" * 1_000_000
    + b"\x90",
    "a Decimal of a long text, again and again": text("x")
    + text("7" * 100_000)
    + b"\x940"
    + called("decimal", "Decimal")
    + b"\x940]("
    + b"h\x01h\x00\x85R" * 100_000
    + b"e",
    "a class again and again": text("x")
    + text("session3.Session")
    + b"\x940"
    + text("Session")
    + b"\x940]("
    + b"h\x00h\x01\x93" * 300_000
    + b"e",
    "sets of nothing": text("x") + b"](" + b"\x8f" * 2_000_000 + b"e",
    "numbers for nothing": text("x") + b"N" + b"\x94" * 3_000_000,
}


@pytest.mark.parametrize("pair", BOMBS.values(), ids=BOMBS)
def test_a_small_file_does_not_grow(directory: Path, url: str, pair: bytes) -> None:
    """What would take hours or gigabytes is given up at once, and the others go over."""
    first, last = sorted(new_id() for _ in range(2))
    (directory / first).write_bytes(raw(first, pair))
    write_session(directory, last)
    tracemalloc.start()
    try:
        done = imported(directory, "--store", url)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert "Taken over 1;" in done.output, done.output
    assert "Damaged 1" in done.output
    assert most < 250_000_000


def test_numbers_of_one_hash_in_the_memo(directory: Path, url: str) -> None:
    """A pickle may number its values as it likes: the time it takes is that of their count."""
    session_id = new_id()
    puts = b"".join(b"p%d\n" % (number * (2**61 - 1)) for number in range(1, 300_001))
    (directory / session_id).write_bytes(raw(session_id, text("x"), b"K\x07" + puts))
    done = imported(directory, "--store", url)

    assert "Taken over 1;" in done.output
    assert opened(url, session_id)["x"] == 7


def test_sets_of_many_numbers_go_over(directory: Path, url: str) -> None:
    """As many as any session has."""
    numbers = set(range(5_000))
    pairs = {(number, str(number)) for number in range(2_000)}
    session_id = write_session(directory, numbers=numbers, pairs=pairs)
    done = imported(directory, "--store", url)

    assert "Taken over 1;" in done.output
    assert opened(url, session_id)["numbers"] == numbers
    assert opened(url, session_id)["pairs"] == pairs


@pytest.mark.parametrize("name", ["a\ud800", "a\x1b]0;b\x07", "a\nTaken over 9", "a" * 100_000])
def test_names_that_would_command_the_terminal(directory: Path, url: str, name: str) -> None:
    """They are written out, and cut."""
    session_id = new_id()
    (directory / session_id).write_bytes(raw(session_id, text("x") + called(name, "b")))
    done = imported(directory, "--store", url)

    assert (done.exit_code, done.exception.__class__) == (1, SystemExit), done.output
    (line,) = [one for one in done.output.splitlines() if "not allowed" in one]
    assert line.isprintable()
    assert len(line) < 300
    assert not any(one.startswith("Taken over 9") for one in done.output.splitlines())
