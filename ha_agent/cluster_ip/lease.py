"""The cluster IP as a lease of the kernel: if this process dies, freezes or starves, the address goes by itself.

How the kernel counts (net/ipv4/devinet.c ``check_lifetime``, net/ipv6/addrconf.c ``addrconf_verify_rtnl``):

- ``valid_lft`` is whole seconds, counted from the call that set it, on the kernel's own tick: a lifetime that was
  rounded up would outlive its evidence by up to a second, so it is rounded down (``plan.valid_s``).
- An address is removed when its age, plus 20 ms, reaches the lifetime; the worker that looks is due at the end of the
  lifetime, rounded up by at most 250 ms, but never sooner than one second after it last ran. Any change of any
  address with a lifetime runs it. So an address goes between 0.02 s before and 1.0 s after its lifetime (a busy
  machine adds its own delay); both are well within what ``plan.KERNEL_LATE_S`` allows for.
- A *replace* adds an address that has lapsed, IPv4 and IPv6 alike: no flag asks for "only if it is there". So
  ``renew`` looks before the call, and afterwards at the clock and at the time of creation: an address that is not
  the one that was there before is deleted at once. A process that is frozen exactly between the look and the call
  can therefore have the address for the fraction of a millisecond until it looks again; it announces nothing then.

A lifetime counts from the moment at which it was asked for: what a call waited in the queue, or stood in the middle, is
taken off.

All calls run one after the other in one thread of this object, in the order in which they were made, so that a
lock held in the kernel never stops the heartbeat. Cancelling the wait for a call does not undo the call.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from ha_agent.cluster_ip.netlink import FOREVER, Address, AddressFacts, Index, Kernel, LinkFacts
from ha_agent.errors import OperatorNeeded

LABEL_SUFFIX = ":ha"
_LABEL_MAX = 15
REPLACE_TRIES = 3


class Outcome(enum.Enum):
    """What became of a call."""

    HELD = "held"  # the address is here until its lifetime ends
    GONE = "gone"  # the address is not here: it lapsed, or the call was late and undone
    LATE = "late"  # too late: nothing was called, the address was not here before
    REFUSED = "refused"  # by the kernel, or by the state of the interface


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The outcome, and why if it is not ``HELD``."""

    outcome: Outcome
    reason: str = ""
    hint: str = ""


HELD = Answer(outcome=Outcome.HELD)

_Result = TypeVar("_Result")


class Lease:
    """One address on one interface. ``clock`` is the monotonic clock that ``not_after`` is meant in."""

    def __init__(self, interface: str, address: Address, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.interface = interface
        self.address = address
        self.label = interface[: _LABEL_MAX - len(LABEL_SUFFIX)] + LABEL_SUFFIX
        self._clock = clock
        self._kernel = Kernel()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lease")

    async def close(self) -> None:
        """Ends the thread. Leaves the address as it is: it lapses unless it was removed before."""
        await self._run(self._kernel.close)
        self._thread.shutdown(wait=True)

    async def add(self, *, valid_s: int, not_after: float) -> Answer:
        """Adds the address. HELD, GONE (added too late, deleted again), LATE or REFUSED."""
        asked_at = self._clock()
        return await self._run(lambda: _answered(lambda: self._add(valid_s, not_after, asked_at)))

    async def renew(self, *, valid_s: int, not_after: float) -> Answer:
        """Gives the address a new lifetime if it is here. HELD, GONE or REFUSED (then the old lifetime runs on)."""
        asked_at = self._clock()
        return await self._run(lambda: _answered(lambda: self._renew(valid_s, not_after, asked_at)))

    async def remove(self) -> Answer:
        """Deletes the address. GONE when the kernel does not have it any more, REFUSED otherwise."""
        return await self._run(lambda: _answered(self._remove))

    async def holds(self) -> bool:
        """Whether the kernel has the address now, in whatever form and on whatever interface."""
        return await self._run(lambda: bool(self._kernel.addresses(self.address)))

    async def left_s(self) -> int | None:
        """Whole seconds of the lease that the kernel counts; None: it does not have it."""
        found = await self._run(self._ours)
        return None if found is None else found.valid_s

    async def sweep(self) -> tuple[AddressFacts, ...]:
        """Deletes what an earlier agent left on any interface: known by its label, or by the address itself."""
        return await self._run(self._sweep)

    async def check(self) -> LinkFacts:
        """The interface, fit to carry the address. Raises OperatorNeeded: no such interface, or switched off."""
        link = await self._run(lambda: self._kernel.link(self.interface))
        if link is None:
            raise OperatorNeeded(
                "cannot hold the cluster IP on", subject=self.interface, reason="no such interface",
                hint="set [ha] interface to one of this machine's",
            )  # fmt: skip
        if not link.up:
            raise OperatorNeeded(
                "cannot hold the cluster IP on", subject=self.interface, reason="the interface is switched off",
                hint=f"ip link set {self.interface} up",
            )  # fmt: skip
        return link

    def _add(self, valid_s: int, not_after: float, asked_at: float) -> Answer:
        link = self._kernel.link(self.interface)
        unfit = self._unfit(link)
        if unfit is not None or link is None:
            return unfit or _no_interface()
        if self._clock() >= not_after:
            return Answer(outcome=Outcome.LATE, reason="too late to add")
        self._replace(link.index, valid_s, asked_at)
        return self._undone("added too late") if self._clock() >= not_after else HELD

    def _renew(self, valid_s: int, not_after: float, asked_at: float) -> Answer:
        before = self._ours()
        if before is None:
            return Answer(outcome=Outcome.GONE, reason="lapsed or removed")
        if self._clock() >= not_after:
            return self._undone("too late to renew")
        self._replace(before.index, valid_s, asked_at)
        if self._clock() >= not_after:
            return self._undone("renewed too late")
        try:
            after = self._ours()
        except OSError:
            after = None
        if after is None or after.created != before.created:
            # It lapsed under our hands and the call added it again: nobody elected us to that.
            return self._undone("lapsed during the renewal")
        return HELD

    def _replace(self, index: Index, valid_s: int, asked_at: float) -> None:
        """Calls until the lifetime that was set is right by the clock after the call: this process may have stood."""
        lifetime_s = self._left(valid_s, asked_at)
        for _ in range(REPLACE_TRIES):
            self._kernel.replace(index, self.address, label=self.label, valid_s=lifetime_s)
            left_s = self._left(valid_s, asked_at)
            if left_s == lifetime_s:
                return
            lifetime_s = left_s

    def _left(self, valid_s: int, asked_at: float) -> int:
        # To the nearest second: half a second more or less is within what KERNEL_LATE_S allows for.
        return max(1, valid_s - math.floor(self._clock() - asked_at + 0.5))

    def _undone(self, reason: str) -> Answer:
        answer = self._remove()
        return answer if answer.outcome is Outcome.REFUSED else Answer(outcome=Outcome.GONE, reason=reason)

    def _remove(self) -> Answer:
        for one in self._kernel.addresses(self.address):
            if self._is_lease(one):
                self._kernel.delete(one.index, self.address)
        left = self._kernel.addresses(self.address)
        if left:
            return _permanent(left[0])
        return Answer(outcome=Outcome.GONE, reason="removed")

    def _sweep(self) -> tuple[AddressFacts, ...]:
        found = [one for one in self._kernel.addresses() if self._is_leftover(one)]
        return tuple(one for one in found if self._kernel.delete(one.index, one.address))

    def _ours(self) -> AddressFacts | None:
        """The lease, if it is on our interface."""
        index = self._kernel.index(self.interface)
        found = self._kernel.addresses(self.address)
        return next((one for one in found if one.index == index and self._is_lease(one)), None)

    def _unfit(self, link: LinkFacts | None) -> Answer | None:
        if link is None:
            return _no_interface()
        if not link.up or not link.carrier:
            reason = "the interface has no carrier" if link.up else "the interface is switched off"
            return Answer(outcome=Outcome.REFUSED, reason=reason)
        # An address that somebody configured by hand would never lapse.
        foreign = [one for one in self._kernel.addresses(self.address) if not self._is_lease(one)]
        return _permanent(foreign[0]) if foreign else None

    def _is_lease(self, one: AddressFacts) -> bool:
        return one.prefix == one.address.max_prefixlen and one.valid_s != FOREVER

    def _is_leftover(self, one: AddressFacts) -> bool:
        known = one.address == self.address or one.label.endswith(LABEL_SUFFIX)
        return known and self._is_lease(one)

    async def _run(self, call: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _answered(call: Callable[[], Answer]) -> Answer:
    try:
        return call()
    except OSError as error:
        hint = "the agent needs CAP_NET_ADMIN" if error.errno in {errno.EPERM, errno.EACCES} else ""
        return Answer(outcome=Outcome.REFUSED, reason=error.strerror or str(error), hint=hint)


def _no_interface() -> Answer:
    return Answer(outcome=Outcome.REFUSED, reason="no such interface")


def _permanent(one: AddressFacts) -> Answer:
    return Answer(
        outcome=Outcome.REFUSED,
        reason=f"{one.address}/{one.prefix} is configured on this machine (interface {one.index})",
        hint="the cluster IP must not stand in the network configuration of a node",
    )
