"""HTTP/2 requests that HTTP/1.1 towards an engine could take for something else: a real client that checks nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError

from tests.integration.gateway.locked import Locked
from tests.integration.gateway.running import LIMIT

pytestmark = pytest.mark.integration

Headers = Sequence[tuple[bytes, bytes]]

BODY = b'{"model":"gpt-4"}'
EMBED = b'{"model": "gte"}'
HIDDEN = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n" + EMBED
START = ((b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"), (b":path", b"/v1/chat/completions"))
JSON = (b"content-type", b"application/json")


@pytest.fixture(autouse=True)
def _still_there(locked: Locked) -> Iterator[None]:
    """Nothing reached the other engine, and the gateway goes on."""
    before = len(locked.stubs["embedding"].asked)
    yield
    assert locked.gateway.process is not None
    assert locked.gateway.process.poll() is None
    assert locked.get("/health").status_code == 200
    assert len(locked.stubs["embedding"].asked) == before


def ask(locked: Locked, headers: Headers, *data: bytes, trailers: Headers = ()) -> int | None:
    """The status of the answer; None when the stream or the connection was refused."""
    settings = H2Configuration(
        client_side=True, header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False,
        validate_inbound_headers=True,
    )  # fmt: skip
    client = H2Connection(settings)
    with socket.create_connection(("127.0.0.1", locked.gateway.port), timeout=LIMIT) as connection:
        client.initiate_connection()
        client.send_headers(1, headers, end_stream=not data)
        for number, piece in enumerate(data, 1):
            client.send_data(1, piece, end_stream=number == len(data) and not trailers)
        if trailers:
            client.send_headers(1, trailers, end_stream=True)
        try:
            connection.sendall(client.data_to_send())
            return _status(client, connection)
        except (ConnectionError, ProtocolError):
            return None


def _status(client: H2Connection, connection: socket.socket) -> int | None:
    status = None
    while piece := connection.recv(65536):
        for event in client.receive_data(piece):
            if isinstance(event, ResponseReceived):
                status = int(dict(event.headers or ())[b":status"])
            elif isinstance(event, DataReceived):
                client.acknowledge_received_data(event.flow_controlled_length or 0, 1)
            elif isinstance(event, StreamEnded | StreamReset | ConnectionTerminated):
                return status
        connection.sendall(client.data_to_send())
    return status


def key(locked: Locked) -> tuple[bytes, bytes]:
    return b"x-api-key", locked.chat_secret.encode()


def other(headers: Headers, name: bytes, value: bytes) -> Headers:
    return tuple((n, value if n == name else v) for n, v in headers)


def test_an_honest_request_is_answered(locked: Locked) -> None:
    before = len(locked.stubs["chat"].asked)
    assert ask(locked, (*START, JSON, key(locked), (b"content-length", b"17")), BODY) == 200
    assert ask(locked, (*START, JSON, key(locked)), BODY[:5], BODY[5:]) == 200
    assert [s.body for s in locked.stubs["chat"].asked[before:]] == [BODY, BODY]


INJECTED = b"/v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN


PSEUDO: tuple[Headers, ...] = (
    (*START, JSON, (b":path", b"/v1/embeddings")),
    (*START, (b":path", b"/v1/embeddings"), JSON),
    ((b":path", b"/v1/embeddings"), *START, JSON),
    (*START, (b":method", b"GET"), JSON),
    (*START, (b":scheme", b"https"), JSON),
    (*START, (b":authority", b"y"), JSON),
    (*START, (b":evil", b"x"), JSON),
    (*START, (b":status", b"200"), JSON),
    (*START, (b":", b"x"), JSON),
    (JSON, *START),
    (*START[:3], JSON),
    (*START[1:], JSON),
    (*other(START, b":path", b""), JSON),
    (*other(START, b":path", b"*"), JSON),
    (*other(START, b":path", INJECTED), JSON),
    (*other(START, b":path", b"/v1/chat/completions\r\nx-injected: y"), JSON),
    (*other(START, b":path", b"/v1/chat/completions\nx-injected: y"), JSON),
    (*other(START, b":path", b"/v1/chat/completions HTTP/1.0"), JSON),
    (*other(START, b":path", b"/v1/chat/completions\x00"), JSON),
    (*other(START, b":method", b"POST /v1/embeddings HTTP/1.1\r\nx: "), JSON),
    (*other(START, b":method", b"POST\r\nx-injected: y"), JSON),
    (*other(START, b":method", b""), JSON),
    (*other(START, b":authority", b"x\r\nx-injected: y"), JSON),
    (*other(START, b":method", b"CONNECT"), (b":protocol", b"websocket")),
    (*other(START, b":method", b"CONNECT"), JSON),
    ((b":method", b"CONNECT"), (b":authority", b"x")),
)
FOREIGN = (
    (b"transfer-encoding", b"chunked"),
    (b"transfer-encoding", b"identity"),
    (b"connection", b"keep-alive, x-api-key"),
    (b"keep-alive", b"timeout=5"),
    (b"proxy-connection", b"keep-alive"),
    (b"upgrade", b"h2c"),
    (b"te", b"chunked"),
    (b"X-Injected", b"y"),
    (b"Content-Length", b"17"),
    (b"x-injected: y\r\nx", b"y"),
    (b"x-injected:", b"y"),
    (b"x injected", b"y"),
    (b"x-injected\x00", b"y"),
    (b"", b"y"),
    (b"x", b"y\r\nx-injected: y"),
    (b"x", b"y\nx-injected: y"),
    (b"x", b"y\rx-injected: y"),
    (b"x", b"y\r\n\r\n" + HIDDEN),
    (b"x", b"y\x00"),
)
LENGTHS = (
    ((b"17",), (BODY + HIDDEN,)),
    ((b"17",), (BODY, HIDDEN)),
    ((b"0",), (HIDDEN,)),
    ((b"99",), (BODY,)),
    ((b"5",), (BODY,)),
    ((b"17", b"5"), (BODY,)),
    ((b"17", b"17"), (BODY + HIDDEN,)),
    ((b"17, 5",), (BODY,)),
    ((b"-1",), (BODY,)),
    ((b"+17",), (BODY,)),
    ((b"0x11",), (BODY,)),
    ((b"99999999999999999999",), (BODY,)),
    ((b"17 ",), (BODY + HIDDEN,)),
    ((b"",), (BODY + HIDDEN,)),
    ((b"17",), ()),
)


def all_of(locked: Locked, requests: Iterable[tuple[Headers, tuple[bytes, ...]]]) -> list[int | None]:
    """The statuses of many requests at the same time: the gateway closes a bad connection after a second."""
    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(lambda request: ask(locked, request[0], *request[1]), requests))


def test_pseudo_headers(locked: Locked) -> None:
    before = len(locked.stubs["chat"].asked)
    answers = all_of(locked, [((*headers, key(locked)), (BODY,)) for headers in PSEUDO])
    assert not [(PSEUDO[n], a) for n, a in enumerate(answers) if a not in (None, 400, 404, 405)]
    assert len(locked.stubs["chat"].asked) == before


def test_headers_that_mean_something_else_in_http_1(locked: Locked) -> None:
    before = len(locked.stubs["chat"].asked)
    answers = all_of(locked, [((*START, JSON, key(locked), header), (BODY,)) for header in FOREIGN])
    assert not [(FOREIGN[n], a) for n, a in enumerate(answers) if a not in (None, 400)]
    assert len(locked.stubs["chat"].asked) == before


def test_a_content_length_that_is_not_that_of_the_data(locked: Locked) -> None:
    before = len(locked.stubs["chat"].asked)
    requests = [
        ((*START, JSON, key(locked), *((b"content-length", length) for length in lengths)), data)
        for lengths, data in LENGTHS
    ]
    answers = all_of(locked, requests)
    assert not [(LENGTHS[n], a) for n, a in enumerate(answers) if a not in (None, 400, 413)]
    assert len(locked.stubs["chat"].asked) == before


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/embeddings"])
def test_two_keys_are_none(locked: Locked, path: bytes) -> None:
    """Joined to one value, as every proxy may join them, they are no key; whichever comes first."""
    good, wrong = key(locked), (b"x-api-key", b"sk-wrong")
    start = other(START, b":path", path)
    before = len(locked.stubs["chat"].asked)
    for pair in ((good, wrong), (wrong, good), (good, good)):
        assert ask(locked, (*start, JSON, *pair), BODY) == 401
    assert len(locked.stubs["chat"].asked) == before


@pytest.mark.parametrize("name", [b"x-llmhost-user", b"x-llmhost-credential", b"x-llmhost-time"])
def test_what_only_the_gateway_may_say(locked: Locked, name: bytes) -> None:
    """A lower-case duplicate of an inner header, several times: nobody becomes somebody else by it."""
    said = ((name, b"everything.1"), (name, b"embed-only.1"))
    start = other(START, b":path", b"/v1/embeddings")
    assert ask(locked, (*start, JSON, *said), EMBED) == 401
    assert ask(locked, (*start, JSON, *said, key(locked)), EMBED) == 403
    before = len(locked.stubs["chat"].asked)
    assert ask(locked, (*START, JSON, *said, key(locked)), BODY) == 200
    (seen,) = locked.stubs["chat"].asked[before:]
    assert not [value for value in seen.headers.values() if "everything" in value or "embed-only" in value]


@pytest.mark.parametrize(
    "trailers",
    [
        ((b":path", b"/v1/embeddings"),),
        ((b":method", b"GET"),),
        ((b"x", b"y\r\n\r\n" + HIDDEN),),
        ((b"Content-Length", b"0"),),
        ((b"transfer-encoding", b"chunked"),),
    ],
)
def test_trailers(locked: Locked, trailers: Headers) -> None:
    """They come after the body: a request that went to an engine already is that one request."""
    before = len(locked.stubs["chat"].asked)
    assert ask(locked, (*START, JSON, key(locked)), BODY, trailers=trailers) in (None, 200, 400)
    for seen in locked.stubs["chat"].asked[before:]:
        assert (seen.target, seen.body) == ("/v1/chat/completions", BODY)


def test_a_key_in_the_trailers_is_none(locked: Locked) -> None:
    before = len(locked.stubs["chat"].asked)
    assert ask(locked, (*START, JSON), BODY, trailers=(key(locked),)) == 401
    assert len(locked.stubs["chat"].asked) == before
