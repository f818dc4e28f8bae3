"""The user's uv configuration: where packages come from when uv installs them.

Places and precedence are those of https://docs.astral.sh/uv/concepts/configuration-files: variables, then the nearest
``uv.toml`` (or ``pyproject.toml`` with a ``[tool.uv]``) above the directory where uv runs, then the user's, then the
system's; lists are joined, the nearer first.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmhost.probe.pip_options import mask

OPTIONS = (
    "index", "index-url", "extra-index-url", "find-links", "no-index", "index-strategy", "allow-insecure-host",
    "keyring-provider", "offline", "native-tls", "system-certs", "cache-dir", "torch-backend", "python-downloads",
    "exclude-newer", "no-binary", "no-build", "no-build-package", "http-proxy", "https-proxy", "no-proxy",
)  # fmt: skip
VARIABLES = re.compile(
    r"UV_(DEFAULT_INDEX|INDEX\w*|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|INSECURE_HOST|KEYRING_PROVIDER|OFFLINE|NATIVE_TLS|"
    r"SYSTEM_CERTS|CACHE_DIR|TORCH_BACKEND|PYTHON_DOWNLOADS|PYTHON_INSTALL_MIRROR|EXCLUDE_NEWER|NO_BINARY\w*|"
    r"NO_BUILD\w*|CONFIG_FILE|NO_CONFIG|HTTP_TIMEOUT|HTTP_RETRIES|CONSTRAINT|OVERRIDE)"
)
SECRET = re.compile(r"(USERNAME|PASSWORD|TOKEN)$")
"""``UV_INDEX_<NAME>_PASSWORD`` and its like."""


def read_uv_settings(environ: Mapping[str, str], cwd: Path, root: Path = Path("/")) -> dict[str, str]:
    """Settings that decide where uv takes packages from, by option or variable; passwords are masked.

    ``cwd`` is where uv runs; ``root`` is where the system's files are looked up. ``config-file`` names the files that
    were read. What cannot be read is left out: uv says what is wrong with it.
    """
    found: dict[str, list[str]] = {}
    files = [(path, table) for path in _files(environ, cwd, root) if (table := _table(path)) is not None]
    for _, table in files:
        for name, value in (*_pip(table), *table.items()):
            if name in OPTIONS and (name not in found or isinstance(value, list)):
                found.setdefault(name, []).extend(w for w in _words(value) if w not in found[name])
    variables = {k: "****" if SECRET.search(k) else v for k, v in sorted(environ.items()) if VARIABLES.fullmatch(k)}
    told = {name: " ".join(words) for name, words in found.items()}
    read = {"config-file": " ".join(str(path) for path, _ in files)} if files else {}
    return {name: mask(value) for name, value in {**variables, **read, **told}.items() if value}


def _files(environ: Mapping[str, str], cwd: Path, root: Path) -> Iterator[Path]:
    if environ.get("UV_NO_CONFIG", "").lower() in ("1", "true", "yes", "on", "y", "t"):
        return
    if named := environ.get("UV_CONFIG_FILE"):
        yield cwd / named
        return
    if nearest := next(filter(None, map(_in, (cwd, *cwd.parents))), None):
        yield nearest
    home = Path(environ.get("HOME") or "/nonexistent")
    yield Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "uv/uv.toml"
    system = [Path(folder) for folder in environ.get("XDG_CONFIG_DIRS", "").split(":") if folder] or [root / "etc/xdg"]
    every = [*(folder / "uv/uv.toml" for folder in system), root / "etc/uv/uv.toml"]
    yield from [path for path in every if path.is_file()][:1]


def _in(folder: Path) -> Path | None:
    """The file of a directory that counts."""
    if (folder / "uv.toml").is_file():
        return folder / "uv.toml"
    project = folder / "pyproject.toml"
    return project if project.is_file() and _table(project) is not None else None


def _table(path: Path) -> dict[str, Any] | None:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if path.name != "pyproject.toml":
        return data
    tool = data.get("tool")
    table = tool.get("uv") if isinstance(tool, dict) else None
    return table if isinstance(table, dict) else None


def _pip(table: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """What holds for `uv pip` only, which is what llmhost runs: it counts before the rest."""
    below = table.get("pip")
    return tuple(below.items()) if isinstance(below, dict) else ()


def _words(value: Any) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):  # [[index]]
            default = " (default)" if item.get("default") else " (explicit)" if item.get("explicit") else ""
            name = f"{item['name']}=" if item.get("name") else ""
            yield f"{name}{item.get('url', '')}{default}"
        else:
            yield str(item).lower() if isinstance(item, bool) else str(item)
