"""The user's pip configuration, handed on to uv, which does not read it.

Everything goes through ``UV_*`` variables rather than arguments: an index URL may hold a password, and arguments are
visible to every user of the machine. What the user has set for uv itself wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmhost.probe.pip_options import mask, parse_pip_config, read_pip_options

__all__ = ["UvSettings", "mask", "parse_pip_config", "read_pip_options", "uv_settings"]

TRUE = ("1", "true", "yes", "on", "y", "t")


@dataclass(frozen=True)
class UvSettings:
    """What to add to uv's environment and arguments; ``notes`` tell the user what was left out."""

    env: Mapping[str, str] = field(repr=False)
    no_index: bool
    notes: tuple[str, ...]

    @property
    def arguments(self) -> tuple[str, ...]:
        """What uv takes only as an argument."""
        return ("--no-index",) if self.no_index else ()


def uv_settings(options: Mapping[str, str], environ: Mapping[str, str]) -> UvSettings:
    """Translate pip's options; ``environ`` is what uv inherits anyway, and what stands there is not overridden."""
    notes: list[str] = []
    env: dict[str, str] = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    env |= _certificates(options, notes)
    env |= _network(options)
    env |= {"UV_FIND_LINKS": ",".join(links)} if (links := _find_links(options, notes)) else {}
    no_index = options.get("no-index", "").lower() in TRUE
    if not no_index:
        env |= _indexes(options)
    kept = {name: value for name, value in env.items() if not _already_set(name, environ)}
    return UvSettings(kept, no_index, tuple(mask(note) for note in notes))


SYNONYMS: Mapping[str, Sequence[str]] = {
    "UV_DEFAULT_INDEX": ("UV_DEFAULT_INDEX", "UV_INDEX_URL"),
    "UV_INDEX": ("UV_INDEX", "UV_EXTRA_INDEX_URL"),
    "HTTPS_PROXY": ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"),
    "HTTP_PROXY": ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"),
    "UV_HTTP_TIMEOUT": ("UV_HTTP_TIMEOUT", "UV_REQUEST_TIMEOUT", "HTTP_TIMEOUT"),
}


def _already_set(name: str, environ: Mapping[str, str]) -> bool:
    return any(environ.get(synonym) for synonym in SYNONYMS.get(name, (name,)))


def _indexes(options: Mapping[str, str]) -> dict[str, str]:
    env = {}
    if default := options.get("index-url", "").strip():
        env["UV_DEFAULT_INDEX"] = default
    if extra := options.get("extra-index-url", "").split():
        env["UV_INDEX"] = " ".join(extra)
    return env


def _find_links(options: Mapping[str, str], notes: list[str]) -> list[str]:
    """Directories that exist, and URLs. uv fails on a missing directory where pip only warns."""
    links = []
    for link in options.get("find-links", "").split():
        if "://" in link and not link.startswith("file://"):
            links.append(link.replace(",", "%2C"))  # the variable is a list with commas
            continue
        path = Path(link.removeprefix("file://")).expanduser().absolute()
        if path.exists():
            links.append(path.as_uri() if "," in str(path) else str(path))
        else:
            notes.append(f"pip's find-links {link} does not exist and is left out")
    return links


def _certificates(options: Mapping[str, str], notes: list[str]) -> dict[str, str]:
    env = {}
    for option, variable in (("cert", "SSL_CERT_FILE"), ("client-cert", "SSL_CLIENT_CERT")):
        if not (value := options.get(option, "").strip()):
            continue
        path = Path(value).expanduser()
        if path.exists():
            env["SSL_CERT_DIR" if path.is_dir() else variable] = str(path)
        else:
            notes.append(f"pip's {option} {value} does not exist and is left out")
    return env


def _network(options: Mapping[str, str]) -> dict[str, str]:
    env = {}
    if hosts := options.get("trusted-host", "").split():
        env["UV_INSECURE_HOST"] = " ".join(hosts)
    if proxy := options.get("proxy", "").strip():
        url = proxy if "://" in proxy else f"http://{proxy}"
        env |= {"HTTP_PROXY": url, "HTTPS_PROXY": url}
    if timeout := options.get("timeout") or options.get("default-timeout"):
        env["UV_HTTP_TIMEOUT"] = timeout.partition(".")[0]
    if retries := options.get("retries"):
        env["UV_HTTP_RETRIES"] = retries
    return env
