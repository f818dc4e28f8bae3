"""What a service's model wants of vLLM and the user did not write: chosen here, with the reason. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from llmhost.config import Service
from llmhost.facts import EngineFacts, Kind, ModelFacts, ParserFacts
from llmhost.plan.args import flag_name
from llmhost.plan.types import Choice

WRITTEN = "written in llmhost.yaml"


def make_choices(service: Service, kind: Kind, model: ModelFacts, engine: EngineFacts) -> tuple[Choice, ...]:
    """Flags that follow from the model: parsers of a chat model, overrides of one that vLLM does not know as it is.

    A flag that is written under ``args:`` stays as it is, also as null, which switches it off.
    """
    args = {flag_name(key): value for key, value in service.args.items()}
    if kind != "chat":
        overrides = model.overrides.items() if kind == model.kind else ()
        return tuple(
            Choice(flag, value if isinstance(value, str) else json.dumps(value), model.kind_reason)
            for flag, value in overrides
            if flag not in args and flag in engine.flags
        )
    off = args.get("enable_auto_tool_choice") is False
    tool = _parser("tool_call_parser", model.tool_parser, engine.tool_call_parsers, args, engine)
    reasoning = _parser("reasoning_parser", model.reasoning_parser, engine.reasoning_parsers, args, engine)
    return (*(() if off else tool), *reasoning)


def chosen_arguments(choices: Iterable[Choice], engine: EngineFacts) -> dict[str, str | None]:
    """The choices as flags; a tool-call parser works only together with ``--enable-auto-tool-choice``."""
    made = {c.flag: c.value for c in choices if c.value is not None and c.reason != WRITTEN}
    together = {"enable_auto_tool_choice": None} if "tool_call_parser" in made else {}
    return {flag: value for flag, value in {**together, **made}.items() if flag in engine.flags}


def pick_parser(wanted: ParserFacts, registered: tuple[str, ...], version: str) -> tuple[str | None, str]:
    """The first wanted parser that the installed vLLM has, and the reason for it or for none."""
    if not wanted.names:
        return None, wanted.reason
    found = next((name for name in wanted.names if name in registered), None)
    if found:
        return found, wanted.reason
    return None, f"vLLM {version} has no parser {' or '.join(wanted.names)} ({wanted.reason})"


def _parser(
    flag: str, wanted: ParserFacts, registered: tuple[str, ...], args: Mapping[str, object], engine: EngineFacts
) -> tuple[Choice, ...]:
    if flag in args:
        value = args[flag]
        return (Choice(flag, None if value is None else str(value), WRITTEN),)
    if not wanted.reason:
        return ()
    return (Choice(flag, *pick_parser(wanted, registered, engine.vllm_version)),)
