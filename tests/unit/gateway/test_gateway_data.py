"""The gateway's configuration as data: nothing is started here."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from llmhost.errors import GatewayError
from llmhost.gateway import ENDPOINTS, gateway_argv, gateway_versions, render_gateway, render_static
from llmhost.gateway.answers import docs_page, model_list
from llmhost.gateway.clusters import merge_clusters, merge_members, take_out
from llmhost.gateway.elsewhere import member_name
from llmhost.gateway.endpoints import groups
from llmhost.gateway.envoy import paths_regex, version_of
from llmhost.gateway.openapi import EXAMPLES, openapi_document
from llmhost.gateway.peers import own_members, with_coming
from llmhost.gateway.routes import name_regex
from llmhost.paths import Home
from llmhost.plan import stored
from llmhost.plan.types import (
    ElsewherePlan,
    EndpointPlan,
    ForeignPlan,
    Limits,
    NodePlan,
    Plan,
    RequestPlan,
    ServicePlan,
)
from tests.unit.gateway.plans import make_plan, make_service

HOME = Path("/srv/llmhost")
CHAT = make_service(HOME, "chat", "chat", ("gpt-4", "qwen"), replicas=2)
EMBED = make_service(HOME, "embedding", "embed", ("gte",), port=1283)
RERANK = make_service(HOME, "rerank", "rerank", ("bge",))
PLAN = make_plan(HOME, CHAT, EMBED, RERANK)


def resources(plan: Plan, name: str) -> list[dict[str, Any]]:
    text = next(f.text for f in render_gateway(plan) if f.path == f"conf/gateway/{name}.json")
    found: list[dict[str, Any]] = json.loads(text)["resources"]
    return found


def routes(plan: Plan, name: str = "rds") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = resources(plan, name)[0]["virtual_hosts"][0]["routes"]
    return found


def test_files_of_a_plan() -> None:
    assert [f.path for f in render_gateway(PLAN)] == [
        "conf/gateway/envoy.yaml",
        "conf/gateway/eds-chat.json",
        "conf/gateway/eds-embedding.json",
        "conf/gateway/eds-rerank.json",
        "conf/gateway/cds.json",
        "conf/gateway/rds.json",
        "conf/gateway/rds-port-embedding.json",
        "conf/gateway/rds-keys.json",
        "conf/gateway/lds.json",
    ]
    assert {f.mode for f in render_gateway(PLAN)} == {0o600}


def test_equal_plans_give_equal_bytes() -> None:
    again = stored.from_dict(json.loads(json.dumps(stored.to_dict(PLAN))))
    assert render_gateway(again) == render_gateway(PLAN)


def test_version_follows_the_content_and_nothing_else() -> None:
    before = gateway_versions(render_gateway(PLAN))
    renamed = make_plan(HOME, replace(CHAT, served_as=("gpt-5",)), EMBED, RERANK)
    after = gateway_versions(render_gateway(renamed))
    assert {name for name in before if before[name] != after[name]} == {"rds"}


def test_bootstrap_and_main_listener_do_not_depend_on_services() -> None:
    """A listener that changes is drained, which ends long streams; services come and go without it."""
    alone = make_plan(HOME, CHAT)
    assert resources(alone, "lds")[0] == resources(PLAN, "lds")[0]
    assert resources(make_plan(HOME, CHAT, max_body_bytes=7), "lds")[-1] == resources(PLAN, "lds")[-1]
    assert render_gateway(alone)[0] == render_gateway(PLAN)[0]


@pytest.mark.parametrize("root", ["/srv/ä b", "/srv/x'y\"z", "/srv/{{ 7*7 }}", "/srv/a: b #c", "/srv/%s", "/srv/😀"])
def test_bootstrap_holds_any_path(root: str) -> None:
    text = render_gateway(make_plan(Path(root), CHAT))[0].text
    data = YAML(typ="safe", pure=True).load(text)
    assert data["admin"]["address"]["pipe"] == {"path": f"{root}/run/gateway-admin.sock", "mode": 0o600}
    assert data["dynamic_resources"]["cds_config"]["path_config_source"] == {
        "path": f"{root}/conf/gateway/cds.json",
        "watched_directory": {"path": f"{root}/conf/gateway"},
    }


def test_command_line() -> None:
    argv = gateway_argv(PLAN)
    assert argv[:3] == ("/opt/envoy", "--config-path", "/srv/llmhost/conf/gateway/envoy.yaml")
    assert argv[argv.index("--concurrency") + 1] == "2"
    assert "--disable-hot-restart" in argv
    assert argv[argv.index("--log-level") + 1] == "warn"
    assert "--log-format-escaped" in argv


def test_one_cluster_per_service_and_one_member_per_replica() -> None:
    found = {c["name"]: c for c in resources(PLAN, "cds")}
    assert list(found) == ["chat", "embedding", "rerank", "llmhost_metrics"]
    assert sockets(member_file(PLAN, "chat")) == {SOCKETS[0]: None, SOCKETS[1]: None}
    engines = [found[name] for name in ("chat", "embedding", "rerank")]
    assert all(c["lb_policy"] == "LEAST_REQUEST" for c in engines)
    assert all(c["common_lb_config"]["healthy_panic_threshold"] == {"value": 0} for c in engines)


SOCKETS = ("/srv/llmhost/run/chat-0.sock", "/srv/llmhost/run/chat-1.sock", "/srv/llmhost/run/chat-2.sock")


def member_file(plan: Plan, service: str) -> str:
    return next(f.text for f in render_gateway(plan) if f.path == f"conf/gateway/eds-{service}.json")


def sockets(text: str) -> dict[str, str | None]:
    """The members in a file, each with what keeps it out of balancing."""
    (endpoints,) = json.loads(text)["resources"][0]["endpoints"]
    return {m["endpoint"]["address"]["pipe"]["path"]: m.get("health_status") for m in endpoints["lb_endpoints"]}


def test_another_number_of_replicas_changes_the_members_only() -> None:
    """A cluster that changes is built anew and asks every engine again, the busy ones too."""
    three = make_plan(HOME, make_service(HOME, "chat", "chat", ("gpt-4", "qwen"), replicas=3), EMBED, RERANK)
    before, after = gateway_versions(render_gateway(PLAN)), gateway_versions(render_gateway(three))
    assert {name for name in before if before[name] != after[name]} == {"eds-chat"}


def test_members_are_taken_out_and_put_back_to_the_same_bytes() -> None:
    text = member_file(PLAN, "chat")
    out = take_out(text, {SOCKETS[1]})
    assert sockets(out) == {SOCKETS[0]: None, SOCKETS[1]: "DRAINING"}
    assert version_of(out) != version_of(text)
    assert sockets(take_out(out, {SOCKETS[0]})) == {SOCKETS[0]: "DRAINING", SOCKETS[1]: None}
    assert take_out(out, ()) == text


def test_members_of_two_files_together() -> None:
    three = make_plan(HOME, make_service(HOME, "chat", replicas=3))
    one = make_plan(HOME, replace(CHAT, replicas=CHAT.replicas[1:]))
    both = merge_members(member_file(one, "chat"), member_file(three, "chat"))
    assert sockets(both) == dict.fromkeys((SOCKETS[1], SOCKETS[0], SOCKETS[2]))


def test_members_keep_their_name_of_the_model_until_they_are_renewed() -> None:
    def members(model_name: str) -> str:
        return member_file(make_plan(HOME, replace(CHAT, foreign=ForeignPlan(model_name=model_name))), "chat")

    def names(text: str) -> list[str]:
        (group,) = json.loads(text)["resources"][0]["endpoints"]
        return [m["metadata"]["filter_metadata"]["llmhost"]["model"] for m in group["lb_endpoints"]]

    old, new = members("old"), members("new")
    assert names(merge_members(old, new)) == ['"old"', '"old"']
    assert names(merge_members(old, new, {SOCKETS[1]})) == ['"old"', '"new"']


def test_listeners_share_no_port_with_a_second_gateway() -> None:
    *found, inside = resources(PLAN, "lds")
    assert "address" not in inside
    addresses = {r["name"]: r["address"]["socket_address"] for r in found}
    assert addresses == {
        "gateway": {"address": "127.0.0.1", "port_value": 8000},
        "port-embedding": {"address": "127.0.0.1", "port_value": 1283},
    }
    assert all(r["enable_reuse_port"] is False for r in found)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("localhost", {"address": "127.0.0.1", "port_value": 8000}),
        ("0.0.0.0", {"address": "0.0.0.0", "port_value": 8000}),
        ("::", {"address": "::", "port_value": 8000, "ipv4_compat": True}),
        ("::1", {"address": "::1", "port_value": 8000}),
    ],
)
def test_host_becomes_an_address(host: str, address: dict[str, Any]) -> None:
    assert resources(make_plan(HOME, CHAT, host=host), "lds")[0]["address"]["socket_address"] == address


def test_host_that_is_no_address_is_refused() -> None:
    with pytest.raises(GatewayError, match=r"gateway\.host: 'my-server'") as caught:
        render_gateway(make_plan(HOME, CHAT, host="my-server"))
    assert "127.0.0.1" in caught.value.hint


def test_static_bootstrap_has_every_listener_with_its_routes() -> None:
    static = json.loads(render_static(PLAN))["static_resources"]
    managers = [r["filter_chains"][0]["filters"][0]["typed_config"] for r in static["listeners"]]
    assert [m["route_config"]["name"] for m in managers] == ["gateway", "port-embedding", "keys"]
    assert [c["name"] for c in static["clusters"]] == ["chat", "embedding", "rerank", "llmhost_metrics"]


def test_allow_list() -> None:
    paths = {(e.method, e.path) for e in ENDPOINTS}
    assert len(paths) == len(ENDPOINTS)
    named_in_the_design = (
        "/v1/chat/completions /v1/completions /v1/responses /v1/messages /v1/embeddings"
        " /v1/rerank /v2/rerank /rerank /v1/score /tokenize"
    )
    assert {("POST", path) for path in named_in_the_design.split()} <= paths
    forbidden = "metrics|lora|sleep|wake|server_info|profile|load|version|invocations|ping|abort|cache|rpc|render"
    assert not [e.path for e in ENDPOINTS if re.search(forbidden, e.path)]


FAR = EndpointPlan("http://10.0.0.2:8000", "10.0.0.2", key="sk-far")
FAR_TLS = EndpointPlan("https://10.0.0.3:8000", "10.0.0.3", key="sk-far", ca_file="/ca.pem")


@pytest.mark.parametrize(
    ("before", "after"), [((), (FAR,)), ((FAR,), ()), ((), (FAR_TLS,)), ((FAR_TLS,), ()), ((FAR_TLS,), (FAR,))]
)
def test_while_members_of_two_plans_are_there_no_other_host_gets_the_key_of_a_client(
    before: tuple[EndpointPlan, ...], after: tuple[EndpointPlan, ...]
) -> None:
    plans = (make_plan(HOME, replace(CHAT, endpoints=endpoints), EMBED) for endpoints in (before, after))
    old, new = (next(f.text for f in render_gateway(p) if f.path.endswith("/cds.json")) for p in plans)
    clusters = {c["name"]: c for c in json.loads(merge_clusters(old, new))["resources"]}
    (options,) = clusters["chat"]["typed_extension_protocol_options"].values()
    removed = options["http_filters"][0]["typed_config"]["mutations"]["request_mutations"]
    assert {"remove": "authorization"} in removed
    assert clusters["chat"]["health_checks"][0]["http_health_check"]["path"] == "/health?model=gpt-4"
    matches = {m["name"] for m in clusters["chat"].get("transport_socket_matches", ())}
    assert matches == {e.url for e in (*before, *after) if e.tls}
    assert clusters["embedding"] == json.loads(new)["resources"][1]


def test_every_endpoint_is_in_one_group() -> None:
    assert sorted(e.path for g in groups() for e in g.endpoints) == sorted(e.path for e in ENDPOINTS)


def test_paths_match_whole_and_literally() -> None:
    pattern = re.compile(paths_regex(ENDPOINTS))
    assert all(pattern.fullmatch(e.path.replace("{id}", "resp_1-a.b")) for e in ENDPOINTS)
    others = ("/v1/chat/completionsX", "/x/v1/rerank", "/v1/responses/a/b/cancel", "/v1/responses/", "/v1/rerank/", "")
    assert not [path for path in others if pattern.fullmatch(path)]


@given(st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1))
def test_name_is_found_however_it_is_encoded(name: str) -> None:
    everything = "".join(f"%{byte:02X}" for byte in name.encode())
    for path in (quote(name), quote(name, safe=""), everything, everything.lower()):
        assert re.fullmatch(name_regex(name), path), path


@given(st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1), st.sampled_from("ab.%*+/"))
def test_name_is_found_only_as_it_is(name: str, more: str) -> None:
    assert not re.fullmatch(name_regex(name), quote(name + more, safe=""))
    assert not re.fullmatch(name_regex(name), quote(more + name, safe=""))


def test_text_in_format_strings_is_escaped() -> None:
    plan = make_plan(HOME, make_service(HOME, "chat", "chat", ("100%REQ(x)%",)))
    formatted = [
        r["direct_response"]["body_format"]["text_format_source"]["inline_string"]
        for r in routes(plan)
        if "body_format" in r.get("direct_response", {})
    ]
    naming = [text for text in formatted if "REQ(x)" in text]
    assert naming
    assert all("100%%REQ(x)%%" in text for text in naming)


def test_no_direct_response_is_longer_than_allowed() -> None:
    many = make_service(HOME, "chat", "chat", tuple(f"name-{n}-" + "x" * 50 for n in range(500)))
    configuration = resources(make_plan(HOME, many), "rds")[0]
    bodies = [
        r["direct_response"]["body"]["inline_string"] for r in routes(make_plan(HOME, many)) if "direct_response" in r
    ]
    assert max(len(b.encode()) for b in bodies) <= configuration["max_direct_response_body_size_bytes"]


def test_model_list() -> None:
    long = make_service(HOME, "chat", "chat", ("a", "b"), argv=("python", "--max-model-len", "8192", "--seed", "1"))
    data = json.loads(model_list((long, EMBED)))
    card = {"object": "model", "created": 0, "owned_by": "llmhost"}
    chat = card | {"root": "demo:chat", "service": "chat", "kind": "chat", "max_model_len": 8192}
    assert data == {
        "object": "list",
        "data": [
            chat | {"id": "a"},
            chat | {"id": "b"},
            card | {"id": "gte", "root": "demo:embed", "service": "embedding", "kind": "embed"},
        ],
    }


@pytest.mark.parametrize("length", ["32k", "auto"])
def test_model_list_leaves_out_a_length_that_is_no_number(length: str) -> None:
    service = make_service(HOME, "chat", argv=("python", "--max-model-len", length))
    assert "max_model_len" not in json.loads(model_list((service,)))["data"][0]


def test_openapi_lists_what_is_served_with_a_body_that_names_a_model() -> None:
    document = json.loads(openapi_document((CHAT, EMBED), locked=False))
    assert "/v1/chat/completions" in document["paths"]
    assert "/classify" not in document["paths"]
    assert "security" not in document
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if "requestBody" in operation:
                content = operation["requestBody"]["content"]["application/json"]
                assert content["example"]["model"] in content["schema"]["properties"]["model"]["enum"], path


def test_every_path_with_a_body_has_an_example() -> None:
    assert set(EXAMPLES) == {e.path for e in ENDPOINTS if "{id}" not in e.path}


def test_openapi_of_a_locked_gateway_says_how_to_send_a_key() -> None:
    document = json.loads(openapi_document((CHAT,), locked=True))
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    assert document["paths"]["/health"]["get"]["security"] == []


def test_docs_page_has_an_example_for_each_kind_that_is_there() -> None:
    page = docs_page((CHAT, EMBED), locked=True)
    assert [kind for kind in ("chat", "embed", "rerank") if f"<h2>{kind}</h2>" in page] == ["chat", "embed"]
    assert "$LLMHOST_API_KEY" in page
    assert "LLMHOST_API_KEY" not in docs_page((CHAT,))


def test_docs_page_escapes_names() -> None:
    page = docs_page((make_service(HOME, "chat", "chat", ("<script>alert(1)</script>",)),))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert all(e.path in page for e in ENDPOINTS)


def test_members_with_different_health_paths_are_only_connected_to_while_both_are_there(tmp_path: Path) -> None:
    service = make_service(tmp_path, "a", "embed")
    foreign = replace(service, foreign=ForeignPlan(health=RequestPlan("/alive"), model_name="x"))
    old, new = (
        next(f.text for f in render_gateway(make_plan(tmp_path, s)) if f.path == "conf/gateway/cds.json")
        for s in (service, foreign)
    )
    for first, second in ((old, new), (new, old)):
        cluster = json.loads(merge_clusters(first, second))["resources"][0]
        assert cluster["health_checks"][0]["tcp_health_check"] == {}
        assert "http_health_check" not in cluster["health_checks"][0]
        # The script is there for those that want another name, which stands with each member.
        assert cluster["typed_extension_protocol_options"] == _first(new)["typed_extension_protocol_options"]
    assert json.loads(merge_clusters(old, old))["resources"][0] == _first(old)


def _first(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)["resources"][0]
    return found


def test_what_other_nodes_send_gets_the_host_and_the_words_that_it_gets_here() -> None:
    service = make_service(HOME, "chat", "chat")
    spread = replace(service, elsewhere=(ElsewherePlan("b", ("chat-1",)),), limits=Limits(concurrent_requests=1))
    nodes = (NodePlan("a", "10.0.0.1", 8443, listen="10.0.0.1"), NodePlan("b", "10.0.0.2", 8443))
    route = routes(replace(make_plan(HOME, spread), nodes=nodes, node="a"), "rds-nodes")[0]
    assert route["route"]["auto_host_rewrite"] is True
    (about,) = route["metadata"]["filter_metadata"].values()
    assert about == {"service": "chat", "limited": "The service 'chat'"}


def on_nodes(*services: ServicePlan) -> Plan:
    nodes = tuple(NodePlan(name, f"10.0.0.{number}", 8443) for number, name in enumerate("abc", 1))
    here = replace(nodes[0], listen="10.0.0.1")
    return replace(make_plan(HOME, *services), nodes=(here, *nodes[1:]), node="a")


def spread(service: ServicePlan, *nodes: str, here: bool = True) -> ServicePlan:
    elsewhere = tuple(ElsewherePlan(node, (f"{service.name}-9",)) for node in nodes)
    return replace(service, elsewhere=elsewhere, replicas=service.replicas if here else ())


def text_of(plan: Plan, name: str) -> str:
    return next(f.text for f in render_gateway(plan) if f.path.endswith(f"/{name}.json"))


def test_while_a_service_goes_from_one_node_to_another_both_are_members() -> None:
    old, new = (on_nodes(spread(CHAT, "b")), on_nodes(spread(CHAT, "c", here=False)))
    cluster = _named(merge_clusters(text_of(old, "cds"), text_of(new, "cds")), "chat@nodes")
    (members,) = cluster["load_assignment"]["endpoints"]
    assert [member_name(m) for m in members["lb_endpoints"]] == [
        str(Home(HOME).gateway_peer_socket), "10.0.0.2:8443", "10.0.0.3:8443",
    ]  # fmt: skip
    assert {m["name"] for m in cluster["transport_socket_matches"]} == {"node b", "node c"}


def test_nodes_ask_for_the_health_of_a_service_by_its_own_name() -> None:
    """What it serves may change, and two services may serve the same while one follows the other."""
    old, new = on_nodes(spread(CHAT, "b")), on_nodes(spread(replace(CHAT, served_as=("new", "gpt-4")), "b", "c"))
    for text in (text_of(old, "cds"), merge_clusters(text_of(old, "cds"), text_of(new, "cds"))):
        (check,) = _named(text, "chat@nodes")["health_checks"]
        assert check["http_health_check"]["path"] == "/health?service=chat"
    beside = on_nodes(replace(spread(CHAT, "b"), endpoints=(FAR,)))
    (check,) = _named(text_of(beside, "cds"), "chat@nodes")["health_checks"]
    assert check["http_health_check"]["path"] == "/health?model=gpt-4&service=chat"


def test_a_node_that_takes_a_service_over_is_a_member_beside_those_that_had_it() -> None:
    """Until its routes lead to its own engines only: the others may have left before that."""
    new = on_nodes(CHAT)
    for old, expected in (
        (on_nodes(spread(CHAT, "b", here=False)), [str(Home(HOME).gateway_peer_socket), "10.0.0.2:8443"]),
        (on_nodes(spread(CHAT, "b")), [str(Home(HOME).gateway_peer_socket), "10.0.0.2:8443"]),
    ):
        merged = merge_clusters(text_of(old, "cds"), text_of(new, "cds"), own_members(new))
        (members,) = _named(merged, "chat@nodes")["load_assignment"]["endpoints"]
        assert sorted(member_name(m) for m in members["lb_endpoints"]) == sorted(expected)
    gone = on_nodes(spread(CHAT, "c", here=False))
    assert own_members(gone) == own_members(make_plan(HOME, CHAT)) == {}


def test_other_nodes_are_told_of_engines_that_come_while_those_that_go_still_serve() -> None:
    other = make_service(HOME, "other", "chat")
    old = on_nodes(CHAT, spread(other, "b", here=False))
    new = on_nodes(spread(CHAT, "b", here=False), other)
    routes_there = _named(with_coming(text_of(old, "rds-nodes"), text_of(new, "rds-nodes")), "nodes")
    (host,) = routes_there["virtual_hosts"]
    assert [r.get("route", {}).get("cluster") for r in host["routes"]] == ["other", "chat", None]
    listeners = with_coming(text_of(old, "lds"), text_of(new, "lds"))
    for name in ("nodes", "here"):
        filters = _manager_of(_named(listeners, name))["http_filters"]
        asked = [f["typed_config"]["headers"][0]["string_match"]["suffix"] for f in filters[:-1]]
        assert asked == ["service=other", "service=chat"]
    assert _named(listeners, "gateway") == _named(text_of(old, "lds"), "gateway")
    assert with_coming(text_of(old, "lds"), text_of(old, "lds")) == text_of(old, "lds")


def _named(text: str, name: str) -> dict[str, Any]:
    return next(r for r in json.loads(text)["resources"] if r["name"] == name)


def _manager_of(listener: dict[str, Any]) -> dict[str, Any]:
    (chain,) = listener["filter_chains"]
    (network,) = chain["filters"]
    manager: dict[str, Any] = network["typed_config"]
    return manager
