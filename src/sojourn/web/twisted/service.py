"""The sweeper as a service: `SweeperService(sessions).setServiceParent(application)`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred

from sojourn.web.failure import checked
from sojourn.web.twisted._log import log
from sojourn.web.twisted.driver import as_deferred, drive, port_of

if TYPE_CHECKING:
    from sojourn.core.ending import Swept
    from sojourn.manager import SessionManager

__all__ = ["SweeperService", "sweep"]


def sweep(sessions: SessionManager, reactor: Any = None) -> Deferred[Swept]:
    """End all sessions whose time is over, and run their handlers: as `SessionManager.sweep`.

    Args:
        sessions: the manager.
        reactor: None: the reactor of this process.
    """
    return _swept(sessions, _reactor(reactor), None)


def _swept(sessions: SessionManager, reactor: Any, stop: Any) -> Deferred[Swept]:
    def work() -> Deferred[Swept]:
        flow = sessions.sweeping(stop)
        return as_deferred(drive(flow, port_of(sessions, reactor), sessions._handlers))

    return maybeDeferred(work)


def _reactor(given: Any) -> Any:
    if given is not None:
        return given
    from twisted.internet import reactor

    return reactor


class SweeperService(Service):
    """Sweeps a manager's sessions about every so many seconds, while it runs.

    One in every process that serves requests: of all of them one is at work at a time, and when it
    dies another goes on. It is one timer for all sessions. A store that does not answer is tried
    again the next time.

    Args:
        sessions: the manager.
        every: seconds between two sweeps, a tenth more or less.
        reactor: None: the reactor of this process.

    Raises:
        ConfigurationError: `every` is not a duration above 0.
    """

    def __init__(
        self, sessions: SessionManager, every: timedelta | float = 60.0, reactor: Any = None
    ) -> None:
        """Check the arguments; nothing happens before the service is started."""
        self.sessions = checked(sessions)
        self._pause = sessions.sweeper(every).pause
        self._reactor = reactor
        self._timer: Any = None
        self._working: Deferred[None] | None = None

    def startService(self) -> None:
        """Begin to sweep; the first time after one interval."""
        super().startService()
        if self._working is None:
            self._wait()

    def stopService(self) -> Deferred[None] | None:
        """Sweep no more; a sweep that is under way comes to the end of its page first."""
        super().stopService()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return self._working

    def _wait(self) -> None:
        self._timer = _reactor(self._reactor).callLater(self._pause(), self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        done: Deferred[None] = Deferred()
        self._working = done
        sweeping = _swept(self.sessions, _reactor(self._reactor), lambda: not self.running)
        sweeping.addErrback(self._failed).addCallback(self._done, done)

    def _failed(self, failure: Any) -> None:
        log.failure("the sweep failed and is tried again later", failure)

    def _done(self, _: object, done: Deferred[None]) -> None:
        self._working = None
        if self.running:
            self._wait()
        done.callback(None)
