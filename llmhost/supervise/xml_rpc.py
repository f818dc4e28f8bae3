"""XML-RPC over a unix socket, as much of it as supervisord speaks.

The standard library's `xmlrpc.client` brings `http.client`, `ssl` and `email` along, a fifth of the time that
``llmhost status`` takes; tests compare what is written and read here with it.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any
from xml.parsers import expat


class Fault(Exception):
    """The server refuses: ``code`` is one of supervisor.xmlrpc.Faults."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class ProtocolError(Exception):
    """What answers is not an XML-RPC server, or stopped in the middle."""


def call(path: str, method: str, params: Sequence[Any], timeout: float) -> Any:
    """Call a method; raises Fault, ProtocolError, and OSError when nobody listens or answers in time (seconds)."""
    body = encode_call(method, params)
    # HTTP/1.0: one request, one answer, not in chunks, and the server closes the connection.
    head = f"POST /RPC2 HTTP/1.0\r\nHost: localhost\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(path)
        connection.sendall(head.encode() + body)
        parts = []
        while part := connection.recv(1 << 18):
            parts.append(part)
    return decode_answer(_body(b"".join(parts)))


def _body(answer: bytes) -> bytes:
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/"):
        raise ProtocolError("this is no HTTP server")
    if words[1] != b"200":
        raise ProtocolError(f"HTTP status {words[1].decode('ascii', 'replace')}")
    return body


def encode_call(method: str, params: Sequence[Any]) -> bytes:
    """A ``methodCall`` document; parameters are strings, integers, booleans, lists and dictionaries of them."""
    values = "".join(f"<param>{_encode(value)}</param>" for value in params)
    text = f"<methodCall><methodName>{method}</methodName><params>{values}</params></methodCall>"
    return text.encode("ascii", "xmlcharrefreplace")


def _encode(value: Any) -> str:
    if isinstance(value, str):
        text = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return f"<value><string>{text}</string></value>"
    if isinstance(value, bool):
        return f"<value><boolean>{value:d}</boolean></value>"
    if isinstance(value, int):
        return f"<value><int>{value}</int></value>"
    if isinstance(value, list):
        return f"<value><array><data>{''.join(map(_encode, value))}</data></array></value>"
    if isinstance(value, dict):
        members = (f"<member><name>{key}</name>{_encode(item)}</member>" for key, item in value.items())
        return f"<value><struct>{''.join(members)}</struct></value>"
    raise TypeError(f"cannot send {type(value).__name__}")


def decode_answer(text: bytes) -> Any:
    """The value in a ``methodResponse`` document; raises Fault or ProtocolError."""
    decoder = _Decoder()
    try:
        decoder.parse(text)
    except expat.ExpatError as e:
        raise ProtocolError(f"its answer is not XML: {e}") from None
    except ValueError as e:
        raise ProtocolError(f"its answer cannot be understood: {e}") from None
    if len(decoder.values) != 1:
        raise ProtocolError("its answer holds no value")
    value = decoder.values[0]
    if decoder.fault:
        raise Fault(int(value["faultCode"]), str(value["faultString"]))
    return value


class _Decoder:
    """A stack of values; an array or struct that ends takes what was put on it since it began."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.fault = False
        self._begins: list[int] = []
        self._text: list[str] = []
        self._untyped = False

    def parse(self, text: bytes) -> None:
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.CharacterDataHandler = self._text.append
        parser.EndElementHandler = self._end
        parser.Parse(text, True)

    def _start(self, tag: str, _: object) -> None:
        if tag in ("array", "struct"):
            self._begins.append(len(self.values))
        self._text.clear()
        self._untyped = tag == "value"  # a value without a type in it is a string

    def _end(self, tag: str) -> None:
        if tag in ("string", "name") or (tag == "value" and self._untyped):
            self.values.append("".join(self._text))
        elif tag in ("int", "i4"):
            self.values.append(int("".join(self._text)))
        elif tag == "boolean":
            self.values.append("".join(self._text) == "1")
        elif tag == "array":
            begin = self._begins.pop()
            self.values[begin:] = [self.values[begin:]]
        elif tag == "struct":
            begin = self._begins.pop()
            names, items = self.values[begin::2], self.values[begin + 1 :: 2]
            self.values[begin:] = [dict(zip(names, items, strict=True))]
        elif tag == "fault":
            self.fault = True
        self._text.clear()
        self._untyped = False
