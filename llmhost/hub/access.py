"""Which hub, with which address and which token: from the environment, else from `llmhost login`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from llmhost import writer
from llmhost.errors import HubError
from llmhost.hub.remote import Hub
from llmhost.paths import Home

TOKENS = {"hf": ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), "modelscope": ("MODELSCOPE_API_TOKEN",)}
ENDPOINTS = {"hf": ("HF_ENDPOINT",), "modelscope": ("MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN")}


def open_hub(home: Home, scheme: str, environ: Mapping[str, str] = os.environ) -> Hub:
    """The client of a hub."""
    endpoint = _first(environ, ENDPOINTS[scheme])
    token = _first(environ, TOKENS[scheme]) or read_tokens(home).get(scheme)
    return make_hub(scheme, endpoint, token)


def make_hub(scheme: str, endpoint: str | None, token: str | None) -> Hub:
    """The client for an address; None: the hub's own."""
    if scheme == "hf":
        from llmhost.hub.huggingface import HuggingFace  # noqa: PLC0415  (takes a second)

        return HuggingFace(endpoint, token)
    from llmhost.hub.modelscope import ModelScope  # noqa: PLC0415

    return ModelScope(endpoint, token)


def check_token(scheme: str, token: str, environ: Mapping[str, str] = os.environ) -> str:
    """Whose token it is; raises HubError when the hub refuses it or cannot be asked."""
    hub = make_hub(scheme, _first(environ, ENDPOINTS[scheme]), token)
    return str(hub.check_token())  # type: ignore[attr-defined]


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((value for name in names if (value := environ.get(name, "").strip())), None)


def read_tokens(home: Home) -> dict[str, str]:
    """The tokens that `llmhost login` keeps; raises HubError when they cannot be read."""
    try:
        data = json.loads(tokens_file(home).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise HubError(f"cannot read {tokens_file(home)}: {e}", "remove it and run `llmhost login` again") from e
    return {str(k): str(v) for k, v in data.items()} if isinstance(data, dict) else {}


def write_token(home: Home, scheme: str, token: str | None) -> None:
    """Keep a token, for nobody but the owner of the home to read; None forgets it."""
    others = {k: v for k, v in read_tokens(home).items() if k != scheme}
    kept = others if token is None else {**others, scheme: token}
    writer.replace_file(tokens_file(home), json.dumps(kept, indent=1) + "\n", mode=0o600)


def tokens_file(home: Home) -> Path:
    return home.root / "tokens.json"
