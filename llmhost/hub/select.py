"""Which files of a repository vLLM needs. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch

from llmhost.hub.remote import RemoteFile

OTHER_RUNTIMES = (
    "*.gguf", "*.ggml", "*.onnx", "*.onnx_data", "*.msgpack", "*.h5", "*.ot", "*.tflite", "*.mlmodel", "*.mlpackage/*",
    "*.openvino*", "openvino*", "onnx/*", "openvino/*", "coreml/*", "tf_model*", "flax_model*", "rust_model*",
)  # fmt: skip
"""The same weights for something else than vLLM."""

PICTURES = ("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp", "*.mp4", "*.mov", "*.wav", "*.mp3", "*.pdf")
REPOSITORY = (".gitattributes", ".gitignore", ".git/*", ".msc", ".mdl", ".mv")
TORCH = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SECOND_COPY = ("consolidated*.safetensors", "original/*", "metal/*")
"""The weights once more in the form of their makers (Meta, Mistral, OpenAI)."""


def needed(files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """Without other runtimes' weights, second copies, pictures, and torch files beside safetensors."""
    rest = [f for f in files if not _like(f, (*OTHER_RUNTIMES, *PICTURES, *REPOSITORY))]
    safetensors = [f for f in rest if f.path.endswith(".safetensors")]
    plain = [f for f in safetensors if not _like(f, SECOND_COPY)]
    if plain:
        rest = [f for f in rest if not _like(f, SECOND_COPY)]
    if safetensors:
        rest = [f for f in rest if not _like(f, TORCH)]
    elif any(f.path.endswith(".bin") for f in rest):
        rest = [f for f in rest if not _like(f, TORCH[1:])]
    return tuple(rest)


def lacking(files: Iterable[RemoteFile]) -> str:
    """What vLLM would miss in these files, in words; '' when there are a config.json and weights."""
    paths = [file.path for file in files]
    no_config = "config.json" not in paths
    no_weights = not any(path.endswith((".safetensors", *(t[1:] for t in TORCH))) for path in paths)
    found = [what for what, missing in (("config.json", no_config), ("weights", no_weights)) if missing]
    return f"it has no {' and no '.join(found)}" if found else ""


def _like(file: RemoteFile, patterns: Iterable[str]) -> bool:
    """A pattern with a slash is about the path, any other about the name."""
    name = file.path.rpartition("/")[2]
    return any(fnmatch(file.path if "/" in p else name, p) for p in patterns)
