"""supervisord programs that run vLLM or FastChat's vLLM worker -> llmhost.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llmhost.errors import ConfigError
from llmhost.migrate.clashes import as_replica, finish
from llmhost.migrate.environment import beside, keep
from llmhost.migrate.masking import masked
from llmhost.migrate.names import service_names
from llmhost.migrate.programs import Process, Program, read_programs
from llmhost.migrate.report import Draft, Imported, Line
from llmhost.migrate.shell import FRONT, WORKERS, is_server, started
from llmhost.migrate.vllm import TRUE, server_words, translate_vllm
from llmhost.migrate.words import split_flags

OF_WORKERS = {
    "controller_address": "there is no controller: the gateway knows every service",
    "controller": "there is no controller: the gateway knows every service",
    "worker_address": "engines listen on unix sockets",
    "worker": "engines listen on unix sockets",
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


def import_supervisord(text: str, source: Path, environ: Mapping[str, str] | None = None) -> Imported:
    """Translate the programs of a supervisord configuration; ``environ`` fills its ``%(ENV_NAME)s``.

    Raises ConfigError when it, or a file that it includes, cannot be read, or it runs no model server that is known.
    """
    found = read_programs(text, source, environ or {})
    names = service_names(program.name for program in found.programs)
    drafts: list[Draft] = []
    port = 8000
    for program in found.programs:
        words = started(program.processes[0].words).words
        if any(module in words for module in FRONT):
            port = _front(program.name, words, found.lines, port)
        else:
            drafts += _replicated(program, names[program.name])
    if not any("model" in draft.keys for draft in drafts):
        raise ConfigError(f"{source} runs neither vLLM nor a FastChat worker", "other programs cannot be moved")
    return finish(drafts, found.lines, port)


def _front(name: str, words: Sequence[str], lines: list[Line], port: int) -> int:
    lines.append(Line(name, masked(words), "left out", "the gateway takes its place"))
    flags = {flag.name: flag for flag in split_flags(words)[1]}
    if "fastchat.serve.openai_api_server" not in words:
        return port
    if "api_keys" in flags:
        lines.append(Line(name, flags["api_keys"].written, "by hand", "make keys with `llmhost keys add NAME`"))
    value = flags["port"].value if "port" in flags else 8000
    if not isinstance(value, int):
        return port
    lines.append(Line(name, f"--port {value}", "became", f"gateway.port: {value}"))
    return value


def _replicated(program: Program, name: str) -> list[Draft]:
    """A service with a replica for each process; what is not the same in all of them is told."""
    service, *others = (_program(program, process, name) for process in program.processes)
    if name != program.name:
        service.became(f"[program:{program.name}]", f"the service {name}")
    if "model" not in service.keys:
        return [service]
    for key, value in program.options.items():
        if key == "numprocs" and others:
            service.became(f"{key}={value}", f"replicas: {len(program.processes)}")
        else:
            service.left_out(f"{key}={value}", "llmhost and its guards decide how programs run")
    for number, other in enumerate(others, 1):
        differing = [line for line in other.lines if line not in service.lines]
        as_replica(service, other)
        for line in differing:
            what = f"process {number} alone has it ({line.detail}): replicas are all alike"
            service.lines.append(replace(line, outcome="by hand", detail=what))
    return [service]


def _program(program: Program, process: Process, name: str) -> Draft:
    draft = Draft(name)
    found = started(process.words)
    if not is_server(found.words):
        draft.left_out(f"[program:{program.name}]", "neither vLLM nor a FastChat worker")
        if "".join(process.words[:1]).endswith((".sh", ".bash")):
            draft.by_hand(masked(process.words), "a script is not looked into: if it starts a model server, write it")
        return draft
    beside(draft, found.others)
    env = {**process.env, **found.env}
    modelscope = env.get("VLLM_USE_MODELSCOPE", "").lower() in TRUE
    worker = next((i for i, word in enumerate(found.words) if word in WORKERS), None)
    rest = server_words(found.words) if worker is None else _worker(draft, found.words[worker + 1 :])
    base = Path(process.directory or "/") / found.directory
    port = translate_vllm(draft, rest, lambda path: _below(base, path), modelscope)
    if worker is None:
        draft.keys["port"] = port
        draft.became(f"port {port}", f"port: {port}")
    _gpus(draft, env)
    keep(draft, env)
    if process.directory:
        draft.left_out(f"directory={process.directory}", "relative paths that exist there were taken as such")
    return draft


def _below(base: Path, path: str) -> str:
    """A relative path that exists in the program's directory, made absolute; anything else as it is."""
    there = base / path
    relative = not path.startswith(("/", "~")) and base != Path("/")
    return str(there) if relative and (there.is_dir() or ("/" in path and there.exists())) else path


def _gpus(draft: Draft, env: dict[str, str]) -> None:
    indices = [part.strip() for part in env.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if all(index.isdigit() for index in indices):
        draft.keys["gpus"] = [int(index) for index in indices]
        draft.became(f"CUDA_VISIBLE_DEVICES={env.pop('CUDA_VISIBLE_DEVICES')}", f"gpus: {draft.keys['gpus']}")


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
        elif flag.name == "limit_worker_concurrency" and isinstance(flag.value, int):
            draft.keys["limits"] = {"concurrent_requests": flag.value}
            draft.became(flag.written, f"limits: {{concurrent_requests: {flag.value}}}")
        elif flag.name in OF_WORKERS:
            draft.left_out(flag.written, OF_WORKERS[flag.name])
        else:
            option = flag.name if flag.name.startswith("-") else f"--{flag.name.replace('_', '-')}"
            rest += [option, *flag.values]
    return rest
