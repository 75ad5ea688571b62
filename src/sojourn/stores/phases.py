"""The phases of a live move, where they are kept, and the steps from each to the next.

    phase        who decides   also written   read from
    old          old           -              old
    old leads    old           new            old
    switching    nobody: calls wait for the next phase, about two seconds
    new leads    new           old            new
    new          new           -              new

`advance` goes down, `back` goes up from every phase but the last. The phase is kept in a mark (a
record that is no session) in the old store; a second one in the new store says that it takes part
in a move, and, when the old store is gone, that the move is over.

**At any time one store decides.** A worker holds its knowledge of the phase for `LEASE` seconds
at most: it reads the mark again every `REFRESH` seconds, and what it did under knowledge older
than `LEASE` it only reports when the mark has not changed since, else it does it again under the
new phase. So `PATIENCE` seconds after the mark was changed no worker reports anything under the
old one, however long it hung. Between two phases in which the same store decides nothing more is
needed. Where the decision goes from one store to the other, `switching` stands between for
`PATIENCE` seconds. Any worker ends that phase when it has itself seen it for so long, so that it
passes also when the process that began it was killed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import msgspec

from sojourn.core.calls import SAVED, Count, Create, Delete, Flow, Load, Pause, Replace
from sojourn.core.record import ENDED, ENDING, LIVE, MARK, Record
from sojourn.errors import ConfigurationError, Conflict, DamagedRecord, StoreUnavailable
from sojourn.stores.copying import count, end_like
from sojourn.stores.pair import (
    MOVING,
    NEW,
    OLD,
    At,
    Joined,
    Report,
    add_digests,
    can_change,
    digest_of,
    put,
    same,
)

__all__ = [
    "LEADER",
    "LEASE",
    "PATIENCE",
    "PHASES",
    "REFRESH",
    "SWITCHING",
    "Filled",
    "Mark",
    "State",
    "advance",
    "back",
    "current",
    "fill",
    "settle",
    "state",
    "sync",
]

REFRESH = 0.5
LEASE = 1.0
PATIENCE = 1.5
"""More than `LEASE`, for clocks that do not run at quite the same speed."""

ONLY_OLD, OLD_LEADS, SWITCHING = "old", "old leads", "switching"
NEW_LEADS, ONLY_NEW = "new leads", "new"
PHASES = (ONLY_OLD, OLD_LEADS, SWITCHING, NEW_LEADS, ONLY_NEW)

LEADER: dict[str, tuple[int, int | None]] = {
    ONLY_OLD: (OLD, None),
    OLD_LEADS: (OLD, NEW),
    NEW_LEADS: (NEW, OLD),
    ONLY_NEW: (NEW, None),
}
"""Phase -> the store that decides, and the one that is also written."""

_CONFLICT = (
    "the phase of the move was changed by somebody else meanwhile; look at it with sojourn move "
    "status, and try again"
)
_FOREVER = 100 * 365 * 86400.0
_TRIES = 50
_MOMENTS = 15


class Mark(msgspec.Struct, frozen=True):
    """What the mark of a move says.

    Attributes:
        phase: one of `PHASES`.
        side: of the store that holds it: "old" or "new".
        move: a name for this move that no other has.
        to: while switching, the phase that follows.
    """

    phase: str
    side: str
    move: str = ""
    to: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Mark).decode

NOTHING = Mark(ONLY_OLD, "old")


def _load(place: int) -> Flow[tuple[int, Mark | None]]:
    """Return the mark in a store, and its version; 0 and None where there is none."""
    where = ("old", "new")[place]
    try:
        record: Record | None = yield At(place, Load(MOVING))
        if record is None:
            return 0, None
        mark = _decode(record.data)
        if mark.phase not in PHASES:
            raise msgspec.ValidationError(f"the phase is {mark.phase[:40]!r}")
    except (DamagedRecord, msgspec.DecodeError) as error:
        raise StoreUnavailable(
            f"the mark of the move in the {where} store cannot be read ({error}). Bring all "
            "workers to the release of sojourn that wrote it, or restore the store"
        ) from error
    return record.version, mark


def _store(place: int, mark: Mark, version: int, clock: Callable[[], float]) -> Flow[bool]:
    """Put a mark where that version of it is (0: none); False where it has changed meanwhile."""
    now = clock()
    data = _encode(mark)
    record = Record(
        MOVING, b"", version + 1, now, now, now + _FOREVER, None, None, data, status=MARK
    )
    if version == 0:
        return (yield At(place, Create(record)))  # type: ignore[no-any-return]
    return (yield At(place, Replace(record, version))) is SAVED


def current(first: bool = True) -> Flow[tuple[int, Mark]]:
    """Return the mark that counts, and its version.

    Args:
        first: also see whether the two stores fit, where the old one has no mark.

    Raises:
        ConfigurationError: the stores take part in other moves, or are given the wrong way round.
        StoreUnavailable: the old store does not answer, and the move is not known to be over.
    """
    try:
        version, mark = yield from _load(OLD)
    except StoreUnavailable as error:
        try:
            _, copy = yield from _load(NEW)
        except StoreUnavailable:
            raise error from None
        if copy is None or copy.side != "new" or copy.phase != ONLY_NEW:
            raise
        return 0, copy
    if mark is not None and mark.side == "new":
        if mark.phase == ONLY_NEW:
            # It was the target of a move that is over, and is the source of this one.
            return version, NOTHING
        raise ConfigurationError(
            "the store given as the old one is the new one of a move that is under way; are the "
            "two URLs the wrong way round?"
        )
    if mark is not None:
        return version, mark
    if first:
        try:
            _, copy = yield from _load(NEW)
        except StoreUnavailable:
            copy = None  # It is not needed yet.
        if copy is not None and copy.phase != ONLY_OLD:
            raise ConfigurationError(
                "the new store takes part in a move (phase "
                f"{copy.phase!r}), and the old one knows nothing of it; is the URL of the old "
                "store the right one, and does it still hold its records?"
            )
    return 0, NOTHING


def settle(version: int, mark: Mark, clock: Callable[[], float] = time.time) -> Flow[bool]:
    """End the phase `switching`, which must have been seen for `PATIENCE` seconds."""
    after = msgspec.structs.replace(mark, phase=mark.to, to="")
    return (yield from _store(OLD, after, version, clock))


# One session in both stores.


def sync(
    sid: str, leader: int, follower: int, clock: Callable[[], float] = time.time
) -> Flow[tuple[Record | None, Record | None]]:
    """Make the follower say of a session what the leader says; return both records.

    The follower is read first and changed by compare-and-swap, so what is put there is never older
    than what was. An end counts on whichever side it is met: it is carried to both, and nothing
    is ever put in the place of one. Also whoever broke off between two writes is finished by this.
    """
    waited = 0
    for _ in range(_TRIES):
        try:
            there: Record | None = yield At(follower, Load(sid))
        except DamagedRecord:
            yield At(follower, Delete(sid))
            continue
        try:
            record: Record | None = yield At(leader, Load(sid))
        except DamagedRecord:
            return None, there  # Perhaps the only good one.
        if same(record, there):
            return record, there
        if record is None:
            if there is None or there.status in (ENDED, MARK):
                # A sweep of the leader removed it, its time was over. A fence may stay longer, and
                # a mark may come back under the same sid at any moment.
                return record, there
            yield At(follower, Delete(sid))
        elif there is None or can_change(there):
            yield from put(follower, record, there, clock())
        elif can_change(record) or (record.status, there.status) == (ENDING, ENDED):
            # Whoever is at it ends it in the leader in a moment, and is told that it was he; unless
            # he was broken off.
            if waited < _MOMENTS:
                waited += 1
                yield Pause(0.02)
            else:
                yield At(leader, end_like(there, clock()))
        elif record.status == ENDED:
            yield At(follower, end_like(record, clock()))
        else:
            # Both are ending, with other data: the follower's was behind when it ended.
            yield At(follower, Delete(sid))
    raise StoreUnavailable(
        f"the session {sid} changed {_TRIES} times while it was brought to the other store",
        transient=True,
    )


# Steps.


class Filled(msgspec.Struct):
    """What a pass over both stores did.

    Attributes:
        records: sessions and other records that both stores hold alike now.
        brought: of these, how many had to be brought over, or were being written.
        removed: records of the new store that the old one does not have any more.
        digest: the sum over all of them as the old store has them.
        new_digest: the same from the new store.
    """

    records: int = 0
    brought: int = 0
    removed: int = 0
    digest: int = 0
    new_digest: int = 0


def fill(told: Report, clock: Callable[[], float] = time.time) -> Flow[Filled]:
    """Go through both stores, and make the new one equal to the old one, while both are in use."""
    done = Filled()
    rows = Joined()
    while page := (yield from rows.next()):
        for sid, record, there in page:
            if not same(record, there):
                # Read at different moments: ask both again, and repair what is not the same.
                record, there = yield from sync(sid, OLD, NEW, clock)
                if record is None:
                    done.removed += there is None
                    continue
                done.brought += 1
            assert record is not None
            assert there is not None
            done.records += 1
            done.digest = add_digests(done.digest, digest_of(record))
            done.new_digest = add_digests(done.new_digest, digest_of(there))
        told(done.records)
    return done


class State(msgspec.Struct):
    """Where a move is.

    Attributes:
        phase: one of `PHASES`.
        to: while switching, the phase that follows.
        counts: of the old and the new store, records by status; None: it does not answer.
    """

    phase: str
    to: str
    counts: list[dict[int, int] | None]


def state() -> Flow[State]:
    """Return where a move is."""
    _, mark = yield from current()
    counts: list[dict[int, int] | None] = []
    for place in (OLD, NEW):
        try:
            numbers = {}
            for status in (LIVE, ENDING, ENDED, MARK):
                numbers[status] = yield At(place, Count(None, status))
            _, copy = yield from _load(place)
            numbers[MARK] -= copy is not None
            counts.append(numbers)
        except StoreUnavailable:
            counts.append(None)
    return State(mark.phase, mark.to, counts)


def advance(
    told: Callable[[str], Report], clock: Callable[[], float] = time.time, final: bool = True
) -> Flow[list[Filled]]:
    """Take one step forward; returns what was brought over, if it was that step.

    Broken off at any point, it is simply called again.

    Args:
        told: called with what begins; returns what is told how far it has come.
        clock: for the times in the mark.
        final: whether it may be the step from which none leads back.

    Raises:
        ConfigurationError: the move is over, or the new store is not fit for it.
        Conflict: somebody else took a step meanwhile.
    """
    version, mark = yield from current()
    passes: list[Filled] = []
    if mark.phase == ONLY_OLD:
        yield from _make_room()
        move = os.urandom(8).hex()
        yield from _go(version, msgspec.structs.replace(mark, phase=OLD_LEADS, move=move), clock)
    elif mark.phase == OLD_LEADS:
        # The step before may have been a moment ago: until all workers write to both stores, what
        # is brought over is out of date at once.
        yield Pause(PATIENCE)
        for what in ("Bringing over", "Verifying"):
            passes.append((yield from fill(told(what), clock)))
        yield from _switch(version, mark, NEW_LEADS, clock)
    elif mark.phase == SWITCHING:
        yield Pause(PATIENCE)
        yield from settle(version, mark, clock)
    elif mark.phase == NEW_LEADS:
        if not final:
            raise Conflict(_CONFLICT)
        yield from _go(version, msgspec.structs.replace(mark, phase=ONLY_NEW), clock)
        # When this returns, nobody writes to the old store any more.
        yield Pause(PATIENCE)
    else:
        # The second mark may be missing, if the last step was broken off.
        yield from _copy_mark(mark, clock)
        raise ConfigurationError(
            "the move is over: all workers use the new store alone. Give them its URL, and then "
            "take the old store away"
        )
    return passes


def back(clock: Callable[[], float] = time.time) -> Flow[None]:
    """Take one step back; nothing is lost by it, as both stores have all that was reported.

    It needs the old store alone, unless the new one is the old one's equal.

    Raises:
        ConfigurationError: there is no way back, or nothing to go back from.
        Conflict: somebody else took a step meanwhile.
    """
    version, mark = yield from current()
    if mark.phase == ONLY_NEW:
        raise ConfigurationError(
            "the move is over, and the old store has missed what happened since. To move back, "
            "empty it and begin a move in the other direction"
        )
    if mark.phase == ONLY_OLD:
        if mark.move:
            yield from _copy_mark(mark, clock)
        raise ConfigurationError("the old store alone is in use: there is nothing to go back from")
    if mark.phase == OLD_LEADS:
        yield from _go(version, msgspec.structs.replace(mark, phase=ONLY_OLD), clock)
    else:
        yield from _switch(version, mark, OLD_LEADS, clock)


def _go(version: int, mark: Mark, clock: Callable[[], float]) -> Flow[None]:
    """Enter a phase, if the mark is still of that version."""
    if not (yield from _store(OLD, mark, version, clock)):
        # Or it was this very call, whose first answer got lost.
        _, there = yield from _load(OLD)
        if there != mark:
            raise Conflict(_CONFLICT)
    if mark.phase != SWITCHING:
        yield from _copy_mark(mark, clock)


def _switch(version: int, mark: Mark, to: str, clock: Callable[[], float]) -> Flow[None]:
    """Let the other store decide from now on."""
    between = msgspec.structs.replace(mark, phase=SWITCHING, to=to)
    yield from _go(version, between, clock)
    yield Pause(PATIENCE)
    version, there = yield from _load(OLD)
    if there == between:
        yield from settle(version, between, clock)
        version, there = yield from _load(OLD)
    after = msgspec.structs.replace(mark, phase=to, to="")
    if there != after:
        raise Conflict(_CONFLICT)


def _copy_mark(mark: Mark, clock: Callable[[], float]) -> Flow[None]:
    """Write the second mark, into the new store. What counts is the first, which is there."""
    copy = msgspec.structs.replace(mark, side="new")
    try:
        while True:
            version, there = yield from _load(NEW)
            foreign = there is not None and there.move != mark.move
            if there == copy or (foreign and mark.phase != OLD_LEADS):
                return
            if (yield from _store(NEW, copy, version, clock)):
                return
    except StoreUnavailable:
        # Going back must be possible when the new store is down.
        if mark.phase in (OLD_LEADS, ONLY_OLD):
            return
        raise


def _make_room() -> Flow[None]:
    """See that the new store is empty; remove what an attempt left there that was taken back.

    Raises:
        ConfigurationError: it holds anything else.
    """
    _, copy = yield from _load(NEW)
    if copy is not None and copy.side == "old" and copy.phase not in (ONLY_OLD, ONLY_NEW):
        raise ConfigurationError(
            "the store given as the new one is the old one of a move that is under way; finish "
            "that first, or take it back"
        )
    if copy is not None and copy.side == "new" and copy.phase not in (ONLY_OLD, ONLY_NEW):
        raise ConfigurationError(
            f"the new store takes part in a move (phase {copy.phase!r}). If that was taken back "
            "while this store was down, say so here: sojourn move back with the same URLs"
        )
    number = yield from count(NEW)
    if not number:
        return
    if copy is None or copy.side != "new" or copy.phase != ONLY_OLD:
        raise ConfigurationError(
            f"the new store holds {number} records; a move begins with an empty one, because what "
            "it holds of old might come to life again. Empty it, or name another"
        )
    rows = Joined()
    while page := (yield from rows.next()):
        for row in page:
            if row.new is not None:
                yield At(NEW, Delete(row.sid))
