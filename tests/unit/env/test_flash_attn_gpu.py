"""The script that checks flash-attn on a GPU, where torch alone cannot compute: no word about flash-attn then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmhost.env.flash_attn.verify import GPU_UNUSABLE, SCRIPT
from llmhost.env.python import script_command

TORCH = """
class cuda:
    def device_count():
        return {devices}

def ones(*size, device):
    raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\\nCompile with TORCH_USE_CUDA_DSA")
"""


@pytest.mark.parametrize(("devices", "said"), [(0, "torch sees no GPU"), (1, "are busy or unavailable")])
def test_a_gpu_that_cannot_be_used_is_no_fault_of_flash_attn(tmp_path: Path, devices: int, said: str) -> None:
    (tmp_path / "torch.py").write_text(TORCH.format(devices=devices))
    (tmp_path / "flash_attn.py").write_text("raise ImportError('it is not reached')")
    argv = script_command(sys.executable, SCRIPT)
    done = subprocess.run(argv, env={"PYTHONPATH": str(tmp_path)}, text=True, capture_output=True, check=False)
    assert done.returncode == GPU_UNUSABLE
    assert done.stderr.splitlines()[-1].endswith(said)
