"""Network interfaces."""

from __future__ import annotations

import ipaddress

import psutil


def interface_of(address: str) -> str:
    """The network interface that has an IP address; '' when none has.

    All addresses of 127.0.0.0/8 are of the one that has 127.0.0.1.
    """
    known = ipaddress.ip_address(address)
    wanted = "127.0.0.1" if known.version == 4 and known.is_loopback else address
    for name, found in psutil.net_if_addrs().items():
        if any(a.address.partition("%")[0] == wanted for a in found):
            return name
    return ""
