"""Compose files of several hosts, written for these tests, become one llmhost.yaml with nodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import pytest

from llmhost import config
from llmhost.__main__ import run
from llmhost.errors import ConfigError
from llmhost.facts import Gpu, NodeFacts
from llmhost.migrate.hosts import parse_hosts
from llmhost.migrate.read import import_nodes, to_yaml
from llmhost.migrate.report import Imported
from llmhost.probe.node_facts import node_to_json
from tests import samples
from tests.machines import CPU_BOX

FIXTURES = Path(__file__).parents[2] / "fixtures/migrate/hosts"
LLM, TEI = FIXTURES / "llm/docker-compose.yaml", FIXTURES / "tei/compose.yaml"
TWO = ("--node", f"a=root@10.0.0.1:{LLM}", "--node", f"b=10.0.0.2:{TEI}")
GIB = 2**30

Write = Callable[[str, Mapping[str, str]], str]


def imported(*specs: str, **environ: str) -> Imported:
    hosts = parse_hosts(specs)
    found = import_nodes(hosts, environ)
    assert config.parse(to_yaml(found, [file for host in hosts for file in host.files])).services
    return found


def told(found: Imported, place: str) -> dict[str, list[tuple[str, str]]]:
    """Outcome and detail of what is said of a service on a node, by source."""
    lines: dict[str, list[tuple[str, str]]] = {}
    for line in found.lines:
        if line.place == place:
            lines.setdefault(line.source, []).append((line.outcome, line.detail))
    return lines


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """Makes a compose file of vLLM services (name -> its lines) on a node."""

    def make(node: str, services: Mapping[str, str]) -> str:
        folder = tmp_path / node
        folder.mkdir(exist_ok=True)
        file = folder / f"{len(list(folder.iterdir()))}.yaml"
        entries = "".join(f"  {name}:\n    image: vllm/vllm-openai\n{lines}" for name, lines in services.items())
        file.write_text(f"services:\n{entries}")
        return f"{node}=10.0.0.{ord(node) - 96}:{file}"

    return make


def service(command: str, port: int = 0, gpus: str = "", more: str = "") -> str:
    ports = f"    ports: ['{port}:8000']\n" if port else ""
    env = f"    environment: {{CUDA_VISIBLE_DEVICES: '{gpus}'}}\n" if gpus else ""
    return f"    command: --model {command}\n{ports}{env}{more}"


def test_two_hosts() -> None:
    """Chat on two GPUs of one; rerank on the other; the same embedding on both."""
    found = imported(f"a=root@10.0.0.1:{LLM}", f"b=10.0.0.2:{TEI}")
    assert found.config == {
        "gateway": {"host": "127.0.0.1", "port": 8000},
        "nodes": {"a": {"address": "10.0.0.1", "user": "root"}, "b": {"address": "10.0.0.2"}},
        "services": {
            "llm": {
                "model": "/data/models/Qwen2.5-32B-Instruct-AWQ", "nodes": "a", "served_as": ["qwen", "gpt-4"],
                "gpus": [0, 1], "args": {"max_model_len": 16384},
            },
            "embedding": {
                "model": "/data/models/bge-m3", "nodes": ["a", "b"], "served_as": ["bge-m3"], "gpus": 1,
                "replicas": 2, "port": 8081, "args": {"dtype": "float16"},
            },
            "reranker": {
                "model": str(FIXTURES / "tei/models/bge-reranker-v2-m3"), "nodes": "b",
                "served_as": ["bge-reranker-v2-m3"], "gpus": [1], "needs": ["embedding"],
            },
        },
    }  # fmt: skip
    llm, embedding, reranker = (told(found, place) for place in ("llm on a", "embedding on a", "reranker on b"))
    assert llm["devices 0, 1"] == [("became", "gpus: [0, 1] of a")]
    assert llm["ports 8000:8000"][-1] == ("became", "the gateway's port, which serves every service on every node")
    assert ("became", "replicas: 2, nodes: [a, b]: the plan spreads them") in embedding["the service embedding"]
    (gpus,) = embedding["the GPUs of its replicas"]
    assert gpus == ("by hand", "gpus: 1 for each, the plan chooses which; they were [2] on a, [0] on b")
    outcome, detail = embedding["ports 8080:80"][-1]
    assert outcome == "by hand"
    assert "clients of 10.0.0.1:8080 ask 10.0.0.1:8000 for bge-m3" in detail
    assert "clients of 10.0.0.2:8080 ask 10.0.0.2:8000 for bge-reranker-v2-m3" in str(reranker["ports 8080:80"])
    moved = f"volume {FIXTURES / 'tei/models'}:/data"
    assert [outcome for outcome, _ in reranker[moved]] == ["became", "by hand"]  # it lies on b, not here
    assert all(line.node for line in found.lines)


def test_every_line_is_told_once_and_with_its_node() -> None:
    """Nothing that one host alone says is lost on the way to several."""
    found = imported(f"a=10.0.0.1:{LLM}", f"b=10.0.0.2:{TEI}")
    for node, file in (("a", LLM), ("b", TEI)):
        alone = {line.source for line in imported(f"{node}=10.0.0.1:{file}").lines}
        assert alone <= {line.source for line in found.lines if line.node == node}


def test_alike_on_both_keeps_numbers_of_gpus(written: Write) -> None:
    same = {"embed": service("BAAI/bge-m3", 8001, "0")}
    found = imported(written("a", same), written("b", same))
    (embed,) = found.config["services"].values()
    assert (embed["nodes"], embed["replicas"], embed["gpus"], embed["port"]) == (["a", "b"], 2, [0], 8001)
    assert "8001 on every node" in str(told(found, "embed on b"))


def test_other_ports_of_one_service_are_told(written: Write) -> None:
    found = imported(
        written("a", {"embed": service("BAAI/bge-m3", 8001)}), written("b", {"vectors": service("BAAI/bge-m3", 8002)})
    )
    (embed,) = found.config["services"].values()
    assert (embed["nodes"], embed["port"]) == (["a", "b"], 8001)
    assert "clients of 10.0.0.2:8002 ask 10.0.0.2:8000 for BAAI/bge-m3" in str(told(found, "vectors on b"))
    assert "a replica of embed of a" in str(told(found, "vectors on b"))


def test_one_name_and_other_settings(written: Write) -> None:
    """The later is called by its node, and by its own name where clients cannot tell the two apart."""
    needs = "    depends_on: [chat]\n"
    found = imported(
        written("a", {"chat": service("Qwen/Qwen3-8B --max-model-len 8192", 8001)}),
        written("b", {"chat": service("Qwen/Qwen3-8B", 8001), "other": service("x/y", more=needs)}),
    )
    services = found.config["services"]
    assert list(services) == ["chat", "chat-b", "other"]
    assert (services["chat"]["served_as"], services["chat-b"]["served_as"]) == (["Qwen/Qwen3-8B"], ["chat-b"])
    assert services["other"]["needs"] == ["chat-b"]
    assert not any("port" in entry for entry in services.values())
    lines = told(found, "chat-b on b")
    assert lines["chat"] == [("became", "the service chat-b: chat of a has other settings")]
    assert "ask for this one as chat-b" in str(lines["served as Qwen/Qwen3-8B"])


def test_another_count_of_gpus_is_another_setting(written: Write) -> None:
    found = imported(written("a", {"chat": service("x/y -tp 2")}), written("b", {"chat": service("x/y -tp 4")}))
    assert {n: s["gpus"] for n, s in found.config["services"].items()} == {"chat": 2, "chat-b": 4}


def test_more_replicas_on_one_host(written: Write) -> None:
    two = {"chat-0": service("x/y", 8001, "0"), "chat-1": service("x/y", 8002, "1")}
    found = imported(written("a", two), written("b", {"chat-0": service("x/y", 8001, "0")}))
    (chat,) = found.config["services"].values()
    assert (chat["replicas"], chat["nodes"], chat["gpus"]) == (3, ["a", "b"], 1)
    assert "there were 2 on a, 1 on b" in str(told(found, "chat-0 on a")["its replicas"])


def test_the_port_between_gateways_is_theirs(written: Write) -> None:
    found = imported(written("a", {"chat": service("x/y", 8443)}), written("b", {"other": service("x/z", 8444)}))
    assert {n: s.get("port") for n, s in found.config["services"].items()} == {"chat": None, "other": 8444}
    assert "gateways of the nodes reach each other there" in str(told(found, "chat on a"))


def test_several_files_of_one_host(written: Write) -> None:
    """As several -f of docker compose: the later goes on top."""
    first = written("a", {"chat": service("x/y")})
    found = imported(first, written("a", {"chat": service("x/z")}), written("b", {"other": service("x/w")}))
    assert found.config["services"]["chat"]["model"] == "hf:x/z"


def test_an_address_of_ipv6() -> None:
    (host,) = parse_hosts(["a=root@[fd00::1]:~/compose.yaml"])
    assert (host.address, host.user, host.files) == ("fd00::1", "root", (Path.home() / "compose.yaml",))


@pytest.mark.parametrize(
    ("specs", "message", "hint"),
    [
        (["a=10.0.0.1:f", "a=10.0.0.2:g"], "--node a is 10.0.0.1 and 10.0.0.2", "a name of its own"),
        (["a=x@10.0.0.1:f", "a=10.0.0.1:g"], "x@10.0.0.1 and 10.0.0.1", "a name of its own"),
        (["a=10.0.0.1:f", "b=10.0.0.1:g"], "10.0.0.1 is the address of a already", "give each node"),
        (["a=127.0.0.1:f"], "127.0.0.1 is this machine itself", "the other nodes reach it"),
        (["a=127.0.0.1:f", "b=127.0.0.2:g"], "127.0.0.1 is this machine itself", "the other nodes reach it"),
        (["a=[::1]:f"], "::1 is this machine itself", "the other nodes reach it"),
        (["a=localhost:f"], "localhost is this machine itself", "the other nodes reach it"),
        (["A_1=10.0.0.1:f"], "'A_1' cannot be the name of a node", "use a-z, 0-9"),
        (["a=-oX@10.0.0.1:f"], "nodes.a.user", ""),
        (["a=0.0.0.0:f"], "no address that others could reach", ""),
        (["a=10.0.0.1"], "--node a=10.0.0.1: cannot be read", "NAME=[USER@]ADDRESS:FILE"),
        (["a=@10.0.0.1:f"], "cannot be read", "NAME=[USER@]ADDRESS:FILE"),
        (["10.0.0.1:f"], "cannot be read", "NAME=[USER@]ADDRESS:FILE"),
        (["a=fd00::1:f"], "cannot be read", "IPv6 in brackets"),
        ([""], "cannot be read", "NAME=[USER@]ADDRESS:FILE"),
    ],
)
def test_wrong_nodes(specs: list[str], message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as e:
        parse_hosts(specs)
    assert message in e.value.message
    assert hint in e.value.hint


def test_wrong_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    web = tmp_path / "web.yaml"
    web.write_text("services: {web: {image: nginx}}")
    conf = tmp_path / "workers.conf"
    conf.write_text("[program:x]\ncommand=vllm serve x/y\n")
    for files, said in (
        ([*TWO, str(web)], "web.yaml: which node is it of?"),
        ([*TWO, "--node", f"c=10.0.0.3:{web}"], "node c: "),
        ([*TWO, "--node", f"c=10.0.0.3:{conf}"], "nodes are for compose files"),
        ([*TWO, "--node", "c=10.0.0.3:/nowhere.yaml"], "cannot read /nowhere.yaml"),
    ):
        assert run(["import", *files]) == 1
        shown = capsys.readouterr().err
        assert shown.startswith("error: ")
        assert said in shown
        assert "hint: " in shown
    assert run(["import"]) == 2


def report_of(capsys: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The last line, about the plan."""
    monkeypatch.setenv("LLMHOST_HOME", str(home))
    assert run(["import", *TWO, "--json"]) == 0
    line: dict[str, str] = json.loads(capsys.readouterr().out)["report"][-1]
    return line


def facts_of(home: Path, gpus: Mapping[str, int]) -> None:
    """Nodes with so many GPUs of 48 GiB, and the models that the files name."""
    (home / "nodes/shared").mkdir(parents=True, exist_ok=True)
    for name, count in gpus.items():
        own = tuple(Gpu(i, "NVIDIA L40S", 48 * GIB, 47 * GIB, (8, 9), f"GPU-{name}{i}") for i in range(count))
        facts = NodeFacts(name, CPU_BOX.host, own, "cuda", CPU_BOX.llmhost, "0.32.0", f"10.0.0.{ord(name) - 96}")
        (home / f"nodes/{name}.json").write_text(json.dumps(node_to_json(facts, CPU_BOX)))
    models = {
        "/data/models/Qwen2.5-32B-Instruct-AWQ": samples.model("chat", weights_gib=18, context=32768),
        "/data/models/bge-m3": samples.model("embed", weights_gib=1),
        str(FIXTURES / "tei/models/bge-reranker-v2-m3"): samples.model("rerank", weights_gib=1),
    }
    known = {f"auto {path}": asdict(facts) for path, facts in models.items()}
    (home / "nodes/shared/models.json").write_text(json.dumps({"format": 1, "models": known}))


def test_planned_with_the_facts_of_the_nodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = report_of(capsys, tmp_path, monkeypatch)
    assert line["outcome"] == "by hand"
    assert "`llmhost node add a`, `llmhost node add b`" in line["detail"]
    facts_of(tmp_path, {"a": 3, "b": 2})
    line = report_of(capsys, tmp_path, monkeypatch)
    assert (line["source"], line["outcome"]) == ("the plan for these nodes", "became")
    assert line["detail"] == "everything fits: llm on a; embedding on a, b; reranker on b"
    facts_of(tmp_path, {"a": 1, "b": 2})
    line = report_of(capsys, tmp_path, monkeypatch)
    assert line["outcome"] == "by hand"
    assert "llm" in line["detail"]
    (tmp_path / "nodes/a.json").write_text("{}")
    assert "nodes.a" in report_of(capsys, tmp_path, monkeypatch)["detail"]


def test_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMHOST_HOME", str(tmp_path / "home"))
    target = tmp_path / "llmhost.yaml"
    assert run(["import", *TWO, "-o", str(target)]) == 0
    assert "embedding on b: ports 8081:80 -> port: 8081 on every node" in capsys.readouterr().err
    assert list(config.load(target).nodes) == ["a", "b"]
    assert "#   reranker on b: " in target.read_text()


def test_the_variables_of_a_host_count_more_than_those_of_this_machine(written: Write, tmp_path: Path) -> None:
    spec = written("a", {"chat": "    command: --model /m --max-model-len ${LENGTH} --seed ${SEED}\n"})
    (tmp_path / "a/.env").write_text("LENGTH=1024\n", encoding="utf-8")
    found = imported(spec, LENGTH="4096", SEED="7")
    assert found.config["services"]["chat"]["args"] == {"max_model_len": 1024, "seed": 7}
