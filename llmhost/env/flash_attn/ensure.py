"""Makes sure that an engine has flash-attn: kept wheel or build, check on the GPU, installation."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from llmhost.env.builds import setup_lock
from llmhost.env.flash_attn.compile import compile_wheel
from llmhost.env.flash_attn.plan import (
    Machine,
    WheelSpec,
    archs_of,
    bundled_note,
    plan_build,
    plan_wheel,
    wanted_version,
    with_own_toolkit,
)
from llmhost.env.flash_attn.source import fetch_source
from llmhost.env.flash_attn.store import KeptWheel, find_wheel, keep_wheel, kept_wheels, record_check, remove_wheel
from llmhost.env.flash_attn.target import Target, read_target
from llmhost.env.flash_attn.verify import Verified, verify
from llmhost.env.releases import Release
from llmhost.env.uv import Uv
from llmhost.errors import BadWheelError, EngineError
from llmhost.facts import Device, MachineFacts
from llmhost.paths import Home
from llmhost.probe.host import free_bytes

INSTALL = "install flash-attn"
RUNTIME = "einops"
"""What flash-attn imports besides torch."""


@dataclass(frozen=True)
class FlashAttnReport:
    """A flash-attn that is installed and was checked."""

    version: str
    source: Literal["built", "kept", "installed"]
    """Compiled just now, compiled before, or in the engine already."""
    key: str
    """Its directory below ``$LLMHOST_HOME/wheels``; empty when it was in the engine already."""
    sha256: str
    errors: Mapping[str, float]
    """Relative error against 32 bits, by case."""
    seconds: float

    @property
    def error(self) -> float:
        """The largest error."""
        return max(self.errors.values())


def ensure_flash_attn(
    home: Home, python: Path, wanted: bool | str, machine: MachineFacts, uv: Uv, devices: Sequence[str] = ()
) -> FlashAttnReport:
    """Put flash-attn (a version, or True for the tested one) into the engine of this interpreter, checked on the GPU.

    Nothing is changed in the engine before a wheel has passed its check, but for packages that a build needs. A wheel
    that fails leaves the store, wherever it came from; one whose check could not be made awaits the next call there.
    ``devices`` are what to check it on instead of the GPUs of ``machine``. Raises EngineError with cause and remedy,
    and BusyError when another llmhost compiles the same wheel.
    """
    began = time.monotonic()
    target = read_target(python)
    spec = plan_wheel(wanted, target, machine.gpus)
    for note in bundled_note(target):
        uv.progress.note(note)
    if target.packages.get("flash-attn") == spec.version:
        done = _verify_installed(python, machine, uv, devices)
        return FlashAttnReport(spec.version, "installed", "", "", done.errors, time.monotonic() - began)
    kept, found = find_wheel(home.wheels, spec, unverified=True), True
    if kept is None:
        kept, found = _build(home, python, spec, machine, uv), False
    elif RUNTIME not in target.packages:
        _ensure_packages([RUNTIME], python, home, uv)
    checked = _install(home, python, kept, machine, uv, devices)
    return FlashAttnReport(
        version=spec.version,
        source="kept" if found else "built",
        key=kept.folder.name,
        sha256=kept.sha256,
        errors=checked.errors,
        seconds=time.monotonic() - began,
    )


def require_possible(wanted: bool | str, device: Device, machine: MachineFacts) -> None:
    """Refuse before an engine is built for minutes what could not be put into it. Raises EngineError."""
    wanted_version(wanted)
    if device != "cuda":
        raise EngineError(
            f"engine.flash_attn: flash-attn needs a GPU, and this engine computes on the {device.upper()}",
            "leave engine.flash_attn out of llmhost.yaml, or ask for engine.device: cuda on a machine with NVIDIA GPUs",
        )
    archs_of(machine.gpus)


def foresee_flash_attn(
    home: Home,
    wanted: bool | str,
    release: Release,
    target: Target,
    machine: MachineFacts,
    *,
    own_compiler: bool = False,
) -> tuple[str, ...]:
    """How flash-attn would get into an engine that is not there yet, one fact a line; changes nothing.

    ``target`` is what is expected of the engine; ``own_compiler``: it brings nvcc. Raises EngineError where
    `ensure_flash_attn` would, as far as it shows before there is an engine.
    """
    require_possible(wanted, release.device, machine)
    spec = plan_wheel(wanted, target, machine.gpus)
    if kept := _kept_for(home.wheels, spec):
        return (f"flash-attn {spec.version} is installed from the wheel in {kept.folder}",)
    there = machine_of(home, machine)
    if own_compiler and release.cuda:
        there = with_own_toolkit(there, release.cuda, "that of the engine")
    lines = plan_build(spec, there).lines()
    # What CUDA_HOME will be is not known while the engine that brings the toolkit has no place.
    return tuple(line for line in lines if not (own_compiler and line.startswith("environment: ")))


def _kept_for(store: Path, spec: WheelSpec) -> KeptWheel | None:
    """A kept wheel that fits in everything that is known: the interpreter may not be."""
    for wheel in kept_wheels(store):
        wanted = replace(spec, target=replace(spec.target, python_tag=spec.target.python_tag or wheel.python_tag))
        if wheel.fits(wanted):
            return find_wheel(store, wanted, unverified=True)
    return None


def explain_flash_attn(home: Home, python: Path, wanted: bool | str, machine: MachineFacts) -> tuple[str, ...]:
    """What `ensure_flash_attn` would do, one fact a line; changes nothing. Raises EngineError where it would."""
    target = read_target(python)
    spec = plan_wheel(wanted, target, machine.gpus)
    notes = bundled_note(target)
    if target.packages.get("flash-attn") == spec.version:
        return (f"flash-attn {spec.version} is installed", *notes)
    if kept := find_wheel(home.wheels, spec, unverified=True):
        awaits = ", which awaits its check on the GPU" if kept.verified is None else ""
        return (f"flash-attn {spec.version} is installed from the wheel in {kept.folder}{awaits}", *notes)
    return (
        *plan_build(spec, machine_of(home, machine)).lines(),
        f"the wheel is kept in {home.wheels / spec.key}",
        *notes,
    )


def machine_of(home: Home, facts: MachineFacts) -> Machine:
    """What a build has to work with, of all that is known of this machine."""
    return Machine(
        toolkits=facts.toolkits,
        gpus=facts.gpus,
        cores=len(facts.host.cores),
        memory=facts.host.memory_available,
        disk=free_bytes(home.root),
        compilers=frozenset(program.name for program in facts.compilers),
        bare=frozenset(t.root for t in facts.toolkits if not _has_library_headers(Path(t.root))),
        environ=os.environ,
    )


def _has_library_headers(root: Path) -> bool:
    return any(next(root.glob(f"{folder}/cusparse.h"), None) for folder in ("include", "targets/*/include"))


def _build(home: Home, python: Path, spec: WheelSpec, machine: MachineFacts, uv: Uv) -> KeptWheel:
    plan = plan_build(spec, machine_of(home, machine))
    for line in plan.lines():
        uv.progress.note(line)
        uv.log.write(line)
    folder = home.cache / "flash-attn" / spec.key
    try:
        with setup_lock(folder):
            if kept := find_wheel(home.wheels, spec, unverified=True):  # somebody was faster
                return kept
            began = time.monotonic()
            _ensure_packages(plan.missing_tools, python, home, uv)
            archive = fetch_source(home.wheels, spec.version, python, uv)
            wheel = compile_wheel(plan, python, archive, folder, uv)
            # Before its check: whoever interrupts that must not lose what took an hour.
            kept = keep_wheel(home.wheels, wheel, spec, time.monotonic() - began, awaits_check=True)
    except OSError as e:
        place = f"{e.filename}: " if e.filename else ""
        raise EngineError(
            f"cannot build flash-attn in {folder}: {place}{e.strerror}", "see `df -h` and who owns the home"
        ) from e
    shutil.rmtree(folder, ignore_errors=True)
    uv.log.write(f"kept {kept.path}")
    return kept


def _ensure_packages(names: Sequence[str], python: Path, home: Home, uv: Uv) -> None:
    """Of the wheels that a bundle brought where they are enough: there may be no network."""
    if not names:
        return
    command = ["pip", "install", "--python", str(python), *names]
    brought = next(home.wheels.glob("*.whl"), None) is not None
    alone = [] if uv.settings.no_index else ["--no-index"]  # uv takes it once only
    if brought and uv.run([*command, *alone, "--find-links", str(home.wheels)]) is None:
        return
    if failure := uv.run(command):
        raise failure.as_error(f"install what flash-attn needs ({', '.join(names)})", uv.log)


def _install(
    home: Home, python: Path, wheel: KeptWheel, machine: MachineFacts, uv: Uv, devices: Sequence[str]
) -> Verified:
    """Check it beside the engine first: an engine that serves must not get what does not work."""
    trial = home.cache / "flash-attn" / f"trial-{os.getpid()}"
    try:
        _pip_install(["--target", str(trial)], python, wheel, uv)
        checked = verify(python, trial, machine.gpus, uv, devices)
    except BadWheelError as e:
        raise _discard(wheel, e) from e
    except EngineError as e:
        if wheel.verified is None:
            kept = f"the wheel is kept, and the next setup checks it (remove {wheel.folder} to have it compiled anew)"
            raise EngineError(e.message, f"{e.hint}; {kept}") from e
        raise
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    try:
        record_check(wheel, checked.errors)
    except OSError as e:
        uv.log.write(f"{wheel.record}: what the check measured cannot be written: {e.strerror}")
    uv.progress.started(INSTALL)
    _pip_install([], python, wheel, uv)
    uv.progress.finished(INSTALL, wheel.file)
    return checked


def _verify_installed(python: Path, machine: MachineFacts, uv: Uv, devices: Sequence[str]) -> Verified:
    try:
        return verify(python, None, machine.gpus, uv, devices)
    except BadWheelError as e:
        remove = f"`uv pip uninstall --python {python} flash-attn`"
        raise EngineError(e.message, f"it was in the engine already: {remove}, then run setup again; {e.hint}") from e


def _discard(wheel: KeptWheel, found: BadWheelError) -> EngineError:
    """Take a wheel that failed its check out of the store; what was found, with what to do then."""
    try:
        remove_wheel(wheel)
        done = f"it is not installed, and its wheel was removed from {wheel.folder}"
    except OSError as e:
        done = f"it is not installed; remove {wheel.folder}, which llmhost cannot ({e.strerror})"
    again = "the next setup compiles it anew (a bundle brings its own again: install it once more)"
    return EngineError(found.message, f"{done}: {again}; {found.hint}")


def _pip_install(options: list[str], python: Path, wheel: KeptWheel, uv: Uv) -> None:
    command = ["pip", "install", "--python", str(python), "--no-deps", "--reinstall", *options, str(wheel.path)]
    if failure := uv.run(command):
        raise failure.as_error(f"install {wheel.path}", uv.log)
