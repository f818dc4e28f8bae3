"""Which nodes change at the same time."""

from __future__ import annotations

import pytest

from llmhost.errors import LlmhostError, NodeError, SshError
from llmhost.fleet.turns import Services, followers, of_restart, of_up, require_found, stranded


def on(**services: str) -> Services:
    return {node: frozenset(names.split()) for node, names in services.items()}


def test_nodes_that_serve_the_same_take_turns() -> None:
    pair = on(a="chat", b="chat")
    assert of_restart(pair) == (("a",), ("b",))
    assert of_up(pair, pair) == (("a",), ("b",))


def test_nodes_that_share_nothing_change_at_the_same_time() -> None:
    apart = on(a="chat", b="embed", c="")
    assert of_up(apart, apart) == (("a", "b", "c"),)


def test_nodes_where_nothing_runs_do_not_wait_for_each_other() -> None:
    placed = on(a="chat", b="chat", c="chat", d="chat")
    assert of_up(on(a="", b="", c="", d=""), placed) == (("a", "b", "c", "d"),)
    running = on(a="chat", b="", c="chat", d="")
    assert of_up(running, placed) == (("b", "d"), ("a",), ("c",))
    assert of_restart(running) == (("a",), ("c",), ("b", "d"))


def test_a_service_comes_before_it_goes() -> None:
    assert of_up(on(a="chat"), on(b="chat")) == (("a",),)  # b is no node any more
    assert of_up(on(a="chat", b=""), on(b="chat")) == (("b",), ("a",))
    assert of_up(on(a="chat", b="embed", c="rerank"), on(b="embed chat", c="rerank")) == (("b",), ("c",), ("a",))


def test_a_node_that_only_passes_requests_on_comes_in_between() -> None:
    moved = of_up(on(a="chat", b="embed", c="", d=""), on(b="embed chat", c="", d="embed"))
    assert moved == (("b",), ("c", "d"), ("a",))
    assert of_up(on(a="chat", b="chat", c=""), on(a="chat", b="chat")) == (("c",), ("a",), ("b",))
    swap = of_up(on(a="chat", b="embed", c="", d="rerank"), on(a="embed", b="chat", d="rerank"))
    assert swap == (("a", "b", "c", "d"),)


def test_nodes_that_exchange_services_wait_for_each_other() -> None:
    swap = of_up(on(a="chat", b="embed", c="gone"), on(a="embed", b="chat", c="new"))
    assert swap == (("a", "b", "c"),)


def test_nodes_that_get_different_services_wait_for_each_other_too() -> None:
    """b sends requests for rerank to c until d has it, and d those for chat to a until b has it."""
    moved = of_up(on(a="chat", b="embed", c="rerank", d=""), on(b="embed chat", d="rerank"))
    assert moved == (("b", "d"), ("a",), ("c",))
    chain = of_up(on(a="chat", b="embed", c="", d="rerank"), on(b="chat", c="embed", d="rerank"))
    assert chain == (("a", "b", "c", "d"),)  # b gives embed away while c waits for chat
    both = of_up(on(a="chat", b="", c="", d="rerank"), on(b="chat", c="chat", d="rerank"))
    assert both == (("b",), ("c",), ("d",), ("a",))


def test_another_replica_comes_before_the_first_one_changes() -> None:
    assert of_up(on(a="chat", b="embed"), on(a="chat", b="embed chat")) == (("b",), ("a",))


def test_what_follows_another_service_makes_all_go_together() -> None:
    """Everybody waits for it, also who comes before it by the turns."""
    now, then = on(a="chat pair", b="pair", c=""), on(a="pair", b="talk pair", c="")
    answered, wanted = {"chat": ["gpt"], "pair": ["pair"]}, {"talk": ["gpt"], "pair": ["pair"]}
    assert followers(answered, now, then, wanted) == {"talk"}
    assert of_up(now, then, {"talk"}) == (("a", "b", "c"),)
    # Until now only servers that are no nodes had it.
    here = on(a="pair chat", b="pair")
    assert followers(answered, on(a="pair", b="pair"), here, {"chat": ["gpt"], "pair": ["pair"]}) == {"chat"}
    assert followers(answered, on(a="pair", b="pair"), on(a="pair", b="pair"), {"chat": ["gpt"]}) == frozenset()
    assert followers(answered, now, on(a="chat pair new"), {"chat": ["gpt"], "new": ["new"]}) == frozenset()
    assert followers({}, on(a="", b=""), then, wanted) == frozenset()


def test_nothing_leaves_a_node_when_others_would_not_find_it() -> None:
    now, moved = on(a="chat", c=""), on(b="chat", a="", c="")
    assert stranded(now, moved, dead=["b"]) == "chat"
    assert stranded(now, moved, refusing=["b"]) == "chat"
    assert stranded(now, moved, refusing=["d"]) == "chat"  # it goes on sending requests to a
    assert stranded(now, moved, dead=["d"]) == ""
    assert stranded(now, on(b="chat", c="chat"), dead=["b"]) == ""
    assert stranded(now, on(a="chat", b="other"), refusing=["b"]) == ""
    renamed = on(a="", b="talk", c="")
    assert stranded(now, renamed, {"talk"}, dead=["b"]) == stranded(now, renamed, {"talk"}, refusing=["d"]) == "talk"
    assert stranded(now, renamed, {"talk"}, dead=["d"]) == ""


@pytest.mark.parametrize(
    ("node", "error", "message"),
    [
        ("b", SshError("b: no route", "", "unreachable"), "chat goes to another node, and b did not take the files"),
        ("d", NodeError("d has llmhost 0.0", "node add d"), "chat goes to another node, and d did not take the files"),
        ("d", SshError("d: the disk is full", "", "failed"), "chat goes to another node, and d did not take the files"),
    ],
)
def test_a_node_that_does_not_take_the_files_holds_up_what_would_leave(
    node: str, error: LlmhostError, message: str
) -> None:
    now, moved = on(a="chat", c=""), on(b="chat", a="", c="", d="")
    with pytest.raises(NodeError, match=message) as e:
        require_found(now, moved, (), {node: error})
    assert error.message in e.value.message
    assert e.value.hint == error.hint
    require_found(now, moved, (), {"d": SshError("d: no route", "", "unreachable")})
    require_found(now, now, (), {node: error})
