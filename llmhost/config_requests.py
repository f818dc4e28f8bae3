"""The part of a service in llmhost.yaml about its requests: how many it takes, and which server gets which."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from llmhost.config_engine import Section


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Texts = Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=list[str] | str)]
"""A list, or one text that stands for a list of one."""


class ServiceLimits(Section):
    """What all clients together may ask of a service."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)
    """Requests in a minute; beyond that the answer is 429 with Retry-After."""
    concurrent_requests: int | None = Field(default=None, ge=1, le=1_000_000)
    """Requests at once; beyond that the answer is 429."""
    max_body_mib: float | None = Field(default=None, gt=0, le=1024, strict=False)
    """Largest request body in MiB, below the gateway's own limit."""


class Endpoint(Section):
    """A server on another host (an engine, or a whole llmhost) that serves the same model under the same names."""

    url: str
    """http://HOST:PORT or https://HOST:PORT."""
    key_file: str | None = None
    """A file with the API key that it wants; relative to $LLMHOST_HOME."""
    ca_file: str | None = None
    """Certificates that its own must be signed by (https); default: those that this machine trusts."""

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        return endpoint_url(url)


def endpoint_url(url: str) -> str:
    """``scheme://host:port``; raises ValueError for anything else."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ValueError(f"{url!r} is not of the form http://HOST:PORT or https://HOST:PORT")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{url!r} must end behind the port: the paths of requests are added")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}"


def _as_endpoints(value: object) -> object:
    values = _as_list(value)
    return [{"url": v} if isinstance(v, str) else v for v in values] if isinstance(values, list) else values


Endpoints = Annotated[list[Endpoint], BeforeValidator(_as_endpoints, json_schema_input_type=list[Endpoint | str] | str)]
"""A URL stands for an endpoint without more."""


class Sticky(Section):
    """Which requests go to the same replica, as long as that is not much busier than the others."""

    header: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]+$")
    """Those with the same value of this request header."""
    prefix: int | None = Field(default=None, ge=16, le=32768)
    """Those that begin alike: so many bytes of the messages up to the first one of the user, or of the prompt."""

    @model_validator(mode="after")
    def _one_way(self) -> Sticky:
        if (self.header is None) == (self.prefix is None):
            raise ValueError("write either a header or a prefix: `sticky: {header: x-session-id}` or `sticky: prefix`")
        return self


PREFIX_BYTES = 1024


def _as_sticky(value: object) -> object:
    return {"prefix": PREFIX_BYTES} if value == "prefix" else value


Stickiness = Annotated[
    Sticky | None, BeforeValidator(_as_sticky, json_schema_input_type=Sticky | Literal["prefix"] | None)
]
"""``sticky: prefix`` is short for the usual number of bytes."""
