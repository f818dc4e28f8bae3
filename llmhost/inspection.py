"""What a model is, and what the engine of this home would make of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from llmhost import config as configuration
from llmhost.config import Config
from llmhost.env import find_engine
from llmhost.env.architectures import registered_architectures
from llmhost.errors import UnknownKindError
from llmhost.facts import EngineFacts, Kind, ModelFacts, ParserFacts
from llmhost.hub.access import open_hub
from llmhost.hub.outline import fetch_outline
from llmhost.hub.remote import Reference
from llmhost.paths import Home
from llmhost.plan.choices import pick_parser
from llmhost.probe.families import renamed_architecture
from llmhost.probe.kind import CHAT_SUFFIXES, EMBED_SUFFIXES
from llmhost.probe.model import models_directory, read_model, resolve_model

ENDINGS = (*CHAT_SUFFIXES, *EMBED_SUFFIXES, "ForSequenceClassification")
"""Of architectures that vLLM takes for each other (``_normalize_arch`` in its model registry)."""


@dataclass(frozen=True)
class Inspected:
    """A model; the parsers are those of the installed vLLM, or the first candidates while there is no engine."""

    facts: ModelFacts
    tool_parser: str | None
    tool_parser_text: str
    reasoning_parser: str | None
    reasoning_parser_text: str
    vllm_version: str | None
    no_kind: str = ""
    """Why it neither chats, embeds nor reranks as far as can be told; '' where that is known."""
    not_registered: str = ""
    """What the installed vLLM lacks for its architecture; '' where it has it, or nothing is known."""


def inspect_model(home: Home, reference: str) -> Inspected:
    """What a model is, also before it is fetched; changes nothing. Raises ModelError and HubError.

    A directory is looked for in the current one first, then in the home.
    """
    config = configuration.load(home.config_file) if home.config_file.exists() else Config()
    here = Path(reference).expanduser().absolute()
    text = str(here) if here.is_dir() else reference
    no_kind = ""
    try:
        facts = read_anywhere(home, config, text)
    except UnknownKindError as e:
        no_kind = e.why
        facts = read_anywhere(home, config, text, "rerank")
    engine = find_engine(home, config.engine)
    if engine is None:
        tool, reasoning = _candidates(facts.tool_parser), _candidates(facts.reasoning_parser)
    else:
        tool = _chosen(facts.tool_parser, engine.tool_call_parsers, engine.vllm_version)
        reasoning = _chosen(facts.reasoning_parser, engine.reasoning_parsers, engine.vllm_version)
    version = engine.vllm_version if engine else None
    lacking = _lacking(facts, engine) if engine else ""
    return Inspected(facts, *tool, *reasoning, version, no_kind, lacking)


def _lacking(facts: ModelFacts, engine: EngineFacts) -> str:
    """vLLM reads an architecture that it has not registered as one of the same name with another ending."""
    known = registered_architectures(Path(engine.python))
    name = renamed_architecture(facts.architecture) or facts.architecture
    if not known or name in known or any(base + ending in known for base in _bases(name) for ending in ENDINGS):
        return ""
    return (
        f"vLLM {engine.vllm_version} has not registered {facts.architecture}; it tries transformers' own code, which"
        " works for some decoders and encoders, and for no encoder-decoder"
    )


def _bases(name: str) -> list[str]:
    return [name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)]


def read_anywhere(home: Home, config: Config, text: str, kind: Kind | None = None) -> ModelFacts:
    """The facts of a model that is here, or of one that a hub has: a few MB come from there, and nothing is kept.

    Relative directories start from the home. Raises ModelError and HubError.
    """
    models_dir = models_directory(home, config)
    reference = Reference.parse(text)
    if reference is None or reference.directory(models_dir).is_dir():
        return read_model(resolve_model(text, models_dir, home.root), kind)
    with TemporaryDirectory(prefix="llmhost-") as temporary:
        # The name may tell what a model is (Qwen3-Reranker).
        outline = Path(temporary) / reference.name
        fetch_outline(open_hub(home, reference.scheme), reference, outline)
        return replace(read_model(outline, kind), path=reference.text)


def _candidates(wanted: ParserFacts) -> tuple[str | None, str]:
    return (*wanted.names, None)[0], f"{' or '.join(wanted.names) or 'none'}  ({wanted.reason})"


def _chosen(wanted: ParserFacts, registered: tuple[str, ...], version: str) -> tuple[str | None, str]:
    chosen, reason = pick_parser(wanted, registered, version)
    return chosen, f"{chosen or 'none'}  ({reason})"
