"""``nodes:`` of an llmhost.yaml or of a service in it, changed as a careful person would: all else stays.

Pure: text to text. What comes out is read again, and is the same configuration but for the one node or service.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, SequenceNode

from llmhost.errors import ConfigError

KEY = "nodes"
HEAD = "# The machines that share the services out among them; `llmhost node add` and `remove` write here.\n"


def with_node(text: str, name: str, node: Mapping[str, Any]) -> str:
    """The text with this node, whether it was there or not; raises ConfigError for what cannot be edited."""
    wanted = _data(text)
    present = dict(wanted.get(KEY) or {})
    if present.get(name) == node:
        return text
    wanted[KEY] = {**present, name: dict(node)}
    if name in present:
        text = without_node(text, name)
    for edited in (_with_lines(text, name, node), _round_trip(text, {**_nodes(text), name: dict(node)})):
        if edited is not None and _same(edited, wanted):
            return edited
    raise _refused(name)


def without_node(text: str, name: str) -> str:
    """The text without this node; raises ConfigError for what cannot be edited."""
    wanted = _data(text)
    rest = {key: value for key, value in (wanted.get(KEY) or {}).items() if key != name}
    wanted = {key: value for key, value in wanted.items() if key != KEY} | ({KEY: rest} if rest else {})
    for edited in (_without_lines(text, name), _round_trip(text, rest)):
        if edited is not None and _same(edited, wanted):
            return edited
    raise _refused(name)


def with_places(text: str, service: str, nodes: Sequence[str]) -> str:
    """The text in which ``nodes:`` of a service are these; raises ConfigError for what cannot be edited."""
    wanted = _data(text)
    value: Any = nodes[0] if len(nodes) == 1 else list(nodes)
    if wanted["services"][service].get(KEY) == value:
        return text
    changed = {**wanted["services"][service], KEY: value}
    wanted = {**wanted, "services": {**wanted["services"], service: changed}}
    written = _name(value) if isinstance(value, str) else f"[{', '.join(map(_name, value))}]"
    for edited in _placed(text, service, written):
        if _same(edited, wanted):
            return edited
    raise ConfigError(
        f"llmhost.yaml is written in a way in which services.{service}.nodes cannot be changed", "change it by hand"
    )


def _placed(text: str, service: str, written: str) -> Iterator[str]:
    """Ways to write it that touch as little as possible; not each of them is right for each text."""
    body = _child(_child(YAML(typ="safe", pure=True).compose(text), "services"), service)
    if not isinstance(body, MappingNode) or not body.value:
        return
    for key, value in body.value:
        if key.value == KEY:
            start, end = value.start_mark.index, value.end_mark.index
            if isinstance(value, SequenceNode) and not value.flow_style:  # its end is where the next thing begins
                start, end = key.end_mark.index, value.value[-1].end_mark.index
                written = f": {written}"
            if "#" not in text[start:end]:
                yield f"{text[:start]}{written}{text[end:]}"
            return
    first, value = body.value[0]
    if body.flow_style:
        end = body.value[-1][1].end_mark.index
        yield f"{text[:end]}, {KEY}: {written}{text[end:]}"
        return
    line = f"{' ' * first.start_mark.column}{KEY}: {written}\n"
    end = text.find("\n", value.end_mark.index) + 1 or len(text)
    yield f"{text[:end]}{'' if text[:end].endswith(chr(10)) else chr(10)}{line}{text[end:]}"
    start = first.start_mark.index
    yield f"{text[:start]}{line.lstrip()}{' ' * first.start_mark.column}{text[start:]}"


def _name(name: str) -> str:
    """As YAML reads it back: ``on`` and ``1`` would be something else."""
    return name if YAML(typ="safe", pure=True).load(name) == name else f"'{name}'"


def _child(node: Any, key: str) -> Any:
    values = node.value if isinstance(node, MappingNode) else ()
    return next((value for name, value in values if name.value == key), None)


def _refused(name: str) -> ConfigError:
    return ConfigError(f"llmhost.yaml is written in a way in which nodes.{name} cannot be changed", "change it by hand")


def _with_lines(text: str, name: str, node: Mapping[str, Any]) -> str | None:
    """A line after the last node, indented as it is."""
    loaded = _load(text)
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    if not loaded or not loaded.get(KEY):
        kept = [line for line in lines if line.split("#")[0].strip() not in (f"{KEY}:", f"{KEY}: {{}}")]
        gap = ["\n"] if kept and kept[-1].strip() else []
        return "".join([*kept, *gap, HEAD, f"{KEY}:\n", f"  {_line(name, node)}"])
    nodes = loaded[KEY]
    if not isinstance(nodes, CommentedMap) or nodes.fa.flow_style():
        return None
    last = list(nodes)[-1]
    row, column = nodes.lc.key(last)
    end = _end_of(lines, row, column)
    return "".join([*lines[:end], f"{' ' * column}{_line(name, node)}", *lines[end:]])


def _without_lines(text: str, name: str) -> str | None:
    loaded = _load(text)
    nodes = loaded.get(KEY) if loaded else None
    if not isinstance(nodes, CommentedMap) or nodes.fa.flow_style() or name not in nodes:
        return None
    lines = text.splitlines(keepends=True)
    row, column = nodes.lc.key(name)
    end = _end_of(lines, row, column)
    if len(nodes) == 1:
        row = loaded.lc.key(KEY)[0]
        row -= row > 0 and lines[row - 1] == HEAD
    return "".join([*lines[:row], *lines[end:]])


def _end_of(lines: list[str], row: int, column: int) -> int:
    """The line after a key and everything that belongs to it: what is indented further."""
    end = row + 1
    for number in range(row + 1, len(lines)):
        line = lines[number]
        if line.strip() and not line.lstrip().startswith("#"):
            if len(line) - len(line.lstrip()) <= column:
                break
            end = number + 1
    return end


def _line(name: str, node: Mapping[str, Any]) -> str:
    out = StringIO()
    yaml = YAML()
    yaml.width = 10_000
    entry = CommentedMap(node)
    entry.fa.set_flow_style()
    yaml.dump({name: entry}, out)
    return out.getvalue()


def _round_trip(text: str, nodes: Mapping[str, Any]) -> str | None:
    """The whole file written anew; comments and quotes are kept, indentation may change."""
    yaml = _yaml()
    loaded = yaml.load(text)
    if not isinstance(loaded, CommentedMap):
        return None
    if nodes:
        loaded[KEY] = {name: dict(node) for name, node in nodes.items()}
    else:
        loaded.pop(KEY, None)
    out = StringIO()
    yaml.dump(loaded, out)
    return out.getvalue()


def _nodes(text: str) -> dict[str, Any]:
    return dict(_data(text).get(KEY) or {})


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 10_000
    return yaml


def _load(text: str) -> Any:
    return _yaml().load(text)


def _data(text: str) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(text) or {}


def _same(text: str, wanted: Mapping[str, Any]) -> bool:
    try:
        return _data(text) == wanted
    except YAMLError:
        return False
