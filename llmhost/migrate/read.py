"""From a file to an llmhost.yaml that has been checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

from llmhost import config
from llmhost.errors import ConfigError
from llmhost.migrate.compose import import_compose, read_compose
from llmhost.migrate.hosts import Host
from llmhost.migrate.nodes import Part, unite
from llmhost.migrate.project import overrides
from llmhost.migrate.report import Imported
from llmhost.migrate.supervisord import import_supervisord
from llmhost.migrate.variables import env_file


def import_files(paths: Sequence[Path], environ: Mapping[str, str]) -> Imported:
    """Translate compose files (YAML), or one supervisord configuration (.conf, .ini).

    A ``.env`` beside the first file fills variables; an override file beside a single one is read as Docker does.
    Raises ConfigError when one cannot be read or holds nothing that can be moved.
    """
    first = paths[0].absolute()
    texts = {path.absolute(): _read(path) for path in paths}
    if any(_is_supervisord(path, text) for path, text in texts.items()):
        if len(texts) > 1:
            raise ConfigError("several files are compose files only", "import each supervisord.conf by itself")
        return import_supervisord(texts[first], paths[0], environ)
    texts, beside, over = _compose_texts(paths)
    return import_compose(texts, {**beside, **environ}, over)


def import_nodes(hosts: Sequence[Host], environ: Mapping[str, str]) -> Imported:
    """Translate the compose files of several hosts into one configuration with ``nodes:``.

    The files of each host are put together as those of `import_files`, with the ``.env`` and override beside them. That
    ``.env`` counts more than the environment here, which is not the one of that host.
    Raises ConfigError when one cannot be read or those of a host hold nothing that can be moved.
    """
    parts = []
    for host in hosts:
        texts, beside, over = _compose_texts(host.files)
        if any(_is_supervisord(path, text) for path, text in texts.items()):
            raise ConfigError(
                f"{host.files[0]} (node {host.name}) is a supervisord.conf, and nodes are for compose files",
                "import it without --node, and put the results together",
            )
        try:
            parts.append(Part(host, read_compose(texts, {**environ, **beside}, over), texts))
        except ConfigError as e:
            raise ConfigError(f"node {host.name}: {e.message}", e.hint) from e
    return unite(parts)


def _compose_texts(paths: Sequence[Path]) -> tuple[dict[Path, str], dict[str, str], list[Path]]:
    """The texts by file, the variables of the ``.env`` beside them, and which of the files go on top whatever they
    say."""
    first = paths[0].absolute()
    over = overrides(first, paths)
    texts = {path: _read(path) for path in (*(path.absolute() for path in paths), *over)}
    beside = first.with_name(".env")
    return texts, env_file(_read(beside) if beside.is_file() else ""), over


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"cannot read {path}: {e}", "name a docker-compose.yaml or a supervisord.conf") from e


def _is_supervisord(path: Path, text: str) -> bool:
    return path.suffix in (".conf", ".ini") or "[program:" in text


def to_yaml(imported: Imported, sources: Sequence[Path]) -> str:
    """The llmhost.yaml as text, with what is left to do by hand above it; raises ConfigError when it is none."""
    name = ", ".join(source.name for source in sources)
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096
    body = StringIO()
    yaml.dump(imported.config, body)
    todo = [line for line in imported.lines if line.outcome == "by hand"]
    head = [f"# From {name}, by `llmhost import`.", *(["# Left to do by hand:"] if todo else [])]
    head += [_comment(f"{line.place or name}: {line.source}: {line.detail}") for line in todo]
    text = "\n".join(head) + "\n" + body.getvalue()
    config.parse(text, f"what {name} became")
    return text


def _comment(text: str) -> str:
    return f"#   {' '.join(text.split())}"
