"""What is wrong in llmhost.yaml, in a sentence that names the key, and a hint that says what would be right."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from llmhost.errors import ConfigError

Place = tuple[str | int, ...]

WORDS: Mapping[str, tuple[str, str]] = types.MappingProxyType(
    {
        "dict_type": ("must be a mapping", "write it as NAME: value, each below the other and further in"),
        "model_type": ("must be a mapping", ""),
        "string_type": ("must be text", "put it in quotes"),
        "int_type": ("must be a whole number", ""),
        "int_parsing": ("must be a whole number", ""),
        "float_type": ("must be a number", ""),
        "bool_type": ("must be true or false", ""),
        "list_type": ("must be a list", "write it as [one, another]"),
        "missing": ("is missing", ""),
    }
)
"""pydantic's types of errors in our words, with a hint where what the key means would not help."""


class Refusal(ValueError):
    """Raised by a validator that knows what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def explain(error: ValidationError, source: str, root: type[BaseModel]) -> ConfigError:
    """All unknown keys, which are the likeliest cause of the rest; else the first problem, the others counted."""
    problems = error.errors()
    unknown = [tuple(p["loc"]) for p in problems if p["type"] == "extra_forbidden"]
    if unknown:
        return _unknown(unknown, len(problems) - len(unknown), source, root)
    first = problems[0]
    place = tuple(first["loc"])
    more = _more(len(problems) - 1)
    if place[2:3] == ("args",) and len(place) > 3:
        path = ".".join(map(str, place[:4]))
        return ConfigError(f"{source}: {path}: no flag takes this value", "put it in quotes if it is meant as text")
    words, hint = _words(first, place, root)
    given = "" if _quiet(first) else f", not {first['input']!r}"
    path = ".".join(map(str, place))
    return ConfigError(f"{source}: {f'{path}: ' if path else ''}{words}{given}{more}", hint)


def _unknown(places: Sequence[Place], others: int, source: str, root: type[BaseModel]) -> ConfigError:
    names = ", ".join(".".join(map(str, place)) for place in places)
    keys = "keys" if len(places) > 1 else "key"
    hint = _nearest(places, root)
    if any(place[0] == "services" and len(place) == 3 for place in places):
        hint = f"{hint} (flags of vLLM go under args:)"  # the likeliest mistake of somebody who knows vLLM
    return ConfigError(f"{source}: unknown {keys} {names}{_more(others)}", hint)


def _nearest(places: Sequence[Place], root: type[BaseModel]) -> str:
    """The known keys that are meant, or, where one cannot be guessed, all that are known at the first such place."""
    meant = []
    for place in places:
        section, _ = _at(root, place[:-1])
        known = sorted(section.model_fields) if section else []
        close = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        if not close:
            return f"known keys{f' beside {place[-1]}' if len(places) > 1 else ' here'}: {', '.join(known)}"
        meant.append(f"{close[0]} for {place[-1]}" if len(places) > 1 else close[0])
    return f"did you mean {', '.join(meant)}?"


def _words(problem: Mapping[str, Any], place: Place, root: type[BaseModel]) -> tuple[str, str]:
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, Refusal):
        return _in_a_sentence(str(cause)), cause.hint
    words, hint = WORDS.get(problem["type"], ("", ""))
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return words or _in_a_sentence(message), hint or _meaning(place, root)


def _meaning(place: Place, root: type[BaseModel]) -> str:
    """What the key is for, as its documentation says."""
    section, field = _at(root, place)
    if section is not None:
        return f"its keys: {', '.join(sorted(section.model_fields))}"
    if field is not None and field.description:
        return f"{place[-1]}: {' '.join(field.description.split())}"
    return "see docs/config.md or `llmhost config schema` for every key"


def _quiet(problem: Mapping[str, Any]) -> bool:
    """What stands in an environment may be a secret, and a whole section is too long to be told."""
    long = isinstance(problem["input"], Mapping) or len(repr(problem["input"])) > 60
    return long or problem["type"] in ("value_error", "missing") or "env" in problem["loc"]


def _more(count: int) -> str:
    return f" (and {count} more)" if count else ""


def _in_a_sentence(text: str) -> str:
    """pydantic's messages begin with a capital; names in capitals stay as they are."""
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _at(root: type[BaseModel], place: Place) -> tuple[type[BaseModel] | None, Any]:
    """The section that a place is, None when it is a value; and the field that holds it."""
    section: type[BaseModel] | None = root
    field, named = None, False
    for part in place:
        if named or isinstance(part, int):  # a name in a mapping, a place in a list
            named = False
            continue
        if section is None or part not in section.model_fields:
            return None, None
        field = section.model_fields[part]
        section, named = _inside(field.annotation)
    return (None if named else section), field


def _inside(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section in a type, and whether names stand between (a mapping)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is dict:
        return _inside(inner[1])[0], True
    if origin in (list, Union, types.UnionType, Annotated):
        return next((found for part in inner if (found := _inside(part))[0]), (None, False))
    return None, False
