"""The sample's network of a pair with what tests need besides: IPv6, pulled plugs, lost frames. Root and iproute2.

On the LAN each host has fd77::N beside 10.77.0.N; the picture is in ``ha_sync/sample/netns.py``. Pulling a plug takes
the carrier from a node and leaves its settings alone, because the wires run through a namespace of their own.
"""

from __future__ import annotations

import subprocess

from ha_sync.sample.netns import CABLE, LAN, NODES, WIRES, Network, hindrance, ip
from tests.support.netns_loss import lose

__all__ = ["CABLE", "LAN", "NODES", "WIRES", "Net", "cable_ipv4", "lan_ipv4", "lan_ipv6", "unavailable"]


def lan_ipv4(host: str) -> str:
    return LAN[host]


def lan_ipv6(host: str) -> str:
    return f"fd77::{int(LAN[host].rpartition('.')[2]):x}"


def cable_ipv4(host: str) -> str:
    return CABLE[host]


def unavailable() -> str | None:
    """Why namespaces cannot be used here; None: they can."""
    problem = hindrance()
    return None if problem is None else f"{problem[0]} ({problem[1]})"


class Net(Network):
    """The namespaces of one pair. ``Net()`` builds them."""

    def command(self, host: str, *command: str) -> list[str]:
        """The command line that runs ``command`` in the namespace."""
        return [*self.enter(host), *command]

    def run(self, host: str, *command: str) -> str:
        """Runs to the end; what it printed. Raises RuntimeError."""
        done = subprocess.run(self.command(host, *command), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def cut(self, host: str, device: str = "eth0") -> None:
        """Pulls the plug: the host loses its carrier."""
        self.run(WIRES, "ip", "link", "set", f"{host}-{device}", "down")

    def restore(self, host: str, device: str = "eth0") -> None:
        """Plugs it in again."""
        self.run(WIRES, "ip", "link", "set", f"{host}-{device}", "up")

    def cut_off(self, host: str) -> None:
        """Pulls both plugs of a node, the one right after the other."""
        self.batch(WIRES, *(f"link set {host}-{device} down" for device in ("eth0", "cable0")))

    def plug_in(self, host: str) -> None:
        """Both again."""
        self.batch(WIRES, *(f"link set {host}-{device} up" for device in ("eth0", "cable0")))

    def switch_off(self, bridge: str = "br-lan") -> None:
        """The switch itself loses power: everybody on it loses the carrier."""
        hosts, device = (LAN, "eth0") if bridge == "br-lan" else (CABLE, "cable0")
        self.batch(WIRES, *(f"link set {host}-{device} down" for host in hosts))

    def switch_on(self, bridge: str = "br-lan") -> None:
        """It has booted: everybody has carrier at one moment."""
        hosts, device = (LAN, "eth0") if bridge == "br-lan" else (CABLE, "cable0")
        self.batch(WIRES, *(f"link set {host}-{device} up" for host in hosts))

    def pids(self, host: str) -> list[int]:
        """All processes that run in the namespace now."""
        return [int(word) for word in ip("netns", "pids", self.name(host)).split()]

    def cut_cable(self) -> None:
        """Both nodes lose the carrier of the heartbeat cable."""
        for host in CABLE:
            self.cut(host, "cable0")

    def restore_cable(self) -> None:
        for host in CABLE:
            self.restore(host, "cable0")

    def lose_incoming(self, host: str, percent: int, device: str = "eth0") -> None:
        """What is sent to the host is lost, at random or (100) all: one way. 0 heals. Carrier stays."""
        with self.inside(host):
            lose(device, percent)

    def lose_outgoing(self, host: str, percent: int, device: str = "eth0") -> None:
        """What the host sends is lost on the wire."""
        with self.inside(WIRES):
            lose(f"{host}-{device}", percent)

    def addresses(self, host: str, device: str) -> tuple[str, ...]:
        """As the sample's, and IPv6 on the LAN."""
        plain = super().addresses(host, device)
        return (*plain, f"{lan_ipv6(host)}/64") if device == "eth0" else plain
