"""Every key of llmhost.yaml as a page of Markdown: docs/config.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

HEAD = """# llmhost.yaml

Every key, made from the program by `llmhost config schema --markdown`. `llmhost config show` prints a file with all
defaults filled in, `llmhost config validate` checks one, and `llmhost config schema` is for editors.
"""

SECTIONS = (
    ("Config", "The whole file", ""),
    ("Engine", "engine:", ""),
    ("Gateway", "gateway:", ""),
    ("Tls", "gateway.tls:", ""),
    ("KeyLimits", "gateway.limits:", ""),
    ("Node", "nodes.NAME:", "NAME: as of a service. See docs/nodes.md."),
    (
        "Service",
        "services.NAME:",
        "NAME: a-z, 0-9 and '-' between them, up to 40 characters; not gateway, supervisord, metrics or access.",
    ),
    ("ServiceLimits", "services.NAME.limits:", ""),
    ("Span", "services.NAME.span:", "A number of nodes alone is enough, too. See docs/spanning.md."),
    ("Sticky", "services.NAME.sticky:", "`sticky: prefix` is short for 1024 bytes."),
    ("Endpoint", "services.NAME.endpoints, each:", "A URL alone is enough, too."),
    ("Request", "services.NAME.ready: and services.NAME.health:", "A path alone is enough, too."),
    ("Environment", "environments.NAME: and services.NAME.environment:", ""),
)

TYPES = {"string": "text", "integer": "whole number", "boolean": "true, false", "array": "list", "object": "mapping"}


def markdown(schema: dict[str, Any]) -> str:
    """The page for a JSON Schema of the whole configuration."""
    sections = {"Config": schema, **schema["$defs"]}
    missing = sections.keys() - {name for name, _, _ in SECTIONS}
    assert not missing, f"sections without a heading: {missing}"
    parts = [HEAD]
    for name, heading, note in SECTIONS:
        words = " ".join(filter(None, (sections[name].get("description", ""), note)))
        parts.append(f"## {heading}\n\n{_one_line(words)}\n\n" + "\n".join(_table(sections[name])) + "\n")
    return "\n".join(parts)


def _table(section: dict[str, Any]) -> Iterator[str]:
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    required = section.get("required", ())
    for key, field in section["properties"].items():
        default = "(needed)" if key in required else _default(field)
        yield f"| `{key}` | {_type(field)} | {default} | {_one_line(field.get('description', 'see below'))} |"


def _default(field: dict[str, Any]) -> str:
    default = field.get("default")
    return "" if default in (None, [], {}, "") or isinstance(default, dict) else f"`{json.dumps(default)}`"


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return "mapping"
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(t for part in field["anyOf"] if (t := _type(part)) != "null"))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    names = {
        "string": "text",
        "integer": "whole number",
        "boolean": "true, false",
        "array": "list",
        "object": "mapping",
    }
    kind = str(field.get("type", "anything"))
    return names.get(kind, kind) + _bounds(field)


def _bounds(field: dict[str, Any]) -> str:
    low, high = field.get("minimum", field.get("exclusiveMinimum")), field.get("maximum")
    above = "more than " if "exclusiveMinimum" in field else ""
    if low is None and high is None:
        return ""
    return f", {above}{_plain(low)} to {_plain(high)}" if high is not None else f", {above}{_plain(low)} or more"


def _plain(number: Any) -> str:
    return str(int(number) if number == int(number) else number)


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
