"""`llmhost enable` and `disable`: the unit is written, made to start with the machine, and taken away again."""

from __future__ import annotations

import ipaddress
import os
import pwd
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from llmhost import config as configuration
from llmhost import run, workflow, writer
from llmhost.boot import account as accounts
from llmhost.boot.gpus import GPU_SECONDS
from llmhost.boot.unitfile import UnitPlan, render_unit
from llmhost.config import Config
from llmhost.env import Silent, find_engine
from llmhost.errors import CommandError, ConfigError, EngineError, HomeError, SupervisorError
from llmhost.foreign import needs_vllm
from llmhost.homedir import is_ours
from llmhost.models import read_models
from llmhost.nodes import own_config
from llmhost.paths import Home, supervisord_script
from llmhost.render import SWEEP_SECONDS
from llmhost.supervise import daemon, systemd
from llmhost.supervise.units import BOOTED, LINGER, Unit, find_unit, owner, unit_directory, units

START_EXTRA_SECONDS = 180
"""For everything of a start that is not waiting for GPUs: sweeping a former life, planning, supervisord."""
STOP_EXTRA_SECONDS = int(daemon.STOP_EXTRA) + SWEEP_SECONDS + 40
"""For everything of a stop that is not ``stop_timeout`` of a service: killing, sweeping, gateway, supervisord."""
GROWING_PAUSES_SINCE = 254
CACHES = (".cache", ".nv", ".triton", ".config/vllm")
"""What engines write below the directory of their user, which they may only read otherwise."""
TEMPORARY = ("/tmp", "/var/tmp")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wish:
    """What `llmhost enable` was told."""

    scope: str
    """``system`` or ``user``."""
    name: str
    """Of the unit, without its suffix."""
    account: str | None
    """Whose services they are; None: the owner of the home, or llmhost's own account when that is root."""
    now: bool


def enable(home: Home, wish: Wish, say: Say) -> Unit:
    """Install and enable the unit, and with ``now`` hand the services over to it; run twice it changes nothing.

    Raises LlmhostError, with nothing installed, when the unit could not work.
    """
    config = _require_usable(home)
    _require_systemd(wish)
    unit = _unit(home, wish)
    _require_free(home, unit)
    _hand_over(home, unit, wish, say)
    if unit.scope == "system":
        _ensure_account(home, unit.account, say)
        accounts.require_reach(unit.account, sys.executable, _needed_files(home, config))
    linger = unit.scope == "user" and _ensure_linger(unit.account, say)
    was = find_unit(home)
    unit = unit._replace(linger=linger or bool(was and was.linger))
    _install(home, unit, config)
    if wish.now:
        systemd.systemctl(unit, "start", unit.name, timeout=GPU_SECONDS + START_EXTRA_SECONDS)
    return find_unit(home) or unit


def disable(home: Home, *, now: bool) -> tuple[Unit, bool]:
    """Take the unit away; while it runs services (and without ``now``) it only loses its place in the boot.

    Returns the unit, and whether it is gone. Raises HomeError when there is none.
    """
    unit = find_unit(home)
    if unit is None:
        raise HomeError(f"{home.root} does not start with the machine", "there is nothing to disable")
    _require_root(unit.scope, "disable")
    if not os.path.isdir(BOOTED):
        _remove(unit)
        return unit, True
    systemd.systemctl(unit, "disable", *(("--now",) if now else ()), unit.name, timeout=daemon.SHUTDOWN_SECONDS)
    if unit.linger:
        run.capture(["loginctl", "disable-linger", unit.account], check=False)
    if systemd.active_state(unit) in ("active", "activating", "deactivating", "reloading"):
        return unit, False
    _remove(unit)
    systemd.systemctl(unit, "daemon-reload")
    systemd.forget(unit)
    return unit, True


def _require_usable(home: Home) -> Config:
    if not is_ours(home):
        raise HomeError(f"{home.root} is not a home of llmhost", "name the home with --home (sudo changes ~)")
    config = own_config(home, configuration.load(home.config_file))
    if needs_vllm(config) and find_engine(home, config.engine) is None:
        raise EngineError(f"the engine {config.engine.name} is not built yet", "run `llmhost up` (or `setup`) first")
    return config


def _require_systemd(wish: Wish) -> None:
    _require_root(wish.scope, "enable")
    if wish.scope == "user" and os.geteuid() == 0:
        raise HomeError("root has no user manager to speak of", "leave --user out")
    if not os.path.isdir(BOOTED):
        raise SupervisorError("systemd is not the init of this machine", "start `llmhost up` with what is")


def _require_root(scope: str, command: str) -> None:
    if scope == "system" and os.geteuid() != 0:
        raise HomeError(
            "a unit of the system is root's", f"use `sudo … llmhost --home … {command}`, or `llmhost enable --user`"
        )


def _unit(home: Home, wish: Wish) -> Unit:
    name = f"{wish.name}.service"
    path = os.path.join(unit_directory(wish.scope, home), name)
    account = wish.account or owner(home)
    if wish.scope == "user":
        account = pwd.getpwuid(os.geteuid()).pw_name
        if account != owner(home):
            raise HomeError(f"{home.root} belongs to {owner(home)}", "run the command as that user")
    elif wish.account is None and account == "root":
        account = accounts.DEFAULT
    return Unit(name, wish.scope, path, account, enabled=False, linger=False)


def _require_free(home: Home, unit: Unit) -> None:
    """One unit for each home, one home for each unit."""
    own = find_unit(home)
    if own is not None and (own.name, own.scope) != (unit.name, unit.scope):
        raise ConfigError(f"{own.path} starts {home.root} already", "run `llmhost disable` first")
    if own is None and any(other.path == unit.path for other in units(unit.scope, home)):
        raise ConfigError(f"{unit.path} belongs to another home", "choose another name for the unit with --name")


def _hand_over(home: Home, unit: Unit, wish: Wish, say: Say) -> None:
    """Stop what runs when the unit is to run it from now on, or refuse what only that would make possible."""
    if not daemon.is_running(home):
        return
    by_unit = find_unit(home) is not None and systemd.main_pid(unit) != 0
    changes_hands = unit.account != owner(home)
    if wish.now and (changes_hands or not by_unit):
        say("handing over to systemd: what runs is stopped first")
        if by_unit:
            systemd.systemctl(unit, "stop", unit.name, timeout=daemon.SHUTDOWN_SECONDS)
        else:
            workflow.down(home, Silent())
    elif changes_hands:
        raise HomeError(
            f"what runs belongs to {owner(home)} and the unit would run as {unit.account}",
            "add --now, which stops it and starts it with the unit, or run `llmhost down` first",
        )
    elif not by_unit:
        say("what runs now was started by hand and goes on so; `llmhost enable --now` hands it over to systemd")


def _ensure_account(home: Home, account: str, say: Say) -> None:
    if not accounts.exists(account):
        if account != accounts.DEFAULT:
            raise HomeError(f"there is no user {account}", "name one with --account")
        accounts.create(account, home)
        say(f"made the system account {account}")
    if owner(home) != account:
        accounts.give(home, account)
        say(f"{home.root} belongs to {account} now")


def _needed_files(home: Home, config: Config) -> list[Path]:
    """What the account must be able to read, the models above all."""
    engine = find_engine(home, config.engine)
    python = [Path(engine.python)] if engine else []
    return [*python, *(Path(m.path) / "config.json" for m in read_models(home, config).values())]


def _ensure_linger(account: str, say: Say) -> bool:
    """Let the user's manager start with the machine; True when this was switched on here."""
    if os.path.exists(f"{LINGER}/{account}"):
        return False
    try:
        run.capture(["loginctl", "enable-linger", account])
    except CommandError as e:
        say(f"starts with your first login, not with the machine ({e.message}); root can mend that:")
        say(f"  sudo loginctl enable-linger {account}")
        return False
    return True


def _install(home: Home, unit: Unit, config: Config) -> None:
    path = Path(unit.path)
    try:
        writer.replace_file(path, render_unit(unit_plan(home, unit, config)), mode=0o644)
    except OSError as e:
        raise HomeError(f"cannot write {path}: {e.strerror}", "is the disk full or the directory read-only?") from e
    try:
        systemd.systemctl(unit, "daemon-reload")
        systemd.systemctl(unit, "enable", unit.name)
    except SupervisorError:
        _remove(unit)
        raise


def _remove(unit: Unit) -> None:
    folder, name = os.path.split(unit.path)
    Path(unit.path).unlink(missing_ok=True)
    for link in Path(folder).glob(f"*.wants/{name}"):
        link.unlink()


def unit_plan(home: Home, unit: Unit, config: Config) -> UnitPlan:
    """The unit for a home, from llmhost.yaml and what is on this machine."""
    stops = (service.stop_timeout for service in config.services.values())
    modprobe = shutil.which("nvidia-modprobe")
    plan = UnitPlan(
        name=unit.name,
        scope=unit.scope,
        home=str(home.root),
        account=unit.account,
        python=sys.executable,
        supervisord_script=str(supervisord_script()),
        supervisord_conf=str(home.supervisord_conf),
        start_seconds=int(GPU_SECONDS) + START_EXTRA_SECONDS,
        stop_seconds=int(max(stops, default=0)) + STOP_EXTRA_SECONDS,
        mounts=(str(home.root), sys.prefix),
        writable=(str(home.root),),
        private_tmp=not any(_below(path, TEMPORARY) for path in (str(home.root), sys.prefix, __file__)),
        needs_network=_needs_network(config),
        growing_pauses=_systemd_version() >= GROWING_PAUSES_SINCE,
        linger=unit.linger,
    )
    if unit.scope == "user":
        return plan
    caches = [f"{pwd.getpwnam(unit.account).pw_dir}/{name}" for name in CACHES]
    writable = (str(home.root), *(f"-{cache}" for cache in caches if not _below(cache, (str(home.root),))))
    return replace(plan, modprobe=(modprobe,) if modprobe else (), writable=writable)


def _below(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def _needs_network(config: Config) -> bool:
    """Other nodes, or an address of the gateway that is neither this machine's own nor all of them."""
    if len(config.nodes) > 1:
        return True
    try:
        address = ipaddress.ip_address(config.gateway.host)
    except ValueError:
        return config.gateway.host != "localhost"
    return not (address.is_loopback or address.is_unspecified)


def _systemd_version() -> int:
    words = run.capture(["systemctl", "--version"], check=False).stdout.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
