"""What a guard is told: the JSON file of its program, and the command behind ``--``."""

from __future__ import annotations

import json
import os

from llmhost.supervise.guarding.gpu import NVIDIA_SMI
from llmhost.supervise.guarding.group import Place
from llmhost.supervise.guarding.probe import REQUESTS, plain_request, questions

TYPE_CHECKING = False  # typing itself is not imported: it would cost memory in every guard
if TYPE_CHECKING:
    from typing import Any

MARK = "LLMHOST_PROGRAM"
"""Environment variable that every process of an engine carries; its value is unique to a home and a program."""


DEFAULT_RESTARTS = 10


class BadSpec(Exception):
    """The spec cannot be read or is none; the message says why."""


class Spec:
    """A JSON object of mode 0600.

    ``program``; ``kind`` (chat, embed, rerank, or none for a helper); ``model``, a served name; ``socket``, the path of
    a unix socket, or ``127.0.0.1:port``, or '' for a helper that does not listen; ``state_file``; ``log_file`` (may
    be missing or null); ``env``, added to the environment of the engine, with a unique `MARK`; ``locks``, paths that
    are taken in this order; ``start_timeout`` and ``stop_timeout`` in seconds. May be missing: ``hang_timeout`` in
    seconds, 0 for no hang watch; ``max_restarts``, failures in a row until it is given up; ``gpus``, indices;
    ``gpu_probe``, what to run for ``nvidia-smi``; ``events_file``, see `llmhost.supervise.guarding.alerts`; ``needs``,
    services that must be ready first; ``foreign``, when the engine is not vLLM: ``ready`` and ``health``, each null or
    ``{"path", "body", "timeout"}``, ``paths``, ``bin``, which comes first on PATH, ``cores`` to which it is bound;
    ``group``, of a model that spans nodes (`llmhost.supervise.guarding.group.Place`): a part of another rank than 0 has
    no socket.
    """

    def __init__(self, data: dict[str, Any], command: list[str]) -> None:
        self.program = str(data["program"])
        self.kind = str(data["kind"])
        self.model = str(data["model"])
        self.socket = as_bytes(data["socket"])
        self.state_file = as_bytes(data["state_file"])
        self.log_file = as_bytes(data["log_file"]) if data.get("log_file") else None
        self.env = {as_bytes(key): as_bytes(value) for key, value in data["env"].items()}
        self.locks = [as_bytes(path) for path in data["locks"]]
        self.start_timeout = float(data["start_timeout"])
        self.stop_timeout = float(data["stop_timeout"])
        self.hang_timeout = float(data.get("hang_timeout") or 0)
        self.max_restarts = int(data.get("max_restarts") or DEFAULT_RESTARTS)
        self.gpus = [int(index) for index in data.get("gpus") or ()]
        self.gpu_probe = str(data.get("gpu_probe") or NVIDIA_SMI)
        self.events_file = as_bytes(data["events_file"]) if data.get("events_file") else None
        self.command = [os.fsencode(word) for word in command]
        self.needs = [str(name) for name in data.get("needs") or ()]
        if self.kind not in (*REQUESTS, "none"):
            raise ValueError(f"unknown kind {self.kind}")
        foreign = data.get("foreign")
        self.is_vllm = foreign is None
        foreign = foreign or {}
        self.bin = as_bytes(foreign.get("bin") or "")
        self.cores = [int(core) for core in foreign.get("cores") or ()]
        self.ready = Asked(foreign.get("ready"), self.kind, self.model, foreign.get("paths") or {})
        self.health = Asked(foreign.get("health"), self.kind, self.model, foreign.get("paths") or {})
        self.group = Place(data["group"]) if data.get("group") else None
        if MARK.encode() not in self.env:
            raise ValueError(f"no {MARK} in env")

    @property
    def mark(self) -> bytes:
        """``NAME=value`` as it stands in /proc/PID/environ."""
        return MARK.encode() + b"=" + self.env[MARK.encode()]


class Asked:
    """How it is found out whether an engine works: `questions` for its `Engine`, and `timeout` for each in seconds."""

    def __init__(self, written: dict[str, Any] | None, kind: str, model: str, paths: dict[str, str]) -> None:
        self.timeout = float(written["timeout"]) if written and written.get("timeout") else None
        if written is None:
            self.questions = questions(kind, model, paths)
        else:
            path = str(written["path"])
            self.questions = [(path, plain_request(path, written.get("body")))]

    @property
    def words(self) -> str:
        """``GET /health``, for a message; '' where only a connection is asked for."""
        if not self.questions:
            return ""
        path, request = self.questions[0]
        return f"{request.partition(b' ')[0].decode()} {path}"


def as_bytes(text: str) -> bytes:
    """UTF-8 whatever the locale says, so that names arrive as they were written."""
    return text.encode("utf-8", "surrogateescape")


def read_spec(argv: list[str]) -> Spec:
    """The spec for ``SPEC.json -- COMMAND…``; raises BadSpec."""
    if len(argv) < 3 or argv[1] != "--":
        raise BadSpec("usage: guard.py SPEC.json -- COMMAND…")
    try:
        with open(argv[0], "rb") as file:
            return Spec(json.load(file), argv[2:])
    except OSError as e:
        raise BadSpec(f"cannot read {argv[0]}: {e.strerror}") from e
    except KeyError as e:
        raise BadSpec(f"{argv[0]}: {e} is missing") from e
    except (ValueError, TypeError, AttributeError) as e:
        raise BadSpec(f"{argv[0]} is not the spec of a guard: {e}") from e
