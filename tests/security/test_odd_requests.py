"""Requests that are not what they seem: smuggled, broken, huge. Nothing gets through and nothing crashes."""

from __future__ import annotations

import json

import pytest

from tests.integration.gateway.locked import Locked
from tests.integration.gateway.running import eventually
from tests.security.conftest import exchange, statuses

pytestmark = pytest.mark.integration

CHAT = b"/v1/chat/completions"
HIDDEN = b'POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n{"model": "gte"}'
BODY = b'{"model":"gpt-4"}'


@pytest.fixture(autouse=True)
def _still_there(locked: Locked) -> object:
    yield
    assert locked.gateway.process is not None
    assert locked.gateway.process.poll() is None
    assert locked.get("/health").status_code == 200


def request(locked: Locked, headers: bytes, body: bytes, target: bytes = CHAT) -> bytes:
    key = locked.chat_secret.encode()
    return b"POST %s HTTP/1.1\r\nHost: x\r\nx-api-key: %s\r\n%s\r\n%s" % (target, key, headers, body)


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 17\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 17\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: identity\r\nContent-Length: 17\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding : chunked\r\nContent-Length: 17\r\n",
        b"Transfer-Encoding:\x0bchunked\r\nContent-Length: 17\r\n",
        b"X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: 17\r\n",
        b"Content-Length: 17\r\nContent-Length: 5\r\n",
        b"Content-Length: 17, 5\r\n",
        b"Content-Length: +17\r\n",
        b"Content-Length: 0x11\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Content-Length: 17\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 1 7\r\n",
    ],
)
def test_a_request_with_two_lengths_is_one_request_or_none(locked: Locked, headers: bytes) -> None:
    """What follows the body, in the eyes of whoever believes the other length, is another request without a key."""
    before = len(locked.stubs["embedding"].asked)
    for body in (BODY + HIDDEN, b"11\r\n" + BODY + b"\r\n0\r\n\r\n" + HIDDEN, b"0\r\n\r\n" + HIDDEN):
        found = statuses(exchange(locked.gateway.port, request(locked, headers, body)))
        assert all(status in (200, 400, 401, 404, 411, 501) for status in found), found
        assert found.count(200) <= 1
    assert len(locked.stubs["embedding"].asked) == before


@pytest.mark.parametrize(
    "body",
    [
        b"0x11\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"+11\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"11 \r\n" + BODY + b"\r\n0\r\n\r\n",
        b"FFFFFFFFFFFFFFFFF\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"11\n" + BODY + b"\n0\n\n",
        b"-1\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"11\r\n" + BODY + b"XX0\r\n\r\n",
        b"11;" + b"a" * 70_000 + b"\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"11\r\n" + BODY + b"\r\n0\r\nx-api-key: x\r\nx-llmhost-user: everything.1\r\n\r\n",
        b"zz\r\n\r\n",
        b"11\r\n" + BODY,
    ],
)
def test_odd_chunks(locked: Locked, body: bytes) -> None:
    before = len(locked.stubs["embedding"].asked)
    found = statuses(exchange(locked.gateway.port, request(locked, b"Transfer-Encoding: chunked\r\n", body) + HIDDEN))
    assert all(status in (200, 400, 401, 413) for status in found), found
    assert len(locked.stubs["embedding"].asked) == before


def test_a_second_request_on_the_connection_needs_a_key_of_its_own(locked: Locked) -> None:
    first = request(locked, b"Content-Length: 17\r\n", BODY)
    assert statuses(exchange(locked.gateway.port, first + HIDDEN)) == [200, 401]


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "gpt-4", "model": "gte"}',
        b'{"model": "gte", "model": "gpt-4"}',
        b'{"model": "gpt-4", "\\u006dodel": "gte"}',
        b'{"\\u006dodel": "gte", "model": "gpt-4"}',
        b'{"Model": "gte", "model": "gpt-4"}',
        b'{"model\\u0000": "gte", "model": "gpt-4"}',
        b'{"a": {"model": "gte"}, "model": "gpt-4"}',
        b'{"model": {"model": "gte"}}',
        b'{"model": ["gte"]}',
        b'\xef\xbb\xbf{"model": "gte"}',
        '{"model": "gte"}'.encode("utf-16"),
        b'{"model": "gte"}{"model": "gpt-4"}',
        b'{"model": "gpt-4"}\n{"model": "gte"}',
        b'/**/{"model": "gte"}',
        b'{"model": "gte",}',
        b"model=gte",
    ],
)
@pytest.mark.parametrize("path", [CHAT, b"/v1/embeddings", b"/tokenize"])
def test_a_model_that_is_two_things(locked: Locked, path: bytes, body: bytes) -> None:
    """Whoever is right about the body: the key is for chat, so no other engine sees it."""
    before = len(locked.stubs["embedding"].asked)
    for kind in (b"application/json", b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data"):
        headers = b"Content-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n" % (kind, len(body))
        (status,) = statuses(exchange(locked.gateway.port, request(locked, headers, body, path)))
        assert status in (200, 400, 403, 404), kind
    assert len(locked.stubs["embedding"].asked) == before


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"model": "gpt-4", "x": ' + b"[" * 90 + b"]" * 90 + b"}",
        b'{"model": "' + b"x" * 500_000 + b'"}',
        b'{"' + b"k" * 500_000 + b'": 1, "model": "gpt-4"}',
        b'{"model": "gpt-4", "n": 1e999999}',
        b'{"model": "gpt-4", "n": ' + b"9" * 100_000 + b"}",
        b'{"model": "gpt-4", "s": "\\ud800"}',
        b'{"model": "gpt-4", "s": "\xff\xfe"}',
        b'{"model": "\xff"}',
        b'{"model": "\\u0000"}',
        b'{"model": "gpt-4\\u0000"}',
        b"\x00" * 1000,
        b"{",
        b"NaN",
        json.dumps({f"k{n}": n for n in range(50_000)}).encode(),
    ],
)
def test_odd_json_is_refused_or_passed_on(locked: Locked, body: bytes) -> None:
    headers = b"Content-Length: %d\r\nConnection: close\r\n" % len(body)
    (status,) = statuses(exchange(locked.gateway.port, request(locked, headers, body)))
    assert status in (200, 400, 404)


def test_a_body_above_the_limit_is_not_kept(locked: Locked) -> None:
    size = locked.gateway.max_body_bytes + 1
    head = request(locked, b"Content-Length: %d\r\n" % size, b"")
    assert statuses(exchange(locked.gateway.port, head, b" " * size)) == [413]
    chunk = b"%x\r\n%s\r\n" % (65536, b" " * 65536)
    head = request(locked, b"Transfer-Encoding: chunked\r\n", b"")
    assert statuses(exchange(locked.gateway.port, head, *([chunk] * 100))) == [413]


def test_a_wrong_key_is_refused_before_the_body_is_read(locked: Locked) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nx-api-key: sk-x\r\nContent-Length: 500000\r\n\r\n{" % CHAT
    assert statuses(exchange(locked.gateway.port, head)) == [401]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(500)) + b"\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX\x01: a\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500,
        b"\r\n" * 1000,
    ],
)
def test_broken_heads(locked: Locked, head: bytes) -> None:
    found = statuses(exchange(locked.gateway.port, head))
    assert all(status in (400, 401, 431, 426, 505) for status in found), found


def test_many_connections_that_say_nothing_leave_room_for_others(locked: Locked) -> None:
    import socket

    held = [socket.create_connection(("127.0.0.1", locked.gateway.port)) for _ in range(300)]
    try:
        for connection in held:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        assert locked.get("/v1/models", locked.secret).status_code == 200
        # Headers that never end are given up.
        eventually(lambda: _closed(held[0]), "a client that sends its headers for ever is sent away")
    finally:
        for connection in held:
            connection.close()


def _closed(connection: object) -> bool:
    import socket

    assert isinstance(connection, socket.socket)
    connection.settimeout(0.1)
    try:
        data = connection.recv(65536)
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return data == b"" or b"408" in data
