"""From a conversation to text and tokens, through the very template that ships with the model."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE = Path(__file__).parent / "chat_template.jinja"
_TURN = re.compile(r"(?<=<\|im_start\|>assistant\n)(?!<think>)(.*?<\|im_end\|>)", re.DOTALL)

Message = dict[str, Any]


@dataclass
class Sample:
    """A conversation whose last message the model has to say."""

    messages: list[Message]
    answer: Message
    tools: list[dict[str, Any]] = field(default_factory=list)
    thought: str | None = None
    topic: str = ""


@cache
def _template() -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def prompt(sample: Sample) -> str:
    """What the model reads."""
    return _template().render(
        messages=sample.messages,
        tools=sample.tools or None,
        add_generation_prompt=True,
        enable_thinking=sample.thought is not None,
    )


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """A function call as the model writes it."""
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


def answer_text(sample: Sample) -> str:
    """What the model writes, without the end of the turn."""
    calls = [call["function"] for call in sample.answer.get("tool_calls", ())]
    body = (sample.answer.get("content") or "") + "".join(call_text(c["name"], c["arguments"]) for c in calls)
    return body if sample.thought is None else f"{sample.thought}</think>{body}"


def pieces(sample: Sample) -> list[tuple[str, bool]]:
    """The whole text in pieces, each with whether the model learns to say it: its earlier turns count too."""
    if sample.topic == "raw":
        return [(answer_text(sample) + "<|endoftext|>", True)]
    found: list[tuple[str, bool]] = []
    for index, part in enumerate(_TURN.split(prompt(sample))):
        if part:
            found.append((part, index % 2 == 1))
    return [*found, (answer_text(sample) + "<|im_end|>", True)]
