"""What is true of this machine, an engine and a model: frozen data, read by `llmhost.probe` and `llmhost.env`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["chat", "embed", "rerank"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class HostFacts:
    """The machine: ``cores`` are the CPUs that this process may use, memory is in bytes."""

    cores: tuple[int, ...]
    memory_total: int
    memory_available: int


@dataclass(frozen=True)
class Tools:
    """The programs that run a home, as absolute paths."""

    python: str
    """The interpreter that runs llmhost, supervisord and the guards."""
    guard: str
    """The script of the guard."""
    envoy: str
    exporter: str
    """The script of the exporter of the metrics."""


@dataclass(frozen=True)
class VllmFlag:
    """One command-line flag of the installed vLLM, named as in llmhost.yaml (``max_model_len``)."""

    name: str
    boolean: bool
    """Takes no value; ``--no-…`` switches it off when ``negatable``."""
    negatable: bool = False
    multiple: bool = False
    """Takes several values after the flag."""
    repeated: bool = False
    """May be given several times, with one value each."""
    optional_value: bool = False
    """May stand alone or take a value."""


@dataclass(frozen=True)
class EngineFacts:
    """An engine environment that passed its import gate."""

    name: str
    python: str
    """Absolute path of its interpreter."""
    device: Device
    vllm_version: str
    flags: Mapping[str, VllmFlag]
    tool_call_parsers: tuple[str, ...]
    reasoning_parsers: tuple[str, ...]


@dataclass(frozen=True)
class ModelFacts:
    """A model directory, read from its small files and its safetensors headers only; sizes in bytes."""

    path: str
    architecture: str
    kind: Kind
    kind_reason: str
    """Why it is of that kind, in words for a person."""
    weight_bytes: int
    kv_bytes_per_token: int
    """Bytes of KV cache that one token takes over all layers; 0 for models without a cache."""
    context_length: int


@dataclass(frozen=True)
class EndpointFacts:
    """A server on another host, looked up from here."""

    address: str
    """IP address of its host."""
    ours: bool
    """That is an address of this machine."""
    key: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    """Certificates to check its own with (https only)."""
