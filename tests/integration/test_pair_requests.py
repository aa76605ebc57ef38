"""What an administrator asks of a real pair, and what contradicts itself: done, refused, or only told."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.support import netns
from tests.support.netns_pair import AGENT, CLUSTER_IP, NetPair, until
from tests.support.netns_watch import Client, Holders
from tests.support.small_pair import read_rows, write_rows

REASON = netns.unavailable()
pytestmark = [pytest.mark.root, pytest.mark.skipif(REASON is not None, reason=REASON or "")]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetPair]:
    with NetPair(str(tmp_path_factory.mktemp("pair"))) as pair:
        pair.start()
        yield pair


@pytest.fixture
def pair(built: NetPair) -> NetPair:
    built.settle()
    return built


@pytest.fixture
def holders(pair: NetPair) -> Iterator[Holders]:
    with Holders(pair.net, pair.addresses) as watched:
        yield watched


def would(pair: NetPair) -> list[str]:
    """What the nodes say that they would have done."""
    events = [event for node in pair.nodes.values() for event in node.events("would have been done")]
    return [event.fields["deed"].partition("(")[0] for event in events]


@pytest.mark.req("R6", "R13", "R31")
def test_a_planned_switch_changes_the_roles_and_loses_nothing(pair: NetPair, holders: Holders) -> None:
    active, standby = pair.roles
    write_rows(f"{active.data}/config.db", "INSERT INTO extension(number, name) VALUES(?, ?)", "300", "planned")
    with Client(pair.net, CLUSTER_IP) as client:
        client.first(active.name, since=0)
        done = active.tool("switch")
        assert done.stdout.startswith("switched in")
        client.first(standby.name, since=0)
    assert read_rows(f"{standby.data}/config.db", "SELECT name FROM extension WHERE number = '300'") == [("planned",)]
    pair.until_ready()
    assert pair.active is standby
    assert active.switches()[-1].trigger == standby.switches()[-1].trigger == "planned"
    assert holders.seconds(2) == 0


@pytest.mark.req("R6", "R12")
def test_in_maintenance_a_death_switches_nothing_and_force_does(pair: NetPair, holders: Holders) -> None:
    active, standby = pair.roles
    active.tool("maintenance", "--for", "10m")
    until(lambda: standby.status().maintenance_left_s > 0, "maintenance on both nodes", pair.told)
    active.power_off()
    until(lambda: all(one.heard_age_s > pair.timeout_s + 1 for one in standby.status().paths), "a silence", pair.told)
    assert holders.now == set()
    assert standby.tool("switch", "--force").stdout.startswith("switched in")
    assert holders.now == {standby.name}
    assert "force-dead" in standby.rows_taken()


@pytest.mark.req("R6", "R13")
def test_force_is_refused_while_the_active_is_heard(pair: NetPair, holders: Holders) -> None:
    active, standby = pair.roles
    refused = standby.switch(force=True)
    assert (refused.switched, refused.reason) == (False, "peer_heard")
    assert [set(who) for _, who in holders.history] == [{active.name}]


@pytest.mark.req("R6", "R11", "R13")
def test_two_actives_that_meet_leave_the_one_of_the_higher_epoch(pair: NetPair, holders: Holders) -> None:
    active, standby = pair.roles
    pair.net.cut_cable()
    for node in (active, standby):
        pair.net.lose_incoming(node.name, 100)
    # The Standby hears nobody, the Active is kept alive by its gateway; only an administrator can make two of them.
    pair.net.lose_incoming(active.name, 0)
    pair.net.lose_outgoing(standby.name, 100)
    until(lambda: all(one.state != "both" for one in standby.status().paths), "a silence", pair.told)
    assert standby.switch(force=True, accept_dual=True).switched
    holders.until({"a", "b"})
    pair.settle()
    assert pair.active is standby
    assert holders.now == {standby.name}
    assert "outranked" in active.rows_taken()


@pytest.mark.req("R1.3", "R12")
def test_two_primaries_are_refused_on_both_nodes_and_the_active_goes_on(pair: NetPair, holders: Holders) -> None:
    active, standby = pair.roles
    pair.configure(standby, station_type=active.status().station_type)
    try:
        standby.stop(AGENT)
        standby.start(AGENT)
        until(lambda: "same_station" in standby.status().reasons, "a contradiction", pair.told)
        for node in (active, standby):
            until(lambda node=node: any("contradict" in one for one in node.status().alarms), "an alarm", pair.told)
        for force in (False, True):
            assert not active.switch(force=force).switched
        assert [set(who) for _, who in holders.history] == [{active.name}]
    finally:
        pair.configure(standby)
        standby.stop(AGENT)


@pytest.mark.req("R12")
def test_who_only_observes_tells_what_it_would_have_done_and_holds_nothing(pair: NetPair) -> None:
    try:
        # Stopped first: the settings are shared, and a Standby that is told of them alone takes its Active's again.
        for node in pair.nodes.values():
            node.stop(AGENT)
        for node in pair.nodes.values():
            pair.configure(node, observe_only=True)
        for node in pair.nodes.values():
            node.start(AGENT)
        until(lambda: "AddAddress" in would(pair), "a decision", pair.told)
        until(lambda: any(pair.said(lambda s: s.role == "active")), "a node that would serve", pair.told)
        assert pair.holders == set()
    finally:
        for node in pair.nodes.values():
            if node.runs(AGENT):
                node.stop(AGENT)
        for node in pair.nodes.values():
            pair.configure(node)


@pytest.mark.req("R11")
def test_an_agent_that_restarts_within_its_lease_goes_on_serving(tmp_path_factory: pytest.TempPathFactory) -> None:
    with NetPair(str(tmp_path_factory.mktemp("long")), timeout_s=10) as pair, Holders(pair.net, pair.addresses) as seen:
        pair.start()
        active = pair.active
        seen.until({active.name})
        began = len(seen.history)
        boots = len(active.rows_taken())
        active.signal(signal.SIGKILL, AGENT)
        active.start(AGENT)
        pair.until_ready()
        assert pair.active is active
        assert len(seen.history) == began
        assert active.rows_taken()[boots:] == ["resume"]


@pytest.mark.req("R12")
def test_a_node_that_is_stopped_hands_the_role_to_nobody_by_force_and_its_peer_takes_it(
    pair: NetPair, holders: Holders
) -> None:
    active, standby = pair.roles
    active.stop(AGENT)
    holders.until({standby.name})
    assert holders.seconds(2) == 0
