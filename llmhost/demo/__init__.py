"""The demonstration models that ship with llmhost, one of each kind, and the questions that ``llmhost check`` asks.

They are tiny, trained by this project (``scripts/train_demo_models.py``), and not for use: see docs/demo-models.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

Kind = Literal["chat", "embed", "rerank"]

HERE: Final = Path(__file__).resolve().parent

#: The directory of each model: what vLLM takes as ``--model``.
MODELS: Final[dict[Kind, Path]] = {"chat": HERE / "chat", "embed": HERE / "embed", "rerank": HERE / "rerank"}

#: The name under which each model is served.
SERVED_AS: Final[dict[Kind, str]] = {"chat": "demo-chat", "embed": "demo-embed", "rerank": "demo-rerank"}


def model_path(kind: Kind) -> Path:
    """The directory of the demonstration model of a kind."""
    return MODELS[kind]


def probes() -> dict[str, Any]:
    """Questions, by kind, that any service of that kind answers as expected (probes.json)."""
    loaded: dict[str, Any] = json.loads((HERE / "probes.json").read_text(encoding="utf-8"))
    return loaded
