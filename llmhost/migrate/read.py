"""From a file to an llmhost.yaml that has been checked."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

from llmhost import config
from llmhost.errors import ConfigError
from llmhost.migrate.compose import import_compose
from llmhost.migrate.report import Imported
from llmhost.migrate.supervisord import import_supervisord


def import_file(path: Path, environ: Mapping[str, str]) -> Imported:
    """Translate a compose file (YAML) or a supervisord configuration (.conf, .ini); ``.env`` beside it fills variables.

    Raises ConfigError when it cannot be read or holds nothing that can be moved.
    """
    try:
        text = path.read_text(encoding="utf-8")
        beside = path.with_name(".env")
        values = {**_env_file(beside.read_text(encoding="utf-8") if beside.is_file() else ""), **environ}
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"cannot read {path}: {e}", "name a docker-compose.yaml or a supervisord.conf") from e
    if path.suffix in (".conf", ".ini") or "[program:" in text:
        return import_supervisord(text, path)
    return import_compose(text, path.absolute(), values)


def _env_file(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.lstrip().startswith("#"))
    return {name.strip().removeprefix("export "): value.strip().strip("\"'") for name, _, value in pairs}


def to_yaml(imported: Imported, source: Path) -> str:
    """The llmhost.yaml as text, with what is left to do by hand above it; raises ConfigError when it is none."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096
    body = StringIO()
    yaml.dump(imported.config, body)
    todo = [line for line in imported.lines if line.outcome == "by hand"]
    head = [f"# From {source.name}, by `llmhost import`.", *(["# Left to do by hand:"] if todo else [])]
    head += [_comment(f"{line.service or source.name}: {line.source}: {line.detail}") for line in todo]
    text = "\n".join(head) + "\n" + body.getvalue()
    config.parse(text, f"what {source.name} became")
    return text


def _comment(text: str) -> str:
    return f"#   {' '.join(text.split())}"
