"""When something does not fit: how much is missing, and the nearest change that would fit. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from llmhost.config import Service
from llmhost.errors import PlanError
from llmhost.facts import Gpu, ModelFacts
from llmhost.plan.args import flag_name
from llmhost.plan.cpu import context_length
from llmhost.plan.gpu import Shares, more_gpus, share_gpus
from llmhost.plan.memory import GIB, MIB
from llmhost.plan.running import NOTHING, Running
from llmhost.plan.search import Misfit

SHORTEST = 1024
MOST_GPUS = 16

FOUR_BIT = 0.3
"""Size of a 4-bit checkpoint beside one in 16 bits, scales and unquantized layers included (Qwen2.5 GPTQ-Int4: 0.30 to
0.36 by size, Llama-3.1 AWQ: 0.29 to 0.36)."""


class Fits(Protocol):
    """Would it fit if a service had these args, this model, this concurrency, or the machine these GPUs?"""

    def __call__(
        self,
        name: str,
        change: Mapping[str, object],
        model: ModelFacts | None = None,
        on: Sequence[Gpu] = ...,
        concurrency: int | None = None,
    ) -> bool: ...


def require_gpus(
    services: Mapping[str, Service], gpus: Sequence[Gpu], models: Mapping[str, ModelFacts], running: Running = NOTHING
) -> Shares:
    """`share_gpus`, or PlanError: which service, how many GiB are missing, and what would fit."""
    found = share_gpus(services, gpus, models, running)
    if not isinstance(found, Misfit):
        return found
    name, need = found.task.service, found.need
    on = "one GPU" if found.shape.gpus == 1 else f"each of {found.shape.gpus} GPUs"
    ways = _remedies(found, services, gpus, models)
    cache = f" and {need.kv_least / GIB:.1f} GiB of KV cache for {_sequences(found)}" if need.kv_least else ""
    if need.over:
        written = found.task.asked.share
        raise PlanError(
            f"services.{name}.args.gpu_memory_utilization: {written:g} is {_size(need.over)} less of a GPU than it"
            f" takes: {need.fixed / GIB:.1f} GiB{cache}",
            "; or ".join(["write more, or leave it out: it follows from what is there", *ways]),
        )
    raise PlanError(
        f"services.{name}: {_size(found.missing)} of GPU memory are missing: it takes {need.fixed / GIB:.1f} GiB"
        f"{cache} on {on}",
        "; or ".join(ways) or "use a smaller model, or serve fewer services here",
    )


def _size(missing: int) -> str:
    return f"{missing / GIB:.1f} GiB" if missing >= GIB / 10 else f"{-(-missing // MIB)} MiB"


def _sequences(found: Misfit) -> str:
    count = found.task.asked.concurrency
    return f"{'one sequence' if count == 1 else f'{count} sequences'} of {found.task.asked.context} tokens"


def _remedies(
    found: Misfit, services: Mapping[str, Service], gpus: Sequence[Gpu], models: Mapping[str, ModelFacts]
) -> list[str]:
    """What would fit, the smallest change first; at most four."""

    def fits(
        name: str,
        change: Mapping[str, object],
        model: ModelFacts | None = None,
        on: Sequence[Gpu] = gpus,
        concurrency: int | None = None,
    ) -> bool:
        written = {key: value for key, value in services[name].args.items() if flag_name(key) not in change}
        at_once = concurrency or services[name].concurrency
        service = services[name].model_copy(update={"args": {**written, **change}, "concurrency": at_once})
        known = {**models, name: model or models[name]} if name in models else models
        changed = share_gpus({**services, name: service}, on, known)
        return not isinstance(changed, Misfit)

    ways = [
        _smaller_cache(_by_cache(found, services, models), fits),
        _shorter(_by_cache(found, services, models), services, models, fits),
        _fewer(_by_cache(found, services, models), services, fits),
        _more(found, fits, gpus),
        _quantized(found, fits),
    ]
    return [way for way in ways if way][:4]


def _by_cache(found: Misfit, services: Mapping[str, Service], models: Mapping[str, ModelFacts]) -> list[str]:
    """Services whose cache could shrink: the one that does not fit, then the others, the largest cache first."""
    sizes = {
        name: models[name].kv_bytes_per_token * context_length(service, models[name]) * service.replicas
        for name, service in services.items()
        if service.replicas and name in models
    }
    return sorted((name for name in sizes if sizes[name]), key=lambda name: (name != found.task.service, -sizes[name]))


def _smaller_cache(names: Sequence[str], fits: Fits) -> str:
    name = next((name for name in names if fits(name, {"kv_cache_dtype": "fp8"})), None)
    return f"write kv_cache_dtype: fp8 under services.{name}.args" if name else ""


def _shorter(
    names: Sequence[str], services: Mapping[str, Service], models: Mapping[str, ModelFacts], fits: Fits
) -> str:
    """Of the services whose shorter context would do, the one that loses the smallest part of it."""
    contexts = {name: context_length(services[name], models[name]) for name in names}
    lengths = {name: length for name, context in contexts.items() if (length := _longest(name, context, fits))}
    if not lengths:
        return ""
    name = max(lengths, key=lambda name: lengths[name] / contexts[name])
    return f"write max_model_len: {lengths[name]} under services.{name}.args (it is {contexts[name]})"


def _fewer(names: Sequence[str], services: Mapping[str, Service], fits: Fits) -> str:
    """Fewer sequences at once, for the service that keeps the largest part of them."""
    kept: dict[str, int] = {}
    for name in names:
        low, high = 0, (services[name].concurrency or 1) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(name, {}, concurrency=middle) else (low, middle - 1)
        if low:
            kept[name] = low
    if not kept:
        return ""
    name = max(kept, key=lambda name: kept[name] / (services[name].concurrency or 1))
    return f"write concurrency: {kept[name]} under services.{name} (it is {services[name].concurrency})"


def _longest(name: str, context: int, fits: Fits) -> int:
    """The longest context that fits, in whole thousands of 1024; 0 when none does."""
    low, high = 0, (context - 1) // SHORTEST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(name, {"max_model_len": middle * SHORTEST}) else (low, middle - 1)
    return low * SHORTEST


def _more(found: Misfit, fits: Fits, gpus: Sequence[Gpu]) -> str:
    if not gpus or found.task.config.gpus != "auto":
        return ""
    for count in range(1, MOST_GPUS - len(gpus) + 1):
        if fits(found.task.service, {}, None, more_gpus(gpus, count)):
            size = max(gpu.total for gpu in gpus) / GIB
            return f"use {len(gpus) + count} GPUs of {size:.0f} GiB"
    return ""


def _quantized(found: Misfit, fits: Fits) -> str:
    model = found.task.model
    if model.quantization or found.task.config.is_foreign:
        return ""
    smaller = replace(model, weight_bytes=int(model.weight_bytes * FOUR_BIT), quantization="4-bit")
    size = f"{smaller.weight_bytes / GIB:.0f} GiB"
    return f"use a 4-bit variant of the model (about {size})" if fits(found.task.service, {}, smaller) else ""
