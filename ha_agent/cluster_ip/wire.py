"""Raw frames out of and into one interface: only ARP and neighbour advertisements come in. Needs CAP_NET_RAW.

The kernel filters (a small BPF program), so that calls in progress on the same wire cost nothing here. A frame that is
longer than ``FRAME_MAX`` is cut. Not opened, or the interface is gone: ``send`` says False, ``open`` again later.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
from collections.abc import Callable

from ha_agent.cluster_ip.frames import ETHER_ARP, ETHER_IPV6
from ha_agent.errors import OperatorNeeded

FRAME_MAX = 256
FRAMES_MAX = 256
"""Frames read in one go; in an ARP storm own timers come first."""

_SO_ATTACH_FILTER = 26
_INSTRUCTION = struct.Struct("=HBBL")
_LOAD_BYTE, _LOAD_HALF, _JUMP_EQUAL, _RETURN = 0x30, 0x28, 0x15, 0x06


def _advertisements_only() -> bytes:
    """IPv6, next header ICMPv6, type 136; offsets from the start of the Ethernet frame."""
    program = (
        (_LOAD_HALF, 0, 0, 12),
        (_JUMP_EQUAL, 0, 5, ETHER_IPV6),
        (_LOAD_BYTE, 0, 0, 20),
        (_JUMP_EQUAL, 0, 3, 58),
        (_LOAD_BYTE, 0, 0, 54),
        (_JUMP_EQUAL, 0, 1, 136),
        (_RETURN, 0, 0, FRAME_MAX),
        (_RETURN, 0, 0, 0),
    )
    return b"".join(_INSTRUCTION.pack(*one) for one in program)


class Wire:
    """One protocol on one interface, from one loop. ``on_frames`` gets all that lay in the socket at once.

    ``on_frames`` None: it only sends.
    """

    def __init__(self, interface: str, *, ipv6: bool, on_frames: Callable[[list[bytes]], None] | None) -> None:
        self.interface = interface
        self._ether = ETHER_IPV6 if ipv6 else ETHER_ARP
        self._on_frames = on_frames
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> bool:
        """Opens it in the running loop if it is not open. False: no such interface yet. Raises OperatorNeeded."""
        if self._socket is not None:
            return True
        try:
            opened = self._bound()
        except PermissionError as error:
            raise OperatorNeeded(
                "cannot ask for neighbours on", subject=self.interface, reason=error.strerror or "",
                hint="the agent needs CAP_NET_RAW",
            ) from error  # fmt: skip
        except OSError:
            return False
        self._socket = opened
        self._loop = asyncio.get_running_loop()
        if self._on_frames is not None:
            self._loop.add_reader(opened.fileno(), self._readable)
        return True

    def send(self, frame: bytes) -> bool:
        """Sends without waiting. False: not sent (interface down or gone, buffer full)."""
        if not self.open() or self._socket is None:
            return False
        try:
            self._socket.send(frame)
        except OSError as error:
            if error.errno in {errno.ENODEV, errno.ENXIO}:
                self.close()  # the interface is gone; one that comes back under its name is another
            return False
        return True

    def drain(self) -> list[bytes]:
        """Everything that lies in the socket now, oldest first."""
        frames: list[bytes] = []
        while self._socket is not None and len(frames) < FRAMES_MAX:
            try:
                frames.append(self._socket.recv(FRAME_MAX))
            except OSError:  # nothing more, or the interface went down
                break
        return frames

    def close(self) -> None:
        """Closes it; ``send`` opens it again."""
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _bound(self) -> socket.socket:
        # Protocol 0 hears nothing: the filter is in place before the first frame comes.
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
        try:
            if self._ether == ETHER_IPV6:
                _attach(opened, _advertisements_only())
            opened.bind((self.interface, self._ether if self._on_frames is not None else 0))
        except OSError:
            opened.close()
            raise
        return opened

    def _readable(self) -> None:
        frames = self.drain()
        if frames and self._on_frames is not None:
            self._on_frames(frames)


def _attach(opened: socket.socket, program: bytes) -> None:
    held = ctypes.create_string_buffer(program, len(program))
    count = len(program) // _INSTRUCTION.size
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", count, ctypes.addressof(held)))
