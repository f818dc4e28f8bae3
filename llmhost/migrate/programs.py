"""supervisord's configuration as it reads it: included files, expansions, processes of a program."""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llmhost.errors import ConfigError
from llmhost.migrate.report import Line
from llmhost.migrate.resources import MOST

ENVIRONMENT = re.compile(r"([\w%().]+)\s*=\s*(\"[^\"]*\"|'[^']*'|[^,\n]*)")
_COMMENT = re.compile(r"\s;.*$", re.MULTILINE)


@dataclass(frozen=True)
class Process:
    """One process of a program, with everything expanded."""

    words: list[str]
    env: dict[str, str]
    directory: str


@dataclass(frozen=True)
class Program:
    """A ``[program:…]``: its other options as they are written."""

    name: str
    processes: tuple[Process, ...]
    options: dict[str, str]


@dataclass
class Programs:
    """The programs of a configuration, and what there is to say about the rest of it."""

    programs: list[Program] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)


def read_programs(text: str, source: Path, environ: Mapping[str, str]) -> Programs:
    """The programs of ``source`` and of the files that its ``[include]`` names.

    Raises ConfigError when one of them cannot be read.
    """
    found = Programs()
    sections: dict[str, tuple[dict[str, str], Path]] = {}
    main = _sections(text, source)
    for file, parsed in ((source, main), *_included(main, source, found)):
        for section, options in parsed.items():
            there = sections.get(section, ({}, file))
            sections[section] = ({**there[0], **options}, file)
    for section, (options, file) in sections.items():
        kind, _, name = section.partition(":")
        if kind == "program":
            found.programs.append(_program(name, options, file, environ, found))
        elif kind != "include":
            found.lines.append(
                Line("", f"[{section}]", "left out", "llmhost writes supervisord's configuration itself")
            )
    return found


def _sections(text: str, source: Path) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=(";", "#"))
    try:
        parser.read_string(text)
    except configparser.Error as e:
        raise ConfigError(
            f"{source} is no supervisord configuration: {str(e).splitlines()[0]}", "check the file"
        ) from e
    return {section: {k: v or "" for k, v in parser.items(section)} for section in parser.sections()}


def _included(
    main: Mapping[str, Mapping[str, str]], source: Path, found: Programs
) -> Iterator[tuple[Path, dict[str, dict[str, str]]]]:
    """supervisord follows the ``[include]`` of the first file only; patterns count from its directory."""
    here = source.absolute().parent
    for pattern in _COMMENT.sub("", main.get("include", {}).get("files", "")).split():
        whole = here / pattern.replace("%(here)s", str(here))
        files = sorted(Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))))
        outcome = f"{len(files)} files: {', '.join(f.name for f in files)}" if files else "there is no such file"
        found.lines.append(Line("", f"[include] {pattern}", "became" if files else "by hand", outcome))
        for file in files:
            yield file, _sections(_read(file), file)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"cannot read {file}: {e}", "[include] names files that can be read") from e


def _program(name: str, options: Mapping[str, str], file: Path, environ: Mapping[str, str], found: Programs) -> Program:
    written = {key: _COMMENT.sub("", value) for key, value in options.items()}
    count, first = _number(written.get("numprocs"), 1), _number(written.get("numprocs_start"), 0)
    values: dict[str, object] = {"here": str(file.absolute().parent), "program_name": name, "group_name": name}
    values |= {"numprocs": count, **{f"ENV_{key}": value for key, value in environ.items()}}
    processes = []
    for number in range(first, first + max(1, min(count, MOST))):
        expanded = {
            key: _expanded(written.get(key, ""), {**values, "process_num": number}, name, found)
            for key in ("command", "environment", "directory")
        }
        env = {key: value.strip().strip("\"'") for key, value in ENVIRONMENT.findall(expanded["environment"])}
        processes.append(Process(_split(expanded["command"]), env, expanded["directory"]))
    rest = {key: value for key, value in written.items() if key not in ("command", "environment", "directory")}
    return Program(name, tuple(processes), rest)


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.strip().isdigit() else default


def _expanded(text: str, values: Mapping[str, object], name: str, found: Programs) -> str:
    """``%(process_num)02d`` and the like, as Python's own formatting does it there."""
    try:
        return text % values
    except (KeyError, ValueError, TypeError) as e:
        what = f"{e} cannot be filled in: look at the command, environment and directory"
        line = Line(name, f"[program:{name}]", "by hand", what)
        if line not in found.lines:
            found.lines.append(line)
        return text.replace("%%", "%")


def _split(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a quote that is not closed
        return command.split()
