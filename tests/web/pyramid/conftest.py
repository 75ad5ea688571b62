"""Pyramid applications, by `include` and by the factory alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ...security.no_secrets import no_secret_is_logged as no_secret_is_logged
from ..kit import Site
from .apps import KINDS


@pytest.fixture(params=KINDS)
def make_site(request: pytest.FixtureRequest) -> Callable[..., Site]:
    """Make sites with settings of their own: `make_site(store, grace=5)`."""
    kind: type[Site] = KINDS[request.param]

    def make(store: Any = None, **settings: Any) -> Site:
        return kind(store, **settings)

    return make


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """One site with the default settings."""
    return make_site()
