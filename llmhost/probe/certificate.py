"""Is a certificate what the gateway needs? Asked of OpenSSL, as a client and a server in memory would."""

from __future__ import annotations

import ssl
from pathlib import Path

from llmhost.errors import GatewayError

PLACE = "gateway.tls"


def check_certificate(certificate: str, key: str, client_ca: str | None = None) -> None:
    """Raises GatewayError, naming the key of llmhost.yaml, for a file that cannot be read, is no PEM or is expired,
    and for a key that is not the certificate's."""
    for name, path in (("certificate", certificate), ("key", key), ("client_ca", client_ca)):
        if path is not None:
            _require_readable(name, path)
    _check_expiry(certificate, _server(certificate, key))
    if client_ca is not None:
        _check_authorities(client_ca)


def trusting(certificate: str) -> ssl.SSLContext:
    """For a client that must reach exactly the server with this certificate, whatever name it is reached by."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # The certificate itself is enough, without the authority that signed it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(certificate)
    return context


def _require_readable(name: str, path: str) -> None:
    try:
        Path(path).read_bytes()
    except OSError as e:
        raise GatewayError(
            f"{PLACE}.{name}: cannot read {path}: {e.strerror}", "check the path and who may read it"
        ) from e


def _server(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except _Encrypted:
        raise GatewayError(f"{PLACE}.key: {key} is encrypted", "give it without a passphrase, with mode 0600") from None
    except ssl.SSLError as e:
        if e.reason == "KEY_VALUES_MISMATCH":
            raise GatewayError(
                f"{PLACE}.key: {key} is not the key of the certificate {certificate}",
                "give the two that belong together",
            ) from e
        raise GatewayError(
            f"{PLACE}: {certificate} and {key} are no certificate and key in PEM: {e.reason or e}",
            "the certificate starts with -----BEGIN CERTIFICATE-----, the key with -----BEGIN … PRIVATE KEY-----",
        ) from e
    return context


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    raise _Encrypted


def _check_expiry(certificate: str, server: ssl.SSLContext) -> None:
    try:
        _shake_hands(trusting(certificate), server)
    except ssl.SSLCertVerificationError as e:
        raise GatewayError(
            f"{PLACE}.certificate: {certificate}: {e.verify_message}", "clients would refuse it: get a new one"
        ) from e


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname="gateway"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):  # three are enough for any version of TLS
        waiting = []
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                waiting.append(side)
        sides = waiting


def _check_authorities(path: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as e:
        raise GatewayError(
            f"{PLACE}.client_ca: {path} holds no certificates in PEM: {e.reason or e}", "give those of the authorities"
        ) from e
