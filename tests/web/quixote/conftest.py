"""A Quixote application in this process, with a page for each test."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.validate import validator

import pytest
import quixote
from quixote.directory import Directory

from sojourn import SessionManager
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Clock, RecordingStore
from sojourn.web import quixote as ours

from ...security.no_secrets import no_secret_is_logged as no_secret_is_logged
from ..kit import Answer, call_wsgi, environ

Page = Callable[[], Any]


class Root(Directory):
    """One page, which is the test's."""

    _q_exports = ("",)
    page: Page

    def _q_index(self) -> Any:
        return self.page()

    def _q_lookup(self, component: str) -> Any:
        return self.page()


class Site:
    """A publisher with a manager of ours, and a browser in front of it.

    Attributes:
        cookie: what the browser holds.
        log: what Quixote wrote to its error log.
    """

    def __init__(
        self,
        session_class: type[ours.Session] = ours.Session,
        store: Any = None,
        *,
        exclusive: bool = False,
        config: dict[str, Any] | None = None,
        publisher: Any = ours.ThreadSafePublisher,
        **settings: Any,
    ) -> None:
        quixote.cleanup()
        self.clock = settings.pop("clock", None) or Clock()
        self.store = RecordingStore(MemoryStore() if store is None else store)
        self.sessions = SessionManager(self.store, clock=self.clock, **settings)
        self.manager = ours.SessionManager(self.sessions, session_class, exclusive=exclusive)
        self.root = Root()
        self.publisher = publisher(
            self.root, session_manager=self.manager, **({} if config is None else config)
        )
        self.log = io.StringIO()
        self.publisher.logger.error_log = self.log
        self.cookie = ""

    @property
    def verbs(self) -> list[str]:
        """The calls on the store since the last look, by name."""
        verbs = self.store.verbs
        self.store.calls.clear()
        return verbs

    def request(
        self, page: Page, *, cookie: str | None = None, read: int | None = None, **more: Any
    ) -> Answer:
        """Make one request through Quixote's WSGI form; after `read` chunks the client is gone."""
        self.root.page = page
        server = {
            "wsgi.multithread": getattr(self.publisher, "is_thread_safe", False),
            "wsgi.multiprocess": False,
        }
        env = environ(cookie=self.cookie if cookie is None else cookie, **(server | more))
        return call_wsgi(validator(quixote.get_wsgi_app()), env, read=read)

    def visit(self, page: Page, **more: Any) -> Answer:
        """As `request`, and keep the cookie as a browser does."""
        answer = self.request(page, **more)
        for line in answer.all("Set-Cookie"):
            pair = line.partition(";")[0]
            if pair.partition("=")[0] in ("id", "__Host-id"):
                self.cookie = "" if "Max-Age=0" in line else pair
        return answer

    def post(self, page: Page, fields: str, **more: Any) -> Answer:
        """As `visit`, with a form."""
        return self.visit(
            page,
            method="POST",
            CONTENT_TYPE="application/x-www-form-urlencoded",
            CONTENT_LENGTH=str(len(fields)),
            **{"wsgi.input": io.BytesIO(fields.encode())},
            **more,
        )


@pytest.fixture(autouse=True)
def no_publisher() -> Iterator[None]:
    """Quixote has one publisher a process, which takes sys.stdout; none is left to the next."""
    printed = sys.stdout
    yield
    sys.stdout = printed
    quixote.cleanup()


@pytest.fixture
def make_site() -> Callable[..., Site]:
    """Make sites: `make_site(MySession, store, lifetime=60)`."""
    return Site


@pytest.fixture
def site() -> Site:
    """One site with the default settings."""
    return Site()
