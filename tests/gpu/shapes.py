"""Model directories of real architecture and size without weights: the safetensors file is a hole behind its header.

``--load-format dummy`` reads no weights; the plan reads sizes from the header. Tokenizers are those of the demo models,
the chat one padded to the vocabulary of the model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Tensors = Iterator[tuple[str, tuple[int, ...]]]

QWEN_7B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "dtype": "bfloat16", "torch_dtype": "bfloat16",
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768, "rope_theta": 1000000.0,
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "use_sliding_window": False,
    "initializer_range": 0.02, "attention_dropout": 0.0, "use_cache": True, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
"""The published configuration of Qwen2.5-7B-Instruct, but for the tokens of the demo's tokenizer."""
ENCODER = {
    "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "hidden_act": "gelu", "initializer_range": 0.02,
    "layer_norm_eps": 1e-12, "use_cache": True, "position_embedding_type": "absolute",
}  # fmt: skip
BERT_LARGE: dict[str, Any] = {
    **ENCODER, "architectures": ["BertModel"], "model_type": "bert", "dtype": "float32", "torch_dtype": "float32",
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0,
}  # fmt: skip
XLMR_BASE: dict[str, Any] = {
    **ENCODER, "architectures": ["XLMRobertaForSequenceClassification"], "model_type": "xlm-roberta",
    "dtype": "float32", "torch_dtype": "float32", "hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 250002, "max_position_embeddings": 514,
    "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "layer_norm_eps": 1e-5,
    "num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
}  # fmt: skip
REAL = {"chat": QWEN_7B, "embed": BERT_LARGE, "rerank": XLMR_BASE}
NAMES = {"chat": "Qwen2.5-7B shape", "embed": "BERT-large shape", "rerank": "XLM-RoBERTa-base shape"}
SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY = {
    "chat": {**QWEN_7B, **SMALL, "num_key_value_heads": 2, "vocab_size": 8192},
    "embed": {**BERT_LARGE, **SMALL, "vocab_size": 4096},
    "rerank": {**XLMR_BASE, **SMALL, "vocab_size": 4096},
}
"""The same architectures as small as can be, for a rehearsal without a GPU."""
BYTES = {"bfloat16": ("BF16", 2), "float32": ("F32", 4)}


def write_models(folder: Path, demo: Path, *, tiny: bool = False) -> dict[str, Path]:
    """The three model directories, by kind; ``demo`` is the directory of the demo models."""
    made = {}
    for kind, config in (TINY if tiny else REAL).items():
        target = folder / f"{'tiny' if tiny else 'real'}-{kind}"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copytree(demo / kind, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "*.md"))
        (target / "config.json").write_text(json.dumps(config, indent=1))
        tensors = decoder(config) if kind == "chat" else encoder(config)
        write_hole(target / "model.safetensors", tensors, config["dtype"])
        _ADAPT[kind](target, config)
        made[kind] = target
    return made


def write_hole(file: Path, tensors: Tensors, dtype: str) -> None:
    """A safetensors file whose data takes no room on disk."""
    code, width = BYTES[dtype]
    header: dict[str, Any] = {}
    end = 0
    for name, shape in tensors:
        size = width
        for length in shape:
            size *= length
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


def decoder(c: Mapping[str, Any]) -> Tensors:
    """Tensors of a Qwen2 checkpoint."""
    hidden, inner, kv = c["hidden_size"], c["intermediate_size"], c["num_key_value_heads"]
    kv_width = hidden // c["num_attention_heads"] * kv
    yield "model.embed_tokens.weight", (c["vocab_size"], hidden)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        for name, width in (("q", hidden), ("k", kv_width), ("v", kv_width)):
            yield f"{at}.self_attn.{name}_proj.weight", (width, hidden)
            yield f"{at}.self_attn.{name}_proj.bias", (width,)
        yield f"{at}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{at}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{at}.mlp.up_proj.weight", (inner, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, inner)
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (c["vocab_size"], hidden)


def encoder(c: Mapping[str, Any]) -> Tensors:
    """Tensors of a BERT or XLM-RoBERTa checkpoint, with the classifier of the latter."""
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    classifies = "num_labels" in c
    top = "roberta." if classifies else ""
    for name, rows in (
        ("word", c["vocab_size"]), ("position", c["max_position_embeddings"]), ("token_type", c["type_vocab_size"])
    ):  # fmt: skip
        yield f"{top}embeddings.{name}_embeddings.weight", (rows, hidden)
    yield from _norm(f"{top}embeddings.LayerNorm", hidden)
    for i in range(c["num_hidden_layers"]):
        at = f"{top}encoder.layer.{i}"
        for name in ("query", "key", "value"):
            yield from _linear(f"{at}.attention.self.{name}", hidden, hidden)
        yield from _linear(f"{at}.attention.output.dense", hidden, hidden)
        yield from _norm(f"{at}.attention.output.LayerNorm", hidden)
        yield from _linear(f"{at}.intermediate.dense", inner, hidden)
        yield from _linear(f"{at}.output.dense", hidden, inner)
        yield from _norm(f"{at}.output.LayerNorm", hidden)
    if classifies:
        yield from _linear("classifier.dense", hidden, hidden)
        yield from _linear("classifier.out_proj", c["num_labels"], hidden)
    else:
        yield from _linear("pooler.dense", hidden, hidden)


def _linear(name: str, rows: int, columns: int) -> Tensors:
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)


def _norm(name: str, width: int) -> Tensors:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _adapt_chat(folder: Path, config: Mapping[str, Any]) -> None:
    """Every id that the model can produce is a word, so that answers can be written down."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = data["model"]["vocab"]
    taken = set(vocabulary.values()) | {token["id"] for token in data["added_tokens"]}
    vocabulary.update({f"Ġw{i}": i for i in range(config["vocab_size"]) if i not in taken})
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    known = json.loads(settings.read_text())
    settings.write_text(json.dumps({**known, "model_max_length": config["max_position_embeddings"]}, indent=1))


def _adapt_embed(folder: Path, config: Mapping[str, Any]) -> None:
    path = folder / "1_Pooling/config.json"
    pooling = json.loads(path.read_text())
    path.write_text(json.dumps({**pooling, "word_embedding_dimension": config["hidden_size"]}, indent=1))


def _adapt_rerank(folder: Path, config: Mapping[str, Any]) -> None:
    """XLM-RoBERTa has one type of token: its tokenizer names none."""
    path = folder / "tokenizer_config.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps({**known, "model_input_names": ["input_ids", "attention_mask"]}, indent=1))


_ADAPT = {"chat": _adapt_chat, "embed": _adapt_embed, "rerank": _adapt_rerank}
