"""Command lines as flags and values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmhost.migrate.masking import masked

NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
SHORT = {
    "-tp": "tensor_parallel_size", "-pp": "pipeline_parallel_size", "-dp": "data_parallel_size", "-q": "quantization",
    "-p": "port", "-O": "compilation_config", "-cc": "compilation_config", "-ac": "attention_config",
    "-sc": "speculative_config", "-dc": "diffusion_config", "-n": "nnodes", "-r": "node_rank",
    "-dcp": "decode_context_parallel_size", "-pcp": "prefill_context_parallel_size", "-ep": "enable_expert_parallel",
    "-dpn": "data_parallel_rank", "-dpr": "data_parallel_start_rank", "-dpl": "data_parallel_size_local",
    "-dpa": "data_parallel_address", "-dpp": "data_parallel_rpc_port", "-dpb": "data_parallel_backend",
    "-dph": "data_parallel_hybrid_lb", "-dpe": "data_parallel_external_lb",
    "-dpm": "data_parallel_multi_port_external_lb",
}  # fmt: skip
"""vLLM's short flags (`vllm/engine/arg_utils.py`)."""
_OPTION = re.compile(r"--|-[A-Za-z]")
"""What argparse takes for a flag: a dash and no number behind it."""
_LEVEL = re.compile(r"-O=?(\d)")


@dataclass(frozen=True)
class Flag:
    """``--max-model-len 8192``: name as in llmhost.yaml, its values as text, and how it was written (masked)."""

    name: str
    values: tuple[str, ...]
    written: str

    @property
    def value(self) -> Any:
        """As it stands in YAML: true for a flag alone, a list for several values."""
        if not self.values:
            return True
        read = [yaml_value(v) for v in self.values]
        return read[0] if len(read) == 1 else read


def split_flags(words: Sequence[str]) -> tuple[list[str], list[Flag]]:
    """Positional words, and flags with the words up to the next flag; one whose name is not known keeps its dash."""
    positional: list[str] = []
    flags: list[tuple[str, list[str]]] = []
    for word in words:
        if _OPTION.match(word):
            name, equals, value = word.partition("=")
            flags.append((name, [value] if equals else []))
        elif flags:
            flags[-1][1].append(word)
        else:
            positional.append(word)
    return positional, list(_nested(_flags(flags)))


def _flags(pairs: list[tuple[str, list[str]]]) -> Iterator[Flag]:
    for option, values in pairs:
        written = masked((option, *values))
        level = _LEVEL.fullmatch("=".join((option, *values)))
        if level:  # -O3, -O 3, -O=3
            yield Flag("optimization_level", (level[1],), written)
        else:
            yield Flag(_name(option), tuple(values), written)


def _name(option: str) -> str:
    head, dot, rest = option.partition(".")
    base = SHORT.get(head) or (head.removeprefix("--").replace("-", "_") if head.startswith("--") else head)
    return base + dot + rest


def _nested(flags: Iterator[Flag]) -> Iterator[Flag]:
    """``--a.b 1 --a.c=2`` is ``--a {"b": 1, "c": 2}``, also on top of one that is written so."""
    found: dict[str, Flag] = {}
    others: list[Flag] = []
    for flag in flags:
        base, _, path = flag.name.partition(".")
        below = found.get(base)
        if not path and below:
            others.append(flag)
        if not path:
            found.setdefault(base, flag)
            continue
        value = below.value if below and isinstance(below.value, dict) else {}
        _put(value, path.split("."), flag.value)
        written = f"{below.written} {flag.written}" if below else flag.written
        found[base] = Flag(base, (json.dumps(value),), written)
    yield from found.values()
    yield from others


def _put(mapping: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        if not isinstance(mapping.get(key), dict):
            mapping[key] = {}
        mapping = mapping[key]
    mapping[path[-1]] = value


def yaml_value(text: str) -> Any:
    """A number, a truth value, a mapping or a list where the text is one; everything else stays text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if NUMBER.fullmatch(text):
        return float(text) if any(c in text for c in ".e") else int(text)
    if text[:1] in "{[":
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
