"""Values under ``args:`` with which vLLM does not start are refused before anything is started."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmhost import config
from llmhost.errors import PlanError
from llmhost.facts import ShapeFacts, VllmFlag
from llmhost.plan.values import check_arguments
from tests.samples import machine, model

MODEL = replace(model(context=32768), shape=ShapeFacts(28, 28, 4, 3584, 18944, 152064))
KEYS = (
    "max_model_len", "kv_cache_dtype", "tensor_parallel_size", "pipeline_parallel_size", "limit_mm_per_prompt",
    "gpu_memory_utilization", "dtype", "max_num_seqs", "hf_overrides", "data_parallel_size",
)  # fmt: skip
ENGINE = replace(machine().engine, flags={key: VllmFlag(key, boolean=False) for key in KEYS})


def check(text: str, version: str = "0.32.0") -> None:
    services = config.parse(f"services: {{c: {{model: /m, {text}}}}}").services
    check_arguments(services, {"c": MODEL}, replace(ENGINE, vllm_version=version))


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        ("max_model_len: 40000", "40000 tokens, but the model has 32768", "VLLM_ALLOW_LONG_MAX_MODEL_LEN"),
        ("max-model-len: 64K", "max-model-len: 64K tokens, but", "32768 or less"),
        ("max_model_len: long", "'long' is no number of tokens", "32K"),
        ("max_model_len: true", "needs a value, not true", ""),
        ("max_model_len: 0", "0 is no number of tokens", "32K"),
        ("kv_cache_dtype: fp16", "kv_cache_dtype: vLLM knows no 'fp16'", "float16"),
        ("dtype: int8", "dtype: vLLM knows no 'int8'", "bfloat16"),
        ("tensor_parallel_size: 3", "3 does not divide the 28 attention heads", "1, 2, 4, 7, 14, 28"),
        ("tensor_parallel_size: 0", "0 is no number from 1 on", "leave it out"),
        ("tensor_parallel_size: two", "'two' is no number from 1 on", "leave it out"),
        ("data_parallel_size: true", "needs a value, not true", ""),
        ("pipeline_parallel_size: 29", "29, but the model has 28 layers", "28 or less"),
        ("limit_mm_per_prompt: image=2", "neither a mapping nor JSON", "{image: 2}"),
        ("limit_mm_per_prompt: 2", "neither a mapping nor JSON", "{image: 2}"),
        ("hf_overrides: '[1]'", "neither a mapping nor JSON", "mapping"),
        ("gpu_memory_utilization: 90", "90 is no part of a GPU", "0.5"),
        ("gpu_memory_utilization: much", "'much' is no part of a GPU", "0.5"),
        ("no_such_flag: 1", "no flag --no-such-flag", ""),
    ],
)
def test_refused(args: str, message: str, hint: str) -> None:
    with pytest.raises(PlanError) as e:
        check(f"args: {{{args}}}")
    assert e.value.message.startswith(f"services.c.args.{args.partition(':')[0]}: ")
    assert message in e.value.message
    assert hint in e.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "args: {max_model_len: 32k, kv_cache_dtype: fp8, tensor_parallel_size: 4, dtype: half}",
        "args: {max_model_len: 32K}",
        "args: {max_model_len: auto}",
        "args: {max_model_len: -1}",
        "args: {max_model_len: null, kv_cache_dtype: null}",
        "args: {max_model_len: 131072, hf_overrides: {rope_parameters: {rope_type: yarn, factor: 4.0}}}",
        "args: {max_model_len: 131072}, env: {VLLM_ALLOW_LONG_MAX_MODEL_LEN: '1'}",
        "args: {limit_mm_per_prompt: {image: 2}}",
        "args: {limit_mm_per_prompt: '{\"image\": 2}', gpu_memory_utilization: '0.9'}",
    ],
)
def test_accepted(text: str) -> None:
    check(text)


def test_a_newer_vllm_may_know_more() -> None:
    check("args: {kv_cache_dtype: fp3}", version="0.34.0")


def test_without_an_engine_flags_are_not_known() -> None:
    services = config.parse("services: {c: {model: /m, args: {no_such_flag: 1, dtype: float33}}}").services
    with pytest.raises(PlanError, match="float33"):
        check_arguments(services, {"c": MODEL}, None)
