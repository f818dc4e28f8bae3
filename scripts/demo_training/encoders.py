"""The embedding model and the reranker: two tiny BERTs."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, BertModel

from . import tokenizer as tok
from .batches import Stream
from .chat import Plan, optimizer, rate_at
from .meanings import Meaning, draw_meaning, fact_about, fact_kinds, random_fact
from .words import Words

MAX_LENGTH = 512
EMBED_TOKENS = 40
RERANK_TOKENS = 96
DOCUMENTS = 8
TEMPERATURE = 0.05


def train_tokenizer(seed: int, texts: int = 60000) -> Tokenizer:
    """One tokenizer for both."""
    words = Words(random.Random(seed))

    def lines() -> Iterator[str]:
        for _ in range(texts // 2):
            meaning = draw_meaning(words)
            yield meaning.ask(words, words.chance(0.35))
            yield meaning.tell(words, words.chance(0.35))

    return tok.encoder_tokenizer(lines())


def config(tokenizer: Tokenizer, **more: Any) -> BertConfig:
    """About 1.3 million parameters."""
    return BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=MAX_LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.token_to_id("[PAD]"),
        **more,
    )


# --- data ------------------------------------------------------------------------------------------------------------


def pair(words: Words) -> tuple[str, str, str]:
    """Two texts that mean the same, and what they mean."""
    meaning = draw_meaning(words)
    roll = words.rng.random()
    first, second = (
        (meaning.ask, meaning.ask)
        if roll < 0.55
        else (meaning.tell, meaning.tell)
        if roll < 0.8
        else (meaning.ask, meaning.tell)
    )
    zh = words.chance(0.35)
    other = not zh if words.chance(0.25) else zh
    return first(words, zh), second(words, other), meaning.key


def ranking(words: Words, documents: int) -> tuple[str, list[str]]:
    """A question and documents, the right one first."""
    meaning = draw_meaning(words)
    zh = words.chance(0.35)
    cross = not zh if words.chance(0.12) else zh
    query = meaning.ask(words, zh)
    rest: list[str] = []
    while len(rest) < documents - 1:
        other = _near(meaning, words)
        if other.key != meaning.key:
            rest.append(_in_context(other, words, words.chance(0.35)))
    return query, [_in_context(meaning, words, cross), *rest]


def _near(meaning: Meaning, words: Words) -> Meaning:
    """Something else: often about the same subject, or the same thing about another subject."""
    kind = meaning.key.split(" ")[0]
    same = next((f for f in fact_kinds() if f.name == kind), None)
    roll = words.rng.random()
    if same and roll < 0.3:
        return fact_about(
            words.rng.choice([f for f in fact_kinds() if f.subject == same.subject]), meaning.subject, words
        )
    if same and roll < 0.6:
        return fact_about(same, words.name(words.chance(0.2)), words)
    other = draw_meaning(words)
    for _ in range(6 if roll < 0.8 else 0):
        if other.key.split(" ")[0] == kind and other.key != meaning.key:
            break
        other = draw_meaning(words)
    return other


def _in_context(meaning: Meaning, words: Words, zh: bool) -> str:
    text = meaning.tell(words, zh)
    if words.chance(0.15):
        filler = random_fact(words).tell(words, zh)
        text = f"{filler} {text}" if words.chance(0.5) else f"{text} {filler}"
    return text


def produce_pairs(context: tuple[str, int], rng: random.Random) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of pairs (first texts, then second texts) and the number of each meaning."""
    tokenizer = _open(context[0], EMBED_TOKENS)
    words = Words(rng)
    while True:
        made = [pair(words) for _ in range(context[1])]
        numbers = {key: n for n, (_, _, key) in enumerate(made)}
        texts = [a for a, _, _ in made] + [b for _, b, _ in made]
        yield _ids(tokenizer, texts)[0], np.array([numbers[key] for _, _, key in made])


def produce_rankings(context: tuple[str, int], rng: random.Random) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of (question, document) rows, DOCUMENTS rows for a question, the right one first."""
    tokenizer = _open(context[0], RERANK_TOKENS)
    words = Words(rng)
    while True:
        made = [ranking(words, DOCUMENTS) for _ in range(context[1])]
        yield _ids(tokenizer, [(query, text) for query, texts in made for text in texts])


def _open(path: str, length: int) -> Tokenizer:
    tokenizer = Tokenizer.from_file(path)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=tokenizer.token_to_id("[PAD]"), pad_token="[PAD]")
    return tokenizer


def _ids(tokenizer: Tokenizer, texts: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    encoded = tokenizer.encode_batch(texts)
    return np.array([e.ids for e in encoded], dtype=np.int16), np.array([e.type_ids for e in encoded], dtype=np.int8)


# --- training --------------------------------------------------------------------------------------------------------


def positions(ids: torch.Tensor) -> torch.Tensor:
    """Half of the texts start at a random position, so that every position is learnt though the texts are short."""
    rows, length = ids.shape
    offset = torch.randint(0, MAX_LENGTH - length, (rows, 1), device=ids.device)
    shifted = torch.rand((rows, 1), device=ids.device) < 0.5
    return torch.arange(length, device=ids.device) + offset * shifted


def embed(model: BertModel, ids: torch.Tensor) -> torch.Tensor:
    """Normalised means of the last layer."""
    mask = ids != model.config.pad_token_id
    hidden = model(input_ids=ids, attention_mask=mask, position_ids=positions(ids)).last_hidden_state.float()
    return functional.normalize((hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True), dim=-1)


def embed_loss(model: BertModel, ids: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Each text finds its partner among all others of the batch; others with the same meaning do not count."""
    first, second = embed(model, ids).chunk(2)
    scores = first @ second.T / TEMPERATURE
    same = (keys[:, None] == keys[None, :]) & ~torch.eye(len(keys), dtype=torch.bool, device=ids.device)
    scores = scores.masked_fill(same, -1e4)
    target = torch.arange(len(keys), device=ids.device)
    return (functional.cross_entropy(scores, target) + functional.cross_entropy(scores.T, target)) / 2


def rank_loss(model: BertForSequenceClassification, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    """The right document scores highest (cross-entropy) and above zero, the others below (binary)."""
    mask = ids != model.config.pad_token_id
    hidden = model.bert(input_ids=ids, token_type_ids=types, attention_mask=mask, position_ids=positions(ids))
    scores = model.classifier(hidden.pooler_output).float().view(-1, DOCUMENTS)
    target = torch.zeros(len(scores), dtype=torch.long, device=ids.device)
    right = torch.zeros_like(scores)
    right[:, 0] = 1
    weights = torch.where(right > 0, float(DOCUMENTS - 1), 1.0)
    ranked = functional.cross_entropy(scores, target) + functional.binary_cross_entropy_with_logits(
        scores, right, weights
    )
    return ranked + overlap_loss(hidden.last_hidden_state[..., -1].float(), ids, types, mask)


def overlap_loss(marks: torch.Tensor, ids: torch.Tensor, types: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Each token marks, in its last dimension, whether the other text holds it too.

    Without this the model stays for very long at guessing: it first has to find out that looking for the same word in
    the other text is worth anything.
    """
    same = (ids[:, :, None] == ids[:, None, :]) & (types[:, :, None] != types[:, None, :]) & mask[:, None, :]
    losses = functional.binary_cross_entropy_with_logits(marks, same.any(-1).float(), reduction="none")
    return (losses * mask).sum() / mask.sum()


Loss = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]


def fit(model: Any, loss_of: Loss, stream: Stream, plan: Plan, name: str) -> None:
    """Train for the planned time."""
    optim = optimizer(model, plan.rate)
    cuda = plan.device == "cuda"
    step_loss = torch.compile(loss_of, dynamic=False) if plan.compiled else loss_of
    start, step, total = time.time(), 0, torch.zeros((), device=plan.device)
    for ids, other in stream:
        done = (time.time() - start) / plan.seconds
        if done >= 1:
            break
        for group in optim.param_groups:
            group["lr"] = rate_at(done, plan.rate)
        with torch.autocast(plan.device, torch.bfloat16, enabled=cuda):
            loss = step_loss(
                model, torch.from_numpy(ids).to(plan.device).long(), torch.from_numpy(other).to(plan.device).long()
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        optim.zero_grad(set_to_none=True)
        step, total = step + 1, total + loss.detach()
        if step % 100 == 0:
            print(
                f"{name}: step {step}, {time.time() - start:.0f} s, loss {total.item() / 100:.4f}",
                flush=True,
            )
            total.zero_()


def _save_tokenizer(seed: int, folder: Path) -> Tokenizer:
    tokenizer = train_tokenizer(seed)
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    tok.save(tokenizer, folder, MAX_LENGTH, model_input_names=inputs, **names)
    return tokenizer


def train_embed(plan: Plan, folder: Path, pairs: int = 1024) -> None:
    """Train the embedding model and write it with its sentence-transformers pooling."""
    torch.manual_seed(plan.seed)
    tokenizer = _save_tokenizer(plan.seed, folder)
    model = BertModel(config(tokenizer), add_pooling_layer=False).to(plan.device)
    stream = Stream(produce_pairs, (str(folder / "tokenizer.json"), pairs), plan.seed, plan.workers)
    try:
        fit(model, embed_loss, stream, plan, "embed")
    finally:
        stream.close()
    model.to(torch.bfloat16).save_pretrained(folder)
    write_pooling(folder, model.config.hidden_size)


def write_pooling(folder: Path, size: int) -> None:
    """modules.json and the pooling configuration: mean, then normalise."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(modules)
    ]
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": size, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling, indent=2) + "\n", encoding="utf-8")
    (folder / "modules.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": MAX_LENGTH, "do_lower_case": False}, indent=2) + "\n", encoding="utf-8"
    )


def train_rerank(plan: Plan, folder: Path, start: Path, questions: int = 256) -> None:
    """Train the reranker, from the embedding model in ``start``: it knows already which words are alike."""
    torch.manual_seed(plan.seed)
    _save_tokenizer(plan.seed, folder)
    if (start / "tokenizer.json").read_text("utf-8") != (folder / "tokenizer.json").read_text("utf-8"):
        raise ValueError("the embedding model was trained with other data: train it again, before the reranker")
    model = BertForSequenceClassification.from_pretrained(start, num_labels=1, dtype=torch.float32).to(plan.device)
    stream = Stream(produce_rankings, (str(folder / "tokenizer.json"), questions), plan.seed, plan.workers)
    try:
        fit(model, rank_loss, stream, plan, "rerank")
    finally:
        stream.close()
    model.to(torch.bfloat16).save_pretrained(folder)
