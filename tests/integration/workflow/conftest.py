"""A home that is used through the command line: real supervisord and Envoy, the fake engine in the place of vLLM."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmhost.env.manifest import Manifest, Spec, write_manifest
from llmhost.paths import Home
from tests.ports import free_port
from tests.samples import FLAGS

TESTS = Path(__file__).parents[2]
ENGINE_VERSION = "0.32.0"


@dataclass(frozen=True)
class Installed:
    """A home, and the command line to use it with."""

    home: Home
    port: int
    patience: float = 600
    """Seconds that a command may take."""

    def write(self, services: str, gateway: str = "") -> None:
        """llmhost.yaml with these services (the value of ``services:``, as YAML)."""
        text = f"gateway: {{port: {self.port}{gateway}}}\nservices:\n{textwrap.indent(textwrap.dedent(services), '  ')}"
        self.home.config_file.write_text(text, encoding="utf-8")

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "llmhost", "--home", str(self.home.root), *args]

    def run(self, *args: str, ok: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*args), capture_output=True, text=True, timeout=self.patience, check=False, cwd=TESTS.parent
        )
        assert done.returncode == ok, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def refused(self, *args: str, ok: int = 1) -> tuple[str, str]:
        """The error and the hint of a command that must fail; it says nothing else that looks like one."""
        lines = self.run(*args, ok=ok).stderr.splitlines()
        (error,) = (line for line in lines if line.startswith("error: "))
        (hint,) = (line for line in lines if line.startswith("hint: "))
        return error, hint

    def popen(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=TESTS.parent,
        )  # fmt: skip

    def status(self) -> dict[str, Any]:
        done = subprocess.run(
            self.command("status", "--json"), capture_output=True, text=True, timeout=300, check=False
        )
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def pids(self) -> dict[str, Any]:
        status = self.status()
        engines = {r["name"]: (r["pid"], r["engine_pid"]) for s in status["services"] for r in s["replicas"]}
        return {"supervisor": status["supervisor"]["pid"], "gateway": status["gateway"]["pid"], **engines}

    def model(self, name: str = "model", architecture: str = "Qwen3ForCausalLM") -> str:
        """A model directory with everything that is read before an engine starts."""
        folder = self.home.root.parent / name
        folder.mkdir(exist_ok=True)
        config = {
            "architectures": [architecture], "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8,
            "max_position_embeddings": 128, "torch_dtype": "bfloat16", "num_labels": 1,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        header = json.dumps({"w": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        return str(folder)

    def large_model(self) -> str:
        """One whose weights take half of the memory of this machine, and nothing of its disk."""
        folder = Path(self.model("large"))
        half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        header = json.dumps({"w": {"dtype": "U8", "shape": [half], "data_offsets": [0, half]}}).encode()
        with (folder / "model.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + half)
        return str(folder)


def wait_for(what: Callable[[], Any], seconds: float = 300) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.05)
    return answer


@contextmanager
def short_directory() -> Iterator[Path]:
    """Sockets in it have paths that are short enough."""
    directory = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def home_in(directory: Path, name: str = "h", engines: Path | None = None) -> Iterator[Installed]:
    """A home with the fake engine, or with the engines that lie in another home; it is down afterwards."""
    made = Installed(Home(directory / name), free_port(), 600 if engines is None else 1200)
    made.home.root.mkdir()
    if engines is None:
        make_engine(made.home)
    else:
        (made.home.root / "engines").symlink_to(engines)
    made.write("{}")
    try:
        yield made
    finally:
        subprocess.run(made.command("down"), capture_output=True, timeout=300, check=True)
        assert leftovers(made.home) == []


@pytest.fixture
def place() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


@pytest.fixture
def installed(place: Path) -> Iterator[Installed]:
    with home_in(place) as made:
        yield made


def make_engine(home: Home) -> None:
    """An engine as `llmhost setup` leaves it, whose interpreter finds the fake in the place of vLLM's server."""
    directory = home.engine_dir("default")
    package = directory / "build/fake/vllm/entrypoints/openai"
    package.mkdir(parents=True)
    shutil.copy(TESTS / "fakes/engine.py", package / "api_server.py")
    command = directory / "build/fake/vllm/entrypoints/cli/main.py"  # `vllm serve`, for parts of a model
    command.parent.mkdir()
    shutil.copy(TESTS / "fakes/engine.py", command)
    python = directory / "build/bin/python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nPYTHONPATH={directory}/build/fake exec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    packages = {"torch": "2.13.0+cpu", "transformers": "5.19.0", "vllm": ENGINE_VERSION}
    for name, number in packages.items():
        (directory / f"build/lib/python3.11/site-packages/{name}-{number}.dist-info").mkdir(parents=True)
    version = ".".join(map(str, sys.version_info[:3]))
    spec = Spec("venv", "cpu", None, None)
    write_manifest(directory, Manifest(spec, "build", version, packages, FLAGS, ("hermes",), ("qwen3",), "", 1.0))


def leftovers(home: Home) -> list[str]:
    """Command lines of processes that belong to this home, and sockets in it."""
    found = [str(p) for p in home.run.iterdir() if p.is_socket()] if home.run.exists() else []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes()
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(home.root).encode() in words or f"LLMHOST_PROGRAM={home.root}:".encode() in environment:
                found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found


def interrupt(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Ctrl-C, then the exit status and what was said on stderr."""
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    return process.returncode, err
