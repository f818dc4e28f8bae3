"""API keys for tests of the gateway."""

from __future__ import annotations

from llmhost import keys
from llmhost.plan.types import KeyPlan, Limits


def issue(
    name: str,
    services: tuple[str, ...] | None = None,
    *,
    expires: int | None = None,
    requests_per_minute: int | None = None,
    concurrent_requests: int | None = None,
    max_body_bytes: int | None = None,
) -> tuple[KeyPlan, str]:
    """A key as a plan has it, and its text."""
    (key,), text = keys.add((), name, 0)
    limits = Limits(requests_per_minute, concurrent_requests, max_body_bytes)
    return KeyPlan(key.name, key.user, key.digest, services, expires, limits), text
