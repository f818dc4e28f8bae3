"""flash-attention for a bundle: a wheel that fits the engine there, else the source with build tools."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

from llmhost.bundle.gather import Item
from llmhost.bundle.resolve import download, missing, resolve
from llmhost.bundle.target import Target, minor, without_local
from llmhost.diagnosis.subject import cuda_of
from llmhost.env.flash_attn.ensure import RUNTIME, require_possible
from llmhost.env.flash_attn.plan import TOOLS, WheelSpec, archs_of, wanted_version
from llmhost.env.flash_attn.source import fetch_source
from llmhost.env.flash_attn.store import SOURCES, KeptWheel, find_wheel
from llmhost.env.flash_attn.target import Target as Engine
from llmhost.env.releases import version_tuple
from llmhost.env.uv import Uv
from llmhost.paths import Home

NEW_ABI = (2, 7)
"""From this torch on all its Linux wheels have the C++11 ABI (release notes of PyTorch 2.7); before, it depends."""


def flash_attn_items(
    home: Home, target: Target, wanted: bool | str, engine: Mapping[str, str], uv: Uv
) -> Iterator[Item]:
    """A kept wheel of which everything fits, else the source; and what the engine lacks to use or to build it.

    ``engine`` are the packages of the engine there (name -> version), empty where the bundle has none. Raises
    EngineError when the other machine's GPUs cannot use it, and when something cannot be fetched.
    """
    require_possible(wanted, target.release.device, target.facts)
    spec = wheel_for(target, wanted, engine)
    kept = find_wheel(home.wheels, spec) if spec else None
    if kept is not None:
        yield from _wheel(kept)
    else:
        yield _source(home, wanted_version(wanted), spec, uv)
    yield from _tools(TOOLS if kept is None else (RUNTIME,), target, engine, uv)


def wheel_for(target: Target, wanted: bool | str, engine: Mapping[str, str]) -> WheelSpec | None:
    """The wheel that the engine there needs; None when what it must fit is not known from here.

    Its torch is the one that the bundle carries or that is there, else the one of its release.
    """
    torch = engine.get("torch") or target.there.get("torch") or target.release.torch
    public, release = without_local(torch), target.release
    cuda = cuda_of(torch) or (release.cuda if public == without_local(release.torch) and release.tested else None)
    if cuda is None or version_tuple(public) < NEW_ABI:
        return None
    python = target.engine_python
    there = Engine(
        python_version=".".join(map(str, python.version)),
        python_tag=f"cp{minor(python).replace('.', '')}",
        machine=target.facts.machine,
        headers=python.headers,
        torch=public,
        cuda=cuda,
        cxx11_abi=True,
    )
    return WheelSpec(wanted_version(wanted), there, archs_of(target.facts.gpus))


def _wheel(kept: KeptWheel) -> Iterator[Item]:
    """The wheel and its record; whatever else lies beside them stays here."""
    for file in (kept.path, kept.record):
        yield Item(f"flash-attn/{kept.folder.name}/{file.name}", file, "flash-attn")


def _source(home: Home, version: str, spec: WheelSpec | None, uv: Uv) -> Item:
    lacking = f"no wheel {spec.key}" if spec else f"the torch of that engine is not known, so no wheel of {version}"
    if spec and find_wheel(home.wheels, spec, unverified=True):
        lacking = f"run `llmhost setup` first to take the kept wheel along, which awaits its check; no other {spec.key}"
    uv.progress.note(f"flash-attn: {lacking} is kept here: its source goes along, and is compiled there")
    source = fetch_source(home.wheels if home.root.is_dir() else uv.cwd / "flash-attn", version, sys.executable, uv)
    return Item(f"flash-attn/{SOURCES}/{source.name}", source, "flash-attn")


def _tools(names: tuple[str, ...], target: Target, engine: Mapping[str, str], uv: Uv) -> Iterator[Item]:
    """Wheels of those that the engine there will not have."""
    present = {**target.there, **engine}
    lacking = [name for name in names if name not in present]
    if not lacking:
        return
    pins = resolve(lacking, target.engine_python, target, uv, prefer=present)
    for wheel in download(missing(pins, present), target.engine_python, target, uv, uv.cwd / "downloads"):
        yield Item(f"wheels/{wheel.name}", wheel, "engine")
