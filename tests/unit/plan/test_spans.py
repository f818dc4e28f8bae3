"""Models that span nodes: how many, which, with which flags, ports and secrets."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from llmhost import config
from llmhost.errors import ConfigError, PlanError
from llmhost.facts import ModelFacts, NodeFacts, ShapeFacts
from llmhost.plan import Plan, stored
from llmhost.plan.build import make_plan
from llmhost.plan.placement import NOWHERE, Part, Placement, place
from llmhost.plan.running import Running
from llmhost.plan.spans import FIRST_PORT, SLOT, SLOTS, Spans, find_spans, first_ports
from llmhost.plan.types import NodePlan
from llmhost.render import render
from tests.samples import FLAGS, machine, model
from tests.unit.plan.test_placement import cpu_node, gpu_node, named, parsed

SHAPE = ShapeFacts(layers=80, heads=64, kv_heads=8, hidden=8192, intermediate=28672, vocabulary=152064)
SECRET = "the secret of all nodes, long enough"


def large(weights_gib: float = 400) -> ModelFacts:
    return replace(model(weights_gib=weights_gib), shape=SHAPE, context_length=8192)


def whole_of(
    services: str, nodes: Mapping[str, NodeFacts], facts: ModelFacts, before: Placement = NOWHERE
) -> tuple[config.Config, Spans, Placement, dict[str, ModelFacts]]:
    written = parsed(services, nodes)
    models = dict.fromkeys(written.services, facts)
    spans = find_spans(written.services, nodes, models)
    expanded = written.model_copy(update={"services": spans.expand(written.services)})
    models |= dict.fromkeys(expanded.services, facts)
    return expanded, spans, place(expanded.services, nodes, models, before, spans), models


def plans(
    services: str, nodes: Mapping[str, NodeFacts], facts: ModelFacts, flags: bool = True, network: str = "10.0.0."
) -> dict[str, Plan]:
    """What each node makes of it."""
    whole, spans, placement, models = whole_of(services, nodes, facts)
    known = tuple(NodePlan(n, f"{network}{i}", 8443, f"{network}{i}") for i, n in enumerate(nodes, 1))
    found = {}
    for name, node in nodes.items():
        part = Part(name, known, placement, spans)
        here = machine()
        names = FLAGS if flags else {k: v for k, v in FLAGS.items() if k != "nnodes"}
        engine = replace(here.engine, device=node.device, flags=names)
        on = replace(
            here, host=node.host, gpus=node.gpus, engine=engine, part=part, interface=f"eth-{name}", secret=SECRET
        )
        found[name] = make_plan(part.of(whole), on, models)
    return found


def flags_of(argv: tuple[str, ...]) -> dict[str, str]:
    return {a: b for a, b in itertools.pairwise(argv) if a.startswith("--")}


HOSTS = named(gpu_node("a", *[80] * 8), gpu_node("b", *[80] * 8), gpu_node("c", *[80] * 8))


def test_16_gpus_on_hosts_of_8() -> None:
    found = plans("{chat: {model: m, gpus: 16}}", HOSTS, large())
    (head,) = found["a"].service("chat").replicas  # type: ignore[union-attr]
    (part,) = found["b"].service("chat-rank1").replicas  # type: ignore[union-attr]
    assert [s.name for s in found["c"].services] == ["chat"]
    assert found["c"].services[0].replicas == ()
    assert (head.name, part.name) == ("chat-0", "chat-rank1-0")
    assert head.gpus == part.gpus == tuple(range(8))
    assert head.argv[1:3] == ("-m", "vllm.entrypoints.openai.api_server")
    assert part.argv[1:6] == ("-m", "vllm.entrypoints.cli.main", "serve", "/data/models/m", "--headless")
    assert "--uds" not in part.argv
    assert (part.socket, found["b"].service("chat-rank1").kind) == ("", "none")  # type: ignore[union-attr]
    for rank, program in enumerate((head, part)):
        flags = flags_of(program.argv)
        assert (flags["--tensor-parallel-size"], flags["--pipeline-parallel-size"]) == ("8", "2")
        assert (flags["--nnodes"], flags["--node-rank"]) == ("2", str(rank))
        assert program.group is not None
        assert flags["--master-addr"] == "10.0.0.1"
        assert flags["--master-port"] == str(program.group.master_port)
        assert program.env["VLLM_HOST_IP"] == f"10.0.0.{rank + 1}"
        assert program.env["GLOO_SOCKET_IFNAME"] == f"eth-{'ab'[rank]}"
        assert program.env["NCCL_SOCKET_IFNAME"] == f"=eth-{'ab'[rank]}"
        assert program.group.nodes == ("a", "b")
    assert replace(part.group, rank=0) == head.group  # type: ignore[type-var]
    # Half of the weights on each node, and an eighth of that on each GPU.
    assert head.gpu_memory_bytes < 80 * 2**30
    assert head.gpu_memory_bytes - head.kv_cache_bytes > 400 / 16 * 2**30


@pytest.mark.parametrize(
    ("services", "widths"),
    [
        ("{chat: {model: m, gpus: 16}}", {"chat": 2}),
        ("{chat: {model: m, gpus: 24}}", {"chat": 3}),
        ("{chat: {model: m, gpus: 8}}", {}),
        ("{chat: {model: m, gpus: 8, span: 2}}", {"chat": 2}),
        ("{chat: {model: m, args: {tensor_parallel_size: 16}}}", {"chat": 2}),
        ("{chat: {model: m, span: {nodes: 3, port: 25000}}}", {"chat": 3}),
        ("{chat: {model: m}}", {}),
    ],
)
def test_how_many_nodes(services: str, widths: dict[str, int]) -> None:
    written = parsed(services, HOSTS)
    assert find_spans(written.services, HOSTS, {"chat": large()}).widths == widths


@pytest.mark.parametrize(
    ("services", "words"),
    [
        (
            "{chat: {model: m, gpus: 17}}",
            "17 GPUs cannot be divided into equal parts over its nodes, which have 8, 8, 8",
        ),
        ("{chat: {model: m, gpus: 7, span: 2}}", "7 GPUs cannot be divided into 2 equal parts"),
        ("{chat: {model: m, span: 2, args: {tensor_parallel_size: 3}}}", "make 3 parts, which 2 nodes cannot"),
        ("{chat: {model: m, span: 2, args: {data_parallel_size: 2}}}", "one engine"),
        ("{chat: {model: m, gpus: 16, replicas: 2}}", "takes 2 nodes, and a part of it fits on c"),
        ("{help: {command: [x], replicas: 1}, chat: {model: m, gpus: 16, needs: help}}", "must be on one"),
    ],
)
def test_what_cannot_be(services: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        whole_of(services, HOSTS, large(1000))


@pytest.mark.parametrize(
    ("services", "words"),
    [
        ("{chat: {model: m, span: 4}}", "4 nodes for each replica, and it may run on 3"),
        ("{chat: {model: m, span: 2, nodes: [a]}}", "it may run on 1"),
        ("{chat: {model: m, span: 2}, chat-rank1: {model: m}}", "parts of chat are called so"),
        ("{chat: {model: m, executor: ray}, chat-ray: {model: m}}", "parts of chat are called so"),
        ("{chat: {command: [x], span: 2}}", "for models of vLLM"),
        ("{chat: {model: m, span: 1}}", "greater than or equal to 2"),
    ],
)
def test_what_cannot_be_written(services: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parsed(services, HOSTS)


def test_parts_stay_where_they_were_and_take_nodes_in_their_order() -> None:
    services = "{chat: {model: m, gpus: 16}}"
    before = Placement({"chat": {0: "b"}, "chat-rank1": {0: "c"}})
    assert whole_of(services, HOSTS, large(), before)[2] == before
    for odd in (
        {"chat": {0: "c"}, "chat-rank1": {0: "b"}},
        {"chat": {0: "a"}},
        {"chat": {0: "a"}, "chat-rank1": {0: "a"}},
    ):
        assert whole_of(services, HOSTS, large(), Placement(odd))[2].nodes == {"chat": {0: "a"}, "chat-rank1": {0: "b"}}


def test_all_parts_have_the_same_engine() -> None:
    nodes = named(
        replace(gpu_node("a", *[80] * 8), engine="0.31.0"),
        replace(gpu_node("b", *[80] * 8), engine="0.32.0"),
        replace(gpu_node("c", *[80] * 8), engine="0.32.0"),
    )
    assert whole_of("{chat: {model: m, gpus: 16}}", nodes, large())[2].nodes["chat"] == {0: "b"}
    nodes["a"] = replace(nodes["a"], engine="0.9.2")  # older, whatever the letters say
    with pytest.raises(PlanError, match=r"same version of vLLM: a has 0\.9\.2, b has 0\.32\.0") as e:
        whole_of("{chat: {model: m, gpus: 16, nodes: [a, b]}}", nodes, large())
    assert e.value.hint == (
        "write engine.vllm: 0.32.0 in llmhost.yaml (or one that all can run) and run `llmhost node sync`;"
        " `llmhost setup` on a; then `llmhost node sync --facts`"
    )
    nodes["c"] = replace(nodes["c"], engine="")  # gets what llmhost.yaml says
    with pytest.raises(PlanError, match=r"c has none") as e:
        whole_of("{chat: {model: m, gpus: 24}}", nodes, large())
    assert "`llmhost setup` on a;" in e.value.hint


def test_a_guard_knows_the_version_of_its_engine() -> None:
    found = plans("{chat: {model: m, gpus: 16}}", HOSTS, large())
    files = {f.path: f.text for f in render(found["a"])}
    assert json.loads(files["conf/guard/chat-0.json"])["group"]["vllm"] == machine().engine.vllm_version


def test_on_cpus() -> None:
    nodes = named(cpu_node("a"), cpu_node("b"))
    small = replace(model(weights_gib=8), shape=replace(SHAPE, heads=4, kv_heads=2))
    found = plans("{chat: {model: m, span: 2}}", nodes, small)
    part = found["b"].service("chat-rank1").replicas[0]  # type: ignore[union-attr]
    assert flags_of(part.argv)["--tensor-parallel-size"] == "2"
    assert "--pipeline-parallel-size" not in part.argv
    assert part.env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert part.env["PYTHONPATH"].endswith("/conf/vllm")
    assert part.memory_bytes - part.kv_cache_bytes == 6 * 2**30  # 2 GiB of vLLM itself, and half of the weights
    files = {f.path: f.text for f in render(found["b"])}
    assert "Version: 0.32.0+cpu\n" in files["conf/vllm/vllm-0.32.0+cpu.dist-info/METADATA"]
    assert not any(path.startswith("conf/vllm") for path in (f.path for f in render(found["a"])))
    odd = replace(small, shape=replace(SHAPE, heads=7, kv_heads=7))
    part = plans("{chat: {model: m, span: 2}}", nodes, odd)["b"].service("chat-rank1").replicas[0]  # type: ignore[union-attr]
    assert flags_of(part.argv)["--pipeline-parallel-size"] == "2"


def test_secrets_are_for_guards_only() -> None:
    found = plans("{chat: {model: m, gpus: 16}}", HOSTS, large())
    group = found["a"].service("chat").replicas[0].group  # type: ignore[union-attr]
    assert group is not None
    assert SECRET not in repr(found)
    assert group.secret not in repr(group)
    files = {f.path: f for f in render(found["a"])}
    holding = [path for path, file in files.items() if group.secret in file.text]
    assert holding == ["conf/guard/chat-0.json"]
    assert files["conf/guard/chat-0.json"].mode == 0o600
    again = stored.from_dict(json.loads(json.dumps(stored.to_dict(found["a"]))))
    assert again.service("chat").replicas[0].group == replace(group, secret="")  # type: ignore[union-attr]


def test_ray() -> None:
    found = plans("{chat: {model: m, gpus: 16, executor: ray}}", HOSTS, large())
    chat, cluster = found["a"].service("chat"), found["a"].service("chat-ray")
    assert chat is not None
    assert cluster is not None
    assert chat.needs == ("chat-ray",)
    program, head = chat.replicas[0], cluster.replicas[0]
    assert flags_of(program.argv)["--distributed-executor-backend"] == "ray"
    assert "--nnodes" not in program.argv
    assert program.env["RAY_AUTH_MODE"] == head.env["RAY_AUTH_MODE"] == "token"
    assert "NCCL_SOCKET_IFNAME" not in program.env  # vLLM would hand it on to the workers of other nodes
    assert head.env["NCCL_SOCKET_IFNAME"] == "=eth-a"
    assert flags_of(head.argv)["--num-gpus"] == "8"
    assert head.socket == program.env["RAY_ADDRESS"] == f"10.0.0.1:{flags_of(head.argv)['--port']}"
    worker = found["b"].service("chat-rank1").replicas[0]  # type: ignore[union-attr]
    assert worker.argv[1:6] == ("start", "--address", head.socket, "--block", "--node-ip-address")
    assert worker.env["RAY_AUTH_TOKEN_PATH"].endswith("/nodes/ray-token")
    assert worker.group is not None
    assert (worker.group.master_port, worker.group.cluster_port) == (0, worker.group.port + 2)


def test_no_ray_over_ipv6() -> None:
    services = "{chat: {model: m, gpus: 16, executor: %s}}"
    with pytest.raises(PlanError, match=r"services.chat.executor: .* IPv6 \(fd00::1\)"):
        plans(services % "ray", HOSTS, large(), network="fd00::")
    assert plans(services % "mp", HOSTS, large(), network="fd00::")["b"].service("chat-rank1")


def test_ray_on_one_machine() -> None:
    here = machine()
    node = gpu_node("x", 80, 80)
    on = replace(here, gpus=node.gpus, engine=replace(here.engine, device="cuda"), secret=SECRET)
    plan = make_plan(config.parse("services: {chat: {model: m, gpus: 2, executor: ray}}"), on, {"chat": large(40)})
    head, program = (plan.service(n).replicas[0] for n in ("chat-ray", "chat"))  # type: ignore[union-attr]
    assert head.socket.startswith("127.0.0.1:")
    assert flags_of(program.argv)["--tensor-parallel-size"] == "2"
    assert program.group is None
    with pytest.raises(PlanError, match="vLLM on the CPU takes no Ray"):
        make_plan(config.parse("services: {chat: {model: m, executor: ray}}"), here, {"chat": model()})


def test_an_old_vllm_and_a_surge() -> None:
    with pytest.raises(PlanError, match="cannot run a model on several nodes by itself"):
        plans("{chat: {model: m, gpus: 16}}", HOSTS, large(), flags=False)
    whole, spans, placement, models = whole_of("{chat: {model: m, gpus: 16}}", HOSTS, large())
    part = Part("a", tuple(NodePlan(n, f"10.0.0.{i}", 8443) for i, n in enumerate(HOSTS, 1)), placement, spans)
    here = machine()
    on = replace(here, gpus=HOSTS["a"].gpus, engine=replace(here.engine, device="cuda"), part=part, secret=SECRET)
    with pytest.raises(PlanError, match="cannot start beside itself"):
        make_plan(part.of(whole), on, models, Running(surge=frozenset({"chat"})))


def test_ports() -> None:
    services = {name: config.Service(model="/m") for name in ("a", "b", "c")}
    found = first_ports(dict.fromkeys(services, 40), services)
    assert len(set(found.values())) == 120
    assert all(FIRST_PORT <= port < FIRST_PORT + SLOTS * SLOT for port in found.values())
    # What comes later in the file does not move what came before.
    assert first_ports({"a": 40}, services).items() <= found.items()
    written = {"a": config.Service.model_validate({"model": "/m", "span": {"nodes": 2, "port": 25000}})}
    assert first_ports({"a": 2}, written) == {"a-0": 25000, "a-1": 25000 + SLOT}


def spanning(**ports: int | None) -> dict[str, config.Service]:
    return {
        name: config.Service.model_validate({"model": "/m", "span": {"nodes": 2, "port": port}})
        for name, port in ports.items()
    }


def test_written_ports_are_given_to_nobody_else() -> None:
    alone = first_ports({"a": 1}, spanning(a=None))["a-0"]
    for written in (alone, alone + 1, alone - 1):
        found = first_ports({"a": 1, "b": 1}, spanning(a=None, b=written))
        assert found["b-0"] == written
        assert abs(found["a-0"] - written) >= SLOT
    assert first_ports({"a": 1, "b": 1}, spanning(a=None, b=40000))["a-0"] == alone
    assert first_ports({"a": 2, "b": 1}, spanning(a=25000, b=25000 + 2 * SLOT))["b-0"] == 25000 + 2 * SLOT
    # With none left, groups share: better than no plan.
    assert len(first_ports({"a": SLOTS + 1}, spanning(a=None))) == SLOTS + 1


@pytest.mark.parametrize(
    ("replicas", "ports", "words", "hint"),
    [
        ({"a": 2}, {"a": 65471}, "a.span.port: 2 x 64 ports from 65471 on go beyond 65535", "write 65408 at most"),
        ({"a": 1, "b": 1}, {"a": 25000, "b": 25000}, "b.span.port: .* meet those of a, 25000 to 25063", "write 25064"),
        ({"a": 2, "b": 1}, {"a": 25000, "b": 25100}, "meet those of a, 25000 to 25127", "write 25128"),
        ({"a": 1, "b": 2}, {"a": 25100, "b": 25000}, "meet those of a", "follows from the name"),
    ],
)
def test_written_ports_that_cannot_be(replicas: dict[str, int], ports: dict[str, int], words: str, hint: str) -> None:
    with pytest.raises(PlanError, match=words) as e:
        first_ports(replicas, spanning(**ports))
    assert hint in e.value.hint


def test_the_last_ports_that_can_be_written() -> None:
    assert first_ports({"a": 1}, spanning(a=65471)) == {"a-0": 65471}
    assert first_ports({"a": 2}, spanning(a=65408)) == {"a-0": 65408, "a-1": 65472}
