"""A driver without a GPU: the library NVML itself is a stand-in (tests/fakes/nvml.c), all above it is real."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

FAKES = Path(__file__).parents[2] / "fakes"


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for LD_LIBRARY_PATH."""
    folder = tmp_path_factory.mktemp("nvml")
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", FAKES / "nvml.c"], check=True, timeout=60
    )
    return folder
