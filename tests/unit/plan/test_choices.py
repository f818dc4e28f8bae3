"""Flags that follow from the model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llmhost import config
from llmhost.facts import ModelFacts, ParserFacts
from llmhost.plan import Plan, stored
from llmhost.plan.build import make_plan
from tests.samples import machine, model

QWEN = replace(
    model(),
    tool_parser=ParserFacts(("hermes",), "Qwen3: tools"),
    reasoning_parser=ParserFacts(("newest", "qwen3"), "Qwen3: thoughts"),
)


def plan(args: str = "{}", facts: ModelFacts = QWEN, kind: str = "chat") -> Plan:
    text = f"services: {{chat: {{model: /m, kind: {kind}, args: {args}}}}}"
    return make_plan(config.parse(text), machine(), {"chat": facts})


def argv(made: Plan) -> str:
    return " ".join(made.programs[0].argv)


def test_parsers_are_chosen_and_the_reason_is_kept() -> None:
    made = plan()
    assert "--enable-auto-tool-choice --tool-call-parser hermes --reasoning-parser qwen3" in argv(made)
    assert [(c.flag, c.value, c.reason) for c in made.services[0].choices] == [
        ("tool_call_parser", "hermes", "Qwen3: tools"),
        ("reasoning_parser", "qwen3", "Qwen3: thoughts"),
    ]
    assert stored.from_dict(json.loads(json.dumps(stored.to_dict(made)))).services == made.services


def test_what_is_written_counts() -> None:
    made = plan("{tool-call-parser: llama3_json, enable_auto_tool_choice: true, reasoning_parser: null}")
    assert argv(made).count("tool-call-parser") == 1
    assert "--tool-call-parser llama3_json" in argv(made)
    assert "reasoning" not in argv(made)
    assert {c.reason for c in made.services[0].choices} == {"written in llmhost.yaml"}


@pytest.mark.parametrize("args", ["{enable_auto_tool_choice: false}", "{tool_call_parser: null}"])
def test_tools_can_be_switched_off(args: str) -> None:
    assert "tool-call-parser" not in argv(plan(args))


def test_parser_that_this_vllm_does_not_have() -> None:
    made = plan(facts=replace(QWEN, tool_parser=ParserFacts(("glm47", "glm45"), "GLM")))
    assert "tool" not in argv(made)
    assert made.services[0].choices[0].reason == "vLLM 0.32.0 has no parser glm47 or glm45 (GLM)"


def test_no_parser_for_what_is_no_chat() -> None:
    assert "parser" not in argv(plan(kind="embed"))


def test_reranker_in_disguise() -> None:
    facts = replace(model("rerank"), overrides={"hf_overrides": {"a": [1]}})
    assert '--runner pooling --hf-overrides {"a": [1]}' in argv(plan(facts=facts, kind="rerank"))
    assert "hf-overrides" not in argv(plan(facts=facts, kind="embed"))
    assert "--hf-overrides {}" in argv(plan("{hf_overrides: {}}", facts=facts, kind="rerank"))
