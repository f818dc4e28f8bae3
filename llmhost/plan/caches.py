"""Where an engine keeps what it compiles: a directory for each build of vLLM on each kind of GPU. Pure.

What is compiled is good for one version on one kind of processor. It survives restarts and fits an equal machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmhost.facts import EngineFacts, Gpu
from llmhost.paths import Home

PRELOADED = "flashinfer-aot"
"""Directory in a cache for kernels that were compiled on another machine (see `llmhost.env.flashinfer`)."""


def cache_key(engine: EngineFacts, gpus: Sequence[Gpu] = ()) -> str:
    """``0.26.0-cuda-sm90``: equal where the caches of one machine serve another."""
    return f"{engine.vllm_version}-{engine.device}{sorts(gpus) if engine.device == 'cuda' else ''}"


def sorts(gpus: Sequence[Gpu]) -> str:
    """``-sm80-sm90``: what sorts of GPUs there are."""
    capabilities = sorted({gpu.capability for gpu in gpus if gpu.capability})
    return "".join(f"-sm{major}{minor}" for major, minor in capabilities)


def cache_directory(home: Home, key: str) -> Path:
    """The caches of that key in a home."""
    return home.engine_caches / key


def cache_environment(directory: Path, device: str) -> dict[str, str]:
    """What makes vLLM, torch, Triton, FlashInfer and the CUDA driver keep their caches in a directory.

    Sources: vllm/envs.py, torch/_inductor/runtime/cache_dir_utils.py, triton/knobs.py, flashinfer/jit/env.py,
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-environment-variables
    """
    common = {
        "VLLM_CACHE_ROOT": str(directory / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(directory / "torchinductor"),
        "TRITON_CACHE_DIR": str(directory / "triton"),
        "XDG_CACHE_HOME": str(directory / "xdg"),
    }
    if device != "cuda":
        return common
    return {
        **common,
        "FLASHINFER_WORKSPACE_BASE": str(directory / "flashinfer"),
        "CUDA_CACHE_PATH": str(directory / "cuda"),
    }
