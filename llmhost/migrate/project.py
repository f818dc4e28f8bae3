"""A compose project as Docker would see it: several files, `include`, `extends`, `env_file`, variables from `.env`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from llmhost.errors import ConfigError
from llmhost.migrate.report import Line, Outcome
from llmhost.migrate.tags import Override, Reset, load, untagged
from llmhost.migrate.variables import env_file, interpolated

ADDED = ("ports", "volumes", "expose", "devices", "env_file", "security_opt", "cap_add", "dns", "configs", "secrets")
"""Lists that a later file adds to; everything else that is no mapping it replaces (compose's merge rules)."""
NAMES = ("docker-compose.yaml", "docker-compose.yml", "compose.yaml", "compose.yml")
"""Files beside which an override is looked for."""
_DEEP = 16
"""Levels of include and extends before it is taken for a circle."""


@dataclass(frozen=True)
class _Place:
    """A file, the directory that its relative paths count from, and the variables that fill it."""

    source: Path
    base: Path
    environ: Mapping[str, str]


@dataclass
class Project:
    """Services by name, paths in them absolute, and what there is to say about the files."""

    environ: Mapping[str, str]
    services: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)

    def note(self, source: str, outcome: Outcome, detail: str, service: str = "") -> None:
        """A line of the report, once."""
        line = Line(service, source, outcome, detail)
        if line not in self.lines:
            self.lines.append(line)

    def add(self, text: str, source: Path, *, over: bool = False) -> None:
        """Read a file into the project; what it has of a service that is there goes on top of it.

        With ``over`` in any case, as an override file: otherwise two services of one name and different images stay
        two.

        Raises ConfigError when it, or one that it names, is no compose file.
        """
        self._add(text, _Place(source, source.parent, self.environ), _DEEP, over)

    def _add(self, text: str, place: _Place, depth: int, over: bool) -> None:
        source, data = place.source, self._load(text, place)
        services = _bare(data.get("services"))
        if not isinstance(services, Mapping) and (services is not None or "include" not in data):
            raise ConfigError(f"{source} has no services:, so it is no compose file", "name a docker-compose.yaml")
        for key in data:
            if key not in ("services", "version", "name", "include") and not str(key).startswith("x-"):
                self.note(str(key), "left out", "not a service")
        for item in _items(data.get("include") or []):
            self._require_depth(depth, source)
            for included, above in self._included(item, place):
                self._add(self._read(included.source), included, depth - 1, above)
        for name, tagged in (services or {}).items():
            entry = _bare(tagged)
            if isinstance(tagged, Reset | Override):
                self.services.pop(str(name), None)
            if isinstance(tagged, Reset):
                continue
            whole = self._extended(entry if isinstance(entry, Mapping) else {}, services or {}, place, depth)
            self._take(str(name), _filled(whole, place.environ), source, over)

    def _included(self, item: object, place: _Place) -> Iterator[tuple[_Place, bool]]:
        """The files of an entry of ``include:``, each with whether it goes on top of those before it."""
        entry = item if isinstance(item, Mapping) else {"path": item}
        for key in (k for k in entry if k not in ("path", "project_directory", "env_file")):
            self.note(f"include: {key}", "by hand", "a key of compose that is not known here")
        paths = [place.base / str(path) for path in _items(entry.get("path"))]
        if not paths:
            raise ConfigError(f"{place.source}: an entry of include: names no file", "write `include: [FILE]`")
        base = place.base / str(entry["project_directory"]) if entry.get("project_directory") else paths[0].parent
        named = [place.base / str(file) for file in _items(entry.get("env_file") or [])]
        beside = [base / ".env"] if not named and (base / ".env").is_file() else []
        own: dict[str, str] = {}
        for file in (*named, *beside):
            own |= env_file(self._read(file))
        for index, path in enumerate(paths):  # what is set outside counts before what these files set
            yield _Place(path, base, {**own, **place.environ}), index > 0

    def _take(self, name: str, entry: Mapping[str, Any], source: Path, over: bool) -> None:
        there = self.services.get(name)
        if there is None:
            self.services[name] = untagged(entry)
        elif over or "image" not in entry or untagged(entry["image"]) == there.get("image"):
            self.services[name] = untagged(merged(there, entry))
        else:  # two projects that happen to call theirs alike
            other = f"{source.parent.name}-{name}"
            self.note(f"{source.name}: {name}", "became", f"the service {other}: another file has a {name}")
            self.services[other] = untagged(entry)

    def _extended(
        self, entry: Mapping[str, Any], siblings: Mapping[str, Any], place: _Place, depth: int
    ) -> Mapping[str, Any]:
        """A service with what it extends below it, and its paths made absolute."""
        source, entry = place.source, _absolute(entry, place.base)
        extends = _bare(entry.get("extends"))
        if extends is None:
            return entry
        self._require_depth(depth, source)
        own = {key: value for key, value in entry.items() if key != "extends"}
        if isinstance(extends, str):
            extends = {"service": extends}
        if not isinstance(extends, Mapping):
            raise ConfigError(
                f"{source}: extends: {extends!r} cannot be read", "write `extends: {file: …, service: …}`"
            )
        other = place
        if extends.get("file"):
            file = place.base / str(extends["file"])
            other = _Place(file, file.parent, place.environ)
        file = other.source
        others = siblings if file == source else _bare(self._load(self._read(file), other).get("services"))
        base = _bare(others.get(str(extends.get("service")))) if isinstance(others, Mapping) else None
        if not isinstance(others, Mapping) or not isinstance(base, Mapping):
            raise ConfigError(
                f"{source}: it extends the service {extends.get('service')}, which {file} does not have",
                "check it with `docker compose config`",
            )
        return merged(self._extended(base, others, place if file == source else other, depth - 1), own)

    def _require_depth(self, depth: int, source: Path) -> None:
        if not depth:
            raise ConfigError(f"{source}: include or extends go round in a circle", "check `docker compose config`")

    def _read(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"cannot read {path}: {e}", "include, extends and env_file name files that exist") from e

    def _load(self, text: str, place: _Place) -> Mapping[str, Any]:
        source, missing = place.source, dict[str, str]()
        try:
            data = load(interpolated(text, place.environ, missing))
        except (YAMLError, ValueError, RecursionError) as e:  # a date that does not exist is a ValueError
            raise ConfigError(
                f"{source} is not YAML: {str(e).splitlines()[0]}", "check it with `docker compose config`"
            ) from e
        if not isinstance(data, Mapping):
            raise ConfigError(f"{source} is no compose file", "name a docker-compose.yaml")
        for name, what in missing.items():
            self.note(f"${{{name}}}", "by hand", what)
        return data

    def environment(self, name: str, entry: Mapping[str, Any]) -> dict[str, str]:
        """A service's variables: those of its env_file, and over them its own."""
        values: dict[str, str] = {}
        for path, required in _env_files(entry.get("env_file")):
            if path.is_file():
                values |= env_file(self._read(path))
            elif required:
                self.note(f"env_file {path}", "by hand", "it is not there: write what it has under env:", name)
        written = entry.get("environment")
        if isinstance(written, list):
            pairs = (str(item).partition("=") for item in written)
            return values | {key: value if equals else self.environ.get(key, "") for key, equals, value in pairs}
        own = written.items() if isinstance(written, Mapping) else ()
        return values | {str(k): self.environ.get(str(k), "") if v is None else str(v) for k, v in own}


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """One service over another by the rules of compose: mappings are united, some lists added to, the rest replaced."""
    result = dict(below)
    for key, value in above.items():
        there = result.get(key)
        if isinstance(value, Reset | Override) or isinstance(there, Reset):
            result[key] = value
        elif isinstance(there, Override):
            result[key] = Override(merged({key: there.value}, {key: value})[key])
        elif key == "environment" and there is not None:
            result[key] = _pairs(there) | _pairs(value)
        elif isinstance(there, Mapping) and isinstance(value, Mapping):
            result[key] = merged(there, value)
        elif key in ADDED and there is not None:
            # What is above counts where two mount the same place or publish the same port, so it comes first; of
            # files with variables the last one counts.
            first, then = (there, value) if key == "env_file" else (value, there)
            result[key] = [*_items(first), *(item for item in _items(then) if item not in _items(first))]
        else:
            result[key] = value
    return result


def _items(value: object) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _pairs(environment: object) -> dict[str, Any]:
    if isinstance(environment, Mapping):
        return {str(key): value for key, value in environment.items()}
    split = (str(item).partition("=") for item in _items(environment) if item is not None)
    return {key: value if equals else None for key, equals, value in split}


def _filled(entry: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """A service whose variables without a value have the one that is set where its file counts."""
    written = entry.get("environment")
    if written is None:
        return dict(entry)

    def pairs(values: object) -> dict[str, Any]:
        return {name: environ.get(name) if value is None else value for name, value in _pairs(values).items()}

    return {**entry, "environment": _inside(written, pairs)}


def _env_files(value: object) -> list[tuple[Path, bool]]:
    """(path, whether it must be there)"""
    found = []
    for item in _items(value) if value else ():
        if isinstance(item, Mapping):
            found.append((Path(str(item.get("path"))), item.get("required") is not False))
        else:
            found.append((Path(str(item)), True))
    return found


def _absolute(entry: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Relative paths of a service count from the file that has them."""
    result = dict(entry)
    if entry.get("volumes"):
        result["volumes"] = _inside(entry["volumes"], lambda value: [_absolute_volume(v, base) for v in _items(value)])
    if entry.get("env_file"):
        result["env_file"] = _inside(entry["env_file"], lambda value: [_absolute_file(f, base) for f in _items(value)])
    return result


def _inside(value: object, change: Callable[[Any], Any]) -> object:
    """``change`` below the tags of compose."""
    if isinstance(value, Override):
        return Override(change(value.value))
    return value if isinstance(value, Reset) else change(value)


def _bare(value: Any) -> Any:
    return value.value if isinstance(value, Override) else None if isinstance(value, Reset) else value


def _absolute_file(item: object, base: Path) -> object:
    if isinstance(item, Mapping):
        return {**item, "path": str(base / str(item.get("path")))}
    return str(base / str(item))


def _absolute_volume(volume: object, base: Path) -> object:
    if isinstance(volume, Mapping):
        source = str(volume.get("source") or "")
        return {**volume, "source": _absolute_source(source, base)}
    source, colon, rest = str(volume).partition(":")
    return f"{_absolute_source(source, base)}{colon}{rest}"


def _absolute_source(source: str, base: Path) -> str:
    return str((base / os.path.expanduser(source)).resolve()) if source.startswith(("/", ".", "~")) else source


def overrides(path: Path, given: Sequence[Path]) -> list[Path]:
    """The override file that Docker would read with this one, when the user named no more than this."""
    if len(given) > 1 or path.name not in NAMES:
        return []
    candidates = (path.with_name(f"{path.stem}.override{suffix}") for suffix in (".yaml", ".yml"))
    return [candidate for candidate in candidates if candidate.is_file()][:1]
