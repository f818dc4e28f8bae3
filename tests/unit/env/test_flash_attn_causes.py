"""What failing builds say, as compilers really say it, and what becomes of it."""

from __future__ import annotations

import pytest

from llmhost.env.flash_attn.causes import find_cause

FAILED = """\
FAILED: [code=1] /w/src/build/temp.linux-x86_64-cpython-312/csrc/flash_attn/src/flash_fwd_hdim64_bf16_sm80.o
/usr/local/cuda-13.0/bin/nvcc --generate-dependencies-with-compile -I/w/src/csrc/flash_attn -O3 -std=c++17
{said}
ninja: build stopped: subcommand failed.
Traceback (most recent call last):
  File "/e/lib/python3.12/site-packages/torch/utils/cpp_extension.py", line 2597, in _run_ninja_build
    subprocess.run(
  File "/usr/lib/python3.12/subprocess.py", line 571, in run
    raise CalledProcessError(retcode, process.args,
subprocess.CalledProcessError: Command '['ninja', '-v', '-j', '16']' returned non-zero exit status 1.

The above exception was the direct cause of the following exception:

RuntimeError: Error compiling objects for extension
error: command failed
"""

CASES = [
    ("nvcc error   : 'cicc' died due to signal 9 (Kill signal)", "out of memory", "MAX_JOBS=8"),
    ("c++: fatal error: Killed signal terminated program cc1plus\ncompilation terminated.", "memory", "MAX_JOBS=8"),
    ("virtual memory exhausted: Cannot allocate memory", "memory", "MAX_JOBS=8"),
    (
        "/usr/local/cuda/include/crt/host_config.h:143:2: error: #error -- unsupported GNU version! gcc versions later"
        " than 12 are not supported!\n  143 | #error -- unsupported GNU version!",
        "C++ compiler",
        "CXX=g++-13",
    ),
    (
        "RuntimeError: The current installed version of /usr/bin/g++ (16.1.0) is greater than the maximum required"
        " version by CUDA 13.0. Please make sure to use an adequate version of /usr/bin/g++ (>=6.0.0, <16.0).",
        "C++ compiler",
        "CXX=",
    ),
    (
        "/e/lib/python3.12/site-packages/torch/include/torch/csrc/python_headers.h:12:1: fatal error: Python.h: No such"
        " file or directory\n   12 | #include <Python.h>\n      |          ^~~~~~~~~~\ncompilation terminated.",
        "headers of Python",
        "python3-dev",
    ),
    (
        "f.cu:1:10: fatal error: cusparse.h: No such file or directory\n    1 | #include <cusparse.h>",
        "lacks headers of its libraries",
        "whole toolkit",
    ),
    (
        "/nonexist/g++: No such file or directory\nnvcc fatal   : Failed to preprocess host",
        "compiler is missing",
        "g++",
    ),
    ("/bin/sh: 1: ninja: not found", "compiler is missing", "ninja"),
    ("nvcc fatal   : Unsupported gpu architecture 'compute_120'", "does not know the GPU", "newer CUDA"),
    (
        "OSError: CUDA_HOME environment variable is not set. Please set it to your CUDA install root.",
        "nvcc",
        "CUDA_HOME",
    ),
    (
        "RuntimeError: \nThe detected CUDA version (12.4) mismatches the version that was used to compile\nPyTorch.",
        "different CUDA versions",
        "CUDA_HOME",
    ),
    (
        "/tmp/ccIB9PSY.s: Fatal error: can't write 262 bytes to section .text of /t/x.o: 'No space left on device'",
        "disk is full",
        "TMPDIR",
    ),
    ("/usr/bin/ld: cannot find -lcudart: No such file or directory", "library to link with", "libcudart.so"),
    (
        "ImportError: /t/flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2ENS_14SourceLocationE",
        "another torch or C++ ABI",
        "wheels",
    ),
    ("ModuleNotFoundError: No module named 'wheel'", "package that the build needs", "engine"),
    ("nvcc error   : 'ptxas' died due to signal 11 (Invalid memory reference)", "compiler itself crashed", "again"),
    ('e.cu(2): error: identifier "foo" is undefined\n  __attribute__((global)) void k(){ foo(); }', "compile", "log"),
]


@pytest.mark.parametrize(("said", "what", "remedy"), CASES, ids=[c[0][:30] for c in CASES])
def test_the_compilers_own_line_and_what_it_means(said: str, what: str, remedy: str) -> None:
    cause = find_cause(FAILED.format(said=said).splitlines(), jobs=16)
    assert cause is not None
    assert what in cause.what
    assert remedy in cause.remedy
    assert cause.line in said
    assert "\n" not in cause.line


def test_the_last_of_several_errors_is_shown_and_the_one_that_tells_most_wins() -> None:
    lines = [
        "a.cu(1): error: identifier \"one\" is undefined",
        "nvcc error   : 'cicc' died due to signal 9 (Kill signal)",
        "b.cu(2): error: identifier \"two\" is undefined",
    ]  # fmt: skip
    killed = find_cause(lines, 1)
    assert killed is not None
    assert "signal 9" in killed.line
    assert "MAX_JOBS=1 " in killed.remedy
    wrong = find_cause([lines[0], lines[2]], 1)
    assert wrong is not None
    assert "two" in wrong.line


def test_a_killed_compiler_that_says_nothing_shows_in_ninjas_line() -> None:
    cause = find_cause(["FAILED: [code=137] a.o", "ninja: build stopped: subcommand failed."], 4)
    assert cause is not None
    assert "memory" in cause.what


def test_warnings_are_no_errors() -> None:
    assert find_cause(["x.cu(3): warning #20012-D: __device__ annotation is ignored", "0 errors found"], 4) is None


def test_a_line_without_end_is_cut() -> None:
    cause = find_cause(["x.cu(1): error: " + "T" * 5000], 4)
    assert cause is not None
    assert len(cause.line) < 300
