"""Network interfaces, and the addresses of hosts."""

from __future__ import annotations

import ipaddress
import socket

import psutil


def address_of(host: str) -> str:
    """The IP address that a host has for this machine; raises OSError when nobody knows it."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])


def find_address(host: str) -> str:
    """The same; '' when nobody knows it."""
    try:
        return address_of(host)
    except OSError:
        return ""


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
