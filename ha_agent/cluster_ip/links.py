"""What the kernel says about interfaces and addresses, as it happens. No policy: the driver looks again at each notice.

A notice is a hint that may be lost (``Overflow``: some were); the truth is what ``look`` reads. All from one loop.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass

from ha_agent.cluster_ip.netlink import (
    GROUP_IPV4_ADDRESS,
    GROUP_IPV6_ADDRESS,
    GROUP_LINK,
    RECEIVE_BYTES,
    Kernel,
    LinkFacts,
    Notice,
    notices,
)

NOTICES_MAX = 256
"""Datagrams read in one go; the rest when the loop comes back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overflow:
    """The kernel threw notices away: anything may have changed."""


Change = Notice | Overflow


class Links:
    """Hands over what changed; ``on_changes`` gets all that lay in the socket at once."""

    def __init__(self, on_changes: Callable[[list[Change]], None]) -> None:
        self._on_changes = on_changes
        self._kernel = Kernel()
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """Listens from now on, in the running loop. Look once after this: what was before is not told."""
        assert self._socket is None, "opened twice"
        listening = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        listening.bind((0, GROUP_LINK | GROUP_IPV4_ADDRESS | GROUP_IPV6_ADDRESS))
        self._socket = listening
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listening.fileno(), self._readable)

    def close(self) -> None:
        """Stops listening."""
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self._kernel.close()

    def look(self, interface: str) -> LinkFacts | None:
        """The interface as it is now; None: there is none of this name."""
        return self._kernel.link(interface)

    def drain(self) -> list[Change]:
        """Everything that was told and not read. Also for who stalled."""
        changes: list[Change] = []
        for _ in range(NOTICES_MAX):
            try:
                datagram = self._socket.recv(RECEIVE_BYTES) if self._socket is not None else b""
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    changes.append(Overflow())
                    continue
                break
            if not datagram:
                break
            changes.extend(notices(datagram))
        return changes

    def _readable(self) -> None:
        changes = self.drain()
        if changes:
            self._on_changes(changes)
