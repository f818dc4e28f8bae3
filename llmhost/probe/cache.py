"""What a model keeps of the tokens it has read (KV cache, states), from config.json.

The rules are vLLM's: ``get_head_size`` and ``is_deepseek_mla`` (transformers_utils/model_arch_config_convertor.py) and
the cache specifications (v1/kv_cache_interface.py). Numbers take 16 bits unless the model is started with another type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from llmhost.facts import CacheFacts

ELEMENT_BYTES = 2
"""vLLM's ``--dtype auto`` computes in 16 bits whatever the checkpoint holds: float32 is cast down
(vllm/config/model.py, ``_resolve_auto_dtype``)."""

LATENT_TYPES = frozenset(
    (
        "axk1", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note", "glm4_moe_lite",
        "glm5_next", "glm5_next_text", "glm_moe_dsa", "hy_v4", "kimi_k2", "kimi_linear",
        "longcat_flash", "pangu_ultra_moe",
    )
)  # fmt: skip
"""Model types whose keys and values vLLM keeps as one latent vector (MLA)."""

WINDOW_PATTERNS = {"gemma2": 2, "gemma3_text": 6, "gemma3": 6, "cohere2": 4}
"""One layer of so many looks at everything, where config.json does not say which ones do."""

STATE_TYPES = ("MambaForCausalLM", "Mamba2ForCausalLM", "FalconMambaForCausalLM")
"""Architectures without attention."""

Layer = Literal["full", "window", "state", "hybrid", "none"]

LAYERS: Mapping[str, Layer] = {
    "full_attention": "full", "attention": "full", "sparse": "full", "compressed_sparse_attention": "full",
    "sliding_attention": "window", "chunked_attention": "window", "sliding_window": "window",
    "linear_attention": "state", "mamba": "state", "mamba2": "state", "conv": "state", "recurrent": "state",
    "short_conv": "state", "kda": "state", "lightning": "state",
    "hybrid": "hybrid", "moe": "none", "mlp": "none",
}  # fmt: skip
"""Entries of ``layer_types`` and its like; one that is not here counts as full, which is never too little."""


def read_cache(architecture: str, text: Mapping[str, Any]) -> CacheFacts:
    """The cache of a decoder; ``text`` is the configuration of its language part."""
    layers = Counter(_layers(architecture, text))
    full, window = layers["full"] + layers["hybrid"], layers["window"]
    latent = is_latent(text)
    return CacheFacts(
        full_bytes=full * (_token_bytes(text, latent) + _indexer_bytes(text)),
        window_bytes=window * (_token_bytes(text, latent) if latent else _window_token_bytes(text)),
        window=window_size(text) if window else 0,
        state_bytes=(layers["state"] + layers["hybrid"]) * _state_bytes(text),
        latent=latent,
    )


def _indexer_bytes(text: Mapping[str, Any]) -> int:
    """Keys of the indexer of sparse attention (DeepSeek V3.2) in 8 bits, and a scale of 4 bytes for each 128 of them.

    vllm/model_executor/models/deepseek_v2.py, ``Indexer``. It stays so with an fp8 cache, for which the plan halves it.
    """
    width = number(text, "index_head_dim") if number(text, "index_topk") else 0
    return width + width // 128 * 4


def is_latent(text: Mapping[str, Any]) -> bool:
    """Multi-head latent attention as vLLM runs it."""
    return text.get("model_type") in LATENT_TYPES and number(text, "kv_lora_rank") > 0


def number(data: Mapping[str, Any], *keys: str) -> int:
    """The first of these keys that holds a whole number, else 0."""
    return next((v for k in keys if isinstance(v := data.get(k), int) and not isinstance(v, bool)), 0)


def window_size(text: Mapping[str, Any]) -> int:
    """Tokens that a layer with a window looks at."""
    return number(text, "sliding_window", "attention_chunk_size", "sliding_window_size")


def _token_bytes(text: Mapping[str, Any], latent: bool) -> int:
    if latent:
        return (number(text, "kv_lora_rank") + number(text, "qk_rope_head_dim")) * ELEMENT_BYTES
    heads = number(text, "num_attention_heads", "n_head", "num_heads")
    kv_heads = number(text, "num_global_key_value_heads") or kv_heads_of(text)
    hidden = number(text, "hidden_size", "n_embd", "d_model")
    keys = number(text, "global_head_dim", "head_dim", "kv_channels", "attention_head_dim")
    keys = keys or (hidden // heads if heads else 0)
    return kv_heads * (keys + _value_width(text, keys)) * ELEMENT_BYTES


def _value_width(text: Mapping[str, Any], keys: int) -> int:
    """Values are as wide as keys, but in MiMo V2; where keys and values have their own widths otherwise, it is MLA."""
    return number(text, "v_head_dim") or keys if str(text.get("model_type")).startswith("mimo_v2") else keys


def kv_heads_of(text: Mapping[str, Any]) -> int:
    """Heads of keys and values: as many as of queries unless config.json says fewer."""
    if text.get("multi_query") is True and not text.get("new_decoder_architecture"):
        return number(text, "multi_query_group_num") or 1
    heads = number(text, "num_attention_heads", "n_head", "num_heads")
    return number(text, "num_key_value_heads", "num_kv_heads", "multi_query_group_num") or heads


def _window_token_bytes(text: Mapping[str, Any]) -> int:
    heads = number(text, "num_attention_heads", "n_head")
    hidden = number(text, "hidden_size", "n_embd")
    kv_heads = number(text, "swa_num_key_value_heads") or kv_heads_of(text)
    keys = number(text, "swa_head_dim", "head_dim") or (hidden // heads if heads else 0)
    values = number(text, "swa_v_head_dim") or _value_width(text, keys)
    return kv_heads * (keys + values) * ELEMENT_BYTES


def _layers(architecture: str, text: Mapping[str, Any]) -> Sequence[Layer]:
    """What each layer keeps."""
    count = number(text, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    if architecture in STATE_TYPES:
        return ["state"] * count
    if isinstance(pattern := text.get("hybrid_override_pattern"), str):
        return [{"*": "full", "M": "state"}.get(c, "none") for c in pattern]  # type: ignore[misc]
    for key in ("layer_types", "layers_block_type"):
        if isinstance(types := text.get(key), list) and types:
            return [LAYERS.get(str(t), "full") for t in types[: count or None]]
    if isinstance(windows := text.get("hybrid_layer_pattern"), list):  # MiMo V2
        return ["window" if w == 1 else "full" for w in windows]
    return _by_position(text, count) or _by_window(text, count)


def _by_position(text: Mapping[str, Any], count: int) -> Sequence[Layer]:
    """Hybrids that say which layers have attention; the others keep a state."""
    attention: set[int] = set()
    linear = text.get("linear_attn_config")
    if isinstance(linear, Mapping) and isinstance(linear.get("full_attn_layers"), list):
        attention = {int(i) - 1 for i in linear["full_attn_layers"]}  # counted from one
    elif isinstance(indices := text.get("full_attn_idxs") or text.get("attn_layer_indices"), list):
        attention = {int(i) for i in indices}
    elif isinstance(kinds := text.get("attn_type_list"), list):
        attention = {i for i, kind in enumerate(kinds) if kind == 1}
    elif interval := number(text, "full_attention_interval"):
        attention = set(range(interval - 1, count, interval))
    elif period := number(text, "attn_layer_period"):
        attention = set(range(number(text, "attn_layer_offset"), count, period))
    elif text.get("model_type") == "falcon_h1":
        return ["hybrid"] * count
    return ["full" if i in attention else "state" for i in range(count)] if attention else []


def _by_window(text: Mapping[str, Any], count: int) -> Sequence[Layer]:
    if not window_size(text) or text.get("use_sliding_window") is False:
        return ["full"] * count
    if isinstance(letters := text.get("sliding_window_pattern"), str) and letters:  # EXAONE: local and global
        return ["full" if letters[i % len(letters)] == "G" else "window" for i in range(count)]
    model_type = str(text.get("model_type"))
    pattern = number(text, "sliding_window_pattern", "_sliding_window_pattern") or WINDOW_PATTERNS.get(model_type, 0)
    if pattern:
        return ["full" if (i + 1) % pattern == 0 else "window" for i in range(count)]
    first_full = number(text, "max_window_layers") if model_type.startswith("qwen") else 0
    return ["full" if first_full and i < first_full else "window" for i in range(count)]


def _state_bytes(text: Mapping[str, Any]) -> int:
    """The state that one layer keeps of a sequence."""
    hidden = number(text, "hidden_size", "d_model")
    wide = 4 if text.get("mamba_ssm_dtype") == "float32" else ELEMENT_BYTES
    if values := number(text, "linear_num_value_heads"):  # gated delta net (Qwen3-Next)
        width, key_width = number(text, "linear_value_head_dim"), number(text, "linear_key_head_dim")
        channels = 2 * number(text, "linear_num_key_heads") * key_width + values * width
        convolution = channels * (number(text, "linear_conv_kernel_dim") - 1)
        return values * width * key_width * wide + convolution * ELEMENT_BYTES
    if isinstance(linear := text.get("linear_attn_config"), Mapping):  # Kimi delta attention
        heads, width = number(linear, "num_heads"), number(linear, "head_dim")
        return heads * width * width * 4 + 3 * heads * width * (number(linear, "short_conv_kernel_size") - 1) * 2
    if cached := number(text, "conv_L_cache"):  # LFM2
        return (cached - 1) * hidden * ELEMENT_BYTES
    state = number(text, "ssm_state_size", "mamba_d_state", "state_size", "mamba_state_dim")
    heads, width = number(text, "mamba_num_heads", "mamba_n_heads"), number(text, "mamba_head_dim", "mamba_d_head")
    inner = heads * width or number(text, "mamba_expand", "expand") * hidden
    groups = number(text, "n_groups", "mamba_n_groups") if heads else 0
    kernel = number(text, "conv_kernel", "mamba_d_conv")
    return inner * state * wide + (inner + 2 * groups * state) * max(0, kernel - 1) * ELEMENT_BYTES
