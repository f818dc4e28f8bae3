"""The plan of a home: what it is made from is read at one moment, what is decided is decided in `llmhost.plan`.

Nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmhost import config as configuration
from llmhost import foreign, keys, nodes
from llmhost.config import Config
from llmhost.env import find_engine
from llmhost.env.current import engine_name
from llmhost.errors import EngineError
from llmhost.facts import EngineFacts, Gpu, ModelFacts
from llmhost.inspection import read_anywhere
from llmhost.machine import gpus_for, read_running
from llmhost.models import read_models
from llmhost.outlook import outlook
from llmhost.paths import Home
from llmhost.plan import Plan
from llmhost.plan.build import make_plan
from llmhost.plan.gpu import Shares
from llmhost.plan.machine import Machine
from llmhost.plan.remedies import require_gpus
from llmhost.plan.running import Running
from llmhost.plan.values import check_arguments
from llmhost.probe.endpoint import read_endpoints
from llmhost.probe.host import read_host
from llmhost.probe.tools import find_tools
from llmhost.spanning import read_common


@dataclass(frozen=True)
class Inputs:
    """What a plan is made from, read at one moment."""

    config: Config
    machine: Machine
    models: Mapping[str, ModelFacts]
    whole: nodes.Whole | None = None
    """What all nodes do; `config` is what this one does of it."""

    def plan(self, there: Running) -> Plan:
        return make_plan(self.config, self.machine, self.models, there)


def make_home_plan(home: Home, insecure: bool = False) -> Plan:
    """The plan for a home whose engine is built; changes nothing. Raises EngineError when it is not."""
    return read_inputs(home, insecure).plan(read_running(home))


def place_on_gpus(home: Home, gpus: tuple[Gpu, ...]) -> tuple[Config, dict[str, ModelFacts], Shares]:
    """Where the services of a home would run on GPUs that need not be here, and with how much memory.

    Needs no engine (but checks flags against one that is there), and no models: what a hub has is asked there. Raises
    PlanError when they do not fit, with the nearest change that would.
    """
    config = configuration.load(home.config_file)
    models = read_models(home, config, read_anywhere)
    check_arguments(config.services, models, find_engine(home, config.engine))
    return config, models, require_gpus(config.services, gpus, models)


def make_plan_with(home: Home, engine: EngineFacts) -> Plan:
    """The plan of a home if this engine were the one that counts; changes nothing."""
    return _inputs(home, load_config(home, insecure=False), engine).plan(read_running(home))


def make_outlook(home: Home, plan: Plan) -> tuple[tuple[str, str], ...]:
    """What `up` would do to each service."""
    return outlook(home, plan, read_running(home))


def validate(home: Home, config: Config) -> bool:
    """Refuse what `make_home_plan` would; False when there is no engine to check the flags under ``args:`` against."""
    own = nodes.own_config(home, config)
    read_models(home, own)
    foreign.require_commands(home, own)
    built = foreign.has_environments(home, own)
    if not built or (foreign.needs_vllm(own) and find_engine(home, config.engine) is None):
        return False
    _inputs(home, config).plan(read_running(home))
    return True


def load_config(home: Home, insecure: bool) -> Config:
    """llmhost.yaml, with ``gateway.insecure`` switched on when the command line says so."""
    config = configuration.load(home.config_file)
    if not insecure:
        return config
    return config.model_copy(update={"gateway": config.gateway.model_copy(update={"insecure": True})})


def read_inputs(home: Home, insecure: bool) -> Inputs:
    """Read everything anew. Raises EngineError when the engine is not built."""
    return _inputs(home, load_config(home, insecure))


def _inputs(home: Home, config: Config, engine: EngineFacts | None = None) -> Inputs:
    whole = nodes.read_whole(home, config)
    config = whole.own if whole else config
    models = {**(whole.models if whole else {}), **read_models(home, config)}
    engine = engine or find_engine(home, config.engine) or foreign.without_vllm(config)
    if engine is None:
        raise EngineError(
            f"the engine {engine_name(home, config.engine)} is not built yet, so vLLM's flags are not known",
            "build it with `llmhost setup`",
        )
    return Inputs(config, _machine(home, config, engine, whole), models, whole)


def _machine(home: Home, config: Config, engine: EngineFacts, whole: nodes.Whole | None = None) -> Machine:
    endpoints = read_endpoints(config, home.root)
    gpus = gpus_for(home, engine) if any(s.replicas for s in config.services.values()) else ()
    found, own_ports = foreign.read_foreign(home, config), foreign.read_ports(home, config)
    known = keys.load(home.keys_file)
    part = whole.part if whole else None
    common = read_common(home, config.services, part)
    return Machine(
        home, read_host(), find_tools(), engine, known, endpoints, gpus, found, own_ports, part,
        common.interface, common.secret,
    )  # fmt: skip
