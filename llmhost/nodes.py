"""What this node does of the whole: who it is, what the others have, where each replica runs.

Decided from files that are the same on every node: llmhost.yaml, ``nodes/*.json`` (facts of the nodes), and below
``nodes/shared`` the facts of the models and where everything was placed before. What a start decides it leaves there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from llmhost import node_identity
from llmhost.config import Config
from llmhost.config_nodes import gateway_port, is_ip, is_loopback
from llmhost.errors import ConfigError, FactsError, HomeError
from llmhost.facts import ModelFacts, NodeFacts
from llmhost.inspection import read_anywhere
from llmhost.models import read_models
from llmhost.paths import Home
from llmhost.plan.placement import NOWHERE, Part, Placement, place
from llmhost.plan.spans import Spans, find_spans
from llmhost.plan.types import NodePlan
from llmhost.probe.endpoint import is_our_address
from llmhost.probe.interface import address_of
from llmhost.probe.node_facts import own_name, read_nodes
from llmhost.writer import replace_file

FORMAT = 1
EVERYWHERE = "0.0.0.0"
HINT = "remove it: it is written again"

Models = dict[str, ModelFacts]


@dataclass(frozen=True)
class Whole:
    """What all nodes do, and what this one does of it."""

    config: Config
    """As written, with a service for every rank of a model that spans nodes."""
    models: Models
    """Of every service of vLLM, by service."""
    part: Part

    @property
    def own(self) -> Config:
        """As this node carries it out."""
        return self.part.of(self.config)


def read_whole(home: Home, config: Config, before: Placement | None = None) -> Whole | None:
    """None in a home without nodes. Changes nothing. ``before`` takes the place of what was placed last.

    Raises HomeError when this home does not say which node it is or cannot prove it, FactsError for facts of a node
    that are missing, PlanError when something fits on no node, and what reading a model raises.
    """
    if not config.nodes:
        return None
    own = own_name(home, config.nodes)
    facts = read_nodes(home, config.nodes)
    models = read_node_models(home, config)
    spans = find_spans(config.services, facts, models)
    config = config.model_copy(update={"services": spans.expand(config.services)})
    models = _with_ranks(models, spans)
    placement = place(config.services, facts, models, before or read_placement(home), spans)
    node_identity.require(home, own)
    return Whole(config, models, Part(own, node_plans(home, config, facts, own), placement, spans))


def foreseen(home: Home, config: Config) -> Placement:
    """Where everything would run if this were the configuration of these nodes, whichever of them this home is.

    Raises FactsError for facts of a node that are missing, PlanError when something fits on no node that it may run on,
    and what reading a model raises.
    """
    facts = read_nodes(home, config.nodes)
    models = read_node_models(home, config)
    spans = find_spans(config.services, facts, models)
    return place(spans.expand(config.services), facts, _with_ranks(models, spans), NOWHERE, spans)


def _with_ranks(models: Models, spans: Spans) -> Models:
    """Every rank of a model that spans nodes has the facts of the whole."""
    return models | {name: models[rank.service] for name, rank in spans.ranks.items()}


def own_config(home: Home, config: Config) -> Config:
    """The configuration as this node carries it out; in a home without nodes just as it is. Raises as `read_whole`."""
    whole = read_whole(home, config)
    return whole.own if whole else config


def write_shared(home: Home, whole: Whole) -> None:
    """Leave the facts of the models and the placement in the home, where they have changed; raises HomeError."""
    known: dict[str, Any] = {"format": FORMAT, "models": _by_reference(whole.config, whole.models)}
    texts = {home.node_models_file: known, home.placement_file: whole.part.placement.to_dict()}
    for file, data in texts.items():
        text = json.dumps(data, ensure_ascii=False, indent=1) + "\n"
        try:
            if not file.exists() or file.read_text(encoding="utf-8") != text:
                replace_file(file, text)
        except OSError as e:
            raise HomeError(f"cannot write {file}: {e.strerror}", "see `df -h` and the permissions of the home") from e


def read_placement(home: Home) -> Placement:
    """Where everything was placed last; nowhere before the first time. Raises FactsError for a file that is broken."""
    try:
        return Placement.from_dict(json.loads(home.placement_file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return NOWHERE
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as e:
        raise FactsError(f"{home.placement_file} is not what llmhost wrote: {e}", HINT) from e


def read_node_models(home: Home, config: Config) -> Models:
    """The facts of every model: those that the nodes share, else of a model that is here, else of one on a hub."""
    known = _read_known(home)

    def read(home: Home, config: Config, reference: str, kind: Any) -> ModelFacts:
        return known.get(_key(reference, kind)) or read_anywhere(home, config, reference, kind)

    reader: Callable[..., ModelFacts] = read
    return read_models(home, config, reader)


def _read_known(home: Home) -> dict[str, ModelFacts]:
    file = home.node_models_file
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r}")
        return TypeAdapter(dict[str, ModelFacts]).validate_python(data["models"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as e:
        raise FactsError(f"{file} is not what llmhost wrote: {str(e).splitlines()[0]}", HINT) from e


def _key(reference: str, kind: str | None) -> str:
    return f"{kind or 'auto'} {reference}"


def _by_reference(config: Config, models: Mapping[str, ModelFacts]) -> dict[str, Any]:
    services = config.services
    return {_key(services[name].model, services[name].kind): asdict(facts) for name, facts in sorted(models.items())}


def node_plans(home: Home, config: Config, facts: Mapping[str, NodeFacts], own: str) -> tuple[NodePlan, ...]:
    """Where each node is reached; raises ConfigError for a host that nobody knows and whose facts do not tell."""
    plans = []
    for name, address in _addresses(config, facts).items():
        node = config.nodes[name]
        ours = name == own
        listen = (address if is_our_address(address) else EVERYWHERE) if ours else ""
        mark = node_identity.mark(home, name) if ours else ""
        plans.append(NodePlan(name, address, gateway_port(node, config.gateway.port), listen, mark))
    return tuple(plans)


def _addresses(config: Config, facts: Mapping[str, NodeFacts]) -> dict[str, str]:
    """The IP address of each node, as other nodes reach it.

    Debian and Ubuntu write ``127.0.1.1 HOSTNAME`` into /etc/hosts: its own name means loopback to a machine.
    """
    known = {name: facts[name].address if is_ip(facts[name].address) else "" for name in config.nodes}
    found = {name: _address(name, node.address, known[name]) for name, node in config.nodes.items()}
    if all(is_loopback(address) for address in found.values()):
        return found  # homes of one machine
    return {n: _beyond(n, a, config.nodes[n].address, known[n]) for n, a in found.items()}


def _beyond(name: str, address: str, written: str, known: str) -> str:
    """An address that is not loopback."""
    if not is_loopback(address):
        return address
    if not known or is_loopback(known):
        raise ConfigError(
            f"nodes.{name}.address: {written} is {address} here, where no other node reaches it", "write its IP address"
        )
    return known


def _address(name: str, written: str, known: str) -> str:
    """The IP address of a node: what its name means now, else what it meant when its facts were read."""
    try:
        return address_of(written)
    except OSError as e:
        if known:
            return known
        raise ConfigError(
            f"nodes.{name}.address: nobody knows the host {written} ({e.strerror or e})", "write its IP address"
        ) from e
