"""A tiny grammar for wordings: ``(a|b|)`` is a choice, ``x?`` an option, ``{slot}`` a place for a value."""

from __future__ import annotations

import random
import re
import zlib
from functools import cache

Node = tuple[tuple["str | Node", ...], ...]  # a choice of sequences

_TOKEN = re.compile(r"[()|?]|[^()|?]+")


@cache
def parse(text: str) -> Node:
    """Parse one wording into nested choices."""
    node, rest = _choice(_TOKEN.findall(text), 0)
    if rest != len(_TOKEN.findall(text)):
        raise ValueError(f"unbalanced brackets: {text}")
    return node


def _choice(tokens: list[str], at: int) -> tuple[Node, int]:
    options: list[list[str | Node]] = [[]]
    while at < len(tokens) and tokens[at] != ")":
        token = tokens[at]
        if token == "(":
            inner, at = _choice(tokens, at + 1)
            options[-1].append(inner)
        elif token == "|":
            options.append([])
        elif token == "?":
            _make_optional(options[-1])
        else:
            options[-1].append(token)
        at += 1
    return tuple(tuple(option) for option in options), at


def _make_optional(sequence: list[str | Node]) -> None:
    last = sequence.pop()
    if isinstance(last, str):
        if last[:-1]:
            sequence.append(last[:-1])
        last = ((last[-1],),)
    sequence.append((*last, ()))


def weight(node: Node) -> int:
    """How many wordings a node stands for."""
    return sum(_sequence_weight(option) for option in node)


@cache
def _sequence_weight(option: tuple[str | Node, ...]) -> int:
    total = 1
    for part in option:
        if not isinstance(part, str):
            total *= weight(part)
    return total


def expand(text: str, rng: random.Random) -> str:
    """One random wording."""
    return "".join(_expand(parse(text), rng)).strip()


def _expand(node: Node, rng: random.Random) -> list[str]:
    # The square root keeps one option with many variants from drowning the others.
    option = node[0] if len(node) == 1 else rng.choices(node, [_sequence_weight(o) ** 0.5 for o in node])[0]
    parts: list[str] = []
    for part in option:
        parts.extend([part] if isinstance(part, str) else _expand(part, rng))
    return parts


def held_out(text: str, share: int = 8) -> bool:
    """Whether a wording or a word belongs to the held-out side: decided by its hash, so by construction."""
    return zlib.crc32(text.casefold().encode()) % share == 0
