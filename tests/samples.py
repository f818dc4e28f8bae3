"""Facts of a machine that does not exist, for tests of what is computed from them."""

from __future__ import annotations

from pathlib import Path

from llmhost.facts import EngineFacts, HostFacts, Kind, ModelFacts, Tools, VllmFlag
from llmhost.paths import Home
from llmhost.plan.machine import Machine

GIB = 2**30

FLAGS = {
    flag.name: flag
    for flag in (
        VllmFlag("max_model_len", boolean=False),
        VllmFlag("runner", boolean=False),
        VllmFlag("kv_cache_memory_bytes", boolean=False),
        VllmFlag("shutdown_timeout", boolean=False),
        VllmFlag("disable_access_log_for_endpoints", boolean=False),
        VllmFlag("disable_uvicorn_access_log", boolean=True, negatable=True),
        VllmFlag("enforce_eager", boolean=True, negatable=True),
        VllmFlag("enable_auto_tool_choice", boolean=True, negatable=True),
        VllmFlag("tool_call_parser", boolean=False),
        VllmFlag("reasoning_parser", boolean=False),
        VllmFlag("hf_overrides", boolean=False),
        VllmFlag("middleware", boolean=False, multiple=True),
        *(VllmFlag(name, boolean=False) for name in ("nnodes", "node_rank", "master_addr", "master_port")),
        *(VllmFlag(f"{kind}_parallel_size", boolean=False) for kind in ("tensor", "pipeline", "data")),
        VllmFlag("distributed_executor_backend", boolean=False),
    )
}


def machine(cores: int = 8, memory_gib: int = 64, root: str = "/srv/llmhost") -> Machine:
    """A machine without GPUs whose engine is built."""
    return Machine(
        home=Home(Path(root)),
        host=HostFacts(tuple(range(cores)), memory_gib * GIB, memory_gib * GIB),
        tools=Tools(*(f"/opt/llmhost/{name}" for name in ("bin/python", "guard.py", "envoy", "exporter.py"))),
        engine=EngineFacts(
            name="default",
            python=f"{root}/engines/default/bin/python",
            device="cpu",
            vllm_version="0.32.0",
            flags=FLAGS,
            tool_call_parsers=("hermes", "llama3_json"),
            reasoning_parsers=("qwen3",),
        ),
    )


def model(kind: Kind = "chat", path: str = "/data/models/m", weights_gib: float = 1, context: int = 4096) -> ModelFacts:
    """A model directory as `llmhost.probe.model` would read it."""
    return ModelFacts(
        path=path,
        architecture={"chat": "Qwen3ForCausalLM", "embed": "BertModel", "rerank": "BertForSequenceClassification"}[
            kind
        ],
        kind=kind,
        kind_reason="for the test",
        weight_bytes=int(weights_gib * GIB),
        kv_bytes_per_token=65536 if kind == "chat" else 0,
        context_length=context,
    )
