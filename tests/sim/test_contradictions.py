"""Nodes that do not fit together, two Actives that meet, epochs, and a pair that only observes."""

from __future__ import annotations

import pytest

from ha_agent.arbiter import actions as act
from ha_agent.arbiter import events as ev
from ha_agent.arbiter.actions import Subject
from ha_agent.arbiter.state import Book
from ha_agent.arbiter.values import NO_EPOCH, Epoch, Identity, Reason, Station
from tests.sim.stage import CRASHED, pair, rows, stays, takes_over
from tests.sim.world import FORMED, World


def differing(**fields: object) -> tuple[Identity, Identity]:
    return Identity(station=Station.PRIMARY, firmware="a"), Identity(**{"station": Station.SECONDARY, **fields})  # type: ignore[arg-type]


CONTRADICTING = {
    "same_station": {"station": Station.PRIMARY},
    "settings_differ": {"settings_digest": "other"},
    "model_differs": {"model": "other"},
    "firmware_differs": {"firmware": "b"},
    "schema_apart": {"schema": (7, 9)},
    "observing": None,
}


@pytest.mark.req("R1.3", "R13")
@pytest.mark.parametrize(
    "name", ["same_station", "settings_differ", "model_differs", "firmware_differs", "schema_apart"]
)
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


@pytest.mark.req("R7")
def test_an_upgrade_window_on_either_node_lets_firmware_differ_until_it_is_closed() -> None:
    for opened in (0, 1):
        world = World(1, identities=differing(firmware="b"))
        world.boot()
        world.nodes[opened].tell(ev.WindowSet, open=True)
        world.settle()
        assert world.active() is not None
        world.nodes[opened].tell(ev.WindowSet, open=False)
        world.run(1.0)
        world.nodes[0].tell(ev.SwitchRequested)
        assert world.nodes[0].refused[-1].reason is Reason.FIRMWARE_DIFFERS


def test_firmware_whose_schemas_overlap_is_no_contradiction() -> None:
    world = World(1, identities=differing(schema=(1, 2)))
    world.settle()


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
    for node in world.nodes:  # an alarm on both: raised once, cleared when one has let go
        assert [one.raised for one in node.alarms if one.subject is Subject.DUAL_ACTIVE] == [True, False]


def test_a_primary_takes_even_and_a_secondary_odd_epochs() -> None:
    assert [Station.PRIMARY.next_above(Epoch(n)) for n in (0, 1, 2, 3)] == [2, 2, 4, 4]
    assert [Station.SECONDARY.next_above(Epoch(n)) for n in (0, 1, 2, 3)] == [1, 3, 3, 5]
    assert NO_EPOCH == 0


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
