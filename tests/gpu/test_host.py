"""On a machine with an NVIDIA GPU: what llmhost says of it. Skipped elsewhere; report.py does the long part."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from llmhost.env.flash_attn.plan import archs_of
from llmhost.probe.gpus import read_gpus

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA driver on this machine"),
]


def test_gpus_are_those_of_nvidia_smi() -> None:
    ask = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    listed = subprocess.run(ask, text=True, capture_output=True, check=True).stdout.splitlines()
    seen = [f"{gpu.name}, {gpu.total // 2**20}" for gpu in read_gpus().gpus]
    assert seen == listed


def test_flash_attention_has_code_for_them() -> None:
    gpus = read_gpus().gpus
    assert all(gpu.capability for gpu in gpus)
    assert archs_of(gpus)
