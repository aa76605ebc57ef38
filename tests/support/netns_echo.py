"""Answers every datagram with the node's name, from the address that was asked. A process of the node.

    python -m tests.support.netns_echo NAME [PORT]

IPv4 and IPv6, on all addresses that the node has at the moment: what a phone sees of a service that never moves.
"""

from __future__ import annotations

import selectors
import socket
import struct
import sys

PORT = 7007
ANY_INTERFACE = 0
IP_PKTINFO = 8


def main(name: bytes, port: int) -> None:
    """Until killed."""
    selector = selectors.DefaultSelector()
    for family, level, option, everywhere in (
        (socket.AF_INET, socket.IPPROTO_IP, IP_PKTINFO, "0.0.0.0"),
        (socket.AF_INET6, socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, "::"),
    ):
        one = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setsockopt(level, option, 1)
        one.bind((everywhere, port))
        one.setblocking(False)
        selector.register(one, selectors.EVENT_READ)
    print("answering", flush=True)
    while True:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            answer(key.fileobj, name)


def answer(one: socket.socket, name: bytes) -> None:
    """One datagram, if there is one."""
    try:
        data, notes, _, asker = one.recvmsg(512, 256)
        one.sendmsg([data + b" " + name], [_from_the_asked(note) for note in notes], 0, asker)
    except OSError:  # the address went between question and answer, or there is no way back
        return


def _from_the_asked(note: tuple[int, int, bytes]) -> tuple[int, int, bytes]:
    level, kind, data = note
    if level == socket.IPPROTO_IP:
        return level, kind, struct.pack("=i4s4s", ANY_INTERFACE, data[8:12], b"\0\0\0\0")
    return level, socket.IPV6_PKTINFO, data


if __name__ == "__main__":
    main(sys.argv[1].encode(), int(sys.argv[2]) if len(sys.argv) > 2 else PORT)
