"""What every test may use."""

import os
import shutil
from collections.abc import Callable, Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import HealthCheck, settings

# In CI an example that failed once must fail again for whoever reads the log.
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
# How long one example takes depends on the machine's other work; pytest-timeout bounds the whole.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Tests marked `anyio` run on asyncio."""
    return "asyncio"


@pytest.fixture(autouse=True)
def no_blocking_on_the_loop() -> Iterator[BlockBuster]:
    """Fail a test in which code of Sojourn blocks the event loop: by a sleep, a lock, a file.

    A test that means to block names this fixture and calls its `deactivate()`.
    """
    with blockbuster_ctx("sojourn") as blockbuster:
        yield blockbuster


@pytest.fixture(scope="session")
def server_or_skip() -> Callable[[str, str], str]:
    """Find a server's program, for tests that start it: `server_or_skip("redis", "redis-server")`.

    Where `SOJOURN_TEST_<NAME>` is set, a server that is not there fails the test; where it is not
    set, the summary says in one line what was not tested.
    """

    def find(name: str, command: str) -> str:
        found = shutil.which(command) or shutil.which(command, path="/usr/sbin:/usr/local/sbin")
        if found:
            return found
        variable = f"SOJOURN_TEST_{name.upper()}"
        if os.environ.get(variable):
            pytest.fail(f"{variable} is set, and {command} is not installed")
        pytest.skip(f"{name} NOT TESTED: {command} is not installed")

    return find
