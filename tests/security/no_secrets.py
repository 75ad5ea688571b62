"""A fixture that watches the log of every test for secrets that were given out in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sojourn.core import flows


@pytest.fixture(autouse=True)
def no_secret_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[list[str]]:
    """P4: whatever a test does, no line of its log holds a secret; yields those given out."""
    given: list[str] = []
    make = flows.new_secret

    def watched(entropy: flows.Any) -> str:
        given.append(make(entropy))
        return given[-1]

    monkeypatch.setattr(flows, "new_secret", watched)
    yield given
    logged = "".join(
        record.getMessage() + str(record.exc_text or "")
        for when in ("setup", "call")
        for record in caplog.get_records(when)  # type: ignore[arg-type]
    )
    for secret in given if logged else ():
        assert secret not in logged
