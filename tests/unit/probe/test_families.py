"""Every family of models in `families.yaml`, as its checkpoint describes itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from ruamel.yaml import YAML

from llmhost.facts import ModelFacts
from llmhost.plan.choices import pick_parser
from llmhost.probe.families import families, named_parsers
from llmhost.probe.model import read_model
from tests.unit.probe.test_model import safetensors

KIB = 1024
TEXT = (Path(__file__).parent / "families.yaml").read_text(encoding="utf-8")
DATA = YAML(typ="safe", pure=True).load(TEXT)
MODELS: list[dict[str, Any]] = DATA["models"]

TOOL_PARSERS, REASONING_PARSERS = DATA["registered"]["tool"], DATA["registered"]["reasoning"]


def checkpoint(path: Path, model: dict[str, Any]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(model["config"]))
    (path / "model.safetensors").write_bytes(safetensors({"w": 1}))
    (path / "tokenizer_config.json").write_text(json.dumps(model.get("tokenizer", {})))
    template = model.get("template")
    if template:
        (path / "chat_template.jinja").write_text(DATA["templates"].get(template, template))
    for name, text in model.get("files", {}).items():
        (path / name).write_text(text)
    return path


@pytest.fixture(params=MODELS, ids=[m["name"] for m in MODELS])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dict[str, Any], ModelFacts]:
    entry: dict[str, Any] = request.param
    return entry, read_model(checkpoint(tmp_path / entry["name"], entry))


def test_family(model: tuple[dict[str, Any], ModelFacts]) -> None:
    entry, facts = model
    assert facts.kind == entry["kind"], facts.kind_reason
    if facts.kind == "chat":
        tool = pick_parser(facts.tool_parser, tuple(TOOL_PARSERS), "0.33.0")
        reasoning = pick_parser(facts.reasoning_parser, tuple(REASONING_PARSERS), "0.33.0")
        assert (tool[0], reasoning[0]) == (entry.get("tool"), entry.get("reasoning")), (tool, reasoning)
        assert tool[1]
        assert reasoning[1]
    if entry["kv"] is not None:
        assert [facts.cache.full_bytes / KIB, facts.cache.window_bytes / KIB] == entry["kv"]
        assert bool(facts.cache.window_bytes) == bool(facts.cache.window)
    assert list(facts.overrides) == entry.get("overrides", [])
    assert facts.multimodal == ("vision_config" in entry["config"])
    assert facts.remote_code == ("auto_map" in entry["config"])


def test_names() -> None:
    """A name with a spelling mistake would never be chosen, and a parser that nobody named never found."""
    assert named_parsers() == {*TOOL_PARSERS, *REASONING_PARSERS}


def test_every_family_has_a_model(tmp_path: Path) -> None:
    """The reason of a choice begins with the family; each of them must be somebody's."""
    models = [read_model(checkpoint(tmp_path / entry["name"], entry)) for entry in MODELS]
    reasons = [facts.tool_parser.reason for facts in models]
    silent = [f.name for f in families() if not f.describes_itself and not any(r.startswith(f.name) for r in reasons)]
    assert silent == []


@pytest.mark.parametrize("name", ["state", "latent", "sequence"])
def test_caches_of_hybrids(tmp_path: Path, name: str) -> None:
    def facts(model: str) -> ModelFacts:
        return read_model(checkpoint(tmp_path / model, next(m for m in MODELS if m["name"] == model)))

    if name == "state":
        # 36 layers: 32 heads of 128 x 128, and a convolution over 3 tokens of 2 * 16 * 128 + 32 * 128 channels.
        assert facts("Qwen3-Next-80B-A3B-Instruct").cache.state_bytes == 36 * 2 * (32 * 128 * 128 + 3 * 8192)
        assert facts("falcon-mamba-7b-instruct").cache.state_bytes == 64 * 2 * (8192 * 16 + 8192 * 3)
    elif name == "latent":
        assert facts("DeepSeek-V3.1").cache.latent
        assert not facts("Qwen2.5-7B-Instruct").cache.latent
    else:
        gemma = facts("gemma-3-27b-it").cache
        assert gemma.of(500) == 500 * (80 + 416) * KIB
        assert gemma.of(10_000) == (10_000 * 80 + 1024 * 416) * KIB


def test_parser_that_the_installed_vllm_lacks(tmp_path: Path) -> None:
    """glm47 came after glm45, and reads the same: the older name is as good."""
    facts = read_model(checkpoint(tmp_path / "m", next(m for m in MODELS if m["name"] == "GLM-4.7-Flash")))
    assert pick_parser(facts.tool_parser, ("glm45", "hermes"), "0.11.0")[0] == "glm45"
    nothing, reason = pick_parser(facts.tool_parser, ("hermes",), "0.9.0")
    assert nothing is None
    assert reason.startswith("vLLM 0.9.0 has no parser glm47 or glm45")


def test_templates_wherever_they_are(tmp_path: Path) -> None:
    entry = next(m for m in MODELS if m["name"] == "Qwen2.5-7B-Instruct")
    text = DATA["templates"]["hermes"]
    forms: list[dict[str, Any]] = [
        {"tokenizer": {"chat_template": text}},
        {
            "tokenizer": {
                "chat_template": [{"name": "default", "template": "x"}, {"name": "tool_use", "template": text}]
            }
        },
        {"files": {"chat_template.json": json.dumps({"chat_template": text})}},
    ]
    for i, form in enumerate(forms):
        facts = read_model(checkpoint(tmp_path / str(i), {**entry, "template": None, **form}))
        assert facts.tool_parser.names[0] == "hermes"


def test_score_template(tmp_path: Path) -> None:
    """It renders as transformers would render it, with the query and the document in their places."""
    facts = read_model(checkpoint(tmp_path / "m", next(m for m in MODELS if m["name"] == "a-renamed-qwen3-reranker")))
    source = Path(facts.overrides["chat_template"]).read_text()
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    messages = [{"role": "query", "content": "QQ"}, {"role": "document", "content": "DD"}]
    text = template.render(messages=messages)
    assert text.startswith("<|im_start|>system\nJudge whether")
    assert "\n<Query>: QQ\n<Document>: DD<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n" in text
    assert text.endswith("</think>\n\n")
    assert facts.overrides["hf_overrides"]["classifier_from_token"] == ["no", "yes"]


def test_lora_adapter_is_no_model(tmp_path: Path) -> None:
    from llmhost.errors import ModelError

    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen3-8B"}')
    with pytest.raises(ModelError, match=r"LoRA adapter of Qwen/Qwen3-8B"):
        read_model(tmp_path)
