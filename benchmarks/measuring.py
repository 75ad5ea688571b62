"""Paired repeats, and what is made of them.

All that is to be compared is measured in turn in each round, in one order and in the next round in
the other, for about the same time each. A difference and a ratio are taken within a round, so that
what slows the machine for a second slows both sides; the median over the rounds is what counts.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import msgspec

from benchmarks.calling import runner
from benchmarks.payloads import payload, size_of, theme
from benchmarks.scenarios import Scenario, read, read_first, seed
from benchmarks.subjects import Raw, Subject

__all__ = [
    "MAX_COOKIE",
    "Figure",
    "Leg",
    "Plan",
    "RawLeg",
    "SubjectLeg",
    "Wrong",
    "figure",
    "measure",
]


class Wrong(Exception):
    """A session layer gave a wrong answer, or cannot hold such a session: not worth timing."""


class Plan(NamedTuple):
    """How long to measure.

    Attributes:
        seconds: for one group of things that are compared, about; at least two rounds of blocks.
        block: seconds for each of them in each round, about.
        passes: how often all visitors come in a block; 0: as the time says.
        rounds: at least, and at most.
        visitors: at most.
    """

    seconds: float
    block: float = 0.02
    passes: int = 0
    rounds: tuple[int, int] = (7, 61)
    visitors: int = 256

    def visitors_for(self, size: int) -> int:
        """Return how many sessions of that size there are: fewer large ones."""
        return min(self.visitors, 256 if size < 1024 else 128 if size < 10_000 else 32)


class Leg(Protocol):
    """One of the things that are measured in turn."""

    name: str
    count: int
    """Requests in a pass."""
    bytes_kept: int
    """What a pass leaves behind, so that a run does not fill the disk."""

    def once(self) -> float:
        """Make one pass over all visitors, check the answers, return the seconds it took."""
        ...


class SubjectLeg:
    """A session layer, or the bare application, with its visitors."""

    def __init__(
        self, subject: Subject, scenario: Scenario, size: int, visitors: int, *, bare: bool = False
    ) -> None:
        """Make the application, and for returning visitors their sessions."""
        self.name = subject.bare[0] if bare else subject.name
        self.count = visitors
        self.bytes_kept = 0 if bare or scenario.raw != "insert" else visitors * size
        self._subject, self._scenario, self._size, self._bare = subject, scenario, size, bare
        self._app = subject.bare[1]() if bare else subject.make(scenario.action)
        self._turn = 0
        self._cookies = [""] * visitors
        self._newest = self._cookies
        self._values: list[Any] = [theme(visitor, 0) for visitor in range(visitors)]
        if scenario.returning and not bare:
            stored = [{**payload(size), "theme": value} for value in self._values]
            self._cookies = self._visit(seed, stored, "seeded")
        elif scenario.returning:
            self._cookies = ["id=" + "x" * 66] * visitors

    def _visit(self, action: Any, values: Sequence[Any], expected: str) -> list[str]:
        """Make requests of another kind than those that are timed."""
        called = self._subject.call(self._subject.make(action), self._cookies, values)
        if set(called.bodies) != {expected.encode()}:
            raise Wrong(f"{self.name}: {called.bodies[0]!r} came; {expected!r} was expected")
        if expected == "seeded" and not all(called.cookies):
            raise Wrong(f"{self.name} set no cookie for a new session")
        return called.cookies

    def once(self) -> float:
        """As `Leg.once`."""
        scenario = self._scenario
        self._turn += 1
        if scenario.raw == "insert":
            base = payload(self._size)
            self._values = [{**base, "turn": self._turn, "n": n} for n in range(self.count)]
        elif scenario.raw == "write":
            self._values = [theme(visitor, self._turn) for visitor in range(self.count)]
        called = self._subject.call(self._app, self._cookies, self._values)
        if self._bare:
            return called.seconds
        if scenario.raw == "read":
            expected = [str(value).encode() for value in self._values]
        else:
            body = {"insert": b"stored", "write": b"changed", "": b"untouched"}[scenario.raw]
            expected = [body] * self.count
        if called.bodies != expected:
            raise Wrong(f"{self.name}: wrong answers in {scenario.name}, as {called.bodies[0]!r}")
        if scenario.raw == "write":
            pairs = zip(called.cookies, self._cookies, strict=True)
            self._cookies = [new or old for new, old in pairs]
        if scenario.raw == "insert":
            self._newest = called.cookies
            if not all(called.cookies):
                raise Wrong(f"{self.name} set no cookie for a new session")
        return called.seconds

    @property
    def longest_cookie(self) -> int:
        """Return the length of the longest cookie that it has set, name and value."""
        cookies = self._newest if self._scenario.raw == "insert" else self._cookies
        return max(map(len, cookies))

    def check(self) -> None:
        """Read back, by requests of their own, what the last pass should have left.

        Raises:
            Wrong: it is not there.
        """
        if self._bare or (self._scenario.raw == "" and not self._scenario.returning):
            return
        if self._scenario.raw == "insert":
            self._cookies = self._newest
            self._visit(read_first, self._values, "equal")
            self._cookies = [""] * self.count
            return
        called = self._subject.call(self._subject.make(read), self._cookies, self._values)
        if called.bodies != [value.encode() for value in self._values]:
            raise Wrong(f"{self.name}: {called.bodies[0]!r} is there, not {self._values[0]!r}")


_marks = itertools.count()


class RawLeg:
    """A bare command of a driver."""

    def __init__(self, raw: Raw, kind: str, size: int, visitors: int) -> None:
        """Store what is to be read or written.

        Args:
            raw: the driver's commands.
            kind: "insert", "read", "write", or "read+write": one, then the other.
            size: of the session whose JSON is the blob.
            visitors: how many blobs.
        """
        self.name = f"{raw.name} {kind}"
        self.count = visitors
        self.bytes_kept = visitors * size if kind == "insert" else 0
        self._encode = msgspec.json.encode
        self._raw, self._kind, self._turn = raw, kind, 0
        self._base = payload(size)
        # Two drivers of one server share a table.
        self._mark = next(_marks)
        self._keys = [f"k{self._mark:03d}-{visitor:017d}" for visitor in range(visitors)]
        if self._kind != "insert":
            self._run(raw.insert, list(zip(self._keys, self._blobs(), strict=True)))

    def _blobs(self) -> list[bytes]:
        return [
            self._encode({**self._base, "theme": theme(visitor, self._turn)})
            for visitor in range(self.count)
        ]

    def _run(self, command: Any, arguments: list[Any]) -> tuple[float, list[Any]]:
        if self._raw.asynchronous:
            return runner.run(_awaited(command, arguments))
        answers = []
        start = perf_counter()
        for each in arguments:
            answers.append(command(*each))
        return perf_counter() - start, answers

    def once(self) -> float:
        """As `Leg.once`."""
        if self._kind == "read":
            seconds, answers = self._run(self._raw.read, [(key,) for key in self._keys])
            if self._turn == 0 and answers != self._blobs():
                raise Wrong(f"{self.name}: what was read is not what was written")
            self._turn = 1
            return seconds
        self._turn += 1
        if self._kind == "insert":
            self._keys = [
                f"n{self._mark:03d}-{self._turn:06d}-{visitor:010d}"
                for visitor in range(self.count)
            ]
        arguments = list(zip(self._keys, self._blobs(), strict=True))
        return self._run(self._command(), arguments)[0]

    def _command(self) -> Any:
        raw = self._raw
        if self._kind != "read+write":
            return getattr(raw, self._kind)
        read, write = raw.read, raw.write
        if raw.asynchronous:

            async def aboth(key: str, data: bytes) -> None:
                await read(key)
                await write(key, data)

            return aboth

        def both(key: str, data: bytes) -> None:
            read(key)
            write(key, data)

        return both

    def check(self) -> None:
        """Read back what the last pass should have left."""
        if self._kind == "read":
            return
        answers = self._run(self._raw.read, [(key,) for key in self._keys])[1]
        if answers != self._blobs():
            raise Wrong(f"{self.name}: what was written is not there")


async def _awaited(command: Any, arguments: list[Any]) -> tuple[float, list[Any]]:
    answers = []
    start = perf_counter()
    for each in arguments:
        answers.append(await command(*each))
    return perf_counter() - start, answers


MAX_COOKIE = 4096
"""Bytes of name and value; RFC 6265bis, section 5.6."""
_KEPT = 64 * 2**20
"""Bytes that one leg may leave behind."""


def measure(legs: Sequence[Any], plan: Plan) -> dict[str, list[float]]:
    """Return for each leg the microseconds per request of each round."""
    passes: dict[str, int] = {}
    for leg in legs:
        leg.once()
        leg.check()
        seconds = min(leg.once(), leg.once())
        passes[leg.name] = plan.passes or max(1, min(200, round(plan.block / seconds)))
    least, most = plan.rounds
    for leg in legs:
        if leg.bytes_kept:
            # What fits is spread over all rounds.
            most = min(most, max(least, _KEPT // (leg.bytes_kept * passes[leg.name])))
            passes[leg.name] = max(
                1, min(passes[leg.name], _KEPT // (leg.bytes_kept * min(most, least)))
            )
    taken: dict[str, list[float]] = {leg.name: [] for leg in legs}
    stop = perf_counter() + plan.seconds
    number = 0
    while number < least or (number < most and perf_counter() < stop):
        for leg in legs if number % 2 == 0 else reversed(legs):
            times = passes[leg.name]
            seconds = sum([leg.once() for _ in range(times)])
            taken[leg.name].append(seconds / (times * leg.count) * 1e6)
        number += 1
    for leg in legs:
        leg.check()
    return taken


@dataclass(frozen=True)
class Figure:
    """The median of a list of numbers, with what shows how far to trust it."""

    median: float
    least: float
    low: float
    high: float
    """Of ten values one is below `low` and one above `high`."""


def figure(numbers: Sequence[float]) -> Figure:
    """Sum numbers up."""
    ordered = sorted(numbers)
    last = len(ordered) - 1
    return Figure(
        statistics.median(ordered),
        ordered[0],
        ordered[round(last * 0.1)],
        ordered[round(last * 0.9)],
    )


def sizes_text(size: int) -> str:
    """Return what a session of that nominal size is."""
    values = payload(size)
    return f"{size_of(values):,} bytes as JSON, {len(values)} keys"
