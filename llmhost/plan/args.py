"""``args:`` of a service -> arguments of vLLM, checked against the flags of the installed vLLM. Pure."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

from llmhost.errors import PlanError
from llmhost.facts import VllmFlag
from llmhost.plan.removed import OWNED, REMOVED, task_hint

INTEGER = re.compile(r"-?\d+")


def vllm_arguments(service_name: str, args: Mapping[str, Any], flags: Mapping[str, VllmFlag]) -> tuple[str, ...]:
    """The argument vector for a service's ``args:``, in the order of llmhost.yaml; ``flags`` by underscored name.

    Keys take ``_`` or ``-``. true becomes ``--x``, false ``--no-x`` (or nothing where there is no such form), null
    nothing; a mapping becomes JSON; a list becomes several values, or JSON for a flag that takes one value.
    Raises PlanError for a flag that the installed vLLM does not have, that llmhost sets itself, or whose value has
    the wrong form.
    """
    words: list[str] = []
    seen: dict[str, str] = {}
    for key, value in args.items():
        path = f"services.{service_name}.args.{key}"
        flag = _find(path, key, value, flags)
        if flag.name in seen:
            raise PlanError(f"{path} and {seen[flag.name]} are the same flag", "keep one of them")
        seen[flag.name] = key
        words += _words(path, flag, value)
    return tuple(words)


def flag_name(key: str) -> str:
    """The name of a flag as it is used here, however it is written under ``args:`` (``--max-model-len``)."""
    return key.strip().removeprefix("--").replace("-", "_")


def _find(path: str, key: str, value: object, flags: Mapping[str, VllmFlag]) -> VllmFlag:
    name = flag_name(key)
    if name in OWNED:
        raise PlanError(f"{path}: {_option(name)} is not for args:", OWNED[name])
    if name in flags:
        return flags[name]
    if name == "task":
        raise PlanError(f"{path}: vLLM has removed --task", task_hint(value))
    if name in REMOVED:
        raise PlanError(f"{path}: vLLM has removed {_option(name)}", REMOVED[name])
    raise PlanError(f"{path}: the installed vLLM has no flag {_option(name)}", _nearest(name, flags))


def _nearest(name: str, flags: Mapping[str, VllmFlag]) -> str:
    base, _, rest = name.partition(".")
    if rest and base in flags:
        return f"write it as a mapping: {base}: {{{rest.replace('.', ': {')}: …{'}' * rest.count('.')}}}"
    positive = name.removeprefix("no_")
    if positive != name and positive in flags:
        return f"write {positive}: false"
    usable = [flag for flag in flags if flag not in OWNED]
    close = difflib.get_close_matches(name, usable, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "see `vllm serve --help=listgroup` of this version for its flags"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _words(path: str, flag: VllmFlag, value: Any) -> list[str]:
    option = _option(flag.name)
    if value is None:
        return []
    if flag.boolean:
        return _switch(path, flag, value)
    if flag.optional_value and isinstance(value, bool):
        return [option] if value else []
    if isinstance(value, bool):
        raise PlanError(
            f"{path}: {option} needs a value, not {_yaml(value)}", "write the value, or null to leave it out"
        )
    if isinstance(value, list) and flag.repeated:
        return [word for item in value for word in _pair(option, _text(path, item))]
    if isinstance(value, list) and flag.multiple:
        return _several(path, option, value)
    return _pair(option, _text(path, value))


def _switch(path: str, flag: VllmFlag, value: Any) -> list[str]:
    if not isinstance(value, bool):
        raise PlanError(
            f"{path}: {_option(flag.name)} takes no value, it is on or off: not {_yaml(value)}", "write true or false"
        )
    if value:
        return [_option(flag.name)]
    return [f"--no-{flag.name.replace('_', '-')}"] if flag.negatable else []


def _several(path: str, option: str, values: list[Any]) -> list[str]:
    words = [_text(path, value) for value in values]
    if not words:
        raise PlanError(f"{path}: {option} needs at least one value", "write one, or null to leave it out")
    if len(words) == 1:
        return _pair(option, words[0])
    for word in words:
        # argparse would take it for the next flag, and there is no way to quote it.
        if word.startswith("-") and not INTEGER.fullmatch(word):
            raise PlanError(f"{path}: {word!r} cannot stand in a list of {option}", "vLLM would read it as a flag")
    return [option, *words]


def _pair(option: str, word: str) -> list[str]:
    """A value that begins with ``-`` would be read as a flag unless it is joined on."""
    return [f"{option}={word}"] if word.startswith("-") else [option, word]


def _text(path: str, value: Any) -> str:
    if isinstance(value, str):
        return _one_line(path, value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as e:
        raise PlanError(f"{path}: {value!r} cannot be passed to vLLM: {e}", "write it as text in quotes") from e


def _one_line(path: str, value: str) -> str:
    for character, name in (("\n", "a newline"), ("\r", "a carriage return"), ("\0", "a NUL")):
        if character in value:
            raise PlanError(
                f"{path}: the value contains {name}: {value!r}",
                "a command line of supervisord cannot hold it: write a mapping (it becomes JSON), or one line",
            )
    return value


def _yaml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
