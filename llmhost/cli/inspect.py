"""`llmhost inspect`: what a model is, from its small files and the headers of its weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from llmhost.cli import Session, console

if TYPE_CHECKING:
    from llmhost.inspection import Inspected

KIB = 2**10
GIB = 2**30


@click.command("inspect")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="As JSON: everything that is known of it; sizes in bytes.")
@click.pass_obj
def inspect_command(session: Session, model: str, as_json: bool) -> None:
    """Show what MODEL is: a directory, demo:chat, hf:owner/name or modelscope:owner/name.

    A relative directory starts from the current one, or from the home when it is not there.

    Kind, parameters, bytes of its weights, KV cache, context length, quantization, and which tool-call and reasoning
    parser it wants, each with the reason. No weights are read and no code of the model runs. A model that is not here
    is looked at on its hub: a few MB come from there, nothing is kept. The same facts go into `llmhost plan`.
    """
    from llmhost.inspection import inspect_model

    found = inspect_model(session.home, model)
    if as_json:
        console.json_result(_json(found))
        return
    for name, value in _lines(found):
        console.result(f"{name:17} {value}")


def _json(found: Inspected) -> dict[str, Any]:
    data = asdict(found.facts)
    return {
        **data,
        "kind": None if found.no_kind else data["kind"],
        "kind_reason": found.no_kind or data["kind_reason"],
        "not_registered": found.not_registered,
        "tool_parser": {**data["tool_parser"], "chosen": found.tool_parser},
        "reasoning_parser": {**data["reasoning_parser"], "chosen": found.reasoning_parser},
        "vllm_version": found.vllm_version,
    }


def _lines(found: Inspected) -> list[tuple[str, str]]:
    facts = found.facts
    lines = [
        ("path", facts.path),
        ("kind", f"not known  ({found.no_kind})" if found.no_kind else f"{facts.kind}  ({facts.kind_reason})"),
        ("architecture", facts.architecture),
        ("parameters", _parameters(facts.parameters)),
        ("weights", f"{facts.weight_bytes / GIB:.2f} GiB" + (f"  {facts.dtype}" if facts.dtype else "")),
        ("quantization", facts.quantization or "none"),
        ("context length", f"{facts.context_length or '?'} tokens"),
        ("KV cache", _cache(found)),
    ]
    if found.not_registered:
        lines.insert(3, ("supported", f"no: {found.not_registered}"))
    if facts.kind == "chat" and not found.no_kind:
        lines += [("tool_call_parser", found.tool_parser_text), ("reasoning_parser", found.reasoning_parser_text)]
    lines += [(f"needs {flag}", v if isinstance(v, str) else json.dumps(v)) for flag, v in facts.overrides.items()]
    if facts.multimodal:
        lines.append(("multimodal", "it takes images, sound or video, too"))
    if facts.remote_code:
        lines.append(
            ("code of its own", "write trust_remote_code: true under args: if vLLM asks for it and you trust it")
        )
    return lines


def _parameters(count: int) -> str:
    if not count:
        return "not known"
    return f"{count / 1e9:.2f} billion" if count >= 1e8 else f"{count / 1e6:.2f} million"


def _cache(found: Inspected) -> str:
    cache = found.facts.cache
    parts = []
    if cache.full_bytes:
        parts.append(f"{cache.full_bytes / KIB:g} KiB per token{' (latent)' if cache.latent else ''}")
    if cache.window_bytes:
        parts.append(f"{cache.window_bytes / KIB:g} KiB per token of the last {cache.window}")
    if cache.state_bytes:
        parts.append(f"{cache.state_bytes / 2**20:.1f} MiB per sequence")
    if not parts:
        return "none"
    context = found.facts.context_length
    whole = f"; a sequence of {context} tokens takes {cache.of(context) / GIB:.2f} GiB" if context else ""
    return f"{' + '.join(parts)}{whole}"
