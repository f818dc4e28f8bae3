"""GPUs of a machine that is not here, to plan for it: ``4x24,2x48``, a YAML or JSON file, `llmhost facts --json`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from llmhost.errors import PlanError
from llmhost.facts import Gpu
from llmhost.probe.facts_file import facts_from_json, is_facts_file

GIB = 2**30
SHORT = re.compile(r"(\d+)\s*[x×*]\s*(\d+(?:\.\d+)?)\s*(?:GiB|GB|G)?", re.IGNORECASE)
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(GiB|GB|G|MiB|MB|M)?", re.IGNORECASE)
FORM = (
    "write how many of how many GiB (4x24, or 4x24,2x48), or name a file:"
    " gpus: [{name: RTX 4090, memory: 24GiB, count: 4}], or what `llmhost facts --json` says there"
)


def read_gpu_list(written: str) -> tuple[Gpu, ...]:
    """The GPUs that ``4x24``, ``4x24,2x48`` or a file describes, all of them free unless the file says otherwise.

    Sizes are GiB unless they end in MiB; as on the sticker of a GPU, GB is taken for GiB. The facts of a machine are
    taken as they are. Raises PlanError for anything else, and FactsError for facts that are not understood.
    """
    short = [SHORT.fullmatch(part.strip()) for part in written.split(",")]
    if all(short):
        return tuple(_gpus([{"memory": part[2], "count": int(part[1])} for part in short if part]))
    try:
        text = Path(written).read_text(encoding="utf-8")
        data = YAML(typ="safe", pure=True).load(text)
    except OSError as e:
        raise PlanError(f"--gpus {written}: {e.strerror}", FORM) from e
    except (YAMLError, ValueError) as e:
        raise PlanError(f"--gpus {written}: it is neither YAML nor JSON", FORM) from e
    if is_facts_file(data):
        return _of_facts(text, written)
    entries = data.get("gpus") if isinstance(data, Mapping) else data
    if not isinstance(entries, list) or not entries:
        raise PlanError(f"--gpus {written}: there is no list of GPUs in it", FORM)
    return tuple(_gpus(entries))


def _of_facts(text: str, written: str) -> tuple[Gpu, ...]:
    facts = facts_from_json(text, f"--gpus {written}")
    if not facts.gpus:
        problem = facts.driver.problem or "it has none"
        raise PlanError(f"--gpus {written}: these are the facts of a machine without usable GPUs: {problem}", FORM)
    return facts.gpus


def _gpus(entries: list[Any]) -> Iterator[Gpu]:
    index = 0
    for entry in entries:
        if not isinstance(entry, Mapping) or set(entry) - {"name", "memory", "free", "count"} or "memory" not in entry:
            raise PlanError(f"--gpus: {entry!r} is no GPU: it has a memory, and may have name, free and count", FORM)
        total = _size(entry["memory"])
        free = _size(entry.get("free", entry["memory"]))
        count = entry.get("count", 1)
        if not isinstance(count, int) or not 1 <= count <= 64 or free > total:
            raise PlanError(f"--gpus: {entry!r}: count is 1 to 64, and no more can be free than there is", FORM)
        for _ in range(count):
            yield Gpu(index, str(entry.get("name") or ""), total, free)
            index += 1


def _size(written: object) -> int:
    found = SIZE.fullmatch(str(written).strip())
    if found is None or isinstance(written, bool) or float(found[1]) == 0:
        raise PlanError(f"--gpus: {written!r} is no size of memory", FORM)
    return int(float(found[1]) * (2**20 if (found[2] or "").upper().startswith("M") else GIB))
