"""Looks up servers on other hosts: where they are, what opens them, and what they serve."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llmhost.config import Config, served_names
from llmhost.config_requests import Endpoint
from llmhost.errors import ConfigError
from llmhost.facts import EndpointFacts

if TYPE_CHECKING:
    import httpx

ASK_SECONDS = 5.0
"""Seconds that a server may take to list its models; one that takes longer counts as one that is down for now."""


def read_endpoints(config: Config, home: Path) -> dict[str, tuple[EndpointFacts, ...]]:
    """The facts of the endpoints of every service that has some, in their order.

    Raises ConfigError, naming the service, for a host that nobody knows and for a file that cannot be used.
    """
    found: dict[str, tuple[EndpointFacts, ...]] = {}
    for name, service in config.services.items():
        with _naming(name):
            if service.endpoints:
                found[name] = tuple(_read(endpoint, home) for endpoint in service.endpoints)
    return found


@contextmanager
def _naming(service: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as e:
        raise ConfigError(f"services.{service}.endpoints: {e.message}", e.hint) from e


def _read(endpoint: Endpoint, home: Path) -> EndpointFacts:
    host, _, port = endpoint.url.partition("://")[2].rpartition(":")
    address = _address(host.strip("[]"), int(port), endpoint.url)
    key = read_key(home / endpoint.key_file) if endpoint.key_file else None
    ca_file = _ca_file(endpoint, home) if endpoint.url.startswith("https:") else None
    return EndpointFacts(address, is_our_address(address), key, ca_file)


def _address(host: str, port: int, url: str) -> str:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as e:
        raise ConfigError(f"{url}: nobody knows the host {host} ({e.strerror or e})", "write its IP address") from e
    return str(found[0][4][0])


def is_our_address(address: str) -> bool:
    """A packet to one of our own addresses comes from that address; no packet is sent here."""
    if ipaddress.ip_address(address).is_loopback:
        return True
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
            return str(probe.getsockname()[0]) == address
        except OSError:
            return False


def read_key(file: Path) -> str:
    """The API key in a file; raises ConfigError when it cannot be read, is empty, or others can read it."""
    try:
        key = file.read_text(encoding="ascii").strip()
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it holds more than plain characters"
        raise ConfigError(f"cannot read the key in {file}: {why}", "write the key alone into that file") from e
    if not key or not key.isprintable() or " " in key:
        raise ConfigError(f"{file} does not hold a key", "write the key alone into that file")
    if mode & 0o077:
        raise ConfigError(f"others can read the key in {file}", f"run `chmod 600 {file}`")
    return key


def _ca_file(endpoint: Endpoint, home: Path) -> str:
    default = ssl.get_default_verify_paths()
    known = (default.cafile, default.openssl_cafile)
    file = str(home / endpoint.ca_file) if endpoint.ca_file else next((f for f in known if f and os.path.exists(f)), "")
    try:
        ssl.create_default_context(cafile=file or None)
    except (OSError, ssl.SSLError) as e:
        raise ConfigError(f"{file} does not hold certificates: {e}", "write a file in PEM as ca_file") from e
    if not file:
        raise ConfigError(f"{endpoint.url}: this machine has no file of trusted certificates", "write one as ca_file")
    return file


def check_endpoints(config: Config, facts: Mapping[str, tuple[EndpointFacts, ...]]) -> list[str]:
    """Ask every endpoint what it serves; returns the urls of those that are down, which may come later.

    Raises ConfigError, naming the service, for one that does not serve all names of its service, refuses our key, or is
    no OpenAI-compatible server.
    """
    asked = [
        (name, *pair)
        for name, service in config.services.items()
        for pair in zip(service.endpoints, facts.get(name, ()), strict=True)
    ]
    with ThreadPoolExecutor(max_workers=16) as pool:
        return [url for url in pool.map(lambda each: _check(config, *each), asked) if url]


def _check(config: Config, name: str, endpoint: Endpoint, facts: EndpointFacts) -> str | None:
    with _naming(name):
        served = _served_names(endpoint, facts)
        if served is None:
            return endpoint.url
        missing = [n for n in served_names(name, config.services[name]) if n not in served]
        if missing:
            raise ConfigError(
                f"{endpoint.url} does not serve {', '.join(missing)} (it serves {', '.join(served) or 'nothing'})",
                "give the model these names there, or the service here the names that it has there (served_as)",
            )
    return None


def _served_names(endpoint: Endpoint, facts: EndpointFacts) -> tuple[str, ...] | None:
    import httpx  # noqa: PLC0415 (takes a while to load, and most homes have no endpoints)

    headers = {"Authorization": f"Bearer {facts.key}"} if facts.key else {}
    verify = ssl.create_default_context(cafile=facts.ca_file) if facts.ca_file else False
    try:
        with httpx.Client(timeout=ASK_SECONDS, verify=verify, trust_env=False) as client:
            answer = client.get(f"{endpoint.url}/v1/models", headers=headers)
    except httpx.TransportError as e:
        if isinstance(e.__cause__, ssl.SSLError) or "CERTIFICATE" in str(e):
            raise ConfigError(f"{endpoint.url}: {e}", "write the certificates that signed its own as ca_file") from e
        return None
    if answer.status_code in (401, 403):
        raise ConfigError(
            f"{endpoint.url} refuses {'the key in ' + endpoint.key_file if endpoint.key_file else 'us without a key'}",
            "write a file with a key that it knows as key_file",
        )
    return _names(endpoint, answer)


def _names(endpoint: Endpoint, answer: httpx.Response) -> tuple[str, ...] | None:
    if answer.status_code >= 500:
        return None
    try:
        return tuple(str(model["id"]) for model in answer.json()["data"])
    except (ValueError, KeyError, TypeError) as e:
        raise ConfigError(
            f"{endpoint.url} does not list its models: it is no OpenAI-compatible server",
            "write the address of vLLM, llmhost or another such server, without a path",
        ) from e
