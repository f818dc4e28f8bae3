"""Which nodes change at the same time."""

from __future__ import annotations

from llmhost.fleet.turns import Services, of_restart, of_up


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
