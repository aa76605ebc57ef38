"""Each rule and each counter-example of the arbiter's design, as one schedule with its own words.

All of them run under the invariants S1-S7 of the simulator, at every step.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from ha_agent.arbiter import actions as act
from ha_agent.arbiter import events as ev
from ha_agent.arbiter.state import Book, Fault
from ha_agent.arbiter.values import NO_EPOCH, Cause, Epoch, Identity, Phase, Policy, Reason, Station
from tests.sim.network import CABLE, LAN
from tests.sim.node import Node
from tests.sim.world import FORMED, World

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


# -- boot ----------------------------------------------------------------------------------------------------------------


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
def test_reserved_but_never_served_epochs_win_no_election() -> None:
    reserved = replace(FORMED, promised=Epoch(41))
    world = World(3, books=(replace(FORMED, promised=Epoch(4), served=Epoch(4), data=Epoch(4)), reserved))
    world.boot()
    takes_over(world, 0, limit_s=6.0)
    assert world.nodes[0].agent is not None
    assert world.nodes[0].agent.epoch > 41


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


# -- death of the Active ---------------------------------------------------------------------------------------------------


@pytest.mark.req("R11", "R14")
@pytest.mark.parametrize("timeout_s", [3.0, 7.0, 10.0])
def test_power_off_of_the_active_is_answered_within_the_timeout_and_half_a_second(timeout_s: float) -> None:
    for seed in range(10):
        world = pair(seed, timeout_s=timeout_s, beat_s=0.1)
        world.nodes[0].power_off()
        took = takes_over(world, 1, limit_s=timeout_s + 0.5)
        assert took >= timeout_s - 0.2, "never before the timeout, counted from the last beat"
        assert world.nodes[1].services


def test_without_a_gateway_the_carrier_counts() -> None:
    world = pair(2, gateway=False)
    world.nodes[0].power_off()
    takes_over(world, 1, limit_s=3.6)
    stays(world, 30.0, node=1)


@pytest.mark.req("R11")
def test_a_gateway_that_was_never_seen_is_no_evidence_either_way() -> None:
    world = World(2)
    world.network.gateway_up = False
    world.settle()
    world.nodes[0].power_off()
    takes_over(world, 1, limit_s=3.6)


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


def test_a_foreign_holder_blocks_the_take_over_and_its_going_frees_it() -> None:
    world = pair(5)
    world.network.foreign = True
    world.nodes[0].power_off()
    world.run(20.0)
    assert not world.nodes[1].holding
    assert act.Subject.FOREIGN_HOLDER in alarms(world.nodes[1])
    world.network.foreign = False
    assert takes_over(world, 1, limit_s=2.0) < 2.0, "the silence does not start anew"


def test_a_fast_reboot_of_the_active_is_answered_by_its_ready_standby_at_once() -> None:
    for seed in range(10):
        world = pair(seed, timeout_s=10.0)
        world.nodes[0].power_off()
        world.run(2.0)
        world.boot(0)
        assert takes_over(world, 1, limit_s=3.0) < 3.0
        world.run(3.0)
        assert world.nodes[0].phase is Phase.STANDBY
        assert world.nodes[1].moves[-1].cause in {Cause.REBOOT, Cause.NONE} or "serve" in rows(world, 1)


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


# -- frozen, starved, paused ---------------------------------------------------------------------------------------------


@pytest.mark.req("R13")
@pytest.mark.parametrize("seconds", [1.5, 2.5, 3.0, 3.3, 5.0, 20.0])
@pytest.mark.parametrize("between", [False, True])
def test_a_frozen_active_loses_its_lease_before_anybody_takes_over(seconds: float, between: bool) -> None:
    for seed in range(6):
        world = pair(seed)
        world.nodes[0].freeze(between=between, seconds=seconds)
        world.run(seconds + 2.0)
        assert world.holders.excused == []
        world.run_until(world.paired, limit_s=10.0)


@pytest.mark.req("R13")
def test_a_standby_frozen_between_decision_and_performance_adds_nothing_late() -> None:
    for seed in range(12):
        world = pair(seed)
        world.nodes[1].freeze(between=True, seconds=6.0)
        world.nodes[0].power_off()
        world.run(3.2)
        world.boot(0)
        world.run(12.0)
        assert world.holders.excused == []
        world.run_until(world.paired, limit_s=30.0)


def test_a_standby_that_was_frozen_itself_looks_again_before_it_judges() -> None:
    for seed in range(12):
        world = pair(seed)
        world.network.foreign = False
        world.nodes[1].freeze(between=False, seconds=8.0)
        world.run(8.0)
        stays(world, 3.0)
        assert "take-over" not in rows(world, 1)


@pytest.mark.req("R13")
def test_a_paused_machine_drops_the_address_soon_after_it_goes_on() -> None:
    for seed in range(10):
        world = pair(seed, beat_s=0.1)
        world.nodes[0].pause(10.0)
        world.run(9.9)
        assert world.nodes[1].holding
        world.run(0.5)
        assert world.active() is world.nodes[1]
        assert world.nodes[0].phase in {Phase.FENCED, Phase.STANDBY}
        assert "outranked" in rows(world, 0)
        assert not world.nodes[0].services


# -- links -----------------------------------------------------------------------------------------------------------------


@pytest.mark.req("R11")
def test_the_heartbeat_cable_alone_switches_nothing() -> None:
    world = pair(1)
    world.network.cable = [False, False]
    stays(world, 120.0)
    assert rows(world, 0)[-1] == "serve"


@pytest.mark.req("R11")
def test_thirty_percent_loss_switches_nothing() -> None:
    world = pair(1)
    world.network.loss = 0.3
    stays(world, 240.0)


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
def test_the_switch_reboots_and_one_election_follows() -> None:
    for seed in range(10):
        world = pair(seed, timeout_s=7.0)
        serving = len(world.served)
        world.network.switch_up = False
        world.links_changed()
        world.run(20.0)
        assert world.nodes[0].phase is Phase.FENCED
        world.network.switch_up = True
        world.links_changed()
        takes_over(world, 0, limit_s=12.0)
        assert len(world.served) == serving + 1


def test_both_fenced_without_a_cable_and_both_back_make_one_active() -> None:
    for seed in range(20):
        world = pair(seed)
        world.network.cable = [False, False]
        world.network.switch_up = False
        world.links_changed()
        world.run(15.0)
        assert world.nodes[0].phase is Phase.FENCED
        world.network.switch_up = True
        world.links_changed()
        world.run_until(world.paired, limit_s=8.0)
        assert world.holders.excused == []


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


# -- single ----------------------------------------------------------------------------------------------------------------


@pytest.mark.req("R11")
def test_the_standby_lost_and_then_the_gateway_the_active_keeps_serving() -> None:
    world = pair(1)
    world.nodes[1].power_off()
    stays(world, 8.0)
    assert world.nodes[0].disk.single
    world.network.gateway_up = False
    stays(world, 60.0)
    world.network.gateway_up = True
    world.boot(1)
    stays(world, 10.0)
    assert not world.nodes[0].disk.single, "the peer's first beat ends it"


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


# -- hand-over ---------------------------------------------------------------------------------------------------------------


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
def test_a_standby_that_does_not_catch_up_by_the_deadline_ends_the_switch() -> None:
    world = pair(5)
    world.nodes[0].tell(ev.SwitchRequested)
    world.nodes[1].engine.slow = True
    world.nodes[0].engine.progress += 50
    world.run(4.5)
    assert world.active() is world.nodes[0]
    assert world.nodes[0].services
    assert world.nodes[0].refused[-1].reason is Reason.DEADLINE


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


def lose_the_go(world: World, *, seconds: float) -> None:
    """From the moment at which the Active accepts the acceptance nothing of it arrives."""
    world.nodes[0].tell(ev.SwitchRequested)
    world.run_until(lambda: world.nodes[0].phase is Phase.RELEASING, limit_s=3.0)
    for path in (CABLE, LAN):
        world.network.udp[path][0] = False

    def restore() -> None:
        world.network.heal()

    world.at(seconds, restore)


@pytest.mark.req("R6", "R13")
def test_a_lost_go_is_repeated_until_the_peer_serves() -> None:
    for seed in range(10):
        world = pair(seed, timeout_s=7.0)
        lose_the_go(world, seconds=1.0)
        takes_over(world, 1, limit_s=3.0)
        assert world.holders.excused == []


@pytest.mark.req("R13")
def test_a_go_that_never_arrives_leads_to_one_active_all_the_same() -> None:
    for seed in range(10):
        world = pair(seed)
        lose_the_go(world, seconds=12.0)
        world.run_until(lambda: world.active() is not None, limit_s=8.0)
        world.run(12.0)
        world.run_until(world.paired, limit_s=12.0)
        assert world.holders.excused == []


@pytest.mark.req("R13")
def test_the_taker_that_dies_after_the_go_is_followed_by_the_old_active() -> None:
    for seed in range(10):
        world = pair(seed)
        world.nodes[0].tell(ev.SwitchRequested)
        world.run_until(lambda: world.nodes[0].phase is Phase.RELEASING, limit_s=3.0)
        world.nodes[1].power_off()
        takes_over(world, 0, limit_s=4.5)


@pytest.mark.req("R13")
def test_the_giver_frozen_after_the_acceptance_makes_no_second_holder() -> None:
    for seed in range(10):
        world = pair(seed)
        world.nodes[0].tell(ev.SwitchRequested)
        world.run_until(lambda: world.nodes[0].phase is Phase.OFFERING, limit_s=3.0)
        world.nodes[0].freeze(between=True, seconds=8.0)
        world.run(14.0)
        assert world.holders.excused == []
        world.run_until(world.paired, limit_s=12.0)


def test_a_giver_whose_address_call_fails_does_not_say_go_before_the_lease_is_over() -> None:
    for seed in range(10):
        world = pair(seed)
        world.nodes[0].tell(ev.SwitchRequested)
        world.run_until(lambda: world.nodes[0].phase is Phase.OFFERING, limit_s=3.0)
        world.nodes[0].calls_fail = True
        world.run(6.0)
        assert world.holders.excused == []
        assert world.active() is world.nodes[1]


def test_a_taker_whose_address_call_fails_leaves_the_role_to_the_old_active() -> None:
    for seed in range(5):
        world = pair(seed)
        world.nodes[1].calls_fail = True
        world.nodes[0].tell(ev.SwitchRequested)
        world.run_until(lambda: world.nodes[0].phase is Phase.STANDBY, limit_s=3.0)
        takes_over(world, 0, limit_s=8.0)


def test_a_node_whose_disk_fails_neither_claims_nor_consents() -> None:
    world = pair(1)
    world.nodes[1].store_fails = True
    world.nodes[0].power_off()
    world.run(10.0)
    assert not world.nodes[1].holding
    world.nodes[1].store_fails = False
    takes_over(world, 1, limit_s=4.0)


# -- faults that a node sees in itself ---------------------------------------------------------------------------------------


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


# -- maintenance, policy, contradictions ---------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("policy", [Policy.AVAILABILITY, Policy.CONSISTENCY])
def test_no_policy_lets_unsound_data_serve(policy: Policy) -> None:
    world = pair(1, preference=policy)
    world.nodes[1].engine.sound = False
    world.run(1.0)
    world.nodes[0].power_off()
    world.run(30.0)
    assert not world.nodes[1].holding


def differing(**fields: object) -> tuple[Identity, Identity]:
    return Identity(station=Station.PRIMARY), Identity(**{"station": Station.SECONDARY, **fields})  # type: ignore[arg-type]


CONTRADICTING = {
    "same_station": {"station": Station.PRIMARY},
    "settings_differ": {"settings_digest": "other"},
    "model_differs": {"model": "other"},
    "schema_apart": {"schema": (7, 9)},
    "observing": None,
}


@pytest.mark.req("R1.3", "R13")
@pytest.mark.parametrize("name", ["same_station", "settings_differ", "model_differs", "schema_apart"])
def test_contradicting_nodes_refuse_loudly_and_nobody_serves(name: str) -> None:
    world = World(1, identities=differing(**CONTRADICTING[name] or {}))
    world.boot()
    world.run(90.0)
    assert world.active() is None
    for node in world.nodes:
        raised = [alarm for alarm in node.alarms if alarm.subject is act.Subject.CONTRADICTION]
        assert [one.value for alarm in raised for one in alarm.reasons] == [name]


@pytest.mark.req("R1.3")
def test_a_contradicting_peer_does_not_disturb_the_one_that_serves() -> None:
    world = World(
        1, identities=differing(station=Station.PRIMARY), books=(FORMED, Book(promised=Epoch(4))), boot_waits=(4.0, 8.0)
    )
    world.boot(0)
    takes_over(world, 0, limit_s=9.0)
    world.boot(1)
    stays(world, 10.0)
    world.nodes[0].tell(ev.SwitchRequested)
    assert world.nodes[0].refused[-1].reason is Reason.SAME_STATION
    world.nodes[0].tell(ev.SwitchRequested, force=True, accept_data_loss=True)
    assert world.nodes[0].refused[-1].reason is Reason.SAME_STATION
    world.nodes[0].tell(ev.HealthReported, faults=CRASHED)
    stays(world, 3.0)
    world.nodes[0].power_off()
    world.run(30.0)
    assert not world.nodes[1].holding


def test_differing_settings_are_passed_by_force_only() -> None:
    world = World(1, identities=differing(settings_digest="other"), boot_waits=(4.0, 8.0))
    world.boot(0)
    takes_over(world, 0, limit_s=9.0)
    world.boot(1)
    world.run(8.0)
    world.nodes[0].tell(ev.SwitchRequested)
    assert world.nodes[0].refused[-1].reason is Reason.SETTINGS_DIFFER
    world.nodes[0].tell(ev.SwitchRequested, force=True)
    takes_over(world, 1, limit_s=3.0)


def test_firmware_whose_schemas_overlap_is_no_contradiction() -> None:
    world = World(1, identities=differing(schema=(1, 2)))
    world.settle()


# -- two Actives ---------------------------------------------------------------------------------------------------------------


@pytest.mark.req("R13")
def test_two_actives_meet_and_the_higher_epoch_serves() -> None:
    world = pair(1, gateway=False)
    world.network.cable = [False, False]
    for port in world.network.ports:
        port.sends = False
    world.run(12.0)
    assert all(node.holding for node in world.nodes)
    assert world.holders.excused == ["parted"]
    higher = max(world.nodes, key=lambda node: node.disk.served)
    world.network.heal()
    world.run(1.0)
    assert world.active() is higher
    assert "meets-lower" in rows(world, higher.number)
    assert "outranked" in rows(world, 1 - higher.number)
    assert not higher.peer.services
    world.run_until(world.paired, limit_s=10.0)


# -- force ---------------------------------------------------------------------------------------------------------------------


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


# -- stop ----------------------------------------------------------------------------------------------------------------------


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


# -- replay, epochs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.req("R3", "R13")
def test_replayed_beats_after_a_restart_prove_no_life_and_raise_no_epoch() -> None:
    world = pair(1)
    recorded = list(world.recent)
    world.nodes[0].power_off()
    world.nodes[1].power_off()
    world.run(5.0)
    world.boot(1)
    agent = world.nodes[1].agent
    assert agent is not None
    for receiver, envelope, beat in recorded:
        if receiver == 1:
            world.nodes[1].arrives(envelope, replace(beat, promised=Epoch(999), epoch=Epoch(998)))
    assert world.nodes[1].agent is not None
    assert world.nodes[1].agent.peer is None
    assert world.nodes[1].disk.promised < 900


@pytest.mark.req("R13")
def test_the_active_raises_its_epoch_above_one_that_was_merely_reserved() -> None:
    world = pair(1)
    world.nodes[1].power_off()
    world.nodes[1].disk = replace(world.nodes[1].disk, promised=Epoch(77))
    world.run(1.0)
    world.boot(1)
    world.run(2.0)
    assert world.active() is world.nodes[0]
    assert world.nodes[0].engine.epoch > 77
    world.run_until(world.paired, limit_s=10.0)


def test_a_primary_takes_even_and_a_secondary_odd_epochs() -> None:
    assert [Station.PRIMARY.next_above(Epoch(n)) for n in (0, 1, 2, 3)] == [2, 2, 4, 4]
    assert [Station.SECONDARY.next_above(Epoch(n)) for n in (0, 1, 2, 3)] == [1, 3, 3, 5]
    assert NO_EPOCH == 0


# -- observe-only ----------------------------------------------------------------------------------------------------------------


def test_a_pair_that_only_observes_touches_nothing_and_says_what_it_would_do() -> None:
    world = World(1, observe=True)
    world.boot()
    world.run(10.0)
    world.nodes[0].power_off()
    world.run(8.0)
    assert not any(node.holding or node.services for node in world.nodes)
    assert any(isinstance(one.deed, act.AddAddress) for one in world.nodes[1].would)
    assert any(isinstance(one.deed, act.StartServices) for one in world.nodes[1].would)
    assert "serve" in rows(world, 1)
