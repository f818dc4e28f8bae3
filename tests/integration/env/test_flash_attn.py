"""flash-attn into an engine: build, progress, interruption, the wheel that is kept, failures; with real uv and ninja.

The package is a stand-in that compiles nothing, the GPU check is one, too (the real one is in tests/e2e and, on a GPU,
in tests/gpu); everything between them is real.
"""

from __future__ import annotations

import json
import textwrap
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from llmhost import config
from llmhost.env import ensure_engine, find_engine
from llmhost.env.flash_attn import ensure, explain_flash_attn, source
from llmhost.env.flash_attn.compile import COMPILE
from llmhost.env.flash_attn.store import RECORD, kept_wheels
from llmhost.env.manifest import read_manifest
from llmhost.env.progress import Unit
from llmhost.env.python import script_command
from llmhost.env.releases import read_releases
from llmhost.errors import EngineError
from llmhost.paths import Home
from llmhost.run import capture
from tests.integration.env.flash_attn_case import MACHINE, Case
from tests.integration.env.flash_attn_like import (
    OBJECTS,
    TORCH,
    VERSION,
    lend_build_tools,
    make_engine,
)
from tests.integration.env.recorder import Recorder
from tests.integration.env.wheels import make_wheel

pytestmark = pytest.mark.integration


def counted(case: Case) -> list[str]:
    """What the bar of the compilation showed."""
    return [f"{e[2]}/{e[3]} {e[4]}" for e in case.progress.events if e[:2] == ("advanced", COMPILE)]


def test_it_is_compiled_kept_checked_and_installed(case: Case) -> None:
    report = case.ensure()
    assert (report.version, report.source, report.error) == (VERSION, "built", 2e-3)
    assert case.installed() == VERSION
    assert sorted(Path(f).name for f in case.objects()) == [f"kernel_{i:02}.cu" for i in range(OBJECTS)]
    assert case.progress.events[-1][1] == "install flash-attn"
    assert counted(case)[-1] == f"{OBJECTS}/{OBJECTS} objects"
    kept = case.home.wheels / report.key
    assert {f.suffix for f in kept.iterdir()} == {".whl", ".json"}
    record = json.loads((kept / RECORD).read_text())
    assert (record["torch"], record["cuda"], record["archs"], record["sha256"]) == (
        "2.11.0",
        [13, 0],
        [90],
        report.sha256,
    )
    assert record["verified"] == {"forward": 1e-3, "causal": 2e-3}
    assert not list((case.home.cache / "flash-attn").glob("*/src")), "objects of a finished build are not needed"
    assert [w.file for w in kept_wheels(case.home.wheels)] == [record["file"]]


def test_an_engine_of_python_3_10(case: Case) -> None:
    """It has no option -P: the stand-in refuses that as 3.10 does. Nothing beside our scripts is imported for it."""
    real = case.python.with_name("python-real")
    case.python.rename(real)
    case.python.write_text(
        f'#!/bin/sh\nfor word; do [ "$word" != -P ] || {{ echo "Unknown option: -P" >&2; exit 2; }}; done\n'
        f'exec -a {case.python} {real} "$@"\n'.replace("#!/bin/sh", "#!/bin/bash")
    )
    case.python.chmod(0o755)
    assert ensure.read_target(case.python).torch == "2.11.0"
    beside = case.work / "script.py"
    beside.write_text("import sys; print(sys.argv[1:], any(not f or f == sys.argv[1] for f in sys.path))")
    said = capture(script_command(case.python, beside, str(case.work)), cwd=case.work).stdout
    assert said == f"{[str(case.work)]} False\n"
    assert case.ensure().source == "built"


def test_the_next_engine_gets_the_kept_wheel_without_a_compiler(case: Case) -> None:
    case.ensure()
    before = case.objects()
    other = make_engine(case.work / "other", case.uv_path)
    case.machine = replace(MACHINE, toolkits=(), compilers=())
    report = case.ensure(other)
    assert report.source == "kept"
    assert case.installed(other) == VERSION
    assert case.objects() == before
    again = case.ensure(other)
    assert again.source == "installed"


class Interrupts(Recorder):
    """Presses Ctrl-C after so many objects."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def advanced(self, step: str, done: int, total: int, unit: Unit) -> None:
        if unit == "objects" and done >= self.after:
            raise KeyboardInterrupt
        super().advanced(step, done, total, unit)


def test_an_interrupted_build_goes_on_where_it_was(case: Case) -> None:
    with pytest.raises(KeyboardInterrupt):
        case.ensure(progress=Interrupts(5))
    assert case.installed() == ""
    assert not list(case.home.wheels.glob(f"*/{RECORD}"))
    first = case.objects()
    assert len(first) < OBJECTS
    case.ensure()
    finished = set(case.objects()[: 5 - 1])
    again = case.objects()[len(first) :]
    assert not finished & set(again), "what was finished is compiled a second time"
    assert {Path(f).name for f in case.objects()} == {f"kernel_{i:02}.cu" for i in range(OBJECTS)}
    assert counted(case)[-1] == f"{OBJECTS}/{OBJECTS} objects"
    assert any("objects are compiled already" in note for note in case.progress.notes)


def test_an_engine_at_another_path_uses_the_objects_of_the_one_before(case: Case) -> None:
    with pytest.raises(KeyboardInterrupt):
        case.ensure(progress=Interrupts(6))
    first = case.objects()
    case.python = make_engine(case.work / "built-anew", case.uv_path)
    case.ensure()
    assert not set(first[:5]) & set(case.objects()[len(first) :])


def test_a_compiler_that_is_killed_and_the_attempt_with_fewer_jobs(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREAK", "oom")
    error = case.refused()
    assert "ran out of memory" in error.message
    assert "MAX_JOBS=1" in error.hint
    assert str(case.home.log_file("setup")) in error.hint
    assert case.installed() == ""
    monkeypatch.delenv("BREAK")
    monkeypatch.setenv("MAX_JOBS", "1")
    before = len(case.objects())
    assert case.ensure().source == "built"
    assert len(case.objects()) - before < OBJECTS


def test_the_compilers_own_line_is_shown(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    line = (
        "/usr/local/cuda/include/crt/host_config.h:143:2: error: #error -- unsupported GNU version! gcc versions later"
    )
    monkeypatch.setenv("BREAK", line)
    error = case.refused()
    assert error.message == (
        f"flash-attn cannot be compiled (the C++ compiler is one that this nvcc does not work with): {line}"
    )
    assert line in case.home.log_file("setup").read_text()


def test_a_kept_wheel_that_is_damaged_is_refused(case: Case) -> None:
    report = case.ensure()
    (wheel,) = (case.home.wheels / report.key).glob("*.whl")
    whole, other = wheel.read_bytes(), make_engine(case.work / "other", case.uv_path)
    for damaged in (whole[:-3] + b"xxx", whole[:-3], None):
        wheel.unlink()
        if damaged is not None:
            wheel.write_bytes(damaged)
        with pytest.raises(EngineError, match="is not what was put there") as error:
            case.ensure(other)
        assert f"remove {wheel.parent}" in error.value.hint
        assert case.installed(other) == ""
        wheel.write_bytes(whole)
    assert case.ensure(other).source == "kept"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>Please log in</html>", "is a web page instead"),
        (b"\x1f\x8b cut", "is no archive instead"),
    ],
)
def test_a_source_that_is_none(case: Case, content: bytes, words: str) -> None:
    source = case.home.wheels / "sources" / f"flash_attn-{VERSION}.tar.gz"
    source.parent.mkdir(parents=True)
    source.write_bytes(content)
    error = case.refused()
    assert words in error.message
    assert error.hint


def test_no_proxy_is_honoured_in_the_download(work: Path) -> None:
    """As uv honours it, though pip's proxy stands in no variable of this process."""
    (work / "mirror").mkdir()
    (work / "mirror/file").write_bytes(b"from the mirror")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(work / "mirror"))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url, proxy = f"http://127.0.0.1:{server.server_port}/file", {"HTTP_PROXY": "http://127.0.0.1:1"}
            for exempt in ("127.0.0.1", "*", f"elsewhere, 127.0.0.1:{server.server_port}"):
                source._download(url, work / "got", {**proxy, "NO_PROXY": exempt})
            assert (work / "got").read_bytes() == b"from the mirror"
            with pytest.raises(httpx.ConnectError):
                source._download(url, work / "got", proxy)
        finally:
            server.shutdown()
            thread.join()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


def test_an_index_without_that_version(case: Case, wheels: Path) -> None:
    (wheels / f"flash_attn-{VERSION}.tar.gz").unlink()
    error = case.refused()
    assert f"cannot find the source of flash-attn {VERSION}" in error.message
    assert not case.objects()


def test_what_would_be_done_is_told_without_doing_it(case: Case) -> None:
    lines = explain_flash_attn(case.home, case.python, VERSION, MACHINE)
    assert lines[0] == f"flash-attn=={VERSION} is compiled for sm_90"
    assert lines[1] == "toolkit: /usr/local/cuda-13.0 (CUDA 13.0)"
    assert not case.home.wheels.exists()
    case.ensure()
    assert explain_flash_attn(case.home, case.python, VERSION, MACHINE)[0] == f"flash-attn {VERSION} is installed"
    other = make_engine(case.work / "other", case.uv_path)
    assert "from the wheel in" in explain_flash_attn(case.home, other, VERSION, MACHINE)[0]


def test_an_engine_on_the_cpu_is_refused_before_anything_is_done(case: Case) -> None:
    case.python = make_engine(case.work / "cpu", case.uv_path, cuda=None)
    error = case.refused()
    assert error.message == "flash-attn needs a GPU, and the engine's torch 2.11.0 is built for the CPU"
    assert not case.home.wheels.exists()


def test_setup_refuses_it_for_a_cpu_engine_before_anything_is_built(home: Home, progress: Recorder) -> None:
    with pytest.raises(EngineError, match="this engine computes on the CPU") as error:
        ensure_engine(home, config.Engine(device="cpu", flash_attn=True), progress)
    assert "engine.flash_attn" in error.value.hint
    assert not list(home.engines.glob("*/*/bin"))


def test_an_engine_that_is_there_gets_it_without_being_built_anew(case: Case, wheels: Path) -> None:
    make_wheel(wheels, "torch", "2.13.0+cpu", {"torch/__init__.py": textwrap.dedent(TORCH.format(cuda="13.0"))})
    release = next(r for r in read_releases() if r.device == "cpu")
    before = ensure_engine(case.home, config.Engine(), case.progress, release=release)
    lend_build_tools(Path(before.python).parents[1])
    wanted = config.Engine(flash_attn=VERSION)
    after = ensure_engine(case.home, wanted, case.progress, facts=MACHINE, release=release)
    assert after.python == before.python
    assert case.installed(Path(after.python)) == VERSION
    manifest = read_manifest(case.home.engine_dir("default"))
    assert manifest is not None
    assert manifest.packages["flash_attn"] == VERSION
    assert manifest.steps[-1].detail == f"{VERSION}, built; relative error: forward 1.0e-03, causal 2.0e-03"
    assert find_engine(case.home, wanted) == after
    assert find_engine(case.home, config.Engine()) == after


def test_two_at_once_do_not_compile_into_each_other(case: Case) -> None:
    folder = (
        case.home.cache / "flash-attn" / ensure.plan_wheel(VERSION, ensure.read_target(case.python), MACHINE.gpus).key
    )
    with ensure.setup_lock(folder), pytest.raises(Exception, match="another llmhost command"):
        case.ensure()
