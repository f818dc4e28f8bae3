"""Our XML-RPC against the standard library's."""

from __future__ import annotations

import xmlrpc.client
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.supervise.xml_rpc import Fault, ProtocolError, decode_answer, encode_call

# XML cannot carry most control characters, and its parsers turn \r into \n.
TEXT = st.text(st.characters(min_codepoint=32, exclude_characters="\x7f\ufffe\uffff", exclude_categories=["Cs"]))
SIMPLE = st.one_of(TEXT, st.booleans(), st.integers(-(2**31), 2**31 - 1))
VALUES = st.recursive(
    SIMPLE, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.from_regex("[a-z]+", fullmatch=True), inner))
)


@given(st.lists(VALUES))
def test_calls_are_read_by_the_library(params: list[Any]) -> None:
    assert xmlrpc.client.loads(encode_call("supervisor.x", params)) == (tuple(params), "supervisor.x")


@given(VALUES)
def test_answers_of_the_library_are_read(value: Any) -> None:
    assert decode_answer(xmlrpc.client.dumps((value,), methodresponse=True).encode()) == value


def test_faults() -> None:
    with pytest.raises(Fault, match="BAD_NAME: x") as caught:
        decode_answer(xmlrpc.client.dumps(xmlrpc.client.Fault(10, "BAD_NAME: x")).encode())
    assert caught.value.code == 10


def test_an_untyped_value_is_a_string() -> None:
    text = "<methodResponse><params><param>\n<value>a &lt; b</value>\n</param></params></methodResponse>"
    assert decode_answer(text.encode()) == "a < b"


@pytest.mark.parametrize(
    "text", ["", "no", "<a>", "<a/>", "<value><int>x</int></value>", "<value><struct><name>a</name></struct></value>"]
)
def test_nonsense(text: str) -> None:
    with pytest.raises(ProtocolError):
        decode_answer(text.encode())


def test_what_cannot_be_sent() -> None:
    with pytest.raises(TypeError, match="float"):
        encode_call("m", [1.5])
