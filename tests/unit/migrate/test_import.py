"""Compose files and supervisord programs, written for these tests, become llmhost.yaml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmhost import config
from llmhost.__main__ import run
from llmhost.errors import ConfigError
from llmhost.migrate.compose import import_compose
from llmhost.migrate.read import import_files, to_yaml
from llmhost.migrate.report import Imported
from llmhost.migrate.supervisord import import_supervisord
from llmhost.migrate.variables import interpolated
from llmhost.plan.removed import REMOVED

FIXTURES = Path(__file__).parents[2] / "fixtures/migrate"


def fixture(name: str, **environ: str) -> Imported:
    imported = import_files([FIXTURES / name], environ)
    assert config.parse(to_yaml(imported, [FIXTURES / name])).services
    return imported


def compose(service: str, **environ: str) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    text = f"services:\n  s:\n    image: vllm/vllm-openai\n{service}"
    imported = import_compose({Path("/srv/compose/docker-compose.yaml"): text}, environ)
    return imported.config["services"]["s"], [(line.source, line.outcome, line.detail) for line in imported.lines]


def test_three_services_with_an_anchor() -> None:
    imported = fixture("three.yaml", RERANK_KEY="sk-secret", HF_TOKEN="hf-secret")
    services = imported.config["services"]
    chat, embedding, rerank = services["vllm-chat"], services["vllm-embedding"], services["vllm-rerank"]
    assert chat["model"] == str(FIXTURES / "models/Qwen/Qwen2.5-72B-Instruct-GPTQ-Int8")
    assert (chat["served_as"], chat["gpus"], "port" in chat) == (["gpt-4", "qwen"], [0, 1], False)
    assert chat["args"] == {"max_model_len": 32768, "enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
    assert (embedding["kind"], embedding["port"], embedding["gpus"]) == ("embed", 8001, [2])
    assert embedding["env"] == {"TZ": "Asia/Shanghai", "VLLM_LOGGING_LEVEL": "WARNING"}
    assert (rerank["kind"], rerank["model"], rerank["port"]) == ("rerank", "modelscope:BAAI/bge-reranker-base", 8002)
    assert "sk-secret" not in (written := to_yaml(imported, [Path("three.yaml")]) + str(imported.lines))
    assert "hf-secret" not in written
    out = {line.source for line in imported.lines if line.outcome == "left out"}
    assert {"--swap-space 16", "--distributed-executor-backend ray", "shm_size", "nginx:1.27"} <= out


def test_split_llm() -> None:
    imported = fixture("llm.yaml")
    (llm,) = imported.config["services"].values()
    assert (llm["model"], llm["port"], llm["gpus"]) == ("/data/models/Qwen3-8B", 1281, [0])
    assert llm["args"] == {
        "reasoning_parser": "qwen3",
        "enable_prefix_caching": False,
        "chat_template": "/data/models/templates/qwen3.jinja",
    }
    (todo,) = [line for line in imported.lines if line.outcome == "by hand"]
    assert "hf_overrides" in todo.detail


def test_text_embeddings_inference() -> None:
    imported = fixture("tei.yaml", HF_API_TOKEN="hf-secret")
    services = imported.config["services"]
    assert services["embedding"] == {
        "model": "/data/models/bge-large-zh-v1.5", "served_as": ["bge-large-zh-v1.5"], "port": 1282,
        "limits": {"concurrent_requests": 256}, "args": {"dtype": "float16"},
    }  # fmt: skip
    assert services["reranker"] == {
        "model": "hf:BAAI/bge-reranker-base",
        "served_as": ["bge-reranker-base"],
        "port": 1283,
    }
    assert "hf-secret" not in str(imported)


def test_supervisord_with_fastchat() -> None:
    imported = fixture("supervisord.conf")
    assert imported.config["gateway"]["port"] == 9000
    worker, embed = imported.config["services"].values()
    assert worker == {
        "model": "/data/models/Qwen2.5-14B-Instruct", "served_as": ["gpt-3.5-turbo", "qwen"], "gpus": [0, 1],
        "args": {"trust_remote_code": True, "max_model_len": 16384}, "env": {"NCCL_P2P_DISABLE": "1"},
    }  # fmt: skip
    assert (embed["model"], embed["kind"], embed["port"]) == ("hf:BAAI/bge-m3", "embed", 8081)


@pytest.mark.parametrize(
    ("command", "key", "value"),
    [
        ("--model a/b --served-model-name x", "model", "hf:a/b"),
        ("serve a/b", "model", "hf:a/b"),
        ("vllm serve a/b --revision v1", "model", "hf:a/b@v1"),
        ("python3 -m vllm.entrypoints.openai.api_server --model=a/b", "model", "hf:a/b"),
        ("--model a/b", "served_as", ["a/b"]),
        ("--model a/b -tp 4", "gpus", 4),
        ("--model a/b --max-model-len=8k", "args", {"max_model_len": "8k"}),
        ("--model a/b --kv-transfer-config '{\"a\": 1}'", "args", {"kv_transfer_config": {"a": 1}}),
        ("--model a/b --lora-modules x=/l y=/m", "args", {"lora_modules": ["x=/l", "y=/m"]}),
        ("--model a/b --max-seq-len-to-capture 512", "args", {"max_cudagraph_capture_size": 512}),
        ("--model a/b -tp 2 -pp 2", "gpus", 4),
    ],
)
def test_commands(command: str, key: str, value: object) -> None:
    assert compose(f"    command: {json.dumps(command)}\n")[0][key] == value


def test_every_removed_flag_is_in_the_report() -> None:
    for name in REMOVED:
        option = f"--{name.replace('_', '-')}"
        _, lines = compose(f"    command: --model a/b {option} 1\n")
        assert any(source == f"{option} 1" for source, _, _ in lines), name


def test_nothing_is_dropped_silently() -> None:
    """Every word of a command, every variable and every key is somewhere in the report."""
    words = (
        "--model /m/x --task embed --dtype half --port 9 --host 0.0.0.0 --uvicorn-log-level info --trust-remote-code"
    )
    _, lines = compose(f"    command: {words}\n    environment: {{A: b}}\n    sysctls: {{}}\n    ports: ['7:9']\n")
    told = " ".join(source for source, _, _ in lines)
    for part in (
        "/m/x",
        "--task",
        "--dtype",
        "--host",
        "--uvicorn-log-level",
        "--trust-remote-code",
        "A=b",
        "sysctls",
        "7:9",
    ):
        assert part in told


def test_variables() -> None:
    text = "    command: --model ${OWNER:-Qwen}/${NAME} --seed ${SEED-3}\n    environment: {PRICE: 5$$}\n"
    service, lines = compose(text, NAME="Qwen3-8B", OWNER="")
    assert (service["model"], service["args"], service["env"]) == ("hf:Qwen/Qwen3-8B", {"seed": 3}, {"PRICE": "5$"})
    assert not [line for line in lines if line[1] == "by hand"]
    assert ("${NAME}", "by hand", "the variable is not set: it was taken as empty") in compose(text)[1]


@pytest.mark.parametrize(
    ("text", "filled", "missing"),
    [
        ("${A:-${B}}", "b", []),
        ("${A:-${C:-${D-x}y}z}!", "xyz!", []),
        ("${A:-x}}", "x}", []),
        ('${A:-{"a": {}}} $B', '{"a": {}} b', []),
        ("${B:+<${B}>}${A:+${C}}", "<b>", []),
        ("${A:-${C}}", "", ["C"]),
        ("${A?} ${A} ${B:?unused ${C}}", "  b", ["A"]),
        ("${A:? set ${B} first}", "", ["A"]),
        ("${B:-unused ${C}} ${not closed $5 ${} ${B!} $$B", "b ${not closed  ${} ${B!} $B", ["5"]),
    ],
)
def test_variables_in_defaults(text: str, filled: str, missing: list[str]) -> None:
    found: dict[str, str] = {}
    assert interpolated(text, {"A": "", "B": "b"} if "A?" not in text else {"B": "b"}, found) == filled
    assert list(found) == missing


def test_a_variable_that_compose_insists_on_is_named_with_its_message() -> None:
    _, lines = compose("    command: --model hf/${MODEL:?name a model} --seed ${SEED:?}\n")
    told = {source: detail for source, outcome, detail in lines if outcome == "by hand"}
    assert told["${MODEL}"] == "compose ends here without it (name a model): it was taken as empty"
    assert "it is required" in told["${SEED}"]
    with pytest.raises(ConfigError) as raised:
        compose("    command: --model ${MODEL:?name a model}\n")
    assert raised.value.hint == "these variables have no value: ${MODEL}"
    assert compose("    command: --model ${MODEL:?x}\n", MODEL="o/n")[0]["model"] == "hf:o/n"


@pytest.mark.parametrize("text", ["", "- a", "services: 3", "services: {a: {image: nginx}}", "a: ["])
def test_what_is_no_compose_file(text: str) -> None:
    with pytest.raises(ConfigError):
        import_compose({Path("/x/docker-compose.yaml"): text}, {})


def test_what_is_no_supervisord_configuration() -> None:
    for text in ("nonsense", "[program:a]\ncommand=redis-server\n"):
        with pytest.raises(ConfigError):
            import_supervisord(text, Path("x.conf"))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "llmhost.yaml"
    assert run(["import", str(FIXTURES / "llm.yaml"), "-o", str(target)]) == 0
    output = capsys.readouterr()
    assert output.out == f"wrote {target}\n"
    assert "became    llm: --served-model-name qwen3-8b -> served_as: [qwen3-8b]" in output.err
    assert config.load(target).services["llm"].port == 1281
    assert "#   llm: --rope-scaling" in target.read_text()
    assert run(["import", str(FIXTURES / "llm.yaml"), "-o", str(target)]) == 1
    assert "exists" in capsys.readouterr().err
    assert run(["import", str(FIXTURES / "tei.yaml"), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"config", "report"}
    assert run(["import", "/nowhere.yaml"]) == 1


def project(where: Path, **files: str) -> list[Path]:
    """Files of compose projects: ``a__compose`` is a/compose.yaml."""
    paths = []
    for name, text in files.items():
        path = where / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


CHAT = "services: {chat: {image: vllm/vllm-openai, command: --model /m/qwen, volumes: ['./models:/m']}}"


def test_several_files_become_one_configuration(tmp_path: Path) -> None:
    tei = "services: {embedding: {image: ghcr.io/huggingface/text-embeddings-inference, command: --model-id /data/bge}}"
    services = import_files(project(tmp_path, llm__compose=CHAT, tei__compose=tei), {}).config["services"]
    assert list(services) == ["chat", "embedding"]
    assert services["chat"]["model"] == str(tmp_path / "llm/models/qwen")


def test_two_services_of_one_name_both_stay(tmp_path: Path) -> None:
    other = "services: {chat: {image: ghcr.io/huggingface/text-embeddings-inference, command: --model-id /data/bge}}"
    imported = import_files(project(tmp_path, llm__compose=CHAT, tei__compose=other), {})
    assert list(imported.config["services"]) == ["chat", "tei-chat"]
    assert any("another file has a chat" in line.detail for line in imported.lines)


def test_a_later_file_goes_on_top(tmp_path: Path) -> None:
    over = """
services:
  chat: {command: --model /m/other --max-model-len 4096, environment: [A=2, B=3], volumes: ["/big:/m"]}
"""
    base = CHAT.replace("image:", "environment: {A: '1', C: x}, image:")
    (chat,) = import_files(project(tmp_path, compose=base, prod=over), {}).config["services"].values()
    assert (chat["model"], chat["args"]) == ("/big/other", {"max_model_len": 4096})
    assert chat["env"] == {"A": "2", "B": "3", "C": "x"}


def test_an_override_file_is_read_as_docker_does(tmp_path: Path) -> None:
    over = "services: {chat: {image: 'vllm/vllm-openai:v0.9.1', environment: {A: '1'}}}"
    files = {"docker-compose": CHAT, "docker-compose.override": over}
    base, override = project(tmp_path, **files)
    assert import_files([base], {}).config["services"]["chat"]["env"] == {"A": "1"}
    assert "env" not in import_files([base, base], {}).config["services"]["chat"]
    with pytest.raises(ConfigError, match="runs neither"):
        import_files([override], {})


def test_extends_include_and_env_file(tmp_path: Path) -> None:
    base = """
services:
  base:
    image: vllm/vllm-openai
    volumes: ["./models:/m"]
    env_file: [one.env, {path: none.env, required: false}, gone.env]
    command: --model /m/unused
"""
    main = """
include: [{path: other/compose.yaml}]
services:
  chat: {extends: {file: common/base.yaml, service: base}, command: --model /m/qwen, environment: {A: mine}}
  second: {extends: chat, command: --model /m/second}
"""
    other = "services: {rerank: {image: vllm/vllm-openai, command: --model hf/reranker --task score}}"
    (compose, *_) = project(tmp_path, compose=main, common__base=base, other__compose=other)
    (tmp_path / "common/one.env").write_text("A=file\nB='two words'\n")
    imported = import_files([compose], {})
    services = imported.config["services"]
    assert set(services) == {"rerank", "chat", "second"}
    models = str(tmp_path / "common/models")
    assert (services["chat"]["model"], services["second"]["model"]) == (f"{models}/qwen", f"{models}/second")
    assert services["chat"]["env"] == {"A": "mine", "B": "two words"}
    todo = {line.source for line in imported.lines if line.outcome == "by hand"}
    assert f"env_file {tmp_path}/common/gone.env" in todo
    assert not any("none.env" in source for source in todo)


def test_an_include_of_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an entry of include: names no file"):
        import_files(project(tmp_path, compose="include: [{path: []}]\nservices: {}\n"), {})


def test_include_in_its_long_form(tmp_path: Path) -> None:
    """Variables of its env_file (what is set outside counts before), paths from its project_directory."""
    main = """
include:
  - path: [llm/compose.yaml, llm/more.yaml]
    project_directory: shared
    env_file: [envs/one.env, envs/two.env]
    colour: red
  - own/compose.yaml
"""
    llm = """
services:
  chat:
    image: vllm/vllm-openai
    volumes: ["./models:/m"]
    command: --model /m/${NAME} --seed ${SEED} --max-model-len ${LENGTH}
    environment: [TZ, UNSET=]
"""
    own = "services: {own: {image: vllm/vllm-openai, command: '--model hf/own --seed ${SEED:-0}'}}"
    more = "services: {chat: {image: vllm/vllm-openai:v2, environment: {B: '1'}}}"
    (file, *_) = project(tmp_path, compose=main, llm__compose=llm, llm__more=more, own__compose=own)
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs/one.env").write_text("NAME=first\nSEED=1\nTZ=UTC\n")
    (tmp_path / "envs/two.env").write_text("NAME=second\nLENGTH=5\n")
    (tmp_path / "own/.env").write_text("SEED=7\n")
    imported = import_files([file], {"LENGTH": "4096"})
    chat = imported.config["services"]["chat"]
    assert chat["model"] == str(tmp_path / "shared/models/second")
    assert chat["args"] == {"seed": 1, "max_model_len": 4096}
    assert chat["env"] == {"TZ": "UTC", "B": "1"}
    assert imported.config["services"]["own"]["args"] == {"seed": 7}
    assert [line.source for line in imported.lines if line.outcome == "by hand"] == ["include: colour"]
    (tmp_path / "envs/two.env").unlink()
    with pytest.raises(ConfigError, match=r"cannot read .*two\.env"):
        import_files([file], {})


@pytest.mark.parametrize(
    ("main", "said"),
    [
        ("include: [compose.yaml]", "go round in a circle"),
        ("services: {a: {extends: a, image: vllm}}", "go round in a circle"),
        ("services: {a: {extends: b}}", "extends the service b, which"),
        ("services: {a: {extends: {file: none.yaml, service: b}}}", "cannot read"),
        ("include: [none.yaml]", "cannot read"),
        ("services: {a: {extends: [b]}}", "cannot be read"),
        ("{include: [other.yaml], services: [a]}", "has no services"),
        ("services: {a: {extends: {file: list.yaml, service: b}}}", "extends the service b, which"),
        ("services: {a: {image: vllm}}\nx-day: 2024-13-45", "is not YAML"),
    ],
)
def test_files_that_lead_nowhere(tmp_path: Path, main: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        import_files(project(tmp_path, compose=main, list="services: [b]", other=CHAT), {})


def test_a_home_that_nobody_has_is_a_path_like_others(tmp_path: Path) -> None:
    odd = CHAT.replace("./models", "~nosuchuser/m")
    assert import_files(project(tmp_path, compose=odd), {}).config["services"]


def test_a_supervisord_conf_stands_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="several files are compose files only"):
        import_files([*project(tmp_path, compose=CHAT), FIXTURES / "supervisord.conf"], {})
