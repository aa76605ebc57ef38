"""Lost frames on one interface of a namespace, one way: what comes in there is dropped, all of it or at random.

Said to nf_tables over netlink, so that no program has to be installed. In nft's own words:

    table netdev ha-loss { chain eth0 { type filter hook ingress device eth0 priority 0;
                                        numgen random mod 100 < 30 drop } }
"""

from __future__ import annotations

import errno
import os
import socket
import struct

NETLINK_NETFILTER = 12
SUBSYSTEM = 10
FAMILY_NETDEV = 5
BATCH_BEGIN, BATCH_END = 0x10, 0x11
NEW_TABLE, DELETE_TABLE, NEW_CHAIN, NEW_RULE = 0, 2, 3, 6
REQUEST, ACK, CREATE = 0x1, 0x4, 0x400
NESTED = 0x8000
REGISTER = 1


def lose(device: str, percent: int) -> None:
    """In the namespace of the calling thread. 0 ends it. Raises OSError where the kernel has no nf_tables."""
    table = f"ha-loss-{device}"
    try:
        _transact([(DELETE_TABLE, 0, _text(1, table))])
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    if percent:
        hook = _number(1, 0) + _number(2, 0) + _text(3, device)
        chain = _text(1, table) + _text(3, "in") + _nested(4, hook) + _number(5, 1) + _text(7, "filter")
        rule = _text(1, table) + _text(2, "in") + _nested(4, _expressions(percent))
        _transact([(NEW_TABLE, CREATE, _text(1, table)), (NEW_CHAIN, CREATE, chain), (NEW_RULE, CREATE, rule)])


def _expressions(percent: int) -> bytes:
    drop = _number(1, 0) + _nested(2, _nested(2, _number(1, 0)))
    if percent >= 100:
        return _expression("immediate", drop)
    draw = _number(1, REGISTER) + _number(2, 100) + _number(3, 1)
    order = b"".join(_number(kind, value) for kind, value in ((1, REGISTER), (2, REGISTER), (3, 1), (4, 4), (5, 4)))
    below = _number(1, REGISTER) + _number(2, 2) + _nested(3, _attribute(1, struct.pack("!L", percent)))
    named = (("numgen", draw), ("byteorder", order), ("cmp", below), ("immediate", drop))
    return b"".join(_expression(name, data) for name, data in named)


def _expression(name: str, data: bytes) -> bytes:
    return _nested(1, _text(1, name) + _nested(2, data))


def _transact(changes: list[tuple[int, int, bytes]]) -> None:
    batch = struct.pack("!BBH", 0, 0, SUBSYSTEM)
    parts = [_message(BATCH_BEGIN, REQUEST, 1, batch)]
    for number, (kind, flags, body) in enumerate(changes, start=2):
        header = struct.pack("!BBH", FAMILY_NETDEV, 0, 0)
        parts.append(_message(SUBSYSTEM << 8 | kind, REQUEST | ACK | flags, number, header + body))
    parts.append(_message(BATCH_END, REQUEST, len(changes) + 2, batch))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as kernel:
        kernel.bind((0, 0))
        kernel.settimeout(5)
        kernel.send(b"".join(parts))
        answers = 0
        while answers < len(changes):
            data = kernel.recv(1 << 16)
            while len(data) >= 20:
                size, kind = struct.unpack_from("=LH", data)
                code = -struct.unpack_from("=i", data, 16)[0]
                if kind == 2 and code:
                    raise OSError(code, os.strerror(code))
                answers += kind == 2
                data = data[(size + 3) & ~3 :]


def _message(kind: int, flags: int, number: int, body: bytes) -> bytes:
    return struct.pack("=LHHLL", 16 + len(body), kind, flags, number, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _nested(kind: int, value: bytes) -> bytes:
    return _attribute(kind | NESTED, value)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("!L", value))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")
