"""Tells the LAN where the cluster IP is now: gratuitous ARP, unsolicited neighbour advertisements.

Right after the address was added, a few at once; again after 1, 2, 5 and 10 s, for switches that were still learning
and neighbours that missed it. Before each one it asks whether the address is still here: a process that was frozen
must not wake up and draw the phones away from the new Active. At most one schedule runs: a new one ends the old.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable

from ha_agent.cluster_ip import frames
from ha_agent.cluster_ip.netlink import Address, Kernel
from ha_agent.cluster_ip.wire import Wire

AT_ONCE = 5
AGAIN_AFTER_S = (1.0, 2.0, 5.0, 10.0)


class Announcer:
    """Announces one address on one interface, from one loop."""

    def __init__(self, interface: str, address: Address) -> None:
        self.interface = interface
        self.address = address
        self.sent = 0  # frames since the start
        self._kernel = Kernel()
        self._wire = Wire(interface, ipv6=address.version == 6, on_frames=None)

    def open(self) -> bool:
        """Opens the wire early, so that the first announcement loses no time. Raises OperatorNeeded."""
        return self._wire.open()

    def close(self) -> None:
        """Closes the wire; a running ``repeat`` is cancelled by its owner before."""
        self._wire.close()
        self._kernel.close()

    def now(self, count: int = AT_ONCE) -> bool:
        """So many at once. False: not sent, or the address is not here."""
        return all(self._once() for _ in range(count))

    async def repeat(
        self, *, count: int = AT_ONCE, again_after_s: tuple[float, ...] = AGAIN_AFTER_S, until: Callable[[], bool]
    ) -> None:
        """``count`` at once and one each time after; ends early when ``until`` says so, or the address is gone.

        The times count from the beginning. The owner keeps the task and cancels it when the address is given up.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.now(count)
        for after_s in again_after_s:
            await asyncio.sleep(max(0.0, began + after_s - loop.time()))
            if until() or not self._held():
                return
            self._once()

    def _held(self) -> bool:
        return bool(self._kernel.addresses(self.address))

    def _once(self) -> bool:
        link = self._kernel.link(self.interface)
        if link is None or len(link.mac) != 17 or not self._held():
            return False
        sent = [self._wire.send(frame) for frame in self._frames(link.mac)]
        self.sent += sum(sent)
        return all(sent)

    def _frames(self, mac: str) -> tuple[bytes, ...]:
        if isinstance(self.address, ipaddress.IPv4Address):
            return frames.announce_ipv4(self.address, mac=mac)
        return (frames.announce_ipv6(self.address, mac=mac, router=_forwards(self.interface)),)


def _forwards(interface: str) -> bool:
    """Whether this node is a router for IPv6: one that does not say so is dropped as a default router."""
    try:
        with open(f"/proc/sys/net/ipv6/conf/{interface}/forwarding", encoding="ascii") as setting:
            return setting.read().strip() != "0"
    except OSError:
        return False
