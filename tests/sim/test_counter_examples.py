"""The counter-examples: what breaks a simple pair, each as one schedule told in its own words.

Each text says what would go wrong without the rule, then what happens instead. All run under S1-S7, at every step.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from ha_agent.arbiter import actions as act
from ha_agent.arbiter import events as ev
from ha_agent.arbiter.values import Cause, Epoch, Phase, Reason
from tests.sim.network import CABLE, LAN
from tests.sim.stage import alarms, one_serves, pair, reaches, rows, stays, takes_over
from tests.sim.world import FORMED, World


@pytest.mark.req("R10")
def test_reserved_but_never_served_epochs_win_no_election() -> None:
    """A node that stood for election again and again, and was cut off each time, has reserved high epochs. Its data is
    old. If the higher reserved number won, the newer data would be thrown away: the epoch of the data decides."""
    reserved = replace(FORMED, promised=Epoch(41))
    world = World(3, books=(replace(FORMED, promised=Epoch(4), served=Epoch(4), data=Epoch(4)), reserved))
    world.boot()
    takes_over(world, 0, limit_s=6.0)
    assert world.nodes[0].agent is not None
    assert world.nodes[0].agent.epoch > 41


def test_without_a_gateway_the_carrier_counts() -> None:
    """No gateway is configured. If its answer were demanded, a Standby would never take over and an Active without a
    peer would fence itself: the carrier has to do."""
    world = pair(2, gateway=False)
    world.nodes[0].power_off()
    takes_over(world, 1, limit_s=3.6)
    stays(world, 30.0, node=1)


@pytest.mark.req("R11")
def test_a_gateway_that_was_never_seen_is_no_evidence_either_way() -> None:
    """The gateway was switched off, or mistyped, before both booted. It must not stand in the way of a take-over."""
    world = World(2)
    world.network.gateway_up = False
    world.settle()
    world.nodes[0].power_off()
    takes_over(world, 1, limit_s=3.6)


def test_a_foreign_holder_blocks_the_take_over_and_its_going_frees_it() -> None:
    """Proxy ARP: a router answers for the cluster IP with its own MAC. The address is taken, so nobody adds it, and the
    MAC is named. When the router is mended the Active has been dead for long: there is nothing more to wait for."""
    world = pair(5)
    world.network.foreign = True
    world.nodes[0].power_off()
    world.run(20.0)
    assert not world.nodes[1].holding
    assert act.Subject.FOREIGN_HOLDER in alarms(world.nodes[1])
    world.network.foreign = False
    assert takes_over(world, 1, limit_s=2.0) < 2.0, "the silence does not start anew"


def test_a_fast_reboot_of_the_active_is_answered_by_its_ready_standby_at_once() -> None:
    """The Active reboots faster than the timeout. It comes back without its address, so the silence never lasts, and
    the PBX would be away for a whole boot: the ready Standby takes over as soon as it hears "starting"."""
    for seed in range(10):
        world = pair(seed, timeout_s=10.0)
        world.nodes[0].power_off()
        world.run(2.0)
        world.boot(0)
        assert takes_over(world, 1, limit_s=3.0) < 3.0
        world.run(3.0)
        assert world.nodes[0].phase is Phase.STANDBY
        assert [moved.cause for moved in world.nodes[1].moves if moved.row == "serve"] == [Cause.REBOOT]


@pytest.mark.req("R13")
@pytest.mark.parametrize("seconds", [1.5, 2.5, 3.0, 3.3, 5.0, 20.0])
@pytest.mark.parametrize("between", [False, True])
def test_a_frozen_active_loses_its_lease_before_anybody_takes_over(seconds: float, between: bool) -> None:
    """The Active's process is stopped, anywhere or between the decision to renew and the call, for any time. The kernel
    takes the address away, and what was decided before the stop is not done after it."""
    for seed in range(6):
        world = pair(seed)
        world.nodes[0].freeze(between=between, seconds=seconds)
        world.run(seconds + 2.0)
        assert world.holders.excused == []
        world.run_until(world.paired, limit_s=10.0)


@pytest.mark.req("R13")
def test_a_standby_frozen_between_decision_and_performance_adds_nothing_late() -> None:
    """The Standby decides to take over, is frozen right before it adds the address, and wakes when the old Active has
    rebooted and serves again: the order carries the time after which it is void."""
    for seed in range(12):
        world = pair(seed)
        world.nodes[1].freeze(between=True, seconds=6.0)
        world.nodes[0].power_off()
        world.run(3.2)
        world.boot(0)
        world.run(12.0)
        assert world.holders.excused == []
        world.run_until(world.paired, limit_s=30.0)


@pytest.mark.req("R13")
def test_a_paused_machine_drops_the_address_soon_after_it_goes_on() -> None:
    """A hypervisor pauses the whole machine: its clocks stand still, so its lease does not lapse. No rule on one node
    can see that. On resuming, the first beat of the new Active outranks it."""
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


@pytest.mark.req("R13")
def test_a_standby_that_was_paused_before_its_take_over_asks_the_lan_once_more() -> None:
    """The Active dies. Its Standby has waited for nearly T, and asked the LAN in vain, when its machine is paused.
    Meanwhile somebody takes the address: the old Active that came back, or a stranger. On resuming the Standby does
    not know that time has passed; what the LAN answered before the pause must not allow the take-over."""
    for seed in range(20):
        world = pair(seed, beat_s=0.1, boot_waits=(4.0, 8.0))
        world.nodes[0].power_off()
        world.run(2.0 + seed * 0.05)
        world.nodes[1].pause(12.0)
        if seed % 2:
            world.run(0.5)
            world.network.foreign = True
            world.run(14.0)
            assert not world.nodes[1].holding
            assert act.Subject.FOREIGN_HOLDER in alarms(world.nodes[1])
        else:
            world.network.udp = [[False, False], [False, False]]  # no beat tells it either
            world.boot(0)
            takes_over(world, 0, limit_s=11.0)
            stays(world, 6.0)
        assert world.holders.excused == []


@pytest.mark.req("R13")
def test_the_switch_reboots_and_one_election_follows() -> None:
    """The switch reboots: both nodes lose carrier at one moment and see it again at one moment. The old Active is
    fenced by then; the silence counts anew, the beats say that nobody serves, and there is one election."""
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
    """As before, but the cable is out, so that no beat passes while the switch is away. Both come back, neither serves,
    and each could think that the other is dead: the silence counts from the carrier."""
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


@pytest.mark.req("R11")
def test_the_standby_lost_and_then_the_gateway_the_active_keeps_serving() -> None:
    """The Standby is away for repair, then the router dies. Nobody is left who could give the Active evidence, and
    nobody who could take over: it is single by then, and its own carrier is enough."""
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


@pytest.mark.req("R6")
def test_a_standby_that_does_not_catch_up_by_the_deadline_ends_the_switch() -> None:
    """A slow engine: the PBX is stopped for a switch and the Standby cannot catch up. The calls would wait for ever:
    at the deadline the services start again where they were."""
    world = pair(5)
    world.nodes[0].tell(ev.SwitchRequested)
    world.nodes[1].engine.slow = True
    world.nodes[0].engine.progress += 50
    world.run(4.5)
    assert world.active() is world.nodes[0]
    assert world.nodes[0].services
    assert world.nodes[0].refused[-1].reason is Reason.DEADLINE


def lose_the_go(world: World, *, seconds: float) -> None:
    """From the moment at which the Active accepts the acceptance nothing of it arrives."""
    world.nodes[0].tell(ev.SwitchRequested)
    reaches(world, 0, Phase.RELEASING)
    for path in (CABLE, LAN):
        world.network.udp[path][0] = False

    def restore() -> None:
        world.network.heal()

    world.at(seconds, restore)


@pytest.mark.req("R6", "R13")
def test_a_lost_go_is_repeated_until_the_peer_serves() -> None:
    """The Active has let go, and its "go" is lost. If it were said once, nobody would serve until the timeout."""
    for seed in range(10):
        world = pair(seed, timeout_s=7.0)
        lose_the_go(world, seconds=1.0)
        takes_over(world, 1, limit_s=3.0)
        assert world.holders.excused == []


@pytest.mark.req("R13")
def test_a_go_that_never_arrives_leads_to_one_active_all_the_same() -> None:
    """The "go" and all that follows it are lost. The old Active may not take back what it gave: it returns like any
    Standby, by silence and with a higher epoch, and only if nobody answers for the address."""
    for seed in range(10):
        world = pair(seed)
        lose_the_go(world, seconds=12.0)
        one_serves(world, limit_s=8.0)
        world.run(12.0)
        world.run_until(world.paired, limit_s=12.0)
        assert world.holders.excused == []


@pytest.mark.req("R13")
def test_the_giver_frozen_after_the_acceptance_makes_no_second_holder() -> None:
    """The Active is frozen after it was accepted, before it drops the address, and says "go" after it woke, when the
    other one may have taken over by silence."""
    for seed in range(10):
        world = pair(seed)
        world.nodes[0].tell(ev.SwitchRequested)
        reaches(world, 0, Phase.OFFERING)
        world.nodes[0].freeze(between=True, seconds=8.0)
        world.run(14.0)
        assert world.holders.excused == []
        world.run_until(world.paired, limit_s=12.0)


def test_a_giver_whose_address_call_fails_does_not_say_go_before_the_lease_is_over() -> None:
    """The call that removes the address fails. "Go" is not said while the kernel may have it."""
    for seed in range(10):
        world = pair(seed)
        world.nodes[0].tell(ev.SwitchRequested)
        reaches(world, 0, Phase.OFFERING)
        world.nodes[0].calls_fail = True
        world.run(6.0)
        assert world.holders.excused == []
        assert world.active() is world.nodes[1]


def test_a_taker_whose_address_call_fails_leaves_the_role_to_the_old_active() -> None:
    """The Active let go and the new one cannot add the address. If it went on trying as the chosen one, nobody would
    serve: it says that it is not able, and the other one is elected."""
    for seed in range(5):
        world = pair(seed)
        world.nodes[1].calls_fail = True
        world.nodes[0].tell(ev.SwitchRequested)
        reaches(world, 0, Phase.STANDBY)
        takes_over(world, 0, limit_s=8.0)


@pytest.mark.req("R3", "R13")
def test_replayed_beats_after_a_restart_prove_no_life_and_raise_no_epoch() -> None:
    """Somebody recorded beats of a live Active and replays them to a node that has just booted and knows nothing. They
    do not echo this boot: they neither hold a take-over back nor teach an epoch."""
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
    """The Standby reserved an epoch far above the one served. If the Active stayed below, its data would look older
    than what the Standby promised, and the Standby's engine would refuse it."""
    world = pair(1)
    world.nodes[1].power_off()
    world.nodes[1].disk = replace(world.nodes[1].disk, promised=Epoch(77))
    world.run(1.0)
    world.boot(1)
    world.run(2.0)
    assert world.active() is world.nodes[0]
    assert world.nodes[0].engine.epoch > 77
    world.run_until(world.paired, limit_s=10.0)


@pytest.mark.req("R13")
def test_a_standby_that_was_cut_off_and_hears_again_does_not_judge_by_its_own_deafness() -> None:
    """The cable is out and the Standby's port is deaf. The port is mended: the gateway answers before the next beat
    comes, and the last probe, sent while it was deaf, found nobody. The silence counts from here."""
    for seed in range(30):
        world = pair(seed)
        world.network.cable = [False, False]
        world.network.ports[1].receives = False
        world.run(8.0 + world.rng.random())
        world.network.ports[1].receives = True
        world.run(6.0)
        assert world.active() is world.nodes[0]
        assert "take-over" not in rows(world, 1)


@pytest.mark.req("R13")
def test_an_active_whose_beats_are_filtered_and_whose_port_breaks_later_has_its_lease_waited_for() -> None:
    """A firewall drops the Active's beats: the Standby hears nothing, and looks: the address answers. Much later the
    Active's port goes deaf and it answers no more, but its lease, fed by the gateway until now, has not lapsed."""
    for seed in range(30):
        world = pair(seed)
        for path in (CABLE, LAN):
            world.network.udp[path][0] = False
        world.run(12.0 + world.rng.random())
        world.network.ports[0].receives = False
        takes_over(world, 1, limit_s=5.0)
        assert world.holders.excused == []
        assert world.nodes[0].phase is Phase.FENCED


@pytest.mark.req("R13")
def test_two_that_come_back_at_one_moment_and_do_not_hear_each_other_make_one_active() -> None:
    """A firewall drops all beats, and the router is away for a while: the Active is fenced. The router comes back for
    both at one moment, the address is free for both at one moment: who was fenced lets the Standby be seen first."""
    for seed in range(30):
        world = pair(seed)
        world.network.udp = [[False, False], [False, False]]
        world.run(4.0)
        world.network.gateway_up = False
        world.run(6.0)
        assert world.nodes[0].phase is Phase.FENCED
        world.network.gateway_up = True
        takes_over(world, 1, limit_s=7.0)
        stays(world, 6.0, node=1)


@pytest.mark.req("R13")
def test_two_that_boot_at_one_moment_and_do_not_hear_each_other_make_one_active() -> None:
    """Power comes back for both while a firewall drops all beats: both wait for the other equally long."""
    for seed in range(30):
        world = World(seed, boot_waits=(4.0, 8.0))
        world.network.udp = [[False, False], [False, False]]
        world.boot()
        takes_over(world, 0, limit_s=11.0)
        stays(world, 6.0)


@pytest.mark.req("R13")
def test_a_claim_that_waits_for_a_slow_disk_looks_again_before_it_adds() -> None:
    """The Active is dead and nobody answers for its address. While the new epoch is being stored, for seconds,
    somebody else takes the address."""
    for seed in range(10):
        world = pair(seed)
        world.nodes[1].store_s = 1.4
        world.nodes[0].power_off()
        reaches(world, 1, Phase.CLAIMING, limit_s=4.0)
        world.run(0.2)  # the look with which a claim begins found nobody
        world.network.foreign = True
        world.run(10.0)
        assert not world.nodes[1].holding
        assert "claim-answered" in rows(world, 1)


@pytest.mark.req("R13")
def test_a_fenced_active_does_not_claim_at_the_moment_at_which_its_standby_does() -> None:
    """A firewall drops all beats at one moment, and just before the timeout the router is away for a second: the Active
    is fenced, and its own silence ends when its Standby's does."""
    for seed in range(40):
        world = pair(seed)
        world.network.udp = [[False, False], [False, False]]
        world.run(1.0 + world.rng.random())
        world.network.gateway_up = False
        world.run(1.0)
        world.network.gateway_up = True
        world.run(12.0)
        assert world.active() is not None
        assert world.holders.excused == []
