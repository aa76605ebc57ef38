"""Is the LAN there beyond my own cable? Asks the gateway again and again, or known neighbours where there is none.

Answers are told with the time at which the question left: an answer that is read late is old evidence. The peer is no
witness (it is what the evidence is about), nor is the cluster IP itself. No policy.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from ha_agent.arbiter.values import Mac
from ha_agent.cluster_ip.holder import KernelHolder
from ha_agent.cluster_ip.netlink import Address

ASK_EVERY_S = 0.4
WAIT_S = 0.3
NEIGHBOURS_ASKED_MAX = 2


class Lan:
    """One for one interface. ``on_answer`` gets (asked_at, whether it was the gateway)."""

    def __init__(
        self,
        holder: KernelHolder,
        *,
        gateway: Address | None,
        apart: frozenset[Address],
        peer_mac: Mac,
        on_answer: Callable[[float, bool], None],
        aligned: Callable[[float], float] = lambda at: at,
    ) -> None:
        """``apart``: addresses that are no witness, the cluster's and the peer's. ``aligned``: see the monitor."""
        self._holder = holder
        self._gateway = gateway
        self._apart = apart
        self._peer_mac = peer_mac
        self._on_answer = on_answer
        self._aligned = aligned

    async def run(self) -> None:
        """Asks until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            with contextlib.suppress(OSError):  # the interface is gone: silence says it all
                if self._gateway is not None:
                    await self._ask(self._gateway, gateway=True)
                else:
                    await self._ask_neighbours()
            await asyncio.sleep(self._aligned(max(loop.time() + 0.05, began + ASK_EVERY_S)) - loop.time())

    async def _ask(self, address: Address, *, gateway: bool) -> None:
        neighbours = self._holder.neighbours.get(address.version)
        if neighbours is None:
            return
        asked = await neighbours.ask(address, own=self._holder.own(address.version), wait_s=WAIT_S)
        if any(mac != self._peer_mac for mac in asked.macs):
            self._on_answer(asked.asked_at, gateway)

    async def _ask_neighbours(self) -> None:
        known = [
            one.address
            for neighbours in self._holder.neighbours.values()
            for one in neighbours.known()
            if one.address not in self._apart and one.mac != self._peer_mac
        ]
        await asyncio.gather(*(self._ask(address, gateway=False) for address in known[:NEIGHBOURS_ASKED_MAX]))
