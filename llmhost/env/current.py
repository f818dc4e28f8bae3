"""Which of a home's engines counts."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from llmhost.config import Engine
from llmhost.env.manifest import MANIFEST
from llmhost.errors import EngineError
from llmhost.paths import Home

NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")


def engine_name(home: Home, engine: Engine) -> str:
    """The name in llmhost.yaml, else the one that `llmhost engine use` (or upgrade) chose, else ``default``."""
    if "name" in engine.model_fields_set:
        return engine.name
    try:
        chosen = home.current_engine_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return engine.name
    return chosen if NAME.fullmatch(chosen) else engine.name


def engine_names(home: Home) -> tuple[str, ...]:
    """Every engine of a home that was built, by name."""
    try:
        found = sorted(entry.name for entry in home.engines.iterdir() if NAME.fullmatch(entry.name))
    except OSError:
        return ()
    return tuple(name for name in found if (home.engine_dir(name) / MANIFEST).is_file())


def choose_engine(home: Home, name: str) -> None:
    """Make an engine the one that counts when llmhost.yaml names none; nothing is started or stopped by it.

    Raises EngineError when it cannot be written, or read again: no engine is called so.
    """
    if not NAME.fullmatch(name):
        raise EngineError(f"an engine cannot be called {name}", "use small letters, digits, points and dashes")
    file = home.current_engine_file
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".current.")
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(f"{name}\n")
        os.replace(temporary, file)
    except OSError as e:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise EngineError(f"cannot write {file}: {e.strerror}", "see `df -h` and its owner") from e
