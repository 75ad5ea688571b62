"""What is measured: session layers, each with the bare application that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.calling import Called, asgi_app, call_asgi, call_wsgi, wsgi_app
from benchmarks.scenarios import Action
from sojourn.core.calls import SAVED
from sojourn.core.record import Record
from sojourn.manager import SessionManager
from sojourn.stores.base import AsyncStore, Store

__all__ = [
    "Backend",
    "Missing",
    "Raw",
    "Subject",
    "asynchronous_store",
    "blocking_store",
    "sojourn_asgi",
    "sojourn_wsgi",
]

Call = Callable[[Any, Sequence[str], Sequence[Any]], Called]


class Missing(Exception):
    """Something to be measured is not there; the text says what, in one line."""


@dataclass(frozen=True)
class Subject:
    """A session layer.

    Attributes:
        name: for people.
        bare: the name of the application without a session, and how one is made.
        make: action -> application with a session.
        call: how both are called.
        backend: the name of the back end; empty: none of those measured raw.
    """

    name: str
    bare: tuple[str, Callable[[], Any]]
    make: Callable[[Action | None], Any]
    call: Call
    backend: str = ""


@dataclass(frozen=True)
class Raw:
    """The bare commands of a driver: a table, or what is like it, of keys and blobs.

    All three are plain functions, or all three coroutine functions.

    Attributes:
        name: of the driver.
        insert: (key, blob) of a new row, committed.
        read: key -> blob.
        write: (key, blob) of a row that is there, committed.
        asynchronous: they are coroutine functions; the floor of ASGI only, as the others are of
            WSGI. A back end without any has one floor for both.
    """

    name: str
    insert: Callable[[str, bytes], Any]
    read: Callable[[str], Any]
    write: Callable[[str, bytes], Any]
    asynchronous: bool = False


@dataclass(frozen=True)
class Backend:
    """A back end that is ready: empty, and its drivers connected.

    Attributes:
        name: for people.
        url: of the Sojourn store.
        raws: the bare drivers.
    """

    name: str
    url: str
    raws: tuple[Raw, ...] = ()


def sojourn_wsgi(backend: Backend, sessions: SessionManager) -> Subject:
    """Return Sojourn's WSGI middleware on a back end."""
    from sojourn.web.wsgi import KEY, SessionMiddleware

    return Subject(
        f"Sojourn WSGI, {backend.name}",
        ("bare WSGI", lambda: wsgi_app("", None)),
        lambda action: SessionMiddleware(wsgi_app(KEY, action), sessions),
        call_wsgi,
        backend.name,
    )


def sojourn_asgi(backend: Backend, sessions: SessionManager) -> Subject:
    """Return Sojourn's ASGI middleware on a back end."""
    from sojourn.web.asgi import KEY, SessionMiddleware

    return Subject(
        f"Sojourn ASGI, {backend.name}",
        ("bare ASGI", lambda: asgi_app("", None)),
        lambda action: SessionMiddleware(asgi_app(KEY, action), sessions),
        call_asgi,
        backend.name,
    )


# A store's verbs, called as the bare commands are.


class _Versions:
    """Records that hold a blob each, with the version that each is at."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        times = {"created": 1.6e9, "seen": 1.6e9, "deadline": 9e9}
        self._common = {"secret_hash": bytes(32), "idle_timeout": None, "lifetime": 1e9} | times

    def next(self, key: str, blob: bytes) -> Record:
        version = self._known[key] = self._known.get(key, 0) + 1
        return Record(sid=key, version=version, data=blob, **self._common)


def blocking_store(backend: Backend, store: Store) -> Raw:
    """Return the verbs of a store: a record for each key, whose data is the blob."""
    versions = _Versions()

    def insert(key: str, blob: bytes) -> None:
        assert store.create(versions.next(key, blob))

    def read(key: str) -> bytes:
        return store.load(key).data  # type: ignore[union-attr]

    def write(key: str, blob: bytes) -> None:
        record = versions.next(key, blob)
        assert store.replace(record, record.version - 1) is SAVED

    return Raw(f"blocking store, {backend.name}", insert, read, write)


def asynchronous_store(backend: Backend, store: AsyncStore) -> Raw:
    """As `blocking_store`."""
    versions = _Versions()

    async def insert(key: str, blob: bytes) -> None:
        assert await store.create(versions.next(key, blob))

    async def read(key: str) -> bytes:
        return (await store.load(key)).data  # type: ignore[union-attr]

    async def write(key: str, blob: bytes) -> None:
        record = versions.next(key, blob)
        assert await store.replace(record, record.version - 1) is SAVED

    return Raw(f"async store, {backend.name}", insert, read, write, asynchronous=True)
