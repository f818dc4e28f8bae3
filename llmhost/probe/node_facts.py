"""The facts of a node as a file beside the configuration, for all nodes to plan with.

The file holds what `llmhost facts --json` says of the machine, and beside it what a home adds: its engine, and the GPUs
that its engines may share out. Only what decides about placement is read back: a node may have another llmhost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from llmhost.errors import FactsError, HomeError
from llmhost.facts import Gpu, HostFacts, MachineFacts, NodeFacts
from llmhost.paths import Home
from llmhost.probe.facts_file import facts_to_json

FORMAT = 1
"""Goes up when a file of an older llmhost would be misunderstood."""
HINT = "write it again with `llmhost node add` (or `llmhost node sync`)"


def node_to_json(node: NodeFacts, machine: MachineFacts) -> dict[str, Any]:
    """Ready for JSON; `read_node` reads it back."""
    own = {key: value for key, value in asdict(node).items() if key not in ("name", "host", "llmhost")}
    return {"format": FORMAT, "name": node.name, **own, "facts": facts_to_json(machine)}


def read_nodes(home: Home, names: Iterable[str]) -> dict[str, NodeFacts]:
    """The facts of these nodes, by name; raises FactsError for one whose file is missing or cannot be read."""
    return {name: read_node(home, name) for name in names}


def read_node(home: Home, name: str) -> NodeFacts:
    """The facts of one node; raises FactsError."""
    file = home.node_facts_file(name)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FactsError(
            f"nodes.{name}: its facts are missing ({file})", f"read them with `llmhost node add {name}`"
        ) from None
    except (OSError, UnicodeDecodeError) as e:
        raise FactsError(f"nodes.{name}: cannot read {file}: {e}", HINT) from e
    try:
        return _from_dict(name, json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise FactsError(f"nodes.{name}: {file} holds no facts of a node ({type(e).__name__}: {e})", HINT) from e


def _from_dict(name: str, data: Mapping[str, Any]) -> NodeFacts:
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']!r}, and this llmhost reads format {FORMAT}")
    if data["name"] != name:
        raise ValueError(f"they are those of {data['name']}")
    if data["device"] not in ("cpu", "cuda"):
        raise ValueError(f"device {data['device']!r}")
    facts = data["facts"]
    host = facts["host"]
    return NodeFacts(
        name=name,
        host=HostFacts(tuple(map(int, host["cores"])), int(host["memory_total"]), int(host["memory_available"])),
        gpus=tuple(map(_gpu, data["gpus"])),
        device=data["device"],
        llmhost=str(facts["llmhost"]),
        engine=str(data["engine"]),
        address=str(data["address"]),
    )


def _gpu(data: Mapping[str, Any]) -> Gpu:
    major_minor = data.get("capability")
    capability = (int(major_minor[0]), int(major_minor[1])) if major_minor else None
    return Gpu(
        int(data["index"]), str(data["name"]), int(data["total"]), int(data["free"]), capability, str(data["uuid"])
    )


def own_name(home: Home, nodes: Iterable[str]) -> str:
    """Which of the nodes this home is; raises HomeError when it does not say, or says one that there is not."""
    known = list(nodes)
    hint = f"`llmhost node add` writes it; by hand: echo {known[0] if known else 'NAME'} > {home.node_file}"
    try:
        name = home.node_file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise HomeError(f"llmhost.yaml has nodes, and {home.root} does not say which of them it is", hint) from None
    except (OSError, UnicodeDecodeError) as e:
        raise HomeError(f"cannot read {home.node_file}: {e}", hint) from e
    if name not in known:
        raise HomeError(
            f"{home.node_file} says that this is node {name!r}, and llmhost.yaml has: {', '.join(known)}", hint
        )
    return name
