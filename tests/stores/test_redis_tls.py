"""`RedisStore` over TLS: a real server, behind a front that ends the encryption."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sojourn.core.calls import SAVED
from sojourn.errors import StoreUnavailable
from sojourn.stores.redis import from_url
from sojourn.testing import new_record, next_version
from tests.stores.servers_redis import Server, prefix, redis_program, redis_server, until
from tests.stores.test_redis_faults import Both, make

pytestmark = pytest.mark.server

_fixtures = (make, prefix, redis_program, redis_server)

NOW = time.time()


def certificate(path: Path) -> None:
    """Write a certificate for the loopback, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )


def serve(listener: socket.socket, context: ssl.SSLContext, port: int) -> None:
    """Take connections until the listener is closed."""
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=pass_on, args=(client, context, port), daemon=True).start()


def pass_on(client: socket.socket, context: ssl.SSLContext, port: int) -> None:
    """Pass on one connection, until one side has ended it."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as server:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(client, server_side=True) as secured:
            while True:
                ready = (
                    [secured] if secured.pending() else select.select([secured, server], [], [])[0]
                )
                for one in ready:
                    chunk = one.recv(65536)
                    if not chunk:
                        return
                    (server if one is secured else secured).sendall(chunk)


@pytest.fixture
def url(redis_server: Server, prefix: str, tmp_path: Path) -> Iterator[str]:
    """Where the server is to be had over TLS 1.3, which says something unasked: its tickets."""
    pem = tmp_path / "both.pem"
    certificate(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve, args=(listener, context, redis_server.port))
    thread.start()
    port = listener.getsockname()[1]
    yield f"rediss://127.0.0.1:{port}?ssl_ca_certs={pem}&prefix={prefix}"
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest.mark.anyio
async def test_new_connections(make: Callable[..., Both], url: str) -> None:
    """No new connection fails because of what TLS itself has to say."""
    record = new_record(NOW)
    async with make(url) as store:
        assert await store("create", record)
    for _ in range(100):
        async with make(url) as store:
            assert await store("load", record.sid) == record


@pytest.mark.anyio
async def test_changes_are_told(make: Callable[..., Both], url: str) -> None:
    """What another process changes is told over TLS too, and the thread that hears of it ends."""
    old = new_record(NOW)
    async with make(url, near=3599) as store, make(url) as other:
        await store("create", old)
        near = store.store._near
        assert near is not None
        for number in range(5):
            until(lambda: near.begin("a" * 22), 5)
            assert await store("recall", old.sid, lambda record: True) == old
            assert near.recall(old.sid) == old
            new = next_version(old, data=b"%d" % number)
            assert await other("replace", new, old.version) is SAVED
            until(lambda old=old: near.recall(old.sid) is None, 2)
            old = new
        listener = near._listener
        assert listener is not None
        await store("close")
        listener.join(5)
        assert not listener.is_alive()


def test_the_certificate_is_checked(url: str) -> None:
    """Who does not know the certificate does not connect."""
    plain = url.partition("?")[0]
    with (
        contextlib.closing(from_url(plain)) as store,
        pytest.raises(StoreUnavailable, match="CERTIFICATE"),
    ):
        store.load("a" * 22)
