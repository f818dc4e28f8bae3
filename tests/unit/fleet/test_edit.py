"""``nodes:`` of an llmhost.yaml is changed and nothing else in it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from llmhost.fleet.edit import with_node, without_node

A = {"address": "10.0.0.1", "home": "/srv/llm"}
B = {"address": "10.0.0.2", "user": "llm"}
PLAIN = """# top
gateway: {port: 8000}   # as it comes
services:
    chat:
        model: 'demo:chat'   # quotes and indentation stay
"""
BLOCK = """nodes:
  # the first
  a:
    address: 10.0.0.1   # where

  # the second
  b: {address: 10.0.0.2}

# what we serve
services: {}
"""


def read(text: str) -> object:
    return YAML(typ="safe", pure=True).load(text)


def test_a_first_node_is_added_below_everything_that_was_there() -> None:
    text = with_node(PLAIN, "a", A)
    assert text.startswith(PLAIN)
    assert text.endswith("nodes:\n  a: {address: 10.0.0.1, home: /srv/llm}\n")
    assert with_node(text, "a", A) == text
    assert without_node(text, "a").rstrip() == PLAIN.rstrip()


def test_a_further_node_takes_a_line_after_the_last_one() -> None:
    text = with_node(BLOCK, "c", B)
    assert text == BLOCK.replace("10.0.0.2}\n", "10.0.0.2}\n  c: {address: 10.0.0.2, user: llm}\n")
    assert without_node(text, "c") == BLOCK


def test_a_node_is_removed_with_what_belongs_to_it() -> None:
    text = without_node(BLOCK, "a")
    assert read(text) == {"nodes": {"b": {"address": "10.0.0.2"}}, "services": {}}
    for comment in ("# the first", "# the second", "# what we serve"):
        assert comment in text
    assert read(without_node(text, "b")) == {"services": {}}


def test_a_node_that_has_changed_is_replaced() -> None:
    text = with_node(BLOCK, "a", {**A, "address": "10.0.0.9"})
    assert read(text) == {
        "nodes": {"a": {**A, "address": "10.0.0.9"}, "b": {"address": "10.0.0.2"}}, "services": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "nodes: {a: {address: x}}\n# kept\nservices: {}\n",
        "{services: {}}\n",
        "nodes:\nservices: {}\n",
        "x: &x {a: {address: y}}\nnodes: *x\n",
        "",
    ],
)
def test_other_ways_of_writing_it_work_as_well(text: str) -> None:
    edited = with_node(text, "b", B)
    before = read(text) or {}
    assert isinstance(before, dict)
    assert read(edited) == {**before, "nodes": {**(before.get("nodes") or {}), "b": B}}
    assert ("# kept" in edited) == ("# kept" in text)


@settings(max_examples=20)
@given(st.dictionaries(st.sampled_from("abcdef"), st.booleans(), min_size=1), st.sampled_from("abcdef"))
def test_what_is_added_and_removed_again_was_never_there(nodes: dict[str, bool], name: str) -> None:
    text = PLAIN
    for node in nodes:
        text = with_node(text, node, A)
    assert read(without_node(with_node(text, "new", B), "new")) == read(text)
    if name in nodes:
        assert read(with_node(without_node(text, name), name, A)) == read(text)
