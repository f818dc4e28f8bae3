"""What conda and its like say when they fail -> one sentence and a remedy. Texts of conda 24/25 and micromamba 2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from ruamel.yaml import YAML

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
    asked = conda.packages_of(Engine(kind="conda", python="3.11", cuda_compiler=True), CUDA)
    assert asked[:2] == ["python=3.11.*", "pip"]
    assert "cuda-version=13.0" in asked
    assert "cuda-nvcc" in asked
    assert conda.packages_of(Engine(kind="conda"), CUDA) == ["python=3.12.*", "pip"]
    assert conda.packages_of(Engine(kind="conda", python="3.12.3"), CUDA)[0] == "python=3.12.3"


def test_which_tool() -> None:
    programs = (Program("micromamba", "/m/micromamba", "2.0"), Program("conda", "/c/conda", "25.1"))
    assert conda.find_tool(replace(CPU_BOX, conda=programs)) == "/c/conda"
    assert conda.find_tool(replace(CPU_BOX, conda=programs[:1])) == "/m/micromamba"
    with pytest.raises(EngineError, match="there is no conda"):
        conda.find_tool(CPU_BOX)


SECRET = "https://u:pw@mirror/conda-forge"


@pytest.mark.parametrize(
    ("tool", "environ", "variables", "proxies"),
    [
        ("conda", {}, {"CONDARC"}, None),  # reads the user's files itself
        ("conda", {"CONDARC": "named.yml"}, {"CONDARC"}, {"http": "named"}),
        ("micromamba", {}, {"CONDARC", "MAMBARC"}, {"http": "mambarc", "https": "condarc"}),
        ("mamba", {"CONDARC": "named.yml"}, {"CONDARC", "MAMBARC"}, {"http": "named"}),
    ],
)
def test_a_channel_with_a_password_is_a_name_in_a_private_file(
    tool: str,
    environ: dict[str, str],
    variables: set[str],
    proxies: dict[str, str] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On top of what the tool would not read any more because of that file."""
    for name in ("CONDARC", "MAMBARC", "MAMBA_ROOT_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environ.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    (tmp_path / "named.yml").write_text("proxy_servers: {http: named}\n")
    (tmp_path / ".mambarc").write_text("proxy_servers: {http: mambarc}\n")
    (tmp_path / ".condarc").write_text("proxy_servers: {http: hidden, https: condarc}\n")
    engine = Engine(kind="conda", channels=["own", SECRET])
    with conda._channels(f"/opt/bin/{tool}", engine, tmp_path) as (words, env):
        assert words == ["--override-channels", "--channel", "own", "--channel", "llmhost-1"]
        assert set(env) == variables
        file = Path(env["CONDARC"])
        assert (file.name, file.stat().st_mode & 0o777) == (".condarc", 0o600)
        said = YAML(typ="safe").load(file.read_text())
        assert said["custom_multichannels"] == {"llmhost-1": [SECRET]}
        assert said.get("proxy_servers") == proxies
    assert not file.exists()
    assert not list(tmp_path.glob(".conda.*"))
