"""How much memory of a GPU an engine needs. Pure arithmetic on the facts of a model; docs/planning.md has the figures.

All sizes are bytes for one rank, that is for one GPU of an engine that runs on several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmhost.config import Service
from llmhost.facts import Kind, ModelFacts
from llmhost.plan.args import flag_name
from llmhost.plan.cpu import CONCURRENT_SEQUENCES, context_length

MIB = 2**20
GIB = 2**30

CHAT_BASE = int(1.6 * GIB)
"""What a chat engine takes beside all that is reckoned here: CUDA context, libraries, workspaces of kernels."""

SAMPLING_COPIES = 3.44
"""Logits of a full batch in 32 bits that sampling holds at once. With `CHAT_BASE` it makes up what was measured:
75,988 MiB for a 7B model whose weights, activations, graphs and KV cache vLLM gave as 72,264 (H200, vLLM 0.26)."""

POOLING_BASE = 1 * GIB
"""The same for decoders that embed or rerank; not measured."""

ENCODER_BASE = 745 * MIB
"""The same for encoders. On an H200 (vLLM 0.26) engines that found torch.compile's work in the cache held, beside
weights and graphs, 848 MiB with BERT-large and 840 with XLM-RoBERTa-base; their activations are part of that."""

GRAPH_BYTES_PER_LAYER = 32 * MIB
"""CUDA graphs of a decoder; measured 0.89 GiB for 28 layers."""

ENCODER_GRAPHS = 55 * MIB
ENCODER_GRAPH_BYTES_PER_LAYER = 7 * MIB
"""CUDA graphs of an encoder; measured 0.22 GiB for 24 layers, 0.14 for 12."""

ACTIVATION_MARGIN = 1.15
"""Peak over what the widest layer holds at once; measured 1.13 GiB where that is 0.98."""

LARGE_GPU = 70 * GIB
BATCHED_TOKENS = {True: 8192, False: 2048}
BATCHED_SEQUENCES = {True: 1024, False: 256}
"""vLLM's defaults of max_num_batched_tokens and max_num_seqs in its server, for GPUs from `LARGE_GPU` on and below
(vllm/engine/arg_utils.py, ``get_batch_defaults``); never less than a sequence for models that cannot be split."""

NARROW_CACHES = ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_ds_mla", "int8")
"""Values of kv_cache_dtype with one byte for each number."""


@dataclass(frozen=True)
class Asked:
    """What a service asks for, read from llmhost.yaml; None: not said."""

    context: int
    concurrency: int
    tensor: int | None
    pipeline: int | None
    data: int
    """Ranks of data parallelism: whole copies of the engine, each with GPUs of its own."""
    share: float | None
    """Part of each GPU that is to be the engine's (gpu_memory_utilization)."""
    batched_tokens: int | None
    batched_sequences: int | None
    eager: bool
    narrow_cache: bool
    wide_weights: bool
    """Weights stay in 32 bits."""
    cache_bytes: int | None
    offloaded: int
    """Bytes of weights for each GPU that stay in the memory of the host."""


@dataclass(frozen=True)
class Need:
    """What a rank takes: ``kv_least`` holds what was asked for, more than ``kv_most`` is of no use."""

    weights: int
    activations: int
    graphs: int
    base: int
    kv_least: int
    kv_most: int | None
    kv_sequence: int
    """The cache of one sequence of full length."""
    context: int
    """That length in tokens."""
    grows: bool = False
    """It has no cache that is known, and takes what is left all the same."""
    over: int = 0
    """Bytes that are more than the share of the GPU that was written for it."""

    @property
    def fixed(self) -> int:
        return self.weights + self.activations + self.graphs + self.base

    @property
    def least(self) -> int:
        return self.fixed + self.kv_least


def read_asked(service: Service, model: ModelFacts) -> Asked:
    """The part of a service that decides about memory."""
    args = {flag_name(key): value for key, value in service.args.items()}
    return Asked(
        context=context_length(service, model) or 4096,
        concurrency=service.concurrency or 1,
        tensor=_whole(args, "tensor_parallel_size"),
        pipeline=_whole(args, "pipeline_parallel_size"),
        data=max(1, _whole(args, "data_parallel_size_local") or _whole(args, "data_parallel_size") or 1),
        share=_share(args) if args.get("kv_cache_memory_bytes") is None else None,
        batched_tokens=_whole(args, "max_num_batched_tokens"),
        batched_sequences=_whole(args, "max_num_seqs"),
        eager=args.get("enforce_eager") is True,
        narrow_cache=str(args.get("kv_cache_dtype")) in NARROW_CACHES,
        wide_weights=str(args.get("dtype")) in ("float32", "float"),
        cache_bytes=_whole(args, "kv_cache_memory_bytes"),
        offloaded=int(float(str(args.get("cpu_offload_gb") or 0)) * GIB),
    )


def _whole(args: Mapping[str, Any], key: str) -> int | None:
    value = args.get(key)
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _share(args: Mapping[str, Any]) -> float | None:
    """vLLM looks at it only where the size of the cache is not written; what is no part of a GPU is refused before."""
    try:
        share = float(str(args.get("gpu_memory_utilization")))
    except ValueError:
        return None
    return share if 0 < share <= 1 else None


def loaded_bytes(model: ModelFacts, wide: bool = False) -> int:
    """Weights in memory: checkpoints in 32 bits are loaded in 16 unless the service asks for 32."""
    if model.quantization or not model.parameters:
        return model.weight_bytes
    if wide:
        return model.parameters * 4
    return min(model.weight_bytes, model.parameters * 2)


def rank_need(model: ModelFacts, kind: Kind, asked: Asked, tensor: int, pipeline: int, gpu_memory: int) -> Need:
    """The need of one rank of an engine with this tensor and pipeline parallelism on GPUs of that size."""
    tokens = asked.batched_tokens or BATCHED_TOKENS[gpu_memory >= LARGE_GPU]
    decoder = bool(model.kv_bytes_per_token or model.cache.state_bytes)
    if not decoder:
        tokens = max(tokens, asked.context)
    sequence = _sequence_bytes(model, asked, tokens, tensor, pipeline)
    least = sequence * math.ceil(asked.concurrency / asked.data) if asked.cache_bytes is None else asked.cache_bytes
    most = None if kind == "chat" and asked.cache_bytes is None else max(least, _most(asked, sequence))
    return Need(
        weights=max(0, _weights(model, asked, tensor, pipeline) - asked.offloaded),
        activations=_activations(model, tokens, tensor, decoder) + _compiled(model, asked, decoder),
        graphs=0 if asked.eager else _graphs(model, decoder) // pipeline,
        base=_base(model, kind, asked, gpu_memory, decoder),
        kv_least=_round_up(least),
        kv_most=None if most is None else _round_up(most),
        kv_sequence=sequence,
        context=asked.context,
    )


def written_share(need: Need, share: float | None, gpu_memory: int) -> Need:
    """The need where the share of a GPU is written: all of it, what the engine leaves over is cache.

    An engine without a cache gets it as well: vLLM does not start when less than its share is free.
    """
    if share is None:
        return need
    rest = (int(gpu_memory * share) - need.fixed) // MIB * MIB
    if rest < need.kv_least:
        return replace(need, over=need.kv_least - rest)
    if not need.kv_sequence:
        return replace(need, base=need.base + rest)
    return replace(need, kv_least=rest, kv_most=rest)


def _base(model: ModelFacts, kind: Kind, asked: Asked, gpu_memory: int, decoder: bool) -> int:
    if kind != "chat":
        return POOLING_BASE if decoder else ENCODER_BASE
    sequences = asked.batched_sequences or BATCHED_SEQUENCES[gpu_memory >= LARGE_GPU]
    return CHAT_BASE + int(sequences * model.shape.vocabulary * 4 * SAMPLING_COPIES)


def _most(asked: Asked, sequence: int) -> int:
    return asked.cache_bytes or sequence * CONCURRENT_SEQUENCES


def _weights(model: ModelFacts, asked: Asked, tensor: int, pipeline: int) -> int:
    """The largest stage of the pipeline: its layers, and the embedding of the vocabulary at one end."""
    whole = loaded_bytes(model, asked.wide_weights)
    embedding = min(model.shape.vocabulary * model.shape.hidden * 2, whole // 3)
    if pipeline == 1:
        return math.ceil(whole / tensor)
    layers = max(model.shape.layers, pipeline)
    share = math.ceil(layers / pipeline) / layers
    return math.ceil(((whole - 2 * embedding) * share + embedding) / tensor)


def _activations(model: ModelFacts, tokens: int, tensor: int, decoder: bool) -> int:
    """What the widest layer and the residual stream hold for a full batch, which every engine runs before it is ready.

    Decoders have a gated MLP (gate, up and their product).
    """
    inner, hidden = model.shape.intermediate / tensor, model.shape.hidden
    if decoder:
        return int(tokens * (3 * inner + 2 * hidden) * 2 * ACTIVATION_MARGIN)
    return int(tokens * (inner + 3 * hidden) * 2)


def _compiled(model: ModelFacts, asked: Asked, decoder: bool) -> int:
    """What torch.compile leaves with an encoder on the first start: about a copy of the embedding of its vocabulary.

    Measured 32 MiB for BERT-large, whose embedding has 60, and 316 for XLM-RoBERTa-base, whose embedding has 366; gone
    after a start with warm caches.
    """
    return 0 if asked.eager or decoder else model.shape.vocabulary * model.shape.hidden * 2


def _graphs(model: ModelFacts, decoder: bool) -> int:
    if decoder:
        return model.shape.layers * GRAPH_BYTES_PER_LAYER
    return ENCODER_GRAPHS + model.shape.layers * ENCODER_GRAPH_BYTES_PER_LAYER


def _sequence_bytes(model: ModelFacts, asked: Asked, tokens: int, tensor: int, pipeline: int) -> int:
    """KV cache of one sequence of full length on a rank.

    Layers with a window keep the window and the tokens that are being read. Heads are divided among tensor ranks until
    each has one; a latent cache has none to divide.
    """
    cache = model.cache
    if not (cache.full_bytes or cache.window_bytes or cache.state_bytes):
        whole = model.kv_bytes_per_token * asked.context
    else:
        kept = min(asked.context, cache.window + tokens)
        whole = cache.full_bytes * asked.context + cache.window_bytes * kept
    heads = 1 if cache.latent else max(1, min(tensor, model.shape.kv_heads or tensor))
    states = cache.state_bytes / tensor
    return math.ceil((whole / heads / (2 if asked.narrow_cache else 1) + states) / pipeline)


def _round_up(size: int) -> int:
    return -(-size // MIB) * MIB
