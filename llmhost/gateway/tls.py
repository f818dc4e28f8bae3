"""HTTPS: certificates reach Envoy as secrets in files of their own, so that a new one needs no new listener.

Envoy reads the certificate's files again when something is renamed into a directory that it watches;
`llmhost.supervise.guarding.refresh` does that whenever they have changed, however that was done. With HTTPS switched on
or off the same listener has another filter chain; connections of the old one are asked to close after their next
answer.
"""

from __future__ import annotations

from collections.abc import Callable

from llmhost.gateway.envoy import Data, typed
from llmhost.plan.types import TlsPlan

CERTIFICATE, CLIENTS = "sds-certificate", "sds-clients"
"""Names of the secrets, and of their files without suffix."""

WATCHED = "certificates"
"""Directory below that of the gateway's files, with the file that is renamed into it."""

CONTEXT = "extensions.transport_sockets.tls.v3.DownstreamTlsContext"
HANDSHAKE_SECONDS = "15s"

Source = Callable[[str], Data]
"""Where Envoy finds the file of this name."""


def secrets(tls: TlsPlan, folder: str) -> dict[str, Data]:
    """The secrets by their names; ``folder`` holds the gateway's files."""
    watched = {"watched_directory": {"path": f"{folder}/{WATCHED}"}}
    found = {CERTIFICATE: _secret(CERTIFICATE, tls_certificate=_certificate(tls) | watched)}
    if tls.client_ca is not None:
        found[CLIENTS] = _secret(CLIENTS, validation_context=_clients(tls.client_ca) | watched)
    return found


def watched_files(tls: TlsPlan) -> list[str]:
    """What must be read again when it changes."""
    return [path for path in (tls.certificate, tls.key, tls.client_ca) if path is not None]


def filter_chain(tls: TlsPlan, source: Source) -> Data:
    """Fields of a filter chain that speaks TLS, with HTTP/2 for those who want it."""
    common = _common() | {
        "tls_certificate_sds_secret_configs": [{"name": CERTIFICATE, "sds_config": source(CERTIFICATE)}]
    }
    if tls.client_ca is not None:
        common["validation_context_sds_secret_config"] = {"name": CLIENTS, "sds_config": source(CLIENTS)}
    return _chain(tls, common)


def static_filter_chain(tls: TlsPlan) -> Data:
    """The same without files that are watched, for Envoy's validation."""
    common = _common() | {"tls_certificates": [_certificate(tls)]}
    if tls.client_ca is not None:
        common["validation_context"] = _clients(tls.client_ca)
    return _chain(tls, common)


def _common() -> Data:
    return {"tls_params": {"tls_minimum_protocol_version": "TLSv1_2"}, "alpn_protocols": ["h2", "http/1.1"]}


def _chain(tls: TlsPlan, common: Data) -> Data:
    context = typed(CONTEXT, common_tls_context=common, require_client_certificate=tls.client_ca is not None)
    return {
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context},
        "transport_socket_connect_timeout": HANDSHAKE_SECONDS,
    }


def _secret(name: str, **content: Data) -> Data:
    return typed("extensions.transport_sockets.tls.v3.Secret", name=name, **content)


def _certificate(tls: TlsPlan) -> Data:
    return {"certificate_chain": {"filename": tls.certificate}, "private_key": {"filename": tls.key}}


def _clients(path: str) -> Data:
    return {"trusted_ca": {"filename": path}}
