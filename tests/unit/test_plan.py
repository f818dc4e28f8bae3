"""The plan: every flag, variable and share is an equality test on data."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost import config
from llmhost.errors import GatewayError, HomeError, PlanError
from llmhost.facts import HostFacts, ModelFacts
from llmhost.keys import ApiKey
from llmhost.plan import Plan, stored
from llmhost.plan.build import make_plan
from llmhost.plan.cpu import SMALLEST_KV_CACHE, context_length, share_cpu
from llmhost.plan.demand import ENGINE_BASE_BYTES
from llmhost.plan.types import Limits
from tests.samples import GIB, machine, model

THREE = """
services:
  chat: {model: /m, args: {max_model_len: 4096, enforce_eager: true}, env: {HF_TOKEN: secret}}
  embedding: {model: /e, served_as: [bge, 向量]}
  rerank: {model: /r}
"""
MODELS = {"chat": model(), "embedding": model("embed"), "rerank": model("rerank")}


def three(**changes: int) -> Plan:
    return make_plan(config.parse(THREE), machine(**changes), MODELS)


def test_the_command_of_a_chat_service() -> None:
    (program,) = three().services[0].replicas
    kv = str(8 * 4096 * 65536)
    assert program.argv == (
        "/srv/llmhost/engines/default/bin/python", "-m", "vllm.entrypoints.openai.api_server",
        "--model", "/data/models/m", "--served-model-name", "chat", "--uds", "/srv/llmhost/run/chat-0.sock",
        "--kv-cache-memory-bytes", kv, "--shutdown-timeout", "30", "--disable-uvicorn-access-log",
        "--disable-access-log-for-endpoints", "/health,/metrics",
        "--max-model-len", "4096", "--enforce-eager",
    )  # fmt: skip


def test_pooling_models_are_told_so_and_names_are_handed_on() -> None:
    embedding = three().services[1]
    argv = embedding.replicas[0].argv
    assert argv[argv.index("--served-model-name") + 1 :][:2] == ("bge", "向量")
    assert argv[argv.index("--runner") + 1] == "pooling"
    assert embedding.kind_reason == "for the test"


def test_what_the_user_writes_is_not_added_a_second_time() -> None:
    text = "services: {e: {model: /m, kind: embed, args: {runner: auto, kv-cache-memory-bytes: 1000}}}"
    (program,) = make_plan(config.parse(text), machine(), {"e": model()}).programs
    assert program.argv.count("--runner") == 1
    assert program.argv[-4:] == ("--runner", "auto", "--kv-cache-memory-bytes", "1000")


def test_flags_that_this_vllm_does_not_have_are_not_added() -> None:
    old = machine()
    flags = {k: v for k, v in old.engine.flags.items() if k != "shutdown_timeout"}
    older = replace(old, engine=replace(old.engine, flags=flags))
    (program,) = make_plan(config.parse("services: {c: {model: /m}}"), older, {"c": model()}).programs
    assert "--shutdown-timeout" not in program.argv


def test_the_environment_of_an_engine() -> None:
    env = three().services[0].replicas[0].env
    assert env["HF_TOKEN"] == "secret"
    assert env["LLMHOST_PROGRAM"] == "/srv/llmhost:chat-0"
    assert env["VLLM_CPU_OMP_THREADS_BIND"] == "0,1,2"
    assert env["VLLM_CACHE_ROOT"] == "/srv/llmhost/cache/engines/0.32.0-cpu/vllm"


def test_an_unknown_parser_is_refused_with_those_that_there_are() -> None:
    text = "services: {chat: {model: /m, args: {tool-call-parser: herms}}}"
    with pytest.raises(PlanError, match=r"services.chat.args.tool_call_parser: vLLM 0.32.0 has no parser 'herms'") as e:
        make_plan(config.parse(text), machine(), {"chat": model()})
    assert "hermes" in e.value.hint


def test_a_model_too_large_for_its_share_says_how_much_is_missing() -> None:
    with pytest.raises(PlanError, match=r"services.chat: 5\d\.\d GiB of memory are missing"):
        make_plan(config.parse(THREE), machine(memory_gib=16), {**MODELS, "chat": model(weights_gib=60)})


def test_a_long_name_below_a_long_home_is_refused() -> None:
    text = f"services: {{{'c' * 40}: {{model: /m}}}}"
    with pytest.raises(HomeError, match="bytes too long"):
        make_plan(config.parse(text), machine(root="/" + "h" * 70), {"c" * 40: model()})


@pytest.mark.parametrize(
    ("written", "tokens"),
    [(8192, 8192), ("8k", 8000), ("8K", 8192), ("1.5k", 1500), ("auto", 4096), (-1, 4096), (None, 4096)],
)
def test_the_context_is_read_as_vllm_reads_it(written: object, tokens: int) -> None:
    service = config.parse("services: {c: {model: /m}}").services["c"]
    written_so = service.model_copy(update={"args": {"--max-model-len": written}})
    assert context_length(written_so, model()) == tokens


def test_a_plan_survives_json() -> None:
    plan = three()
    assert stored.from_dict(json.loads(json.dumps(stored.to_dict(plan)))) == plan


def test_the_url_of_the_gateway_is_one_that_a_client_can_use() -> None:
    plan = three()
    hosts = {"0.0.0.0": "http://127.0.0.1:8000", "::": "http://[::1]:8000", "10.0.0.5": "http://10.0.0.5:8000"}
    assert {host: replace(plan.gateway, host=host).url for host in hosts} == hosts


@given(
    cores=st.integers(1, 64),
    memory=st.integers(4, 512),
    replicas=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    weights=st.floats(0.01, 100),
)
def test_nothing_is_given_out_twice(cores: int, memory: int, replicas: list[int], weights: float) -> None:
    text = json.dumps({"services": {f"s{i}": {"model": "/m", "replicas": n} for i, n in enumerate(replicas)}})
    services = config.parse(text).services
    models: dict[str, ModelFacts] = {name: model(weights_gib=weights) for name in services}
    host = HostFacts(tuple(range(cores)), memory * GIB, 0)
    try:
        shares = [share for each in share_cpu(services, host, models).values() for share in each.values()]
    except PlanError:
        smallest = ENGINE_BASE_BYTES + weights * GIB + SMALLEST_KV_CACHE
        assert sum(replicas) * smallest > 0.89 * memory * GIB
        return
    assert sum(share.memory_bytes for share in shares) <= memory * GIB
    bound = [core for share in shares for core in share.cores]
    assert len(bound) == len(set(bound))
    assert not bound or len(bound) == cores
    assert all(share.kv_cache_bytes >= model().kv_bytes_per_token * model().context_length for share in shares)


# --- who may use the gateway ----------------------------------------------------------------------------------------

KEY = ApiKey("a", 1, "digest", 0)


def gateway_plan(text: str, *keys: ApiKey) -> Plan:
    return make_plan(config.parse(f"gateway: {text}"), replace(machine(), keys=keys), {})


@pytest.mark.parametrize("host", ["0.0.0.0", "'::'", "10.0.0.1", "'2001:db8::1'"])
def test_an_address_of_the_network_needs_keys_or_insistence(host: str) -> None:
    with pytest.raises(GatewayError, match="there are no API keys") as caught:
        gateway_plan(f"{{host: {host}}}")
    assert "llmhost keys add" in caught.value.hint
    assert not gateway_plan(f"{{host: {host}, insecure: true}}").gateway.locked
    assert gateway_plan(f"{{host: {host}}}", KEY).gateway.locked
    assert gateway_plan(f"{{host: {host}, insecure: true}}", KEY).gateway.locked


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "'::1'", "localhost"])
def test_an_address_of_this_machine_needs_none(host: str) -> None:
    assert not gateway_plan(f"{{host: {host}}}").gateway.locked
    assert gateway_plan(f"{{host: {host}}}", KEY).gateway.locked


def test_a_revoked_key_locks_and_does_not_open() -> None:
    gateway = gateway_plan("{}", replace(KEY, revoked=1)).gateway
    assert (gateway.locked, gateway.keys) == (True, ())


def test_a_key_has_the_limit_of_the_gateway_or_its_own() -> None:
    keys = (KEY, ApiKey("b", 1, "digest", 0, requests_per_minute=5), ApiKey("c", 1, "digest", 0, max_body_mib=0.5))
    text = "{limits: {requests_per_minute: 60, concurrent_requests: 3, max_body_mib: 2}}"
    assert [k.limits for k in gateway_plan(text, *keys).gateway.keys] == [
        Limits(60, 3, 2 * 2**20), Limits(5, 3, 2 * 2**20), Limits(60, 3, 2**19),
    ]  # fmt: skip


def test_certificates_are_found_from_the_home() -> None:
    tls = gateway_plan("{tls: {certificate: tls/c.pem, key: /etc/k.pem}}").gateway.tls
    assert tls is not None
    assert (tls.certificate, tls.key, tls.client_ca) == ("/srv/llmhost/tls/c.pem", "/etc/k.pem", None)
    assert gateway_plan("{tls: {certificate: /c, key: /k}}").gateway.url == "https://127.0.0.1:8000"


def test_one_default_for_a_kind() -> None:
    text = "services: {a: {model: /m, default: true}, b: {model: /m, default: true}}"
    with pytest.raises(PlanError, match=r"services\.b\.default: a is the default of kind chat already"):
        make_plan(config.parse(text), machine(), {"a": model(), "b": model()})
    both = make_plan(config.parse(text), machine(), {"a": model(), "b": model("embed")})
    assert [s.default for s in both.services] == [True, True]
