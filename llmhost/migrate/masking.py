"""Secrets in old configurations: their values are repeated nowhere."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ENDS = re.compile(r"(TOKEN|KEYS?|PASSWORD|PASSWD|(?<!BY)PASS|PWD|SECRETS?|CREDENTIALS?)$", re.IGNORECASE)
_LIKE = re.compile(r"\b(sk-|hf_|ms-)\w[\w-]{7,}|(?<=://)[^/@\s]+@")


def is_secret(name: str) -> bool:
    """Whether a variable or a flag holds a secret: the last word of its name says so (MAX_BATCH_TOKENS is none)."""
    parts = re.split(r"[_-]", name.lstrip("-"))
    return bool(_ENDS.search(parts[-1])) and parts[0].lower() != "max"


def holds_secret(value: str) -> bool:
    """Whether a value is a secret by its looks, or a URL with a password in it, whatever its name is."""
    return bool(_LIKE.search(value))


def masked(words: Sequence[str]) -> str:
    """A command line to show."""
    shown, hide = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        option = name.startswith("-")
        if hide and not option:
            shown.append("…")
        else:
            shown.append(f"{name}=…" if equals and is_secret(name) else _LIKE.sub("…", word))
            hide = option and not equals and is_secret(name)
    return " ".join(shown)
