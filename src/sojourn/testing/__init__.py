"""Tools for tests, shipped: the contract of a store, a model of it, faults, a clock.

    from sojourn.testing import check_store

    def test_my_store():
        check_store(MyStore)

Nothing here needs pytest. With it, each check can be a test of its own:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_store(check):
        run_check(check, MyStore())
"""

from __future__ import annotations

# The order of these imports is the order of CHECKS.
from sojourn.testing import contract as contract  # isort: skip
from sojourn.testing import interleave as interleave  # isort: skip
from sojourn.testing import races as races  # isort: skip
from sojourn.testing import whole as whole  # isort: skip
from sojourn.testing.checking import (
    CHECKS,
    Check,
    Close,
    ContractBroken,
    Together,
    acheck_store,
    arun_check,
    check_store,
    run_check,
)
from sojourn.testing.clock import Clock
from sojourn.testing.damage import acheck_damaged, check_damaged
from sojourn.testing.faults import (
    AsyncFlakyStore,
    Crash,
    Fault,
    FlakyStore,
    Plan,
    at,
    sometimes,
)
from sojourn.testing.model import ModelStore
from sojourn.testing.records import expect, expect_same, new_record, new_sid, next_version
from sojourn.testing.wrapping import (
    AsyncRecordingStore,
    AsyncWrappedStore,
    RecordingStore,
    WrappedStore,
)

__all__ = [
    "CHECKS",
    "AsyncFlakyStore",
    "AsyncRecordingStore",
    "AsyncWrappedStore",
    "Check",
    "Clock",
    "Close",
    "ContractBroken",
    "Crash",
    "Fault",
    "FlakyStore",
    "ModelStore",
    "Plan",
    "RecordingStore",
    "Together",
    "WrappedStore",
    "acheck_damaged",
    "acheck_store",
    "arun_check",
    "at",
    "check_damaged",
    "check_store",
    "expect",
    "expect_same",
    "new_record",
    "new_sid",
    "next_version",
    "run_check",
    "sometimes",
]
