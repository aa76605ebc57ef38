"""Ethernet frames of ARP (RFC 826, 5227) and neighbour discovery (RFC 4861): written and read. Pure.

MAC addresses are text, ``00:0b:82:aa:bb:01``. ``claim`` answers any bytes with a ``Claim`` or None, never an exception.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

ETHER_ARP = 0x0806
ETHER_IPV6 = 0x86DD
_ETHERNET = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_IPV6 = struct.Struct("!LHBB16s16s")
_NEIGHBOUR = struct.Struct("!BBHL16s")
_REQUEST, _REPLY = 1, 2
_SOLICITATION, _ADVERTISEMENT = 135, 136
_SOURCE_MAC, _TARGET_MAC = 1, 2
_ROUTER, _OVERRIDE = 0x80000000, 0x20000000
_ICMPV6 = 58
_HOPS = 255  # a neighbour's packet was never forwarded
_BROADCAST = b"\xff" * 6
_NOBODY_MAC = bytes(6)
_ALL_NODES = ipaddress.IPv6Address("ff02::1")
_NOBODY = ipaddress.IPv6Address("::")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Somebody says, asked or not, or by asking: this address is at this MAC.

    ``mac`` is what the frame says, ``sender`` who sent the frame.
    """

    address: Address
    mac: str
    sender: str


def ask_ipv4(target: ipaddress.IPv4Address, *, mac: str, own: ipaddress.IPv4Address | None) -> bytes:
    """An ARP request. ``own`` None: a probe (sender 0.0.0.0), which enters into nobody's table."""
    source = own.packed if own is not None else bytes(4)
    return _arp(_REQUEST, mac, source, _NOBODY_MAC, target.packed, to=_BROADCAST)


def announce_ipv4(address: ipaddress.IPv4Address, *, mac: str) -> tuple[bytes, bytes]:
    """Gratuitous ARP, as request and as reply: some listen to the one, some to the other."""
    request = _arp(_REQUEST, mac, address.packed, _NOBODY_MAC, address.packed, to=_BROADCAST)
    reply = _arp(_REPLY, mac, address.packed, _raw(mac), address.packed, to=_BROADCAST)
    return request, reply


def ask_ipv6(target: ipaddress.IPv6Address, *, mac: str, own: ipaddress.IPv6Address | None) -> bytes:
    """A neighbour solicitation. ``own`` None: from ``::``, as in duplicate detection; answered to all nodes."""
    group = ipaddress.IPv6Address(int(ipaddress.IPv6Address("ff02::1:ff00:0")) | (int(target) & 0xFFFFFF))
    option = bytes((_SOURCE_MAC, 1)) + _raw(mac) if own is not None else b""
    body = _NEIGHBOUR.pack(_SOLICITATION, 0, 0, 0, target.packed) + option
    return _icmp(body, mac, own or _NOBODY, group)


def announce_ipv6(address: ipaddress.IPv6Address, *, mac: str, router: bool) -> bytes:
    """An unsolicited neighbour advertisement that overrides. ``router``: this node forwards, and must say so."""
    flags = _OVERRIDE | (_ROUTER if router else 0)
    option = bytes((_TARGET_MAC, 1)) + _raw(mac)
    body = _NEIGHBOUR.pack(_ADVERTISEMENT, 0, 0, flags, address.packed) + option
    return _icmp(body, mac, address, _ALL_NODES)


def claim(frame: bytes) -> Claim | None:
    """What a frame says about the place of an address, if it says anything."""
    if len(frame) < _ETHERNET.size:
        return None
    _, source, kind = _ETHERNET.unpack_from(frame)
    if kind == ETHER_ARP:
        return _claim_ipv4(frame[_ETHERNET.size :], source)
    if kind == ETHER_IPV6:
        return _claim_ipv6(frame[_ETHERNET.size :], source)
    return None


def _claim_ipv4(packet: bytes, source: bytes) -> Claim | None:
    if len(packet) < _ARP.size:
        return None
    hardware, protocol, hardware_size, size, _, mac, sender, _, _ = _ARP.unpack_from(packet)
    if (hardware, protocol, hardware_size, size) != (1, 0x0800, 6, 4) or sender == bytes(4):
        return None
    return Claim(address=ipaddress.IPv4Address(sender), mac=mac.hex(":"), sender=source.hex(":"))


def _claim_ipv6(packet: bytes, source: bytes) -> Claim | None:
    if len(packet) < _IPV6.size + _NEIGHBOUR.size:
        return None
    _, size, following, hops, address, receiver = _IPV6.unpack_from(packet)
    body = packet[_IPV6.size : _IPV6.size + size]
    if following != _ICMPV6 or hops != _HOPS or len(body) < _NEIGHBOUR.size or len(body) != size:
        return None
    kind, code, _, _, target = _NEIGHBOUR.unpack_from(body)
    if kind != _ADVERTISEMENT or code != 0 or _checksum(address + receiver + _tail(size) + body):
        return None
    option = body[_NEIGHBOUR.size :]
    mac = option[2:8] if len(option) >= 8 and option[0] == _TARGET_MAC else source
    return Claim(address=ipaddress.IPv6Address(target), mac=mac.hex(":"), sender=source.hex(":"))


def _arp(operation: int, mac: str, source: bytes, target_mac: bytes, target: bytes, *, to: bytes) -> bytes:
    body = _ARP.pack(1, 0x0800, 6, 4, operation, _raw(mac), source, target_mac, target)
    return _ETHERNET.pack(to, _raw(mac), ETHER_ARP) + body


def _icmp(body: bytes, mac: str, source: ipaddress.IPv6Address, group: ipaddress.IPv6Address) -> bytes:
    sum_ = _checksum(source.packed + group.packed + _tail(len(body)) + body)
    body = body[:2] + struct.pack("!H", sum_) + body[4:]
    header = _IPV6.pack(6 << 28, len(body), _ICMPV6, _HOPS, source.packed, group.packed)
    multicast = b"\x33\x33" + group.packed[-4:]
    return _ETHERNET.pack(multicast, _raw(mac), ETHER_IPV6) + header + body


def _tail(size: int) -> bytes:
    """The end of the pseudo header (RFC 8200, 8.1)."""
    return struct.pack("!LL", size, _ICMPV6)


def _checksum(data: bytes) -> int:
    """The Internet checksum; 0 over data that holds its right checksum."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _raw(mac: str) -> bytes:
    raw = bytes.fromhex(mac.replace(":", ""))
    assert len(raw) == 6, mac
    return raw
