"""Chooses the CUDA toolkit that fits a torch. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from llmhost.errors import EngineError
from llmhost.facts import CudaToolkit

Version = tuple[int, int]


def choose_toolkit(
    cuda: Version, torch: str, toolkits: tuple[CudaToolkit, ...], environ: Mapping[str, str]
) -> tuple[CudaToolkit, tuple[str, ...]]:
    """The toolkit to compile with for a torch built with ``cuda``, and what the user should know of the choice.

    Major and minor equal, else the same major (libraries and machine code of one major fit each other); raises
    EngineError with what to install or set when there is none.
    """
    complete = [t for t in toolkits if t.complete]
    same = [t for t in complete if require_known(t)[0] == cuda[0]]
    if not same:
        raise _refusal(cuda, torch, toolkits)
    chosen = min(same, key=lambda t: _distance(require_known(t), cuda))
    notes = list(_ignored(chosen, toolkits, environ))
    if chosen.version != cuda:
        notes.append(
            f"torch {torch} is built with CUDA {_dotted(cuda)}, the toolkit is {_dotted(chosen.version)}:"
            " the same major version, which works"
        )
    return chosen, tuple(notes)


def require_known(toolkit: CudaToolkit) -> Version:
    """The version of a complete toolkit."""
    if toolkit.version is None:
        raise EngineError(f"the version of {toolkit.root}/bin/nvcc is not known", "run it with --version")
    return toolkit.version


def _distance(version: Version, cuda: Version) -> tuple[bool, int]:
    """Newer ones first, which know more GPUs; of those the nearest."""
    return version < cuda, abs(version[1] - cuda[1])


def _ignored(chosen: CudaToolkit, toolkits: tuple[CudaToolkit, ...], environ: Mapping[str, str]) -> list[str]:
    """A variable that names another place than the chosen one."""
    name = next((n for n in ("CUDA_HOME", "CUDA_PATH") if environ.get(n)), None)
    if name is None or name in chosen.found_by:
        return []
    named = next((t for t in toolkits if name in t.found_by), None)
    if named is None:
        why = "there is no toolkit"
    elif named.missing:
        why = f"it lacks {', '.join(named.missing)}"
    else:
        why = f"it is CUDA {_dotted(named.version)}"
    return [f"{name}={environ[name]} is not used ({why}), {chosen.root} is"]


def _refusal(cuda: Version, torch: str, toolkits: tuple[CudaToolkit, ...]) -> EngineError:
    wanted = f"flash-attn needs the compiler of CUDA {_dotted(cuda)}, with which torch {torch} is built"
    package = f"cuda-toolkit-{cuda[0]}-{cuda[1]}"
    remedy = f"install {package} (NVIDIA's apt or dnf repository), or set CUDA_HOME to a CUDA {cuda[0]} toolkit"
    complete = [t for t in toolkits if t.complete]
    if complete:
        there = ", ".join(f"CUDA {_dotted(t.version)} ({t.root})" for t in complete)
        return EngineError(f"{wanted}; here is {there}", remedy)
    if toolkits:
        there = "; ".join(f"{t.root} ({_by(t)}) lacks {', '.join(t.missing)}" for t in toolkits)
        return EngineError(f"{wanted}, and no toolkit here is complete: {there}", remedy)
    return EngineError(f"{wanted}; this machine has no CUDA toolkit", remedy)


def _by(toolkit: CudaToolkit) -> str:
    return " and ".join(toolkit.found_by) or "found"


def _dotted(version: Version | None) -> str:
    return ".".join(str(part) for part in version or ("?",))
