"""What functions return, and how the model says it."""

from __future__ import annotations

import json
from typing import Any

from .words import Words


def result(words: Words, zh: bool) -> tuple[str, str]:
    """What a function returns, and how the model says it."""
    roll = words.rng.random()
    if roll < 0.12:
        text = words.text(zh)
        return json.dumps({"error": text}, ensure_ascii=False), f"error {text}"
    if roll < 0.4:
        text = words.rng.choice(
            (
                words.number().said,
                words.text(zh),
                f"{words.number().said} {words.pick('units')}",
                f"{words.number().said}°C, {words.pick('conditions')}",
                words.name(zh),
            )
        )
        text += "." if words.chance(0.25) else ""
        return (json.dumps(text, ensure_ascii=False) if words.chance(0.15) else text), text
    entries = {_field(words): _field_value(words, zh) for _ in range(words.rng.randint(1, 4))}
    separators = (", ", ": ") if words.chance(0.7) else (",", ":")
    said = ", ".join(
        f"{key.replace('_', ' ')} {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in entries.items()
    )
    return json.dumps(entries, ensure_ascii=False, separators=separators), said


def _field(words: Words) -> str:
    roll = words.rng.random()
    if roll < 0.65:
        return words.pick("fields")
    return words.pick("params") if roll < 0.8 else words.identifier().replace("-", "_")


def _field_value(words: Words, zh: bool) -> Any:
    roll = words.rng.random()
    if roll < 0.45:
        return words.number().given
    if roll < 0.55:
        return words.chance(0.5)
    return words.rng.choice((words.pick("conditions"), words.text(zh, high=3), words.name(zh), words.code()))


def report(said: list[str], zh: bool) -> str:
    return ("结果是：" if zh else "The result: ") + "; ".join(said)
