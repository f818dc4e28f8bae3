"""``args:`` of llmhost.yaml -> vLLM's argument vector."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.config import parse
from llmhost.errors import PlanError
from llmhost.facts import VllmFlag
from llmhost.plan.args import vllm_arguments
from llmhost.plan.removed import OWNED, REMOVED, TASKS

FLAGS = {
    flag.name: flag
    for flag in (
        VllmFlag("max_model_len", boolean=False),
        VllmFlag("gpu_memory_utilization", boolean=False),
        VllmFlag("enable_prefix_caching", boolean=True, negatable=True),
        VllmFlag("disable_log_stats", boolean=True),
        VllmFlag("lora_modules", boolean=False, multiple=True),
        VllmFlag("middleware", boolean=False, repeated=True),
        VllmFlag("optional_flag", boolean=False, optional_value=True),
        VllmFlag("compilation_config", boolean=False),
        VllmFlag("allowed_origins", boolean=False),
        VllmFlag("chat_template", boolean=False),
        VllmFlag("runner", boolean=False),
        VllmFlag("model", boolean=False),
        VllmFlag("host", boolean=False),
    )
}


def arguments(**args: Any) -> tuple[str, ...]:
    return vllm_arguments("chat", args, FLAGS)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({}, ()),
        ({"max_model_len": 8192}, ("--max-model-len", "8192")),
        ({"max-model-len": "8k"}, ("--max-model-len", "8k")),
        ({"--max-model-len": 1}, ("--max-model-len", "1")),
        ({"max_model_len": -1}, ("--max-model-len=-1",)),
        ({"gpu_memory_utilization": 0.25}, ("--gpu-memory-utilization", "0.25")),
        ({"max_model_len": None, "enable_prefix_caching": None}, ()),
        ({"enable_prefix_caching": True}, ("--enable-prefix-caching",)),
        ({"enable_prefix_caching": False}, ("--no-enable-prefix-caching",)),
        ({"disable_log_stats": True}, ("--disable-log-stats",)),
        ({"disable_log_stats": False}, ()),
        ({"optional_flag": True}, ("--optional-flag",)),
        ({"optional_flag": False}, ()),
        ({"optional_flag": "x"}, ("--optional-flag", "x")),
        ({"lora_modules": "a=b"}, ("--lora-modules", "a=b")),
        ({"lora_modules": ["a=b", "c=d"]}, ("--lora-modules", "a=b", "c=d")),
        ({"lora_modules": ["-x"]}, ("--lora-modules=-x",)),
        ({"lora_modules": [1, -2]}, ("--lora-modules", "1", "-2")),
        ({"lora_modules": [{"name": "a"}, "c=d"]}, ("--lora-modules", '{"name": "a"}', "c=d")),
        ({"middleware": ["a", "-b"]}, ("--middleware", "a", "--middleware=-b")),
        ({"allowed_origins": ["*"]}, ("--allowed-origins", '["*"]')),
        ({"allowed_origins": []}, ("--allowed-origins", "[]")),
        (
            {"compilation_config": {"mode": 3, "名": [True, None]}},
            ("--compilation-config", '{"mode": 3, "名": [true, null]}'),
        ),
        ({"chat_template": "{% x %} ;#\"' \\"}, ("--chat-template", "{% x %} ;#\"' \\")),
        ({"chat_template": "--oops"}, ("--chat-template=--oops",)),
        ({"chat_template": ""}, ("--chat-template", "")),
    ],
)
def test_forms(args: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert vllm_arguments("chat", args, FLAGS) == expected


def test_order_is_that_of_the_file() -> None:
    assert arguments(runner="pooling", max_model_len=1) == ("--runner", "pooling", "--max-model-len", "1")


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        ({"max_model_length": 1}, "no flag --max-model-length", "did you mean max_model_len?"),
        ({"hosst": 1}, "no flag --hosst", "flags"),
        ({"zzz": 1}, "no flag --zzz", "--help"),
        ({"no_enable_prefix_caching": True}, "no flag", "write enable_prefix_caching: false"),
        ({"compilation_config.mode": 3}, "no flag", "compilation_config: {mode: …}"),
        ({"compilation_config.a.b": 3}, "no flag", "compilation_config: {a: {b: …}}"),
        ({"task": "embed"}, "removed --task", "runner: pooling"),
        ({"task": "score"}, "removed --task", "convert: classify"),
        ({"task": ["?"]}, "removed --task", "runner: pooling"),
        ({"enable_reasoning": True}, "removed --enable-reasoning", "reasoning_parser"),
        ({"swap-space": 4}, "removed --swap-space", "kv_offloading_size"),
        ({"model": "/x"}, "--model is not for args", "model: beside args:"),
        ({"api-key": "k"}, "--api-key is not for args", "gateway"),
        ({"port": 1}, "--port is not for args", "gateway.port"),
        ({"enable_prefix_caching": "yes"}, "takes no value", "true or false"),
        ({"disable_log_stats": 1}, "takes no value", "true or false"),
        ({"max_model_len": True}, "needs a value, not true", "value"),
        ({"lora_modules": []}, "at least one value", "null"),
        ({"lora_modules": ["a", "-b"]}, "cannot stand in a list", "flag"),
        ({"max_model_len": 1, "max-model-len": 2}, "same flag", "one of them"),
    ],
)
def test_refusals(args: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(PlanError) as caught:
        vllm_arguments("chat", args, FLAGS)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert f"services.chat.args.{list(args)[-1]}" in caught.value.message


def test_a_removed_flag_still_works_where_vllm_has_it() -> None:
    flags = {"swap_space": VllmFlag("swap_space", boolean=False), "task": VllmFlag("task", boolean=False)}
    assert vllm_arguments("chat", {"swap_space": 4, "task": "embed"}, flags) == ("--swap-space", "4", "--task", "embed")


def test_a_value_that_is_no_json() -> None:
    """YAML reads an unquoted date as a date, deep inside a mapping too."""
    text = "services: {chat: {model: /m, args: {compilation_config: {since: 2024-01-01}}}}"
    with pytest.raises(PlanError, match="cannot be passed"):
        vllm_arguments("chat", parse(text).services["chat"].args, FLAGS)


def test_tables_say_something_for_every_flag() -> None:
    assert not set(OWNED) & set(REMOVED)
    assert all(text.startswith(("write ", "leave it out")) for text in (*OWNED.values(), *REMOVED.values()))
    assert TASKS["embed"] == "runner: pooling"


scalars = st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
trees = st.recursive(
    st.none() | st.booleans() | scalars, lambda t: st.lists(t) | st.dictionaries(st.text(), t), max_leaves=8
)


@given(
    value=scalars.filter(lambda v: not {"\0", "\n", "\r"} & set(str(v))),
    several=st.lists(st.integers() | st.from_regex(r"[^-\0\n\r][^\0\n\r]*", fullmatch=True), min_size=1),
    tree=st.dictionaries(st.text(), trees),
)
def test_argparse_reads_the_same_values(value: Any, several: list[Any], tree: dict[str, Any]) -> None:
    """What argparse reads from the vector is what the file says."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--chat-template")
    parser.add_argument("--lora-modules", nargs="+")
    parser.add_argument("--compilation-config", type=json.loads)
    words = arguments(chat_template=value, lora_modules=several, compilation_config=tree)
    read = parser.parse_args(words)
    assert read.chat_template == str(value)
    assert read.lora_modules == [str(v) for v in several]
    assert read.compilation_config == tree
