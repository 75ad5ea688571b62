"""`sojourn demo`: finds a port, says where it is, and serves until it is told to end."""

from __future__ import annotations

import errno
import ipaddress
import logging
import signal
import socket
from typing import Any
from urllib.parse import urlsplit

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sojourn.errors import SojournError
from sojourn.manager import SessionManager

__all__ = ["demo"]

STORE = "sqlite:///sojourn-demo.db"
PORT = 8000
_TRIES = 20

_SURVIVES = {
    "nothing": "kept in memory: a restart empties it",
    "restart": "sessions survive a restart",
    "kill": "sessions survive a restart, and kill -9",
    "power": "sessions survive a restart, kill -9 and loss of power",
}


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help=f"Port to listen on; 0: any free one.  [default: {PORT}, or the next that is free]",
)
@click.option(
    "--store", default=STORE, show_default=True, metavar="URL", help="Where to keep the sessions."
)
def demo(host: str, port: int | None, store: str) -> None:
    """Serve a small site that shows what sessions do.

    End it with Ctrl-C and start it again: everything is still there.
    """
    try:
        import jinja2  # noqa: F401
        import waitress  # noqa: F401
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"the demo needs the package {error.name!r}, which is not installed: "
            'pip install "sojourn[demo]"'
        ) from error
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    # A page of the demo sends more requests at once than there are threads, and means to.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    try:
        sessions = SessionManager(store)
        # Now, so that a store that cannot work is told here and not to the first visitor.
        sessions.count()
    except SojournError as error:
        raise click.ClickException(str(error)) from error
    try:
        listener = listen(host, port)
    except OSError as error:
        sessions.close()
        raise click.ClickException(_refusal(host, port, error)) from error
    try:
        _say(listener, store_name(store), sessions.store.promises.survives)
        with sessions.sweeper():
            serve(sessions, store_name(store), listener)
    finally:
        sessions.close()


def listen(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens there.

    Args:
        host: a name or an address.
        port: None: the usual one, or the next that is free.

    Raises:
        OSError: the port is in use (of the usual one: and those that follow it), or not allowed.
    """
    ports = [port] if port is not None else range(PORT, PORT + _TRIES)
    for number in ports:
        try:
            family = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0][0]
            return socket.create_server((host, number), family=family)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or number == ports[-1]:
                raise
    raise AssertionError("there is always a port to try")


def serve(sessions: SessionManager, store: str, listener: socket.socket) -> None:
    """Serve the demo on a listening socket until Ctrl-C or SIGTERM."""
    from waitress.server import create_server

    from sojourn.cli.demo.site import make_app

    server = create_server(
        make_app(sessions, store),
        sockets=[listener],
        threads=16,
        ident=None,
        max_request_header_size=32 * 1024,
        max_request_body_size=64 * 1024,
    )

    def end(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        server.run()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        server.close()


def store_name(url: str) -> str:
    """Return a store's URL without what may be secret in it: user, password and options."""
    try:
        parts = urlsplit(url)
        where = parts.netloc.rpartition("@")[2]
    except ValueError:
        return url.partition(":")[0] + ":"
    return f"{parts.scheme}://{where}{parts.path}"


def _say(listener: socket.socket, store: str, survives: str) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    if ipaddress.ip_address(host).is_unspecified:
        shown = "127.0.0.1"
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="bold")
    lines.add_column(overflow="ignore", no_wrap=True)
    lines.add_row("Address", f"[link]http://{shown}:{port}/[/link]")
    lines.add_row("Store", escape(store))
    lines.add_row("", _SURVIVES.get(survives, ""))
    lines.add_row("End it", "Ctrl-C")
    console = Console(soft_wrap=True, highlight=False)
    console.print()
    console.print("[bold]Sojourn demo[/bold]\n")
    console.print(lines)
    if not ipaddress.ip_address(host).is_loopback:
        console.print(
            "\n[yellow]Others can reach it too: whoever does may sign in under any name.[/yellow]"
        )
    console.print()


def _refusal(host: str, port: int | None, error: OSError) -> str:
    where = f"port {port} on {host}"
    if error.errno == errno.EADDRINUSE:
        if port is None:
            where = f"ports {PORT} to {PORT + _TRIES - 1} on {host}"
        return f"{where}: in use by another program; choose another: sojourn demo --port 0"
    if error.errno == errno.EACCES:
        return f"{where}: not allowed to you; choose one above 1023: sojourn demo --port {PORT}"
    reason = error.strerror or str(error)
    return f"{where}: {reason}; --host takes a name or address of this machine"
