"""The user's pip configuration: where packages come from."""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys

from llmhost.errors import CommandError
from llmhost.run import capture

SECTIONS = ("global", "install", ":env:")
"""Sections that `pip install` reads, later ones win (pip's ``_get_ordered_configuration_items``)."""
CREDENTIALS = re.compile(r"(?<=://)[^/\s'\"]+(?=@)")
TOKEN = re.compile(r"(://[^/\s'\"]+/t/)[^/\s'\"]+")
"""``https://host/t/TOKEN/channel``, as Anaconda's repositories write it (for conda, and for pip)."""


def mask(text: str) -> str:
    """The text with ``user:password`` and tokens in URLs replaced."""
    return TOKEN.sub(r"\1****", CREDENTIALS.sub("****", text))


def read_pip_options() -> dict[str, str]:
    """pip's options by long name (``index-url``) as `pip install` would see them; without pip only ``PIP_*``."""
    for command in _pips():
        try:
            return parse_pip_config(capture([*command, "config", "list"]).stdout)
        except CommandError:
            continue
    prefix = "PIP_"
    return {k.removeprefix(prefix).lower().replace("_", "-"): v for k, v in os.environ.items() if k.startswith(prefix)}


def _pips() -> list[list[str]]:
    """Our interpreter's pip first: a virtual environment may have a configuration of its own."""
    others = filter(None, (shutil.which("pip3"), shutil.which("pip")))
    return [[sys.executable, "-m", "pip"], *([path] for path in others)]


def parse_pip_config(listing: str) -> dict[str, str]:
    """The output of `pip config list` (lines like ``global.index-url='https://…'``) as options."""
    options: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in listing.splitlines():
        key, equals, value = line.partition("=")
        section, _, name = key.strip().rpartition(".")
        if equals and section in options:
            options[section][name.replace("_", "-")] = _unquoted(value)
    return {name: value for section in SECTIONS for name, value in options[section].items()}


def _unquoted(value: str) -> str:
    try:
        return str(ast.literal_eval(value))
    except (SyntaxError, ValueError):
        return value
