"""The flags of a vLLM server -> a service of llmhost.yaml."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from llmhost.migrate.masking import holds_secret, is_secret
from llmhost.migrate.report import Draft
from llmhost.migrate.words import Flag, split_flags
from llmhost.plan.removed import OWNED, REMOVED

KINDS = {
    "embed": "embed", "embedding": "embed", "reward": "embed", "score": "rerank", "classify": "rerank",
    "generate": "chat",
}  # fmt: skip
"""Values of the former --task."""

SHARED_OUT = "the plan shares out memory among all services; write it under args: to insist"

TRUE = ("1", "true", "yes", "on")

SEVERAL = (
    "served_model_name",
    "lora_modules",
    "middleware",
    "api_key",
    "allowed_local_media_path",
    "logits_processors",
)
"""Flags whose values may hold a / and be several."""
OTHER_COMMANDS = ("bench", "chat", "complete", "collect-env", "run-batch", "launch")
"""Commands of vLLM beside ``serve``."""

Paths = Callable[[str], str]
"""A path in a container -> the path on this machine."""


def server_words(words: Sequence[str]) -> list[str]:
    """What follows ``vllm serve`` or ``-m vllm.entrypoints.openai.api_server``; all of it when neither is there."""
    for i, word in enumerate(words):
        if word.startswith("vllm.entrypoints"):
            return list(words[i + 1 :])
        if word.rpartition("/")[2] == "vllm" and words[i + 1 : i + 2] == ["serve"]:
            return list(words[i + 2 :])
    return list(words[1:] if words[:1] in (["serve"], ["vllm"]) else words)


def other_command(words: Sequence[str]) -> str:
    """What ``vllm`` is told to do instead of serving: bench, complete …; empty when it serves."""
    for word, after in pairwise(words):
        if word.rpartition("/")[2] == "vllm" and after in OTHER_COMMANDS:
            return after
    return ""


def translate_vllm(draft: Draft, words: Sequence[str], paths: Paths, modelscope: bool = False) -> int:
    """Write the flags into the draft; the port that the server listened on."""
    positional, flags = split_flags(words)
    if not positional and "model" not in {flag.name for flag in flags}:
        positional, flags = _model_behind(flags)
    by_name = {flag.name: flag for flag in flags}
    model = by_name["model"].values[0] if "model" in by_name and by_name["model"].values else next(iter(positional), "")
    if model:
        _model(draft, model, by_name.get("revision"), paths, modelscope)
    else:
        draft.by_hand("model", "there is no --model: the service is not in llmhost.yaml, write it there")
    for extra in positional[0 if "model" in by_name else 1 :]:
        draft.by_hand(extra, "this word belongs to no flag")
    for flag in flags:
        if flag.name not in ("model", "revision", "port"):
            _flag(draft, flag, paths)
    _parallel(draft, by_name)
    if "served_as" not in draft.keys and model:
        draft.keys["served_as"] = [model]
        draft.became("(no --served-model-name)", f"served_as: [{model}]: vLLM calls a model as it was given to it")
    return listening_port(draft, by_name.get("port"), 8000)


def _model_behind(flags: Sequence[Flag]) -> tuple[list[str], list[Flag]]:
    """A model that stands behind a flag which takes fewer values: ``--enforce-eager /models/q``."""
    for i, flag in enumerate(flags):
        switch = flag.name == "enforce_eager" or flag.name.startswith(("trust_", "enable_", "disable_", "no_"))
        if flag.name not in SEVERAL and len(flag.values) == (1 if switch else 2) and "/" in flag.values[-1]:
            before = replace(flag, values=flag.values[:-1], written=flag.written.rpartition(" ")[0])
            return [flag.values[-1]], [*flags[:i], before, *flags[i + 1 :]]
    return [], list(flags)


def listening_port(draft: Draft, flag: Flag | None, default: int) -> int:
    """The port of ``--port``; one that is no number is told, and the default taken."""
    port = flag.value if flag else default
    if isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536:
        return port
    draft.by_hand(flag.written if flag else "port", f"no port: {default} was taken, write port: if clients need it")
    return default


def _model(draft: Draft, model: str, revision: Flag | None, paths: Paths, modelscope: bool) -> None:
    path = paths(model)
    if path != model or model.startswith(("/", "./", "~")):
        draft.keys["model"] = path
    else:
        at = f"@{revision.values[0]}" if revision and revision.values else ""
        draft.keys["model"] = f"{'modelscope' if modelscope else 'hf'}:{model}{at}" if "/" in model else model
    draft.became(f"--model {model}", f"model: {draft.keys['model']}")
    if revision and path != model:
        draft.left_out(revision.written, "the model is a directory, which has no revisions")


def _flag(draft: Draft, flag: Flag, paths: Paths) -> None:
    name = flag.name
    if name in _SPECIAL:
        _SPECIAL[name](draft, flag)
    elif name in REMOVED:
        _removed(draft, flag)
    elif is_secret(name):
        _secret(draft, flag)
    elif name in OWNED:
        draft.left_out(flag.written, OWNED[name].removeprefix("leave it out: "))
    elif name.startswith("-"):
        draft.by_hand(flag.written, "a short flag that vLLM does not have today: write its long form under args:")
    elif name.startswith("no_") and not flag.values:
        _argument(draft, flag, name.removeprefix("no_"), False)
    else:
        value = flag.value
        _argument(draft, flag, name, paths(value) if isinstance(value, str) else value)


def _argument(draft: Draft, flag: Flag, name: str, value: Any) -> None:
    if holds_secret(value if isinstance(value, str) else json.dumps(value)):
        draft.by_hand(flag.written, f"it holds a secret: {name} under args:, which every process list has")
        return
    draft.args[name] = value
    draft.became(flag.written, f"args: {{{name}: {value if isinstance(value, str) else json.dumps(value)}}}")


def _secret(draft: Draft, flag: Flag) -> None:
    """The value is not repeated anywhere."""
    instead = {"api_key": "make keys with `llmhost keys add NAME`", "hf_token": "keep it with `llmhost login hf`"}
    tls = (
        "TLS belongs in front of the gateway"
        if flag.name.startswith("ssl")
        else "under args: every process list has it"
    )
    what = instead.get(flag.name, tls)
    draft.by_hand(f"--{flag.name.replace('_', '-')} …", f"a secret: {what}")


def _removed(draft: Draft, flag: Flag) -> None:
    hint = REMOVED[flag.name]
    if hint.startswith("leave it out"):
        why = hint.removeprefix("leave it out").lstrip(": ") or "not needed"
        draft.left_out(flag.written, f"vLLM has removed it; {why}")
    elif (renamed := hint.removeprefix("write ")).replace("_", "").isalnum():
        draft.args[renamed] = flag.value
        draft.became(flag.written, f"args: {{{renamed}: {flag.value}}}: vLLM has renamed it")
    elif flag.name == "guided_decoding_backend":
        draft.args["structured_outputs_config"] = {"backend": flag.value}
        draft.became(flag.written, f"args: {{structured_outputs_config: {{backend: {flag.value}}}}}")
    elif flag.name in ("engine_use_ray", "worker_use_ray"):
        draft.left_out(flag.written, "on one machine vLLM needs no Ray")
    else:
        draft.by_hand(flag.written, f"vLLM has removed it: {hint} under args:")


def _task(draft: Draft, flag: Flag) -> None:
    kind = KINDS.get(flag.values[0] if flag.values else "")
    if kind is None:
        draft.left_out(flag.written, "vLLM has removed it; the kind is inferred from the model")
    elif kind == "chat":
        draft.left_out(flag.written, "vLLM has removed it; a chat model is known as one")
    else:
        draft.keys["kind"] = kind
        draft.became(flag.written, f"kind: {kind} (vLLM has removed --task)")


def _served(draft: Draft, flag: Flag) -> None:
    draft.keys["served_as"] = list(flag.values)
    draft.became(flag.written, f"served_as: [{', '.join(flag.values)}]")


def _executor(draft: Draft, flag: Flag) -> None:
    if flag.values[:1] == ("ray",):
        draft.left_out(flag.written, "on one machine vLLM needs no Ray to use several GPUs")
    else:
        _argument(draft, flag, flag.name, flag.value)


def _per_prompt(draft: Draft, flag: Flag) -> None:
    """``image=2,video=1``, as it once was written, is a mapping today."""
    pairs = [part.partition("=") for value in flag.values for part in value.split(",")]
    if pairs and all(count.isdigit() for _, _, count in pairs):
        _argument(draft, flag, flag.name, {kind.strip(): int(count) for kind, _, count in pairs})
    else:
        _argument(draft, flag, flag.name, flag.value)


def _compilation(draft: Draft, flag: Flag) -> None:
    """What vLLM once called a level is a mode today."""
    value = flag.value
    if isinstance(value, dict) and "level" in value:
        value = {"mode": value["level"]} | {key: item for key, item in value.items() if key != "level"}
    _argument(draft, flag, flag.name, {"mode": value} if isinstance(value, int) else value)


def _by_plan(draft: Draft, flag: Flag) -> None:
    draft.left_out(flag.written, SHARED_OUT)


def _cache(draft: Draft, flag: Flag) -> None:
    draft.left_out(flag.written, "models are kept in models_dir; `llmhost pull` fetches them")


def _later(_: Draft, __: Flag) -> None:
    """In `_parallel`, where both sizes are known."""


_SPECIAL: Mapping[str, Callable[[Draft, Flag], None]] = {
    "task": _task,
    "served_model_name": _served,
    "distributed_executor_backend": _executor,
    "limit_mm_per_prompt": _per_prompt,
    "compilation_config": _compilation,
    "gpu_memory_utilization": _by_plan,
    "download_dir": _cache,
    "tensor_parallel_size": _later,
    "pipeline_parallel_size": _later,
}
"""Flags with a meaning of their own in llmhost.yaml."""


def _parallel(draft: Draft, flags: Mapping[str, Flag]) -> None:
    """Sizes become `gpus`; a pipeline that was asked for stays one."""
    written = [flags[n] for n in ("tensor_parallel_size", "pipeline_parallel_size") if n in flags]
    sizes = [f.value if isinstance(f.value, int) else 1 for f in written]
    if not written:
        return
    total = 1
    for size in sizes:
        total *= size
    if "pipeline_parallel_size" in flags and total > 1:
        draft.args |= {f.name: f.value for f in written}
    if total > 1:
        draft.keys["gpus"] = total
    for flag in written:
        if total > 1:
            draft.became(flag.written, f"gpus: {total}")
        else:
            draft.left_out(flag.written, "one GPU is the default")
