"""The part of llmhost.yaml about the one port in front of all services: ``gateway:``."""

from __future__ import annotations

from pydantic import Field

from llmhost.config_engine import Section


class Tls(Section):
    """HTTPS for every port of the gateway. Files in PEM; they are read again when they change."""

    certificate: str = Field(min_length=1)
    """The certificate, followed by those of intermediate authorities."""
    key: str = Field(min_length=1)
    """Its private key, not encrypted."""
    client_ca: str | None = None
    """Certificates of authorities: only clients with a certificate of one of them get in."""


class KeyLimits(Section):
    """What each API key may ask of the gateway, unless the key has a limit of its own."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)
    """Requests in a minute; beyond that the answer is 429 with Retry-After."""
    concurrent_requests: int | None = Field(default=None, ge=1, le=1_000_000)
    """Requests with engines at once; beyond that the answer is 429."""
    max_body_mib: float | None = Field(default=None, gt=0, le=1024, strict=False)
    """Largest request body in MiB, below the gateway's own limit."""


class Gateway(Section):
    """The one OpenAI-compatible port in front of all services."""

    host: str = "127.0.0.1"
    """Address to listen on; one that others can reach needs API keys (`llmhost keys add`)."""
    insecure: bool = False
    """Serve everybody who can reach the address, without API keys."""
    tls: Tls | None = None
    """HTTPS; default: plain HTTP."""
    limits: KeyLimits = KeyLimits()
    """What each API key may ask, unless it has limits of its own."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
    max_body_mib: int = Field(default=8, ge=1, le=1024)
    """Largest request body in MiB; a larger one is answered with 413."""
