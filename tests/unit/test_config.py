"""llmhost.yaml: what is accepted, and how each mistake is explained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema_rs
import pytest
from ruamel.yaml import YAML

from llmhost import config
from llmhost.errors import ConfigError

ROOT = Path(__file__).parents[2]

FULL = """
engine: {name: main, device: cpu, vllm: 0.32.0, python: "3.12"}
models_dir: /data/models
gateway: {host: 0.0.0.0, port: 9000, max_body_mib: 10}
services:
  chat:
    model: /data/models/chat
    served_as: [gpt-4, 通义]
    replicas: 2
    args: {max_model_len: 8192, enforce_eager: true, rope-scaling: {type: yarn}}
    env: {A: 1, B: true, C: "x y"}
    start_timeout: 60
  embedding: {model: "hf:BAAI/bge-m3", kind: embed, served_as: bge-m3, port: 9001}
"""


def test_everything_that_can_be_written_is_read() -> None:
    read = config.parse(FULL)
    chat, embedding = read.services["chat"], read.services["embedding"]
    assert read.engine.name == "main"
    assert read.gateway.max_body_mib == 10
    assert config.served_names("chat", chat) == ("gpt-4", "通义")
    assert config.served_names("embedding", embedding) == ("bge-m3",)
    assert chat.env == {"A": "1", "B": "true", "C": "x y"}
    assert chat.args["rope-scaling"] == {"type": "yarn"}
    assert chat.start_timeout == 60


def test_a_service_without_names_is_served_under_its_own() -> None:
    read = config.parse("services: {chat: {model: /m}}")
    assert config.served_names("chat", read.services["chat"]) == ("chat",)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config.parse("").gateway.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("gatway: {}", "unknown key gatway", "did you mean gateway?"),
        ("services: {chat: {model: /m, servedas: x}}", "unknown key services.chat.servedas", "did you mean served_as?"),
        ("services: {chat: {model: /m, max_model_len: 1}}", "unknown key services.chat.max_model_len", "under args:"),
        ("gateway: {port: eighty}", "gateway.port: must be a whole number, not 'eighty'", "port: Port to listen on"),
        ("gateway: {port: 70000}", "gateway.port: must be less than or equal to 65535", "Port to listen on"),
        ("services: {chat: {model: 3}}", "services.chat.model: must be text, not 3", "in quotes"),
        ("services: {chat: {}}", "services.chat: neither model nor command", "write model: for vLLM"),
        (
            "services: {chat: {model: /m, replicas: -1}}",
            "services.chat.replicas: must be greater than",
            "Engine processes",
        ),
        ("services: [chat]", "services: must be a mapping, not ['chat']", "NAME: value"),
        ("services: {Chat_1: {model: /m}}", "'Chat_1' cannot be the name of a service", "call it chat-1, say"),
        ("services: {-a: {model: /m}}", "'-a' cannot be the name of a service", "call it a, say"),
        ("services: {1: {model: /m}}", "1 cannot be the name of a service", "call it 1, say"),
        (
            "services: {a: {model: /m, served_as: x}, b: {model: /m, served_as: [y, x]}}",
            "'x' is used by both a and b",
            "each name goes to one service",
        ),
        ("services: {a: {model: /m, served_as: b}, b: {model: /m}}", "'b' is used by both a and b", ""),
        ("services: {a: {model: /m, port: 8000}}", "port 8000 is used by both gateway and a", "another port, or none"),
        ("services: {a: {model: /m, served_as: ''}}", "cannot be a model name", ""),
        ('services: {a: {model: /m, served_as: "x\\ny"}}', "cannot be a model name", ""),
        ("services: {a: {model: /m, served_as: -x}}", "cannot be a model name", ""),
        (
            "services: {a: {model: /m, env: {A-B: x}}}",
            "'A-B' cannot be the name of an environment variable",
            "letters, digits and _",
        ),
        ("services: {a: {model: /m, env: {A: [x]}}}", "services.a.env.A: must be text", "quotes"),
        ("services: {a: {model: /m}, a: {model: /n}}", 'found duplicate key "a"', "each key once"),
        ("a: [", "llmhost.yaml:1: ", "indentation"),
        ("- a", "is not a mapping", "llmhost init"),
        ("services: {gateway: {model: /m}}", "'gateway' cannot be the name of a service: a program of llmhost", ""),
        (
            "services: {a: {model: /m, env: {LLMHOST_PROGRAM: x}}}",
            "LLMHOST_PROGRAM: names that begin with LLMHOST_",
            "",
        ),
        ("services: {a: {model: /m, stop_timeout: .inf}}", "services.a.stop_timeout: must be", "Seconds that running"),
        ("services: {a: {model: /m, start_timeout: 1e9}}", "services.a.start_timeout: must be less", ""),
        (
            "services: {a: {model: /m, env: {D: 2024-99-99}}}",
            "a value cannot be read: month must be in 1..12",
            "quotes",
        ),
        ("services: {a: {model: /m, args: {x: 2024-01-01}}}", "services.a.args.x: no flag takes this value", "quotes"),
        ("services: {a: {model: null}}", "services.a: neither model nor command", ""),
        ("gateway: {limits: {requests_per_minute: 0}}", "gateway.limits.requests_per_minute: must be", "429"),
        ("services: {a: {model: /m, limits: {concurrent_requests: -1}}}", "limits.concurrent_requests: must", ""),
        ("services: {a: {model: /m, limits: {max_body_mib: 0}}}", "limits.max_body_mib: must be greater", ""),
        ("services: {a: {model: /m, limits: {rpm: 1}}}", "unknown key services.a.limits.rpm", "requests_per_minute"),
        ("gateway: {tls: {certificate: /c}}", "gateway.tls.key: is missing", "private key"),
        (
            "gateway: {tls: {certificat: /c, key: /k}}",
            "unknown key gateway.tls.certificat",
            "mean certificate?",
        ),
        ("engine: {kind: docker}", "engine.kind: must be 'venv'", "venv (with uv)"),
        ("services: {a: {model: /m, args: [1]}}", "services.a.args: must be a mapping, not [1]", "NAME: value"),
        ("services: {a: chat}", "services.a: must be a mapping, not 'chat'", "its keys: args, command, concurrency"),
        ("engine: {kind: existing}", "engine: kind: existing needs engine.python", "/path/to/bin/python"),
        ("engine: {kind: existing, python: '3.12'}", "engine: kind: existing needs engine.python", "/path"),
        ("engine: {kind: conda, python: /usr/bin/python3}", "engine: python: conda brings its own", "kind: venv"),
        ("engine: {kind: conda, system_site_packages: true}", "engine: system_site_packages: only", "kind: venv"),
        ("engine: {channels: [x]}", "engine: channels and cuda_compiler: only conda", "kind: conda"),
        ("engine: {cuda_compiler: true}", "engine: channels and cuda_compiler: only conda", "kind: conda"),
        (
            "engine: {kind: existing, python: /usr/bin/python3, flash_attn: true}",
            "engine: flash_attn: an engine of kind: existing is never changed",
            "install flash-attn there",
        ),
        ("engine: 3", "engine: must be a mapping, not 3", "its keys: channels, cuda_compiler, device"),
        (
            "gatway: {}\nservices: {chat: {model: /m, servedas: x}}",
            "unknown keys services.chat.servedas, gatway",
            "did you mean served_as for servedas, gateway for gatway?",
        ),
        ("services: {a: {model: /m, sticky: {}}}", "services.a.sticky: write either a header or a prefix", ""),
    ],
)
def test_a_mistake_is_named_with_its_key(text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(text)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_key_with_nothing_behind_it_is_as_if_it_were_not_there() -> None:
    assert config.parse("engine:\ngateway:\nservices:") == config.Config()
    assert config.parse("services: {a: {model: /m, args: null, env: null}}") == config.parse(
        "services: {a: {model: /m}}"
    )


def test_a_secret_in_a_wrong_environment_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse("services: {a: {model: /m, env: [HF_TOKEN=hf_verysecret]}}")
    assert "hf_verysecret" not in caught.value.message
    assert "services.a.env" in caught.value.message
    assert "NAME: value" in caught.value.hint


def test_several_mistakes_are_counted() -> None:
    with pytest.raises(ConfigError, match=r"\(and 1 more\)"):
        config.parse("services: {a: {}, b: {}}")


def test_a_missing_file_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist") as caught:
        config.load(tmp_path / "llmhost.yaml")
    assert "llmhost init" in caught.value.hint


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "llmhost.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read"):
        config.load(path)


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        ("['--index-url=http://x']", "'--index-url=http://x' is not a package as pip takes it"),
        ("['./x.whl']", "'./x.whl' is not a package as pip takes it"),
        ("['']", "'' is not a package as pip takes it"),
        ("['z @ https://user:hush@host/z-1.whl']", "is not a package as pip takes it"),
        ("['timm ray']", "'timm ray' is not a package as pip takes it"),
        ('["a\\n--pre"]', "is not a package as pip takes it"),
        ("[torch>=2]", "torch>=2: the engine has one already"),
        ("[vLLM==0.1]", "vLLM==0.1: the engine has one already"),
        ("[timm], kind: existing, python: /x/bin/python", "an engine of kind: existing is never changed"),
    ],
)
def test_packages_that_an_engine_cannot_have(packages: str, message: str) -> None:
    with pytest.raises(ConfigError) as e:
        config.parse(f"engine: {{packages: {packages}}}")
    assert message in e.value.message
    assert e.value.hint


def test_ray_comes_with_what_it_starts() -> None:
    services = "services: {chat: {model: m, gpus: 2, executor: ray}, other: {model: m}}"
    written = ["timm", "x[y]>=1,<2; python_version > '3'"]
    packages = f"engine: {{packages: {json.dumps(written)}}}"
    assert config.parse(f"{packages}\n{services}").engine.packages == [*written, "ray==2.60.0"]
    assert config.parse(f"engine: {{packages: [Ray==2.52]}}\n{services}").engine.packages == ["Ray==2.52"]
    assert config.parse(services.replace("ray", "mp")).engine.packages == []
    existing = "engine: {kind: existing, python: /x/bin/python}"
    assert config.parse(f"{existing}\n{services}").engine.packages == []


def test_the_schema_describes_every_key() -> None:
    schema = config.schema()
    service = schema["$defs"]["Service"]["properties"]
    assert set(service) == set(config.Service.model_fields)
    assert all("description" in key for key in service.values())
    assert schema["additionalProperties"] is False


SHORT = """
nodes: {a: {address: 10.0.0.1}, b: {address: 10.0.0.2}}
services:
  chat:
    {model: /m, served_as: x, nodes: a, endpoints: "http://x:1", sticky: prefix, needs: helper, env: {A: 1, B: true}}
  wide: {model: /m, gpus: 16, span: 2, endpoints: ["http://x:1", {url: "http://y:1", key_file: k}]}
  tei: {command: "tei --port {port}", kind: embed, ready: /health, health: /health, environment: shared}
  helper: {command: [x, --port, 8, "{port}"], kind: none}
environments: {shared: {requirements: [tei], exclude_newer: 2024-01-01}}
"""


def written() -> Iterator[tuple[str, str]]:
    """Whole files that the documentation and the examples show, and one with every short form."""
    yield "short", SHORT
    for file in sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))):
        blocks = re.findall(r"```yaml\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL)
        yield from ((f"{file.name}-{n}", text) for n, text in enumerate(blocks) if "\nservices:" in f"\n{text}")
    for file in sorted(ROOT.glob("examples/**/*.yaml")):
        yield file.parent.name, file.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in written()])
def test_what_is_shown_is_read_and_the_schema_allows_it(text: str) -> None:
    """An editor underlines nothing that llmhost takes."""
    config.parse(text)
    data = json.loads(json.dumps(YAML(typ="safe").load(text), default=str))  # an editor reads a date as text
    assert [e.message for e in jsonschema_rs.validator_for(config.schema()).iter_errors(data)] == []
