"""Real servers in a thread, on free ports, ended when the test is over."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def waitress(app: Any, threads: int = 4) -> Iterator[int]:
    """Serve a WSGI application; the port."""
    from waitress import wasyncore
    from waitress.server import create_server

    logging.getLogger("waitress").setLevel(logging.CRITICAL)
    sockets: dict[int, Any] = {}
    server = create_server(app, map=sockets, host="127.0.0.1", port=0, threads=threads)
    stop = threading.Event()

    def run() -> None:
        # Not server.run: it cannot be ended from outside without an error.
        while not stop.is_set():
            wasyncore.loop(timeout=0.02, map=sockets, count=1)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield server.effective_port
    finally:
        stop.set()
        thread.join(10)
        server.task_dispatcher.shutdown()
        wasyncore.close_all(sockets)


@contextlib.contextmanager
def uvicorn(app: Any, **settings: Any) -> Iterator[int]:
    """Serve an ASGI application; the port."""
    import uvicorn

    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        app, port=0, lifespan="off", log_config=None, ws="none", workers=1, **settings
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        stop = time.monotonic() + 10
        while not server.started and time.monotonic() < stop:
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
