"""Whom ssh is asked for, and what it says, in our words."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmhost.errors import NodeError
from llmhost.ssh import CAUSES, Link, Target, _explain


def test_a_host_is_never_an_option() -> None:
    target = Target.parse("llm@gpu-1.example.org", 2222)
    assert target.words == ["-l", "llm", "-p", "2222", "--", "gpu-1.example.org"]
    assert Target.parse("fe80::1%eth0").host == "fe80::1%eth0"
    assert Target.parse("root@[2001:db8::1]").words == ["-l", "root", "--", "2001:db8::1"]
    for text in ("-oProxyCommand=x", "root@-x", "@host", "a b", "host;x", "", "x@", "o'x@host", "-l@host"):
        with pytest.raises(NodeError, match="is not a host for ssh"):
            Target.parse(text)


SAID = {
    "root@b: Permission denied (publickey).": "key refused",
    "Load key \"/root/.ssh/id\": bad permissions\nroot@b: Permission denied (publickey).": "key refused",
    "No ED25519 host key is known for b and you have requested strict checking.\nHost key verification failed.": (
        "host key unknown"
    ),
    "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.": "host key changed",
    "ssh: connect to host b port 22: Connection refused": "refused",
    "ssh: connect to host b port 22: No route to host": "no route",
    "ssh: connect to host b port 22: Connection timed out": "no answer",
    "Timeout, server b not responding.": "no answer",
    "ssh: Could not resolve hostname b: Name or service not known": "name unknown",
    "kex_exchange_identification: read: Connection reset by peer": "connection lost",
    "Connection to b closed by remote host.": "connection lost",
    "/root/.ssh/config: line 3: Bad configuration option: x": "ssh configuration",
    "something new": "ssh failed",
}  # fmt: skip


@pytest.mark.parametrize("said", SAID)
def test_what_ssh_says_is_told_apart_with_a_remedy(said: str) -> None:
    error = _explain(Target("b", "root", 2222), said)
    assert error.reason == SAID[said]
    assert error.message
    assert error.hint
    assert "{" not in error.message + error.hint


def test_every_cause_has_an_example() -> None:
    assert {reason for _, reason, _, _ in CAUSES} <= set(SAID.values())


def test_a_home_with_a_long_path_does_without_a_kept_connection() -> None:
    short = Link(Target("b"), Path("/srv/llm/run/ssh"))
    long = Link(Target("b"), Path("/srv") / ("x" * 70) / "run/ssh")
    assert "none" not in short._ssh("true")
    assert long._ssh("true")[long._ssh("true").index("-S") + 1] == "none"
