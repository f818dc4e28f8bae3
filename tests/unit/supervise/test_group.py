"""What the guards of a group say to each other, on a pair of sockets; and what follows from how their parts ended."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest

from llmhost.supervise.guarding import channel
from llmhost.supervise.guarding.channel import Channel, listen
from llmhost.supervise.guarding.ending import AGAIN, BROKEN, CRASHED, FAILED, LEFT, STOPPED, Ending
from llmhost.supervise.guarding.group import SHOW_SECONDS, Place, Waiting, as_message, merge
from llmhost.supervise.guarding.head import Head
from llmhost.supervise.guarding.member import Member

SECRET = b"a secret of the group"
HELLO = {"group": "chat-0", "rank": 1, "digest": "x"}
PLACE: dict[str, object] = {
    "name": "chat-0", "rank": 0, "nodes": ["a", "b"], "addresses": ["127.0.0.1", "127.0.0.2"], "port": 1,
    "digest": "x", "secret": SECRET.decode(),
}  # fmt: skip


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    pair = socket.socketpair()
    yield pair
    for end in pair:
        end.close()


def met(ends: tuple[socket.socket, socket.socket], other: bytes = SECRET) -> tuple[Channel, Channel]:
    """Head and member after all that they have to say before they believe each other."""
    head, member = Channel(ends[0], SECRET), Channel(ends[1], other)
    member.greet(HELLO)
    (hello,) = head.turn()
    head.challenge(hello)
    (challenge,) = member.turn()
    if member.answer(challenge):
        (proof,) = head.turn()
        assert head.check(proof)
    return head, member


def test_both_prove_themselves_and_talk(ends: tuple[socket.socket, socket.socket]) -> None:
    head, member = met(ends)
    assert head.proved
    assert member.proved
    assert head.digest == "x"
    head.send({"go": 1})
    head.send({"end": {}})
    assert list(member.turn()) == [{"go": 1}, {"end": {}}]
    member.send({"locked": 1})
    assert list(head.turn()) == [{"locked": 1}]


def test_another_secret_is_refused_and_never_sent(ends: tuple[socket.socket, socket.socket]) -> None:
    head, member = met(ends, b"another secret altogether")
    assert not member.proved
    (refusal,) = head.turn()
    assert refusal == {"refused": "secret"}
    assert not head.check(refusal)
    assert not head.check({"proof": head._proof(b"head")})  # what the head said itself proves nothing


@pytest.mark.parametrize("change", ["played back", "changed", "odd"])
def test_a_line_that_no_guard_sent_closes(ends: tuple[socket.socket, socket.socket], change: str) -> None:
    head, member = met(ends)
    head.send({"go": 1})
    line = ends[1].recv(4096)
    forged = {"played back": line * 2, "changed": line.replace(b"1}", b"2}"), "odd": b"\xff\xfe not a line of ours\n"}
    ends[0].sendall(forged[change])
    assert list(member.turn()) == ([{"go": 1}] if change == "played back" else [])
    assert not member.open


def test_what_a_guard_said_itself_is_not_taken_from_another(ends: tuple[socket.socket, socket.socket]) -> None:
    head, _ = met(ends)
    head.send({"go": 1})
    ends[0].sendall(ends[1].recv(4096))
    ends[1].sendall(ends[1].recv(4096))  # back to where it came from
    assert list(head.turn()) == []
    assert not head.open


def test_silence_is_noticed(ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    head, member = met(ends)
    later = head.heard + channel.LOST_SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert list(member.turn()) == []
    assert "no sign of life" in member.closed


def test_signs_of_life_are_no_messages(ends: tuple[socket.socket, socket.socket]) -> None:
    head, member = met(ends)
    member.spoke -= channel.BEAT_SECONDS
    assert list(member.turn()) == []
    before = head.heard = head.heard - 1
    assert list(head.turn()) == []
    assert head.heard > before


def test_one_that_says_nothing_or_too_much(ends: tuple[socket.socket, socket.socket]) -> None:
    head = Channel(ends[0], SECRET)
    head.began -= channel.GREETING_SECONDS + 1
    assert list(head.turn()) == []
    assert head.closed == "it does not say who it is"
    other = socket.socketpair()
    full = Channel(other[0], SECRET)
    other[1].sendall(b"x" * 3 * channel.LONGEST_LINE)
    assert list(full.turn()) == []
    assert not full.open
    other[1].close()


def said(how: str, error: str | None, explained: bool = True) -> dict[str, object]:
    return {"how": how, "error": error, "explained": explained}


@pytest.mark.parametrize(
    ("own", "others", "how", "error"),
    [
        (Ending(STOPPED), [said(CRASHED, "x")], STOPPED, None),
        (Ending(LEFT, "stopped on node b"), [said(CRASHED, "x")], LEFT, "stopped on node b"),
        (Ending(CRASHED, "it died"), [{}], CRASHED, "it died"),
        (Ending(CRASHED, "it died"), [said(FAILED, "wrong flag")], FAILED, "node b: wrong flag"),
        (Ending(FAILED, "wrong flag"), [said(CRASHED, "it lost us")], FAILED, "wrong flag"),
        (
            Ending(FAILED, "odd"),
            [said("killed", "the engine was killed")],
            BROKEN,
            "odd; node b: the engine was killed",
        ),
        (Ending(FAILED, "odd"), [said("lost", "no sign of life")], BROKEN, "odd; node b: no sign of life"),
        (Ending(BROKEN, "node b: it died"), [said(CRASHED, "it died")], BROKEN, "node b: it died"),
    ],
)
def test_how_a_group_ended(own: Ending, others: list[dict[str, object]], how: str, error: str | None) -> None:
    found = merge(own, [("b", other) for other in others])
    assert (found.how, found.error) == (how, error)


def test_a_kill_is_told_as_one() -> None:
    assert as_message(Ending(CRASHED, "the engine was killed by SIGKILL"))["how"] == "killed"
    assert as_message(Ending(CRASHED, "NCCL error"))["how"] == CRASHED


@pytest.mark.parametrize(
    ("change", "words"),
    [({"rank": 2}, "no such rank"), ({"addresses": ["10.0.0.1"]}, "no such rank"), ({"secret": "short"}, "too short")],
)
def test_a_place_that_is_none(change: dict[str, object], words: str) -> None:
    good = {
        "name": "chat-0", "rank": 1, "nodes": ["a", "b"], "addresses": ["10.0.0.1", "fd00::2"], "port": 1,
        "secret": "a secret of 16 or more",
    }  # fmt: skip
    assert Place(json.loads(json.dumps(good))).address == "fd00::2"
    with pytest.raises(ValueError, match=words):
        Place({**good, **change})


@pytest.mark.parametrize(
    "payload",
    [
        b'{"proof": "\\ud800"}',
        b"[" * 5000,
        b'{"nonce": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"group": "chat-0", "rank": 1, "nonce": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
    ids=["no UTF-8", "too deep to read", "deep proof", "deep hello"],
)
@pytest.mark.parametrize("greeted", [False, True])
def test_no_stranger_ends_the_head(ends: tuple[socket.socket, socket.socket], greeted: bool, payload: bytes) -> None:
    head, guest = Head(Place(PLACE)), Channel(ends[0], SECRET)
    head.guests[guest] = None
    if greeted:
        ends[1].sendall(json.dumps({**HELLO, "nonce": "x"}).encode() + b"\n")
    ends[1].sendall(payload + b"\n")
    head.turn()
    assert not guest.open
    assert not head.guests


def come(head: Head, **hello: object) -> tuple[Channel, Channel]:
    """A member that has just proved itself to the head, and the head's end of its connection."""
    ends = socket.socketpair()
    guest, member = Channel(ends[0], SECRET), Channel(ends[1], SECRET)
    head.guests[guest] = None
    member.greet({**HELLO, **hello})
    head.turn()
    (challenge,) = member.turn()
    assert member.answer(challenge)
    return member, guest


@pytest.mark.parametrize("together", [True, False], ids=["with its proof", "later"])
def test_what_a_member_says_that_came_anew_counts_in_the_next_life(together: bool) -> None:
    head = Head(Place(PLACE))
    (part,) = head.parts
    former, former_end = come(head)
    head.turn()
    assert part.channel is former_end
    head.lives = True
    member, end = come(head)
    if not together:
        head.turn()
    member.send({"reaches": ""})
    head.turn()
    assert part.next is end
    assert not part.reaches
    head.dismiss(AGAIN, None)
    assert part.channel is end
    assert part.reaches
    for each in (former, member, end):
        each.close("the test is over")


PLANS = "its plan is another one; run `llmhost up` on both nodes"


@pytest.mark.parametrize(
    ("ours", "hello", "said_here", "said_there"),
    [
        ("0.32.0", {"vllm": "0.31.0"}, "it has vLLM 0.31.0, this node 0.32.0", "it has vLLM 0.32.0, this node 0.31.0"),
        ("0.32.0", {"vllm": "0.32.0"}, PLANS, PLANS),
        ("0.32.0", {}, PLANS, PLANS),  # a guard of an older llmhost
        ("", {"vllm": "0.31.0"}, PLANS, PLANS),
    ],
)
def test_parts_that_may_not_start_together_say_why(
    ours: str, hello: dict[str, object], said_here: str, said_there: str
) -> None:
    head = Head(Place({**PLACE, "vllm": ours}))
    member, end = come(head, digest="y", **hello)
    head.turn()
    assert not end.open
    assert head.parts[0].why_missing(whole=False) == said_here
    theirs = Member(Place({**PLACE, "rank": 1, "digest": "y", **hello}))
    theirs.channel = member
    told: list[str] = []
    assert theirs._await(Waiting(lambda _: theirs.turn(), told.append), lambda: False) == said_there
    assert set(told) <= {f"waiting for node a: queued: {said_there}"}  # and nothing else in between


def test_a_member_tells_its_version() -> None:
    head = Head(Place(PLACE))
    with listen("127.0.0.1", 0) as door:
        place = {**PLACE, "rank": 1, "addresses": ["127.0.0.1"] * 2, "port": door.getsockname()[1], "vllm": "0.31.0"}
        member = Member(Place(place))
        assert member._connect(Waiting(lambda _: None, lambda _: None)) == ""
        guest = Channel(door.accept()[0], SECRET)
    head.guests[guest] = None
    while guest not in head.guests or head.guests[guest] is None:
        head.turn()
    assert guest.vllm == "0.31.0"
    member.dismiss(STOPPED, None)
    guest.close("the test is over")


def test_a_member_that_was_stopped_is_said_to_be() -> None:
    head = Head(Place(PLACE))
    (part,) = head.parts
    part.hear({"end": {"how": LEFT}}, lives=False)
    assert part.why_missing(whole=True) == "it was stopped there"
    part.hear({"end": said(CRASHED, "it died")}, lives=False)
    assert part.why_missing(whole=True) == "it died"


@pytest.mark.parametrize(("state", "told"), [("backoff", False), ("queued", True)])
def test_an_engine_port_that_refuses_is_tried_again_before_it_is_told(
    monkeypatch: pytest.MonkeyPatch, state: str, told: bool
) -> None:
    """Nobody listens there until the head has backed off."""
    clock, heard = [0.0], list[dict[str, object]]()
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    door, engine_port = listen("127.0.0.1", 0), socket.socket()
    engine_port.bind(("127.0.0.1", 0))  # and does not listen yet
    number = engine_port.getsockname()[1]
    member = Member(Place({**PLACE, "rank": 1, "addresses": ["127.0.0.1", "127.0.0.1"], "master_port": number}))
    with door, engine_port, socket.create_connection(door.getsockname()) as ours, door.accept()[0] as theirs:
        head, member.channel = met((theirs, ours))
        head.send({"is": state, "error": None})

        def pause(seconds: float) -> None:
            clock[0] += seconds
            member.turn()
            heard.extend(head.turn())
            if clock[0] > 2 * SHOW_SECONDS:
                engine_port.listen()

        assert member._reach(Waiting(pause, lambda _: None)) == ""
        heard.extend(head.turn())
    assert clock[0] < 2 * SHOW_SECONDS + 1  # at once, by the clock of the test
    assert heard[-1] == {"reaches": ""}
    assert any("connection refused" in str(message["reaches"]) for message in heard) == told
