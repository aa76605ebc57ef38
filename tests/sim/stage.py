"""What the named schedules begin with and look at: a pair that stands, who serves, what was logged."""

from __future__ import annotations

from ha_agent.arbiter import actions as act
from ha_agent.arbiter.state import Fault
from ha_agent.arbiter.values import Phase
from tests.sim.node import Node
from tests.sim.world import World

CRASHED = frozenset({Fault(cause="process:asterisk", switches=True)})

ALARM_ONLY = frozenset({Fault(cause="process:asterisk", switches=False)})


def pair(seed: int = 1, **options: object) -> World:
    """A pair that stands: node 0 Active, node 1 its ready Standby."""
    world = World(seed, **options)  # type: ignore[arg-type]
    world.settle()
    assert world.active() is world.nodes[0]
    world.run(1.0)
    return world


def takes_over(world: World, node: int, *, limit_s: float) -> float:
    """How long until this node serves."""
    return world.run_until(lambda: world.active() is world.nodes[node], limit_s=limit_s)


def one_serves(world: World, *, limit_s: float) -> None:
    """Until one of the two serves, whichever."""
    world.run_until(lambda: world.active() is not None, limit_s=limit_s)


def reaches(world: World, node: int, phase: Phase, *, limit_s: float = 3.0) -> None:
    """Until this node is in that phase."""
    world.run_until(lambda: world.nodes[node].phase is phase, limit_s=limit_s)


def stays(world: World, seconds: float, node: int = 0) -> None:
    """This node serves all the time."""
    for _ in range(round(seconds / 0.25)):
        world.run(0.25)
        assert world.active() is world.nodes[node], world.picture()


def rows(world: World, node: int) -> list[str]:
    return [row for _, number, row in world.log if number == node]


def alarms(node: Node) -> set[act.Subject]:
    return {alarm.subject for alarm in node.alarms if alarm.raised}


def cut_everything(world: World, node: int) -> None:
    """Both links of a node."""
    world.network.cable = [False, False]
    world.network.ports[node].carrier = False
    world.links_changed()
