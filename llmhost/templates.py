"""The jinja2 environment of conf_templates/ and systemd/: a name that is not given is an error, not an empty string."""

from __future__ import annotations

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llmhost.paths import templates_dir, unit_templates_dir


def template_environment() -> Environment:
    """Loads from conf_templates/ and systemd/; nothing is escaped unless a filter says so (none of it is HTML)."""
    return Environment(
        loader=FileSystemLoader([templates_dir(), unit_templates_dir()]),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
