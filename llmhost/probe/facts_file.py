"""The facts of a machine as a file, which can be carried to another machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter, ValidationError

from llmhost.errors import FactsError
from llmhost.facts import MachineFacts

FORMAT = 1
"""Goes up when a file of an older llmhost would be misunderstood."""
HINT = "make it on that machine with `llmhost facts --json > facts.json`, by the same version of llmhost"


def facts_to_json(facts: MachineFacts) -> dict[str, Any]:
    """Ready for JSON; `facts_from_json` reads it back."""
    return {"format": FORMAT, **asdict(facts)}


def is_facts_file(data: object) -> bool:
    """Whether it means to be one."""
    return isinstance(data, Mapping) and "format" in data and "interpreters" in data


def facts_from_json(text: str, source: str) -> MachineFacts:
    """The facts that `llmhost facts --json` wrote; ``source`` is named in errors.

    Raises FactsError for anything that it did not write, or that this version does not know.
    """
    try:
        data = json.loads(text)
    except ValueError as e:
        raise FactsError(f"{source} is not JSON: {e}", HINT) from e
    if not isinstance(data, Mapping) or "format" not in data:
        raise FactsError(f"{source} holds no facts of a machine", HINT)
    if data["format"] != FORMAT:
        raise FactsError(
            f"{source} has format {data['format']!r}, and this llmhost reads format {FORMAT}"
            f" (it was written by llmhost {data.get('llmhost', '?')})",
            HINT,
        )
    plain = {key: value for key, value in data.items() if key != "format"}
    adapter = TypeAdapter(MachineFacts)
    try:
        facts = adapter.validate_json(json.dumps(plain), strict=True)
    except ValidationError as e:
        wrong = e.errors()[0]
        raise FactsError(f"{source}: {_path(wrong['loc'])}: {wrong['msg']}", HINT) from None
    unknown = next(_unknown(plain, adapter.dump_python(facts, mode="json"), ""), None)
    if unknown is not None:
        raise FactsError(f"{source}: {unknown}: this llmhost does not know such a fact", HINT)
    return facts


def _path(place: tuple[int | str, ...]) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".")


def _unknown(data: Any, known: Any, place: str) -> Iterator[str]:
    """Keys that did not become facts."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            path = f"{place}.{key}".lstrip(".")
            if key not in known:
                yield path
            else:
                yield from _unknown(value, known[key], path)
    elif isinstance(data, list):
        for index, (value, other) in enumerate(zip(data, known, strict=True)):
            yield from _unknown(value, other, f"{place}[{index}]")
