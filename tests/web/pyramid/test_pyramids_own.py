"""Pyramid's own tests of its session factories, from its source distribution."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import time
import unittest
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from sojourn import SessionManager
from sojourn.stores.memory import MemoryStore
from sojourn.web.pyramid import SessionFactory

PUBLIC = """
    test_cookie_is_set test_ctor_no_cookie test_ctor_with_bad_cookie_cannot_deserialize
    test_ctor_with_bad_cookie_not_tuple test_ctor_with_cookie_expired
    test_ctor_with_cookie_still_valid test_flash_allow_duplicate_false
    test_flash_allow_duplicate_false_and_msg_not_in_storage
    test_flash_allow_duplicate_true_and_msg_not_in_storage test_flash_default test_flash_mixed
    test_get_csrf_token test_get_csrf_token_new test_instance_conforms test_invalidate
    test_new_csrf_token test_no_set_cookie_with_exception test_peek_flash_default_queue
    test_peek_flash_nodefault_queue test_pop_flash_default_queue test_pop_flash_nodefault_queue
    test_set_cookie_with_exception test_timeout test_timeout_invalid test_timeout_never
    test_timeout_str
""".split()
# They read or set private attributes of Pyramid's own class (`_dirty`, `_set_cookie`), or ask that
# 100 kB be refused.
PRIVATE = """
    test_changed test_reissue_triggered test__set_cookie_on_exception
    test__set_cookie_on_exception_no_request_exception test__set_cookie_cookieval_too_long
    test__set_cookie_real_webob_response test__set_cookie_options
""".split()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The mixin `SharedCookieSessionTests` of the Pyramid that is installed."""
    folder = tmp_path_factory.mktemp("pyramid")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
    try:
        subprocess.run(
            [
                *(*pip, "--no-deps", "--no-binary", ":all:", "--no-build-isolation"),
                *("--retries", "1", "--dest", str(folder), f"pyramid=={version('pyramid')}"),
            ],
            check=True,
            capture_output=True,
            timeout=90,
        )
    except (OSError, subprocess.SubprocessError) as error:
        if os.environ.get("SOJOURN_TEST_PYRAMID"):
            pytest.fail(f"SOJOURN_TEST_PYRAMID is set, and its source cannot be fetched: {error}")
        pytest.skip("Pyramid's own tests NOT RUN: its source cannot be fetched")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        (member,) = (one for one in tar if one.name.endswith("/tests/test_session.py"))
        file = tar.extractfile(member)
        assert file is not None
        path = folder / "pyramids_test_session.py"
        path.write_bytes(file.read())
    return _module(path).SharedCookieSessionTests


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Hooks:
    """The two hooks of the mixin.

    What a cookie "holds" lies in the store: it is written when the test has told the options, by
    the same factory, at the time that the test asks for.
    """

    def setUp(self) -> None:
        self.written: dict[str, Any] = {}

    def _serialize(self, value: Any) -> str:
        cookie = f"pending-{len(self.written)}"
        self.written[cookie] = value
        return cookie

    def _makeOne(self, request: Any, **options: Any) -> Any:
        settings = {f"session.{name}": value for name, value in options.items()}
        settings = {"session.cookie_name": "session", "sojourn.store": MemoryStore()} | settings
        now = [time.time()]
        factory = SessionFactory.from_settings(settings | {"sojourn.clock": lambda: now[0]})
        for name, cookie in request.cookies.items():
            if isinstance(self.written.get(cookie), tuple):
                renewed, _, state = self.written[cookie]
                cookie = _written(factory.sessions, now, renewed, state)
            request.environ["HTTP_COOKIE"] = f"{name}={cookie}"
        return factory(request)


def _written(sessions: SessionManager, clock: list[float], at: float, state: Any) -> str:
    """Write a session at that time; return its cookie."""
    before, clock[0] = clock[0], at
    session = sessions.session()
    session.update(state)
    token = sessions.commit(session).token
    clock[0] = before
    return str(token)


def test_all_are_known(shared: Any) -> None:
    """Each test of the mixin is either run here or named as one of privates."""
    names = {name for name in dir(shared) if name.startswith("test")}

    assert names == {*PUBLIC, *PRIVATE}
    assert len(PUBLIC) == 26


@pytest.mark.parametrize("name", PUBLIC)
def test_of_pyramid(shared: Any, name: str) -> None:
    """It passes with our factory."""
    case = type("Ours", (Hooks, shared, unittest.TestCase), {})(name)
    result = unittest.TestResult()

    case.run(result)

    assert result.testsRun == 1
    assert not result.skipped
    assert not [text for _, text in [*result.failures, *result.errors]]


def test_the_harness_can_fail(shared: Any) -> None:
    """A test of the mixin that our class does not pass is reported as failing."""
    case = type("Ours", (Hooks, shared, unittest.TestCase), {})("test_changed")
    result = unittest.TestResult()

    case.run(result)

    assert result.errors
