"""The part of llmhost.yaml for engines that are not vLLM: services with ``command:``, and the environments they run in.

What may stand in braces in a command is read here, too, so that a placeholder that nobody knows is refused at once.
"""

from __future__ import annotations

import datetime
import json
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from llmhost.config_engine import Section
from llmhost.config_mistakes import Refusal

SIZE = r"^\d+(\.\d+)? ?[MG]iB$"
BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
PORT = re.compile(r"(?:(?P<service>[a-z0-9-]+)\.)?(?:port(?::(?P<name>[a-z0-9-]+))?|(?P<uds>uds))")
KNOWN = "{uds}, {port}, {port:NAME}, {SERVICE.port}, {SERVICE.port:NAME}, {SERVICE.uds}, {gpus}, {home}, {model_dir}"
PLAIN = ("gpus", "home", "model_dir")

LARGEST_BODY = 65536
"""Bytes; a guard sends a request in one piece."""

FOREIGN_ONLY = (
    "environment", "ready", "health", "paths", "model_name", "model_dir", "memory", "gpu_memory", "cores",
)  # fmt: skip
VLLM_ONLY = ("args", "concurrency", "endpoints")
ROUTED_ONLY = ("served_as", "port", "default", "sticky", "limits", "paths", "model_name")
"""Keys of a service that make no sense without the others: ``command:``, ``model:``, a kind that is routed."""


def size_in_bytes(written: str) -> int:
    """``8GiB`` and ``512 MiB``, which `SIZE` allows."""
    number, unit = re.fullmatch(r"([\d.]+) ?([MG])iB", written).groups()  # type: ignore[union-attr]
    return int(float(number) * (2**30 if unit == "G" else 2**20))


def placeholders(text: str) -> Iterator[str]:
    """What stands in braces; raises Refusal for a brace that belongs to nothing."""
    for found in BRACES.finditer(text):
        if found[0] in ("{", "}"):
            # Not what stands around it: in an environment that may be a secret.
            raise Refusal(f"a single {found[0]} stands in it", "a brace that is meant as such is written twice: {{ }}")
        if found[1] is not None:
            yield found[1]


def fill(text: str, value: Callable[[str], str]) -> str:
    """The text with every placeholder replaced by its value, and doubled braces by single ones."""
    return BRACES.sub(lambda found: found[0][0] if found[1] is None else value(found[1]), text)


def _require_known(text: str) -> None:
    for name in placeholders(text):
        if name not in PLAIN and not PORT.fullmatch(name):
            raise Refusal(
                f"the placeholder {{{name}}} is unknown", f"known: {KNOWN}; a brace itself is written twice: {{{{ }}}}"
            )


def _as_words(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return shlex.split(value)
    except ValueError as e:
        raise ValueError(f"{value!r} cannot be split into words: {e}") from None


def _as_texts(value: object) -> object:
    """YAML reads ``8`` as a number, which in a command line is text as any other."""
    if not isinstance(value, list):
        return value
    return [str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v for v in value]


def _as_date(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime.date) else value


def _as_environment(value: object) -> object:
    return {"shared": value} if isinstance(value, str) else value


class Environment(Section):
    """Packages for foreign engines: built by uv, or an interpreter that is there."""

    requirements: list[str] | str | None = None
    """What to install: a list as in a requirements file, or the name of such a file (relative to $LLMHOST_HOME)."""
    python: str | None = None
    """Interpreter for it (a path or a version such as "3.10"); default: the one that runs llmhost."""
    constraints: list[str] | str | None = None
    """Versions that are taken if their package is: a list, or a file."""
    exclude_newer: Annotated[str | None, BeforeValidator(_as_date)] = Field(default=None, pattern=r"^\d{4}-\d\d-\d\d")
    """Only packages that were published before this day (2024-01-01): a set as of its time."""
    torch_backend: str | None = Field(default=None, pattern=r"^[a-z0-9.]+$")
    """Which build of torch: cpu, cu128, auto …, as uv's --torch-backend takes it; default: as the index has it."""
    interpreter: str | None = None
    """The interpreter of an environment that somebody else keeps; nothing is installed there."""
    shared: str | None = None
    """Of a service: the name of one under `environments`; the name alone is enough."""

    @model_validator(mode="after")
    def _one_way(self) -> Environment:
        ways = [key for key in ("requirements", "interpreter", "shared") if getattr(self, key) is not None]
        if len(ways) != 1:
            raise ValueError("write either requirements (to build it) or interpreter (to use one that is there)")
        built = ("python", "constraints", "exclude_newer", "torch_backend")
        unused = [key for key in built if ways != ["requirements"] and getattr(self, key)]
        if unused:
            raise ValueError(f"{', '.join(unused)}: only with requirements, nothing is installed otherwise")
        if self.requirements in ([], ""):
            raise ValueError("requirements: there is nothing to install")
        return self


class Request(Section):
    """A request that shows that an engine works: GET, or POST where it has a body. Any 2xx will do."""

    path: str = Field(pattern=r"^/[\x21-\x7e]*$")
    """Path at the engine."""
    body: dict[str, Any] | None = None
    """Sent as JSON."""
    timeout: float | None = Field(default=None, gt=0, le=3600, strict=False)
    """Seconds for the answer; default: 120 while it starts, afterwards a fifth of hang_timeout."""

    @field_validator("body")
    @classmethod
    def _plain_body(cls, body: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            size = len(json.dumps(body))
        except TypeError as e:
            raise ValueError(f"it cannot be written as JSON: {e}") from None
        if size > LARGEST_BODY:
            raise ValueError(f"it has {size} bytes, and {LARGEST_BODY} are the most for a request that only asks")
        return body


def _as_request(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


RequestOrPath = Annotated[Request | None, BeforeValidator(_as_request, json_schema_input_type=Request | str | None)]
"""A path stands for a GET without more."""


class Source(Section):
    """Where a service comes from: a model for vLLM, or the command of another engine."""

    model: str = ""
    """A directory, demo:chat|embed|rerank, modelscope:owner/name or hf:owner/name. Either this or `command`."""
    command: Annotated[
        list[str],
        BeforeValidator(_as_texts),
        BeforeValidator(_as_words, json_schema_input_type=list[str | int | float] | str),
    ] = Field(default_factory=list)
    """Another engine than vLLM: its words, with {uds} or {port} for where it listens; see docs/foreign-engines.md."""
    environment: Annotated[
        Environment | None, BeforeValidator(_as_environment, json_schema_input_type=Environment | str | None)
    ] = None
    """With `command`: the packages that it runs in, or a name under `environments`; default: what is on PATH."""
    model_dir: str | None = Field(default=None, min_length=1)
    """With `command`: a model as under `model`, fetched; its directory is {model_dir} in the command."""
    ready: RequestOrPath = None
    """With `command`: the request that shows that it is ready; default: `health`, else a real one of its kind."""
    health: RequestOrPath = None
    """With `command`: the request that shows that it does not hang; default: `ready`, else a real one of its kind."""
    paths: dict[str, str] = Field(default_factory=dict)
    """With `command`: paths of the gateway and what they are at the engine: {/v1/rerank: /rerank}."""
    model_name: str | None = Field(default=None, min_length=1)
    """With `command`: what the engine gets as `model` instead of the name that the client sent."""
    memory: str | None = Field(default=None, pattern=SIZE)
    """With `command`: memory of the host that each replica takes (4GiB); default: 2GiB, without a kind 512MiB."""
    gpu_memory: str | None = Field(default=None, pattern=SIZE)
    """With `command`: memory that it takes of each of its GPUs (8GiB); default: all, where `gpus` says it has some."""
    cores: int | None = Field(default=None, ge=0, le=4096)
    """With `command`, without GPUs: CPU cores of each replica; 0: not bound; default: a fair part, without a kind 0."""

    @field_validator("command")
    @classmethod
    def _usable_words(cls, words: list[str]) -> list[str]:
        for word in words:
            _require_known(word)
            if any(c in word for c in "\n\r\0"):
                raise ValueError(f"{word!r} holds a line break, which a command line of supervisord cannot")
        if words and (not words[0] or set(placeholders(words[0])) - {"home"}):
            raise ValueError(f"the first word is the program, and {words[0]!r} can be none; {{home}} may stand in it")
        return words

    @field_validator("paths")
    @classmethod
    def _absolute(cls, paths: dict[str, str]) -> dict[str, str]:
        for path in (*paths, *paths.values()):
            if not re.fullmatch(r"/[\x21-\x7e]*", path) or "?" in path or "#" in path:
                raise ValueError(f"{path!r} is no path: it begins with /, and has no query")
        return paths

    @property
    def is_foreign(self) -> bool:
        """Another engine than vLLM."""
        return bool(self.command)

    @property
    def source(self) -> str:
        """The model to fetch, '' without one."""
        return self.model_dir or "" if self.is_foreign else self.model


def check_source(service: Source, routed: bool) -> None:
    """Refuse keys that do not belong together; ``routed``: it has a kind, so that others can ask it."""
    # What is written as it is by default is not written: `llmhost config show` does that.
    defaults = {k: f.get_default(call_default_factory=True) for k, f in type(service).model_fields.items()}
    given = {key for key in service.model_fields_set if getattr(service, key) != defaults[key]}
    if bool(service.command) == bool(service.model):
        raise Refusal(
            "both model and command" if service.command else "neither model nor command",
            "write model: for vLLM, or command: for another engine (docs/foreign-engines.md)",
        )
    alien = sorted(given & set(VLLM_ONLY if service.is_foreign else FOREIGN_ONLY))
    if alien:
        goes = "model" if service.is_foreign else "command"
        raise Refusal(f"{', '.join(alien)}: only for a service with {goes}:", "leave it out")
    if not service.is_foreign:
        return
    unrouted = sorted(given & set(ROUTED_ONLY)) if not routed else []
    if unrouted:
        raise Refusal(
            f"{', '.join(unrouted)}: only for a service that can be asked", "write kind: chat, embed or rerank, too"
        )


def check_command(service: Source, env: Mapping[str, str], routed: bool) -> None:
    """Refuse a command that listens nowhere, and placeholders for what is not written."""
    for name, value in env.items():
        try:
            _require_known(value)
        except Refusal as e:
            raise Refusal(f"env.{name}: {e}", e.hint) from None
    names = set(names_in(service, env))
    if routed and not names & {"uds", "port"}:
        raise Refusal(
            "command: neither {uds} nor {port} stands in it, so nobody could ask it",
            "tell it to listen on the unix socket {uds}, or on 127.0.0.1 and the port {port}",
        )
    if "model_dir" in names and not service.model_dir:
        raise Refusal("command: {model_dir} stands in it, and there is no model_dir", "write model_dir: hf:owner/name")
    if not names & {"uds", "port"} and (service.ready or service.health):
        raise Refusal(
            "ready: it listens nowhere that llmhost knows, so it cannot be asked",
            "tell it to listen on {uds} or {port}, or leave ready and health out: then it is ready when it runs",
        )


def names_in(service: Source, env: Mapping[str, str]) -> Iterator[str]:
    """The placeholders of a command and its environment."""
    for text in (*service.command, *env.values()):
        yield from placeholders(text)


def check_needs(needs: Mapping[str, list[str]], here: Collection[str]) -> None:
    """Refuse services that nobody knows, those that have no replica ``here``, and those that wait for each other."""
    for name, needed in needs.items():
        unknown = [n for n in needed if n not in needs]
        if unknown:
            raise Refusal(f"services.{name}.needs: there is no service {unknown[0]}", f"there are: {', '.join(needs)}")
        elsewhere = [n for n in needed if n not in here]
        if elsewhere and name in here:
            raise Refusal(
                f"services.{name}.needs: {elsewhere[0]} has no replica here, so it would be waited for without end",
                "leave it out: whether other hosts answer is not waited for",
            )
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as e:
        path: list[str] = e.args[1][::-1]
        raise Refusal(
            f"services.{path[0]}.needs: it waits for itself: {' -> '.join(path)}", "take one of them out"
        ) from None
