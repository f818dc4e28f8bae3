"""Byte-level BPE tokenizers under which a copied word has the same tokens wherever it stands."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CHAT_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TAGS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<tools>",
    "</tools>",
)
ENCODER_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Spaces, digits, Chinese characters and signs stand alone; camelCase falls into its words. So a name is cut in the
# same way after a space, after a quote and inside JSON, and copying it is copying tokens.
SPLIT = r"\p{Han}|\p{N}|\p{Lu}?[\p{Ll}\p{M}]+|\p{Lu}+(?!\p{Ll})|\p{L}|."


def _byte_level(vocab: int, specials: tuple[str, ...], texts: Iterable[str], lower: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if lower:
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s" if lower else r"(?!)"), "removed"),
            pre_tokenizers.Split(Regex(SPLIT.replace("|.", r"|[\s\S]")), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=3,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def chat_tokenizer(texts: Iterable[str], vocab: int = 4096) -> Tokenizer:
    """The tokenizer of the chat model."""
    tokenizer = _byte_level(vocab - len(CHAT_TAGS), CHAT_SPECIALS, texts, lower=False)
    # Tags are tokens but not special: the parsers of the engine must see them in the text.
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in CHAT_TAGS])
    return tokenizer


def encoder_tokenizer(texts: Iterable[str], vocab: int = 3072) -> Tokenizer:
    """The tokenizer of the embedding model and of the reranker."""
    tokenizer = _byte_level(vocab, ENCODER_SPECIALS, texts, lower=True)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, max_length: int, **settings: object) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    data = json.loads(tokenizer.to_str())
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length, **settings}
    config["clean_up_tokenization_spaces"] = False
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
