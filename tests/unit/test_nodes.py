"""Nodes in llmhost.yaml, the files of a home that tell of them, and by what they know each other."""

from __future__ import annotations

import json
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from llmhost import config, node_identity, nodes
from llmhost.errors import ConfigError, FactsError, HomeError
from llmhost.facts import Gpu, NodeFacts
from llmhost.paths import Home
from llmhost.probe.certificate import check_certificate
from llmhost.probe.node_facts import node_to_json, own_name, read_node
from tests.machines import CPU_BOX

TWO = "nodes: {a: {address: 10.0.0.1}, b: {address: b.example, user: llm, home: /srv/llm, ssh_port: 2222}}\n"


def test_what_can_be_written() -> None:
    read = config.parse(TWO + "services: {chat: {model: m, nodes: b}, embed: {model: m, nodes: [a, b]}}")
    assert read.nodes["b"].home == "/srv/llm"
    assert (read.services["chat"].nodes, read.services["embed"].nodes) == (["b"], ["a", "b"])
    assert config.parse("nodes: {a: {address: '[2001:db8::1]'}}").nodes["a"].address == "2001:db8::1"
    # All on the loopback is a trial on one machine.
    config.parse("nodes: {a: {address: 127.0.0.1}, b: {address: 127.0.0.2}}")
    config.parse("nodes: {a: {address: localhost}}")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("nodes: {a: {adress: x}}", "unknown key nodes.a.adress", "did you mean address?"),
        ("nodes: {a: {}}", "nodes.a.address: is missing", "reach it"),
        ("nodes: {A_b: {address: x}}", "'A_b' cannot be the name of a node", "a-z"),
        ("nodes: {../x: {address: x}}", "cannot be the name of a node", "a-z"),
        ("nodes: {a: {address: 'x y'}}", "neither an IP address nor the name of a host", ""),
        ("nodes: {a: {address: 0.0.0.0}}", "no address that others could reach", ""),
        ("nodes: {a: {address: 10.0.0.1}, b: {address: 10.0.0.1}}", "10.0.0.1 is the address of a already", "each"),
        ("nodes: {a: {address: X.example}, b: {address: x.example}}", "is the address of a already", "each node"),
        ("nodes: {a: {address: 10.0.0.1}, b: {address: 127.0.0.1}}", "nodes.b.address: 127.0.0.1 is this machine", ""),
        ("nodes: {a: {address: 127.0.0.1}, b: {address: localhost}}", "nodes.b.address: localhost is", "other nodes"),
        ("nodes: {a: {address: x, home: srv}}", "'srv' must be an absolute path", ""),
        ("nodes: {a: {address: x, user: 'a b'}}", "nodes.a.user", ""),
        ("nodes: {a: {address: x, ssh_port: 0}}", "nodes.a.ssh_port", ""),
        ("nodes: {a: {address: x, gateway_port: 8000}}", "nodes.a.gateway_port: 8000 is gateway.port", "another"),
        ("gateway: {port: 65500}\nnodes: {a: {address: x}}", "gateway.port + 443 is no port", "gateway_port"),
        (TWO + "services: {chat: {model: m, nodes: c}}", "services.chat.nodes: there is no node c", "a, b"),
        ("services: {chat: {model: m, nodes: a}}", "there is no node a", "nothing yet"),
        (
            TWO + "services: {chat: {model: m, kind: chat, replicas: 0, nodes: a, endpoints: 'http://x:1'}}",
            "replicas: 0 runs on none", "leave nodes out",
        ),
    ],
)  # fmt: skip
def test_mistakes(text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as e:
        config.parse(text)
    assert message in e.value.message
    assert hint in e.value.hint


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "nodes").mkdir()
    return Home(tmp_path)


GPU = Gpu(0, "NVIDIA H200", 140 * 2**30, 139 * 2**30, (9, 0), "GPU-1")


def test_facts_of_a_node(home: Home) -> None:
    facts = NodeFacts("b", CPU_BOX.host, (GPU,), "cuda", CPU_BOX.llmhost, "0.32.0", "10.0.0.2")
    home.node_facts_file("b").write_text(json.dumps(node_to_json(facts, CPU_BOX)))
    assert read_node(home, "b") == facts


def test_facts_of_a_newer_llmhost_are_read_as_far_as_they_count(home: Home) -> None:
    facts = NodeFacts("b", CPU_BOX.host, llmhost=CPU_BOX.llmhost)
    data = node_to_json(facts, CPU_BOX)
    data["facts"]["weather"] = "fine"
    home.node_facts_file("b").write_text(json.dumps(data))
    assert read_node(home, "b") == facts


@pytest.mark.parametrize(
    ("change", "message"),
    [({"format": 9}, "format 9"), ({"name": "a"}, "those of a"), ({"device": "tpu"}, "tpu"), ({"facts": {}}, "host"),
     ({"gpus": [{}]}, "index"), ({"facts": None}, "no facts")],
)  # fmt: skip
def test_wrong_facts(home: Home, change: dict[str, object], message: str) -> None:
    data = node_to_json(NodeFacts("b", CPU_BOX.host), CPU_BOX)
    home.node_facts_file("b").write_text(json.dumps({**data, **change}))
    with pytest.raises(FactsError, match=message) as e:
        read_node(home, "b")
    assert "llmhost node" in e.value.hint


def test_missing_facts(home: Home) -> None:
    with pytest.raises(FactsError, match=r"nodes.b: its facts are missing") as e:
        read_node(home, "b")
    assert "llmhost node add" in e.value.hint


def test_which_node_this_is(home: Home) -> None:
    with pytest.raises(HomeError, match="does not say which of them it is"):
        own_name(home, ["a", "b"])
    home.node_file.write_text("b\n")
    assert own_name(home, ["a", "b"]) == "b"
    with pytest.raises(HomeError, match=r"this is node 'b', and llmhost.yaml has: a"):
        own_name(home, ["a"])


def test_a_home_without_nodes_is_read_no_further(home: Home) -> None:
    assert nodes.read_whole(home, config.parse("services: {chat: {model: /nowhere}}")) is None


def test_what_the_nodes_share_is_checked(home: Home) -> None:
    home.nodes_shared.mkdir()
    home.node_models_file.write_text('{"format": 1, "models": {"auto m": {"path": 3}}}')
    with pytest.raises(FactsError, match=r"models.json is not what llmhost wrote"):
        nodes.read_node_models(home, config.parse("services: {chat: {model: m}}"))


def test_identity(home: Home) -> None:
    for name in ("a", "b"):
        assert node_identity.missing(home, name)
        node_identity.ensure(home, name)
        assert node_identity.missing(home, name) == ()
        node_identity.require(home, name)
        check_certificate(
            str(node_identity.certificate_file(home, name)), str(node_identity.key_file(home, name)),
            str(node_identity.ca_file(home)),
        )  # fmt: skip
    secret = [*home.node_tls.glob("*.key"), home.node_key]
    assert len(secret) == 4
    assert {file.stat().st_mode & 0o777 for file in secret} == {0o600}
    assert home.node_tls.stat().st_mode & 0o777 == 0o700
    assert len(node_identity.read_secret(home)) >= 32
    before = {file: file.read_bytes() for file in secret}
    node_identity.ensure(home, "b")
    assert {file: file.read_bytes() for file in secret} == before
    mark = node_identity.mark(home, "b")
    node_identity.renew(home, "b")
    assert node_identity.mark(home, "b") != mark
    node_identity.forget(home, "b")
    with pytest.raises(HomeError, match=r"node b has no nodes/tls/b.pem"):
        node_identity.require(home, "b")


def test_certificates_are_those_of_one_authority(home: Home) -> None:
    node_identity.ensure(home, "a")
    context = ssl.create_default_context(cafile=str(node_identity.ca_file(home)))
    assert len(context.get_ca_certs()) == 1
    (found,) = context.get_ca_certs()
    assert found["subject"] == ((("commonName", "llmhost nodes"),),)


def test_certificates_are_made_where_the_authority_is(home: Home) -> None:
    node_identity.ensure(home, "a")
    node_identity.ca_key_file(home).unlink()
    with pytest.raises(HomeError, match="made elsewhere"):
        node_identity.ensure(home, "b")


def test_a_secret_that_others_can_read(home: Home) -> None:
    node_identity.ensure(home, "a")
    home.node_key.chmod(0o644)
    with pytest.raises(HomeError, match="others can read the secret"):
        node_identity.read_secret(home)
    home.node_key.chmod(0o600)
    home.node_key.write_text("short")
    with pytest.raises(HomeError, match="no secret of 32 characters"):
        node_identity.read_secret(home)


def test_a_name_that_nobody_knows_any_more_is_where_it_was(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    read = config.parse("nodes: {a: {address: a.invalid}}")
    facts = NodeFacts("a", CPU_BOX.host, address="10.0.0.7")
    node_identity.ensure(home, "a")
    (plan,) = nodes.node_plans(home, read, {"a": facts}, "a")
    assert (plan.address, plan.port, plan.listen) == ("10.0.0.7", 8443, "0.0.0.0")
    with pytest.raises(ConfigError, match=r"nodes.a.address: nobody knows the host a.invalid"):
        nodes.node_plans(home, read, {"a": replace(facts, address="")}, "a")


def test_a_name_that_is_loopback_to_its_own_node(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"a.example": "127.0.1.1", "b.example": "10.0.0.8"}  # as Debian's /etc/hosts has it on a
    monkeypatch.setattr("llmhost.nodes.address_of", known.__getitem__)
    read = config.parse("nodes: {a: {address: a.example}, b: {address: b.example}}")
    facts = {name: NodeFacts(name, CPU_BOX.host, address="10.0.0.7") for name in ("a", "b")}
    node_identity.ensure(home, "a")
    assert [p.address for p in nodes.node_plans(home, read, facts, "a")] == ["10.0.0.7", "10.0.0.8"]
    for wrong in ("", "127.0.1.1", "a.example"):
        with pytest.raises(ConfigError, match=r"nodes.a.address: a.example is 127.0.1.1 here") as e:
            nodes.node_plans(home, read, {**facts, "a": replace(facts["a"], address=wrong)}, "a")
        assert e.value.hint == "write its IP address"
    known["b.example"] = "127.0.0.2"  # homes of one machine
    assert [p.address for p in nodes.node_plans(home, read, facts, "a")] == ["127.0.1.1", "127.0.0.2"]


def test_the_authority_moves_with_its_own_key_only(home: Home) -> None:
    node_identity.ensure(home, "a")
    text = node_identity.ca_key_file(home).read_text(encoding="ascii")
    node_identity.ca_key_file(home).unlink()
    for wrong in (node_identity.key_file(home, "a").read_text(encoding="ascii"), "Welcome!\n"):
        with pytest.raises(HomeError, match="the key that signs for all nodes is not that of"):
            node_identity.adopt_authority(home, wrong)
    assert not node_identity.ca_key_file(home).exists()
    node_identity.adopt_authority(home, "Welcome!\n" + text)
    assert node_identity.ca_key_file(home).stat().st_mode & 0o777 == 0o600
    node_identity.ensure(home, "b")


def test_an_authority_that_was_half_made_is_made_again(home: Home) -> None:
    node_identity.ensure(home, "a")
    for file in (node_identity.ca_file(home), *node_identity.files_of(home, "a")[1:3]):
        file.unlink()  # as killed right after ca.key was written
    before = node_identity.ca_key_file(home).read_bytes()
    node_identity.ensure(home, "a")
    assert node_identity.ca_key_file(home).read_bytes() != before
    check_certificate(*(str(file) for file in (*node_identity.files_of(home, "a")[1:3], node_identity.ca_file(home))))
