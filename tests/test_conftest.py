"""What tests/conftest.py promises to the other tests."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from blockbuster import BlockBuster, BlockingError

import sojourn


def sleeper_in_sojourn() -> Callable[[], None]:
    """A function that blocks, as if it stood in the package."""
    names: dict[str, Callable[[], None]] = {}
    code = "import time\ndef sleeper(): time.sleep(0)"
    exec(compile(code, str(Path(sojourn.__path__[0]) / "sleeper.py"), "exec"), names)
    return names["sleeper"]


def test_blocking_the_loop_is_seen() -> None:
    """Code of Sojourn that blocks the event loop fails the test; other code may."""
    sleeper = sleeper_in_sojourn()

    async def main() -> None:
        time.sleep(0)
        with pytest.raises(BlockingError):
            sleeper()
        await asyncio.to_thread(sleeper)

    asyncio.run(main())


def test_blocking_the_loop_can_be_allowed(no_blocking_on_the_loop: BlockBuster) -> None:
    """A test that means to block says so."""
    no_blocking_on_the_loop.deactivate()
    sleeper = sleeper_in_sojourn()

    async def main() -> None:
        sleeper()

    asyncio.run(main())


def test_a_declared_server_cannot_be_skipped(
    server_or_skip: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing server skips the test, unless the environment declares it: then it fails."""
    monkeypatch.delenv("SOJOURN_TEST_NONE", raising=False)
    with pytest.raises(pytest.skip.Exception, match="none NOT TESTED"):
        server_or_skip("none", "no-such-server")

    monkeypatch.setenv("SOJOURN_TEST_NONE", "1")
    with pytest.raises(pytest.fail.Exception, match="SOJOURN_TEST_NONE is set"):
        server_or_skip("none", "no-such-server")
