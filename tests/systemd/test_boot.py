"""`llmhost enable`, and then everything that happens to a machine: reboots, power cuts, kills, upgrades."""

from __future__ import annotations

import json

import pytest

from llmhost.fleet.acting import as_owner
from tests.systemd.box import APP, PYTHON, wait_for
from tests.systemd.conftest import HOME, UNIT, Served

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def enabled(machine: Served) -> Served:
    """Brought up by hand as root, then enabled: handed over to an account of its own."""
    machine.make_home()
    machine.llmhost("up", user="")
    said = machine.llmhost("enable", "--now", user="").stderr
    assert "handing over to systemd" in said
    assert "made the system account llmhost" in said
    return machine


@pytest.fixture
def box(enabled: Served) -> Served:
    """Everything as after `enable --now`, whatever a test before has done."""
    changed = enabled.write_config()
    if enabled.show("ActiveState") != "active":
        enabled.run("systemctl", "start", UNIT)
    if changed or set(enabled.states().values()) != {"ready"}:
        enabled.llmhost("up")
    enabled.await_states()
    return enabled


def supervisord(box: Served) -> int:
    return int(box.show("MainPID"))


def served(box: Served) -> bool:
    """A request works; the gateway may be a second behind the guards."""
    return bool(wait_for(lambda: box.ask("/v1/embeddings", model="embedding", input="a")[0] == 200))


def test_the_unit_is_sound_and_its_services_are_no_roots(box: Served) -> None:
    path = f"/etc/systemd/system/{UNIT}"
    assert box.run("systemd-analyze", "verify", path).stderr == ""
    box.run("systemd-analyze", "security", "--threshold=40", UNIT)
    assert set(box.run("ps", "--ppid", str(supervisord(box)), "-o", "user=").stdout.split()) == {"llmhost"}
    assert box.show("LimitNOFILE") == "1048576"
    assert box.show("LimitMEMLOCK") == "infinity"
    assert box.status()["boot"] == {"unit": UNIT, "scope": "system", "account": "llmhost", "at_boot": True}
    assert "with the machine" in box.llmhost("status").stdout
    assert "started chat-0, embedding-0, gateway" in box.run("systemctl", "status", UNIT).stdout


def test_enabling_twice_changes_nothing(box: Served) -> None:
    pid, before = supervisord(box), box.path(f"/etc/systemd/system/{UNIT}").read_text()
    box.llmhost("enable", "--now", user="")
    assert supervisord(box) == pid
    assert box.path(f"/etc/systemd/system/{UNIT}").read_text() == before


def test_a_reboot_brings_everything_back_but_what_was_stopped(box: Served) -> None:
    box.reboot()
    box.await_states()
    assert served(box)
    box.llmhost("stop", "embedding")
    box.reboot()
    box.await_states(embedding="stopped")
    box.llmhost("start", "embedding")
    box.reboot()
    box.await_states()


def test_a_power_cut_leaves_nothing_that_hinders(box: Served) -> None:
    box.cut()
    assert list(box.path(f"{HOME}/run").glob("*.sock"))  # nobody was there to remove them
    box.boot()
    box.await_states()
    assert served(box)


def test_a_killed_supervisord_is_back_by_itself_with_what_ran(box: Served) -> None:
    box.llmhost("stop", "embedding")
    pid, guards = supervisord(box), box.run("pgrep", "-f", "guard.py").stdout.split()
    box.run("kill", "-KILL", str(pid))
    wait_for(lambda: supervisord(box) not in (0, pid))
    wait_for(lambda: box.show("ActiveState") == "active")
    box.await_states(embedding="stopped")
    assert not set(guards) & set(box.run("pgrep", "-f", "guard.py").stdout.split())
    assert "Traceback" not in box.journal()


def test_a_killed_engine_is_no_reason_for_systemd_to_act(box: Served) -> None:
    pid = supervisord(box)
    engine = box.status()["services"][0]["replicas"][0]["engine_pid"]
    box.run("kill", "-KILL", str(engine))
    wait_for(lambda: box.status()["services"][0]["replicas"][0]["engine_pid"] not in (None, engine))
    box.await_states()
    assert supervisord(box) == pid
    assert box.show("OOMPolicy") == "continue"


def test_a_stop_lets_running_requests_finish(box: Served) -> None:
    # Ready says the guard; the gateway finds out for itself.
    wait_for(lambda: box.ask("/v1/chat/completions", model="chat", messages=[])[0] == 200)
    arrived, enough = f"{HOME}/run/arrived", f"{HOME}/run/enough"
    fake = {"chunks": 6000, "seconds": 0.1, "begun": arrived, "until": enough}
    body = json.dumps({"model": "chat", "messages": [], "stream": True, "fake": fake})
    request = box.popen(PYTHON, "-P", "-m", "tests.systemd.inside", "ask", "/v1/chat/completions", body)
    wait_for(box.path(arrived).exists)
    stop = box.popen("systemctl", "stop", UNIT)
    wait_for(lambda: "waiting for chat-0 to finish 1 request" in box.journal())
    assert box.ask("/v1/chat/completions", model="chat", messages=[])[0] == 503
    box.path(enough).touch()
    out, _ = request.communicate(timeout=300)
    status, text = json.loads(out)
    assert (status, text.rstrip().endswith("data: [DONE]")) == (200, True), out
    stop.communicate(timeout=300)
    assert box.processes() == ""
    assert box.show("Result") == "success"
    assert "SIGKILL" not in box.journal().rpartition("Stopping ")[2]
    assert box.states() == {"chat": "stopped", "embedding": "stopped", "gateway": "stopped"}


def test_reload_applies_an_edit_and_refuses_a_broken_one(box: Served) -> None:
    before = box.status()
    box.llmhost("stop", "embedding")
    box.write_config(rest=f"  second: {{model: {HOME}/models/chat}}\n")
    box.run("systemctl", "reload", UNIT)
    wait_for(lambda: box.states().get("second") == "ready")
    assert box.states()["embedding"] == "stopped"
    after = box.status()
    assert (before["supervisor"], before["gateway"]) == (after["supervisor"], after["gateway"])
    box.write_config(rest="  Second: {}\n")
    assert box.run("systemctl", "reload", UNIT, ok=None).returncode != 0
    assert "'Second' cannot be the name of a service" in box.journal()
    assert box.states()["second"] == "ready"


def test_a_start_takes_an_edit_along_and_a_broken_one_leaves_what_was(box: Served) -> None:
    box.write_config(rest=f"  second: {{model: {HOME}/models/chat}}\n")
    box.run("systemctl", "restart", UNIT)
    wait_for(lambda: box.states().get("second") == "ready")
    box.write_config(rest="  Second: {}\n")
    box.run("systemctl", "restart", UNIT)
    box.await_states(second="ready")
    assert "llmhost.yaml is not applied, what was in force is started" in box.journal()


def test_up_and_down_by_hand_go_through_systemd(box: Served) -> None:
    box.llmhost("down")
    assert box.show("ActiveState") == "inactive"
    assert box.processes() == ""
    refused = box.llmhost("up", ok=1).stderr
    assert f"sudo systemctl start --no-block {UNIT}" in refused
    box.run("systemctl", "start", UNIT)
    box.await_states()
    assert f"sudo -u llmhost llmhost --home {HOME}" in box.llmhost("stop", "chat", user="", ok=1).stderr
    box.llmhost("down")
    # Even while systemd waits for its next try.
    box.run("systemctl", "start", UNIT)
    box.run("kill", "-KILL", str(supervisord(box)))
    wait_for(lambda: box.show("ActiveState") == "active" and supervisord(box))
    box.await_states()


def test_root_of_another_node_starts_the_unit_and_acts_as_its_account(box: Served) -> None:
    box.llmhost("down")
    ours = box.run("find", HOME, "-user", "root").stdout  # of other tests
    words = (PYTHON, "-P", "-m", "llmhost", "--home", HOME, "up")
    box.run(*as_owner(HOME, words, "up"))
    assert box.show("ActiveState") == "active"
    box.await_states()
    assert box.run("find", HOME, "-user", "root").stdout == ours


def test_a_full_disk_stops_nothing_and_is_said(box: Served) -> None:
    logs, filler = f"{HOME}/logs", f"{HOME}/logs/filler"
    box.run("systemctl", "stop", UNIT)
    box.run("mount", "-t", "tmpfs", "-o", "size=2M", "logs", logs)
    box.run("chown", "llmhost:", logs)
    try:
        box.run("systemctl", "start", UNIT)
        box.await_states()
        box.run("dd", "if=/dev/zero", f"of={filler}", "bs=4k", ok=1)
        before = box.status()
        assert before["disk"]["low"]
        assert "services go on" in box.llmhost("status").stdout
        for n in range(20):
            assert box.ask("/v1/embeddings", model="embedding", input="a" * 1000, user=f"{n}")[0] == 200
        engine = before["services"][0]["replicas"][0]["engine_pid"]
        box.run("kill", "-KILL", str(engine))
        wait_for(lambda: box.status()["services"][0]["replicas"][0]["engine_pid"] not in (None, engine))
        box.await_states()
        assert box.status()["supervisor"] == before["supervisor"]
        assert "Traceback" not in box.journal()
        box.run("rm", filler)
        assert box.ask("/nowhere")[0] == 404
        wait_for(lambda: written(box, "/nowhere"))
    finally:
        box.run("systemctl", "stop", UNIT)
        box.run("umount", logs)


def written(box: Served, text: str) -> bool:
    """Whether the access log says so; it lies on a disk that only the machine sees."""
    return text in box.run("cat", f"{HOME}/logs/access.log").stdout


def test_an_upgrade_of_llmhost_renders_anew_and_starts_everything(box: Served) -> None:
    before = box.path(f"{HOME}/conf/supervisord.conf").read_text()
    assert "; of the next version" not in before
    template = box.path(f"{APP}/conf_templates/supervisord.conf.j2")
    module = box.path(f"{APP}/llmhost/__init__.py")
    old = template.read_text(), module.read_text()
    try:
        template.write_text("; of the next version\n" + old[0])
        module.write_text(old[1].replace("__version__ = ", "__version__ = '9.9.9'  # "))
        box.run("systemctl", "restart", UNIT)
        box.await_states()
        assert box.path(f"{HOME}/conf/supervisord.conf").read_text().startswith("; of the next version")
        assert "9.9.9" in box.llmhost("--version").stdout
    finally:
        template.write_text(old[0])
        module.write_text(old[1])


def test_a_unit_of_a_user(box: Served) -> None:
    box.run("useradd", "--create-home", "--uid", "4321", "alice")
    home = "/home/alice/.llmhost"
    box.llmhost("disable", "--now", user="")
    box.make_home(user="alice", home=home)
    assert "is root's" in box.llmhost("enable", user="alice", home=home, ok=1).stderr
    box.run("loginctl", "enable-linger", "alice")
    wait_for(
        lambda: (
            box.path("/run/user/4321/systemd/private").exists()
            or box.run("test", "-S", "/run/user/4321/systemd/private", ok=None).returncode == 0
        )
    )
    said = box.llmhost("enable", "--user", "--now", user="alice", home=home).stdout
    assert "starts /home/alice/.llmhost with the machine, as alice" in said
    box.await_states(home)
    box.reboot()
    box.await_states(home)
    assert box.status(home)["boot"] == {"unit": UNIT, "scope": "user", "account": "alice", "at_boot": True}
    box.llmhost("down", user="alice", home=home)
    assert "supervisord" not in box.processes("alice")
    box.llmhost("up", user="alice", home=home)
    state = ("systemctl", "--user", "show", "--property", "MainPID", "--value", UNIT)
    runtime = ("env", "XDG_RUNTIME_DIR=/run/user/4321")
    assert int(box.run(*runtime, *state, user="alice").stdout) == box.status(home)["supervisor"]["pid"]
    box.llmhost("disable", "--now", user="alice", home=home)
    assert "supervisord" not in box.processes("alice")
    assert not list(box.path("/home/alice/.config/systemd/user").rglob("llmhost*"))
    box.llmhost("enable", "--now", user="")


def test_disable_leaves_nothing(box: Served) -> None:
    box.llmhost("disable", user="")
    assert box.show("ActiveState") == "active"
    assert not box.status()["boot"]["at_boot"]
    assert "goes on running" in box.llmhost("disable", user="").stdout
    box.llmhost("disable", "--now", user="")
    assert box.processes() == ""
    assert not list(box.path("/etc/systemd").rglob("*llmhost*"))
    assert box.status()["boot"] is None
    assert box.show("LoadState") == "not-found"
    assert box.run("systemctl", "--failed", "--no-legend").stdout == ""
    box.reboot()
    assert box.processes() == ""
    assert "does not start with the machine" in box.llmhost("disable", user="", ok=1).stderr
    box.llmhost("enable", "--now", user="")
