"""install.sh of a bundle of which the small files did not arrive as they were made."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmhost import __version__
from llmhost.env.uv import find_uv
from llmhost.paths import Home
from tests.integration.bundle.test_bundle import create, small_engines
from tests.integration.env.conftest import home, own_configuration, progress, wheels, work
from tests.integration.env.recorder import Recorder
from tests.integration.env.wheels import make_wheel

__all__ = ["home", "own_configuration", "progress", "small_engines", "wheels", "work"]
pytestmark = pytest.mark.integration

HTML = b"<!DOCTYPE html>\n<html><body>Please log in to the company network</body></html>\n"


@pytest.fixture(params=[None, 1_000_000], ids=["files", "pieces"])
def bundle(request: pytest.FixtureRequest, home: Home, work: Path, progress: Recorder) -> Path:
    """Below a directory with a space in its name."""
    (work / "a place").mkdir()
    return create(home, work / "a place/b", progress, split=request.param)


def run(bundle: Path, *options: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """``install.sh`` with the Python of these tests."""
    where = ["--home", str(bundle.parent / "their home"), "--prefix", str(bundle.parent / "their prefix")]
    argv = ["sh", str((bundle if cwd is None else bundle.relative_to(cwd)) / "install.sh"), *where, *options]
    env = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=env, cwd=cwd)


def alter(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content.replace(b"import", b"imp:rt", 1) if b"import" in content else b"[" + content[1:])


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def assert_untouched(bundle: Path) -> None:
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["b", "b.log"]
    assert not (bundle / "__pycache__").exists()


def test_a_bundle_as_it_was_made(bundle: Path) -> None:
    verified = run(bundle, "--verify")
    assert (verified.returncode, verified.stderr) == (0, "")
    assert verified.stdout.splitlines()[-1] == "everything is there and right"
    assert_untouched(bundle)


@pytest.mark.parametrize("split", [None, 1_000_000])
def test_it_installs(
    home: Home, work: Path, progress: Recorder, wheels: Path, monkeypatch: pytest.MonkeyPatch, split: int | None
) -> None:
    """An llmhost that says how it was called, by a uv that is the real one."""
    own = {f"llmhost-{__version__}.data/scripts/llmhost": '#!/bin/sh\necho "called: $*"\n'}
    llmhost = make_wheel(work / "own", "llmhost", __version__, own, ("uv",))
    make_wheel(wheels, "uv", "1.0", {"uv-1.0.data/scripts/uv": f'#!/bin/sh\nexec "{find_uv()}" "$@"\n'})
    monkeypatch.setattr("llmhost.bundle.create.make_own_wheel", lambda *_: llmhost)
    (work / "a place").mkdir()
    bundle = create(home, work / "a place/b", progress, parts=("llmhost",), split=split)
    done = run(bundle)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"called: --home {work}/a place/their home bundle install " in done.stdout
    assert (work / "a place/their prefix/bin/llmhost").exists()


@pytest.mark.parametrize("damage", [alter, cut])
@pytest.mark.parametrize("name", ["bootstrap.py", "carried.py", "bundle.json"])
def test_altered_or_cut(bundle: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(bundle / name)
    for options in (["--verify"], []):
        done = run(bundle, *options)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines() == [
            f"error: {bundle}: {name} is altered or cut short",
            f"hint: copy it again: {name} (and SHA256SUMS, if that does not help)",
        ]
    assert_untouched(bundle)


def test_several_at_once(bundle: Path) -> None:
    (bundle / "carried.py").unlink()
    (bundle / "bootstrap.py").write_bytes(HTML)
    done = run(bundle, "--verify")
    assert done.returncode == 1
    assert "bootstrap.py is altered or cut short; carried.py is missing" in done.stderr
    assert "hint: copy them again: bootstrap.py carried.py" in done.stderr


def test_no_sums(bundle: Path) -> None:
    sums = bundle / "SHA256SUMS"
    sums.unlink()
    done = run(bundle, "--verify")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {sums} is missing\nhint: copy it again: SHA256SUMS\n"
    sums.mkdir()
    done = run(bundle, "--verify")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"error: {sums} cannot be read: " in done.stderr


def test_sums_that_are_none(bundle: Path) -> None:
    for content in (b"", HTML, b"\xff\xfe\x00", b"0" * 40):
        (bundle / "SHA256SUMS").write_bytes(content)
        done = run(bundle, "--verify")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"error: {bundle / 'SHA256SUMS'} ")
        assert done.stderr.splitlines()[-1] == "hint: copy it again: SHA256SUMS"
        assert "Traceback" not in done.stderr


def test_a_script_that_is_altered_and_still_runs(bundle: Path) -> None:
    with (bundle / "install.sh").open("a") as script:
        script.write("\n")
    done = run(bundle, "--verify")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"error: {bundle}: install.sh is altered or cut short" in done.stderr


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_cut_script_does_nothing(work: Path, home: Home, progress: Recorder, shell: str) -> None:
    """Wherever it is cut; every line of what runs leaves a trace."""
    bundle = create(home, work / "b", progress, parts=("engine",))
    script, trace = bundle / "install.sh", work / "trace"
    whole = script.read_bytes()
    (work / "python").write_text(f'#!/bin/sh\necho ran >>"{trace}"\n')
    (work / "python").chmod(0o755)
    env = {**os.environ, "PYTHON": str(work / "python")}
    starts = whole.index(b"\n{") + len(b"\n{")
    for length in (*range(starts, len(whole) - 2, 61), *range(len(whole) - 40, len(whole) - 1)):
        script.write_bytes(whole[:length])
        done = subprocess.run([shell, str(script)], capture_output=True, check=False, env=env)
        assert done.returncode, whole[:length]
    assert not trace.exists()
    script.write_bytes(whole)
    assert subprocess.run([shell, str(script)], capture_output=True, check=False, env=env).returncode == 0
    assert trace.exists()


def test_a_page_in_place_of_the_script(bundle: Path) -> None:
    (bundle / "install.sh").write_bytes(HTML)
    done = run(bundle, "--verify")
    assert (bool(done.returncode), done.stdout) == (True, "")
    assert_untouched(bundle)


def test_from_its_own_directory_and_with_a_python_in_a_place_with_a_space(bundle: Path) -> None:
    """What lies around there is no module of Python's, and CDPATH leads nowhere else."""
    python = bundle.parent / "a python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (bundle.parent / "hashlib.py").write_text("raise SystemExit('not this one')")
    done = run(bundle, "--verify", cwd=bundle.parent, PYTHON=str(python), CDPATH=str(bundle.parent))
    assert (done.returncode, done.stderr) == (0, "")
    done = run(bundle, "--verify", cwd=bundle, PYTHON=str(python))
    assert (done.returncode, done.stderr) == (0, "")


def test_the_bootstrap_by_itself_names_an_altered_carried_py(bundle: Path) -> None:
    alter(bundle / "carried.py")
    argv = [sys.executable, str(bundle / "bootstrap.py"), "--verify"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: carried.py is damaged (SyntaxError: ")
    assert done.stderr.splitlines()[-1] == "hint: copy it again: carried.py"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a home away")
def test_root_installs_nothing_into_a_home_of_somebody_else(bundle: Path) -> None:
    theirs = bundle.parent / "their home"
    theirs.mkdir()
    (theirs / ".llmhost").touch()
    os.chown(theirs, 4711, 4711)
    done = run(bundle)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {theirs} belongs to 4711, and you are root\nhint: install llmhost alone: ")
    assert [path.name for path in theirs.iterdir()] == [".llmhost"]
    assert not (bundle.parent / "their prefix").exists()
