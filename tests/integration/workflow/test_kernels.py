"""Kernels that a bundle brought for the GPUs that were here before: whoever starts engines withdraws them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llmhost import planning, workflow
from llmhost.boot import phases
from llmhost.env.flashinfer import AOT
from llmhost.env.progress import Silent
from llmhost.facts import Gpu
from llmhost.paths import Home
from llmhost.planning import Inputs
from llmhost.probe.nvidia import Accelerators
from tests.integration.workflow.conftest import Installed

pytestmark = pytest.mark.integration

H200, B200 = Gpu(0, "NVIDIA H200", 1, 1, (9, 0)), Gpu(0, "NVIDIA B200", 1, 1, (10, 0))


@pytest.fixture
def link(installed: Installed) -> Path:
    """Where FlashInfer looks for kernels, which leads to some for an H200; nothing runs."""
    installed.write(f"chat: {{model: {installed.model()}}}")
    installed.run("up")
    installed.run("down")
    kernels = installed.home.engine_caches / "0.32.0-cuda-sm90" / "flashinfer"
    kernels.mkdir(parents=True)
    found = installed.home.engine_dir("default") / "build/lib/python3.12/site-packages" / AOT
    found.parent.mkdir(parents=True)
    found.symlink_to(kernels)
    return found


def start(installed: Installed, monkeypatch: pytest.MonkeyPatch, gpus: tuple[Gpu, ...]) -> None:
    """As the command does, on a machine with these GPUs."""
    monkeypatch.setattr(workflow, "read_gpus", lambda: Accelerators(gpus=gpus))
    workflow.start(installed.home, (), Silent())


def boot(installed: Installed, monkeypatch: pytest.MonkeyPatch, gpus: tuple[Gpu, ...]) -> None:
    """As the unit does before supervisord, on a machine with these GPUs."""
    read = planning.read_inputs

    def read_with_gpus(home: Home, insecure: bool) -> Inputs:
        ask = read(home, insecure)
        return replace(ask, machine=replace(ask.machine, gpus=gpus))

    monkeypatch.setattr(planning, "read_inputs", read_with_gpus)
    said: list[str] = []
    phases.prepare(installed.home, said.append)
    assert said == []


@pytest.mark.parametrize("begin", [start, boot])
def test_kernels_for_other_gpus_are_withdrawn_before_engines_start(
    installed: Installed,
    link: Path,
    monkeypatch: pytest.MonkeyPatch,
    begin: Callable[[Installed, pytest.MonkeyPatch, tuple[Gpu, ...]], None],
) -> None:
    begin(installed, monkeypatch, (H200,))
    assert link.is_symlink()
    installed.run("down")
    begin(installed, monkeypatch, (B200,))
    assert not os.path.lexists(link)


def test_kernels_that_cannot_be_withdrawn_are_told_and_hold_nothing_up(
    installed: Installed, link: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlink(_: Path) -> None:
        raise PermissionError(13, "Permission denied", str(link))

    monkeypatch.setattr(Path, "unlink", unlink)
    said: list[str] = []
    workflow.withdraw_kernels(installed.home, (B200,), said.append)
    assert said == [f"{link} has kernels for other GPUs than these: delete it"]
