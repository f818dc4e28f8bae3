"""What a failed build says: the line that counts, the likely cause, and what to do about it. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 240


@dataclass(frozen=True)
class Cause:
    """Why a build failed: ``line`` is the compiler's own."""

    line: str
    what: str
    remedy: str


@dataclass(frozen=True)
class _Sign:
    pattern: str
    what: str
    remedy: str


SIGNS = (
    _Sign(
        r"No space left on device|Disk quota exceeded",
        "the disk is full",
        "free some, or set TMPDIR to a directory on another disk (nvcc writes hundreds of MB there) or LLMHOST_HOME"
        " elsewhere",
    ),
    _Sign(
        r"FAILED: \[code=137\]|signal 9\b|Killed signal|\bKilled$|cc1plus.*Killed|internal compiler error: Killed|"
        r"out of memory|Cannot allocate memory|std::bad_alloc",
        "the machine ran out of memory",
        "compile fewer files at once: MAX_JOBS={fewer} llmhost setup; what is compiled already is kept",
    ),
    _Sign(
        r"unsupported GNU version|The current installed version of .* is (greater|less) than the (maximum|minimum)",
        "the C++ compiler is one that this nvcc does not work with",
        "install a g++ in the range that the line names and set CC and CXX to it (CC=gcc-13 CXX=g++-13 llmhost setup)",
    ),
    _Sign(
        r"Python\.h: No such file",
        "the headers of Python are missing",
        "install python3-dev (Debian, Ubuntu) or python3-devel (Fedora, RHEL) of the engine's Python version",
    ),
    _Sign(
        r"(cusparse|cublas|cusolver|curand|cufft|nvrtc|cuda)\w*\.h: No such file",
        "the CUDA toolkit lacks headers of its libraries",
        "install the whole toolkit (cuda-toolkit-…, not only nvcc), or name another one in CUDA_HOME",
    ),
    _Sign(
        r"CUDA_HOME environment variable is not set|nvcc was not found|No such file or directory: '.*/bin/nvcc'",
        "there is no nvcc where CUDA_HOME says",
        "set CUDA_HOME to the root of a CUDA toolkit (see `llmhost facts`)",
    ),
    _Sign(
        r"The detected CUDA version .* mismatches",
        "nvcc and torch are of different CUDA versions",
        "set CUDA_HOME to a toolkit of torch's CUDA version (see `llmhost facts`)",
    ),
    _Sign(
        r"Unsupported gpu architecture|not defined for option 'gpu-architecture'",
        "this nvcc does not know the GPU",
        "install a newer CUDA toolkit of the same major version",
    ),
    _Sign(
        r"cannot find -l|unable to find library",
        "a library to link with is missing",
        "install the whole toolkit (its lib64 must have libcudart.so)",
    ),
    _Sign(
        r"(g\+\+(-\d+)?|c\+\+|gcc|cc1plus|nvcc|ninja|x86_64-linux-gnu-\S+)'?: "
        r"(No such file|command not found|not found)|"
        r"gcc: fatal error: cannot execute|host compiler .* not found|"
        r"No such file or directory: '?(c\+\+|g\+\+|ninja)",
        "a compiler is missing",
        "install g++ and ninja (Debian, Ubuntu: apt install g++ ninja-build)",
    ),
    _Sign(
        r"undefined symbol",
        "it was compiled for another torch or C++ ABI than the engine has",
        "remove its directory below $LLMHOST_HOME/wheels and run `llmhost setup` again",
    ),
    _Sign(
        r"No module named|ModuleNotFoundError",
        "a package that the build needs is missing in the engine",
        "install it there, or build the engine anew",
    ),
    _Sign(
        r"[Pp]ermission denied|Read-only file system|Could not open output file",
        "a file cannot be written",
        "see who owns the home and the temporary directory",
    ),
    _Sign(r"died due to signal|internal (compiler )?error|Segmentation fault", "the compiler itself crashed",
          "run it again; if the same file fails again, use another release of the CUDA toolkit or of g++"),
    _Sign(r"\b(fatal )?error\s*:|^error: |^E[A-Za-z]*Error: |\bnvcc (fatal|error)\b", "the source does not compile",
          "see the log for what stands around that line; another version may fit (engine.flash_attn: VERSION)"),
)  # fmt: skip
"""Patterns of what compilers say, the telling ones first: `find_cause` takes the first that any line matches."""
NOISE = re.compile(
    r"ninja: build stopped|subcommand failed|errors? detected in the compilation|non-zero exit status|^error: command|"
    r"Error compiling objects"
)


def find_cause(lines: Sequence[str], jobs: int) -> Cause | None:
    """The last line that tells most, and what it means; None when nothing is understood."""
    telling = [line.strip() for line in lines if not NOISE.search(line)]
    for sign in SIGNS:
        if line := next((text for text in reversed(telling) if re.search(sign.pattern, text)), None):
            shown = line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
            return Cause(shown, sign.what, sign.remedy.format(fewer=max(1, jobs // 2)))
    return None
