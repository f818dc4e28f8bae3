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
    "-p": "port", "-O": "compilation_config",
}  # fmt: skip


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
    """Positional words, and flags with the words up to the next flag."""
    positional: list[str] = []
    flags: list[tuple[str, list[str]]] = []
    for word in words:
        if _is_flag(word):
            name, equals, value = word.partition("=")
            flags.append((name, [value] if equals else []))
        elif flags:
            flags[-1][1].append(word)
        else:
            positional.append(word)
    return positional, list(_flags(flags))


def _is_flag(word: str) -> bool:
    return word.startswith("--") or word in SHORT or (word[:1] == "-" and word.partition("=")[0] in SHORT)


def _flags(pairs: list[tuple[str, list[str]]]) -> Iterator[Flag]:
    for option, values in pairs:
        name = SHORT.get(option) or option.removeprefix("--").replace("-", "_")
        yield Flag(name, tuple(values), masked((option, *values)))


def yaml_value(text: str) -> Any:
    """A number, a mapping or a list where the text is one; everything else stays text."""
    if NUMBER.fullmatch(text):
        return float(text) if any(c in text for c in ".e") else int(text)
    if text[:1] in "{[":
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
