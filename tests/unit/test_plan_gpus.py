"""`llmhost plan --gpus` and the GPUs that it reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmhost import config
from llmhost.__main__ import run
from llmhost.errors import ConfigError, PlanError
from llmhost.facts import Gpu
from llmhost.probe.gpu_list import read_gpu_list

GIB = 2**30


@pytest.fixture
def home(tmp_path: Path) -> Path:
    text = "services: {chat: {model: 'demo:chat'}, embedding: {model: 'demo:embed'}, rerank: {model: 'demo:rerank'}}"
    (tmp_path / "llmhost.yaml").write_text(text)
    return tmp_path


def test_short_form() -> None:
    assert read_gpu_list("2x24GB") == tuple(Gpu(i, "", 24 * GIB, 24 * GIB) for i in range(2))
    mixed = read_gpu_list("2x24, 1x48")
    assert [(g.index, g.total // GIB) for g in mixed] == [(0, 24), (1, 24), (2, 48)]
    assert read_gpu_list("1 x 140.4")[0].total == int(140.4 * GIB)


def test_file(tmp_path: Path) -> None:
    file = tmp_path / "gpus.yaml"
    file.write_text("gpus: [{name: RTX 4090, memory: 24GiB, free: 20, count: 2}, {memory: 143771MiB}]")
    read = read_gpu_list(str(file))
    assert [(g.index, g.name, g.free) for g in read[:2]] == [(0, "RTX 4090", 20 * GIB), (1, "RTX 4090", 20 * GIB)]
    assert read[2] == Gpu(2, "", 143771 * 2**20, 143771 * 2**20)


@pytest.mark.parametrize(
    "text", ["", "gpus: 4", "gpus: [{memory: much}]", "gpus: [{memory: 8, colour: red}]", "gpus: [8]", "a: [",
             "gpus: [{memory: 8, free: 9}]", "gpus: [{memory: 8, count: 0}]"],
)  # fmt: skip
def test_wrong_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "gpus.yaml").write_text(text)
    with pytest.raises(PlanError, match="--gpus") as e:
        read_gpu_list(str(tmp_path / "gpus.yaml"))
    assert "4x24" in e.value.hint


def test_picture(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--home", str(home), "plan", "--gpus", "2x24"]) == 0
    output = capsys.readouterr().out
    assert output.count("GPU ") == 2
    for name in ("chat-0", "embedding-0", "rerank-0"):
        assert f" {name} " in output
    assert all(len(line) == 68 for line in output.splitlines() if line.startswith("  ["))


def test_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--home", str(home), "plan", "--gpus", "1x24", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["gpus"][0]["engines"] == ["chat-0", "embedding-0", "rerank-0"]
    chat = data["services"]["chat"]["chat-0"]
    assert chat["gpu_memory_bytes"] < 24 * GIB
    assert chat["sequences"] > 1


def test_values_are_checked_without_an_engine(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Values are checked without an engine; flags with the one that is there (test_values.py)."""
    (home / "llmhost.yaml").write_text("services: {c: {model: 'demo:chat', args: {max_model_len: 40000}}}")
    assert run(["--home", str(home), "plan", "--gpus", "1x24"]) == 1
    assert "services.c.args.max_model_len: 40000 tokens, but the model has 4096" in capsys.readouterr().err


def test_what_does_not_fit(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--home", str(home), "plan", "--gpus", "1x3"]) == 1
    error = capsys.readouterr().err
    assert "of GPU memory are missing" in error
    assert "use 2 GPUs of 3 GiB" in error


@pytest.mark.parametrize("gpus", ["0", "-1", "[]", "[-1]", "[1, 1]", "all", "true"])
def test_gpus_that_cannot_be(gpus: str) -> None:
    with pytest.raises(ConfigError, match=r"services\.c(\.|: )gpus"):
        config.parse(f"services: {{c: {{model: /m, gpus: {gpus}}}}}")


@pytest.mark.parametrize(("gpus", "read"), [("auto", "auto"), ("2", 2), ("[0, 3]", [0, 3])])
def test_gpus(gpus: str, read: object) -> None:
    assert config.parse(f"services: {{c: {{model: /m, gpus: {gpus}}}}}").services["c"].gpus == read
