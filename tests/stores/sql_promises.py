"""What every SQL store has to keep, tested on the real server; a module for a database inherits.

A subclass says how stores and plain connections are made; it has the fixtures `server`, a running
one, and `url`, of a database on it without any tables.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import msgspec
import pytest
from msgspec.structs import replace as changed

from sojourn.core.calls import GONE, SAVED
from sojourn.core.codec import checked
from sojourn.core.record import ENDED, ENDING, LIVE, MARK, Ended, Record
from sojourn.errors import ConfigurationError, DamagedRecord, InvalidValue, StoreUnavailable
from sojourn.stores.base import AsyncStore, Store
from sojourn.stores.heads import head_of
from sojourn.testing import CHECKS, Check, arun_check, new_record, next_version, run_check
from sojourn.testing.damage import DAMAGED_CHECKS

from .servers_sql import Relay, Server

COUNTING = """
import sys
from msgspec.structs import replace as changed
from sojourn.core.calls import SAVED
from sojourn.stores import open_store
url, sid, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = open_store(url)
for _ in range(rounds):
    record = store.load(sid)
    while record is not SAVED:
        newer = changed(
            record, version=record.version + 1, data=str(int(record.data) + 1).encode()
        )
        record = store.replace(newer, record.version)
"""

MAKING = """
import sys, time
from sojourn.stores import open_store
store = open_store(sys.argv[1])
time.sleep(max(0.0, float(sys.argv[2]) - time.time()))
assert store.count() == 0
"""


def python(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Another process."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stderr=subprocess.PIPE,
    )


def finish(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors.decode()


def seconds_of(call: Callable[[], Any]) -> float:
    """How long it takes for the store to say that the server does not answer."""
    start = time.monotonic()
    with pytest.raises(StoreUnavailable):
        call()
    return time.monotonic() - start


async def aseconds_of(call: Callable[[], Any]) -> float:
    start = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await call()
    return time.monotonic() - start


def _parts(kept: Any, lost: Any) -> bytes:
    """A head of two parts, with checksums that are right, of whatever is in them."""
    first = checked(msgspec.msgpack.encode(kept))
    return bytes((len(first) + 1,)) + first + checked(msgspec.msgpack.encode(lost))


@contextlib.contextmanager
def closing(store: Any) -> Iterator[Any]:
    try:
        yield store
    finally:
        store.close()


@contextlib.asynccontextmanager
async def aclosing(store: Any) -> Any:
    try:
        yield store
    finally:
        await store.close()


class SqlPromises:
    """Tests for one database."""

    make: ClassVar[Callable[..., Any]]
    """`from_url` of the store's module."""
    amake: ClassVar[Callable[..., Any]]
    """`afrom_url`."""
    largest: ClassVar[int] = 16 * 1024 * 1024

    def run_sql(self, url: str, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements by the bare driver; the rows of the last."""
        raise NotImplementedError

    @contextlib.contextmanager
    def a_lock_on(self, url: str, sid: str) -> Iterator[None]:
        """Hold the row in a transaction of somebody else."""
        raise NotImplementedError

    def through(self, url: str, port: int) -> str:
        """The same URL by another port."""
        raise NotImplementedError

    # The contract.

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_contract(self, url: str, check: Check) -> None:
        """The blocking store keeps the contract."""
        with closing(self.make(url)) as store:
            run_check(check, store)

    @pytest.mark.anyio
    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_contract_async(self, url: str, check: Check) -> None:
        """The asynchronous store keeps the contract."""
        async with aclosing(self.amake(url)) as store:
            await arun_check(check, store)

    def test_protocols(self, url: str) -> None:
        """Each is a store of its colour, and says what it promises."""
        store, astore = self.make(url), self.amake(url)

        assert isinstance(store, Store)
        assert isinstance(astore, AsyncStore)
        assert (store.promises.survives, store.promises.shared) == ("power", "hosts")
        assert astore.promises == store.promises

    # Values.

    def test_any_character_of_a_text_comes_back(self, url: str) -> None:
        """Control characters, quotes, separators, the ends of each plane: kept as they are."""
        points = [*range(1, 0x180), 0x2028, 0x2029, 0xD7FF, 0xE000, 0xFEFF, 0xFFFD, 0xFFFF]
        points += [0x10000, 0x1F600, 0x10FFFF]
        text = "".join(map(chr, points))
        record = new_record(
            time.time(), user=text[:500], address=text, agent=text + text[::-1], reason="it's"
        )
        with closing(self.make(url)) as store:
            assert store.create(record)
            assert store.load(record.sid) == record
            newer = next_version(record, user=text[-10:], reason="\\' OR 1=1 --")
            assert store.replace(newer, 1) is SAVED
            assert store.list(text[-10:]) == [newer]

    def test_users_with_different_spaces_at_the_end_are_different(self, url: str) -> None:
        """Nothing is folded, padded or cut: not at the end, not by case, not by accent."""
        users = ["ann", "ann ", "ann  ", "ANN", "Ann", "\u00e5nn", "ann\u200b", "a" * 512]
        records = [new_record(time.time(), user=user) for user in users]
        with closing(self.make(url)) as store:
            for record in records:
                assert store.create(record)
            for record in records:
                assert store.list(record.user) == [record]
                assert store.count(record.user) == 1

    def test_times_come_back_to_the_last_bit(self, url: str) -> None:
        """A time is a double all the way."""
        choose = random.Random(7)
        with closing(self.make(url)) as store:
            for _ in range(100):
                now = choose.uniform(1e9, 3e9)
                record = new_record(
                    now, idle_timeout=choose.random(), grace_until=choose.uniform(0, 1e-300)
                )
                assert store.create(record)
                assert store.load(record.sid) == record

    def test_16_mebibytes_of_data(self, url: str) -> None:
        """The largest session: created, loaded, replaced, listed, claimed."""
        data = random.Random(3).randbytes(self.largest)
        record = new_record(time.time(), data=data, user="alice")
        with closing(self.make(url + self.patient(url))) as store:
            assert store.create(record)
            assert store.load(record.sid) == record
            newer = next_version(record, data=data[::-1])
            assert store.replace(newer, 1) is SAVED
            assert store.list("alice") == [newer]
            assert [due.data for due in store.due(record.deadline, 60.0)] == [newer.data]

    @pytest.mark.anyio
    async def test_16_mebibytes_of_data_async(self, url: str) -> None:
        """The same for the asynchronous one."""
        data = random.Random(3).randbytes(self.largest)
        record = new_record(time.time(), data=data)
        async with aclosing(self.amake(url + self.patient(url))) as store:
            assert await store.create(record)
            assert await store.load(record.sid) == record

    @staticmethod
    def patient(url: str) -> str:
        return ("&" if "?" in url else "?") + "timeout=30"

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"user": "a" * 513}, "user has 513 characters"),
            ({"user": "a\udc80"}, "user is .* surrogate"),
            ({"agent": "\ud800"}, "agent is .* surrogate"),
            ({"address": "a" * 16_001}, "address has 16001 characters"),
        ],
        ids=["long", "surrogate", "agent", "address"],
    )
    def test_what_cannot_be_kept_is_refused(
        self, url: str, fields: dict[str, str], named: str
    ) -> None:
        """A text that would come back changed raises InvalidValue, and nothing is written."""
        record = new_record(time.time())
        bad = new_record(time.time(), **fields)
        with closing(self.make(url)) as store:
            assert store.create(record)
            with pytest.raises(InvalidValue, match=named):
                store.create(bad)
            with pytest.raises(InvalidValue, match=named):
                store.replace(next_version(record, **fields), 1)
            assert store.list(status=None) == [record]
            if "user" in fields:
                assert store.list(fields["user"]) == []
                assert store.count(fields["user"]) == 0

    def test_a_tombstone_holds_nothing_personal(self, url: str) -> None:
        """What is ended loses user, data, salt, commits, address and agent, in the table too."""
        now = time.time()
        record = new_record(
            now, user="alice", agent="Firefox/7", address="10.1.2.3", commits=b"commitid", data=b"d"
        )
        with closing(self.make(url)) as store:
            assert store.create(record)
            before = self.row(url)
            assert store.delete(record.sid, Ended(ENDED, "user", now + 1, now + 60))
            after = self.row(url)
            found = store.load(record.sid)

        personal = (b"alice", b"Firefox/7", b"10.1.2.3", b"commitid", record.salt)
        assert [secret in before for secret in personal] == [True] * 5
        assert [secret in after for secret in personal] == [False] * 5
        assert found == Record(
            record.sid, record.secret_hash, 2, now, now + 1, now + 60, 1800.0, 43200.0, b"",
            status=ENDED, reason="user",
        )  # fmt: skip

    def row(self, url: str) -> bytes:
        """All columns of the one row, as bytes."""
        [row] = self.run_sql(url, "SELECT * FROM sojourn_sessions")
        return b" ".join(
            bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()
            for value in row
        )

    def test_what_sql_changes_counts(self, url: str) -> None:
        """Version, times, status, reason and attempts are the columns', whatever was written."""
        now = time.time()
        record = new_record(now - 7200, deadline=now - 60, user="alice")
        with closing(self.make(url)) as store:
            assert store.create(record)
            assert store.touch(record.sid, 1, now - 50.0, now - 40.0)
            touched = changed(record, version=2, seen=now - 50.0, deadline=now - 40.0)
            assert store.load(record.sid) == touched
            [claimed] = store.due(now, 60.0)
            assert claimed == changed(touched, version=3, status=ENDING, attempts=1)
            assert store.load(record.sid) == claimed
            assert store.list("alice", ENDING) == [claimed]

    # Damage.

    DAMAGE: ClassVar[dict[str, Callable[[bytes], bytes]]] = {
        "empty": lambda head: b"",
        "one byte": lambda head: head[:1],
        "cut": lambda head: head[:-1],
        "without the second part": lambda head: head[: head[0]],
        "longer": lambda head: head + b"\0",
        "first byte": lambda head: b"\0" + head[1:],
        "other bytes": lambda head: bytes(range(len(head) % 256)),
        "wrong types": lambda head: _parts([1, 2, 3], [4]),
        "no array": lambda head: _parts({"a": 1}, None),
        "two parts of another order": lambda head: _parts([None], head),
    }

    @pytest.mark.parametrize("how", DAMAGE)
    def test_a_damaged_head(self, url: str, how: str) -> None:
        """DamagedRecord for that session, by every verb that reads it; the one beside is well."""
        now = time.time()
        records = sorted((new_record(now, user="alice") for _ in range(3)), key=lambda r: r.sid)
        bad = records[1]
        with closing(self.make(url)) as store:
            for record in records:
                assert store.create(record)
            self.write_head(url, bad.sid, self.DAMAGE[how](head_of(bad)))
            connection = store._source.take()
            store._source.give(connection)
            for _ in range(2):
                with pytest.raises(DamagedRecord, match=bad.sid):
                    store.load(bad.sid)
            with pytest.raises(DamagedRecord):
                store.replace(next_version(bad), 7)
            assert store._source.take() is connection
            store._source.give(connection)
            assert store.list("alice", limit=2) == [records[0], records[2]]
            assert store.load(records[0].sid) == records[0]
            assert store.delete(bad.sid, Ended(ENDED, "damaged", now, now + 60.0))
            tombstone = store.load(bad.sid)
            assert (tombstone.status, tombstone.reason, tombstone.user) == (ENDED, "damaged", None)
            assert store.replace(next_version(bad), 1) is GONE
            assert [record.sid for record in store.list(status=ENDED)] == [bad.sid]

    def test_every_flipped_bit_of_a_head(self, url: str) -> None:
        """No flipped bit of a head comes back as another session."""
        record = new_record(time.time(), user="alice", agent="Firefox", address="::1")
        head = head_of(record)
        with closing(self.make(url)) as store:
            assert store.create(record)
            for bit in range(0, len(head) * 8, 3):
                flipped = bytearray(head)
                flipped[bit // 8] ^= 1 << bit % 8
                self.write_head(url, record.sid, bytes(flipped))
                with pytest.raises(DamagedRecord):
                    store.load(record.sid)
            self.write_head(url, record.sid, head)
            assert store.load(record.sid) == record

    @pytest.mark.anyio
    async def test_a_damaged_head_async(self, url: str) -> None:
        """The same for the asynchronous one, which keeps its connection."""
        now = time.time()
        record = new_record(now - 7200, deadline=now - 60)
        async with aclosing(self.amake(url)) as store:
            assert await store.create(record)
            self.write_head(url, record.sid, head_of(record)[:-1])
            connection = await store._source.take()
            store._source.give(connection)
            with pytest.raises(DamagedRecord, match=record.sid):
                await store.load(record.sid)
            assert await store.list() == []
            assert await store.due(now, 60.0) == []
            assert await store._source.take() is connection
            store._source.give(connection)
            assert await store.delete(record.sid)

    def test_contract_with_damage(self, url: str) -> None:
        """All that the contract says of damaged records, but that a whole record heals one."""

        def damage(store: Any, sid: str) -> None:
            self.write_head(url, sid, b"x" * 150)

        for check in DAMAGED_CHECKS:
            if check.__name__ == "writes_to_a_damaged_record_do_nothing":
                continue
            with closing(self.make(url)) as store:
                store.count()
                self.run_sql(url, "DELETE FROM sojourn_sessions")
                run_check(partial(check, damage), store)

    def test_a_sweep_sets_what_is_damaged_aside(
        self, url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is met once, logged, and never claimed again; the others are claimed."""
        now = time.time()
        records = [new_record(now - 7200, deadline=now - i - 1) for i in range(3)]
        with closing(self.make(url)) as store:
            for record in records:
                store.create(record)
            self.write_head(url, records[1].sid, b"")
            claimed = store.due(now, 60.0)
            again = store.due(now + 1e6, 60.0)

        assert {record.sid for record in claimed} == {records[0].sid, records[2].sid}
        assert {record.sid for record in again} == {records[0].sid, records[2].sid}
        told = [record for record in caplog.records if records[1].sid in record.message]
        assert len(told) == 1

    def write_head(self, url: str, sid: str, head: bytes) -> None:
        """Put a head into a row by the bare driver."""
        raise NotImplementedError

    @pytest.mark.parametrize("name", ["created", "grace_until"])
    def test_times_that_are_no_number(self, url: str, name: str) -> None:
        """NaN is refused before it is sent; so are numbers and hashes longer than any are."""
        with closing(self.make(url)) as store:
            for fields in ({name: float("nan")}, {"generation": 1 << 64}, {"salt": b""}):
                record = new_record(time.time(), **fields)
                if "salt" in fields:
                    record = changed(record, previous_hash=bytes(300))
                with pytest.raises(InvalidValue, match=record.sid):
                    store.create(record)
            assert store.count(status=None) == 0

    # Processes.

    @pytest.mark.slow
    def test_no_increment_of_8_processes_is_lost(self, url: str) -> None:
        """8 processes add 250 times each to one session by compare-and-swap: 2,000."""
        record = new_record(time.time(), data=b"0")
        with closing(self.make(url)) as store:
            assert store.create(record)
            finish([python(COUNTING, url, record.sid, "250") for _ in range(8)])
            found = store.load(record.sid)

        assert found is not None
        assert (found.data, found.version) == (b"2000", 2001)

    def test_processes_that_start_together_make_one_schema(self, url: str) -> None:
        """6 processes meet an empty database at the same moment; none of them fails."""
        start = str(time.time() + 1.5)
        finish([python(MAKING, url, start) for _ in range(6)])

        assert self.run_sql(url, "SELECT version FROM sojourn_meta") == [(1,)]

    def test_threads_that_start_together_make_one_schema(self, url: str) -> None:
        """The same for 8 stores in threads, over and over."""
        for _ in range(5):
            self.run_sql(url, "DROP TABLE IF EXISTS sojourn_sessions, sojourn_meta")
            barrier = threading.Barrier(8)
            faults: list[Exception] = []

            def first_use(barrier: Any = barrier, faults: Any = faults) -> None:
                with closing(self.make(url)) as store:
                    barrier.wait()
                    try:
                        store.count()
                    except Exception as error:
                        faults.append(error)

            threads = [threading.Thread(target=first_use) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

            assert faults == []
            assert self.run_sql(url, "SELECT count(*) FROM sojourn_meta") == [(1,)]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
    def test_a_child_does_not_use_its_parents_connections(self, url: str) -> None:
        """After a fork both go on with what is theirs, at the same time and after one ended."""
        records = [new_record(time.time(), data=str(i).encode()) for i in range(2)]
        with closing(self.make(url)) as store:
            for record in records:
                store.create(record)
            child = os.fork()
            mine = records[0 if child else 1]
            right = all(store.load(mine.sid) == mine for _ in range(300))
            if child == 0:
                store.close()
                os._exit(0 if right else 1)
            _, status = os.waitpid(child, 0)

            assert right
            assert status == 0
            assert all(store.load(mine.sid) == mine for _ in range(50))

    # Sweeps.

    def test_a_sweep_passes_over_what_another_holds(self, url: str) -> None:
        """A row that is locked is neither waited for nor returned; it comes the next time."""
        now = time.time()
        records = [new_record(now - 7200, deadline=now - i - 1) for i in range(5)]
        with closing(self.make(url)) as store:
            for record in records:
                store.create(record)
            with self.a_lock_on(url, records[2].sid):
                start = time.monotonic()
                claimed = store.due(now, 60.0)
                took = time.monotonic() - start
            rest = store.due(now, 60.0)

        assert sorted(record.sid for record in claimed) == sorted(
            record.sid for record in records if record is not records[2]
        )
        assert [record.sid for record in rest] == [records[2].sid]
        assert took < 1.0

    def test_two_sweepers_never_get_the_same(self, url: str) -> None:
        """4 stores sweep 600 sessions in pages of 7 at the same time: each claimed once."""
        now = time.time()
        with closing(self.make(url)) as store:
            for i in range(600):
                store.create(new_record(now - 7200, deadline=now - i - 1))
        got: list[str] = []
        faults: list[Exception] = []

        def sweep() -> None:
            with closing(self.make(url)) as store:
                try:
                    while page := store.due(now, 3600.0, 7):
                        got.extend(record.sid for record in page)
                except Exception as error:
                    faults.append(error)

        threads = [threading.Thread(target=sweep) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert faults == []
        assert len(got) == 600
        assert len(set(got)) == 600

    def test_a_large_claim_is_made_of_short_transactions(self, url: str) -> None:
        """A sweep of 250 sessions, touched, ended or over, takes at most 50 rows at a time."""
        now = time.time()
        with closing(self.make(url)) as store:
            for i in range(250):
                record = new_record(now - 7200, deadline=now - 1 - i / 1000)
                if i % 5 == 4:
                    record = new_record(now - 7200, status=ENDED, deadline=now - 1)
                store.create(record)
                if i % 5 == 3:
                    assert store.touch(record.sid, 1, now, now + 900.0)
            pages: list[int] = []
            page = store._dialect.page

            def counted(now: float, lease: float, limit: int) -> Any:
                pages.append(limit)
                return page(now, lease, limit)

            store._dialect.page = counted
            claimed = store.due(now, 60.0, limit=1000)

            assert len(pages) == 6
            assert max(pages) == 50
            assert len(claimed) == 150
            assert {record.status for record in claimed} == {ENDING}
            assert store.count(status=None) == 200
            assert store.due(now, 60.0) == []
            assert len(store.due(now + 900.0, 60.0, limit=1000)) == 200

    # Faults of the server.

    def test_hung_server(self, server: Server, url: str) -> None:
        """A server that hangs costs a bounded wait; when it is back, so is the store."""
        record = new_record(time.time())
        with closing(self.make(url + "?timeout=1")) as store:
            store.create(record)
            with server.hung():
                waits = [
                    seconds_of(lambda: store.load(record.sid)),
                    seconds_of(lambda: store.replace(next_version(record), 1)),
                    seconds_of(lambda: store.delete(record.sid)),
                ]
            assert max(waits) < 5.0
            found = store.load(record.sid)
            # What was sent may be done late, as with any lost reply; nothing else was.
            assert found is None or found in (record, next_version(record))

    @pytest.mark.anyio
    async def test_hung_server_async(self, server: Server, url: str) -> None:
        """The same for the asynchronous one, with 20 calls at once on 3 connections."""
        record = new_record(time.time())
        async with aclosing(self.amake(url + "?timeout=1&pool_size=3")) as store:
            await store.create(record)
            await asyncio.gather(*(store.load(record.sid) for _ in range(10)))
            with server.hung():
                calls = (aseconds_of(lambda: store.load(record.sid)) for _ in range(20))
                waits = await asyncio.gather(*calls)
            assert max(waits) < 5.0
            assert await store.load(record.sid) == record

    def test_network_gone(self, server: Server, url: str) -> None:
        """Where no packet comes through any more: a bounded wait, and recovery by itself."""
        record = new_record(time.time())
        relay = Relay(server.port)
        try:
            with closing(self.make(self.through(url, relay.port) + "?timeout=1")) as store:
                store.create(record)
                with relay.gone():
                    waits = [seconds_of(lambda: store.load(record.sid)) for _ in range(2)]
                assert max(waits) < 5.0
                assert store.load(record.sid) == record
        finally:
            relay.close()

    @pytest.mark.anyio
    async def test_network_gone_async(self, server: Server, url: str) -> None:
        """The same for the asynchronous one."""
        record = new_record(time.time())
        relay = Relay(server.port)
        try:
            async with aclosing(self.amake(self.through(url, relay.port) + "?timeout=1")) as store:
                await store.create(record)
                with relay.gone():
                    waits = [await aseconds_of(lambda: store.load(record.sid)) for _ in range(2)]
                assert max(waits) < 5.0
                assert await store.load(record.sid) == record
        finally:
            relay.close()

    def test_first_request_after_a_restart_is_served(self, server: Server, url: str) -> None:
        """All pooled connections are dead, and nobody notices; meanwhile the error is clear."""
        record = new_record(time.time())
        with closing(self.make(url)) as store:
            store.create(record)
            barrier = threading.Barrier(4)

            def load() -> None:
                barrier.wait()
                for _ in range(20):
                    store.load(record.sid)

            threads = [threading.Thread(target=load) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            server.stop()
            try:
                with pytest.raises(StoreUnavailable, match="cannot connect"):
                    self.make(url).load(record.sid)
            finally:
                server.start()
            assert store.load(record.sid) == record
            assert store.replace(next_version(record), 1) is SAVED

    @pytest.mark.anyio
    async def test_first_request_after_a_restart_is_served_async(
        self, server: Server, url: str
    ) -> None:
        """The same for the asynchronous one."""
        record = new_record(time.time())
        async with aclosing(self.amake(url)) as store:
            await store.create(record)
            await asyncio.gather(*(store.load(record.sid) for _ in range(8)))
            server.stop()
            try:
                with pytest.raises(StoreUnavailable):
                    await store.load(record.sid)
            finally:
                server.start()
            await asyncio.gather(*(store.load(record.sid) for _ in range(8)))
            server.stop()
            server.start()
            assert await store.replace(next_version(record), 1) is SAVED

    @pytest.mark.slow
    def test_nothing_acknowledged_is_lost_by_kill(self, server: Server, url: str) -> None:
        """The server is killed under 3 writers, twice: every acknowledged write is there."""
        records = [new_record(time.time(), data=b"0") for _ in range(3)]
        acknowledged = {record.sid: 0 for record in records}
        stop = threading.Event()

        def write(record: Record) -> None:
            while not stop.is_set():
                try:
                    current = store.load(record.sid)
                    assert current is not None
                    newer = next_version(current, data=str(int(current.data) + 1).encode())
                    if store.replace(newer, current.version) is SAVED:
                        acknowledged[record.sid] = int(newer.data)
                except StoreUnavailable:
                    time.sleep(0.01)

        with closing(self.make(url)) as store:
            for record in records:
                store.create(record)
            threads = [threading.Thread(target=write, args=(record,)) for record in records]
            for thread in threads:
                thread.start()
            try:
                for _ in range(2):
                    time.sleep(0.4)
                    server.kill()
                    server.start()
                time.sleep(0.2)
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
            found = {record.sid: store.load(record.sid) for record in records}

        for sid, least in acknowledged.items():
            record = found[sid]
            assert record is not None
            assert least <= int(record.data) <= least + 3  # a reply may be lost at each kill
            assert least > 10
            assert record.version == int(record.data) + 1

    # Locks, pools, tasks.

    def test_a_row_that_somebody_locked(self, url: str) -> None:
        """A lock of somebody else costs a bounded wait; reads go on; then all is well."""
        record = new_record(time.time())
        with closing(self.make(url + "?timeout=1.5")) as store:
            store.create(record)
            with self.a_lock_on(url, record.sid):
                assert store.load(record.sid) == record
                assert seconds_of(lambda: store.touch(record.sid, 1, 1.0, 2.0)) < 4.0
            assert store.touch(record.sid, 1, record.seen, record.deadline)

    def test_all_connections_in_use(self, url: str) -> None:
        """A call waits for a connection for a bounded time, and the error names the setting."""
        record = new_record(time.time())
        with closing(self.make(url + "?timeout=2&pool_size=1")) as store:
            store.create(record)
            connection = store._source.take()
            try:
                with pytest.raises(StoreUnavailable, match="pool_size"):
                    store.load(record.sid)
            finally:
                store._source.give(connection)
            assert store.load(record.sid) == record

    @pytest.mark.anyio
    async def test_all_connections_in_use_async(self, url: str) -> None:
        """The same for tasks; those that wait are served when one comes free."""
        record = new_record(time.time())
        async with aclosing(self.amake(url + "?timeout=1&pool_size=1")) as store:
            await store.create(record)
            loads = await asyncio.gather(*(store.load(record.sid) for _ in range(50)))
            assert loads == [record] * 50
            connection = await store._source.take()
            try:
                with pytest.raises(StoreUnavailable, match="pool_size"):
                    await store.load(record.sid)
            finally:
                store._source.give(connection)
            assert await store.load(record.sid) == record

    @pytest.mark.anyio
    async def test_cancelled_tasks_leave_no_answer_behind(self, url: str) -> None:
        """Tasks are cancelled wherever they are; no later call gets what was meant for them."""
        choose = random.Random(11)
        now = time.time()
        records = [new_record(now, data=str(i).encode() * 50) for i in range(10)]
        async with aclosing(self.amake(url + "?pool_size=3")) as store:
            for record in records:
                await store.create(record)

            async def read(record: Record) -> None:
                for _ in range(40):
                    assert await store.load(record.sid) == record

            cancelled = 0
            for _ in range(60):
                tasks = [asyncio.ensure_future(read(record)) for record in records]
                await asyncio.sleep(choose.uniform(0, 0.004))
                for task in tasks[::2]:
                    task.cancel()
                answers = await asyncio.gather(*tasks, return_exceptions=True)
                for answer in answers:
                    assert answer is None or isinstance(answer, asyncio.CancelledError)
                    cancelled += answer is not None
            loads = await asyncio.gather(*(store.load(record.sid) for record in records))

        assert loads == records
        assert cancelled > 50

    def test_one_store_on_two_event_loops(self, url: str) -> None:
        """Connections of one loop are not used on another, also when the first was left open."""
        record = new_record(time.time())
        store = self.amake(url)

        async def use(close: bool) -> tuple[Record | None, bool]:
            connection = await store._source.take()
            was_used = connection.used
            store._source.give(connection)
            await store.create(record)
            loaded: Record | None = await store.load(record.sid)
            if close:
                await store.close()
            return loaded, was_used

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # asyncio's, for what was left open
            first = asyncio.run(use(close=False))
            second = asyncio.run(use(close=True))
            gc.collect()

        assert first == second == (record, False)
        assert len(store._source._loops) == 1

    # The schema.

    def test_a_newer_schema_is_refused(self, url: str) -> None:
        """A database that a newer release has changed is left alone, and the error says why."""
        with closing(self.make(url)) as store:
            store.count()
        self.run_sql(url, "UPDATE sojourn_meta SET version = 7")
        with (
            closing(self.make(url)) as store,
            pytest.raises(ConfigurationError, match=r"version 7, .* versions up to 1"),
        ):
            store.load("a" * 22)

    def test_statuses_out_of_range_are_refused_by_the_table(self, url: str) -> None:
        """The database itself keeps what is no record out of the table."""
        record = new_record(time.time())
        with closing(self.make(url)) as store:
            store.create(record)
            with pytest.raises(Exception, match=r"(?i)constraint"):
                self.run_sql(url, "UPDATE sojourn_sessions SET status = 9")
            assert store.load(record.sid) == record

    def test_a_mark_is_kept_like_a_session(self, url: str) -> None:
        """Marks are replaced and touched, and show only when asked for."""
        mark = new_record(time.time(), status=MARK, secret_hash=b"", data=b"1")
        with closing(self.make(url)) as store:
            assert store.create(mark)
            assert store.replace(next_version(mark, data=b"2"), 1) is SAVED
            assert store.touch(mark.sid, 2, mark.seen, mark.deadline)
            assert store.list(status=LIVE) == []
            assert store.count(status=MARK) == 1
            assert store.delete(mark.sid, Ended(ENDED, "user", mark.seen, mark.deadline))
            assert store.replace(next_version(mark), 3) is GONE
