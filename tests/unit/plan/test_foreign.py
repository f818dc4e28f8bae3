"""Plans of services with a command of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmhost import config
from llmhost.errors import GatewayError, PlanError
from llmhost.facts import ForeignFacts, Gpu, PortFacts
from llmhost.gateway import render_gateway
from llmhost.plan import Plan, stored
from llmhost.plan.build import make_plan
from llmhost.plan.machine import Machine
from llmhost.plan.running import NOTHING, Running
from tests.samples import GIB, machine, model

FREE = tuple(range(20_000, 20_010))
FACTS = {name: ForeignFacts(f"/bin/{name}", model_dir="/data/m") for name in ("a", "b", "c")}


def planned(services: str, on: Machine | None = None, running: Running = NOTHING, **ports: dict[str, int]) -> Plan:
    held = {program.replace("_", "-"): values for program, values in ports.items()}
    on = replace(on or machine(), foreign=FACTS, ports=PortFacts(held, FREE))
    found = config.parse(services)
    models = {name: model() for name, service in found.services.items() if service.model}
    return make_plan(found, on, models, running)


def gpu_machine(*gib: int) -> Machine:
    cpu = machine()
    gpus = tuple(Gpu(i, "", size * GIB, size * GIB) for i, size in enumerate(gib))
    return replace(cpu, engine=replace(cpu.engine, device="cuda"), gpus=gpus)


def test_placeholders_are_filled_in() -> None:
    plan = planned("""
        services:
          a: {command: "x {port:web} {port} {port:web} {gpus}| {home}/y {model_dir} {{z}}", model_dir: /data/m}
          b: {command: "x {a.port:web}", env: {TO: "{a.port}"}}
          c: {command: "x {uds} {port}", kind: chat}
    """)
    a, b, c = plan.programs
    assert a.argv == ("/bin/a", "20001", "20000", "20001", "|", "/srv/llmhost/y", "/data/m", "{z}")
    assert a.ports == {"port": 20000, "port:web": 20001}
    assert a.socket == "127.0.0.1:20000"
    assert b.argv == ("/bin/b", "20001")
    assert b.env["TO"] == "20000"
    assert b.socket == ""
    assert c.socket == "/srv/llmhost/run/c-0.sock" == c.argv[1]  # where a socket is possible it is asked there
    assert stored.from_dict(stored.to_dict(plan)) == plan


def test_ports_stay_and_are_nobody_elses() -> None:
    services = "{gateway: {port: 20001}, services: {a: {command: 'x {port}', replicas: 3}}}"
    plan = planned(services, a_1={"port": 20002})
    assert [p.ports["port"] for p in plan.programs] == [20000, 20002, 20003]


def test_no_port_is_an_error() -> None:
    with pytest.raises(PlanError, match="no free port"):
        planned("services: {a: {command: 'x {port}', replicas: 11}}")


def test_memory_and_cores_are_shared_out_with_vllm() -> None:
    plan = planned("""
        services:
          v: {model: /m}
          a: {command: "x {port}", kind: embed, cores: 3, memory: 3GiB}
          b: {command: "x {port}"}
          c: {command: "x {port}", kind: chat}
    """)
    v, a, b, c = plan.programs
    assert (v.cores, a.cores, b.cores, c.cores) == ((0, 1, 2), (3, 4, 5), (), (6, 7))
    assert (a.memory_bytes, b.memory_bytes, c.memory_bytes) == (3 * GIB, GIB // 2, 2 * GIB)
    assert a.env["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in b.env
    with pytest.raises(PlanError, match=r"services.a: 5\.\d GiB of memory are missing: it takes 60\.0 GiB") as caught:
        planned("services: {v: {model: /m}, a: {command: 'x {port}', kind: embed, memory: 60GiB}}")
    assert "memory:" in caught.value.hint


def test_what_runs_keeps_its_cores() -> None:
    services = "services: {a: {command: 'x {port}', kind: chat}, b: {command: 'x {port}'}}"
    first = planned(services)
    more = f"{services[:-1]}, c: {{command: 'x {{port}}', kind: chat}}}}"
    second = planned(more, running=Running(first.programs), a_0={"port": 20000}, b_0={"port": 20001})
    assert second.programs[:2] == first.programs
    assert second.programs[2].cores == ()  # a has them all
    assert second.programs[2].ports == {"port": 20002}


def test_what_was_not_bound_is_bound_when_it_asks_for_cores() -> None:
    line = "services: {{a: {{command: 'x {{port}}', kind: chat, cores: {}}}}}"
    first = planned(line.format(0))
    assert first.programs[0].cores == ()
    second = planned(line.format(4), running=Running(first.programs), a_0={"port": 20000})
    assert second.programs[0].cores == (0, 1, 2, 3)
    assert planned(line.format(4), running=Running(second.programs), a_0={"port": 20000}) == second
    assert planned(line.format(0), running=Running(second.programs), a_0={"port": 20000}) == first


def test_gpus_are_shared_out_with_vllm() -> None:
    plan = planned(
        """
        services:
          a: {command: "x {port} {gpus}", kind: embed, gpu_memory: 10GiB, memory: 5GiB}
          b: {command: "x {port} {gpus}", kind: chat, gpus: 2}
          c: {command: "x {port} -{gpus}-"}
        """,
        gpu_machine(24, 24, 24),
    )
    a, b, c = plan.programs
    assert len(a.gpus) == 1
    assert a.gpu_memory_bytes == 10 * GIB
    assert a.memory_bytes == 5 * GIB
    assert len(b.gpus) == 2
    assert not set(a.gpus) & set(b.gpus)
    assert 23 * GIB < b.gpu_memory_bytes <= 24 * GIB * 0.96
    assert b.env["CUDA_VISIBLE_DEVICES"] == b.argv[-1] == ",".join(map(str, b.gpus))
    assert (c.gpus, c.env["CUDA_VISIBLE_DEVICES"], c.argv[-1]) == ((), "", "--")


def test_one_that_does_not_fit_beside_vllm_is_named() -> None:
    services = "services: {v: {model: /m}, a: {command: 'x {port}', kind: embed, gpu_memory: 23GiB}}"
    with pytest.raises(PlanError, match=r"services\.\w: .* GiB of GPU memory are missing") as caught:
        planned(services, gpu_machine(24))
    assert "use 2 GPUs of 24 GiB" in caught.value.hint
    kept = planned(services, gpu_machine(24, 24))
    again = planned(services, gpu_machine(24, 24), Running(kept.programs), a_0={"port": 20000})
    assert again == kept


def test_all_of_a_gpu_is_what_is_free_of_it() -> None:
    """Total and free memory of an idle H200 as NVML gives them, then with the engine and a driver's share beside it."""
    idle = Gpu(0, "", 143_771 * 2**20, 143_156 * 2**20)
    later = replace(idle, free=idle.free - 9 * 2**20)
    on = gpu_machine(24)
    plan = planned(services := "services: {a: {command: 'x {port}', kind: chat, gpus: 1}}", replace(on, gpus=(idle,)))
    (a,) = plan.programs
    assert 0 <= idle.free - idle.total * 0.04 - a.gpu_memory_bytes < 2 * 2**20
    assert a.kv_cache_bytes == 0
    again = planned(services, replace(on, gpus=(later,)), Running(plan.programs), a_0={"port": 20000})
    assert again == plan
    with pytest.raises(PlanError, match="GPU memory are missing"):  # another has most of it
        planned(services, replace(on, gpus=(replace(idle, free=idle.total // 2),)))


def test_gpus_are_refused_on_the_cpu() -> None:
    with pytest.raises(PlanError, match=r"services.a.gpus: 1, but this engine computes on the CPU"):
        planned("services: {a: {command: 'x {port}', kind: chat, gpus: 1}}")
    planned("services: {a: {command: 'x {port}', kind: chat, gpus: 0, gpu_memory: 8GiB}}")


def test_a_service_is_called_by_what_tells_most() -> None:
    plan = planned("""
        services:
          a: {command: "python -m fastchat.serve.cli --api-key hush"}
          b: {command: "/opt/x/bin/tei --port {port}"}
          c: {command: "x {model_dir}", model_dir: "hf:BAAI/bge"}
    """)
    assert [s.model for s in plan.services] == ["fastchat.serve.cli", "tei", "hf:BAAI/bge"]


def test_helpers_are_unknown_to_the_gateway() -> None:
    plan = planned("services: {a: {command: 'x {port}'}, b: {command: 'x {uds}', kind: rerank, model_name: m}}")
    files = {f.path: f.text for f in render_gateway(plan)}
    assert "conf/gateway/eds-a.json" not in files
    assert '"a"' not in files["conf/gateway/cds.json"]
    assert "127.0.0.1:20000" not in "".join(files.values())


def test_paths_are_checked_by_kind() -> None:
    plan = planned("services: {a: {command: 'x {port}', kind: rerank, paths: {/v1/embeddings: /x}}}")
    with pytest.raises(GatewayError, match=r"services.a.paths: /v1/embeddings is not sent to a service of kind rerank"):
        render_gateway(plan)
