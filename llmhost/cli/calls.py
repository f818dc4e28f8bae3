"""How a service is called: its address, and a `curl` line that works when pasted into a shell."""

from __future__ import annotations

import json
import shlex
from typing import Any

from llmhost.facts import ServiceKind
from llmhost.plan import Plan, ServicePlan

PATHS: dict[ServiceKind, str] = {"chat": "/v1/chat/completions", "embed": "/v1/embeddings", "rerank": "/v1/rerank"}

BODIES: dict[ServiceKind, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "Who are you?"}]},
    "embed": {"input": "How do I stop the server?"},
    "rerank": {
        "query": "What is the capital of France?",
        "documents": ["Bananas are yellow.", "Paris is the capital of France."],
    },
}


def endpoint_of(plan: Plan, service: ServicePlan) -> str:
    """The address of a service's main call; '' of a helper, which nobody calls."""
    return f"{plan.gateway.url}{PATHS[service.kind]}" if service.routed else ""


def curl_line(plan: Plan, service: ServicePlan) -> str:
    """A command that asks the service something, with the key of $LLMHOST_API_KEY where one is needed."""
    body = json.dumps({"model": service.served_as[0], **BODIES[service.kind]}, ensure_ascii=False)
    # The certificate is for the name that others use, not for the address of this machine.
    curl = ("curl", "-sk") if plan.gateway.tls else ("curl", "-s")
    words = (*curl, endpoint_of(plan, service), "-H", "Content-Type: application/json", "-d", body)
    key = ' -H "Authorization: Bearer $LLMHOST_API_KEY"' if plan.gateway.locked else ""
    return " ".join(map(shlex.quote, words)) + key
