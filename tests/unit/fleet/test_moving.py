"""What `llmhost move` decides before anything changes, and its edit of llmhost.yaml."""

from __future__ import annotations

import pytest
from ruamel.yaml import YAML

from llmhost import config
from llmhost.errors import ConfigError, LlmhostError
from llmhost.fleet.edit import with_places
from llmhost.fleet.moving import decide, turns_of
from llmhost.plan.placement import Placement

CONFIG = config.parse("""
nodes: {a: {address: 10.0.0.1}, b: {address: 10.0.0.2}, c: {address: 10.0.0.3}}
services:
  chat: {model: m, nodes: a}
  wide: {model: m, replicas: 3}
  far: {model: m, kind: chat, replicas: 0, endpoints: 'http://x:1'}
""")
PLACED = Placement({"chat": {0: "a"}, "wide": {0: "a", 1: "b", 2: "a"}})


def test_a_service_on_one_node_goes_as_a_whole() -> None:
    move = decide(CONFIG, PLACED, "chat", "b")
    assert (move.source, move.target, move.replicas, move.nodes) == ("a", "b", ("chat-0",), {"chat": ("b",)})
    assert move.wished == Placement({**PLACED.nodes, "chat": {0: "b"}})


def test_a_share_goes_and_the_others_stay() -> None:
    move = decide(CONFIG, PLACED, "wide", "c", "a")
    assert (move.replicas, move.nodes) == (("wide-0", "wide-2"), {"wide": ("b", "c")})
    assert move.wished.nodes["wide"] == {0: "c", 1: "b", 2: "c"}
    assert decide(CONFIG, PLACED, "wide", "a", "b").nodes == {"wide": ("a",)}


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("chta", "b"), "there is no service chta", "chat, wide"),
        (("chat", "x"), "there is no node x", "a, b, c"),
        (("chat", "b", "x"), "there is no node x", "a, b, c"),
        (("chat", "a"), "chat is only on a already", "llmhost plan"),
        (("chat", "b", "c"), "chat is not on c", "it is on a"),
        (("wide", "c"), "wide is on a, b: say whose share", "--from a"),
        (("wide", "a"), "wide is on a, b: say whose share", "--from b"),
        (("wide", "a", "a"), "--from and --to are both a", ""),
        (("far", "b"), "far has no engine on any node", "endpoints"),
    ],
)
def test_what_makes_no_sense_is_refused(words: tuple[str, ...], message: str, hint: str) -> None:
    with pytest.raises(LlmhostError) as e:
        decide(CONFIG, PLACED, *words)
    assert message in e.value.message
    assert hint in e.value.hint


def test_a_service_that_spans_nodes_does_not_move() -> None:
    with pytest.raises(LlmhostError, match="spans nodes"):
        decide(CONFIG, PLACED, "chat", "b", spanning={"chat": 2})


def test_the_target_is_first_and_the_source_last() -> None:
    move = decide(CONFIG, PLACED, "chat", "c")
    assert turns_of(move, ["a", "b", "c"]) == (("c",), ("b",), ("a",))
    assert turns_of(move, ["a"]) == (("c",), ("a",))


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        ("  chat: {model: m}  # x\n", "  chat: {model: m, nodes: NODES}  # x\n"),
        ("  chat: {nodes: a, model: m}  # x\n", "  chat: {nodes: NODES, model: m}  # x\n"),
        ("  chat:\n    model: m # m\n    # c\n    nodes: a   # here\n",
         "  chat:\n    model: m # m\n    # c\n    nodes: NODES   # here\n"),
        ("  chat:\n    # first\n    model: m # m\n    replicas: 2\n# end\n",
         "  chat:\n    # first\n    model: m # m\n    nodes: NODES\n    replicas: 2\n# end\n"),
        ("  chat:\n    nodes:\n    - a\n    - c\n\n  # other\n  x: {model: y}\n",
         "  chat:\n    nodes: NODES\n\n  # other\n  x: {model: y}\n"),
        ("  chat:\n    command: |\n      p\n      q\n    nodes: [a, c] # q\n",
         "  chat:\n    command: |\n      p\n      q\n    nodes: NODES # q\n"),
        ("  chat:\n    model: m", "  chat:\n    model: m\n    nodes: NODES\n"),
    ],
)  # fmt: skip
def test_only_the_nodes_of_the_service_are_written(text: str, edited: str) -> None:
    head = "# top\nservices:\n"
    for nodes, written in ((["b"], "b"), (["b", "c"], "[b, c]"), (["1"], "'1'")):
        found = with_places(head + text, "chat", nodes)
        assert found == head + edited.replace("NODES", written)
        assert with_places(found, "chat", nodes) == found


def test_a_shared_text_is_left_alone() -> None:
    text = "services:\n  chat: &x {model: m}\n  other: *x\n"
    with pytest.raises(ConfigError, match="cannot be changed"):
        with_places(text, "chat", ["b"])
    assert YAML(typ="safe", pure=True).load(text)["services"]["chat"] == {"model": "m"}
