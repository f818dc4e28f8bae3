"""The variables of an old service: which stay, which are keys of llmhost.yaml, which have no meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmhost.migrate.masking import holds_secret, is_secret, masked
from llmhost.migrate.report import Draft
from llmhost.migrate.tei import VARIABLES

OF_CONTAINERS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "NVIDIA_DRIVER_CAPABILITIES", "HF_HOME", "HF_HUB_CACHE")
FOR_PULL = ("HF_ENDPOINT", "MODELSCOPE_DOMAIN", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
REMOVED = {
    "VLLM_USE_V1": "vLLM has removed it; there is only the V1 engine",
    "VLLM_ATTENTION_BACKEND": "vLLM has removed it; write attention_backend under args: to insist",
}
"""Variables that vLLM read once -> what there is instead."""


def keep(draft: Draft, env: Mapping[str, str], *, tei: bool = False) -> None:
    """Put the variables of a service where they belong."""
    for name, value in env.items():
        shown = masked([f"{name}={value}"])
        if value == "":
            draft.left_out(f"{name}=", "it is empty")
        elif tei and name in VARIABLES:
            pass  # as the flags of the same meaning
        elif name in FOR_PULL:
            draft.by_hand(f"{name}=…", "set it in the environment of `llmhost pull`")
        elif is_secret(name) or holds_secret(value):
            where = "`llmhost login`" if name.startswith(("HF_", "HUGGING", "MODELSCOPE")) else "`llmhost keys add`"
            draft.by_hand(f"{name}=…", f"a secret: {where}, or env: of the service")
        elif name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "VLLM_USE_MODELSCOPE"):
            draft.became(shown, "gpus:" if "DEVICES" in name else "the hub in model:, where it names one")
        elif name in OF_CONTAINERS:
            draft.left_out(shown, "engines work offline, from directories")
        elif name in REMOVED:
            draft.left_out(shown, REMOVED[name])
        elif tei and name == "RUST_LOG":
            draft.left_out(shown, "vLLM is not written in Rust; VLLM_LOGGING_LEVEL under env: says how much it logs")
        else:
            draft.env[name] = value
            draft.became(shown, f"env: {{{name}: …}}")


def beside(draft: Draft, commands: Sequence[Sequence[str]]) -> None:
    """What a script does beside starting the server."""
    for command in commands:
        if command[0] in ("source", ".", "conda", "micromamba", "mamba") and "activate" in " ".join(command):
            draft.left_out(masked(command), "engines have an environment of their own: see engine:")
        else:
            draft.by_hand(masked(command), "a command beside the server: look at what it does")
