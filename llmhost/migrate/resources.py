"""What a compose service may use: GPUs, replicas, memory, devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmhost.migrate.report import Draft

NO_LIMITS = {
    "memory": "the plan shares out memory; systemd's MemoryMax limits the whole home",
    "mem_limit": "the plan shares out memory; systemd's MemoryMax limits the whole home",
    "mem_reservation": "the plan shares out memory",
    "memswap_limit": "the plan shares out memory",
    "cpus": "the plan shares out cores, and binds engines to them",
    "cpuset": "the plan shares out cores, and binds engines to them",
    "cpu_shares": "the plan shares out cores, and binds engines to them",
    "pids": "limits are the user's",
    "devices": "engines see the devices that the user of the home may open",
    "device_cgroup_rules": "engines see the devices that the user of the home may open",
}
"""Limits of a container -> what there is instead."""
MOST = 64
"""Replicas that a service may have."""


def translate_resources(draft: Draft, entry: Mapping[str, Any], env: Mapping[str, str]) -> None:
    """Write `gpus` and `replicas`; everything else below ``deploy:`` and its like goes into the report."""
    deploy = _mapping(entry.get("deploy"))
    resources = _mapping(deploy.get("resources"))
    _gpus(draft, entry, env, _mapping(resources.get("reservations")).get("devices"))
    for part, amounts in resources.items():
        for key, amount in _mapping(amounts).items():
            if (part, key) != ("reservations", "devices"):
                draft.left_out(f"deploy.resources.{part}.{key}: {amount}", NO_LIMITS.get(key, "a limit of Docker's"))
    for key in (k for k in NO_LIMITS if k in entry):
        draft.left_out(f"{key}: {entry[key]}", NO_LIMITS[key])
    for source, number in (("deploy.replicas", deploy.get("replicas")), ("scale", entry.get("scale"))):
        if number is not None:
            _replicas(draft, f"{source}: {number}", str(number))
    for key in (k for k in deploy if k not in ("resources", "replicas")):
        draft.left_out(f"deploy.{key}", "Docker's")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _replicas(draft: Draft, source: str, number: str) -> None:
    if not number.isdigit() or not 0 < int(number) <= MOST:
        draft.by_hand(source, f"replicas: is 1 to {MOST} here; `llmhost stop NAME` stops a service")
        return
    if number != "1":
        draft.keys["replicas"] = int(number)
    draft.became(source, f"replicas: {number}")


def _gpus(draft: Draft, entry: Mapping[str, Any], env: Mapping[str, str], devices: object) -> None:
    visible = env.get("CUDA_VISIBLE_DEVICES") or env.get("NVIDIA_VISIBLE_DEVICES") or ""
    indices = [part.strip() for part in visible.split(",")] if visible else []
    count: object = entry.get("gpus")
    for device in devices if isinstance(devices, list) else ():
        if isinstance(device, Mapping):
            indices = [str(i) for i in device.get("device_ids") or indices]
            count = device.get("count", count)
    if indices and all(i.isdigit() for i in indices):
        draft.keys["gpus"] = [int(i) for i in indices]
        draft.became(f"devices {', '.join(indices)}", f"gpus: [{', '.join(indices)}]")
    elif isinstance(count, int) and "gpus" not in draft.keys:
        draft.became(f"devices count: {count}", "gpus: auto (the plan takes the fewest that are enough)")
    elif count is not None or indices:
        draft.left_out(f"devices {count or ', '.join(indices)}", "gpus: auto is the default")
