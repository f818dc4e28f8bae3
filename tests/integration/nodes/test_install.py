"""llmhost itself on another host: from a package index there, from a bundle, and again after an interruption."""

from __future__ import annotations

import pytest

from llmhost import __version__
from llmhost.bundle.own_wheel import own_digest
from tests.integration.nodes.homes import Homes
from tests.netns import wait_for

pytestmark = pytest.mark.integration


def test_llmhost_is_installed_there_and_an_interrupted_installation_goes_on(homes: Homes) -> None:
    a, b = homes.add("a"), homes.add("b", installed=False)
    homes.configure(a)
    before = homes.home(a).config_file.read_text(encoding="utf-8")
    app = homes.home(b).root / "app"
    adding = a.popen(*a.llmhost("node", "add", "root@b"))
    wait_for(lambda: list(app.glob("llmhost-*/bin/python")), 120)
    a.run("pkill", "-KILL", "-f", "llmhost node add")  # what it runs there must not go on by itself
    adding.communicate()
    assert homes.home(a).config_file.read_text(encoding="utf-8") == before
    wait_for(lambda: "pip" not in b.run("ps", "ax").stdout)

    homes.run(a, "node", "add", "root@b")
    text = homes.home(a).config_file.read_text(encoding="utf-8")
    assert text.startswith(before)
    assert homes.home(b).config_file.read_text(encoding="utf-8") == text
    assert b.run(str(app / "bin/llmhost"), "--version").stdout.split()[-1] == __version__
    assert homes.run(b, "node", "list").splitlines()[2].split()[:3] == ["b", b.address, "(this"]

    tree = sorted(p.name for p in app.iterdir())
    assert "is there already" in a.run(*a.llmhost("node", "add", "b")).stderr
    assert sorted(p.name for p in app.iterdir()) == tree == ["bin", f"{next(app.glob('llmhost-*')).name}"]
    assert homes.home(a).config_file.read_text(encoding="utf-8") == text


def test_an_older_llmhost_is_told_and_replaced(homes: Homes) -> None:
    a, b = homes.add("a"), homes.add("b")
    homes.configure(a)
    homes.run(a, "node", "add", "root@b")
    homes.install(b, "0.0.9", "000000000000")
    node = homes.status(a)["b"]
    assert not node["ready"]
    assert node["error"] == f"b has llmhost 0.0.9, and this node {__version__}"
    assert "b has llmhost 0.0.9" in a.run(*a.llmhost("node", "sync"), ok=1).stderr
    (homes.home(b).root / "app").joinpath(f"llmhost-{__version__}-{own_digest()}", ".complete").unlink()
    said = a.run(*a.llmhost("node", "add", "b")).stderr
    assert "b has llmhost 0.0.9: it is brought to that of this machine" in said
    assert homes.status(a)["b"]["error"] is None


def test_a_host_without_a_network_gets_everything_from_a_bundle(homes: Homes) -> None:
    a, b = homes.add("a"), homes.add("b", installed=False)
    homes.configure(a)
    facts = homes.network.place / "facts.json"
    facts.write_text(homes.run(b, "facts", "--json"), encoding="utf-8")
    bundle = homes.network.place / "bundle"
    homes.run(a, "bundle", "create", "--target", str(facts), "--only", "llmhost", "-o", str(bundle))
    homes.run(a, "node", "add", "root@b", "--bundle", str(bundle))
    app = homes.home(b).root / "app"
    assert b.run(str(app / "bin/llmhost"), "--version").stdout.split()[-1] == __version__
    assert not (app / "incoming").exists()
    assert homes.status(a)["b"]["reachable"]
