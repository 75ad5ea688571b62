"""What operators and account pages ask of a manager, answered by Deferreds."""

# Twisted has few types; and a Deferred with a callback need not be awaited.
# mypy: disable-error-code="no-untyped-call,unused-awaitable"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred

from sojourn.core import ending
from sojourn.core.calls import Count, Flow
from sojourn.core.token import is_sid
from sojourn.devices import Device
from sojourn.manager import SessionManager, _user
from sojourn.web.twisted.realm import manager_of, realm_of

__all__ = ["DeferredSessions"]


class DeferredSessions:
    """`end`, `end_all`, `of_user` and `count` of a manager, without blocking the reactor."""

    def __init__(self, sessions: SessionManager | str, reactor: Any = None) -> None:
        """Ask that manager.

        Args:
            sessions: the manager, or the URL that a SessionSite was given.
            reactor: None: that of this process.
        """
        self.sessions = manager_of(sessions)
        self._realm = realm_of(self.sessions, reactor)

    def end(self, sid: str, reason: str = "operator", *, user: str | None = None) -> Deferred[bool]:
        """End one session for good; whether this call did it. As `SessionManager.end`."""
        if not is_sid(sid):
            return self._run(lambda env: _false(), bool)
        return self._run(
            lambda env: ending.end(sid, reason, env, _user(user) if user else None), self._counted
        )

    def end_all(
        self, user: str, *, keep: str | None = None, reason: str = "user"
    ) -> Deferred[list[str]]:
        """End all sessions of a user but one; their sids. As `SessionManager.end_all`."""
        return self._run(
            lambda env: ending.end_all_of(_user(user), keep, reason, env), self._counted
        )

    def of_user(self, user: str, *, current: str | None = None) -> Deferred[list[Device]]:
        """Return the live sessions of a user, the one seen last first."""
        return self._run(
            lambda env: ending.records_of(_user(user), env),
            lambda records: [Device(record, record.sid == current) for record in records],
        )

    def count(self, user: str | None = None) -> Deferred[int]:
        """Return how many sessions there are, also those past their deadline and not yet swept."""
        return self._run(lambda env: _count(user), int)

    def _counted(self, done: Any) -> Any:
        self.sessions.counters["ended"] += len(done) if isinstance(done, list) else done
        return done

    def _run(self, flow: Callable[[Any], Flow[Any]], then: Callable[[Any], Any]) -> Deferred[Any]:
        asked = maybeDeferred(lambda: self._realm.run(flow(self.sessions._env)))
        return asked.addCallback(then)


def _false() -> Flow[bool]:
    return False
    yield


def _count(user: str | None) -> Flow[int]:
    return (yield Count(user))  # type: ignore[no-any-return]
