"""A publisher whose requests may be served by several threads at once."""

from __future__ import annotations

import threading
from typing import Any

from quixote.publish import Publisher, cleanup

from sojourn.errors import ConfigurationError
from sojourn.web.quixote.stores import check_publisher

__all__ = ["ThreadSafePublisher"]


class ThreadSafePublisher(Publisher):  # type: ignore[misc]
    """Quixote's publisher, with a current request for each thread.

    Quixote's own has one for the whole process, and its WSGI form refuses servers with threads.
    `get_request()`, `get_session()` and their like find the request of their thread. The pages
    themselves have to be fit for threads as well: what they share, they must guard.
    """

    is_thread_safe = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As `quixote.publish.Publisher`.

        Raises:
            ConfigurationError: the session manager was given a store that is for one thread.
        """
        self._here = threading.local()
        super().__init__(*args, **kwargs)
        try:
            check_publisher(self.session_manager)
        except ConfigurationError:
            # A process can have one publisher, and this one is not to be it.
            cleanup()
            raise

    def process_request(self, request: Any) -> Any:
        """As Quixote's; also where a page ends with SystemExit, which Quixote lets through."""
        try:
            return super().process_request(request)
        finally:
            self._clear_request()
            visit = getattr(request, "sojourn_visit", None)
            if visit is not None:
                # A lock that is held still, or other threads would wait for it in vain.
                visit.leave()

    def _set_request(self, request: Any) -> None:
        self._here.request = request

    def _clear_request(self) -> None:
        self._here.request = None

    def get_request(self) -> Any:
        """Return the request that this thread serves; None: it serves none."""
        return getattr(self._here, "request", None)
