"""What a model on a hub is, before it is fetched: its small files, and stand-ins of the right size for its weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from llmhost.hub.remote import Hub, Reference, RemoteFile
from llmhost.hub.select import needed

SMALL = 32 * 2**20
"""Configuration, templates and indexes are smaller; a larger .json is a vocabulary, which tells nothing here."""

SMALL_FILES = (".json", ".jinja", ".txt")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tekken.json", "added_tokens.json")
TYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}


def fetch_outline(hub: Hub, reference: Reference, directory: Path) -> None:
    """Write the outline of a model into an empty directory; a few MB come from the hub.

    Weights become sparse files with one tensor as large as the file, so sizes are right to a few KB, and parameters
    where nothing is quantized. Raises HubError.
    """
    snapshot = hub.snapshot(reference.repository, reference.revision)
    files = needed(snapshot.files)
    for file in files:
        if file.path.endswith(SMALL_FILES) and file.size < SMALL and Path(file.path).name not in VOCABULARIES:
            hub.fetch(reference.repository, snapshot.revision, file, directory)
    tensor = _tensor(directory / "config.json")
    for file in files:
        target = directory / file.path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            _stand_in(target, file, tensor)


def _tensor(config: Path) -> tuple[str, str, int]:
    """Name, type and width of the one tensor; by its name it counts as no parameters when the weights are quantized."""
    try:
        data = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        data = {}
    text = data.get("text_config") if isinstance(data.get("text_config"), dict) else data
    written = text.get("dtype") or text.get("torch_dtype") or data.get("dtype") or data.get("torch_dtype")
    kind, width = TYPES.get(str(written), ("BF16", 2))
    quantized = "quantization_config" in data or "compression_config" in data
    return ("outline_scale" if quantized else "outline"), kind, width


def _stand_in(target: Path, file: RemoteFile, tensor: tuple[str, str, int]) -> None:
    with target.open("wb") as stream:
        if file.path.endswith(".safetensors"):
            name, kind, width = tensor
            data = file.size // width * width
            entry = {"dtype": kind, "shape": [data // width], "data_offsets": [0, data]}
            header = json.dumps({name: entry}).encode()
            stream.write(struct.pack("<Q", len(header)) + header)
            stream.truncate(stream.tell() + data)
        else:
            stream.truncate(max(1, file.size))
