"""Stores as people wrote them for Session3 and for Quixote's `BaseSessionManager`."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any


class SessionStore:
    """What Session3's abstract store has, which others are derived from."""

    is_multiprocess_safe = False
    is_thread_safe = False

    def load_session(self, id: str, default: Any = None) -> Any:
        raise NotImplementedError

    def save_session(self, session: Any) -> None:
        raise NotImplementedError

    def delete_session(self, session: Any) -> None:
        raise NotImplementedError

    def has_session(self, id: str) -> Any:
        return self.load_session(id, None)

    def iter_sessions(self) -> Iterator[tuple[str, Any]]:
        raise NotImplementedError


class PickleStore(SessionStore):
    """A table of pickles, which gives what `SELECT id, pickle` gives, as MySQL's does."""

    def __init__(self) -> None:
        self.table: dict[str, bytes] = {}

    def load_session(self, id: str, default: Any = None) -> Any:
        pickled = self.table.get(id)
        return default if pickled is None else pickle.loads(pickled)

    def save_session(self, session: Any) -> None:
        self.table[session.id] = pickle.dumps(session, 2)

    def delete_session(self, session: Any) -> None:
        del self.table[session.id]

    def iter_sessions(self) -> Any:
        return list(self.table.items())


class ShelfStore(PickleStore):
    """One that gives sessions with their names, and says that threads may use it."""

    is_thread_safe = True

    def iter_sessions(self) -> Any:
        return ((name, pickle.loads(pickled)) for name, pickled in list(self.table.items()))


class NoListStore(PickleStore):
    """One that has no list, like Session3's directory."""

    iter_sessions = SessionStore.iter_sessions


class TransactionStore:
    """One for Quixote's manager: by ids, in transactions, which it keeps to the letter."""

    is_multiprocess_safe = True

    def __init__(self) -> None:
        self.table: dict[str, bytes] = {}
        self.pending: dict[str, bytes | None] | None = None

    def load_session(self, id: str) -> Any:
        assert self.pending is not None
        pickled = self.pending.get(id, self.table.get(id))
        return None if pickled is None else pickle.loads(pickled)

    def save_session(self, session: Any) -> None:
        assert self.pending is not None
        self.pending[session.id] = pickle.dumps(session)

    def delete_session(self, session_id: str) -> None:
        assert self.pending is not None
        if session_id not in self.table:
            raise KeyError(session_id)
        self.pending[session_id] = None

    def __iter__(self) -> Iterator[str]:
        assert self.pending is not None
        yield from list(self.table)

    def transaction_start(self) -> None:
        assert self.pending is None
        self.pending = {}

    def transaction_commit(self, session: Any) -> None:
        assert self.pending is not None
        for name, pickled in self.pending.items():
            if pickled is None:
                self.table.pop(name, None)
            else:
                self.table[name] = pickled
        self.pending = None

    def transaction_abort(self, session: Any) -> None:
        assert self.pending is not None
        self.pending = None
