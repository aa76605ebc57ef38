"""Two machines start, together or alone: who serves, and what it waits for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ha_agent.arbiter import actions as act
from ha_agent.arbiter import events as ev
from ha_agent.arbiter.state import Book
from ha_agent.arbiter.values import Epoch, Reason
from tests.sim.stage import ALARM_ONLY, alarms, pair, stays, takes_over
from tests.sim.world import FORMED, World


@pytest.mark.req("R10")
def test_two_that_start_together_elect_the_primary_when_they_are_equal() -> None:
    for seed in range(20):
        world = World(seed)
        world.boot()
        takes_over(world, 0, limit_s=6.0)
        assert not world.nodes[1].holding


@pytest.mark.req("R10")
def test_the_higher_data_epoch_wins_over_the_primary() -> None:
    newer = replace(FORMED, promised=Epoch(5), served=Epoch(5), data=Epoch(5))
    for seed in range(10):
        world = World(seed, books=(FORMED, newer))
        world.boot()
        takes_over(world, 1, limit_s=6.0)


@pytest.mark.req("R10")
def test_newer_data_of_the_same_epoch_wins() -> None:
    world = World(4)
    world.nodes[1].engine.progress = 7
    world.boot()
    takes_over(world, 1, limit_s=6.0)


@pytest.mark.req("R10")
def test_complete_data_wins_over_newer_that_is_not() -> None:
    world = World(4, books=(FORMED, replace(FORMED, sound=False)))
    world.nodes[1].engine.progress = 7
    world.boot()
    takes_over(world, 0, limit_s=6.0)


@pytest.mark.req("R10")
def test_the_healthier_of_two_equal_ones_wins() -> None:
    world = World(4)
    world.nodes[0].faults = ALARM_ONLY
    world.boot()
    takes_over(world, 1, limit_s=6.0)


@pytest.mark.req("R10")
def test_a_live_active_wins_over_a_better_one_that_boots() -> None:
    world = World(5, boot_waits=(4.0, 8.0))
    world.boot(0)
    takes_over(world, 0, limit_s=9.0)
    world.nodes[1].disk = replace(FORMED, promised=Epoch(9), served=Epoch(9), data=Epoch(9))
    world.nodes[1].engine.data = 9
    world.boot(1)
    stays(world, 10.0)
    assert world.nodes[0].agent is not None
    assert world.nodes[0].agent.epoch > 9, "a reserved or served higher epoch of a Standby is overtaken"


@pytest.mark.req("R10")
def test_a_node_that_hears_nobody_waits_the_boot_wait() -> None:
    world = World(6)
    world.boot(0)
    took = takes_over(world, 0, limit_s=75.0)
    assert 60.0 <= took <= 61.0, "it had been stopped while Standby"
    world = World(6, books=(Book(sound=True, clean=True), Book()))
    world.boot(0)
    assert 10.0 <= takes_over(world, 0, limit_s=15.0) <= 11.0


@pytest.mark.req("R10")
def test_a_node_that_went_down_uncleanly_waits_longer() -> None:
    world = pair(7)
    world.nodes[0].power_off()
    world.nodes[1].power_off()
    world.run(5.0)
    world.boot(0)
    assert 60.0 <= takes_over(world, 0, limit_s=75.0) <= 61.0


@pytest.mark.req("R10")
def test_a_node_that_never_completed_a_full_sync_stays_standby_alone() -> None:
    world = World(8, books=(FORMED, Book(promised=Epoch(2))))
    world.boot(1)
    world.run(90.0)
    assert world.active() is None
    assert not world.nodes[1].holding


def test_both_never_synced_nobody_serves_until_an_administrator_forces_it() -> None:
    world = World(9, books=(Book(), Book()))
    world.boot()
    world.run(20.0)
    assert world.active() is None
    assert act.Subject.NOBODY_ELIGIBLE in alarms(world.nodes[0])
    world.nodes[1].tell(ev.SwitchRequested, force=True)
    assert world.nodes[1].refused[-1].reason is Reason.UNSOUND
    world.nodes[1].tell(ev.SwitchRequested, force=True, accept_data_loss=True)
    takes_over(world, 1, limit_s=2.0)


def test_a_booting_node_does_not_take_over_while_the_address_is_answered() -> None:
    world = World(10, boot_waits=(4.0, 8.0))
    world.network.foreign = True
    world.boot(0)
    world.run(30.0)
    assert not world.nodes[0].holding
    assert act.Subject.FOREIGN_HOLDER in alarms(world.nodes[0])
    assert any(alarm.mac for alarm in world.nodes[0].alarms)
    world.network.foreign = False
    takes_over(world, 0, limit_s=3.0)
