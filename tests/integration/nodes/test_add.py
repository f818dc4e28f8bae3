"""A machine becomes a node over ssh, is brought up to date, and leaves."""

from __future__ import annotations

import json
import shutil
import stat

import pytest

from llmhost.hub.lock import read_lock, write_lock
from llmhost.probe.certificate import check_certificate
from tests.integration.nodes.homes import Homes

pytestmark = pytest.mark.integration


def test_secrets_reach_only_whom_they_are_for(homes: Homes) -> None:
    a, b = homes.add("a"), homes.add("b")
    homes.configure(a)
    key = homes.run(a, "keys", "add", "me").strip()
    homes.run(a, "node", "add", "root@b")
    nodes = homes.home(b).nodes
    assert sorted(p.name for p in (nodes / "tls").iterdir()) == ["b.key", "b.pem", "ca.pem"]
    for secret in (nodes / "key", nodes / "tls/b.key", homes.home(b).keys_file):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert json.loads(homes.run(b, "keys", "list", "--json"))[0]["name"] == "me"
    assert key.startswith("sk-")


def test_what_cannot_be_is_refused_and_nothing_is_changed(homes: Homes) -> None:
    a, b = homes.add("a"), homes.add("b")
    homes.configure(a)
    before = homes.home(a).config_file.read_text(encoding="utf-8")
    error, hint = homes.refused(a, "node", "add", "root@b", "--address", "127.0.0.1")
    assert "127.0.0.1" in error
    assert "the address at which the other nodes reach it" in hint
    error, _ = homes.refused(a, "node", "add", "root@b", "--home", "~/etc")
    assert "is not a home of llmhost and not empty" in error
    a.write_hosts({"a": a.address, "b": b.address, "bb": "127.0.1.1"})
    for option, name in (("--address", "b"), ("--self-address", "a")):
        error, hint = homes.refused(a, "node", "add", "root@b", option, "bb")
        assert error == f"error: nodes.{name}.address: bb is 127.0.1.1 here, where no other node reaches it"
        assert hint == "hint: write its IP address"
    homes.refused(a, "node", "add", "-oProxyCommand=x@b", ok=2)
    error, _ = homes.refused(a, "node", "add", "--", "-oProxyCommand=x")
    assert "is not a host for ssh" in error
    (b.root / ".ssh/authorized_keys").write_text("", encoding="utf-8")
    a.run("sh", "-c", "pkill -f '[.]llmhost/run/ssh'", ok=None)
    error, hint = homes.refused(a, "node", "add", "root@b")
    assert "the login was refused" in error
    assert "ssh-copy-id" in hint
    assert homes.home(a).config_file.read_text(encoding="utf-8") == before
    assert not homes.home(a).nodes.exists()
    assert not homes.home(b).config_file.exists()


def test_a_home_that_both_share_is_not_taken_for_that_of_another_node(homes: Homes) -> None:
    a, _ = homes.add("a"), homes.add("b")
    homes.configure(a)
    ours = homes.home(a).root
    alias = homes.network.place / "alias"
    alias.symlink_to(ours)
    before = sorted(ours.iterdir())
    for there in (str(ours), str(alias)):  # the disks of these hosts are one
        error, hint = homes.refused(a, "node", "add", "root@b", "--home", there)
        assert error == f"error: {there} at b is the same directory as {ours} here (a shared file system?)"
        assert "--home" in hint
    made = {ours / name for name in ("conf", "run", "logs")}
    assert {*before} <= {*ours.iterdir()} <= {*before, *made}
    homes.run(a, "node", "add", "root@b")
    assert not list(ours.glob(".llmhost-*"))
    assert homes.home(a).node_file.read_text(encoding="utf-8") == "a\n"


def test_an_llmhost_yaml_that_is_there_is_not_lost(homes: Homes) -> None:
    a, b = homes.add("a"), homes.add("b")
    homes.configure(a)
    theirs = "gateway: {port: 9000}   # mine\n"
    homes.home(b).config_file.write_text(theirs, encoding="utf-8")
    shutil.rmtree(homes.home(b).root / "app")
    error, hint = homes.refused(a, "node", "add", "root@b")
    assert "there is another llmhost.yaml at b" in error
    assert "`llmhost node add root@b --force`" in hint
    assert not (homes.home(b).root / "app").exists()  # refused before anything is brought
    homes.install(b)
    assert homes.home(b).config_file.read_text(encoding="utf-8") == theirs
    homes.run(b, "keys", "add", "theirs")
    keys = homes.home(b).keys_file.read_bytes()
    homes.run(a, "keys", "add", "me")
    homes.run(a, "node", "add", "root@b", "--force")
    assert homes.home(b).config_file.with_name("llmhost.yaml.before").read_text(encoding="utf-8") == theirs
    kept = homes.home(b).keys_file.with_name("keys.json.before")
    assert kept.read_bytes() == keys
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_files_of_a_node_that_was_edited_are_not_lost(homes: Homes) -> None:
    a, b = homes.add("a"), homes.add("b")
    homes.configure(a)
    homes.run(a, "node", "add", "root@b")
    file = homes.home(b).config_file
    file.write_text(file.read_text(encoding="utf-8") + "# by hand\n", encoding="utf-8")
    error, hint = homes.refused(a, "node", "sync")
    assert "llmhost.yaml of b was changed there" in error
    assert "`llmhost node sync --from b`" in hint
    homes.run(a, "node", "sync", "--from", "b")
    assert homes.home(a).config_file.read_text(encoding="utf-8").endswith("# by hand\n")
    homes.run(b, "keys", "add", "me")
    assert homes.run(b, "node", "sync") == "synced a\n"  # from any node
    assert homes.home(a).keys_file.read_bytes() == homes.home(b).keys_file.read_bytes()
    assert homes.run(b, "node", "sync") == "a: nothing to do\n"
    b.link(False)
    homes.run(a, "keys", "add", "you")
    assert "b does not answer" in a.run(*a.llmhost("node", "sync"), ok=1).stderr
    b.link(True)
    assert homes.run(a, "node", "sync") == "synced b\n"


def test_a_node_leaves_also_when_it_is_dead(homes: Homes) -> None:
    a, b, c = homes.add("a"), homes.add("b"), homes.add("c")
    homes.configure(a)
    homes.run(a, "node", "add", "root@b")
    homes.run(a, "node", "add", "root@c")
    homes.run(a, "node", "remove", "b")
    assert not homes.home(b).nodes.exists()
    assert not homes.home(b).node_file.exists()
    assert [line.split()[0] for line in homes.run(c, "node", "list").splitlines()] == ["NODE", "a", "c"]
    c.cut()
    said = a.run(*a.llmhost("node", "remove", "c")).stderr
    assert "c: c does not answer" in said or "c: c cannot be reached" in said
    assert [line.split()[0] for line in homes.run(a, "node", "list").splitlines()] == ["NODE", "a"]
    assert sorted(p.name for p in homes.home(a).node_tls.iterdir()) == ["a.key", "a.pem", "ca.key", "ca.pem"]
    error, _ = homes.refused(a, "node", "remove", "a")
    assert "a is this machine" in error


def test_the_authority_outlives_its_node_and_a_lost_one_is_replaced(homes: Homes) -> None:
    a, b, c = homes.add("a"), homes.add("b"), homes.add("c")
    d = homes.add("d", installed=False)
    homes.configure(a)
    homes.run(a, "node", "add", "root@b")
    homes.run(a, "node", "add", "root@c")
    file = homes.home(c).config_file
    file.write_text(file.read_text(encoding="utf-8") + "# by hand\n", encoding="utf-8")
    error, _ = homes.refused(b, "node", "remove", "a")
    assert "llmhost.yaml of c was changed there" in error
    assert [line.split()[0] for line in homes.run(b, "node", "list").splitlines()] == ["NODE", "a", "b", "c"]
    assert homes.home(a).node_tls.exists()
    homes.run(b, "node", "sync", "--force")
    key = (homes.home(a).node_tls / "ca.key").read_text(encoding="ascii")
    homes.run(b, "node", "remove", "a")
    assert not homes.home(a).nodes.exists()
    ours = homes.home(b).node_tls / "ca.key"
    assert ours.read_text(encoding="ascii").strip() == key.strip()
    assert stat.S_IMODE(ours.stat().st_mode) == 0o600
    homes.run(b, "node", "add", "root@a", "--force")  # signed here
    shutil.rmtree(homes.home(b).node_tls)  # as docs/nodes.md says, for a lost authority
    homes.run(b, "node", "add", "c")
    check_certificate(*(str(homes.home(c).node_tls / name) for name in ("c.pem", "c.key", "ca.pem")))
    assert (
        homes.home(b).node_tls.joinpath("ca.pem").read_bytes() == homes.home(c).node_tls.joinpath("ca.pem").read_bytes()
    )
    error, _ = homes.refused(c, "node", "add", "root@d")
    assert "made elsewhere" in error
    assert not (homes.home(d).root / "app").exists()


def test_names_that_are_the_same_are_told(homes: Homes) -> None:
    a, b = homes.add("a"), homes.add("b")
    homes.configure(a)
    b.run("hostname", "a")
    error, hint = homes.refused(a, "node", "add", "root@b")
    assert error == "error: b and this machine are both called a"
    assert "--name" in hint
    homes.run(a, "node", "add", "root@b", "--name", "other")
    assert homes.run(a, "node", "list").splitlines()[2].split()[:3] == ["other", b.address, "root@b"]


def test_what_is_pulled_on_one_node_is_pinned_on_all(homes: Homes) -> None:
    a, b = homes.add("a"), homes.add("b")
    homes.configure(a)
    homes.run(a, "node", "add", "root@b")
    for host, name, revision in ((a, "hf:o/x", "1" * 40), (b, "hf:o/x", "2" * 40), (b, "hf:o/y", "3" * 40)):
        lock = read_lock(homes.home(host).lock_of_models)
        write_lock(lock.with_model(name, revision, ()))
    homes.run(a, "node", "sync")
    for host in (a, b):
        models = read_lock(homes.home(host).lock_of_models).models
        assert {name: snapshot.revision[0] for name, snapshot in models.items()} == {"hf:o/x": "1", "hf:o/y": "3"}
    assert homes.run(a, "node", "sync") == "b: nothing to do\n"


def test_nodes_that_are_added_at_the_same_time_are_all_there(homes: Homes) -> None:
    a, b, c = homes.add("a"), homes.add("b"), homes.add("c")
    homes.configure(a)
    both = [a.popen(*a.llmhost("node", "add", f"root@{host.name}")) for host in (b, c)]
    for adding in both:
        _, said = adding.communicate(timeout=300)
        assert adding.returncode == 0, said
    homes.run(a, "node", "sync")
    for host in (a, b, c):
        listed = [line.split()[0] for line in homes.run(host, "node", "list").splitlines()]
        assert sorted(listed) == ["NODE", "a", "b", "c"]
