"""What supervisord itself makes of its configuration: shells, included files, processes, directories, secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmhost import config
from llmhost.errors import ConfigError
from llmhost.migrate.read import import_files, to_yaml
from llmhost.migrate.report import Imported

WORKER = "python -m fastchat.serve.vllm_worker --model-path /m/q --num-gpus 2"


def moved(where: Path, text: str, **environ: str) -> Imported:
    file = where / "supervisord.conf"
    file.write_text(text, encoding="utf-8")
    imported = import_files([file], environ)
    config.parse(to_yaml(imported, [file]), "what became of it")
    return imported


def program(where: Path, options: str) -> tuple[dict[str, Any], dict[str, str]]:
    imported = moved(where, f"[program:w]\n{options}\n")
    (service,) = imported.config["services"].values()
    return service, {line.source: line.outcome for line in imported.lines}


@pytest.mark.parametrize(
    "command",
    [
        f'/bin/bash -c "exec {WORKER}"',
        f'bash -lc "source /opt/conda/bin/activate fc && {WORKER} && echo done"',
        f'sh -x -c "cd /srv; {WORKER} 2>&1 | tee /log"',
        f'env OMP_NUM_THREADS=4 bash -o pipefail -c "nohup {WORKER} >> /log 2>&1 &"',
        f"/usr/bin/env -- {WORKER}",
    ],
)
def test_commands_of_shells_are_looked_into(tmp_path: Path, command: str) -> None:
    service, told = program(tmp_path, f"command={command}")
    assert (service["model"], service["gpus"], "args" in service) == ("/m/q", 2, False)
    for part, outcome in (("echo done", "by hand"), ("source /opt/conda/bin/activate fc", "left out")):
        assert told.get(part) == (outcome if part in command else None)


def test_variables_before_a_command_count(tmp_path: Path) -> None:
    command = "env VLLM_USE_V1=0 A=b python -m vllm.entrypoints.openai.api_server --model=/m/q"
    service, told = program(tmp_path, f"command={command}\nenvironment=A=\"under\",C='d,e'")
    assert service["env"] == {"A": "b", "C": "d,e"}
    assert told["VLLM_USE_V1=0"] == "left out"
    service, _ = program(tmp_path, f'command=bash -c "export D=1; CUDA_VISIBLE_DEVICES=0,1 {WORKER}"')
    assert (service["gpus"], service["env"]) == ([0, 1], {"D": "1"})


def test_programs_before_a_command_are_told(tmp_path: Path) -> None:
    service, told = program(
        tmp_path, "command=nice -n 5 env -i -u X A=b numactl -N 0 python3 -m vllm.entrypoints.x /m/q"
    )
    assert (service["model"], service["env"]) == ("/m/q", {"A": "b"})
    assert told["numactl -N 0"] == "by hand"


def test_a_script_is_named(tmp_path: Path) -> None:
    text = "[program:s]\ncommand=/opt/run_chat.sh\n[program:w]\ncommand=vllm serve /m/q --port 8001\n"
    lines = moved(tmp_path, text).lines
    assert [line.source for line in lines if line.outcome == "by hand"] == ["/opt/run_chat.sh"]


def test_included_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/b.conf").write_text("[program:b]\ncommand=vllm serve %(here)s/model --port 8002\n")
    (tmp_path / "conf.d/a.conf").write_text("[program:a]\ncommand=vllm serve /m/a --port 8001\n")
    imported = moved(tmp_path, "[supervisord]\n[include]\nfiles = conf.d/*.conf\n  /none/*.ini ; both\n")
    services = imported.config["services"]
    assert {n: s["model"] for n, s in services.items()} == {"a": "/m/a", "b": f"{tmp_path}/conf.d/model"}
    told = {line.source: (line.outcome, line.detail) for line in imported.lines}
    assert told["[include] conf.d/*.conf"] == ("became", "2 files: a.conf, b.conf")
    assert told["[include] /none/*.ini"] == ("by hand", "there is no such file")
    (tmp_path / "conf.d/a.conf").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"cannot read .*a\.conf"):
        moved(tmp_path, "[include]\nfiles = %(here)s/conf.d/*.conf\n")


def test_processes_are_replicas(tmp_path: Path) -> None:
    options = """command=vllm serve /m/q --port 80%(process_num)02d --seed %(process_num)d
numprocs=2
numprocs_start=5
environment=CUDA_VISIBLE_DEVICES="%(process_num)d",TZ=%(ENV_TZ)s"""
    imported = moved(tmp_path, f"[program:w-%(process_num)d]\n{options}\n", TZ="UTC")
    service = imported.config["services"]["w"]
    assert (service["replicas"], service["gpus"], service["port"], service["args"]) == (2, 1, 8005, {"seed": 5})
    assert service["env"] == {"TZ": "UTC"}
    todo = {line.source for line in imported.lines if line.outcome == "by hand"}
    assert todo == {"port 8006", "--seed 6", "CUDA_VISIBLE_DEVICES=6", "the GPUs of its replicas"}


def test_what_cannot_be_filled_in_is_told(tmp_path: Path) -> None:
    service, told = program(tmp_path, "command=vllm serve /m/%(ENV_NOBODY)s --port 8001 --a 100%%")
    assert (service["model"], service["args"]) == ("/m/%(ENV_NOBODY)s", {"a": "100%"})
    assert told["[program:w]"] == "by hand"


def test_models_in_the_directory_of_a_program(tmp_path: Path) -> None:
    (tmp_path / "models/bge-m3").mkdir(parents=True)
    for model, became in (("models/bge-m3", f"{tmp_path}/models/bge-m3"), ("models/other", "hf:models/other")):
        options = f"command=vllm serve {model} --port 8001 --dtype auto\ndirectory={tmp_path}"
        assert program(tmp_path, options)[0]["model"] == became
    service, _ = program(tmp_path, f'command=bash -c "cd {tmp_path}/models; vllm serve bge-m3"')
    assert service["model"] == f"{tmp_path}/models/bge-m3"


def test_no_secret_is_repeated(tmp_path: Path) -> None:
    text = """
[program:api]
command=python -m fastchat.serve.openai_api_server --port 9000 --api-keys sk-one,sk-two
[program:w]
command=vllm serve /m/q --api-key sk-three sk-four --ssl-keyfile-password=5ive --hf-token hf_six --max-num-seqs 64
  --otlp-traces-endpoint=http://u:twelve@otel:4317
environment=VLLM_API_KEY="sk-seven",DB_PASSWORD=eight,ALL_PROXY="http://u:thirteen@p:1",LANGFUSE="sk-fourteen-and"
[program:x]
command=bash -c "curl --token nine http://u:ten@h/; API_KEY=eleven vllm serve /m/x --port 1"
"""
    imported = moved(tmp_path, text)
    written = to_yaml(imported, [Path("s.conf")]) + str(imported.lines)
    for secret in (
        "one", "two", "three", "four", "5ive", "hf_six", "seven", "eight", "nine", "ten@", "eleven", "twelve",
        "thirteen", "fourteen",
    ):  # fmt: skip
        assert secret not in written
    assert imported.config["services"]["w"]["args"] == {"max_num_seqs": 64}
    assert imported.config["gateway"]["port"] == 9000
