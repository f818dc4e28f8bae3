"""Parts that were wished for and of which nothing is there to be carried."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from llmhost.bundle.gather import Item, Kind
from llmhost.bundle.target import Target
from llmhost.env.progress import Progress
from llmhost.errors import BundleError


class _Part(NamedTuple):
    """What its files are in the manifest; why there are none, and what to do about it."""

    kind: Kind
    message: str
    hint: str


def tell_of_empty_parts(parts: Collection[str], items: Sequence[Item], target: Target, progress: Progress) -> None:
    """Note those of the chosen ``parts`` that ``items`` have nothing of; raise BundleError when that is all of them.

    llmhost and the engine never are empty.
    """
    there = {item.kind for item in items}
    empty = [part for name, part in _explained(target).items() if name in parts and part.kind not in there]
    if len(empty) == len(set(parts)):
        raise BundleError("; ".join(part.message for part in empty), "; ".join(part.hint for part in empty))
    for part in empty:
        progress.note(part.message)


def _explained(target: Target) -> dict[str, _Part]:
    gpus = ", ".join(sorted({gpu.name for gpu in target.facts.gpus})) or "a machine without GPUs"
    return {
        "flash-attn": _Part(
            "flash-attn",
            "there is no flash-attention in this bundle: engine.flash_attn is not set",
            "write `flash_attn: true` under engine: in llmhost.yaml",
        ),
        "models": _Part(
            "model",
            "there are no models in this bundle: no service has one of a hub that the other machine lacks",
            "name the llmhost.yaml of that machine with --config",
        ),
        "caches": _Part(
            "cache",
            f"there are no compile caches in this bundle: none of vLLM {target.release.vllm} for {gpus} are here",
            "run its services once on such a machine, and create the bundle there",
        ),
    }
