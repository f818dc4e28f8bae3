"""What the gateway writes about requests, and what it must not."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from tests.integration.gateway.conftest import CHINESE, Suite
from tests.integration.gateway.running import eventually

pytestmark = pytest.mark.integration

SECRETS = ("my-prompt", "sk-my-key", "my-query", "my-cookie", "my-agent")
HEADERS = {
    "Authorization": "Bearer sk-my-key",
    "x-api-key": "sk-my-key",
    "Cookie": "my-cookie",
    "User-Agent": "my-agent",
}
FIELDS = {"time", "key", "service", "model", "method", "path", "status", "ms", "bytes_in", "bytes_out", "flags"}


def entries(suite: Suite, path: str) -> list[dict[str, Any]]:
    """The lines about this path, once there are some; Envoy writes them after a moment."""
    found: list[dict[str, Any]] = []

    def written() -> bool:
        lines = suite.gateway.access_log.read_text(encoding="utf-8").splitlines()
        parsed = [json.loads(line) for line in lines if line.endswith("}")]
        found[:] = [entry for entry in parsed if entry["path"].startswith(path)]
        return bool(found)

    eventually(written, f"an entry about {path}")
    return found


def test_one_line_for_a_request_without_what_was_in_it(suite: Suite) -> None:
    body = {"messages": [{"role": "user", "content": "my-prompt"}], "model": CHINESE}
    assert suite.post("/v1/completions?q=my-query", body, headers=HEADERS).status_code == 200
    (entry,) = entries(suite, "/v1/completions")
    assert set(entry) == FIELDS
    assert (entry["service"], entry["model"], entry["method"], entry["status"], entry["key"]) == (
        "chat", CHINESE, "POST", 200, None,
    )  # fmt: skip
    assert entry["path"] == "/v1/completions"
    assert datetime.fromisoformat(entry["time"]).tzinfo is not None
    assert isinstance(entry["ms"], int)
    assert entry["bytes_in"] > 60
    assert entry["bytes_out"] > 0
    text = suite.gateway.access_log.read_text(encoding="utf-8")
    assert not [secret for secret in SECRETS if secret in text]


def test_refused_requests_and_long_names(suite: Suite) -> None:
    assert suite.post("/v1/score", {"model": "m" * 5000}).status_code == 404
    (entry,) = entries(suite, "/v1/score")
    assert (entry["status"], entry["service"], entry["model"]) == (404, None, "m" * 200)
    assert suite.get(f"/nowhere{'x' * 5000}").status_code == 404
    (entry,) = entries(suite, "/nowhere")
    assert len(entry["path"]) == 200
    assert suite.post("/v1/rerank", {"model": "absent"}).status_code == 503
    assert [(e["status"], e["service"], e["flags"]) for e in entries(suite, "/v1/rerank")] == [(503, "down", "UH")]


def test_health_checks_are_not_written_unless_they_fail(suite: Suite) -> None:
    assert suite.get("/health").status_code == 200
    with suite.gateway.client(suite.down_port) as client:
        assert client.get("/health").status_code == 503
    assert [entry["status"] for entry in entries(suite, "/health")] == [503]
