"""References, the choice of files, llmhost.lock: no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmhost import config
from llmhost.env import Silent
from llmhost.errors import HubError
from llmhost.hub.access import read_tokens, write_token
from llmhost.hub.lock import read_lock, write_lock
from llmhost.hub.remote import Reference, RemoteFile, file_digest
from llmhost.hub.select import needed
from llmhost.models import pull_missing
from llmhost.paths import Home


def test_references() -> None:
    reference = Reference.parse("modelscope:Qwen/Qwen3-8B@v1.0")
    assert reference == Reference("modelscope", "Qwen", "Qwen3-8B", "v1.0")
    assert reference.text == "modelscope:Qwen/Qwen3-8B"
    assert reference.directory(Path("/m")) == Path("/m/Qwen/Qwen3-8B")
    assert Reference.parse("/data/model") is None
    assert Reference.parse("demo:chat") is None


@pytest.mark.parametrize("text", ["hf:Qwen", "hf:Qwen/", "hf:a/b/c", "hf:../x", "hf:a/..", "hf:a/b@", "hf:.a/b"])
def test_references_that_are_none(text: str) -> None:
    with pytest.raises(HubError, match="is not owner/name"):
        Reference.parse(text)


def chosen(*paths: str) -> set[str]:
    return {f.path for f in needed(RemoteFile(p, 1, "") for p in paths)}


def test_what_vllm_needs() -> None:
    both = ("config.json", "model-00001-of-00002.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
    assert chosen(*both) == set(both) - {"pytorch_model.bin"}
    assert chosen("config.json", "pytorch_model.bin", "x.pt") == {"config.json", "pytorch_model.bin"}
    assert chosen("a.safetensors", "consolidated.safetensors", "original/params.json") == {"a.safetensors"}
    assert chosen("consolidated.safetensors", "tekken.json") == {"consolidated.safetensors", "tekken.json"}
    assert chosen("1_Pooling/config.json", "onnx/model.onnx", "m.Q4.gguf", "a.png", ".gitattributes") == {
        "1_Pooling/config.json"
    }
    assert chosen("tokenizer.model", "vocab.txt", "chat_template.jinja", "modeling_x.py") == {
        "tokenizer.model", "vocab.txt", "chat_template.jinja", "modeling_x.py",
    }  # fmt: skip


def test_digests(tmp_path: Path) -> None:
    """`git hash-object` and `sha256sum` say the same."""
    file = tmp_path / "f"
    file.write_bytes(b"hello\n")
    assert file_digest(file, "git") == "git:ce013625030ba8dba906f756967f9e9ca394464a"
    sha256 = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert file_digest(file, "sha256") == sha256
    assert RemoteFile("f", 6, sha256).matches(file)
    assert not RemoteFile("f", 7, sha256).matches(file)
    assert not RemoteFile("f", 0, "").matches(tmp_path / "nothing")


def test_lock(tmp_path: Path) -> None:
    lock = read_lock(tmp_path / "llmhost.lock")
    files = (RemoteFile("a", 1, "sha256:0"), RemoteFile("b", 2, ""))
    write_lock(lock.with_model("hf:a/b", "c0ffee", files))
    again = read_lock(tmp_path / "llmhost.lock").models["hf:a/b"]
    assert (again.revision, again.files) == ("c0ffee", files)
    (tmp_path / "llmhost.lock").write_text("{}")
    with pytest.raises(HubError, match=r"cannot read .*llmhost.lock"):
        read_lock(tmp_path / "llmhost.lock")


def test_tokens(tmp_path: Path) -> None:
    home = Home(tmp_path)
    write_token(home, "hf", "a")
    write_token(home, "modelscope", "b")
    assert read_tokens(home) == {"hf": "a", "modelscope": "b"}
    write_token(home, "hf", None)
    assert read_tokens(home) == {"modelscope": "b"}


def test_what_is_here_is_not_asked_for(tmp_path: Path) -> None:
    """`up` works without a network once the models are there, also when somebody copied them."""
    (tmp_path / "models/org/model").mkdir(parents=True)
    text = "services: {a: {model: 'hf:org/model'}, b: {model: 'demo:chat'}, c: {model: /m}}"
    pull_missing(Home(tmp_path), config.parse(text), (), Silent())
