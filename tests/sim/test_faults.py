"""Faults that a node sees in itself, flapping, maintenance, and what policy decides."""

from __future__ import annotations

import pytest

from ha_agent.arbiter import actions as act
from ha_agent.arbiter import events as ev
from ha_agent.arbiter import policy as policy_rules
from ha_agent.arbiter.values import Cause, Phase, Policy, Reason
from tests.sim.stage import ALARM_ONLY, CRASHED, alarms, pair, rows, stays, takes_over
from tests.sim.world import World


@pytest.mark.req("R12")
def test_a_self_detected_fault_switches_within_a_fifth_of_a_second() -> None:
    for seed in range(20):
        world = pair(seed, beat_s=0.1)
        world.nodes[0].faults = CRASHED
        world.nodes[0].tell(ev.HealthReported, faults=CRASHED)
        assert takes_over(world, 1, limit_s=1.0) <= 0.2
        assert world.nodes[1].moves[-1].cause is Cause.FAULT


@pytest.mark.req("R12")
def test_a_fault_whose_switch_is_off_is_an_alarm_only() -> None:
    world = pair(1)
    world.nodes[0].tell(ev.HealthReported, faults=ALARM_ONLY)
    stays(world, 5.0)
    assert act.Subject.FAULT_NOT_SWITCHED in alarms(world.nodes[0])


@pytest.mark.req("R12")
def test_a_fault_does_not_switch_to_a_peer_that_is_not_ready() -> None:
    world = pair(1)
    world.nodes[1].tell(ev.HealthReported, faults=CRASHED)
    world.run(0.5)
    world.nodes[0].tell(ev.HealthReported, faults=CRASHED)
    stays(world, 5.0)
    assert "switch-fault" not in rows(world, 0)


@pytest.mark.req("R12")
def test_a_cause_that_switched_once_switches_again_only_after_it_was_seen_good() -> None:
    world = pair(1)
    world.nodes[0].tell(ev.HealthReported, faults=CRASHED)
    takes_over(world, 1, limit_s=1.0)
    world.run_until(world.paired_but_unready, limit_s=10.0)
    world.nodes[1].power_off()
    takes_over(world, 0, limit_s=4.0)
    world.boot(1)
    world.run(20.0)
    assert world.active() is world.nodes[0], "the fault stands and is spent"
    world.nodes[0].tell(ev.HealthReported, faults=frozenset())
    world.release_hold(0)
    world.run(0.5)
    world.nodes[0].tell(ev.HealthReported, faults=CRASHED)
    takes_over(world, 1, limit_s=1.0)


def fault_and_good(world: World, number: int) -> None:
    world.nodes[number].tell(ev.HealthReported, faults=CRASHED)
    takes_over(world, 1 - number, limit_s=1.5)
    world.nodes[number].tell(ev.HealthReported, faults=frozenset())
    world.run_until(world.paired, limit_s=10.0)


@pytest.mark.req("R13")
def test_after_two_automatic_switches_the_pair_is_held_until_released() -> None:
    world = pair(1)
    fault_and_good(world, 0)
    fault_and_good(world, 1)
    world.run(1.0)
    assert act.Subject.HELD in alarms(world.nodes[0])
    assert act.Subject.HELD in alarms(world.nodes[1])
    world.nodes[0].tell(ev.HealthReported, faults=CRASHED)
    stays(world, 5.0)
    world.release_hold(1)
    takes_over(world, 1, limit_s=2.0)


def test_a_held_pair_is_released_by_time_and_switches_on_a_death() -> None:
    world = pair(1, beat_s=0.4)
    fault_and_good(world, 0)
    fault_and_good(world, 1)
    world.nodes[0].tell(ev.HealthReported, faults=CRASHED)
    stays(world, 5.0)
    world.nodes[0].power_off()
    takes_over(world, 1, limit_s=4.0)
    world.boot(0)
    world.run_until(world.paired, limit_s=15.0)
    world.run(905.0)
    fault_and_good(world, 1)


def test_a_held_pair_does_not_follow_a_link() -> None:
    world = pair(1)
    fault_and_good(world, 0)
    fault_and_good(world, 1)
    world.network.ports[0].carrier = False
    world.links_changed()
    world.run(0.5)
    assert "switch-link" not in rows(world, 0)


def test_maintenance_stops_every_automatic_switch_and_ends_by_itself() -> None:
    world = pair(1)
    world.nodes[1].tell(ev.MaintenanceSet, seconds=40.0)
    world.run(1.0)
    assert world.nodes[0].now_maintained, "the peer knows it from the beats"
    world.nodes[0].tell(ev.HealthReported, faults=CRASHED)
    stays(world, 5.0)
    world.network.ports[0].carrier = False
    world.links_changed()
    world.run(0.3)
    assert "switch-link" not in rows(world, 0)
    world.network.ports[0].carrier = True
    world.links_changed()
    world.run(0.5)
    world.nodes[0].power_off()
    world.run(20.0)
    assert not world.nodes[1].holding
    takes_over(world, 1, limit_s=20.0)


def test_maintenance_can_be_ended_from_the_other_node() -> None:
    world = pair(1)
    world.nodes[1].tell(ev.MaintenanceSet, seconds=400.0)
    world.run(1.0)
    world.nodes[0].tell(ev.MaintenanceSet, seconds=0.0)
    world.run(1.0)
    assert not world.nodes[1].now_maintained


def test_a_node_that_served_last_comes_back_during_maintenance() -> None:
    world = pair(1)
    world.nodes[0].tell(ev.MaintenanceSet, seconds=400.0)
    world.run(1.0)
    world.network.switch_up = False
    world.network.cable = [False, False]
    world.links_changed()
    world.run(5.0)
    assert world.nodes[0].phase is Phase.FENCED
    world.nodes[1].power_off()
    world.network.heal()
    world.links_changed()
    takes_over(world, 0, limit_s=8.0)


@pytest.mark.parametrize("policy", [Policy.AVAILABILITY, Policy.CONSISTENCY])
def test_an_unready_standby_takes_over_from_the_dead_by_policy(policy: Policy) -> None:
    world = pair(1, preference=policy)
    world.nodes[1].engine.slow = True
    world.run(60.0)
    assert not world.nodes[1].engine.current
    world.nodes[0].power_off()
    world.run(10.0)
    assert world.nodes[1].holding is (policy is Policy.AVAILABILITY)
    if policy is Policy.AVAILABILITY:
        assert act.Subject.NOT_READY in alarms(world.nodes[1])


@pytest.mark.req("R11")
@pytest.mark.parametrize("policy", [Policy.AVAILABILITY, Policy.CONSISTENCY])
def test_a_standby_that_was_in_step_is_ready_though_its_streams_died_with_the_active(policy: Policy) -> None:
    for seed in range(5):
        world = pair(seed, preference=policy)
        world.nodes[0].power_off()
        takes_over(world, 1, limit_s=4.0)
        assert act.Subject.NOT_READY not in alarms(world.nodes[1])


@pytest.mark.req("R11")
def test_a_standby_whose_streams_are_gone_while_the_active_lives_is_not_ready() -> None:
    world = pair(1)
    world.nodes[1].engine.slow = True
    world.run(60.0)
    agent = world.nodes[1].agent
    assert agent is not None
    assert policy_rules.reasons(agent) == (Reason.BEHIND,)


@pytest.mark.parametrize("policy", [Policy.AVAILABILITY, Policy.CONSISTENCY])
def test_no_policy_lets_unsound_data_serve(policy: Policy) -> None:
    world = pair(1, preference=policy)
    world.nodes[1].engine.sound = False
    world.run(1.0)
    world.nodes[0].power_off()
    world.run(30.0)
    assert not world.nodes[1].holding
