"""CUDA toolkits and interpreters: fixture trees laid out like real ones, and the real nvcc of the package index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from uv import find_uv_bin

from llmhost.diagnosis.engine import undefined_symbols
from llmhost.facts import CudaToolkit
from llmhost.probe.cuda import find_toolkits, read_toolkit, root_of
from llmhost.probe.interpreters import find_interpreters, read_interpreter
from llmhost.probe.programs import conda_channels, find_compilers, find_conda

pytestmark = pytest.mark.integration


def nvcc(path: Path, version: str = "13.0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.88'\n")
    path.chmod(0o755)
    return path


def toolkit(root: Path, version: str = "13.0") -> Path:
    """Laid out as NVIDIA's installer does it."""
    nvcc(root / "bin/nvcc", version)
    for name in ("include/cuda_runtime.h", "lib64/libcudart.so"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_one_toolkit_with_many_names_is_one(tmp_path: Path) -> None:
    real = toolkit(tmp_path / "usr/local/cuda-13.0")
    (tmp_path / "usr/local/cuda").symlink_to("cuda-13.0")
    environ = {"CUDA_HOME": str(tmp_path / "usr/local/cuda"), "PATH": str(real / "bin")}
    (found,) = find_toolkits(environ, tmp_path)
    assert found == CudaToolkit(
        str(real), ("CUDA_HOME", "nvcc on PATH", str(tmp_path / "usr/local/cuda"), str(real)), (13, 0), True, True, True
    )


def test_several_and_parts_of_them(tmp_path: Path) -> None:
    toolkit(tmp_path / "usr/local/cuda-12.4", "12.4")
    runtime = tmp_path / "usr/local/cuda-12.8"
    (runtime / "include").mkdir(parents=True)
    (runtime / "include/cuda_runtime.h").touch()
    (tmp_path / "usr/local/cuda-11.8").mkdir()  # what an uninstaller leaves
    conda = tmp_path / "conda/envs/x"
    nvcc(conda / "bin/nvcc", "12.6")
    (conda / "targets/x86_64-linux/include").mkdir(parents=True)
    (conda / "targets/x86_64-linux/include/cuda_runtime.h").touch()
    (conda / "lib").mkdir()
    (conda / "lib/libcudart.so").touch()
    found = {Path(t.root).name: t for t in find_toolkits({}, tmp_path, (), (conda,))}
    assert {name: (t.version, t.missing) for name, t in found.items()} == {
        "cuda-12.4": ((12, 4), ()),
        "cuda-12.8": (None, ("nvcc", "libcudart.so")),
        "x": ((12, 6), ()),
    }
    assert found["x"].found_by == (f"conda environment {conda}",)


@pytest.mark.parametrize("wrong", ["gone", "empty", "broken"])
def test_a_cuda_home_that_is_wrong_is_told(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "empty").mkdir()
    broken = toolkit(tmp_path / "broken") / "bin/nvcc"
    broken.write_text("#!/bin/sh\nexit 127\n")
    (found,) = find_toolkits({"CUDA_HOME": str(tmp_path / wrong)}, tmp_path / "nothing")
    assert found.found_by == ("CUDA_HOME",)
    assert found.root == str(tmp_path / wrong)
    missing = ("an nvcc that runs",) if wrong == "broken" else ("nvcc", "headers (cuda_runtime.h)", "libcudart.so")
    assert found.missing == missing


@pytest.mark.parametrize("header", ["include/cuda.h", "targets/x86_64-linux/include/cuda.h"])
def test_the_version_of_a_toolkit_whose_nvcc_does_not_say_it(tmp_path: Path, header: str) -> None:
    root = toolkit(tmp_path / "cuda")
    (root / header).parent.mkdir(parents=True, exist_ok=True)
    (root / header).write_text("/* 2024 */\n#define CUDA_VERSION 12080\n#define OTHER 1\n")
    assert read_toolkit(root, ()).version == (13, 0)  # nvcc itself knows best
    (root / "bin/nvcc").write_text("#!/bin/sh\nexit 127\n")
    broken = read_toolkit(root, ())
    assert (broken.version, broken.complete, broken.missing) == ((12, 8), False, ("nvcc",))
    (root / "bin/nvcc").unlink()
    assert read_toolkit(root, ()).version == (12, 8)
    (root / "version.json").write_text('{"cuda": {"name": "CUDA SDK", "version": "12.6.20240321"}}')
    without = read_toolkit(root, ())
    assert (without.version, without.missing) == ((12, 6), ("nvcc",))
    for wrong in ("{}", "[]", "no JSON", '{"cuda": {"version": 12}}', '{"cuda": {"version": "?"}}'):
        (root / "version.json").write_text(wrong)
        assert read_toolkit(root, ()).version == (12, 8)
    (root / header).write_text("nothing")
    assert read_toolkit(root, ()).version is None


def test_an_nvcc_that_does_not_run_is_told_of_a_toolkit_without_headers(tmp_path: Path) -> None:
    nvcc(tmp_path / "usr/local/cuda/bin/nvcc").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "usr/local/cuda/version.json").write_text('{"cuda": {"version": "12.6.0"}}')
    (found,) = find_toolkits({}, tmp_path)
    assert (found.version, found.complete) == ((12, 6), False)


def test_an_nvcc_on_path_that_only_calls_another(tmp_path: Path) -> None:
    real = toolkit(tmp_path / "opt/cuda-13.0")
    (real / "bin/nvcc").write_text(f"#!/bin/sh\necho '#$ TOP={real}/bin/..' >&2\n")
    wrapper = tmp_path / "bin/nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {real}/bin/nvcc "$@"\n')
    wrapper.chmod(0o755)
    assert os.path.realpath(root_of(wrapper)) == str(real)


@pytest.fixture(scope="module")
def cuda_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the CUDA compiler of the package index; its site-packages."""
    place = tmp_path_factory.mktemp("cuda")
    uv = find_uv_bin()
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, place / "v"], check=True, timeout=300)
    subprocess.run(
        [uv, "pip", "install", "-q", "--python", place / "v/bin/python", "nvidia-cuda-nvcc", "nvidia-cuda-runtime"],
        check=True, timeout=300,
    )  # fmt: skip
    (found,) = (place / "v").glob("lib/python3*/site-packages")
    return found


def test_the_real_nvcc_of_the_package_index(cuda_packages: Path, tmp_path: Path) -> None:
    (found,) = find_toolkits({"PATH": ""}, tmp_path, (cuda_packages,))
    assert found.version is not None
    assert found.version[0] >= 13
    assert found.found_by == (f"pip packages in {cuda_packages}",)
    # It has libcudart.so.13 only: nothing that `-lcudart` finds.
    assert found.missing == ("libcudart.so",)
    python = read_interpreter(str(cuda_packages.parents[2] / "bin/python"))
    assert python is not None
    assert python.interpreter.packages["nvidia-cuda-nvcc"].startswith(f"{found.version[0]}.")


def test_interpreters(tmp_path: Path) -> None:
    """Those of an environment are their own, though they are links; what does not run is left out."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "v"], check=True, timeout=300)
    broken = tmp_path / "broken/python3.13"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    path = os.pathsep.join(map(str, (tmp_path / "v/bin", tmp_path / "broken", Path(sys.executable).parent)))
    found = find_interpreters({"PATH": path, "HOME": str(tmp_path)})
    assert [f.interpreter.path for f in found] == [sys.executable, str(tmp_path / "v/bin/python3")]
    assert found[1].interpreter.version == tuple(sys.version_info[:3])
    assert found[1].interpreter.packages == {}
    assert "pytest" in found[0].interpreter.packages


def test_interpreters_of_uv_and_conda(tmp_path: Path) -> None:
    managed = tmp_path / ".local/share/uv/python/cpython-3.12/bin/python3.12"
    prefix = tmp_path / "conda/bin/python3"
    for path, version in ((managed, [3, 12, 1]), (prefix, [3, 8, 1])):
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\necho '{json.dumps([version, '/none', []])}'\n")
        path.chmod(0o755)
    found = find_interpreters({"HOME": str(tmp_path)}, (prefix,))
    # The other one is too old to be of use.
    assert [(f.interpreter.path, f.interpreter.headers) for f in found[1:]] == [(str(managed), False)]


def test_conda_where_its_shell_function_would_find_it(tmp_path: Path) -> None:
    conda = tmp_path / "opt/miniconda3/bin/conda"
    micromamba = tmp_path / "x/micromamba"
    for path, said in ((conda, "conda 24.11.3"), (micromamba, "2.0.5")):
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\necho {said}\n")
        path.chmod(0o755)
    found = find_conda({"MAMBA_EXE": str(micromamba), "PATH": ""}, tmp_path)
    assert [(p.name, p.path, p.version) for p in found] == [
        ("conda", str(conda), "24.11.3"), ("micromamba", str(micromamba), "2.0.5"),
    ]  # fmt: skip


def test_the_compiler_of_this_machine() -> None:
    (gxx,) = (p for p in find_compilers() if p.name == "g++")
    assert gxx.version[0].isdigit()


def test_undefined_symbols_are_found_without_running_the_library(tmp_path: Path) -> None:
    """As of a library that was built for another torch; what the interpreter brings is not missed."""
    source = tmp_path / "x.c"
    gone = "_ZN3c104cuda9gone"
    source.write_text(f"void {gone}(void); void PyErr_Clear(void); void f(void) {{ {gone}(); PyErr_Clear(); }}")
    package = tmp_path / "flash_attn"
    package.mkdir()
    (package / "fine.c").write_text("int g(void) { return 1; }")
    for name, code in (("flash_attn_2_cuda.so", source), ("flash_attn/fine.so", package / "fine.c")):
        subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / name, code], check=True, timeout=300)
    assert undefined_symbols(tmp_path) == [(tmp_path / "flash_attn_2_cuda.so", [gone])]


def test_symbols_of_a_torch_below_the_engine_are_there(tmp_path: Path) -> None:
    """As in an environment on top of an interpreter that has torch."""
    own, below = tmp_path / "own", tmp_path / "below"
    (below / "torch/lib").mkdir(parents=True)
    own.mkdir()
    (tmp_path / "base.c").write_text("int of_torch(void) { return 1; }")
    (tmp_path / "x.c").write_text("int of_torch(void); int f(void) { return of_torch(); }")
    torch, library = below / "torch/lib/libtorch.so", own / "flash_attn_2_cuda.so"
    for command in (
        ["cc", "-shared", "-fPIC", "-Wl,-soname,libtorch.so", "-o", torch, tmp_path / "base.c"],
        ["cc", "-shared", "-fPIC", "-o", library, tmp_path / "x.c", f"-L{torch.parent}", "-ltorch"],
    ):
        subprocess.run(command, check=True, timeout=300)
    assert undefined_symbols(own) == [(library, ["of_torch"])]
    assert undefined_symbols(own, (own, below)) == []


LISTS = """#!/bin/sh
if [ "$1 $2" = "config list" ]; then
  printf 'channels:\\n  - https://mirror/conda-forge\\n  - own\\ncustom_channels:\\n  x: https://y\\n'
else
  exit 2
fi
"""
SHOWS = """#!/bin/sh
if [ "$1 $2 $3" = "config --show channels" ]; then printf 'channels:\\n  - defaults\\n'; else exit 2; fi
"""
NONE = "#!/bin/sh\nprintf 'default_channels:\\n  - https://mirror/main\\n'\n"


@pytest.mark.parametrize(
    ("name", "script", "channels"),
    [
        ("micromamba", LISTS, ("https://mirror/conda-forge", "own")),
        ("mamba", LISTS, ("https://mirror/conda-forge", "own")),  # from 2.0 on
        ("mamba", SHOWS, ("defaults",)),
        ("conda", SHOWS, ("defaults",)),
        ("micromamba", NONE, ()),
        ("conda", "#!/bin/sh\nexit 1\n", ()),
        ("conda", "#!/bin/sh\necho '{'\n", ()),
    ],
)
def test_channels_that_conda_and_its_like_are_configured_with(
    tmp_path: Path, name: str, script: str, channels: tuple[str, ...]
) -> None:
    """Stand-ins that say what conda 25, mamba 1 and 2 and micromamba 2 say."""
    program = tmp_path / name
    program.write_text(script)
    program.chmod(0o755)
    assert conda_channels(str(program)) == channels
