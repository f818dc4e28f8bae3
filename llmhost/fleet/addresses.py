"""Where this machine finds the nodes, by what the plan says of it (`llmhost.nodes.node_plans`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmhost.config import Config, Node
from llmhost.errors import ConfigError, FactsError
from llmhost.facts import HostFacts, NodeFacts
from llmhost.nodes import node_plans
from llmhost.paths import Home
from llmhost.probe.interface import find_address
from llmhost.probe.node_facts import read_node

WITNESS = "192.0.2.1"
"""An address that is nobody's (RFC 5737): beside it loopback is refused, as it is beside those of other machines."""


def find_addresses(home: Home, config: Config) -> dict[str, str]:
    """The IP address of each node; of one that the plan refuses what its name means here, '' for nothing."""
    known = {name: _recorded(home, name) for name in config.nodes}
    try:
        return _planned(home, config, config.nodes, known)
    except ConfigError:  # of one of them
        return {name: _find_one(home, config, name, known[name]) for name in config.nodes}


def require_addresses(home: Home, before: Config, after: Config, names: Iterable[str]) -> dict[str, str]:
    """The IP addresses of nodes that are written anew; raises ConfigError, as the plan with them would.

    What was recorded of a node counts as long as it has the same ``address`` in llmhost.yaml (``before``, ``after``).
    """
    nodes = {name: after.nodes[name] for name in names}
    known = {}
    for name, node in nodes.items():
        stays = name in before.nodes and before.nodes[name].address == node.address
        known[name] = (_recorded(home, name) if stays else "") or find_address(node.address)
    return _planned(home, after, nodes, known)


def _planned(home: Home, config: Config, nodes: Mapping[str, Node], known: Mapping[str, str]) -> dict[str, str]:
    facts = {name: NodeFacts(name, HostFacts((), 0, 0), address=known[name]) for name in nodes}
    only = config.model_copy(update={"nodes": dict(nodes)})
    return {plan.name: plan.address for plan in node_plans(home, only, facts, own="")}


def _find_one(home: Home, config: Config, name: str, known: str) -> str:
    node = config.nodes[name]
    beside = Node(address=WITNESS)
    try:
        return _planned(home, config, {name: node, WITNESS: beside}, {name: known, WITNESS: WITNESS})[name]
    except ConfigError:
        return find_address(node.address)


def _recorded(home: Home, name: str) -> str:
    """What its facts say; '' without any."""
    try:
        return read_node(home, name).address
    except FactsError:
        return ""
