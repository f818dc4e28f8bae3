"""The check of flash-attn with the torch of a real engine, on the processor: it finds what is wrong.

No flash-attn runs without a GPU, so a stand-in computes with torch in 16 bits what flash-attn would.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from llmhost.env.flash_attn.verify import LARGEST_ERROR, SCRIPT
from llmhost.env.python import script_command
from tests.e2e.conftest import Installation

STAND_IN = """
import torch

__version__ = "2.99.0"
WRONG = {wrong!r}

def flash_attn_func(q, k, v, causal=False):
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    if causal:
        late = 0 if WRONG == "alignment" else scores.shape[-1] - scores.shape[-2]
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(late + 1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2)

def flash_attn_varlen_func(q, k, v, ends_q, ends_k, longest_q, longest_k, causal=False):
    ends = ends_q.tolist()
    if WRONG == "lengths":
        ends = [0, *[end + 1 for end in ends[1:-1]], ends[-1]]
    parts = [[x[None, a:b] for x in (q, k, v)] for a, b in zip(ends, ends[1:])]
    return torch.cat([flash_attn_func(*part, causal=causal)[0] for part in parts])
"""


def check(installation: Installation, folder: Path, wrong: str) -> subprocess.CompletedProcess[str]:
    python = next(installation.home.glob("engines/default/*/bin/python"))
    (folder / "flash_attn.py").write_text(STAND_IN.format(wrong=wrong))
    argv = script_command(python, SCRIPT, "cpu")
    return subprocess.run(argv, env={"PYTHONPATH": str(folder)}, text=True, capture_output=True, check=False)


def test_what_computes_attention_passes(installation: Installation, tmp_path: Path) -> None:
    done = check(installation, tmp_path, "")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["version"] == "2.99.0"
    assert set(report["errors"]) == {"forward", "causal", "gqa", "varlen", "backward"}
    assert 0 < max(report["errors"].values()) < LARGEST_ERROR


@pytest.mark.parametrize(
    ("wrong", "found"),
    [("alignment", "causal"), ("lengths", "varlen")],
)
def test_each_mistake_is_found_by_its_case(installation: Installation, tmp_path: Path, wrong: str, found: str) -> None:
    done = check(installation, tmp_path, wrong)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["errors"][found] > LARGEST_ERROR
