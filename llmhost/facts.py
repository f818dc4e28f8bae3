"""What is true of this machine, an engine and a model: frozen data, read by `llmhost.probe` and `llmhost.env`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["chat", "embed", "rerank"]
ServiceKind = Literal["chat", "embed", "rerank", "none"]
"""``none``: a program that only helps other services, and that the gateway does not know."""
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class HostFacts:
    """The machine: ``cores`` are the CPUs that this process may use, memory is in bytes."""

    cores: tuple[int, ...]
    memory_total: int
    memory_available: int


@dataclass(frozen=True)
class Gpu:
    """One GPU; memory in bytes."""

    index: int
    name: str
    total: int
    free: int
    """What engines of this home may share out: what others hold is not in it."""
    capability: tuple[int, int] | None = None
    """Compute capability (9, 0); None when it is not known."""
    uuid: str = ""
    mig: bool = False
    """Divided into instances (MIG): CUDA sees those, not the whole of it."""


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds memory of a GPU."""

    pid: int
    gpu: int
    """Index of the GPU."""
    used: int
    """Bytes; 0 where the driver does not say (in some containers)."""


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver as its own library (NVML) describes it."""

    version: str = ""
    """``580.159.04``; empty without a driver."""
    cuda: tuple[int, int] | None = None
    """The newest CUDA version that it supports."""
    problem: str = ""
    """Why it cannot be used, for a person; empty when it can, and when there is none."""


@dataclass(frozen=True)
class CudaToolkit:
    """A CUDA toolkit, or a part of one."""

    root: str
    """What CUDA_HOME would be."""
    found_by: tuple[str, ...]
    """What pointed to it, in words: ``CUDA_HOME``, ``nvcc on PATH``, ``/usr/local/cuda-*``, a conda environment …"""
    version: tuple[int, int] | None
    """Of its nvcc; None without a usable one."""
    nvcc: bool
    headers: bool
    """cuda_runtime.h is there."""
    cudart: bool
    """The runtime library to link with (libcudart.so, not only libcudart.so.13) is there."""

    @property
    def complete(self) -> bool:
        """Can CUDA code be compiled with it?"""
        return not self.missing

    @property
    def missing(self) -> tuple[str, ...]:
        """What it lacks, in words."""
        nvcc = "nvcc" if not self.nvcc else "an nvcc that runs" if self.version is None else ""
        headers = "" if self.headers else "headers (cuda_runtime.h)"
        return tuple(filter(None, (nvcc, headers, "" if self.cudart else "libcudart.so")))


@dataclass(frozen=True)
class Interpreter:
    """A Python on this machine."""

    path: str
    version: tuple[int, ...]
    """(3, 12, 3)"""
    headers: bool
    """Python.h is there, so that extensions can be compiled for it."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """What is installed in it: normalized name -> version."""


@dataclass(frozen=True)
class Program:
    """A program on PATH that an installation may need."""

    name: str
    path: str
    version: str


@dataclass(frozen=True)
class MachineFacts:
    """Everything that decides which engine runs on a machine and what it lacks; `llmhost facts` prints it.

    Sizes in bytes. Holds no secrets: addresses are without user, password and token.
    """

    llmhost: str
    """Version of the llmhost that wrote it."""
    machine: str
    """``uname -m``"""
    system: str
    """PRETTY_NAME of os-release."""
    kernel: str
    glibc: tuple[int, ...]
    """(2, 39); empty on a system without it."""
    host: HostFacts
    shm_total: int
    shm_free: int
    disk_free: Mapping[str, int]
    """Of the home, of the models, of uv's cache and of the temporary directory, by path."""
    gpus: tuple[Gpu, ...] = ()
    driver: Driver = Driver()
    gpu_processes: tuple[GpuProcess, ...] = ()
    toolkits: tuple[CudaToolkit, ...] = ()
    interpreters: tuple[Interpreter, ...] = ()
    """The one that runs llmhost first."""
    conda: tuple[Program, ...] = ()
    """conda, mamba and micromamba."""
    compilers: tuple[Program, ...] = ()
    """C++ compilers, and ninja."""
    uv: Program | None = None
    pip: Mapping[str, str] = field(default_factory=dict)
    """The settings of pip that say where packages come from."""
    """By option: ``index-url``, ``find-links`` …"""
    proxies: Mapping[str, str] = field(default_factory=dict)
    """By variable, in upper case."""
    models: Mapping[str, int] = field(default_factory=dict)
    """What lies in models_dir: ``owner/name`` -> bytes."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What is set of CUDA_HOME, CUDA_PATH, CUDA_VISIBLE_DEVICES and CONDA_PREFIX."""
    conda_channels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Where conda, mamba and micromamba are configured to take packages from, by program."""
    uv_settings: Mapping[str, str] = field(default_factory=dict)
    """The same of uv: its variables, and the options of its files."""


@dataclass(frozen=True)
class NodeFacts:
    """What one node has that decides what runs there; `llmhost.probe.node_facts` reads and writes its file."""

    name: str
    host: HostFacts
    gpus: tuple[Gpu, ...] = ()
    """Those that its engines share out (none divided by MIG); ``free`` without what this home's own engines hold."""
    device: Device = "cpu"
    """What its engine computes on."""
    llmhost: str = ""
    """Version of llmhost there."""
    engine: str = ""
    """Version of vLLM of the engine that counts there; '' while none is built."""
    address: str = ""
    """IP address that its name had when the facts were written."""


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
class ParserFacts:
    """Which parser of vLLM a model wants: its names in order of preference (none: no parser), and why."""

    names: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class CacheFacts:
    """What a model keeps of the tokens that it has read; bytes, at 16 bits for each number."""

    full_bytes: int = 0
    """For every token of a sequence: layers that look at all of it."""
    window_bytes: int = 0
    """For every token of the last ``window``: layers that look at so many only."""
    window: int = 0
    state_bytes: int = 0
    """For a sequence, however long: layers that keep a state (Mamba, linear attention, convolutions)."""
    latent: bool = False
    """Multi-head latent attention: the cache has no heads, so tensor parallelism does not divide it."""

    def of(self, tokens: int) -> int:
        """Bytes of one sequence."""
        return self.full_bytes * tokens + self.window_bytes * min(tokens, self.window) + self.state_bytes


@dataclass(frozen=True)
class ShapeFacts:
    """Sizes of the language part of a model, 0 where config.json does not say."""

    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    hidden: int = 0
    intermediate: int = 0
    """Width of the widest layer that every token goes through."""
    vocabulary: int = 0


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
    model_type: str = ""
    parameters: int = 0
    """How many numbers the weights are; 0 when only their bytes are known."""
    dtype: str = ""
    """Of the weights as config.json has it (``bfloat16``)."""
    quantization: str = ""
    """Method and bits (``gptq 4-bit``); empty: not quantized."""
    cache: CacheFacts = CacheFacts()
    shape: ShapeFacts = ShapeFacts()
    tool_parser: ParserFacts = ParserFacts()
    reasoning_parser: ParserFacts = ParserFacts()
    multimodal: bool = False
    remote_code: bool = False
    """Its repository brings code of its own, which may have to be allowed (``trust_remote_code: true``)."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Flags without which vLLM would serve it as something else, by name."""


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


@dataclass(frozen=True)
class ForeignFacts:
    """What a service with a command of its own finds on this machine."""

    program: str
    """Absolute path of the first word of its command."""
    bin: str = ""
    """Directory of the programs of its environment, which comes first on its PATH."""
    model_dir: str = ""
    """The directory of its model."""


@dataclass(frozen=True)
class PortFacts:
    """TCP ports on 127.0.0.1 for engines that cannot listen on a unix socket."""

    held: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """What each program of the plan in force has, by placeholder (``port:web``); nobody else listens there."""
    free: tuple[int, ...] = ()
    """Ports that nobody listens on, in the order in which to give them out."""
