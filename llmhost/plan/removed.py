"""Flags that vLLM has removed, and flags that llmhost sets itself: what to write instead.

Consulted only when a flag cannot be used, so a flag that an older vLLM still has works there.
"""

from __future__ import annotations

REMOVED: dict[str, str] = {
    # vLLM 0.11 and before (end of the V0 engine)
    "disable_async_output_proc": "leave it out: output is always processed asynchronously",
    "disable_log_requests": "leave it out: requests are not logged unless enable_log_requests: true",
    "device": "leave it out: engine.device in llmhost.yaml decides",
    "enable_lora_bias": "leave it out: adapters with a bias are not supported any more",
    "enable_multimodal_encoder_data_parallel": "write mm_encoder_tp_mode: data",
    "enable_prompt_adapter": "leave it out: prompt adapters are gone, use LoRA (enable_lora, lora_modules)",
    "enable_reasoning": "leave it out: reasoning_parser alone switches it on",
    "engine_use_ray": "write distributed_executor_backend: ray",
    "max_context_len_to_capture": "write max_cudagraph_capture_size",
    "max_prompt_adapters": "leave it out: prompt adapters are gone",
    "max_prompt_adapter_token": "leave it out: prompt adapters are gone",
    "max_seq_len_to_capture": "write max_cudagraph_capture_size",
    "multi_step_stream_outputs": "leave it out: multi-step scheduling is gone",
    "ngram_prompt_lookup_max": "write speculative_config: {method: ngram, prompt_lookup_max: …}",
    "ngram_prompt_lookup_min": "write speculative_config: {method: ngram, prompt_lookup_min: …}",
    "num_lookahead_slots": "write speculative_config: {num_speculative_tokens: …}",
    "num_scheduler_steps": "leave it out: multi-step scheduling is gone",
    "num_speculative_tokens": "write speculative_config: {num_speculative_tokens: …}",
    "preemption_mode": "leave it out: preempted requests are always recomputed",
    "qlora_adapter_name_or_path": "write lora_modules",
    "quantization_param_path": "leave it out: scales are read from the checkpoint",
    "scheduler_delay_factor": "leave it out",
    "speculative_draft_tensor_parallel_size": "write speculative_config: {draft_tensor_parallel_size: …}",
    "speculative_model": "write speculative_config: {model: …, num_speculative_tokens: …}",
    "tokenizer_pool_extra_config": "leave it out: there is no tokenizer pool any more",
    "tokenizer_pool_size": "leave it out: there is no tokenizer pool any more",
    "tokenizer_pool_type": "leave it out: there is no tokenizer pool any more",
    "use_v2_block_manager": "leave it out: there is only one block manager",
    "worker_use_ray": "write distributed_executor_backend: ray",
    # 0.12 and later
    "calculate_kv_scales": "leave it out: scales are read from the checkpoint",
    "cuda_graph_sizes": "write cudagraph_capture_sizes",
    "disable_cascade_attn": "leave it out: cascade attention is gone",
    "disable_mm_preprocessor_cache": "write mm_processor_cache_gb: 0",
    "eplb_log_balancedness": "write eplb_config: {log_balancedness: …}",
    "eplb_step_interval": "write eplb_config: {step_interval: …}",
    "eplb_window_size": "write eplb_config: {window_size: …}",
    "full_cuda_graph": "write compilation_config: {cudagraph_mode: FULL}",
    "guided_decoding_backend": "write structured_outputs_config: {backend: …}",
    "guided_decoding_disable_additional_properties": (
        "write structured_outputs_config: {disable_additional_properties: …}"
    ),
    "guided_decoding_disable_any_whitespace": "write structured_outputs_config: {disable_any_whitespace: …}",
    "guided_decoding_disable_fallback": "leave it out: there is no fallback between backends any more",
    "log_config_file": "write logging_config: {pylogging_config_file: …}",
    "logits_processor_pattern": "write logits_processors",
    "long_lora_scaling_factors": "leave it out: such adapters are not supported any more",
    "lora_extra_vocab_size": "leave it out: adapters cannot add tokens any more",
    "max_long_partial_prefills": "leave it out",
    "max_num_partial_prefills": "leave it out",
    "num_redundant_experts": "write eplb_config: {num_redundant_experts: …}",
    "override_neuron_config": "write additional_config",
    "override_pooler_config": "write pooler_config",
    "rope_scaling": "write hf_overrides: {rope_parameters: …}",
    "rope_theta": "write hf_overrides: {rope_parameters: {rope_theta: …}}",
    "swap_space": "leave it out: vLLM does not swap any more; kv_offloading_size keeps KV cache in host memory",
}  # fmt: skip
"""Flag -> what to do, from vLLM's release notes and pull requests (``task`` is in `task_hint`)."""

TASKS = {
    "embed": "runner: pooling",
    "embedding": "runner: pooling",
    "classify": "runner: pooling and convert: classify",
    "score": "runner: pooling and convert: classify",
    "reward": "runner: pooling",
    "generate": "runner: generate",
}
"""Values of the former ``--task`` and the flags that replace them."""

_SOCKET = "leave it out: an engine listens on a unix socket of its own, only the gateway on a port"
_SPAN = "write span: beside args: to run a model on several nodes"
_TLS = "leave it out: TLS belongs in front of the gateway"

OWNED: dict[str, str] = {
    "api_key": "leave it out: it would not protect all of vLLM's paths, and only the gateway reaches an engine",
    "config": "write the flags of that file under args:",
    "enable_ssl_refresh": _TLS,
    "grpc": _SOCKET,
    "grpc_port": _SOCKET,
    "hf_token": "write env: {HF_TOKEN: …} beside args:, where no process list shows it",
    "headless": "leave it out: llmhost starts complete engines",
    "host": f"write gateway.host; {_SOCKET}",
    "master_addr": _SPAN,
    "master_port": _SPAN,
    "model": "write model: beside args:",
    "nnodes": _SPAN,
    "node_rank": _SPAN,
    "port": f"write gateway.port, or port: beside args:; {_SOCKET}",
    "root_path": "leave it out: clients see the gateway, not the engine",
    "served_model_name": "write served_as: beside args:",
    "ssl_ca_certs": _TLS,
    "ssl_cert_reqs": _TLS,
    "ssl_certfile": _TLS,
    "ssl_ciphers": _TLS,
    "ssl_keyfile": _TLS,
    "uds": _SOCKET,
}
"""Flags that llmhost sets itself (or that would take an engine away from the gateway) -> where to write it."""


def task_hint(value: object) -> str:
    """What replaces ``--task VALUE``."""
    instead = TASKS.get(str(value), "runner: pooling")
    return f"write {instead}, or leave it out: the kind of the service decides"
