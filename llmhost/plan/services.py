"""A service of llmhost.yaml -> its part of the plan, whatever runs it: vLLM, a command, or others elsewhere. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llmhost.config import Service, served_names
from llmhost.config_gateway import KeyLimits
from llmhost.config_requests import ServiceLimits
from llmhost.errors import PlanError
from llmhost.facts import EngineFacts, ForeignFacts, ModelFacts, ServiceKind
from llmhost.keys import ApiKey
from llmhost.plan import parts
from llmhost.plan.args import flag_name, vllm_arguments
from llmhost.plan.caches import cache_directory, cache_environment, cache_key
from llmhost.plan.choices import chosen_arguments, make_choices
from llmhost.plan.foreign import Address, Filling, foreign_plan, label, listens_on, thread_environment
from llmhost.plan.machine import Machine, Share
from llmhost.plan.memory import MIB
from llmhost.plan.running import program_mark
from llmhost.plan.types import Choice, EndpointPlan, Limits, ProgramPlan, ServicePlan, StickyPlan

QUIET_PATHS = "/health,/metrics"
"""Polled all the time; left out of the engine's access log."""


def vllm_service(
    name: str, service: Service, machine: Machine, model: ModelFacts, shares: Mapping[str, Share]
) -> ServicePlan:
    """A service that vLLM runs; raises PlanError for what the installed one does not know."""
    names = served_names(name, service)
    kind = service.kind or model.kind
    arguments = vllm_arguments(name, service.args, machine.engine.flags)
    _check_parsers(name, service, machine.engine)
    choices = make_choices(service, kind, model, machine.engine)
    replicas = tuple(
        _program(program, service, machine, model, names, arguments, share, choices)
        for program, share in shares.items()
    )
    reason = _reason(service, model.kind_reason)
    made = _with_settings(name, service, machine, kind, reason, service.model, model.path, replicas)
    return replace(made, choices=choices)


def foreign_service(
    name: str,
    service: Service,
    machine: Machine,
    shares: Mapping[str, Share],
    known: Mapping[str, Address],
    once: Mapping[str, Address],
) -> ServicePlan:
    """Another engine than vLLM; ``once`` holds the addresses that other services can name."""
    facts = machine.foreign[name]
    replicas = tuple(
        _foreign_program(program, service, machine, facts, share, known[program], once)
        for program, share in shares.items()
    )
    reason = _reason(service, "it has no kind, so it is not routed")
    kind = service.kind or "none"
    made = _with_settings(name, service, machine, kind, reason, label(service), facts.model_dir, replicas)
    return replace(made, foreign=foreign_plan(service, facts))


def service_elsewhere(name: str, service: Service, machine: Machine, model: ModelFacts | None) -> ServicePlan:
    """A service that other hosts serve alone. Nothing is known of it but what is written, and what other nodes know."""
    # Without nodes its kind is written down: `Service` insists.
    kind = service.kind or ("none" if service.is_foreign else model.kind if model else "chat")
    reason = _reason(service, model.kind_reason if model else "written in llmhost.yaml")
    source = label(service) if service.is_foreign else service.model
    made = _with_settings(name, service, machine, kind, reason, source, "", ())
    return replace(made, foreign=foreign_plan(service, ForeignFacts(""))) if service.is_foreign else made


def _reason(service: Service, otherwise: str) -> str:
    """Why it is of its kind."""
    return "written in llmhost.yaml" if service.kind else otherwise


def _with_settings(
    name: str,
    service: Service,
    machine: Machine,
    kind: ServiceKind,
    kind_reason: str,
    model: str,
    model_path: str,
    replicas: tuple[ProgramPlan, ...],
) -> ServicePlan:
    """With all that is as it is written, whatever runs it and wherever."""
    return ServicePlan(
        name=name,
        kind=kind,
        kind_reason=kind_reason,
        model=model,
        model_path=model_path,
        served_as=served_names(name, service),
        port=service.port,
        start_timeout=service.start_timeout,
        stop_timeout=service.stop_timeout,
        replicas=replicas,
        limits=limits(service.limits),
        default=service.default,
        endpoints=_endpoints(name, service, machine),
        sticky=_sticky(service),
        hang_timeout=service.hang_timeout,
        max_restarts=service.max_restarts,
        needs=tuple(service.needs),
    )


def limits(written: ServiceLimits | KeyLimits | ApiKey) -> Limits:
    """Of a service, a key or all keys; None where nothing is written."""
    size = written.max_body_mib
    return Limits(
        written.requests_per_minute, written.concurrent_requests, None if size is None else max(1, round(size * MIB))
    )


def _endpoints(name: str, service: Service, machine: Machine) -> tuple[EndpointPlan, ...]:
    known = machine.endpoints.get(name, ())
    return tuple(
        EndpointPlan(e.url, facts.address, e.key_file, facts.key, facts.ca_file)
        for e, facts in zip(service.endpoints, known, strict=True)
    )


def _sticky(service: Service) -> StickyPlan | None:
    sticky = service.sticky
    return None if sticky is None else StickyPlan(sticky.header and sticky.header.lower(), sticky.prefix)


def _foreign_program(
    name: str,
    service: Service,
    machine: Machine,
    facts: ForeignFacts,
    share: Share,
    own: Address,
    once: Mapping[str, Address],
) -> ProgramPlan:
    filling = Filling(machine.home, facts, own, share.gpus, once)
    _, *words = service.command
    return ProgramPlan(
        name=name,
        argv=(facts.program, *map(filling.text, words)),
        env={
            "LLMHOST_PROGRAM": program_mark(machine.home.root, name),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, share.gpus)),
            "PYTHONUNBUFFERED": "1",
            **thread_environment(service, share.cores, share.threads),
            **{key: filling.text(value) for key, value in service.env.items()},
        },
        socket=listens_on(service, own),
        gpus=share.gpus,
        gpu_memory_bytes=share.gpu_memory_bytes,
        cores=share.cores,
        memory_bytes=share.memory_bytes,
        kv_cache_bytes=0,
        threads=share.threads,
        ports=own.ports,
    )


def _program(
    name: str,
    service: Service,
    machine: Machine,
    model: ModelFacts,
    names: tuple[str, ...],
    arguments: tuple[str, ...],
    share: Share,
    choices: tuple[Choice, ...],
) -> ProgramPlan:
    group = machine.groups.of(name)
    socket = "" if group and group.rank else str(machine.home.engine_socket(name))
    more = machine.groups.arguments(name, service, model, machine.engine.device)
    inferred = _inferred_arguments(service, machine, model, share, choices, more)
    served = ("--served-model-name", *names, "--uds", socket)
    where = (machine.engine, machine.home, machine.groups)
    argv = parts.command(name, service, *where, model.path, served, len(share.gpus), (*inferred, *arguments))
    env = {**_environment(machine, name, share), **service.env, **parts.environment(name, service, *where)}
    return ProgramPlan(
        name=name,
        argv=argv,
        env=env,
        socket=socket,
        group=group,
        gpus=share.gpus,
        gpu_memory_bytes=share.gpu_memory_bytes,
        cores=share.cores,
        memory_bytes=share.memory_bytes,
        kv_cache_bytes=share.kv_cache_bytes,
        threads=share.threads,
    )


def _inferred_arguments(
    service: Service,
    machine: Machine,
    model: ModelFacts,
    share: Share,
    choices: tuple[Choice, ...],
    more: Mapping[str, str],
) -> tuple[str, ...]:
    """Flags that llmhost adds: only those that the installed vLLM has and that the user did not write."""
    wanted: dict[str, str | None] = {}
    if (service.kind or model.kind) != "chat":
        wanted["runner"] = "pooling"
    wanted |= chosen_arguments(choices, machine.engine)
    wanted |= share.arguments
    wanted |= more
    wanted["shutdown_timeout"] = str(int(service.stop_timeout))
    # The gateway's access log has every request, with its service and its time.
    wanted["disable_uvicorn_access_log"] = None
    wanted["disable_access_log_for_endpoints"] = QUIET_PATHS
    written = {flag_name(key) for key in service.args}
    flags = machine.engine.flags
    return tuple(
        word
        for flag, value in wanted.items()
        if flag in flags and flag not in written
        for word in (f"--{flag.replace('_', '-')}", value)
        if word is not None
    )


def _environment(machine: Machine, program: str, share: Share) -> dict[str, str]:
    """The engine's environment: its mark, caches inside the home, nothing that phones out."""
    cache = cache_directory(machine.home, cache_key(machine.engine, machine.gpus))
    return {
        "LLMHOST_PROGRAM": program_mark(machine.home.root, program),
        **cache_environment(cache, machine.engine.device),
        # Models are directories here; without this a hub is asked for files that do not exist in them.
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # Progress bars go to a log file, where each step of one is more text: one in ten seconds is enough.
        "TQDM_MININTERVAL": "10",
        **share.environment,
    }


def _check_parsers(name: str, service: Service, engine: EngineFacts) -> None:
    """Refuse a parser name that the installed vLLM does not register, unless a plugin brings its own."""
    args = {flag_name(key): value for key, value in service.args.items()}
    known = {"tool_call_parser": engine.tool_call_parsers, "reasoning_parser": engine.reasoning_parsers}
    for key, names in known.items():
        value = args.get(key)
        plugin = "tool_parser_plugin" if key == "tool_call_parser" else "reasoning_parser_plugin"
        if value is not None and names and value not in names and not args.get(plugin):
            raise PlanError(
                f"services.{name}.args.{key}: vLLM {engine.vllm_version} has no parser {value!r}",
                f"it has: {', '.join(names)}",
            )
