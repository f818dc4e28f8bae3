"""The flags of a text-embeddings-inference server -> a service of llmhost.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmhost.migrate.masking import masked
from llmhost.migrate.report import Draft
from llmhost.migrate.vllm import Paths, listening_port
from llmhost.migrate.words import Flag, split_flags

NO_MEANING: Mapping[str, str] = {
    "json_output": "logs are read with `llmhost logs --json`",
    "hostname": "engines listen on unix sockets, the gateway on gateway.host",
    "uds_path": "engines listen on unix sockets of their own",
    "huggingface_hub_cache": "models are kept in models_dir; `llmhost pull` fetches them",
    "prometheus_port": "the gateway's /metrics has the figures of every engine",
    "tokenization_workers": "vLLM decides by itself",
    "max_batch_requests": "vLLM decides by itself (max_num_seqs under args: is its bound)",
    "max_client_batch_size": "vLLM takes any number of inputs in a request",
    "auto_truncate": "vLLM truncates when a request says truncate_prompt_tokens",
    "pooling": "vLLM takes the pooling from the model; write pooler_config under args: to insist",
    "disable_spans": "there are no spans",
    "otlp_endpoint": "write otlp_traces_endpoint under args: for traces of vLLM",
    "otlp_service_name": "see otlp_traces_endpoint of vLLM",
    "cors_allow_origin": "write allowed_origins under args:",
    "default_prompt": "send the prompt with the input",
    "default_prompt_name": "send the prompt with the input",
    "dense_path": "vLLM reads the dense layers that modules.json names",
}
TRANSLATED = (
    "model_id", "revision", "port", "served_model_name", "dtype", "max_batch_tokens", "max_concurrent_requests",
    "payload_limit", "api_key", "hf_api_token", "hf_token",
)  # fmt: skip
VARIABLES: Mapping[str, str] = {name.upper(): name for name in (*TRANSLATED, *NO_MEANING)}
"""Every flag has a variable of its name (text-embeddings-inference's `router/src/main.rs`)."""


def translate_tei(draft: Draft, words: Sequence[str], env: Mapping[str, str], paths: Paths) -> int:
    """Write the flags (and their variables) into the draft; the port that the server listened on."""
    positional, flags = split_flags(words)
    by_name = {flag.name: flag for flag in flags}
    for variable, name in VARIABLES.items():
        if env.get(variable):
            shown = masked([f"{variable}={env[variable]}"])
            if name in by_name:
                draft.left_out(shown, f"{by_name[name].written} counts")
            else:
                by_name[name] = Flag(name, (env[variable],), shown)
    for word in positional:
        draft.by_hand(word, "this word belongs to no flag")
    _model(draft, by_name, paths)
    for flag in by_name.values():
        _flag(draft, flag)
    draft.by_hand(
        "clients of /embed and /rerank", "vLLM answers /v1/embeddings (input) and /v1/rerank (query, documents) instead"
    )
    return listening_port(draft, by_name.get("port"), 80)


def _model(draft: Draft, flags: Mapping[str, Flag], paths: Paths) -> None:
    if "model_id" not in flags or not flags["model_id"].values:
        draft.by_hand("model", "there is no --model-id: the service is not in llmhost.yaml, write it there")
        return
    model = flags["model_id"].values[0]
    path = paths(model)
    if path != model or model.startswith(("/", "./")):
        draft.keys["model"] = path
    else:
        revision = flags["revision"].values[0] if "revision" in flags else ""
        draft.keys["model"] = f"hf:{model}" + (f"@{revision}" if revision else "")
    draft.became(flags["model_id"].written, f"model: {draft.keys['model']}")
    if "served_model_name" not in flags:
        name = model.rstrip("/").rpartition("/")[2]
        draft.keys["served_as"] = [name]
        draft.became("(no name: one server, one model)", f"served_as: [{name}]")


def _flag(draft: Draft, flag: Flag) -> None:
    name = flag.name
    if name in ("model_id", "revision", "port"):
        return
    if name == "served_model_name":
        draft.keys["served_as"] = list(flag.values)
        draft.became(flag.written, f"served_as: [{', '.join(flag.values)}]")
    elif name in ("dtype", "max_batch_tokens"):
        key = {"dtype": "dtype", "max_batch_tokens": "max_num_batched_tokens"}[name]
        draft.args[key] = flag.value
        draft.became(flag.written, f"args: {{{key}: {flag.value}}}")
    elif name == "max_concurrent_requests" and isinstance(flag.value, int):
        draft.keys["limits"] = {"concurrent_requests": flag.value}
        draft.became(flag.written, f"limits: {{concurrent_requests: {flag.value}}}")
    elif name == "payload_limit":
        draft.by_hand(flag.written, "write it as gateway.max_body_mib (in MiB)")
    elif name in ("api_key", "hf_api_token", "hf_token"):
        what = "make keys with `llmhost keys add NAME`" if name == "api_key" else "keep it with `llmhost login hf`"
        draft.by_hand(flag.written, f"a secret: {what}")
    elif name in NO_MEANING:
        draft.left_out(flag.written, NO_MEANING[name])
    else:
        draft.by_hand(flag.written, "a flag of text-embeddings-inference that is not known here")
