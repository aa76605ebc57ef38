"""S1: who holds the cluster IP, and for how long two of them did.

Two holders are a violation at once, but for five excuses.
*Paused*: a whole machine stood still, its clocks too, and goes on; until its lease is over if it cannot act or speak.
*Parted*: no beat could pass between the nodes, and the Active rested on its carrier alone (single, or no usable
gateway) or the other one had never seen a gateway: at least two faults that no design tells apart.
*Forced*: an administrator made a node serve that no beat reaches, and the LAN between the nodes was broken.
*Filtered*: a firewall dropped all beats of a healthy Active, and before a frozen Active's lease would have lapsed the
LAN between the nodes broke or lost datagrams as well: until then its answers for the address are those of the frozen
one's kernel.
*Instant*: no beat could pass, neither served, and their separate waits happened to end within one second.
Even then they may be two only until they have heard each other for ``TOGETHER_S``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ha_agent.arbiter import policy
from ha_agent.arbiter.values import Cause, Phase
from ha_agent.cluster_ip import plan

if TYPE_CHECKING:
    from tests.sim.node import Node
    from tests.sim.world import World

TOGETHER_S = 0.3
PARTED_RECENTLY_S = 1.0
INSTANT_S = 1.0
EXCUSES = frozenset({"paused", "parted", "forced", "filtered", "instant"})


def _helpless(node: Node) -> bool:
    """Whether the agent cannot hear, or can do nothing about it: then the kernel's lease bounds it."""
    return node.frozen or node.agent is None or node.calls_fail


class Holders:
    """Watches every change of an address."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.since: float | None = None  # when two began to hold
        self.excuse = ""
        self.together_s = 0.0  # of that: how long they could hear each other
        self.looked_at = 0.0
        self.parted_at = -1e9
        self.allowed = EXCUSES  # those that the schedule may have
        self.excused: list[str] = []

    def look(self) -> None:
        """Called all the time: are the nodes parted, do two hold."""
        world = self.world
        network = world.network
        parted = not (network.connected(0) and network.connected(1))
        if parted:
            self.parted_at = world.now
        network.look(world.now)
        if self.since is not None:
            if not (parted or network.loss or any(_helpless(node) for node in world.nodes)):
                self.together_s += world.now - self.looked_at
            self.looked_at = world.now
            beat_s = world.nodes[0].settings.beat_s
            if self.together_s > TOGETHER_S + beat_s:
                world.fail(f"S1: two holders for {self.together_s:.3f} s that hear each other ({self.excuse})")

    def changed(self, newest: Node) -> None:
        """An address came or went, or a machine that has it goes on."""
        world = self.world
        if not all(node.holding and node.machine_up and not node.paused for node in world.nodes):
            self.since = None
            return
        if self.since is not None:
            return
        self.since = self.looked_at = world.now
        self.together_s = 0.0
        self.excuse = self._excuse(newest)
        if self.excuse not in self.allowed:
            world.fail(f"S1: two holders ({self.excuse or 'no excuse'}): {world.picture()}")
        self.excused.append(self.excuse)

    def _excuse(self, newest: Node) -> str:
        world = self.world
        if any(world.now - node.resumed_at <= self._pause_lasts(node) for node in world.nodes):
            return "paused"
        older = newest.peer.agent
        newer = newest.agent
        if newer is not None and newest.peer.resumed_at >= newest.world_time(newer.probe_clear):
            return "paused"  # it went on after the other one had looked
        if newer is None or world.now - self.parted_at > PARTED_RECENTLY_S:
            return ""
        if newer.cause is Cause.FORCED:
            return "forced"
        if self._filtered(newest):
            return "filtered"
        if older is None:
            return ""  # its agent has died, but what it had still holds
        if older.phase is Phase.ACTIVE and older.now - older.since <= INSTANT_S:
            return "instant"
        alone = older.stored.single or not policy.gateway_usable(older) or not policy.gateway_usable(newer)
        return "parted" if alone else ""

    def _pause_lasts(self, node: Node) -> float:
        """How long a machine that went on may hold: if it cannot act or be heard, as long as its lease has to go."""
        unheard = _helpless(node) or not self.world.network.connected(node.number)
        return node.settings.lease_s + plan.KERNEL_LATE_S if unheard else TOGETHER_S

    def _filtered(self, newest: Node) -> bool:
        network = self.world.network
        assert newest.agent is not None
        heard_at = self.world.now - (newest.clock() - newest.agent.heard_at)
        recently = self.world.now - network.lan_cut_at <= PARTED_RECENTLY_S + newest.settings.lease_s
        young = network.lan_cut_at - heard_at <= newest.settings.timeout_s + 1.0
        return recently and young and network.filtered_at >= heard_at - 1.0
