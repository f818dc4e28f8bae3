"""llmhost.yaml of services with a command of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmhost import config
from llmhost.config_foreign import Environment, fill, size_in_bytes
from llmhost.env.environments import find_environment
from llmhost.errors import ConfigError
from llmhost.foreign import read_foreign
from llmhost.paths import Home
from llmhost.probe.model import resolve_model


def test_a_command_is_words_or_a_line_as_a_shell_splits_it() -> None:
    found = config.parse("""
        services:
          a: {command: "tei --uds-path {uds} --note 'two words' $HOME", kind: embed}
          b: {command: [serve, --port, "{port}", --threads, 4], kind: chat}
    """)
    assert found.services["a"].command == ["tei", "--uds-path", "{uds}", "--note", "two words", "$HOME"]
    assert found.services["b"].command[-1] == "4"


def test_short_forms_mean_the_long_ones() -> None:
    found = config.parse("""
        environments: {e: {requirements: [x], exclude_newer: 2024-01-31}}
        services:
          a: {command: "x {port}", kind: chat, ready: /health, environment: e, needs: b}
          b: {command: x, kind: none}
    """)
    a = found.services["a"]
    assert a.ready is not None
    assert a.ready.path == "/health"
    assert a.environment is not None
    assert a.environment.shared == "e"
    assert a.needs == ["b"]
    assert found.services["b"].kind is None
    assert found.environments["e"].exclude_newer == "2024-01-31"
    assert config.served_names("b", found.services["b"]) == ()


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("services: {a: {model: m, command: x}}", "services.a: both model and command", "docs/foreign-engines.md"),
        ("services: {a: {model: m, ready: /x}}", "services.a: ready: only for a service with command:", "leave it out"),
        ("services: {a: {command: x, args: {b: 1}}}", "services.a: args: only for a service with model:", ""),
        (
            "services: {a: {command: x, served_as: y}}",
            "services.a: served_as: only for a service that can be asked",
            "kind: chat, embed or rerank",
        ),
        ("services: {a: {model: m, kind: none}}", "services.a: kind: none is for programs", ""),
        ("services: {a: {model: m, gpus: 0}}", "services.a: gpus: 0 is for services with command:", "auto"),
        ("services: {a: {command: x, replicas: 0}}", "services.a: replicas: 0 would run nothing", ""),
        (
            "services: {a: {command: 'x --port {prot}', kind: chat}}",
            "services.a.command: the placeholder {prot} is unknown",
            "known: {uds}, {port}, {port:NAME}",
        ),
        (
            "services: {a: {command: 'x {port}', kind: chat, env: {B: '{\"a\": 1}'}}}",
            'services.a: env.B: the placeholder {"a": 1} is unknown',
            "a brace itself is written twice: {{ }}",
        ),
        ("services: {a: {command: 'x {port', kind: chat}}", "services.a.command: a single { stands in it", "{{ }}"),
        (
            "services: {a: {command: x, env: {KEY: 'hush}hush'}}}",
            "services.a: env.KEY: a single } stands in it",
            "{{ }}",
        ),
        ('services: {a: {command: "x \'y"}}', "cannot be split into words: No closing quotation", ""),
        ("services: {a: {command: ['{port}']}}", "the first word is the program", ""),
        ('services: {a: {command: [x, "a\\nb"]}}', "holds a line break", ""),
        ("services: {a: {command: x, kind: chat}}", "services.a: command: neither {uds} nor {port}", "{uds}"),
        ("services: {a: {command: 'x {model_dir}'}}", "services.a: command: {model_dir} stands in it", "model_dir:"),
        ("services: {a: {command: x, ready: /y}}", "services.a: ready: it listens nowhere", "leave ready and health"),
        (
            "services: {a: {command: 'x {b.port}'}, b: {command: x}}",
            "services.a.command: {b.port}: there is no service b with {port} in its command",
            "commands are in: a, b",
        ),
        (
            "services: {a: {command: 'x {b.port:web}'}, b: {command: 'x {port:web}', replicas: 2}}",
            "services.a.command: {b.port:web}: b has 2 replicas",
            "let it have one",
        ),
        ("services: {a: {command: x, needs: [b]}}", "services.a.needs: there is no service b", "there are: a"),
        ("services: {a: {command: x, needs: [a]}}", "services.a.needs: it waits for itself: a -> a", "take one"),
        (
            "services: {a: {command: x, needs: c}, b: {command: x, needs: a}, c: {model: m, needs: b}}",
            "it waits for itself: ",
            "take one",
        ),
        ("services: {a: {command: x, environment: e}}", "services.a.environment: there is no environment e", "nothing"),
        (
            "{environments: {a: {requirements: [x]}}, services: {a: {command: x, environment: {requirements: [y]}}}}",
            "services.a.environment: environments.a has that name already",
            "its name",
        ),
        ("services: {a: {command: x, environment: {}}}", "services.a.environment: write either requirements", ""),
        (
            "services: {a: {command: x, environment: {interpreter: /p, python: '3.10'}}}",
            "services.a.environment: python: only with requirements",
            "",
        ),
        ("services: {a: {command: x, environment: {requirements: [x], python: 3.10}}}", "python: must be text", ""),
        ("services: {a: {command: x, environment: {requirements: [x], exclude_newer: soon}}}", "exclude_newer", "2024"),
        ("environments: {E_1: {requirements: [x]}}", "environments.E_1: it needs a name like a service", "a-z"),
        ("services: {a: {command: 'x {port}', gpu_memory: 8}}", "services.a.gpu_memory: must be text, not 8", ""),
        ("services: {a: {command: 'x {port}', memory: 8GB}}", "services.a.memory: ", "4GiB"),
        ("services: {a: {command: 'x {port}', ready: health}}", "services.a.ready.path: ", "Path at the engine"),
        ("services: {a: {command: 'x {port}', kind: chat, paths: {a: /b}}}", "services.a.paths: 'a' is no path", ""),
        (
            f"services: {{a: {{command: 'x {{port}}', health: {{path: /x, body: {{a: {'x' * 70000}}}}}}}}}",
            "services.a.health.body: it has 70",
            "",
        ),
    ],
)
def test_a_mistake_is_named_with_its_key(text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(text)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert "hush" not in f"{caught.value.message}{caught.value.hint}"


def test_braces_that_are_written_twice_are_braces() -> None:
    assert fill('{{"a": {b}}}', str.upper) == '{"a": B}'
    assert fill("{{{{x}}}}", str.upper) == "{{x}}"


def test_sizes() -> None:
    assert size_in_bytes("8GiB") == 8 * 2**30
    assert size_in_bytes("1.5 GiB") == 3 * 2**29
    assert size_in_bytes("512MiB") == 2**29


def test_what_is_shown_can_be_written() -> None:
    text = "services: {a: {command: 'x {port}', kind: chat, cores: 0}, b: {model: m}, c: {command: x}}"
    found = config.parse(text)
    assert config.Config.model_validate(found.model_dump()) == found


def test_what_only_other_hosts_serve_is_not_needed() -> None:
    """Nobody would say that it is ready."""
    far = "far: {model: /m, kind: chat, replicas: 0, endpoints: ['http://10.0.0.2:8000']}"
    with pytest.raises(ConfigError, match=r"services.a.needs: far has no replica here"):
        config.parse(f"services: {{{far}, a: {{command: x, needs: far}}}}")


def test_a_home_of_nobody_is_an_error(tmp_path: Path) -> None:
    told = "~nouser/x: there is no home directory of ~nouser"
    with pytest.raises(ConfigError, match=f"environment e: interpreter: {told}"):
        find_environment(Home(tmp_path), "e", Environment(interpreter="~nouser/x"))
    with pytest.raises(ConfigError, match=f"model: {told}"):
        resolve_model("~nouser/x", tmp_path)
    for service, key in (("command: ~nouser/x", "command"), ("command: sh, model_dir: ~nouser/x", "model_dir")):
        found = config.parse(f"services: {{a: {{{service}}}}}")
        with pytest.raises(ConfigError, match=f"services.a.{key}: (model: )?{told}"):
            read_foreign(Home(tmp_path), found)
