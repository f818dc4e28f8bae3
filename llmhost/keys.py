"""API keys: how they are made, and the file of a home that remembers them, without the keys themselves.

A key is ``sk-`` and base64 of ``<name>.<number>:<secret>``, the form that Envoy can check without knowing the secret
(`llmhost.gateway.access`). The secret has 256 random bits, so a plain SHA-1 of it gives nothing away.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmhost.errors import KeyFileError, KeyNameError

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._@-]*[A-Za-z0-9])?")
NAME_LENGTH = 64
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
SECRET_LENGTH = 43
"""Characters of the secret: 62 ** 43 > 2 ** 256."""
VERSION = 1


@dataclass(frozen=True)
class ApiKey:
    """What is remembered of a key; times in seconds since 1970, None: never."""

    name: str
    number: int
    """Grows with each rotation."""
    digest: str
    """Base64 of the SHA-1 of the secret."""
    created: int
    services: tuple[str, ...] | None = None
    """The services that it may use; None: all, also those to come."""
    expires: int | None = None
    revoked: int | None = None
    requests_per_minute: int | None = None
    concurrent_requests: int | None = None
    max_body_mib: float | None = None
    """Limits; None: what llmhost.yaml says for every key."""

    @property
    def user(self) -> str:
        return f"{self.name}.{self.number}"

    def state(self, now: float) -> str:
        """``active``, ``expired`` or ``revoked``."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


Keys = tuple[ApiKey, ...]


def add(
    keys: Keys,
    name: str,
    now: int,
    *,
    services: Iterable[str] | None = None,
    expires: int | None = None,
    requests_per_minute: int | None = None,
    concurrent_requests: int | None = None,
    max_body_mib: float | None = None,
) -> tuple[Keys, str]:
    """The keys with a new one, and the new one in full: nobody can tell it again.

    Raises KeyNameError when the name cannot be one, or is that of a key that is still there.
    """
    if not NAME.fullmatch(name) or len(name) > NAME_LENGTH:
        raise KeyNameError(
            f"{name!r} cannot be the name of a key",
            f"use letters, digits and . _ @ - between them, up to {NAME_LENGTH} characters",
        )
    former = [k for k in keys if k.name == name]
    if any(k.state(now) == "active" for k in former):
        raise KeyNameError(
            f"there is a key {name} already", f"`llmhost keys rotate {name}` replaces it, `keys revoke {name}` ends it"
        )
    scope = None if services is None else tuple(sorted(set(services)))
    number = max((k.number for k in former), default=0) + 1
    limits = (requests_per_minute, concurrent_requests, max_body_mib)
    made, text = _issue(ApiKey(name, number, "", now, scope, expires, None, *limits))
    return (*(k for k in keys if k.name != name), made), text


def rotate(keys: Keys, name: str, now: int, *, grace: int = 0, expires: int | None = None) -> tuple[Keys, str]:
    """Replace a key by a new one of the same name and rights; the old one works for another ``grace`` seconds.

    The new one lasts as long as the old one would have, unless ``expires`` says otherwise.
    """
    current = max(_active(keys, name, now), key=lambda k: k.number)
    made, text = _issue(
        replace(
            current, number=current.number + 1, created=now, expires=current.expires if expires is None else expires
        )
    )
    end = now + grace
    # One predecessor at most, and never for longer than it would have lasted anyway.
    old = (replace(current, expires=min(end, current.expires or end)),) if grace else ()
    return (*(k for k in keys if k.name != name), *old, made), text


def revoke(keys: Keys, name: str, now: int) -> Keys:
    """End a key at once, with every predecessor that is still good; it stays in the list as revoked."""
    _active(keys, name, now)
    last = max((k for k in keys if k.name == name), key=lambda k: k.number)
    return tuple(replace(k, revoked=now, digest="") if k is last else k for k in keys if k.name != name or k is last)


def _active(keys: Keys, name: str, now: int) -> list[ApiKey]:
    found = [k for k in keys if k.name == name and k.state(now) == "active"]
    if not found:
        known = ", ".join(dict.fromkeys(k.name for k in keys if k.state(now) == "active"))
        raise KeyNameError(f"there is no key {name}", f"keys that are active: {known or 'none'}")
    return found


def _issue(key: ApiKey) -> tuple[ApiKey, str]:
    """The key with its digest, and its text. Letters and digits only: base64 of those has no ``+`` and no ``/``."""
    secret = "".join(secrets.choice(ALPHABET) for _ in range(SECRET_LENGTH))
    while len(f"{key.user}:{secret}") % 3:  # no ``=`` at the end, which a double click would leave out
        secret += secrets.choice(ALPHABET)
    text = "sk-" + base64.b64encode(f"{key.user}:{secret}".encode()).decode()
    digest = base64.b64encode(hashlib.sha1(secret.encode(), usedforsecurity=False).digest()).decode()
    return replace(key, digest=digest), text


def load(path: Path) -> Keys:
    """The keys of a home; none when there is no file. Raises KeyFileError: a damaged file must not open the gateway."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as e:
        raise KeyFileError(f"cannot read {path}: {e}", "check its owner and permissions") from e
    try:
        data = json.loads(text)
        if data["version"] != VERSION:
            raise ValueError(f"version {data['version']}")
        return tuple(_key(entry) for entry in data["keys"])
    except (ValueError, KeyError, TypeError) as e:
        raise KeyFileError(
            f"{path} is not a list of keys: {type(e).__name__}: {e}",
            "restore it, or start anew with `llmhost keys reset`",
        ) from e


def _key(entry: Mapping[str, Any]) -> ApiKey:
    services = entry["services"]
    return ApiKey(**{**entry, "services": None if services is None else tuple(services)})


def dump(keys: Keys) -> str:
    """The text of the file that `load` reads."""
    return json.dumps({"version": VERSION, "keys": [asdict(k) for k in keys]}, indent=1) + "\n"
