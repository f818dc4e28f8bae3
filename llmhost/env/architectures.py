"""The architectures that an installed vLLM registers, read from its source."""

from __future__ import annotations

import ast
from pathlib import Path

from llmhost.env.source import Source

REGISTRY = "vllm.model_executor.models.registry"


def registered_architectures(python: Path) -> frozenset[str]:
    """The keys of the registry of the vLLM in an environment; empty when it is not found there, or not understood.

    ``python``: the interpreter of the environment.
    """
    for site in sorted(python.parent.parent.glob("lib/python3*/site-packages")):
        module = Source(site).module(REGISTRY)
        if module is not None:
            tables = (t for name, t in module.names.items() if name.startswith("_") and name.endswith("_MODELS"))
            return frozenset(key for table in tables for key in _keys(table))
    return frozenset()


def _keys(table: object) -> list[str]:
    """Of a dict literal; what is unpacked into it are architectures of the other tables."""
    keys = table.keys if isinstance(table, ast.Dict) else ()
    return [key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
