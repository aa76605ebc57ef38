"""The Active dies, is stopped, frozen or restarted: who serves then, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ha_agent.arbiter import events as ev
from ha_agent.arbiter.values import Phase
from tests.sim.network import CABLE, LAN
from tests.sim.stage import cut_everything, pair, rows, stays, takes_over


@pytest.mark.req("R11", "R14")
@pytest.mark.parametrize("timeout_s", [3.0, 7.0, 10.0])
def test_power_off_of_the_active_is_answered_within_the_timeout_and_half_a_second(timeout_s: float) -> None:
    for seed in range(10):
        world = pair(seed, timeout_s=timeout_s, beat_s=0.1)
        world.nodes[0].power_off()
        took = takes_over(world, 1, limit_s=timeout_s + 0.5)
        assert took >= timeout_s - 0.2, "never before the timeout, counted from the last beat"
        assert world.nodes[1].services


@pytest.mark.req("R11")
def test_a_standby_that_is_cut_off_does_not_take_over() -> None:
    world = pair(3)
    world.network.cable = [False, False]
    world.network.ports[1].receives = False
    world.run(20.0)
    assert not world.nodes[1].holding
    assert "take-over" not in rows(world, 1)
    stays(world, 5.0)


@pytest.mark.req("R11")
def test_a_standby_without_carrier_does_not_take_over() -> None:
    world = pair(3, gateway=False)
    cut_everything(world, 1)
    world.run(20.0)
    assert not world.nodes[1].holding
    stays(world, 5.0)


@pytest.mark.req("R11")
def test_beats_filtered_on_every_path_and_the_address_answers_no_switch() -> None:
    world = pair(4)
    for path in (CABLE, LAN):
        world.network.udp[path][0] = False
    world.run(30.0)
    assert world.active() is world.nodes[0]
    assert "take-over" not in rows(world, 1)


def test_a_reboot_of_the_active_goes_back_to_it_when_the_standby_is_not_ready() -> None:
    world = pair(6, timeout_s=10.0)
    world.nodes[1].engine.slow = True
    world.run(60.0)
    assert world.nodes[1].engine.current is False
    world.nodes[0].power_off()
    world.run(2.0)
    world.boot(0)
    takes_over(world, 0, limit_s=8.0)


def test_a_restarted_agent_resumes_within_the_same_kernel_boot() -> None:
    for seed in range(10):
        world = pair(seed, timeout_s=7.0)
        world.nodes[0].kill_agent()
        world.run(0.3)
        world.nodes[0].start_agent()
        assert world.nodes[0].phase is Phase.ACTIVE
        stays(world, 15.0)
        assert "serve" not in rows(world, 1)


def test_a_restarted_agent_whose_lease_lapsed_does_not_resume() -> None:
    world = pair(1, timeout_s=3.0)
    world.nodes[0].kill_agent()
    world.run(2.5)
    assert not world.nodes[0].holding
    world.nodes[0].start_agent()
    assert world.nodes[0].phase is Phase.STARTING
    takes_over(world, 1, limit_s=3.0)


def test_an_agent_that_dies_for_good_loses_the_address_to_the_standby() -> None:
    world = pair(1)
    world.nodes[0].kill_agent()
    takes_over(world, 1, limit_s=3.6)
    assert not world.nodes[0].holding


def test_a_stale_address_after_a_restart_is_removed_before_anything_else() -> None:
    world = pair(1, timeout_s=7.0)
    node = world.nodes[0]
    node.kill_agent()
    node.disk = replace(node.disk, active=False)
    node.start_agent()
    assert node.phase is Phase.STARTING
    assert not node.holding
    world.run_until(lambda: world.active() is not None, limit_s=10.0)


def test_a_standby_that_was_frozen_itself_looks_again_before_it_judges() -> None:
    for seed in range(12):
        world = pair(seed)
        world.network.foreign = False
        world.nodes[1].freeze(between=False, seconds=8.0)
        world.run(8.0)
        stays(world, 3.0)
        assert "take-over" not in rows(world, 1)


def test_an_active_that_is_stopped_is_followed_at_once() -> None:
    for seed in range(5):
        world = pair(seed, timeout_s=10.0)
        world.nodes[0].tell(ev.StopRequested)
        takes_over(world, 1, limit_s=1.5)
        assert world.nodes[0].disk.clean
        assert world.nodes[0].phase is Phase.LEFT


def test_a_stopped_node_says_nothing_before_its_address_is_gone() -> None:
    world = pair(1, timeout_s=10.0)
    world.nodes[0].calls_fail = True
    world.nodes[0].tell(ev.StopRequested)
    world.run(2.0)
    assert not world.nodes[1].holding
    world.nodes[0].calls_fail = False
    takes_over(world, 1, limit_s=2.0)
