"""The chat model: a tiny Qwen3, trained on endless generated conversations."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from . import tokenizer as tok
from .batches import LENGTHS, Row, Stream, bucketed
from .dialog import make
from .render import TEMPLATE, Sample, pieces

MAX_LENGTH = 4096


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train."""

    seconds: float
    tokens: int = 65536
    rate: float = 2.5e-3
    workers: int = 14
    seed: int = 7
    device: str = "cuda"
    compiled: bool = True


def train_tokenizer(seed: int, samples: int = 12000) -> Tokenizer:
    """The tokenizer, from the same conversations."""
    rng = random.Random(seed)
    texts = ("".join(text for text, _ in pieces(make(rng))) for _ in range(samples))
    return tok.chat_tokenizer(texts)


def config(tokenizer: Tokenizer) -> Qwen3Config:
    """About 4.6 million parameters."""
    return Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        pad_token_id=tokenizer.token_to_id("<|endoftext|>"),
        use_cache=True,
    )


def produce(context: tuple[str, int], rng: random.Random) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of conversations; runs in the workers."""
    path, tokens = context
    tokenizer = Tokenizer.from_file(path)

    def rows() -> Iterator[Row]:
        while True:
            yield row(tokenizer, make(rng))

    return bucketed(rows(), tokens)


def row(tokenizer: Tokenizer, sample: Sample) -> Row:
    """One conversation as tokens."""
    ids: list[int] = []
    learn: list[int] = []
    for text, said in pieces(sample):
        encoded = tokenizer.encode(text, add_special_tokens=False).ids
        ids += encoded
        learn += [int(said)] * len(encoded)
    return Row(ids, learn)


def rate_at(done: float, peak: float) -> float:
    """The learning rate after a share of the time: a short warm-up, then a cosine."""
    if done < 0.02:
        return peak * done / 0.02
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def optimizer(model: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
    """AdamW; only matrices decay."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    fused = next(model.parameters()).is_cuda
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.97), fused=fused)


def train(plan: Plan, folder: Path, start: Path | None = None) -> Qwen3ForCausalLM:
    """Train for the planned time, from nothing or from the model in ``start``, and write everything into the folder."""
    torch.manual_seed(plan.seed)
    tokenizer = Tokenizer.from_file(str(start / "tokenizer.json")) if start else train_tokenizer(plan.seed)
    save_tokenizer(tokenizer, folder)
    if start:
        model = Qwen3ForCausalLM.from_pretrained(start, dtype=torch.float32, attn_implementation="sdpa").to(plan.device)
    else:
        model = Qwen3ForCausalLM._from_config(config(tokenizer), attn_implementation="sdpa").to(plan.device)
    print(f"chat: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters", flush=True)
    stream = Stream(produce, (str(folder / "tokenizer.json"), plan.tokens), plan.seed, plan.workers)
    try:
        _loop(model, stream, plan)
    finally:
        stream.close()
    save_model(model, tokenizer, folder)
    return model


def _loop(model: Qwen3ForCausalLM, stream: Stream, plan: Plan) -> None:
    optim = optimizer(model, plan.rate)
    cuda = plan.device == "cuda"
    step_loss = torch.compile(loss_of, dynamic=False) if plan.compiled else loss_of
    if plan.compiled:
        _compile_all(model, step_loss, plan)
    start, seen, step, total = 0.0, 0, 0, torch.zeros((), device=plan.device)
    for ids, learn in stream:
        start = start or time.time()
        done = (time.time() - start) / plan.seconds
        if done >= 1:
            break
        for group in optim.param_groups:
            group["lr"] = rate_at(done, plan.rate)
        batch = torch.from_numpy(ids).to(plan.device, non_blocking=True).long()
        mask = torch.from_numpy(learn).to(plan.device, non_blocking=True)
        with torch.autocast(plan.device, torch.bfloat16, enabled=cuda):
            loss = step_loss(model, batch, mask)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        optim.zero_grad(set_to_none=True)
        seen, step, total = seen + ids.size, step + 1, total + loss.detach()
        if step % 100 == 0:
            print(
                f"chat: step {step}, {time.time() - start:.0f} s, {seen / 1e6:.0f} M tokens, "
                f"loss {total.item() / 100:.4f}",
                flush=True,
            )
            total.zero_()


def _compile_all(model: Qwen3ForCausalLM, step_loss: Any, plan: Plan) -> None:
    """Compile for every length of row before the clock starts."""
    for length in LENGTHS:
        ids = torch.ones((max(1, plan.tokens // length), length), dtype=torch.long, device=plan.device)
        with torch.autocast(plan.device, torch.bfloat16):
            step_loss(model, ids, ids.bool()).backward()
    model.zero_grad(set_to_none=True)
    print("chat: compiled", flush=True)


def loss_of(model: Qwen3ForCausalLM, ids: torch.Tensor, learn: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of what the model has to say; the padding on the right is never looked at."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden).float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    wanted = learn[:, 1:].flatten()
    return (losses * wanted).sum() / wanted.sum()


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """The tokenizer and the chat template."""
    tok.save(tokenizer, folder, MAX_LENGTH, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    (folder / "chat_template.jinja").write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")


def save_model(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Weights in bfloat16, the configuration, and greedy decoding as the default."""
    model.generation_config = GenerationConfig()  # written below: saving refuses a temperature of zero
    model.to(torch.bfloat16).save_pretrained(folder)
    end = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    settings = {"do_sample": False, "temperature": 0.0, "eos_token_id": end, "pad_token_id": end[1]}
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
