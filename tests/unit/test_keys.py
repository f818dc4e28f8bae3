"""API keys as data: how they are made, replaced, ended and remembered."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost import keys
from llmhost.errors import KeyFileError, KeyNameError
from llmhost.keys import ApiKey, Keys

NOW = 1_000_000


def made(name: str = "a", **more: object) -> tuple[Keys, str]:
    return keys.add((), name, NOW, **more)  # type: ignore[arg-type]


@given(st.from_regex(keys.NAME, fullmatch=True).filter(lambda n: len(n) <= keys.NAME_LENGTH))
def test_a_key_is_letters_and_digits_and_holds_its_name_and_a_secret_that_is_not_kept(name: str) -> None:
    (key,), text = made(name)
    assert text.startswith("sk-")
    assert text.removeprefix("sk-").isalnum()
    user, _, secret = base64.b64decode(text.removeprefix("sk-")).decode().rpartition(":")
    assert user == f"{name}.1"
    assert len(secret) >= 43
    assert secret not in keys.dump((key,))
    assert key.digest == base64.b64encode(hashlib.sha1(secret.encode()).digest()).decode()


def test_no_two_keys_are_alike() -> None:
    assert len({made()[1] for _ in range(200)}) == 200


@pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "a/b", "ä", "a:b", "a" * 65, "a\n", "%x"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(KeyNameError, match="cannot be the name"):
        made(name)


def test_a_name_is_used_once_while_its_key_is_good() -> None:
    old, first = made(expires=NOW + 10)
    with pytest.raises(KeyNameError, match="there is a key a already"):
        keys.add(old, "a", NOW + 9)
    new, second = keys.add(old, "a", NOW + 10)
    assert [k.user for k in new] == ["a.2"]
    assert first != second


def test_rotation_keeps_the_rights_and_ends_the_old_key() -> None:
    limits = {"requests_per_minute": 5, "concurrent_requests": 6, "max_body_mib": 0.7}
    old, _ = made(services=["chat"], expires=NOW + 100, **limits)
    (new,), _ = keys.rotate(old, "a", NOW + 1)
    assert (new.user, new.services, new.expires) == ("a.2", ("chat",), NOW + 100)
    assert (new.requests_per_minute, new.concurrent_requests, new.max_body_mib) == (5, 6, 0.7)
    assert new.digest != old[0].digest


def test_rotation_with_grace_leaves_one_predecessor_for_so_long() -> None:
    old, _ = made()
    once, _ = keys.rotate(old, "a", NOW, grace=60)
    twice, _ = keys.rotate(once, "a", NOW + 1, grace=60, expires=NOW + 500)
    assert [(k.user, k.expires) for k in once] == [("a.1", NOW + 60), ("a.2", None)]
    assert [(k.user, k.expires) for k in twice] == [("a.2", NOW + 61), ("a.3", NOW + 500)]


def test_grace_is_no_longer_than_the_old_key_would_have_lasted() -> None:
    old, _ = made(expires=NOW + 10)
    new, _ = keys.rotate(old, "a", NOW, grace=60)
    assert [k.expires for k in new] == [NOW + 10, NOW + 10]


def test_revoking_ends_predecessors_too_and_leaves_a_record_without_a_digest() -> None:
    old, _ = made()
    rotated, _ = keys.rotate(old, "a", NOW, grace=60)
    (left,) = keys.revoke(rotated, "a", NOW + 1)
    assert (left.user, left.state(NOW + 1), left.digest) == ("a.2", "revoked", "")


@pytest.mark.parametrize("change", [keys.revoke, keys.rotate])
def test_what_is_not_active_can_be_neither_rotated_nor_revoked(change) -> None:  # type: ignore[no-untyped-def]
    old, _ = made("here")
    gone = keys.revoke(keys.add(old, "gone", NOW)[0], "gone", NOW)
    for name in ("gone", "never"):
        with pytest.raises(KeyNameError, match=f"there is no key {name}") as caught:
            change(gone, name, NOW)
        assert caught.value.hint == "keys that are active: here"


def test_states() -> None:
    key = ApiKey("a", 1, "d", NOW, expires=NOW + 5)
    assert [key.state(NOW + 4), key.state(NOW + 5)] == ["active", "expired"]


def test_the_file_comes_back_as_it_was(tmp_path: Path) -> None:
    written, _ = keys.add(
        made(services=["b", "a"])[0], "other", NOW, expires=5, concurrent_requests=7, max_body_mib=0.5
    )
    file = tmp_path / "keys.json"
    assert keys.load(file) == ()
    file.write_text(keys.dump(written))
    assert keys.load(file) == written


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 2, "keys": []}', '{"version": 1, "keys": [{"name": "a"}]}', '{"version": 1}']
)
def test_a_damaged_file_is_an_error_and_no_empty_list(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(text)
    with pytest.raises(KeyFileError, match=r"keys\.json"):
        keys.load(file)
