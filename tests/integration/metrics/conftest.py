"""A home whose engines have metrics, used through the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmhost.metrics.text import samples
from tests.integration.workflow.conftest import Installed, home_in, short_directory

RECORDED = Path(__file__).parents[2] / "fakes/vllm_metrics.txt"
"""What vLLM 0.32.0 said at /metrics after one chat request."""

Samples = list[tuple[str, dict[str, str], float]]


def services(installed: Installed, more: str = "") -> str:
    """Two services with three engines; the metrics of each are those recorded."""
    env = f"env: {{FAKE_ENGINE: '--metrics {RECORDED}'}}"
    return f"""
        chat: {{model: {installed.model()}, served_as: demo, replicas: 2, {env}}}
        embedding: {{model: {installed.model("embed", "BertModel")}, {env}}}
        {more}
    """


def ask(installed: Installed, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    url = f"http://127.0.0.1:{installed.port}{path}"
    return httpx.get(url, timeout=300) if body is None else httpx.post(url, json=body, timeout=300)


def page(installed: Installed) -> Samples:
    answer = ask(installed, "/metrics")
    assert answer.status_code == 200, answer.text
    return list(samples(answer.text))


def values(found: Samples, name: str, **labels: str) -> list[float]:
    """The values of the samples of this name that have these labels."""
    return [value for n, has, value in found if n == name and labels.items() <= has.items()]


@pytest.fixture
def installed() -> Iterator[Installed]:
    """A home of one test's own."""
    with short_directory() as directory, home_in(directory) as made:
        yield made


@pytest.fixture(scope="session")
def watched() -> Iterator[Installed]:
    """Two services that are up and that were asked something; for tests that only look."""
    with short_directory() as directory, home_in(directory) as made:
        made.write(services(made))
        made.run("up")
        for _ in range(3):
            ask(made, "/v1/chat/completions", {"model": "demo", "messages": []}).raise_for_status()
        ask(made, "/v1/embeddings", {"model": "embedding", "input": "a"}).raise_for_status()
        assert ask(made, "/v1/embeddings", {"model": "nobody", "input": "a"}).status_code == 404
        yield made
