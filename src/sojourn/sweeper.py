"""The sweeper: sweeps again and again, in a thread or as a task; one timer for all sessions."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

from sojourn.core.expiry import seconds
from sojourn.errors import ConfigurationError, SojournError

if TYPE_CHECKING:
    from sojourn.manager import SessionManager

__all__ = ["Sweeper"]

log = logging.getLogger("sojourn")
_LATER = "the sweep failed and is tried again later: %s"


class Sweeper:
    """Sweeps a manager's sessions about every so many seconds.

    Start one in every process that serves requests: of all of them, one is at work at a time, and
    when it dies another goes on. A store that does not answer is tried again the next time.

    Example:
        >>> from sojourn import SessionManager
        >>> with SessionManager().sweeper(every=60):
        ...     pass  # serve
    """

    def __init__(self, sessions: SessionManager, every: timedelta | float) -> None:
        """Sweep `sessions` about every `every` seconds.

        A tenth more or less, so that the sweepers of many processes do not stay in step.

        Raises:
            ConfigurationError: that is not a duration above 0.
        """
        interval = seconds(every, "every")
        if interval is None:
            raise ConfigurationError("every is None; it must be a number of seconds above 0")
        self._sessions = sessions
        self._every = interval
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Sweeper:
        """Sweep in a thread of its own, which does not keep the process alive."""
        if self._thread is None or not self._thread.is_alive():
            self._stop.clear()
            self._thread = threading.Thread(target=self._loop, name="sojourn-sweeper", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread; a sweep that is under way comes to the end of its page first."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Sweeper:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def run(self) -> None:
        """Sweep on this event loop until the task is cancelled."""
        while True:
            await asyncio.sleep(self.pause())
            try:
                await self._sessions.asweep()
            except SojournError as error:
                log.error(_LATER, error)
            except Exception as error:
                log.exception(_LATER, error)

    def _loop(self) -> None:
        while not self._stop.wait(self.pause()):
            try:
                self._sessions.sweep(stop=self._stop.is_set)
            except SojournError as error:
                log.error(_LATER, error)
            except BaseException as error:
                # A handler that calls sys.exit() ends a thread, which would end all sweeps.
                log.exception(_LATER, error)

    def pause(self) -> float:
        """Return how many seconds to wait until the next sweep."""
        return self._every * random.uniform(0.9, 1.1)
