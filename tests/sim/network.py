"""The simulated network: two paths between two nodes, a switch with a gateway on it, and whoever else answers.

Path 0 is the heartbeat cable, path 1 the LAN. A LAN port can lose its carrier, or one direction of its traffic while
the carrier stays up; the switch can reboot, the gateway die. Seconds of world time.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

CABLE = 0
LAN = 1
FOREIGN = "02:00:00:00:00:99"


@dataclass(slots=True)
class Port:
    """A node's port on the switch."""

    carrier: bool = True
    sends: bool = True
    receives: bool = True


@dataclass(slots=True)
class Network:
    """What can be broken between the nodes."""

    rng: random.Random
    has_gateway: bool = True
    ports: tuple[Port, Port] = field(default_factory=lambda: (Port(), Port()))
    cable: list[bool] = field(default_factory=lambda: [True, True])  # by sender
    udp: list[list[bool]] = field(default_factory=lambda: [[True, True], [True, True]])  # filtered: path, sender
    filtered_at: float = float("-inf")  # a firewall was last seen to drop all beats of a node
    mended_at: float = float("-inf")  # a port or the switch
    lan_cut_at: float = float("-inf")  # the LAN between the nodes was last seen broken
    switch_up: bool = True
    gateway_up: bool = True
    foreign: bool = False  # somebody else answers for the cluster IP (proxy ARP)
    foreign_since: float = 0.0
    loss: float = 0.0
    delay_max_s: float = 0.003
    duplicates: float = 0.0
    replays: float = 0.0

    def look(self, now: float) -> None:
        """Note when beats were last seen to be filtered, and the LAN broken."""
        if any(not self.udp[CABLE][sender] and not self.udp[LAN][sender] for sender in (0, 1)):
            self.filtered_at = now
        if self.loss or not (self.lan_reaches(0, 1) and self.lan_reaches(1, 0)):
            self.lan_cut_at = now

    def lan_up(self, node: int) -> bool:
        """Carrier, as this node's kernel sees it."""
        return self.switch_up and self.ports[node].carrier

    def lan_reaches(self, sender: int, receiver: int) -> bool:
        """Whether a frame gets over the switch."""
        return (
            self.lan_up(sender) and self.lan_up(receiver) and self.ports[sender].sends and self.ports[receiver].receives
        )

    def carries(self, path: int, sender: int) -> bool:
        """Whether a beat gets through, but for loss."""
        if not self.udp[path][sender]:
            return False
        return self.cable[sender] if path == CABLE else self.lan_reaches(sender, 1 - sender)

    def connected(self, sender: int) -> bool:
        """Whether any path carries beats."""
        return self.carries(CABLE, sender) or self.carries(LAN, sender)

    def gateway_answers(self, node: int) -> bool:
        """One ARP question and its answer."""
        port = self.ports[node]
        ok = self.has_gateway and self.gateway_up and self.lan_up(node) and port.sends and port.receives
        return ok and not self.lost() and not self.lost()

    def gateway_there(self, node: int) -> bool:
        """Whether the gateway could answer this node."""
        port = self.ports[node]
        return self.has_gateway and self.gateway_up and self.lan_up(node) and port.sends and port.receives

    def peer_answers(self, asker: int) -> bool:
        """One ARP question to the other node and its answer."""
        return (
            self.lan_reaches(asker, 1 - asker)
            and self.lan_reaches(1 - asker, asker)
            and not self.lost()
            and not self.lost()
        )

    def foreign_answers(self, asker: int) -> bool:
        """One ARP question to the foreign holder."""
        port = self.ports[asker]
        return self.foreign and self.lan_up(asker) and port.sends and port.receives and not self.lost()

    def lost(self) -> bool:
        """Whether this datagram is lost."""
        return self.loss > 0 and self.rng.random() < self.loss

    def heal(self) -> None:
        """Everything works again."""
        for port in self.ports:
            port.carrier = port.sends = port.receives = True
        self.cable = [True, True]
        self.udp = [[True, True], [True, True]]
        self.switch_up = self.gateway_up = True
        self.foreign = False
        self.loss = self.duplicates = self.replays = 0.0
        self.delay_max_s = 0.003
