"""What a model is, and what the engine of this home would make of it."""

from __future__ import annotations

from dataclasses import dataclass

from llmhost import config as configuration
from llmhost.config import Config
from llmhost.env import find_engine
from llmhost.facts import ModelFacts, ParserFacts
from llmhost.paths import Home
from llmhost.plan.choices import pick_parser
from llmhost.probe.model import models_directory, read_model, resolve_model


@dataclass(frozen=True)
class Inspected:
    """A model; the parsers are those of the installed vLLM, or the first candidates while there is no engine."""

    facts: ModelFacts
    tool_parser: str | None
    tool_parser_text: str
    reasoning_parser: str | None
    reasoning_parser_text: str
    vllm_version: str | None


def inspect_model(home: Home, reference: str) -> Inspected:
    """What a model is; changes nothing. Raises ModelError when it is not there or incomplete."""
    config = configuration.load(home.config_file) if home.config_file.exists() else Config()
    facts = read_model(resolve_model(reference, models_directory(home, config)))
    engine = find_engine(home, config.engine)
    if engine is None:
        tool, reasoning = _candidates(facts.tool_parser), _candidates(facts.reasoning_parser)
    else:
        tool = _chosen(facts.tool_parser, engine.tool_call_parsers, engine.vllm_version)
        reasoning = _chosen(facts.reasoning_parser, engine.reasoning_parsers, engine.vllm_version)
    return Inspected(facts, *tool, *reasoning, engine.vllm_version if engine else None)


def _candidates(wanted: ParserFacts) -> tuple[str | None, str]:
    return (*wanted.names, None)[0], f"{' or '.join(wanted.names) or 'none'}  ({wanted.reason})"


def _chosen(wanted: ParserFacts, registered: tuple[str, ...], version: str) -> tuple[str | None, str]:
    chosen, reason = pick_parser(wanted, registered, version)
    return chosen, f"{chosen or 'none'}  ({reason})"
