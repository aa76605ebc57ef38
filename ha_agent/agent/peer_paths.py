"""The ways to the peer as its engine is told them: the best first. Pure.

A cable of its own goes before the LAN, which then has no load of ours; what the beats say is silent, or heard in one
direction only, goes last, because no stream gets through. Within that the order is that of ``ha.toml``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ha_agent.heartbeat.detector import Way
from ha_agent.settings.values import Address, PathSettings
from ha_proto.agent.v1 import agent_pb2 as pb

DEAD = frozenset({Way.HALF, Way.LOST})


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPaths:
    """What does not change while the agent runs."""

    preferred: tuple[PathSettings, ...]

    def as_directed(self, ways: Iterable[tuple[str, Way]]) -> tuple[pb.PeerPath, ...]:
        """``ways``: name and state of each path, as the beats say; a path that is not among them is unknown."""
        known = dict(ways)
        told = ((path, known.get(path.name, Way.UNKNOWN)) for path in self.preferred)
        ordered = sorted(told, key=lambda one: one[1] in DEAD)  # stable
        return tuple(pb.PeerPath(name=path.name, address=str(path.peer), state=way.value) for path, way in ordered)


def preferred(paths: Iterable[PathSettings], *, peer_ip: Address, on_interface: frozenset[Address]) -> PeerPaths:
    """``on_interface``: this node's own addresses on the interface of the cluster IP, so of the LAN."""

    def of_the_lan(path: PathSettings) -> bool:
        return path.peer == peer_ip or path.local is None or path.local in on_interface

    return PeerPaths(preferred=tuple(sorted(paths, key=of_the_lan)))
