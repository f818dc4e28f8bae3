"""`llmhost doctor`: everything that is looked at, in one list.

What is read stands here; what follows from it is decided in `llmhost.diagnosis`, mostly by pure functions.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from llmhost import config as configuration
from llmhost import ports
from llmhost.boot.install import unit_plan
from llmhost.boot.unitfile import render_unit
from llmhost.config import Config
from llmhost.diagnosis import Check, fail, ok, warn
from llmhost.diagnosis.engine import check_deep, check_engine, check_newest, check_unbuilt
from llmhost.diagnosis.gpus import check_compiler, check_driver, check_holders, check_toolkits, check_visibility
from llmhost.diagnosis.home import check_home, check_leftovers, check_supervisord, holders
from llmhost.diagnosis.resources import check_disk, check_limits, check_shared_memory, check_watchers
from llmhost.diagnosis.subject import Limits, Subject, has_infiniband
from llmhost.env import find_engine
from llmhost.env.current import engine_name
from llmhost.env.manifest import read_manifest
from llmhost.env.setup import Prospect, foresee_engine, remark_on
from llmhost.errors import LlmhostError
from llmhost.foreign import needs_vllm
from llmhost.hub.lock import read_lock
from llmhost.hub.remote import Reference
from llmhost.models import read_models
from llmhost.nodes import own_config
from llmhost.paths import Home
from llmhost.planning import make_home_plan
from llmhost.probe.cuda import find_toolkits
from llmhost.probe.interpreters import Found, read_interpreter
from llmhost.probe.machine import read_essentials, read_machine
from llmhost.probe.model import models_directory
from llmhost.probe.programs import conda_environments, find_compilers
from llmhost.supervise.leftovers import Leftovers
from llmhost.supervise.units import find_unit


def examine(home: Home, found: Leftovers, *, deep: bool = False) -> list[Check]:
    """Look at everything; ``found`` is what a former life left, ``deep`` runs the engine's interpreter.

    Nothing is changed. A check that cannot be made is one that fails, with the reason.
    """
    read, config = _config(home)
    subject, python = _subject(home, config or Config())
    checks = [*check_home(home), *read]
    checks += [*check_disk(subject, _coming(home, subject.config)), *check_shared_memory(subject)]
    checks += [*check_limits(subject), *check_watchers(subject), *check_driver(subject), *check_visibility(subject)]
    checks += [*check_holders(holders(home, subject.facts.gpu_processes, found))]
    checks += [*check_toolkits(subject), *check_compiler(subject), *_engine(home, subject, python)]
    if deep and subject.engine is not None:
        checks += check_deep(home, subject.engine, python)
    supervisord = check_supervisord(home)
    if config is not None and config.services:
        answers = supervisord.status == "ok"  # else whoever asks what runs waits for a minute
        checks += _services(home, config, planned=answers and (subject.engine is not None or not needs_vllm(config)))
        checks += [_ports(home, config)] if answers else []
    return [*checks, supervisord, _unit(home, config), *check_leftovers(found)]


def _config(home: Home) -> tuple[list[Check], Config | None]:
    if not home.config_file.exists():
        return [ok("config", f"there is no {home.config_file} yet; `llmhost init` writes one")], None
    try:
        config = configuration.load(home.config_file)
    except LlmhostError as e:
        return [fail("config", e.message, e.hint)], None
    read = [ok("config", f"{home.config_file}: {', '.join(config.services) or 'no services'}")]
    try:
        return read, own_config(home, config)
    except LlmhostError as e:
        return [*read, fail("nodes", e.message, e.hint)], None


def _subject(home: Home, config: Config) -> tuple[Subject, Found | None]:
    """Everything that pure checks look at; programs are asked side by side."""
    engine = find_engine(home, config.engine)
    if engine is None and needs_vllm(config):
        # What decides which engine is built, and whether: all that `llmhost setup` looks at.
        machine = read_machine(home, models_directory(home, config))
        return Subject(machine, Limits.read(), config, infiniband=has_infiniband()), None
    manifest = read_manifest(home.engine_dir(engine.name)) if engine else None
    with ThreadPoolExecutor(max_workers=4) as pool:
        compilers = pool.submit(find_compilers)
        python = pool.submit(read_interpreter, engine.python) if engine else None
        essentials = pool.submit(read_essentials, home, models_directory(home, config))
        found = python.result() if python else None
        folders = found.site_packages if found else ()
        toolkits = pool.submit(find_toolkits, os.environ, Path("/"), folders, conda_environments())
    facts = replace(essentials.result(), compilers=compilers.result(), toolkits=toolkits.result())
    subject = Subject(
        facts, Limits.read(), config, engine,
        packages=manifest.packages if manifest else {},
        python=found.interpreter if found else None,
        infiniband=has_infiniband(),
    )  # fmt: skip
    return subject, found


def _engine(home: Home, subject: Subject, python: Found | None) -> Iterator[Check]:
    if not needs_vllm(subject.config):
        yield ok("engine", "no service needs vLLM")
        return
    if subject.engine is not None:
        yield from check_engine(home.engine_dir(subject.engine.name), subject.engine, subject.packages, python)
        yield from check_newest(remark_on(subject.engine, subject.config.engine, subject.facts))
        return
    name = engine_name(home, subject.config.engine)
    there = read_manifest(home.engine_dir(name)) is not None
    yield from check_unbuilt(name, _prospect(home, subject), replaced=there)


def _prospect(home: Home, subject: Subject) -> Prospect | LlmhostError:
    try:
        return foresee_engine(home, subject.config.engine, subject.facts)
    except LlmhostError as e:
        return e


def _coming(home: Home, config: Config) -> dict[str, int]:
    """Bytes that models which are not here will take, as far as llmhost.lock knows them."""
    models = models_directory(home, config)
    try:
        known = read_lock(home.lock_of_models).models
    except LlmhostError:
        return {}
    wanted = {s.source for s in config.services.values() if s.replicas and s.source in known}
    missing = [m for m in wanted if (ref := Reference.parse(m)) and not ref.directory(models).is_dir()]
    return {str(models): sum(file.size for m in missing for file in known[m].files)} if missing else {}


def _services(home: Home, config: Config, *, planned: bool) -> Iterator[Check]:
    """The models are there, and everything fits: the same plan that `up` would make."""
    models = models_directory(home, config)
    references = {name: Reference.parse(s.source) for name, s in config.services.items() if s.replicas}
    missing = [name for name, ref in references.items() if ref and not ref.directory(models).is_dir()]
    if missing:
        yield warn(
            "models",
            f"not here yet: those of {', '.join(missing)}",
            "`llmhost pull` (or `up`) fetches them; see `df -h`",
        )
        return
    try:
        read_models(home, config)
    except LlmhostError as e:
        yield fail("models", e.message, e.hint or "see `llmhost inspect`")
        return
    yield ok("models", "those of all services are here")
    if planned:
        try:
            make_home_plan(home)
        except LlmhostError as e:
            yield fail("plan", e.message, e.hint or "see `llmhost plan`")
        else:
            yield ok("plan", "all services fit")


def _ports(home: Home, config: Config) -> Check:
    try:
        ports.require_of_config(home, config)
    except LlmhostError as e:
        return fail("ports", e.message, e.hint)
    every = (config.gateway.port, *(s.port for s in config.services.values() if s.port))
    return ok("ports", f"{', '.join(map(str, every))} on {config.gateway.host}")


def _unit(home: Home, config: Config | None) -> Check:
    """The systemd unit is what `llmhost enable` would write now."""
    unit = find_unit(home)
    if unit is None:
        enable = "; `llmhost enable` makes it" if shutil.which("systemctl") else ""
        return ok("systemd", f"services do not start with the machine{enable}")
    again = f"llmhost enable{' --user' if unit.scope == 'user' else ''} --name {unit.name.removesuffix('.service')}"
    if not unit.enabled:
        return warn("systemd", f"{unit.name} is there, and does not start with the machine", f"`{again}`")
    try:
        current = render_unit(unit_plan(home, unit, config or Config()))
        there = Path(unit.path).read_text(encoding="utf-8")
    except (LlmhostError, OSError, KeyError) as e:
        return warn("systemd", f"cannot compare {unit.path} with what it should be: {e}", f"`{again}` writes it anew")
    if there != current:
        return warn(
            "systemd", f"{unit.path} is not what this llmhost and llmhost.yaml want", f"`{again}` writes it anew"
        )
    return ok("systemd", f"{unit.name} is current")
