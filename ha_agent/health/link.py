"""Carrier and operational state of a network interface, from ``/sys/class/net`` (the root is a setting).

Kernel documents, sysfs-class-net and operstates.rst: ``carrier`` is 1 or 0 and gives EINVAL while the interface is
administratively down; ``operstate`` is one of unknown, notpresent, down, lowerlayerdown, testing, dormant, up. Drivers
that report no state, and the loopback, say *unknown*: then the carrier decides. *dormant* waits for something (802.1X):
no data passes yet. The agent also hears of changes at once by netlink; this look is the truth behind that hint.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ha_agent.health.look import GOOD, Look, Reason, bad
from ha_agent.health.probe import Plain

SYS_NET = "/sys/class/net"
PASSING = frozenset({"up", "unknown"})


class Carrier(enum.Enum):
    """What the port says."""

    ABSENT = "absent"  # no such interface
    OFF = "off"  # administratively down: not known
    LOST = "lost"
    PRESENT = "present"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkState:
    """An interface at one moment."""

    carrier: Carrier
    operstate: str

    @property
    def up(self) -> bool:
        """Whether data can pass."""
        return self.carrier is Carrier.PRESENT and self.operstate in PASSING


def read_link(interface: str, *, sys_net_dir: str = SYS_NET) -> LinkState:
    """Looks now. Blocking: two reads of a file system in memory."""
    folder = f"{sys_net_dir}/{interface}"
    try:
        with open(f"{folder}/operstate", encoding="ascii", errors="replace") as file:
            operstate = file.read(64).strip()
    except OSError:
        return LinkState(carrier=Carrier.ABSENT, operstate="notpresent")
    try:
        with open(f"{folder}/carrier", encoding="ascii", errors="replace") as file:
            found = file.read(8).strip()
    except OSError:  # EINVAL
        return LinkState(carrier=Carrier.OFF, operstate=operstate)
    return LinkState(carrier=Carrier.PRESENT if found == "1" else Carrier.LOST, operstate=operstate)


class LinkProbe(Plain):
    """Looks at one interface."""

    def __init__(self, interface: str, *, sys_net_dir: str = SYS_NET) -> None:
        self._interface = interface
        self._sys_net_dir = sys_net_dir

    async def look(self) -> tuple[Look, ...]:
        """One look."""
        state = read_link(self._interface, sys_net_dir=self._sys_net_dir)
        if state.up:
            return (GOOD,)
        if state.carrier is Carrier.ABSENT:
            return (bad(Reason.GONE, f"no interface {self._interface}"),)
        reason = Reason.CARRIER_LOST if state.carrier is Carrier.LOST else Reason.NOT_UP
        return (bad(reason, f"{self._interface}: {state.operstate}"),)
