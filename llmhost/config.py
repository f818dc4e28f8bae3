"""llmhost.yaml: what an operator writes. Parsed, checked, frozen; nothing about this machine is known here.

Every refusal is a ConfigError that names the key by its path (``services.chat.args``) and says what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from llmhost.config_engine import Engine as Engine  # noqa: PLC0414 -- a part of Config, for whoever reads it
from llmhost.config_engine import Section, package_name
from llmhost.config_foreign import PORT, Environment, Source, check_command, check_needs, check_source, names_in
from llmhost.config_gateway import Gateway as Gateway  # noqa: PLC0414
from llmhost.config_mistakes import Refusal, explain
from llmhost.config_nodes import Node as Node  # noqa: PLC0414
from llmhost.config_nodes import check_node_names, check_nodes, check_places
from llmhost.config_requests import Endpoints, ServiceLimits, Stickiness, Texts
from llmhost.config_span import RAY, SpanOrWidth, check_spans
from llmhost.errors import ConfigError
from llmhost.facts import Kind

SERVICE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

LONGEST = 7 * 86400
"""Seconds; whoever waits longer than a week has forgotten about it."""

RESERVED = ("gateway", "supervisord", "metrics", "access")
"""Names of programs beside the engines, in `llmhost logs` for one."""

ArgValue = bool | int | float | str | list[Any] | dict[str, Any] | None


def _as_strings(value: object) -> object:
    """YAML reads ``8`` and ``true`` as number and boolean; in an environment they are text."""
    if not isinstance(value, Mapping):
        return value
    return {str(k): _environment_text(v) for k, v in value.items()}


def _environment_text(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _as_kind(value: object) -> object:
    """``none``, in words, for a program that nobody asks."""
    return None if value == "none" else value


class Service(Source):
    """One model served under one or more names."""

    kind: Annotated[Kind | None, BeforeValidator(_as_kind, json_schema_input_type=Kind | Literal["none"] | None)] = None
    """chat, embed or rerank; default: inferred from the model. Without one, or none, a `command` is not routed."""
    served_as: Texts = Field(default_factory=list)
    """Names that clients send as `model`; default: the name of the service."""
    replicas: int = Field(default=1, ge=0, le=64)
    """Engine processes that share the requests; 0: only `endpoints` serve it."""
    gpus: Literal["auto"] | int | list[int] = "auto"
    """GPUs of each replica: how many, which ones (a list of indices), or auto: the fewest that are enough."""
    concurrency: int | None = Field(default=None, ge=1, le=10_000)
    """Sequences of full length that its KV cache must hold at once; default: one, and more where memory allows."""
    nodes: Texts = Field(default_factory=list)
    """Nodes that may run it; default: all of `nodes`."""
    span: SpanOrWidth = None
    """Nodes that share each replica: how many; default: as few as its `gpus` need."""
    executor: Literal["mp", "ray"] = "mp"
    """What starts the workers of a model on several GPUs: vLLM by itself (mp), or Ray."""
    endpoints: Endpoints = Field(default_factory=list)
    """Servers on other hosts that take their part of the requests."""
    sticky: Stickiness = None
    """Sends requests that belong together to the same replica, for its prefix cache's sake: prefix, or a header."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """Publishes this service alone on a port of its own, too."""
    default: bool = False
    """Answers requests of its kind that name no model; a service that is the only one of its kind does so anyway."""
    limits: ServiceLimits = ServiceLimits()
    """What all clients together may ask of it."""
    args: dict[str, ArgValue] = Field(default_factory=dict)
    """Any vLLM flag: max_model_len: 8192, enforce_eager: true; false becomes --no-…, a mapping becomes JSON."""
    env: Annotated[
        dict[str, str],
        BeforeValidator(_as_strings, json_schema_input_type=dict[str, str | int | float | bool]),
    ] = Field(default_factory=dict)
    """Environment variables for the engine process."""
    needs: Texts = Field(default_factory=list)
    """Services that must be ready before this one starts."""
    start_timeout: float = Field(default=1800, gt=0, le=LONGEST, allow_inf_nan=False, strict=False)
    """Seconds that the engine may take to become ready."""
    stop_timeout: float = Field(default=30, ge=0, le=LONGEST, allow_inf_nan=False, strict=False)
    """Seconds that running requests get to finish when the service is stopped."""
    hang_timeout: float = Field(default=60, ge=0, le=86400, strict=False)
    """Seconds after which an engine that does not answer any more is restarted (later when it is busy); 0: never."""
    max_restarts: int = Field(default=10, ge=1, le=1000)
    """Failures in a row, without ten good minutes between them, after which a replica is not restarted any more."""

    @field_validator("served_as")
    @classmethod
    def _plain_names(cls, names: list[str]) -> list[str]:
        for name in names:
            if not name.strip() or not name.isprintable() or name.startswith("-"):
                raise ValueError(f"{name!r} cannot be a model name: use printable characters, and no '-' in front")
        return list(dict.fromkeys(names))

    @field_validator("gpus", mode="before")
    @classmethod
    def _some_gpus(cls, gpus: object) -> object:
        indices = gpus if isinstance(gpus, list) else [gpus]
        numbers = all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in indices)
        if gpus != "auto" and (not numbers or gpus == []):
            raise ValueError("write auto, a number from 1 on, or a list of indices from 0 on")
        if numbers and len(set(indices)) != len(indices):
            raise ValueError("a GPU is in the list twice")
        return gpus

    @field_validator("env")
    @classmethod
    def _environment_names(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if not ENVIRONMENT_NAME.fullmatch(name):
                raise Refusal(
                    f"{name!r} cannot be the name of an environment variable",
                    "use letters, digits and _, and no digit in front",
                )
            if name.startswith("LLMHOST_"):
                raise Refusal(f"{name}: names that begin with LLMHOST_ are for llmhost itself", "leave it out")
            if "\0" in value:
                raise Refusal(f"the value of {name} holds a NUL character", "no environment can hold one")
        return env

    @model_validator(mode="before")
    @classmethod
    def _models_have_a_kind(cls, data: object) -> object:
        if isinstance(data, Mapping) and data.get("model") and data.get("kind") == "none":
            raise Refusal("kind: none is for programs (command:)", "write chat, embed or rerank, or leave it out")
        return data

    @property
    def routed(self) -> bool:
        """Others can ask it: a command without a kind only helps other services."""
        return self.kind is not None or not self.is_foreign

    @model_validator(mode="after")
    def _one_source(self) -> Service:
        check_source(self, self.routed)
        if self.is_foreign:
            check_command(self, self.env, self.routed)
        if not self.is_foreign and self.gpus == 0:
            raise Refusal(
                "gpus: 0 is for services with command:", "write auto: vLLM computes on the CPU by engine.device: cpu"
            )
        if self.is_foreign and self.replicas == 0:
            raise Refusal("replicas: 0 would run nothing", "write one at least, or leave the service out")
        return self

    @model_validator(mode="after")
    def _somebody_serves(self) -> Service:
        urls = ((e.url, f"endpoints[{i}]") for i, e in enumerate(self.endpoints))
        _refuse_double("endpoint", urls, "write it once")
        if self.replicas == 0 and not self.endpoints:
            raise ValueError("replicas: 0 leaves nobody to serve it: write endpoints:, or at least one replica")
        if self.replicas == 0 and self.nodes:
            raise Refusal("nodes: replicas: 0 runs on none", "leave nodes out, or write at least one replica")
        if self.replicas == 0 and self.kind is None:
            raise ValueError("without a replica here its kind cannot be inferred: write kind: chat, embed or rerank")
        return self


class Config(Section):
    """The whole of llmhost.yaml."""

    engine: Engine = Engine()
    models_dir: str | None = None
    """Where models are kept; default: $LLMHOST_HOME/models."""
    gateway: Gateway = Gateway()
    nodes: dict[str, Node] = Field(default_factory=dict)
    """The machines that share the services out among them, by name; default: this one alone."""
    on_event: str | None = Field(default=None, min_length=1)
    """Told when a replica is failed, unhealthy or recovered: a command for the shell, or an http(s) URL."""
    environments: dict[str, Environment] = Field(default_factory=dict)
    """Packages that several services with `command` share, by name."""
    services: dict[str, Service] = Field(default_factory=dict)
    """The services by name."""

    @field_validator("services", mode="before")
    @classmethod
    def _service_names(cls, services: object) -> object:
        for name in services if isinstance(services, Mapping) else ():
            if not isinstance(name, str) or not SERVICE_NAME.fullmatch(name) or len(name) > 40:
                raise Refusal(
                    f"{name!r} cannot be the name of a service: use a-z, 0-9 and '-' between them, up to 40 characters",
                    f"call it {_plain(str(name))}, say; clients may know it by any name under served_as:",
                )
            if name in RESERVED:
                raise Refusal(
                    f"{name!r} cannot be the name of a service: a program of llmhost is called so",
                    f"call it {name}-model, say; clients may know it by any name under served_as:",
                )
        return services

    @field_validator("nodes", mode="before")
    @classmethod
    def _node_names(cls, nodes: object) -> object:
        check_node_names(nodes)
        return nodes

    @model_validator(mode="after")
    def _known_nodes(self) -> Config:
        ports = {"gateway.port": self.gateway.port}
        ports |= {f"services.{name}.port": s.port for name, s in self.services.items() if s.port}
        check_nodes(self.nodes, self.gateway.port, ports)
        for name, service in self.services.items():
            check_places(name, service.nodes, self.nodes)
        check_spans(self.services, self.nodes)
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _with_ray(cls, data: object, handler: ModelWrapValidatorHandler[Config]) -> Config:
        """Models that Ray starts need it in the engine, which is built with it."""
        made = handler(data)
        needed = any(s.executor == "ray" and not s.is_foreign for s in made.services.values())
        packages = made.engine.packages
        if not needed or made.engine.kind == "existing" or "ray" in map(package_name, packages):
            return made
        engine = made.engine.model_copy(update={"packages": [*packages, RAY]})
        return made.model_copy(update={"engine": engine})

    @model_validator(mode="after")
    def _one_owner_each(self) -> Config:
        names = ((n, s) for s, service in self.services.items() for n in served_names(s, service))
        _refuse_double(
            "served_as",
            names,
            "each name goes to one service: change it in one of them (a service without served_as has its own name)",
        )
        ports = ((p, s) for s, service in self.services.items() if (p := service.port))
        _refuse_double(
            "port",
            [(self.gateway.port, "gateway"), *ports],
            "write another port, or none: all services are behind gateway.port anyway",
        )
        return self

    @model_validator(mode="after")
    def _known_services(self) -> Config:
        for name, environment in self.environments.items():
            if environment.shared or not SERVICE_NAME.fullmatch(name) or len(name) > 40:
                raise Refusal(
                    f"environments.{name}: it needs a name like a service, and requirements or an interpreter",
                    "a-z, 0-9 and '-' between them, up to 40 characters",
                )
        here = {name for name, service in self.services.items() if service.replicas}
        check_needs({name: service.needs for name, service in self.services.items()}, here)
        for name, service in self.services.items():
            self._require_environment(name, service)
            for placeholder in names_in(service, service.env) if service.is_foreign else ():
                self._require_address(f"services.{name}.command", placeholder)
        return self

    def _require_environment(self, name: str, service: Service) -> None:
        written = service.environment
        if written and written.shared and written.shared not in self.environments:
            known = ", ".join(self.environments) or "nothing yet"
            raise Refusal(
                f"services.{name}.environment: there is no environment {written.shared}",
                f"under environments: there is {known}",
            )
        if written and not written.shared and name in self.environments:
            raise Refusal(
                f"services.{name}.environment: environments.{name} has that name already", "write its name instead"
            )

    def _require_address(self, path: str, placeholder: str) -> None:
        """``{SERVICE.port:NAME}`` names something that there is once."""
        found = PORT.fullmatch(placeholder)
        if found is None or found["service"] is None:
            return
        owner, own = self.services.get(found["service"]), placeholder.partition(".")[2]
        if owner is None or not owner.is_foreign or own not in names_in(owner, owner.env):
            raise Refusal(
                f"{path}: {{{placeholder}}}: there is no service {found['service']} with {{{own}}} in its command",
                f"commands are in: {', '.join(n for n, s in self.services.items() if s.is_foreign)}",
            )
        if owner.replicas != 1:
            raise Refusal(
                f"{path}: {{{placeholder}}}: {found['service']} has {owner.replicas} replicas, each with its own",
                "ask it through the gateway, or let it have one",
            )


def served_names(name: str, service: Service) -> tuple[str, ...]:
    """The names that clients may send as ``model`` for this service."""
    return (tuple(service.served_as) or (name,)) if service.routed else ()


def _plain(name: str) -> str:
    """A name like this one that a service may have."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "chat"


def _refuse_double(what: str, owners: Iterable[tuple[object, str]], hint: str) -> None:
    seen: dict[object, str] = {}
    for value, owner in owners:
        if value in seen:
            raise Refusal(f"{what} {value!r} is used by both {seen[value]} and {owner}", hint)
        seen[value] = owner


def load(path: Path) -> Config:
    """Read llmhost.yaml; raises ConfigError when it is missing, unreadable, not YAML or not a configuration."""
    return parse(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of llmhost.yaml; raises ConfigError when it is missing or unreadable."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as e:
        raise ConfigError(f"{path} does not exist", "write one with `llmhost init` (or `llmhost init --demo`)") from e
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"cannot read {path}: {e}", "it must be a readable file in UTF-8") from e


def parse(text: str, source: str = "llmhost.yaml") -> Config:
    """Check the text of an llmhost.yaml; raises ConfigError with the path of the first wrong key."""
    data = _yaml(text, source)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{source} is not a mapping", "start from `llmhost init --demo`")
    try:
        return Config.model_validate(data)
    except ValidationError as e:
        raise explain(e, source, Config) from None


def _yaml(text: str, source: str) -> Any:
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        place = f"{source}:{mark.line + 1}" if mark else source
        problem = str(getattr(e, "problem", None) or e).splitlines()[0]
        raise ConfigError(f"{place}: {problem}", "YAML wants equal indentation by spaces, and each key once") from None
    except (ValueError, RecursionError) as e:
        # A date that does not exist, a number of thousands of digits, and the like.
        raise ConfigError(f"{source}: a value cannot be read: {e}", "put it in quotes if it is meant as text") from None


def schema() -> dict[str, Any]:
    """JSON Schema of llmhost.yaml, for editors."""
    described = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    return {**described, "title": "llmhost.yaml"}
