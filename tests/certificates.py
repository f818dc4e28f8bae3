"""Certificates for tests: an authority, what it issues, and which one a server shows."""

from __future__ import annotations

import datetime
import socket
import ssl
from pathlib import Path

import trustme
from cryptography import x509


class Certificates:
    """An authority, and what it issues, below a directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.certificate, self.key, self.ca = folder / "server.pem", folder / "server.key", folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        self.issue(self.certificate, self.key)

    def issue(self, certificate: Path, key: Path, *, days: int = 30) -> int:
        """Write a new pair in place; its serial number."""
        now = datetime.datetime.now(datetime.UTC)
        made = self.authority.issue_cert(
            "localhost",
            "127.0.0.1",
            not_before=now - datetime.timedelta(days=60),
            not_after=now + datetime.timedelta(days=days),
        )
        certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        key.write_bytes(made.private_key_pem.bytes())
        return self.serial(certificate)

    @staticmethod
    def serial(certificate: Path) -> int:
        return x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number

    def client(self, name: str | None = None) -> ssl.SSLContext:
        """Trusts the authority; with a certificate of its own when a name is given."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if name is not None:
            self.authority.issue_cert(name).configure_cert(context)
        return context


def shown_serial(port: int, context: ssl.SSLContext) -> int:
    """Of the certificate that the server at this port shows now."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"").serial_number
