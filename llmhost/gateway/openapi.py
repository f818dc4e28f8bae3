"""What the gateway serves, as OpenAPI: its paths, who answers them, how to ask, one example for each.

The bodies themselves are vLLM's and are described by its documentation; here an object with `model` and an example that
works is enough for a client, a page of documentation or a test to start from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmhost.facts import ServiceKind
from llmhost.gateway.endpoints import ENDPOINTS, Endpoint
from llmhost.plan.types import ServicePlan

Data = dict[str, Any]

CHAT = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 100}
TEXTS = {"query": "What is the capital of France?", "documents": ["Bananas are yellow.", "Paris is a capital."]}
PAIR = {"text_1": "What is the capital of France?", "text_2": "Paris is a capital."}

EXAMPLES: Mapping[str, Data] = {
    "/v1/chat/completions": CHAT,
    "/v1/chat/completions/batch": {"messages": [CHAT["messages"]], "max_tokens": 100},
    "/v1/completions": {"prompt": "Once upon a time", "max_tokens": 50},
    "/v1/responses": {"input": "Who are you?", "max_output_tokens": 100},
    "/v1/messages": CHAT,
    "/v1/messages/count_tokens": {"messages": CHAT["messages"]},
    "/cohere/v2/chat": {"messages": CHAT["messages"]},
    "/generative_scoring": {"query": "Is it raining?", "items": ["yes", "no"], "label_token_ids": [1, 2]},
    "/v1/embeddings": {"input": ["How do I stop the server?"]},
    "/v2/embed": {"texts": ["How do I stop the server?"], "input_type": "search_query", "embedding_types": ["float"]},
    "/v1/rerank": TEXTS,
    "/v2/rerank": TEXTS,
    "/rerank": TEXTS,
    "/v1/score": PAIR,
    "/score": PAIR,
    "/classify": {"input": ["How do I stop the server?"]},
    "/pooling": {"input": ["How do I stop the server?"]},
    "/tokenize": {"prompt": "How do I stop the server?"},
    "/detokenize": {"tokens": [1, 2, 3]},
}
"""A body for each path, without `model`."""

ERRORS = {
    "400": "The body is not JSON, names no model where there are several, or one of another kind.",
    "401": "No API key, or one that is not valid.",
    "403": "The API key may not use this model.",
    "404": "There is no such model.",
    "413": "The body is too large.",
    "429": "Too many requests; Retry-After says when to try again.",
    "503": "No engine of the service is ready; Retry-After says when to try again.",
}


def openapi_document(services: Sequence[ServicePlan], locked: bool) -> str:
    """The body of ``GET /openapi.json``: paths that no service answers are left out."""
    paths: dict[str, Data] = {path: {"get": _own(summary)} for path, summary in _own_paths().items()}
    for endpoint in ENDPOINTS:
        able = [s for s in services if s.kind in endpoint.served_by]
        if able:
            paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, able)
    document: Data = {
        "openapi": "3.1.0",
        "info": {"title": "llmhost", "version": "1", "description": "An OpenAI-compatible API of vLLM services."},
        "paths": paths,
        "components": {"schemas": {"Error": _error_schema()}},
    }
    return json.dumps(document | (_security(document) if locked else {}), ensure_ascii=False, separators=(",", ":"))


def example_of(kind: ServiceKind) -> tuple[str, Data]:
    """The main path of a kind and a body for it."""
    paths: dict[ServiceKind, str] = {
        "chat": "/v1/chat/completions", "embed": "/v1/embeddings", "rerank": "/v1/rerank",
    }  # fmt: skip
    path = paths[kind]
    return path, EXAMPLES[path]


def _own_paths() -> dict[str, str]:
    return {"/v1/models": "The models that can be asked for.", "/health": "Whether the gateway runs; needs no API key."}


def _own(summary: str) -> Data:
    return {"summary": summary, "responses": {"200": {"description": "OK"}}}


def _operation(endpoint: Endpoint, able: Sequence[ServicePlan]) -> Data:
    errors = {status: _error_response(text) for status, text in ERRORS.items()}
    operation: Data = {
        "summary": f"Answered by models of kind {' or '.join(endpoint.served_by)}.",
        "responses": {"200": {"description": "OK"}, **errors},
    }
    if "{id}" in endpoint.path:
        schema = {"type": "string", "pattern": "^[A-Za-z0-9._-]+$"}
        return operation | {"parameters": [{"name": "id", "in": "path", "required": True, "schema": schema}]}
    return operation | {"requestBody": _body(endpoint, able)}


def _body(endpoint: Endpoint, able: Sequence[ServicePlan]) -> Data:
    names = [name for service in able for name in service.served_as]
    schema = {"type": "object", "required": ["model"], "properties": {"model": {"type": "string", "enum": names}}}
    example = {"model": names[0], **EXAMPLES[endpoint.path]}
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


def _error_response(text: str) -> Data:
    return {"description": text, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}


def _error_schema() -> Data:
    inner = {
        "message": {"type": "string"},
        "type": {"type": "string"},
        "param": {"type": ["string", "null"]},
        "code": {"type": ["integer", "string", "null"]},
    }
    error = {"type": "object", "required": ["message", "type"], "properties": inner}
    return {"type": "object", "required": ["error"], "properties": {"error": error}}


def _security(document: Data) -> Data:
    document["paths"]["/health"]["get"]["security"] = []
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {
        "components": document["components"] | {"securitySchemes": schemes},
        "security": [{"bearer": []}, {"header": []}],
    }
