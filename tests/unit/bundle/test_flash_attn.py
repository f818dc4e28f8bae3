"""Which kept flash-attn wheel a bundle takes along: one that the engine there can load, or none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmhost.bundle.flash_attn import wheel_for
from llmhost.bundle.target import Target, make_target
from llmhost.config import Engine
from llmhost.env.flash_attn.store import find_wheel, keep_wheel
from llmhost.errors import EngineError
from llmhost.probe.facts_file import facts_from_json

FIXTURE = Path(__file__).parents[2] / "fixtures/bundle/gpu-host.json"


@pytest.fixture
def target() -> Target:
    """One H200, vLLM 0.26.0 on torch 2.11.0 of CUDA 13.0."""
    host = facts_from_json(FIXTURE.read_text(encoding="utf-8"), str(FIXTURE))
    return make_target(host, Engine(vllm="0.26.0", python="3.12"))


def test_all_that_it_must_fit_is_known(target: Target) -> None:
    spec = wheel_for(target, True, {"torch": "2.11.0"})
    assert spec is not None
    assert spec.key == "flash_attn-2.8.3.post2-cp312-torch2.11.0-cu130-abi1-sm90-x86_64"
    assert wheel_for(target, True, {}) == spec  # of the release


@pytest.mark.parametrize(
    "kept",
    [
        {"torch": "2.14.0"},
        {"cuda": (12, 8)},
        {"cxx11_abi": False},
        {"python_tag": "cp313"},
        {"machine": "aarch64"},
        {"archs": (80,)},
        {"version": "2.8.1"},
    ],
)
def test_one_that_fits_in_everything_but_one_thing_stays_here(
    target: Target, tmp_path: Path, kept: dict[str, object]
) -> None:
    spec = wheel_for(target, True, {})
    assert spec is not None
    wheel = tmp_path / "flash_attn.whl"
    wheel.write_bytes(b"a wheel")
    of_spec = {k: v for k, v in kept.items() if k in ("archs", "version")}
    of_target = {k: v for k, v in kept.items() if k not in of_spec}
    keep_wheel(tmp_path / "wheels", wheel, replace(spec, target=replace(spec.target, **of_target), **of_spec), 1.0)  # type: ignore[arg-type]
    assert find_wheel(tmp_path / "wheels", spec) is None
    keep_wheel(tmp_path / "wheels", wheel, spec, 1.0)
    assert find_wheel(tmp_path / "wheels", spec) is not None


def test_a_torch_that_is_not_known_well_enough_gets_the_source(target: Target) -> None:
    for torch in ("2.9.0a0+50eac811a6.nv25.9", "2.6.0+cu126", "2.12.0"):
        assert wheel_for(target, True, {"torch": torch}) is None
    assert wheel_for(replace(target, release=replace(target.release, tested=False)), True, {}) is None
    below = wheel_for(target, True, {"torch": "2.9.1+cu128"})
    assert below is not None
    assert (below.target.torch, below.target.cuda) == ("2.9.1", (12, 8))


def test_the_torch_below_the_engine_counts(target: Target) -> None:
    python = replace(target.engine_python, packages={"torch": "2.9.1+cu128"})
    spec = wheel_for(replace(target, engine_python=python, on_system=True), True, {})
    assert spec is not None
    assert (spec.target.torch, spec.target.cuda) == ("2.9.1", (12, 8))


def test_gpus_that_it_has_no_code_for(target: Target) -> None:
    old = replace(target.facts.gpus[0], capability=(7, 0))
    with pytest.raises(EngineError, match="flash-attn has no code for GPU 0"):
        wheel_for(replace(target, facts=replace(target.facts, gpus=(old,))), True, {})
