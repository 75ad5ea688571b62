"""What the tests of Twisted share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.logger import globalLogPublisher

from .kit import DeferredStore, Web

Logged = list[dict[str, Any]]


@pytest.fixture
def logged() -> Iterator[Logged]:
    """What is logged through `twisted.logger`, by Sojourn's namespace and those of requests."""
    events: Logged = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("log_namespace", "").startswith("sojourn"):
            events.append(event)

    globalLogPublisher.addObserver(observe)
    yield events
    globalLogPublisher.removeObserver(observe)


@pytest.fixture(params=["at once", "deferred"])
def make_web(request: pytest.FixtureRequest) -> Callable[..., Web]:
    """Make sites on a store that never waits, and on one whose methods return Deferreds."""

    def make(store: Any = None, **settings: Any) -> Web:
        if request.param == "deferred":
            store = DeferredStore(store)
        return Web(store, **settings)

    return make


@pytest.fixture
def web(make_web: Callable[..., Web]) -> Web:
    """One site with the default settings."""
    return make_web()
