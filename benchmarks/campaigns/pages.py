"""Many records, listed in pages: none left out, none twice, in their order."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import Any

from benchmarks.campaigns.places import place
from sojourn.stores import open_store
from sojourn.testing import run_check
from sojourn.testing.whole import listed_in_pages

__all__ = ["pages"]


def pages(kind: str, count: int, page: int = 1000) -> dict[str, Any]:
    """Create that many records and list them all, and those of two users."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        about, url = "a dictionary", "memory://"
        if kind != "memory":
            at = stack.enter_context(place(kind))
            about, url = at.about, at.url
        store = stack.enter_context(contextlib.closing(open_store(url)))
        run_check(partial(listed_in_pages, count, page), store)
    return {
        "store": kind,
        "about": about,
        "records": count,
        "page": page,
        "seconds": round(time.monotonic() - began, 1),
        "passed": True,
    }
