"""Sojourn: one session layer for every Python web framework.

The public names are loaded on first use: `import sojourn` loads no framework, no client library
and no store.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sojourn.core.expiry import (
        NIST_800_63B_4_AAL1 as NIST_800_63B_4_AAL1,
    )
    from sojourn.core.expiry import (
        NIST_800_63B_4_AAL2 as NIST_800_63B_4_AAL2,
    )
    from sojourn.core.expiry import (
        NIST_800_63B_4_AAL3 as NIST_800_63B_4_AAL3,
    )
    from sojourn.core.expiry import Expiry as Expiry
    from sojourn.core.opening import EndedBefore as EndedBefore
    from sojourn.core.record import Client as Client
    from sojourn.core.record import Record as Record
    from sojourn.core.session import Session as Session
    from sojourn.core.state import Add as Add
    from sojourn.core.state import Append as Append
    from sojourn.core.state import Max as Max
    from sojourn.core.state import Union as Union
    from sojourn.core.state import state as state
    from sojourn.core.status import Status as Status
    from sojourn.errors import ConfigurationError as ConfigurationError
    from sojourn.errors import Conflict as Conflict
    from sojourn.errors import CsrfError as CsrfError
    from sojourn.errors import DamagedRecord as DamagedRecord
    from sojourn.errors import InvalidValue as InvalidValue
    from sojourn.errors import NewerState as NewerState
    from sojourn.errors import SessionEnded as SessionEnded
    from sojourn.errors import SojournError as SojournError
    from sojourn.errors import StateMismatch as StateMismatch
    from sojourn.errors import StoreUnavailable as StoreUnavailable
    from sojourn.errors import TooManySessions as TooManySessions
    from sojourn.manager import Committed as Committed
    from sojourn.manager import SessionManager as SessionManager
    from sojourn.stores import open_async_store as open_async_store
    from sojourn.stores import open_store as open_store

__version__ = "0.1.0"

_WHERE = {
    "core.expiry": (
        "Expiry",
        "NIST_800_63B_4_AAL1",
        "NIST_800_63B_4_AAL2",
        "NIST_800_63B_4_AAL3",
    ),
    "core.record": ("Client", "Record"),
    "core.session": ("EndedBefore", "Session", "Status"),
    "core.state": ("Add", "Append", "Max", "Union", "state"),
    "errors": (
        "ConfigurationError",
        "Conflict",
        "CsrfError",
        "DamagedRecord",
        "InvalidValue",
        "NewerState",
        "SessionEnded",
        "SojournError",
        "StateMismatch",
        "StoreUnavailable",
        "TooManySessions",
    ),
    "manager": ("Committed", "SessionManager"),
    "stores": ("open_async_store", "open_store"),
}
_MODULES = {name: module for module, names in _WHERE.items() for name in names}

__all__ = sorted([*_MODULES, "__version__"])


if not TYPE_CHECKING:  # Or every misspelt name would be one of these for type checkers.

    def __getattr__(name: str) -> Any:
        module = _MODULES.get(name)
        if module is None:
            raise AttributeError(f"module 'sojourn' has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"sojourn.{module}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
