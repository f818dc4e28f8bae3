"""The parts of the report that need no GPU: the shapes of its models, and the pages that it writes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llmhost.demo
from llmhost.env.manifest import read_manifest, write_manifest
from llmhost.facts import VllmFlag
from llmhost.paths import Home
from llmhost.probe.model import read_model
from tests.integration.workflow.conftest import free_port, make_engine

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import render_report  # noqa: E402
import report  # noqa: E402
import shapes  # noqa: E402

DEMO = Path(llmhost.demo.__path__[0])
FACTS = {
    "gpus": [{"name": "NVIDIA H200", "total": 143771 * 2**20}], "driver": {"version": "580.159.04"},
    "host": {"cores": list(range(16)), "memory_total": 128 * 2**30}, "system": "Ubuntu 24.04", "kernel": "6.8",
}  # fmt: skip


@pytest.fixture
def place() -> Iterator[Path]:
    """Paths of sockets must be short."""
    directory = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


def served(planned: int, measured: int | None, seconds: float) -> dict[str, Any]:
    service = {"planned_mib": planned, "measured_mib": measured, "seconds": seconds}
    return {
        "state": "done", "began": 1796000000.0, "took": 400.0, "cpu": False, "facts": FACTS,
        "engine": {"vllm_version": "0.26.0", "device": "cuda"},
        "contexts": {"chat": 8192, "embed": 512, "rerank": 512},
        "services": dict.fromkeys(("chat", "embed", "rerank"), service),
        "answers": [
            {"name": "chat", "ok": True, "detail": "24 tokens", "seconds": 0.5},
            {"name": "embed", "ok": False, "detail": "HTTPError: 503 | no"},
        ],
    }  # fmt: skip


def write(out: Path, **results: dict[str, Any]) -> None:
    for step, entry in results.items():
        (out / f"{step.replace('_', '-')}.json").write_text(json.dumps(entry))


@pytest.mark.parametrize(
    ("kind", "billions", "context"), [("chat", 7.6156, 32768), ("embed", 0.3351, 512), ("rerank", 0.2780, 512)]
)
def test_models_have_their_real_sizes_and_take_no_room(
    tmp_path: Path, kind: str, billions: float, context: int
) -> None:
    """Parameters as the model cards of Qwen2.5-7B, bert-large-uncased and bge-reranker-base (278 million) have them."""
    made = shapes.write_models(tmp_path, DEMO)
    facts = read_model(made[kind])
    assert (facts.kind, facts.context_length) == (kind, context)
    assert facts.parameters / 1e9 == pytest.approx(billions, rel=1e-3)
    assert sum(f.stat().st_blocks * 512 for f in made[kind].rglob("*")) < 20_000_000


def test_every_id_of_the_chat_model_is_a_token(tmp_path: Path) -> None:
    made = shapes.write_models(tmp_path, DEMO, tiny=True)
    data = json.loads((made["chat"] / "tokenizer.json").read_text())
    ids = set(data["model"]["vocab"].values()) | {token["id"] for token in data["added_tokens"]}
    assert ids == set(range(json.loads((made["chat"] / "config.json").read_text())["vocab_size"]))


def test_nothing_measured_says_so(tmp_path: Path) -> None:
    page = render_report.render(render_report.read_results(tmp_path))
    assert "No step has looked at the host yet." in page
    assert page.count("not done") == len(render_report.ORDER)
    assert "| model | kind |" not in page


def test_the_page_and_the_table_of_planning(tmp_path: Path) -> None:
    steps = [{"name": "flash-attn", "detail": "2.8.3.post2, built; relative error: forward 2.0e-03", "seconds": 990.0}]
    write(
        tmp_path,
        install={"state": "done", "took": 90, "seconds": 88.0, "bundle": {"files": 5, "bytes": 2e8}, "facts": FACTS},
        flash_attn={"state": "done", "took": 995, "seconds": 990.0, "plan": ["jobs: 16"], "setup": {"steps": steps}},
        cold=served(75816, 75988, 210.4),
        warm={"state": "failed", "took": 3, "error": "Failed: llmhost up chat"},
    )
    (tmp_path / "remarks.md").write_text("Another program used the GPU.\n")
    shutil.copytree(HERE.parents[1] / "docs", tmp_path / "docs")
    written = render_report.write(tmp_path, tmp_path / "docs")
    assert [file.name for file in written] == ["gpu.md", "planning.md"]
    page = written[0].read_text()
    row = "| cold | Qwen2.5-7B shape | chat | 8,192 | 75,988 MiB | 75,816 MiB | -0.2% |"
    for words in (
        "NVIDIA H200 (143,771 MiB); driver 580.159.04; 16 cores, 128 GiB", "5 files (200 MB)", "in 88 s", "16.5 min",
        "relative error: forward 2.0e-03", "    jobs: 16", "| Qwen2.5-7B shape | 210 |", row, "**wrong**: HTTPError",
        "| warm | failed | – | – | 3 s | Failed: llmhost up chat |", "| long | not done |",
        "| cold | done | 2026-11-30 | 1 GPU, 16 cores | 400 s |  |", "Another program used the GPU.",
    ):  # fmt: skip
        assert words in page
    planning = written[1].read_text()
    assert row in planning
    again = render_report.write(tmp_path, tmp_path / "docs")[1].read_text()
    assert again == planning


def test_one_model_on_two_gpus(tmp_path: Path) -> None:
    failed = {"ok": False, "error": "RuntimeError: no | way"}
    ways = {"mp": {"ok": True, "seconds": 84.4, "text": "Paris"}, "ray": failed}
    nodes = {"two nodes mp": {"ok": True, "seconds": 201.0, "again": 59.2}, "two nodes tensor": {"ok": False}}
    speeds = {"one": {"ok": True, "seconds": 54.0, "tokens_per_second": {"1": 211.7, "32": 5817.1}}, "ray": failed}
    write(
        tmp_path,
        spanning={"state": "failed", "took": 9, "error": "failed: ray", "ways": ways | nodes},
        parallel={"state": "failed", "took": 9, "error": "failed: ray", "ways": speeds},
    )
    page = render_report.render(render_report.read_results(tmp_path))
    for row in (
        "| tensor parallel 2 | vLLM | ok | 84 | – |",
        "| tensor parallel 2 | Ray | **failed**: RuntimeError: no / way | – | – |",
        "| pipeline parallel 2 on two nodes | vLLM | ok | 201 | 59 |",
        "| tensor parallel 2 on two nodes | vLLM | **failed**: a wrong answer | – | – |",
        "| one GPU | 54 | 212 | 5,817 |",
        "| two, Ray | **failed**: RuntimeError: no / way | – | – |",
    ):
        assert row in page


@pytest.mark.parametrize(
    ("planned", "measured", "warm", "good"),
    [
        (1779, 1856, False, True), (1779, 1880, False, False), (1865, 1617, False, True), (1865, 1500, False, False),
        (1865, 1500, True, True), (1779, 1880, True, False), (None, None, False, True),
    ],
)  # fmt: skip
def test_memory_is_as_planned_or_the_step_fails(
    planned: int | None, measured: int | None, warm: bool, good: bool
) -> None:
    service = {"planned_mib": planned, "measured_mib": measured}
    assert (report._not_as_planned({"chat": service}, warm=warm) == []) is good


def test_all_does_what_is_not_done_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, cold={"state": "done"}, warm={"state": "failed", "error": "x"})
    done: list[str] = []

    def perform(step: str, _: report.Host) -> int:
        done.append(step)
        return int(step == "long")

    monkeypatch.setattr(report, "perform", perform)
    assert report.main(["all", "--cpu", "--out", str(tmp_path), "--llmhost", "llmhost"]) == 1
    assert done == ["warm", "carried", "long", "check", "spanning"]


def test_a_rehearsal_is_called_one(tmp_path: Path) -> None:
    write(tmp_path, cold={**served(0, None, 60.0), "cpu": True})
    page = render_report.render(render_report.read_results(tmp_path))
    assert "A rehearsal without a GPU" in page
    assert "Not measured." in page


@pytest.mark.integration
def test_a_rehearsal_with_the_fake_engine(place: Path) -> None:
    """The fake says one word, so the answer of chat is wrong; everything else is measured and written down."""
    home, out = Home(place / "h"), place / "out"
    home.root.mkdir()
    home.marker.touch()
    make_engine(home)
    directory = home.engine_dir("default")
    manifest = read_manifest(directory)
    assert manifest is not None
    write_manifest(
        directory, replace(manifest, flags={**manifest.flags, "load_format": VllmFlag("load_format", False)})
    )
    llmhost = ["--home", str(home.root), "--llmhost", f"{sys.executable} -m llmhost", "--port", str(free_port())]
    script = [sys.executable, str(HERE / "report.py"), "long", "--cpu", "--out", str(out), *llmhost]
    done = subprocess.run(script, text=True, capture_output=True, check=False, cwd=HERE.parents[1])
    entry = json.loads((out / "long.json").read_text())
    assert entry["error"] == "wrong answers: chat", done.stdout
    assert entry["contexts"] == {"chat": 2048, "embed": 256, "rerank": 256}
    assert all(service["seconds"] > 0 for service in entry["services"].values())
    assert [answer["ok"] for answer in entry["answers"]] == [False, True, True, True]
    assert {s["name"]: s["state"] for s in entry["status"]["services"]} == dict.fromkeys(shapes.NAMES, "ready")
    assert not home.supervisor_socket.exists()
    assert "A rehearsal without a GPU" in render_report.render(render_report.read_results(out))


def test_a_step_in_the_background_leaves_its_result(tmp_path: Path) -> None:
    script = [sys.executable, str(HERE / "report.py")]
    out = ["--out", str(tmp_path / "out"), "--home", str(tmp_path / "home"), "--llmhost", "/nonexistent/llmhost"]
    foreground = subprocess.run([*script, "install", *out], text=True, capture_output=True, check=False)
    assert foreground.returncode == 1
    assert "name the bundle" in foreground.stdout
    subprocess.run([*script, "cold", *out, "--background"], check=True, capture_output=True)
    result = tmp_path / "out/cold.json"
    for _ in range(600):
        if result.exists() and json.loads(result.read_text())["state"] != "running":
            break
        time.sleep(0.05)
    shown = subprocess.run([*script, "status", *out], text=True, capture_output=True, check=True).stdout
    assert "install    failed" in shown
    assert "cold       failed" in shown
    assert "/nonexistent/llmhost" in json.loads(result.read_text())["error"]
