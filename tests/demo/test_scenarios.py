"""The HTTP scenarios, on the example applications under real servers."""

from __future__ import annotations

import os
import signal
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sojourn.testing.scenarios import check_restart, run_scenarios

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
SERVERS = {
    "wsgi": ("-m", "waitress", "--listen=127.0.0.1:0", "--threads=8"),
    "asgi": ("-m", "uvicorn", "--port=0", "--no-access-log"),
}


def example(start: Callable[..., Any], name: str, store: str, *options: str) -> Any:
    """Start the example of that interface on that store."""
    path = os.pathsep.join(filter(None, [str(EXAMPLES / name), os.environ.get("PYTHONPATH")]))
    return start(*SERVERS[name], *options, "app:app", PYTHONPATH=path, SESSIONS=store)


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("store", ["memory://", "sqlite:///sessions.db"])
def test_scenarios(start: Callable[..., Any], name: str, store: str) -> None:
    """WSGI and ASGI, in memory and in a file: a browser finds the same behaviour."""
    run_scenarios(example(start, name, store).url)


def test_scenarios_behind_a_proxy(start: Callable[..., Any]) -> None:
    """Where the server says that the request came by https, cookies are those of https."""
    server = example(start, "wsgi", "memory://", "--url-scheme=https")

    run_scenarios(server.url, https=True)


def test_scenarios_over_tls(start: Callable[..., Any], tmp_path: Path) -> None:
    """The same over TLS itself."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make_certificate(certificate, key)
    options = (f"--ssl-certfile={certificate}", f"--ssl-keyfile={key}")
    server = example(start, "asgi", "memory://", *options)

    assert server.url.startswith("https://")
    run_scenarios(server.url, context=ssl.create_default_context(cafile=str(certificate)))


def make_certificate(certificate: Path, key: Path) -> None:
    """Write a certificate for 127.0.0.1 that signs itself."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), False
        )
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_restart(start: Callable[..., Any], name: str, by: signal.Signals) -> None:
    """A restart, also after kill -9, loses no session and revives none."""
    first = example(start, name, "sqlite:///sessions.db")

    def restart() -> str:
        first.end(by)
        return str(example(start, name, "sqlite:///sessions.db").url)

    check_restart(first.url, restart)


def test_wsgi_and_asgi_share_a_file(start: Callable[..., Any]) -> None:
    """A visitor moves from the one to the other, both running, and nothing is lost."""
    first = example(start, "wsgi", "sqlite:///sessions.db")
    second = example(start, "asgi", "sqlite:///sessions.db")

    check_restart(first.url, lambda: str(second.url))
    check_restart(second.url, lambda: str(first.url))
