"""This machine as a home sees it: its facts, what runs on it, and the GPUs that its engines may share out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from llmhost import config as configuration
from llmhost.config import Config
from llmhost.env import find_engine
from llmhost.errors import ConfigError, EngineError, PlanError
from llmhost.facts import Device, EngineFacts, Gpu, GpuProcess, MachineFacts, NodeFacts
from llmhost.paths import Home
from llmhost.plan.cpu import require_room
from llmhost.plan.gpu import gpus_have_room
from llmhost.plan.running import Running, running
from llmhost.plan.types import EnginePlan, ProgramPlan
from llmhost.probe.gpus import read_gpus
from llmhost.probe.host import read_host
from llmhost.probe.machine import read_machine
from llmhost.probe.model import models_directory
from llmhost.probe.nvidia import Accelerators
from llmhost.supervise import lifecycle, owned
from llmhost.supervise.planfile import read_plan


def machine_facts(home: Home, note: Callable[[str], None]) -> MachineFacts:
    """The facts of this machine, with the models_dir of llmhost.yaml where there is one that can be read."""
    try:
        config = configuration.load(home.config_file) if home.config_file.exists() else Config()
    except ConfigError as e:
        note(f"{e.message}; models are looked for in {home.models}")
        config = Config()
    return read_machine(home, models_directory(home, config))


def node_facts(home: Home, config: Config, name: str, address: str = "") -> tuple[NodeFacts, MachineFacts]:
    """What this machine is as a node, and all its facts; ``address`` is its IP address for the other nodes.

    Without an engine yet, what llmhost.yaml and the machine say decides what it will compute on.
    """
    machine = read_machine(home, models_directory(home, config))
    engine = find_engine(home, config.engine)
    whole = [gpu for gpu in machine.gpus if not gpu.mig]
    asked: Device = "cuda" if config.engine.device == "cuda" or (config.engine.device == "auto" and whole) else "cpu"
    device = engine.device if engine else asked
    ours = owned.descendants(home) | {p.pid for p in machine.gpu_processes if owned.is_of(home, p.pid)}
    gpus = shareable(whole, machine.gpu_processes, ours, _planned(home)) if device == "cuda" else ()
    version = engine.vllm_version if engine else ""
    return NodeFacts(name, machine.host, gpus, device, machine.llmhost, version, address), machine


def gpus_for(
    home: Home, engine: EngineFacts | EnginePlan, read: Callable[[], Accelerators] = read_gpus
) -> tuple[Gpu, ...]:
    """The GPUs that the engines of a home share out; none for an engine that computes on the CPU.

    A GPU that is divided into MIG instances is left out: an engine would see one of them, whatever the plan says.
    Raises EngineError when there is no GPU that can be used, with the reason.
    """
    if engine.device != "cuda":
        return ()
    found = read()
    whole = [gpu for gpu in found.gpus if not gpu.mig]
    if not whole:
        raise _unusable(engine, found)
    ours = owned.descendants(home) | {p.pid for p in found.processes if owned.is_of(home, p.pid)}
    return shareable(whole, found.processes, ours, _planned(home))


def _unusable(engine: EngineFacts | EnginePlan, found: Accelerators) -> EngineError:
    about = f"the engine {engine.name} computes on GPUs"
    if found.gpus:
        return EngineError(
            f"{about}, and every GPU of this machine is divided into MIG instances",
            "switch that off: `sudo nvidia-smi -mig 0`; llmhost shares GPUs out itself",
        )
    return EngineError(
        f"{about}, and {found.driver.problem or 'this machine shows none'}", "see `llmhost doctor` and `nvidia-smi`"
    )


def read_running(home: Home) -> Running:
    """The engines of a home that run now, as the plan in force has them."""
    return running(read_plan(home), lifecycle.running(home))


def _planned(home: Home) -> dict[int, int]:
    """Bytes of each GPU that the engines that run were given."""
    given: dict[int, int] = {}
    for program in read_running(home).programs:
        for index in program.gpus:
            given[index] = given.get(index, 0) + program.gpu_memory_bytes
    return given


def shareable(
    gpus: Iterable[Gpu], processes: Iterable[GpuProcess], ours: Collection[int], planned: Mapping[int, int]
) -> tuple[Gpu, ...]:
    """The same GPUs with what our own processes hold counted as free; pure.

    Where the driver does not tell whose memory it is (in a container it may see other process ids), our engines are
    taken to hold what they were given (``planned``, bytes by GPU).
    """
    held: dict[int, int] = {}
    for process in processes:
        if process.pid in ours:
            held[process.gpu] = held.get(process.gpu, 0) + process.used
    return tuple(
        replace(gpu, free=min(gpu.total, gpu.free + (held.get(gpu.index) or planned.get(gpu.index, 0)))) for gpu in gpus
    )


def require_room_beside(
    home: Home, engine: EnginePlan, services: Collection[str], programs: Collection[ProgramPlan]
) -> None:
    """Raise PlanError when these engines, which include second ones of ``services``, do not fit at the same time."""
    require_room(services, programs, read_host())
    if not gpus_have_room(programs, gpus_for(home, engine)):
        raise PlanError(
            f"{', '.join(sorted(services))}: the GPUs have no room for new engines beside the present ones",
            "leave --surge out (the service then answers 503 until it is ready again), or stop another service first",
        )
