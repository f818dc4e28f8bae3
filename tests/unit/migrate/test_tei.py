"""text-embeddings-inference: its variables are its flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmhost.migrate.compose import import_compose
from llmhost.migrate.masking import is_secret
from llmhost.migrate.tei import VARIABLES

COMPOSE = """
services:
  s:
    image: ghcr.io/huggingface/text-embeddings-inference:1.8
    environment:
      {MODEL_ID: /data/r, DTYPE: float16, POOLING: mean, API_KEY: topsecret, MAX_BATCH_TOKENS: 4096, PORT: 3000,
       HF_API_TOKEN: hf-secret, HUGGINGFACE_HUB_CACHE: /data, AUTO_TRUNCATE: "true", RUST_LOG: info,
       MAX_CONCURRENT_REQUESTS: 64, SERVED_MODEL_NAME: bge, TZ: UTC, JSON_OUTPUT: "true"}
    command: --dtype float32
"""


def test_variables_are_flags() -> None:
    imported = import_compose({Path("/srv/compose.yaml"): COMPOSE}, {})
    assert imported.config["services"]["s"] == {
        "model": "/data/r", "served_as": ["bge"], "limits": {"concurrent_requests": 64},
        "args": {"dtype": "float32", "max_num_batched_tokens": 4096}, "env": {"TZ": "UTC"},
    }  # fmt: skip
    told = {line.source: line.outcome for line in imported.lines}
    for variable in ("POOLING=mean", "AUTO_TRUNCATE=true", "HUGGINGFACE_HUB_CACHE=/data", "RUST_LOG=info"):
        assert told[variable] == "left out"
    for secret in ("API_KEY=…", "HF_API_TOKEN=…"):
        assert told[secret] == "by hand"
    assert "secret" not in str(imported).replace("a secret", "")
    assert told["DTYPE=float16"] == "left out", "the flag counts"


def test_every_variable_is_in_the_report() -> None:
    for variable in VARIABLES:
        text = f"services: {{s: {{image: text-embeddings-inference, environment: [MODEL_ID=/m, '{variable}=1']}}}}"
        lines = import_compose({Path("/srv/compose.yaml"): text}, {}).lines
        if variable not in ("MODEL_ID", "PORT", "REVISION"):
            assert any(line.source.startswith(f"{variable}=") for line in lines), variable


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("MAX_BATCH_TOKENS", False), ("--max-num-batched-tokens", False), ("TOKENIZERS_PARALLELISM", False),
        ("HF_TOKEN_PATH", False), ("MAX_PROMPT_ADAPTER_TOKEN", False), ("KEYBOARD", False),
        ("HF_TOKEN", True), ("AWS_SECRET_ACCESS_KEY", True), ("DB_PASSWORD", True), ("CLIENT_SECRET", True),
        ("--api-keys", True), ("TOKEN", True), ("PGPASSWORD", True), ("OPENAI_APIKEY", True), ("AUTHTOKEN", True),
        ("DB_PASS", True), ("MYSQL_PWD", True), ("VLLM_BYPASS", False), ("PATH", False),
    ],
)  # fmt: skip
def test_what_a_secret_is(name: str, secret: bool) -> None:
    assert is_secret(name) is secret
