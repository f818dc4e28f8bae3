"""docker compose files that run vLLM or text-embeddings-inference -> llmhost.yaml."""

from __future__ import annotations

import shlex
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmhost.errors import ConfigError
from llmhost.migrate.clashes import finish
from llmhost.migrate.environment import beside, keep
from llmhost.migrate.names import service_names
from llmhost.migrate.project import Project
from llmhost.migrate.report import Draft, Imported, Line
from llmhost.migrate.resources import NO_LIMITS, translate_resources
from llmhost.migrate.shell import started
from llmhost.migrate.tei import translate_tei
from llmhost.migrate.vllm import TRUE, other_command, server_words, translate_vllm

NO_MEANING = {
    "shm_size": "shared memory of the host has no such limit",
    "ipc": "engines are processes of the host",
    "ulimits": "limits are the user's; see systemd's LimitMEMLOCK",
    "restart": "the guard restarts what ends, with back-off",
    "healthcheck": "the guard asks engines with real requests",
    "container_name": "the service's name",
    "hostname": "engines are processes of the host",
    "networks": "engines listen on unix sockets",
    "network_mode": "engines listen on unix sockets",
    "runtime": "GPUs are the host's",
    "privileged": "engines run as the user of the home",
    "cap_add": "engines run as the user of the home",
    "security_opt": "engines run as the user of the home",
    "user": "engines run as the user of the home",
    "logging": "`llmhost logs`",
    "labels": "nobody reads them here",
    "stdin_open": "engines have no terminal",
    "tty": "engines have no terminal",
    "expose": "engines listen on unix sockets",
    "pull_policy": "there is no image",
    "platform": "there is no image",
    "init": "the guard reaps processes",
    "stop_grace_period": "write stop_timeout",
    "working_dir": "paths are those of the host",
    "extra_hosts": "/etc/hosts of the host counts",
    "dns": "the host's resolver counts",
    "profiles": "all services start; stop one by name: `llmhost stop NAME`",
}
"""Keys of a compose service that mean nothing without Docker -> what there is instead."""

HANDLED = (
    "image", "build", "command", "entrypoint", "environment", "env_file", "ports", "volumes", "deploy", "gpus", "scale",
    "depends_on",
)  # fmt: skip


def import_compose(texts: Mapping[Path, str], environ: Mapping[str, str], over: Container[Path] = ()) -> Imported:
    """Translate compose files, the later ones on top of the earlier; ``environ`` fills their variables.

    ``over`` are override files, which go on top whatever they say.

    Raises ConfigError when one is no compose file, or none of them runs a model server that is known.
    """
    found = read_compose(texts, environ, over)
    return finish(found.drafts, found.lines, names=found.names)


@dataclass(frozen=True)
class Read:
    """The services of compose files before what meets is sorted out."""

    drafts: list[Draft]
    lines: list[Line]
    """What there is to say about the files."""
    names: Mapping[str, str]
    """Old names of services -> those of the drafts."""


def read_compose(texts: Mapping[Path, str], environ: Mapping[str, str], over: Container[Path] = ()) -> Read:
    """The services of compose files, each for itself; see `import_compose`, also for what it raises."""
    project = Project(environ)
    for source, text in texts.items():
        project.add(text, source, over=source in over)
    names = service_names(project.services)
    drafts = [_service(name, names[name], entry, project) for name, entry in project.services.items()]
    if not any("model" in draft.keys for draft in drafts):
        files = ", ".join(map(str, texts))
        unset = ", ".join(line.source for line in project.lines if line.source.startswith("${"))
        hint = f"these variables have no value: {unset}" if unset else "other servers cannot be moved"
        raise ConfigError(f"{files} runs neither vLLM nor text-embeddings-inference", hint)
    return Read(drafts, project.lines, names)


def _service(name: str, made: str, entry: Mapping[str, Any], project: Project) -> Draft:
    draft = Draft(made)
    if made != name:
        draft.became(name, f"the service {made}")
    image = str(entry.get("image") or "")
    env = project.environment(made, entry)
    words = _words(draft, entry, env)
    which = _server(image, words)
    if which is None:
        draft.left_out(image or "(no image)", "neither vLLM nor text-embeddings-inference")
        return draft
    if which == "vllm" and (command := other_command(words)):
        draft.left_out(f"{image}: vllm {command}", "it serves no model")
        return draft
    draft.needs = _names(entry.get("depends_on"))
    draft.profiles = _names(entry.get("profiles"))
    volumes = list(_volumes(draft, entry.get("volumes")))
    keep(draft, env, tei=which == "tei")

    def paths(path: str) -> str:
        return _host_path(path, volumes)

    if which == "vllm":
        modelscope = env.get("VLLM_USE_MODELSCOPE", "").lower() in TRUE
        port = translate_vllm(draft, server_words(words), paths, modelscope)
    else:
        port = translate_tei(draft, words, env, paths)
    _ports(draft, entry, port)
    translate_resources(draft, entry, env)
    for key in map(str, entry):
        if key.startswith("x-"):
            draft.left_out(key, "an extension, which other parts of the file refer to")
        elif key not in (*HANDLED, *NO_LIMITS):
            told = NO_MEANING.get(key)
            draft.left_out(key, told) if told else draft.by_hand(key, "a key of compose that is not known here")
    return draft


def _names(value: object) -> tuple[str, ...]:
    """A list, or the keys of a mapping."""
    return tuple(map(str, value)) if isinstance(value, list | Mapping) else (str(value),) if value else ()


def _server(image: str, words: Sequence[str]) -> str | None:
    if "text-embeddings-inference" in image:
        return "tei"
    called = any(word == "vllm" or word.startswith("vllm.entrypoints") for word in words)
    return "vllm" if "vllm" in image.lower() or called else None


def _words(draft: Draft, entry: Mapping[str, Any], env: dict[str, str]) -> list[str]:
    """``entrypoint`` and ``command`` as one list of words; what a shell would run is looked into."""
    found = started([*_list(entry.get("entrypoint")), *_list(entry.get("command"))])
    beside(draft, found.others)
    env |= found.env
    return found.words


def _list(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list):
        return [str(item) if not isinstance(item, bool) else str(item).lower() for item in value]
    return shlex.split(str(value).replace("\\\n", " "))


def _volumes(draft: Draft, volumes: object) -> Iterator[tuple[str, str]]:
    """(path in the container, path on the host) of bind mounts."""
    for volume in volumes if isinstance(volumes, list) else ():
        if isinstance(volume, Mapping):
            source, target = str(volume.get("source") or ""), str(volume.get("target") or "")
        else:
            source, _, rest = str(volume).partition(":")
            target = rest.partition(":")[0]
        shown = f"volume {source}:{target}"
        if source.startswith("/") and target:
            draft.became(shown, f"paths below {target} are below {source}")
            yield target.rstrip("/"), source
        else:
            draft.left_out(shown, "a volume of Docker: files in it must be copied if they are needed")


def _host_path(path: str, volumes: Sequence[tuple[str, str]]) -> str:
    for target, host in sorted(volumes, key=lambda v: -len(v[0])):
        if path == target or path.startswith(f"{target}/"):
            return host + path[len(target) :]
    return path


def _ports(draft: Draft, entry: Mapping[str, Any], listened: int) -> None:
    """The port that clients used publishes the service alone."""
    if entry.get("network_mode") == "host":
        draft.keys["port"] = listened
        draft.became(f"port {listened} of the host", f"port: {listened}")
        return
    ports = entry.get("ports") or []
    for port in ports if isinstance(ports, list) else (ports,):
        if isinstance(port, Mapping):
            published, target = str(port.get("published", "")), str(port.get("target", ""))
        else:
            parts = str(port).partition("/")[0].split(":")
            published, target = (parts[-2] if len(parts) > 1 else ""), parts[-1]
        local = str(port).startswith(("127.", "[::1]")) or (
            isinstance(port, Mapping) and str(port.get("host_ip", "")).startswith("127.")
        )
        if not local:
            draft.by_hand(
                f"ports {port}", "others could reach it: if they must, write gateway.host: 0.0.0.0 and make a key"
            )
        if published.isdigit() and target == str(listened) and "port" not in draft.keys:
            draft.keys["port"] = int(published)
            draft.became(f"ports {port}", f"port: {published}, beside the gateway's port")
        else:
            draft.by_hand(f"ports {port}", f"the server listened on {listened}: write port: if clients need it")
