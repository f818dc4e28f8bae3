"""What users come from, imported and brought up: every service answers where its clients look for it."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from tests.integration.workflow.conftest import Installed
from tests.ports import free_port

pytestmark = pytest.mark.integration

ALL_KINDS = """
x-vllm-common: &vllm-common
  image: vllm/vllm-openai:v0.8.5
  runtime: nvidia
  volumes: ["./models:/models:ro"]
services:
  vllm-chat:
    <<: *vllm-common
    ports: ["127.0.0.1:{chat}:8000"]
    command: >
      --model /models/qwen --served-model-name gpt-4 --tensor-parallel-size 2 --distributed-executor-backend ray
      --enable-auto-tool-choice --tool-call-parser hermes --swap-space 16
    deploy: {{resources: {{reservations: {{devices: [{{driver: nvidia, count: 2, capabilities: [gpu]}}]}}}}}}
  vllm-embedding:
    <<: *vllm-common
    ports: ["127.0.0.1:{embed}:8000"]
    command: [--model, /models/gte, --task, embed, --served-model-name, gte]
  vllm-rerank:
    <<: *vllm-common
    ports: ["127.0.0.1:{rerank}:8000"]
    command: --model /models/bge --task score --served-model-name bge
"""
SPLIT = """
services:
  llm:
    image: vllm/vllm-openai:latest
    network_mode: host
    command: ["bash", "-c", "vllm serve {models}/qwen --port {chat} --served-model-name gpt-4 --enable-reasoning"]
"""
TEI = """
services:
  embedding:
    image: ghcr.io/huggingface/text-embeddings-inference:1.7
    ports: ["127.0.0.1:{embed}:80"]
    volumes: ["{models}:/data"]
    command: --json-output --model-id /data/gte
  reranker:
    image: ghcr.io/huggingface/text-embeddings-inference:1.7
    ports: ["127.0.0.1:{rerank}:80"]
    volumes: ["{models}:/data"]
    command: --json-output --model-id /data/bge
"""


@pytest.fixture
def ports() -> dict[str, int]:
    return {kind: free_port() for kind in ("chat", "embed", "rerank")}


def moved_in(installed: Installed, place: Path, ports: dict[str, int], **files: str) -> None:
    """The compose files imported, the gateway's port put to one that is free, and everything up."""
    models = place / "models"
    models.mkdir()
    for name, architecture in (
        ("qwen", "Qwen3ForCausalLM"),
        ("gte", "BertModel"),
        ("bge", "BertForSequenceClassification"),
    ):
        Path(installed.model(f"models/{name}", architecture))
    paths = []
    for name, text in files.items():
        paths.append(str(place / f"{name}.yaml"))
        Path(paths[-1]).write_text(text.format(models=models, **ports), encoding="utf-8")
    installed.run("import", *paths, "-o", str(installed.home.config_file), "--force")
    written = installed.home.config_file.read_text(encoding="utf-8")
    installed.home.config_file.write_text(re.sub(r"port: 8000\b", f"port: {installed.port}", written), encoding="utf-8")


def answers(port: int, path: str, body: dict[str, object]) -> bool:
    return httpx.post(f"http://127.0.0.1:{port}{path}", json=body, timeout=300).status_code == 200


def everything_answers(installed: Installed, ports: dict[str, int], embed: str, rerank: str) -> None:
    chat = {"model": "gpt-4", "messages": [{"role": "user", "content": "hi"}]}
    for port in (installed.port, ports["chat"]):
        assert answers(port, "/v1/chat/completions", chat)
    for port in (installed.port, ports["embed"]):
        assert answers(port, "/v1/embeddings", {"model": embed, "input": "a"})
    for port in (installed.port, ports["rerank"]):
        assert answers(port, "/v1/rerank", {"model": rerank, "query": "a", "documents": ["b"]})


def test_one_compose_file_with_all_kinds(installed: Installed, place: Path, ports: dict[str, int]) -> None:
    moved_in(installed, place, ports, compose=ALL_KINDS)
    error, hint = installed.refused("up")
    assert "services.vllm-chat.gpus: 2, but this engine computes on the CPU" in error
    assert "leave the key out here" in hint
    text = installed.home.config_file.read_text(encoding="utf-8")
    installed.home.config_file.write_text(re.sub(r"\n +gpus: 2", "", text), encoding="utf-8")
    installed.run("up")
    everything_answers(installed, ports, "gte", "bge")


def test_a_file_for_the_llm_and_one_for_embedding_and_reranking(
    installed: Installed, place: Path, ports: dict[str, int]
) -> None:
    moved_in(installed, place, ports, llm=SPLIT, tei=TEI)
    installed.run("up")
    everything_answers(installed, ports, "gte", "bge")
