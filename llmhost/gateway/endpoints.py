"""Every path of an engine that the gateway lets through, and which kinds of service answer it.

This is an allow-list. What an engine serves besides (``/metrics``, ``/docs``, ``/load``, ``/version``, adapters, sleep,
profiling, ``/invocations`` …) is for operators and stays on the engine's unix socket.
Source: the routers of vLLM 0.32.0 below ``vllm/entrypoints/``; ``source`` names the file.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmhost.facts import Kind

ANY: tuple[Kind, ...] = ("chat", "embed", "rerank")


@dataclass(frozen=True)
class Endpoint:
    """One path of an engine. ``{id}`` in it stands for one segment; such requests carry no ``model``."""

    method: str
    path: str
    kinds: tuple[Kind, ...]
    """Services of these kinds answer it; the only one of them also when the request names no model."""
    source: str
    also: tuple[Kind, ...] = ()
    """Services of these kinds can answer it, too, when the request names them."""

    @property
    def served_by(self) -> tuple[Kind, ...]:
        return self.kinds + self.also


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("POST", "/v1/chat/completions", ("chat",), "openai/chat_completion/api_router.py"),
    Endpoint("POST", "/v1/chat/completions/batch", ("chat",), "openai/chat_completion/api_router.py"),
    Endpoint("POST", "/v1/completions", ("chat",), "openai/completion/api_router.py"),
    Endpoint("POST", "/v1/responses", ("chat",), "openai/responses/api_router.py"),
    Endpoint("GET", "/v1/responses/{id}", ("chat",), "openai/responses/api_router.py"),
    Endpoint("POST", "/v1/responses/{id}/cancel", ("chat",), "openai/responses/api_router.py"),
    Endpoint("POST", "/v1/messages", ("chat",), "anthropic/api_router.py"),
    Endpoint("POST", "/v1/messages/count_tokens", ("chat",), "anthropic/api_router.py"),
    Endpoint("POST", "/cohere/v2/chat", ("chat",), "cohere/api_router.py"),
    Endpoint("POST", "/generative_scoring", ("chat",), "generate/generative_scoring/api_router.py"),
    Endpoint("POST", "/v1/embeddings", ("embed",), "pooling/embed/api_router.py"),
    Endpoint("POST", "/v2/embed", ("embed",), "pooling/embed/api_router.py"),
    # An embedding model scores and ranks by the similarity of its vectors (pooling/utils.py: enable_scoring_api).
    Endpoint("POST", "/v1/rerank", ("rerank",), "pooling/scoring/api_router.py", also=("embed",)),
    Endpoint("POST", "/v2/rerank", ("rerank",), "pooling/scoring/api_router.py", also=("embed",)),
    Endpoint("POST", "/rerank", ("rerank",), "pooling/scoring/api_router.py", also=("embed",)),
    Endpoint("POST", "/v1/score", ("rerank",), "pooling/scoring/api_router.py", also=("embed",)),
    Endpoint("POST", "/score", ("rerank",), "pooling/scoring/api_router.py", also=("embed",)),
    Endpoint("POST", "/classify", ("rerank",), "pooling/classify/api_router.py"),
    Endpoint("POST", "/pooling", ("embed", "rerank"), "pooling/pooling/api_router.py"),
    Endpoint("POST", "/tokenize", ANY, "serve/tokenize/api_router.py"),
    Endpoint("POST", "/detokenize", ANY, "serve/tokenize/api_router.py"),
)

OWN_PATHS: tuple[str, ...] = ("/v1/models", "/health", "/docs", "/openapi.json", "/metrics")
"""What the gateway answers itself, for GET and HEAD; ``/v1/models/<name>`` besides. /metrics is the exporter's page."""


@dataclass(frozen=True)
class EndpointGroup:
    """Endpoints that are routed alike: same method, same kinds, all with or all without an id in the path."""

    method: str
    kinds: tuple[Kind, ...]
    also: tuple[Kind, ...]
    by_model: bool
    """The request's body may name a model (it has no id in its path)."""
    endpoints: tuple[Endpoint, ...]

    @property
    def served_by(self) -> tuple[Kind, ...]:
        return self.kinds + self.also


def groups() -> tuple[EndpointGroup, ...]:
    """ENDPOINTS by how they are routed, in order of first appearance."""
    found: dict[tuple[str, tuple[Kind, ...], tuple[Kind, ...], bool], list[Endpoint]] = {}
    for endpoint in ENDPOINTS:
        key = (endpoint.method, endpoint.kinds, endpoint.also, "{id}" not in endpoint.path)
        found.setdefault(key, []).append(endpoint)
    return tuple(EndpointGroup(*key, tuple(members)) for key, members in found.items())
