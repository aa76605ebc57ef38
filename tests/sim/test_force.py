"""An administrator who forces a take-over: what he may skip, and what nobody may."""

from __future__ import annotations

import pytest

from ha_agent.arbiter import events as ev
from ha_agent.arbiter.values import Cause, Policy, Reason
from tests.sim.stage import cut_everything, pair, stays, takes_over


@pytest.mark.req("R6")
def test_force_on_the_standby_is_refused_while_the_active_is_heard() -> None:
    world = pair(1)
    world.nodes[1].tell(ev.SwitchRequested, force=True)
    assert world.nodes[1].refused[-1].reason is Reason.PEER_HEARD
    stays(world, 2.0)


@pytest.mark.req("R6")
def test_force_skips_gateway_and_readiness_but_never_the_probe() -> None:
    world = pair(1, preference=Policy.CONSISTENCY)
    world.nodes[1].engine.up = False
    world.nodes[0].power_off()
    world.network.gateway_up = False
    world.run(8.0)
    assert not world.nodes[1].holding
    world.network.foreign = True
    world.nodes[1].tell(ev.SwitchRequested, force=True)
    world.run(2.0)
    assert not world.nodes[1].holding
    world.nodes[1].tell(ev.SwitchRequested, force=True, accept_dual=True)
    takes_over(world, 1, limit_s=1.0)
    assert world.nodes[1].disk.single
    stays(world, 20.0, node=1)


@pytest.mark.req("R6")
def test_force_takes_over_from_a_silent_active() -> None:
    world = pair(1, preference=Policy.CONSISTENCY)
    world.nodes[1].engine.up = False
    world.nodes[0].power_off()
    world.run(2.0)
    world.nodes[1].tell(ev.SwitchRequested, force=True)
    assert world.nodes[1].refused, "its lease may not be over yet"
    world.run(2.0)
    world.nodes[1].tell(ev.SwitchRequested, force=True)
    takes_over(world, 1, limit_s=1.0)
    assert world.nodes[1].moves[-1].cause is Cause.FORCED


def test_force_with_unsound_data_needs_the_acceptance_of_loss() -> None:
    world = pair(1)
    world.nodes[1].engine.sound = False
    world.run(1.0)
    world.nodes[0].power_off()
    world.run(4.0)
    world.nodes[1].tell(ev.SwitchRequested, force=True)
    assert world.nodes[1].refused[-1].reason is Reason.UNSOUND
    world.nodes[1].tell(ev.SwitchRequested, force=True, accept_data_loss=True)
    takes_over(world, 1, limit_s=1.0)


def test_force_without_carrier_is_refused() -> None:
    world = pair(1)
    cut_everything(world, 1)
    world.nodes[0].power_off()
    world.run(4.0)
    world.nodes[1].tell(ev.SwitchRequested, force=True, accept_dual=True)
    assert world.nodes[1].refused
    world.run(2.0)
    assert not world.nodes[1].holding
