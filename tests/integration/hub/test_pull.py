"""Pulling through the real clients of both hubs from a fake hub on a local port."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmhost.__main__ import run
from llmhost.hub.pull import MANIFEST
from tests.fakes.hub import COMMIT, FakeHub, Trouble, running
from tests.unit.probe.test_model import safetensors

pytestmark = pytest.mark.integration

Output = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch

BERT = {
    "architectures": ["BertModel"], "model_type": "bert", "num_hidden_layers": 2, "num_attention_heads": 2,
    "hidden_size": 32, "max_position_embeddings": 128,
}  # fmt: skip
WEIGHTS = safetensors({"w": 4_000_000})
FILES: dict[str, bytes] = {
    "config.json": json.dumps(BERT).encode(),
    "tokenizer_config.json": b"{}",
    "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"x" * 5000,
    "onnx/model.onnx": b"x" * 5000,
    "README.md": b"# A model",
    "logo.png": b"x" * 100,
}
NEEDED = {"config.json", "tokenizer_config.json", "1_Pooling/config.json", "model.safetensors", "README.md"}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running(FakeHub({"org/model": dict(FILES)})) as fake:
        yield fake


@pytest.fixture(params=["hf", "modelscope"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def home(tmp_path: Path, hub: FakeHub, monkeypatch: Patch) -> Path:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN", "MODELSCOPE_DOMAIN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LLMHOST_HOME", str(tmp_path / "h"))
    return tmp_path / "h"


def fetched(home: Path) -> set[str]:
    place = home / "models/org/model"
    return {str(p.relative_to(place)) for p in place.rglob("*") if p.is_file() and p.name != MANIFEST}


def weights_are_right(home: Path) -> bool:
    return (home / "models/org/model/model.safetensors").read_bytes() == WEIGHTS


def test_pull(home: Path, hub: FakeHub, scheme: str, capsys: Output) -> None:
    assert run(["pull", f"{scheme}:org/model", "--json"]) == 0
    (pulled,) = json.loads(capsys.readouterr().out)
    assert pulled["revision"] == COMMIT
    assert fetched(home) == NEEDED
    assert weights_are_right(home)
    lock = json.loads((home / "llmhost.lock").read_text())["models"][f"{scheme}:org/model"]
    assert lock["revision"] == COMMIT
    assert lock["files"]["model.safetensors"]["digest"] == f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
    assert not list((home / "models/org").glob(".*.partial"))
    asked = len(hub.transfers)
    assert run(["pull", f"{scheme}:org/model"]) == 0
    assert "was here already" in capsys.readouterr().out
    assert len(hub.transfers) == asked


def test_everything(home: Path, scheme: str) -> None:
    assert run(["pull", f"{scheme}:org/model", "--all"]) == 0
    assert fetched(home) == set(FILES)


def test_goes_on_after_a_cut(home: Path, hub: FakeHub, scheme: str) -> None:
    """The clients themselves continue where the line was cut."""
    hub.trouble["model.safetensors"] = Trouble(times=1, cut_at=2_500_000)
    assert run(["pull", f"{scheme}:org/model"]) == 0
    assert weights_are_right(home)
    ranges = [r for p, r in hub.transfers if p == "model.safetensors"]
    assert ranges[0] is None
    assert ranges[-1] is not None
    assert 0 < int(ranges[-1][6:-1]) <= 2_500_000


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)], ids=["kill", "ctrl-c"])
def test_goes_on_after_a_signal(home: Path, hub: FakeHub, scheme: str, number: int, code: int) -> None:
    """Ctrl-C does not wait for a transfer that hangs, either."""
    hub.hold = threading.Event()
    child = subprocess.Popen(
        [sys.executable, "-m", "llmhost", "pull", f"{scheme}:org/model"],
        stderr=subprocess.DEVNULL,
        env=os.environ.copy(),
    )
    partial = home / "models/org/.model.partial/model.safetensors.incomplete"
    deadline = time.monotonic() + 300
    while not (partial.exists() and partial.stat().st_size > 900_000):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(number)
    assert child.wait(300) == code
    had = partial.stat().st_size
    hub.hold.set()
    hub.hold = None
    assert run(["pull", f"{scheme}:org/model"]) == 0
    assert weights_are_right(home)
    assert [r for p, r in hub.transfers if p == "model.safetensors"] == [None, f"bytes={had}-"]
    assert run(["models", "verify"]) == 0


def test_wrong_bytes_are_fetched_again(home: Path, hub: FakeHub, scheme: str) -> None:
    hub.trouble["model.safetensors"] = Trouble(times=1, wrong=True)
    hub.trouble["config.json"] = Trouble(times=1, wrong=True)
    assert run(["pull", f"{scheme}:org/model"]) == 0
    assert weights_are_right(home)
    assert json.loads((home / "models/org/model/config.json").read_text()) == BERT


def test_always_wrong_bytes_are_never_accepted(home: Path, hub: FakeHub, scheme: str, capsys: Output) -> None:
    hub.trouble["README.md"] = Trouble(times=100, wrong=True)
    assert run(["pull", f"{scheme}:org/model"]) == 1
    error = capsys.readouterr().err
    assert "error: " in error
    assert "README.md" in error
    assert not (home / "models/org/model").exists()
    hub.trouble.clear()
    before = sum(p == "model.safetensors" for p, _ in hub.transfers)
    assert run(["pull", f"{scheme}:org/model"]) == 0
    if before:
        assert sum(p == "model.safetensors" for p, _ in hub.transfers) == before


def test_trouble_that_passes(home: Path, hub: FakeHub, scheme: str) -> None:
    hub.trouble["model.safetensors"] = Trouble(times=1, status=429, headers={"Retry-After": "0"})
    assert run(["pull", f"{scheme}:org/model"]) == 0
    assert weights_are_right(home)


def test_a_damaged_model_is_not_put_in_place(home: Path, hub: FakeHub, scheme: str, capsys: Output) -> None:
    """The hub itself has a file that is cut short: its digest fits, the file does not."""
    hub.repositories["org/model"]["model.safetensors"] = WEIGHTS[:-10]
    assert run(["pull", f"{scheme}:org/model"]) == 1
    assert "is cut short or damaged" in capsys.readouterr().err
    assert not (home / "models/org/model").exists()


def test_what_does_not_exist(home: Path, scheme: str, capsys: Output) -> None:
    assert run(["pull", f"{scheme}:org/nothing"]) == 1
    assert f"error: {scheme}:org/nothing" in (error := capsys.readouterr().err)
    assert "does not exist" in error
    assert run(["pull", f"{scheme}:org/model@v9"]) == 1
    assert "v9" in capsys.readouterr().err


def test_tokens(home: Path, hub: FakeHub, scheme: str, monkeypatch: Patch, capsys: Output) -> None:
    hub.token = "hf_right"
    assert run(["pull", f"{scheme}:org/model"]) == 1
    without = capsys.readouterr().err
    assert "may not see it" in without or "gated or private" in without
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "hf_wrong")
    assert run(["pull", f"{scheme}:org/model"]) == 1
    refused = capsys.readouterr().err
    assert "refuses the token" in refused
    assert "hf_wrong" not in refused
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("MODELSCOPE_API_TOKEN")
    monkeypatch.setattr("sys.stdin", open_line("hf_right\n"))
    assert run(["login", scheme, "--token-stdin", "--no-check"]) == 0
    assert (home / "tokens.json").stat().st_mode & 0o777 == 0o600
    assert run(["pull", f"{scheme}:org/model"]) == 0
    assert weights_are_right(home)
    written = [p for p in home.rglob("*") if p.is_file() and b"hf_right" in p.read_bytes()]
    assert written == [home / "tokens.json"]
    assert run(["login", scheme, "--forget"]) == 0
    assert "hf_right" not in (home / "tokens.json").read_text()


def open_line(text: str) -> object:
    from io import StringIO

    return StringIO(text)


def test_login_asks_the_hub(home: Path, hub: FakeHub, monkeypatch: Patch, capsys: Output) -> None:
    hub.token = "hf_right"
    monkeypatch.setattr("sys.stdin", open_line("hf_right\n"))
    assert run(["login", "hf", "--token-stdin"]) == 0
    assert "the token of somebody for hf is kept" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", open_line("hf_right\n"))
    assert run(["login", "hf"]) == 0
    monkeypatch.setattr("sys.stdin", open_line("hf_wrong\n"))
    assert run(["login", "hf", "--token-stdin"]) == 1
    assert json.loads((home / "tokens.json").read_text()) == {"hf": "hf_right"}


def test_gated(home: Path, hub: FakeHub, scheme: str, capsys: Output) -> None:
    hub.token, hub.gated = "hf_right", True
    assert run(["pull", f"{scheme}:org/model"]) == 1
    error = capsys.readouterr().err
    assert "is gated" in error
    assert f"{hub.url}/" in error


@pytest.mark.parametrize(("status", "told"), [(503, "is in trouble (status 503)"), (429, "asked too often")])
def test_hub_in_trouble(home: Path, hub: FakeHub, scheme: str, status: int, told: str, capsys: Output) -> None:
    hub.trouble[""] = Trouble(times=100, status=status, headers={"Retry-After": "0"})
    assert run(["pull", f"{scheme}:org/model"]) == 1
    assert told in capsys.readouterr().err


def test_hub_that_cannot_be_reached(home: Path, scheme: str, monkeypatch: Patch) -> None:
    from llmhost.errors import HubError
    from llmhost.hub.access import make_hub

    with pytest.raises(HubError, match=r"cannot fetch from http://127\.0\.0\.1:9") as e:
        make_hub(scheme, "http://127.0.0.1:9", None).snapshot("org/model", None)
    assert "ENDPOINT" in e.value.hint or "DOMAIN" in e.value.hint


def test_pinned(home: Path, hub: FakeHub, scheme: str, capsys: Output) -> None:
    """Another machine with this llmhost.lock gets the very same files, or an error."""
    assert run(["pull", f"{scheme}:org/model"]) == 0
    assert run(["models", "remove", "org/model"]) == 0
    hub.repositories["org/model"]["README.md"] = b"# Another"
    assert run(["pull", f"{scheme}:org/model"]) == 1
    assert "README.md is not what llmhost.lock has" in capsys.readouterr().err
    assert run(["pull", f"{scheme}:org/model", "--upgrade"]) == 0
    assert (home / "models/org/model/README.md").read_bytes() == b"# Another"


def test_a_pinned_revision_that_is_gone(home: Path, hub: FakeHub, scheme: str, capsys: Output) -> None:
    assert run(["pull", f"{scheme}:org/model"]) == 0
    assert run(["models", "remove", "org/model"]) == 0
    lock = home / "llmhost.lock"
    lock.write_text(lock.read_text().replace(COMMIT, "e" * 40))
    capsys.readouterr()
    assert run(["pull", f"{scheme}:org/model"]) == 1
    error = capsys.readouterr().err
    assert "revision eeeeeeeeeeee, which llmhost.lock pins, cannot be had" in error
    assert f"`llmhost pull --upgrade {scheme}:org/model`" in error
    assert run(["pull", f"{scheme}:org/model", "--upgrade"]) == 0


def test_a_repository_that_is_no_model(home: Path, hub: FakeHub, scheme: str, capsys: Output) -> None:
    hub.repositories["org/words"] = {"README.md": b"# Words", "words.gguf": b"GGUF"}
    assert run(["pull", f"{scheme}:org/words"]) == 0
    assert "it has no config.json and no weights that vLLM could load" in capsys.readouterr().err


def test_upgrade_takes_only_what_changed(home: Path, hub: FakeHub, scheme: str) -> None:
    assert run(["pull", f"{scheme}:org/model"]) == 0
    hub.repositories["org/model"]["README.md"] = b"# A newer one"
    hub.commit = "f" * 40
    before = len(hub.transfers)
    assert run(["pull", f"{scheme}:org/model", "--upgrade"]) == 0
    assert {path for path, _ in hub.transfers[before:]} == {"README.md"}
    assert weights_are_right(home)
    assert "f" * 40 in (home / "llmhost.lock").read_text()


def test_up_fetches_what_its_services_need(home: Path, scheme: str, capsys: Output) -> None:
    """The environment that is built next cannot be: nothing is started here."""
    home.mkdir()
    (home / "llmhost.yaml").write_text(f"""
        services:
          b: {{command: sleep 1, model_dir: '{scheme}:org/model'}}
          a: {{command: sleep 1, needs: b, environment: {{requirements: [./gone.whl]}}}}
    """)
    assert run(["up", "a"]) == 1
    assert "the environment a" in capsys.readouterr().err
    assert fetched(home) == NEEDED


def test_list_verify_prune(home: Path, scheme: str, capsys: Output) -> None:
    home.mkdir()
    (home / "llmhost.yaml").write_text(f"services: {{e: {{model: '{scheme}:org/model'}}}}")
    assert run(["pull"]) == 0
    by_hand = home / "models/me/mine"
    by_hand.mkdir(parents=True)
    capsys.readouterr()
    assert run(["models", "list", "--json"]) == 0
    mine, model = json.loads(capsys.readouterr().out)
    assert (model["name"], model["kind"], model["used_by"], model["revision"]) == ("org/model", "embed", ["e"], COMMIT)
    assert (mine["name"], mine["kind"], mine["source"]) == ("me/mine", "?", "")
    assert run(["models", "remove", "org/model"]) == 1
    assert "is used by e" in capsys.readouterr().err
    file = home / "models/org/model/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert run(["models", "verify"]) == 1
    said = capsys.readouterr()
    assert "model.safetensors: its content has changed" in said.out
    assert f"llmhost pull {scheme}:org/model" in said.err
    assert run(["pull"]) == 0
    assert "was here already" not in capsys.readouterr().out
    assert weights_are_right(home)
    assert run(["models", "verify"]) == 0
    assert run(["pull"]) == 0
    assert "was here already" in capsys.readouterr().out
    (home / "llmhost.yaml").write_text("services: {}")
    assert run(["models", "prune", "--yes"]) == 0
    assert not (home / "models/org").exists()
    assert by_hand.is_dir()


def test_full_disk(home: Path, hub: FakeHub, scheme: str, monkeypatch: Patch, capsys: Output) -> None:
    """Said before anything comes; a disk that fills up anyway is in test_full_disk.py."""
    monkeypatch.setattr("llmhost.hub.pull.DISK_MARGIN", 1 << 60)
    assert run(["pull", f"{scheme}:org/model"]) == 1
    error = capsys.readouterr().err
    assert "not enough disk space" in error
    assert "are to stay free" in error
    assert hub.transfers == []


def test_one_pull_at_a_time(home: Path, hub: FakeHub, scheme: str) -> None:
    hub.hold = threading.Event()
    codes: list[int] = []
    first = threading.Thread(target=lambda: codes.append(run(["pull", f"{scheme}:org/model"])))
    first.start()
    deadline = time.monotonic() + 300
    while not any(path == "model.safetensors" for path, _ in hub.transfers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert run(["pull", f"{scheme}:org/model"]) == 4
    hub.hold.set()
    first.join()
    assert codes == [0]


def test_inspect_before_the_download(home: Path, hub: FakeHub, scheme: str, capsys: Output) -> None:
    assert run(["inspect", f"{scheme}:org/model", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["path"]) == ("embed", f"{scheme}:org/model")
    assert facts["weight_bytes"] == pytest.approx(len(WEIGHTS), abs=1000)
    assert "model.safetensors" not in {path for path, _ in hub.transfers}
    assert not (home / "models").exists()
    home.mkdir(exist_ok=True)
    (home / "llmhost.yaml").write_text(f"services: {{e: {{model: '{scheme}:org/model'}}}}")
    assert run(["plan", "--gpus", "1x24"]) == 0
    assert "e-0" in capsys.readouterr().out
    assert run(["plan", "--gpus", "1x0.5"]) == 1
    assert "services.e: " in capsys.readouterr().err


def test_up_fetches_what_is_missing(home: Path, hub: FakeHub, scheme: str) -> None:
    from llmhost import config
    from llmhost.env import Silent
    from llmhost.models import pull_missing
    from llmhost.paths import Home

    made = config.parse(f"services: {{e: {{model: '{scheme}:org/model'}}, c: {{model: 'hf:other/unwanted'}}}}")
    pull_missing(Home(home), made, ("e",), Silent())
    assert weights_are_right(home)
    asked = len(hub.seen_tokens)
    pull_missing(Home(home), made, ("e",), Silent())
    assert len(hub.seen_tokens) == asked
