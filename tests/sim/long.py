"""Hours of a bad network, for tests and for the benchmark: how often does the role move? It should not, ever.

Simulated time; two real arbiters and detectors. Durations in seconds of the simulated world.
"""

from __future__ import annotations

from ha_agent.arbiter.values import SERVING
from tests.sim.world import World

HOUR_S = 3600.0


def moves_under_loss(hours: float, *, loss: float = 0.3, beat_s: float = 0.1, timeout_s: float = 7.0) -> int:
    """How often a node began or ceased to serve while every datagram on each path is lost with this probability."""
    world = _standing(beat_s=beat_s, timeout_s=timeout_s)
    world.network.loss = loss
    return _moves(world, hours)


def moves_without_cable(hours: float, *, beat_s: float = 0.1, timeout_s: float = 7.0) -> int:
    """The same while the heartbeat cable is pulled."""
    world = _standing(beat_s=beat_s, timeout_s=timeout_s)
    world.network.cable = [False, False]
    return _moves(world, hours)


def moves_without_anything(hours: float, *, beat_s: float = 0.1, timeout_s: float = 7.0) -> int:
    """The same while the Active hears and is heard nowhere: the measure of the measure, it must not be 0."""
    world = _standing(beat_s=beat_s, timeout_s=timeout_s)
    world.network.cable = [False, False]
    world.network.ports[0].carrier = False
    world.links_changed()
    return _moves(world, hours)


def _standing(*, beat_s: float, timeout_s: float) -> World:
    world = World(1, beat_s=beat_s, timeout_s=timeout_s)
    world.settle()
    world.run(1.0)
    return world


def _moves(world: World, hours: float) -> int:
    for node in world.nodes:
        node.moves.clear()
    world.run(hours * HOUR_S)
    moves = [moved for node in world.nodes for moved in node.moves]
    return sum((moved.before in SERVING) != (moved.after in SERVING) for moved in moves)
