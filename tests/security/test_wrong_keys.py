"""A wrong key costs the gateway the same, whatever is wrong with it: told by what it did, not by how long it took.

What is compared with a key is the SHA-1 of its secret, so that not even a difference in time would tell of the secret.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter

import httpx
import pytest

from tests.integration.gateway.locked import Locked
from tests.integration.gateway.running import eventually

pytestmark = pytest.mark.integration

VOLATILE = re.compile(r"bytes|length|time|_ms$|_rx_|_tx_|downstream_cx|^server[.]|^filesystem|memory|admin|^cluster[.]")
"""Counters of sizes, clocks, and of what goes on anyway; of engines the test counts itself."""

TRIES = 20


def form(text: str) -> str:
    return "sk-" + base64.b64encode(text.encode()).decode()


def wrong_keys(locked: Locked) -> dict[str, str]:
    """All of them have the form of a key."""
    user, _, secret = base64.b64decode(locked.secret.removeprefix("sk-")).decode().partition(":")
    return {
        "nobody's": form(f"nobody.1:{secret}"),
        "nothing right": form(f"{user}:{'x' * len(secret)}"),
        "all right but the last character": form(f"{user}:{secret[:-1]}{'a' if secret[-1] != 'a' else 'b'}"),
        "all right but the first character": form(f"{user}:{'a' if secret[0] != 'a' else 'b'}{secret[1:]}"),
        "too short": form(f"{user}:{secret[:-5]}"),
        "too long": form(f"{user}:{secret}{secret}"),
        "of another number": form(f"everything.2:{secret}"),
        "with the secret of another": form(f"chat-only.1:{secret}"),
        "without a secret": form(f"{user}:"),
    }


def counters(locked: Locked) -> dict[str, int]:
    """What Envoy has counted so far."""
    transport = httpx.HTTPTransport(uds=str(locked.gateway.home.gateway_admin_socket))
    with httpx.Client(transport=transport, timeout=300) as admin:
        stats = json.loads(admin.get("http://x/stats?format=json&type=Counters").text)["stats"]
    return {s["name"]: s["value"] for s in stats if "name" in s and not VOLATILE.search(s["name"])}


def refused(locked: Locked, client: httpx.Client, key: str) -> tuple[object, ...]:
    """What a client sees, and what the gateway has counted for it."""
    before = counters(locked)
    answer = client.post("/v1/chat/completions", headers={"x-api-key": key}, json={"model": "gpt-4"})
    seen = (answer.status_code, answer.text, sorted(set(answer.headers) - {"x-envoy-upstream-service-time"}))
    seen_last: list[dict[str, int]] = [before]

    def settled() -> bool:
        seen_last.append(counters(locked))
        return seen_last[-1] == seen_last[-2] != before

    eventually(settled, "the request is counted")
    after = seen_last[-1]
    changed = tuple(sorted((n, v - before.get(n, 0)) for n, v in after.items() if v != before.get(n, 0)))
    return (*seen, changed)


def test_the_same_is_done_for_every_wrong_key(locked: Locked) -> None:
    reached = locked.reached
    with locked.gateway.client() as client:
        refused(locked, client, form("first:first"))  # what is counted for the first time appears with it
        keys = wrong_keys(locked)
        found = {name: refused(locked, client, key) for name, key in keys.items()}
        first = Counter(map(str, found.values())).most_common(1)[0][0]
        # Counters of a slow gateway arrive late, with those of the next request; a real difference comes again.
        for _ in range(TRIES):
            odd = [name for name, what in found.items() if str(what) != first]
            found |= {name: refused(locked, client, keys[name]) for name in odd}
    status, text, _, changed = found["nobody's"]
    assert status == 401
    assert "sk-" not in str(text)
    assert any("auth" in name and count == 1 for name, count in changed)  # type: ignore[attr-defined]
    assert {name: what for name, what in found.items() if str(what) != first} == {}
    assert locked.reached == reached


def test_only_hashes_of_secrets_are_there_to_compare_with(locked: Locked) -> None:
    files = {path: path.read_text() for path in locked.gateway.home.gateway_conf.rglob("*.json")}
    for secret in (locked.secret, locked.chat_secret, locked.embed_secret):
        plain = base64.b64decode(secret.removeprefix("sk-")).decode().partition(":")[2]
        assert not [path for path, text in files.items() if secret in text or plain in text]
    assert "{SHA}" in files[locked.gateway.home.gateway_conf / "rds.json"]
