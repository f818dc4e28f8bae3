"""One home and an engine to put the stand-in for flash-attn into; a script stands in for the check on a GPU."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path

import pytest

from llmhost.env.flash_attn import ensure_flash_attn, verify
from llmhost.env.flash_attn.ensure import FlashAttnReport
from llmhost.env.flash_attn.store import RECORD
from llmhost.env.log import SetupLog
from llmhost.env.pip_config import read_pip_options, uv_settings
from llmhost.env.uv import Uv, find_uv
from llmhost.errors import EngineError
from llmhost.facts import CudaToolkit, Gpu, HostFacts, MachineFacts, Program
from llmhost.paths import Home
from llmhost.run import capture
from tests.integration.env.flash_attn_like import VERSION, make_engine
from tests.integration.env.recorder import Recorder

GIB = 2**30
CHECK = """
    import json, flash_attn
    print(json.dumps({{"version": flash_attn.__version__, "errors": {{"forward": {error}, "causal": 2e-3}}}}))
"""
MACHINE = MachineFacts(
    llmhost="0", machine="x86_64", system="", kernel="", glibc=(2, 36), shm_total=0, shm_free=0, disk_free={},
    host=HostFacts((0, 1), 24 * GIB, 20 * GIB), gpus=(Gpu(0, "H200", 144 * GIB, 144 * GIB, (9, 0)),),
    toolkits=(CudaToolkit("/usr/local/cuda-13.0", ("PATH",), (13, 0), nvcc=True, headers=True, cudart=True),),
    compilers=(Program("g++", "/usr/bin/g++", "12"),),
)  # fmt: skip


class Case:
    """One home with an engine to put flash-attn into."""

    def __init__(self, home: Home, work: Path, progress: Recorder) -> None:
        home.root.mkdir(parents=True, exist_ok=True)
        self.home, self.work, self.progress = home, work, progress
        self.machine = MACHINE
        self.uv_path = find_uv()
        self.python = make_engine(work / "engine", self.uv_path)
        self.compiled = work / "compiled.txt"

    def ensure(self, python: Path | None = None, progress: Recorder | None = None) -> FlashAttnReport:
        with SetupLog(self.home.log_file("setup")) as log:
            settings = uv_settings(read_pip_options(), os.environ)
            uv = Uv(self.uv_path, settings, self.home.root, log, progress or self.progress, {})
            return ensure_flash_attn(self.home, python or self.python, VERSION, self.machine, uv)

    def refused(self) -> EngineError:
        with pytest.raises(EngineError) as error:
            self.ensure()
        return error.value

    def objects(self) -> list[str]:
        """Files that were compiled, in their order."""
        return self.compiled.read_text().split() if self.compiled.exists() else []

    def another_engine(self) -> None:
        """One without flash-attn takes the place of the engine."""
        self.python = make_engine(self.work / "another", self.uv_path)

    def stored(self) -> list[Path]:
        """What is in the store, but for sources."""
        return [file for file in self.home.wheels.rglob("*") if file.is_file() and file.parent.name != "sources"]

    def verified(self) -> dict[str, float] | None:
        """What the one record in the store says of the check."""
        (record,) = self.home.wheels.glob(f"*/{RECORD}")
        errors: dict[str, float] | None = json.loads(record.read_text())["verified"]
        return errors

    def installed(self, python: Path | None = None) -> str:
        ask = "import flash_attn; print(flash_attn.__version__)"
        return capture([python or self.python, "-c", ask], check=False).stdout.strip()


def check_says(work: Path, monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    """There is no GPU here: a script that finds this error stands in for the check."""
    script = work / f"check-{error}.py"
    script.write_text(textwrap.dedent(CHECK.format(error=error)))
    monkeypatch.setattr(verify, "SCRIPT", script)


def check_ends(case: Case, monkeypatch: pytest.MonkeyPatch, said: str, status: int = 1) -> None:
    """The check ends with this last line and status."""
    script = case.work / "ends.py"
    script.write_text(f"import sys\nprint({said!r}, file=sys.stderr)\nsys.exit({status})\n")
    monkeypatch.setattr(verify, "SCRIPT", script)
