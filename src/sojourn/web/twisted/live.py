"""The live sessions of a process: one object each, shared by the requests that use it.

A session of the core is made for one request at a time. `LiveSession` is one for several: a commit
takes what was done so far with it (`fork`), runs on that copy, and is brought back (`join`), so
that what is done meanwhile is neither lost nor written half.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sojourn.core import codec
from sojourn.core.expiry import touch_interval_of
from sojourn.core.opening import Opened
from sojourn.core.operations import Changes, Kind
from sojourn.core.record import Record
from sojourn.core.session import Session
from sojourn.core.status import TRANSITIONS, Event, Status
from sojourn.core.work import Held, Work, bring_up_to_date
from sojourn.errors import DamagedRecord, InvalidValue, StateMismatch
from sojourn.web.components import Schema

__all__ = ["Fork", "LiveSession"]


class Fork(Session):
    """What a live session did until now, to be committed while it goes on."""

    __slots__ = ()

    def _saved(
        self, record: Record, data: bytes, changes: Changes, *, merged: bool = False
    ) -> None:
        self._reread(record, data)


class LiveSession(Session):
    """A session of the core that several requests use at once, all in the reactor's thread."""

    __slots__ = ()

    def fork(self, opened: Opened) -> Fork | None:
        """Take what was done so far out, as a session to be committed for a request.

        None: nothing was done, and no touch is due.

        This one stands as if it were saved already.

        Args:
            opened: what the request came with.

        Raises:
            InvalidValue: a value that cannot be stored; nothing was taken out then.
        """
        changes = self._collect()
        if not changes.steps and not changes.cleared and self._nothing_else():
            return None
        work = self._working()
        fork = Fork(self._env, lambda: opened, self._client)
        fork._stand(opened)
        fork._begin(self._record, self._data)
        fork._status, fork._active = self._status, self._active
        done = fork._working()
        done.steps = dict(changes.steps)
        done.cleared, done.head, done.login = work.cleared, work.head, work.login
        done.salt, done.sid, done.ends, done.notes = work.salt, work.sid, work.ends, work.notes
        # And here as if it were saved.
        rest = Work()
        rest.handed, rest.states = work.handed, work.states
        if self._record is None:
            rest.sid, rest.salt = fork.sid, done.salt
        for key, steps in changes.steps.items():
            last = steps[-1]
            if last.kind == Kind.SET and type(self._cache[key]) not in codec.IMMUTABLE:
                rest.handed[key] = last.value
            elif last.kind == Kind.STATE:
                held = rest.states[key]
                held.loaded = held.before = last.value[1]
        self._work = rest
        self._status = Status.NEW if self._record is None else Status.UNCHANGED
        return fork

    def _nothing_else(self) -> bool:
        """Tell whether a commit without changes to values has nothing to do either."""
        work = self._work
        if self._status is not Status.UNCHANGED or (work and (work.ends or work.notes)):
            return False
        if not self._active or self._opened.previous:
            return True
        env, record = self._env, self._record
        assert record is not None
        return env.clock() - record.seen < touch_interval_of(record, env.rules)

    def join(self, fork: Fork) -> None:
        """Go on from what the commit of a fork has written."""
        record = fork._record
        if record is not None and (self._record is None or record.version >= self._record.version):
            self.rebase(record, fork._data)

    def rebase(self, record: Record, data: bytes) -> None:
        """Stand for a newer record, with what was done here and is not committed yet on top.

        Values, typed state and components that nobody changed here since show what is there now,
        in place, for whoever holds them.
        """
        was_new = self._record is None
        self._record = record
        if was_new:
            # What was written meanwhile is a change now.
            if self._status is Status.STARTED:
                self._status = Status.CHANGED
            elif self._status is Status.NEW:
                self._status = Status.UNCHANGED
        if data is self._data:
            return
        self._data = data
        if not self._active:
            return
        work = self._work
        if work is None or not (work.handed or work.states or work.steps or work.cleared):
            # Nobody holds anything of it: to be read again on the next use.
            status = self._status
            self._reread(record, data)
            self._status, self._work = status, work
            return
        try:
            self._cache  # noqa: B018 - what counts as a use need not have read the values
            index, body = codec.decode_index(data)
        except DamagedRecord as error:
            self._give_up(error)
            return
        cache = self._cache
        pending = work.steps
        kept: dict[Any, Any] = {key: cache[key] for key in pending if key in cache}
        unchanged: dict[str, bytes] = {}
        for key, before in list(work.handed.items()):
            kept[key] = cache[key]
            if key not in pending and _encoded(cache[key]) == before:
                unchanged[key] = before
                del work.handed[key]
        bring_up_to_date(unchanged, cache, data)
        for key in list(kept):
            if key not in pending and key not in unchanged and key not in work.handed:
                del kept[key]
        work.handed.update(unchanged)
        for held in list(work.states.values()):
            self._refresh_state(held, index, body)
            kept[held.info.cls] = held.value
        if work.cleared:
            index = {}
        for key, steps in pending.items():
            if key in kept:
                index[key] = None
            elif steps[-1].kind == Kind.DELETE:
                index.pop(key, None)
        self._index, self._body, self._cache = index, body, kept

    def _refresh_state(self, held: Held, index: dict[str, int | None], body: int) -> None:
        """Let typed state or a component that was not changed here show what is stored now."""
        info = held.info
        packed = index.get(info.cls.key if isinstance(info.cls, Schema) else info.key)
        if packed is None:
            return
        raw = codec.segment(self._data, body, packed)
        if raw == held.loaded or not held.before:
            return
        try:
            if info.encode(held.value) != held.before:
                # The commit merges it; until then its base is what it was made from.
                return
            if isinstance(info.cls, Schema):
                info.cls.fill(held.value, info.cls.decode(raw))
            else:
                new = info.decode(raw)
                for name in info.fields:
                    # Frozen classes too: whoever holds it is to see what is there.
                    if isinstance(new, msgspec.Struct):
                        msgspec.structs.force_setattr(held.value, name, getattr(new, name))
                    else:
                        object.__setattr__(held.value, name, getattr(new, name))
            held.before = info.encode(held.value)
            held.loaded = raw
        except (DamagedRecord, StateMismatch, InvalidValue):
            # It cannot be read by this code; what is here goes on as it is.
            return

    def keep(self) -> None:
        """Let this session be stored, though nothing was written to it: somebody knows of it."""
        if self._record is None and not self._opened.shadow:
            self._salt_of(make=True)

    def use(self) -> None:
        """Count as a use; written when a touch is due."""
        self._status  # noqa: B018 - loads it first, which sets the next anew
        self._active = True

    def mark_touched(self) -> None:
        """Count as a use that is written at the next commit."""
        self._status = TRANSITIONS[self._status, Event.TOUCH]
        self._active = True


def _encoded(value: Any) -> bytes | None:
    try:
        return codec.encode_value(value, key="")
    except InvalidValue:
        return None
