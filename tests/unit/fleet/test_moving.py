"""What `llmhost move` decides before anything changes, its edit of llmhost.yaml, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from ruamel.yaml import YAML

from llmhost import config
from llmhost.cli import Session
from llmhost.cli import move as command
from llmhost.errors import ConfigError, LlmhostError, NodeError
from llmhost.fleet import moving
from llmhost.fleet.edit import with_places
from llmhost.fleet.members import Member
from llmhost.fleet.moving import Prepared, carry_out, decide, turns_of
from llmhost.fleet.sync import Synced
from llmhost.paths import Home
from llmhost.plan.placement import Placement

if TYPE_CHECKING:
    from llmhost.nodes import Whole

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


class Disk:
    """`sync` of a cluster of which some nodes take nothing; ssh is the edge where real nodes would be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *failed: str, error: BaseException | None = None) -> None:
        self.failed, self.error = failed, error
        monkeypatch.setattr(moving, "members", lambda _: ())
        monkeypatch.setattr(moving.placing, "write_shared", lambda *_: None)
        monkeypatch.setattr(moving, "sync", self.sync)

    def sync(self, home: Home, nodes: object, *, first: Callable[[], None]) -> Synced:
        first()
        error, self.error = self.error, None
        if error is not None:
            raise error
        return Synced(failed={name: NodeError("the disk is full", "make room") for name in self.failed})


@pytest.fixture
def made(tmp_path: Path) -> tuple[Home, Prepared]:
    home = Home(tmp_path)
    home.config_file.write_text("old", encoding="utf-8")
    whole = cast("Whole", None)  # what is placed is written by `write_shared` alone
    return home, Prepared(decide(CONFIG, PLACED, "chat", "b"), whole, whole, "old", "new")


def test_nothing_moves_when_a_node_that_sends_requests_does_not_take_the_files(
    made: tuple[Home, Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, move = made
    Disk(monkeypatch, "c")
    with pytest.raises(NodeError) as e:
        carry_out(home, move, {"a", "b", "c"})
    assert e.value.message == "c did not take the files, and nothing has moved: the disk is full"
    assert e.value.hint == "make room"
    assert home.config_file.read_text() == "old"
    assert list(carry_out(home, move, {"a", "b"}).failed) == ["c"]
    assert home.config_file.read_text() == "new"


def test_the_file_is_put_back_when_the_files_are_brought_to_the_nodes_and_that_is_interrupted(
    made: tuple[Home, Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, move = made
    Disk(monkeypatch, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        carry_out(home, move, {"a", "b"})
    assert home.config_file.read_text() == "old"


def test_what_somebody_edits_meanwhile_is_not_replaced(
    made: tuple[Home, Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, move = made
    home.config_file.write_text("mine", encoding="utf-8")
    Disk(monkeypatch)
    with pytest.raises(NodeError, match="was edited meanwhile"):
        carry_out(home, move, {"a", "b"})
    assert home.config_file.read_text() == "mine"


@pytest.mark.parametrize(
    ("statuses", "message", "hint"),
    [
        ((0, 1), "b serves chat, and the rest of the move failed: a may still run its engine", "up chat --all-nodes"),
        ((1,), "chat-0 did not start on b: llmhost.yaml is as it was, and a serves as before", "logs chat` on b"),
    ],
)
def test_a_node_that_fails_on_the_way_is_an_error(
    made: tuple[Home, Prepared],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    statuses: tuple[int, ...],
    message: str,
    hint: str,
) -> None:
    """What the nodes say is made up: ssh is the edge. `tests/integration/nodes/test_move.py` has real ones."""
    home, move = made
    home.config_file.write_text(move.old_text, encoding="utf-8")
    Disk(monkeypatch)
    nodes = [Member(name, f"10.0.0.{name}", home.root, None) for name in "abc"]
    monkeypatch.setattr("llmhost.fleet.members.members", lambda _: nodes)
    monkeypatch.setattr(moving, "require_both", lambda *_: None)
    monkeypatch.setattr(moving, "clear", lambda *_: False)
    monkeypatch.setattr(command.fleet, "live", lambda _: dict.fromkeys("abc", True))
    left, turns = list(statuses), []

    def act(nodes: object, words: tuple[str, ...], these: tuple[tuple[str, ...], ...], busy: object) -> int:
        turns.append(these)
        return left.pop(0)

    monkeypatch.setattr(command.fleet, "act_in_turns", act)
    with pytest.raises(NodeError) as e:
        command._carry_out(Session(home), move)
    assert (e.value.message, hint in e.value.hint) == (message, True)
    assert turns == [(("b",),), (("c",), ("a",))][: len(statuses)]
    put_back = statuses == (1,)
    assert home.config_file.read_text() == (move.old_text if put_back else move.new_text)
    assert ("b may still run what it began: `llmhost up` there stops it" in capsys.readouterr().err) == put_back


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
