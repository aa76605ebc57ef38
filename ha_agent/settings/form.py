"""What a name, a path, an address and a command must look like.

A ``..._of`` parses and raises ``ValueError`` with the remedy; the others return what is wrong, or an empty string.
Limits in bytes are those of Linux: ``PATH_MAX`` 4096 with its NUL, ``IFNAMSIZ`` 16 with its NUL, ``sun_path`` 108 with
its NUL, the kernel's ``comm`` 15.
"""

from __future__ import annotations

import ipaddress
import os
import re

from ha_agent.arbiter.values import Mac
from ha_agent.settings.values import Address

PATH_BYTES_MAX = 4095
SOCKET_PATH_BYTES_MAX = 107
COMM_BYTES_MAX = 15

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_INTERFACE = re.compile(r"[^\s/:%]{1,15}\Z")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")


def name(text: str) -> str:
    """Of a path, a service or a probe."""
    return (
        "" if _NAME.match(text) else "must be 1 to 64 characters of a-z, 0-9, dot, dash and _, a letter or digit first"
    )


def free_text(text: str) -> str:
    """For people; short enough for a table."""
    return "" if len(text) <= 64 else "must be at most 64 characters"


def absolute_path(text: str) -> str:
    """An absolute path without ``..`` that the kernel accepts."""
    if not text.startswith("/"):
        return "must be an absolute path: begin it with /"
    if len(os.fsencode(text)) > PATH_BYTES_MAX:
        return f"is longer than the {PATH_BYTES_MAX} bytes that Linux takes"
    return 'must not contain "..": write the real path' if ".." in text.split("/") else ""


def interface(text: str) -> str:
    """A network interface's name."""
    if _INTERFACE.match(text) and text not in {".", ".."}:
        return ""
    return "must be the name of a network interface: 1 to 15 characters without blanks, slash, colon and percent sign"


def process(text: str) -> str:
    """The kernel's name of a process (``comm``)."""
    fits = 0 < len(os.fsencode(text)) <= COMM_BYTES_MAX and "/" not in text
    return "" if fits else f"must be the name as in /proc/<pid>/comm: 1 to {COMM_BYTES_MAX} bytes, no slash"


def argument(_text: str) -> str:
    """Whatever a program takes."""
    return ""


def mac_of(text: str) -> Mac:
    """An EUI-48 of one station, in lower case with colons."""
    plain = text.strip().lower().replace("-", ":")
    if not _MAC.match(plain):
        raise ValueError('must be a hardware address of six pairs of hex digits, e.g. "00:0b:82:aa:bb:02"')
    first = int(plain[:2], 16)
    if first & 1 or plain == "00:00:00:00:00:00":
        raise ValueError("must be the hardware address of one port, not of a group and not zero")
    return Mac(plain)


def address_of(text: str) -> Address:
    """An address that a node can have."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError("must be an address, e.g. 192.168.129.52 or fd00::52") from None
    _be_unicast(found)
    if isinstance(found, ipaddress.IPv6Address) and found.is_link_local and not found.scope_id:
        raise ValueError('a link-local address needs its interface, e.g. "fe80::1%eth1"')
    return found


def gateway_of(text: str) -> Address | None:
    """An address, or ``none``."""
    try:
        return None if text == "none" else address_of(text)
    except ValueError as wrong:
        raise ValueError(f'{wrong}, or "none"') from None


def cluster_ip_of(text: str) -> ipaddress.IPv4Interface:
    """An IPv4 address with the prefix length of its network."""
    try:
        found = ipaddress.IPv4Interface(text)
    except ValueError:
        raise ValueError("must be an IPv4 address with its prefix length, e.g. 192.168.129.53/24") from None
    _be_shareable(found)
    return found


def cluster_ip6_of(text: str) -> ipaddress.IPv6Interface:
    """An IPv6 address with the prefix length of its network."""
    try:
        found = ipaddress.IPv6Interface(text)
    except ValueError:
        raise ValueError("must be an IPv6 address with its prefix length, e.g. fd00::53/64") from None
    _be_shareable(found)
    return found


def endpoint_of(text: str) -> tuple[str, int]:
    """``host:port`` with a numeric host: a name would need a resolver in the middle of a fault."""
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not (port.isascii() and port.isdigit() and len(port) <= 5) or not 1 <= int(port) <= 65535:
        raise ValueError("must be address:port with a port from 1 to 65535, e.g. 127.0.0.1:5038 or [::1]:5038")
    try:
        return str(ipaddress.ip_address(host)), int(port)
    except ValueError:
        raise ValueError("the host must be an address, not a name, e.g. 127.0.0.1:5038 or [::1]:5038") from None


def _be_unicast(found: Address) -> None:
    if found.is_multicast or found.is_unspecified or found == ipaddress.ip_address("255.255.255.255"):
        raise ValueError("must be the address of one node, not of a group and not zero")


def _be_shareable(found: ipaddress.IPv4Interface | ipaddress.IPv6Interface) -> None:
    _be_unicast(found.ip)
    hosts_matter = found.network.prefixlen <= found.max_prefixlen - 2
    if (
        found.version == 4
        and hosts_matter
        and found.ip in {found.network.network_address, found.network.broadcast_address}
    ):
        raise ValueError("is the address of the network itself or its broadcast address: take one between them")
    if isinstance(found, ipaddress.IPv6Interface) and (found.ip.is_link_local or found.ip.scope_id):
        raise ValueError("must not be link-local: phones in other networks must reach it")
