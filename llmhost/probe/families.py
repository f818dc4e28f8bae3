"""Which parsers of vLLM read the tool calls and the thoughts of a model, and which language models rerank.

The data are in ``families.toml``; here is how they are applied. Nothing is guessed: what does not fit a family gets no
parser, and everything that is chosen comes with its reason.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from llmhost.facts import Kind, ParserFacts

DATA = Path(__file__).parent / "families.toml"


@dataclass(frozen=True)
class Family:
    """One entry of the data file; see there."""

    name: str
    architectures: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    tool: tuple[str, ...] = ()
    reasoning: tuple[str, ...] = ()
    reasoning_markers: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    rendered_by_vllm: bool = False
    describes_itself: bool = False
    note: str = ""


@dataclass(frozen=True)
class Reranker:
    """A language model that vLLM serves as a classifier, with the overrides and the template for that."""

    name: str
    architectures: tuple[str, ...]
    directory: str
    """Pattern of the name of its directory."""
    markers: tuple[str, ...]
    template: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """What a model's small files say, as far as it tells its family."""

    architecture: str
    model_types: tuple[str, ...]
    """Of the model and of its text part."""
    template: str
    """Source of the chat template, of all of them when there are several; empty without one."""
    response_template: Mapping[str, Any] | None = None
    """The checkpoint's own description of what it writes (tokenizer_config.json)."""
    directory: str = ""
    tokens: frozenset[str] = frozenset()
    """Tokens that were added to its vocabulary (tokenizer_config.json)."""


@cache
def _data() -> Mapping[str, Any]:
    return tomllib.loads(DATA.read_text(encoding="utf-8"))


@cache
def families() -> tuple[Family, ...]:
    """All families, in the order in which they are tried."""
    return tuple(Family(**_tuples(entry)) for entry in _data()["family"])


def registered_kind(architecture: str) -> Kind | None:
    """The kind where vLLM's model registry differs from what the architecture's name says."""
    kinds: Mapping[Kind, list[str]] = _data()["kinds"]
    return next((kind for kind, names in kinds.items() if architecture in names), None)


def renamed_architecture(architecture: str) -> str | None:
    """The name under which vLLM has the code of an architecture that it does not know by its own."""
    found: str | None = _data()["renamed"].get(architecture)
    return found


def named_parsers() -> frozenset[str]:
    """Every parser that the data file knows of, those included that are never chosen."""
    chosen = (name for family in families() for name in (*family.tool, *family.reasoning))
    return frozenset((*chosen, *_data()["not_chosen"]))


def find_reranker(checkpoint: Checkpoint) -> Reranker | None:
    """The reranker in disguise, when the model is one: told by its template or by the name of its directory."""
    for reranker in (Reranker(**_tuples(entry)) for entry in _data()["reranker"]):
        if checkpoint.architecture in reranker.architectures and (
            re.search(reranker.directory, checkpoint.directory)
            or all(marker in checkpoint.template for marker in reranker.markers)
        ):
            return reranker
    return None


def infer_parsers(checkpoint: Checkpoint) -> tuple[ParserFacts, ParserFacts]:
    """The candidates for the tool-call parser and for the reasoning parser, each with its reason."""
    own = checkpoint.response_template
    family = next((f for f in families() if _fits(f, checkpoint)), None)
    if own is not None and isinstance(own.get("fields"), Mapping):
        special = family if family and family.describes_itself else Family("")
        fields = own["fields"]
        return _own(fields, "tool_calls", special.tool), _own(fields, "thinking", special.reasoning)
    if family is None:
        nothing = ParserFacts((), _unknown(checkpoint))
        return nothing, nothing
    return _tool(family, checkpoint), _reasoning(family, checkpoint)


def _own(fields: Mapping[str, Any], name: str, special: tuple[str, ...]) -> ParserFacts:
    if name in fields:
        return ParserFacts((*special, "hf"), f"the checkpoint's own response_template has {name}")
    return ParserFacts((), f"the checkpoint's own response_template has no {name}")


def _fits(family: Family, checkpoint: Checkpoint) -> bool:
    anything = not family.architectures and not family.model_types
    ours = checkpoint.architecture in family.architectures or set(checkpoint.model_types) & set(family.model_types)
    said = all(marker in checkpoint.template for marker in family.markers)
    return bool(anything or ours) and said and not any(marker in checkpoint.template for marker in family.absent)


def takes_tools(template: str) -> bool:
    """Does the chat template use the ``tools`` of a request?"""
    return re.search(r"\btools\b", template) is not None


def _tool(family: Family, checkpoint: Checkpoint) -> ParserFacts:
    if not family.tool:
        return ParserFacts((), f"{family.name}: {family.note or 'no parser for its tool calls is known'}")
    if family.rendered_by_vllm and not checkpoint.template:
        return ParserFacts(family.tool, f"{family.name}, whose prompts vLLM makes itself")
    if not takes_tools(checkpoint.template):
        missing = "its chat template takes no tools" if checkpoint.template else "it has no chat template"
        return ParserFacts((), f"{family.name}: {family.note or missing}")
    return ParserFacts(family.tool, _why(family, checkpoint, family.markers))


def _reasoning(family: Family, checkpoint: Checkpoint) -> ParserFacts:
    if not family.reasoning:
        return ParserFacts((), f"{family.name} does not think aloud")
    found = [marker for marker in family.reasoning_markers if marker in checkpoint.template]
    if family.reasoning_markers and not found:
        return ParserFacts((), f"{family.name}: this one does not think aloud (no {family.reasoning_markers[0]})")
    if lacking := [token for token in family.tokens if token not in checkpoint.tokens]:
        return ParserFacts(
            (),
            f"{family.name} thinks aloud, but {lacking[0]} is no token of its vocabulary (tokenizer_config.json), and"
            f" {family.reasoning[0]} does not start without: its thoughts stay in the text",
        )
    return ParserFacts(family.reasoning, _why(family, checkpoint, (*family.markers, *found)))


def _why(family: Family, checkpoint: Checkpoint, markers: tuple[str, ...]) -> str:
    known = "" if not family.architectures and not family.model_types else f": {checkpoint.architecture}"
    seen = f"{', ' if known else ': '}{' and '.join(markers)} in its chat template" if markers else ""
    return f"{family.name}{known}{seen}"


def _unknown(checkpoint: Checkpoint) -> str:
    if not checkpoint.template:
        return "it has no chat template"
    if not takes_tools(checkpoint.template):
        return "its chat template takes no tools, and it is of no family that is known to think aloud"
    return f"no family is known for {checkpoint.architecture} with this chat template: write the parser under args:"


def _tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
