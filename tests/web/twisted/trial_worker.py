"""Runs Twisted's own web tests, with its classes or with ours in their place.

python trial_worker.py stock|ours result.json [module ...]
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from typing import Any


def main(which: str, result: str, modules: list[str]) -> None:
    os.chdir(tempfile.mkdtemp(dir=os.path.dirname(result)))
    if which == "ours":
        # Before any module of the tests is imported, since they take the classes by name.
        from twisted.web import server

        import sojourn.web.twisted as ours

        server.Site = ours.SessionSite
        server.Session = ours.Session
        server.Request = ours.Request
    from twisted.trial import reporter, runner

    outcomes: dict[str, str] = {}

    class Outcomes(reporter.Reporter):
        def _note(self, test: Any, outcome: str) -> None:
            # Several in one test (an error at its end as well): the worst counts.
            if outcomes.get(test.id(), "good") == "good":
                outcomes[test.id()] = outcome

        def addSuccess(self, test: Any) -> None:
            self._note(test, "good")

        def addError(self, test: Any, error: Any) -> None:
            self._note(test, f"error: {_brief(error)}")

        def addFailure(self, test: Any, failure: Any) -> None:
            self._note(test, f"failure: {_brief(failure)}")

        def addSkip(self, test: Any, reason: Any) -> None:
            self._note(test, "skip")

        def addExpectedFailure(self, test: Any, failure: Any, todo: Any = None) -> None:
            self._note(test, "expected failure")

        def addUnexpectedSuccess(self, test: Any, todo: Any = None) -> None:
            self._note(test, "good")

        def done(self) -> None:
            pass

    def _brief(error: Any) -> str:
        text = getattr(error, "getErrorMessage", None)
        return (text() if text is not None else repr(error[1]))[:300]

    suite = runner.TestLoader().loadByNames(modules or ["twisted.web.test"], recurse=True)
    trial = runner.TrialRunner(
        lambda *args, **kwargs: Outcomes(*args, **kwargs),
        mode=None,
        stream=io.StringIO(),
        workingDirectory="trial",
    )
    trial.run(suite)
    from twisted.web.test import test_web

    places = {test_web.server.Site, test_web.server.Session, test_web.server.Request}
    if all(place.__module__.startswith("sojourn.") for place in places):
        outcomes["sojourn"] = "in place"
    with open(result, "w") as file:
        json.dump(outcomes, file)


if __name__ == "__main__":
    main(sys.argv[1], os.path.abspath(sys.argv[2]), sys.argv[3:])
