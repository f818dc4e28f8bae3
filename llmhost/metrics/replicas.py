"""What the guards say of the engines, and what the engines take of the machine."""

from __future__ import annotations

import json
import os

from llmhost.supervise.guarding.processes import pids, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from llmhost.metrics.text import Page

STATES = ("stopped", "queued", "loading", "ready", "unhealthy", "backoff", "failed")


def add_replicas(page: Page, services: list[dict[str, Any]]) -> None:
    """State, restarts, last exit, processor time and memory of every replica."""
    processes = ProcessTable()
    for service in services:
        told = {"service": service["name"], "kind": service["kind"], "model": service["model"]}
        page.add("llmhost_service_info", "gauge", "A service of llmhost.yaml.", 1, told)
        for replica in service["replicas"]:
            labels = {"service": service["name"], "replica": replica["name"]}
            guard = read_guard(replica)
            state = state_of(guard, replica["guard"])
            for name in STATES:
                page.add(
                    "llmhost_replica_state", "gauge", "1 for the state that the replica is in.",
                    name == state, {**labels, "state": name},
                )  # fmt: skip
            _add_history(page, guard, labels)
            if state not in ("stopped", "failed", "backoff"):
                _add_use(page, processes, int(guard["guard_pid"]), labels)
            for gpu in replica["gpus"]:
                page.add(
                    "llmhost_replica_gpu", "gauge", "A GPU that the replica is placed on.",
                    1, {**labels, "gpu": str(gpu)},
                )  # fmt: skip


def read_guard(replica: dict[str, Any]) -> dict[str, Any]:
    """The state file of a guard (`llmhost.supervise.guarding.state`), empty when there is none."""
    try:
        said = json.loads(read(replica["state_file"]) or b"{}")
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def state_of(guard: dict[str, Any], spec: str) -> str:
    """The state of a replica from its state file, which is believed about a life only while its guard is alive.

    supervisord, without which nothing here runs, starts a guard again at once that was killed: that is ``backoff``.
    """
    state = str(guard.get("state") or "stopped")
    if state in ("stopped", "failed", "backoff"):
        return state
    words = read(f"/proc/{int(guard.get('guard_pid') or 0)}/cmdline").split(b"\0")
    return state if os.fsencode(spec) in words else "backoff"


def _add_history(page: Page, guard: dict[str, Any], labels: dict[str, str]) -> None:
    if not guard:
        return
    told = "Unplanned restarts since the replica was last started by command."
    page.add("llmhost_replica_restarts_total", "counter", told, int(guard.get("restarts") or 0), labels)
    told = "Unix time at which the replica came into its state."
    page.add("llmhost_replica_state_since_seconds", "gauge", told, float(guard.get("since") or 0), labels)
    last = guard.get("exit")
    if not isinstance(last, dict):
        return
    told = "Unix time at which the engine last ended by itself."
    page.add("llmhost_replica_last_exit_time_seconds", "gauge", told, float(last.get("time") or 0), labels)
    signal = last.get("signal")
    why = {**labels, "code": _text(last.get("code")), "signal": _text(signal)}
    told = "How the engine last ended by itself: its exit code, or the signal that ended it."
    page.add("llmhost_replica_last_exit_info", "gauge", told, 1, why)


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _add_use(page: Page, processes: ProcessTable, guard: int, labels: dict[str, str]) -> None:
    tree = processes.tree(guard)
    if tree:
        told = "Processor time of the engine, its children and its guard."
        page.add("llmhost_replica_cpu_seconds_total", "counter", told, processes.cpu_seconds(tree), labels)
        told = "Resident memory of the engine, its children and its guard; what they share is counted for each."
        page.add("llmhost_replica_resident_memory_bytes", "gauge", told, processes.resident_bytes(tree), labels)


class ProcessTable:
    """All processes of this machine, read once."""

    def __init__(self) -> None:
        self._children: dict[int, list[int]] = {}
        self._ticks: dict[int, int] = {}
        self._pages: dict[int, int] = {}
        for pid in pids():
            fields = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
            if len(fields) > 21:  # proc_pid_stat(5), counted from field 3: 4 ppid, 14-17 times, 24 rss
                self._children.setdefault(int(fields[1]), []).append(pid)
                self._ticks[pid] = sum(map(int, fields[11:15]))
                self._pages[pid] = int(fields[21])

    def tree(self, root: int) -> list[int]:
        """A process and all below it; empty when it is gone."""
        tree = [root] if root in self._ticks else []
        for pid in tree:  # grows while it is walked
            tree += self._children.get(pid, ())
        return tree

    def cpu_seconds(self, tree: list[int]) -> float:
        """Of these processes and of their children that have ended."""
        return sum(self._ticks[pid] for pid in tree) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self, tree: list[int]) -> int:
        return sum(self._pages[pid] for pid in tree) * os.sysconf("SC_PAGE_SIZE")
