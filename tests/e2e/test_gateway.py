"""The gateway as one puts it on the network, on real vLLM: HTTPS, keys, limits, replicas, metrics, no lost request."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from ruamel.yaml import YAML

from llmhost.metrics.text import samples
from tests.certificates import Certificates
from tests.e2e.conftest import Installation
from tests.steady import Steady

MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]
ENGINES = {("chat", "0"), ("embedding", "0"), ("embedding", "1"), ("rerank", "0")}


@dataclass(frozen=True)
class Network:
    """The demo suite with HTTPS, two replicas of the embedding service, and a key for everything."""

    installation: Installation
    certificates: Certificates
    key: str

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.installation.port}"

    @contextmanager
    def client(self, key: str | None) -> Iterator[httpx.Client]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        context = self.certificates.client()
        with httpx.Client(base_url=self.url, verify=context, headers=headers, timeout=300) as made:
            yield made

    @contextmanager
    def openai(self, key: str | None) -> Iterator[openai.OpenAI]:
        with self.client(None) as http:
            yield openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or "-", http_client=http, max_retries=0)

    def add_key(self, name: str, *options: str) -> str:
        return self.installation.llmhost("keys", "add", name, *options).stdout.strip()


@pytest.fixture(scope="module")
def network(installation: Installation) -> Iterator[Network]:
    folder = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    certificates, file, yaml = Certificates(folder), installation.home / "llmhost.yaml", YAML()
    original = file.read_text(encoding="utf-8")
    config = yaml.load(original)
    config["gateway"]["tls"] = {"certificate": str(certificates.certificate), "key": str(certificates.key)}
    config["services"]["embedding"]["replicas"] = 2
    try:
        yaml.dump(config, file)
        installation.llmhost("up")
        key = installation.llmhost("keys", "add", "all").stdout.strip()
        yield Network(installation, certificates, key)
    finally:
        installation.llmhost("keys", "reset", "--yes", check=False)
        file.write_text(original, encoding="utf-8")
        installation.llmhost("up")
        shutil.rmtree(folder)


@pytest.mark.parametrize("key", [None, "sk-wrong"])
def test_as_soon_as_there_is_a_key_every_request_needs_one(network: Network, key: str | None) -> None:
    chat = {"model": "demo-chat", "messages": MESSAGES, "max_tokens": 8}
    rerank = {"model": "demo-rerank", "query": "a", "documents": ["b"]}
    with network.client(key) as client:
        assert client.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics"):
            assert client.get(path).status_code == 401
        for path, body in (("/v1/chat/completions", chat), ("/v1/messages", chat), ("/v1/rerank", rerank)):
            refused = client.post(path, json=body)
            assert (refused.status_code, refused.json()["error"]["type"]) == (401, "AuthenticationError")
    with network.client(None) as client:
        for headers in ({"Authorization": f"Bearer {network.key}"}, {"x-api-key": network.key}):
            assert client.post("/v1/messages", json=chat, headers=headers).json()["content"][0]["text"]


def test_the_openai_sdk_over_https(network: Network) -> None:
    with network.openai(network.key) as client:
        assert {m.id for m in client.models.list()} == {"demo-chat", "demo-embed", "demo-rerank"}
        answer = client.chat.completions.create(model="demo-chat", messages=MESSAGES)
        assert "Paris" in (answer.choices[0].message.content or "")
        chunks = list(client.chat.completions.create(model="demo-chat", messages=MESSAGES, stream=True))
        assert "Paris" in "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        (vector,) = client.embeddings.create(model="demo-embed", input="hi").data
        assert abs(math.hypot(*vector.embedding) - 1) < 0.01
    with network.openai("sk-wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_a_key_sees_and_uses_its_own_services_only(network: Network) -> None:
    with network.openai(network.add_key("retrieval", "--services", "embedding,rerank")) as client:
        assert {m.id for m in client.models.list()} == {"demo-embed", "demo-rerank"}
        assert client.embeddings.create(model="demo-embed", input="hi").data
        with pytest.raises(openai.PermissionDeniedError):
            client.chat.completions.create(model="demo-chat", messages=MESSAGES)


def test_more_than_the_limit_of_a_key_is_429_with_retry_after(network: Network) -> None:
    with network.openai(network.add_key("modest", "--requests-per-minute", "2")) as client:
        answers = [client.embeddings.with_raw_response.create(model="demo-embed", input="hi") for _ in range(2)]
        assert [a.headers["x-ratelimit-limit-requests"] for a in answers] == ["2", "2"]
        assert [a.headers["x-ratelimit-remaining-requests"] for a in answers] == ["1", "0"]
        with pytest.raises(openai.RateLimitError) as refused:
            client.embeddings.create(model="demo-embed", input="hi")
    assert 0 < int(refused.value.response.headers["retry-after"]) <= 60
    with network.openai(network.key) as client:
        assert client.embeddings.create(model="demo-embed", input="hi").data


def test_a_rolling_restart_of_two_replicas_loses_no_request(network: Network) -> None:
    before = _engines(network, "embedding")
    steady = Steady(
        network.installation.port, "demo-embed", rate=10, path="/v1/embeddings", body={"input": "hi"}, stream=None,
        headers={"Authorization": f"Bearer {network.key}"}, tls=network.certificates.client(),
    )  # fmt: skip
    with steady.asking() as client:
        client.wait_for_more()
        network.installation.llmhost("restart", "--rolling", "embedding")
        client.wait_for_more()
    assert client.lost == []
    after = _engines(network, "embedding")
    assert before.keys() == after.keys() == {"embedding-0", "embedding-1"}
    assert not set(before.values()) & set(after.values())


def _engines(network: Network, service: str) -> dict[str, int]:
    (found,) = (s for s in network.installation.status()["services"] if s["name"] == service)
    return {r["name"]: r["engine_pid"] for r in found["replicas"]}


def test_one_page_has_vllms_metrics_by_service_and_replica(network: Network) -> None:
    with network.client(network.key) as client:
        for path, body in (
            ("/v1/chat/completions", {"model": "demo-chat", "messages": MESSAGES}),
            ("/v1/rerank", {"model": "demo-rerank", "query": "a", "documents": ["b"]}),
        ):
            client.post(path, json=body).raise_for_status()
        page = list(samples(client.get("/metrics").raise_for_status().text))
    prompts = {(m["service"], m["replica"]): n for name, m, n in page if name == "vllm:prompt_tokens_total"}
    assert {(s, r.rpartition("-")[2]) for s, r in prompts} == ENGINES
    assert all(prompts.values()), "each of them has answered something"
    assert any(m["service"] == "chat" and n for name, m, n in page if name == "vllm:generation_tokens_total")
    requests = [m for name, m, n in page if name == "envoy_cluster_upstream_rq" and n]
    assert {m.get("service") for m in requests} >= {"chat", "embedding", "rerank"}


def test_top_shows_every_service_once(network: Network) -> None:
    shown = network.installation.llmhost("top", "--once", "--interval", "1").stdout.splitlines()
    for service in ("chat", "embedding", "rerank"):
        assert any(line.split()[:2] == [service, "ready"] for line in shown), shown
    told = json.loads(network.installation.llmhost("top", "--json", "--interval", "1").stdout)
    engines = [r for s in told["services"] for r in s["replicas"]]
    assert [r["state"] for r in engines] == ["ready"] * len(ENGINES)
    assert all(r["memory_bytes"] > 100e6 for r in engines)
