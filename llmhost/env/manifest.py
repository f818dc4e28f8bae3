"""What is known of a built engine, kept as ``manifest.json`` in its directory.

An engine's directory holds its builds (virtual environments, each at its final path, because a running engine keeps
importing from there) and the manifest, which names the one that counts. It is written last and replaced whole: a
build that it does not name does not exist for anybody but the next setup, which removes it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmhost import config
from llmhost.errors import EngineError
from llmhost.facts import Device, EngineFacts, VllmFlag

FORMAT = 1
"""Goes up when a manifest of an older llmhost cannot be used; such an engine is built again."""
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Spec:
    """What llmhost.yaml asks for, as far as it decides what is in an engine."""

    kind: str
    device: Device
    vllm: str | None
    """The pinned version, None for whatever llmhost installs by itself."""
    python: str | None
    """The interpreter or version that was asked for."""

    @classmethod
    def of(cls, engine: config.Engine) -> Spec:
        """The part of ``engine:`` that counts."""
        return cls(engine.kind, "cpu", engine.vllm, engine.python)


@dataclass(frozen=True)
class Manifest:
    """One verified build."""

    spec: Spec
    build: str
    """Name of the directory of the environment, beside the manifest."""
    python_version: str
    packages: Mapping[str, str]
    """Versions that the import gate saw: torch, transformers, vllm."""
    flags: Mapping[str, VllmFlag]
    tool_call_parsers: tuple[str, ...]
    reasoning_parsers: tuple[str, ...]
    built_at: str
    """UTC, ISO 8601."""
    built_in: float
    """Seconds that the setup took."""

    def satisfies(self, spec: Spec) -> bool:
        """Is this what is asked for? Where nothing is pinned, what works is kept, also by a newer llmhost."""
        same_place = (self.spec.kind, self.spec.device) == (spec.kind, spec.device)
        vllm = spec.vllm in (self.spec.vllm, self.vllm_version)
        python = spec.python in (None, self.spec.python) or self.python_version.startswith(f"{spec.python}.")
        return same_place and vllm and python

    @property
    def vllm_version(self) -> str:
        """As in ``engine.vllm``, without the local part (``+cpu``)."""
        return self.packages["vllm"].partition("+")[0]

    def facts(self, directory: Path) -> EngineFacts:
        """The engine in ``directory``, for the plan."""
        return EngineFacts(
            name=directory.name,
            python=str(python_of(directory / self.build)),
            device=self.spec.device,
            vllm_version=self.vllm_version,
            flags=self.flags,
            tool_call_parsers=self.tool_call_parsers,
            reasoning_parsers=self.reasoning_parsers,
        )


def python_of(build: Path) -> Path:
    """The interpreter of a virtual environment."""
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
    lists = {key: tuple(data[key]) for key in ("tool_call_parsers", "reasoning_parsers")}
    flags = {name: VllmFlag(name, **({"boolean": False} | flag)) for name, flag in data["flags"].items()}
    return Manifest(**{**fields, **lists, "flags": flags, "spec": Spec(**data["spec"])})


def _to_dict(manifest: Manifest) -> dict[str, Any]:
    """Without what is as usual: most flags just take a value."""
    flags = {name: {k: True for k, v in asdict(flag).items() if v is True} for name, flag in manifest.flags.items()}
    plain = {key: value for key, value in vars(manifest).items() if key not in ("flags", "spec")}
    return {"format": FORMAT, **plain, "spec": asdict(manifest.spec), "flags": flags}


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Make this build the engine; raises EngineError when it cannot be written, and the former one stays."""
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile("w", dir=directory, prefix=f".{MANIFEST}.", delete=False) as file:
            temporary = file.name
            json.dump(_to_dict(manifest), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, directory / MANIFEST)
    except OSError as e:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise EngineError(f"cannot write {directory / MANIFEST}: {e.strerror}", "see `df -h` and its owner") from e
