"""The engine that `llmhost setup` built: its flags are those of the real vLLM, and args: arrive as written."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from llmhost.config import Engine
from llmhost.env import Silent, ensure_engine, find_engine
from llmhost.facts import EngineFacts
from llmhost.paths import Home
from llmhost.plan.args import vllm_arguments
from llmhost.plan.removed import OWNED, REMOVED
from llmhost.probe.families import named_parsers
from tests.e2e.vllm_parser import parsed, parser_facts

if TYPE_CHECKING:
    from tests.e2e.conftest import Installation

ARGS: dict[str, Any] = {
    "max_model_len": "8k",
    "gpu_memory_utilization": 0.25,
    "seed": -1,
    "enforce-eager": True,
    "enable_prefix_caching": False,
    "disable_log_stats": False,
    "chat_template": "--{% x %} ;#\"' 你好",
    "compilation_config": {"cudagraph_mode": "NONE"},
    "default_chat_template_kwargs": {"enable_thinking": False, "名": "值"},
    "allowed_origins": ["*"],
    "middleware": ["a.b", "c.d"],
    "lora_modules": ["a=/x", {"name": "b", "path": "/y"}],
    "cudagraph_capture_sizes": [1, 2, 4],
}


@pytest.fixture(scope="module")
def engine(installation: Installation) -> EngineFacts:
    found = find_engine(Home(installation.home), Engine())
    assert found is not None
    return found


def check_flags(engine: EngineFacts) -> None:
    """The same flags with the same properties as the real parser has, and the same parser names."""
    real = parser_facts(engine.python)
    read = {name: {k: v for k, v in asdict(flag).items() if k != "name"} for name, flag in engine.flags.items()}
    assert read == real["flags"]
    assert sorted(engine.tool_call_parsers) == real["tool_call_parsers"]
    assert sorted(engine.reasoning_parsers) == real["reasoning_parsers"]


def check_arguments(engine: EngineFacts) -> None:
    """What is written under args: is what vLLM's parser reads."""
    argv = vllm_arguments("chat", ARGS, engine.flags)
    read = parsed(engine.python, argv, tuple(key.replace("-", "_") for key in ARGS))
    assert read["max_model_len"] == 8000
    assert (read["gpu_memory_utilization"], read["seed"]) == (0.25, -1)
    assert (read["enforce_eager"], read["enable_prefix_caching"], read["disable_log_stats"]) == (True, False, False)
    for key in ("chat_template", "default_chat_template_kwargs", "allowed_origins", "middleware"):
        assert read[key] == ARGS[key]
    assert read["cudagraph_capture_sizes"] == [1, 2, 4]
    assert "/y" in json.dumps(read["lora_modules"])


def test_flags(engine: EngineFacts) -> None:
    check_flags(engine)


def test_arguments(engine: EngineFacts) -> None:
    check_arguments(engine)


def test_tables_of_flags(engine: EngineFacts) -> None:
    """What llmhost says that vLLM removed is gone, but for what the next version will remove; what it sets is there."""
    assert set(REMOVED) & set(engine.flags) <= {"disable_cascade_attn", "log_config_file"}
    assert set(OWNED) <= set(engine.flags)


def test_parsers_of_the_families(engine: EngineFacts) -> None:
    """The data file knows the parsers that this vLLM registers, and those of 0.33, which has no CPU build yet."""
    registered = {*engine.tool_call_parsers, *engine.reasoning_parsers}
    assert named_parsers() == registered | {"beam", "muse", "musespark1x", "step5"}


def test_second_setup_does_nothing(installation: Installation, engine: EngineFacts) -> None:
    home = Home(installation.home)
    log = home.log_file("setup").stat().st_mtime_ns
    assert ensure_engine(home, Engine(), Silent()) == engine
    assert home.log_file("setup").stat().st_mtime_ns == log
