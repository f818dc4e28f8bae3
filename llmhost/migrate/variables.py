"""Variables in compose files, as compose fills them, and ``.env`` files."""

from __future__ import annotations

import re
from collections.abc import Mapping

VARIABLE = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)(:?[-?+])?)")
EMPTY = "the variable is not set: it was taken as empty"


def interpolated(text: str, environ: Mapping[str, str], missing: dict[str, str]) -> str:
    """``${NAME}``, ``${NAME:-default}`` (with variables in the default), ``$$``, as compose does it.

    Names without a value are added to ``missing`` with what there is to say about them, those of ``${NAME:?message}``,
    where compose ends with an error, too. What is no variable stays as it is.
    """
    done, start = [], 0
    while found := VARIABLE.search(text, start):
        done.append(text[start : found.start()])
        dollar, plain, braced, operator = found.groups()
        end = found.end()
        if dollar:
            done.append("$")
        elif plain:
            done.append(_value(plain, "", "", environ, missing))
        elif (close := _closing(text, end)) is None or not (operator or close == end):
            done.append(found[0])
        else:
            done.append(_value(braced, operator or "", text[end:close], environ, missing))
            end = close + 1
        start = end
    return "".join((*done, text[start:]))


def _closing(text: str, start: int) -> int | None:
    """Where the brace that was opened before ``start`` is closed; a default may hold braces of its own."""
    depth = 1
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if not depth:
            return index
    return None


def _value(name: str, operator: str, rest: str, environ: Mapping[str, str], missing: dict[str, str]) -> str:
    found = environ.get(name)
    empty = found is None or (found == "" and operator.startswith(":"))
    if operator.endswith("+"):
        return "" if empty else interpolated(rest, environ, missing)
    if empty and operator.endswith("-"):
        return interpolated(rest, environ, missing)
    if empty and operator.endswith("?"):
        message = interpolated(rest, environ, missing) or "it is required"
        missing[name] = f"compose ends here without it ({message}): it was taken as empty"
    elif found is None:
        missing.setdefault(name, EMPTY)
    return found or ""


def env_file(text: str) -> dict[str, str]:
    """The variables of a ``.env`` file."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.lstrip().startswith("#"))
    return {name.strip().removeprefix("export "): value.strip().strip("\"'") for name, _, value in pairs}
