"""ssh to another host: one connection for many commands, and what is wrong in one sentence with a remedy."""

from __future__ import annotations

import textwrap

import pytest

from tests.netns import Host, Network, wait_for

pytestmark = pytest.mark.integration

SCRIPT = """
import sys
from pathlib import Path
from llmhost.errors import SshError
from llmhost.ssh import Link, Target
link = Link(Target.parse(sys.argv[1]), Path.home() / "links")
try:
    link.connect()
{body}
except SshError as e:
    print(e.reason, "|", e.message, "|", e.hint)
"""


def use(host: Host, target: str, body: str = "") -> str:
    """What a program on a host prints that has a link to a target."""
    script = SCRIPT.format(body=textwrap.indent(textwrap.dedent(body), "    "))
    return host.run(host.llmhost()[0], "-P", "-c", script, target).stdout.strip()


def test_commands_share_one_connection(network: Network) -> None:
    a, b = network.add("a"), network.add("b")
    a.trust(b)
    said = use(a, "root@b", "print(link.run(['sh', '-c', 'hostname; cat'], given='from stdin').stdout)")
    assert said == "b\nfrom stdin"
    (a.root / ".ssh/id_ed25519").rename(a.root / ".ssh/away")  # nobody could log in again
    assert use(a, "root@b", "print(link.run(['hostname']).stdout)") == "b"
    assert use(a, "root@b", "link.close()\nlink.connect()").startswith("key refused | root@b: the login was refused")
    assert "sshd: root" not in b.run("ps", "ax").stdout


def test_a_command_ends_there_when_it_is_ended_here(network: Network) -> None:
    a, b = network.add("a"), network.add("b")
    a.trust(b)
    body = """
    import threading
    talk = link.talk(["sh", "-c", "echo begun; exec sleep 77"])
    print(talk.follow(lambda line: talk.end(), print) != 0)
    """
    assert use(a, "b", body) == "True"
    wait_for(lambda: "sleep 77" not in b.run("ps", "ax").stdout)


def test_what_is_wrong_is_told_apart(network: Network) -> None:
    a, b = network.add("a"), network.add("b")
    assert use(a, "root@b").startswith("host key unknown | the host key of b is not known here")
    a.trust(b)
    keys = b.root / ".ssh/authorized_keys"
    text = keys.read_text(encoding="utf-8")
    keys.write_text("", encoding="utf-8")
    assert use(a, "root@b").startswith("key refused | root@b: the login was refused")
    keys.write_text(text, encoding="utf-8")
    assert use(a, "b", "link.run(['no-such-program'])").startswith("a command is missing | b: no-such-program")
    assert use(a, "b", "link.run(['sh', '-c', 'echo error: broken >&2; exit 3'])").startswith("failed | b: broken")
    assert use(a, "nowhere").startswith("name unknown | nobody knows a host called nowhere")
    assert use(a, "10.77.0.9").split(" | ")[0] in ("no route", "no answer")
    known = (a.root / ".ssh/known_hosts").read_text(encoding="utf-8")
    other = (a.root / "etc/host_key.pub").read_text(encoding="utf-8").split()[1]
    (a.root / ".ssh/known_hosts").write_text(f"b ssh-ed25519 {other}\n", encoding="utf-8")
    assert use(a, "b", "link.close()\nlink.connect()").startswith("host key changed | the host key of b is not the one")
    (a.root / ".ssh/known_hosts").write_text(known, encoding="utf-8")
    b.run("sh", "-c", "kill $(pgrep -o sshd)")
    assert use(a, "root@b").startswith("refused | b is there, and nobody listens on its ssh port")


def test_a_host_that_is_cut_off_is_not_waited_for(network: Network) -> None:
    a, b = network.add("a"), network.add("b")
    a.trust(b)
    assert use(a, "b") == ""
    b.link(False)  # with a connection that is kept, and that nobody told
    assert use(a, "b").split(" | ")[0] in ("no answer", "no route")
    b.link(True)
    assert use(a, "b", "print(link.run(['hostname']).stdout)") == "b"
