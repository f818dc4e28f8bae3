"""From one engine of a home to another, and back: the other one is built, tried beside what runs, and then counts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace

from llmhost import planning, workflow
from llmhost.config import Config, Engine
from llmhost.config_engine import VERSION
from llmhost.engines import load_or_default
from llmhost.env import Progress, ensure_engine, find_engine
from llmhost.env.current import choose_engine, engine_name, engine_names
from llmhost.env.lock import publish_lock
from llmhost.env.manifest import Manifest, Spec, read_manifest, write_manifest
from llmhost.env.releases import Release, choose_release
from llmhost.errors import ConfigError, EngineError, LlmhostError, NotReadyError, PlanError
from llmhost.facts import EngineFacts
from llmhost.homedir import claim
from llmhost.machine import read_running, require_room_beside
from llmhost.paths import Home
from llmhost.plan import Plan, ServicePlan
from llmhost.plan.args import vllm_arguments
from llmhost.plan.running import beside
from llmhost.probe.machine import read_machine
from llmhost.render import guard_spec_path, render
from llmhost.supervise import daemon, lifecycle
from llmhost.supervise.guarding.state import service_state
from llmhost.supervise.lock import home_lock
from llmhost.supervise.trial import try_program

Wait = Callable[[workflow.Started], None]
"""Waits until what was started is ready; raises NotReadyError."""


def upgrade(home: Home, to: str | None, progress: Progress, wait: Wait) -> EngineFacts:
    """Build another version beside the engine in use, try it, and switch to it; a failure leaves the old one serving.

    ``to`` is a version of vLLM, by default the newest that runs here. Raises ConfigError when llmhost.yaml names
    another one, and what building, planning and starting raise.
    """
    claim(home)
    config = load_or_default(home)
    former = engine_name(home, config.engine)
    release = _target(home, config.engine, to)
    _require_free_choice(home, config.engine, release)
    present = read_manifest(home.engine_dir(former))
    _require_way_back(former, present, config.engine)
    if present is not None and _same(present, release):
        raise EngineError(f"the engine {former} is vLLM {release.vllm} already", "see `llmhost engine list`")
    name = _name_for(home, release)
    new = ensure_engine(home, config.engine, progress, name=name, release=release)
    _check_flags(config, new)
    if config.services:
        _try_one(home, planning.make_plan_with(home, new), progress)
    _switch(home, former, name, progress, wait)
    return new


def _require_way_back(former: str, present: Manifest | None, engine: Engine) -> None:
    """The engine in use must be what llmhost.yaml asks for: else going back to it would build it anew."""
    lacking = present.lacking(engine.packages) if present else ()
    if lacking:
        raise ConfigError(
            f"engine.packages has {', '.join(lacking)}, and the engine {former} was built without",
            "run `llmhost up` first, which builds it with them; then run this again",
        )


def _target(home: Home, engine: Engine, to: str | None) -> Release:
    if engine.kind == "existing":
        raise EngineError(
            "an engine of kind: existing is never changed", "upgrade vLLM there yourself, then run `llmhost setup`"
        )
    if to is not None and not re.fullmatch(VERSION, to):
        raise EngineError(f"--to: {to!r} is no version of vLLM", "write it as the index has it: --to 0.32.0")
    wanted = engine.model_copy(update={"vllm": to or engine.vllm})
    return choose_release(read_machine(home), wanted)


def _require_free_choice(home: Home, engine: Engine, release: Release) -> None:
    """What is written in llmhost.yaml is not contradicted behind its back."""
    if engine.vllm not in (None, release.vllm):
        raise ConfigError(
            f"engine.vllm in {home.config_file} is {engine.vllm}, not {release.vllm}",
            f"write engine.vllm: {release.vllm} there, or remove the key, and run this again",
        )
    if "name" in engine.model_fields_set:
        raise ConfigError(
            f"engine.name in {home.config_file} names the engine {engine.name}",
            "remove the key, then `llmhost engine use` and `upgrade` choose among the engines",
        )


def _same(manifest: Manifest, release: Release) -> bool:
    return (manifest.vllm_version, manifest.device) == (release.vllm, release.device)


def _name_for(home: Home, release: Release) -> str:
    """The engine that has this release already, else a new one that is called like it."""
    for name in engine_names(home):
        manifest = read_manifest(home.engine_dir(name))
        if manifest is not None and _same(manifest, release) and manifest.is_there(home.engine_dir(name)):
            return name
    return re.sub(r"[^a-z0-9.-]", "-", f"{release.vllm}-{release.device}".lower())


def _check_flags(config: Config, engine: EngineFacts) -> None:
    """Every flag under args: that the new vLLM does not have, each with what to write instead."""
    problems: list[PlanError] = []
    for name, service in config.services.items():
        for key, value in service.args.items():
            try:
                vllm_arguments(name, {key: value}, engine.flags)
            except PlanError as e:
                problems.append(e)
    if problems:
        raise PlanError(
            f"vLLM {engine.vllm_version}: {'; '.join(p.message for p in problems)}",
            "; ".join(dict.fromkeys(p.hint for p in problems)),
        )


def _try_one(home: Home, plan: Plan, progress: Progress) -> None:
    """Start the smallest service on the new engine beside what runs, where there is room for it."""
    own = (s for s in plan.services if s.replicas and s.foreign is None)
    candidates = [s for s in own if not _spans(s, progress) and _has_needed(home, s, progress)]
    if not candidates:
        return
    service = min(candidates, key=lambda s: s.replicas[0].memory_bytes + s.replicas[0].gpu_memory_bytes)
    try:
        try_service(home, plan, service, progress)
    except PlanError as e:
        progress.note(f"not tried beside what runs: {e.message}")


def _spans(service: ServicePlan, progress: Progress) -> bool:
    """Whether other nodes would have to try it at the same time."""
    found = any(p.group for p in service.replicas)
    if found:
        progress.note(f"{service.name} is not tried: it spans nodes")
    return found


def _has_needed(home: Home, service: ServicePlan, progress: Progress) -> bool:
    """Whether all that it needs is ready: a trial starts nothing else, and would wait for it in vain."""
    folder = os.fsencode(home.run)
    lacking = [name for name in service.needs if not home.run.is_dir() or service_state(folder, name) != "ready"]
    if lacking:
        progress.note(f"{service.name} is not tried: it needs {' and '.join(lacking)}, which does not run")
    return not lacking


def try_service(home: Home, plan: Plan, service: ServicePlan, progress: Progress) -> float:
    """Start one engine of a service under a guard of its own, ask it something, stop it; the seconds until then.

    Raises PlanError when there is no room for it, NotReadyError when it does not start.
    """
    with home_lock(home, "engine"):  # from the beginning: nobody takes these names and this room meanwhile
        there = read_running(home)
        moved = beside(
            replace(service, replicas=service.replicas[:1]), replace(there, surge=frozenset({service.name})), home
        )
        (program,) = moved.replicas
        require_room_beside(home, plan.engine, {service.name}, (*there.programs, program))
        path = guard_spec_path(program.name)
        spec = next(f for f in render(replace(plan, services=(moved,))) if f.path == path)
        step = f"try {service.name} on vLLM {plan.engine.vllm_version}"
        progress.started(step)
        seconds = try_program(home, plan, program, spec, service.start_timeout, lambda _: None)
    progress.finished(step, f"answered after {seconds:.0f} s")
    return seconds


def use(home: Home, name: str, progress: Progress, wait: Wait) -> EngineFacts:
    """Make another engine of this home the one that counts, and bring what runs over to it.

    Raises EngineError when there is none of that name, ConfigError when llmhost.yaml asks for something else, and what
    starting raises; then the former one counts again.
    """
    claim(home)
    config = load_or_default(home)
    directory = home.engine_dir(name)
    manifest = read_manifest(directory) if name in engine_names(home) else None
    if manifest is None or not manifest.is_there(directory):
        known = ", ".join(engine_names(home)) or "none"
        raise EngineError(f"there is no engine {name}", f"built are: {known}; `llmhost engine upgrade` builds another")
    if "name" in config.engine.model_fields_set and config.engine.name != name:
        raise ConfigError(
            f"engine.name in {home.config_file} names the engine {config.engine.name}",
            f"write engine.name: {name} there (and run `llmhost up`), or remove the key",
        )
    if config.engine.vllm not in (None, manifest.vllm_version):
        raise ConfigError(
            f"engine.vllm in {home.config_file} is {config.engine.vllm}, the engine {name} has {manifest.vllm_version}",
            f"write engine.vllm: {manifest.vllm_version} there, or remove the key, and run this again",
        )
    former = engine_name(home, config.engine)
    _require_way_back(former, read_manifest(home.engine_dir(former)), config.engine)
    lacking = manifest.lacking(config.engine.packages)
    if lacking:
        raise ConfigError(
            f"the engine {name} was built without {', '.join(lacking)}, which engine.packages asks for",
            f"remove it in {home.config_file}; or `llmhost engine upgrade --to` another version, built with it",
        )
    # It was perhaps built for a pin that is gone: chosen by name, it is what is asked for.
    asked = replace(manifest, spec=replace(manifest.spec, vllm=config.engine.vllm))
    if not asked.satisfies(Spec.of(config.engine)):
        raise ConfigError(
            f"the engine {name} is not of the sort that engine: in {home.config_file} asks for"
            f" (kind {manifest.spec.kind}, {manifest.device}, Python {manifest.python_version})",
            "change engine: there",
        )
    write_manifest(directory, asked)
    facts = asked.facts(directory)
    _check_flags(config, facts)
    _switch(home, former, name, progress, wait)
    return facts


def _switch(home: Home, former: str, name: str, progress: Progress, wait: Wait) -> None:
    """The other engine counts from now on; what runs is brought over, and back when it does not become ready."""
    if name == former:
        publish_lock(home, name)
        return
    _choose(home, name, progress)
    if not daemon.is_running(home):
        progress.note(f"nothing is running; the next `llmhost up` starts on {name}")
        return
    try:
        wait(_reload(home, progress))
    except BaseException:
        progress.note(f"going back to the engine {former}")
        try:
            _choose(home, former, progress)
            workflow.reload(home, progress)
        except LlmhostError as e:
            progress.note(f"that does not succeed either: {e.message}; see `llmhost status`, then run `llmhost up`")
        raise


def _choose(home: Home, name: str, progress: Progress) -> None:
    """It counts from now on, and engine.lock is its."""
    manifest = read_manifest(home.engine_dir(name))
    choose_engine(home, name)
    if not publish_lock(home, name) and manifest is not None and manifest.lock:
        progress.note(f"{home.engine_lock} stays as it was: the packages of the engine {name} are not recorded")


def _reload(home: Home, progress: Progress) -> workflow.Started:
    """New engines beside the old ones where there is room, so that no request is lost; what was stopped stays so."""
    try:
        return workflow.reload(home, progress, surge=True)
    except PlanError as e:
        progress.note(f"one after the other: {e.message}")
        return workflow.reload(home, progress)


def warm(home: Home, progress: Progress) -> tuple[tuple[str, float], ...]:
    """Start one engine of every configured service once, so that its caches are filled; seconds by service.

    What runs already is warm, and is left alone; what needs services that do not run is left out. Raises NotReadyError
    when one does not start.
    """
    config = load_or_default(home)
    if not config.services:
        raise ConfigError(f"{home.config_file} has no services to warm up for", "write some under services:")
    engine = find_engine(home, config.engine)
    if engine is None:
        raise NotReadyError("the engine is not built", "run `llmhost setup`")
    plan = planning.make_plan_with(home, engine)
    alive = lifecycle.running(home)
    ours = [s for s in plan.services if s.replicas and s.foreign is None]
    idle = [s for s in ours if not any(p.name in alive for p in s.replicas)]
    return tuple((s.name, try_service(home, plan, s, progress)) for s in idle if _has_needed(home, s, progress))
