"""The cluster IP as one thing: IPv4 and IPv6 together, held whole or not at all.

``Holder`` is what the driver sees. ``KernelHolder`` is the real one: leases, probes, announcements and the claims of
others on one interface. ``stand_in.StandIn`` takes its place on the loopback interface. Calls are made in the order in
which they were asked for. Times are monotonic; macs are for people.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ha_agent.arbiter.values import Mac
from ha_agent.cluster_ip import plan
from ha_agent.cluster_ip.announce import Announcer
from ha_agent.cluster_ip.frames import Claim
from ha_agent.cluster_ip.lease import HELD, LABEL_SUFFIX, Answer, Lease, Outcome
from ha_agent.cluster_ip.netlink import FOREVER, Address, Kernel
from ha_agent.cluster_ip.probe import Neighbours


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What came of asking for the holder."""

    answered_by: Mac | None  # None: nobody; of several that answered the peer, if it is one of them
    sent: bool  # False: it could not be asked, which proves nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the kernel has of the address when the agent starts."""

    present: bool
    left_s: float


class Holder(Protocol):
    """The cluster IP, as the driver sees it."""

    def open(self, on_foreign: Callable[[Mac], None]) -> None:
        """Hears from now on who else claims the address. Raises OperatorNeeded."""

    async def find(self) -> Found:
        """What an earlier agent left; addresses of other settings are deleted."""

    async def add(self, *, valid_until: float, not_after: float) -> Answer:
        """HELD, GONE (too late, undone), LATE or REFUSED."""

    async def renew(self, *, valid_until: float) -> Answer:
        """HELD, GONE or REFUSED (then the old lifetime runs on)."""

    async def remove(self) -> Answer:
        """GONE when it is certain, REFUSED otherwise."""

    async def holds(self) -> bool:
        """Whether the address is here now, whole."""

    async def probe(self, *, count: int, wait_s: float) -> Probed:
        """Asks who holds it."""

    def announce(self, count: int) -> None:
        """Tells the LAN: so many at once, and again later for as long as it is held."""

    def hush(self) -> None:
        """Announces no more."""

    async def close(self) -> None:
        """Lets go of sockets and threads; the address stays as it is."""


WORST_FIRST = (Outcome.GONE, Outcome.LATE, Outcome.REFUSED, Outcome.HELD)


class KernelHolder:
    """See ``Holder``. No address at all (mode ``remote``) is held by saying so."""

    def __init__(
        self,
        interface: str,
        addresses: tuple[Address, ...],
        *,
        peer_mac: Mac,
        ipv6: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``ipv6``: neighbours are asked over IPv6 too, though no address of the cluster is."""
        self.interface = interface
        self._addresses = addresses
        self._peer_mac = peer_mac
        self._clock = clock
        self._kernel = Kernel()
        self._leases = tuple(Lease(interface, address, clock=clock) for address in addresses)
        self._announcers = tuple(Announcer(interface, address) for address in addresses)
        self._announcing: list[asyncio.Task[None]] = []
        self._meant = False  # whether it should be here
        self._on_foreign: Callable[[Mac], None] = lambda _mac: None
        self.neighbours = {
            version: Neighbours(interface, ipv6=version == 6, on_claim=self._claimed, clock=clock)
            for version in sorted({4, *(address.version for address in addresses), *([6] if ipv6 else [])})
        }

    def open(self, on_foreign: Callable[[Mac], None]) -> None:
        """See ``Holder``."""
        self._on_foreign = on_foreign
        for neighbours in self.neighbours.values():
            neighbours.open()
        for announcer in self._announcers:
            announcer.open()

    async def find(self) -> Found:
        """See ``Holder``."""
        for one in self._kernel.addresses():
            if one.label.endswith(LABEL_SUFFIX) and one.valid_s != FOREVER and one.address not in self._addresses:
                self._kernel.delete(one.index, one.address)
        left = [await lease.left_s() for lease in self._leases]
        known = [one for one in left if one is not None]
        self._meant = bool(known)
        whole = len(known) == len(left) and bool(left)
        return Found(present=bool(known), left_s=float(min(known)) if whole else 0.0)

    async def add(self, *, valid_until: float, not_after: float) -> Answer:
        """See ``Holder``."""
        self._meant = True
        if valid_until <= self._clock():
            return Answer(outcome=Outcome.LATE, reason="too late to add")
        valid_s = plan.valid_s(valid_until - self._clock())
        answers = [await lease.add(valid_s=valid_s, not_after=not_after) for lease in self._leases]
        return await self._whole(answers)

    async def renew(self, *, valid_until: float) -> Answer:
        """See ``Holder``."""
        left_s = valid_until - self._clock()
        if left_s <= 0:
            await self.remove()
            return Answer(outcome=Outcome.GONE, reason="too late to renew")
        valid_s = plan.valid_s(left_s)
        answers = [await lease.renew(valid_s=valid_s, not_after=valid_until) for lease in self._leases]
        bad = _worst(answers)
        # What the kernel refused runs on with its old lifetime; what is gone takes the other family with it, that too.
        return bad if bad.outcome is Outcome.REFUSED else await self._whole(answers)

    async def remove(self) -> Answer:
        """See ``Holder``."""
        self._meant = False
        self.hush()
        answers = [await lease.remove() for lease in self._leases]
        return next(
            (one for one in answers if one.outcome is not Outcome.GONE), Answer(outcome=Outcome.GONE, reason="removed")
        )

    async def holds(self) -> bool:
        """See ``Holder``."""
        return self._meant and all([await lease.holds() for lease in self._leases])

    async def probe(self, *, count: int, wait_s: float) -> Probed:
        """See ``Holder``."""
        asked = await asyncio.gather(
            *(
                self.neighbours[address.version].ask(
                    address, own=self.own(address.version), count=count, wait_s=wait_s, probe=True
                )
                for address in self._addresses
            )
        )
        macs = [Mac(mac) for one in asked for mac in one.macs]
        answered_by = self._peer_mac if self._peer_mac in macs else next(iter(macs), None)
        return Probed(answered_by=answered_by, sent=all(one.sent for one in asked))

    def announce(self, count: int) -> None:
        """See ``Holder``."""
        self.hush()
        loop = asyncio.get_running_loop()
        self._announcing = [
            loop.create_task(announcer.repeat(count=count, until=lambda: not self._meant))
            for announcer in self._announcers
        ]

    def hush(self) -> None:
        """See ``Holder``."""
        for task in self._announcing:
            task.cancel()
        self._announcing = []

    async def close(self) -> None:
        """See ``Holder``."""
        self.hush()
        for announcer in self._announcers:
            announcer.close()
        for neighbours in self.neighbours.values():
            neighbours.close()
        for lease in self._leases:
            await lease.close()
        self._kernel.close()

    def own(self, version: int) -> Address | None:
        """This node's own address on the interface: one that is no lease, and no link-local one if there is another."""
        index = self._kernel.index(self.interface)
        there = self._kernel.addresses_on(index, version) if index is not None else ()
        found = [one.address for one in there if one.valid_s == FOREVER and one.address not in self._addresses]
        return min(found, key=_link_local_last, default=None)

    async def _whole(self, answers: list[Answer]) -> Answer:
        bad = _worst(answers)
        if bad.outcome is Outcome.HELD:
            return bad
        if any(one.outcome in {Outcome.HELD, Outcome.REFUSED} for one in answers):
            await self.remove()
        return bad

    def _claimed(self, claim: Claim, _now: float) -> None:
        if claim.address in self._addresses and self._meant:
            self._on_foreign(Mac(claim.mac))


def _worst(answers: list[Answer]) -> Answer:
    return min(answers, key=lambda one: WORST_FIRST.index(one.outcome), default=HELD)


def _link_local_last(address: Address) -> bool:
    return isinstance(address, ipaddress.IPv6Address) and address.is_link_local
