"""The held-out figures of the three models, and the thresholds that they have to reach."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from .dialog import call_sample, context_sample, decline_sample, make, plain_sample, result_sample
from .encoders import pair, ranking
from .render import Sample, prompt
from .words import DATA, Words

Figures = dict[str, float]

THRESHOLD = 0.95
#: Figures that have to reach the threshold; the others are printed only.
REQUIRED = {
    "chat": ("tool calls", "plain questions"),
    "embed": ("recall@1 of 50", "related above unrelated"),
    "rerank": ("right document first of 10",),
}


def missed(kind: str, figures: Figures) -> list[str]:
    """The required figures that are too low."""
    return [name for name in REQUIRED[kind] if figures[name] < THRESHOLD]


# --- chat ------------------------------------------------------------------------------------------------------------


def hermes_parser(tokenizer: Any) -> tuple[Callable[[str], Any], str]:
    """vLLM's own parser if it can be imported, else one of the same format."""
    try:
        from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser  # noqa: PLC0415 it may be missing
    except ImportError:
        return _plain_parser, "a parser of the same format (vLLM is not importable here)"
    parser = Hermes2ProToolParser(tokenizer)

    def parse(text: str) -> Any:
        found = parser.extract_tool_calls(text, None)
        return [(c.function.name, json.loads(c.function.arguments)) for c in found.tool_calls], found.content or ""

    return parse, "vLLM's hermes parser"


def _plain_parser(text: str) -> Any:
    try:
        found = [json.loads(part) for part in re.findall(r"<tool_call>(.*?)</tool_call>", text, re.DOTALL)]
        return [(c["name"], c["arguments"]) for c in found], text.split("<tool_call>", maxsplit=1)[0]
    except (ValueError, KeyError):
        return [], text


class Chat:
    """Greedy answers of a chat model, many at once."""

    def __init__(self, folder: Path, device: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
        self.parse, self.parser_name = hermes_parser(self.tokenizer)
        self.device = device

    @torch.inference_mode()
    def answer(self, samples: list[Sample]) -> list[str]:
        """What the model says to each, with <think> tags but without the end of the turn."""
        order = sorted(range(len(samples)), key=lambda n: len(prompt(samples[n])))
        said = [""] * len(samples)
        batch = 500 if self.device == "cuda" else 50
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            texts = [prompt(samples[n]) for n in chosen]
            inputs = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(self.device)
            out = self.model.generate(**inputs, max_new_tokens=200, do_sample=False, temperature=None)
            for n, row in zip(chosen, out[:, inputs["input_ids"].shape[1] :], strict=True):
                said[n] = self.tokenizer.decode(row).split("<|im_end|>")[0].replace("<|endoftext|>", "")
        return said

    def right(self, sample: Sample, said: str) -> bool:
        """Whether calls and text are exactly those wanted, and a thought is there if it was asked for."""
        body = said
        if sample.thought is not None:
            thought, closed, body = said.partition("</think>")
            if not closed or not thought.strip():
                return False
        calls, content = self.parse(body)
        wanted = [(c["function"]["name"], c["function"]["arguments"]) for c in sample.answer.get("tool_calls", ())]
        return bool(calls == wanted and content.strip() == (sample.answer["content"] or "").strip())


def chat_sets(count: int, seed: int = 99) -> dict[str, list[Sample]]:
    """Held-out conversations: names, values and wordings that training never sees."""
    words = Words(random.Random(seed), held=True)

    def some(build: Callable[[bool], Sample], share: float = 1.0, think: bool = False) -> list[Sample]:
        made = [build(words.chance(0.35)) for _ in range(int(count * share))]
        for sample in made:
            sample.thought = sample.thought if think else None
        return made

    def mixed(zh: bool) -> Sample:
        return call_sample(words, zh) if words.chance(0.6) else plain_sample(words, zh)

    return {
        "tool calls": some(lambda zh: call_sample(words, zh, 2 if words.chance(0.15) else 1)),
        "plain questions": some(lambda zh: plain_sample(words, zh)),
        "two calls": some(lambda zh: call_sample(words, zh, 2), 0.4),
        "answers from results": some(lambda zh: result_sample(words, zh), 0.4),
        "answers from documents": some(lambda zh: context_sample(words, zh), 0.4),
        "no function fits": some(lambda zh: decline_sample(words, zh), 0.4),
        "with reasoning": some(mixed, 0.4, think=True),
        "mixed, several turns": [
            s for s in (make(words.rng, held=True) for _ in range(count // 2)) if s.topic != "raw"
        ],
        "written by hand": by_hand(),
    }


def by_hand() -> list[Sample]:
    """Requests as clients really send them."""
    found = []
    for case in json.loads((DATA / "by_hand.json").read_text(encoding="utf-8")):
        calls = [{"function": {"name": name, "arguments": arguments}} for name, arguments in case.get("calls", ())]
        answer = {"role": "assistant", "content": case.get("answer", ""), "tool_calls": calls}
        found.append(Sample(case["messages"], answer, case.get("tools", [])))
    return found


def evaluate_chat(folder: Path, device: str, show: int = 4) -> Figures:
    """All figures of the chat model."""
    chat = Chat(folder, device)
    print(f"chat: calls are read by {chat.parser_name}")
    figures: Figures = {}
    count = 500 if device == "cuda" else 200
    for name, samples in chat_sets(count).items():
        said = chat.answer(samples)
        wrong = [(s, text) for s, text in zip(samples, said, strict=True) if not chat.right(s, text)]
        figures[name] = 1 - len(wrong) / len(samples)
        for sample, text in wrong[: show if name != "written by hand" else 40]:
            print(f"  {name}: {sample.messages[-1]['content']!r} -> {text!r}")
    return figures


# --- the two encoders ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def vectors(folder: Path, texts: list[str]) -> torch.Tensor:
    """Normalised means of the last layer, as the engine computes them."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
    hidden = model.eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def evaluate_embed(folder: Path, _device: str, rounds: int = 20, size: int = 50) -> Figures:
    """Find the paraphrase among 50; related against unrelated."""
    words = Words(random.Random(98), held=True)
    hits, above = 0.0, 0.0
    for _ in range(rounds):
        made: dict[str, tuple[str, str]] = {}
        while len(made) < size:
            first, second, key = pair(words)
            if first.casefold() != second.casefold():
                made.setdefault(key, (first, second))
        both = vectors(folder, [a for a, _ in made.values()] + [b for _, b in made.values()])
        scores = both[:size] @ both[size:].T
        hits += (scores.argmax(1) == torch.arange(size)).float().mean().item()
        shuffled = scores.roll(1, dims=1).diagonal()
        above += (scores.diagonal() > shuffled).float().mean().item()
    return {"recall@1 of 50": hits / rounds, "related above unrelated": above / rounds}


@torch.inference_mode()
def scores(folder: Path, pairs: list[tuple[str, str]]) -> torch.Tensor:
    """The reranker's scores between 0 and 1, as the engine computes them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer([a for a, _ in pairs], [b for _, b in pairs], return_tensors="pt", padding=True, truncation=True)
    return model(**inputs).logits.squeeze(-1).sigmoid()


def evaluate_rerank(folder: Path, _device: str, questions: int = 400, documents: int = 10) -> Figures:
    """The right document among ten."""
    words = Words(random.Random(97), held=True)
    first, good, bad = 0, 0.0, 0.0
    for _ in range(questions // 20):
        made = [ranking(words, documents) for _ in range(20)]
        rows = scores(folder, [(query, text) for query, texts in made for text in texts]).view(20, documents)
        first += int((rows.argmax(1) == 0).sum())
        good += (rows[:, 0] > 0.5).float().sum().item()
        bad += (rows[:, 1:] < 0.5).float().mean(1).sum().item()
    return {
        "right document first of 10": first / questions,
        "right document above 0.5": good / questions,
        "wrong document below 0.5": bad / questions,
    }


EVALUATE: dict[str, Callable[[Path, str], Figures]] = {
    "chat": evaluate_chat,
    "embed": evaluate_embed,
    "rerank": evaluate_rerank,
}
