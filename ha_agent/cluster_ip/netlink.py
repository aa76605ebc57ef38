"""The few words of rtnetlink that a cluster IP needs: read and change addresses, read links, neighbours, notices.

By hand rather than by a library (ADR 0011): a call takes some 50 us and nothing runs between a look at the clock and
the call that depends on it. The kernel answers a request while it is being sent, so no call here waits, except for
the kernel's own lock while somebody else reconfigures the network (up to some ms). One ``Kernel`` for one thread.

Layouts: rtnetlink(7), linux/rtnetlink.h, linux/if_addr.h, linux/if_link.h, linux/neighbour.h. Lifetimes in seconds.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NewType

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Index = NewType("Index", int)

FOREVER = 0xFFFFFFFF
ANSWER_WITHIN_S = 2
RECEIVE_BYTES = 1 << 16

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWNEIGH, RTM_GETNEIGH = 28, 30
GROUP_LINK, GROUP_IPV4_ADDRESS, GROUP_IPV6_ADDRESS = 0x1, 0x10, 0x100

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP, _REPLACE, _CREATE = 0x1, 0x4, 0x300, 0x100, 0x400
_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_CACHEINFO, _IFA_FLAGS = 1, 2, 3, 6, 8
_IFA_F_NODAD = 0x02
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_OPERSTATE = 1, 3, 16
_LINK_WANTED = frozenset({_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_OPERSTATE})
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_REACHABLE = 0x02

_HEADER = struct.Struct("=LHHLL")
_ATTRIBUTE = struct.Struct("=HH")
_IFADDRMSG = struct.Struct("=BBBBL")
_IFINFOMSG = struct.Struct("=BxHiLL")
_NDMSG = struct.Struct("=BxxxiHBB")
_CACHEINFO = struct.Struct("=LLLL")
_IFREQ = struct.Struct("=16si20x")  # netdevice(7)
_SIOCGIFINDEX = 0x8933

OPERSTATES = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFacts:
    """One interface."""

    index: Index
    name: str
    mac: str
    up: bool  # switched on by the administrator
    carrier: bool
    operstate: str  # one of OPERSTATES

    @property
    def usable(self) -> bool:
        """Whether frames can pass. Drivers without an operational state say ``unknown``."""
        return self.up and self.carrier and self.operstate in {"up", "unknown"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressFacts:
    """One address of an interface, as the kernel holds it."""

    index: Index
    address: Address
    prefix: int
    label: str  # IPv4 only
    valid_s: int  # left; FOREVER: not a lease
    created: int  # hundredths of a second since boot; another number is another address, though it look the same


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourFacts:
    """A neighbour whom the kernel holds for reachable."""

    index: Index
    address: Address
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A change that the kernel told of. ``gone``: deleted."""

    gone: bool
    what: LinkFacts | AddressFacts


class Kernel:
    """A conversation with the kernel about this network namespace. Raises OSError with the kernel's number."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        try:
            self._socket.bind((0, 0))
            # Of the kernel: Python's own timeout asks poll(2) before each call.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", ANSWER_WITHIN_S, 0))
            self._names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def close(self) -> None:
        """Ends the conversation."""
        self._socket.close()
        self._names.close()

    def index(self, name: str) -> Index | None:
        """Of the interface of this name, or None. Much cheaper than all that ``link`` tells."""
        try:
            asked = fcntl.ioctl(self._names, _SIOCGIFINDEX, _IFREQ.pack(name.encode(), 0))
        except OSError:
            return None
        return Index(_IFREQ.unpack(asked)[1])

    def link(self, name: str) -> LinkFacts | None:
        """The interface of this name, or None."""
        body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + _attribute(_IFLA_IFNAME, name.encode() + b"\0")
        try:
            answers = list(self._ask(RTM_GETLINK, _REQUEST | _ACK, body))
        except OSError as error:
            if error.errno in {errno.ENODEV, errno.ERANGE, errno.EINVAL}:
                return None
            raise
        return next((_link(payload) for kind, payload in answers if kind == RTM_NEWLINK), None)

    def addresses(self, address: Address | None = None) -> tuple[AddressFacts, ...]:
        """All addresses of all interfaces, or all entries of one address."""
        answers = self._all_addresses(socket.AF_UNSPEC if address is None else _family(address))
        # Before it is parsed: an address that stands nowhere in the message is not what it is about.
        found = [_address(payload) for payload in answers if address is None or address.packed in payload]
        return tuple(one for one in found if one is not None and address in {None, one.address})

    def addresses_on(self, index: Index, version: int) -> tuple[AddressFacts, ...]:
        """Those of one interface and one family."""
        answers = self._all_addresses(socket.AF_INET if version == 4 else socket.AF_INET6)
        found = [_address(payload) for payload in answers if _IFADDRMSG.unpack_from(payload)[4] == index]
        return tuple(one for one in found if one is not None)

    def _all_addresses(self, family: int) -> list[bytes]:
        answers = self._ask(RTM_GETADDR, _REQUEST | _DUMP, _IFADDRMSG.pack(family, 0, 0, 0, 0))
        return [payload for kind, payload in answers if kind == RTM_NEWADDR]

    def neighbours(self, index: Index, family: int = socket.AF_INET) -> tuple[NeighbourFacts, ...]:
        """Who was reachable on this interface lately."""
        answers = self._ask(RTM_GETNEIGH, _REQUEST | _DUMP, _NDMSG.pack(family, 0, 0, 0, 0))
        found = [_neighbour(payload) for kind, payload in answers if kind == RTM_NEWNEIGH]
        return tuple(one for one in found if one is not None and one.index == index)

    def replace(self, index: Index, address: Address, *, label: str, valid_s: int) -> None:
        """Adds the address as a host address with this lifetime, or gives the one that is there this lifetime.

        Danger: there is no way to ask the kernel for "only if it is there".
        """
        assert 0 < valid_s < FOREVER, valid_s
        extra = _attribute(_IFA_CACHEINFO, _CACHEINFO.pack(valid_s, valid_s, 0, 0))
        if address.version == 4:
            extra += _attribute(_IFA_LABEL, label.encode() + b"\0")
        else:
            extra += _attribute(_IFA_FLAGS, struct.pack("=L", _IFA_F_NODAD))
        body = _host_address(index, address) + extra
        for _ in self._ask(RTM_NEWADDR, _REQUEST | _ACK | _CREATE | _REPLACE, body):
            pass

    def delete(self, index: Index, address: Address) -> bool:
        """Deletes the host address. False: it was not there."""
        try:
            for _ in self._ask(RTM_DELADDR, _REQUEST | _ACK, _host_address(index, address)):
                pass
        except OSError as error:
            if error.errno in {errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENOENT}:
                return False
            raise
        return True

    def _ask(self, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        """Sends a request; yields the answers until the kernel says that it is done."""
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        size = _HEADER.size + len(body)
        self._socket.sendto(_HEADER.pack(size, kind, flags, self._sequence, 0) + body, (0, 0))
        while True:
            for answer, sequence, payload in messages(self._socket.recv(RECEIVE_BYTES)):
                if sequence != self._sequence:
                    continue  # left over from a question that failed half way
                if answer == _NLMSG_DONE:
                    return
                if answer == _NLMSG_ERROR:
                    code = -int(struct.unpack_from("=i", payload)[0])
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                yield answer, payload


def messages(datagram: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Kind, sequence and payload of each message in what was received."""
    at = 0
    while at + _HEADER.size <= len(datagram):
        size, kind, _, sequence, _ = _HEADER.unpack_from(datagram, at)
        if size < _HEADER.size:
            return
        yield kind, sequence, datagram[at + _HEADER.size : at + size]
        at += (size + 3) & ~3


def notices(datagram: bytes) -> Iterator[Notice]:
    """The changes of links and addresses in what came from a multicast group."""
    for kind, _, payload in messages(datagram):
        if kind in {RTM_NEWLINK, RTM_DELLINK} and payload[:1] == b"\0":  # other families: the bridge's own tales
            yield Notice(gone=kind == RTM_DELLINK, what=_link(payload))
        elif kind in {RTM_NEWADDR, RTM_DELADDR}:
            found = _address(payload)
            if found is not None:
                yield Notice(gone=kind == RTM_DELADDR, what=found)


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _host_address(index: Index, address: Address) -> bytes:
    header = _IFADDRMSG.pack(_family(address), address.max_prefixlen, 0, 0, index)
    return header + _attribute(_IFA_LOCAL, address.packed) + _attribute(_IFA_ADDRESS, address.packed)


def _attribute(kind: int, value: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def _attributes(payload: bytes, at: int, wanted: frozenset[int] = frozenset()) -> dict[int, bytes]:
    """``wanted``: no further than until these are found; a link tells some fifty of itself."""
    found: dict[int, bytes] = {}
    missing = len(wanted)
    while at + _ATTRIBUTE.size <= len(payload):
        size, kind = _ATTRIBUTE.unpack_from(payload, at)
        if size < _ATTRIBUTE.size:
            break
        if not wanted or kind & 0x3FFF in wanted:
            found[kind & 0x3FFF] = payload[at + _ATTRIBUTE.size : at + size]
            missing -= 1
            if not missing:
                break
        at += (size + 3) & ~3
    return found


def _link(payload: bytes) -> LinkFacts:
    _, _, index, flags, _ = _IFINFOMSG.unpack_from(payload)
    found = _attributes(payload, _IFINFOMSG.size, _LINK_WANTED)
    state = found.get(_IFLA_OPERSTATE, b"\0")[0]
    return LinkFacts(
        index=Index(index),
        name=found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        up=bool(flags & _IFF_UP),
        carrier=bool(flags & _IFF_LOWER_UP),
        operstate=OPERSTATES[state] if state < len(OPERSTATES) else "unknown",
    )


def _address(payload: bytes) -> AddressFacts | None:
    _, prefix, _, _, index = _IFADDRMSG.unpack_from(payload)
    found = _attributes(payload, _IFADDRMSG.size)
    raw = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if raw is None or len(raw) not in {4, 16}:
        return None
    _, valid, created, _ = _CACHEINFO.unpack(found.get(_IFA_CACHEINFO, _CACHEINFO.pack(FOREVER, FOREVER, 0, 0)))
    return AddressFacts(
        index=Index(index),
        address=ipaddress.ip_address(raw),
        prefix=prefix,
        label=found.get(_IFA_LABEL, b"").rstrip(b"\0").decode(errors="replace"),
        valid_s=valid,
        created=created,
    )


def _neighbour(payload: bytes) -> NeighbourFacts | None:
    _, index, state, _, _ = _NDMSG.unpack_from(payload)
    found = _attributes(payload, _NDMSG.size)
    raw, mac = found.get(_NDA_DST, b""), found.get(_NDA_LLADDR, b"")
    if not state & _NUD_REACHABLE or len(raw) not in {4, 16}:
        return None
    return NeighbourFacts(index=Index(index), address=ipaddress.ip_address(raw), mac=mac.hex(":"))
