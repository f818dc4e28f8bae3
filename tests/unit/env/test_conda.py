"""What conda and its like say when they fail -> one sentence and a remedy. Texts of conda 24/25 and micromamba 2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmhost.config import Engine
from llmhost.env import conda
from llmhost.env.log import SetupLog
from llmhost.env.releases import read_releases
from llmhost.errors import EngineError
from llmhost.facts import Program
from tests.machines import CPU_BOX

CUDA = next(r for r in read_releases() if r.device == "cuda")


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        (
            "PackagesNotFoundError: The following packages are not available from current channels:\n"
            "\n  - python=3.99*",
            "no channel has what is wanted: - python=3.99*",
            "engine.channels",
        ),
        (
            "error    libmamba Could not solve for environment specs\n    The following package could not be found\n"
            "    └─ python =3.99 * does not exist (perhaps a typo or a missing channel).\n"
            "critical libmamba Could not solve for environment specs",
            "no channel has what is wanted: └─ python =3.99 * does not exist",
            "engine.channels",
        ),
        (
            "LibMambaUnsatisfiableError: Encountered problems while solving:\n  - package cuda-nvcc-13.0 requires x",
            "the packages do not fit together: Encountered problems while solving",
            "engine.cuda_compiler",
        ),
        (
            "CondaHTTPError: HTTP 000 CONNECTION FAILED for url <https://conda.example/main/linux-64/repodata.json>",
            "a channel cannot be reached: CondaHTTPError: HTTP 000 CONNECTION FAILED",
            "proxy_servers",
        ),
        ("[Errno 28] No space left on device", "the disk is full", "free some disk space"),
        ("json.decoder.JSONDecodeError: Expecting value: line 1", "something that is no index", "proxy_servers"),
        ("ChecksumMismatchError: Conda detected a mismatch", "a package is damaged or altered", "conda clean"),
        ("something else\nfirst\nlast line", "conda cannot make the environment: last line", "see what it says"),
        ("", "it ended with status 1", "the log is"),
    ],
)
def test_refusals(said: str, message: str, hint: str, tmp_path: Path) -> None:
    with SetupLog(tmp_path / "setup.log") as log:
        error = conda._refusal(["/opt/conda/bin/conda", "create"], said.splitlines(), 1, log)
    assert message in error.message
    assert hint in error.hint
    assert str(tmp_path / "setup.log") in error.hint


def test_what_is_asked_for() -> None:
    asked = conda._wanted(Engine(kind="conda", python="3.11", cuda_compiler=True), CUDA)
    assert asked[:2] == ["python=3.11.*", "pip"]
    assert "cuda-version=13.0" in asked
    assert "cuda-nvcc" in asked
    assert conda._wanted(Engine(kind="conda"), CUDA) == ["python=3.12.*", "pip"]
    assert conda._wanted(Engine(kind="conda", python="3.12.3"), CUDA)[0] == "python=3.12.3"


def test_which_tool() -> None:
    programs = (Program("micromamba", "/m/micromamba", "2.0"), Program("conda", "/c/conda", "25.1"))
    assert conda.find_tool(replace(CPU_BOX, conda=programs)) == "/c/conda"
    assert conda.find_tool(replace(CPU_BOX, conda=programs[:1])) == "/m/micromamba"
    with pytest.raises(EngineError, match="there is no conda"):
        conda.find_tool(CPU_BOX)
