"""A wheel of flash-attn counts when it has passed its check on the GPU, and leaves the store when it fails there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llmhost.env.flash_attn import ensure, explain_flash_attn
from llmhost.env.flash_attn.store import RECORD, find_wheel
from llmhost.env.flash_attn.verify import VERIFY
from tests.integration.env.flash_attn_case import MACHINE, Case, check_ends, check_says
from tests.integration.env.flash_attn_like import OBJECTS, VERSION
from tests.integration.env.recorder import Recorder

pytestmark = pytest.mark.integration


def test_what_computes_wrongly_is_not_installed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check_says(case.work, monkeypatch, 0.3)
    error = case.refused()
    assert "computes wrongly on this GPU: relative error of forward 3.0e-01" in error.message
    assert "the next setup compiles it anew" in error.hint
    assert str(case.home.log_file("setup")) in error.hint
    assert case.installed() == ""
    assert case.stored() == []
    check_says(case.work, monkeypatch, 1e-3)
    assert case.ensure().source == "built"
    assert len(case.objects()) == 2 * OBJECTS


def test_a_wheel_that_does_not_load_is_not_installed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check_ends(case, monkeypatch, "ImportError: /t/flash_attn_2_cuda.so: undefined symbol: _ZN3c105Error")
    error = case.refused()
    assert "undefined symbol: _ZN3c105Error" in error.message
    assert "was removed from" in error.hint
    assert case.installed() == ""
    assert case.stored() == []


class InterruptsCheck(Recorder):
    """Presses Ctrl-C when the check on the GPU begins."""

    def started(self, step: str) -> None:
        if step == VERIFY:
            raise KeyboardInterrupt
        super().started(step)


def test_a_build_is_not_lost_when_its_check_is_interrupted(case: Case) -> None:
    with pytest.raises(KeyboardInterrupt):
        case.ensure(progress=InterruptsCheck())
    assert case.verified() is None
    assert case.installed() == ""
    spec = ensure.plan_wheel(VERSION, ensure.read_target(case.python), MACHINE.gpus)
    assert find_wheel(case.home.wheels, spec) is None, "a bundle would take what nobody has checked"
    assert explain_flash_attn(case.home, case.python, VERSION, MACHINE)[0].endswith("which awaits its check on the GPU")
    before = case.objects()
    assert case.ensure().source == "kept"
    assert case.objects() == before
    assert case.installed() == VERSION
    assert case.verified() == {"forward": 1e-3, "causal": 2e-3}
    assert find_wheel(case.home.wheels, spec) is not None


@pytest.mark.parametrize(
    ("said", "status", "told"),
    [
        ("torch sees no GPU", 3, "the engine's torch cannot compute on the GPU: torch sees no GPU"),
        ("torch.OutOfMemoryError: CUDA out of memory.", 1, "the memory of the GPU is full"),
        ("ModuleNotFoundError: No module named 'einops'", 1, "No module named 'einops'"),
    ],
)
def test_a_check_that_cannot_be_made_does_not_cost_the_build(
    case: Case, monkeypatch: pytest.MonkeyPatch, said: str, status: int, told: str
) -> None:
    check_ends(case, monkeypatch, said, status)
    error = case.refused()
    assert told in error.message
    assert "the wheel is kept, and the next setup checks it" in error.hint
    assert (case.installed(), case.verified()) == ("", None)
    before = case.objects()
    check_says(case.work, monkeypatch, 1e-3)
    assert case.ensure().source == "kept"
    assert case.objects() == before


@pytest.fixture
def brought(case: Case) -> Path:
    """The wheel in the store is of a bundle that an older llmhost made; its file there."""
    case.ensure()
    (record,) = case.home.wheels.glob(f"*/{RECORD}")
    data = json.loads(record.read_text())
    del data["verified"]
    record.write_text(json.dumps(data))
    wheel = record.with_name(data["file"])
    in_bundle = case.work / wheel.name
    os.link(wheel, in_bundle)
    case.another_engine()
    return in_bundle


def test_a_wheel_of_an_older_llmhost_is_taken_and_checked(case: Case, brought: Path) -> None:
    assert case.ensure().source == "kept"
    assert case.installed() == VERSION
    assert case.verified() == {"forward": 1e-3, "causal": 2e-3}


def test_a_wheel_of_an_older_llmhost_that_computes_wrongly_leaves_the_store(
    case: Case, brought: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_says(case.work, monkeypatch, 0.3)
    assert "was removed from" in case.refused().hint
    assert (case.installed(), case.stored()) == ("", [])
    assert brought.is_file(), "the bundle is not ours to change"


def test_what_is_installed_and_computes_wrongly(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.ensure()
    check_says(case.work, monkeypatch, 0.3)
    error = case.refused()
    assert f"it was in the engine already: `uv pip uninstall --python {case.python} flash-attn`" in error.hint
