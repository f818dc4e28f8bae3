"""Network interfaces."""

from __future__ import annotations

import psutil


def interface_of(address: str) -> str:
    """The network interface that has an IP address; '' when none has."""
    for name, found in psutil.net_if_addrs().items():
        if any(a.address.partition("%")[0] == address for a in found):
            return name
    return ""
