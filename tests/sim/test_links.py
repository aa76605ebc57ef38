"""Cables, ports, loss and the gateway; a node that is alone."""

from __future__ import annotations

import pytest

from ha_agent.arbiter import events as ev
from ha_agent.arbiter.values import Cause, Phase, Reason
from tests.sim.stage import cut_everything, pair, rows, stays, takes_over


@pytest.mark.req("R11")
def test_the_heartbeat_cable_alone_switches_nothing() -> None:
    world = pair(1)
    world.network.cable = [False, False]
    stays(world, 120.0)
    assert rows(world, 0)[-1] == "serve"


@pytest.mark.req("R12")
def test_loss_of_the_actives_link_hands_over_in_one_exchange() -> None:
    for seed in range(10):
        world = pair(seed)
        world.network.ports[0].carrier = False
        world.links_changed()
        assert takes_over(world, 1, limit_s=1.0) < 0.5
        assert world.nodes[1].moves[-1].cause is Cause.LINK


def test_loss_of_both_links_of_the_lan_switches_nothing_and_fences() -> None:
    world = pair(1)
    world.network.switch_up = False
    world.links_changed()
    world.run(10.0)
    assert world.nodes[0].phase is Phase.FENCED
    assert not world.nodes[1].holding
    assert "switch-link" not in rows(world, 0)


def test_a_short_loss_of_both_links_is_nothing() -> None:
    world = pair(1)
    world.network.switch_up = False
    world.links_changed()
    world.run(0.5)
    world.network.switch_up = True
    world.links_changed()
    stays(world, 10.0)


@pytest.mark.req("R13")
def test_an_active_with_both_links_down_fences_itself_before_the_take_over() -> None:
    for seed in range(10):
        world = pair(seed)
        cut_everything(world, 0)
        takes_over(world, 1, limit_s=3.6)
        assert world.nodes[0].phase is Phase.FENCED
        assert not world.nodes[0].services


def test_one_way_loss_on_the_lan_of_the_active_is_carried_by_the_cable() -> None:
    world = pair(1)
    world.network.ports[0].sends = False
    stays(world, 30.0)


@pytest.mark.req("R13")
def test_a_cut_cable_and_a_lan_port_that_only_receives_make_no_second_holder() -> None:
    for seed in range(10):
        world = pair(seed)
        world.network.cable = [False, False]
        world.network.ports[0].sends = False
        takes_over(world, 1, limit_s=3.8)
        assert world.nodes[0].phase is not Phase.ACTIVE
        assert world.holders.excused == []


def test_the_gateway_lost_before_the_active_is_single_fences_it() -> None:
    world = pair(1)
    world.nodes[1].power_off()
    world.run(1.0)
    world.network.gateway_up = False
    world.run(5.0)
    assert world.nodes[0].phase is Phase.FENCED


def test_becoming_single_raises_the_epoch_durably() -> None:
    world = pair(1)
    before = world.nodes[0].disk.served
    world.nodes[1].power_off()
    stays(world, 8.0)
    assert world.nodes[0].disk.served > before
    assert world.nodes[0].agent is not None
    assert world.nodes[0].agent.epoch == world.nodes[0].disk.served == world.nodes[0].engine.epoch


def test_a_standby_that_leaves_cleanly_makes_the_active_single_at_once() -> None:
    world = pair(1)
    world.nodes[1].tell(ev.StopRequested)
    world.run(0.5)
    assert world.nodes[0].disk.single
    world.nodes[1].kill_agent()
    world.network.gateway_up = False
    stays(world, 20.0)


def test_an_administrator_declares_the_active_single_only_when_the_peer_is_silent() -> None:
    world = pair(1)
    world.nodes[0].tell(ev.SingleDeclared)
    assert world.nodes[0].refused[-1].reason is Reason.PEER_HEARD
    world.nodes[1].tell(ev.SingleDeclared)
    assert world.nodes[1].refused[-1].reason is Reason.NOT_ACTIVE
    world.nodes[1].power_off()
    world.run(3.1)
    assert not world.nodes[0].disk.single
    world.nodes[0].tell(ev.SingleDeclared)
    world.run(0.1)
    assert world.nodes[0].disk.single


def test_an_active_without_carrier_does_not_become_single() -> None:
    world = pair(1, timeout_s=10.0)
    cut_everything(world, 1)
    world.run(9.0)
    world.network.ports[0].carrier = False
    world.links_changed()
    world.run(5.0)
    assert not world.nodes[0].disk.single


def test_a_single_active_frozen_past_its_lease_is_fenced_when_it_wakes() -> None:
    world = pair(1)
    world.nodes[1].power_off()
    world.run(8.0)
    assert world.nodes[0].disk.single
    world.nodes[0].freeze(between=False, seconds=5.0)
    world.run(5.05)
    assert world.nodes[0].phase is Phase.FENCED
    assert not world.nodes[0].holding
    takes_over(world, 0, limit_s=10.0)
