"""The manifest of an engine: a round trip, and what it is good for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmhost.config import Engine
from llmhost.env.manifest import Manifest, Spec, read_manifest, write_manifest
from llmhost.errors import EngineError
from llmhost.facts import VllmFlag

MANIFEST = Manifest(
    spec=Spec("venv", "cpu", None, None),
    build="0.32.0-cpu-1",
    python_version="3.12.4",
    packages={"torch": "2.13.0+cpu", "transformers": "5.19.0", "vllm": "0.32.0+cpu"},
    flags={
        "model": VllmFlag("model", boolean=False),
        "enforce_eager": VllmFlag("enforce_eager", boolean=True, negatable=True),
        "hf_token": VllmFlag("hf_token", boolean=False, optional_value=True),
        "middleware": VllmFlag("middleware", boolean=False, repeated=True),
        "lora_modules": VllmFlag("lora_modules", boolean=False, multiple=True),
    },
    tool_call_parsers=("hermes",),
    reasoning_parsers=("qwen3", "r1"),
    built_at="2026-01-02T03:04:05+00:00",
    built_in=34.5,
)


def test_round_trip(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == MANIFEST
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_facts(tmp_path: Path) -> None:
    facts = MANIFEST.facts(tmp_path)
    assert facts.python == str(tmp_path / "0.32.0-cpu-1/bin/python")
    assert (facts.vllm_version, facts.flags) == ("0.32.0", MANIFEST.flags)


@pytest.mark.parametrize(
    ("engine", "satisfied"),
    [
        (Engine(), True),
        (Engine(device="cpu"), True),
        (Engine(vllm="0.32.0"), True),
        (Engine(vllm="0.31.0"), False),
        (Engine(python="3.12"), True),
        (Engine(python="3.1"), False),
        (Engine(python="3.11"), False),
        (Engine(python="/usr/bin/python3.12"), False),
    ],
)
def test_satisfies(engine: Engine, satisfied: bool) -> None:
    assert MANIFEST.satisfies(Spec.of(engine)) is satisfied


def test_a_pin_that_is_taken_back() -> None:
    """Nothing is asked for any more, so the tested version is wanted, but any Python will do."""
    pinned = replace(MANIFEST, spec=Spec("venv", "cpu", "0.31.0", "3.12"))
    assert not pinned.satisfies(Spec.of(Engine()))
    assert replace(MANIFEST, spec=Spec("venv", "cpu", None, "3.12")).satisfies(Spec.of(Engine()))


def test_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None


def test_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot write"):
        write_manifest(tmp_path / "missing", MANIFEST)
