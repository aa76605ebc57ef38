"""What stands in for the cluster IP on the loopback interface, for demonstrations without root.

Every address of 127.0.0.0/8 is always there, so nothing can be added or taken away. Instead the holder answers: it
binds a UDP socket to the address and sends every datagram back. A probe is such a datagram. The end of the lease closes
the socket, the death of the process does too; what a *frozen* process would keep, the next holder's bind overrules.
Nothing on a network sees any of this: the agent says so when it starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable

from ha_agent.arbiter.values import Mac
from ha_agent.cluster_ip.holder import Found, Probed
from ha_agent.cluster_ip.lease import HELD, Answer, Outcome
from ha_agent.cluster_ip.netlink import Address

QUESTION = b"ha-sync: who holds this address?"
DATAGRAM_MAX = 2048
ECHOES_MAX = 64  # in one go; the rest when the loop comes back


class StandIn:
    """See ``Holder`` and the module."""

    def __init__(
        self, address: Address, port: int, *, peer_mac: Mac, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``peer_mac``: who else could answer on this machine."""
        self._peer_mac = peer_mac
        self._place = (str(address), port)
        self._family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        self._clock = clock
        self._socket: socket.socket | None = None
        self._until = float("-inf")

    def open(self, on_foreign: Callable[[Mac], None]) -> None:
        """See ``Holder``."""

    async def find(self) -> Found:
        """See ``Holder``: a socket does not outlive its process."""
        return Found(present=False, left_s=0.0)

    async def add(self, *, valid_until: float, not_after: float) -> Answer:
        """See ``Holder``."""
        if self._clock() >= not_after:
            return Answer(outcome=Outcome.LATE, reason="too late to add")
        opened = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            # Of several sockets with this option the one that was bound last gets the datagrams.
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(self._place)
        except OSError as error:
            opened.close()
            return Answer(outcome=Outcome.REFUSED, reason=error.strerror or str(error))
        self._drop()
        self._socket, self._until = opened, valid_until
        asyncio.get_running_loop().add_reader(opened.fileno(), self._echo)
        return HELD

    async def renew(self, *, valid_until: float) -> Answer:
        """See ``Holder``."""
        if not await self.holds():
            return Answer(outcome=Outcome.GONE, reason="lapsed or removed")
        self._until = valid_until
        return HELD if await self.holds() else Answer(outcome=Outcome.GONE, reason="too late to renew")

    async def remove(self) -> Answer:
        """See ``Holder``."""
        self._drop()
        return Answer(outcome=Outcome.GONE, reason="removed")

    async def holds(self) -> bool:
        """See ``Holder``."""
        if self._clock() >= self._until:
            self._drop()
        return self._socket is not None

    async def probe(self, *, count: int, wait_s: float) -> Probed:
        """See ``Holder``."""
        if await self.holds():
            return Probed(answered_by=None, sent=True)
        loop = asyncio.get_running_loop()
        with socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as asking:
            asking.connect(self._place)
            for _ in range(count):
                with contextlib.suppress(ConnectionRefusedError, BlockingIOError, TimeoutError):
                    asking.send(QUESTION)
                    async with asyncio.timeout(wait_s):
                        await loop.sock_recv(asking, DATAGRAM_MAX)
                        return Probed(answered_by=self._peer_mac, sent=True)
        return Probed(answered_by=None, sent=True)

    def announce(self, count: int) -> None:
        """See ``Holder``: there is nobody to tell."""

    def hush(self) -> None:
        """See ``Holder``."""

    async def close(self) -> None:
        """See ``Holder``."""
        self._drop()

    def _echo(self) -> None:
        for _ in range(ECHOES_MAX):
            if self._socket is None or self._clock() >= self._until:
                self._drop()
                return
            try:
                data, sender = self._socket.recvfrom(DATAGRAM_MAX)
                self._socket.sendto(data, sender)
            except BlockingIOError:
                return
            except OSError:  # whoever asked is gone
                continue

    def _drop(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
