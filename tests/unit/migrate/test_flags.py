"""Command lines of vLLM as argparse reads them, and what today's vLLM calls what they say."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from llmhost.migrate.compose import import_compose
from llmhost.migrate.report import Line


def moved(command: str, rest: str = "") -> tuple[dict[str, Any], tuple[Line, ...]]:
    whole = json.dumps(f"--model /m/q {command}")
    text = f"services:\n  s:\n    image: vllm/vllm-openai\n    command: {whole}\n{rest}"
    imported = import_compose({Path("/srv/compose.yaml"): text}, {})
    return imported.config["services"]["s"], imported.lines


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("--trust-remote-code -O3", {"trust_remote_code": True, "optimization_level": 3}),
        ("-O 2 --seed -1", {"optimization_level": 2, "seed": -1}),
        ("-O=1", {"optimization_level": 1}),
        ("--compilation-config.level 3 -cc.mode=3", {"compilation_config": {"mode": 3}}),
        ("--compilation-config 3", {"compilation_config": {"mode": 3}}),
        ("-cc.pass_config.a true -O.mode 3", {"compilation_config": {"pass_config": {"a": True}, "mode": 3}}),
        ("--hf-overrides '{\"a\": {\"b\": 1}}' --hf-overrides.a.c=2", {"hf_overrides": {"a": {"b": 1, "c": 2}}}),
        ("--enforce-eager -ep", {"enforce_eager": True, "enable_expert_parallel": True}),
        ("--enforce-eager false --enable-lora=True", {"enforce_eager": False, "enable_lora": True}),
        ("--limit-mm-per-prompt image=2", {"limit_mm_per_prompt": {"image": 2}}),
        ("--limit-mm-per-prompt image=2,video=1", {"limit_mm_per_prompt": {"image": 2, "video": 1}}),
        ("--limit-mm-per-prompt image=2 video=1", {"limit_mm_per_prompt": {"image": 2, "video": 1}}),
        ("--limit-mm-per-prompt.image 2", {"limit_mm_per_prompt": {"image": 2}}),
        ("--limit-mm-per-prompt '{\"image\": 2}'", {"limit_mm_per_prompt": {"image": 2}}),
    ],
)  # fmt: skip
def test_values(command: str, args: dict[str, Any]) -> None:
    service, lines = moved(command)
    assert service["args"] == args
    told = " ".join(line.source for line in lines).replace("=", " ")
    for word in shlex.split(command.replace("=", " ")):
        assert word in told


def test_a_short_flag_that_is_not_known_is_no_value() -> None:
    service, lines = moved("--dtype half -zz 3")
    assert service["args"] == {"dtype": "half"}
    assert [line.source for line in lines if line.outcome == "by hand"] == ["-zz 3"]


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("--trust-remote-code org/m --port 9", {"trust_remote_code": True}),
        ("--port 9 --max-model-len 4096 org/m", {"max_model_len": 4096}),
        ("--lora-modules a=/l/a b=/l/b --seed 1 org/m", {"lora_modules": ["a=/l/a", "b=/l/b"], "seed": 1}),
    ],
)
def test_a_model_behind_flags(command: str, args: dict[str, Any]) -> None:
    text = f"services: {{s: {{image: vllm, command: vllm serve {command}}}}}"
    imported = import_compose({Path("/srv/compose.yaml"): text}, {})
    service = imported.config["services"]["s"]
    assert (service["model"], service["args"]) == ("hf:org/m", args)
    assert not [line for line in imported.lines if line.outcome == "by hand"]
