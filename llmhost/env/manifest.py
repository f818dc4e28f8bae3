"""What is known of a built engine, kept as ``manifest.json`` in its directory.

An engine's directory holds its builds (environments, each at its final path, because a running engine keeps importing
from there) and the manifest, which names the one that counts. It is written last and replaced whole: a build that it
does not name does not exist for anybody but the next setup, which finishes or removes it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llmhost import config
from llmhost.env.journal import Step
from llmhost.errors import EngineError
from llmhost.facts import Device, EngineFacts, VllmFlag

FORMAT = 1
"""Goes up when a manifest of an older llmhost cannot be used; such an engine is built again."""
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Spec:
    """What llmhost.yaml asks for, as far as it decides what is in an engine."""

    kind: str
    device: Device | Literal["auto"]
    """In a manifest: what it computes on."""
    vllm: str | None
    """The pinned version, None for whatever llmhost installs by itself."""
    python: str | None
    """The interpreter or version that was asked for."""
    system_site_packages: bool = False
    flash_attn: bool | str = False
    cuda_compiler: bool = False
    packages: tuple[str, ...] = ()
    """What there is to be beside vLLM, as it was written; sorted."""

    @classmethod
    def of(cls, engine: config.Engine) -> Spec:
        """The part of ``engine:`` that counts."""
        return cls(
            engine.kind,
            engine.device,
            engine.vllm,
            engine.python,
            engine.system_site_packages,
            engine.flash_attn,
            engine.cuda_compiler,
            tuple(sorted(engine.packages)),
        )


@dataclass(frozen=True)
class Manifest:
    """One verified build."""

    spec: Spec
    build: str
    """Name of the directory of the environment, beside the manifest."""
    python_version: str
    packages: Mapping[str, str]
    """Versions that the import gate saw: torch, transformers, vllm; and flash_attn where it was built."""
    flags: Mapping[str, VllmFlag]
    tool_call_parsers: tuple[str, ...]
    reasoning_parsers: tuple[str, ...]
    built_at: str
    """UTC, ISO 8601."""
    built_in: float
    """Seconds that the setup took."""
    device: Device = "cpu"
    python: str = ""
    """Absolute path of the interpreter when it is not that of the build (an existing environment)."""
    marks: tuple[str, ...] = ()
    """Paths outside of the build that must be there: the metadata of packages that it only borrows."""
    steps: tuple[Step, ...] = ()
    """What the setup did."""
    lock: str = ""
    """Digest of the set of packages, as the lock file has it; empty where none was recorded."""

    def satisfies(self, spec: Spec) -> bool:
        """Is this what is asked for? Where nothing is pinned, what works is kept, also by a newer llmhost."""
        own = self.spec
        same_place = own.kind == spec.kind and spec.device in ("auto", self.device)
        same_base = own.system_site_packages == spec.system_site_packages and own.cuda_compiler >= spec.cuda_compiler
        vllm = spec.vllm in (own.vllm, self.vllm_version)
        python = spec.python in (None, own.python) or self.python_version.startswith(f"{spec.python}.")
        flash = not spec.flash_attn or spec.flash_attn in (own.flash_attn, self.packages.get("flash_attn"))
        return same_place and same_base and vllm and python and flash and not self.lacking(spec.packages)

    def lacking(self, packages: Iterable[str]) -> tuple[str, ...]:
        """Those of these ``engine.packages`` that it was not built with."""
        return tuple(sorted({*packages} - {*self.spec.packages}))

    @property
    def vllm_version(self) -> str:
        """As in ``engine.vllm``, without the local part (``+cpu``)."""
        return self.packages["vllm"].partition("+")[0]

    def interpreter(self, directory: Path) -> Path:
        """The interpreter of the engine in ``directory``."""
        return Path(self.python) if self.python else python_of(directory / self.build)

    def is_there(self, directory: Path) -> bool:
        """Do the interpreter and what it borrows still exist? Looks, and starts nothing."""
        return self.interpreter(directory).exists() and all(os.path.exists(mark) for mark in self.marks)

    def facts(self, directory: Path) -> EngineFacts:
        """The engine in ``directory``, for the plan."""
        return EngineFacts(
            name=directory.name,
            python=str(self.interpreter(directory)),
            device=self.device,
            vllm_version=self.vllm_version,
            flags=self.flags,
            tool_call_parsers=self.tool_call_parsers,
            reasoning_parsers=self.reasoning_parsers,
        )


def python_of(build: Path) -> Path:
    """The interpreter of a virtual environment, or of one of conda."""
    return build / "bin" / "python"


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest in an engine's directory; None when there is none that this llmhost understands."""
    try:
        data = json.loads((directory / MANIFEST).read_bytes())
        return _from_dict(data) if data["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _from_dict(data: Mapping[str, Any]) -> Manifest:
    fields = {key: value for key, value in data.items() if key != "format"}
    lists = {key: tuple(data.get(key, ())) for key in ("tool_call_parsers", "reasoning_parsers", "marks")}
    flags = {name: VllmFlag(name, **({"boolean": False} | flag)) for name, flag in data["flags"].items()}
    spec = Spec(**{**data["spec"], "packages": tuple(data["spec"].get("packages", ()))})
    steps = tuple(Step(**step) for step in data.get("steps", ()))
    return Manifest(**{**fields, **lists, "flags": flags, "spec": spec, "steps": steps})


def _to_dict(manifest: Manifest) -> dict[str, Any]:
    """Without what is as usual: most flags just take a value."""
    flags = {name: {k: True for k, v in asdict(flag).items() if v is True} for name, flag in manifest.flags.items()}
    plain = {key: value for key, value in vars(manifest).items() if key not in ("flags", "spec", "steps")}
    steps = [asdict(step) for step in manifest.steps]
    return {"format": FORMAT, **plain, "spec": asdict(manifest.spec), "steps": steps, "flags": flags}


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Make this build the engine; raises EngineError when it cannot be written, and the former one stays."""
    write_record(directory / MANIFEST, _to_dict(manifest))


def write_record(path: Path, data: Mapping[str, Any]) -> None:
    """Replace a file of JSON whole; raises EngineError when it cannot be written, and the former one stays."""
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            json.dump(data, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as e:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise EngineError(f"cannot write {path}: {e.strerror}", "see `df -h` and its owner") from e
