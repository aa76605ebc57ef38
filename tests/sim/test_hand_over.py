"""A switch that an administrator wants: two phases, nothing is lost, and it can be given up until the *go*."""

from __future__ import annotations

import pytest

from ha_agent.arbiter import events as ev
from ha_agent.arbiter.values import Cause, Phase, Reason
from tests.sim.stage import CRASHED, pair, reaches, rows, stays, takes_over


@pytest.mark.req("R6")
def test_a_planned_switch_ends_with_equal_positions() -> None:
    for seed in range(20):
        world = pair(seed)
        world.run(world.rng.uniform(0, 2))
        world.nodes[0].tell(ev.SwitchRequested)
        takes_over(world, 1, limit_s=3.0)
        assert world.nodes[1].moves[-1].cause is Cause.PLANNED
        world.run_until(world.paired, limit_s=10.0)
        assert "switch-refused" not in rows(world, 0)


@pytest.mark.req("R6")
def test_a_planned_switch_and_back() -> None:
    world = pair(2)
    for number in (0, 1, 0, 1):
        world.nodes[number].tell(ev.SwitchRequested)
        takes_over(world, 1 - number, limit_s=3.0)
        world.run_until(world.paired, limit_s=10.0)


@pytest.mark.req("R6")
def test_a_switch_is_refused_with_the_reasons_of_a_peer_that_is_not_ready() -> None:
    world = pair(3)
    world.nodes[1].engine.up = False
    world.run(1.5)
    world.nodes[0].tell(ev.SwitchRequested)
    assert world.nodes[0].refused[-1].reason is Reason.PEER_NOT_READY
    assert Reason.ENGINE_GONE in world.nodes[0].refused[-1].peer_reasons
    world.nodes[1].tell(ev.SwitchRequested)
    assert world.nodes[1].refused[-1].reason is Reason.NOT_ACTIVE
    stays(world, 3.0)


@pytest.mark.req("R6")
def test_a_switch_is_refused_when_nobody_is_heard_even_by_force() -> None:
    world = pair(3)
    world.nodes[1].power_off()
    world.run(2.0)
    world.nodes[0].tell(ev.SwitchRequested, force=True, accept_data_loss=True)
    assert world.nodes[0].refused[-1].reason is Reason.PEER_SILENT
    stays(world, 1.0)


@pytest.mark.req("R6")
def test_a_switch_during_a_full_backup_needs_force_which_ends_it() -> None:
    world = pair(3)
    world.nodes[0].engine.backup = True
    world.run(1.5)
    world.nodes[0].tell(ev.SwitchRequested)
    assert world.nodes[0].refused[-1].reason is Reason.BACKUP_RUNNING
    world.nodes[0].tell(ev.SwitchRequested, force=True)
    takes_over(world, 1, limit_s=3.0)
    assert not world.nodes[0].engine.backup


def test_a_switch_to_a_peer_without_link_is_refused_by_force_too() -> None:
    world = pair(3)
    world.network.ports[1].carrier = False
    world.links_changed()
    world.run(0.5)
    world.nodes[0].tell(ev.SwitchRequested, force=True, accept_data_loss=True)
    assert world.nodes[0].refused[-1].reason is Reason.PEER_LINK_DOWN


def test_unsound_data_on_the_peer_needs_the_acceptance_of_loss() -> None:
    world = pair(3)
    world.nodes[1].engine.sound = False
    world.run(1.0)
    world.nodes[0].tell(ev.SwitchRequested, force=True)
    assert world.nodes[0].refused[-1].reason is Reason.PEER_NOT_READY
    world.nodes[0].tell(ev.SwitchRequested, force=True, accept_data_loss=True)
    takes_over(world, 1, limit_s=3.0)


@pytest.mark.req("R6")
def test_a_drain_that_fails_gives_the_switch_up_and_the_services_run_again() -> None:
    world = pair(4)
    world.quiesce_fails = 1.0
    world.nodes[0].tell(ev.SwitchRequested)
    world.run(1.0)
    assert world.active() is world.nodes[0]
    assert world.nodes[0].services
    assert world.nodes[0].refused[-1].reason is Reason.QUIESCE_FAILED
    world.nodes[0].tell(ev.SwitchRequested, force=True, accept_data_loss=True)
    takes_over(world, 1, limit_s=3.0)


@pytest.mark.req("R6")
def test_a_switch_can_be_cancelled_until_the_go() -> None:
    world = pair(5)
    world.nodes[1].engine.slow = True
    world.nodes[0].engine.progress += 40
    world.nodes[0].tell(ev.SwitchRequested)
    world.run(0.05)
    world.nodes[0].tell(ev.SwitchCancelled)
    assert world.nodes[0].refused[-1].reason is Reason.CANCELLED
    stays(world, 3.0)
    assert world.nodes[0].services


def test_a_second_request_during_a_hand_over_is_refused() -> None:
    world = pair(5)
    world.nodes[0].tell(ev.SwitchRequested)
    world.nodes[0].tell(ev.SwitchRequested)
    assert world.nodes[0].refused[-1].reason is Reason.BUSY


@pytest.mark.req("R6")
def test_a_peer_that_dies_during_the_drain_leaves_the_active_serving() -> None:
    world = pair(5)
    world.nodes[1].engine.slow = True
    world.nodes[0].engine.progress += 50
    world.nodes[0].tell(ev.SwitchRequested)
    world.nodes[1].power_off()
    world.run(2.5)
    assert world.active() is world.nodes[0]
    assert world.nodes[0].services
    assert world.nodes[0].refused[-1].reason is Reason.PEER_LOST


def test_a_peer_that_became_unready_refuses_the_offer() -> None:
    world = pair(5)
    world.nodes[0].tell(ev.SwitchRequested)
    world.nodes[1].faults = CRASHED
    world.nodes[1].tell(ev.HealthReported, faults=CRASHED)
    world.run(1.5)
    assert world.active() is world.nodes[0]
    assert world.nodes[0].refused[-1].reason is Reason.PEER_REFUSED
    assert "refuse-offer" in rows(world, 1)


@pytest.mark.req("R13")
def test_the_taker_that_dies_after_the_go_is_followed_by_the_old_active() -> None:
    for seed in range(10):
        world = pair(seed)
        world.nodes[0].tell(ev.SwitchRequested)
        reaches(world, 0, Phase.RELEASING)
        world.nodes[1].power_off()
        takes_over(world, 0, limit_s=4.5)


def test_a_node_whose_disk_fails_neither_claims_nor_consents() -> None:
    world = pair(1)
    world.nodes[1].store_fails = True
    world.nodes[0].power_off()
    world.run(10.0)
    assert not world.nodes[1].holding
    world.nodes[1].store_fails = False
    takes_over(world, 1, limit_s=4.0)
