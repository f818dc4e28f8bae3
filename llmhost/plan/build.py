"""Config + facts -> Plan. Pure: the same input gives the same plan, so an unchanged service is never restarted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmhost.config import Config, Service, served_names
from llmhost.errors import PlanError
from llmhost.facts import EngineFacts, HostFacts, ModelFacts, Tools
from llmhost.paths import Home
from llmhost.plan.args import vllm_arguments
from llmhost.plan.cpu import CpuShare, share_cpu
from llmhost.plan.types import EnginePlan, GatewayPlan, Plan, ProgramPlan, ServicePlan

MIB = 2**20

QUIET_PATHS = "/health,/metrics"
"""Polled all the time; left out of the engine's access log."""


@dataclass(frozen=True)
class Machine:
    """Everything the plan knows about where it runs."""

    home: Home
    host: HostFacts
    tools: Tools
    engine: EngineFacts


def make_plan(config: Config, machine: Machine, models: Mapping[str, ModelFacts]) -> Plan:
    """The plan for a configuration on a machine; ``models`` holds the facts of each service's model by service name.

    Raises PlanError (wrong or unknown vLLM flags, not enough memory) and HomeError (a socket path too long).
    """
    shares = share_cpu(config.services, machine.host, models)
    services = tuple(_service(name, s, machine, models[name], shares[name]) for name, s in config.services.items())
    machine.home.check_socket_paths(tuple(p.name for s in services for p in s.replicas))
    gateway = config.gateway
    engine = machine.engine
    return Plan(
        home=str(machine.home.root),
        tools=machine.tools,
        engine=EnginePlan(engine.name, engine.python, engine.device, engine.vllm_version),
        gateway=GatewayPlan(gateway.host, gateway.port, gateway.max_body_mib * MIB),
        services=services,
        on_event=config.on_event,
    )


def _service(
    name: str, service: Service, machine: Machine, model: ModelFacts, shares: tuple[CpuShare, ...]
) -> ServicePlan:
    names = served_names(name, service)
    kind = service.kind or model.kind
    arguments = vllm_arguments(name, service.args, machine.engine.flags)
    _check_parsers(name, service, machine.engine)
    replicas = tuple(
        _program(f"{name}-{index}", service, machine, model, names, arguments, share)
        for index, share in enumerate(shares)
    )
    return ServicePlan(
        name=name,
        kind=kind,
        kind_reason="written in llmhost.yaml" if service.kind else model.kind_reason,
        model=service.model,
        model_path=model.path,
        served_as=names,
        port=service.port,
        start_timeout=service.start_timeout,
        stop_timeout=service.stop_timeout,
        replicas=replicas,
        hang_timeout=service.hang_timeout,
        max_restarts=service.max_restarts,
    )


def _program(
    name: str,
    service: Service,
    machine: Machine,
    model: ModelFacts,
    names: tuple[str, ...],
    arguments: tuple[str, ...],
    share: CpuShare,
) -> ProgramPlan:
    socket = str(machine.home.engine_socket(name))
    inferred = _inferred_arguments(service, machine, model, share)
    argv = (
        machine.engine.python, "-m", "vllm.entrypoints.openai.api_server",
        "--model", model.path, "--served-model-name", *names, "--uds", socket, *inferred, *arguments,
    )  # fmt: skip
    return ProgramPlan(
        name=name,
        argv=argv,
        env={**_environment(machine, name, share), **service.env},
        socket=socket,
        gpus=(),
        cores=share.cores,
        memory_bytes=share.memory_bytes,
        kv_cache_bytes=share.kv_cache_bytes,
    )


def _inferred_arguments(service: Service, machine: Machine, model: ModelFacts, share: CpuShare) -> tuple[str, ...]:
    """Flags that llmhost adds: only those that the installed vLLM has and that the user did not write."""
    wanted: dict[str, str | None] = {}
    if (service.kind or model.kind) != "chat":
        wanted["runner"] = "pooling"
    wanted["kv_cache_memory_bytes"] = str(share.kv_cache_bytes)
    wanted["shutdown_timeout"] = str(int(service.stop_timeout))
    # The gateway's access log has every request, with its service and its time.
    wanted["disable_uvicorn_access_log"] = None
    wanted["disable_access_log_for_endpoints"] = QUIET_PATHS
    written = {key.replace("-", "_") for key in service.args}
    flags = machine.engine.flags
    return tuple(
        word
        for flag, value in wanted.items()
        if flag in flags and flag not in written
        for word in (f"--{flag.replace('_', '-')}", value)
        if word is not None
    )


def _environment(machine: Machine, program: str, share: CpuShare) -> dict[str, str]:
    """The engine's environment: its mark, caches inside the home, nothing that phones out."""
    cache = machine.home.cache / machine.engine.name
    return {
        # Every process of an engine carries this mark, so that leftovers can be told from strangers.
        "LLMHOST_PROGRAM": f"{machine.home.root}:{program}",
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "torchinductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        # Models are directories here; without this a hub is asked for files that do not exist in them.
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # Progress bars go to a log file, where each step of one is more text: one in ten seconds is enough.
        "TQDM_MININTERVAL": "10",
        **share.environment,
    }


def _check_parsers(name: str, service: Service, engine: EngineFacts) -> None:
    """Refuse a parser name that the installed vLLM does not register, unless a plugin brings its own."""
    args = {key.replace("-", "_"): value for key, value in service.args.items()}
    known = {"tool_call_parser": engine.tool_call_parsers, "reasoning_parser": engine.reasoning_parsers}
    for key, names in known.items():
        value = args.get(key)
        plugin = "tool_parser_plugin" if key == "tool_call_parser" else "reasoning_parser_plugin"
        if value is not None and names and value not in names and not args.get(plugin):
            raise PlanError(
                f"services.{name}.args.{key}: vLLM {engine.vllm_version} has no parser {value!r}",
                f"it has: {', '.join(names)}",
            )
