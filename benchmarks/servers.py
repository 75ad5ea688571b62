"""Private database servers: those that the tests start, here started for a benchmark."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.subjects import Missing

__all__ = ["entered", "helpers"]


def helpers(name: str) -> Any:
    """Return a module of `tests/stores` that starts servers. Raises `Missing`."""
    path = Path(__file__).parent.parent / "tests" / "stores" / f"{name}.py"
    full_name = f"benchmarks._{name}"
    if full_name in sys.modules:
        return sys.modules[full_name]
    spec = importlib.util.spec_from_file_location(full_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module
    try:
        spec.loader.exec_module(module)
    except (ImportError, FileNotFoundError) as error:
        del sys.modules[full_name]
        raise Missing(f"what starts its server cannot be used ({error})") from None
    return module


@contextmanager
def entered(server: Any) -> Iterator[Any]:
    """Enter a helper's context manager, which skips a test where there is no server."""
    from _pytest.outcomes import Failed, Skipped

    try:
        running = server.__enter__()
    except (Skipped, Failed) as reason:
        raise Missing(str(reason)) from None
    try:
        yield running
    finally:
        server.__exit__(None, None, None)
