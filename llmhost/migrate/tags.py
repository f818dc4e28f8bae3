"""YAML as compose reads it: with ``!override`` and ``!reset``, which say how a file goes on top of another.

https://docs.docker.com/reference/compose-file/merge/#replace-value
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode


@dataclass(frozen=True)
class Override:
    """A value that takes the place of the one below, whatever that is."""

    value: Any


@dataclass(frozen=True)
class Reset:
    """Takes away the value below."""


class _Constructor(SafeConstructor):
    """Of its own, since constructors are registered for a class."""


def _plain(constructor: SafeConstructor, node: Node) -> Any:
    if isinstance(node, MappingNode):
        return SafeConstructor.construct_mapping(constructor, node, deep=True)
    if isinstance(node, SequenceNode):
        return constructor.construct_sequence(node, deep=True)
    plain = getattr(node, "style", None) is None
    tag = constructor.resolver.resolve(ScalarNode, node.value, (plain, not plain))
    return constructor.construct_object(ScalarNode(tag, node.value, node.start_mark, node.end_mark))


_Constructor.add_constructor("!override", lambda constructor, node: Override(_plain(constructor, node)))
_Constructor.add_constructor("!reset", lambda _, __: Reset())


def load(text: str) -> Any:
    """The document; raises YAMLError, ValueError or RecursionError for what is none."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    return yaml.load(text)


def untagged(value: Any) -> Any:
    """As it is where nothing is below: what was reset is not there."""
    if isinstance(value, Override):
        return untagged(value.value)
    if isinstance(value, Mapping):
        return {key: untagged(item) for key, item in value.items() if not isinstance(item, Reset)}
    if isinstance(value, list):
        return [untagged(item) for item in value if not isinstance(item, Reset)]
    return value
