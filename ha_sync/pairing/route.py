"""Which of this node's addresses faces the other node, and the hardware address behind it. Sends nothing. Linux."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct

ANYWHERE = "192.0.2.1"  # RFC 5737: routed like any far address, never reached
_SIOCGIFADDR = 0x8915  # netdevice(7)


def address_towards(host: str = ANYWHERE) -> str:
    """The source address that the kernel would use towards ``host``; empty where there is no route or name."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, target in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, protocol) as datagram:
                datagram.connect(target)  # of a datagram socket: chooses the route, sends nothing
                return str(datagram.getsockname()[0])
    return ""


def mac_of(address: str) -> str:
    """The hardware address of the interface with this IPv4 address; empty for loopback and where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, name in socket.if_nameindex():
            if _address_of(query, name) == address:
                with contextlib.suppress(OSError), open(f"/sys/class/net/{name}/address", encoding="ascii") as file:
                    mac = file.read().strip()
                    return mac if mac.strip("0:") else ""
    return ""


def _address_of(query: socket.socket, interface: str) -> str:
    try:
        answer = fcntl.ioctl(query.fileno(), _SIOCGIFADDR, struct.pack("256s", interface.encode()))
    except OSError:
        return ""
    return socket.inet_ntoa(answer[20:24])
