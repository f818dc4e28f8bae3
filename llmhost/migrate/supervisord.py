"""supervisord programs that run vLLM or FastChat's vLLM worker -> llmhost.yaml."""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from llmhost.errors import ConfigError
from llmhost.migrate.compose import SECRET, finish
from llmhost.migrate.names import service_names
from llmhost.migrate.report import Draft, Imported, Line
from llmhost.migrate.vllm import translate_vllm
from llmhost.migrate.words import split_flags

WORKERS = ("fastchat.serve.vllm_worker", "fastchat.serve.model_worker")
FRONT = ("fastchat.serve.controller", "fastchat.serve.openai_api_server", "fastchat.serve.gradio_web_server")
OF_WORKERS = {
    "controller_address": "there is no controller: the gateway knows every service",
    "worker_address": "engines listen on unix sockets",
    "host": "engines listen on unix sockets",
    "port": "engines listen on unix sockets",
    "limit_worker_concurrency": "write limits: {concurrent_requests: …}",
    "no_register": "there is no controller",
    "conv_template": "vLLM takes the chat template of the model; write chat_template under args: to insist",
    "device": "engine.device in llmhost.yaml decides",
    "gpus": "write gpus:",
    "max_gpu_memory": "the plan shares out memory",
    "load_8bit": "use a quantized model, or quantization under args:",
}
ENVIRONMENT = re.compile(r"(\w+)=(\"[^\"]*\"|'[^']*'|[^,]*)")
COMMENT = re.compile(r"\s;.*$")


def import_supervisord(text: str, source: Path) -> Imported:
    """Translate the programs of a supervisord configuration.

    Raises ConfigError when it cannot be read, or runs no model server that is known.
    """
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=(";", "#"))
    try:
        parser.read_string(text)
    except configparser.Error as e:
        raise ConfigError(
            f"{source} is no supervisord configuration: {str(e).splitlines()[0]}", "check the file"
        ) from e
    lines: list[Line] = []
    drafts: list[Draft] = []
    port = 8000
    names = service_names(name for kind, _, name in (s.partition(":") for s in parser.sections()) if kind == "program")
    for section in parser.sections():
        kind, _, name = section.partition(":")
        if kind != "program":
            lines.append(Line("", f"[{section}]", "left out", "llmhost writes supervisord's configuration itself"))
            continue
        words = shlex.split(COMMENT.sub("", parser.get(section, "command", fallback="")).replace("%%", "%"))
        if any(module in words for module in FRONT):
            port = _front(name, words, lines, port)
            continue
        draft = _program(name, names[name], words, dict(parser.items(section)))
        lines += draft.lines
        if draft.keys:
            drafts.append(draft)
    if not drafts:
        raise ConfigError(f"{source} runs neither vLLM nor a FastChat worker", "other programs cannot be moved")
    return Imported(finish(drafts, lines, port), tuple(lines))


def _front(name: str, words: Sequence[str], lines: list[Line], port: int) -> int:
    lines.append(Line(name, " ".join(words), "left out", "the gateway takes its place"))
    flags = {flag.name: flag for flag in split_flags(words)[1]}
    if "fastchat.serve.openai_api_server" not in words:
        return port
    value = flags["port"].value if "port" in flags else 8000
    if not isinstance(value, int):
        return port
    lines.append(Line(name, f"--port {value}", "became", f"gateway.port: {value}"))
    return value


def _program(name: str, made: str, words: Sequence[str], options: dict[str, str]) -> Draft:
    draft = Draft(made)
    if made != name:
        draft.became(f"[program:{name}]", f"the service {made}")
    server = next((i for i, w in enumerate(words) if w in WORKERS or w.startswith("vllm.entrypoints")), None)
    if server is None:
        starts = [
            i for i, w in enumerate(words) if w.rpartition("/")[2] == "vllm" and words[i + 1 : i + 2] == ["serve"]
        ]
        if not starts:
            draft.left_out(f"[program:{name}]", "neither vLLM nor a FastChat worker")
            return draft
        rest = list(words[starts[0] + 2 :])
    else:
        rest = list(words[server + 1 :])
    if server is not None and words[server] in WORKERS:
        rest = _worker(draft, rest)
    port = translate_vllm(draft, rest, lambda path: path)
    if not (server is not None and words[server] in WORKERS):
        draft.keys["port"] = port
        draft.became(f"port {port}", f"port: {port}")
    for variable, value in ENVIRONMENT.findall(options.get("environment", "")):
        _variable(draft, variable, value.strip("\"'").replace("%%", "%"))
    for key, value in options.items():
        if key not in ("command", "environment"):
            draft.left_out(f"{key}={value}", "llmhost and its guards decide how programs run")
    return draft


def _variable(draft: Draft, name: str, value: str) -> None:
    if name == "CUDA_VISIBLE_DEVICES" and all(i.strip().isdigit() for i in value.split(",")):
        draft.keys["gpus"] = [int(i) for i in value.split(",")]
        draft.became(f"environment {name}={value}", f"gpus: [{value}]")
    elif SECRET.search(name):
        draft.by_hand(f"environment {name}=…", "a secret: write it under env:, or use `llmhost login`")
    else:
        draft.env[name] = value
        draft.became(f"environment {name}", f"env: {{{name}: …}}")


def _worker(draft: Draft, words: Sequence[str]) -> list[str]:
    """FastChat's own flags, as those of vLLM."""
    rest: list[str] = []
    for flag in split_flags(words)[1]:
        if flag.name == "model_path":
            rest += ["--model", *flag.values]
        elif flag.name == "model_names":
            rest += ["--served-model-name", *(n.strip() for v in flag.values for n in v.split(",") if n.strip())]
        elif flag.name == "num_gpus":
            rest += ["--tensor-parallel-size", *flag.values]
        elif flag.name in OF_WORKERS:
            draft.left_out(flag.written, OF_WORKERS[flag.name])
        else:
            rest += shlex.split(flag.written)
    return rest
