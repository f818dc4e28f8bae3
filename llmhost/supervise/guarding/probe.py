"""Requests that prove that an engine works: a hung vLLM still answers 200 on /health, so real ones are made."""

from __future__ import annotations

import json
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

REQUESTS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    # A model without a chat template refuses chat with status 400 and still completes text.
    "chat": [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 1}),
    ],
    "embed": [("/v1/embeddings", {"input": "hi"})],
    "rerank": [("/v1/rerank", {"query": "hi", "documents": ["hi"]})],
}
"""Path and body of the cheapest real requests of a kind; the next one is tried when one is refused with 400."""


def http_request(path: str, model: str, fields: dict[str, Any]) -> bytes:
    """A whole HTTP/1.1 request; the server closes the connection after its answer."""
    body = json.dumps({"model": model, **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def http_status(answer: bytes) -> int:
    """The status of a response, 0 when it is none."""
    found = re.match(rb"HTTP/1\.[01] (\d{3})[ \r]", answer)
    return int(found[1]) if found else 0


def http_body(answer: bytes) -> str:
    """The body of a response as it was sent, for a message."""
    return answer.partition(b"\r\n\r\n")[2].decode("utf-8", "replace")
