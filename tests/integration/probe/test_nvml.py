"""The driver's library, with a stand-in of it: there is no GPU here. It is a real shared library, loaded as that is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.boot.test_gpus import home_with

pytestmark = pytest.mark.integration

SOURCE = """
#include <stdio.h>
#include <stdlib.h>
static FILE *told(void) { return fopen(getenv("FAKE_GPUS"), "r"); }
int nvmlInit_v2(void) { FILE *f = told(); if (!f) return 9; fclose(f); return 0; }  /* NVML_ERROR_DRIVER_NOT_LOADED */
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) {
  FILE *f = told();
  if (!f) return 15;  /* NVML_ERROR_GPU_IS_LOST */
  int failed = fscanf(f, "%u", count) != 1;
  fclose(f);
  return failed ? 999 : 0;  /* NVML_ERROR_UNKNOWN */
}
"""
COUNT = "from llmhost.probe.nvml import gpu_count; print(gpu_count())"
AWAIT = """
import sys
from pathlib import Path
from llmhost.boot import gpus
from llmhost.paths import Home
print("waiting", flush=True)
print(gpus.await_gpus(Home(Path(sys.argv[1])), print, look=lambda: gpus.Look(gpus.look().gpus, ()), poll=0.05))
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says how many GPUs there are; without it the driver is not loaded."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build a library in the place of the driver's")
    library = tmp_path / "lib/libnvidia-ml.so.1"
    library.parent.mkdir()
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-x", "c", "-o", str(library), "-"], input=SOURCE.encode(), check=True
    )
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    monkeypatch.setenv("FAKE_GPUS", str(tmp_path / "gpus"))
    return tmp_path / "gpus"


def python(code: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


@pytest.mark.parametrize(("said", "count"), [("8", 8), ("0", 0), ("?", 0), (None, 0)])
def test_how_many_gpus_the_driver_shows(driver: Path, said: str | None, count: int) -> None:
    if said is not None:
        driver.write_text(said)
    with python(COUNT) as process:
        assert process.communicate(timeout=300)[0] == f"{count}\n"


def test_the_boot_waits_for_the_gpus_of_the_plan(driver: Path, tmp_path: Path) -> None:
    """None, then one of two, then both: each time the driver is asked anew."""
    (tmp_path / "h").mkdir()
    home = home_with(tmp_path / "h", (0, 1))
    with python(AWAIT, str(home.root)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        for present in ("1", "2"):
            assert process.poll() is None
            driver.with_suffix(".new").write_text(present)
            driver.with_suffix(".new").rename(driver)
        assert process.communicate(timeout=300)[0] == "True\n"
