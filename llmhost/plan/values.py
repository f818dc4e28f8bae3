"""Values under ``args:`` with which vLLM does not start, refused with the key and what to write instead. Pure.

The rules are vLLM's own (vllm/config/model.py, cache.py, parallel.py and engine/arg_utils.py); what is not known here
goes through, vLLM has the last word.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from llmhost.config import Service
from llmhost.errors import PlanError
from llmhost.facts import EngineFacts, ModelFacts
from llmhost.plan.args import flag_name, vllm_arguments
from llmhost.plan.cpu import tokens_of

KNOWN_UP_TO = (0, 33)
"""Version of vLLM whose choices are listed here; of a newer one nothing is refused for its name."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "kv_cache_dtype": (
        "auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_ds_mla", "nvfp4_ds_mla",
        "turboquant_k8v4", "turboquant_4bit_nc", "turboquant_k3v4_nc", "turboquant_3bit_nc", "ultraquant_4bit",
        "int4_per_token_head", "int8_per_token_head", "fp8_per_token_head", "nvfp4", "nvfp4_4over6",
    ),
    "dtype": ("auto", "half", "float16", "bfloat16", "float", "float32"),
}  # fmt: skip
"""``CacheDType`` (vllm/config/cache.py) and ``ModelDType`` (vllm/config/model.py)."""

COUNTS = (
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "max_num_seqs", "max_num_batched_tokens",
)  # fmt: skip
MAPPINGS = ("limit_mm_per_prompt", "hf_overrides", "speculative_config", "mm_processor_kwargs")
LONGER = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"


def check_arguments(
    services: Mapping[str, Service], models: Mapping[str, ModelFacts], engine: EngineFacts | None
) -> None:
    """Raise PlanError for ``args:`` with which an engine would not start; its flags are known only with ``engine``."""
    for name, service in services.items():
        if name in models and service.replicas and not service.is_foreign:
            if engine is not None:
                vllm_arguments(name, service.args, engine.flags)
            _check(name, service, models[name], engine)


def _check(name: str, service: Service, model: ModelFacts, engine: EngineFacts | None) -> None:
    args = {flag_name(key): (key, value) for key, value in service.args.items() if value is not None}
    checks: dict[str, Callable[[str, Any], None]] = {
        **dict.fromkeys(COUNTS, _count),
        **dict.fromkeys(MAPPINGS, _mapping),
        **{flag: _choice(flag, engine) for flag in CHOICES},
        "gpu_memory_utilization": _share,
        "max_model_len": lambda path, value: _context(path, value, service, model),
    }
    for flag, (key, value) in args.items():
        if flag in checks:
            checks[flag](f"services.{name}.args.{key}", value)
    for flag, whole, of in (
        ("tensor_parallel_size", model.shape.heads, "attention heads"),
        ("pipeline_parallel_size", model.shape.layers, "layers"),
    ):
        if flag in args:
            _divides(f"services.{name}.args.{args[flag][0]}", tokens_of(args[flag][1]), whole, of)


def _count(path: str, value: Any) -> None:
    if isinstance(value, bool) or tokens_of(value) < 1:
        raise PlanError(f"{path}: {value!r} is no number from 1 on", "write a whole number, or leave it out")


def _divides(path: str, parts: int, whole: int, of: str) -> None:
    if of == "layers":
        if whole and parts > whole:
            raise PlanError(f"{path}: {parts}, but the model has {whole} layers", f"write {whole} or less")
    elif whole and whole % parts:
        sizes = [str(n) for n in range(1, min(whole, 64) + 1) if whole % n == 0]
        raise PlanError(
            f"{path}: {parts} does not divide the {whole} {of} of the model",
            f"write one of {', '.join(sizes)}, or leave it out: it follows from gpus",
        )


def _mapping(path: str, value: Any) -> None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, Mapping):
        example = "{image: 2}" if path.endswith("prompt") else "{key: value}"
        raise PlanError(f"{path}: it is neither a mapping nor JSON of one", f"write a mapping, like {example}")


def _choice(flag: str, engine: EngineFacts | None) -> Callable[[str, Any], None]:
    def check(path: str, value: Any) -> None:
        if str(value) not in CHOICES[flag] and not _is_newer(engine):
            raise PlanError(f"{path}: vLLM knows no {value!r} for it", f"it knows {', '.join(CHOICES[flag])}")

    return check


def _is_newer(engine: EngineFacts | None) -> bool:
    """Also a version that is no number: it may know anything."""
    major, _, rest = ("" if engine is None else engine.vllm_version).partition(".")
    minor = rest.partition(".")[0]
    if not (major.isdecimal() and minor.isdecimal()):
        return engine is not None
    return (int(major), int(minor)) > KNOWN_UP_TO


def _share(path: str, value: Any) -> None:
    try:
        share = float("" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        share = 0
    if not 0 < share <= 1:
        raise PlanError(f"{path}: {value!r} is no part of a GPU", "write a number above 0 and up to 1, like 0.5")


def _context(path: str, value: Any, service: Service, model: ModelFacts) -> None:
    if str(value).strip() in ("auto", "-1"):
        return
    if isinstance(value, bool) or tokens_of(value) < 1:
        raise PlanError(
            f"{path}: {value!r} is no number of tokens",
            "write it like 32768, 32K (1024 each), 32k (1000 each), or auto",
        )
    allowed = service.env.get(LONGER, "0").strip().lower() in ("1", "true")
    if tokens_of(value) > model.context_length > 0 and not allowed and not _stretched(service):
        raise PlanError(
            f"{path}: {value} tokens, but the model has {model.context_length}",
            f"write {model.context_length} or less, or hf_overrides: {{rope_parameters: …}} as its card says;"
            f" to insist, env: {{{LONGER}: '1'}} beside args:",
        )


def _stretched(service: Service) -> bool:
    """Overrides of the model's configuration that may make its context longer."""
    args = {flag_name(key): value for key, value in service.args.items()}
    words = json.dumps(args.get("hf_overrides"), default=str)
    dotted = " ".join(flag for flag in args if flag.startswith("hf_overrides."))
    return any(word in f"{words} {dotted}" for word in ("rope", "position", "max_", "seq"))
